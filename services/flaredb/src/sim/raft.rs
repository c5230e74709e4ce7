//! A region's machine under the simulator of `photon_raft`: real logs and drivers, members that come and go,
//! snapshots, disks that lose what was not synced.

use crate::{
    Outcome,
    key::{self, Mode},
    machine::{RegionMachine, Routes, Shared},
    model::{
        Answer, Command, Kind, Op, RegionState, SPACES,
        command::*,
        layout::{META, meta_key},
    },
};
use bytes::Bytes;
use photon_kv::{
    Direction,
    engine::{Batch, Engine, EngineError, EngineResult, KeyRange, MemEngine, Space, View},
};
use photon_raft::{
    MachineError,
    sim::{SimConfig, Workload, run},
};
use photon_rt::{
    disk::{Disk, SimDisk, read_all, replace},
    entropy::Rng,
};
use prost::Message;
use std::{collections::BTreeSet, sync::Arc};

const FILE: &str = "engine";

/// An engine that is durable as one file.
struct FileEngine {
    memory: MemEngine,
    disk: SimDisk,
}

impl Engine for FileEngine {
    fn write(&self, batch: Batch) -> EngineResult<()> {
        self.memory.write(batch)
    }

    fn persist(&self) -> EngineResult<()> {
        let mut out = Vec::new();
        let view = self.memory.view();
        for space in 0..SPACES.len() {
            for item in view.scan(Space(space), KeyRange::all(), Direction::Forward) {
                let (k, v) = item?;
                for part in
                    [&[space as u8][..], &(k.len() as u32).to_le_bytes(), &(v.len() as u32).to_le_bytes()]
                {
                    out.extend_from_slice(part);
                }
                out.extend_from_slice(&k);
                out.extend_from_slice(&v);
            }
        }
        replace(&self.disk, FILE, &out).map_err(|e| EngineError::Failed(e.to_string()))?;
        self.memory.persist()
    }

    fn view(&self) -> Arc<dyn View> {
        self.memory.view()
    }

    fn clear(&self, space: Space) -> EngineResult<()> {
        self.memory.clear(space)
    }

    fn disk_bytes(&self) -> u64 {
        self.memory.disk_bytes()
    }

    fn compact(&self) -> EngineResult<()> {
        Ok(())
    }
}

fn load(disk: &SimDisk) -> Result<MemEngine, MachineError> {
    let memory = MemEngine::new(SPACES.len());
    let mut batch = Batch::default();
    match disk.open(FILE) {
        Ok(f) => {
            let all = read_all(&*f, 64 << 20).map_err(|e| MachineError(e.to_string()))?;
            let mut at = 0;
            let word = |at: usize| u32::from_le_bytes(all[at..at + 4].try_into().expect("four")) as usize;
            while at < all.len() {
                let (space, k, v) = (all[at], word(at + 1), word(at + 5));
                let (key, value) = (&all[at + 9..at + 9 + k], &all[at + 9 + k..at + 9 + k + v]);
                batch.put(Space(space.into()), key.to_vec(), value.to_vec());
                at += 9 + k + v;
            }
        }
        Err(_) => batch.put(META, meta_key(1), RegionState::first(1, &[]).encode_to_vec()),
    }
    memory.write(batch).expect("memory");
    Ok(memory)
}

#[derive(Default)]
struct Regions {
    next: u64,
    versions: BTreeSet<u64>,
}

impl Workload for Regions {
    type Machine = RegionMachine;

    fn open(&mut self, disk: &SimDisk) -> Result<RegionMachine, MachineError> {
        let engine = FileEngine { memory: load(disk)?, disk: disk.clone() };
        let (effects, _) = tokio::sync::mpsc::unbounded_channel();
        let shared = Shared { engine: Arc::new(engine), routes: Routes::default(), effects };
        RegionMachine::open(Arc::new(shared), 1).map_err(|e| MachineError(e.to_string()))
    }

    fn command(&mut self, rng: &mut Rng) -> Bytes {
        self.next += 1;
        let n = self.next;
        let name = |mode, k: u64| key::key(mode, &k.to_be_bytes()).expect("short");
        let value: Bytes = vec![n as u8; if rng.percent(10) { 1500 } else { 20 }].into();
        let start = n * 2;
        let op = match rng.below(4) {
            0 => {
                let key = name(Mode::Txn, rng.below(10));
                let m = Mutation { kind: Kind::Put as i32, key: key.clone(), value, ..Mutation::default() };
                Op::Prewrite(Prewrite { start, primary: key, mutations: vec![m], ..Prewrite::default() })
            }
            1 => {
                let commit = if n > 2 && rng.percent(50) { start } else { 0 };
                let keys = (0..10).map(|k| name(Mode::Txn, k)).collect();
                Op::Resolve(Resolve { start: (2 * n.saturating_sub(1 + rng.below(5))).max(2), commit, keys })
            }
            _ => {
                // Unlike any other, whatever it does.
                let key = name(Mode::Raw, rng.below(20));
                let unique = RawWrite {
                    key: name(Mode::Raw, 1000 + n % 8),
                    value: Some(n.to_be_bytes().to_vec().into()),
                };
                Op::Raw(RawCommit {
                    checks: vec![],
                    writes: vec![RawWrite { key, value: Some(value) }, unique],
                })
            }
        };
        // Distinct even where two transactions are resolved alike.
        let mut command = Command::new(1, op);
        command.floor = n;
        command.encode_to_vec().into()
    }

    fn digest(&self, machine: &RegionMachine) -> u64 {
        machine.digest()
    }

    fn replied(&mut self, _: &Bytes, reply: Outcome<Answer>) -> Result<(), String> {
        match reply {
            Ok(Answer::Written(v)) if !self.versions.insert(v) => Err(format!("version {v} was given twice")),
            Err(e) if e.is_about_routing() => Err(format!("a region that never changed says: {e}")),
            _ => Ok(()),
        }
    }
}

#[test]
fn a_region_follows_its_log_under_all_faults() {
    let seeds: u64 = std::env::var("SIM_SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(40);
    let (mut restores, mut losses, mut done) = (0, 0, 0);
    for seed in 0..seeds {
        let r = run(seed, &SimConfig::of_seed(seed), Regions::default()).unwrap_or_else(|v| panic!("{v}"));
        restores += r.restores;
        losses += r.power_losses;
        done += r.acknowledged;
    }
    println!("{done} commands, {restores} snapshots installed, {losses} power losses");
    assert!(seeds < 20 || (restores > 3 && losses > 10 && done > 20 * seeds), "{restores} {losses} {done}");
}
