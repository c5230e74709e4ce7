//! [`Etcd`] as a `photon_kv::Kv`.
//!
//! Pages may be shorter than asked for where values are large. A backward scan makes etcd read the whole range.

use crate::{
    client::{Etcd, key_range},
    fault::{Fault, compacted, future},
    proto::{
        etcdserverpb::{
            RangeRequest, RangeResponse,
            range_request::{SortOrder, SortTarget},
        },
        mvccpb::{Event, KeyValue, event::EventType},
    },
    txn::{Plan, wrong},
    watch::{Batch, Ended},
};
use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use photon_kv::{
    Change, Check, Committed, Direction, Events, Kv, KvError, KvResult, Page, Range, ReadAt, Revision,
    Versioned, Watch, Write,
};
use tonic::Code;

/// Times that a commit which can happen only once is sent, at most.
const SENDS_MAX: u32 = 5;
/// Greatest page: what etcd sends of it has to fit into memory.
const PAGE_MAX: i64 = 100_000;

/// A key of etcd's as the kernel sees it.
pub fn versioned(kv: KeyValue) -> Versioned {
    Versioned {
        key: kv.key,
        value: kv.value,
        created: kv.create_revision as u64,
        modified: kv.mod_revision as u64,
    }
}

fn change(e: Event) -> Option<Change> {
    let kv = e.kv?;
    Some(if e.r#type == EventType::Delete as i32 {
        Change::Delete { key: kv.key, revision: kv.mod_revision as u64 }
    } else {
        Change::Put(versioned(kv))
    })
}

fn events(b: Batch) -> Events {
    Events { revision: b.revision as u64, changes: b.events.into_iter().filter_map(change).collect() }
}

impl From<Ended> for KvError {
    fn from(e: Ended) -> KvError {
        match e {
            Ended::Compacted(r) => KvError::Compacted(r as u64),
            Ended::Refused(m) => KvError::Invalid(m),
        }
    }
}

fn refused(f: Fault) -> KvError {
    match f {
        Fault::Refused(s) => match s.code() {
            Code::InvalidArgument | Code::PermissionDenied | Code::Unimplemented => {
                KvError::Invalid(s.message().to_string())
            }
            // What the transport itself does not carry.
            Code::ResourceExhausted | Code::OutOfRange if s.message().contains("larger than max") => {
                KvError::Invalid(s.message().to_string())
            }
            _ => KvError::Unavailable(s.message().to_string()),
        },
        f => KvError::Unavailable(f.to_string()),
    }
}

/// The fields of a request that say what state it reads. Etcd has nothing at revision 1, and means "now" by 0.
fn at(request: &mut RangeRequest, at: ReadAt) {
    match at {
        ReadAt::Latest => {}
        ReadAt::Local => request.serializable = true,
        ReadAt::Revision(r) => {
            request.revision = i64::try_from(r).map(|r| r.max(1)).unwrap_or(i64::MAX);
        }
    }
}

impl Etcd {
    async fn read(&self, request: RangeRequest, at: ReadAt) -> KvResult<(RangeResponse, Revision)> {
        match self.raw_range(request).await {
            Ok(r) => {
                let now = r.header.as_ref().map_or(0, |h| h.revision as u64);
                Ok((r, if let ReadAt::Revision(r) = at { r } else { now }))
            }
            Err(Fault::Refused(s)) if compacted(&s) => Err(self.history_begins(at).await),
            Err(Fault::Refused(s)) if future(&s) => {
                Err(self.now().await.map_or_else(refused, |r| KvError::Future(r as u64)))
            }
            Err(f) => Err(refused(f)),
        }
    }

    /// Where history begins, which etcd says to watchers only.
    async fn history_begins(&self, at: ReadAt) -> KvError {
        let ReadAt::Revision(r) = at else { return KvError::Unavailable("history moved on".into()) };
        let mut watch = self.follow(self.nowhere(), (r as i64).max(1));
        match watch.next().await {
            Some(Err(e)) => e.into(),
            _ => KvError::Compacted(r + 1),
        }
    }
}

#[async_trait]
impl Kv for Etcd {
    async fn get(&self, key: &[u8], when: ReadAt) -> KvResult<Option<Versioned>> {
        let key = Bytes::copy_from_slice(key);
        let empty = key.is_empty();
        let mut request =
            RangeRequest { key: if empty { self.nowhere().0 } else { key }, ..Default::default() };
        at(&mut request, when);
        let (mut r, _) = self.read(request, when).await?;
        Ok(if empty { None } else { r.kvs.pop().map(versioned) })
    }

    async fn scan(&self, range: Range, when: ReadAt, limit: u32, direction: Direction) -> KvResult<Page> {
        let place = key_range(&range.start, &range.end);
        let empty = place.is_none();
        let (key, range_end) = place.unwrap_or_else(|| self.nowhere());
        let mut request = RangeRequest {
            key,
            range_end,
            count_only: limit == 0,
            limit: i64::from(limit).min(PAGE_MAX),
            ..Default::default()
        };
        if direction == Direction::Backward {
            request.sort_order = SortOrder::Descend as i32;
            request.sort_target = SortTarget::Key as i32;
        }
        at(&mut request, when);
        let (r, revision) = self.read(request, when).await?;
        if empty {
            return Ok(Page { items: Vec::new(), more: false, revision });
        }
        let more = r.more || (limit == 0 && r.count > 0);
        Ok(Page { items: r.kvs.into_iter().map(versioned).collect(), more, revision })
    }

    async fn commit(&self, checks: Vec<Check>, writes: Vec<Write>) -> KvResult<Committed> {
        let wrong = wrong(&writes);
        let plan = Plan::new(checks, if wrong.is_some() { Vec::new() } else { writes }, &self.nowhere().0)
            .map_err(KvError::Invalid)?;
        let before = self.seen();
        let mut sent = 0;
        loop {
            sent += 1;
            match self.txn(plan.request.clone(), false).await {
                Ok(r) if r.succeeded => {
                    let revision = r.header.map_or(0, |h| h.revision as u64);
                    return match wrong {
                        Some(why) => Err(KvError::Invalid(why.into())),
                        None => Ok(Committed { revision }),
                    };
                }
                Ok(r) => {
                    let failed = plan.failed(&r).ok_or_else(|| {
                        KvError::Unavailable("etcd says that a check failed, and shows that none did".into())
                    })?;
                    // After a lost answer the check may fail because of this very commit; not if what it is about
                    // has been as it is since before the first time.
                    if sent == 1 || failed.since.is_some_and(|r| r <= before) {
                        return Err(KvError::CheckFailed(failed.check));
                    }
                    return Err(KvError::Unavailable(
                        "an answer was lost; this commit, or somebody else's, was done".into(),
                    ));
                }
                Err(Fault::Unknown(why)) if plan.once && sent < SENDS_MAX => {
                    tracing::debug!(why, sent, "sending a commit again that can happen only once");
                }
                // The last time it was not done, but perhaps before.
                Err(Fault::Refused(s)) if sent > 1 => {
                    return Err(KvError::Unavailable(s.message().to_string()));
                }
                Err(f) => return Err(refused(f)),
            }
        }
    }

    fn watch(&self, range: Range, from: Revision) -> Watch {
        let next = match from {
            0 => self.seen() + 1,
            r => i64::try_from(r).unwrap_or(i64::MAX),
        };
        match key_range(&range.start, &range.end) {
            None => futures::stream::pending().boxed(),
            Some(place) => self.follow(place, next).map(|b| Ok(events(b?))).boxed(),
        }
    }
}
