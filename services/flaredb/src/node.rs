//! The regions of a node: each a Raft group over one log and one engine, with the gate of its leader, split
//! and merged while they are used; and [`Node`] as the world of transactions that run in this process.
//!
//! Timestamps come from windows that are durable in this node's engine. That is right as long as one node
//! gives them out; with several they are leased through the kernel's `Kv` (docs/decisions/0007-flaredb.md).

use crate::{
    Refusal,
    client::{Background, Request, Response, World, deadlock::Detector},
    key,
    machine::{RegionMachine, Shared},
    model::{
        Answer, Command, Descriptor, Effect, Gate, Op, RegionState, SPACES,
        command::{CommitMerge, PrepareMerge, Split},
        gate::Entry,
        layout::{META, meta_key, range},
        limits::MAX_COMMAND,
        region,
    },
    refusal::Outcome,
    time::{self, Oracle, Ts},
};
use bytes::Bytes;
use photon_kv::{
    Direction,
    engine::{Batch, Engine, FjallEngine, FjallOptions, KeyRange},
};
use photon_raft::{Group, GroupId, GroupStatus, NoTransport, NodeId, ProposeError, Role, Store, StoreConfig};
use photon_rt::{
    disk::{Disk, RealDisk},
    task::Tasks,
    time::Duration,
};
use prost::Message;
use std::{
    collections::BTreeMap,
    future::Future,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::sync::{Notify, mpsc};

/// Key of the end of the last window of timestamps.
const WINDOW: &[u8] = b"oracle";

/// How long a region that was just made or is being taken in may be waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// Size from which on a region is split.
pub const REGION_BYTES: u64 = 256 << 20;

/// How often sizes are looked at.
const TEND_EVERY: Duration = Duration::from_secs(10);

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
    shared: Arc<Shared>,
    store: Store,
    replicas: Mutex<BTreeMap<u64, Arc<Replica>>>,
    /// A replica came or went.
    changed: Notify,
    oracle: Mutex<Oracle>,
    /// Held while a window is made durable.
    extending: tokio::sync::Mutex<()>,
    detector: Mutex<Detector>,
    /// Held by whoever changes ranges: one operator at a time. Holds the next region's number.
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
    /// Opens or begins the store in a folder: the log in `log`, the engine in `state`.
    pub async fn open(dir: &Path) -> Outcome<Node> {
        let (log, state) = (dir.join("log"), dir.join("state"));
        let open = move || -> Outcome<(Arc<dyn Disk>, Arc<dyn Engine>)> {
            for d in [&log, &state] {
                photon_rt::fs::private_dir(d).map_err(broken)?;
            }
            let disk = RealDisk::open(&log).map_err(broken)?;
            let engine = FjallEngine::open(&state, &SPACES, FjallOptions::default())?;
            Ok((Arc::new(disk), Arc::new(engine)))
        };
        let (disk, engine) = photon_rt::task::blocking(open).await?;
        Node::start(disk, engine).await
    }

    /// The same on a given log disk and engine.
    pub async fn start(disk: Arc<dyn Disk>, engine: Arc<dyn Engine>) -> Outcome<Node> {
        let me = NodeId(1);
        let view = engine.view();
        if known(&*view)?.is_empty() {
            let mut first = Batch::default();
            first.put(META, meta_key(1), RegionState::first(1).encode_to_vec());
            engine.write(first)?;
            engine.persist()?;
        }
        let durable = match view.get(META, WINDOW)? {
            Some(b) => b[..].try_into().map(u64::from_be_bytes).map_err(broken)?,
            None => 0,
        };
        let (effects, events) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared { engine, routes: Default::default(), effects });
        let config = StoreConfig::new(me);
        let opened = photon_rt::task::blocking(move || Store::open(config, disk, NoTransport)).await;
        let inner = Inner {
            me,
            shared,
            store: opened.map_err(broken)?,
            replicas: Mutex::default(),
            changed: Notify::new(),
            oracle: Mutex::new(Oracle::new(durable)),
            extending: tokio::sync::Mutex::default(),
            detector: Mutex::default(),
            ranges: tokio::sync::Mutex::new(0),
            tasks: Tasks::new(),
        };
        let node = Node(Arc::new(inner));
        for s in known(&*node.0.shared.engine.view())? {
            node.begin(s.region.id).await?;
        }
        // Held weakly: the node ends when its owner lets go of it.
        let weak = Arc::downgrade(&node.0);
        node.0.tasks.spawn("flaredb-regions", follow(weak.clone(), events));
        node.0.tasks.spawn("flaredb-sizes", async move {
            loop {
                photon_rt::time::sleep(TEND_EVERY).await;
                let Some(inner) = weak.upgrade() else { return };
                if let Err(e) = Node(inner).tend(REGION_BYTES).await {
                    tracing::warn!(error = %e, "regions could not be measured or split; tried again");
                }
            }
        });
        let all = node.caught_up().await?;
        // Only now: what the logs still held may have made regions, too, and no number is given twice.
        *node.0.ranges.lock().await = 1 + all.iter().map(|s| s.region.id).max().unwrap_or(0);
        for s in all.iter().filter(|s| !s.gone && s.merging != 0) {
            node.give_up_merge(s.region.id).await?;
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
        let (written, shown) = (machine.written.clone(), machine.shown.clone());
        let group = inner.store.create_group(GroupId(id), &[inner.me], machine).await.map_err(broken)?;
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

    /// Splits the region that has the border `at` inside.
    pub async fn split(&self, at: Bytes) -> Outcome<Vec<Descriptor>> {
        let mut next = self.0.ranges.lock().await;
        let region = self.locate(&at).await?;
        let id = *next;
        *next += 1;
        let answer = self.ask(&region, Request::Do(Op::Split(Split { at, id }))).await?;
        self.settled(|r| r.contains_key(&id)).await?;
        match answer {
            Response::Done(Answer::Regions(two)) => Ok(two),
            _ => Err(broken("an answer to another question")),
        }
    }

    /// Makes the region `source` part of its left neighbour.
    pub async fn merge(&self, source: u64) -> Outcome<Descriptor> {
        let _one = self.0.ranges.lock().await;
        let all = self.regions();
        let at = all.iter().position(|r| r.id == source).ok_or(Refusal::NoRegion(source))?;
        let Some(target) = at.checked_sub(1).and_then(|i| all.get(i)) else {
            return Err(Refusal::Malformed("the first region has no left neighbour".into()));
        };
        let prepare = Op::PrepareMerge(PrepareMerge { target: target.id, begin: true });
        self.ask(&all[at], Request::Do(prepare)).await?;
        let state = region::state_of(&*self.0.shared.engine.view(), source)?;
        let merge = CommitMerge { source: Some(state.region), index: state.index };
        match self.ask(target, Request::Do(Op::CommitMerge(merge))).await {
            Ok(Response::Done(Answer::Regions(r))) => {
                self.settled(|r| !r.contains_key(&source)).await?;
                r.into_iter().next().ok_or_else(|| broken("an answer to another question"))
            }
            Ok(_) => Err(broken("an answer to another question")),
            Err(e) => {
                self.give_up_merge(source).await?;
                Err(e)
            }
        }
    }

    /// Waits until what runs here is as it should be.
    async fn settled(&self, done: impl Fn(&BTreeMap<u64, Arc<Replica>>) -> bool) -> Outcome<()> {
        let wait = async {
            loop {
                let changed = self.0.changed.notified();
                if done(&lock(&self.0.replicas)) {
                    return Ok(());
                }
                tokio::select! {
                    () = changed => {}
                    why = self.0.store.ended() => return Err(Refusal::Unknown(why)),
                }
            }
        };
        let waited = photon_rt::time::timeout(PATIENCE, "a region", wait).await;
        waited.unwrap_or_else(|_| Err(Refusal::Unknown("a region does not come up".into())))
    }

    /// Takes the first half of a merge back: the target is fenced, so that the second half can't follow, then the
    /// source goes on.
    async fn give_up_merge(&self, source: u64) -> Outcome<()> {
        let undo = || Request::Do(Op::PrepareMerge(PrepareMerge { target: 0, begin: false }));
        for _ in 0..100 {
            // What the logs still hold is applied first.
            let all: Vec<Arc<Replica>> = lock(&self.0.replicas).values().cloned().collect();
            for r in all {
                r.group.read_index().await.map_err(|e| refused(r.group.id().0, e))?;
            }
            let state = region::state_of(&*self.0.shared.engine.view(), source)?;
            if state.gone || state.merging == 0 {
                return Ok(());
            }
            let target = self.regions().into_iter().find(|r| r.id == state.merging);
            let fenced = match target {
                Some(t) => self.ask(&t, undo()).await.map(|_| ()),
                None => Ok(()),
            };
            let undone = match fenced {
                Ok(()) => self.ask(&state.region, undo()).await.map(|_| ()),
                Err(e) => Err(e),
            };
            match undone {
                Err(e) if e.is_about_routing() => photon_rt::time::sleep(Duration::from_millis(20)).await,
                done => return done,
            }
        }
        Err(Refusal::Overloaded)
    }

    /// Splits regions that hold more than `max` bytes, each once. Measures only those into which much was
    /// written since. How many were split.
    pub async fn tend(&self, max: u64) -> Outcome<usize> {
        let all: Vec<(u64, Arc<Replica>)> =
            lock(&self.0.replicas).iter().map(|(id, r)| (*id, r.clone())).collect();
        let mut n = 0;
        for (id, r) in all {
            let written = r.written.load(Ordering::Relaxed);
            let before = r.measured.load(Ordering::Relaxed);
            if before != 0 && written - before.min(written) < max / 4 {
                continue;
            }
            let (size, middle) = match self.measure(id).await {
                Ok(m) => m,
                Err(e) if e.is_about_routing() => continue, // it went away
                Err(e) => return Err(e),
            };
            r.measured.store(written.max(1), Ordering::Relaxed);
            if size > max
                && let Some(at) = middle
            {
                match self.split(at).await {
                    Ok(_) => {
                        r.measured.store(0, Ordering::Relaxed); // its half may still be too large
                        n += 1;
                    }
                    Err(e) if e.is_about_routing() => {}
                    Err(e) => return Err(e),
                }
            }
        }
        Ok(n)
    }

    /// The bytes of a region's keys and values, and the border nearest to their middle, if it has one inside: a
    /// region of one row group has none. Reads all of it.
    pub async fn measure(&self, id: u64) -> Outcome<(u64, Option<Bytes>)> {
        let view = self.0.shared.engine.view();
        photon_rt::task::blocking(move || {
            let state = region::state_of(&*view, id)?;
            if state.gone {
                return Err(Refusal::NoRegion(id));
            }
            let bounds = range(&state.region.span());
            let mut sizes: BTreeMap<Bytes, u64> = BTreeMap::new();
            let mut total = 0;
            // Groups are counted in runs: no more than this many borders are remembered.
            const BORDERS: usize = 10_000;
            for space in (1..SPACES.len()).map(photon_kv::engine::Space) {
                for item in view.scan(space, bounds.clone(), Direction::Forward) {
                    let (k, v) = item?;
                    let size = (k.len() + v.len()) as u64;
                    total += size;
                    let Some(border) = key::border(&k) else { continue };
                    if sizes.len() < BORDERS || sizes.contains_key(&border) {
                        *sizes.entry(border).or_default() += size;
                    } else if let Some((_, s)) = sizes.range_mut(..=border).next_back() {
                        *s += size;
                    }
                }
            }
            let mut sum = 0;
            for (border, size) in sizes {
                if sum >= total / 2 && border > state.region.start {
                    return Ok((total, Some(border)));
                }
                sum += size;
            }
            Ok((total, None))
        })
        .await
    }

    /// Makes the gate of a leader right for its term and range.
    async fn open_gate(&self, replica: &Replica, version: u64) -> Outcome<u64> {
        let status = replica.group.status();
        if status.role != Role::Leader {
            return Err(Refusal::NotLeader(replica.group.id().0));
        }
        if !lock(&replica.gate).is_open(status.term, version) {
            let fresh = self.timestamp().await?;
            lock(&replica.gate).open(status.term, version, fresh);
        }
        Ok(status.term)
    }

    async fn act(&self, region: &Descriptor, op: Op) -> Outcome<Answer> {
        let id = region.id;
        let mut command = Command::new(region.version, op);
        command.check()?;
        self.admit_time(command.newest())?;
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

    /// A timestamp that was not given yet would break promises to others: who read there, commits above what
    /// the oracle gives next.
    fn admit_time(&self, ts: Ts) -> Outcome<()> {
        let newest = lock(&self.0.oracle).newest();
        if ts > newest {
            return Err(Refusal::FromTheFuture { ts, newest });
        }
        Ok(())
    }

    async fn look(&self, region: &Descriptor, request: &Request) -> Outcome<Response> {
        let id = region.id;
        let Some((span, at)) = request.reads() else { return Err(broken("no read")) };
        let replica = self.replica(id)?;
        let mut status = replica.group.watch_leadership();
        let before = *status.borrow_and_update();
        while let Some(at) = at {
            self.admit_time(at)?;
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

    /// `n` fresh timestamps, two apart: the first.
    pub async fn timestamps(&self, n: u32) -> Outcome<Ts> {
        let inner = &*self.0;
        let take = || lock(&inner.oracle).take(now_ms(), n);
        if let Some(r) = take() {
            return Ok(r.start);
        }
        let _alone = inner.extending.lock().await;
        if let Some(r) = take() {
            return Ok(r.start);
        }
        let end = lock(&inner.oracle).wanted(now_ms());
        let engine = inner.shared.engine.clone();
        let write = move || {
            let mut b = Batch::default();
            b.put(META, WINDOW, end.to_be_bytes().to_vec());
            engine.write(b)?;
            engine.persist()
        };
        photon_rt::task::blocking(write).await?;
        let mut oracle = lock(&inner.oracle);
        oracle.extend(end);
        oracle.take(now_ms().min(time::ms(end) - 1), n).map(|r| r.start).ok_or(Refusal::Overloaded)
    }
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
        match request {
            Request::Do(op) => self.act(region, op).await.map(Response::Done),
            request => self.look(region, &request).await,
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

#[cfg(test)]
mod tests;
