//! The log as the `raft` crate wants to see it.

use crate::{GroupId, StoreError, log::Log, snapshot::Made};
use raft::{
    GetEntriesContext, RaftState, Storage, StorageError,
    eraftpb::{Entry, Snapshot},
};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The log, shared by the groups of one loop. The lock is never contended: only that loop takes it.
#[derive(Clone)]
pub(super) struct SharedLog(Arc<Mutex<Log>>);

impl SharedLog {
    pub(super) fn new(log: Log) -> Self {
        SharedLog(Arc::new(Mutex::new(log)))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Log> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A snapshot on its way to followers that lag behind the log.
#[derive(Default)]
pub(super) struct SnapshotSlot {
    pub(super) ready: Option<(Snapshot, Arc<Made>)>,
    /// A follower needs one that is not there yet.
    pub(super) wanted: bool,
    /// Tick at which `ready` was last used or made.
    pub(super) used: u64,
    /// Offered no more. Removing a large file takes long, so that is done elsewhere.
    pub(super) old: Vec<Arc<Made>>,
}

impl SnapshotSlot {
    /// Offers nothing more.
    pub(super) fn clear(&mut self) {
        self.old.extend(self.ready.take().map(|(_, made)| made));
    }
}

/// One group's view of the log.
pub(super) struct GroupStorage {
    pub(super) log: SharedLog,
    pub(super) group: GroupId,
    /// What the state machine reflected when the group was opened.
    pub(super) applied: u64,
    pub(super) snapshot: Mutex<SnapshotSlot>,
}

impl GroupStorage {
    pub(super) fn slot(&self) -> MutexGuard<'_, SnapshotSlot> {
        self.snapshot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Offers a snapshot to those who lag.
    pub(super) fn offer(&self, made: Arc<Made>, tick: u64) -> Result<(), StoreError> {
        let (_, conf) = self.log.lock().state(self.group)?;
        let mut s = Snapshot { data: made.descriptor().encode(), ..Snapshot::default() };
        let meta = s.mut_metadata();
        meta.index = made.at().index;
        meta.term = made.at().term;
        meta.set_conf_state(conf);
        let mut slot = self.slot();
        slot.clear();
        (slot.ready, slot.wanted, slot.used) = (Some((s, made)), false, tick);
        Ok(())
    }
}

fn other(e: StoreError) -> raft::Error {
    raft::Error::Store(StorageError::Other(Box::new(e)))
}

impl Storage for GroupStorage {
    fn initial_state(&self) -> raft::Result<RaftState> {
        let log = self.log.lock();
        let (mut hard_state, conf_state) = log.state(self.group).map_err(other)?;
        // What was applied was committed, even if the commit index was not written since; and so was what
        // made the members. A leader that did not know could need a member's answer to commit it, whom it
        // would have to send a snapshot with these members first.
        let members = log.members_index(self.group).map_err(other)?;
        hard_state.commit = hard_state.commit.max(self.applied).max(members);
        Ok(RaftState { hard_state, conf_state })
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        let log = self.log.lock();
        let start = log.start(self.group).map_err(other)?;
        if low <= start.index {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        log.entries(self.group, low, high, max_size.into().unwrap_or(u64::MAX)).map_err(other)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        let log = self.log.lock();
        match log.term(self.group, index).map_err(other)? {
            Some(term) => Ok(term),
            None if index < log.start(self.group).map_err(other)?.index => {
                Err(raft::Error::Store(StorageError::Compacted))
            }
            None => Err(raft::Error::Store(StorageError::Unavailable)),
        }
    }

    fn first_index(&self) -> raft::Result<u64> {
        self.log.lock().start(self.group).map(|p| p.index + 1).map_err(other)
    }

    fn last_index(&self) -> raft::Result<u64> {
        self.log.lock().last_index(self.group).map_err(other)
    }

    fn snapshot(&self, request_index: u64, _to: u64) -> raft::Result<Snapshot> {
        let start = self.log.lock().start(self.group).map_err(other)?;
        let mut slot = self.slot();
        match &slot.ready {
            Some((s, _)) if s.get_metadata().index >= request_index.max(start.index) => Ok(s.clone()),
            _ => {
                // It is made beside the loop; the next heartbeat's answer asks again.
                slot.wanted = true;
                Err(raft::Error::Store(StorageError::SnapshotTemporarilyUnavailable))
            }
        }
    }
}
