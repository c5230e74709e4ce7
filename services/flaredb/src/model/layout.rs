//! What a region has on disk. All regions of a node share these keyspaces; a region's part of each is its
//! range.
//!
//! | space | key | value |
//! |---|---|---|
//! | `meta` | `r`, region number (u64) | [`RegionState`] |
//! | `meta` | `node` | number of the node whose folder this is (u64) |
//! | `meta` | `given` | greatest number of a region that this node has given out (u64) |
//! | `meta` | `oracle` | end of the last window of timestamps (u64), in a store of one node |
//! | `raw` | full key | version (u64), value |
//! | `lock` | full key | [`Lock`] |
//! | `write` | full key, inverted commit timestamp (u64) | kind, start (u64), the value if it is short |
//! | `data` | full key, inverted start timestamp (u64) | a long value |
//!
//! These are Percolator's columns (Peng and Dabek, OSDI 2010). A rollback is a record of `write` at the
//! transaction's start. Inverted, so that the newest version of a key comes first. Numbers are big-endian.

use super::Kind;
use crate::{Refusal, key::Span, refusal::Outcome, time::Ts};
use bytes::Bytes;
use photon_kv::engine::{KeyRange, Space, View};
use prost::Message;
use std::ops::Bound;

/// Names of the keyspaces, in the order of the constants below.
pub const SPACES: [&str; 5] = ["meta", "raw", "data", "lock", "write"];
pub(crate) const META: Space = Space(0);
pub(crate) const RAW: Space = Space(1);
pub(crate) const DATA: Space = Space(2);
pub(crate) const LOCK: Space = Space(3);
pub(crate) const WRITE: Space = Space(4);

/// A part of the key space with its own log.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct Descriptor {
    /// Its number, never given twice.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// First full key.
    #[prost(bytes = "bytes", tag = "2")]
    pub start: Bytes,
    /// First full key behind; empty for no end.
    #[prost(bytes = "bytes", tag = "3")]
    pub end: Bytes,
    /// Rises with every change of the range.
    #[prost(uint64, tag = "4")]
    pub version: u64,
    /// Rises with every change of the members.
    #[prost(uint64, tag = "5")]
    pub conf: u64,
    /// Nodes that have a replica, in rising order. Empty: the store has one node.
    #[prost(uint64, repeated, tag = "6")]
    pub members: Vec<u64>,
}

impl Descriptor {
    /// Its range.
    pub fn span(&self) -> Span {
        Span { start: self.start.clone(), end: self.end.clone() }
    }
}

/// What a region knows of itself.
#[derive(Clone, PartialEq, Message)]
pub struct RegionState {
    /// Where it stands.
    #[prost(message, required, tag = "1")]
    pub region: Descriptor,
    /// Last entry of the log that this state reflects.
    #[prost(uint64, tag = "2")]
    pub index: u64,
    /// Its term.
    #[prost(uint64, tag = "3")]
    pub term: u64,
    /// Version of the newest raw write.
    #[prost(uint64, tag = "4")]
    pub revision: u64,
    /// Nothing that started before this is begun any more, and nobody reads there.
    #[prost(uint64, tag = "5")]
    pub safe_point: Ts,
    /// The neighbour that it is becoming part of; 0 for none.
    #[prost(uint64, tag = "6")]
    pub merging: u64,
    /// Numbers of regions that were split off or taken in: they are never begun anew here.
    #[prost(bool, tag = "7")]
    pub gone: bool,
    /// History up to here may be gone.
    #[prost(uint64, tag = "8")]
    pub collected: Ts,
}

impl RegionState {
    /// The first region: all keys, with replicas on `members`.
    pub fn first(id: u64, members: &[u64]) -> RegionState {
        let region =
            Descriptor { id, version: 1, conf: 1, members: members.to_vec(), ..Descriptor::default() };
        RegionState { region, ..RegionState::default() }
    }

    /// What `view` knows of region `id`.
    pub fn load(view: &dyn View, id: u64) -> Outcome<Option<RegionState>> {
        let Some(bytes) = view.get(META, &meta_key(id))? else { return Ok(None) };
        RegionState::decode(bytes).map(Some).map_err(|_| broken("a region's state"))
    }
}

/// Where a region's state is.
pub(crate) fn meta_key(id: u64) -> Bytes {
    [&b"r"[..], &id.to_be_bytes()].concat().into()
}

/// A lock of a transaction on a key.
#[derive(Clone, PartialEq, Message)]
pub struct Lock {
    /// What the transaction does to the key.
    #[prost(enumeration = "Kind", tag = "1")]
    pub kind: i32,
    /// The key that decides.
    #[prost(bytes = "bytes", tag = "2")]
    pub primary: Bytes,
    /// The transaction.
    #[prost(uint64, tag = "3")]
    pub start: Ts,
    /// See [`crate::LockInfo`].
    #[prost(uint64, tag = "4")]
    pub ttl_ms: u64,
    /// Newest timestamp at which it was reserved; 0 if it was not.
    #[prost(uint64, tag = "5")]
    pub for_update: Ts,
    /// The transaction commits at this or later.
    #[prost(uint64, tag = "6")]
    pub min_commit: Ts,
    /// The transaction is committed once all its keys are locked.
    #[prost(bool, tag = "7")]
    pub is_async: bool,
    /// In the primary's lock, if `is_async`: all other keys.
    #[prost(bytes = "bytes", repeated, tag = "8")]
    pub secondaries: Vec<Bytes>,
    /// New value, if it is short; a long one lies in `data`.
    #[prost(bytes = "bytes", optional, tag = "9")]
    pub value: Option<Bytes>,
}

impl Lock {
    /// The lock on `key`.
    pub fn load(view: &dyn View, key: &[u8]) -> Outcome<Option<Lock>> {
        view.get(LOCK, key)?.map(Lock::parse).transpose()
    }

    /// Reads a record.
    pub fn parse(bytes: Bytes) -> Outcome<Lock> {
        Lock::decode(bytes).map_err(|_| broken("a lock"))
    }
}

/// What a record of `write` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The transaction committed a change of this kind.
    Done(Kind),
    /// It was rolled back.
    RolledBack,
}

/// A record of `write`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// When: its commit, or for a rollback its start.
    pub at: Ts,
    /// The transaction.
    pub start: Ts,
    /// What became of it.
    pub fate: Fate,
    /// The value of a put, if it is short.
    pub value: Option<Bytes>,
}

impl Written {
    /// Bytes of the record.
    pub fn encode(&self) -> Bytes {
        let kind = match (self.fate, &self.value) {
            (Fate::Done(Kind::Put), Some(_)) => b'p',
            (Fate::Done(Kind::Put), None) => b'P',
            (Fate::Done(Kind::Delete), _) => b'D',
            (Fate::Done(_), _) => b'L',
            (Fate::RolledBack, _) => b'R',
        };
        let mut out = vec![kind];
        out.extend_from_slice(&self.start.to_be_bytes());
        out.extend_from_slice(self.value.as_deref().unwrap_or_default());
        out.into()
    }

    /// Reads a record of the key `at` was taken from.
    pub fn parse(at: Ts, bytes: &Bytes) -> Outcome<Written> {
        let start = bytes.get(1..9).and_then(|b| b.try_into().ok()).map(u64::from_be_bytes);
        let start = start.ok_or_else(|| broken("a write record"))?;
        let (fate, value) = match bytes[0] {
            b'p' => (Fate::Done(Kind::Put), Some(bytes.slice(9..))),
            b'P' => (Fate::Done(Kind::Put), None),
            b'D' => (Fate::Done(Kind::Delete), None),
            b'L' => (Fate::Done(Kind::Lock), None),
            b'R' => (Fate::RolledBack, None),
            _ => return Err(broken("a write record")),
        };
        Ok(Written { at, start, fate, value })
    }
}

/// A full key with an inverted timestamp.
pub(crate) fn versioned(key: &[u8], ts: Ts) -> Bytes {
    let mut out = Vec::with_capacity(key.len() + 8);
    out.extend_from_slice(key);
    out.extend_from_slice(&(!ts).to_be_bytes());
    out.into()
}

/// Takes such a key apart.
pub(crate) fn unversioned(key: &Bytes) -> Outcome<(Bytes, Ts)> {
    let at = key.len().checked_sub(8).ok_or_else(|| broken("a versioned key"))?;
    let ts = key[at..].try_into().map(u64::from_be_bytes).map_err(|_| broken("a versioned key"))?;
    Ok((key.slice(..at), !ts))
}

/// Keys of a span in one of the spaces.
pub(crate) fn range(span: &Span) -> KeyRange {
    let bound = |b: &Bytes, f: fn(Bytes) -> Bound<Bytes>| {
        if b.is_empty() { Bound::Unbounded } else { f(b.clone()) }
    };
    KeyRange { start: bound(&span.start, Bound::Included), end: bound(&span.end, Bound::Excluded) }
}

pub(crate) fn broken(what: &str) -> Refusal {
    Refusal::Broken(format!("{what} cannot be read"))
}
