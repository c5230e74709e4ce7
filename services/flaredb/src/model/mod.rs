//! One region as a pure state machine: (state, command) gives writes and an answer; (state, query) gives rows.
//!
//! Rooms: [`layout`] (what is on disk), [`command`] (what can be asked, with its limits), `raw` and [`txn`]
//! (what it does to keys), [`read`] (queries), [`region`] (whether a command belongs here at all; ranges that
//! split and merge), [`gate`] (what a leader remembers beside the state: who has read at which timestamp).
//!
//! Invariants: a refusal changes nothing; the same commands in the same order give the same state on every
//! replica, whatever the clock says; a command of another epoch is refused.

pub mod command;
pub mod gate;
pub mod layout;
pub mod limits;
mod raw;
pub mod read;
pub mod region;
#[cfg(test)]
mod tests;
pub mod txn;

pub use command::{Command, Kind, Op};
pub use gate::Gate;
pub use layout::{Descriptor, Fate, Lock, RegionState, SPACES, Written};
pub use region::Effect;
pub use txn::{Secondaries, Status};

use crate::{Refusal, refusal::Outcome, time::Ts};
use bytes::Bytes;
use photon_kv::engine::{Overlay, Space};

/// What a region answers to a command that was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Nothing more to say.
    Done,
    /// Raw keys were written at this version.
    Written(u64),
    /// Keys are locked; the transaction commits at `min_commit` or later.
    Prewritten {
        /// The least.
        min_commit: Ts,
    },
    /// The transaction is committed (one-phase, or it was already).
    Committed(Ts),
    /// Keys are reserved; their values, in the order asked.
    Locked(Vec<Option<Bytes>>),
    /// What is known of a transaction.
    Status(Status),
    /// What its other keys say.
    Secondaries(Secondaries),
    /// History was removed up to this key.
    Collected {
        /// Where to go on.
        next: Option<Bytes>,
    },
    /// The region as it is now, and its neighbour that was made or taken in.
    Regions(Vec<Descriptor>),
}

fn behind(ts: Ts, safe_point: Ts) -> Outcome<()> {
    if ts <= safe_point { Err(Refusal::BeforeSafePoint { ts, safe_point }) } else { Ok(()) }
}

/// What a command writes, until it is clear that it is not refused.
#[derive(Debug, Default)]
pub struct Changes {
    writes: Vec<(Space, Bytes, Option<Bytes>)>,
    /// Nothing from before this is begun any more.
    pub(crate) safe_point: Ts,
    /// Traces from before this may be gone.
    pub(crate) collected: Ts,
}

impl Changes {
    fn put(&mut self, space: Space, key: impl Into<Bytes>, value: impl Into<Bytes>) {
        self.writes.push((space, key.into(), Some(value.into())));
    }

    fn remove(&mut self, space: Space, key: impl Into<Bytes>) {
        self.writes.push((space, key.into(), None));
    }

    /// Refuses what begins before the safe point.
    fn begins(&self, start: Ts) -> Outcome<()> {
        behind(start, self.safe_point)
    }

    /// A transaction has left no trace. Where traces were collected, that says nothing.
    fn missing(&self, start: Ts) -> Outcome<()> {
        behind(start, self.collected)
    }

    fn apply(self, over: &mut Overlay) {
        for (space, key, value) in self.writes {
            match value {
                Some(v) => over.put(space, key, v),
                None => over.remove(space, key),
            }
        }
    }
}
