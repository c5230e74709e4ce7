//! A small key-value machine for simulations. It obeys the contract of [`Machine`] in the plainest
//! way: all in memory, a checkpoint is a file, and a crash takes away everything since.

use super::Workload;
use crate::{Command, Machine, MachineError, Position, snapshot::Chunks};
use bytes::Bytes;
use photon_rt::{
    disk::{Disk, SimDisk, read_all, replace},
    entropy::Rng,
};
use std::collections::BTreeMap;

const FILE: &str = "machine";

/// The machine.
#[derive(Clone)]
pub struct Kv {
    disk: SimDisk,
    at: Position,
    /// Values by key, and a hash over all commands ever applied, in order.
    values: BTreeMap<u8, u64>,
    digest: u64,
}

impl Kv {
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for v in [self.at.index, self.at.term, self.digest] {
            out.extend_from_slice(&v.to_le_bytes());
        }
        for (k, v) in &self.values {
            out.push(*k);
            out.extend_from_slice(&v.to_le_bytes());
        }
        out
    }

    fn decode(&mut self, bytes: &[u8]) -> Option<()> {
        let word = |b: &[u8]| b.try_into().ok().map(u64::from_le_bytes);
        let (head, rest) = bytes.split_at_checked(24)?;
        self.at = Position { index: word(&head[..8])?, term: word(&head[8..16])? };
        self.digest = word(&head[16..])?;
        self.values.clear();
        for pair in rest.chunks(9) {
            self.values.insert(*pair.first()?, word(pair.get(1..)?)?);
        }
        Some(())
    }

    fn save(&self) -> Result<(), MachineError> {
        replace(&self.disk, FILE, &self.encode()).map_err(|e| MachineError(e.to_string()))
    }
}

impl Machine for Kv {
    /// Number of the command that the reply is for.
    type Reply = u64;

    fn apply(&mut self, commands: &[Command]) -> Result<Vec<u64>, MachineError> {
        let mut out = Vec::new();
        for c in commands {
            let number = c.data.get(..8).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes);
            let number = number.ok_or_else(|| MachineError("a command without a number".into()))?;
            self.values.insert(number as u8, number);
            self.digest = (self.digest ^ number).wrapping_mul(0x100_0000_01b3).rotate_left(29);
            self.at = c.position;
            out.push(number);
        }
        Ok(out)
    }

    fn applied(&self) -> Position {
        self.at
    }

    fn checkpoint(&mut self) -> Result<Position, MachineError> {
        self.save()?;
        Ok(self.at)
    }

    fn snapshot(&self) -> Result<(Position, Chunks), MachineError> {
        let bytes = Bytes::from(self.encode());
        let chunks: Vec<_> =
            (0..bytes.len()).step_by(100).map(|at| Ok(bytes.slice(at..bytes.len().min(at + 100)))).collect();
        Ok((self.at, Box::new(chunks.into_iter())))
    }

    fn restore(
        &mut self,
        at: Position,
        chunks: &mut dyn Iterator<Item = Result<Bytes, MachineError>>,
    ) -> Result<(), MachineError> {
        let mut all = Vec::new();
        for chunk in chunks {
            all.extend_from_slice(&chunk?);
        }
        self.decode(&all).ok_or_else(|| MachineError("the snapshot is damaged".into()))?;
        self.at = at;
        self.save()
    }
}

/// Commands that set keys to numbers that rise.
#[derive(Default)]
pub struct KvWorkload {
    next: u64,
}

impl Workload for KvWorkload {
    type Machine = Kv;

    fn open(&mut self, disk: &SimDisk) -> Result<Kv, MachineError> {
        let mut kv = Kv { disk: disk.clone(), at: Position::default(), values: BTreeMap::new(), digest: 0 };
        match disk.open(FILE) {
            Ok(f) => {
                let bytes = read_all(&*f, 1 << 20).map_err(|e| MachineError(e.to_string()))?;
                kv.decode(&bytes).ok_or_else(|| MachineError("the checkpoint is damaged".into()))?;
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(MachineError(e.to_string())),
        }
        Ok(kv)
    }

    fn command(&mut self, rng: &mut Rng) -> Bytes {
        self.next += 1;
        let mut out = self.next.to_le_bytes().to_vec();
        // Sizes from nothing to several sectors.
        let padding = if rng.percent(10) { rng.below(1500) } else { rng.below(60) };
        out.resize(8 + padding as usize, 0xab);
        out.into()
    }

    fn digest(&self, machine: &Kv) -> u64 {
        machine.digest
    }

    fn replied(&mut self, command: &Bytes, reply: u64) -> Result<(), String> {
        if command[..8] == reply.to_le_bytes() {
            Ok(())
        } else {
            Err(format!("the reply {reply} is for another command"))
        }
    }

    fn read(&mut self, machine: &Kv) -> Result<(), String> {
        if machine.values.values().all(|v| *v <= self.next) {
            Ok(())
        } else {
            Err("a value nobody wrote".into())
        }
    }
}
