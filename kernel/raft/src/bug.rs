//! Planted bugs: each must be caught by the simulator, or a clean run of it means nothing.
//!
//! Outside this crate's own unit tests [`Bugs::on`] is a constant `false` and the code behind it is
//! removed.

/// A mistake that a consensus log could make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    /// A batch counts as durable although it was never synced.
    ForgottenFsync,
    /// After a failed sync the log tries again and goes on.
    RetriedFsync,
    /// Term and vote are not written.
    VoteNotPersisted,
    /// Recovery also cuts the last whole batch off.
    RecoveryDropsBatch,
    /// A conflicting entry does not cut off what followed it.
    ConflictKeepsTail,
    /// Entries are applied as soon as they are in the log.
    ApplyBeforeCommit,
    /// Followers acknowledge before their sync.
    SendBeforeSync,
    /// Proposals are answered as soon as they are in the leader's log.
    ReplyBeforeCommit,
    /// The log is purged up to what is applied, not to what is checkpointed.
    PurgeBeyondCheckpoint,
    /// Reads are answered from this node's commit index without asking a quorum.
    StaleRead,
    /// A snapshot's state is installed under the position of the state before.
    RestoreWithoutPosition,
    /// The state machine moves past a change of the members that is not durable.
    MembersNotPersisted,
    /// A command that comes twice from a follower is proposed twice.
    ForwardedTwice,
    /// A command is proposed anew as soon as somebody else leads, although the first one may get there yet.
    ProposedAnewTooSoon,
    /// Several members change at once without a joint state.
    NoJointState,
    /// A piece of a snapshot is written where the file ends, wherever it belongs.
    PieceAnywhere,
    /// A snapshot that is announced goes on in the file of another one.
    MixedSnapshots,
    /// A received snapshot is announced to the driver before it is durable.
    SnapshotNotSynced,
    /// The leader's lease is counted from when heartbeats were answered, not from when they were sent.
    LeaseFromAnswer,
    /// The leader keeps its lease while it hands leadership over.
    LeaseKeptInTransfer,
    /// A follower that restarted votes at once, although it may have promised not to.
    RestartedVotesAtOnce,
    /// The message encoding loses the mark of a refusal.
    CodecLosesReject,
    /// The message encoding loses the context that a read's quorum round carries.
    CodecLosesContext,
}

/// Which bug is switched on.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Bugs {
    #[cfg(test)]
    pub(crate) planted: Option<Bug>,
}

impl Bugs {
    /// True when `bug` is planted.
    #[inline(always)]
    pub(crate) fn on(self, bug: Bug) -> bool {
        #[cfg(test)]
        return self.planted == Some(bug);
        #[cfg(not(test))]
        {
            let _ = bug;
            false
        }
    }
}
