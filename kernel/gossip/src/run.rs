//! The edge: one task with the socket, the clocks and the seal around a [`Core`].

use crate::{
    bug::Bugs,
    core::{Core, Now, SEEDS_MAX, Start, Timings},
    counters::Counters,
    peer::{Facts, Peer, Seen, check_facts},
    seal::{GossipKey, PACKET_MAX, Seal},
};
use photon_base::{Error, Name, Result};
use photon_rt::{
    entropy,
    net::UdpSocket,
    task::Tasks,
    time::{self, Duration, Instant},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::{Notify, oneshot, watch};

/// Packets taken from the socket before deadlines get their turn.
const BATCH: usize = 64;
/// Names that wait to be forgotten.
const FORGET_MAX: usize = 1_024;
const LEAVE_LIMIT: Duration = Duration::from_secs(1);

/// All nodes but this one, by name.
pub type PeersView = Arc<BTreeMap<Name, Seen>>;

/// What a node's gossip is started with.
#[derive(Clone, Debug)]
pub struct GossipConfig {
    /// This node: its name, the address under which the others reach its socket, and its facts.
    pub me: Peer,
    /// The cluster's key.
    pub key: GossipKey,
    /// Addresses of some other nodes; its own does not matter. None for the first node.
    pub seeds: Vec<SocketAddr>,
    /// How fast.
    pub timings: Timings,
}

/// A running gossip. Ends with the tasks that it was started in, or with [`Gossip::leave`].
#[derive(Clone, Debug)]
pub struct Gossip {
    wishes: Arc<Wishes>,
    peers: watch::Receiver<PeersView>,
    counters: Arc<Counters>,
}

/// What the task shall do next; the last wish counts, so this is bounded.
#[derive(Debug, Default)]
struct Wishes {
    wanted: Mutex<Wanted>,
    notify: Notify,
}

#[derive(Debug, Default)]
struct Wanted {
    facts: Option<Facts>,
    seeds: BTreeSet<SocketAddr>,
    forget: BTreeSet<Name>,
    leave: Vec<oneshot::Sender<()>>,
}

impl Wishes {
    fn lock(&self) -> MutexGuard<'_, Wanted> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Gossip {
    /// Starts gossip on `socket`.
    pub fn start(config: GossipConfig, socket: UdpSocket, tasks: &Tasks) -> Result<Gossip> {
        let GossipConfig { me, key, seeds, timings } = config;
        check_facts(&me.facts)?;
        if me.gossip.ip().is_unspecified() || me.gossip.ip().is_multicast() || me.gossip.port() == 0 {
            return Err(Error::invalid("gossip", format!("others can't reach this node at {}", me.gossip))
                .hint("give the address of this machine in the cluster's network: --listen ADDRESS"));
        }
        if timings.probe_wait * 2 > timings.probe_every || timings.probe_wait < Duration::from_millis(1) {
            return Err(Error::invalid("probe_wait", "it must be between 1 ms and half of probe_every"));
        }
        let mut process = [0; 16];
        entropy::fill(&mut process);
        let counters = Arc::new(Counters::default());
        let clock = Clock(time::now());
        let start =
            Start { name: me.name, addr: me.gossip, facts: me.facts, seeds, timings, bugs: Bugs::default() };
        let core = Core::new(start, clock.now(), entropy::u64(), counters.clone());
        let seal = Seal::new(&key, process, Bugs::default());
        let wishes = Arc::new(Wishes::default());
        let (view, peers) = watch::channel(PeersView::default());
        let edge = Edge { core, seal, socket, clock, view, counters: counters.clone() };
        tasks.spawn("gossip", edge.run(wishes.clone()));
        Ok(Gossip { wishes, peers, counters })
    }

    /// All nodes but this one, as they are now and whenever that changes.
    pub fn peers(&self) -> watch::Receiver<PeersView> {
        self.peers.clone()
    }

    /// What was counted so far.
    pub fn counters(&self) -> Arc<Counters> {
        self.counters.clone()
    }

    /// Tells other facts of this node from now on.
    pub fn set_facts(&self, facts: Facts) -> Result<()> {
        check_facts(&facts)?;
        self.wishes.lock().facts = Some(facts);
        self.wishes.notify.notify_one();
        Ok(())
    }

    /// Addresses learnt elsewhere, tried for ever while no node there answers. Those beyond the first
    /// [`SEEDS_MAX`] are not kept.
    pub fn add_seeds(&self, seeds: impl IntoIterator<Item = SocketAddr>) {
        let mut wanted = self.wishes.lock();
        for s in seeds {
            if wanted.seeds.len() < SEEDS_MAX {
                wanted.seeds.insert(s);
            }
        }
        drop(wanted);
        self.wishes.notify.notify_one();
    }

    /// Strikes a node that was removed for good off this node's list, and does not listen to it any more.
    /// To be called on every node. Should it start again, holding the key, it is listed again.
    pub fn forget(&self, name: Name) -> Result<()> {
        let mut wanted = self.wishes.lock();
        if wanted.forget.len() >= FORGET_MAX {
            return Err(Error::new(photon_base::Code::Exhausted, "too many nodes to forget at once"));
        }
        wanted.forget.insert(name);
        drop(wanted);
        self.wishes.notify.notify_one();
        Ok(())
    }

    /// Tells the others that this node goes, and ends. Returns when that was sent, or gossip had ended before.
    pub async fn leave(&self) {
        let (done, wait) = oneshot::channel();
        self.wishes.lock().leave.push(done);
        self.wishes.notify.notify_one();
        let gone = async {
            tokio::select! { _ = wait => (), _ = self.ended() => () }
        };
        // The socket never blocks; a runtime that is too busy for a second is not waited for.
        let _ = time::timeout(LEAVE_LIMIT, "leaving", gone).await;
    }

    async fn ended(&self) {
        let mut peers = self.peers.clone();
        while peers.changed().await.is_ok() {}
    }
}

/// Monotonic time since the start, and the wall.
#[derive(Clone, Copy)]
struct Clock(Instant);

impl Clock {
    fn now(&self) -> Now {
        Now { mono: time::now() - self.0, wall: time::wall() }
    }
}

struct Edge {
    core: Core,
    seal: Seal,
    socket: UdpSocket,
    clock: Clock,
    view: watch::Sender<PeersView>,
    counters: Arc<Counters>,
}

impl Edge {
    async fn run(mut self, wishes: Arc<Wishes>) {
        // One byte more than the largest packet, so that a larger one is seen to be too large.
        let mut buffer = vec![0; PACKET_MAX + 1];
        loop {
            self.flush();
            let deadline = self.wake();
            tokio::select! {
                // Packets before deadlines: whoever was held up hears the answers before he judges.
                biased;
                () = wishes.notify.notified() => {
                    if self.wish(&wishes) {
                        return;
                    }
                }
                ready = self.socket.readable() => {
                    if ready.is_err() || !self.receive(&mut buffer) {
                        // The socket has an error that reading does not clear; not at full speed then.
                        time::sleep(Duration::from_millis(10)).await;
                    }
                }
                () = time::sleep_until(deadline) => (),
            }
            let now = self.clock.now();
            if self.core.deadline() <= now.mono {
                self.core.tick(now);
            }
        }
    }

    /// When to look again if nothing comes: at the next deadline, or in an hour.
    fn wake(&self) -> Instant {
        let latest = self.clock.now().mono + Duration::from_secs(3600);
        self.clock.0 + self.core.deadline().min(latest)
    }

    /// Reads what is there, at most a batch. False after an error.
    fn receive(&mut self, buffer: &mut [u8]) -> bool {
        for _ in 0..BATCH {
            let n = match self.socket.try_recv_from(buffer) {
                Ok((n, _)) => n,
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return true,
                Err(e) => {
                    tracing::debug!(error = %e, "receive");
                    return false;
                }
            };
            Counters::inc(&self.counters.packets_received_total);
            Counters::add(&self.counters.bytes_received_total, n);
            match self.seal.open(&mut buffer[..n]) {
                Some(opened) => self.core.packet(self.clock.now(), opened.counter, opened.plain),
                None => Counters::inc(&self.counters.unsealed_total),
            }
        }
        true
    }

    fn flush(&mut self) {
        for (to, plain) in self.core.take() {
            let sent = self.seal.seal(&plain).and_then(|p| self.socket.try_send_to(&p, to).ok());
            match sent {
                Some(n) => {
                    Counters::inc(&self.counters.packets_sent_total);
                    Counters::add(&self.counters.bytes_sent_total, n);
                }
                // Lost, like any packet may be.
                None => Counters::inc(&self.counters.unsent_total),
            }
        }
        if let Some(view) = self.core.view_if_changed() {
            self.view.send_replace(Arc::new(view));
        }
    }

    /// Does what was wished; true when that was to leave.
    fn wish(&mut self, wishes: &Wishes) -> bool {
        let wanted = std::mem::take(&mut *wishes.lock());
        let now = self.clock.now();
        if let Some(facts) = wanted.facts {
            self.core.set_facts(facts);
        }
        self.core.add_seeds(wanted.seeds);
        for name in wanted.forget {
            self.core.forget(now, &name);
        }
        if wanted.leave.is_empty() {
            return false;
        }
        self.core.leave(now);
        self.flush();
        for done in wanted.leave {
            let _ = done.send(());
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;

    /// For two virtual hours the task wakes at its deadlines and no more often: a loop that did not sleep would
    /// not let the paused clock go on.
    #[tokio::test(start_paused = true)]
    async fn it_sleeps_between_deadlines_for_hours() {
        let socket = photon_rt::net::udp(([127, 0, 0, 1], 0).into()).await.unwrap();
        let nobody = photon_rt::net::udp(([127, 0, 0, 1], 0).into()).await.unwrap();
        let me =
            Peer { name: "a".parse().unwrap(), gossip: socket.local_addr().unwrap(), facts: Facts::new() };
        let seeds = vec![nobody.local_addr().unwrap()];
        let config = GossipConfig { me, key: GossipKey::new([1; 32]), seeds, timings: Timings::default() };
        let tasks = Tasks::new();
        let gossip = Gossip::start(config, socket, &tasks).unwrap();
        time::sleep(Duration::from_secs(7_200)).await;
        // One hello a second, while nobody is there.
        let sent = gossip.counters.packets_sent_total.load(Ordering::Relaxed);
        assert!((7_000..7_400).contains(&sent), "{sent}");
        gossip.leave().await;
        tasks.shutdown().await;
    }
}
