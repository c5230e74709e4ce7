//! What memory knows of one group's log: where each entry lies, the states, and the newest entries.

use crate::{Position, StoreError};
use raft::eraftpb::{ConfState, Entry, HardState};
use std::collections::VecDeque;

/// Where an entry lies.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) term: u64,
    pub(super) segment: u64,
    pub(super) offset: u64,
    /// Bytes of the frame.
    pub(super) len: u32,
}

/// One group.
#[derive(Debug, Default)]
pub(super) struct GroupLog {
    /// False while replay has not met a state of the group.
    pub(super) known: bool,
    pub(super) hard: HardState,
    pub(super) conf: ConfState,
    /// Entry that made the members so; entries up to it have no further effect on them.
    pub(super) conf_index: u64,
    /// Entries begin after this position.
    pub(super) start: Position,
    /// Last command up to `start`, or an index before it: what follows up to `start` were entries
    /// without a command, which no state machine's position shows.
    pub(super) floor: u64,
    /// Index before that of the first place. It differs from `start` only during replay, while
    /// entries are missing because their segment was removed: a later frame then purges or replaces
    /// them, or the log is damaged.
    pub(super) base: u64,
    pub(super) places: VecDeque<Place>,
    /// The newest entries, without a gap up to the last.
    pub(super) cache: VecDeque<Entry>,
    /// Segment of the newest state frame.
    pub(super) state_segment: u64,
    /// Bytes of entries ever appended since the store was opened.
    pub(super) written: u64,
}

impl GroupLog {
    pub(super) fn last_index(&self) -> u64 {
        self.base + self.places.len() as u64
    }

    pub(super) fn place(&self, index: u64) -> Option<Place> {
        let at = index.checked_sub(self.base + 1)?;
        self.places.get(usize::try_from(at).ok()?).copied()
    }

    /// Term of the entry at `index`, or of the one just before the first.
    pub(super) fn term(&self, index: u64) -> Option<u64> {
        if index == self.start.index { Some(self.start.term) } else { self.place(index).map(|p| p.term) }
    }

    /// Segment of the first entry behind `index`.
    pub(super) fn segment_after(&self, index: u64) -> Option<u64> {
        self.place(index + 1).map(|p| p.segment)
    }

    /// Segment of the oldest entry.
    pub(super) fn first_segment(&self) -> Option<u64> {
        self.places.front().map(|p| p.segment)
    }

    fn cache_start(&self) -> u64 {
        self.last_index() + 1 - self.cache.len() as u64
    }

    pub(super) fn cached(&self, index: u64) -> Option<&Entry> {
        let at = index.checked_sub(self.cache_start())?;
        self.cache.get(at as usize)
    }

    /// Drops the oldest cached entry if it is the one at `index`; says how many bytes that frees.
    pub(super) fn evict(&mut self, index: u64) -> usize {
        if self.cache.is_empty() || self.cache_start() != index {
            return 0;
        }
        self.cache.pop_front().map_or(0, |e| e.data.len())
    }

    /// Takes the entry at `index` in, dropping all from there on. Returns the cached bytes dropped.
    pub(super) fn append(
        &mut self,
        index: u64,
        place: Place,
        replay: bool,
        keep_tail: bool,
    ) -> Result<usize, StoreError> {
        let mut freed = 0;
        if replay && (index <= self.base || index > self.last_index() + 1) {
            // Entries between lay in a segment that is gone; what follows must say that they may be.
            freed += self.clear(index.saturating_sub(1));
        }
        if index <= self.start.index || index > self.last_index() + 1 {
            return Err(StoreError::Damaged(format!(
                "entry {index} does not follow a log of {}..={}",
                self.start.index + 1,
                self.last_index()
            )));
        }
        if keep_tail && index <= self.last_index() {
            self.places[(index - self.base - 1) as usize] = place;
            self.cache.clear();
            return Ok(0);
        }
        while self.last_index() >= index {
            self.places.pop_back();
            freed += self.cache.pop_back().map_or(0, |e| e.data.len());
        }
        self.places.push_back(place);
        Ok(freed)
    }

    /// Makes the log begin after `start`. Returns the cached bytes dropped.
    pub(super) fn begin(&mut self, start: Position, floor: u64, keep: bool) -> Result<usize, StoreError> {
        if keep && self.is_whole() && start.index < self.start.index {
            return Err(StoreError::Damaged(format!(
                "entries {}..={} are missing",
                start.index + 1,
                self.start.index
            )));
        }
        let mut freed = 0;
        if !keep || self.last_index() <= start.index {
            freed = self.clear(start.index);
        } else if self.base < start.index {
            let drop = (start.index - self.base) as usize;
            let uncached = self.places.len() - self.cache.len();
            self.places.drain(..drop);
            for e in self.cache.drain(..drop.saturating_sub(uncached)) {
                freed += e.data.len();
            }
            self.base = start.index;
        }
        (self.start, self.floor) = (start, floor);
        self.known = true;
        Ok(freed)
    }

    /// True when the state is known and no entry is missing.
    pub(super) fn is_whole(&self) -> bool {
        self.known && self.base == self.start.index
    }

    fn clear(&mut self, base: u64) -> usize {
        self.places.clear();
        self.base = base;
        self.cache.drain(..).map(|e| e.data.len()).sum()
    }
}
