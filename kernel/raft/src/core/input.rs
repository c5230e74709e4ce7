//! What goes into the driver and what comes out.

use crate::{
    Change, Command, GroupId, Members, NodeId, Position, ProposeError,
    codec::Notice,
    snapshot::{Made, Outcome},
};
use bytes::Bytes;
use photon_rt::time::Duration;
use raft::eraftpb::Message;
use std::sync::Arc;

/// Something that happened.
#[derive(Debug)]
pub enum Input {
    /// Time went on.
    Tick,
    /// A peer's message, decoded.
    Message {
        /// Its group.
        group: GroupId,
        /// What it says.
        message: Message,
    },
    /// A peer's question or answer, beside Raft.
    Notice {
        /// Its group.
        group: GroupId,
        /// Who.
        from: NodeId,
        /// What it says.
        notice: Notice,
    },
    /// A command to replicate.
    Propose {
        /// Where.
        group: GroupId,
        /// The caller's number for it, unique on this node.
        proposal: u64,
        /// The command.
        data: Bytes,
    },
    /// Somebody waits for a linearizable point.
    Read {
        /// Where.
        group: GroupId,
        /// The caller's number for it, from the same row as proposals.
        read: u64,
    },
    /// The state machine has applied what it was handed up to here.
    Applied {
        /// Which.
        group: GroupId,
        /// How far.
        position: Position,
        /// Bytes of [`Output::Apply`] done since the last report.
        bytes: usize,
    },
    /// The state up to here is durable.
    Checkpointed {
        /// Whose.
        group: GroupId,
        /// How far the log is no longer needed.
        position: Position,
        /// The machine's own position, which does not move over entries without a command.
        machine: Position,
    },
    /// A snapshot that was asked for is begun: until it is made, the log goes back to its position.
    SnapshotBegun {
        /// Whose.
        group: GroupId,
        /// What it will reflect.
        position: Position,
    },
    /// The snapshot that was asked for; none when it could not be made.
    Snapshot {
        /// Whose.
        group: GroupId,
        /// The file.
        made: Option<Arc<Made>>,
    },
    /// Carrying a snapshot has ended.
    SnapshotSent {
        /// Whose.
        group: GroupId,
        /// To whom.
        to: NodeId,
        /// Which.
        id: u64,
        /// How.
        outcome: Outcome,
    },
    /// A received snapshot is installed.
    Restored {
        /// Where.
        group: GroupId,
        /// What it reflects.
        position: Position,
    },
    /// Change the members. Answered like a read: done when this node follows the change.
    Change {
        /// Of which group.
        group: GroupId,
        /// The caller's number for it, from the same row as proposals.
        proposal: u64,
        /// All at once.
        changes: Vec<Change>,
    },
    /// Hand leadership over.
    Transfer {
        /// Of which group.
        group: GroupId,
        /// To whom.
        to: NodeId,
    },
    /// A peer could not be reached.
    Unreachable {
        /// Which group wanted to.
        group: GroupId,
        /// The peer.
        node: NodeId,
    },
    /// The group must not go on here, for example because its machine failed.
    Stop {
        /// Which.
        group: GroupId,
        /// The reason, told to all who wait.
        why: String,
    },
}

impl Input {
    pub(super) fn group(&self) -> Option<GroupId> {
        match self {
            Input::Tick => None,
            Input::Message { group, .. }
            | Input::Notice { group, .. }
            | Input::Propose { group, .. }
            | Input::Read { group, .. }
            | Input::Applied { group, .. }
            | Input::Checkpointed { group, .. }
            | Input::SnapshotBegun { group, .. }
            | Input::Snapshot { group, .. }
            | Input::SnapshotSent { group, .. }
            | Input::Restored { group, .. }
            | Input::Change { group, .. }
            | Input::Transfer { group, .. }
            | Input::Unreachable { group, .. }
            | Input::Stop { group, .. } => Some(*group),
        }
    }
}

/// A committed command and who waits for it on this node.
#[derive(Clone, Debug)]
pub struct Committed {
    /// The command.
    pub command: Command,
    /// The proposal's number, if it was made here.
    pub proposal: Option<u64>,
}

/// Something to do. Those for the state machine (`Apply`, `Restore`, `ReadReady`, `Checkpoint`,
/// `TakeSnapshot`) must be done in the order in which they come.
#[derive(Debug)]
pub enum Output {
    /// Send to a peer; may be lost.
    Send {
        /// The peer.
        to: NodeId,
        /// Its group.
        group: GroupId,
        /// The encoded message.
        message: Bytes,
    },
    /// Apply.
    Apply {
        /// Where.
        group: GroupId,
        /// What, in order. May be empty: then only the position moves.
        commands: Vec<Committed>,
        /// Position reached with it.
        position: Position,
        /// To be given back in [`Input::Applied`].
        bytes: usize,
    },
    /// Carry a snapshot to a peer, and say how that ended.
    SendSnapshot {
        /// The peer.
        to: NodeId,
        /// Its group.
        group: GroupId,
        /// The encoded message that announces it.
        message: Bytes,
        /// The file.
        made: Arc<Made>,
    },
    /// Let go of a snapshot: if nobody sends it any more, its file goes, which may take a while.
    Dispose {
        /// The file.
        made: Arc<Made>,
    },
    /// Replace the state by the received snapshot (`snapshot::load`).
    Restore {
        /// Where.
        group: GroupId,
        /// What it reflects.
        position: Position,
    },
    /// A waiting read may go on once everything before this was done.
    ReadReady {
        /// Where.
        group: GroupId,
        /// Its number.
        read: u64,
    },
    /// Make the state durable and report it.
    Checkpoint {
        /// Whose.
        group: GroupId,
    },
    /// Begin a snapshot, report that, make it beside everything else, and report it.
    TakeSnapshot {
        /// Whose.
        group: GroupId,
    },
    /// A proposal or read that will not be answered.
    Failed {
        /// Where.
        group: GroupId,
        /// Its number.
        proposal: u64,
        /// Why.
        error: ProposeError,
    },
    /// Until `until` on the clock given to the driver nobody else can lead: who finds the clock before that,
    /// after it has read this, may read a machine that has applied up to `commit`. Replaces the one before.
    Lease {
        /// Of which group.
        group: GroupId,
        /// Zero when there is no lease.
        until: Duration,
        /// What this node knows to be committed.
        commit: u64,
    },
    /// The members changed, or how far the others have come.
    Members {
        /// Of which group.
        group: GroupId,
        /// Now.
        members: Members,
    },
    /// The group's state changed.
    Status {
        /// Which.
        group: GroupId,
        /// Now.
        status: GroupStatus,
    },
}

/// What a node is in a group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// Follows, or looks for somebody to follow.
    #[default]
    Follower,
    /// Asks whether it would win an election.
    PreCandidate,
    /// Stands for election.
    Candidate,
    /// Leads.
    Leader,
}

/// Who leads a group, as far as this node knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leadership {
    /// What this node is.
    pub role: Role,
    /// Current term.
    pub term: u64,
    /// Who leads.
    pub leader: Option<NodeId>,
}

/// State of a group on this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupStatus {
    /// What this node is.
    pub role: Role,
    /// Current term.
    pub term: u64,
    /// Who leads, as far as this node knows.
    pub leader: Option<NodeId>,
    /// Greatest index known to be committed.
    pub commit: u64,
    /// Greatest index applied here.
    pub applied: u64,
    /// Greatest index in the log.
    pub last_index: u64,
    /// Position before the first entry of the log.
    pub start: Position,
    /// This node was a member and is none any more.
    pub removed: bool,
}
