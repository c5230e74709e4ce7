//! Waiting in line: what etcd's client library does for locks and elections (`client/v3/concurrency`),
//! done by the server for its Lock and Election services.
//!
//! Whoever stands in line has a key `NAME/LEASE`; the one created first holds. So the order is that of
//! creation, a holder whose lease ends loses its place, and everybody waits only for the one before.
//!
//! **Fencing.** A lease may end while its holder still believes in it (Jepsen found etcd's locks not
//! mutually exclusive for that reason), so a lock alone protects nothing outside the store. The token is
//! the *create revision* of the key that Lock returns, and `LeaderKey.rev` of Campaign: it grows from
//! holder to holder. Within the store, put `create_revision(KEY) = TOKEN` into the compares of every
//! transaction; outside, hand the token along and refuse one smaller than the greatest seen.

use crate::{
    ChainFire, EtcdResult, Span,
    follow::{Follower, Found, Interest},
    plant::{Plant, planted},
    who::Who,
    wire::{
        etcdserverpb::{
            Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest, TxnResponse,
            compare::{CompareResult, CompareTarget, TargetUnion},
            range_request::{SortOrder, SortTarget},
            request_op::Request,
            response_op::Response,
        },
        mvccpb::KeyValue,
    },
};
use bytes::Bytes;

/// Time to live of the lease that a place in line gets when none was named (etcd's session).
const SESSION_TTL: i64 = 60;

/// A line of those who want the same thing.
#[derive(Clone)]
pub(crate) struct Line {
    store: ChainFire,
    who: Who,
    prefix: Bytes,
}

/// A place in line.
#[derive(Clone)]
pub(crate) struct Place {
    pub key: Bytes,
    /// Its create revision: the fencing token.
    pub revision: i64,
    pub lease: i64,
}

/// What standing in line found.
pub(crate) struct Stood {
    pub place: Place,
    /// Revision of the answer.
    pub revision: i64,
    /// The value, where the place was taken already.
    pub before: Option<KeyValue>,
    /// Who holds.
    pub holder: Option<KeyValue>,
}

fn op(request: Request) -> RequestOp {
    RequestOp { request: Some(request) }
}

fn created_at(key: &Bytes, revision: i64) -> Compare {
    Compare {
        result: CompareResult::Equal as i32,
        target: CompareTarget::Create as i32,
        key: key.clone(),
        target_union: Some(TargetUnion::CreateRevision(revision)),
        ..Default::default()
    }
}

fn pairs(r: &TxnResponse, i: usize) -> Vec<KeyValue> {
    match r.responses.get(i).and_then(|r| r.response.as_ref()) {
        Some(Response::ResponseRange(r)) => r.kvs.clone(),
        _ => Vec::new(),
    }
}

fn revision(r: &TxnResponse) -> i64 {
    r.header.as_ref().map_or(0, |h| h.revision)
}

impl Line {
    /// The line of a name.
    pub fn new(store: &ChainFire, who: &Who, name: &[u8]) -> Line {
        Line { store: store.clone(), who: who.clone(), prefix: [name, b"/"].concat().into() }
    }

    /// A lease to stand with: the one named, or a new one that nobody keeps alive.
    pub async fn lease(&self, id: i64) -> EtcdResult<i64> {
        match id {
            0 => Ok(self.store.lease_grant(&self.who(), 0, SESSION_TTL).await?.1),
            id => Ok(id),
        }
    }

    fn who(&self) -> Who {
        self.who.at(self.store.published().rules.auth.revision())
    }

    fn end(&self) -> Bytes {
        photon_kv::Range::prefix(self.prefix.clone()).end
    }

    fn by_creation(&self, order: SortOrder, max_create_revision: i64) -> RangeRequest {
        let end = self.end();
        RangeRequest {
            key: self.prefix.clone(),
            range_end: if end.is_empty() { Bytes::from_static(&[0]) } else { end },
            limit: 1,
            sort_order: order as i32,
            sort_target: SortTarget::Create as i32,
            max_create_revision,
            ..Default::default()
        }
    }

    /// Takes a place with a value, or finds the one that the lease has.
    pub async fn stand(&self, lease: i64, value: Bytes) -> EtcdResult<Stood> {
        let key: Bytes = [&self.prefix[..], format!("{lease:x}").as_bytes()].concat().into();
        let first = op(Request::RequestRange(self.by_creation(SortOrder::Ascend, 0)));
        let put = PutRequest { key: key.clone(), value, lease, ..Default::default() };
        let get = RangeRequest { key: key.clone(), ..Default::default() };
        let txn = TxnRequest {
            compare: vec![created_at(&key, 0)],
            success: vec![op(Request::RequestPut(put)), first.clone()],
            failure: vec![op(Request::RequestRange(get)), first],
        };
        let r = self.store.txn(&self.who(), txn).await?;
        let before = if r.succeeded { None } else { pairs(&r, 0).pop() };
        let created = before.as_ref().map_or(revision(&r), |kv| kv.create_revision);
        Ok(Stood {
            place: Place { key, revision: created, lease },
            revision: revision(&r),
            before,
            holder: pairs(&r, 1).pop(),
        })
    }

    /// Waits until nobody stands before a place. If the caller goes away meanwhile, so does the place.
    pub async fn wait(&self, place: &Place) -> EtcdResult<()> {
        if planted(Plant::LockUnfair) {
            return Ok(());
        }
        let mut guard = Guard { line: self.clone(), place: Some(place.clone()) };
        loop {
            let before = self.by_creation(SortOrder::Descend, place.revision - 1);
            let r = self.store.range(&self.who(), before).await?;
            let Some(kv) = r.kvs.into_iter().next() else {
                guard.place = None;
                return Ok(());
            };
            self.deleted(kv.key, r.header.map_or(0, |h| h.revision)).await?;
        }
    }

    /// Waits until a key is deleted after a revision, or its history is gone.
    async fn deleted(&self, key: Bytes, after: i64) -> EtcdResult<()> {
        let span = Span::of(&key, &Bytes::new());
        let mut events = self.events(span, after + 1, true);
        events.next().await.map(drop)
    }

    /// Changes of a span from a revision on.
    pub fn events(&self, span: Span, next: i64, no_put: bool) -> Events {
        let shared = self.store.inner.shared.clone();
        let interest = Interest { scope: self.who.scope, span, no_put, no_delete: false, prev_kv: false };
        Events(Follower::of(shared, interest, next))
    }

    /// All that stand in line.
    pub fn span(&self) -> Span {
        let end = self.end();
        Span { start: self.prefix.clone(), end: (!end.is_empty()).then_some(end) }
    }

    /// Who holds, and the revision of the answer.
    pub async fn holder(&self) -> EtcdResult<(Option<KeyValue>, i64)> {
        let r = self.store.range(&self.who(), self.by_creation(SortOrder::Ascend, 0)).await?;
        Ok((r.kvs.into_iter().next(), r.header.map_or(0, |h| h.revision)))
    }

    /// Gives a place a new value; false when the place is gone.
    pub async fn proclaim(&self, place: &Place, value: Bytes) -> EtcdResult<(bool, i64)> {
        let put = PutRequest { key: place.key.clone(), value, lease: place.lease, ..Default::default() };
        self.if_standing(place, Request::RequestPut(put)).await
    }

    /// Leaves the line.
    pub async fn leave(&self, place: &Place) -> EtcdResult<i64> {
        let delete = DeleteRangeRequest { key: place.key.clone(), ..Default::default() };
        Ok(self.if_standing(place, Request::RequestDeleteRange(delete)).await?.1)
    }

    async fn if_standing(&self, place: &Place, request: Request) -> EtcdResult<(bool, i64)> {
        let txn = TxnRequest {
            compare: vec![created_at(&place.key, place.revision)],
            success: vec![op(request)],
            failure: Vec::new(),
        };
        let r = self.store.txn(&self.who(), txn).await?;
        Ok((r.succeeded, revision(&r)))
    }
}

/// Leaves the line when dropped before the end of waiting.
struct Guard {
    line: Line,
    place: Option<Place>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(place) = self.place.take() {
            let line = self.line.clone();
            self.line.store.inner.tasks.spawn("chainfire-leave-line", async move {
                if let Err(e) = line.leave(&place).await {
                    tracing::debug!(error = %e, "a place in line goes when its lease ends");
                }
            });
        }
    }
}

/// Changes, step by step.
pub(crate) struct Events(Follower);

impl Events {
    /// The next ones; nothing more when history is gone.
    pub async fn next(&mut self) -> EtcdResult<Option<Vec<crate::model::Changes>>> {
        loop {
            let mut found = Vec::new();
            let busy = self.0.step(&mut found).await;
            match found.pop() {
                Some((_, Found::Changes(changes, _))) => return Ok(Some(changes)),
                Some((_, Found::Gone(_))) => return Ok(None),
                Some((_, Found::Failed(e))) => return Err(e),
                None if busy => {}
                None => self.0.news().await,
            }
        }
    }
}
