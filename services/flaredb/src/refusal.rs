//! Why something was not done. A refusal changes nothing.

use crate::{model::Descriptor, time::Ts};
use bytes::Bytes;
use photon_base::{Code, Error};
use photon_kv::engine::EngineError;

/// Result of anything that a region is asked.
pub type Outcome<T> = Result<T, Refusal>;

/// A lock that is in the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockInfo {
    /// The locked key.
    pub key: Bytes,
    /// Where the fate of its transaction is decided.
    pub primary: Bytes,
    /// The transaction.
    pub start: Ts,
    /// How long it may be silent, milliseconds from its start; see the heartbeat.
    pub ttl_ms: u64,
    /// It may be committed although its primary does not say so yet.
    pub is_async: bool,
    /// The lock only reserves the key: nothing is written yet.
    pub is_pessimistic: bool,
}

/// Why a request was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The region has changed its range or its members since the sender looked.
    #[error("region {} is now at version {}.{}: look the region up again", .0.id, .0.version, .0.conf)]
    StaleEpoch(Box<Descriptor>),
    /// The region is not here (any more).
    #[error("region {0} is not here: look the region up again")]
    NoRegion(u64),
    /// This replica does not lead the region, or has not yet taken over.
    #[error("this replica of region {0} does not lead it: ask its leader")]
    NotLeader(u64),
    /// A key outside the region.
    #[error("a key lies outside region {0}: look the region up again")]
    OutOfRange(u64),
    /// The region is about to become part of its neighbour.
    #[error("region {0} is being merged: try again")]
    Merging(u64),
    /// Too much is waiting already.
    #[error("too much is waiting in this region: try again later")]
    Overloaded,
    /// The request was handed on, but what became of it is not known.
    #[error("the outcome is unknown: {0}")]
    Unknown(String),
    /// No node of the store could be asked: nothing was sent.
    #[error("the store cannot be reached: {0}")]
    Unreachable(String),
    /// The caller may not do this.
    #[error("denied: {0}")]
    Denied(String),
    /// An empty key.
    #[error("a key must not be empty")]
    EmptyKey,
    /// A key beyond the limit.
    #[error("a key of {len} bytes is too long, at most {limit} are possible")]
    KeyTooLong {
        /// Its length.
        len: usize,
        /// The limit.
        limit: usize,
    },
    /// A value beyond the limit.
    #[error("a value of {len} bytes is too large, at most {limit} are possible")]
    ValueTooLarge {
        /// Its length.
        len: usize,
        /// The limit.
        limit: usize,
    },
    /// A range whose end does not lie behind its start.
    #[error("the end of a range must lie behind its start")]
    InvertedRange,
    /// More in one request than is possible.
    #[error("{what}: {n} are too many, at most {limit} are possible")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many.
        n: usize,
        /// The limit.
        limit: usize,
    },
    /// Something that no client of ours sends.
    #[error("malformed request: {0}")]
    Malformed(String),
    /// A timestamp that no oracle has given.
    #[error("timestamp {0} was not given by the oracle")]
    NotATimestamp(Ts),
    /// A timestamp from the future.
    #[error("timestamp {ts} lies in the future: the newest that can have been given is {newest}")]
    FromTheFuture {
        /// The timestamp.
        ts: Ts,
        /// The newest that can be.
        newest: Ts,
    },
    /// History up to the safe point has been removed.
    #[error("timestamp {ts} lies before the safe point {safe_point}: its history is gone")]
    BeforeSafePoint {
        /// The timestamp.
        ts: Ts,
        /// The safe point.
        safe_point: Ts,
    },
    /// A condition of a compare-and-swap does not hold.
    #[error("condition {index} does not hold")]
    CheckFailed {
        /// Which condition.
        index: usize,
        /// Version of the key now; 0 when it is absent.
        version: u64,
        /// Its value now.
        value: Option<Bytes>,
    },
    /// Locks of other transactions are in the way.
    #[error("locked by transaction {}", .0.first().map_or(0, |l| l.start))]
    Locked(Vec<LockInfo>),
    /// Another transaction wrote the key meanwhile.
    #[error("another transaction committed the key at {commit}, after {since}")]
    Conflict {
        /// Which key.
        key: Bytes,
        /// Commit of the other one.
        commit: Ts,
        /// What this transaction knew.
        since: Ts,
    },
    /// The key should have been absent.
    #[error("the key exists already")]
    AlreadyExists {
        /// Which.
        key: Bytes,
    },
    /// The transaction was rolled back.
    #[error("transaction {0} was rolled back")]
    RolledBack(Ts),
    /// The transaction was committed.
    #[error("transaction was committed at {0}")]
    Committed(Ts),
    /// A key that should be committed is not locked by the transaction, and never was.
    #[error("transaction {0} holds no lock here")]
    NotLocked(Ts),
    /// Somebody read behind this timestamp already; the commit needs a later one.
    #[error("the commit timestamp must be at least {0}")]
    CommitTooEarly(Ts),
    /// Transactions wait for each other in a circle.
    #[error("deadlock: transaction {0} waits for this one")]
    Deadlock(Ts),
    /// What is stored can't be read: the replica must stop.
    #[error("storage: {0}")]
    Broken(String),
}

impl From<EngineError> for Refusal {
    fn from(e: EngineError) -> Self {
        Refusal::Broken(e.to_string())
    }
}

impl Refusal {
    /// True when the same request may be right after the region was looked up anew, or a little later.
    pub fn is_about_routing(&self) -> bool {
        matches!(
            self,
            Refusal::StaleEpoch(_)
                | Refusal::NoRegion(_)
                | Refusal::NotLeader(_)
                | Refusal::OutOfRange(_)
                | Refusal::Merging(_)
                | Refusal::Overloaded
                | Refusal::Unreachable(_)
                | Refusal::Unknown(_)
        )
    }

    /// Class and advice, for people.
    pub fn error(&self) -> Error {
        let (code, hint) = match self {
            Refusal::StaleEpoch(_)
            | Refusal::NoRegion(_)
            | Refusal::NotLeader(_)
            | Refusal::OutOfRange(_) => {
                (Code::Unavailable, "look the region up again: photon flaredb regions")
            }
            Refusal::Merging(_) => (Code::Unavailable, "try again in a moment"),
            Refusal::Overloaded => (Code::Exhausted, "try again later, or with fewer requests at a time"),
            Refusal::Unreachable(_) => (Code::Unavailable, "is it running? photon status"),
            Refusal::Unknown(_) => (Code::Timeout, "read before you write again: it may have been done"),
            Refusal::Denied(_) => (
                Code::Denied,
                "name your project: --project NAME; its admins give roles: photon binding create",
            ),
            Refusal::EmptyKey | Refusal::KeyTooLong { .. } => (Code::Invalid, "keys have 1 to 16384 bytes"),
            Refusal::ValueTooLarge { .. } => (Code::Invalid, "values have up to 1 MiB: split it"),
            Refusal::InvertedRange => (Code::Invalid, "give the smaller key first"),
            Refusal::TooMany { .. } => (Code::Invalid, "make it several requests"),
            Refusal::Malformed(_) => (Code::Invalid, "see services/flaredb/proto/flaredb.proto"),
            Refusal::NotATimestamp(_) | Refusal::FromTheFuture { .. } => {
                (Code::Invalid, "take timestamps from the store: the call Timestamps")
            }
            Refusal::BeforeSafePoint { .. } => (Code::Gone, "begin a new transaction"),
            Refusal::CheckFailed { .. } => (Code::Conflict, "read the key, then decide again"),
            Refusal::Locked(_) | Refusal::Conflict { .. } | Refusal::Deadlock(_) => {
                return Error { raced: true, ..Error::new(Code::Conflict, self.to_string()) }
                    .hint("run the transaction again");
            }
            Refusal::AlreadyExists { .. } => (Code::Exists, "delete it first, or leave the condition out"),
            Refusal::RolledBack(_) | Refusal::NotLocked(_) | Refusal::CommitTooEarly(_) => {
                (Code::Conflict, "run the transaction again")
            }
            Refusal::Committed(_) => (Code::Conflict, "it is done: begin a new transaction"),
            Refusal::Broken(_) => (Code::Internal, "see the log of the node; restore it if its disk failed"),
        };
        Error::new(code, self.to_string()).hint(hint)
    }
}
