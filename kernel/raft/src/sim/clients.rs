//! Clients of the simulator: each has one operation at a time, and waits for its answer for so long. They read as
//! `Group::read_index` does: by the lease if there is one, else by asking.

use super::{
    Workload,
    check::{Operation, Outcome},
    cluster::{Cluster, Event},
    node::{GROUP, Node},
};
use crate::core::{Input, Role};
use photon_rt::time::Duration;

/// How long a client waits for an answer. Virtual milliseconds.
const PATIENCE_MS: u64 = 1500;

impl<W: Workload> Cluster<W> {
    /// A reader looks at the lease, and later at the clock; in between the process may be stopped.
    pub(super) fn read(
        &mut self,
        node: usize,
        epoch: u64,
        operation: usize,
        seen: Option<(Duration, u64)>,
    ) -> Result<(), String> {
        let n = &mut self.nodes[node];
        let wait = n.paused_until.saturating_sub(self.now);
        let clock = n.clock(self.now);
        let Some(live) = n.live.as_mut().filter(|_| n.epoch == epoch) else { return Ok(()) };
        if wait > 0 {
            self.plan(wait, Event::Read { node, epoch, operation, seen });
            return Ok(());
        }
        match seen {
            None if !live.lease.0.is_zero() => {
                let seen = Some(live.lease);
                let after = self.rng.below(3);
                self.plan(after, Event::Read { node, epoch, operation, seen });
                return Ok(());
            }
            Some((until, commit)) if clock < until => {
                self.report.leased += 1;
                live.reads.push((commit, operation));
                return self.read_applied(node);
            }
            _ => {}
        }
        self.next_number += 1;
        live.inbox.push(Input::Read { group: GROUP, read: self.next_number });
        self.numbers.insert((node, self.next_number), operation);
        self.plan_turn(node, 0);
        Ok(())
    }

    /// Reads by a lease go on when the machine has come so far.
    pub(super) fn read_applied(&mut self, node: usize) -> Result<(), String> {
        let Some(live) = &mut self.nodes[node].live else { return Ok(()) };
        let at = live.applier.at().index;
        let (now, later) = std::mem::take(&mut live.reads).into_iter().partition(|(commit, _)| *commit <= at);
        live.reads = later;
        let now: Vec<(u64, usize)> = now;
        for (_, operation) in now {
            let live = self.nodes[node].live.as_ref().expect("it reads");
            self.workload.read(live.applier.machine())?;
            self.answer(operation, Outcome::Done(Some(at)));
        }
        Ok(())
    }

    pub(super) fn client(&mut self, client: usize) {
        if self.clients[client].operation.is_some() {
            return;
        }
        // Mostly to who says that it leads, sometimes to anybody.
        let leads = |n: &Node<W>| {
            n.live.as_ref().and_then(|l| l.core.status(GROUP)).is_some_and(|s| s.role == Role::Leader)
        };
        let leaders: Vec<usize> = (0..self.nodes.len()).filter(|n| leads(&self.nodes[*n])).collect();
        let node = if leaders.is_empty() || self.rng.percent(20) {
            self.rng.below(self.nodes.len() as u64) as usize
        } else {
            leaders[self.rng.below(leaders.len() as u64) as usize]
        };
        if self.nodes[node].live.is_none() {
            self.plan(50, Event::Client { client });
            return;
        }
        // A drill needs followers that were cut off for a while and still lack nothing.
        let drill = self.config.lease_drill && self.faulty();
        let command = if self.rng.percent(if drill { 2 } else { 60 }) {
            Some(self.workload.command(&mut self.rng))
        } else {
            None
        };
        let operation = self.checker.operations.len();
        let op =
            Operation { command: command.clone(), invoked: self.step(), returned: 0, outcome: Outcome::Open };
        self.checker.operations.push(op);
        self.clients[client].operation = Some(operation);
        self.next_number += 1;
        let number = self.next_number;
        if command.is_some() {
            self.numbers.insert((node, number), operation);
        }
        let live = self.nodes[node].live.as_mut().expect("checked");
        match command {
            Some(data) => live.inbox.push(Input::Propose { group: GROUP, proposal: number, data }),
            None => {
                let epoch = self.nodes[node].epoch;
                self.plan(0, Event::Read { node, epoch, operation, seen: None });
            }
        }
        // Sometimes a burst that nobody waits for, so that logs diverge by more than an entry.
        if self.rng.percent(10) && self.faulty() && !drill {
            for _ in 0..2 + self.rng.below(6) {
                self.burst(node);
            }
        }
        self.plan_turn(node, 0);
        self.plan(PATIENCE_MS, Event::Timeout { client, operation });
    }

    fn burst(&mut self, node: usize) {
        let data = self.workload.command(&mut self.rng);
        let op = Operation {
            command: Some(data.clone()),
            invoked: self.step(),
            returned: 0,
            outcome: Outcome::Open,
        };
        self.next_number += 1;
        self.numbers.insert((node, self.next_number), self.checker.operations.len());
        self.checker.operations.push(op);
        if let Some(live) = self.nodes[node].live.as_mut() {
            live.inbox.push(Input::Propose { group: GROUP, proposal: self.next_number, data });
            let after = self.rng.below(40);
            self.plan_turn(node, after);
        }
    }

    pub(super) fn answer(&mut self, operation: usize, outcome: Outcome) {
        let step = self.step();
        let op = &mut self.checker.operations[operation];
        let told = op.outcome == Outcome::Open;
        // A node may know better after the client gave up; but "refused" and "done" must both be true.
        if told || op.outcome == Outcome::Unknown {
            op.outcome = outcome;
            op.returned = step;
        }
        match (outcome, op.command.is_some()) {
            (Outcome::Done(_), true) => self.report.acknowledged += 1,
            (Outcome::Done(_), false) => self.report.reads += 1,
            (Outcome::Refused, _) => self.report.refused += 1,
            _ => {}
        }
        if let Some(client) = self.clients.iter().position(|c| c.operation == Some(operation)) {
            self.clients[client].operation = None;
            let think = self.rng.below(120);
            self.plan(think, Event::Client { client });
        }
    }
}
