//! FlareDB over the network: [`Remote`], the world of transactions whose regions are elsewhere.
//!
//! It keeps a bounded cache of regions and of which endpoint answered for each, and a few connections to every
//! endpoint. Nothing in the cache is trusted: regions check the version under which they are asked. What
//! is sent again and what is not is decided above, in [`crate::client`]; here a lost answer is
//! [`Refusal::Unknown`], and what surely was not sent [`Refusal::Unreachable`].

use crate::{
    Refusal,
    client::{Background, Request, Response, World},
    model::Descriptor,
    refusal::Outcome,
    time::Ts,
    wire::{
        Keyspace, MESSAGE_MAX, TIME_MAX, TIMESTAMPS_MAX, answer, of_request,
        proto::{self as pb, flare_db_client::FlareDbClient, locate_request::Place},
        refusal,
    },
};
use bytes::Bytes;
use photon_base::{Error, Result};
use photon_etcd::{config::Target, link};
use photon_rt::{
    entropy,
    task::Tasks,
    time::{Duration, sleep, timeout},
};
use rustls::ClientConfig;
use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    ops::Bound,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};
use tokio::sync::oneshot;
use tonic::{
    Code, Status,
    metadata::{Ascii, MetadataValue},
    transport::Channel,
};

/// Most regions that are remembered.
const REGIONS_MAX: usize = 10_000;

/// Most endpoints.
const ENDPOINTS_MAX: usize = 32;

/// Longer than a server takes for anything.
const ANSWER_MAX: Duration = TIME_MAX.saturating_add(Duration::from_secs(2));

/// Where FlareDB is, and who asks for what.
#[derive(Clone)]
pub struct Config {
    /// `https://HOST:PORT`; `http://` on loopback.
    pub endpoints: Vec<String>,
    /// Proves both sides to each other, for https.
    pub tls: Option<Arc<ClientConfig>>,
    /// Bearer token, if the certificate does not say who asks.
    pub token: Option<String>,
    /// Which keys.
    pub keyspace: Keyspace,
    /// Connections to each endpoint, 1 to 64.
    pub connections: usize,
}

impl Config {
    /// In plain text on loopback, everything. Several endpoints have commas between them.
    pub fn plain(endpoint: &str) -> Config {
        let endpoints = endpoint.split(',').map(|e| e.trim().to_string()).collect();
        Config { endpoints, tls: None, token: None, keyspace: Keyspace::All, connections: 2 }
    }
}

/// Most regions of a list.
const LISTED_MAX: usize = 1_000_000;

struct Endpoint {
    target: Target,
    /// Connected when first needed; they mend themselves.
    pool: Vec<Channel>,
}

/// A region as it was last heard of, and who answered for it.
#[derive(Clone)]
struct Known {
    region: Descriptor,
    at: usize,
}

struct Inner {
    endpoints: Vec<Endpoint>,
    token: Option<MetadataValue<Ascii>>,
    keyspace: String,
    regions: Mutex<BTreeMap<Bytes, Known>>,
    /// Endpoint that is asked when nothing is known.
    current: AtomicUsize,
    next: AtomicUsize,
    /// Those who want a timestamp, until somebody fetches for all of them.
    wanted: Mutex<Vec<oneshot::Sender<Outcome<Ts>>>>,
    fetching: tokio::sync::Mutex<()>,
    /// Transactions that said they wait.
    waiting: Mutex<BTreeSet<Ts>>,
    tasks: Tasks,
}

/// A client of a FlareDB. Clones share connections and cache. What it does in the background ends with the transactions that it is for.
#[derive(Clone)]
pub struct Remote(Arc<Inner>);

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a gRPC status says of a request.
fn fault(s: &Status) -> Refusal {
    match s.code() {
        Code::Unauthenticated | Code::PermissionDenied => Refusal::Denied(s.message().into()),
        Code::InvalidArgument | Code::OutOfRange | Code::Unimplemented => {
            Refusal::Malformed(s.message().into())
        }
        _ => match photon_etcd::never_connected(s) {
            Some(why) => Refusal::Unreachable(why),
            None => Refusal::Unknown(s.message().into()),
        },
    }
}

impl Remote {
    /// Connects, and proves that somebody answers who lets this caller in.
    pub async fn open(config: Config) -> Result<Remote> {
        let n = config.endpoints.len();
        if n == 0 || n > ENDPOINTS_MAX {
            return Err(Error::invalid("endpoints", format!("{n} are not 1 to {ENDPOINTS_MAX}")));
        }
        let tasks = Tasks::new();
        let endpoint = |url: &String| {
            let target = Target::parse(url)?;
            if target.tls && config.tls.is_none() {
                return Err(Error::invalid("endpoints", format!("{url} needs the authority's certificate")));
            }
            let tls = if target.tls { config.tls.as_ref() } else { None };
            let channel = |_| link::connect_lazy(&target, tls, &tasks);
            let pool =
                (0..config.connections.clamp(1, 64)).map(channel).collect::<std::result::Result<_, _>>();
            let pool = pool.map_err(|e| Error::invalid("endpoints", "has a wrong one").why(e))?;
            Ok(Endpoint { target, pool })
        };
        let endpoints = config.endpoints.iter().map(endpoint).collect::<Result<_>>()?;
        let bearer = |t: String| MetadataValue::try_from(format!("Bearer {t}"));
        let token = config.token.map(bearer).transpose();
        let token = token.map_err(|e| Error::invalid("token", "is no token").why(e))?;
        let me = Remote(Arc::new(Inner {
            endpoints,
            token,
            keyspace: config.keyspace.to_string(),
            regions: Mutex::default(),
            current: AtomicUsize::new(0),
            next: AtomicUsize::new(0),
            wanted: Mutex::default(),
            fetching: tokio::sync::Mutex::default(),
            waiting: Mutex::default(),
            tasks,
        }));
        let mut last = Refusal::Overloaded;
        for _ in 0..n {
            match me.timestamp().await {
                Ok(_) => return Ok(me),
                Err(e @ (Refusal::Denied(_) | Refusal::Malformed(_))) => return Err(e.error()),
                Err(e) => last = e,
            }
        }
        Err(last.error())
    }

    /// A connection to an endpoint.
    fn channel(&self, at: usize) -> Channel {
        let pool = &self.0.endpoints[at % self.0.endpoints.len()].pool;
        pool[self.0.next.fetch_add(1, Relaxed) % pool.len()].clone()
    }

    /// Turns away from an endpoint, unless somebody has.
    fn leave(&self, at: usize) {
        let _ = self.0.current.compare_exchange(at, at.wrapping_add(1), Relaxed, Relaxed);
    }

    fn stamped<T>(&self, message: T) -> tonic::Request<T> {
        let mut r = tonic::Request::new(message);
        if let Some(t) = &self.0.token {
            r.metadata_mut().insert("authorization", t.clone());
        }
        r
    }

    /// Sends to an endpoint and waits for the answer.
    async fn send<T, R, F>(
        &self,
        at: usize,
        message: T,
        f: impl FnOnce(FlareDbClient<Channel>, tonic::Request<T>) -> F,
    ) -> Outcome<R>
    where
        F: Future<Output = std::result::Result<tonic::Response<R>, Status>>,
    {
        let client = FlareDbClient::new(self.channel(at))
            .max_decoding_message_size(MESSAGE_MAX)
            .max_encoding_message_size(MESSAGE_MAX);
        match timeout(ANSWER_MAX, "an answer", f(client, self.stamped(message))).await {
            Ok(Ok(r)) => Ok(r.into_inner()),
            Ok(Err(s)) => {
                let refusal = fault(&s);
                if matches!(refusal, Refusal::Unknown(_) | Refusal::Unreachable(_)) {
                    self.leave(at);
                }
                Err(refusal)
            }
            Err(e) => {
                self.leave(at);
                Err(Refusal::Unknown(e.what))
            }
        }
    }

    fn current(&self) -> usize {
        self.0.current.load(Relaxed)
    }

    /// The region that is remembered of a place.
    fn known(&self, key: &Bytes, below: bool) -> Option<Known> {
        let all = lock(&self.0.regions);
        let bound = match (below, key.is_empty()) {
            (true, true) => Bound::Unbounded,
            (true, false) => Bound::Excluded(key),
            (false, _) => Bound::Included(key),
        };
        let (_, k) = all.range::<Bytes, _>((Bound::Unbounded, bound)).next_back()?;
        let span = k.region.span();
        let holds = match below {
            true => span.end.is_empty() || (!key.is_empty() && span.end >= *key),
            false => span.contains(key),
        };
        holds.then(|| k.clone())
    }

    async fn find(&self, place: Place, key: &Bytes, below: bool) -> Outcome<Descriptor> {
        if let Some(k) = self.known(key, below) {
            return Ok(k.region);
        }
        let ask = pb::LocateRequest { keyspace: self.0.keyspace.clone(), place: Some(place) };
        let at = self.current();
        let r = self.send(at, ask, |mut c, r| async move { c.locate(r).await }).await?;
        if let Some(e) = r.refusal {
            return Err(refusal(e));
        }
        let region = r.regions.into_iter().next().ok_or(Refusal::NoRegion(0))?;
        // Who leads it is asked first; any other would ask there.
        let at = self.0.endpoints.iter().position(|e| e.target.url == r.leader).unwrap_or(at);
        let mut all = lock(&self.0.regions);
        if all.len() >= REGIONS_MAX {
            all.clear(); // which of them are in use, use will say
        }
        let span = region.span();
        // What overlaps is older, or another's news of the same: whoever is wrong is told so.
        let older = |k: &Known| k.region.id == region.id && k.region.version != region.version;
        all.retain(|_, k| !older(k) && !k.region.span().overlaps(&span));
        all.insert(region.start.clone(), Known { region: region.clone(), at });
        Ok(region)
    }

    /// Fetches timestamps for all who want one now.
    async fn fetch(&self) {
        let waiting = {
            let mut all = lock(&self.0.wanted);
            let n = all.len().min(TIMESTAMPS_MAX as usize);
            all.drain(..n).collect::<Vec<_>>()
        };
        if waiting.is_empty() {
            return;
        }
        let count = u32::try_from(waiting.len()).unwrap_or(TIMESTAMPS_MAX);
        let ask = pb::TimestampsRequest { keyspace: self.0.keyspace.clone(), count, here: false };
        let r = self.send(self.current(), ask, |mut c, r| async move { c.timestamps(r).await }).await;
        let first = r.and_then(|r| r.refusal.map_or(Ok(r.first), |e| Err(refusal(e))));
        for (i, who) in waiting.into_iter().enumerate() {
            let _ = who.send(first.clone().map(|f| f + 2 * i as u64)); // whoever wanted it may be gone
        }
    }

    /// All regions, in the order of their keys.
    pub async fn regions(&self) -> Outcome<Vec<pb::Region>> {
        let mut out = Vec::new();
        let mut from = Bytes::new();
        loop {
            let ask = pb::RegionsRequest { from, limit: 1000 };
            let r = self.send(self.current(), ask, |mut c, r| async move { c.regions(r).await }).await?;
            if let Some(e) = r.refusal {
                return Err(refusal(e));
            }
            out.extend(r.regions);
            match r.next {
                None => return Ok(out),
                Some(_) if out.len() >= LISTED_MAX => {
                    return Err(Refusal::TooMany { what: "regions", n: out.len(), limit: LISTED_MAX });
                }
                Some(next) => from = next,
            }
        }
    }

    /// The nodes.
    pub async fn stores(&self) -> Outcome<Vec<pb::Store>> {
        let ask = pb::StoresRequest {};
        let r = self.send(self.current(), ask, |mut c, r| async move { c.stores(r).await }).await?;
        r.refusal.map_or(Ok(r.stores), |e| Err(refusal(e)))
    }

    /// Splits the region around a border in two.
    pub async fn split(&self, at: Bytes) -> Outcome<Vec<Descriptor>> {
        let ask = pb::SplitRequest { at };
        let r = self.send(self.current(), ask, |mut c, r| async move { c.split(r).await }).await?;
        r.refusal.map_or(Ok(r.regions), |e| Err(refusal(e)))
    }

    /// Makes a region part of its left neighbour.
    pub async fn merge(&self, source: u64) -> Outcome<Vec<Descriptor>> {
        let ask = pb::MergeRequest { source };
        let r = self.send(self.current(), ask, |mut c, r| async move { c.merge(r).await }).await?;
        r.refusal.map_or(Ok(r.regions), |e| Err(refusal(e)))
    }

    async fn say_waits(&self, waiter: Ts, holder: Ts) -> Outcome<()> {
        let ask = pb::WaitRequest { keyspace: self.0.keyspace.clone(), waiter, holder };
        let r = self.send(self.current(), ask, |mut c, r| async move { c.wait(r).await }).await?;
        r.refusal.map_or(Ok(()), |e| Err(refusal(e)))
    }
}

impl World for Remote {
    async fn timestamp(&self) -> Outcome<Ts> {
        loop {
            let (give, mut get) = oneshot::channel();
            lock(&self.0.wanted).push(give);
            let _one = self.0.fetching.lock().await;
            // Whoever fetched while this waited began after it was wanted.
            if get.is_empty() {
                self.fetch().await;
            }
            match get.try_recv() {
                Ok(answer) => return answer,
                // Too many were before it, or whoever fetched was cut off.
                Err(_) => continue,
            }
        }
    }

    async fn locate(&self, key: &Bytes) -> Outcome<Descriptor> {
        self.find(Place::Key(key.clone()), key, false).await
    }

    async fn locate_below(&self, end: &Bytes) -> Outcome<Descriptor> {
        self.find(Place::Below(end.clone()), end, true).await
    }

    fn forget(&self, region: &Descriptor) {
        lock(&self.0.regions).retain(|_, k| k.region.id != region.id);
    }

    async fn ask(&self, region: &Descriptor, request: Request) -> Outcome<Response> {
        let what = of_request(request)?;
        let (id, version) = (region.id, region.version);
        let keyspace = self.0.keyspace.clone();
        let ask = pb::AskRequest { keyspace, region: id, version, what: Some(what), here: false };
        let at = lock(&self.0.regions).get(&region.start).filter(|k| k.region.id == id).map(|k| k.at);
        let at = at.unwrap_or_else(|| self.current());
        answer(self.send(at, ask, |mut c, r| async move { c.ask(r).await }).await?)
    }

    fn sleep(&self, ms: u64) -> impl Future<Output = ()> + Send {
        sleep(Duration::from_millis(ms))
    }

    fn draw(&self, n: u64) -> u64 {
        entropy::u64() % n.max(1)
    }

    fn background(&self, task: Background) {
        self.0.tasks.spawn("flaredb-transaction", task);
    }

    async fn waits(&self, waiter: Ts, holder: Ts) -> Outcome<()> {
        lock(&self.0.waiting).insert(waiter);
        match self.say_waits(waiter, holder).await {
            // Only circles end a transaction; who is not heard waits as long as their patience lasts.
            Err(e @ Refusal::Deadlock(_)) => Err(e),
            _ => Ok(()),
        }
    }

    fn waited(&self, waiter: Ts) {
        if !lock(&self.0.waiting).remove(&waiter) {
            return;
        }
        let me = self.clone();
        self.background(Box::pin(async move {
            let _ = me.say_waits(waiter, 0).await; // it is forgotten by itself, too
        }));
    }
}
