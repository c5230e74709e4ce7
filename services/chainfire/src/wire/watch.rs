//! The Watch service: one task per stream, one cursor per watch.

use super::{Api, etcdserverpb::*, mvccpb};
use crate::{
    EtcdError, EtcdResult, Span,
    command::MAX_REQUEST,
    hub::{Cursor, Gone, Interest},
    model::{Change, Changes, auth::Auth},
    plant::{Plant, planted},
    who::Who,
};
use bytes::Bytes;
use futures::{Stream, StreamExt};
use photon_rt::time::{Duration, Instant, now};
use prost::Message;
use std::{collections::BTreeMap, pin::Pin, sync::atomic::Ordering::Relaxed};
use tokio::sync::mpsc;
use tonic::{Request, Response, Status, Streaming};
use watch_create_request::FilterType;
use watch_request::RequestUnion;

/// Most watches of one stream.
const MAX_WATCHES: usize = 16_384;

/// Answers that wait for a slow client. A client slower than that stops its own stream only: its
/// cursors stay where they are and read history when it comes back.
const QUEUE: usize = 4;

#[tonic::async_trait]
impl watch_server::Watch for Api {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<WatchResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<Streaming<WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let who = self.who(&request)?;
        let (out, rx) = mpsc::channel(QUEUE);
        let session = Session {
            api: self.clone(),
            auth_revision: self.0.published().rules.auth.revision(),
            who,
            out,
            watches: BTreeMap::new(),
            next_id: 0,
            progress_wanted: false,
        };
        let inbound = request.into_inner();
        self.0.inner.tasks.spawn("chainfire-watch", session.run(inbound));
        Ok(Response::new(Box::pin(tokio_stream::wrappers::ReceiverStream::new(rx))))
    }
}

struct Watching {
    cursor: Cursor,
    /// What was asked for, as it was named.
    range: (Bytes, Bytes),
    fragment: bool,
    /// When to say that nothing happened, if the client wants to hear that.
    notify: Option<Instant>,
}

struct Session {
    api: Api,
    who: Who,
    /// Revision of users and roles at which the rights of all watches were looked at.
    auth_revision: u64,
    out: mpsc::Sender<Result<WatchResponse, Status>>,
    watches: BTreeMap<i64, Watching>,
    next_id: i64,
    progress_wanted: bool,
}

/// The client is gone.
struct Closed;

impl Drop for Session {
    fn drop(&mut self) {
        let c = &self.api.0.inner.counters;
        c.watchers.fetch_sub(self.watches.len() as u64, Relaxed);
        c.watch_streams.fetch_sub(1, Relaxed);
    }
}

impl Session {
    async fn run(mut self, mut inbound: Streaming<WatchRequest>) {
        self.api.0.inner.counters.watch_streams.fetch_add(1, Relaxed);
        let mut news = self.api.0.inner.shared.hub.subscribe();
        let mut open = true;
        loop {
            let revision = *news.borrow_and_update();
            if self.rights().await.is_err() {
                return;
            }
            let Ok(busy) = self.deliver(revision).await else { return };
            if !busy && self.report(revision).await.is_err() {
                return;
            }
            let alarm = self.watches.values().filter_map(|w| w.notify).min();
            let alarm = alarm.unwrap_or_else(|| now() + Duration::from_secs(3600));
            tokio::select! {
                biased;
                () = self.out.closed() => return,
                message = inbound.next(), if open => match message {
                    Some(Ok(r)) => if self.handle(r).await.is_err() { return },
                    Some(Err(e)) => {
                        let _ = self.out.send(Err(e)).await; // the client may be gone, and then it does not matter
                        return;
                    }
                    // A client may close its side and go on listening.
                    None => open = false,
                },
                changed = news.changed(), if !busy => if changed.is_err() { return },
                () = photon_rt::time::sleep_until(alarm), if !busy => {}
                () = std::future::ready(()), if busy => {}
            }
        }
    }

    async fn send(&self, mut r: WatchResponse, revision: i64) -> Result<(), Closed> {
        r.header = self.api.header(revision);
        self.out.send(Ok(r)).await.map_err(|_| Closed)
    }

    async fn handle(&mut self, r: WatchRequest) -> Result<(), Closed> {
        match r.request_union {
            Some(RequestUnion::CreateRequest(c)) => self.create(c).await,
            Some(RequestUnion::CancelRequest(c)) => {
                if self.watches.remove(&c.watch_id).is_none() {
                    return Ok(());
                }
                self.api.0.inner.counters.watchers.fetch_sub(1, Relaxed);
                let r = WatchResponse { watch_id: c.watch_id, canceled: true, ..Default::default() };
                self.send(r, self.api.revision()).await
            }
            Some(RequestUnion::ProgressRequest(_)) => {
                self.progress_wanted = true;
                Ok(())
            }
            None => Ok(()),
        }
    }

    async fn create(&mut self, c: WatchCreateRequest) -> Result<(), Closed> {
        let revision = self.api.revision();
        let refuse = |why: String| WatchResponse {
            watch_id: -1,
            created: true,
            canceled: true,
            cancel_reason: why,
            ..Default::default()
        };
        let key = if c.key.is_empty() { Bytes::from_static(&[0]) } else { c.key };
        let span = Span::of(&key, &c.range_end);
        if c.range_end.is_empty() && !self.who.scope.may_name(&key) {
            let denied =
                WatchResponse { watch_id: c.watch_id, ..refuse(EtcdError::PermissionDenied.to_string()) };
            return self.send(denied, revision).await;
        }
        let state = self.api.0.published();
        if let Err(e) = may_watch(&state.rules.auth, &self.who, &key, &c.range_end) {
            return self.send(WatchResponse { watch_id: c.watch_id, ..refuse(e) }, revision).await;
        }
        if span.is_empty() {
            return self.send(refuse("mvcc: watcher range is empty".into()), revision).await;
        }
        if self.watches.len() >= MAX_WATCHES {
            return self.send(refuse(EtcdError::TooManyRequests.to_string()), revision).await;
        }
        let id = if c.watch_id != 0 {
            if self.watches.contains_key(&c.watch_id) {
                let why = "mvcc: duplicate watch ID provided on the WatchStream";
                return self.send(refuse(why.into()), revision).await;
            }
            c.watch_id
        } else {
            while self.watches.contains_key(&self.next_id) {
                self.next_id += 1;
            }
            self.next_id += 1;
            self.next_id - 1
        };
        let range = (key, c.range_end);
        let has = |f: FilterType| c.filters.contains(&(f as i32));
        let interest = Interest {
            scope: self.who.scope,
            span,
            no_put: has(FilterType::Noput),
            no_delete: has(FilterType::Nodelete),
            prev_kv: c.prev_kv,
        };
        let created = WatchResponse { watch_id: id, created: true, ..Default::default() };
        self.send(created, revision).await?;
        // A start below the compaction is told so, even where the ring still has the events.
        let next = if c.start_revision > 0 { c.start_revision } else { revision + 1 };
        let next = if planted(Plant::WatchGap) { next.max(state.compacted) } else { next };
        if c.start_revision > 0 && next < state.compacted {
            return self.gone(id, Gone(state.compacted)).await;
        }
        let notify = c.progress_notify.then(|| now() + self.api.0.inner.config.progress_interval);
        let watch = Watching { cursor: Cursor { interest, next }, range, fragment: c.fragment, notify };
        self.watches.insert(id, watch);
        self.api.0.inner.counters.watchers.fetch_add(1, Relaxed);
        Ok(())
    }

    async fn gone(&self, id: i64, Gone(compact_revision): Gone) -> Result<(), Closed> {
        let r = WatchResponse { watch_id: id, canceled: true, compact_revision, ..Default::default() };
        self.send(r, 0).await
    }

    /// Ends the watches to whose keys the caller has lost the right. (etcd lets them go on.)
    async fn rights(&mut self) -> Result<(), Closed> {
        let state = self.api.0.published();
        let auth = &state.rules.auth;
        if self.auth_revision == auth.revision() {
            return Ok(());
        }
        self.auth_revision = auth.revision();
        self.who = self.who.at(auth.revision());
        let lost: Vec<(i64, String)> = self
            .watches
            .iter()
            .filter_map(|(id, w)| Some((*id, may_watch(auth, &self.who, &w.range.0, &w.range.1).err()?)))
            .collect();
        for (watch_id, cancel_reason) in lost {
            self.drop_watch(watch_id);
            let r = WatchResponse { watch_id, canceled: true, cancel_reason, ..Default::default() };
            self.send(r, state.revision).await?;
        }
        Ok(())
    }

    /// One step for every watch that is behind `revision`; true when some are still behind.
    async fn deliver(&mut self, revision: i64) -> Result<bool, Closed> {
        let late: Vec<i64> =
            self.watches.iter().filter(|(_, w)| w.cursor.behind(revision)).map(|(id, _)| *id).collect();
        let mut busy = false;
        for id in late {
            let api = self.api.clone();
            let Some(w) = self.watches.get_mut(&id) else { continue };
            let step: EtcdResult<Result<Vec<Changes>, Gone>> = w.cursor.step(&api.0.inner.shared).await;
            busy |= w.cursor.behind(revision);
            let (fragment, seen) = (w.fragment, w.cursor.next - 1);
            match step {
                Ok(Ok(found)) if found.is_empty() => {}
                Ok(Ok(found)) => {
                    if let Some(at) = &mut w.notify {
                        *at = now() + api.0.inner.config.progress_interval;
                    }
                    self.events(id, found, fragment, seen).await?;
                }
                Ok(Err(gone)) => {
                    self.drop_watch(id);
                    self.gone(id, gone).await?;
                }
                Err(e) => {
                    self.drop_watch(id);
                    let r = WatchResponse {
                        watch_id: id,
                        canceled: true,
                        cancel_reason: e.to_string(),
                        ..Default::default()
                    };
                    self.send(r, revision).await?;
                }
            }
        }
        Ok(busy)
    }

    fn drop_watch(&mut self, id: i64) {
        if self.watches.remove(&id).is_some() {
            self.api.0.inner.counters.watchers.fetch_sub(1, Relaxed);
        }
    }

    /// Sends changes; the header says how far this watch has now seen everything.
    async fn events(
        &self,
        id: i64,
        found: Vec<Changes>,
        fragment: bool,
        revision: i64,
    ) -> Result<(), Closed> {
        let events: Vec<mvccpb::Event> = found.into_iter().flat_map(|c| c.changes).map(event).collect();
        self.api.0.inner.counters.events.fetch_add(events.len() as u64, Relaxed);
        let whole = WatchResponse { watch_id: id, events, ..Default::default() };
        if !fragment || whole.encoded_len() < MAX_REQUEST {
            return self.send(whole, revision).await;
        }
        let mut part = WatchResponse { watch_id: id, ..Default::default() };
        let mut size = 0;
        for e in whole.events {
            let n = e.encoded_len() + 8;
            if size + n >= MAX_REQUEST && !part.events.is_empty() {
                let full = std::mem::take(&mut part.events);
                let r = WatchResponse { watch_id: id, fragment: true, events: full, ..Default::default() };
                self.send(r, revision).await?;
                size = 0;
            }
            size += n;
            part.events.push(e);
        }
        self.send(part, revision).await
    }

    /// Every watch has been told everything up to `revision`: say so to those who want to know. Goes
    /// the way of the events and after them, so it never overtakes one.
    async fn report(&mut self, revision: i64) -> Result<(), Closed> {
        if std::mem::take(&mut self.progress_wanted) {
            // For all watches of the stream; a revision counts as told to one that starts after it.
            self.send(WatchResponse { watch_id: -1, ..Default::default() }, revision).await?;
        }
        let at = now();
        let interval = self.api.0.inner.config.progress_interval;
        let due: Vec<i64> = self
            .watches
            .iter()
            .filter(|(_, w)| w.notify.is_some_and(|n| n <= at))
            .map(|(id, _)| *id)
            .collect();
        for id in due {
            self.send(WatchResponse { watch_id: id, ..Default::default() }, revision).await?;
            if let Some(w) = self.watches.get_mut(&id) {
                w.notify = Some(now() + interval);
            }
        }
        Ok(())
    }
}

/// Why a caller may not watch a range, in the words of etcd's library.
fn may_watch(auth: &Auth, who: &Who, key: &Bytes, range_end: &Bytes) -> Result<(), String> {
    auth.range(&who.login, key, range_end).map_err(|e| format!("rpc error: code = {:?} desc = {e}", e.code()))
}

fn event(c: Change) -> mvccpb::Event {
    let kind = if c.put { mvccpb::event::EventType::Put } else { mvccpb::event::EventType::Delete };
    mvccpb::Event { r#type: kind as i32, kv: Some(c.kv), prev_kv: c.prev }
}
