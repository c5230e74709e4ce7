//! Local ordered storage below a replicated store.
//!
//! An [`Engine`] keeps a few named keyspaces of ordered keys. Writes are atomic [`Batch`]es over any
//! of them; reads go to a [`View`], the state between two batches. [`Overlay`] is a view with
//! uncommitted writes on top, so that one batch can be built out of commands that read what the ones
//! before them wrote.
//!
//! Invariants: a batch is seen whole or not at all; batches become visible in the order of
//! [`Engine::write`]; a write is not durable until [`Engine::persist`] returns; a crash takes away
//! only a suffix of the batches written since then, never one from the middle.
//!
//! Implementations: [`FjallEngine`] on disk; [`MemEngine`], which also plays crashes, for tests.

pub mod dump;
mod examine;
mod fjall;
mod mem;
mod overlay;

pub use self::fjall::{FjallEngine, FjallOptions};
pub use mem::MemEngine;
pub use overlay::Overlay;

use crate::Direction;
use bytes::Bytes;
use std::{ops::Bound, sync::Arc};

/// A keyspace: its place in the list that the engine was opened with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Space(pub usize);

/// Longest key that an engine takes.
pub const MAX_KEY: usize = 65_535;

/// A failure of the engine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// It could not be done. The state on disk may be behind, but is not inconsistent.
    #[error("storage engine: {0}")]
    Failed(String),
    /// What is on disk is not what was written.
    #[error("storage engine: damaged: {0}")]
    Damaged(String),
    /// Another process has it open.
    #[error("storage engine: another process has it open")]
    Locked,
}

impl EngineError {
    /// True when what is on disk cannot be trusted.
    pub fn is_damage(&self) -> bool {
        matches!(self, EngineError::Damaged(_))
    }

    /// True when another process has it open.
    pub fn is_locked(&self) -> bool {
        matches!(self, EngineError::Locked)
    }
}

/// Result of an engine.
pub type EngineResult<T> = Result<T, EngineError>;

/// Items of a scan.
pub type Scan<'a> = Box<dyn Iterator<Item = EngineResult<(Bytes, Bytes)>> + Send + 'a>;

/// Bounds of a scan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRange {
    /// First key.
    pub start: Bound<Bytes>,
    /// Last key.
    pub end: Bound<Bytes>,
}

impl KeyRange {
    /// Everything.
    pub fn all() -> KeyRange {
        KeyRange { start: Bound::Unbounded, end: Bound::Unbounded }
    }

    /// `[start, end)`.
    pub fn half_open(start: impl Into<Bytes>, end: impl Into<Bytes>) -> KeyRange {
        KeyRange { start: Bound::Included(start.into()), end: Bound::Excluded(end.into()) }
    }

    /// From `start` on.
    pub fn from(start: impl Into<Bytes>) -> KeyRange {
        KeyRange { start: Bound::Included(start.into()), end: Bound::Unbounded }
    }

    /// All keys that begin with `prefix`.
    pub fn prefix(prefix: impl Into<Bytes>) -> KeyRange {
        let r = crate::Range::prefix(prefix);
        if r.end.is_empty() { Self::from(r.start) } else { Self::half_open(r.start, r.end) }
    }

    /// True when no key can lie inside (also for reversed bounds, which ordered maps refuse).
    pub fn is_empty(&self) -> bool {
        match (&self.start, &self.end) {
            (Bound::Included(a), Bound::Included(b)) => a > b,
            (Bound::Included(a) | Bound::Excluded(a), Bound::Included(b) | Bound::Excluded(b)) => a >= b,
            _ => false,
        }
    }
}

/// Writes that happen together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Where, key, and the value, or `None` to remove. A key appears at most once per space.
    pub writes: Vec<(Space, Bytes, Option<Bytes>)>,
}

impl Batch {
    /// Sets a key.
    pub fn put(&mut self, space: Space, key: impl Into<Bytes>, value: impl Into<Bytes>) {
        self.writes.push((space, key.into(), Some(value.into())));
    }

    /// Removes a key.
    pub fn remove(&mut self, space: Space, key: impl Into<Bytes>) {
        self.writes.push((space, key.into(), None));
    }
}

/// A state of the engine that does not change.
pub trait View: Send + Sync {
    /// The value of a key.
    fn get(&self, space: Space, key: &[u8]) -> EngineResult<Option<Bytes>>;

    /// The keys of a range, lazily.
    fn scan<'a>(&'a self, space: Space, range: KeyRange, direction: Direction) -> Scan<'a>;

    /// How many keys a range has. Reads them all, but copies none.
    fn count(&self, space: Space, range: KeyRange) -> EngineResult<u64> {
        let mut n = 0;
        for item in self.scan(space, range, Direction::Forward) {
            item?;
            n += 1;
        }
        Ok(n)
    }
}

/// An ordered store on this machine.
pub trait Engine: Send + Sync + 'static {
    /// Makes the writes, visible to views taken from now on. Not durable yet.
    fn write(&self, batch: Batch) -> EngineResult<()>;

    /// Makes everything written so far durable.
    fn persist(&self) -> EngineResult<()>;

    /// The present state, kept for as long as the view lives.
    fn view(&self) -> Arc<dyn View>;

    /// Removes all keys of a keyspace. Not atomic with batches.
    fn clear(&self, space: Space) -> EngineResult<()>;

    /// Bytes on disk, roughly.
    fn disk_bytes(&self) -> u64;

    /// What was found damaged since it was opened, if anything: whoever reads is refused, and this says it to
    /// whoever looks after the engine.
    fn damage(&self) -> Option<String> {
        None
    }

    /// Rewrites what is stored so that removed keys no longer take room. Slow; reads and writes go on.
    fn compact(&self) -> EngineResult<()>;
}

#[cfg(test)]
mod damage_tests;
#[cfg(test)]
mod tests;
