//! An engine on a simulated disk: all in memory, each batch a record of a journal that a sync makes durable. What
//! a crash leaves is a prefix of the batches, as the contract of [`Engine`] has it.

use photon_kv::engine::{Batch, Engine, EngineError, EngineResult, MemEngine, Space, View};
use photon_rt::disk::{Disk, DiskFile, SimDisk, read_all, replace};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const JOURNAL: &str = "journal";
const WHOLE: &str = "whole";
/// Bytes of journal after which all is written anew.
const LONG: u64 = 64 << 10;
const HEAD: usize = 16;

pub struct DiskEngine {
    mem: MemEngine,
    spaces: usize,
    disk: SimDisk,
    tail: Mutex<Tail>,
}

struct Tail {
    file: Box<dyn DiskFile>,
    at: u64,
    /// Number of the last batch.
    number: u64,
}

fn io(e: std::io::Error) -> EngineError {
    EngineError::Failed(e.to_string())
}

fn sum(b: &[u8]) -> u32 {
    b.iter().fold(0x811c_9dc5, |h, b| (h ^ u32::from(*b)).wrapping_mul(0x0100_0193))
}

fn encode(batch: &Batch) -> Vec<u8> {
    let mut out = Vec::new();
    let mut field = |b: Option<&[u8]>| {
        out.extend_from_slice(&b.map_or(u32::MAX, |b| b.len() as u32).to_le_bytes());
        out.extend_from_slice(b.unwrap_or_default());
    };
    for (space, k, v) in &batch.writes {
        field(Some(&[space.0 as u8]));
        field(Some(k));
        field(v.as_deref());
    }
    out
}

fn decode(mut b: &[u8]) -> Option<Batch> {
    let mut field = || {
        let (len, rest) = b.split_at_checked(4)?;
        let len = u32::from_le_bytes(len.try_into().ok()?);
        b = rest;
        if len == u32::MAX {
            return Some(None);
        }
        let (bytes, rest) = b.split_at_checked(len as usize)?;
        b = rest;
        Some(Some(bytes.to_vec()))
    };
    let mut batch = Batch::default();
    while let Some(Some(space)) = field() {
        let (Some(key), value) = (field()?, field()?) else { return None };
        batch.writes.push((Space(usize::from(*space.first()?)), key.into(), value.map(Into::into)));
    }
    Some(batch)
}

/// A record: length, checksum, number, batch.
fn record(number: u64, batch: &Batch) -> Vec<u8> {
    let body = [&number.to_le_bytes()[..], &encode(batch)].concat();
    [&(body.len() as u32).to_le_bytes()[..], &sum(&body).to_le_bytes(), &body].concat()
}

fn read_record(b: &[u8]) -> Option<(u64, Batch, usize)> {
    let word = |at: usize| Some(u32::from_le_bytes(b.get(at..at + 4)?.try_into().ok()?));
    let body = b.get(8..8 + word(0)? as usize)?;
    if sum(body) != word(4)? {
        return None;
    }
    let (number, rest) = body.split_at_checked(HEAD - 8)?;
    Some((u64::from_le_bytes(number.try_into().ok()?), decode(rest)?, 8 + body.len()))
}

impl DiskEngine {
    pub fn open(disk: &SimDisk, spaces: usize) -> EngineResult<DiskEngine> {
        let mem = MemEngine::new(spaces);
        let file = |name: &str| match disk.open(name) {
            Ok(f) => Ok(Some(f)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(io(e)),
        };
        let mut number = 0;
        if let Some(f) = file(WHOLE)? {
            let bytes = read_all(&*f, u64::MAX).map_err(io)?;
            let (n, batch, _) =
                read_record(&bytes).ok_or_else(|| EngineError::Damaged("what was replaced".into()))?;
            number = n;
            mem.write(batch)?;
        }
        let journal = match file(JOURNAL)? {
            Some(f) => f,
            None => {
                let f = disk.create(JOURNAL).map_err(io)?;
                disk.sync_dir().map_err(io)?;
                f
            }
        };
        let bytes = read_all(&*journal, u64::MAX).map_err(io)?;
        let mut at = 0;
        // Old records before the whole was written come first, then those that follow it, then what was torn.
        while let Some((n, batch, len)) = read_record(&bytes[at..])
            && n <= number + 1
        {
            if n == number + 1 {
                mem.write(batch)?;
                number = n;
            }
            at += len;
        }
        mem.persist()?;
        let tail = Mutex::new(Tail { file: journal, at: at as u64, number });
        Ok(DiskEngine { mem, spaces, disk: disk.clone(), tail })
    }

    fn tail(&self) -> MutexGuard<'_, Tail> {
        self.tail.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn all(&self) -> EngineResult<Batch> {
        let view = self.mem.view();
        let mut batch = Batch::default();
        for i in 0..self.spaces {
            let (space, all) = (Space(i), photon_kv::engine::KeyRange::all());
            for item in view.scan(space, all, photon_kv::Direction::Forward) {
                let (k, v) = item?;
                batch.put(space, k, v);
            }
        }
        Ok(batch)
    }
}

impl Engine for DiskEngine {
    fn write(&self, batch: Batch) -> EngineResult<()> {
        let mut t = self.tail();
        let bytes = record(t.number + 1, &batch);
        t.file.write_at(t.at, &bytes).map_err(io)?;
        t.at += bytes.len() as u64;
        t.number += 1;
        self.mem.write(batch)
    }

    fn persist(&self) -> EngineResult<()> {
        let mut t = self.tail();
        t.file.sync_data().map_err(io)?;
        if t.at > LONG {
            replace(&self.disk, WHOLE, &record(t.number, &self.all()?)).map_err(io)?;
            t.file.truncate(0).map_err(io)?;
            t.at = 0;
        }
        self.mem.persist()
    }

    fn view(&self) -> Arc<dyn View> {
        self.mem.view()
    }

    fn clear(&self, space: Space) -> EngineResult<()> {
        let mut batch = self.all()?;
        batch.writes.retain(|(s, _, _)| *s == space);
        batch.writes.iter_mut().for_each(|(_, _, v)| *v = None);
        self.write(batch)
    }

    fn disk_bytes(&self) -> u64 {
        self.mem.disk_bytes()
    }

    fn compact(&self) -> EngineResult<()> {
        Ok(())
    }
}
