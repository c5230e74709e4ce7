//! [`Etcd`]: which endpoint is asked, and what is asked again. One endpoint is used until it fails; then the next,
//! and after a round of all of them a pause that grows, with jitter.

use crate::{
    config::{Config, Login, Target},
    fault::{Fault, Outcome, too_large},
    link::{self, Stamp, Wire},
    proto::etcdserverpb::{self as pb, auth_client::AuthClient, kv_client::KvClient},
};
use bytes::Bytes;
use photon_base::{Error, Result};
use photon_rt::{
    entropy,
    task::Tasks,
    time::{Duration, Instant, now, sleep, timeout},
};
use rustls::ClientConfig;
use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
};
use tokio::sync::Mutex;
use tonic::{
    Code, Response, Status,
    metadata::{Ascii, MetadataValue},
    transport::Channel,
};

/// Longest wait for one answer. etcd itself gives up after 7 s with its default election timeout.
const ANSWER_MAX: Duration = Duration::from_secs(8);
/// Longest pause between tries.
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// Greatest answer that is read: a page of large values. Etcd sets no bound of its own.
pub(crate) const MESSAGE_MAX: usize = 64 << 20;

/// A client of one cluster. Clones share connections.
#[derive(Clone)]
pub struct Etcd(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    targets: Vec<Target>,
    links: Vec<Mutex<Link>>,
    tls: Option<Arc<ClientConfig>>,
    current: AtomicUsize,
    login: Option<Login>,
    token: Mutex<Option<MetadataValue<Ascii>>>,
    era: AtomicU64,
    patience: Duration,
    home: Bytes,
    cluster: AtomicU64,
    seen: AtomicI64,
    pub(crate) tasks: Tasks,
}

/// The connection to an endpoint.
enum Link {
    New,
    Up(Channel),
    /// It could not be made at that time.
    Down(Instant, String),
}

/// Answers that say which cluster gave them, at which revision.
pub(crate) trait Headed {
    fn header(&self) -> Option<&pb::ResponseHeader>;
}

macro_rules! headed {
    ($($t:ty),*) => { $(impl Headed for $t {
        fn header(&self) -> Option<&pb::ResponseHeader> {
            self.header.as_ref()
        }
    })* };
}
headed!(
    pb::RangeResponse,
    pb::TxnResponse,
    pb::CompactionResponse,
    pb::LeaseGrantResponse,
    pb::LeaseRevokeResponse,
    pb::LeaseKeepAliveResponse,
    pb::LeaseTimeToLiveResponse,
    pb::LeaseLeasesResponse,
    pb::WatchResponse
);

/// Pauses between tries: none while there are endpoints not yet asked, then growing.
pub(crate) struct Pace {
    endpoints: u32,
    tries: u32,
}

impl Pace {
    pub(crate) fn new(endpoints: usize) -> Pace {
        Pace { endpoints: endpoints as u32, tries: 0 }
    }

    pub(crate) fn reset(&mut self) {
        self.tries = 0;
    }

    fn next(&mut self, dice: u64) -> Duration {
        self.tries += 1;
        if !self.tries.is_multiple_of(self.endpoints) {
            return Duration::ZERO;
        }
        let full = Duration::from_millis(50 << (self.tries / self.endpoints).min(6)).min(PAUSE_MAX);
        full / 2 + Duration::from_micros(dice % (full.as_micros() as u64 / 2))
    }

    pub(crate) async fn pause(&mut self) {
        sleep(self.next(entropy::u64())).await;
    }
}

/// What to read.
#[derive(Clone, Debug, Default)]
pub struct RangeQuery {
    /// First key; empty: the first of all.
    pub start: Bytes,
    /// First key behind; empty: to the last.
    pub end: Bytes,
    /// At this revision; 0: now.
    pub revision: i64,
    /// Most keys; 0: all.
    pub limit: i64,
    /// No values.
    pub keys_only: bool,
}

impl Etcd {
    /// Connects to a cluster; one endpoint has to answer.
    pub async fn open(config: Config) -> Result<Etcd> {
        if config.targets[0].tls && config.tls.is_none() {
            return Err(Error::invalid("ca", "https endpoints need the authority of their certificates"));
        }
        let me = Etcd(Arc::new(Inner {
            links: config.targets.iter().map(|_| Mutex::new(Link::New)).collect(),
            current: AtomicUsize::new(0),
            token: Mutex::new(None),
            era: AtomicU64::new(0),
            cluster: AtomicU64::new(0),
            seen: AtomicI64::new(0),
            tasks: Tasks::new(),
            targets: config.targets,
            tls: config.tls,
            login: config.login,
            patience: config.patience,
            home: config.home,
        }));
        // Tells the revision to begin from. Reading a key that nobody has needs no permission of value; who may not
        // even do that learns it here.
        me.now().await.map_err(|f| {
            let urls: Vec<&str> = me.0.targets.iter().map(|t| t.url.as_str()).collect();
            let e = Error::from(f);
            Error { what: format!("{} ({})", e.what, urls.join(", ")), ..e }
        })?;
        Ok(me)
    }

    /// Ends connections and watches.
    pub async fn shutdown(&self) {
        self.0.tasks.shutdown().await;
    }

    /// The cluster's id, as etcd gives it.
    pub fn cluster_id(&self) -> u64 {
        self.0.cluster.load(SeqCst)
    }

    /// The greatest revision that an answer has named.
    pub fn seen(&self) -> i64 {
        self.0.seen.load(SeqCst)
    }

    /// The store's revision now.
    pub async fn now(&self) -> Result<i64, Fault> {
        let (key, range_end) = self.nowhere();
        let r = self
            .raw_range(pb::RangeRequest { key, range_end, keys_only: true, ..Default::default() })
            .await?;
        Ok(r.header.map_or(0, |h| h.revision))
    }

    /// What is asked in place of nothing, for the revision in the answer.
    pub(crate) fn nowhere(&self) -> (Bytes, Bytes) {
        (self.0.home.clone(), Bytes::new())
    }

    pub(crate) fn pace(&self) -> Pace {
        Pace::new(self.0.targets.len())
    }

    /// A connection to the endpoint in use.
    pub(crate) async fn wire(&self) -> Result<(usize, Wire), (usize, Fault)> {
        let at = self.0.current.load(SeqCst);
        let asked = now();
        let channel = {
            let mut link = self.0.links[at].lock().await;
            match &*link {
                Link::Up(c) => c.clone(),
                // Somebody tried while this waited: a dead endpoint costs everybody one such time, not one each.
                Link::Down(since, why) if *since >= asked => return Err((at, Fault::Away(why.clone()))),
                Link::New | Link::Down(..) => {
                    match link::connect(&self.0.targets[at], self.0.tls.as_ref(), &self.0.tasks).await {
                        Ok(c) => {
                            *link = Link::Up(c.clone());
                            c
                        }
                        Err(why) => {
                            *link = Link::Down(now(), why.clone());
                            return Err((at, Fault::Away(why)));
                        }
                    }
                }
            }
        };
        let token = self.token(&channel).await.map_err(|f| (at, f))?;
        Ok((at, Wire::new(channel, Stamp { token })))
    }

    async fn token(&self, channel: &Channel) -> Result<Option<MetadataValue<Ascii>>, Fault> {
        let Some(login) = &self.0.login else { return Ok(None) };
        let mut token = self.0.token.lock().await;
        if token.is_none() {
            let request =
                pb::AuthenticateRequest { name: login.user.clone(), password: login.password.clone() };
            let mut client = AuthClient::new(channel.clone());
            let asked = timeout(ANSWER_MAX, "logging in", client.authenticate(request));
            let answer = match asked.await {
                Err(e) => return Err(Fault::Away(e.to_string())),
                // With authentication off nobody needs a token.
                Ok(Err(s)) if s.message().contains("authentication is not enabled") => return Ok(None),
                Ok(Err(s)) if Outcome::of(&s) == Outcome::Final => return Err(Fault::Refused(s)),
                Ok(Err(s)) => return Err(Fault::Away(s.message().to_string())),
                Ok(Ok(a)) => a.into_inner(),
            };
            let mut value: MetadataValue<Ascii> = answer
                .token
                .parse()
                .map_err(|_| Fault::Refused(Status::internal("the token has a wrong form")))?;
            value.set_sensitive(true);
            *token = Some(value);
        }
        Ok(token.clone())
    }

    /// Counts the tokens used so far.
    pub(crate) fn era(&self) -> u64 {
        self.0.era.load(SeqCst)
    }

    /// Logs in again for the next call, unless somebody has done so since `era`.
    pub(crate) async fn forget_token(&self, era: u64) {
        let mut token = self.0.token.lock().await;
        if self.0.era.compare_exchange(era, era + 1, SeqCst, SeqCst).is_ok() {
            *token = None;
        }
    }

    /// Leaves an endpoint that failed for the next one; its connection is made anew when its turn comes.
    pub(crate) async fn leave(&self, at: usize) {
        let mut link = self.0.links[at].lock().await;
        if matches!(*link, Link::Up(_)) {
            *link = Link::New;
        }
        let next = (at + 1) % self.0.targets.len();
        let _ = self.0.current.compare_exchange(at, next, SeqCst, SeqCst); // others may have left it already
    }

    /// Notes what an answer says about its cluster.
    pub(crate) fn note(&self, header: Option<&pb::ResponseHeader>) -> Result<(), Fault> {
        let Some(h) = header else { return Ok(()) };
        match self.0.cluster.compare_exchange(0, h.cluster_id, SeqCst, SeqCst) {
            Err(known) if known != h.cluster_id => Err(Fault::Refused(Status::failed_precondition(format!(
                "an endpoint belongs to cluster {:x}, the others to {known:x}",
                h.cluster_id
            )))),
            _ => {
                self.0.seen.fetch_max(h.revision, SeqCst);
                Ok(())
            }
        }
    }

    /// Asks until somebody answers or patience ends. `again`: repeating is harmless even if it was done.
    pub(crate) async fn call<T, F, Fut>(&self, again: bool, ask: F) -> Result<T, Fault>
    where
        T: Headed,
        F: Fn(Wire) -> Fut + Send + Sync,
        Fut: Future<Output = Result<Response<T>, Status>> + Send,
    {
        let until = now() + self.0.patience;
        let mut pace = self.pace();
        loop {
            let era = self.era();
            let (at, fault) = match self.wire().await {
                Err((at, Fault::Refused(s))) => {
                    tracing::debug!(endpoint = self.0.targets[at].url, error = %s, "refused");
                    return Err(Fault::Refused(s));
                }
                Err(failed) => failed,
                Ok((at, wire)) => match timeout(ANSWER_MAX, "the answer", ask(wire)).await {
                    Err(e) => (at, Fault::Unknown(e.to_string())),
                    Ok(Ok(r)) => {
                        let r = r.into_inner();
                        self.note(r.header())?;
                        return Ok(r);
                    }
                    Ok(Err(s)) => match Outcome::of(&s) {
                        Outcome::Final => return Err(Fault::Refused(s)),
                        Outcome::Token if self.0.login.is_none() => return Err(Fault::Refused(s)),
                        Outcome::Token => {
                            self.forget_token(era).await;
                            if now() >= until {
                                return Err(Fault::Refused(s));
                            }
                            pace.pause().await;
                            continue;
                        }
                        Outcome::NotDone => (at, Fault::Away(s.message().to_string())),
                        Outcome::Unknown => (at, Fault::Unknown(s.message().to_string())),
                    },
                },
            };
            tracing::debug!(endpoint = self.0.targets[at].url, error = %fault, "asking elsewhere");
            self.leave(at).await;
            if now() >= until || (matches!(fault, Fault::Unknown(_)) && !again) {
                return Err(fault);
            }
            pace.pause().await;
        }
    }

    /// Reads a range; `linearizable` or what one member has. With a limit, fewer keys than that may come.
    pub async fn range(&self, q: RangeQuery, linearizable: bool) -> Result<pb::RangeResponse, Fault> {
        let (key, range_end) = key_range(&q.start, &q.end).unwrap_or_else(|| self.nowhere());
        self.raw_range(pb::RangeRequest {
            key,
            range_end,
            limit: q.limit,
            revision: q.revision,
            keys_only: q.keys_only,
            serializable: !linearizable,
            ..Default::default()
        })
        .await
    }

    /// What is too large to be read at once is read in part; then the answer says that there is more.
    pub(crate) async fn raw_range(&self, mut request: pb::RangeRequest) -> Result<pb::RangeResponse, Fault> {
        loop {
            let asked = self.call(true, |wire| {
                let request = request.clone();
                async move { KvClient::new(wire).max_decoding_message_size(MESSAGE_MAX).range(request).await }
            });
            match asked.await {
                Err(Fault::Refused(s)) if too_large(&s) && request.limit > 1 => {
                    request.limit = (request.limit / 8).max(1);
                }
                other => return other,
            }
        }
    }

    /// A transaction. It is sent again if it surely was not done; in other cases only if that is `harmless`.
    pub async fn txn(&self, request: pb::TxnRequest, harmless: bool) -> Result<pb::TxnResponse, Fault> {
        self.call(harmless, |wire| {
            let request = request.clone();
            async move { KvClient::new(wire).max_decoding_message_size(MESSAGE_MAX).txn(request).await }
        })
        .await
    }

    /// Forgets the history before `revision`; fine when it is forgotten already.
    pub async fn compact(&self, revision: i64) -> Result<(), Fault> {
        let asked = self.call(true, |wire| {
            let request = pb::CompactionRequest { revision, physical: false };
            async move { KvClient::new(wire).compact(request).await }
        });
        match asked.await {
            Err(Fault::Refused(s)) if s.code() == Code::OutOfRange && crate::fault::compacted(&s) => Ok(()),
            other => other.map(|_| ()),
        }
    }
}

/// A range in etcd's terms: no empty keys, `\0` as an end for "to the last", no end for a single key. None when no
/// key can lie in it.
pub(crate) fn key_range(start: &Bytes, end: &Bytes) -> Option<(Bytes, Bytes)> {
    let first = if start.is_empty() { Bytes::from_static(&[0]) } else { start.clone() };
    if end.is_empty() {
        return Some((first, Bytes::from_static(&[0])));
    }
    if *end <= first {
        return None;
    }
    let single = end.len() == first.len() + 1 && end.starts_with(&first) && end.ends_with(&[0]);
    Some((first, if single { Bytes::new() } else { end.clone() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_come_after_a_round_and_grow_to_a_bound() {
        let mut p = Pace::new(3);
        let mut last = Duration::ZERO;
        for round in 0..20 {
            assert_eq!((p.next(1), p.next(1)), (Duration::ZERO, Duration::ZERO), "round {round}");
            let pause = p.next(u64::MAX);
            assert!(pause >= last / 2 && pause > Duration::ZERO && pause <= PAUSE_MAX, "{pause:?}");
            last = pause;
        }
        assert!(last >= PAUSE_MAX / 2);
        p.reset();
        assert_eq!(p.next(1), Duration::ZERO);
    }

    #[test]
    fn ranges_in_etcds_terms() {
        let r =
            |a: &'static [u8], b: &'static [u8]| key_range(&Bytes::from_static(a), &Bytes::from_static(b));
        assert_eq!(r(b"a", b"a\0"), Some(("a".into(), "".into())));
        assert_eq!(r(b"a", b"b"), Some(("a".into(), "b".into())));
        assert_eq!(r(b"", b""), Some(("\0".into(), "\0".into())));
        assert_eq!(r(b"", b"a"), Some(("\0".into(), "a".into())));
        assert_eq!(r(b"", b"\0"), None, "no key is empty");
        assert_eq!(r(b"b", b"a"), None);
    }
}
