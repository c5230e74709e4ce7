//! Commands for the simulated cluster, and the machine with everything that looks at it.

use super::{
    engine::DiskEngine,
    model::{Item, Model, brief},
    watches::{self, Counts, Watch},
};
use crate::{
    EtcdResult,
    command::{Command, Grant, Op, Revoke},
    machine::{Shared, StateMachine},
    model::{
        Answer,
        hash::hash_kv,
        layout::{LATEST, LEASE, SPACES, decode},
    },
    who::Who,
    wire::etcdserverpb::{
        CompactionRequest, Compare, DeleteRangeRequest, PutRequest, RequestOp, TxnRequest,
        compare::{CompareResult, CompareTarget, TargetUnion},
        request_op::Request,
    },
};
use bytes::Bytes;
use photon_kv::{Direction, engine::KeyRange};
use photon_raft::{Machine, MachineError, Position, sim::Workload, snapshot::Chunks};
use photon_rt::{disk::SimDisk, entropy::Rng};
use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
    ops::Add,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Bytes of changes that members keep in memory: so few that watches often need the store.
const RING: usize = 2 << 10;
/// Expected answers that are kept for members that lag.
const KEPT: usize = 20_000;

/// What there was to see in a run.
pub type Told = Counts;

impl Add for Counts {
    type Output = Counts;

    fn add(self, b: Counts) -> Counts {
        Counts {
            events: self.events + b.events,
            moves: self.moves + b.moves,
            history: self.history + b.history,
            compacted: self.compacted + b.compacted,
        }
    }
}

/// What all members and the checks share.
pub struct World {
    model: Model,
    /// Index that the model reflects, and what was to be answered.
    applied: u64,
    answers: BTreeMap<u64, String>,
    watches: Vec<Watch>,
    counts: Counts,
    rng: Rng,
    lives: u64,
    /// The first thing that was wrong: a machine's own error may count as the fault of its disk.
    wrong: Option<String>,
    runtime: tokio::runtime::Runtime,
}

impl World {
    /// What happened, or what was wrong.
    pub fn told(&self) -> Result<Told, String> {
        self.wrong.clone().map_or(Ok(self.counts), Err)
    }
}

pub struct Writes {
    world: Arc<Mutex<World>>,
    next: u64,
}

impl Writes {
    pub fn new(seed: u64) -> Writes {
        let mut rng = Rng::new(seed ^ 0xc4a1);
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let world = World {
            model: Model::new(),
            applied: 0,
            answers: BTreeMap::new(),
            watches: watches::some(&mut rng),
            counts: Counts::default(),
            rng,
            lives: 0,
            wrong: None,
            runtime,
        };
        Writes { world: Arc::new(Mutex::new(world)), next: 0 }
    }

    pub fn world(&self) -> Arc<Mutex<World>> {
        self.world.clone()
    }

    fn op(&self, rng: &mut Rng, unique: String) -> Op {
        let key = |rng: &mut Rng| Bytes::from(format!("k{}", rng.below(10)));
        let revision = lock(&self.world).model.revision;
        let put = |key: Bytes, lease: i64| PutRequest {
            key,
            value: unique.clone().into(),
            lease,
            ..Default::default()
        };
        match rng.below(20) {
            0..=7 => Op::Put(put(key(rng), 0)),
            8 | 9 => Op::Put(put(key(rng), 1 + rng.below(4) as i64)),
            10..=13 => {
                let k = key(rng);
                let guess = lock(&self.world).model.keys.get(&k).map_or(0, |i| i.modified);
                let compare = Compare {
                    result: CompareResult::Equal as i32,
                    target: CompareTarget::Mod as i32,
                    key: k.clone(),
                    target_union: Some(TargetUnion::ModRevision(guess)),
                    ..Default::default()
                };
                let op = |request| RequestOp { request: Some(request) };
                let note = op(Request::RequestPut(put("u".into(), 0)));
                let change = if rng.percent(70) {
                    Request::RequestPut(put(k, 0))
                } else {
                    Request::RequestDeleteRange(DeleteRangeRequest { key: k, ..Default::default() })
                };
                Op::Txn(TxnRequest {
                    compare: vec![compare],
                    success: vec![op(change), note.clone()],
                    failure: vec![note],
                })
            }
            14 | 15 => {
                let range_end = if rng.percent(30) { Bytes::from("k9") } else { Bytes::new() };
                Op::DeleteRange(DeleteRangeRequest { key: key(rng), range_end, ..Default::default() })
            }
            16 | 17 => Op::LeaseGrant(Grant { id: 1 + rng.below(4) as i64, ttl: 1_000_000 }),
            18 => Op::LeaseRevoke(Revoke { id: 1 + rng.below(4) as i64, unless_renewed: 0 }),
            _ => {
                let revision = (revision - rng.below(30) as i64).max(1) + i64::from(rng.percent(5)) * 100;
                Op::Compact(CompactionRequest { revision, physical: false })
            }
        }
    }
}

fn lock(world: &Mutex<World>) -> MutexGuard<'_, World> {
    world.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A member's machine.
pub struct Checked {
    machine: StateMachine,
    shared: Arc<Shared>,
    world: Arc<Mutex<World>>,
    life: u64,
}

impl Checked {
    fn check(
        &self,
        w: &mut World,
        commands: &[photon_raft::Command],
        replies: &[EtcdResult<Answer>],
    ) -> Result<(), String> {
        for (c, reply) in commands.iter().zip(replies) {
            let index = c.position.index;
            if index > w.applied {
                w.applied = index;
                let answer = w.model.apply(c.data.clone());
                w.answers.insert(index, answer);
                if w.answers.len() > KEPT {
                    w.answers.pop_first();
                }
            }
            let (got, due) = (brief(reply), w.answers.get(&index));
            if due.is_some_and(|due| *due != got) {
                return Err(format!("entry {index} was answered {got}, due was {due:?}"));
            }
        }
        if commands.last().is_some_and(|c| c.position.index == w.applied) {
            let now = self.shared.published();
            if (now.revision, now.compacted) != (w.model.revision, w.model.compacted) {
                let (r, c) = (w.model.revision, w.model.compacted);
                return Err(format!(
                    "revision {}, compacted {}; due were {r} and {c}",
                    now.revision, now.compacted
                ));
            }
            let keys = items(&self.shared).map_err(|e| e.to_string())?;
            if keys != w.model.keys {
                return Err(format!("at {} there are {keys:?}, due were {:?}", w.applied, w.model.keys));
            }
        }
        self.look(w)
    }

    /// What goes on beside applying: sweeping, calling, watching.
    fn look(&self, w: &mut World) -> Result<(), String> {
        if w.rng.percent(10) {
            // The disk may have ended just now.
            let _ = crate::sweep::step(&self.shared);
        }
        if w.rng.percent(80) {
            while self.shared.hub.call() {}
        }
        let World { watches, model, counts, rng, runtime, .. } = w;
        for watch in watches {
            // Mostly it stays where it is.
            if watch.is_at(self.life) && rng.percent(60) || rng.percent(4) {
                runtime.block_on(watch.step(self.life, &self.shared, model, rng, counts))?;
            }
        }
        Ok(())
    }
}

fn items(shared: &Shared) -> EtcdResult<BTreeMap<Bytes, Item>> {
    let view = shared.published().view.clone();
    view.scan(LATEST, KeyRange::all(), Direction::Forward)
        .map(|item| {
            let kv = decode(item?.1)?;
            let (create, modified, version) = (kv.create_revision, kv.mod_revision, kv.version);
            Ok((kv.key, Item { create, modified, version, value: kv.value, lease: kv.lease }))
        })
        .collect()
}

impl Machine for Checked {
    type Reply = EtcdResult<Answer>;

    fn apply(&mut self, commands: &[photon_raft::Command]) -> Result<Vec<Self::Reply>, MachineError> {
        let replies = self.machine.apply(commands)?;
        let world = self.world.clone();
        let mut w = lock(&world);
        if let Err(wrong) = self.check(&mut w, commands, &replies) {
            w.wrong.get_or_insert(wrong);
        }
        Ok(replies)
    }

    fn applied(&self) -> Position {
        self.machine.applied()
    }

    fn checkpoint(&mut self) -> Result<Position, MachineError> {
        self.machine.checkpoint()
    }

    fn snapshot(&self) -> Result<(Position, Chunks), MachineError> {
        self.machine.snapshot()
    }

    fn restore(
        &mut self,
        at: Position,
        chunks: &mut dyn Iterator<Item = Result<Bytes, MachineError>>,
    ) -> Result<(), MachineError> {
        self.machine.restore(at, chunks)
    }
}

impl Workload for Writes {
    type Machine = Checked;

    fn open(&mut self, disk: &SimDisk) -> Result<Checked, MachineError> {
        let engine = DiskEngine::open(disk, SPACES.len()).map_err(|e| MachineError(e.to_string()))?;
        let (machine, shared) =
            StateMachine::open(Arc::new(engine), RING).map_err(|e| MachineError(e.to_string()))?;
        let mut w = lock(&self.world);
        w.lives += 1;
        Ok(Checked { machine, shared, world: self.world.clone(), life: w.lives })
    }

    fn command(&mut self, rng: &mut Rng) -> Bytes {
        self.next += 1;
        let op = self.op(rng, format!("v{}", self.next));
        // Commands of equal content are told apart by what counts for nothing here.
        let who = Who {
            scope: crate::Scope::Operator,
            login: crate::who::Login::User { name: "w".into(), revision: self.next },
        };
        Command::new(&who, op).to_bytes().expect("small")
    }

    fn digest(&self, m: &Checked) -> u64 {
        let now = m.shared.published();
        let mut h = DefaultHasher::new();
        let kv = hash_kv(&now.reader(), 0);
        (kv.map_err(|e| e.to_string()), now.revision, now.compacted).hash(&mut h);
        now.view
            .scan(LEASE, KeyRange::all(), Direction::Forward)
            .for_each(|item| item.map_err(|e| e.to_string()).hash(&mut h));
        h.finish()
    }

    fn replied(&mut self, _: &Bytes, _: EtcdResult<Answer>) -> Result<(), String> {
        lock(&self.world).told().map(drop)
    }

    fn read(&mut self, m: &Checked) -> Result<(), String> {
        let mut w = lock(&self.world);
        w.told()?;
        m.look(&mut w)
    }
}
