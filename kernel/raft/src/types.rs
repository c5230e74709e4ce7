//! Names and errors shared by all parts.

/// A node of the cluster; never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u64);

/// A Raft group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId(pub u64);

impl std::fmt::Display for NodeId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "node {}", self.0)
    }
}

impl std::fmt::Display for GroupId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "group {}", self.0)
    }
}

/// Why a proposal or a read has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Not done, and surely never will be: nobody is known to lead, or another one does.
    #[error("this node does not lead the group")]
    NotLeader {
        /// Who does, as far as this node knows.
        leader: Option<NodeId>,
    },
    /// Not done: too much is waiting already. Try again later.
    #[error("too many proposals are waiting")]
    Overloaded,
    /// Not done: the command is larger than an entry may be.
    #[error("a command of {bytes} bytes is too large, at most {limit} are possible")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// Not done: these members cannot be.
    #[error("the members cannot be changed so: {0}")]
    Refused(String),
    /// Not done: another change of the members is under way.
    #[error("another change of the members is under way")]
    Changing,
    /// It may have been done or not, or may still be.
    #[error("the outcome is unknown: {0}")]
    Unknown(String),
    /// The group no longer runs here; whether a command that was under way was done is unknown.
    #[error("the group has stopped: {0}")]
    Stopped(String),
}

/// Why a store or a group could not be opened, or has stopped.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk failed.
    #[error("log: {what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// The disk's error.
        source: std::io::Error,
    },
    /// What is on disk contradicts itself: data that was synced is damaged. Nothing is guessed.
    #[error("log: {0}")]
    Damaged(String),
    /// The log stopped after an earlier failure and takes nothing more.
    #[error("log stopped: {0}")]
    Poisoned(String),
    /// A request that cannot be right.
    #[error("{0}")]
    Invalid(String),
    /// The state machine failed.
    #[error(transparent)]
    Machine(#[from] crate::MachineError),
    /// The `raft` crate refused.
    #[error("raft: {0}")]
    Raft(#[from] raft::Error),
    /// The store is shut down.
    #[error("the store has stopped: {0}")]
    Stopped(String),
}

impl StoreError {
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> StoreError {
        let what = what.into();
        move |source| StoreError::Io { what, source }
    }
}
