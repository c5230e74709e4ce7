//! Messages to what the region and its client speak, and back. What comes from others is bounded here or in the
//! checks of commands and queries; nothing of it panics.

use super::proto::{self as pb, ask_request::What, ask_response::Answer as Said, refusal::Kind};
use crate::{
    LockInfo, Refusal,
    client::{Request, Response},
    key::Span,
    model::{
        Answer, Op, Secondaries, Status,
        limits::MAX_KEYS,
        read::{Clause, Page, Project, Query, ReadRange, Row, Snapshot, Test},
    },
    refusal::Outcome,
};
use photon_kv::Direction;

fn malformed(what: &str) -> Refusal {
    Refusal::Malformed(what.into())
}

fn size(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

impl From<Span> for pb::Span {
    fn from(s: Span) -> Self {
        pb::Span { start: s.start, end: s.end }
    }
}

impl From<pb::Span> for Span {
    fn from(s: pb::Span) -> Self {
        Span { start: s.start, end: s.end }
    }
}

fn snapshot(s: Option<pb::Snapshot>) -> Outcome<Snapshot> {
    let s = s.ok_or_else(|| malformed("no snapshot"))?;
    if s.pass.len() > MAX_KEYS {
        return Err(Refusal::TooMany { what: "transactions to pass by", n: s.pass.len(), limit: MAX_KEYS });
    }
    Ok(Snapshot { at: s.at, pass: s.pass })
}

fn of_snapshot(s: Snapshot) -> Option<pb::Snapshot> {
    Some(pb::Snapshot { at: s.at, pass: s.pass })
}

fn query(q: Option<pb::Query>) -> Outcome<Query> {
    let q = q.ok_or_else(|| malformed("no query"))?;
    let project = match q.columns() {
        pb::Columns::All => Project::All,
        pb::Columns::Keys => Project::Keys,
        pb::Columns::Part => Project::Part(q.part_from as usize, q.part_len as usize),
        pb::Columns::Count => Project::Count,
    };
    let clause = |c: pb::Clause| {
        let test = match c.test() {
            pb::Test::Equals => Test::Equals,
            pb::Test::Begins => Test::Begins,
            pb::Test::Less => Test::Less,
            pb::Test::Contains => Test::Contains,
        };
        Clause { key: c.key, offset: c.offset as usize, test, operand: c.operand, not: c.not }
    };
    Ok(Query {
        span: q.span.ok_or_else(|| malformed("no span"))?.into(),
        direction: if q.backward { Direction::Backward } else { Direction::Forward },
        limit: q.limit as usize,
        filter: q.filter.into_iter().map(clause).collect(),
        project,
    })
}

fn of_query(q: Query) -> pb::Query {
    let (columns, part) = match q.project {
        Project::All => (pb::Columns::All, (0, 0)),
        Project::Keys => (pb::Columns::Keys, (0, 0)),
        Project::Part(from, n) => (pb::Columns::Part, (from, n)),
        Project::Count => (pb::Columns::Count, (0, 0)),
    };
    let clause = |c: Clause| {
        let test = match c.test {
            Test::Equals => pb::Test::Equals,
            Test::Begins => pb::Test::Begins,
            Test::Less => pb::Test::Less,
            Test::Contains => pb::Test::Contains,
        };
        pb::Clause { key: c.key, offset: size(c.offset), test: test.into(), operand: c.operand, not: c.not }
    };
    pb::Query {
        span: Some(q.span.into()),
        backward: q.direction == Direction::Backward,
        limit: size(q.limit),
        filter: q.filter.into_iter().map(clause).collect(),
        columns: columns.into(),
        part_from: size(part.0),
        part_len: size(part.1),
    }
}

/// What is asked for.
pub(super) fn request(what: Option<What>) -> Outcome<Request> {
    Ok(match what.ok_or_else(|| malformed("nothing is asked for"))? {
        What::Raw(r) => Request::Do(Op::Raw(r)),
        What::Prewrite(r) => Request::Do(Op::Prewrite(r)),
        What::Commit(r) => Request::Do(Op::Commit(r)),
        What::Rollback(r) => Request::Do(Op::Rollback(r)),
        What::Lock(r) => Request::Do(Op::Lock(r)),
        What::Unlock(r) => Request::Do(Op::Unlock(r)),
        What::Status(r) => Request::Do(Op::Status(r)),
        What::Secondaries(r) => Request::Do(Op::Secondaries(r)),
        What::Resolve(r) => Request::Do(Op::Resolve(r)),
        What::Heartbeat(r) => Request::Do(Op::Heartbeat(r)),
        What::Gc(r) => Request::Do(Op::Gc(r)),
        What::Get(r) => Request::Get(r.key, snapshot(r.snapshot)?),
        What::Scan(r) => Request::Scan(query(r.query)?, snapshot(r.snapshot)?),
        What::Unchanged(r) => {
            let range = ReadRange(r.range.ok_or_else(|| malformed("no range"))?.into());
            Request::Unchanged { range, start: r.start, at: snapshot(r.snapshot)? }
        }
        What::RawGet(key) => Request::RawGet(key),
        What::RawScan(q) => Request::RawScan(query(Some(q))?),
    })
}

/// The same from a client. Ranges are split and merged by calls of their own.
pub(crate) fn of_request(r: Request) -> Outcome<What> {
    Ok(match r {
        Request::Do(Op::Raw(r)) => What::Raw(r),
        Request::Do(Op::Prewrite(r)) => What::Prewrite(r),
        Request::Do(Op::Commit(r)) => What::Commit(r),
        Request::Do(Op::Rollback(r)) => What::Rollback(r),
        Request::Do(Op::Lock(r)) => What::Lock(r),
        Request::Do(Op::Unlock(r)) => What::Unlock(r),
        Request::Do(Op::Status(r)) => What::Status(r),
        Request::Do(Op::Secondaries(r)) => What::Secondaries(r),
        Request::Do(Op::Resolve(r)) => What::Resolve(r),
        Request::Do(Op::Heartbeat(r)) => What::Heartbeat(r),
        Request::Do(Op::Gc(r)) => What::Gc(r),
        Request::Do(Op::Split(_) | Op::PrepareMerge(_) | Op::CommitMerge(_)) => {
            return Err(malformed("ranges are changed by the calls Split and Merge"));
        }
        Request::Get(key, s) => What::Get(pb::Get { key, snapshot: of_snapshot(s) }),
        Request::Scan(q, s) => What::Scan(pb::Scan { query: Some(of_query(q)), snapshot: of_snapshot(s) }),
        Request::Unchanged { range, start, at } => {
            What::Unchanged(pb::Unchanged { range: Some(range.0.into()), start, snapshot: of_snapshot(at) })
        }
        Request::RawGet(key) => What::RawGet(key),
        Request::RawScan(q) => What::RawScan(of_query(q)),
    })
}

/// What is answered.
pub(super) fn of_answer(a: Outcome<Response>) -> pb::AskResponse {
    let said = match a {
        Err(e) => Said::Refusal(of_refusal(e)),
        Ok(Response::Value(v)) => Said::Value(pb::MaybeRow {
            row: v.map(|(value, version)| pb::Row { value, version, ..pb::Row::default() }),
        }),
        Ok(Response::Page(p)) => {
            let row = |r: Row| pb::Row { key: r.key, value: r.value, version: r.version };
            let rows = p.rows.into_iter().map(row).collect();
            Said::Page(pb::Page { rows, count: p.count, rest: p.rest.map(Into::into) })
        }
        Ok(Response::Done(a)) => match a {
            Answer::Done => Said::Done(pb::Empty {}),
            Answer::Written(v) => Said::Written(v),
            Answer::Prewritten { min_commit } => Said::Prewritten(min_commit),
            Answer::Committed(at) => Said::Committed(at),
            Answer::Locked(values) => {
                let values = values.into_iter().map(|value| pb::MaybeValue { value }).collect();
                Said::Locked(pb::Values { values })
            }
            Answer::Status(s) => Said::Status(pb::Status { state: Some(of_status(s)) }),
            Answer::Secondaries(s) => {
                use pb::secondaries::State;
                let state = match s {
                    Secondaries::Locked { min_commit } => State::Locked(min_commit),
                    Secondaries::Committed(at) => State::Committed(at),
                    Secondaries::Missing => State::Missing(pb::Empty {}),
                    Secondaries::NotAsync => State::NotAsync(pb::Empty {}),
                };
                Said::Secondaries(pb::Secondaries { state: Some(state) })
            }
            Answer::Collected { next } => Said::Collected(pb::Collected { next }),
            // Nobody can ask for this here.
            Answer::Regions(_) => Said::Refusal(of_refusal(malformed("ranges"))),
        },
    };
    pb::AskResponse { answer: Some(said) }
}

fn of_status(s: Status) -> pb::status::State {
    use pb::status::State;
    match s {
        Status::Alive { ttl_ms, min_commit } => State::Alive(pb::Alive { ttl_ms, min_commit }),
        Status::Silent { min_commit, secondaries } => State::Silent(pb::Silent { min_commit, secondaries }),
        Status::Committed(at) => State::Committed(at),
        Status::RolledBack => State::RolledBack(pb::Empty {}),
        Status::Missing => State::Missing(pb::Empty {}),
    }
}

/// The same for a client.
pub(crate) fn answer(a: pb::AskResponse) -> Outcome<Response> {
    let empty = || Refusal::Unknown("an empty answer".into());
    let done = match a.answer.ok_or_else(empty)? {
        Said::Refusal(r) => return Err(refusal(r)),
        Said::Value(v) => return Ok(Response::Value(v.row.map(|r| (r.value, r.version)))),
        Said::Page(p) => {
            let row = |r: pb::Row| Row { key: r.key, value: r.value, version: r.version };
            let rows = p.rows.into_iter().map(row).collect();
            return Ok(Response::Page(Page { rows, count: p.count, rest: p.rest.map(Into::into) }));
        }
        Said::Done(_) => Answer::Done,
        Said::Written(v) => Answer::Written(v),
        Said::Prewritten(min_commit) => Answer::Prewritten { min_commit },
        Said::Committed(at) => Answer::Committed(at),
        Said::Locked(l) => Answer::Locked(l.values.into_iter().map(|v| v.value).collect()),
        Said::Status(s) => {
            use pb::status::State;
            Answer::Status(match s.state.ok_or_else(empty)? {
                State::Alive(a) => Status::Alive { ttl_ms: a.ttl_ms, min_commit: a.min_commit },
                State::Silent(s) => Status::Silent { min_commit: s.min_commit, secondaries: s.secondaries },
                State::Committed(at) => Status::Committed(at),
                State::RolledBack(_) => Status::RolledBack,
                State::Missing(_) => Status::Missing,
            })
        }
        Said::Secondaries(s) => {
            use pb::secondaries::State;
            Answer::Secondaries(match s.state.ok_or_else(empty)? {
                State::Locked(min_commit) => Secondaries::Locked { min_commit },
                State::Committed(at) => Secondaries::Committed(at),
                State::Missing(_) => Secondaries::Missing,
                State::NotAsync(_) => Secondaries::NotAsync,
            })
        }
        Said::Collected(c) => Answer::Collected { next: c.next },
    };
    Ok(Response::Done(done))
}

/// A refusal, for people and for clients.
pub(crate) fn of_refusal(r: Refusal) -> pb::Refusal {
    let e = r.error();
    let mut out = pb::Refusal {
        code: format!("PH{}", e.code.number()),
        what: e.what,
        hint: e.hint.unwrap_or_default(),
        ..pb::Refusal::default()
    };
    let long = |n: usize| n as u64;
    let kind = match r {
        Refusal::Unknown(text) => {
            out.text = text;
            Kind::Unknown
        }
        Refusal::StaleEpoch(d) => {
            out.region = Some(*d);
            Kind::StaleEpoch
        }
        Refusal::NoRegion(n) => {
            out.number = n;
            Kind::NoRegion
        }
        Refusal::NotLeader(n) => {
            out.number = n;
            Kind::NotLeader
        }
        Refusal::OutOfRange(n) => {
            out.number = n;
            Kind::OutOfRange
        }
        Refusal::Merging(n) => {
            out.number = n;
            Kind::Merging
        }
        Refusal::Overloaded => Kind::Overloaded,
        Refusal::Unreachable(text) => {
            out.text = text;
            Kind::Unreachable
        }
        Refusal::Denied(text) => {
            out.text = text;
            Kind::Denied
        }
        Refusal::EmptyKey => Kind::EmptyKey,
        Refusal::KeyTooLong { len, limit } => {
            (out.number, out.limit) = (long(len), long(limit));
            Kind::KeyTooLong
        }
        Refusal::ValueTooLarge { len, limit } => {
            (out.number, out.limit) = (long(len), long(limit));
            Kind::ValueTooLarge
        }
        Refusal::InvertedRange => Kind::InvertedRange,
        Refusal::TooMany { what, n, limit } => {
            (out.text, out.number, out.limit) = (what.into(), long(n), long(limit));
            Kind::TooMany
        }
        Refusal::Malformed(text) => {
            out.text = text;
            Kind::Malformed
        }
        Refusal::NotATimestamp(ts) => {
            out.number = ts;
            Kind::NotATimestamp
        }
        Refusal::FromTheFuture { ts, newest } => {
            (out.number, out.limit) = (ts, newest);
            Kind::FromTheFuture
        }
        Refusal::BeforeSafePoint { ts, safe_point } => {
            (out.number, out.limit) = (ts, safe_point);
            Kind::BeforeSafePoint
        }
        Refusal::CheckFailed { index, version, value } => {
            (out.number, out.limit, out.value) = (long(index), version, value);
            Kind::CheckFailed
        }
        Refusal::Locked(locks) => {
            out.locks = locks.into_iter().map(of_lock).collect();
            Kind::Locked
        }
        Refusal::Conflict { key, commit, since } => {
            (out.key, out.number, out.limit) = (key, commit, since);
            Kind::Conflict
        }
        Refusal::AlreadyExists { key } => {
            out.key = key;
            Kind::AlreadyExists
        }
        Refusal::RolledBack(ts) => {
            out.number = ts;
            Kind::RolledBack
        }
        Refusal::Committed(ts) => {
            out.number = ts;
            Kind::Committed
        }
        Refusal::NotLocked(ts) => {
            out.number = ts;
            Kind::NotLocked
        }
        Refusal::CommitTooEarly(ts) => {
            out.number = ts;
            Kind::CommitTooEarly
        }
        Refusal::Deadlock(ts) => {
            out.number = ts;
            Kind::Deadlock
        }
        Refusal::Broken(text) => {
            out.text = text;
            Kind::Broken
        }
    };
    out.set_kind(kind);
    out
}

/// Of what a limit counts; words that this version does not know are counted as items.
fn counted(text: &str) -> &'static str {
    const KNOWN: [&str; 11] = [
        "bytes",
        "rows",
        "keys",
        "writes",
        "conditions",
        "secondary keys",
        "ranges read",
        "clauses of a filter",
        "keys of an asynchronous commit",
        "transactions to pass by",
        "timestamps",
    ];
    KNOWN.into_iter().find(|k| *k == text).unwrap_or("items")
}

/// The same for a client.
pub(crate) fn refusal(r: pb::Refusal) -> Refusal {
    let n = r.number;
    let short = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
    match r.kind() {
        Kind::Unknown => Refusal::Unknown(if r.text.is_empty() { r.what } else { r.text }),
        Kind::StaleEpoch => Refusal::StaleEpoch(Box::new(r.region.unwrap_or_default())),
        Kind::NoRegion => Refusal::NoRegion(n),
        Kind::NotLeader => Refusal::NotLeader(n),
        Kind::OutOfRange => Refusal::OutOfRange(n),
        Kind::Merging => Refusal::Merging(n),
        Kind::Overloaded => Refusal::Overloaded,
        Kind::Unreachable => Refusal::Unreachable(r.text),
        Kind::Denied => Refusal::Denied(r.text),
        Kind::EmptyKey => Refusal::EmptyKey,
        Kind::KeyTooLong => Refusal::KeyTooLong { len: short(n), limit: short(r.limit) },
        Kind::ValueTooLarge => Refusal::ValueTooLarge { len: short(n), limit: short(r.limit) },
        Kind::InvertedRange => Refusal::InvertedRange,
        Kind::TooMany => Refusal::TooMany { what: counted(&r.text), n: short(n), limit: short(r.limit) },
        Kind::Malformed => Refusal::Malformed(r.text),
        Kind::NotATimestamp => Refusal::NotATimestamp(n),
        Kind::FromTheFuture => Refusal::FromTheFuture { ts: n, newest: r.limit },
        Kind::BeforeSafePoint => Refusal::BeforeSafePoint { ts: n, safe_point: r.limit },
        Kind::CheckFailed => Refusal::CheckFailed { index: short(n), version: r.limit, value: r.value },
        Kind::Locked => Refusal::Locked(r.locks.into_iter().map(lock).collect()),
        Kind::Conflict => Refusal::Conflict { key: r.key, commit: n, since: r.limit },
        Kind::AlreadyExists => Refusal::AlreadyExists { key: r.key },
        Kind::RolledBack => Refusal::RolledBack(n),
        Kind::Committed => Refusal::Committed(n),
        Kind::NotLocked => Refusal::NotLocked(n),
        Kind::CommitTooEarly => Refusal::CommitTooEarly(n),
        Kind::Deadlock => Refusal::Deadlock(n),
        Kind::Broken => Refusal::Broken(r.text),
    }
}

fn of_lock(l: LockInfo) -> pb::LockInfo {
    pb::LockInfo {
        key: l.key,
        primary: l.primary,
        start: l.start,
        ttl_ms: l.ttl_ms,
        is_async: l.is_async,
        is_pessimistic: l.is_pessimistic,
    }
}

fn lock(l: pb::LockInfo) -> LockInfo {
    LockInfo {
        key: l.key,
        primary: l.primary,
        start: l.start,
        ttl_ms: l.ttl_ms,
        is_async: l.is_async,
        is_pessimistic: l.is_pessimistic,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{model::Descriptor, model::command::*};
    use bytes::Bytes;

    fn b(s: &'static str) -> Bytes {
        Bytes::from_static(s.as_bytes())
    }

    #[test]
    fn every_refusal_arrives_as_it_was_sent() {
        let region =
            Descriptor { id: 1, start: b("a"), end: b("b"), version: 2, conf: 3, members: vec![1, 300] };
        let locked = LockInfo {
            key: b("k"),
            primary: b("p"),
            start: 4,
            ttl_ms: 5,
            is_async: true,
            is_pessimistic: true,
        };
        let all = vec![
            Refusal::Unknown("u".into()),
            Refusal::StaleEpoch(Box::new(region)),
            Refusal::NoRegion(1),
            Refusal::NotLeader(2),
            Refusal::OutOfRange(3),
            Refusal::Merging(4),
            Refusal::Overloaded,
            Refusal::Unreachable("r".into()),
            Refusal::Denied("d".into()),
            Refusal::EmptyKey,
            Refusal::KeyTooLong { len: 5, limit: 4 },
            Refusal::ValueTooLarge { len: 5, limit: 4 },
            Refusal::InvertedRange,
            Refusal::TooMany { what: "rows", n: 5, limit: 4 },
            Refusal::Malformed("m".into()),
            Refusal::NotATimestamp(7),
            Refusal::FromTheFuture { ts: 8, newest: 6 },
            Refusal::BeforeSafePoint { ts: 8, safe_point: 10 },
            Refusal::CheckFailed { index: 1, version: 9, value: Some(b("v")) },
            Refusal::CheckFailed { index: 0, version: 0, value: None },
            Refusal::Locked(vec![locked]),
            Refusal::Conflict { key: b("k"), commit: 9, since: 8 },
            Refusal::AlreadyExists { key: b("k") },
            Refusal::RolledBack(2),
            Refusal::Committed(3),
            Refusal::NotLocked(4),
            Refusal::CommitTooEarly(5),
            Refusal::Deadlock(6),
            Refusal::Broken("b".into()),
        ];
        for r in all {
            let sent = of_refusal(r.clone());
            assert!(sent.code.starts_with("PH") && !sent.what.is_empty() && !sent.hint.is_empty(), "{r}");
            assert_eq!(refusal(sent), r);
        }
    }

    #[test]
    fn requests_and_answers_arrive_as_they_were_sent() {
        let at = Snapshot { at: 8, pass: vec![2, 4] };
        let span = Span { start: b("a"), end: b("b") };
        let clause = Clause { key: true, offset: 3, test: Test::Contains, operand: b("o"), not: true };
        let query = |direction, project| Query {
            span: span.clone(),
            direction,
            limit: 5,
            filter: vec![clause.clone()],
            project,
        };
        let gc = Gc { safe_point: 2, from: b("f"), limit: 3 };
        for r in [
            Request::Do(Op::Gc(gc)),
            Request::Do(Op::Rollback(Rollback { start: 2, keys: vec![b("k")] })),
            Request::Get(b("k"), at.clone()),
            Request::Scan(query(Direction::Backward, Project::Part(2, 3)), at.clone()),
            Request::Scan(query(Direction::Forward, Project::Count), at.clone()),
            Request::Unchanged { range: ReadRange(span.clone()), start: 2, at },
            Request::RawGet(b("k")),
            Request::RawScan(query(Direction::Forward, Project::Keys)),
        ] {
            assert_eq!(request(Some(of_request(r.clone()).expect("sent"))), Ok(r));
        }
        let row = Row { key: b("k"), value: b("v"), version: 3 };
        let silent = Status::Silent { min_commit: 3, secondaries: vec![b("s")] };
        for a in [
            Response::Value(None),
            Response::Value(Some((b("v"), 3))),
            Response::Page(Page { rows: vec![row], count: 1, rest: Some(span) }),
            Response::Done(Answer::Done),
            Response::Done(Answer::Written(4)),
            Response::Done(Answer::Prewritten { min_commit: 5 }),
            Response::Done(Answer::Committed(6)),
            Response::Done(Answer::Locked(vec![None, Some(b("v"))])),
            Response::Done(Answer::Status(Status::Alive { ttl_ms: 1, min_commit: 3 })),
            Response::Done(Answer::Status(silent)),
            Response::Done(Answer::Status(Status::Committed(3))),
            Response::Done(Answer::Status(Status::RolledBack)),
            Response::Done(Answer::Status(Status::Missing)),
            Response::Done(Answer::Secondaries(Secondaries::Locked { min_commit: 3 })),
            Response::Done(Answer::Secondaries(Secondaries::Committed(3))),
            Response::Done(Answer::Secondaries(Secondaries::Missing)),
            Response::Done(Answer::Secondaries(Secondaries::NotAsync)),
            Response::Done(Answer::Collected { next: Some(b("n")) }),
            Response::Done(Answer::Collected { next: None }),
        ] {
            assert_eq!(answer(of_answer(Ok(a.clone()))), Ok(a));
        }
    }
}
