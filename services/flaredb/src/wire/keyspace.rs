//! Keyspaces: whose keys are whose. A request names one, and touches nothing outside of it.
//!
//! | keyspace | keys | who |
//! |---|---|---|
//! | `project/NAME` | groups that begin with `p/NAME/` | whoever has a role in the project: viewers read, editors write |
//! | `cluster` | groups that begin with `c/` | whoever has a role in the whole cloud |
//! | `all` | every key | the operator by certificate |
//!
//! A region may hold keys of several; what is told of one is cut to the keyspace. A transaction that the operator
//! runs over several can leave locks whose primary is elsewhere: whoever meets one can't ask there, so the
//! server does it for them.

use crate::{
    LockInfo, Refusal,
    client::Request,
    key::{Mode, Span},
    model::{Descriptor, Op, region},
    refusal::Outcome,
};
use bytes::Bytes;
use photon_auth::{Action, Caller, Gate, Kind, Proof, Target, Verb};
use photon_base::Name;

/// The kind under which roles are asked for.
const KIND: &str = "flaredb";

/// A named part of all keys.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Keyspace {
    /// Of a project.
    Project(Name),
    /// Of the cloud as a whole.
    Cluster,
    /// Everything.
    All,
}

impl std::fmt::Display for Keyspace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Keyspace::Project(p) => write!(f, "project/{p}"),
            Keyspace::Cluster => f.write_str("cluster"),
            Keyspace::All => f.write_str("all"),
        }
    }
}

impl std::str::FromStr for Keyspace {
    type Err = Refusal;

    fn from_str(text: &str) -> Outcome<Keyspace> {
        let wrong = || Refusal::Malformed("the keyspace is not project/NAME, cluster or all".into());
        match text {
            "cluster" => Ok(Keyspace::Cluster),
            "all" => Ok(Keyspace::All),
            _ => {
                let name = text.strip_prefix("project/").and_then(|n| n.parse().ok());
                name.map(Keyspace::Project).ok_or_else(wrong)
            }
        }
    }
}

impl Keyspace {
    /// What groups of its keys begin with.
    pub fn prefix(&self) -> String {
        match self {
            Keyspace::Project(p) => format!("p/{p}/"),
            Keyspace::Cluster => "c/".into(),
            Keyspace::All => String::new(),
        }
    }

    /// Its keys of a mode.
    pub fn span(&self, mode: Mode) -> Span {
        Span::prefix(mode, self.prefix().as_bytes())
    }

    fn holds(&self, key: &[u8]) -> bool {
        *self == Keyspace::All || self.span(Mode::Raw).contains(key) || self.span(Mode::Txn).contains(key)
    }

    fn covers(&self, span: &Span) -> bool {
        *self == Keyspace::All || self.span(Mode::Raw).covers(span) || self.span(Mode::Txn).covers(span)
    }

    /// Refuses what reaches outside.
    pub(super) fn admit(&self, request: &Request) -> Outcome<()> {
        if *self == Keyspace::All {
            return Ok(());
        }
        let outside = || Refusal::Denied(format!("a key or range lies outside of keyspace {self}"));
        let inside = match request {
            Request::Do(op) => {
                let mut keys = region::keys(op);
                let mut spans = Vec::new();
                match op {
                    Op::Prewrite(p) => {
                        keys.push(&p.primary);
                        keys.extend(&p.secondaries);
                        spans.extend(p.reads.iter().map(region::span_read));
                    }
                    Op::Lock(l) => keys.push(&l.primary),
                    Op::Gc(_) | Op::Split(_) | Op::PrepareMerge(_) | Op::CommitMerge(_) => {
                        return Err(Refusal::Denied("that is the operator's".into()));
                    }
                    _ => {}
                }
                keys.into_iter().all(|k| self.holds(k)) && spans.iter().all(|s| self.covers(s))
            }
            read => read.reads().is_some_and(|(span, _)| self.covers(&span)),
        };
        if inside { Ok(()) } else { Err(outside()) }
    }

    /// Refuses a place outside.
    pub(super) fn admit_place(&self, key: &Bytes, below: bool) -> Outcome<()> {
        let at_the_end = |m| self.span(m).end == *key;
        let inside = self.holds(key) || (below && [Mode::Raw, Mode::Txn].into_iter().any(at_the_end));
        match inside {
            true => Ok(()),
            false => Err(Refusal::Denied(format!("a key lies outside of keyspace {self}"))),
        }
    }

    /// What of a region may be told: borders of others are keys of others. `near` says which mode is meant.
    pub(super) fn cut(&self, d: Descriptor, near: &[u8]) -> Descriptor {
        if *self == Keyspace::All {
            return d;
        }
        let mode = if near.first() == Some(&(Mode::Txn as u8)) { Mode::Txn } else { Mode::Raw };
        let span = d.span().within(&self.span(mode));
        if span.is_empty() {
            // Nothing of it. Both bounds empty would say everything.
            let nowhere = self.span(mode).start;
            return Descriptor { start: nowhere.clone(), end: nowhere, ..d };
        }
        Descriptor { start: span.start, end: span.end, ..d }
    }

    /// True when the fate of the lock is decided outside.
    pub(super) fn is_foreign(&self, lock: &LockInfo) -> bool {
        !self.holds(&lock.primary)
    }
}

/// Who lets callers in.
#[derive(Clone)]
pub enum Door {
    /// Everybody may do everything: alone on loopback.
    Open,
    /// The cloud's roles.
    Guarded(Gate),
}

impl Door {
    /// Refuses a caller who may not read, or change, a keyspace.
    pub(super) async fn admit(
        &self,
        caller: Option<&Caller>,
        space: &Keyspace,
        changes: bool,
    ) -> Outcome<()> {
        let Door::Guarded(gate) = self else { return Ok(()) };
        let caller = caller.ok_or_else(|| Refusal::Denied("nobody is known to ask".into()))?;
        if caller.identity.kind == Kind::Operator && caller.proof == Proof::Certificate {
            return Ok(());
        }
        let project = match space {
            Keyspace::Project(p) => Some(p.clone()),
            Keyspace::Cluster => None,
            Keyspace::All => return Err(Refusal::Denied("the keyspace \"all\" is the operator's".into())),
        };
        self.ask(gate, caller, project, changes).await
    }

    /// Refuses a caller who may not look at, or change, regions.
    pub(super) async fn admit_admin(&self, caller: Option<&Caller>, changes: bool) -> Outcome<()> {
        let Door::Guarded(gate) = self else { return Ok(()) };
        let caller = caller.ok_or_else(|| Refusal::Denied("nobody is known to ask".into()))?;
        self.ask(gate, caller, None, changes).await
    }

    async fn ask(&self, gate: &Gate, who: &Caller, project: Option<Name>, changes: bool) -> Outcome<()> {
        let action = Action { kind: KIND, verb: if changes { Verb::Update } else { Verb::Get } };
        let allowed = gate.check(who, action, Target { project, name: None }).await;
        allowed.map(drop).map_err(|e| Refusal::Denied(format!("{}; {}", e.what, e.why)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        key,
        model::{command::*, read::Query},
    };

    fn demo() -> Keyspace {
        "project/demo".parse().expect("keyspace")
    }

    fn k(mode: Mode, user: &str) -> Bytes {
        key::key(mode, user.as_bytes()).expect("short")
    }

    #[test]
    fn names_and_their_prefixes() {
        for (text, prefix) in [("project/demo", "p/demo/"), ("cluster", "c/"), ("all", "")] {
            let space: Keyspace = text.parse().expect("a keyspace");
            assert_eq!((space.to_string(), space.prefix()), (text.to_string(), prefix.to_string()));
        }
        for wrong in ["", "project", "project/", "project/a/b", "project/A", "Cluster", "p/demo/"] {
            assert!(wrong.parse::<Keyspace>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn nothing_outside_is_touched() {
        let (mine, theirs) = (k(Mode::Txn, "p/demo/a"), k(Mode::Txn, "p/demo-2/a"));
        let write = |key: &Bytes| RawWrite { key: key.clone(), value: None };
        let raw = |key: &Bytes| RawCommit { checks: vec![], writes: vec![write(key)] };
        let put = |key: &Bytes| Mutation { key: key.clone(), ..Mutation::default() };
        let prewrite = |p: &Bytes, m: &Bytes, s: &Bytes, r: Span| Prewrite {
            primary: p.clone(),
            mutations: vec![put(m)],
            secondaries: vec![s.clone()],
            reads: vec![ReadSpan { start: r.start, end: r.end }],
            ..Prewrite::default()
        };
        let lock = |p: &Bytes, k: &Bytes| {
            Op::Lock(PessimisticLock { primary: p.clone(), keys: vec![k.clone()], ..Default::default() })
        };
        let all = Span::between(Mode::Txn, &[], &[]);
        let inside = demo().span(Mode::Txn);
        let check = |key: Bytes| CheckStatus { primary: key, ..CheckStatus::default() };
        for (request, fine) in [
            (Request::RawGet(k(Mode::Raw, "p/demo/a")), true),
            (Request::RawGet(k(Mode::Raw, "p/demo")), false),
            (Request::RawGet(k(Mode::Raw, "c/a")), false),
            (Request::RawScan(Query::all(demo().span(Mode::Raw))), true),
            (Request::RawScan(Query::all(Span { end: Bytes::new(), ..inside.clone() })), false),
            (Request::RawScan(Query::all(Span::all())), false),
            (Request::Do(Op::Raw(raw(&k(Mode::Raw, "p/demo/a")))), true),
            (Request::Do(Op::Raw(raw(&k(Mode::Raw, "p/demon/a")))), false),
            (Request::Do(Op::Prewrite(prewrite(&mine, &mine, &mine, inside.clone()))), true),
            (Request::Do(Op::Prewrite(prewrite(&theirs, &mine, &mine, inside.clone()))), false),
            (Request::Do(Op::Prewrite(prewrite(&mine, &theirs, &mine, inside.clone()))), false),
            (Request::Do(Op::Prewrite(prewrite(&mine, &mine, &theirs, inside))), false),
            (Request::Do(Op::Prewrite(prewrite(&mine, &mine, &mine, all))), false),
            (Request::Do(lock(&mine, &mine)), true),
            (Request::Do(lock(&theirs, &mine)), false),
            (Request::Do(Op::Status(check(mine.clone()))), true),
            (Request::Do(Op::Status(check(theirs.clone()))), false),
            (Request::Do(Op::Gc(Gc::default())), false),
            (Request::Do(Op::Split(Split { at: mine, id: 9 })), false),
        ] {
            assert_eq!(demo().admit(&request).is_ok(), fine, "{request:?}");
            assert_eq!(Keyspace::All.admit(&request), Ok(()));
        }
    }

    #[test]
    fn borders_of_others_are_not_told() {
        let span = demo().span(Mode::Txn);
        let region =
            |start: Bytes, end: Bytes| Descriptor { id: 4, start, end, version: 2, conf: 1, members: vec![] };
        let near = k(Mode::Txn, "p/demo/a");
        let whole = demo().cut(region(Bytes::new(), Bytes::new()), &near);
        assert_eq!((whole.span(), whole.id, whole.version), (span.clone(), 4, 2));
        let middle = k(Mode::Txn, "p/demo/m");
        let right = demo().cut(region(middle.clone(), k(Mode::Txn, "p/z")), &near);
        assert_eq!(right.span(), Span { start: middle, end: span.end.clone() });
        let foreign = demo().cut(region(k(Mode::Txn, "p/z"), Bytes::new()), &near);
        assert!(foreign.span().is_empty());
        assert!(demo().admit_place(&span.end, true).is_ok() && demo().admit_place(&span.end, false).is_err());
        assert!(demo().admit_place(&Bytes::new(), true).is_err());
    }
}
