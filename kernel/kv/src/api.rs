//! The trait.

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use photon_base::{Code, Error};

/// A point in a store's history. 0 is "before anything".
pub type Revision = u64;

/// `[start, end)`. An empty `end` means "to the last key".
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Range {
    /// First key.
    pub start: Bytes,
    /// First key behind the range.
    pub end: Bytes,
}

impl Range {
    /// All keys that begin with `prefix`.
    pub fn prefix(prefix: impl Into<Bytes>) -> Range {
        let start: Bytes = prefix.into();
        let mut end = start.to_vec();
        while let Some(last) = end.pop() {
            if last < 0xff {
                end.push(last + 1);
                break;
            }
        }
        Range { start, end: end.into() }
    }

    /// Just `key`.
    pub fn key(key: impl Into<Bytes>) -> Range {
        let start: Bytes = key.into();
        let mut end = start.to_vec();
        end.push(0);
        Range { start, end: end.into() }
    }

    /// The part behind `key`: where a scan goes on whose last page ended with it.
    pub fn behind(self, key: &[u8]) -> Range {
        Range { start: [key, &[0]].concat().into(), end: self.end }
    }

    /// True when `key` lies inside.
    pub fn contains(&self, key: &[u8]) -> bool {
        key >= &self.start[..] && (self.end.is_empty() || key < &self.end[..])
    }
}

/// What state a read sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadAt {
    /// Everything acknowledged before the call (linearizable).
    Latest,
    /// Whatever this node has applied; may be old, never wrong.
    Local,
    /// The state just after this revision.
    Revision(Revision),
}

/// Order of a scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Smallest key first.
    Forward,
    /// Greatest key first.
    Backward,
}

/// A key with its value and history marks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versioned {
    /// Key.
    pub key: Bytes,
    /// Value.
    pub value: Bytes,
    /// Revision of the commit that made the key.
    pub created: Revision,
    /// Revision of the commit that wrote this value.
    pub modified: Revision,
}

/// Part of a scan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// At most as many as asked for.
    pub items: Vec<Versioned>,
    /// True when the range holds more.
    pub more: bool,
    /// Revision that was read.
    pub revision: Revision,
}

/// A condition of a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Check {
    /// `key` was last written at this revision.
    Modified(Bytes, Revision),
    /// `key` exists.
    Present(Bytes),
    /// No key of the range exists.
    Absent(Range),
}

impl Check {
    /// `key` does not exist.
    pub fn absent(key: impl Into<Bytes>) -> Check {
        Check::Absent(Range::key(key))
    }
}

/// An effect of a commit. A commit writes each key at most once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Sets a key.
    Put(Bytes, Bytes),
    /// Removes a key; nothing happens when it does not exist.
    Delete(Bytes),
}

impl Write {
    /// The key written.
    pub fn key(&self) -> &Bytes {
        match self {
            Write::Put(k, _) | Write::Delete(k) => k,
        }
    }
}

/// A commit that took place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    /// The store's revision after it; writes carry it as `modified`.
    pub revision: Revision,
}

/// What happened to one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Set to this.
    Put(Versioned),
    /// Removed at this revision.
    Delete {
        /// Key.
        key: Bytes,
        /// Revision of the commit.
        revision: Revision,
    },
}

impl Change {
    /// The key.
    pub fn key(&self) -> &Bytes {
        match self {
            Change::Put(v) => &v.key,
            Change::Delete { key, .. } => key,
        }
    }
}

/// All changes of one revision that lie in the watched range, or none: then it says that everything
/// up to `revision` has been delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Events {
    /// Revision; rises from one item to the next.
    pub revision: Revision,
    /// In the order of the commit.
    pub changes: Vec<Change>,
}

/// A single change with its revision, as streams of single events need it.
pub type Event = (Revision, Change);

/// A watch. It resumes by itself across lost connections. An error is final: [`KvError::Compacted`]
/// means that the caller must read the state again and watch from there.
pub type Watch = BoxStream<'static, KvResult<Events>>;

/// Failures of a store.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KvError {
    /// A check of a commit did not hold; nothing was written.
    #[error("a condition did not hold (check {0})")]
    CheckFailed(usize),
    /// The revision is older than history goes back.
    #[error("history before revision {0} was compacted away")]
    Compacted(Revision),
    /// The revision has not happened yet.
    #[error("revision is in the future; the store is at {0}")]
    Future(Revision),
    /// The request is malformed or over a limit.
    #[error("bad request: {0}")]
    Invalid(String),
    /// No answer now; for a commit the outcome is unknown.
    #[error("store unavailable: {0}")]
    Unavailable(String),
}

/// Result of a store.
pub type KvResult<T> = Result<T, KvError>;

impl From<KvError> for Error {
    fn from(e: KvError) -> Error {
        match e {
            KvError::CheckFailed(_) => Error::raced("the record"),
            KvError::Compacted(r) => Error::new(Code::Gone, format!("history before revision {r} is gone"))
                .hint("list again from now"),
            KvError::Future(r) => Error::invalid("revision", format!("in the future; the store is at {r}")),
            KvError::Invalid(m) => Error::internal("the store refused a request").why(m),
            KvError::Unavailable(m) => Error::unavailable("the store does not answer").why(m),
        }
    }
}

/// An ordered, versioned key-value store.
#[async_trait]
pub trait Kv: Send + Sync + 'static {
    /// One key.
    async fn get(&self, key: &[u8], at: ReadAt) -> KvResult<Option<Versioned>>;

    /// At most `limit` keys of a range (`limit` 0: no keys, only `more` and `revision`).
    async fn scan(&self, range: Range, at: ReadAt, limit: u32, direction: Direction) -> KvResult<Page>;

    /// If all checks hold, makes all writes, in one revision.
    async fn commit(&self, checks: Vec<Check>, writes: Vec<Write>) -> KvResult<Committed>;

    /// Everything that happens to the range from revision `from` on (inclusive; 0: from now on).
    fn watch(&self, range: Range, from: Revision) -> Watch;
}
