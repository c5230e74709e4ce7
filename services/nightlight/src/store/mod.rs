//! Where samples stay: a log ([`log`](self)), a head in memory, blocks on disk.
//!
//! A batch is acknowledged when the log holds it durably; batches that come while another is being written share the
//! next write. The head keeps what the log holds, as columns of up to [`head::CHUNK`] samples. [`Store::cut`] makes a
//! block of the head and starts a new log. A block never changes; every page of it is checked when it is read. Of
//! two samples of a series at one instant the one that came last is read.
//!
//! Files of the one flat folder: `log-N` and `block-N`, N in hexadecimal, rising; what ends in `.tmp` was never
//! finished.
//!
//! Rooms: `codec` columns to bytes, `log`, `head`, `block`, `index` which series a matcher means.

mod block;
pub mod codec;
mod head;
mod index;
mod log;
#[cfg(test)]
mod tests;

use crate::{
    engine::{Each, Samples, Storage},
    labels::{Labels, Matcher, Str},
};
use block::Block;
use head::Head;
use log::Log;
use photon_rt::disk::Disk;
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
};

/// Samples of one series, as they arrive.
#[derive(Clone, Debug, PartialEq)]
pub struct Arrival {
    /// Whose.
    pub labels: Labels,
    /// Instants and values, in any order.
    pub samples: Vec<(i64, f64)>,
}

/// What became of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Samples that are in the store now.
    pub stored: u64,
    /// Older than the newest of their series by more than the window for late ones.
    pub too_old: u64,
    /// At an instant that has another value.
    pub conflicting: u64,
    /// Of new series beyond [`Options::series_max`].
    pub over_limit: u64,
}

/// Why the store can't do what was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The disk failed; what was to be written may or may not be there.
    #[error("{what}: {why}")]
    Disk {
        /// What was not done.
        what: String,
        /// In the disk's words.
        why: String,
    },
    /// Bytes on the disk are not what was written.
    #[error(
        "{file} is damaged: {what}; restore the folder from a copy, or move the file away and lose what it holds"
    )]
    Damaged {
        /// Which file.
        file: String,
        /// Where and how.
        what: String,
    },
    /// A write failed before: nothing is taken until the store is opened again.
    #[error("the store has stopped taking samples after a failed write ({0}); restart it")]
    Stopped(String),
    /// A batch or a series is greater than the store takes.
    #[error("{0}")]
    TooLarge(String),
}

fn disk<T>(what: &str, r: std::io::Result<T>) -> Result<T, StoreError> {
    r.map_err(|e| StoreError::Disk { what: what.to_string(), why: e.to_string() })
}

/// Most bytes of the names and values of one series.
const LABEL_BYTES_MAX: usize = 64 << 10;
/// Most labels of one series.
const LABELS_MAX: usize = 512;

/// Most bytes of one batch, and of the batches of one write.
const BATCH_BYTES_MAX: usize = 64 << 20;

/// How a store behaves.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How much older than the newest of its series a sample may be, milliseconds.
    pub late_ms: i64,
    /// Most series in the head; samples of further ones are refused until the next cut.
    pub series_max: usize,
    /// A log this long asks for a cut, bytes.
    pub log_bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Options { late_ms: 3_600_000, series_max: 10_000_000, log_bytes: 256 << 20 }
    }
}

/// The store of one tenant. Blocking: call it off the runtime's threads.
pub struct Store {
    disk: Arc<dyn Disk>,
    options: Options,
    /// Batches that wait for the next write. Taken before `writer` or without it, never after.
    queue: Mutex<Queue>,
    writer: Mutex<Writer>,
    state: RwLock<State>,
}

#[derive(Default)]
struct Queue {
    next_ticket: u64,
    waiting: VecDeque<Waiting>,
    done: BTreeMap<u64, Result<Outcome, StoreError>>,
}

struct Waiting {
    ticket: u64,
    size: usize,
    batch: Vec<Arrival>,
}

struct Writer {
    log: Log,
    /// Number of the next file.
    next: u64,
    stopped: Option<StoreError>,
}

#[derive(Default)]
struct State {
    head: Head,
    blocks: Vec<Arc<Block>>,
}

/// About how many bytes a batch takes in the log; refused if it is too large.
fn check(batch: &[Arrival]) -> Result<usize, StoreError> {
    let mut size = 0usize;
    for a in batch {
        let bytes: usize = a.labels.iter().map(|(n, v)| n.len() + v.len()).sum();
        if bytes > LABEL_BYTES_MAX || a.labels.len() > LABELS_MAX {
            let n = a.labels.len();
            return Err(StoreError::TooLarge(format!(
                "a series has {n} labels of {bytes} bytes: at most {LABELS_MAX} of {LABEL_BYTES_MAX} are taken"
            )));
        }
        size = size.saturating_add(bytes + a.labels.len() * 4 + a.samples.len() * 18 + 16);
    }
    if size > BATCH_BYTES_MAX {
        return Err(StoreError::TooLarge(format!(
            "a batch takes {size} bytes: at most {BATCH_BYTES_MAX} are taken at once"
        )));
    }
    Ok(size)
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

fn number_of(name: &str, kind: &str) -> Option<u64> {
    let hex = name.strip_prefix(kind)?.strip_prefix('-')?;
    if hex.len() == 16 { u64::from_str_radix(hex, 16).ok() } else { None }
}

impl Store {
    /// Opens a folder: reads the blocks' indexes and replays the log.
    pub fn open(disk: Arc<dyn Disk>, options: Options) -> Result<Self, StoreError> {
        let names = self::disk("list files", disk.list())?;
        for n in names.iter().filter(|n| n.ends_with(".tmp")) {
            self::disk("remove an unfinished file", disk.remove(n))?;
        }
        // Names that a dead process made may not be durable yet; what is written to such a file would go with them.
        self::disk("sync the folder", disk.sync_dir())?;
        let numbers =
            |kind: &str| -> BTreeSet<u64> { names.iter().filter_map(|n| number_of(n, kind)).collect() };
        let (logs, blocks) = (numbers("log"), numbers("block"));
        let mut state = State::default();
        for n in &blocks {
            state.blocks.push(Arc::new(Block::open(&*disk, *n)?));
        }
        let next = logs.iter().chain(&blocks).max().map_or(1, |n| n + 1);
        for n in &logs {
            // Only the newest log can have been cut off while it was written.
            let newest = Some(n) == logs.last();
            log::replay(&*disk, *n, newest, &mut |batch| {
                state.head.apply(batch, &options);
            })?;
        }
        let (log, next) = match logs.last() {
            Some(n) => (Log::append_to(&*disk, *n)?, next),
            None => (Log::create(&*disk, next)?, next + 1),
        };
        Ok(Store {
            disk,
            options,
            queue: Mutex::default(),
            writer: Mutex::new(Writer { log, next, stopped: None }),
            state: RwLock::new(state),
        })
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes samples; when it answers, they survive the loss of power. What is refused is counted in the outcome.
    pub fn append(&self, batch: Vec<Arrival>) -> Result<Outcome, StoreError> {
        let size = check(&batch)?;
        let ticket = {
            let mut q = lock(&self.queue);
            let ticket = q.next_ticket;
            q.next_ticket += 1;
            q.waiting.push_back(Waiting { ticket, size, batch });
            ticket
        };
        let mut w = lock(&self.writer);
        loop {
            if let Some(done) = lock(&self.queue).done.remove(&ticket) {
                return done;
            }
            // Nobody has written ours: write those that wait, in their order, with one sync.
            self.write_waiting(&mut w);
        }
    }

    fn write_waiting(&self, w: &mut Writer) {
        let mut group = Vec::new();
        {
            let mut q = lock(&self.queue);
            let mut size = 0;
            while let Some(next) = q.waiting.pop_front_if(|n| size == 0 || size + n.size <= BATCH_BYTES_MAX) {
                size += next.size;
                group.push(next);
            }
        }
        let written = match &w.stopped {
            Some(e) => Err(StoreError::Stopped(e.to_string())),
            None => w.log.write(group.iter().map(|g| g.batch.as_slice())),
        };
        match written {
            Ok(()) => {
                let mut state = self.write();
                let done: Vec<(u64, Outcome)> =
                    group.into_iter().map(|g| (g.ticket, state.head.apply(g.batch, &self.options))).collect();
                drop(state);
                lock(&self.queue).done.extend(done.into_iter().map(|(t, o)| (t, Ok(o))));
            }
            Err(e) => {
                // After a failed sync nobody knows what the disk holds ("fsyncgate").
                w.stopped.get_or_insert_with(|| e.clone());
                lock(&self.queue).done.extend(group.into_iter().map(|g| (g.ticket, Err(e.clone()))));
            }
        }
    }

    /// True when the log is long enough for a cut.
    pub fn wants_cut(&self) -> bool {
        lock(&self.writer).log.bytes() >= self.options.log_bytes
    }

    /// Makes a block of the head and starts a new log. Appends wait meanwhile, queries don't.
    pub fn cut(&self) -> Result<(), StoreError> {
        let mut w = lock(&self.writer);
        if let Some(e) = &w.stopped {
            return Err(StoreError::Stopped(e.to_string()));
        }
        let all = self.read().head.all()?;
        if all.is_empty() {
            return Ok(());
        }
        let done = self.cut_locked(&mut w, all);
        if let Err(e) = &done {
            w.stopped = Some(e.clone());
        }
        done
    }

    fn cut_locked(&self, w: &mut Writer, all: Vec<(Labels, Samples)>) -> Result<(), StoreError> {
        let (block, log) = (w.next, w.next + 1);
        w.next += 2;
        block::write(&*self.disk, block, &all)?;
        let block = Arc::new(Block::open(&*self.disk, block)?);
        let old = std::mem::replace(&mut w.log, Log::create(&*self.disk, log)?);
        let mut state = self.write();
        state.blocks.push(block);
        state.head = Head::default();
        drop(state);
        // The block and the new log are durable: what the old logs hold is in the block.
        let names = disk("list files", self.disk.list())?;
        for name in names.iter().filter(|n| number_of(n, "log").is_some_and(|n| n <= old.number())) {
            disk("remove an old log", self.disk.remove(name))?;
        }
        disk("remove old logs", self.disk.sync_dir())
    }

    /// Forgets blocks that hold nothing newer than `before_ms`; how many.
    pub fn expire(&self, before_ms: i64) -> Result<usize, StoreError> {
        let _writer = lock(&self.writer);
        let gone: Vec<u64> =
            self.read().blocks.iter().filter(|b| b.max_t < before_ms).map(|b| b.number).collect();
        self.write().blocks.retain(|b| !gone.contains(&b.number));
        for n in &gone {
            disk("remove an old block", self.disk.remove(&block::name(*n)))?;
        }
        disk("remove old blocks", self.disk.sync_dir())?;
        Ok(gone.len())
    }

    /// Labels of all series that pass `matchers` and have a chunk that touches the time.
    pub fn series(&self, matchers: &[Matcher], from_ms: i64, to_ms: i64) -> Vec<Labels> {
        let state = self.read();
        let mut out = BTreeSet::new();
        state.head.series(matchers, from_ms, to_ms, &mut |l| {
            out.insert(l.clone());
        });
        for b in state.blocks.iter().filter(|b| b.overlaps(from_ms, to_ms)) {
            b.series(matchers, from_ms, to_ms, &mut |l| {
                out.insert(l.clone());
            });
        }
        out.into_iter().collect()
    }

    /// Series in the head, samples in the head, blocks, bytes of blocks.
    pub fn size(&self) -> (usize, u64, usize, u64) {
        let s = self.read();
        (s.head.len(), s.head.samples, s.blocks.len(), s.blocks.iter().map(|b| b.bytes).sum())
    }

    /// Values of a label over all series of the time.
    pub fn values(&self, label: &str, matchers: &[Matcher], from_ms: i64, to_ms: i64) -> BTreeSet<Str> {
        let mut out = BTreeSet::new();
        for labels in self.series(matchers, from_ms, to_ms) {
            out.extend(labels.iter().filter(|(n, _)| ***n == *label).map(|(_, v)| v.clone()));
        }
        out
    }
}

/// Pieces of one series from several places, each sorted. At one instant the later piece holds.
fn join(pieces: Vec<Samples>) -> Samples {
    let mut pieces = pieces.into_iter();
    let Some(mut out) = pieces.next() else { return Samples::default() };
    for p in pieces {
        let follows = match (out.t.last(), p.t.first()) {
            (Some(a), Some(b)) => a < b,
            _ => true,
        };
        if follows {
            out.t.extend_from_slice(&p.t);
            out.v.extend_from_slice(&p.v);
            continue;
        }
        let mut merged = Samples::default();
        let (mut i, mut k) = (0, 0);
        while i < out.t.len() || k < p.t.len() {
            let (a, b) = (out.t.get(i).copied(), p.t.get(k).copied());
            let second = match (a, b) {
                (Some(a), Some(b)) => b <= a,
                (None, _) => true,
                _ => false,
            };
            if second {
                i += usize::from(a == b);
                merged.t.push(p.t[k]);
                merged.v.push(p.v[k]);
                k += 1;
            } else {
                merged.t.push(out.t[i]);
                merged.v.push(out.v[i]);
                i += 1;
            }
        }
        out = merged;
    }
    out
}

/// What makes up one series of a selection.
#[derive(Default)]
struct Parts {
    /// Which of the blocks, and which of its series; oldest first.
    blocks: Vec<(usize, u32)>,
    head: Option<head::View>,
}

/// Cuts samples to `from..=to`.
fn clip(s: &mut Samples, from: i64, to: i64) {
    let end = s.t.partition_point(|t| *t <= to);
    let start = s.t.partition_point(|t| *t < from).min(end);
    s.t.truncate(end);
    s.v.truncate(end);
    s.t.drain(..start);
    s.v.drain(..start);
}

impl Storage for Store {
    fn select(
        &self,
        matchers: &[Matcher],
        from_ms: i64,
        to_ms: i64,
        each: Each<'_>,
    ) -> Result<(), crate::engine::Error> {
        let failed = |e: StoreError| crate::engine::Error::Storage(e.to_string());
        let (head, blocks) = {
            let state = self.read();
            let blocks: Vec<Arc<Block>> =
                state.blocks.iter().filter(|b| b.overlaps(from_ms, to_ms)).cloned().collect();
            (state.head.select(matchers, from_ms, to_ms), blocks)
        };
        let mut all: BTreeMap<Labels, Parts> = BTreeMap::new();
        for (i, b) in blocks.iter().enumerate() {
            for (labels, at) in b.select(matchers) {
                all.entry(labels).or_default().blocks.push((i, at));
            }
        }
        for (labels, view) in head {
            all.entry(labels).or_default().head = Some(view);
        }
        for (labels, parts) in all {
            let mut pieces = Vec::new();
            for (i, at) in parts.blocks {
                pieces.push(blocks[i].read(at, from_ms, to_ms).map_err(failed)?);
            }
            if let Some(view) = parts.head {
                pieces.push(view.read().map_err(failed)?);
            }
            let mut samples = join(pieces);
            clip(&mut samples, from_ms, to_ms);
            if !samples.t.is_empty() {
                each(&labels, &samples)?;
            }
        }
        Ok(())
    }
}
