//! Where samples stay: a log ([`log`](self)), a head in memory, blocks on disk.
//!
//! A batch is acknowledged when the log holds it durably; batches that come while another is being written share the
//! next write. The head keeps what the log holds, as columns of up to [`head::CHUNK`] samples. [`Store::cut`] begins a
//! new log and head at once and makes a block of the old ones while appends and queries go on. A block never changes;
//! every page of it is checked when it is read. Of two samples of a series at one instant the one that came last is
//! read.
//!
//! Deletion ([`Store::delete`]) cuts and then writes down what is gone from the blocks that exist (`deletions`);
//! compaction ([`Store::compact`]) rewrites blocks into fewer and leaves out what is gone.
//!
//! Files of the one flat folder: `log-N` and `block-N`, N in hexadecimal, rising; `deletions`; what ends in `.tmp` was
//! never finished.
//!
//! Rooms: `codec` and `native` columns to bytes, `log`, `head`, `block`, `index` which series a matcher means, `upkeep`
//! all that happens to blocks, `beside` exemplars and metadata (in memory only).

mod beside;
mod block;
pub mod codec;
mod head;
mod index;
mod log;
mod native;
#[cfg(test)]
mod tests;
mod upkeep;

pub use beside::{Beside, Exemplar, Metadata, SeriesExemplars};
pub use upkeep::{Done, Keep};

use crate::{
    engine::{Each, Point, Samples, Storage},
    histogram::Histogram,
    labels::{Labels, Matcher, Str},
};
use block::Block;
use head::Head;
use log::{Log, Numbered};
use photon_rt::{
    disk::Disk,
    time::{Duration, Instant},
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
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

/// Samples of one series, numbers and histograms.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Whose.
    pub labels: Labels,
    /// Instants and numbers, in any order.
    pub samples: Vec<(i64, f64)>,
    /// Instants and histograms, in any order.
    pub histograms: Vec<(i64, Arc<Histogram>)>,
}

impl From<Arrival> for Entry {
    fn from(a: Arrival) -> Self {
        Entry { labels: a.labels, samples: a.samples, histograms: Vec::new() }
    }
}

/// What became of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Samples that are in the store now.
    pub stored: u64,
    /// How many of those are histograms.
    pub histograms: u64,
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
pub(crate) const LABEL_BYTES_MAX: usize = 64 << 10;
/// Most labels of one series.
pub(crate) const LABELS_MAX: usize = 512;

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
    /// A log that was written to for so long does, too.
    pub log_age: Duration,
    /// Blocks grow by compaction up to this size, bytes.
    pub block_bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            late_ms: 3_600_000,
            series_max: 10_000_000,
            log_bytes: 256 << 20,
            log_age: Duration::from_secs(7200),
            block_bytes: 2 << 30,
        }
    }
}

/// The store of one tenant. Blocking: call it off the runtime's threads.
pub struct Store {
    disk: Arc<dyn Disk>,
    options: Options,
    /// Held by whoever changes blocks, one at a time. Taken before all others.
    upkeep: Mutex<()>,
    /// Batches that wait for the next write. Taken before `writer` or without it, never after.
    queue: Mutex<Queue>,
    writer: Mutex<Writer>,
    state: RwLock<State>,
    /// Exemplars and metadata.
    pub beside: Beside,
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
    batch: Vec<Entry>,
}

struct Writer {
    log: Log,
    /// When this process began to write it.
    begun: Instant,
    /// Number of the next file.
    next: u64,
    stopped: Option<StoreError>,
}

#[derive(Default)]
struct State {
    head: Head,
    /// Heads of older logs that are no blocks yet, oldest first.
    frozen: Vec<(u64, Arc<Head>)>,
    /// By rising order.
    blocks: Vec<Placed>,
}

/// A block and what is deleted from it.
#[derive(Clone)]
struct Placed {
    block: Arc<Block>,
    gone: Arc<upkeep::Gone>,
}

impl Placed {
    /// What is left of a series in the time.
    fn read(&self, at: u32, from: i64, to: i64) -> Result<Samples, StoreError> {
        let mut s = self.block.read(at, from, to)?;
        self.gone.strip(at, &mut s);
        Ok(s)
    }
}

/// About how many bytes a batch takes in the log; refused if it is too large.
fn check(batch: &[Entry]) -> Result<usize, StoreError> {
    let mut size = 0usize;
    for a in batch {
        let bytes: usize = a.labels.iter().map(|(n, v)| n.len() + v.len()).sum();
        if bytes > LABEL_BYTES_MAX || a.labels.len() > LABELS_MAX {
            let n = a.labels.len();
            return Err(StoreError::TooLarge(format!(
                "a series has {n} labels of {bytes} bytes: at most {LABELS_MAX} of {LABEL_BYTES_MAX} are taken"
            )));
        }
        let histograms: usize = a.histograms.iter().map(|(_, h)| h.bytes() + 32).sum();
        let numbers = a.samples.len() * 18;
        size = size.saturating_add(bytes + a.labels.len() * 4 + numbers + histograms + 16);
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
        let (mut logs, blocks) = (numbers("log"), numbers("block"));
        let next = logs.iter().chain(&blocks).max().map_or(1, |n| n + 1);
        let (blocks, logged) = upkeep::open_blocks(&*disk, &blocks)?;
        // What a block holds is not replayed.
        for old in logs.iter().filter(|n| **n <= logged) {
            self::disk("remove an old log", disk.remove(&log::name(*old)))?;
        }
        logs.retain(|n| *n > logged);
        let mut state = State { blocks, ..State::default() };
        let mut frames = 0;
        for n in &logs {
            // Only the newest log can have been cut off while it was written.
            let newest = Some(n) == logs.last();
            let mut head = Head::default();
            frames = log::replay(&*disk, *n, newest, &mut |batch| head.apply(batch, &options).map(|_| ()))?;
            if newest {
                state.head = head;
            } else if head.len() > 0 {
                state.frozen.push((*n, Arc::new(head)));
            }
        }
        let (log, next) = match logs.last() {
            Some(n) => (Log::append_to(&*disk, *n, frames)?, next),
            None => (Log::create(&*disk, next)?, next + 1),
        };
        Ok(Store {
            disk,
            options,
            upkeep: Mutex::default(),
            queue: Mutex::default(),
            writer: Mutex::new(Writer { log, begun: photon_rt::time::now(), next, stopped: None }),
            state: RwLock::new(state),
            beside: Beside::default(),
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
        self.append_all(batch.into_iter().map(Entry::from).collect())
    }

    /// [`Store::append`], histograms too.
    pub fn append_all(&self, batch: Vec<Entry>) -> Result<Outcome, StoreError> {
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
        // Whoever holds the writer is the only one to change the head: its numbers stay what they are.
        let tickets: Vec<u64> = group.iter().map(|g| g.ticket).collect();
        let group = self.numbered(group);
        let written = match &w.stopped {
            Some(e) => Err(StoreError::Stopped(e.to_string())),
            None => w.log.write(group.iter().map(|g| g.0.as_slice())),
        };
        let mut done = Vec::with_capacity(tickets.len());
        match written {
            Ok(()) => {
                let mut state = self.write();
                for (ticket, (batch, over_limit)) in tickets.into_iter().zip(group) {
                    let outcome = state.head.apply(batch, &self.options);
                    let wrong =
                        |_| StoreError::Damaged { file: "memory".into(), what: "a series' number".into() };
                    done.push((ticket, outcome.map(|o| Outcome { over_limit, ..o }).map_err(wrong)));
                }
            }
            Err(e) => {
                // After a failed sync nobody knows what the disk holds ("fsyncgate").
                if !matches!(e, StoreError::TooLarge(_)) {
                    w.stopped.get_or_insert_with(|| e.clone());
                }
                done.extend(tickets.into_iter().map(|t| (t, Err(e.clone()))));
            }
        }
        lock(&self.queue).done.extend(done);
    }

    /// Batches with the numbers of their series, and how many samples are of series beyond the limit.
    fn numbered(&self, group: Vec<Waiting>) -> Vec<(Vec<Numbered>, u64)> {
        let state = self.read();
        let mut fresh: HashMap<Labels, u32> = HashMap::new();
        let mut one = |entry: Entry, over: &mut u64| {
            let known = state.head.number(&entry.labels).or_else(|| fresh.get(&entry.labels).copied());
            let next = state.head.len() + fresh.len();
            match known {
                Some(at) => Some(Numbered { at, new: false, entry }),
                None if next >= self.options.series_max.min(u32::MAX as usize) => {
                    *over += (entry.samples.len() + entry.histograms.len()) as u64;
                    None
                }
                None => {
                    fresh.insert(entry.labels.clone(), next as u32);
                    Some(Numbered { at: next as u32, new: true, entry })
                }
            }
        };
        let batch = |w: Waiting| {
            let mut over = 0;
            (w.batch.into_iter().filter_map(|e| one(e, &mut over)).collect(), over)
        };
        group.into_iter().map(batch).collect()
    }

    /// Labels of all series that pass `matchers` and have a chunk that touches the time.
    pub fn series(&self, matchers: &[Matcher], from_ms: i64, to_ms: i64) -> Vec<Labels> {
        let state = self.read();
        let mut out = BTreeSet::new();
        for head in state.frozen.iter().map(|f| &*f.1).chain([&state.head]) {
            head.series(matchers, from_ms, to_ms, &mut |l| {
                out.insert(l.clone());
            });
        }
        for b in state.blocks.iter().filter(|b| b.block.overlaps(from_ms, to_ms)) {
            let gone = |at: u32, from: i64, to: i64| b.gone.covers(at, from, to);
            b.block.series(matchers, (from_ms, to_ms), &gone, &mut |l| {
                out.insert(l.clone());
            });
        }
        out.into_iter().collect()
    }

    /// Series in the head, samples in the head, blocks, bytes of blocks.
    pub fn size(&self) -> (usize, u64, usize, u64) {
        let s = self.read();
        let samples = s.frozen.iter().map(|f| f.1.samples).sum::<u64>() + s.head.samples;
        (s.head.len(), samples, s.blocks.len(), s.blocks.iter().map(|b| b.block.bytes).sum())
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
    let mut pieces = pieces.into_iter().filter(|p| !p.is_empty());
    let Some(mut out) = pieces.next() else { return Samples::default() };
    for p in pieces {
        let follows = match (out.t.last(), p.t.first()) {
            (Some(a), Some(b)) => a < b,
            _ => true,
        };
        if follows {
            if !out.h.is_empty() || !p.h.is_empty() {
                out.h.resize(out.t.len(), None);
                out.h.extend(p.h);
                out.h.resize(out.t.len() + p.t.len(), None);
            }
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
                merged.push(p.t[k], p.point(k));
                k += 1;
            } else {
                merged.push(out.t[i], out.point(i));
                i += 1;
            }
        }
        out = merged;
    }
    out
}

/// Numbers and histograms of one series as one.
fn weave(numbers: Samples, natives: Vec<native::At>) -> Samples {
    let mut of_natives = Samples::default();
    natives.into_iter().for_each(|(t, h)| of_natives.push(t, Point::Histogram(h)));
    join(vec![numbers, of_natives])
}

/// What makes up one series of a selection.
#[derive(Default)]
struct Parts {
    /// Which of the blocks, and which of its series; oldest first.
    blocks: Vec<(usize, u32)>,
    /// Oldest first.
    heads: Vec<head::View>,
}

/// Cuts samples to `from..=to`.
fn clip(s: &mut Samples, from: i64, to: i64) {
    let end = s.t.partition_point(|t| *t <= to);
    let start = s.t.partition_point(|t| *t < from).min(end);
    s.t.truncate(end);
    s.v.truncate(end);
    s.t.drain(..start);
    s.v.drain(..start);
    if !s.h.is_empty() {
        s.h.truncate(end);
        s.h.drain(..start);
    }
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
        let (heads, blocks) = {
            let state = self.read();
            let blocks: Vec<Placed> =
                state.blocks.iter().filter(|b| b.block.overlaps(from_ms, to_ms)).cloned().collect();
            let mut heads = Vec::new();
            for head in state.frozen.iter().map(|f| &*f.1).chain([&state.head]) {
                heads.extend(head.select(matchers, from_ms, to_ms));
            }
            (heads, blocks)
        };
        let mut all: BTreeMap<Labels, Parts> = BTreeMap::new();
        for (i, b) in blocks.iter().enumerate() {
            for (labels, at) in b.block.select(matchers) {
                all.entry(labels).or_default().blocks.push((i, at));
            }
        }
        for (labels, view) in heads {
            all.entry(labels).or_default().heads.push(view);
        }
        for (labels, parts) in all {
            let mut pieces = Vec::new();
            for (i, at) in parts.blocks {
                pieces.push(blocks[i].read(at, from_ms, to_ms).map_err(failed)?);
            }
            for view in parts.heads {
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
