//! FlareDB's own protocol: gRPC over TLS on port 2479, with `/health` beside it.
//!
//! Rooms: [`proto`] (generated), `convert` (messages to what regions speak), [`keyspace`] (whose keys are whose, who
//! may come in), `measure` (metrics), [`others`] (what nodes of one store ask each other, and their connections),
//! here: the service.
//!
//! Bounds: a message has at most [`MESSAGE_MAX`] bytes, [`REQUESTS_MAX`] requests run at a time (further ones are
//! refused at once as [`Refusal::Overloaded`]), none for longer than [`TIME_MAX`]. A request that was cut off may
//! have been done: its outcome is told as unknown.

mod convert;
pub mod keyspace;
mod measure;
pub mod others;
#[allow(missing_docs, reason = "generated; proto/flaredb.proto has the comments")]
pub mod proto;

pub(crate) use convert::{answer, of_request, refusal};
pub use keyspace::{Door, Keyspace};

use crate::{
    Node, Refusal,
    client::{Request as Asked, Response as Answered, World, deadlock::Detector, resolve},
    key,
    model::limits::{MAX_COMMAND, PAGE_BYTES},
    refusal::Outcome,
};
use axum::body::Body;
use convert::{of_answer, of_refusal, request};
use measure::Measure;
use photon_auth::Caller;
use photon_raft::NodeId;
use photon_rt::{
    task::Tasks,
    time::{Duration, now, timeout, wall},
};
use photon_serve::{health, listen::Direct};
use prost::Message as _;
use proto::{
    flare_db_server::{FlareDb as Service, FlareDbServer},
    *,
};
use serde_json::{Map, Value};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status as Fault};
use tower::Service as _;

/// Greatest message, either way: a command of the greatest size, or a page, and its envelope.
pub const MESSAGE_MAX: usize =
    (if MAX_COMMAND > 2 * PAGE_BYTES { MAX_COMMAND } else { 2 * PAGE_BYTES }) + (1 << 20);

/// Most requests at a time.
pub const REQUESTS_MAX: usize = 4096;

/// Longest that a request may take.
pub const TIME_MAX: Duration = Duration::from_secs(10);

/// What the paths of all calls begin with.
const PATH: &str = "/flaredb.v1.FlareDb/";

/// Most timestamps of one request.
pub const TIMESTAMPS_MAX: u32 = 4096;

/// Most regions of one page.
pub const REGIONS_MAX: u32 = 1000;

/// Most keyspaces whose waits are remembered; with more, those are forgotten in which nobody waits.
const DETECTORS_MAX: usize = 4096;

/// What runs FlareDB's listener. Clones are the same one.
#[derive(Clone)]
pub struct FlareDb(Arc<Inner>);

struct Inner {
    node: Node,
    door: Door,
    name: String,
    /// Where clients reach the nodes of a store of several.
    urls: BTreeMap<u64, String>,
    slots: Semaphore,
    /// Circles of waits, keyspace by keyspace: what one tenant says of its transactions concerns no other.
    waits: Mutex<BTreeMap<Keyspace, Detector>>,
    measure: Measure,
    tasks: Tasks,
}

impl FlareDb {
    /// Serves `node`, which is the one called `name`.
    pub fn new(node: Node, door: Door, name: String, tasks: &Tasks) -> FlareDb {
        FlareDb::new_in(node, door, name, BTreeMap::new(), tasks)
    }

    /// The same for one of several nodes, which clients reach at `urls`, by number.
    pub fn new_in(
        node: Node,
        door: Door,
        name: String,
        urls: BTreeMap<u64, String>,
        tasks: &Tasks,
    ) -> FlareDb {
        let inner = Inner {
            node,
            door,
            name,
            urls,
            slots: Semaphore::new(REQUESTS_MAX),
            waits: Mutex::default(),
            measure: Measure::new(),
            tasks: tasks.clone(),
        };
        let me = FlareDb(Arc::new(inner));
        let weak = Arc::downgrade(&me.0);
        tasks.spawn("flaredb-gauges", async move {
            while let Some(inner) = weak.upgrade() {
                inner.measure.look(&inner.node, REQUESTS_MAX - inner.slots.available_permits());
                drop(inner);
                photon_rt::time::sleep(Duration::from_secs(1)).await;
            }
        });
        me
    }

    /// The node that is served.
    pub fn node(&self) -> &Node {
        &self.0.node
    }

    /// Whether it works, and what it tells of itself: what the other nodes' shape of `/health` has, and regions.
    pub fn health(&self) -> (bool, Map<String, Value>) {
        let all = self.0.node.statuses();
        let led = all.iter().filter(|(_, s)| s.as_ref().is_some_and(measure::leads)).count();
        let stopped = self.0.node.stopped();
        let mut m = Map::new();
        m.insert("raft".into(), if led > 0 { "leader" } else { "follower" }.into());
        m.insert("regions".into(), all.len().into());
        m.extend(stopped.iter().map(|why| ("reason".into(), why.clone().into())));
        let served = !all.is_empty() && all.iter().all(|(_, s)| s.is_some_and(|s| s.leader.is_some()));
        (stopped.is_none() && served, m)
    }

    /// gRPC, and nothing else.
    fn grpc(&self) -> FlareDbServer<FlareDb> {
        FlareDbServer::new(self.clone())
            .max_decoding_message_size(MESSAGE_MAX)
            .max_encoding_message_size(MESSAGE_MAX)
    }

    /// `/health`, `/ready` and `/metrics` of FlareDB alone.
    pub fn pages(&self) -> axum::Router {
        let me = self.clone();
        let report = move || {
            let (well, mut m) = me.health();
            m.insert("chainfire".into(), "not used".into());
            (well, m)
        };
        health::routes(Arc::new(report)).merge(photon_serve::metrics::routes())
    }

    /// All of its gRPC: what a listener asks first, see [`Direct`]. Of those whom nobody knows nothing is read.
    pub fn direct(&self) -> Direct {
        let grpc = self.grpc();
        let open = matches!(self.0.door, Door::Open);
        Arc::new(move |request, caller| {
            if !request.uri().path().starts_with(PATH) {
                return None;
            }
            if caller.is_none() && !open {
                let stranger =
                    Fault::unauthenticated("a token or a certificate is needed; hint: photon login");
                return Some(Box::pin(std::future::ready(Ok(stranger.into_http()))));
            }
            let mut request = std::mem::take(request);
            if let Some(caller) = caller {
                request.extensions_mut().insert(caller.clone());
            }
            let answer = grpc.clone().call(request);
            Some(Box::pin(async move { answer.await.map(|r| r.map(Body::new)) }))
        })
    }

    /// The keyspace that is named, if the caller may use it.
    async fn keyspace(&self, caller: Option<&Caller>, name: &str, changes: bool) -> Outcome<Keyspace> {
        let space: Keyspace = name.parse()?;
        self.0.door.admit(caller, &space, changes).await?;
        Ok(space)
    }

    async fn ask_region(&self, caller: Option<&Caller>, r: AskRequest) -> Outcome<Answered> {
        let asked = request(r.what)?;
        let space = self.keyspace(caller, &r.keyspace, matches!(asked, Asked::Do(_))).await?;
        space.admit(&asked)?;
        let near = match &asked {
            Asked::Do(op) => crate::model::region::keys(op).first().map(|k| (*k).clone()),
            read => read.reads().map(|(s, _)| s.start),
        };
        let near = near.unwrap_or_default();
        let region = crate::model::Descriptor { id: r.region, version: r.version, ..Default::default() };
        let answer = match r.here {
            true => self.0.node.ask_here(&region, asked).await,
            false => self.0.node.ask(&region, asked).await,
        };
        match answer {
            Err(Refusal::StaleEpoch(d)) => Err(Refusal::StaleEpoch(Box::new(space.cut(*d, &near)))),
            Err(Refusal::Locked(locks)) => {
                let (foreign, own): (Vec<_>, Vec<_>) = locks.into_iter().partition(|l| space.is_foreign(l));
                if !foreign.is_empty() {
                    // Who asks may not touch the key that decides.
                    let node = self.0.node.clone();
                    self.0.tasks.spawn("flaredb-foreign-locks", async move {
                        if let Err(e) = resolve::clear(&node, foreign, 0).await {
                            tracing::debug!(error = %e, "locks of another keyspace stay for now");
                        }
                    });
                }
                Err(if own.is_empty() { Refusal::Overloaded } else { Refusal::Locked(own) })
            }
            answer => answer,
        }
    }

    async fn find(&self, caller: Option<&Caller>, r: LocateRequest) -> Outcome<crate::model::Descriptor> {
        let space = self.keyspace(caller, &r.keyspace, false).await?;
        match r.place {
            Some(locate_request::Place::Key(key)) => {
                space.admit_place(&key, false)?;
                Ok(space.cut(self.0.node.locate(&key).await?, &key))
            }
            Some(locate_request::Place::Below(end)) => {
                space.admit_place(&end, true)?;
                // The end of a keyspace of transactions begins with their letter, or is just behind it.
                let near = if end[..] > [key::Mode::Raw as u8 + 1][..] {
                    [key::Mode::Txn as u8]
                } else {
                    [key::Mode::Raw as u8]
                };
                Ok(space.cut(self.0.node.locate_below(&end).await?, &near))
            }
            None => Err(Refusal::Malformed("no place".into())),
        }
    }

    async fn page_of_regions(&self, caller: Option<&Caller>, r: RegionsRequest) -> Outcome<RegionsResponse> {
        self.0.door.admit_admin(caller, false).await?;
        if r.limit == 0 || r.limit > REGIONS_MAX {
            let (n, limit) = (r.limit as usize, REGIONS_MAX as usize);
            return Err(Refusal::TooMany { what: "rows", n, limit });
        }
        let all = self.0.node.statuses();
        let mut rest = all.into_iter().filter(|(d, _)| d.start >= r.from);
        let row = |(region, status): (_, Option<photon_raft::GroupStatus>)| Region {
            region: Some(region),
            leader: status.as_ref().and_then(|s| s.leader).map_or(0, |n| n.0),
            term: status.as_ref().map_or(0, |s| s.term),
            applied: status.as_ref().map_or(0, |s| s.applied),
        };
        let regions = rest.by_ref().take(r.limit as usize).map(row).collect();
        Ok(RegionsResponse { regions, next: rest.next().map(|(d, _)| d.start), refusal: None })
    }

    async fn all_stores(&self, caller: Option<&Caller>) -> Outcome<Vec<Store>> {
        self.0.door.admit_admin(caller, false).await?;
        let all = self.0.node.statuses();
        let me = self.0.node.number();
        let store = |id: u64| {
            let of = |d: &crate::model::Descriptor| d.members.is_empty() || d.members.contains(&id);
            let led = all.iter().filter(|(_, s)| s.is_some_and(|s| s.leader == Some(NodeId(id))));
            Store {
                id,
                node: if id == me { self.0.name.clone() } else { format!("n{id}") },
                regions: all.iter().filter(|(d, _)| of(d)).count() as u64,
                leaders: led.count() as u64,
                disk_bytes: if id == me { self.0.node.disk_bytes() } else { 0 },
                url: self.0.urls.get(&id).cloned().unwrap_or_default(),
            }
        };
        Ok(self.0.node.members().into_iter().map(store).collect())
    }

    fn waits(&self, space: Keyspace, r: &WaitRequest) -> Outcome<()> {
        let mut all = self.0.waits.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= DETECTORS_MAX && !all.contains_key(&space) {
            all.retain(|_, d| !d.is_idle(wall().0));
            if all.len() >= DETECTORS_MAX {
                return Ok(()); // found by nobody's patience but their own
            }
        }
        let detector = all.entry(space).or_default();
        match r.holder {
            0 => {
                detector.waited(r.waiter);
                Ok(())
            }
            holder => detector.waits(r.waiter, holder, wall().0),
        }
    }

    /// Runs a request within its bounds, and counts it.
    async fn bounded<T>(&self, what: &'static str, f: impl Future<Output = Outcome<T>>) -> Outcome<T> {
        let begun = now();
        let answer = match self.0.slots.try_acquire() {
            Err(_) => Err(Refusal::Overloaded),
            Ok(_slot) => match timeout(TIME_MAX, what, f).await {
                Ok(answer) => answer,
                Err(_) => Err(Refusal::Unknown(format!("it took longer than {} s", TIME_MAX.as_secs()))),
            },
        };
        self.0.measure.done(what, now() - begun, answer.as_ref().err());
        answer
    }
}

fn split_off<T>(r: Request<T>) -> (Option<Caller>, T) {
    let caller = r.extensions().get::<Caller>().cloned();
    (caller, r.into_inner())
}

#[tonic::async_trait]
impl Service for FlareDb {
    async fn timestamps(&self, r: Request<TimestampsRequest>) -> Result<Response<TimestampsResponse>, Fault> {
        let (caller, r) = split_off(r);
        let give = async {
            self.keyspace(caller.as_ref(), &r.keyspace, false).await?;
            if r.count == 0 || r.count > TIMESTAMPS_MAX {
                let (n, limit) = (r.count as usize, TIMESTAMPS_MAX as usize);
                return Err(Refusal::TooMany { what: "timestamps", n, limit });
            }
            match r.here {
                true => self.0.node.timestamps_here(r.count).await,
                false => self.0.node.timestamps(r.count).await,
            }
        };
        let answer = self.bounded("timestamps", give).await;
        Ok(Response::new(match answer {
            Ok(first) => TimestampsResponse { first, refusal: None },
            Err(e) => TimestampsResponse { first: 0, refusal: Some(of_refusal(e)) },
        }))
    }

    async fn locate(&self, r: Request<LocateRequest>) -> Result<Response<LocateResponse>, Fault> {
        let (caller, r) = split_off(r);
        let answer = self.bounded("locate", self.find(caller.as_ref(), r)).await;
        let leader = answer.as_ref().ok().and_then(|d| self.0.node.leader(d.id));
        let leader = leader.and_then(|n| self.0.urls.get(&n).cloned()).unwrap_or_default();
        let answer = located(answer.map(|d| vec![d]));
        Ok(Response::new(LocateResponse { leader, ..answer }))
    }

    async fn ask(&self, r: Request<AskRequest>) -> Result<Response<AskResponse>, Fault> {
        let (caller, r) = split_off(r);
        let what = measure::name(r.what.as_ref());
        let answer = self.bounded(what, self.ask_region(caller.as_ref(), r)).await;
        Ok(Response::new(of_answer(answer)))
    }

    async fn wait(&self, r: Request<WaitRequest>) -> Result<Response<WaitResponse>, Fault> {
        let (caller, r) = split_off(r);
        let wait = async {
            let space = self.keyspace(caller.as_ref(), &r.keyspace, true).await?;
            self.waits(space, &r)
        };
        let answer = self.bounded("wait", wait).await;
        let refusal = answer.err().map(of_refusal);
        Ok(Response::new(WaitResponse { refusal }))
    }

    async fn regions(&self, r: Request<RegionsRequest>) -> Result<Response<RegionsResponse>, Fault> {
        let (caller, r) = split_off(r);
        let answer = self.bounded("regions", self.page_of_regions(caller.as_ref(), r)).await;
        let refused = |e| RegionsResponse { refusal: Some(of_refusal(e)), ..RegionsResponse::default() };
        Ok(Response::new(answer.unwrap_or_else(refused)))
    }

    async fn stores(&self, r: Request<StoresRequest>) -> Result<Response<StoresResponse>, Fault> {
        let (caller, _) = split_off(r);
        let answer = self.bounded("stores", self.all_stores(caller.as_ref())).await;
        Ok(Response::new(match answer {
            Ok(stores) => StoresResponse { stores, refusal: None },
            Err(e) => StoresResponse { stores: Vec::new(), refusal: Some(of_refusal(e)) },
        }))
    }

    async fn replica(&self, r: Request<ReplicaRequest>) -> Result<Response<ReplicaResponse>, Fault> {
        let (caller, r) = split_off(r);
        let look = async {
            self.0.door.admit_admin(caller.as_ref(), true).await?;
            self.0.node.region_state(r.region).await
        };
        let answer = self.bounded("replica", look).await;
        Ok(Response::new(match answer {
            Ok(s) => ReplicaResponse { state: s.encode_to_vec().into(), refusal: None },
            Err(e) => ReplicaResponse { refusal: Some(of_refusal(e)), ..ReplicaResponse::default() },
        }))
    }

    async fn split(&self, r: Request<SplitRequest>) -> Result<Response<LocateResponse>, Fault> {
        let (caller, r) = split_off(r);
        let change = async {
            self.0.door.admit_admin(caller.as_ref(), true).await?;
            if !key::is_border(&r.at) {
                return Err(Refusal::Malformed("a region splits where a row group begins".into()));
            }
            tracing::info!(by = ?caller.as_ref().map(|c| c.identity.to_string()), "a region is split");
            self.0.node.split(r.at).await
        };
        let answer = self.bounded("split", change).await;
        Ok(Response::new(located(answer)))
    }

    async fn merge(&self, r: Request<MergeRequest>) -> Result<Response<LocateResponse>, Fault> {
        let (caller, r) = split_off(r);
        let change = async {
            self.0.door.admit_admin(caller.as_ref(), true).await?;
            tracing::info!(by = ?caller.as_ref().map(|c| c.identity.to_string()), region = r.source, "a region is merged");
            // Its two halves must not be torn apart by whoever asked and went away.
            let node = self.0.node.clone();
            let merged = self.0.tasks.spawn("flaredb-merge", async move { node.merge(r.source).await }).await;
            match merged {
                Ok(Some(answer)) => answer.map(|d| vec![d]),
                _ => Err(Refusal::Unknown("the node ends".into())),
            }
        };
        let answer = self.bounded("merge", change).await;
        Ok(Response::new(located(answer)))
    }
}

fn located(answer: Outcome<Vec<crate::model::Descriptor>>) -> LocateResponse {
    match answer {
        Ok(regions) => LocateResponse { regions, ..LocateResponse::default() },
        Err(e) => LocateResponse { refusal: Some(of_refusal(e)), ..LocateResponse::default() },
    }
}
