//! Clients of transactions in a world from one seed: coordinators that crash, messages that come late, twice
//! or never, leaders that change, regions that split and merge, history that is collected. The code under
//! test is the product's: coordinator, state machine, gate, queries.
//!
//! What clients saw must be possible under the isolation they asked for: lists that grow are checked for
//! cycles ([`check`]), money in a bank must not change, and of those that claim a free place at most one may
//! get it.

mod check;
pub(crate) mod exec;
mod raft;
mod tests;
mod world;

use crate::{
    Refusal,
    client::{Abort, Isolation, Options, Txn, World, gc},
    key::{self, Mode, Span},
};
use bytes::Bytes;
use check::{Promise, Seen};
use exec::{Exec, Party};
use photon_kv::Direction;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};
use world::SimWorld;

const LISTS: u64 = 6;
const ACCOUNTS: u64 = 6;
const BALANCE: u64 = 100;

/// What a run found, when it found nothing wrong.
#[derive(Debug, Default)]
pub struct Report {
    pub committed: usize,
    pub aborted: usize,
    pub unknown: usize,
    pub counts: BTreeMap<&'static str, u64>,
}

/// The lists as they are in the end.
type Last = Result<BTreeMap<u8, Vec<u32>>, String>;

#[derive(Clone)]
struct Run {
    world: SimWorld,
    isolation: Isolation,
    seen: Arc<Mutex<Vec<Seen>>>,
    wrong: Arc<Mutex<Option<String>>>,
    until: u64,
    /// Leaders come and go quickly, and everybody wants the same few keys.
    drill: bool,
}

fn name(kind: char, n: u64) -> Bytes {
    key::key(Mode::Txn, format!("{kind}{n}").as_bytes()).expect("short")
}

fn place(n: u64, who: u64) -> Bytes {
    key::in_group(Mode::Txn, format!("p{n}").as_bytes(), &who.to_be_bytes()).expect("short")
}

fn list(value: Option<Bytes>) -> Vec<u32> {
    let bytes = value.unwrap_or_default();
    bytes.chunks_exact(4).filter_map(|c| c.try_into().ok()).map(u32::from_be_bytes).collect()
}

fn balance(value: &Option<Bytes>) -> u64 {
    let first = value.as_ref().and_then(|v| v.get(..8)).and_then(|b| b.try_into().ok());
    first.map_or(BALANCE, u64::from_be_bytes)
}

fn money(n: u64, amount: u64) -> Vec<u8> {
    let mut out = amount.to_be_bytes().to_vec();
    // Some values are too long to stand in their records.
    out.resize(if n.is_multiple_of(2) { 8 } else { 1500 }, 0);
    out
}

impl Run {
    fn options(&self, w: &SimWorld) -> Options {
        Options {
            isolation: self.isolation,
            pessimistic: w.exec.percent(if self.drill { 5 } else { 30 }),
            async_commit: w.exec.percent(if self.drill { 90 } else { 60 }),
            one_phase: w.exec.percent(60),
            ttl_ms: 150 + w.exec.draw(900),
        }
    }

    fn complain(&self, what: String) {
        self.wrong.lock().expect("one thread").get_or_insert(what);
    }

    async fn client(self, party: Party) {
        let world = self.world.of(party);
        let mut n = 0;
        while world.exec.now_ms() < self.until {
            n += 1;
            match world.exec.draw(10) {
                0..=6 if self.drill => self.lists(&world, party * 1000 + n).await,
                0..=4 => self.lists(&world, party * 1000 + n).await,
                5..=6 => self.transfer(&world).await,
                7 => self.audit(&world).await,
                _ => self.claim(&world, party * 1000 + n).await,
            }
            let pause = world.exec.draw(30);
            world.sleep(pause).await;
        }
    }

    async fn read(txn: &mut Txn<SimWorld>, key: &Bytes, options: &Options) -> Result<Option<Bytes>, Refusal> {
        if options.pessimistic { txn.get_for_update(key).await } else { txn.get(key).await }
    }

    /// Reads some lists and appends to some.
    async fn lists(&self, world: &SimWorld, number: u64) {
        let options = self.options(world);
        let Ok(mut txn) = Txn::begin(world.clone(), options).await else { return };
        // Its beginning is when it was asked for; what began later is behind it in time only for others.
        let at = {
            let mut all = self.seen.lock().expect("one thread");
            all.push(Seen { began: world.exec.now_ms().saturating_sub(10), ..Seen::default() });
            all.len() - 1
        };
        let mut appended = 0;
        let steps = 1 + world.exec.draw(4);
        let mut failed = None;
        for _ in 0..steps {
            let k = world.exec.draw(if self.drill { 2 } else { LISTS }) as u8;
            let key = name('l', u64::from(k));
            match Self::read(&mut txn, &key, &options).await {
                Err(e) => {
                    failed = Some(e);
                    break;
                }
                Ok(value) => {
                    let mut now = list(value);
                    let mut all = self.seen.lock().expect("one thread");
                    let own = all[at].appends.iter().any(|(a, _)| *a == k);
                    if !own {
                        all[at].reads.push((k, now.clone()));
                    }
                    if world.exec.percent(50) {
                        let e = (number * 8 + appended) as u32;
                        appended += 1;
                        now.push(e);
                        all[at].appends.push((k, e));
                        drop(all);
                        let bytes: Vec<u8> = now.iter().flat_map(|e| e.to_be_bytes()).collect();
                        txn.put(key, bytes).expect("small");
                    }
                }
            }
            if world.exec.percent(20) {
                let think = world.exec.draw(300);
                world.sleep(think).await;
            }
        }
        let committed = match failed {
            Some(_) => txn.rollback().await.is_ok().then_some(false),
            None => match txn.commit().await {
                Ok(_) => Some(true),
                Err(Abort::RolledBack(_)) => Some(false),
                Err(Abort::Unknown(_)) => None,
            },
        };
        let seen = &mut self.seen.lock().expect("one thread")[at];
        (seen.committed, seen.ended) = (committed, Some(world.exec.now_ms()));
    }

    async fn transfer(&self, world: &SimWorld) {
        let options = self.options(world);
        let (a, b) = (world.exec.draw(ACCOUNTS), world.exec.draw(ACCOUNTS));
        let Ok(mut txn) = Txn::begin(world.clone(), options).await else { return };
        let (from, to) = (name('b', a), name('b', b));
        let Ok(x) = Self::read(&mut txn, &from, &options).await else { return drop(txn.rollback().await) };
        let Ok(y) = Self::read(&mut txn, &to, &options).await else { return drop(txn.rollback().await) };
        let amount = world.exec.draw(20).min(balance(&x));
        if a != b {
            txn.put(from, money(a, balance(&x) - amount)).expect("small");
            txn.put(to, money(b, balance(&y) + amount)).expect("small");
        }
        if txn.commit().await.is_ok() {
            world.count("transfers");
        }
    }

    async fn audit(&self, world: &SimWorld) {
        let options = Options { pessimistic: false, ..self.options(world) };
        let Ok(mut txn) = Txn::begin(world.clone(), options).await else { return };
        let direction = if world.exec.percent(50) { Direction::Forward } else { Direction::Backward };
        let span = Span::prefix(Mode::Txn, b"b");
        let Ok(rows) = txn.scan(&span, direction, 100).await else { return };
        let all = rows.iter().map(|r| balance(&Some(r.value.clone()))).sum::<u64>();
        let total = all + BALANCE * (ACCOUNTS - rows.len() as u64);
        let sorted = rows.windows(2).all(|w| (w[0].key < w[1].key) == (direction == Direction::Forward));
        if total != BALANCE * ACCOUNTS || !sorted {
            self.complain(format!("an audit at {} found {total}", txn.start()));
        }
        world.count("audits");
    }

    /// Takes a place if nobody has it.
    async fn claim(&self, world: &SimWorld, who: u64) {
        let options = Options { pessimistic: false, ..self.options(world) };
        // At a time all want the same one.
        let n = world.exec.now_ms() / 250;
        let Ok(mut txn) = Txn::begin(world.clone(), options).await else { return };
        let span = Span::group(Mode::Txn, format!("p{n}").as_bytes(), b"");
        let Ok(rows) = txn.scan(&span, Direction::Forward, 10).await else { return };
        if rows.is_empty() {
            let think = world.exec.draw(60);
            world.sleep(think).await;
            txn.put(place(n, who), "mine").expect("small");
            // Something elsewhere, so that it is not all in one region.
            txn.put(name('z', who % 8), "taken").expect("small");
            if txn.commit().await.is_ok() {
                world.count("claims");
            }
        }
    }

    /// Things that happen to clients and regions.
    async fn fate(self, clients: Arc<Mutex<Vec<Party>>>) {
        let w = self.world.of(0);
        let mut next = 100;
        while w.exec.now_ms() < self.until {
            let pause = if self.drill { w.exec.draw(80) } else { 50 + w.exec.draw(250) };
            w.sleep(pause).await;
            let regions = w.regions();
            let some = w.exec.draw(regions.len() as u64) as usize;
            match w.exec.draw(if self.drill { 7 } else { 10 }) {
                0 | 1 => {
                    let letter = ['b', 'l', 'p', 'z'][w.exec.draw(4) as usize];
                    let n = w.exec.draw(8);
                    let at = key::border(&name(letter, n)).expect("a key");
                    if let Some(r) = regions.iter().find(|r| r.span().contains(&at)) {
                        let _ = w.split(r, at).await;
                    }
                }
                2 | 3 if some + 1 < regions.len() => {
                    let _ = w.merge(&regions[some], &regions[some + 1]).await;
                }
                4..=6 => w.new_leader(regions[some].id),
                7 | 8 => {
                    let victim = {
                        let mut all = clients.lock().expect("one thread");
                        let i = w.exec.draw(all.len() as u64) as usize;
                        next += 1;
                        std::mem::replace(&mut all[i], next)
                    };
                    w.count("crashes");
                    w.exec.kill(victim);
                    w.exec.spawn(next, self.clone().client(next));
                }
                _ => {
                    let now = w.exec.now_ms();
                    let back = 500 + w.exec.draw(2_000);
                    let safe_point = crate::time::at_ms(now - back);
                    if gc::collect(&w, safe_point, 20).await.is_ok() {
                        w.count("collections");
                    }
                }
            }
        }
    }

    /// When all is quiet: the lists as they are, and the last looks.
    async fn last(&self, world: SimWorld) -> Last {
        let mut last = None;
        for _ in 0..50 {
            world.sleep(500).await;
            let Ok(mut txn) = Txn::begin(world.clone(), Options::default()).await else { continue };
            let span = Span::prefix(Mode::Txn, b"");
            let rows = match txn.scan(&span, Direction::Forward, 1000).await {
                Ok(rows) => rows,
                Err(e) => {
                    last = Some(e);
                    continue;
                }
            };
            let mut out = BTreeMap::new();
            let mut places: BTreeMap<Vec<u8>, u32> = BTreeMap::new();
            for row in rows {
                let parts = key::split(&row.key).ok_or("a key that is none")?;
                match parts.group[0] {
                    b'l' => drop(out.insert(parts.group[1] - b'0', list(Some(row.value)))),
                    b'p' => *places.entry(parts.group).or_default() += 1,
                    _ => {}
                }
            }
            let twice = places.iter().find(|(_, n)| **n > 1);
            if self.isolation == Isolation::Serializable
                && let Some((p, n)) = twice
            {
                return Err(format!("{n} clients got place {}", String::from_utf8_lossy(p)));
            }
            // Whatever locks there were, reading met and settled those in its way; writers can go on.
            let key = name('l', 0);
            txn.put(name('y', 0), "end").expect("small");
            let _ = txn.get(&key).await;
            return txn.commit().await.map(|_| out).map_err(|e| format!("the quiet world refuses: {e}"));
        }
        Err(format!("the quiet world does not answer: {last:?}"))
    }
}

/// One seed, one history.
pub fn run(seed: u64) -> Result<Report, String> {
    let exec = Exec::new(seed);
    let world = SimWorld::new(exec.clone());
    let isolation = if seed.is_multiple_of(2) { Isolation::Snapshot } else { Isolation::Serializable };
    let until = exec.now_ms() + 6_000;
    let run = Run {
        world: world.clone(),
        isolation,
        seen: Arc::default(),
        wrong: Arc::default(),
        until,
        drill: seed % 4 < 2,
    };
    let clients: Vec<Party> = (1..=5).collect();
    for c in &clients {
        exec.spawn(*c, run.clone().client(*c));
    }
    exec.spawn(0, run.clone().fate(Arc::new(Mutex::new(clients))));
    if !exec.run(until + 60_000) {
        return Err("clients hang".into());
    }
    world.end_faults();
    let end: Arc<Mutex<Option<Last>>> = Arc::default();
    let (last, me) = (end.clone(), run.clone());
    exec.spawn(99, async move {
        let found = me.last(me.world.of(99)).await;
        *last.lock().expect("one thread") = Some(found);
    });
    if !exec.run(exec.now_ms() + 60_000) {
        return Err("the last look hangs".into());
    }
    if let Some(w) = run.wrong.lock().expect("one thread").take() {
        return Err(w);
    }
    let lists = end.lock().expect("one thread").take().ok_or("no last look")??;
    let all = std::mem::take(&mut *run.seen.lock().expect("one thread"));
    let promise = match isolation {
        Isolation::Snapshot => Promise::Snapshot,
        Isolation::Serializable => Promise::Serializable,
    };
    check::check(&all, &lists, promise)?;
    let number = |c| all.iter().filter(|s| s.committed == c).count();
    Ok(Report {
        committed: number(Some(true)),
        aborted: number(Some(false)),
        unknown: number(None),
        counts: world.counts(),
    })
}
