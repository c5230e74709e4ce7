//! The running service: its folder, its log, its state, and what it does by itself (expire leases,
//! sweep compacted history).

use crate::{
    EtcdError, EtcdResult,
    cluster::{AddressBook, Asks, By, Peering, Seat, stable_id},
    command::{Command, MAX_REQUEST, Op},
    leases::{BEATS_MAX, Beat},
    machine::{Published, Shared, StateMachine},
    model::{Answer, apply::read_only_txn, check},
    plant::{Plant, planted},
    who::Who,
    wire::etcdserverpb::{
        AlarmMember, AlarmRequest, CompactionRequest, DeleteRangeRequest, DeleteRangeResponse, PutRequest,
        PutResponse, RangeRequest, RangeResponse, TxnRequest, TxnResponse, alarm_request::AlarmAction,
    },
};
use photon_kv::engine::{Engine, FjallOptions};
use photon_raft::{
    Group, GroupId, GroupStatus, NoTransport, NodeId, ProposeError, Role, Store, StoreConfig, peers::Peers,
};
use photon_rt::{
    disk::{Disk, RealDisk},
    task::Tasks,
    time::{Duration, sleep},
};
use prost::Message;
use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};
use tokio::sync::mpsc;

/// How ChainFire runs.
#[derive(Clone, Debug)]
pub struct ChainFireConfig {
    /// Its folder; made if it does not exist.
    pub data_dir: PathBuf,
    /// This member's name.
    pub name: String,
    /// Where clients reach this member.
    pub client_urls: Vec<String>,
    /// Where members reach this member.
    pub peer_urls: Vec<String>,
    /// How often an idle watch that asked for it hears how far it is.
    pub progress_interval: Duration,
    /// Time without a sign of life after which a member stands for election.
    pub election: Duration,
    /// How often the leader compares what members hold; zero: never.
    pub corrupt_check: Duration,
    /// How much history is kept; none: all, until a client compacts it.
    pub retention: Option<crate::Retention>,
    /// Memory for recent changes that watchers share, bytes.
    pub watch_ring: usize,
    /// Memory of the storage engine.
    pub engine: FjallOptions,
    /// Bytes of the disk to keep free: below, writes are refused. None: some part of it; 0: not watched.
    pub reserve: Option<u64>,
    /// Whether the leader answers reads without asking the others while nobody else can lead: right as long as
    /// no two members' clocks differ in speed by more than 10 % (docs/decisions/0004-clusters.md).
    pub lease_reads: bool,
    /// Other members; none for a cluster that is and stays of one.
    pub peering: Option<Peering>,
}

impl ChainFireConfig {
    /// A single member that keeps its state in `data_dir`.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        ChainFireConfig {
            data_dir: data_dir.into(),
            name: "default".into(),
            client_urls: vec!["http://localhost:2379".into()],
            peer_urls: vec!["http://localhost:2380".into()],
            progress_interval: Duration::from_secs(600),
            election: Duration::from_secs(1),
            corrupt_check: Duration::from_secs(3_600),
            retention: None,
            watch_ring: 32 << 20,
            engine: FjallOptions::default(),
            reserve: None,
            lease_reads: true,
            peering: None,
        }
    }
}

/// Counters for `/metrics`.
#[derive(Default)]
pub(crate) struct Counters {
    pub puts: AtomicU64,
    pub deletes: AtomicU64,
    pub txns: AtomicU64,
    pub ranges: AtomicU64,
    pub watchers: AtomicU64,
    pub watch_streams: AtomicU64,
    pub events: AtomicU64,
    pub proposals_failed: AtomicU64,
    pub proposals_pending: AtomicU64,
    pub leases_expired: AtomicU64,
}

/// A running ChainFire. Clones are handles on the same one.
#[derive(Clone)]
pub struct ChainFire {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub config: ChainFireConfig,
    pub shared: Arc<Shared>,
    pub log: Arc<Store>,
    pub group: Group<StateMachine>,
    pub tasks: Tasks,
    pub counters: Counters,
    pub cluster_id: u64,
    pub member_id: u64,
    /// How it came to its cluster.
    pub by: By,
    /// This member in Raft.
    pub node: NodeId,
    pub peers: Option<Peers>,
    /// Where peers are; present with them.
    pub book: Option<Arc<AddressBook>>,
    /// What this member asks the others.
    pub asks: Option<Asks>,
    /// Signs of life of leases, on their way to the leader.
    pub beats: mpsc::Sender<Beat>,
    /// The disk is nearly full.
    pub short_of_room: AtomicBool,
    pub data_dir: Option<PathBuf>,
}

/// A file whose presence says that the state failed, and why: the next start reads it whole.
pub(crate) const SUSPECT: &str = "state.suspect";

/// A file whose presence says that the state is not to be used, and why.
pub(crate) const DAMAGED: &str = "state.damaged";

/// The member of a cluster without peers.
const ALONE: NodeId = NodeId(1);
pub(crate) const GROUP: GroupId = GroupId(1);

impl ChainFire {
    /// Opens or makes the store in the configured folder and starts serving it (call within a tokio
    /// runtime).
    pub async fn open(config: ChainFireConfig) -> photon_base::Result<ChainFire> {
        photon_rt::fs::private_dir(&config.data_dir)?;
        if let Some(p) = &config.peering {
            p.adopt(&config.name, &config.data_dir)?;
        }
        let (home, log) = (config.data_dir.clone(), config.data_dir.join("log"));
        let options = config.engine;
        let opened = photon_rt::task::blocking(move || {
            Ok::<_, photon_base::Error>((crate::heal::open_state(&home, options)?, RealDisk::open(&log)?))
        });
        let (engine, disk) = opened.await?;
        let dir = Some(config.data_dir.clone());
        Self::start(config, dir, Arc::new(engine), Arc::new(disk)).await
    }

    /// The same on storage of the caller's choice; `data_dir` is not used.
    pub async fn with_storage(
        config: ChainFireConfig,
        engine: Arc<dyn Engine>,
        disk: Arc<dyn Disk>,
    ) -> photon_base::Result<ChainFire> {
        Self::start(config, None, engine, disk).await
    }

    async fn start(
        mut config: ChainFireConfig,
        data_dir: Option<PathBuf>,
        engine: Arc<dyn Engine>,
        disk: Arc<dyn Disk>,
    ) -> photon_base::Result<ChainFire> {
        let tasks = Tasks::new();
        let seat = match &config.peering {
            Some(p) => p.seat(&config.name, data_dir.as_deref()).await?,
            None => Seat {
                cluster: stable_id(b"cluster", b"chainfire"),
                member: stable_id(b"member", config.name.as_bytes()),
                by: By::Founding,
                others: Vec::new(),
            },
        };
        if let Some(p) = &mut config.peering {
            p.seated(&config.name, &seat);
        }
        let (node, founders) = match &config.peering {
            Some(p) => (NodeId(seat.member), p.founders(&seat)),
            None => (ALONE, vec![ALONE]),
        };
        let ring = config.watch_ring;
        let refuse = |e: String| photon_base::Error::internal("ChainFire does not start").why(e);
        let (machine, shared) = photon_rt::task::blocking(move || StateMachine::open(engine, ring))
            .await
            .map_err(|e| refuse(e.to_string()))?;
        if let Some(dir) = data_dir.clone().filter(|_| photon_raft::Machine::applied(&machine).index == 0) {
            let remnant = photon_rt::task::blocking(move || crate::heal::is_remnant(&dir)).await?;
            shared.whole.store(!remnant, Ordering::Release);
        }
        let book = config.peering.as_ref().map(|p| Arc::new(AddressBook::new(p, &seat, shared.clone())));
        let peers = book.clone().map(|book| Peers::new(node, seat.cluster, book, &tasks));
        let (beat, beats) = mpsc::channel(BEATS_MAX);
        let transport = peers.clone();
        let mut raft = StoreConfig::new(node);
        raft.lease_reads = config.lease_reads;
        raft.tick = config.election / raft.core.election_ticks.max(1) as u32;
        let log = photon_rt::task::blocking(move || match transport {
            Some(p) => Store::open(raft, disk, p.transport()),
            None => Store::open(raft, disk, NoTransport),
        });
        let log = Arc::new(log.await.map_err(|e| crate::heal::damaged_log(&e))?);
        if let Some(p) = &peers {
            p.attach(&log);
        }
        let group = log.create_group(GROUP, &founders, machine).await;
        let group = group.map_err(|e| crate::heal::damaged_log(&e))?;
        let peering = config.peering.clone();
        let inner = Arc::new(Inner {
            cluster_id: seat.cluster,
            member_id: seat.member,
            by: seat.by,
            node,
            peers,
            asks: book.clone().map(Asks::new),
            book,
            beats: beat,
            short_of_room: AtomicBool::new(false),
            data_dir,
            config,
            shared,
            log,
            group,
            tasks,
            counters: Counters::default(),
        });
        let me = ChainFire { inner };
        let weak = Arc::downgrade(&me.inner);
        if let Some(p) = peering {
            me.inner.tasks.spawn("chainfire-members", crate::cluster::tend(weak.clone(), p));
        }
        let calling = me.inner.shared.clone();
        me.inner.tasks.spawn("chainfire-watchers", async move { calling.hub.calling().await });
        me.inner.tasks.spawn("chainfire-expire", crate::leases::expire(weak.clone()));
        me.inner.tasks.spawn("chainfire-beats", crate::leases::relay(weak.clone(), beats));
        let every = me.inner.config.corrupt_check;
        me.inner.tasks.spawn("chainfire-compare", crate::cluster::compare::watch(weak.clone(), every));
        if let Some(retention) = me.inner.config.retention {
            me.inner.tasks.spawn("chainfire-compact", crate::compactor::run(weak.clone(), retention));
        }
        me.inner.tasks.spawn("chainfire-heal", crate::heal::watch(weak.clone()));
        me.inner.tasks.spawn("chainfire-room", crate::room::watch(weak.clone()));
        me.inner.tasks.spawn("chainfire-sweep", sweep(weak));
        Ok(me)
    }

    /// Hands over leadership, then stops the log and the workers. Nothing acknowledged is lost by not calling
    /// this.
    pub async fn shutdown(&self) {
        // In this order: the connections to the other members are tasks, too.
        self.inner.log.shutdown().await;
        self.inner.tasks.shutdown().await;
        // Whoever ends it because its state failed may be faster than the task that leaves the mark.
        let failed = self.inner.shared.failed.borrow().clone();
        if let Some(why) = failed {
            self.mark(SUSPECT, &why).await;
        }
    }

    /// Resolves when the log has ended, by [`ChainFire::shutdown`] or because the disk failed, or when the
    /// state cannot be trusted any more; with the reason. The process should then end too: nothing is
    /// acknowledged any more.
    pub async fn ended(&self) -> String {
        let mut failed = self.inner.shared.failed.subscribe();
        tokio::select! {
            why = self.inner.log.ended() => why,
            why = async { failed.wait_for(Option::is_some).await.ok().and_then(|w| w.clone()) } => {
                why.unwrap_or_default()
            }
        }
    }

    /// As [`ChainFire::ended`], for whoever started it: what happened, and what can be done.
    pub async fn failed(&self) -> photon_base::Error {
        let why = self.ended().await;
        if self.raft().removed {
            return photon_base::Error::new(
                photon_base::Code::Conflict,
                "this member was removed from its cluster",
            )
            .why(why)
            .hint("to use the machine again, run etcdctl member add and start it with an empty data folder");
        }
        photon_base::Error::internal("the cluster store stopped")
            .why(why)
            .hint("nothing acknowledged is lost; see to the disk and start it again")
    }

    /// The revision of the newest write applied here.
    pub fn revision(&self) -> i64 {
        self.published().revision
    }

    /// Forgets history before `revision`, as etcd's compaction does; nothing to do when it is forgotten already.
    pub async fn forget_before(&self, revision: i64) -> photon_base::Result<()> {
        if revision <= self.published().compacted {
            return Ok(());
        }
        let request = CompactionRequest { revision, physical: false };
        let done = self.compact(&Who::cloud(), request).await.map(drop);
        done.map_err(|e| photon_base::Error::unavailable("history was not compacted").why(e))
    }

    /// `leader`, `follower` or `candidate`.
    pub fn raft_role(&self) -> &'static str {
        match self.raft().role {
            Role::Leader => "leader",
            Role::Follower => "follower",
            Role::PreCandidate | Role::Candidate => "candidate",
        }
    }

    /// The raft group's state here.
    pub fn raft(&self) -> GroupStatus {
        self.inner.group.status()
    }

    /// What reads see now, without asking the cluster.
    pub(crate) fn published(&self) -> Arc<Published> {
        self.inner.shared.published()
    }

    /// A state that reflects everything acknowledged before the call.
    pub(crate) async fn linearizable(&self) -> EtcdResult<Arc<Published>> {
        if !planted(Plant::StaleRead) {
            self.inner.group.read_index().await.map_err(refused)?;
        }
        Ok(self.published())
    }

    /// Puts a command through the log.
    pub(crate) async fn propose(&self, who: &Who, op: Op) -> EtcdResult<Answer> {
        self.has_room(&op).await?;
        let data = Command::new(who, op).to_bytes()?;
        let c = &self.inner.counters;
        c.proposals_pending.fetch_add(1, Ordering::Relaxed);
        let out = self.inner.group.propose(data).await;
        c.proposals_pending.fetch_sub(1, Ordering::Relaxed);
        match out {
            Ok(answer) => answer,
            Err(e) => {
                c.proposals_failed.fetch_add(1, Ordering::Relaxed);
                Err(refused(e))
            }
        }
    }

    pub(crate) async fn range(&self, who: &Who, r: RangeRequest) -> EtcdResult<RangeResponse> {
        check::range(who.scope, &r)?;
        self.inner.counters.ranges.fetch_add(1, Ordering::Relaxed);
        let state = if r.serializable { self.published() } else { self.linearizable().await? };
        state.rules.auth.range_request(&who.login, &r)?;
        if r.range_end.is_empty() {
            return state.reader().range(who.scope, &r);
        }
        let scope = who.scope;
        photon_rt::task::blocking(move || state.reader().range(scope, &r)).await
    }

    /// The state that a RangeStream reads.
    pub(crate) async fn range_stream_state(&self, who: &Who, r: &RangeRequest) -> EtcdResult<Arc<Published>> {
        check::range(who.scope, r)?;
        crate::model::stream::check(r)?;
        self.inner.counters.ranges.fetch_add(1, Ordering::Relaxed);
        let state = if r.serializable { self.published() } else { self.linearizable().await? };
        state.rules.auth.range_request(&who.login, r)?;
        state.reader().resolve(r.revision)?;
        Ok(state)
    }

    pub(crate) async fn put(&self, who: &Who, r: PutRequest) -> EtcdResult<PutResponse> {
        check::put(who.scope, &r)?;
        self.inner.counters.puts.fetch_add(1, Ordering::Relaxed);
        match self.propose(who, Op::Put(r)).await? {
            Answer::Put(a) => Ok(a),
            _ => Err(mismatch()),
        }
    }

    pub(crate) async fn delete_range(
        &self,
        who: &Who,
        r: DeleteRangeRequest,
    ) -> EtcdResult<DeleteRangeResponse> {
        check::delete_range(who.scope, &r)?;
        self.inner.counters.deletes.fetch_add(1, Ordering::Relaxed);
        match self.propose(who, Op::DeleteRange(r)).await? {
            Answer::DeleteRange(a) => Ok(a),
            _ => Err(mismatch()),
        }
    }

    pub(crate) async fn txn(&self, who: &Who, r: TxnRequest) -> EtcdResult<TxnResponse> {
        check::txn(who.scope, &r)?;
        self.inner.counters.txns.fetch_add(1, Ordering::Relaxed);
        if check::is_read_only(&r) {
            if r.encoded_len() > MAX_REQUEST {
                return Err(EtcdError::RequestTooLarge);
            }
            let state = self.linearizable().await?;
            state.rules.auth.txn(&who.login, &r, &|_| Ok(Vec::new()))?;
            let scope = who.scope;
            return photon_rt::task::blocking(move || {
                read_only_txn(state.view.clone(), state.revision, state.compacted, scope, &r)
            })
            .await;
        }
        match self.propose(who, Op::Txn(r)).await? {
            Answer::Txn(a) => Ok(a),
            _ => Err(mismatch()),
        }
    }

    pub(crate) async fn compact(&self, who: &Who, r: CompactionRequest) -> EtcdResult<i64> {
        let physical = r.physical;
        let done = self.propose_revision(who, Op::Compact(r)).await?;
        if physical {
            let shared = self.inner.shared.clone();
            photon_rt::task::blocking(move || -> EtcdResult<()> {
                while crate::sweep::step(&shared)? {}
                Ok(())
            })
            .await?;
        }
        Ok(done)
    }

    /// Raises, lowers or lists alarms. Only operators may change them.
    pub(crate) async fn alarm(&self, who: &Who, r: AlarmRequest) -> EtcdResult<Vec<AlarmMember>> {
        if r.action == AlarmAction::Get as i32 {
            self.published().rules.auth.known(&who.login)?;
            return Ok(self.linearizable().await?.rules.alarms(r.alarm));
        }
        match self.propose(who, Op::Alarm(r)).await? {
            Answer::Alarms(a) => Ok(a),
            _ => Err(mismatch()),
        }
    }

    /// A command of which only the revision after it is told.
    pub(crate) async fn propose_revision(&self, who: &Who, op: Op) -> EtcdResult<i64> {
        match self.propose(who, op).await? {
            Answer::Revision(r) => Ok(r),
            _ => Err(mismatch()),
        }
    }
}

/// A failure of the log in etcd's words.
pub(crate) fn refused(e: ProposeError) -> EtcdError {
    match e {
        ProposeError::NotLeader { .. } => EtcdError::NoLeader,
        ProposeError::Overloaded => EtcdError::TooManyRequests,
        ProposeError::TooLarge { .. } => EtcdError::RequestTooLarge,
        ProposeError::Unknown(_) => EtcdError::Timeout,
        ProposeError::Refused(_) | ProposeError::Changing => EtcdError::Internal(e.to_string()),
        ProposeError::Stopped(_) => EtcdError::Stopped,
    }
}

pub(crate) fn mismatch() -> EtcdError {
    EtcdError::Internal("the machine answered another command".into())
}

/// Removes what compactions made unreachable.
async fn sweep(inner: std::sync::Weak<Inner>) {
    let mut pause = Duration::from_millis(500);
    loop {
        sleep(pause).await;
        let Some(shared) = inner.upgrade().map(|i| i.shared.clone()) else { return };
        pause = match photon_rt::task::blocking(move || crate::sweep::step(&shared)).await {
            Ok(true) => Duration::from_millis(10),
            Ok(false) => Duration::from_millis(500),
            Err(e) => {
                tracing::error!(error = %e, "compacted history could not be removed");
                Duration::from_secs(10)
            }
        };
    }
}
