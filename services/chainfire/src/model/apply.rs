//! Applying commands: each one to a [`Batch`] of writes that see one another, at one revision each.

use super::{auth::TokenEffect, check, layout::*, members::MemberChange, read::Reader, rules::Rules};
use crate::{
    EtcdError, EtcdResult, Scope, Span,
    command::{AuthChange, AuthCommand, Check, Checkpoint, Command, Commit, Grant, Op, Revoke},
    wire::{
        etcdserverpb::{
            AlarmMember, AlarmRequest, CompactionRequest, DeleteRangeRequest, DeleteRangeResponse,
            PutRequest, PutResponse, RequestOp, ResponseHeader, ResponseOp, TxnRequest, TxnResponse,
            request_op::Request, response_op::Response,
        },
        mvccpb::KeyValue,
    },
};
use bytes::Bytes;
use photon_kv::{
    Direction,
    engine::{KeyRange, Overlay, View},
};
use prost::Message;
use std::sync::Arc;

/// What happened to a key in a revision.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// The new version; of a deletion only key and `mod_revision`.
    pub kv: KeyValue,
    /// False: it was deleted.
    pub put: bool,
    /// The version before the revision.
    pub prev: Option<KeyValue>,
}

/// All changes of one revision, in their order.
#[derive(Clone, Debug, PartialEq)]
pub struct Changes {
    /// The revision.
    pub revision: i64,
    /// At least one.
    pub changes: Vec<Change>,
}

impl Change {
    /// Memory that this takes, roughly.
    pub fn bytes(&self) -> usize {
        let one = |kv: &KeyValue| kv.key.len() + kv.value.len() + 96;
        one(&self.kv) + self.prev.as_ref().map_or(0, one)
    }
}

impl Changes {
    /// Memory that this takes, roughly.
    pub fn bytes(&self) -> usize {
        self.changes.iter().map(Change::bytes).sum::<usize>() + 64
    }
}

/// Answer to a command. Headers carry only the revision.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, reason = "named like etcd's answers")]
pub enum Answer {
    Put(PutResponse),
    DeleteRange(DeleteRangeResponse),
    Txn(TxnResponse),
    /// The store's revision after the command: compactions, revocations, commits.
    Revision(i64),
    LeaseGrant {
        revision: i64,
        ttl: i64,
    },
    Alarms(Vec<AlarmMember>),
}

/// What the lease timers must learn of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseEffect {
    /// A lease was made.
    Granted { id: i64, ttl: i64, left: i64, renewals: u64, system: bool },
    /// What a lease has left was recorded (0: all).
    Recorded { id: i64, left: i64, renewals: u64 },
    /// A lease ended.
    Revoked { id: i64 },
}

/// Commands applied so far, not yet stored.
pub struct Batch {
    over: Overlay,
    revision: i64,
    compacted: i64,
    /// What watchers will see.
    pub history: Vec<Changes>,
    /// What the lease timers will learn.
    pub leases: Vec<LeaseEffect>,
    /// The rules in force.
    pub rules: Arc<Rules>,
    /// What this member's tokens will learn.
    pub tokens: Vec<TokenEffect>,
}

fn header(revision: i64) -> Option<ResponseHeader> {
    Some(ResponseHeader { revision, ..Default::default() })
}

impl Batch {
    /// On top of a state.
    pub fn new(base: Arc<dyn View>, revision: i64, compacted: i64, rules: Arc<Rules>) -> Batch {
        let (history, leases, tokens) = (Vec::new(), Vec::new(), Vec::new());
        Batch { over: Overlay::new(base), revision, compacted, history, leases, rules, tokens }
    }

    /// Revision and compaction watermark after what was applied so far.
    pub fn position(&self) -> (i64, i64) {
        (self.revision, self.compacted)
    }

    /// The collected writes.
    pub fn into_overlay(self) -> Overlay {
        self.over
    }

    /// Applies a command, or refuses it and changes nothing. The outer error means that the state
    /// cannot be read.
    pub fn apply(&mut self, command: &Command) -> EtcdResult<Answer> {
        let scope = command.scope();
        if let Some(op) = &command.op {
            let keys = |id| attached(&self.over, id);
            self.rules.auth.permit(&command.login(), op, &keys)?;
            self.rules.permit(op)?;
        }
        match &command.op {
            Some(Op::Put(r)) => {
                check::put(scope, r)?;
                self.require(scope, r)?;
                self.write(|tx| tx.put(scope, r)).map(Answer::Put)
            }
            Some(Op::DeleteRange(r)) => {
                check::delete_range(scope, r)?;
                self.write(|tx| tx.delete_range(scope, r)).map(Answer::DeleteRange)
            }
            Some(Op::Txn(r)) => {
                check::txn(scope, r)?;
                self.txn(scope, r).map(Answer::Txn)
            }
            Some(Op::Compact(r)) => self.compact(r),
            Some(Op::LeaseGrant(r)) => self.grant(scope, r),
            Some(Op::LeaseRevoke(r)) => self.revoke(scope, r),
            Some(Op::Commit(r)) => self.commit(r),
            Some(Op::LeaseCheckpoint(r)) => self.checkpoint(r),
            Some(Op::Auth(r)) => self.auth(r),
            Some(Op::Alarm(r)) => self.alarm(scope, r),
            Some(Op::Members(r)) => self.members(scope, r),
            None => Err(EtcdError::Unsupported("an empty command".into())),
        }
    }

    fn reader(&self) -> Reader<'_> {
        Reader { view: &self.over, revision: self.revision, compacted: self.compacted }
    }

    /// Runs one command's writes at the next revision. `f` must not fail after its first write, except
    /// when the disk does: everything that can be refused is refused before.
    fn write<T>(&mut self, f: impl FnOnce(&mut Tx<'_>) -> EtcdResult<T>) -> EtcdResult<T> {
        let begin = self.revision;
        let mut tx = Tx { over: &mut self.over, begin, compacted: self.compacted, changes: Vec::new() };
        let out = f(&mut tx)?;
        let changes = tx.changes;
        if !changes.is_empty() {
            self.revision = begin + 1;
            self.history.push(Changes { revision: self.revision, changes });
        }
        Ok(out)
    }

    /// What a put needs of the state before the command: its lease, and the old pair if it keeps a
    /// part of it.
    fn require(&self, scope: Scope, r: &PutRequest) -> EtcdResult<()> {
        self.require_lease(scope, &r.key, r.lease)?;
        self.require_old(scope, r)
    }

    /// The same in the order in which etcd looks within a transaction.
    fn require_in_txn(&self, scope: Scope, r: &PutRequest) -> EtcdResult<()> {
        self.require_old(scope, r)?;
        self.require_lease(scope, &r.key, r.lease)
    }

    fn require_old(&self, scope: Scope, r: &PutRequest) -> EtcdResult<()> {
        if r.ignore_value || r.ignore_lease {
            let old = self.reader().latest(&r.key)?.ok_or(EtcdError::KeyNotFound)?;
            if r.ignore_lease {
                // Keeping a lease is attaching to it.
                self.require_lease(scope, &r.key, old.lease)?;
            }
        }
        Ok(())
    }

    fn require_lease(&self, scope: Scope, key: &Bytes, id: i64) -> EtcdResult<()> {
        // Keys of the cloud must not hang on a lease that a tenant can end.
        if id != 0 && !self.lease(scope, id)?.system && crate::scope::is_reserved(key) {
            return Err(EtcdError::LeaseNotFound);
        }
        Ok(())
    }

    /// A lease as the caller sees it.
    fn lease(&self, scope: Scope, id: i64) -> EtcdResult<LeaseRecord> {
        let b = self.over.get(LEASE, &lease_key(id))?.ok_or(EtcdError::LeaseNotFound)?;
        let record =
            LeaseRecord::decode(b).map_err(|e| EtcdError::Internal(format!("a stored lease: {e}")))?;
        if record.system && scope == Scope::Tenant { Err(EtcdError::LeaseNotFound) } else { Ok(record) }
    }

    fn txn(&mut self, scope: Scope, r: &TxnRequest) -> EtcdResult<TxnResponse> {
        let mut path = Vec::new();
        self.choose(scope, r, &mut path)?;
        if !check::is_read_only(r) {
            self.check_chosen(r, &mut path.iter().copied(), &|b, op| match op {
                Request::RequestPut(p) => b.require_in_txn(scope, p),
                _ => Ok(()),
            })?;
        }
        self.check_chosen(r, &mut path.iter().copied(), &|b, op| match op {
            Request::RequestRange(q) => b.reader().resolve(q.revision).map(drop),
            _ => Ok(()),
        })?;
        let mut answer = self.write(|tx| tx.txn(scope, r, &mut path.iter().copied()))?;
        answer.header = header(self.revision);
        Ok(answer)
    }

    /// Decides all branches by the state before the transaction, the nested ones too, in preorder.
    fn choose(&self, scope: Scope, r: &TxnRequest, path: &mut Vec<bool>) -> EtcdResult<()> {
        let yes = self.reader().holds(scope, &r.compare)?;
        path.push(yes);
        for op in if yes { &r.success } else { &r.failure } {
            if let Some(Request::RequestTxn(t)) = &op.request {
                self.choose(scope, t, path)?;
            }
        }
        Ok(())
    }

    fn check_chosen(
        &self,
        r: &TxnRequest,
        path: &mut impl Iterator<Item = bool>,
        f: &dyn Fn(&Batch, &Request) -> EtcdResult<()>,
    ) -> EtcdResult<()> {
        for op in branch(r, path) {
            match &op.request {
                Some(Request::RequestTxn(t)) => self.check_chosen(t, path, f)?,
                Some(other) => f(self, other)?,
                None => {}
            }
        }
        Ok(())
    }

    fn compact(&mut self, r: &CompactionRequest) -> EtcdResult<Answer> {
        if r.revision <= self.compacted {
            return Err(EtcdError::Compacted);
        }
        if r.revision > self.revision {
            return Err(EtcdError::FutureRevision);
        }
        self.compacted = r.revision;
        Ok(Answer::Revision(self.revision))
    }

    fn grant(&mut self, scope: Scope, r: &Grant) -> EtcdResult<Answer> {
        let ttl = check::lease_ttl(r.ttl)?;
        if r.id == 0 {
            return Err(EtcdError::LeaseNotFound);
        }
        let key = lease_key(r.id);
        if self.over.get(LEASE, &key)?.is_some() {
            return Err(EtcdError::LeaseExists);
        }
        let system = scope == Scope::Operator;
        self.over.put(LEASE, key, LeaseRecord { ttl, system, ..Default::default() }.encode_to_vec());
        self.leases.push(LeaseEffect::Granted { id: r.id, ttl, left: 0, renewals: 0, system });
        Ok(Answer::LeaseGrant { revision: self.revision, ttl })
    }

    fn revoke(&mut self, scope: Scope, r: &Revoke) -> EtcdResult<Answer> {
        let record = self.lease(scope, r.id)?;
        if r.unless_renewed > 0 && record.renewals + 1 != r.unless_renewed {
            return Ok(Answer::Revision(self.revision));
        }
        let keys = attached(&self.over, r.id)?;
        self.write(|tx| keys.into_iter().try_for_each(|k| tx.delete(&k)))?;
        self.over.remove(LEASE, lease_key(r.id));
        self.leases.push(LeaseEffect::Revoked { id: r.id });
        Ok(Answer::Revision(self.revision))
    }

    /// Leases that are gone meanwhile are left out.
    fn checkpoint(&mut self, r: &Checkpoint) -> EtcdResult<Answer> {
        for l in &r.leases {
            let mut record = match self.lease(Scope::Operator, l.id) {
                Ok(r) => r,
                Err(EtcdError::LeaseNotFound) => continue,
                Err(e) => return Err(e),
            };
            if l.seconds <= 0 {
                record.left = 0;
                record.renewals += 1;
            } else if l.renewals == record.renewals {
                record.left = l.seconds.min(record.ttl);
            }
            self.over.put(LEASE, lease_key(l.id), record.encode_to_vec());
            let (left, renewals) = (record.left, record.renewals);
            self.leases.push(LeaseEffect::Recorded { id: l.id, left, renewals });
        }
        Ok(Answer::Revision(self.revision))
    }

    fn auth(&mut self, r: &AuthCommand) -> EtcdResult<Answer> {
        let change = r.change.as_ref().ok_or_else(|| EtcdError::Unsupported("an empty change".into()))?;
        let login = matches!(change, AuthChange::Authenticate(_));
        self.tokens.extend(Arc::make_mut(&mut self.rules).auth.change(change)?);
        if !login {
            self.over.put(META, RULES, self.rules.encode_to_vec());
        }
        Ok(Answer::Revision(self.revision))
    }

    fn alarm(&mut self, scope: Scope, r: &AlarmRequest) -> EtcdResult<Answer> {
        if scope != Scope::Operator {
            return Err(EtcdError::PermissionDenied);
        }
        let (alarms, changed) = Arc::make_mut(&mut self.rules).alarm(r)?;
        if changed {
            self.over.put(META, RULES, self.rules.encode_to_vec());
        }
        Ok(Answer::Alarms(alarms))
    }

    fn members(&mut self, scope: Scope, r: &MemberChange) -> EtcdResult<Answer> {
        if scope != Scope::Operator {
            return Err(EtcdError::PermissionDenied);
        }
        if Arc::make_mut(&mut self.rules).change_members(r)? {
            self.over.put(META, RULES, self.rules.encode_to_vec());
        }
        Ok(Answer::Revision(self.revision))
    }

    fn commit(&mut self, r: &Commit) -> EtcdResult<Answer> {
        for (i, c) in r.checks.iter().enumerate() {
            if !self.check_holds(c)? {
                return Err(EtcdError::CheckFailed(i));
            }
        }
        let mut keys: Vec<&Bytes> = r.writes.iter().map(|w| &w.key).collect();
        keys.sort();
        if keys.windows(2).any(|w| w[0] == w[1]) {
            return Err(EtcdError::Unsupported("a key is written twice".into()));
        }
        if let Some(w) = r.writes.iter().find(|w| w.key.is_empty() || !fits(&w.key)) {
            return Err(EtcdError::Unsupported(format!("a key of {} bytes", w.key.len())));
        }
        self.write(|tx| {
            r.writes.iter().try_for_each(|w| match &w.value {
                Some(v) => {
                    let old = tx.reader().latest(&w.key)?;
                    tx.set(w.key.clone(), v.clone(), 0, old)
                }
                None => tx.delete(&w.key),
            })
        })?;
        Ok(Answer::Revision(self.revision))
    }

    fn check_holds(&self, c: &Check) -> EtcdResult<bool> {
        match c.kind {
            0 => Ok(self.reader().latest(&c.key)?.is_some_and(|kv| kv.mod_revision as u64 == c.revision)),
            1 => Ok(self.over.get(LATEST, &c.key)?.is_some()),
            2 => {
                let span = Span::from(photon_kv::Range { start: c.key.clone(), end: c.end.clone() });
                Ok(self.reader().scan(span, self.revision, Direction::Forward).next().transpose()?.is_none())
            }
            k => Err(EtcdError::Unsupported(format!("a condition of kind {k}"))),
        }
    }
}

/// The operations of the branch that `path` chose.
fn branch<'r>(r: &'r TxnRequest, path: &mut impl Iterator<Item = bool>) -> &'r [RequestOp] {
    if path.next().unwrap_or(false) { &r.success } else { &r.failure }
}

/// Keys attached to a lease, in order.
pub fn attached(view: &dyn View, id: i64) -> EtcdResult<Vec<Bytes>> {
    view.scan(LEASE, KeyRange::prefix(attach_prefix(id)), Direction::Forward)
        .map(|i| Ok(split_attach_key(&i?.0)))
        .collect()
}

/// The writes of one command.
struct Tx<'a> {
    over: &'a mut Overlay,
    /// Revision before the command.
    begin: i64,
    compacted: i64,
    changes: Vec<Change>,
}

impl Tx<'_> {
    /// The revision that a read within the command sees.
    fn now(&self) -> i64 {
        self.begin + i64::from(!self.changes.is_empty())
    }

    fn reader(&self) -> Reader<'_> {
        Reader { view: &*self.over, revision: self.now(), compacted: self.compacted }
    }

    fn stamp(&self) -> Stamp {
        // A command has far fewer changes than 2^32: each takes bytes of a bounded request, or was a
        // key that a bounded scan found.
        Stamp { main: self.begin + 1, sub: self.changes.len().min(u32::MAX as usize) as u32 }
    }

    /// The version before the command, given the one before this change.
    fn before(&self, key: &[u8], old: Option<KeyValue>) -> Option<KeyValue> {
        match &old {
            Some(o) if o.mod_revision <= self.begin => old,
            _ => match self.changes.iter().find(|c| c.kv.key[..] == *key) {
                Some(first) => first.prev.clone(),
                None => old,
            },
        }
    }

    fn put(&mut self, _scope: Scope, r: &PutRequest) -> EtcdResult<PutResponse> {
        let old = self.reader().latest(&r.key)?;
        let prev_kv = if r.prev_kv { old.clone() } else { None };
        // Within a transaction the old pair may be gone although it was there before (etcd's check of
        // overlapping writes misses a deletion to "\0"; it then panics). Nothing is kept of nothing.
        let value = match &old {
            Some(o) if r.ignore_value => o.value.clone(),
            _ => r.value.clone(),
        };
        let lease = match &old {
            Some(o) if r.ignore_lease => o.lease,
            _ => r.lease,
        };
        self.set(r.key.clone(), value, lease, old)?;
        Ok(PutResponse { header: header(self.now()), prev_kv })
    }

    fn set(&mut self, key: Bytes, value: Bytes, lease: i64, old: Option<KeyValue>) -> EtcdResult<()> {
        let at = self.stamp();
        let (create_revision, version) =
            old.as_ref().map_or((at.main, 1), |o| (o.create_revision, o.version + 1));
        let kv = KeyValue { key, create_revision, mod_revision: at.main, version, value, lease };
        let old_lease = old.as_ref().map_or(0, |o| o.lease);
        if old_lease != lease {
            if old_lease != 0 {
                self.over.remove(LEASE, attach_key(old_lease, &kv.key));
            }
            if lease != 0 {
                self.over.put(LEASE, attach_key(lease, &kv.key), Bytes::new());
            }
        }
        let stored = encode(&kv);
        // Copied: the request's buffer shall not live as long as the engine's write buffer.
        let own = Bytes::copy_from_slice(&kv.key);
        self.over.put(LATEST, own.clone(), stored.clone());
        self.over.put(DATA, data_key(&own, at), stored);
        self.over.put(EVENTS, event_key(at), own);
        let prev = self.before(&kv.key, old);
        self.changes.push(Change { kv, put: true, prev });
        Ok(())
    }

    /// Deletes a key if it exists.
    fn delete(&mut self, key: &Bytes) -> EtcdResult<()> {
        match self.reader().latest(key)? {
            Some(old) => self.remove(old),
            None => Ok(()),
        }
    }

    fn remove(&mut self, old: KeyValue) -> EtcdResult<()> {
        let at = self.stamp();
        let key = Bytes::copy_from_slice(&old.key);
        if old.lease != 0 {
            self.over.remove(LEASE, attach_key(old.lease, &key));
        }
        self.over.remove(LATEST, key.clone());
        self.over.put(DATA, data_key(&key, at), Bytes::new());
        self.over.put(EVENTS, event_key(at), key.clone());
        let prev = self.before(&key, Some(old));
        let kv = KeyValue { key, mod_revision: at.main, ..Default::default() };
        self.changes.push(Change { kv, put: false, prev });
        Ok(())
    }

    fn delete_range(&mut self, scope: Scope, r: &DeleteRangeRequest) -> EtcdResult<DeleteRangeResponse> {
        let span = Span::of(&r.key, &r.range_end);
        let doomed = self.reader().find(scope, span, self.now(), 0, false)?.kvs;
        let deleted = doomed.len() as i64;
        let prev_kvs = if r.prev_kv { doomed.clone() } else { Vec::new() };
        doomed.into_iter().try_for_each(|kv| self.remove(kv))?;
        Ok(DeleteRangeResponse { header: header(self.now()), deleted, prev_kvs })
    }

    fn txn(
        &mut self,
        scope: Scope,
        r: &TxnRequest,
        path: &mut (impl Iterator<Item = bool> + Clone),
    ) -> EtcdResult<TxnResponse> {
        let succeeded = path.clone().next().unwrap_or(false);
        let mut responses = Vec::new();
        for op in branch(r, path) {
            let response = match &op.request {
                Some(Request::RequestRange(q)) => {
                    Some(Response::ResponseRange(self.reader().range(scope, q)?))
                }
                Some(Request::RequestPut(q)) => Some(Response::ResponsePut(self.put(scope, q)?)),
                Some(Request::RequestDeleteRange(q)) => {
                    Some(Response::ResponseDeleteRange(self.delete_range(scope, q)?))
                }
                Some(Request::RequestTxn(q)) => Some(Response::ResponseTxn(self.txn(scope, q, path)?)),
                None => None,
            };
            responses.push(ResponseOp { response });
        }
        // Of nested transactions etcd sends an empty header.
        Ok(TxnResponse { header: Some(ResponseHeader::default()), succeeded, responses })
    }
}

/// Carries out a transaction that only reads, on a state.
pub fn read_only_txn(
    view: Arc<dyn View>,
    revision: i64,
    compacted: i64,
    scope: Scope,
    r: &TxnRequest,
) -> EtcdResult<TxnResponse> {
    Batch::new(view, revision, compacted, Arc::default()).txn(scope, r)
}
