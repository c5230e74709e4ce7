//! Watches that go on across lost connections and other members.
//!
//! [`Follow`] is the pure core: what has been delivered, and so where to resume. Revisions are handed on whole; a
//! revision that was cut off by the end of a connection is asked for again from its beginning. The resume point moves
//! by events, and by progress notifications (which etcd sends for a watch only when nothing is on its way to it; the
//! requested kind, which old releases let overtake events, is not used).
//!
//! A subscriber that does not read loses its stream and gets a new one when it reads again: unread answers would
//! hold up everybody else on the connection.

use crate::{
    client::{Etcd, MESSAGE_MAX},
    fault::Outcome,
    proto::{
        etcdserverpb::{
            WatchCreateRequest, WatchRequest, WatchResponse, watch_client::WatchClient,
            watch_request::RequestUnion,
        },
        mvccpb::Event,
    },
};
use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use photon_rt::time::{Duration, timeout};
use tokio::sync::mpsc;
use tonic::Code;

/// Longest wait for a member to say that the watch is made.
const OPEN_MAX: Duration = Duration::from_secs(8);
/// Longest time that a subscriber may hold up its stream.
const STALL_MAX: Duration = Duration::from_secs(1);
/// Revisions that wait for a subscriber.
const QUEUE: usize = 256;

/// All events of one revision; or none: everything up to it has been delivered.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// Revision.
    pub revision: i64,
    /// In the order of the transaction.
    pub events: Vec<Event>,
}

/// Why a watch can't go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Ended {
    /// What comes next was compacted away; history begins here.
    #[error("history before revision {0} was compacted away")]
    Compacted(i64),
    /// Etcd's words.
    #[error("{0}")]
    Refused(String),
}

/// Where a watch is.
#[derive(Debug)]
struct Follow {
    next: i64,
    /// Events of a revision that may not be complete.
    part: Vec<Event>,
}

/// What became of an answer.
#[derive(Debug, PartialEq)]
enum Taken {
    Batches(Vec<Batch>),
    /// The member ended the watch, for a reason that another may not have.
    Lost(String),
    Ended(Ended),
}

fn revision(e: &Event) -> i64 {
    e.kv.as_ref().map_or(0, |kv| kv.mod_revision)
}

impl Follow {
    fn resume(&mut self) {
        self.part.clear();
    }

    fn take(&mut self, r: WatchResponse) -> Taken {
        if r.canceled {
            return match r.compact_revision {
                0 if r.cancel_reason.contains("permission denied") => {
                    Taken::Ended(Ended::Refused(r.cancel_reason))
                }
                0 => Taken::Lost(r.cancel_reason),
                at => Taken::Ended(Ended::Compacted(at)),
            };
        }
        if r.created {
            return Taken::Batches(Vec::new());
        }
        let told = r.header.as_ref().map_or(0, |h| h.revision);
        if r.events.is_empty() && !r.fragment {
            if told < self.next || !self.part.is_empty() {
                return Taken::Batches(Vec::new());
            }
            self.next = told + 1;
            return Taken::Batches(vec![Batch { revision: told, events: Vec::new() }]);
        }
        for e in r.events {
            if self.part.last().is_some_and(|last| revision(last) > revision(&e)) {
                return Taken::Lost("the events came out of order".into());
            }
            if revision(&e) >= self.next {
                self.part.push(e);
            }
        }
        let open = match self.part.last() {
            Some(last) if r.fragment => revision(last),
            _ => i64::MAX,
        };
        let rest = self.part.iter().position(|e| revision(e) == open).unwrap_or(self.part.len());
        let mut out: Vec<Batch> = Vec::new();
        for e in self.part.drain(..rest) {
            let at = revision(&e);
            match out.last_mut().filter(|b| b.revision == at) {
                Some(b) => b.events.push(e),
                None => out.push(Batch { revision: at, events: vec![e] }),
            }
        }
        if let Some(b) = out.last() {
            self.next = b.revision + 1;
        }
        Taken::Batches(out)
    }
}

/// Why a stream ended.
enum Turn {
    /// Nobody reads any more, or all has been said.
    Done,
    /// The subscriber is slow.
    Stalled,
    /// The connection or the member failed; the endpoint was left if known.
    Lost(Option<usize>, String),
}

impl Etcd {
    /// Everything that happens to the range from revision `from` on. Begins at once, not when it is first read.
    pub fn follow(
        &self,
        range: (Bytes, Bytes),
        from: i64,
    ) -> impl Stream<Item = Result<Batch, Ended>> + Send + Unpin + 'static {
        let (out, rx) = mpsc::channel(QUEUE);
        let me = self.clone();
        self.0.tasks.spawn("etcd-watch", async move {
            let gone = out.clone();
            tokio::select! {
                () = gone.closed() => {}
                () = me.pump(range, Follow { next: from, part: Vec::new() }, &out) => {}
            }
        });
        Box::pin(stream::unfold(rx, |mut rx| async move { rx.recv().await.map(|item| (item, rx)) }))
    }

    async fn pump(
        &self,
        range: (Bytes, Bytes),
        mut follow: Follow,
        out: &mpsc::Sender<Result<Batch, Ended>>,
    ) {
        let mut pace = self.pace();
        loop {
            follow.resume();
            let before = follow.next;
            let turn = self.session(&range, &mut follow, out).await;
            if follow.next > before {
                pace.reset();
            }
            match turn {
                Turn::Done => return,
                Turn::Stalled => {
                    if out.reserve_many(QUEUE).await.is_err() {
                        return;
                    }
                }
                Turn::Lost(at, why) => {
                    tracing::debug!(why, next = follow.next, "the watch broke; resuming");
                    if let Some(at) = at {
                        self.leave(at).await;
                    }
                    pace.pause().await;
                }
            }
        }
    }

    /// One stream, from its beginning to its end.
    async fn session(
        &self,
        (key, range_end): &(Bytes, Bytes),
        follow: &mut Follow,
        out: &mpsc::Sender<Result<Batch, Ended>>,
    ) -> Turn {
        let era = self.era();
        let (at, wire) = match self.wire().await {
            Ok(w) => w,
            Err((at, fault)) => return Turn::Lost(Some(at), fault.to_string()),
        };
        let create = WatchCreateRequest {
            key: key.clone(),
            range_end: range_end.clone(),
            start_revision: follow.next,
            progress_notify: true,
            fragment: true,
            ..Default::default()
        };
        let create = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        let requests = stream::once(async { create }).chain(stream::pending());
        let mut client = WatchClient::new(wire).max_decoding_message_size(MESSAGE_MAX);
        let mut answers = match timeout(OPEN_MAX, "the watch", client.watch(requests)).await {
            Err(e) => return Turn::Lost(Some(at), e.to_string()),
            Ok(Err(s)) => return self.broke(at, era, &s, out).await,
            Ok(Ok(r)) => r.into_inner(),
        };
        let mut open = false;
        loop {
            let next = if open {
                Ok(answers.message().await)
            } else {
                timeout(OPEN_MAX, "the watch", answers.message()).await
            };
            let answer = match next {
                Err(e) => return Turn::Lost(Some(at), e.to_string()),
                Ok(Err(s)) => return self.broke(at, era, &s, out).await,
                Ok(Ok(None)) => return Turn::Lost(Some(at), "the stream ended".into()),
                Ok(Ok(Some(a))) => a,
            };
            open = true;
            if let Err(f) = self.note(answer.header.as_ref()) {
                return Turn::Lost(Some(at), f.to_string());
            }
            let batches = match follow.take(answer) {
                Taken::Batches(b) => b,
                Taken::Lost(why) => {
                    if why.contains("auth") {
                        self.forget_token(era).await;
                    }
                    return Turn::Lost(Some(at), why);
                }
                Taken::Ended(e) => {
                    let _ = out.send(Err(e)).await; // nobody may read any more
                    return Turn::Done;
                }
            };
            for b in batches {
                match timeout(STALL_MAX, "the subscriber", out.reserve()).await {
                    Ok(Ok(slot)) => slot.send(Ok(b)),
                    Ok(Err(_)) => return Turn::Done,
                    Err(_) => {
                        if !b.events.is_empty() {
                            follow.next = b.revision;
                        }
                        return Turn::Stalled;
                    }
                }
            }
        }
    }

    async fn broke(
        &self,
        at: usize,
        era: u64,
        s: &tonic::Status,
        out: &mpsc::Sender<Result<Batch, Ended>>,
    ) -> Turn {
        match Outcome::of(s) {
            Outcome::Token => self.forget_token(era).await,
            Outcome::Final if s.code() == Code::PermissionDenied => {
                let _ = out.send(Err(Ended::Refused(s.message().into()))).await; // nobody may read any more
                return Turn::Done;
            }
            _ => {}
        }
        Turn::Lost(Some(at), s.message().to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{etcdserverpb::ResponseHeader, mvccpb::KeyValue};

    fn event(at: i64, key: &'static str) -> Event {
        let kv = KeyValue { key: key.into(), mod_revision: at, ..Default::default() };
        Event { kv: Some(kv), ..Default::default() }
    }

    fn answer(at: i64, fragment: bool, events: &[(i64, &'static str)]) -> WatchResponse {
        WatchResponse {
            header: Some(ResponseHeader { revision: at, ..Default::default() }),
            fragment,
            events: events.iter().map(|(at, k)| event(*at, k)).collect(),
            ..Default::default()
        }
    }

    fn taken(f: &mut Follow, r: WatchResponse) -> Vec<(i64, usize)> {
        match f.take(r) {
            Taken::Batches(b) => b.iter().map(|b| (b.revision, b.events.len())).collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn revisions_are_whole_and_come_once() {
        let mut f = Follow { next: 5, part: Vec::new() };
        assert_eq!(
            taken(&mut f, answer(9, false, &[(4, "a"), (5, "a"), (5, "b"), (7, "a")])),
            [(5, 2), (7, 1)]
        );
        assert_eq!(f.next, 8, "the header of events says nothing about what was delivered");
        assert_eq!(taken(&mut f, answer(9, false, &[(7, "a"), (8, "a")])), [(8, 1)]);
        // Fragments: the last revision may go on.
        assert_eq!(taken(&mut f, answer(12, true, &[(9, "a"), (10, "a")])), [(9, 1)]);
        assert_eq!((f.next, f.part.len()), (10, 1));
        assert_eq!(taken(&mut f, answer(12, true, &[(10, "b")])), []);
        assert_eq!(taken(&mut f, answer(12, false, &[(10, "c"), (11, "a")])), [(10, 3), (11, 1)]);
        // A connection lost between fragments: the revision is asked for again, whole.
        assert_eq!(taken(&mut f, answer(20, true, &[(12, "a")])), []);
        f.resume();
        assert_eq!(f.next, 12);
        assert_eq!(taken(&mut f, answer(20, false, &[(12, "a"), (12, "b")])), [(12, 2)]);
    }

    #[test]
    fn progress_moves_the_point_forward_only_and_past_nothing() {
        let mut f = Follow { next: 5, part: Vec::new() };
        assert_eq!(taken(&mut f, answer(9, false, &[])), [(9, 0)]);
        assert_eq!(f.next, 10);
        assert_eq!(taken(&mut f, answer(7, false, &[])), [], "another member is behind");
        assert_eq!(f.next, 10);
        assert_eq!(taken(&mut f, answer(12, true, &[(10, "a")])), []);
        assert_eq!(taken(&mut f, answer(12, false, &[])), [], "half a revision is here");
        assert_eq!(f.next, 10);
    }

    #[test]
    fn ends_and_losses() {
        let mut f = Follow { next: 5, part: Vec::new() };
        let r = WatchResponse { canceled: true, compact_revision: 9, ..Default::default() };
        assert_eq!(f.take(r), Taken::Ended(Ended::Compacted(9)));
        let cancel =
            |why: &str| WatchResponse { canceled: true, cancel_reason: why.into(), ..Default::default() };
        assert!(matches!(f.take(cancel("etcdserver: permission denied")), Taken::Ended(Ended::Refused(_))));
        assert!(matches!(f.take(cancel("etcdserver: no leader")), Taken::Lost(_)));
        assert!(matches!(f.take(answer(9, false, &[(7, "a"), (6, "a")])), Taken::Lost(_)));
    }
}
