//! Snapshots of one group: one is made at a time, several members may be sent it, and the log keeps what
//! they will want next.

use super::{Output, group::Group, storage::SnapshotSlot};
use crate::{
    NodeId, Position, StoreError, codec, snapshot,
    snapshot::{Descriptor, Made, Outcome},
};
use raft::{SnapshotStatus, eraftpb::Message};
use std::{collections::BTreeMap, sync::Arc};

/// See the module.
#[derive(Default)]
pub(super) struct Carrying {
    asked: bool,
    /// Position of the one being made.
    making: Option<Position>,
    /// After one that could not be made, none is tried before this tick.
    not_before: u64,
    /// To whom one is under way: which, and what it reflects.
    sent: BTreeMap<u64, (u64, u64)>,
    /// Index of the received one that the machine is to install.
    pub(super) restoring: Option<u64>,
    tick: u64,
}

impl Carrying {
    pub(super) fn new(restoring: Option<u64>) -> Carrying {
        Carrying { restoring, ..Carrying::default() }
    }

    /// The log is not purged beyond this index: whoever gets a snapshot goes on behind it.
    pub(super) fn floor(&self, slot: &SnapshotSlot) -> u64 {
        let ready = slot.ready.as_ref().map(|(s, _)| s.get_metadata().index);
        let making = self.making.map(|at| at.index);
        self.sent.values().map(|(_, index)| *index).chain(ready).chain(making).min().unwrap_or(u64::MAX)
    }
}

impl Group {
    /// Asks for a snapshot if somebody wants one and none is being made.
    pub(super) fn ask_snapshot(&mut self, out: &mut dyn FnMut(Output)) {
        let mut slot = self.raft.store().slot();
        slot.old.drain(..).for_each(|made| out(Output::Dispose { made }));
        let wanted = std::mem::take(&mut slot.wanted);
        drop(slot);
        if wanted && !self.carrying.asked && self.carrying.tick >= self.carrying.not_before {
            self.carrying.asked = true;
            out(Output::TakeSnapshot { group: self.id });
        }
    }

    pub(super) fn on_snapshot_begun(&mut self, position: Position) {
        self.carrying.making = Some(position);
    }

    pub(super) fn on_snapshot(&mut self, made: Option<Arc<Made>>, tick: u64) -> Result<(), StoreError> {
        (self.carrying.asked, self.carrying.making) = (false, None);
        match made {
            // Its members are no longer known; the next one will have those of now.
            Some(made) if made.at().index < self.members_index => {
                let mut slot = self.raft.store().slot();
                slot.wanted = true;
                slot.old.push(made);
            }
            Some(made) => self.raft.store().offer(made, tick)?,
            None => self.carrying.not_before = tick + 10,
        }
        Ok(())
    }

    /// The `raft` crate sends a snapshot: it is carried beside the messages, to each member one at a time.
    pub(super) fn carry(&mut self, m: &Message, tick: u64, out: &mut dyn FnMut(Output)) {
        if self.carrying.sent.contains_key(&m.to) {
            return; // how that one ends is told, and then it is asked for again
        }
        let id = Descriptor::decode(&m.get_snapshot().data).map(|d| d.id);
        let made = {
            let mut slot = self.raft.store().slot();
            slot.used = tick;
            slot.ready.as_ref().map(|(_, made)| made.clone()).filter(|made| Some(made.descriptor().id) == id)
        };
        let mut message = Vec::new();
        let encoded = codec::encode_message(&mut message, m);
        let (Some(made), Ok(())) = (made, encoded) else {
            self.raft.report_snapshot(m.to, SnapshotStatus::Failure);
            return;
        };
        self.carrying.sent.insert(m.to, (made.descriptor().id, made.at().index));
        out(Output::SendSnapshot { to: NodeId(m.to), group: self.id, message: message.into(), made });
    }

    pub(super) fn on_sent(&mut self, to: NodeId, id: u64, outcome: Outcome, tick: u64) {
        if self.carrying.sent.get(&to.0).is_none_or(|(sent, _)| *sent != id) {
            return;
        }
        self.carrying.sent.remove(&to.0);
        let mut slot = self.raft.store().slot();
        slot.used = tick;
        let same = |made: &Made| made.descriptor().id == id;
        if outcome == Outcome::Damaged && slot.ready.as_ref().is_some_and(|(_, made)| same(made)) {
            slot.clear();
        }
        drop(slot);
        let status = if outcome == Outcome::Sent { SnapshotStatus::Finish } else { SnapshotStatus::Failure };
        self.raft.report_snapshot(to.0, status);
    }

    /// Once a tick: a snapshot that nobody has used for `timeout` ticks goes.
    pub(super) fn expire_snapshot(&mut self, tick: u64, timeout: u64) {
        self.carrying.tick = tick;
        let mut slot = self.raft.store().slot();
        if slot.ready.is_some() && self.carrying.sent.is_empty() && tick.saturating_sub(slot.used) > timeout {
            slot.clear();
        }
    }

    /// A snapshot was received: its file is whole and durable, unless it was installed or thrown away since.
    pub(super) fn step_snapshot(&mut self, message: Message) {
        let meta = message.get_snapshot().get_metadata();
        let at = Position { index: meta.index, term: meta.term };
        let disk = self.raft.store().log.lock().disk().clone();
        if !snapshot::exists(&*disk, self.id, at) {
            return;
        }
        if let Err(e) = self.raft.step(message) {
            tracing::debug!(group = self.id.0, error = %e, "snapshot dropped");
        }
        let taken = self.raft.snap().is_some_and(|s| s.get_metadata().index == at.index);
        if !taken && self.carrying.restoring != Some(at.index) {
            snapshot::reject(&*disk, self.id, at.index);
        }
    }

    pub(super) fn on_restored(&mut self, position: Position) {
        if self.carrying.restoring == Some(position.index) {
            self.carrying.restoring = None;
        }
    }
}
