//! What can be said about a request without looking at the state: shape, limits, and whether the
//! caller may name the keys in it. The machine says it again when the command is applied.

use super::layout::fits;
use crate::{
    EtcdError, EtcdResult, Scope, Span,
    wire::etcdserverpb::{
        DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
        range_request::{SortOrder, SortTarget},
        request_op::Request,
    },
};
use bytes::Bytes;
use std::collections::HashSet;

/// Most compares, and most operations of a branch, in one transaction (etcd's `--max-txn-ops`).
pub const MAX_TXN_OPS: usize = 128;

/// Longest time to live of a lease, seconds.
pub const MAX_LEASE_TTL: i64 = 9_000_000_000;

/// Shortest: one and a half election timeouts, as etcd rounds it.
pub const MIN_LEASE_TTL: i64 = 2;

fn named(scope: Scope, key: &Bytes) -> EtcdResult<()> {
    if key.is_empty() {
        Err(EtcdError::EmptyKey)
    } else if scope.may_name(key) {
        Ok(())
    } else {
        Err(EtcdError::PermissionDenied)
    }
}

/// A key alone must be the caller's to name; of a range the caller sees the part that is.
fn spanned(scope: Scope, key: &Bytes, range_end: &Bytes) -> EtcdResult<()> {
    match (key.is_empty(), range_end.is_empty()) {
        (true, _) => Err(EtcdError::EmptyKey),
        (false, true) => named(scope, key),
        (false, false) => Ok(()),
    }
}

/// A range request.
pub fn range(scope: Scope, r: &RangeRequest) -> EtcdResult<()> {
    spanned(scope, &r.key, &r.range_end)?;
    if SortOrder::try_from(r.sort_order).is_err() || SortTarget::try_from(r.sort_target).is_err() {
        return Err(EtcdError::InvalidSortOption);
    }
    Ok(())
}

/// A put.
pub fn put(scope: Scope, r: &PutRequest) -> EtcdResult<()> {
    if r.key.is_empty() {
        return Err(EtcdError::EmptyKey);
    }
    if r.ignore_value && !r.value.is_empty() {
        return Err(EtcdError::ValueProvided);
    }
    if r.ignore_lease && r.lease != 0 {
        return Err(EtcdError::LeaseProvided);
    }
    if !fits(&r.key) {
        return Err(EtcdError::RequestTooLarge);
    }
    named(scope, &r.key)
}

/// A deletion.
pub fn delete_range(scope: Scope, r: &DeleteRangeRequest) -> EtcdResult<()> {
    spanned(scope, &r.key, &r.range_end)
}

/// A transaction with all that is nested in it.
pub fn txn(scope: Scope, r: &TxnRequest) -> EtcdResult<()> {
    shape(r, MAX_TXN_OPS)?;
    writes(&r.success)?;
    writes(&r.failure)?;
    permitted(scope, r)
}

/// Shape comes before permission everywhere, as in etcd; so does a nested operation's.
fn shape(r: &TxnRequest, limit: usize) -> EtcdResult<()> {
    let most = r.compare.len().max(r.success.len()).max(r.failure.len());
    if most > limit {
        return Err(EtcdError::TooManyOps);
    }
    if r.compare.iter().any(|c| c.key.is_empty()) {
        return Err(EtcdError::EmptyKey);
    }
    for op in r.success.iter().chain(&r.failure) {
        match &op.request {
            Some(Request::RequestRange(r)) => range(Scope::Operator, r)?,
            Some(Request::RequestPut(r)) => put(Scope::Operator, r)?,
            Some(Request::RequestDeleteRange(r)) => delete_range(Scope::Operator, r)?,
            Some(Request::RequestTxn(r)) => shape(r, limit - most)?,
            None => return Err(EtcdError::KeyNotFound),
        }
    }
    Ok(())
}

fn permitted(scope: Scope, r: &TxnRequest) -> EtcdResult<()> {
    if scope == Scope::Operator {
        return Ok(());
    }
    for c in &r.compare {
        spanned(scope, &c.key, &c.range_end)?;
    }
    for op in r.success.iter().chain(&r.failure) {
        match &op.request {
            Some(Request::RequestRange(r)) => range(scope, r)?,
            Some(Request::RequestPut(r)) => put(scope, r)?,
            Some(Request::RequestDeleteRange(r)) => delete_range(scope, r)?,
            Some(Request::RequestTxn(r)) => permitted(scope, r)?,
            None => {}
        }
    }
    Ok(())
}

/// True when a transaction only reads.
pub fn is_read_only(r: &TxnRequest) -> bool {
    r.success.iter().chain(&r.failure).all(|op| match &op.request {
        Some(Request::RequestRange(_)) | None => true,
        Some(Request::RequestTxn(t)) => is_read_only(t),
        Some(Request::RequestPut(_) | Request::RequestDeleteRange(_)) => false,
    })
}

/// Keys put and spans deleted by a list of operations.
#[derive(Default)]
struct Written {
    puts: HashSet<Bytes>,
    deletes: Vec<Span>,
}

impl Written {
    fn deletes(&self, key: &Bytes) -> bool {
        self.deletes.iter().any(|s| s.contains(key))
    }
}

/// No key may be put twice, or put and deleted, within what one transaction can carry out. The two
/// branches of a nested transaction exclude each other and may name the same keys.
fn writes(ops: &[RequestOp]) -> EtcdResult<Written> {
    let mut all = Written::default();
    for op in ops {
        if let Some(Request::RequestDeleteRange(d)) = &op.request {
            all.deletes.push(Span::of(&d.key, &d.range_end));
        }
    }
    for op in ops {
        let Some(Request::RequestTxn(t)) = &op.request else { continue };
        let (then, or) = (writes(&t.success)?, writes(&t.failure)?);
        if then.puts.iter().chain(&or.puts).any(|k| all.puts.contains(k) || all.deletes(k)) {
            return Err(EtcdError::DuplicateKey);
        }
        all.puts.extend(then.puts);
        all.puts.extend(or.puts);
        all.deletes.extend(then.deletes);
        all.deletes.extend(or.deletes);
    }
    for op in ops {
        if let Some(Request::RequestPut(p)) = &op.request
            && (all.deletes(&p.key) || !all.puts.insert(p.key.clone()))
        {
            return Err(EtcdError::DuplicateKey);
        }
    }
    Ok(all)
}

/// The time to live that a lease gets when asked for `ttl`.
pub fn lease_ttl(ttl: i64) -> EtcdResult<i64> {
    if ttl > MAX_LEASE_TTL { Err(EtcdError::LeaseTtlTooLarge) } else { Ok(ttl.max(MIN_LEASE_TTL)) }
}
