//! A member that has lost its state machine's state, but not its log: it takes the state of another.
//!
//! That is safe because everything it ever promised is in the log: its term and its vote, and the entries
//! that it acknowledged. So it goes on voting, and its log counts. Only what follows from the state is
//! withheld until a snapshot is installed: it applies nothing, answers no read, and does not stand for
//! election, for it could not serve. Installing a snapshot drops the log behind it, so that the snapshot must
//! not end before what this member has acknowledged; `raft`'s request for a snapshot names its last entry,
//! and waits until that is of the leader's term, which is then part of the leader's log.

use super::group::Group;
use crate::Position;
use raft::eraftpb::{ConfState, Message, MessageType};

/// True when a state machine that holds nothing may wait for the state of others.
pub(super) fn can_wait(machine: Position, conf: &ConfState, me: u64) -> bool {
    machine == Position::default() && conf.voters.iter().chain(&conf.voters_outgoing).any(|v| *v != me)
}

impl Group {
    /// Asks the leader for its state, until that is on its way.
    pub(super) fn ask_for_state(&mut self) {
        if !self.rebuild {
            return;
        }
        // Before the crate counts on: it never gets so far as to stand for election.
        self.raft.raft.election_elapsed = 0;
        if self.raft.raft.pending_request_snapshot == 0 {
            // Refused while no leader is known, or its first entry is not here yet: asked again.
            let _ = self.raft.request_snapshot();
        }
    }

    /// Leadership is not for one that cannot serve.
    pub(super) fn declines(&self, message: &Message) -> bool {
        self.rebuild && message.get_msg_type() == MessageType::MsgTimeoutNow
    }
}
