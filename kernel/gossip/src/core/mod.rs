//! The decisions: (packet | deadline | wish, now) in, packets and a view out. Pure: entropy comes from a
//! seed, no clock is read, nothing is awaited.
//!
//! foca keeps the members and their states; `table` mirrors it after every input ([`Core::reconcile`]) and
//! adds what foca does not know: facts, times, replay windows. `life` guards this node's own life, `sync`
//! compares knowledge with others.

mod life;
mod swim;
mod sync;
#[cfg(test)]
mod tests;

use crate::{
    bug::{Bug, Bugs},
    counters::Counters,
    id::{Id, generation},
    peer::{Facts, Liveness, Peer, Seen},
    seal::{PLAIN_MAX, Window},
    wire::{self, Message, News, Record, Stamp, SwimCodec, from_member, to_member},
};
use foca::{Foca, Timer};
use photon_base::{Name, Timestamp};
use photon_rt::entropy::Rng;
use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    num::{NonZeroU8, NonZeroUsize},
    sync::Arc,
    time::Duration,
};
use swim::{Draw, Items, Out};
use sync::Question;

/// Most nodes that one node knows.
pub const PEERS_MAX: usize = 4_096;
/// Most addresses that are tried when a node is lost.
pub const SEEDS_MAX: usize = 256;
const FORGOTTEN_MAX: usize = PEERS_MAX;
const SWEEP_EVERY: Duration = Duration::from_secs(60);
/// Deadlines handled before the socket gets its turn.
const DUE_MAX: usize = 64;

/// How fast gossip is. All nodes of a cluster should have the same.
#[derive(Clone, Debug)]
pub struct Timings {
    /// One node is probed in each of these periods. 1 s.
    pub probe_every: Duration,
    /// How long a direct probe may take before others are asked to try; less than half of `probe_every`.
    /// 400 ms.
    pub probe_wait: Duration,
    /// How long a suspect may take to say that it lives; times log10 of the nodes where there are more than
    /// ten. 4 s.
    pub suspect: Duration,
    /// What is known is compared with one other node in each of these periods. 1 s.
    pub sync_every: Duration,
    /// Some of those that are Down, and one of the seeds, are tried in each of these periods. 3 s.
    pub reach_every: Duration,
    /// A node that is Down or Left is listed for so long. 24 h.
    pub keep_down: Duration,
}

impl Default for Timings {
    fn default() -> Self {
        Timings {
            probe_every: Duration::from_secs(1),
            probe_wait: Duration::from_millis(400),
            suspect: Duration::from_secs(4),
            sync_every: Duration::from_secs(1),
            reach_every: Duration::from_secs(3),
            keep_down: Duration::from_secs(24 * 3600),
        }
    }
}

/// The clocks at one moment. `mono` only measures, `wall` only begins lives and dates what is shown.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Now {
    pub mono: Duration,
    pub wall: Timestamp,
}

/// What a core begins with.
pub(crate) struct Start {
    pub name: Name,
    pub addr: SocketAddr,
    pub facts: Facts,
    pub seeds: Vec<SocketAddr>,
    pub timings: Timings,
    pub bugs: Bugs,
}

/// A node in the table.
struct Known {
    id: Id,
    incarnation: u16,
    state: Liveness,
    stamp: Stamp,
    peer: Arc<Peer>,
    since: Timestamp,
    changed: Duration,
    window: Window,
}

/// A deadline.
enum Due {
    Swim(Timer<Id>),
    /// The end of a suspicion that was already put off.
    Doubted(Timer<Id>),
    Sync,
    SyncNow,
    Reach,
    Renew,
    Sweep,
}

/// At most so many a second, that many at once.
struct Allowance {
    left: u64,
    at: Duration,
    per_second: u64,
}

impl Allowance {
    fn new(per_second: u64) -> Self {
        Allowance { left: per_second, at: Duration::ZERO, per_second }
    }
    fn take(&mut self, now: Now) -> bool {
        let more = now.mono.saturating_sub(self.at).as_millis() as u64 * self.per_second / 1000;
        if more > 0 {
            self.left = (self.left + more).min(self.per_second);
            self.at = now.mono;
        }
        let yes = self.left > 0;
        self.left = self.left.saturating_sub(1);
        yes
    }
}

/// One node's gossip.
pub(crate) struct Core {
    foca: Foca<Id, SwimCodec, Draw, Items>,
    swim: Out,
    me: Id,
    /// Our incarnation within this life, as foca counts it.
    incarnation: u16,
    facts: Facts,
    version: u32,
    table: BTreeMap<u64, Known>,
    up: usize,
    /// Names struck off, each with the last life that is not listened to.
    forgotten: BTreeMap<u64, u64>,
    seeds: Vec<SocketAddr>,
    next_seed: usize,
    timers: BTreeMap<(Duration, u64), Due>,
    timer_number: u64,
    last_heard: Duration,
    /// Highest generation known of our name that is not ours.
    floor: u64,
    /// The node at another address that has our name by a later life.
    rival: Option<Id>,
    renewing: bool,
    renewed: Duration,
    told_by: Option<SocketAddr>,
    left: bool,
    sync_from: u64,
    questions: VecDeque<Question>,
    verdicts: Allowance,
    /// A question follows on an answer that brought news.
    following: bool,
    rng: Rng,
    timings: Timings,
    bugs: Bugs,
    out: Vec<(SocketAddr, Vec<u8>)>,
    changed: bool,
    counters: Arc<Counters>,
}

impl Core {
    pub(crate) fn new(start: Start, now: Now, seed: u64, counters: Arc<Counters>) -> Self {
        let mut rng = Rng::new(seed);
        let wall = if start.bugs.on(Bug::GenerationKept) { Timestamp(1) } else { now.wall };
        let entropy = if start.bugs.on(Bug::GenerationKept) { 0 } else { rng.next_u64() };
        let me = Id::new(start.name, generation(wall, entropy), start.addr);
        let mut core = Core {
            foca: swim(&me, &start.timings, rng.next_u64()),
            swim: Out::default(),
            me,
            incarnation: 0,
            facts: start.facts,
            version: 1,
            table: BTreeMap::new(),
            up: 0,
            forgotten: BTreeMap::new(),
            seeds: Vec::new(),
            next_seed: 0,
            timers: BTreeMap::new(),
            timer_number: 0,
            last_heard: now.mono,
            floor: 0,
            rival: None,
            renewing: false,
            renewed: now.mono,
            told_by: None,
            left: false,
            sync_from: 0,
            questions: VecDeque::new(),
            verdicts: Allowance::new(50),
            following: false,
            rng,
            timings: start.timings,
            bugs: start.bugs,
            out: Vec::new(),
            changed: true,
            counters,
        };
        core.add_seeds(start.seeds);
        core.tell_facts();
        core.at(now.mono, Due::Reach);
        core.at(now.mono + core.timings.sync_every, Due::Sync);
        core.at(now.mono + SWEEP_EVERY, Due::Sweep);
        core
    }

    /// What a packet held. `counter` numbers the packets of its sender's process.
    pub(crate) fn packet(&mut self, now: Now, counter: u64, plain: &[u8]) {
        if self.left {
            return;
        }
        let Ok(message) = wire::decode(plain) else {
            Counters::inc(&self.counters.malformed_total);
            return;
        };
        let (src, incarnation) = match &message {
            Message::Swim(m) => (m.header.src.clone(), m.header.src_incarnation),
            Message::Ask(m) => (m.src.clone(), m.incarnation),
            Message::Tell(m) => (m.src.clone(), m.incarnation),
        };
        if src.key == self.me.key {
            self.namesake(now, &src);
            return self.settle(now);
        }
        if !self.admits(&src, 0) {
            Counters::inc(&self.counters.refused_total);
            return;
        }
        if let Some(known) = self.table.get_mut(&src.key).filter(|k| k.id == src)
            && !known.window.fresh(counter)
        {
            Counters::inc(&self.counters.replayed_total);
            return;
        }
        self.last_heard = now.mono;
        match message {
            Message::Swim(m) => self.on_swim(now, &src, m),
            Message::Ask(m) => self.on_ask(now, &src, incarnation, m, plain.len()),
            Message::Tell(m) => self.on_tell(now, &src, incarnation, m),
        }
        self.settle(now);
        if let Some(known) = self.table.get_mut(&src.key).filter(|k| k.id == src) {
            known.window.fresh(counter);
        }
    }

    /// The next deadline.
    pub(crate) fn deadline(&self) -> Duration {
        self.timers.first_key_value().map_or(Duration::MAX, |((at, _), _)| *at)
    }

    /// Handles the deadlines that have come. Call it again while [`Core::deadline`] is not later than now.
    pub(crate) fn tick(&mut self, now: Now) {
        for _ in 0..DUE_MAX {
            let Some(first) = self.timers.first_entry().filter(|e| e.key().0 <= now.mono) else { break };
            let due = first.remove();
            self.due(now, due);
            self.settle(now);
        }
    }

    fn due(&mut self, now: Now, due: Due) {
        match due {
            Due::Swim(t @ Timer::ChangeSuspectToDown { .. })
                if now.mono.saturating_sub(self.last_heard) > 2 * self.timings.probe_every
                    && !self.bugs.on(Bug::DeafJudges) =>
            {
                // Nobody is heard. More likely this node is deaf than all the others are dead; or it stood still,
                // and what the others have to say waits in its socket.
                let wait = suspicion(&self.timings, self.up);
                self.at(now.mono + wait, Due::Doubted(t));
            }
            Due::Swim(t) | Due::Doubted(t) => {
                let done = self.foca.handle_timer(t, &mut self.swim);
                self.log(done);
            }
            Due::Sync => {
                self.compare(now);
                let jitter = self.rng.below(200);
                self.at(now.mono + self.timings.sync_every * (900 + jitter as u32) / 1000, Due::Sync);
            }
            Due::SyncNow => {
                self.following = false;
                self.compare(now);
            }
            Due::Reach => {
                self.reach();
                let alone = if self.up == 0 { 3 } else { 1 };
                self.at(now.mono + self.timings.reach_every / alone, Due::Reach);
            }
            Due::Renew => self.renew(now),
            Due::Sweep => {
                self.sweep(now);
                self.at(now.mono + SWEEP_EVERY, Due::Sweep);
            }
        }
    }

    /// Tells other facts of this node from now on.
    pub(crate) fn set_facts(&mut self, facts: Facts) {
        if self.facts != facts {
            self.facts = facts;
            self.version = self.version.saturating_add(1);
            self.tell_facts();
        }
    }

    /// More addresses to try, kept for ever.
    pub(crate) fn add_seeds(&mut self, seeds: impl IntoIterator<Item = SocketAddr>) {
        for s in seeds {
            if s != self.me.addr && !self.seeds.contains(&s) && self.seeds.len() < SEEDS_MAX {
                self.seeds.push(s);
            }
        }
    }

    /// Strikes a node off the list and does not listen to this life of it any more.
    pub(crate) fn forget(&mut self, now: Now, name: &Name) {
        let key = Id::new(name.clone(), 0, self.me.addr).key;
        let Some(known) = self.table.get(&key) else { return };
        if self.forgotten.len() >= FORGOTTEN_MAX {
            let oldest = self.forgotten.iter().min_by_key(|(_, g)| **g).map(|(k, _)| *k);
            oldest.map(|k| self.forgotten.remove(&k));
        }
        let id = known.id.clone();
        self.forgotten.insert(key, id.generation);
        if known.state.is_up() {
            let down = to_member(id, known.incarnation, Liveness::Down);
            let done = self.foca.apply_many(std::iter::once(down), false, &mut self.swim);
            self.log(done);
            self.settle(now);
        }
        self.remove(key);
    }

    /// Says good-bye. Nothing is heard after that.
    pub(crate) fn leave(&mut self, now: Now) {
        if std::mem::replace(&mut self.left, true) {
            return;
        }
        let done = self.foca.leave_cluster(&mut self.swim);
        self.log(done);
        for _ in 0..2 {
            let done = self.foca.gossip(&mut self.swim);
            self.log(done);
        }
        self.settle(now);
        self.timers.clear();
    }

    /// Packets to send.
    pub(crate) fn take(&mut self) -> Vec<(SocketAddr, Vec<u8>)> {
        std::mem::take(&mut self.out)
    }

    /// All nodes but this one, if anything about them changed since the last call.
    pub(crate) fn view_if_changed(&mut self) -> Option<BTreeMap<Name, Seen>> {
        if !std::mem::take(&mut self.changed) {
            return None;
        }
        let (mut alive, mut suspect, mut down) = (0, 0, 0);
        for k in self.table.values() {
            match k.state {
                Liveness::Alive => alive += 1,
                Liveness::Suspect => suspect += 1,
                Liveness::Down | Liveness::Left => down += 1,
            }
        }
        Counters::set(&self.counters.peers_alive, alive);
        Counters::set(&self.counters.peers_suspect, suspect);
        Counters::set(&self.counters.peers_down, down);
        let seen = |k: &Known| Seen {
            peer: k.peer.clone(),
            current: k.stamp.generation == k.id.generation,
            state: k.state,
            since: k.since,
        };
        Some(self.table.values().map(|k| (k.peer.name.clone(), seen(k))).collect())
    }

    fn at(&mut self, when: Duration, due: Due) {
        self.timer_number += 1;
        self.timers.insert((when, self.timer_number), due);
    }

    /// True for a node that may be listed: not this one, not forgotten, and there is room beside `coming`
    /// others, if need be that of the node that has been down for longest.
    fn admits(&mut self, id: &Id, coming: usize) -> bool {
        if id.key == self.me.key || self.forgotten.get(&id.key).is_some_and(|g| id.generation <= *g) {
            return false;
        }
        if self.table.contains_key(&id.key) || self.table.len() + coming < PEERS_MAX {
            return true;
        }
        let gone = self.table.values().filter(|k| !k.state.is_up()).min_by_key(|k| k.changed);
        match gone.map(|k| k.id.key) {
            Some(key) if coming == 0 => {
                self.remove(key);
                true
            }
            _ => false,
        }
    }

    /// Takes a node that is Down or Left off all lists.
    fn remove(&mut self, key: u64) {
        if let Some(known) = self.table.remove(&key) {
            let done = self.foca.handle_timer(Timer::RemoveDown(known.id), &mut self.swim);
            self.log(done);
            self.changed = true;
        }
    }

    fn sweep(&mut self, now: Now) {
        let old = |k: &&Known| !k.state.is_up() && now.mono >= k.changed + self.timings.keep_down;
        let old: Vec<u64> = self.table.values().filter(old).map(|k| k.id.key).collect();
        for key in old {
            self.remove(key);
        }
    }

    /// Mirrors foca's members.
    fn reconcile(&mut self, now: Now) {
        let (mut up, mut fresh) = (0, false);
        for m in self.foca.iter_membership_state() {
            let (id, (incarnation, state)) = (m.id(), from_member(m));
            up += usize::from(state.is_up());
            let known = self.table.entry(id.key).or_insert_with(|| {
                (self.changed, fresh) = (true, true);
                let peer = Peer { name: (*id.name).clone(), gossip: id.addr, facts: Facts::new() };
                Known {
                    id: id.clone(),
                    incarnation,
                    state,
                    stamp: Stamp::default(),
                    peer: Arc::new(peer),
                    since: now.wall,
                    changed: now.mono,
                    window: Window::default(),
                }
            });
            known.incarnation = incarnation;
            if known.id != *id {
                fresh = true;
                if known.id.addr != id.addr {
                    tracing::info!(node = %id.name, from = %known.id.addr, to = %id.addr, "a node moved");
                }
                known.peer = Arc::new(Peer {
                    gossip: id.addr,
                    name: (*id.name).clone(),
                    facts: known.peer.facts.clone(),
                });
                known.window = Window::default();
            }
            if known.id != *id || known.state != state {
                if known.state.is_up() != state.is_up() {
                    tracing::info!(node = %id.name, ?state, "a node changed");
                }
                known.id = id.clone();
                known.state = state;
                known.since = now.wall;
                known.changed = now.mono;
                self.changed = true;
            }
        }
        if fresh {
            self.follow(now, 4);
        }
        if up != self.up {
            self.up = up;
            let done = self.foca.set_config(swim_config(&self.timings, up));
            self.log(done);
        }
    }

    fn tell_facts(&mut self) {
        let news = News { name: (*self.me.name).clone(), stamp: self.stamp(), facts: self.facts.clone() };
        let done = self.foca.add_broadcast(&news.encode()).map(|_| ());
        self.log(done);
    }

    /// Keeps facts that are newer than what was known; true when they were.
    fn learn(&mut self, key: u64, stamp: Stamp, facts: &Facts) -> bool {
        match self.table.get_mut(&key) {
            Some(known) if stamp > known.stamp => {
                known.stamp = stamp;
                known.peer = Arc::new(Peer { facts: facts.clone(), ..(*known.peer).clone() });
                self.changed = true;
                true
            }
            _ => false,
        }
    }

    fn stamp(&self) -> Stamp {
        Stamp { generation: self.me.generation, version: self.version }
    }

    fn my_record(&self) -> Record {
        Record {
            id: self.me.clone(),
            incarnation: self.incarnation,
            state: Liveness::Alive,
            stamp: self.stamp(),
            facts: self.facts.clone(),
        }
    }

    fn log(&self, done: Result<(), foca::Error>) {
        if let Err(e) = done {
            tracing::debug!(error = %e, "swim");
        }
    }
}

impl Known {
    fn record(&self) -> Record {
        Record {
            id: self.id.clone(),
            incarnation: self.incarnation,
            state: self.state,
            stamp: self.stamp,
            facts: self.peer.facts.clone(),
        }
    }
}

/// How long a suspect has to say that it lives, among `up` other nodes: a rumour and its denial each take
/// a number of rounds that grows with the logarithm of the nodes (SWIM §4.2, Lifeguard §III).
fn suspicion(t: &Timings, up: usize) -> Duration {
    t.suspect.mul_f64((up as f64 + 1.0).log10().max(1.0))
}

fn swim(me: &Id, t: &Timings, seed: u64) -> Foca<Id, SwimCodec, Draw, Items> {
    Foca::with_custom_broadcast(me.clone(), swim_config(t, 0), Draw(Rng::new(seed)), SwimCodec, Items)
}

fn swim_config(t: &Timings, up: usize) -> foca::Config {
    let some = |n| NonZeroUsize::new(n).unwrap_or(NonZeroUsize::MIN);
    let times = ((up as f64 + 2.0).log10() * 4.0).ceil().clamp(4.0, 20.0) as u8;
    foca::Config {
        probe_period: t.probe_every,
        probe_rtt: t.probe_wait,
        num_indirect_probes: some(3),
        max_transmissions: NonZeroU8::new(times).unwrap_or(NonZeroU8::MIN),
        suspect_to_down_after: suspicion(t, up),
        // `sweep` does that.
        remove_down_after: None,
        // One byte in front says that it is foca's.
        max_packet_size: some(PLAIN_MAX - 1),
        notify_down_members: true,
        // `sync` does that.
        periodic_announce: None,
        periodic_announce_to_down_members: None,
        periodic_gossip: Some(foca::PeriodicParams { frequency: t.probe_every / 5, num_members: some(3) }),
    }
}
