//! One group in the driver: the Raft state machine of the `raft` crate, those who wait, and how far
//! the state machine has come.

use super::{
    Committed, CoreConfig, GroupStatus, Output, Role,
    carry::Carrying,
    lease::Lease,
    proposals::Proposals,
    rebuild,
    storage::{GroupStorage, SharedLog, SnapshotSlot},
};
use crate::{
    Command, GroupId, Members, NodeId, Position, ProposeError, StoreError,
    bug::{Bug, Bugs},
    codec,
    log::Log,
    snapshot,
};
use bytes::Bytes;
use photon_rt::time::Duration;
use raft::{
    Config, RawNode, ReadOnlyOption, ReadState, StateRole,
    eraftpb::{Entry, EntryType, Message, MessageType},
};
use std::{collections::VecDeque, sync::Mutex};

/// A change of members in the log, waiting to be committed.
pub(super) struct Waiting {
    pub(super) at: Position,
    pub(super) proposal: u64,
    pub(super) since: u64,
}

/// Reads that share one quorum round.
struct Reads {
    numbers: Vec<u64>,
    since: u64,
    /// Tick at which a round was begun, and its context.
    asked: Option<(u64, Vec<u8>)>,
}

pub(super) struct Group {
    pub(super) id: GroupId,
    pub(super) me: u64,
    pub(super) raft: RawNode<GroupStorage>,
    pub(super) proposals: Proposals,
    pub(super) waiting: VecDeque<Waiting>,
    reads: VecDeque<Reads>,
    /// Done as soon as all up to an index is handed over.
    pub(super) reads_ready: VecDeque<(u64, Vec<u64>)>,
    next_read: u64,
    /// Distinguishes this run of the node.
    incarnation: u64,
    /// Last index given to the state machine, last index it reported, bytes between.
    handed: u64,
    applied: u64,
    applying_bytes: usize,
    committed: u64,
    written_at_checkpoint: u64,
    checkpoint_asked: bool,
    /// Holds back old segments for all: then nothing is retained for laggards.
    pins: bool,
    /// The state machine holds nothing and waits for the state of others.
    pub(super) rebuild: bool,
    /// Snapshots being made, carried and installed.
    pub(super) carrying: Carrying,
    pub(super) lease: Lease,
    /// See `removed`, and when it last asked.
    pub(super) removed: bool,
    pub(super) asked: u64,
    told: GroupStatus,
    pub(super) members: Members,
    /// Entry that made them so.
    pub(super) members_index: u64,
}

impl Group {
    pub(super) fn open(
        config: &CoreConfig,
        shared: &SharedLog,
        id: GroupId,
        machine: Position,
        incarnation: u64,
        out: &mut dyn FnMut(Output),
    ) -> Result<Group, StoreError> {
        let log = shared.lock();
        let (start, last) = (log.start(id)?, log.last_index(id)?);
        let (_, conf) = log.state(id)?;
        let members_index = log.members_index(id)?;
        let (mut from, mut rebuild, mut restoring) = (machine, false, None);
        if machine.index < log.floor(id)? && !snapshot::exists(&**log.disk(), id, start) {
            if !rebuild::can_wait(machine, &conf, config.node.0) {
                return Err(StoreError::Damaged(format!(
                    "{id}: the state machine holds {}, but the log begins after {}",
                    machine.index, start.index
                )));
            }
            tracing::warn!(group = id.0, "the state is gone; another member's will be taken");
            (from, rebuild) = (start, true);
        } else if machine.index < log.floor(id)? {
            out(Output::Restore { group: id, position: start });
            (from, restoring) = (start, Some(start.index));
        } else if machine.index < start.index {
            // What lies between were no commands. The machine is told, or its snapshots would end before the log
            // begins, and be of use to nobody.
            from = start;
            out(Output::Apply { group: id, commands: Vec::new(), position: start, bytes: 0 });
        } else {
            let term = log.term(id, machine.index)?;
            if term != Some(machine.term) {
                return Err(StoreError::Damaged(format!(
                    "{id}: the state machine holds entry {} of term {}, but the log ({}..={last}) has {}",
                    machine.index,
                    machine.term,
                    start.index + 1,
                    term.map_or("none".into(), |t| format!("term {t}"))
                )));
            }
            snapshot::discard(&**log.disk(), id, u64::MAX);
        }
        drop(log);
        let raft_config = Config {
            id: config.node.0,
            election_tick: config.election_ticks,
            heartbeat_tick: config.heartbeat_ticks,
            applied: from.index,
            max_size_per_msg: config.max_message_bytes,
            max_inflight_msgs: 256,
            check_quorum: true,
            pre_vote: true,
            read_only_option: ReadOnlyOption::Safe,
            // Not batch_append: in 0.7.0 it adds entries to an empty message without looking at the
            // message's own index, so a gap can leave this node (the simulator found it; proposals
            // of a turn are one message anyway).
            batch_append: false,
            max_uncommitted_size: config.max_uncommitted_bytes.max(config.max_message_bytes),
            max_committed_size_per_ready: config.max_message_bytes,
            ..Config::default()
        };
        let storage = GroupStorage {
            log: shared.clone(),
            group: id,
            applied: from.index,
            snapshot: Mutex::new(SnapshotSlot::default()),
        };
        // The crate logs every message at levels we have no use for; what matters we trace ourselves.
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let raft = RawNode::new(&raft_config, storage, &logger)?;
        let mut group = Group {
            id,
            me: config.node.0,
            raft,
            proposals: Proposals::new(incarnation),
            waiting: VecDeque::new(),
            reads: VecDeque::new(),
            reads_ready: VecDeque::new(),
            next_read: 0,
            incarnation,
            handed: from.index,
            applied: from.index,
            applying_bytes: 0,
            committed: from.index,
            written_at_checkpoint: 0,
            checkpoint_asked: false,
            pins: false,
            rebuild,
            carrying: Carrying::new(restoring),
            lease: Lease::default(),
            removed: false,
            asked: 0,
            told: GroupStatus::default(),
            members: Members::of(&conf),
            members_index,
        };
        group.look_removed();
        group.tell_members(out);
        group.lead_if_single()?;
        Ok(group)
    }

    /// Asks for a checkpoint, also in order to free old segments that only this group still needs.
    pub(super) fn ask_pinned(&mut self, out: &mut dyn FnMut(Output)) {
        if !self.checkpoint_asked && self.applied > self.told.start.index {
            (self.checkpoint_asked, self.pins) = (true, true);
            out(Output::Checkpoint { group: self.id });
        }
    }

    /// The only voter need not wait to be elected. (It still waits until its machine has seen the last
    /// change of the members.)
    fn lead_if_single(&mut self) -> Result<(), StoreError> {
        let r = &self.raft.raft;
        if r.prs().is_singleton() && r.promotable() && r.state != StateRole::Leader {
            self.raft.campaign()?;
        }
        Ok(())
    }

    /// True when nobody else is to be heard or told.
    fn alone(&self) -> bool {
        let r = &self.raft.raft;
        r.state == StateRole::Leader
            && r.prs().is_singleton()
            && r.promotable()
            && self.members.learners.is_empty()
    }

    pub(super) fn needs_ticks(&self) -> bool {
        !self.alone() || !self.waiting.is_empty() || !self.proposals.is_empty() || !self.reads.is_empty()
    }

    pub(super) fn is_backlogged(&self) -> bool {
        self.handed < self.committed
    }

    pub(super) fn leader(&self) -> Option<NodeId> {
        Some(self.raft.raft.leader_id).filter(|id| *id != 0).map(NodeId)
    }

    /// On the leader: the other voter that is there and lacks least.
    pub(super) fn heir(&self) -> Option<NodeId> {
        let r = &self.raft.raft;
        let others = r.prs().iter().filter(|(id, _)| self.members.voters.contains(&NodeId(**id)));
        let others = others.filter(|(id, _)| **id != self.me && r.state == StateRole::Leader);
        others.max_by_key(|(_, p)| (p.recent_active, p.matched)).map(|(id, _)| NodeId(*id))
    }

    pub(super) fn status(&self) -> GroupStatus {
        let r = &self.raft.raft;
        GroupStatus {
            role: match r.state {
                StateRole::Follower => Role::Follower,
                StateRole::PreCandidate => Role::PreCandidate,
                StateRole::Candidate => Role::Candidate,
                StateRole::Leader => Role::Leader,
            },
            term: r.term,
            leader: self.leader(),
            commit: r.raft_log.committed,
            applied: self.applied,
            last_index: r.raft_log.last_index(),
            start: self.raft.store().log.lock().start(self.id).unwrap_or_default(),
            removed: self.removed,
        }
    }

    pub(super) fn tell_status(&mut self, out: &mut dyn FnMut(Output)) {
        let status = self.status();
        if status != self.told {
            if (status.role, status.leader) != (self.told.role, self.told.leader) {
                tracing::info!(group = self.id.0, role = ?status.role, term = status.term, leader = ?status.leader.map(|l| l.0), "role");
            }
            self.told = status;
            out(Output::Status { group: self.id, status });
        }
    }

    pub(super) fn on_tick(
        &mut self,
        tick: u64,
        config: &CoreConfig,
        bugs: Bugs,
        out: &mut dyn FnMut(Output),
    ) {
        if !self.alone() {
            // The crate draws timeouts from a generator of its own, which no seed reaches. A mixture of
            // node, group and term is as good and can be replayed.
            let mix = photon_rt::entropy::Rng::new(
                self.me ^ self.id.0.rotate_left(17) ^ (self.raft.raft.term << 32),
            )
            .below(config.election_ticks as u64);
            self.raft.raft.set_randomized_election_timeout(config.election_ticks + mix as usize);
            self.ask_for_state();
            if !self.removed {
                self.raft.tick();
                self.insist();
            }
            self.ask_around(tick, config, out);
            self.tell_progress(out);
            if let Err(e) = self.lead_if_single() {
                tracing::warn!(group = self.id.0, error = %e, "cannot campaign yet");
            }
        }
        let expired = |since: u64| tick.saturating_sub(since) > config.wait_ticks;
        while self.waiting.front().is_some_and(|w| expired(w.since)) {
            let w = self.waiting.pop_front().expect("checked");
            let error = ProposeError::Unknown("no quorum confirmed it in time".into());
            out(Output::Failed { group: self.id, proposal: w.proposal, error });
        }
        self.tend_proposals(tick, config, bugs, out);
        let forsaken = self.is_forsaken(tick, config);
        while self.reads.front().is_some_and(|r| forsaken || expired(r.since)) {
            for read in self.reads.pop_front().expect("checked").numbers {
                let error = ProposeError::NotLeader { leader: self.leader() };
                out(Output::Failed { group: self.id, proposal: read, error });
            }
        }
        self.expire_snapshot(tick, 4 * config.election_ticks as u64);
    }

    pub(super) fn on_message(
        &mut self,
        mut message: Message,
        now: Duration,
        tick: u64,
        config: &CoreConfig,
        bugs: Bugs,
        out: &mut dyn FnMut(Output),
    ) {
        if message.to != self.me
            || self.declines(&message)
            || !self.admit(&mut message, now, tick, config, bugs, out)
        {
            return;
        }
        if message.get_msg_type() == MessageType::MsgPropose {
            self.on_forwarded(message, bugs);
            return;
        }
        if message.get_msg_type() == MessageType::MsgSnapshot {
            self.step_snapshot(message);
            return;
        }
        // An error says that the message is of no use now (an unknown sender, no leader): as if lost.
        if let Err(e) = self.raft.step(message) {
            tracing::debug!(group = self.id.0, error = %e, "message dropped");
        }
    }

    pub(super) fn on_read(&mut self, read: u64, tick: u64) {
        match self.reads.back_mut() {
            // A round that has not begun covers everybody who waits by then.
            Some(r) if r.asked.is_none() => r.numbers.push(read),
            _ => self.reads.push_back(Reads { numbers: vec![read], since: tick, asked: None }),
        }
    }

    /// Begins quorum rounds for waiting reads when they can succeed, again when one got lost.
    pub(super) fn issue_reads(&mut self, tick: u64, patience: u64, bugs: Bugs) {
        let leads = self.raft.raft.state == StateRole::Leader;
        let possible =
            if leads { self.raft.raft.commit_to_current_term() } else { self.raft.raft.leader_id != 0 };
        if bugs.on(Bug::StaleRead) {
            for r in self.reads.drain(..) {
                self.reads_ready.push_back((self.raft.raft.raft_log.committed, r.numbers));
            }
            return;
        }
        if !possible {
            return;
        }
        for i in 0..self.reads.len() {
            let r = &mut self.reads[i];
            if r.asked.as_ref().is_some_and(|(since, _)| tick - since <= patience) {
                continue;
            }
            self.next_read += 1;
            let context: Vec<u8> =
                [self.me, self.incarnation, self.next_read].iter().flat_map(|v| v.to_le_bytes()).collect();
            r.asked = Some((tick, context.clone()));
            self.raft.read_index(context);
        }
    }

    pub(super) fn reads_ready(&mut self, states: Vec<ReadState>) {
        for s in states {
            let of = |r: &Reads| r.asked.as_ref().is_some_and(|(_, c)| *c == s.request_ctx);
            if let Some(i) = self.reads.iter().position(of)
                && let Some(r) = self.reads.remove(i)
            {
                self.reads_ready.push_back((s.index, r.numbers));
            }
        }
    }

    pub(super) fn on_applied(&mut self, position: Position, bytes: usize) {
        self.applying_bytes = self.applying_bytes.saturating_sub(bytes);
        self.applied = self.applied.max(position.index);
        let log = &self.raft.raft.raft_log;
        if position.index > log.applied && position.index <= log.committed.min(log.persisted) {
            self.raft.advance_apply_to(position.index);
        }
    }

    /// Index up to which the log may be purged.
    pub(super) fn on_checkpoint(&mut self, position: Position, config: &CoreConfig) -> Option<u64> {
        self.checkpoint_asked = false;
        let mut index = position.index;
        if !std::mem::take(&mut self.pins) && !self.alone() {
            index = index.saturating_sub(config.retain_entries);
        }
        let storage = self.raft.store();
        // Whoever installs a snapshot goes on from there.
        index = index.min(self.carrying.floor(&storage.slot()));
        let start = storage.log.lock().start(self.id).ok()?;
        (index > start.index).then_some(index)
    }

    pub(super) fn transfer(&mut self, to: NodeId) {
        self.raft.transfer_leader(to.0);
    }

    /// Who shall take over is told again each tick, until the crate gives it up after an election timeout: it may
    /// have been unable to campaign when it was told first (it had not applied a change of the members yet), or the
    /// message was lost.
    fn insist(&mut self) {
        let r = &mut self.raft.raft;
        let Some(to) = r.lead_transferee else { return };
        let last = r.raft_log.last_index();
        if r.prs().get(to).is_some_and(|p| p.matched == last) {
            r.send_timeout_now(to);
        }
    }

    pub(super) fn unreachable(&mut self, node: NodeId) {
        self.raft.report_unreachable(node.0);
    }

    /// The log now begins after a received snapshot.
    pub(super) fn installed(&mut self, at: Position, out: &mut dyn FnMut(Output)) {
        // At once, not when the machine has it: the crate reads all unapplied entries when it
        // campaigns, and those before the snapshot are gone.
        self.raft.advance_apply_to(at.index);
        self.rebuild = false;
        self.carrying.restoring = Some(at.index);
        (self.handed, self.committed) = (at.index, self.committed.max(at.index));
        self.members = Members::of(&self.raft.raft.prs().conf().to_conf_state());
        self.members_index = at.index;
        self.forget_answers();
        self.look_removed();
        self.tell_members(out);
        self.proposals_skipped(at.term, out);
        while self.waiting.front().is_some_and(|w| w.at.index <= at.index) {
            let w = self.waiting.pop_front().expect("checked");
            let error = ProposeError::Unknown("this node fell behind and took a snapshot".into());
            out(Output::Failed { group: self.id, proposal: w.proposal, error });
        }
        out(Output::Restore { group: self.id, position: at });
    }

    pub(super) fn send(
        &mut self,
        messages: Vec<Message>,
        now: Duration,
        tick: u64,
        bugs: Bugs,
        out: &mut dyn FnMut(Output),
    ) {
        for mut m in messages {
            if m.get_msg_type() == MessageType::MsgSnapshot {
                self.carry(&m, tick, out);
                continue;
            }
            self.stamp(&mut m, now, bugs, out);
            if bugs.on(Bug::CodecLosesReject) {
                m.reject = false;
            }
            if bugs.on(Bug::CodecLosesContext) {
                m.context = Bytes::new();
            }
            let mut bytes = Vec::new();
            match codec::encode_message(&mut bytes, &m) {
                Ok(()) => out(Output::Send { to: NodeId(m.to), group: self.id, message: bytes.into() }),
                Err(e) => tracing::error!(group = self.id.0, error = %e, "cannot encode a message"),
            }
        }
    }

    /// Gives committed entries to the state machine, as many as it may hold. `ready` are those that
    /// the crate just returned; when they do not continue what was handed over, the log is read.
    pub(super) fn hand_over(
        &mut self,
        log: &SharedLog,
        ready: Vec<Entry>,
        config: &CoreConfig,
        bugs: Bugs,
        out: &mut dyn FnMut(Output),
    ) -> Result<(), StoreError> {
        if let Some(e) = ready.last() {
            self.committed = self.committed.max(e.index);
        }
        if bugs.on(Bug::ApplyBeforeCommit) {
            self.committed = self.committed.max(log.lock().last_index(self.id)?);
        }
        if self.rebuild {
            return Ok(());
        }
        if self.handed < self.committed {
            // Whoever hears that an entry is applied finds a status that knows it.
            self.tell_status(out);
        }
        let mut ready = Some(ready).filter(|r| r.first().is_some_and(|e| e.index == self.handed + 1));
        while self.handed < self.committed && self.applying_bytes < config.max_applying_bytes {
            let entries = match ready.take() {
                Some(entries) => entries,
                None => log.lock().entries(
                    self.id,
                    self.handed + 1,
                    self.committed + 1,
                    config.max_message_bytes,
                )?,
            };
            self.apply(entries, log, bugs, out)?;
        }
        while self.reads_ready.front().is_some_and(|(index, _)| *index <= self.handed) {
            for read in self.reads_ready.pop_front().expect("checked").1 {
                out(Output::ReadReady { group: self.id, read });
            }
        }
        Ok(())
    }

    fn apply(
        &mut self,
        entries: Vec<Entry>,
        log: &SharedLog,
        bugs: Bugs,
        out: &mut dyn FnMut(Output),
    ) -> Result<(), StoreError> {
        let mut bytes = 0;
        let mut position = Position::default();
        let mut commands = Vec::with_capacity(entries.len());
        for e in entries {
            position = Position { index: e.index, term: e.term };
            self.handed = e.index;
            // Also where nobody waits: another leader's entry at this place ends the wait.
            let change = self.answered(position, out);
            let proposal = self.came_back(&e);
            if e.get_entry_type() != EntryType::EntryNormal {
                self.change_members(&e, change, log, bugs, out)?;
            } else if !e.context.is_empty() {
                bytes += e.data.len() + 32;
                commands.push(Committed { command: Command { position, data: e.data }, proposal });
            }
        }
        self.applying_bytes += bytes;
        out(Output::Apply { group: self.id, commands, position, bytes });
        Ok(())
    }

    /// The change that waits for the entry at `at`. Those that waited for another entry at this
    /// place have lost it for good: it is committed with other content.
    fn answered(&mut self, at: Position, out: &mut dyn FnMut(Output)) -> Option<u64> {
        while let Some(w) = self.waiting.front()
            && w.at.index <= at.index
        {
            let w = self.waiting.pop_front().expect("checked");
            if w.at == at {
                return Some(w.proposal);
            }
            let error = ProposeError::NotLeader { leader: self.leader() };
            out(Output::Failed { group: self.id, proposal: w.proposal, error });
        }
        None
    }

    /// Only for [`Bug::ReplyBeforeCommit`]: says that proposals are done while they are not.
    pub(super) fn reply_early(&mut self, out: &mut dyn FnMut(Output)) {
        for proposal in self.proposals.drain() {
            out(Output::ReadReady { group: self.id, read: proposal });
        }
    }

    /// Asks for what the log needs from the state machine.
    pub(super) fn ask(&mut self, log: &Log, config: &CoreConfig, out: &mut dyn FnMut(Output)) {
        self.ask_snapshot(out);
        let written = log.written(self.id);
        if !self.checkpoint_asked && written - self.written_at_checkpoint > config.checkpoint_bytes {
            self.checkpoint_asked = true;
            self.written_at_checkpoint = written;
            out(Output::Checkpoint { group: self.id });
        }
    }

    /// Tells all who wait that the group has stopped.
    pub(super) fn stop(&mut self, why: &str, out: &mut dyn FnMut(Output)) {
        let error = ProposeError::Stopped(why.to_string());
        let proposals = self.proposals.drain();
        let waiting = self.waiting.drain(..).map(|w| w.proposal);
        let reads = self.reads.drain(..).flat_map(|r| r.numbers);
        let ready = self.reads_ready.drain(..).flat_map(|(_, numbers)| numbers);
        for proposal in waiting.chain(proposals).chain(reads).chain(ready) {
            out(Output::Failed { group: self.id, proposal, error: error.clone() });
        }
    }
}
