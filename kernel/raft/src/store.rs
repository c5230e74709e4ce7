//! The real runtime around the driver: one thread that drives all groups of a node and writes the
//! log, and beside it those of [`crate::apply`], so that the next sync overlaps with applying.
//!
//! Nobody waits for more than one sync that was under way: the log thread takes everything that has
//! come meanwhile as its next turn. An idle store of single-member groups sleeps without a timer.

use crate::{
    GroupId, Machine, Members, NodeId, Position, ProposeError, StoreError,
    applier::Applier,
    apply::{Applies, Chore, Job, Typed, apply_loop, snapshot_loop},
    bug::Bugs,
    codec,
    core::{Core, CoreConfig, GroupStatus, Input, Output},
    group::{Group, Member, Shared},
    inbox::Inbox,
    log::{Log, LogConfig},
    snapshot::{self, Made, Next, Outcome, Pace, Receiver, Refusal, Shipment},
};
use bytes::Bytes;
use photon_rt::{disk::Disk, time::Duration};
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio::sync::{mpsc, oneshot};

/// How a store runs.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// This node.
    pub node: NodeId,
    /// Sizes of the log.
    pub log: LogConfig,
    /// Limits and times of the driver.
    pub core: CoreConfig,
    /// Length of a tick.
    pub tick: Duration,
    /// Most bytes of proposals of one group that are not answered yet.
    pub inflight_bytes: usize,
    /// Most messages of peers that wait to be looked at; more are dropped.
    pub inbox_messages: usize,
    /// Whether a leader answers reads without asking the others while it is sure that none of them leads
    /// (`core::lease` has the conditions; the clocks of any two members may differ in speed by 10 %).
    pub lease_reads: bool,
    /// Bytes a second at which snapshots are made, and at which all together are sent; 0 for no limit.
    pub snapshot_rate: u64,
}

impl StoreConfig {
    /// The defaults for `node`.
    pub fn new(node: NodeId) -> Self {
        StoreConfig {
            node,
            log: LogConfig::default(),
            core: CoreConfig::new(node),
            tick: Duration::from_millis(100),
            inflight_bytes: 64 << 20,
            inbox_messages: 16 << 10,
            lease_reads: true,
            snapshot_rate: 64 << 20,
        }
    }
}

impl StoreConfig {
    /// What a follower surely waits before it votes for another, less a tenth for clocks of different speed.
    fn lease(&self) -> Duration {
        let ticks = u32::try_from(self.core.election_ticks.saturating_sub(1)).unwrap_or(0);
        if self.lease_reads { self.tick.saturating_mul(ticks) / 10 * 9 } else { Duration::ZERO }
    }
}

/// Takes messages to peers. Called on the log's thread: it must not block, and may drop.
pub trait Transport: Send + 'static {
    /// Sends to `to`, which gives it to its own store by [`Store::deliver`].
    fn send(&mut self, to: NodeId, group: GroupId, message: Bytes);

    /// Carries a snapshot: announces it to [`Store::announced`] of `shipment.to`, brings the pieces that are
    /// wanted to [`Store::piece`], then calls [`Store::received`]. Must not block either: it hands it on.
    fn send_snapshot(&mut self, shipment: Shipment);
}

/// The transport of a cluster of one.
#[derive(Clone, Copy, Debug)]
pub struct NoTransport;

impl Transport for NoTransport {
    fn send(&mut self, _to: NodeId, _group: GroupId, _message: Bytes) {}

    fn send_snapshot(&mut self, _shipment: Shipment) {}
}

/// What the log thread is told.
pub(crate) enum Ask {
    Input(Input),
    Attach {
        id: GroupId,
        members: Vec<NodeId>,
        applied: Position,
        machine: Box<dyn Applies>,
        member: Arc<dyn Member>,
        done: oneshot::Sender<Result<(), StoreError>>,
    },
    Remove {
        id: GroupId,
        done: oneshot::Sender<Result<(), StoreError>>,
    },
    Shutdown,
    /// The apply thread has ended; nothing of it follows.
    Applied,
}

pub(crate) struct Inner {
    pub(crate) inbox: Inbox<Ask>,
    pub(crate) jobs: Inbox<Job>,
    pub(crate) chores: Inbox<Chore>,
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) receiver: Receiver,
    /// How fast snapshots are written, and how fast they leave.
    pub(crate) making: Pace,
    pub(crate) sending: Pace,
    members: Mutex<BTreeMap<GroupId, Arc<dyn Member>>>,
    /// The log thread wants to hear at once how far applying came.
    pub(crate) backlogged: AtomicBool,
    stopped: Mutex<Option<String>>,
    ended: tokio::sync::watch::Sender<bool>,
    /// Groups that do not run here and of which a peer spoke.
    strangers: mpsc::Sender<(NodeId, GroupId)>,
    told_of: Mutex<Option<mpsc::Receiver<(NodeId, GroupId)>>>,
}

/// Most groups that do not run here and are still to be told of.
const STRANGERS: usize = 64;

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Inner {
    pub(crate) fn member(&self, id: GroupId) -> Option<Arc<dyn Member>> {
        lock(&self.members).get(&id).cloned()
    }

    /// Why the store stopped.
    pub(crate) fn reason(&self) -> String {
        lock(&self.stopped).clone().unwrap_or_else(|| "it was shut down".into())
    }

    /// Carrying a snapshot has ended.
    pub(crate) fn shipped(&self, group: GroupId, to: NodeId, made: Arc<Made>, outcome: Outcome) {
        let id = made.descriptor().id;
        let _ = self.chores.push(Chore::Dispose(made));
        let _ = self.inbox.push(Ask::Input(Input::SnapshotSent { group, to, id, outcome }));
    }

    pub(crate) fn end(&self, why: &str) {
        lock(&self.stopped).get_or_insert_with(|| why.to_string());
        self.inbox.close();
        self.jobs.close();
        self.chores.close();
        self.making.end();
        for member in lock(&self.members).values() {
            member.stopped(why);
        }
        self.ended.send_replace(true);
    }
}

/// All groups of a node, over one log. Dropping it without [`Store::shutdown`] stops it as a crash
/// would: safely, without checkpoints.
pub struct Store {
    config: StoreConfig,
    inner: Arc<Inner>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Store {
    /// Opens (or begins) the log in `disk` and starts the threads. Blocks while the log is replayed.
    pub fn open(
        config: StoreConfig,
        disk: Arc<dyn Disk>,
        transport: impl Transport,
    ) -> Result<Store, StoreError> {
        let log = Log::open(disk.clone(), config.log)?;
        let core_config = CoreConfig { node: config.node, lease: config.lease(), ..config.core };
        let core = Core::new(core_config, log);
        let (strangers, told_of) = mpsc::channel(STRANGERS);
        let inner = Arc::new(Inner {
            inbox: Inbox::new(config.inbox_messages),
            jobs: Inbox::new(usize::MAX),
            chores: Inbox::new(usize::MAX),
            receiver: Receiver::new(disk.clone(), Bugs::default())
                .map_err(StoreError::io("remove old snapshots"))?,
            making: Pace::new(config.snapshot_rate),
            sending: Pace::new(config.snapshot_rate),
            disk,
            members: Mutex::new(BTreeMap::new()),
            backlogged: AtomicBool::new(false),
            stopped: Mutex::new(None),
            ended: tokio::sync::watch::Sender::new(false),
            strangers,
            told_of: Mutex::new(Some(told_of)),
        });
        let (log_side, apply_side, snapshot_side) = (inner.clone(), inner.clone(), inner.clone());
        let tick = config.tick;
        let patience = tick * u32::try_from(config.core.election_ticks).unwrap_or(u32::MAX);
        let apply = photon_rt::task::thread("raft-apply", move || {
            let why = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| apply_loop(&apply_side)));
            if why.is_err() {
                apply_side.end("the apply thread panicked");
            }
            let _ = apply_side.inbox.push(Ask::Applied);
        })
        .map_err(StoreError::io("start the apply thread"))?;
        let snapshots = photon_rt::task::thread("raft-snapshot", move || snapshot_loop(&snapshot_side))
            .map_err(StoreError::io("start the thread that makes snapshots"))?;
        let log = photon_rt::task::thread("raft-log", move || {
            let run = std::panic::AssertUnwindSafe(|| log_loop(core, &log_side, transport, tick, patience));
            let why = match std::panic::catch_unwind(run) {
                Ok(Ok(())) => "it was shut down".to_string(),
                Ok(Err(e)) => e.to_string(),
                Err(_) => "the log thread panicked".to_string(),
            };
            log_side.end(&why);
            tracing::info!(why = log_side.reason(), "raft store ended");
        })
        .map_err(StoreError::io("start the log thread"))?;
        Ok(Store { config, inner, threads: vec![apply, snapshots, log] })
    }

    /// Starts a group. If the log does not know it, it is created with `members` (this node must be
    /// one; with none at all the group waits here until its leader makes this node a member); otherwise it goes on with the members it has, and `machine` must hold a state that the
    /// log can continue. A group of one leads when this returns.
    pub async fn create_group<M: Machine>(
        &self,
        id: GroupId,
        members: &[NodeId],
        machine: M,
    ) -> Result<Group<M>, StoreError> {
        let shared = Arc::new(Shared::<M>::new(id, self.inner.clone(), self.config.inflight_bytes));
        let applied = machine.applied();
        shared.applied(applied.index);
        let typed = Typed { applier: Applier::new(machine, Bugs::default()), shared: shared.clone() };
        let (done, answer) = oneshot::channel();
        let ask = Ask::Attach {
            id,
            members: members.to_vec(),
            applied,
            machine: Box::new(typed),
            member: shared.clone(),
            done,
        };
        self.ask(ask, answer).await?;
        Ok(Group { shared })
    }

    /// Stops a group and forgets its log. The machine is dropped.
    pub async fn remove_group(&self, id: GroupId) -> Result<(), StoreError> {
        let (done, answer) = oneshot::channel();
        self.ask(Ask::Remove { id, done }, answer).await
    }

    async fn ask(
        &self,
        ask: Ask,
        answer: oneshot::Receiver<Result<(), StoreError>>,
    ) -> Result<(), StoreError> {
        let stopped = || StoreError::Stopped(self.inner.reason());
        self.inner.inbox.push(ask).map_err(|_| stopped())?;
        answer.await.unwrap_or_else(|_| Err(stopped()))
    }

    /// Takes a message of `from`, which the transport has authenticated. One that is not valid or
    /// speaks for another node is refused; when too many wait it is dropped, which Raft survives.
    pub fn deliver(&self, from: NodeId, group: GroupId, message: Bytes) -> Result<(), codec::CodecError> {
        if codec::is_notice(&message) {
            let (sender, to, notice) = codec::decode_notice(message)?;
            if sender != from || to != self.config.node {
                return Err(codec::CodecError::Invalid("sender or receiver"));
            }
            let _ = self.inner.inbox.offer(Ask::Input(Input::Notice { group, from, notice }));
            return Ok(());
        }
        let message = codec::decode_message(message)?;
        if message.from != from.0 {
            return Err(codec::CodecError::Invalid("sender"));
        }
        if message.snapshot.is_some() {
            return Err(codec::CodecError::Invalid("a snapshot without its pieces"));
        }
        if self.inner.member(group).is_none() {
            let _ = self.inner.strangers.try_send((from, group)); // they speak again
        }
        let _ = self.inner.inbox.offer(Ask::Input(Input::Message { group, message }));
        Ok(())
    }

    /// Who spoke of which group that does not run here, again and again until it does: perhaps it should. The
    /// first caller has them.
    pub fn strangers(&self) -> Option<mpsc::Receiver<(NodeId, GroupId)>> {
        lock(&self.inner.told_of).take()
    }

    /// Takes the announcement of a snapshot by `from`. Blocks, as the two below do: files are written.
    pub fn announced(&self, from: NodeId, group: GroupId, message: Bytes) -> Result<Next, Refusal> {
        let message = codec::decode_message(message).map_err(|_| Refusal::Stale)?;
        let status = self.inner.member(group).map(|m| m.now());
        let next = self.inner.receiver.announce(from, group, message, status)?;
        let _ = self.inner.chores.push(Chore::Look);
        Ok(next)
    }

    /// Takes a piece of snapshot `id`, from offset `at` on; how much of it is here then.
    pub fn piece(
        &self,
        group: GroupId,
        id: u64,
        at: u64,
        bytes: &[u8],
        checksum: u32,
    ) -> Result<u64, Refusal> {
        self.inner.receiver.piece(group, id, at, bytes, checksum)
    }

    /// All pieces of snapshot `id` were taken: verifies it and lets the group have it.
    pub fn received(&self, group: GroupId, id: u64) -> Result<(), Refusal> {
        let message = self.inner.receiver.finish(group, id)?;
        let _ = self.inner.inbox.push(Ask::Input(Input::Message { group, message }));
        Ok(())
    }

    pub(crate) fn sending(&self) -> &Pace {
        &self.inner.sending
    }

    /// A message of `group` to `node` was not delivered.
    pub fn unreachable(&self, node: NodeId, group: GroupId) {
        let _ = self.inner.inbox.offer(Ask::Input(Input::Unreachable { group, node }));
    }

    /// Why the store no longer runs, if so.
    pub fn stopped(&self) -> Option<String> {
        lock(&self.inner.stopped).clone()
    }

    /// Resolves when the store has ended, by [`Store::shutdown`] or by itself: the disk failed or the
    /// log is damaged. The process should then end too.
    pub async fn ended(&self) -> String {
        let _ = self.inner.ended.subscribe().wait_for(|e| *e).await;
        self.inner.reason()
    }

    /// Ends at once, as a crash would, because of `why`: all that wait are told.
    pub fn stop(&self, why: &str) {
        self.inner.end(why);
    }

    /// Hands over what this node leads (for at most an election timeout), applies and checkpoints what is
    /// committed, purges the log, and ends. Connections to the others should live until this returns.
    pub async fn shutdown(&self) {
        let _ = self.inner.inbox.push(Ask::Shutdown);
        self.ended().await;
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.inner.end("the store was dropped");
        // Until its threads have gone, nobody may open this log again. That takes a sync at most, and
        // the batch that is being applied.
        for thread in self.threads.drain(..) {
            if thread.thread().id() != std::thread::current().id() {
                let _ = thread.join(); // a panic was told already
            }
        }
    }
}

fn log_loop(
    mut core: Core,
    inner: &Arc<Inner>,
    mut transport: impl Transport,
    tick: Duration,
    patience: Duration,
) -> Result<(), StoreError> {
    let mut asks = Vec::new();
    let mut inputs = Vec::new();
    let mut next_tick = photon_rt::time::now() + tick;
    // Whose leadership is being handed over before the end, and until when that is waited for.
    let mut leaving: Option<(Vec<(GroupId, NodeId)>, photon_rt::time::Instant)> = None;
    let mut ending = false;
    loop {
        let now = photon_rt::time::now();
        let mut limit = core.needs_ticks().then(|| next_tick.saturating_duration_since(now));
        if let Some((_, until)) = leaving.as_ref().filter(|_| !ending) {
            let left = until.saturating_duration_since(now);
            limit = Some(limit.map_or(left, |l| l.min(left)));
        }
        if !inner.inbox.take(&mut asks, limit) {
            return Ok(());
        }
        // Before anything of this turn: what leaves in it leaves later.
        let begun = photon_rt::time::since_boot();
        let mut out = |output: Output| route(inner, &mut transport, output);
        let mut applied = false;
        for ask in asks.drain(..) {
            match ask {
                Ask::Input(input) => inputs.push(input),
                Ask::Attach { id, members, applied, machine, member, done } => {
                    if core.status(id).is_some() {
                        let _ = done.send(Err(StoreError::Invalid(format!("{id} runs already"))));
                        continue;
                    }
                    // The machine must be there before the group's first output.
                    lock(&inner.members).insert(id, member);
                    let _ = inner.jobs.push(Job::Attach { id, machine });
                    let result = core.attach(id, &members, applied, &mut out);
                    if result.is_err() {
                        let _ = inner.jobs.push(Job::Detach { id });
                        lock(&inner.members).remove(&id);
                    }
                    let _ = done.send(result);
                }
                Ask::Remove { id, done } => {
                    if let Some(member) = lock(&inner.members).remove(&id) {
                        member.stopped("the group was removed");
                    }
                    let _ = inner.jobs.push(Job::Detach { id });
                    let _ = done.send(core.remove(id));
                    snapshot::discard(&*inner.disk, id, u64::MAX);
                    let _ = inner.chores.push(Chore::Look);
                }
                Ask::Shutdown if leaving.is_none() => {
                    let heirs = core.heirs();
                    inputs.extend(heirs.iter().map(|(group, to)| Input::Transfer { group: *group, to: *to }));
                    leaving = Some((heirs, photon_rt::time::now() + patience));
                }
                Ask::Shutdown => {}
                Ask::Applied => applied = true,
            }
        }
        if core.needs_ticks() && photon_rt::time::now() >= next_tick {
            inputs.push(Input::Tick);
            // After a pause (a stopped process, a slow disk) time does not rush to catch up: that
            // would start elections before the messages that wait are read.
            next_tick = photon_rt::time::now() + tick;
        }
        core.turn(begun, inputs.drain(..), &mut out)?;
        inner.backlogged.store(core.is_backlogged(), Ordering::Release);
        if let Some((heirs, until)) = &mut leaving {
            heirs.retain(|(group, _)| core.is_orphan(*group));
            if !ending && (heirs.is_empty() || photon_rt::time::now() >= *until) {
                ending = true;
                let _ = inner.jobs.push(Job::Finish);
            }
        }
        if applied {
            return Ok(());
        }
    }
}

fn route(inner: &Arc<Inner>, transport: &mut impl Transport, output: Output) {
    match output {
        Output::Send { to, group, message } => transport.send(to, group, message),
        Output::SendSnapshot { to, group, message, made } => {
            transport.send_snapshot(Shipment::new(to, group, message, made, inner.clone()));
        }
        Output::Dispose { made } => drop(inner.chores.push(Chore::Dispose(made))),
        Output::Failed { group, proposal, error } => {
            if let Some(member) = inner.member(group) {
                member.failed(proposal, error);
            }
        }
        Output::Status { group, status } => {
            if let Some(member) = inner.member(group) {
                member.status(status);
            }
        }
        Output::Lease { group, until, commit } => {
            if let Some(member) = inner.member(group) {
                member.lease(until, commit);
            }
        }
        Output::Members { group, members } => {
            if let Some(member) = inner.member(group) {
                member.members(members);
            }
        }
        job => {
            let _ = inner.jobs.push(Job::Do(job));
        }
    }
}

/// For [`Group`]: how a member hears from the threads.
impl<M: Machine> Member for Shared<M> {
    fn failed(&self, number: u64, error: ProposeError) {
        self.fail(number, error);
    }

    fn status(&self, status: GroupStatus) {
        self.set_status(status);
    }

    fn members(&self, members: Members) {
        self.set_members(members);
    }

    fn lease(&self, until: Duration, commit: u64) {
        self.set_lease(until, commit);
    }

    fn now(&self) -> GroupStatus {
        self.status_now()
    }

    fn stopped(&self, why: &str) {
        self.stop(why);
    }
}
