//! The cluster: a row of events in virtual time, and what each does.

use super::{
    Report, SimConfig, Workload,
    carry::Parcel,
    check::{Checker, Operation, Outcome},
    faults::Network,
    node::{DRIFT_PPM, GROUP, Node},
};
use crate::{
    Change, NodeId, ProposeError, StoreError, codec,
    core::{Input, Output, Role},
    snapshot::load,
};
use bytes::Bytes;
use photon_rt::{disk::Disk, entropy::Rng, time::Duration};
use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    hash::{DefaultHasher, Hash, Hasher},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
};

/// Something that will happen.
pub(super) enum Event {
    Tick {
        node: usize,
        epoch: u64,
    },
    Turn {
        node: usize,
        epoch: u64,
    },
    Work {
        node: usize,
        epoch: u64,
    },
    Deliver {
        to: usize,
        message: Bytes,
    },
    Make {
        node: usize,
        epoch: u64,
    },
    Pump {
        node: usize,
        epoch: u64,
        line: u64,
    },
    Silence {
        node: usize,
        epoch: u64,
        line: u64,
        life: u64,
    },
    Parcel {
        from: usize,
        to: usize,
        line: u64,
        parcel: Parcel,
    },
    Client {
        client: usize,
    },
    Read {
        node: usize,
        epoch: u64,
        operation: usize,
        seen: Option<(Duration, u64)>,
    },
    Timeout {
        client: usize,
        operation: usize,
    },
    Fault,
    /// Nothing that this node says arrives any more.
    Unheard {
        node: usize,
    },
    /// The node ends and begins again, so many times.
    Crash {
        node: usize,
        times: u32,
    },
    Start {
        node: usize,
    },
    Roomy {
        node: usize,
    },
    Mend,
}

pub(super) struct Client {
    /// Index of the operation that is under way.
    pub(super) operation: Option<usize>,
}

pub(super) struct Cluster<W: Workload> {
    pub(super) config: SimConfig,
    pub(super) workload: W,
    pub(super) rng: Rng,
    pub(super) now: u64,
    sequence: u64,
    queue: BTreeMap<(u64, u64), Event>,
    pub(super) nodes: Vec<Node<W>>,
    pub(super) network: Network,
    /// Connections for snapshots ever made, and when the last thing on each arrives.
    pub(super) connections: u64,
    pub(super) lines: HashMap<(u64, usize), u64>,
    pub(super) clients: Vec<Client>,
    pub(super) checker: Checker,
    /// Operation by the number under which a node knows it.
    pub(super) numbers: HashMap<(usize, u64), usize>,
    pub(super) next_number: u64,
    /// Prints everything that happens (`SIM_TRACE=1`).
    loud: bool,
    trace: VecDeque<String>,
    trace_hash: DefaultHasher,
    pub(super) report: Report,
}

/// Speed of a clock: often at the limit of what is allowed.
fn crooked(rng: &mut Rng) -> u64 {
    let slowest = 1_000_000 - DRIFT_PPM;
    match rng.below(4) {
        0 => slowest,
        1 => slowest + 2 * DRIFT_PPM,
        _ => slowest + rng.below(2 * DRIFT_PPM),
    }
}

/// A busy node's ticks come later than they should.
fn late(rng: &mut Rng) -> u64 {
    if rng.percent(50) { 0 } else { rng.below(40) }
}

impl<W: Workload> Cluster<W> {
    pub(super) fn new(seed: u64, config: SimConfig, workload: W) -> Self {
        let mut rng = Rng::new(seed);
        let nodes = (1..=config.nodes)
            .map(|id| Node::new(NodeId(id), rng.next_u64(), crooked(&mut rng), late(&mut rng)))
            .collect();
        let clients = (0..config.clients).map(|_| Client { operation: None }).collect();
        Cluster {
            config,
            workload,
            rng,
            now: 0,
            sequence: 0,
            queue: BTreeMap::new(),
            nodes,
            network: Network::default(),
            connections: 0,
            lines: HashMap::new(),
            clients,
            checker: Checker::default(),
            numbers: HashMap::new(),
            next_number: 0,
            loud: std::env::var_os("SIM_TRACE").is_some(),
            trace: VecDeque::new(),
            trace_hash: DefaultHasher::new(),
            report: Report::default(),
        }
    }

    pub(super) fn now(&self) -> u64 {
        self.now
    }

    pub(super) fn trace_tail(&self) -> Vec<String> {
        self.trace.iter().cloned().collect()
    }

    pub(super) fn report(&self) -> Report {
        Report { leaders: self.checker.terms_led(), trace: self.trace_hash.finish(), ..self.report.clone() }
    }

    pub(super) fn note(&mut self, what: String) {
        (self.now, &what).hash(&mut self.trace_hash);
        if self.loud {
            eprintln!("{:>7} {what}", self.now);
        }
        self.trace.push_back(format!("{:>7} {what}", self.now));
        if self.trace.len() > 60 {
            self.trace.pop_front();
        }
    }

    pub(super) fn plan(&mut self, after_ms: u64, event: Event) {
        self.sequence += 1;
        self.queue.insert((self.now + after_ms, self.sequence), event);
    }

    pub(super) fn faulty(&self) -> bool {
        self.now < self.config.faults_ms
    }

    /// Who is a member from the beginning; a newcomer knows nobody.
    fn founders(&self, node: usize) -> Vec<NodeId> {
        let founders = self.config.founders as usize;
        let known = if node < founders { founders } else { 0 };
        self.nodes[..known].iter().map(|n| n.id).collect()
    }

    pub(super) fn run(&mut self) -> Result<(), String> {
        for node in 0..self.nodes.len() {
            self.plan(0, Event::Start { node });
        }
        for client in 0..self.clients.len() {
            let after = 300 + self.rng.below(500);
            self.plan(after, Event::Client { client });
        }
        self.plan(self.config.fault_every_ms, Event::Fault);
        let end = self.config.faults_ms + self.config.heal_ms;
        let mut healing = false;
        while let Some((&(time, sequence), _)) = self.queue.first_key_value() {
            if time > end {
                return Err(format!(
                    "the cluster did not heal within {} ms: {}",
                    self.config.heal_ms,
                    self.describe()
                ));
            }
            let event = self.queue.remove(&(time, sequence)).expect("just seen");
            self.now = time;
            if !healing && !self.faulty() {
                healing = true;
                self.heal();
            }
            self.happen(event)?;
            if healing && time > self.config.faults_ms + 3000 && self.settled() {
                return self.finish();
            }
        }
        Err("nothing is left to happen".into())
    }

    fn describe(&self) -> String {
        let each = self.nodes.iter().map(|n| match &n.live {
            Some(l) => format!("{}: {:?}, machine at {:?}", n.id, l.core.status(GROUP), l.applier.at()),
            None => format!("{}: down", n.id),
        });
        each.collect::<Vec<_>>().join("; ")
    }

    /// After the faults: everybody runs, one leads, all have applied all there is, a write and a read
    /// that began after the faults were answered.
    fn settled(&self) -> bool {
        let since =
            |op: &Operation| matches!(op.outcome, Outcome::Done(_)) && op.returned > self.network.healed_at;
        let served = |read: bool| {
            self.checker.operations.iter().rev().take(50).any(|op| op.command.is_none() == read && since(op))
        };
        let statuses: Vec<_> =
            self.nodes.iter().filter_map(|n| n.live.as_ref().and_then(|l| l.core.status(GROUP))).collect();
        statuses.len() == self.nodes.len()
            && statuses.iter().filter(|s| s.role == Role::Leader).count() == 1
            && statuses.iter().all(|s| s.term == statuses[0].term)
            && statuses.iter().all(|s| s.last_index == statuses[0].last_index && s.applied == s.last_index)
            && self.everybody_votes()
            && served(false)
            && served(true)
            && self.clients.iter().all(|c| c.operation.is_none())
    }

    fn everybody_votes(&self) -> bool {
        self.nodes.iter().all(|n| {
            n.live
                .as_ref()
                .and_then(|l| l.core.members(GROUP))
                .is_some_and(|m| m.voters.len() == self.nodes.len() && !m.is_joint() && m.learners.is_empty())
        })
    }

    /// Asks every live node to change the members; only the leader will.
    pub(super) fn change(&mut self, changes: &[Change]) {
        self.note(format!("change {changes:?}"));
        for node in 0..self.nodes.len() {
            self.next_number += 1;
            if let Some(live) = &mut self.nodes[node].live {
                let changes = changes.to_vec();
                live.inbox.push(Input::Change { group: GROUP, proposal: self.next_number, changes });
                self.plan_turn(node, 0);
            }
        }
    }

    /// After the faults: until everybody votes.
    fn mend(&mut self) {
        if !self.everybody_votes() {
            let all: Vec<Change> = self.nodes.iter().map(|n| Change::Voter(n.id)).collect();
            self.change(&all);
            self.plan(700, Event::Mend);
        }
    }

    fn finish(&mut self) -> Result<(), String> {
        self.report.purges = self
            .nodes
            .iter()
            .filter_map(|n| n.live.as_ref().and_then(|l| l.core.status(GROUP)))
            .map(|s| s.start.index)
            .max()
            .unwrap_or(0);
        self.checker.history()
    }

    /// Steps are what real time means for the history: one per event.
    pub(super) fn step(&self) -> u64 {
        self.sequence
    }

    fn happen(&mut self, event: Event) -> Result<(), String> {
        self.sequence += 1;
        match event {
            Event::Start { node } => self.start(node),
            Event::Tick { node, epoch } => {
                let n = &mut self.nodes[node];
                let Some(live) = n.live.as_mut().filter(|_| n.epoch == epoch) else { return Ok(()) };
                let tick = n.tick_ms;
                if n.paused_until <= self.now {
                    live.inbox.push(Input::Tick);
                    self.plan_turn(node, 0);
                }
                self.plan(tick, Event::Tick { node, epoch });
                Ok(())
            }
            Event::Turn { node, epoch } => self.turn(node, epoch),
            Event::Work { node, epoch } => self.work(node, epoch),
            Event::Deliver { to, message } => {
                let fail = |e| format!("a message did not decode: {e}");
                let input = if codec::is_notice(&message) {
                    let (from, _, notice) = codec::decode_notice(message).map_err(fail)?;
                    Input::Notice { group: GROUP, from, notice }
                } else {
                    Input::Message { group: GROUP, message: codec::decode_message(message).map_err(fail)? }
                };
                if let Some(live) = &mut self.nodes[to].live {
                    live.inbox.push(input);
                    let after = self.rng.below(3);
                    self.plan_turn(to, after);
                }
                Ok(())
            }
            Event::Make { node, epoch } => {
                self.make(node, epoch);
                Ok(())
            }
            Event::Pump { node, epoch, line } => {
                self.pump(node, epoch, line);
                Ok(())
            }
            Event::Silence { node, epoch, line, life } => {
                self.silence(node, epoch, line, life);
                Ok(())
            }
            Event::Parcel { from, to, line, parcel } => self.parcel(from, to, line, parcel),
            Event::Client { client } => {
                self.client(client);
                Ok(())
            }
            Event::Read { node, epoch, operation, seen } => self.read(node, epoch, operation, seen),
            Event::Timeout { client, operation } => {
                if self.clients[client].operation == Some(operation) {
                    self.answer(operation, Outcome::Unknown);
                }
                Ok(())
            }
            Event::Fault => {
                if self.faulty() {
                    self.fault();
                    let after = self.rng.below(2 * self.config.fault_every_ms) + 1;
                    self.plan(after, Event::Fault);
                }
                Ok(())
            }
            Event::Unheard { node } => {
                self.unheard(node);
                Ok(())
            }
            Event::Crash { node, times } => {
                self.crash(node, times);
                Ok(())
            }
            Event::Mend => {
                self.mend();
                Ok(())
            }
            Event::Roomy { node } => {
                self.nodes[node].disk.set_capacity(None);
                self.nodes[node].full = false;
                Ok(())
            }
        }
    }

    fn start(&mut self, node: usize) -> Result<(), String> {
        if self.nodes[node].live.is_some() {
            return Ok(());
        }
        let members = self.founders(node);
        let mut outputs = Vec::new();
        let n = &mut self.nodes[node];
        let (id, epoch) = (n.id, n.epoch);
        let started = n.start(&self.config, &mut self.workload, &members, &mut |o| outputs.push(o));
        match started {
            Ok(()) => {
                self.note(format!("{id} starts"));
                self.report.restarts += u64::from(epoch > 0);
                self.checker.restarted(id);
                let epoch = self.nodes[node].epoch;
                let tick = self.nodes[node].tick_ms;
                self.plan(tick, Event::Tick { node, epoch });
                self.route(node, outputs)?;
                self.look(node)
            }
            // A full disk is no reason to lose anything, and can be waited for.
            Err(StoreError::Io { source, .. }) if source.kind() == std::io::ErrorKind::StorageFull => {
                self.plan(500, Event::Start { node });
                Ok(())
            }
            // A machine does not say why its storage takes nothing.
            Err(StoreError::Machine(_)) if self.nodes[node].full => {
                self.plan(500, Event::Start { node });
                Ok(())
            }
            Err(e) => Err(format!("{id} cannot start again: {e}")),
        }
    }

    pub(super) fn plan_turn(&mut self, node: usize, after: u64) {
        let n = &mut self.nodes[node];
        let after = after.max(n.paused_until.saturating_sub(self.now));
        if let Some(live) = n.live.as_mut().filter(|l| !l.turn_planned) {
            live.turn_planned = true;
            let epoch = n.epoch;
            self.plan(after, Event::Turn { node, epoch });
        }
    }

    fn plan_work(&mut self, node: usize) {
        let after = self.rng.below(8).max(self.nodes[node].paused_until.saturating_sub(self.now));
        let n = &mut self.nodes[node];
        if let Some(live) = n.live.as_mut().filter(|l| !l.work_planned && !l.jobs.is_empty()) {
            live.work_planned = true;
            let epoch = n.epoch;
            self.plan(after, Event::Work { node, epoch });
        }
    }

    fn turn(&mut self, node: usize, epoch: u64) -> Result<(), String> {
        let n = &mut self.nodes[node];
        let clock = n.clock(self.now);
        let Some(live) = n.live.as_mut().filter(|_| n.epoch == epoch) else { return Ok(()) };
        live.turn_planned = false;
        if n.paused_until > self.now {
            self.plan_turn(node, 0);
            return Ok(());
        }
        let inputs = std::mem::take(&mut live.inbox);
        let mut outputs = Vec::new();
        // The crate panics where it cannot read the log; the store's thread then ends in the same way.
        let turn = || live.core.turn(clock, inputs, &mut |o| outputs.push(o));
        let done = match catch_unwind(AssertUnwindSafe(turn)) {
            Ok(done) => done,
            Err(panic) if !n.disk.is_off() => resume_unwind(panic),
            Err(_) => Err(StoreError::Stopped("it panicked without its disk".into())),
        };
        // What left before the disk failed has left.
        self.route(node, outputs)?;
        match done {
            Ok(()) => self.look(node),
            Err(e) => self.failed(node, &e.to_string()),
        }
    }

    /// The node's log or machine gave up. It may do so only because of an injected failure.
    fn failed(&mut self, node: usize, why: &str) -> Result<(), String> {
        let n = &mut self.nodes[node];
        let id = n.id;
        if !n.doomed && !n.full && !n.disk.is_off() {
            return Err(format!("{id} stopped without a cause: {why}"));
        }
        n.stop();
        // Real power is gone when writes fail because of it; after a failed sync the safest guess of an
        // operator is a power cycle, and the most cruel one for us.
        n.disk.power_loss();
        self.report.power_losses += 1;
        self.note(format!("{id} stops: {why}"));
        let after = 100 + self.rng.below(1500);
        self.plan(after, Event::Start { node });
        Ok(())
    }

    fn look(&mut self, node: usize) -> Result<(), String> {
        let n = &self.nodes[node];
        let Some(live) = &n.live else { return Ok(()) };
        self.checker.turn(n.id, &live.core)?;
        let leads = |n: &Node<W>| {
            let status = n.live.as_ref().and_then(|l| l.core.status(GROUP))?;
            (status.role == Role::Leader).then_some(status.term)
        };
        let Some(term) = leads(n) else { return Ok(()) };
        // While a lease holds nobody else leads: reads that go wrong are what is left to chance.
        let holds = |o: &&Node<W>| {
            let lease = o.live.as_ref().map(|l| l.lease.0).unwrap_or_default();
            leads(o).is_some_and(|t| t < term) && o.clock(self.now) < lease
        };
        match self.nodes.iter().find(holds) {
            Some(o) => Err(format!("lease: {} leads term {term} while {} holds a lease", n.id, o.id)),
            None => Ok(()),
        }
    }

    fn route(&mut self, node: usize, outputs: Vec<Output>) -> Result<(), String> {
        for output in outputs {
            match output {
                Output::Send { to, message, .. } => {
                    let id = self.nodes[node].id;
                    if !codec::is_notice(&message) {
                        let m = codec::decode_message(message.clone())
                            .map_err(|e| format!("{id} sends what is refused: {e}"))?;
                        self.checker.sent(id, &m)?;
                    }
                    self.transmit(node, to.0 as usize - 1, message);
                }
                Output::SendSnapshot { to, message, made, .. } => {
                    self.send_snapshot(node, to.0 as usize - 1, message, made);
                }
                Output::Failed { proposal, error, .. } => {
                    if let Some(op) = self.numbers.remove(&(node, proposal)) {
                        let unknown = matches!(error, ProposeError::Unknown(_) | ProposeError::Stopped(_));
                        self.answer(op, if unknown { Outcome::Unknown } else { Outcome::Refused });
                    }
                }
                Output::Status { status, .. } => {
                    let (id, s) = (self.nodes[node].id, status);
                    let leader = s.leader.map_or(0, |l| l.0);
                    self.note(format!(
                        "{id} {:?} term {} of {leader}, log {}..={}, commit {}, applied {}",
                        s.role,
                        s.term,
                        s.start.index + 1,
                        s.last_index,
                        s.commit,
                        s.applied
                    ));
                }
                Output::Lease { until, commit, .. } => {
                    if let Some(live) = &mut self.nodes[node].live {
                        live.lease = (until, commit);
                    }
                }
                Output::Members { members, .. } => {
                    if members.matched.is_empty() {
                        self.report.changes += 1;
                        let (id, m) = (self.nodes[node].id, members);
                        let ids =
                            |s: std::collections::BTreeSet<NodeId>| s.iter().map(|n| n.0).collect::<Vec<_>>();
                        let (v, o, l) = (ids(m.voters), ids(m.outgoing), ids(m.learners));
                        self.note(format!("{id} has voters {v:?}, outgoing {o:?}, learners {l:?}"));
                    }
                }
                job => {
                    // The log begins behind a snapshot that nobody has read yet: a bad moment for the power to go.
                    if matches!(job, Output::Restore { .. }) && self.faulty() && self.rng.percent(15) {
                        self.nodes[node].disk.cut_after(self.rng.below(3));
                        self.nodes[node].doomed = true;
                    }
                    if let Some(live) = &mut self.nodes[node].live {
                        live.jobs.push_back(job);
                    }
                    self.plan_work(node);
                }
            }
        }
        Ok(())
    }

    /// The apply stage does one job.
    fn work(&mut self, node: usize, epoch: u64) -> Result<(), String> {
        let n = &mut self.nodes[node];
        let Some(mut live) = n.live.as_mut().filter(|_| n.epoch == epoch) else { return Ok(()) };
        live.work_planned = false;
        if n.paused_until > self.now {
            self.plan_work(node);
            return Ok(());
        }
        let (id, disk) = (n.id, n.disk.clone());
        let mut answers = Vec::new();
        let mut restored = None;
        let done = match live.jobs.pop_front() {
            None => return Ok(()),
            Some(Output::Apply { group, commands, position, bytes }) => {
                let plain: Vec<_> = commands.iter().map(|c| c.command.clone()).collect();
                self.checker.applying(id, &plain)?;
                let waits: HashMap<u64, u64> =
                    commands.iter().filter_map(|c| Some((c.proposal?, c.command.position.index))).collect();
                live.applier.apply(commands, position).map(|replies| {
                    for (number, reply) in replies {
                        if let Some(op) = self.numbers.remove(&(node, number)) {
                            answers.push((op, Some(waits[&number]), Some(reply)));
                        }
                    }
                    Some(Input::Applied { group, position, bytes })
                })
            }
            Some(Output::Restore { group, position }) => {
                self.report.restores += 1;
                restored = Some(position.index);
                load(&disk as &dyn Disk, group, position)
                    .and_then(|chunks| live.applier.restore(position, chunks))
                    .map(|()| Some(Input::Restored { group, position }))
            }
            Some(Output::ReadReady { read, .. }) => {
                if let Some(op) = self.numbers.remove(&(node, read)) {
                    let is_read = self.checker.operations[op].command.is_none();
                    answers.push((op, is_read.then_some(live.applier.at().index), None));
                }
                Ok(None)
            }
            Some(Output::Checkpoint { group }) => live
                .applier
                .checkpoint()
                .map(|(position, machine)| Some(Input::Checkpointed { group, position, machine })),
            Some(Output::TakeSnapshot { .. }) => match live.applier.snapshot() {
                Ok((position, chunks)) => {
                    let input = self.begin_snapshot(node, position, chunks);
                    live = self.nodes[node].live.as_mut().expect("it works");
                    Ok(Some(input))
                }
                Err(e) => Err(e),
            },
            Some(_) => Ok(None),
        };
        match done {
            Ok(input) => {
                let digest = self.workload.digest(live.applier.machine());
                self.checker.applied(id, live.applier.at().index, digest)?;
                live.inbox.extend(input);
                for (op, point, reply) in answers {
                    let command = self.checker.operations[op].command.clone();
                    match (command, reply) {
                        (Some(c), Some(r)) => self.workload.replied(&c, r)?,
                        (None, _) => {
                            let live = self.nodes[node].live.as_ref().expect("it works");
                            self.workload.read(live.applier.machine())?;
                        }
                        _ => {}
                    }
                    self.answer(op, Outcome::Done(point));
                }
                self.read_applied(node)?;
                if let Some(index) = restored {
                    self.note(format!("{id} installs a snapshot of {index}"));
                }
                self.plan_turn(node, 0);
                self.plan_work(node);
                Ok(())
            }
            Err(e) => self.failed(node, &e.to_string()),
        }
    }
}
