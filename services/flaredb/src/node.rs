//! The regions of a node: each a Raft group over one log and one engine, with the gate of its leader, split
//! and merged while they are used; and [`Node`] as the world of transactions that run in this process.
//!
//! Rooms: [`cluster`] (what makes it one of several nodes: who the others are, what they ask each other, replicas
//! that are found missing), `ranges` (splits and merges), `time` (timestamps). A node of several is a world of
//! its own as well: what another one leads is asked there.
//!
//! Every wait ends when the region or its leadership goes, when the node stops, or after a bounded time.

use crate::{
    Refusal,
    client::{Background, Request, Response, World, deadlock::Detector},
    machine::{RegionMachine, Shared},
    model::{
        Answer, Command, Descriptor, Effect, Gate, Op, RegionState, SPACES, gate::Entry, layout::META,
        limits::MAX_COMMAND, region,
    },
    refusal::Outcome,
    time::Ts,
};
use bytes::Bytes;
pub use cluster::{Cluster, Others};
use photon_kv::{
    Direction,
    engine::{Engine, FjallEngine, FjallOptions, KeyRange},
};
use photon_raft::{Group, GroupId, GroupStatus, NoTransport, NodeId, ProposeError, Role, Store, StoreConfig};
use photon_rt::{
    disk::{Disk, RealDisk},
    task::Tasks,
    time::Duration,
};
use prost::Message;
pub use ranges::REGION_BYTES;
use std::{
    collections::BTreeMap,
    future::Future,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, atomic::AtomicU64},
};
use time::Source;
use tokio::sync::{Notify, mpsc};

/// How long what comes by itself may be waited for: a region that was just made or is being taken in.
const PATIENCE: Duration = Duration::from_secs(10);

struct Replica {
    group: Group<RegionMachine>,
    /// The range as of what was applied here.
    shown: Arc<RwLock<Descriptor>>,
    gate: Mutex<Gate>,
    /// A derived commit is no longer under way.
    settled: Notify,
    /// Bytes written since the start, and how many they were when its size was last measured (0: never).
    written: Arc<AtomicU64>,
    measured: AtomicU64,
}

struct Inner {
    me: NodeId,
    /// All nodes, this one among them, in rising order. Empty: it is alone.
    members: Vec<u64>,
    others: Option<Arc<dyn Others>>,
    shared: Arc<Shared>,
    store: Arc<Store>,
    replicas: Mutex<BTreeMap<u64, Arc<Replica>>>,
    /// A replica came or went.
    changed: Notify,
    time: Source,
    detector: Mutex<Detector>,
    /// Held by whoever changes ranges: one operator at a time on a node. Holds the last region's number that was
    /// given out here.
    ranges: tokio::sync::Mutex<u64>,
    tasks: Tasks,
}

/// A node and all its regions. Clones are the same one. Dropping the last without [`Node::shutdown`] is a crash.
#[derive(Clone)]
pub struct Node(Arc<Inner>);

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

fn now_ms() -> u64 {
    photon_rt::time::wall().0
}

/// All regions that the engine knows or knew, by number.
fn known(view: &dyn photon_kv::engine::View) -> Outcome<Vec<RegionState>> {
    let all = view.scan(META, KeyRange::prefix(&b"r"[..]), Direction::Forward);
    all.map(|item| RegionState::decode(item?.1).map_err(broken)).collect()
}

fn broken(e: impl std::fmt::Display) -> Refusal {
    Refusal::Broken(e.to_string())
}

impl Node {
    /// Opens or begins the store in a folder: the log in `log`, the engine in `state`. It has this node alone.
    pub async fn open(dir: &Path) -> Outcome<Node> {
        let (disk, engine) = Node::folder(dir).await?;
        Node::start(disk, engine).await
    }

    /// The same as one of several nodes. It is there at once, and works as soon as most of them are.
    pub async fn open_in(dir: &Path, cluster: Cluster) -> Outcome<Node> {
        let (disk, engine) = Node::folder(dir).await?;
        Node::start_in(disk, engine, cluster).await
    }

    async fn folder(dir: &Path) -> Outcome<(Arc<dyn Disk>, Arc<dyn Engine>)> {
        let (log, state) = (dir.join("log"), dir.join("state"));
        let open = move || -> Outcome<(Arc<dyn Disk>, Arc<dyn Engine>)> {
            for d in [&log, &state] {
                photon_rt::fs::private_dir(d).map_err(broken)?;
            }
            let disk = RealDisk::open(&log).map_err(broken)?;
            let engine = FjallEngine::open(&state, &SPACES, FjallOptions::default())?;
            Ok((Arc::new(disk), Arc::new(engine)))
        };
        photon_rt::task::blocking(open).await
    }

    /// A node alone, on a given log disk and engine.
    pub async fn start(disk: Arc<dyn Disk>, engine: Arc<dyn Engine>) -> Outcome<Node> {
        let node = Node::launch(disk, engine, None).await?;
        let all = node.caught_up().await?;
        for s in all.iter().filter(|s| !s.gone && s.merging != 0) {
            node.give_up_merge(s.region.id).await?;
        }
        Ok(node)
    }

    /// One of several nodes, on a given log disk and engine.
    pub async fn start_in(disk: Arc<dyn Disk>, engine: Arc<dyn Engine>, cluster: Cluster) -> Outcome<Node> {
        Node::launch(disk, engine, Some(cluster)).await
    }

    async fn launch(disk: Arc<dyn Disk>, engine: Arc<dyn Engine>, cluster: Option<Cluster>) -> Outcome<Node> {
        let (me, members) = match &cluster {
            Some(c) => (c.me, c.numbers()?),
            None => (NodeId(1), Vec::new()),
        };
        cluster::claim(&engine, &cluster, me, &members).await?;
        let given = ranges::last_number(&*engine)?;
        let time = match &cluster {
            Some(c) => Source::shared(c),
            None => Source::own(&*engine)?,
        };
        let (effects, events) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared { engine, routes: Default::default(), effects });
        let mut config = StoreConfig::new(me);
        if let Some(c) = &cluster {
            config.tick = c.election / u32::try_from(config.core.election_ticks.max(1)).unwrap_or(1);
            config.core.retain_entries = c.retain;
        }
        let peers = cluster.as_ref().map(|c| c.peers.clone());
        let opened = photon_rt::task::blocking(move || match peers {
            Some(p) => Store::open(config, disk, p.transport()),
            None => Store::open(config, disk, NoTransport),
        });
        let inner = Inner {
            me,
            members,
            others: cluster.as_ref().map(|c| c.others.clone()),
            shared,
            store: Arc::new(opened.await.map_err(broken)?),
            replicas: Mutex::default(),
            changed: Notify::new(),
            time,
            detector: Mutex::default(),
            ranges: tokio::sync::Mutex::new(given),
            tasks: Tasks::new(),
        };
        let node = Node(Arc::new(inner));
        for s in known(&*node.0.shared.engine.view())? {
            node.begin(s.region.id).await?;
        }
        // Held weakly: the node ends when its owner lets go of it.
        let weak = Arc::downgrade(&node.0);
        let tasks = &node.0.tasks;
        tasks.spawn("flaredb-regions", follow(weak.clone(), events));
        tasks.spawn("flaredb-ranges", ranges::tend(weak.clone()));
        if let Some(strangers) = node.0.store.strangers().filter(|_| cluster.is_some()) {
            tasks.spawn("flaredb-strangers", cluster::adopt(weak, strangers));
        }
        if let Some(renewing) = node.0.time.renewing() {
            tasks.spawn("flaredb-oracle", renewing);
        }
        if let Some(c) = cluster {
            // Only now may others speak: what is here is known.
            c.peers.attach(&node.0.store);
        }
        Ok(node)
    }

    /// Waits until everything that the logs hold is applied, and the regions that it made or ended run or do not.
    async fn caught_up(&self) -> Outcome<Vec<RegionState>> {
        loop {
            let before = known(&*self.0.shared.engine.view())?;
            self.settled(|r| before.iter().all(|s| r.contains_key(&s.region.id) != s.gone)).await?;
            let all: Vec<Arc<Replica>> = lock(&self.0.replicas).values().cloned().collect();
            for r in all {
                // One that ends meanwhile has nothing left to say.
                let _ = r.group.read_index().await;
            }
            if let Some(why) = self.stopped() {
                return Err(Refusal::Unknown(why));
            }
            let after = known(&*self.0.shared.engine.view())?;
            let same = |a: &RegionState, b: &RegionState| (&a.region, a.gone) == (&b.region, b.gone);
            if before.len() == after.len() && before.iter().zip(&after).all(|(a, b)| same(a, b)) {
                return Ok(after);
            }
        }
    }

    /// Runs a region that the engine knows.
    async fn begin(&self, id: u64) -> Outcome<()> {
        let inner = &*self.0;
        let machine = RegionMachine::open(inner.shared.clone(), id)?;
        if machine.is_gone() || lock(&inner.replicas).contains_key(&id) {
            // Told of again after a restart.
            return Ok(());
        }
        let members = machine.shown.read().unwrap_or_else(PoisonError::into_inner).members.clone();
        let members =
            if members.is_empty() { vec![inner.me] } else { members.into_iter().map(NodeId).collect() };
        self.run(id, &members, machine).await
    }

    /// Runs a replica. Without members it waits for what the others have.
    async fn run(&self, id: u64, members: &[NodeId], machine: RegionMachine) -> Outcome<()> {
        let inner = &*self.0;
        let (written, shown) = (machine.written.clone(), machine.shown.clone());
        let group = inner.store.create_group(GroupId(id), members, machine).await.map_err(broken)?;
        let (settled, measured) = (Notify::new(), AtomicU64::new(0));
        let replica = Replica { group, shown, gate: Mutex::default(), settled, written, measured };
        lock(&inner.replicas).insert(id, Arc::new(replica));
        inner.changed.notify_waiters();
        Ok(())
    }

    /// Forgets a region that became part of another one.
    async fn end(&self, id: u64) -> Outcome<()> {
        let inner = &*self.0;
        lock(&inner.replicas).remove(&id);
        // Without its log it could not go on: it must be gone for good first.
        let engine = inner.shared.engine.clone();
        photon_rt::task::blocking(move || engine.persist()).await?;
        inner.store.remove_group(GroupId(id)).await.map_err(broken)?;
        inner.changed.notify_waiters();
        Ok(())
    }

    fn replica(&self, id: u64) -> Outcome<Arc<Replica>> {
        lock(&self.0.replicas).get(&id).cloned().ok_or(Refusal::NoRegion(id))
    }

    /// All regions, in the order of their keys.
    pub fn regions(&self) -> Vec<Descriptor> {
        self.0.shared.routes.all()
    }

    /// This node's number.
    pub fn number(&self) -> u64 {
        self.0.me.0
    }

    /// The numbers of all nodes of the store, in rising order.
    pub fn members(&self) -> Vec<u64> {
        if self.0.members.is_empty() { vec![self.0.me.0] } else { self.0.members.clone() }
    }

    /// The node that leads a region, as far as this one knows.
    pub fn leader(&self, region: u64) -> Option<u64> {
        self.replica(region).ok()?.group.status().leader.map(|n| n.0)
    }

    /// Why the node no longer works, if so.
    pub fn stopped(&self) -> Option<String> {
        self.0.store.stopped()
    }

    /// Resolves when the node can't go on: why.
    pub async fn ended(&self) -> String {
        self.0.store.ended().await
    }

    /// Ends as a crash would.
    pub fn stop(&self, why: &str) {
        self.0.store.stop(why);
    }

    /// Ends in order.
    pub async fn shutdown(&self) {
        self.0.tasks.shutdown().await;
        self.0.store.shutdown().await;
    }

    /// Makes the gate of a leader right for its term and range.
    async fn open_gate(&self, replica: &Replica, version: u64) -> Outcome<u64> {
        let status = replica.group.status();
        if status.role != Role::Leader {
            return Err(Refusal::NotLeader(replica.group.id().0));
        }
        if !lock(&replica.gate).is_open(status.term, version) {
            let fresh = self.timestamps(1).await?;
            lock(&replica.gate).open(status.term, version, fresh);
        }
        Ok(status.term)
    }

    /// Asks the replica here.
    pub async fn ask_here(&self, region: &Descriptor, request: Request) -> Outcome<Response> {
        match request {
            Request::Do(op) => self.act(region, op).await.map(Response::Done),
            request => self.look(region, &request).await,
        }
    }

    async fn act(&self, region: &Descriptor, op: Op) -> Outcome<Answer> {
        let id = region.id;
        let mut command = Command::new(region.version, op);
        command.check()?;
        self.admit_time(command.newest()).await?;
        let replica = self.replica(id)?;
        // A command for another version would be refused when it is applied; this spares the log, and the gate
        // opens for what the region is now.
        let now = replica.shown.read().unwrap_or_else(PoisonError::into_inner).clone();
        if now.version != region.version {
            return Err(Refusal::StaleEpoch(Box::new(now)));
        }
        let mut number = None;
        if command.derives().is_some() {
            let term = self.open_gate(&replica, region.version).await?;
            number = lock(&replica.gate).admit(id, term, &mut command)?;
        }
        let bytes = command.encode_to_vec();
        if bytes.len() > MAX_COMMAND {
            settle(&replica, number);
            return Err(Refusal::TooMany { what: "bytes", n: bytes.len(), limit: MAX_COMMAND });
        }
        // Whoever asked may go away; what is under way is not, until it is known what became of it.
        let proposal = async move {
            let answer = replica.group.propose(bytes.into()).await;
            // If that is not known, it counts as under way until this replica leads in another term.
            if !matches!(answer, Err(ProposeError::Unknown(_) | ProposeError::Stopped(_))) {
                settle(&replica, number);
            }
            answer.map_err(|e| refused(id, e))?
        };
        if number.is_none() {
            return proposal.await;
        }
        match self.0.tasks.spawn("flaredb-derived", proposal).await {
            Ok(Some(answer)) => answer,
            _ => Err(Refusal::Unknown("the node ends".into())),
        }
    }

    async fn look(&self, region: &Descriptor, request: &Request) -> Outcome<Response> {
        let id = region.id;
        let Some((span, at)) = request.reads() else { return Err(broken("no read")) };
        let replica = self.replica(id)?;
        let mut status = replica.group.watch_leadership();
        let before = *status.borrow_and_update();
        while let Some(at) = at {
            self.admit_time(at).await?;
            let settled = replica.settled.notified();
            match lock(&replica.gate).read(at, &span) {
                Entry::Now => break,
                Entry::After(_) => {}
            }
            // What is under way when the leader or the region goes away is never said to be settled.
            tokio::select! {
                () = settled => {}
                _ = status.wait_for(|s| (s.role, s.term) != (Role::Leader, before.term)) => {
                    return Err(Refusal::NotLeader(id));
                }
            }
        }
        replica.group.read_index().await.map_err(|e| refused(id, e))?;
        let now = replica.group.status();
        // The floor that was raised is the leader's.
        if at.is_some() && (now.role, now.term) != (Role::Leader, before.term) {
            return Err(Refusal::NotLeader(id));
        }
        let view = self.0.shared.engine.view();
        let state = region::state_of(&*view, id)?;
        region::readable(&state, region.version, &span, at)?;
        match request {
            // A page can be megabytes from a cold disk.
            Request::Scan(..) | Request::RawScan(_) | Request::Unchanged { .. } => {
                let request = request.clone();
                photon_rt::task::blocking(move || request.read(&*view)).await
            }
            _ => request.read(&*view),
        }
    }

    /// All regions with how their groups are here, in the order of their keys.
    pub fn statuses(&self) -> Vec<(Descriptor, Option<GroupStatus>)> {
        let replicas = lock(&self.0.replicas);
        let of = |d: &Descriptor| replicas.get(&d.id).map(|r| r.group.status());
        self.regions().into_iter().map(|d| (d.clone(), of(&d))).collect()
    }

    /// Bytes that the engine has on disk.
    pub fn disk_bytes(&self) -> u64 {
        self.0.shared.engine.disk_bytes()
    }
}

fn is_of_ranges(r: &Request) -> bool {
    matches!(r, Request::Do(Op::Split(_) | Op::PrepareMerge(_) | Op::CommitMerge(_)))
}

fn settle(replica: &Replica, number: Option<u64>) {
    if let Some(n) = number {
        lock(&replica.gate).done(n);
        replica.settled.notify_waiters();
    }
}

fn refused(id: u64, e: ProposeError) -> Refusal {
    match e {
        ProposeError::NotLeader { .. } => Refusal::NotLeader(id),
        ProposeError::Overloaded => Refusal::Overloaded,
        ProposeError::TooLarge { bytes, limit } => Refusal::TooMany { what: "bytes", n: bytes, limit },
        e => Refusal::Unknown(e.to_string()),
    }
}

/// Runs and ends regions as their neighbours' logs say.
async fn follow(node: std::sync::Weak<Inner>, mut events: mpsc::UnboundedReceiver<Effect>) {
    while let Some(e) = events.recv().await {
        let Some(inner) = node.upgrade() else { return };
        let node = Node(inner);
        let done = match &e {
            Effect::Begin(d) => node.begin(d.id).await,
            Effect::End(id) => node.end(*id).await,
        };
        if let Err(why) = done {
            // Half of the keys would have nobody: better none, and a restart that tries again.
            node.stop(&format!("a region could not be begun or ended: {why}"));
            return;
        }
    }
}

impl World for Node {
    async fn timestamp(&self) -> Outcome<Ts> {
        self.timestamps(1).await
    }

    fn locate(&self, key: &Bytes) -> impl Future<Output = Outcome<Descriptor>> + Send {
        std::future::ready(self.0.shared.routes.of(key).ok_or(Refusal::NoRegion(0)))
    }

    fn locate_below(&self, end: &Bytes) -> impl Future<Output = Outcome<Descriptor>> + Send {
        std::future::ready(self.0.shared.routes.below(end).ok_or(Refusal::NoRegion(0)))
    }

    fn forget(&self, _region: &Descriptor) {
        // The map is the node's own.
    }

    async fn ask(&self, region: &Descriptor, request: Request) -> Outcome<Response> {
        // Changes of ranges find the leader through the log.
        let Some(others) = self.0.others.as_ref().filter(|_| !is_of_ranges(&request)) else {
            return self.ask_here(region, request).await;
        };
        match self.ask_here(region, request.clone()).await {
            Err(Refusal::NotLeader(id)) => {
                let leader = self.replica(id)?.group.status().leader.filter(|l| *l != self.0.me);
                let leader = leader.ok_or(Refusal::NotLeader(id))?;
                cluster::bounded(others.ask(leader, region, request)).await
            }
            answer => answer,
        }
    }

    fn sleep(&self, ms: u64) -> impl Future<Output = ()> + Send {
        photon_rt::time::sleep(Duration::from_millis(ms))
    }

    fn draw(&self, n: u64) -> u64 {
        photon_rt::entropy::u64() % n.max(1)
    }

    fn background(&self, task: Background) {
        self.0.tasks.spawn("flaredb-transaction", task);
    }

    fn waits(&self, waiter: Ts, holder: Ts) -> impl Future<Output = Outcome<()>> + Send {
        std::future::ready(lock(&self.0.detector).waits(waiter, holder, now_ms()))
    }

    fn waited(&self, waiter: Ts) {
        lock(&self.0.detector).waited(waiter);
    }
}

pub mod cluster;
mod ranges;
#[cfg(test)]
mod tests;
mod time;
