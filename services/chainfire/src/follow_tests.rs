//! Followers against the plainest reading of what they promise: each watch gets what a look at every change of
//! the history from its start on gives, whatever comes between.

use super::*;
use crate::{
    command::{Command, Op},
    machine::StateMachine,
    who::{Login, Who},
    wire::etcdserverpb::{
        CompactionRequest, DeleteRangeRequest, PutRequest, RequestOp, TxnRequest, request_op::Request,
    },
};
use bytes::Bytes;
use futures::FutureExt;
use photon_kv::engine::MemEngine;
use photon_raft::{Machine, Position};
use photon_rt::entropy::Rng;

const KEYS: [&[u8]; 6] = [b"a", b"ab", b"abc", b"b", b"c", b"/photon.internal/x"];

fn key(rng: &mut Rng) -> Bytes {
    Bytes::from_static(KEYS[rng.below(6) as usize])
}

fn span(rng: &mut Rng) -> Span {
    let start = key(rng);
    match rng.below(4) {
        0 => Span { start: Bytes::from_static(b"\0"), end: None },
        1 => Span { end: Some(Bytes::from_static(b"b")), start: Bytes::from_static(b"a") },
        _ => Span::of(&start, &Bytes::new()),
    }
}

fn op(rng: &mut Rng, revision: i64) -> Op {
    let put = |rng: &mut Rng| PutRequest {
        key: key(rng),
        value: vec![b'v'; rng.below(60) as usize].into(),
        ..Default::default()
    };
    match rng.below(20) {
        0..=2 => Op::DeleteRange(DeleteRangeRequest {
            key: Bytes::from_static(b"a"),
            range_end: if rng.percent(50) { Bytes::from_static(b"b") } else { Bytes::new() },
            prev_kv: false,
        }),
        3..=6 => {
            let mut keys: Vec<&[u8]> = KEYS.to_vec();
            keys.retain(|_| rng.percent(50));
            let success = keys.into_iter().map(|k| {
                let put = PutRequest { key: Bytes::from_static(k), ..put(rng) };
                RequestOp { request: Some(Request::RequestPut(put)) }
            });
            Op::Txn(TxnRequest { success: success.collect(), ..Default::default() })
        }
        7 if rng.percent(20) => {
            let revision = revision.saturating_sub(rng.below(30) as i64);
            Op::Compact(CompactionRequest { revision, physical: false })
        }
        _ => Op::Put(put(rng)),
    }
}

/// A watch as it should be.
struct Model {
    interest: Interest,
    from: i64,
    told: Vec<Changes>,
    alive: bool,
}

impl Model {
    fn wants(&self, all: &[Changes], until: i64) -> Vec<Changes> {
        let i = &self.interest;
        let one = |e: &Changes| {
            let changes: Vec<Change> = e
                .changes
                .iter()
                .filter(|c| i.span.contains(&c.kv.key) && i.admits(c))
                .map(|c| Change { prev: if i.prev_kv { c.prev.clone() } else { None }, ..c.clone() })
                .collect();
            (!changes.is_empty()).then_some(Changes { revision: e.revision, changes })
        };
        all.iter().filter(|e| e.revision >= self.from && e.revision <= until).filter_map(one).collect()
    }
}

/// Several followers on one machine; each takes a step only when it has a reason to.
struct World {
    machine: StateMachine,
    shared: Arc<Shared>,
    index: u64,
    /// Everything that ever happened.
    all: Vec<Changes>,
    compacted: i64,
}

impl World {
    fn apply(&mut self, rng: &mut Rng) {
        let op = op(rng, self.shared.published().revision);
        self.index += 1;
        let before = self.shared.published().revision;
        let who = Who { scope: Scope::Operator, login: Login::Root };
        let data = Command::new(&who, op).to_bytes().expect("small");
        let position = Position { index: self.index, term: 1 };
        self.machine.apply(&[photon_raft::Command { position, data }]).expect("applies");
        self.compacted = self.shared.published().compacted;
        if self.shared.published().revision > before {
            let new = self.shared.hub.read(before + 1).expect("the ring keeps the newest");
            self.all.extend(new.iter().map(|c| (**c).clone()));
        }
    }
}

struct Reader {
    follower: Follower,
    models: BTreeMap<i64, Model>,
    due: bool,
}

impl Reader {
    async fn step(&mut self, world: &World, what: &str) {
        let mut out = Vec::new();
        self.due = self.follower.step(&mut out).await;
        for (id, found) in out {
            let m = self.models.get_mut(&id).expect("a watch that was asked for");
            assert!(m.alive, "{what}: watch {id} hears something after its end");
            match found {
                Found::Changes(list, seen) => {
                    assert!(list.last().is_some_and(|c| c.revision <= seen), "{what}: watch {id}");
                    m.told.extend(list);
                }
                Found::Gone(Gone(to)) => {
                    assert_eq!(to, world.compacted, "{what}");
                    let next = m.told.last().map_or(m.from, |c| c.revision + 1);
                    assert!(next < to, "{what}: watch {id} from {next} was ended at {to}");
                    m.alive = false;
                }
                Found::Failed(e) => panic!("{what}: {e}"),
            }
        }
        if let Some(seen) = self.follower.seen() {
            self.check(world, seen, what);
        }
    }

    /// Everything up to a revision was told.
    fn check(&self, world: &World, seen: i64, what: &str) {
        for (id, m) in self.models.iter().filter(|(_, m)| m.alive) {
            let (mut told, mut wanted) = (m.told.clone(), m.wants(&world.all, seen));
            told.retain(|c| c.revision <= seen);
            if world.compacted >= 0 {
                // The version before a compacted revision may be gone, as in etcd.
                told.iter_mut().chain(&mut wanted).flat_map(|c| &mut c.changes).for_each(|c| c.prev = None);
            }
            assert_eq!(told, wanted, "{what}: watch {id} {:?} from {}, seen {seen}", m.interest, m.from);
        }
    }
}

async fn one_run(seed: u64) -> (u64, u64) {
    let mut rng = Rng::new(seed);
    let engine = Arc::new(MemEngine::new(SPACES.len()));
    let ring = [400, 3_000, 1 << 20][rng.below(3) as usize];
    let (machine, shared) = StateMachine::open(engine, ring).expect("opens");
    let mut world = World { machine, shared, index: 0, all: Vec::new(), compacted: -1 };
    let (mut readers, mut id, mut ended): (Vec<Reader>, i64, u64) = (Vec::new(), 0, 0);
    for n in 0..400 {
        let what = format!("seed {seed}, action {n}");
        match rng.below(20) {
            0 => readers.push(Reader {
                follower: Follower::new(world.shared.clone()),
                models: BTreeMap::new(),
                due: true,
            }),
            1..=3 if !readers.is_empty() => {
                let now = world.shared.published();
                let from = match rng.below(3) {
                    0 => now.revision + 1,
                    1 => 1 + rng.below(now.revision as u64) as i64,
                    _ => now.revision + rng.below(9) as i64,
                };
                let interest = Interest {
                    scope: if rng.percent(30) { Scope::Tenant } else { Scope::Operator },
                    span: span(&mut rng),
                    no_put: rng.percent(20),
                    no_delete: rng.percent(20),
                    prev_kv: rng.percent(50),
                };
                // What is compacted is refused before it comes this far.
                if from >= now.compacted {
                    let at = rng.below(readers.len() as u64) as usize;
                    id += 1;
                    readers[at].follower.add(id, interest.clone(), from);
                    let model = Model { interest, from, told: Vec::new(), alive: true };
                    readers[at].models.insert(id, model);
                    readers[at].due = true;
                }
            }
            4 if !readers.is_empty() => {
                let at = rng.below(readers.len() as u64) as usize;
                if rng.percent(20) {
                    readers.swap_remove(at);
                } else if let Some(id) = readers[at].models.keys().next().copied() {
                    readers[at].follower.remove(id);
                    ended += u64::from(!readers[at].models[&id].alive);
                    readers[at].models.remove(&id);
                }
            }
            5..=7 => while rng.percent(70) && world.shared.hub.call() {},
            8..=11 if !readers.is_empty() => {
                let at = rng.below(readers.len() as u64) as usize;
                if readers[at].due || readers[at].follower.news().now_or_never().is_some() {
                    readers[at].step(&world, &what).await;
                }
            }
            _ => world.apply(&mut rng),
        }
    }
    while world.shared.hub.call() {}
    let (last, mut told) = (world.shared.published().revision, 0);
    for r in &mut readers {
        let mut steps = 0;
        while r.due || r.follower.news().now_or_never().is_some() {
            r.step(&world, &format!("seed {seed}, at the end")).await;
            steps += 1;
            assert!(steps < 1_000, "seed {seed}: no end");
        }
        // Not only up to what it has seen: nothing is left that nobody woke it for.
        r.check(&world, last, &format!("seed {seed}, all done"));
        told += r.models.values().map(|m| m.told.len() as u64).sum::<u64>();
        ended += r.models.values().filter(|m| !m.alive).count() as u64;
    }
    drop(readers);
    assert!(world.shared.hub.is_deaf(), "seed {seed}: somebody is still called");
    (told, ended)
}

#[tokio::test]
async fn every_watch_gets_its_history_however_it_is_read() {
    let (mut told, mut ended) = (0, 0);
    for seed in 0..100 {
        let (t, e) = one_run(seed).await;
        (told, ended) = (told + t, ended + e);
    }
    // Otherwise nothing was tried.
    assert!(told > 4_000 && ended > 10, "{told} {ended}");
}

/// Nobody is woken for what nobody wants, and looking at a change does not cost what exists.
#[tokio::test]
async fn only_those_concerned_are_woken() {
    let engine = Arc::new(MemEngine::new(SPACES.len()));
    let (machine, shared) = StateMachine::open(engine, 1 << 20).expect("opens");
    let mut world = World { machine, shared, index: 0, all: Vec::new(), compacted: -1 };
    let on = |key: &'static str, no_put| Interest {
        scope: Scope::Operator,
        span: Span::of(&Bytes::from(key), &Bytes::new()),
        no_put,
        no_delete: false,
        prev_kv: false,
    };
    let mut all: Vec<Follower> = [("a", false), ("b", false), ("a", true)]
        .into_iter()
        .map(|(k, no_put)| Follower::of(world.shared.clone(), on(k, no_put), 2))
        .collect();
    for f in &mut all {
        assert!(!f.step(&mut Vec::new()).await);
        while f.news().now_or_never().is_some() {}
    }
    let who = Who { scope: Scope::Operator, login: Login::Root };
    let put = Op::Put(PutRequest { key: Bytes::from_static(b"a"), ..Default::default() });
    let data = Command::new(&who, put).to_bytes().expect("small");
    world
        .machine
        .apply(&[photon_raft::Command { position: Position { index: 1, term: 1 }, data }])
        .expect("applies");
    while world.shared.hub.call() {}
    let woken: Vec<bool> = all.iter().map(|f| f.news().now_or_never().is_some()).collect();
    assert_eq!(woken, [true, false, false]);
    world.shared.hub.rouse();
    assert!(all.iter().all(|f| f.news().now_or_never().is_some()));
}
