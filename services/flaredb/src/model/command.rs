//! What a region can be told to do: entries of its log. Encoded as protobuf by `prost`, bounded by
//! [`Command::check`], which everything passes before it is proposed.

use super::{Descriptor, limits::*};
use crate::{Refusal, key, key::Mode, refusal::Outcome, time, time::Ts};
use bytes::Bytes;
use prost::Message;

/// Version of this encoding: a newer one stops the replica instead of being misread.
const VERSION: u32 = 1;

/// An entry of a region's log.
#[derive(Clone, PartialEq, Message)]
pub struct Command {
    #[prost(uint32, tag = "1")]
    version: u32,
    /// Version of the region's range that the sender knew.
    #[prost(uint64, tag = "2")]
    pub epoch: u64,
    /// Term in which `floor` is right; 0 when no floor is needed.
    #[prost(uint64, tag = "3")]
    pub term: u64,
    /// Nobody has read at a later timestamp than this. See [`super::Gate`].
    #[prost(uint64, tag = "4")]
    pub floor: Ts,
    /// What to do.
    #[prost(oneof = "Op", tags = "5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18")]
    pub op: Option<Op>,
}

/// What to do.
#[derive(Clone, PartialEq, prost::Oneof)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum Op {
    #[prost(message, tag = "5")]
    Raw(RawCommit),
    #[prost(message, tag = "6")]
    Prewrite(Prewrite),
    #[prost(message, tag = "7")]
    Commit(Commit),
    #[prost(message, tag = "8")]
    Rollback(Rollback),
    #[prost(message, tag = "9")]
    Lock(PessimisticLock),
    #[prost(message, tag = "10")]
    Unlock(PessimisticRollback),
    #[prost(message, tag = "11")]
    Status(CheckStatus),
    #[prost(message, tag = "12")]
    Secondaries(CheckSecondaries),
    #[prost(message, tag = "13")]
    Resolve(Resolve),
    #[prost(message, tag = "14")]
    Heartbeat(Heartbeat),
    #[prost(message, tag = "15")]
    Gc(Gc),
    #[prost(message, tag = "16")]
    Split(Split),
    #[prost(message, tag = "17")]
    PrepareMerge(PrepareMerge),
    #[prost(message, tag = "18")]
    CommitMerge(CommitMerge),
}

/// Conditions and writes on raw keys: all or nothing.
#[derive(Clone, PartialEq, Message)]
pub struct RawCommit {
    /// What must hold.
    #[prost(message, repeated, tag = "1")]
    pub checks: Vec<RawCheck>,
    /// What is then written; each key once.
    #[prost(message, repeated, tag = "2")]
    pub writes: Vec<RawWrite>,
}

/// A condition.
#[derive(Clone, PartialEq, Message)]
pub struct RawCheck {
    /// Full key.
    #[prost(bytes = "bytes", tag = "1")]
    pub key: Bytes,
    /// What of it.
    #[prost(oneof = "Want", tags = "2, 3, 4")]
    pub want: Option<Want>,
}

/// What a condition asks of a key.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Want {
    /// It exists, or does not.
    #[prost(bool, tag = "2")]
    Present(bool),
    /// It was last written at this version.
    #[prost(uint64, tag = "3")]
    Version(u64),
    /// It has this value.
    #[prost(bytes = "bytes", tag = "4")]
    Value(Bytes),
}

/// A write; no value is a deletion.
#[derive(Clone, PartialEq, Message)]
pub struct RawWrite {
    /// Full key.
    #[prost(bytes = "bytes", tag = "1")]
    pub key: Bytes,
    /// New value.
    #[prost(bytes = "bytes", optional, tag = "2")]
    pub value: Option<Bytes>,
}

/// What a transaction does to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum Kind {
    /// Sets it.
    Put = 0,
    /// Removes it.
    Delete = 1,
    /// Leaves it as it is, but nobody else may change it meanwhile.
    Lock = 2,
    /// Reserves it: not yet part of a commit.
    Pessimistic = 3,
}

/// A key that a transaction changes.
#[derive(Clone, PartialEq, Message)]
pub struct Mutation {
    /// How.
    #[prost(enumeration = "Kind", tag = "1")]
    pub kind: i32,
    /// Full key.
    #[prost(bytes = "bytes", tag = "2")]
    pub key: Bytes,
    /// New value, for a put.
    #[prost(bytes = "bytes", tag = "3")]
    pub value: Bytes,
    /// A pessimistic lock was taken before: it must still be there.
    #[prost(bool, tag = "4")]
    pub locked: bool,
    /// The key must not exist.
    #[prost(bool, tag = "5")]
    pub absent: bool,
}

/// A range that was read, for the check that it is still so.
#[derive(Clone, PartialEq, Message)]
pub struct ReadSpan {
    /// First key.
    #[prost(bytes = "bytes", tag = "1")]
    pub start: Bytes,
    /// First key behind; empty for a single key.
    #[prost(bytes = "bytes", tag = "2")]
    pub end: Bytes,
}

/// First phase: locks keys with their new values.
#[derive(Clone, PartialEq, Message)]
pub struct Prewrite {
    /// The transaction.
    #[prost(uint64, tag = "1")]
    pub start: Ts,
    /// The key that decides.
    #[prost(bytes = "bytes", tag = "2")]
    pub primary: Bytes,
    /// See [`crate::LockInfo`].
    #[prost(uint64, tag = "3")]
    pub ttl_ms: u64,
    /// What to write here.
    #[prost(message, repeated, tag = "4")]
    pub mutations: Vec<Mutation>,
    /// Newest timestamp at which pessimistic locks were taken; 0 for none.
    #[prost(uint64, tag = "5")]
    pub for_update: Ts,
    /// The transaction is committed once all its keys are locked.
    #[prost(bool, tag = "6")]
    pub is_async: bool,
    /// All other keys of the transaction, with the primary's mutation if `is_async`.
    #[prost(bytes = "bytes", repeated, tag = "7")]
    pub secondaries: Vec<Bytes>,
    /// These are all keys of the transaction: commit them at once.
    #[prost(bool, tag = "8")]
    pub one_phase: bool,
    /// With `one_phase`: what the transaction has read must still be so.
    #[prost(message, repeated, tag = "9")]
    pub reads: Vec<ReadSpan>,
}

/// Second phase.
#[derive(Clone, PartialEq, Message)]
pub struct Commit {
    /// The transaction.
    #[prost(uint64, tag = "1")]
    pub start: Ts,
    /// When.
    #[prost(uint64, tag = "2")]
    pub commit: Ts,
    /// Which keys.
    #[prost(bytes = "bytes", repeated, tag = "3")]
    pub keys: Vec<Bytes>,
}

/// Gives keys up, for good: a late prewrite finds it out.
#[derive(Clone, PartialEq, Message)]
pub struct Rollback {
    /// The transaction.
    #[prost(uint64, tag = "1")]
    pub start: Ts,
    /// Which keys.
    #[prost(bytes = "bytes", repeated, tag = "2")]
    pub keys: Vec<Bytes>,
}

/// Reserves keys, and reads them as they are now.
#[derive(Clone, PartialEq, Message)]
pub struct PessimisticLock {
    /// The transaction.
    #[prost(uint64, tag = "1")]
    pub start: Ts,
    /// The key that decides.
    #[prost(bytes = "bytes", tag = "2")]
    pub primary: Bytes,
    /// See [`crate::LockInfo`].
    #[prost(uint64, tag = "3")]
    pub ttl_ms: u64,
    /// Nothing newer than this may be there.
    #[prost(uint64, tag = "4")]
    pub for_update: Ts,
    /// Which keys.
    #[prost(bytes = "bytes", repeated, tag = "5")]
    pub keys: Vec<Bytes>,
}

/// Takes reservations back.
#[derive(Clone, PartialEq, Message)]
pub struct PessimisticRollback {
    /// The transaction.
    #[prost(uint64, tag = "1")]
    pub start: Ts,
    /// Only those not renewed since.
    #[prost(uint64, tag = "2")]
    pub for_update: Ts,
    /// Which keys.
    #[prost(bytes = "bytes", repeated, tag = "3")]
    pub keys: Vec<Bytes>,
}

/// Asks what became of a transaction, at its primary; ends it when its time is over.
#[derive(Clone, PartialEq, Message)]
pub struct CheckStatus {
    /// Primary key.
    #[prost(bytes = "bytes", tag = "1")]
    pub primary: Bytes,
    /// The transaction.
    #[prost(uint64, tag = "2")]
    pub start: Ts,
    /// A read at this timestamp waits: the transaction shall commit behind it. 0: nobody does.
    #[prost(uint64, tag = "3")]
    pub reader: Ts,
    /// Time now, as a timestamp of the oracle.
    #[prost(uint64, tag = "4")]
    pub now: Ts,
    /// If there is no trace of it, see to it that there never will be.
    #[prost(bool, tag = "5")]
    pub rollback_missing: bool,
    /// The transaction is known not to be asynchronous after all.
    #[prost(bool, tag = "6")]
    pub force_sync: bool,
}

/// Asks whether these keys of an asynchronous transaction are locked; those that are not never will be.
#[derive(Clone, PartialEq, Message)]
pub struct CheckSecondaries {
    /// The transaction.
    #[prost(uint64, tag = "1")]
    pub start: Ts,
    /// Which keys.
    #[prost(bytes = "bytes", repeated, tag = "2")]
    pub keys: Vec<Bytes>,
}

/// Makes locks of a transaction whose fate is known follow it.
#[derive(Clone, PartialEq, Message)]
pub struct Resolve {
    /// The transaction.
    #[prost(uint64, tag = "1")]
    pub start: Ts,
    /// When it was committed; 0 for rolled back.
    #[prost(uint64, tag = "2")]
    pub commit: Ts,
    /// Which keys.
    #[prost(bytes = "bytes", repeated, tag = "3")]
    pub keys: Vec<Bytes>,
}

/// The transaction is alive.
#[derive(Clone, PartialEq, Message)]
pub struct Heartbeat {
    /// Primary key.
    #[prost(bytes = "bytes", tag = "1")]
    pub primary: Bytes,
    /// The transaction.
    #[prost(uint64, tag = "2")]
    pub start: Ts,
    /// New time to live, milliseconds from its start. It never gets shorter.
    #[prost(uint64, tag = "3")]
    pub ttl_ms: u64,
}

/// Removes history that nobody may read any more.
#[derive(Clone, PartialEq, Message)]
pub struct Gc {
    /// Up to here.
    #[prost(uint64, tag = "1")]
    pub safe_point: Ts,
    /// First full key to look at; empty for the region's first.
    #[prost(bytes = "bytes", tag = "2")]
    pub from: Bytes,
    /// Most records to look at.
    #[prost(uint32, tag = "3")]
    pub limit: u32,
}

/// Splits the region in two; the new one takes the right half.
#[derive(Clone, PartialEq, Message)]
pub struct Split {
    /// Border.
    #[prost(bytes = "bytes", tag = "1")]
    pub at: Bytes,
    /// Number of the new region.
    #[prost(uint64, tag = "2")]
    pub id: u64,
}

/// The region writes nothing more: it becomes part of its left neighbour.
#[derive(Clone, PartialEq, Message)]
pub struct PrepareMerge {
    /// The neighbour's number.
    #[prost(uint64, tag = "1")]
    pub target: u64,
    /// False takes it back.
    #[prost(bool, tag = "2")]
    pub begin: bool,
}

/// Takes the right neighbour in.
#[derive(Clone, PartialEq, Message)]
pub struct CommitMerge {
    /// It, as it was prepared.
    #[prost(message, optional, tag = "1")]
    pub source: Option<Descriptor>,
    /// Index of its last entry.
    #[prost(uint64, tag = "2")]
    pub index: u64,
}

impl Command {
    /// A command for a region at `epoch`.
    pub fn new(epoch: u64, op: Op) -> Command {
        Command { version: VERSION, epoch, term: 0, floor: 0, op: Some(op) }
    }

    /// Reads an entry. An error means that the log holds what this version does not know.
    pub fn decode_entry(bytes: Bytes) -> Result<Command, String> {
        let c = Command::decode(bytes).map_err(|e| format!("an entry cannot be read: {e}"))?;
        if c.version != VERSION || c.op.is_none() {
            return Err(format!("an entry of version {} is not known here", c.version));
        }
        Ok(c)
    }

    /// Limits and shapes. What passes here never makes a replica fail.
    pub fn check(&self) -> Outcome<()> {
        let Some(op) = &self.op else { return Err(Refusal::Malformed("no operation".into())) };
        match op {
            Op::Raw(r) => {
                few("writes", r.writes.len())?;
                few("conditions", r.checks.len())?;
                if r.checks.is_empty() && r.writes.is_empty() {
                    return Err(Refusal::Malformed("nothing to do".into()));
                }
                let all = r.checks.iter().map(|c| &c.key).chain(r.writes.iter().map(|w| &w.key));
                all.into_iter().try_for_each(|k| key::check(Mode::Raw, k))?;
                r.writes.iter().filter_map(|w| w.value.as_ref()).try_for_each(value)?;
                if r.checks.iter().any(|c| c.want.is_none()) {
                    return Err(Refusal::Malformed("a condition that asks nothing".into()));
                }
                distinct(r.writes.iter().map(|w| &w.key))
            }
            Op::Prewrite(p) => {
                given(p.start)?;
                if p.for_update != 0 {
                    given(p.for_update)?;
                }
                few("secondary keys", p.secondaries.len())?;
                few("ranges read", p.reads.len())?;
                keys(p.mutations.iter().map(|m| &m.key), p.mutations.len())?;
                keys_of(p.secondaries.iter().chain([&p.primary]))?;
                if p.is_async && p.secondaries.len() > MAX_ASYNC_KEYS {
                    return Err(Refusal::TooMany {
                        what: "keys of an asynchronous commit",
                        n: p.secondaries.len(),
                        limit: MAX_ASYNC_KEYS,
                    });
                }
                if p.ttl_ms > MAX_TTL_MS || (!p.reads.is_empty() && !p.one_phase) {
                    return Err(Refusal::Malformed("time to live, or reads without one phase".into()));
                }
                for m in &p.mutations {
                    match m.kind() {
                        Kind::Put => value(&m.value)?,
                        Kind::Pessimistic => {
                            return Err(Refusal::Malformed("a reservation in a prewrite".into()));
                        }
                        _ => {}
                    }
                }
                Ok(())
            }
            Op::Commit(c) => {
                given(c.start)?;
                if c.commit <= c.start {
                    return Err(Refusal::NotATimestamp(c.commit));
                }
                keys(&c.keys, c.keys.len())
            }
            Op::Rollback(r) => given(r.start).and_then(|()| keys(&r.keys, r.keys.len())),
            Op::Lock(l) => {
                given(l.start)?;
                given(l.for_update)?;
                if l.ttl_ms > MAX_TTL_MS || l.for_update < l.start {
                    return Err(Refusal::Malformed("time to live, or a lock before the start".into()));
                }
                keys_of([&l.primary])?;
                keys(&l.keys, l.keys.len())
            }
            Op::Unlock(r) => given(r.start).and_then(|()| keys(&r.keys, r.keys.len())),
            Op::Status(s) => {
                given(s.start)?;
                given(s.now)?;
                keys_of([&s.primary])
            }
            Op::Secondaries(s) => given(s.start).and_then(|()| keys(&s.keys, s.keys.len())),
            Op::Resolve(r) => {
                given(r.start)?;
                if r.commit != 0 && r.commit <= r.start {
                    return Err(Refusal::NotATimestamp(r.commit));
                }
                keys(&r.keys, r.keys.len())
            }
            Op::Heartbeat(h) => {
                given(h.start)?;
                if h.ttl_ms > MAX_TTL_MS {
                    return Err(Refusal::Malformed("time to live".into()));
                }
                keys_of([&h.primary])
            }
            Op::Gc(g) => given(g.safe_point),
            Op::Split(s) if !key::is_border(&s.at) || s.id == 0 => Err(Refusal::Malformed(
                "a region splits where a row group begins, into a numbered one".into(),
            )),
            Op::Split(_) | Op::PrepareMerge(_) => Ok(()),
            Op::CommitMerge(c) if c.source.is_none() => Err(Refusal::Malformed("no source".into())),
            Op::CommitMerge(_) => Ok(()),
        }
    }

    /// Timestamps in it that must have been given already.
    pub fn newest(&self) -> Ts {
        match &self.op {
            Some(Op::Prewrite(p)) => p.start.max(p.for_update),
            Some(Op::Commit(c)) => c.commit,
            Some(Op::Rollback(r)) => r.start,
            Some(Op::Lock(l)) => l.for_update,
            Some(Op::Status(s)) => s.start.max(s.now).max(if s.reader == Ts::MAX { 0 } else { s.reader }),
            Some(Op::Secondaries(s)) => s.start,
            Some(Op::Resolve(r)) => r.start.max(r.commit),
            Some(Op::Heartbeat(h)) => h.start,
            Some(Op::Gc(g)) => g.safe_point,
            _ => 0,
        }
    }

    /// The keys for which it needs a floor, that is, whose commit timestamp the region derives.
    pub fn derives(&self) -> Option<&Prewrite> {
        match &self.op {
            Some(Op::Prewrite(p)) if p.is_async || p.one_phase => Some(p),
            _ => None,
        }
    }
}

fn given(ts: Ts) -> Outcome<()> {
    if time::is_given(ts) { Ok(()) } else { Err(Refusal::NotATimestamp(ts)) }
}

fn few(what: &'static str, n: usize) -> Outcome<()> {
    if n > MAX_KEYS { Err(Refusal::TooMany { what, n, limit: MAX_KEYS }) } else { Ok(()) }
}

fn value(v: &Bytes) -> Outcome<()> {
    let (len, limit) = (v.len(), key::MAX_VALUE);
    if len > limit { Err(Refusal::ValueTooLarge { len, limit }) } else { Ok(()) }
}

fn keys_of<'a>(keys: impl IntoIterator<Item = &'a Bytes>) -> Outcome<()> {
    keys.into_iter().try_for_each(|k| key::check(Mode::Txn, k))
}

fn keys<'a>(keys: impl IntoIterator<Item = &'a Bytes>, n: usize) -> Outcome<()> {
    few("keys", n)?;
    if n == 0 {
        return Err(Refusal::Malformed("no keys".into()));
    }
    let all: Vec<&Bytes> = keys.into_iter().collect();
    keys_of(all.iter().copied())?;
    distinct(all.into_iter())
}

fn distinct<'a>(keys: impl Iterator<Item = &'a Bytes>) -> Outcome<()> {
    let mut seen = std::collections::BTreeSet::new();
    for k in keys {
        if !seen.insert(k) {
            return Err(Refusal::Malformed("a key appears twice".into()));
        }
    }
    Ok(())
}
