//! Reading: newest raw values, and versions of transactional keys at a timestamp, in either direction, with
//! filters, counts and projections evaluated where the data is.

use super::{Fate, Kind, Lock, Written, layout::*, limits::*};
use crate::{
    LockInfo, Refusal,
    bug::{self, Bug},
    key::{self, Mode, Span},
    refusal::Outcome,
    time::Ts,
};
use bytes::Bytes;
use photon_kv::{
    Direction,
    engine::{KeyRange, View},
};

/// A raw key's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawValue {
    /// Version of its last write; rises with every write of the key.
    pub version: u64,
    /// The value.
    pub value: Bytes,
}

/// Reads a record of `raw`.
pub(crate) fn raw_value(bytes: &Bytes) -> Outcome<RawValue> {
    let version = bytes.get(..8).and_then(|b| b.try_into().ok()).map(u64::from_be_bytes);
    Ok(RawValue { version: version.ok_or_else(|| broken("a raw value"))?, value: bytes.slice(8..) })
}

/// The newest value of a raw key.
pub fn raw_get(view: &dyn View, key: &[u8]) -> Outcome<Option<RawValue>> {
    view.get(RAW, key)?.as_ref().map(raw_value).transpose()
}

/// A comparison of a key or a value with given bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clause {
    /// Of the full key instead of the value.
    pub key: bool,
    /// Bytes to skip; what is shorter counts as empty.
    pub offset: usize,
    /// How the rest must compare.
    pub test: Test,
    /// With what.
    pub operand: Bytes,
    /// True turns it round.
    pub not: bool,
}

/// How to compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Test {
    /// The rest is the operand.
    Equals,
    /// It begins with it.
    Begins,
    /// It is smaller.
    Less,
    /// It holds it somewhere.
    Contains,
}

impl Clause {
    fn holds(&self, key: &[u8], value: &[u8]) -> bool {
        let subject = if self.key { key } else { value };
        let rest = subject.get(self.offset..).unwrap_or_default();
        let wanted = &self.operand[..];
        let holds = match self.test {
            Test::Equals => rest == wanted,
            Test::Begins => rest.starts_with(wanted),
            Test::Less => rest < wanted,
            Test::Contains => wanted.is_empty() || rest.windows(wanted.len()).any(|w| w == wanted),
        };
        holds != self.not
    }
}

/// What of the rows is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Project {
    /// Keys and values.
    #[default]
    All,
    /// Keys with empty values.
    Keys,
    /// Keys, and of the values these bytes: from, how many.
    Part(usize, usize),
    /// Only how many there are.
    Count,
}

/// What to scan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// Where.
    pub span: Span,
    /// From which end.
    pub direction: Direction,
    /// Most rows.
    pub limit: usize,
    /// All must hold.
    pub filter: Vec<Clause>,
    /// What of the rows.
    pub project: Project,
}

impl Query {
    /// All rows of a span, up to a page.
    pub fn all(span: Span) -> Query {
        let direction = Direction::Forward;
        Query { span, direction, limit: MAX_ROWS, filter: Vec::new(), project: Project::All }
    }
}

/// A row of a page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Full key.
    pub key: Bytes,
    /// Value.
    pub value: Bytes,
    /// Version of a raw key, commit timestamp of a transactional one.
    pub version: u64,
}

/// Part of a scan's answer.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Page {
    /// Rows in the direction asked for.
    pub rows: Vec<Row>,
    /// How many rows, given back or only counted.
    pub count: u64,
    /// What remains to be scanned, if anything may.
    pub rest: Option<Span>,
}

/// A page that fills.
struct Filling<'a> {
    query: &'a Query,
    page: Page,
    bytes: usize,
    records: usize,
}

impl<'a> Filling<'a> {
    fn new(query: &'a Query) -> Self {
        Filling { query, page: Page::default(), bytes: 0, records: 0 }
    }

    fn add(&mut self, key: &Bytes, value: Bytes, version: u64) {
        if !self.query.filter.iter().all(|c| c.holds(key, &value)) {
            return;
        }
        self.page.count += 1;
        let value = match self.query.project {
            Project::Count => return,
            Project::All => value,
            Project::Keys => Bytes::new(),
            Project::Part(from, n) => {
                let from = from.min(value.len());
                value.slice(from..from + n.min(value.len() - from))
            }
        };
        self.bytes += key.len() + value.len();
        self.page.rows.push(Row { key: key.clone(), value, version });
    }

    fn is_full(&self) -> bool {
        let count = self.query.project == Project::Count;
        let rows = if count { 0 } else { self.page.rows.len() };
        rows >= self.query.limit || self.bytes >= PAGE_BYTES || self.records >= PAGE_RECORDS
    }

    /// The page ends behind `last`.
    fn stop(&mut self, span: &Span, last: &[u8]) {
        let rest = match self.query.direction {
            Direction::Forward => Span { start: key::after(last), end: span.end.clone() },
            Direction::Backward => Span { start: span.start.clone(), end: Bytes::copy_from_slice(last) },
        };
        self.page.rest = Some(rest).filter(|r| !r.is_empty());
    }
}

/// Refuses what can't be scanned; gives the bounds back as they are used.
fn admit(q: &Query, mode: Mode) -> Outcome<Span> {
    let limit = MAX_ROWS;
    if q.limit == 0 || q.limit > limit {
        return Err(Refusal::TooMany { what: "rows", n: q.limit, limit });
    }
    let operands: usize = q.filter.iter().map(|c| c.operand.len()).sum();
    if q.filter.len() > 64 || operands > key::MAX_VALUE {
        return Err(Refusal::TooMany { what: "clauses of a filter", n: q.filter.len(), limit: 64 });
    }
    if q.span.is_empty() {
        return Err(Refusal::InvertedRange);
    }
    Ok(q.span.clean().within(&Span::between(mode, &[], &[])))
}

/// Scans raw keys.
pub fn raw_scan(view: &dyn View, query: &Query) -> Outcome<Page> {
    let span = admit(query, Mode::Raw)?;
    let mut out = Filling::new(query);
    if span.is_empty() {
        return Ok(out.page);
    }
    for item in view.scan(RAW, range(&span), query.direction) {
        let (key, value) = item?;
        let v = raw_value(&value)?;
        out.records += 1;
        out.add(&key, v.value, v.version);
        if out.is_full() {
            out.stop(&span, &key);
            break;
        }
    }
    Ok(out.page)
}

/// Whose eyes: what a read at a timestamp may pass by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// State after all commits up to here.
    pub at: Ts,
    /// Locks of these transactions are no obstacle: the reader's own, and those of which it knows that they
    /// will commit behind `at` or not at all.
    pub pass: Vec<Ts>,
}

impl Snapshot {
    /// Passes by nothing.
    pub fn at(at: Ts) -> Snapshot {
        Snapshot { at, pass: Vec::new() }
    }

    /// True when what the lock will write may belong into this snapshot.
    fn is_blocked_by(&self, lock: &Lock) -> bool {
        !bug::on(Bug::LocksIgnored)
            && lock.start <= self.at
            && !self.pass.contains(&lock.start)
            && lock.min_commit <= self.at
            && matches!(lock.kind(), Kind::Put | Kind::Delete)
    }
}

pub(crate) fn info(key: &Bytes, lock: &Lock) -> LockInfo {
    LockInfo {
        key: key.clone(),
        primary: lock.primary.clone(),
        start: lock.start,
        ttl_ms: lock.ttl_ms,
        is_async: lock.is_async,
        is_pessimistic: lock.kind() == Kind::Pessimistic,
    }
}

/// Records of one key in `write` from `newest` down to `oldest`, newest first.
pub(crate) fn records<'a>(
    view: &'a dyn View,
    key: &[u8],
    newest: Ts,
    oldest: Ts,
) -> impl Iterator<Item = Outcome<Written>> + 'a {
    let end = std::ops::Bound::Included(versioned(key, oldest));
    let range = KeyRange { start: std::ops::Bound::Included(versioned(key, newest)), end };
    view.scan(WRITE, range, Direction::Forward).map(|item| {
        let (k, v) = item?;
        Written::parse(unversioned(&k)?.1, &v)
    })
}

pub(crate) fn value_of(view: &dyn View, key: &[u8], w: &Written) -> Outcome<Bytes> {
    match &w.value {
        Some(v) => Ok(v.clone()),
        None => view.get(DATA, &versioned(key, w.start))?.ok_or_else(|| broken("a long value")),
    }
}

/// The value that is in force at `at`, and since when, whatever locks there are.
pub(crate) fn visible(view: &dyn View, key: &[u8], at: Ts) -> Outcome<Option<(Bytes, Ts)>> {
    for w in records(view, key, at, 0) {
        let w = w?;
        match w.fate {
            Fate::Done(Kind::Put) => return Ok(Some((value_of(view, key, &w)?, w.at))),
            Fate::Done(Kind::Delete) => return Ok(None),
            _ => {}
        }
    }
    Ok(None)
}

/// The value of a key in a snapshot, and its commit timestamp.
pub fn get(view: &dyn View, key: &Bytes, snapshot: &Snapshot) -> Outcome<Option<(Bytes, Ts)>> {
    key::check(Mode::Txn, key)?;
    if let Some(lock) = Lock::load(view, key)?.filter(|l| snapshot.is_blocked_by(l)) {
        return Err(Refusal::Locked(vec![info(key, &lock)]));
    }
    visible(view, key, snapshot.at)
}

/// Scans a snapshot.
pub fn scan(view: &dyn View, query: &Query, snapshot: &Snapshot) -> Outcome<Page> {
    let span = admit(query, Mode::Txn)?;
    let mut out = Filling::new(query);
    if span.is_empty() {
        return Ok(out.page);
    }
    // Of the key at hand: the best version so far.
    let mut current: Option<(Bytes, Option<Written>)> = None;
    let mut last = None;
    for item in view.scan(WRITE, range(&span), query.direction) {
        let (k, v) = item?;
        let (key, at) = unversioned(&k)?;
        if current.as_ref().is_none_or(|(c, _)| *c != key) {
            if let Some((k, w)) = current.take() {
                emit(view, &mut out, &k, w)?;
                if out.is_full() {
                    last = Some(k);
                    break;
                }
            }
            current = Some((key.clone(), None));
        }
        out.records += 1;
        let Some((_, best)) = &mut current else { continue };
        // Forward the newest comes first, backward the oldest.
        let settled = query.direction == Direction::Forward && best.is_some();
        if at <= snapshot.at && !settled {
            let w = Written::parse(at, &v)?;
            if matches!(w.fate, Fate::Done(Kind::Put | Kind::Delete)) {
                *best = Some(w);
            }
        }
    }
    if last.is_none()
        && let Some((k, w)) = current
    {
        emit(view, &mut out, &k, w)?;
    }
    if let Some(k) = &last {
        out.stop(&span, k);
    }
    // Locks within what this page covers.
    let covered = match (&out.page.rest, query.direction) {
        (None, _) => span,
        (Some(rest), Direction::Forward) => Span { end: rest.start.clone(), ..span },
        (Some(rest), Direction::Backward) => Span { start: rest.end.clone(), ..span },
    };
    let locks = locks(view, &covered, |l| snapshot.is_blocked_by(l))?;
    if locks.is_empty() { Ok(out.page) } else { Err(Refusal::Locked(locks)) }
}

fn emit(view: &dyn View, out: &mut Filling<'_>, key: &Bytes, w: Option<Written>) -> Outcome<()> {
    if let Some(w) = w.filter(|w| w.fate == Fate::Done(Kind::Put)) {
        out.add(key, value_of(view, key, &w)?, w.at);
    }
    Ok(())
}

/// The first locks of a span that are of interest.
pub(crate) fn locks(view: &dyn View, span: &Span, wanted: impl Fn(&Lock) -> bool) -> Outcome<Vec<LockInfo>> {
    let mut out = Vec::new();
    for item in view.scan(LOCK, range(span), Direction::Forward) {
        let (key, bytes) = item?;
        let lock = Lock::parse(bytes)?;
        if wanted(&lock) {
            out.push(info(&key, &lock));
            if out.len() >= MAX_LOCKS {
                break;
            }
        }
    }
    Ok(out)
}

/// True when what `span` held at `since` is what it holds at `until` (and for ever, once `until` has been read
/// at): no commit between, and no lock that could become one. Serializable transactions ask this of what they
/// read, at their commit timestamp, when everything they write is locked (as CockroachDB's read refresh).
/// What transaction `start`, which read at its start, itself did does not count.
pub fn unchanged(view: &dyn View, range: &ReadRange, start: Ts, at: &Snapshot) -> Outcome<()> {
    let (keys, since, until) = (range.keys(), start, at.at);
    let locks = locks(view, &keys, |l| l.start != start && at.is_blocked_by(l))?;
    if !locks.is_empty() {
        return Err(Refusal::Locked(locks));
    }
    for item in view.scan(WRITE, super::layout::range(&keys), Direction::Forward) {
        let (k, v) = item?;
        let (key, at) = unversioned(&k)?;
        if at > since && at <= until {
            let w = Written::parse(at, &v)?;
            if w.start != start && matches!(w.fate, Fate::Done(Kind::Put | Kind::Delete)) {
                return Err(Refusal::Conflict { key, commit: at, since });
            }
        }
    }
    Ok(())
}

/// What a transaction read: a key or a span.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadRange(pub Span);

impl ReadRange {
    /// A single key.
    pub fn key(key: &Bytes) -> ReadRange {
        ReadRange(Span { start: key.clone(), end: key::after(key) })
    }

    fn keys(&self) -> Span {
        self.0.clean().within(&Span::between(Mode::Txn, &[], &[]))
    }
}
