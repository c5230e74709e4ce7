//! A commit as one transaction of etcd. Pure.
//!
//! Checks become compares; the branch for when they don't all hold reads what they are about, in the same instant, and
//! so tells which one failed. Etcd takes 128 operations in a transaction (`--max-txn-ops`), but counts those of a
//! nested one apart, against what the outer left: a greater commit is a transaction of transactions, up to 4,096
//! writes (server/etcdserver/api/v3rpc/key.go, `checkTxnRequest`).

use crate::{
    client::key_range,
    proto::etcdserverpb::{
        Compare, DeleteRangeRequest, PutRequest, RangeRequest, RangeResponse, RequestOp, TxnRequest,
        TxnResponse,
        compare::{CompareResult, CompareTarget, TargetUnion},
        request_op::Request,
        response_op::Response,
    },
};
use bytes::Bytes;
use photon_kv::{Check, Range, Write};

/// Etcd's own limit, unless its operator has raised it.
pub const OPS_MAX: usize = 128;

/// A commit, ready to be sent.
#[derive(Debug)]
pub struct Plan {
    /// What to send.
    pub request: TxnRequest,
    /// True when it can happen only once, however often it is sent.
    pub once: bool,
    /// The checks that are asked, with their places.
    asked: Vec<(usize, Check)>,
}

/// A check that did not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failed {
    /// Its place in the commit.
    pub check: usize,
    /// Since when it has not held at the latest, where that is known.
    pub since: Option<i64>,
}

fn compare(key: Bytes, range_end: Bytes, result: CompareResult, target: TargetUnion) -> Compare {
    let kind = if matches!(target, TargetUnion::ModRevision(_)) {
        CompareTarget::Mod
    } else {
        CompareTarget::Version
    };
    Compare { result: result as i32, target: kind as i32, key, range_end, target_union: Some(target) }
}

/// What a check is about, in etcd's terms; none: of no key, so that nothing is there.
fn about(check: &Check) -> Option<(Bytes, Bytes)> {
    match check {
        Check::Modified(k, _) | Check::Present(k) => (!k.is_empty()).then(|| (k.clone(), Bytes::new())),
        Check::Absent(Range { start, end }) => key_range(start, end),
    }
}

fn compares(check: &Check, home: &Bytes) -> Compare {
    // No key has fewer than no versions.
    let never = |k: Bytes| compare(k, Bytes::new(), CompareResult::Less, TargetUnion::Version(0));
    let Some((key, end)) = about(check) else { return never(home.clone()) };
    match check {
        Check::Modified(_, r) => match i64::try_from(*r) {
            // Etcd says 0 of a key that is not there; absence is no revision.
            Ok(r) if r > 0 => compare(key, end, CompareResult::Equal, TargetUnion::ModRevision(r)),
            _ => never(key),
        },
        Check::Present(_) => compare(key, end, CompareResult::Greater, TargetUnion::Version(0)),
        // Over a range: true when every key has version 0, so when there is none.
        Check::Absent(_) => compare(key, end, CompareResult::Equal, TargetUnion::Version(0)),
    }
}

fn op(request: Request) -> RequestOp {
    RequestOp { request: Some(request) }
}

fn probe(check: &Check, home: &Bytes) -> RequestOp {
    let (key, range_end) = about(check).unwrap_or_else(|| (home.clone(), Bytes::new()));
    op(Request::RequestRange(RangeRequest {
        key,
        range_end,
        limit: 1,
        keys_only: true,
        ..Default::default()
    }))
}

fn write(w: Write) -> RequestOp {
    match w {
        Write::Put(key, value) => op(Request::RequestPut(PutRequest { key, value, ..Default::default() })),
        Write::Delete(key) => {
            op(Request::RequestDeleteRange(DeleteRangeRequest { key, ..Default::default() }))
        }
    }
}

/// Writes in as many nested transactions as are needed, beside `checks` compares.
fn nest(ops: Vec<RequestOp>, checks: usize) -> Option<Vec<RequestOp>> {
    if ops.len() <= OPS_MAX {
        return Some(ops);
    }
    let room = |parts: usize| OPS_MAX - parts.max(checks);
    let parts = (2..OPS_MAX).find(|n| n * room(*n) >= ops.len())?;
    let mut nested = Vec::with_capacity(parts);
    let mut rest = ops.into_iter().peekable();
    while rest.peek().is_some() {
        let success = rest.by_ref().take(room(parts)).collect();
        nested.push(op(Request::RequestTxn(TxnRequest { success, ..Default::default() })));
    }
    Some(nested)
}

/// True when the commit changes what one of its checks demands, so that it cannot pass twice. Only revisions count:
/// they never come back. (A key that must be absent may be made and removed again.)
fn excludes_itself(checks: &[Check], writes: &[Write]) -> bool {
    checks.iter().any(|c| match c {
        Check::Modified(k, _) => writes.iter().any(|w| w.key() == k),
        Check::Present(_) | Check::Absent(_) => false,
    })
}

impl Plan {
    /// Of a commit; `home`: a key to read where no other is. An error says in words why etcd would not take it.
    pub fn new(checks: Vec<Check>, writes: Vec<Write>, home: &Bytes) -> Result<Plan, String> {
        let once = excludes_itself(&checks, &writes);
        let always = |c: &Check| matches!(c, Check::Absent(_)) && about(c).is_none();
        let asked: Vec<(usize, Check)> = checks.into_iter().enumerate().filter(|(_, c)| !always(c)).collect();
        if asked.len() >= OPS_MAX {
            return Err(format!("{} checks are more than etcd takes in a transaction", asked.len()));
        }
        let count = writes.len();
        let mut success = nest(writes.into_iter().map(write).collect(), asked.len())
            .ok_or_else(|| format!("{count} writes are more than etcd takes in a transaction"))?;
        if success.is_empty() {
            // Without a read etcd answers from what one member has, which may be old.
            let read = RangeRequest { key: home.clone(), keys_only: true, ..Default::default() };
            success.push(op(Request::RequestRange(read)));
        }
        let request = TxnRequest {
            compare: asked.iter().map(|(_, c)| compares(c, home)).collect(),
            success,
            failure: asked.iter().map(|(_, c)| probe(c, home)).collect(),
        };
        Ok(Plan { request, once, asked })
    }

    /// The first check that did not hold, from the answer of a transaction that failed.
    pub fn failed(&self, answer: &TxnResponse) -> Option<Failed> {
        let found = answer.responses.iter().map(|r| match &r.response {
            Some(Response::ResponseRange(r)) => r.clone(),
            _ => RangeResponse::default(),
        });
        self.asked.iter().zip(found).find_map(|((check, c), found)| {
            let kv = found.kvs.first();
            let holds = match c {
                Check::Modified(k, r) => {
                    !k.is_empty() && *r > 0 && kv.is_some_and(|kv| kv.mod_revision as u64 == *r)
                }
                Check::Present(k) => !k.is_empty() && kv.is_some(),
                Check::Absent(_) => kv.is_none(),
            };
            (!holds).then(|| Failed { check: *check, since: kv.map(|kv| kv.mod_revision) })
        })
    }
}

/// Why no store takes these writes.
pub fn wrong(writes: &[Write]) -> Option<&'static str> {
    let mut keys: Vec<&Bytes> = writes.iter().map(Write::key).collect();
    keys.sort();
    if keys.windows(2).any(|w| w[0] == w[1]) {
        return Some("a key is written twice");
    }
    keys.first().is_some_and(|k| k.is_empty()).then_some("a key is empty")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn home() -> Bytes {
        "home".into()
    }

    /// `checkTxnRequest` of etcd.
    fn allowed(r: &TxnRequest, max: usize) -> bool {
        let count = r.compare.len().max(r.success.len()).max(r.failure.len());
        count <= max
            && r.success.iter().chain(&r.failure).all(|o| match &o.request {
                Some(Request::RequestTxn(t)) => allowed(t, max - count),
                _ => true,
            })
    }

    fn writes(r: &TxnRequest) -> usize {
        let one = |o: &RequestOp| match &o.request {
            Some(Request::RequestTxn(t)) => writes(t),
            Some(Request::RequestRange(_)) | None => 0,
            Some(_) => 1,
        };
        r.success.iter().map(one).sum()
    }

    #[test]
    fn every_commit_that_is_taken_fits() {
        let mut greatest = 0;
        for checks in [0, 1, 20, 64, 100, 127] {
            for count in [0, 1, 27, 28, 127, 128, 129, 200, 1000, 2700, 4096, 4097] {
                let c = (0..checks).map(|i| Check::Present(format!("c{i}").into())).collect();
                let w = (0..count).map(|i| Write::Delete(format!("w{i}").into())).collect();
                match Plan::new(c, w, &home()) {
                    Err(_) => assert!(count > 127, "{checks} {count}"),
                    Ok(p) => {
                        assert!(allowed(&p.request, OPS_MAX), "{checks} {count}");
                        assert_eq!(writes(&p.request), count);
                        greatest = greatest.max(count);
                    }
                }
            }
        }
        assert_eq!(greatest, 4096);
        assert!(Plan::new(vec![Check::Present("a".into()); 128], vec![], &home()).is_err());
    }

    #[test]
    fn only_a_revision_makes_a_commit_happen_once() {
        let put = || vec![Write::Put("a".into(), "1".into())];
        let once = |c: Check, w| Plan::new(vec![c], w, &home()).expect("fits").once;
        assert!(once(Check::Modified("a".into(), 7), put()));
        assert!(once(Check::Modified("a".into(), 7), vec![Write::Delete("a".into())]));
        assert!(!once(Check::Modified("b".into(), 7), put()), "b does not change");
        assert!(!once(Check::absent("a"), put()), "somebody may remove it again");
        assert!(
            !once(Check::Present("a".into()), vec![Write::Delete("a".into())]),
            "somebody may make it again"
        );
    }

    #[test]
    fn writes_that_no_store_takes() {
        let put = |k: &'static str| Write::Put(k.into(), "".into());
        assert!(wrong(&[put("a"), put("b")]).is_none());
        assert!(wrong(&[put("a"), Write::Delete("a".into())]).is_some());
        assert!(wrong(&[put("a"), put("")]).is_some());
    }
}
