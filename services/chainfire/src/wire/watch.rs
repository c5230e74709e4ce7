//! The Watch service. A stream's answers are made when the transport asks for the next one: a client that does
//! not read stops its own stream only, which stays where it is in history, and nothing is kept for it.

use super::{Api, etcdserverpb::*, mvccpb};
use crate::{
    EtcdError, Span,
    command::MAX_REQUEST,
    follow::{Follower, Found, Gone, Interest},
    model::{Change, Changes, auth::Auth},
    plant::{Plant, planted},
    who::Who,
};
use bytes::Bytes;
use futures::{FutureExt, Stream, StreamExt};
use photon_rt::time::{Instant, now};
use prost::Message;
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    pin::Pin,
    sync::atomic::Ordering::Relaxed,
};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use watch_create_request::FilterType;
use watch_request::RequestUnion;

/// Most watches of one stream.
const MAX_WATCHES: usize = 16_384;

/// Requests that are taken at a time. Watches that are asked for together catch up together.
const TOGETHER: usize = 256;

#[tonic::async_trait]
impl watch_server::Watch for Api {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<WatchResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<Streaming<WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let who = self.who(&request)?;
        self.0.inner.counters.watch_streams.fetch_add(1, Relaxed);
        let session = Session {
            auth_revision: self.0.published().rules.auth.revision(),
            follower: Follower::new(self.0.inner.shared.clone()),
            ended: self.0.inner.tasks.token(),
            api: self.clone(),
            who,
            inbound: Some(request.into_inner()),
            ready: VecDeque::new(),
            watches: BTreeMap::new(),
            alarms: BTreeSet::new(),
            next_id: 0,
            progress_wanted: false,
            done: false,
        };
        let answers = futures::stream::unfold(session, |mut s| async move { Some((s.next().await?, s)) });
        Ok(Response::new(Box::pin(answers)))
    }
}

struct Watching {
    /// What was asked for, as it was named.
    range: (Bytes, Bytes),
    fragment: bool,
    /// When to say that nothing happened, if the client wants to hear that: its place in the alarms.
    notify: Option<Instant>,
}

struct Session {
    api: Api,
    who: Who,
    /// Revision of users and roles at which the rights of all watches were looked at.
    auth_revision: u64,
    /// None once the client has closed its side; it may go on listening.
    inbound: Option<Streaming<WatchRequest>>,
    /// What one step, or the requests that came together, gave.
    ready: VecDeque<Result<WatchResponse, Status>>,
    follower: Follower,
    watches: BTreeMap<i64, Watching>,
    alarms: BTreeSet<(Instant, i64)>,
    next_id: i64,
    progress_wanted: bool,
    /// Nothing comes after what is ready.
    done: bool,
    ended: CancellationToken,
}

impl Drop for Session {
    fn drop(&mut self) {
        let c = &self.api.0.inner.counters;
        c.watchers.fetch_sub(self.watches.len() as u64, Relaxed);
        c.watch_streams.fetch_sub(1, Relaxed);
    }
}

impl Session {
    /// The next answer; none when the stream has ended.
    async fn next(&mut self) -> Option<Result<WatchResponse, Status>> {
        loop {
            if let Some(r) = self.ready.pop_front() {
                return Some(r);
            }
            if self.done {
                return None;
            }
            let busy = self.deliver().await;
            if !busy {
                self.report();
            }
            if !self.ready.is_empty() {
                continue;
            }
            let alarm = self.alarms.first().map(|(at, _)| *at);
            tokio::select! {
                biased;
                () = self.ended.cancelled() => return None,
                message = of(&mut self.inbound) => {
                    self.handle(message);
                    for _ in 1..TOGETHER {
                        let Some(message) = of(&mut self.inbound).now_or_never() else { break };
                        self.handle(message);
                    }
                }
                () = tokio::task::yield_now(), if busy => {}
                () = self.follower.news() => {}
                () = until(alarm) => {}
            }
        }
    }

    fn send(&mut self, mut r: WatchResponse, revision: i64) {
        r.header = self.api.header(revision);
        self.ready.push_back(Ok(r));
    }

    fn handle(&mut self, message: Option<Result<WatchRequest, Status>>) {
        match message {
            Some(Ok(r)) => match r.request_union {
                Some(RequestUnion::CreateRequest(c)) => self.create(c),
                Some(RequestUnion::CancelRequest(c)) => self.cancel(c.watch_id),
                Some(RequestUnion::ProgressRequest(_)) => self.progress_wanted = true,
                None => {}
            },
            Some(Err(e)) => {
                self.ready.push_back(Err(e));
                self.done = true;
                self.inbound = None;
            }
            None => self.inbound = None,
        }
    }

    fn cancel(&mut self, watch_id: i64) {
        if self.drop_watch(watch_id) {
            self.follower.remove(watch_id);
            let r = WatchResponse { watch_id, canceled: true, ..Default::default() };
            self.send(r, self.api.revision());
        }
    }

    fn create(&mut self, c: WatchCreateRequest) {
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
            return self.send(denied, revision);
        }
        let state = self.api.0.published();
        if let Err(e) = may_watch(&state.rules.auth, &self.who, &key, &c.range_end) {
            return self.send(WatchResponse { watch_id: c.watch_id, ..refuse(e) }, revision);
        }
        if span.is_empty() {
            return self.send(refuse("mvcc: watcher range is empty".into()), revision);
        }
        if self.watches.len() >= MAX_WATCHES {
            return self.send(refuse(EtcdError::TooManyRequests.to_string()), revision);
        }
        let id = if c.watch_id != 0 {
            if self.watches.contains_key(&c.watch_id) {
                let why = "mvcc: duplicate watch ID provided on the WatchStream";
                return self.send(refuse(why.into()), revision);
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
        self.send(created, revision);
        // A start below the compaction is told so, even where the ring still has the events.
        let next = if c.start_revision > 0 { c.start_revision } else { revision + 1 };
        let next = if planted(Plant::WatchGap) { next.max(state.compacted) } else { next };
        if c.start_revision > 0 && next < state.compacted {
            return self.gone(id, Gone(state.compacted));
        }
        let notify = c.progress_notify.then(|| now() + self.api.0.inner.config.progress_interval);
        self.alarms.extend(notify.map(|at| (at, id)));
        self.watches.insert(id, Watching { range, fragment: c.fragment, notify });
        self.follower.add(id, interest, next);
        self.api.0.inner.counters.watchers.fetch_add(1, Relaxed);
    }

    fn gone(&mut self, id: i64, Gone(compact_revision): Gone) {
        let r = WatchResponse { watch_id: id, canceled: true, compact_revision, ..Default::default() };
        self.send(r, 0);
    }

    /// Ends the watches to whose keys the caller has lost the right. (etcd lets them go on.)
    fn rights(&mut self) {
        let state = self.api.0.published();
        let auth = &state.rules.auth;
        if self.auth_revision == auth.revision() {
            return;
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
            self.follower.remove(watch_id);
            let r = WatchResponse { watch_id, canceled: true, cancel_reason, ..Default::default() };
            self.send(r, state.revision);
        }
    }

    /// One step of all watches; true when some may have more.
    async fn deliver(&mut self) -> bool {
        let mut found = Vec::new();
        let busy = self.follower.step(&mut found).await;
        // After the step: a right that was taken before a change must not show the change.
        self.rights();
        for (id, found) in found {
            if !self.watches.contains_key(&id) {
                continue;
            }
            match found {
                Found::Changes(list, seen) => self.events(id, list, seen),
                Found::Gone(gone) => {
                    self.drop_watch(id);
                    self.gone(id, gone);
                }
                Found::Failed(e) => {
                    self.drop_watch(id);
                    let r = WatchResponse {
                        watch_id: id,
                        canceled: true,
                        cancel_reason: e.to_string(),
                        ..Default::default()
                    };
                    self.send(r, self.api.revision());
                }
            }
        }
        busy
    }

    /// Ends the bookkeeping of a watch; false when there is none.
    fn drop_watch(&mut self, id: i64) -> bool {
        let Some(w) = self.watches.remove(&id) else { return false };
        self.api.0.inner.counters.watchers.fetch_sub(1, Relaxed);
        if let Some(at) = w.notify {
            self.alarms.remove(&(at, id));
        }
        true
    }

    /// Has the next word about an uneventful watch wait a whole interval.
    fn postpone(&mut self, id: i64) {
        let Some(at) = self.watches.get_mut(&id).and_then(|w| w.notify.as_mut()) else { return };
        self.alarms.remove(&(*at, id));
        *at = now() + self.api.0.inner.config.progress_interval;
        self.alarms.insert((*at, id));
    }

    /// Sends changes; the header says how far this watch has now seen everything.
    fn events(&mut self, id: i64, found: Vec<Changes>, revision: i64) {
        self.postpone(id);
        let fragment = self.watches.get(&id).is_some_and(|w| w.fragment);
        let events: Vec<mvccpb::Event> = found.into_iter().flat_map(|c| c.changes).map(event).collect();
        self.api.0.inner.counters.events.fetch_add(events.len() as u64, Relaxed);
        let whole = WatchResponse { watch_id: id, events, ..Default::default() };
        if !fragment || whole.encoded_len() < MAX_REQUEST {
            return self.send(whole, revision);
        }
        let mut part = WatchResponse { watch_id: id, ..Default::default() };
        let mut size = 0;
        for e in whole.events {
            let n = e.encoded_len() + 8;
            if size + n >= MAX_REQUEST && !part.events.is_empty() {
                let full = std::mem::take(&mut part.events);
                let r = WatchResponse { watch_id: id, fragment: true, events: full, ..Default::default() };
                self.send(r, revision);
                size = 0;
            }
            size += n;
            part.events.push(e);
        }
        self.send(part, revision);
    }

    /// Every watch has been told everything up to a revision: say so to those who want to know. Goes the way of
    /// the events and after them, so it never overtakes one.
    fn report(&mut self) {
        let Some(revision) = self.follower.seen() else { return };
        if std::mem::take(&mut self.progress_wanted) {
            // For all watches of the stream; a revision counts as told to one that starts after it.
            self.send(WatchResponse { watch_id: -1, ..Default::default() }, revision);
        }
        if self.alarms.is_empty() {
            return;
        }
        let at = now();
        let due: Vec<i64> = self.alarms.iter().take_while(|(n, _)| *n <= at).map(|(_, id)| *id).collect();
        for id in due {
            self.send(WatchResponse { watch_id: id, ..Default::default() }, revision);
            self.postpone(id);
        }
    }
}

/// The next request; forever nothing once the client has closed its side.
async fn of(inbound: &mut Option<Streaming<WatchRequest>>) -> Option<Result<WatchRequest, Status>> {
    match inbound {
        Some(s) => s.next().await,
        None => std::future::pending().await,
    }
}

async fn until(alarm: Option<Instant>) {
    match alarm {
        Some(at) => photon_rt::time::sleep_until(at).await,
        None => std::future::pending().await,
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
