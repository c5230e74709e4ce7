//! The driver, pure: inputs in, one append and one sync over all groups, outputs out. It owns no
//! thread, clock or socket; the store's loop and the simulator drive the same code.
//!
//! Order within a turn: inputs change the groups; a leader's messages leave (their loss or early
//! arrival is harmless, Raft thesis 10.2.1); everything is appended and synced once; only then do
//! votes, acknowledgements and committed entries leave. Nothing is handed to a state machine before
//! it is committed and durable here, so a machine is never ahead of its log.

mod carry;
mod group;
mod input;
mod lease;
#[cfg(test)]
mod lease_tests;
mod membership;
mod proposals;
mod rebuild;
mod removed;
mod storage;
#[cfg(test)]
mod tests;

pub use input::{Committed, GroupStatus, Input, Leadership, Output, Role};

use crate::{
    GroupId, Members, NodeId, Position, ProposeError, StoreError,
    bug::{Bug, Bugs},
    log::Log,
    snapshot,
};
use group::Group;
use photon_rt::time::Duration;
use raft::eraftpb::{ConfState, HardState, Snapshot};
use std::collections::{BTreeMap, BTreeSet};
use storage::SharedLog;

/// Limits and times of the driver. One tick is as long as the caller makes it.
#[derive(Clone, Debug)]
pub struct CoreConfig {
    /// This node.
    pub node: NodeId,
    /// Ticks without a leader after which a follower campaigns (up to twice as many).
    pub election_ticks: usize,
    /// Ticks between a leader's heartbeats.
    pub heartbeat_ticks: usize,
    /// Most entry bytes in one message.
    pub max_message_bytes: u64,
    /// Most bytes of proposals of a group that are not committed yet.
    pub max_uncommitted_bytes: u64,
    /// Most bytes handed to a state machine and not applied yet.
    pub max_applying_bytes: usize,
    /// A checkpoint is asked for after this many bytes of log.
    pub checkpoint_bytes: u64,
    /// Entries kept behind the checkpoint, so that a follower that is a little behind needs no
    /// snapshot. Not kept by a group of one.
    pub retain_entries: u64,
    /// Ticks after which a waiting proposal or read fails.
    pub wait_ticks: u64,
    /// How long a lease lasts from the sending that a quorum answered (see `lease`); zero for none. It must be
    /// shorter than `election_ticks - 1` ticks on the fastest clock of any member, measured on the slowest.
    pub lease: Duration,
}

impl CoreConfig {
    /// The defaults for `node`.
    pub fn new(node: NodeId) -> Self {
        CoreConfig {
            node,
            election_ticks: 10,
            heartbeat_ticks: 2,
            max_message_bytes: 1 << 20,
            max_uncommitted_bytes: 64 << 20,
            max_applying_bytes: 16 << 20,
            checkpoint_bytes: 64 << 20,
            retain_entries: 10_000,
            wait_ticks: 100,
            lease: Duration::ZERO,
        }
    }
}

/// The driver of all groups of a node.
pub struct Core {
    config: CoreConfig,
    log: SharedLog,
    groups: BTreeMap<GroupId, Group>,
    /// Groups touched in this turn.
    dirty: BTreeSet<GroupId>,
    tick: u64,
    /// This node's clock at the begin of the turn.
    now: Duration,
    /// Segments when it was last looked which groups hold back old ones.
    segments_seen: usize,
    /// Distinguishes this run of the node in read contexts.
    incarnation: u64,
    bugs: Bugs,
}

impl Core {
    /// A driver over an open log.
    pub fn new(config: CoreConfig, log: Log) -> Core {
        Core::new_with(config, log, Bugs::default())
    }

    pub(crate) fn new_with(config: CoreConfig, log: Log, bugs: Bugs) -> Core {
        Core {
            config,
            log: SharedLog::new(log),
            groups: BTreeMap::new(),
            dirty: BTreeSet::new(),
            tick: 0,
            now: Duration::ZERO,
            segments_seen: 1,
            incarnation: photon_rt::entropy::u64(),
            bugs,
        }
    }

    /// Starts a group whose machine reflects `applied`. A group that the log does not know is created
    /// with `members` as voters, durably; without any, it waits here to be made a member by others. One
    /// that the log knows keeps the members it has. A group of one leads at once.
    pub fn attach(
        &mut self,
        id: GroupId,
        members: &[NodeId],
        applied: Position,
        out: &mut dyn FnMut(Output),
    ) -> Result<(), StoreError> {
        if self.groups.contains_key(&id) {
            return Err(StoreError::Invalid(format!("{id} is attached already")));
        }
        let fresh = !self.log.lock().has(id);
        if fresh {
            if members.iter().any(|m| m.0 == 0) {
                return Err(StoreError::Invalid(format!("{id} has a member 0, which is none")));
            }
            if !members.is_empty() && !members.contains(&self.config.node) {
                return Err(StoreError::Invalid(format!("{} is not a member of {id}", self.config.node)));
            }
            let mut voters: Vec<u64> = members.iter().map(|m| m.0).collect();
            voters.sort_unstable();
            voters.dedup();
            let conf = ConfState { voters, ..ConfState::default() };
            // The first members are no entry of the log, so who joins later learns of them by a snapshot
            // only: the log begins behind a first position that nobody can ask for.
            let (mut start, mut hard) = (Position::default(), HardState::default());
            if !members.is_empty() {
                start = Position { index: 1, term: 1 };
                (hard.term, hard.commit) = (1, 1);
            }
            let mut log = self.log.lock();
            log.reset(id, start, 0, &conf, &hard);
            log.commit()?;
        }
        let mut group = Group::open(&self.config, &self.log, id, applied, self.incarnation, out)?;
        // It may have heard of a leader just before it ended.
        group.lease.heard = Some(self.tick).filter(|_| !fresh && !self.bugs.on(Bug::RestartedVotesAtOnce));
        self.groups.insert(id, group);
        self.dirty.insert(id);
        self.settle(out)
    }

    /// Forgets a group and its log.
    pub fn remove(&mut self, id: GroupId) -> Result<(), StoreError> {
        self.groups.remove(&id);
        let mut log = self.log.lock();
        log.remove(id);
        log.commit()?;
        log.collect()?;
        Ok(())
    }

    /// True when some group needs [`Input::Tick`]: one with more than one member, or with something
    /// that may have to time out.
    pub fn needs_ticks(&self) -> bool {
        self.groups.values().any(Group::needs_ticks)
    }

    /// True when a state machine has more to apply than it may hold: its [`Input::Applied`] should
    /// then come soon.
    pub fn is_backlogged(&self) -> bool {
        self.groups.values().any(Group::is_backlogged)
    }

    /// Groups that run.
    pub fn groups(&self) -> impl Iterator<Item = GroupId> + '_ {
        self.groups.keys().copied()
    }

    /// Groups that this node leads and another could, and who comes closest to it.
    pub fn heirs(&self) -> Vec<(GroupId, NodeId)> {
        self.groups.iter().filter_map(|(id, g)| Some((*id, g.heir()?))).collect()
    }

    /// True while it is not known that another node leads the group.
    pub fn is_orphan(&self, id: GroupId) -> bool {
        self.groups.get(&id).is_some_and(|g| g.leader().is_none_or(|l| l == self.config.node))
    }

    /// State of a group.
    pub fn status(&self, id: GroupId) -> Option<GroupStatus> {
        self.groups.get(&id).map(Group::status)
    }

    /// Members of a group, as in force here.
    pub fn members(&self, id: GroupId) -> Option<Members> {
        self.groups.get(&id).map(|g| g.members.clone())
    }

    /// Looks into the log.
    pub fn with_log<T>(&self, f: impl FnOnce(&Log) -> T) -> T {
        f(&self.log.lock())
    }

    /// One turn, at `now` on a clock that counts on while this node is stopped. An error means that the log has stopped: nothing may be done with this value any
    /// more, and nothing unanswered is known to be done or not.
    pub fn turn(
        &mut self,
        now: Duration,
        inputs: impl IntoIterator<Item = Input>,
        out: &mut dyn FnMut(Output),
    ) -> Result<(), StoreError> {
        self.log.lock().check()?;
        self.now = now;
        for input in inputs {
            self.take(input, out)?;
        }
        self.settle(out)
    }

    fn take(&mut self, input: Input, out: &mut dyn FnMut(Output)) -> Result<(), StoreError> {
        if matches!(input, Input::Tick) {
            self.tick += 1;
            for (id, g) in &mut self.groups {
                g.on_tick(self.tick, &self.config, self.bugs, out);
                self.dirty.insert(*id);
            }
            return Ok(());
        }
        let Some(id) = input.group() else { return Ok(()) };
        let Some(g) = self.groups.get_mut(&id) else {
            // Stopped or never started here: those who wait are told, peers may try again.
            if let Input::Propose { proposal, .. }
            | Input::Change { proposal, .. }
            | Input::Read { read: proposal, .. } = input
            {
                out(Output::Failed { group: id, proposal, error: ProposeError::NotLeader { leader: None } });
            }
            return Ok(());
        };
        self.dirty.insert(id);
        match input {
            Input::Tick => {}
            Input::Message { message, .. } => {
                g.on_message(message, self.now, self.tick, &self.config, self.bugs, out);
            }
            Input::Notice { from, notice, .. } => g.on_notice(from, notice, out),
            Input::Propose { proposal, data, .. } => g.queue(proposal, data, self.tick),
            Input::Read { read, .. } => g.on_read(read, self.tick),
            Input::Applied { position, bytes, .. } => {
                g.on_applied(position, bytes);
                if self.bugs.on(Bug::PurgeBeyondCheckpoint) {
                    self.log.lock().purge(id, position.index, position.index)?;
                }
            }
            Input::Checkpointed { position, machine, .. } => {
                if let Some(index) = g.on_checkpoint(position, &self.config) {
                    self.log.lock().purge(id, index, machine.index)?;
                }
            }
            Input::SnapshotBegun { position, .. } => g.on_snapshot_begun(position),
            Input::Snapshot { made, .. } => g.on_snapshot(made, self.tick)?,
            Input::SnapshotSent { to, id, outcome, .. } => g.on_sent(to, id, outcome, self.tick),
            Input::Restored { position, .. } => {
                g.on_restored(position);
                let log = self.log.lock();
                snapshot::discard(&**log.disk(), id, position.index);
            }
            Input::Change { proposal, changes, .. } => {
                g.on_change(proposal, &changes, self.tick, &self.config, out)
            }
            Input::Transfer { to, .. } => g.transfer(to),
            Input::Unreachable { node, .. } => g.unreachable(node),
            Input::Stop { why, .. } => {
                g.stop(&why, out);
                self.groups.remove(&id);
                self.dirty.remove(&id);
            }
        }
        Ok(())
    }

    /// Lets all touched groups come to rest: usually one append and one sync.
    fn settle(&mut self, out: &mut dyn FnMut(Output)) -> Result<(), StoreError> {
        let dirty = std::mem::take(&mut self.dirty);
        loop {
            let mut readies = Vec::new();
            for id in &dirty {
                let Some(g) = self.groups.get_mut(id) else { continue };
                g.flush(self.tick, &self.config, out);
                g.issue_reads(self.tick, self.config.election_ticks as u64, self.bugs);
                if !g.raft.has_ready() {
                    continue;
                }
                let mut ready = g.raft.ready();
                g.tell_lease(&self.config, self.bugs, out);
                g.send(ready.take_messages(), self.now, self.tick, self.bugs, out);
                let held = ready.take_persisted_messages();
                let held = if self.bugs.on(Bug::SendBeforeSync) {
                    g.send(held, self.now, self.tick, self.bugs, out);
                    Vec::new()
                } else {
                    held
                };
                g.reads_ready(ready.take_read_states());
                let mut log = self.log.lock();
                let installed = Self::install(&mut log, *id, ready.snapshot(), ready.hs())?;
                log.append(*id, ready.entries())?;
                if let Some(hs) = ready.hs()
                    && installed.is_none()
                    // A new commit index alone is not worth a sync: it is found again after a restart.
                    && ready.must_sync()
                    && !self.bugs.on(Bug::VoteNotPersisted)
                {
                    log.set_hard_state(*id, hs);
                }
                drop(log);
                if self.bugs.on(Bug::ReplyBeforeCommit) {
                    g.reply_early(out);
                }
                let committed = ready.take_committed_entries();
                g.hand_over(&self.log, committed, &self.config, self.bugs, out)?;
                readies.push((*id, ready, held, installed));
            }
            if readies.is_empty() {
                break;
            }
            self.log.lock().commit()?;
            for (id, ready, held, installed) in readies {
                let Some(g) = self.groups.get_mut(&id) else { continue };
                let mut light = g.raft.advance_append(ready);
                if let Some(at) = installed {
                    g.installed(at, out);
                }
                g.tell_lease(&self.config, self.bugs, out);
                g.send(held, self.now, self.tick, self.bugs, out);
                g.send(light.take_messages(), self.now, self.tick, self.bugs, out);
                let committed = light.take_committed_entries();
                g.hand_over(&self.log, committed, &self.config, self.bugs, out)?;
            }
        }
        let mut log = self.log.lock();
        if log.is_dirty() {
            log.commit()?;
            log.collect()?;
        }
        drop(log);
        for id in dirty {
            let Some(g) = self.groups.get_mut(&id) else { continue };
            g.hand_over(&self.log, Vec::new(), &self.config, self.bugs, out)?;
            g.ask(&self.log.lock(), &self.config, out);
            g.tell_status(out);
            g.tell_lease(&self.config, self.bugs, out);
        }
        self.free_segments(out);
        Ok(())
    }

    /// When the log has grown by a segment and is long, asks those groups to checkpoint whose entries
    /// lie in the oldest segment: busy groups do so anyway, idle ones would hold it for ever.
    fn free_segments(&mut self, out: &mut dyn FnMut(Output)) {
        let log = self.log.lock();
        let segments = log.segments();
        let grown = segments > self.segments_seen;
        self.segments_seen = segments;
        if !grown || log.bytes() < 4 * self.config.checkpoint_bytes {
            return;
        }
        let pinning = log.pinning();
        drop(log);
        for id in pinning {
            if let Some(g) = self.groups.get_mut(&id) {
                g.ask_pinned(out);
            }
        }
    }

    /// Lets the log begin behind a received snapshot, whose file is durable.
    fn install(
        log: &mut Log,
        id: GroupId,
        snapshot: &Snapshot,
        hs: Option<&HardState>,
    ) -> Result<Option<Position>, StoreError> {
        let meta = snapshot.get_metadata();
        if meta.index == 0 {
            return Ok(None);
        }
        let at = Position { index: meta.index, term: meta.term };
        let mut hard = hs.cloned().map_or_else(|| log.state(id).map(|(h, _)| h), Ok)?;
        hard.commit = hard.commit.max(at.index);
        log.reset(id, at, at.index, meta.get_conf_state(), &hard);
        Ok(Some(at))
    }
}
