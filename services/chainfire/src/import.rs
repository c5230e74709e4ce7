//! Copies a running etcd into another, usually a ChainFire: the keys as of one revision, then if wanted everything
//! that happens after it until the cut-over; and the leases, under their own numbers, so that who holds one can go on.
//!
//! A lease is granted its whole time again, as etcd itself does when its leader changes: with what was left of it, a
//! holder that renews it every third of the whole would lose it. Until the end the copies are kept alive as long as
//! the originals live.
//!
//! The tail is a watch of all keys, also where only a part is copied: then every revision shows up in it, and it is
//! known when everything has. Revisions and versions are the target's own. Below [`crate::RESERVED_PREFIX`] lie a
//! cloud's own records: they are copied only when the prefix names them.
//!
//! Memory: a page, and the leases.

use crate::RESERVED_PREFIX;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use photon_base::{Code, Error, Result};
use photon_etcd::{
    Batch, Ended, Etcd, Fault, RangeQuery,
    proto::{
        etcdserverpb::{DeleteRangeRequest, PutRequest, RequestOp, TxnRequest, request_op::Request},
        mvccpb::{Event, KeyValue, event::EventType},
    },
};
use photon_kv::Range;
use photon_rt::time::{Duration, Instant, interval, now};
use serde::Serialize;
use std::{
    collections::BTreeMap,
    convert::Infallible,
    future::Future,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Keys asked for at a time.
const PAGE: i64 = 1000;
/// Etcd's limits of a transaction: operations, and bytes with room for the rest of the message.
const OPS_MAX: usize = 128;
const BYTES_MAX: usize = 1 << 20;
/// Transactions under way while copying.
const WRITES: usize = 8;
/// Leases asked about at a time, and how often.
const ASKED: usize = 16;
const KEPT_EVERY: Duration = Duration::from_secs(1);

/// What to copy.
#[derive(Clone, Debug, Default)]
pub struct Import {
    /// Keys that begin with this; empty: all but a cloud's own.
    pub prefix: Bytes,
    /// Into a place that is not empty.
    pub merge: bool,
}

/// How far it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Progress {
    /// Keys copied.
    pub keys: u64,
    /// Keys there were at the beginning, those of the cloud itself included.
    pub total: u64,
    /// Keys left out: a cloud's own.
    pub left_out: u64,
    /// Leases granted anew.
    pub leases: u64,
    /// The source's revision whose keys are copied.
    pub revision: i64,
    /// Changes since, applied.
    pub changes: u64,
    /// The source's revision up to which everything is applied.
    pub followed: i64,
}

/// One run.
struct Run<'a> {
    from: &'a Etcd,
    to: &'a Etcd,
    import: Import,
    /// Source's leases; none: it was gone when asked.
    leases: Mutex<BTreeMap<i64, Option<Copied>>>,
}

/// A lease that the target has too.
#[derive(Clone, Copy)]
struct Copied {
    ttl: i64,
    /// When to renew it.
    due: Instant,
}

impl Copied {
    fn fresh(ttl: i64) -> Copied {
        Copied { ttl, due: now() + Duration::from_secs(ttl.unsigned_abs()) / 3 }
    }
}

/// Copies `from` into `to`. With `until`, goes on with what happens after, until it resolves, and then to the revision
/// of that moment. `tell` hears how far it is after every page and every change.
pub async fn import(
    from: &Etcd,
    to: &Etcd,
    import: Import,
    until: Option<impl Future<Output = ()>>,
    mut tell: impl FnMut(&Progress),
) -> Result<Progress> {
    if from.cluster_id() == to.cluster_id() {
        return Err(Error::invalid("from", "is the same cluster as the target"));
    }
    let run = Run { from, to, import, leases: Mutex::default() };
    run.refuse_to_mix().await?;
    let copied = async {
        let mut p = Progress { revision: from.now().await.map_err(source)?, ..Progress::default() };
        run.copy(&mut p, &mut tell).await?;
        p.followed = p.revision;
        if let Some(until) = until {
            tell(&p);
            run.follow(&mut p, until, &mut tell).await?;
        }
        p.leases = run.granted() as u64;
        tell(&p);
        Ok(p)
    };
    tokio::select! {
        done = copied => done,
        never = run.keep() => match never {},
    }
}

fn source(f: Fault) -> Error {
    let e = Error::from(f);
    Error { what: format!("from the source: {}", e.what), ..e }
}

fn target(f: Fault) -> Error {
    let e = Error::from(f);
    Error { what: format!("from the target: {}", e.what), ..e }
}

fn delete(key: Bytes) -> Request {
    Request::RequestDeleteRange(DeleteRangeRequest { key, ..Default::default() })
}

/// Operations in portions that a transaction takes.
fn portions(ops: impl IntoIterator<Item = Request>) -> Vec<Vec<Request>> {
    let size = |r: &Request| match r {
        Request::RequestPut(p) => p.key.len() + p.value.len() + 64,
        _ => 128,
    };
    let (mut out, mut part, mut bytes) = (Vec::new(), Vec::new(), 0);
    for op in ops {
        let n = size(&op);
        if part.len() == OPS_MAX || (bytes + n > BYTES_MAX && !part.is_empty()) {
            out.push(std::mem::take(&mut part));
            bytes = 0;
        }
        bytes += n;
        part.push(op);
    }
    if !part.is_empty() {
        out.push(part);
    }
    out
}

impl Run<'_> {
    fn wants(&self, key: &[u8]) -> bool {
        let asked_for = self.import.prefix.starts_with(RESERVED_PREFIX);
        key.starts_with(&self.import.prefix) && (asked_for || !key.starts_with(RESERVED_PREFIX))
    }

    fn leases(&self) -> MutexGuard<'_, BTreeMap<i64, Option<Copied>>> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn granted(&self) -> usize {
        self.leases().values().flatten().count()
    }

    /// Finds out that nobody's keys would get mixed.
    async fn refuse_to_mix(&self) -> Result<()> {
        let mut range = Range::prefix(self.import.prefix.clone());
        if self.import.merge {
            return Ok(());
        }
        loop {
            let q = RangeQuery {
                start: range.start,
                end: range.end.clone(),
                limit: PAGE,
                keys_only: true,
                ..Default::default()
            };
            let page = self.to.range(q, true).await.map_err(target)?;
            if let Some(kv) = page.kvs.iter().find(|kv| self.wants(&kv.key)) {
                return Err(Error::new(Code::Conflict, "the target is not empty")
                    .why(format!("it has {:?}", String::from_utf8_lossy(&kv.key)))
                    .hint("--merge writes over what is there; or choose an empty target"));
            }
            match page.kvs.last() {
                Some(last) if page.more => {
                    range = Range { start: Bytes::new(), end: range.end }.behind(&last.key)
                }
                _ => return Ok(()),
            }
        }
    }

    /// The keys as of one revision.
    async fn copy(&self, p: &mut Progress, tell: &mut impl FnMut(&Progress)) -> Result<()> {
        let whole = Range::prefix(self.import.prefix.clone());
        let mut start = whole.start.clone();
        loop {
            let q = RangeQuery {
                start: start.clone(),
                end: whole.end.clone(),
                revision: p.revision,
                limit: PAGE,
                ..Default::default()
            };
            let page = self.from.range(q, true).await.map_err(|f| {
                let e = source(f);
                if e.why.contains("compacted") {
                    e.hint("its history is kept too short; compact less often, and try again")
                } else {
                    e
                }
            })?;
            if p.total == 0 {
                p.total = page.count as u64;
            }
            let (last, more) = (page.kvs.last().map(|kv| kv.key.clone()), page.more);
            let all = page.kvs.len() as u64;
            let mut puts = Vec::new();
            for kv in page.kvs.into_iter().filter(|kv| self.wants(&kv.key)) {
                puts.push(self.put(kv).await?);
            }
            let count = puts.len() as u64;
            // One key a page: the order does not matter.
            let writes = portions(puts).into_iter().map(|ops| self.write(ops));
            stream::iter(writes).buffer_unordered(WRITES).try_collect::<Vec<()>>().await?;
            p.keys += count;
            p.left_out += all - count;
            p.leases = self.granted() as u64;
            tell(p);
            match last {
                Some(last) if more => start = [&last[..], &[0]].concat().into(),
                _ => return Ok(()),
            }
        }
    }

    /// What happens after that revision.
    async fn follow(
        &self,
        p: &mut Progress,
        until: impl Future<Output = ()>,
        tell: &mut impl FnMut(&Progress),
    ) -> Result<()> {
        let all = (Bytes::from_static(&[0]), Bytes::from_static(&[0]));
        let mut watch = self.from.follow(all, p.revision + 1);
        let mut until = std::pin::pin!(until);
        let mut end = None;
        while end.is_none_or(|end| p.followed < end) {
            let next = tokio::select! {
                () = &mut until, if end.is_none() => {
                    end = Some(self.from.now().await.map_err(source)?);
                    continue;
                }
                next = watch.next() => next,
            };
            let batch = next.ok_or_else(|| Error::internal("the watch of the source ended"))?;
            let Batch { revision, events } = batch.map_err(|e| match e {
                Ended::Compacted(r) => Error::new(Code::Gone, "the source forgot its history too soon")
                    .why(format!("it begins at revision {r}; changes up to {} are copied", p.followed))
                    .hint("import again, into an empty target"),
                Ended::Refused(m) => Error::new(Code::Denied, "the source lets nobody follow")
                    .why(m)
                    .hint("following needs the right to read all keys, also when only a part is copied"),
            })?;
            let mut ops = Vec::new();
            for e in events {
                ops.extend(self.change(e).await?);
            }
            p.changes += ops.len() as u64;
            for portion in portions(ops) {
                self.write(portion).await?;
            }
            p.followed = revision;
            p.leases = self.granted() as u64;
            tell(p);
        }
        Ok(())
    }

    async fn change(&self, e: Event) -> Result<Option<Request>> {
        let Some(kv) = e.kv.filter(|kv| self.wants(&kv.key)) else { return Ok(None) };
        if e.r#type == EventType::Delete as i32 {
            return Ok(Some(delete(kv.key)));
        }
        Ok(Some(self.put(kv).await?))
    }

    /// A key that belongs to a lease which has ended is gone, or about to be.
    async fn put(&self, kv: KeyValue) -> Result<Request> {
        let lease = kv.lease;
        if lease != 0 && !self.grant(lease).await? {
            return Ok(delete(kv.key));
        }
        Ok(Request::RequestPut(PutRequest { key: kv.key, value: kv.value, lease, ..Default::default() }))
    }

    /// Sends operations; doing them twice makes no difference, since nobody else writes there.
    async fn write(&self, mut ops: Vec<Request>) -> Result<()> {
        loop {
            let success = ops.iter().cloned().map(|r| RequestOp { request: Some(r) }).collect();
            match self.to.txn(TxnRequest { success, ..Default::default() }, true).await {
                Ok(_) => return Ok(()),
                // One has ended, here or at the source too.
                Err(Fault::Refused(s)) if s.message().contains("requested lease not found") => {
                    for op in &mut ops {
                        let Request::RequestPut(put) = op else { continue };
                        if put.lease == 0 {
                            continue;
                        }
                        if self.to.time_to_live(put.lease, false).await.map_err(target)?.granted_ttl == 0 {
                            self.leases().remove(&put.lease);
                        }
                        if !self.grant(put.lease).await? {
                            *op = delete(put.key.clone());
                        }
                    }
                }
                Err(f) => return Err(target(f)),
            }
        }
    }

    /// Makes sure that the target has the lease; false when the source has it no more.
    async fn grant(&self, id: i64) -> Result<bool> {
        if let Some(known) = self.leases().get(&id) {
            return Ok(known.is_some());
        }
        let asked = self.from.time_to_live(id, false).await.map_err(source)?;
        // What is left is told in whole seconds, and may be none of a lease that lives.
        let lives = asked.granted_ttl > 0;
        if lives {
            match self.to.grant(id, asked.granted_ttl).await {
                Ok(_) => {}
                Err(Fault::Refused(s)) if s.message().contains("lease already exists") => {
                    // Of a call whose answer was lost, or of an import before this one.
                    let there = self.to.time_to_live(id, true).await.map_err(target)?;
                    if there.granted_ttl != asked.granted_ttl || !(there.keys.is_empty() || self.import.merge)
                    {
                        return Err(Error::new(
                            Code::Conflict,
                            format!("the target has another lease {id:x}"),
                        )
                        .hint("choose an empty target"));
                    }
                }
                Err(f) => return Err(target(f)),
            }
        }
        self.leases().insert(id, lives.then(|| Copied::fresh(asked.granted_ttl)));
        Ok(lives)
    }

    /// Renews the target's leases as long as those of the source live. For ever.
    async fn keep(&self) -> Infallible {
        let mut tick = interval(KEPT_EVERY);
        loop {
            tick.tick().await;
            let due: Vec<(i64, i64)> = {
                let (all, now) = (self.leases(), now());
                all.iter().filter_map(|(id, l)| l.filter(|l| l.due <= now).map(|l| (*id, l.ttl))).collect()
            };
            let one = async |(id, ttl): (i64, i64)| {
                let renewed = async {
                    match self.from.time_to_live(id, false).await?.granted_ttl {
                        0 => Ok(()), // it has ended, and its copy ends too
                        _ => self.to.renew(id).await.map(|_| ()),
                    }
                };
                match renewed.await {
                    Ok(()) => {
                        self.leases().entry(id).and_modify(|l| *l = Some(Copied::fresh(ttl)));
                    }
                    // It stays due. Who does not answer for long ends the import elsewhere.
                    Err(e) => tracing::debug!(error = %e, id, "a lease is renewed later"),
                }
            };
            stream::iter(due).map(one).buffer_unordered(ASKED).collect::<Vec<()>>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn portions_fit_into_transactions() {
        let put =
            |n: usize| Request::RequestPut(PutRequest { value: vec![0; n].into(), ..Default::default() });
        let count = |ops: Vec<Request>| portions(ops).iter().map(Vec::len).collect::<Vec<_>>();
        assert!(count(vec![]).is_empty());
        assert_eq!(count((0..300).map(|_| put(1)).collect()), [128, 128, 44]);
        assert_eq!(count(vec![put(900_000), put(900_000), put(1), put(2 << 20), put(1)]), [1, 2, 1, 1]);
    }
}
