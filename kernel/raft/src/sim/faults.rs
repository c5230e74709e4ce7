//! What goes wrong.

use super::{
    Workload,
    cluster::{Cluster, Event},
};
use crate::{Change, core::Input};
use bytes::Bytes;
use std::collections::BTreeSet;

/// State of the network.
#[derive(Default)]
pub(super) struct Network {
    /// Pairs (from, to) between which nothing passes.
    cut: BTreeSet<(usize, usize)>,
    drop_percent: u64,
    double_percent: u64,
    slow_percent: u64,
    /// Everything to this node is slow.
    slow_to: Option<usize>,
    /// Step at which the faults ended.
    pub(super) healed_at: u64,
}

impl<W: Workload> Cluster<W> {
    /// Puts a message on the wire.
    pub(super) fn transmit(&mut self, from: usize, to: usize, message: Bytes) {
        for after in self.delays(from, to).unwrap_or_default() {
            self.plan(after, Event::Deliver { to, message: message.clone() });
        }
    }

    /// How long each copy of a message takes; none when it is lost.
    pub(super) fn delays(&mut self, from: usize, to: usize) -> Option<Vec<u64>> {
        let n = &self.network;
        let (drop, double, slow) = (n.drop_percent, n.double_percent, n.slow_percent);
        if n.cut.contains(&(from, to)) || self.rng.percent(drop) {
            return None;
        }
        let copies = 1 + u64::from(self.rng.percent(double));
        let slow = if n.slow_to == Some(to) { 70 } else { slow };
        let mut one =
            || if self.rng.percent(slow) { 50 + self.rng.below(900) } else { 1 + self.rng.below(10) };
        Some((0..copies).map(|_| one()).collect())
    }

    /// One fault, of any kind.
    pub(super) fn fault(&mut self) {
        if self.config.lease_drill {
            self.drill();
            return;
        }
        let node = self.rng.below(self.nodes.len() as u64) as usize;
        let id = self.nodes[node].id;
        if self.config.founders < self.config.nodes && self.rng.percent(40) {
            let changes = self.any_change();
            self.change(&changes);
            return;
        }
        match self.rng.below(16) {
            0 | 1 => self.kill(node, false),
            2 | 3 => self.kill(node, true),
            4 => {
                // Everybody at once: what only memory held is gone everywhere.
                self.note("power loss everywhere".into());
                for node in 0..self.nodes.len() {
                    self.kill(node, true);
                }
            }
            // Disks fail under who uses them.
            5..=8 if self.nodes[node].live.is_none() => {}
            5 | 6 => {
                // The power goes in the middle of some write soon.
                let n = self.rng.below(12);
                self.note(format!("{id} loses power after {n} writes"));
                self.nodes[node].disk.cut_after(n);
                self.nodes[node].doomed = true;
            }
            7 => {
                self.note(format!("{id} has a failing sync"));
                self.nodes[node].disk.fail_syncs(1);
                self.nodes[node].doomed = true;
            }
            8 => {
                self.note(format!("{id} has a full disk"));
                let disk = &self.nodes[node].disk;
                disk.set_capacity(Some(disk.used()));
                self.nodes[node].full = true;
                let after = 200 + self.rng.below(2000);
                self.plan(after, Event::Roomy { node });
            }
            9 => {
                let until = self.now + 100 + self.rng.below(3000);
                self.note(format!("{id} pauses until {until}"));
                self.nodes[node].paused_until = until;
            }
            10 => {
                // A quiet one-way cut.
                let to = self.rng.below(self.nodes.len() as u64) as usize;
                self.note(format!("cut {node} -> {to}"));
                self.network.cut.insert((node, to));
            }
            11 | 12 => {
                // One against the rest.
                self.note(format!("{id} is cut off"));
                for other in 0..self.nodes.len() {
                    self.network.cut.insert((node, other));
                    self.network.cut.insert((other, node));
                }
            }
            13 => {
                self.note("the network is whole".into());
                self.network.cut.clear();
            }
            14 => {
                self.network.drop_percent = [0, 0, 5, 30][self.rng.below(4) as usize];
                self.network.double_percent = [0, 5, 20][self.rng.below(3) as usize];
                self.network.slow_percent = [0, 5, 30][self.rng.below(3) as usize];
                let (d, b, s) =
                    (self.network.drop_percent, self.network.double_percent, self.network.slow_percent);
                self.note(format!("network: {d} % lost, {b} % doubled, {s} % slow"));
            }
            _ => {
                let to = self.nodes[self.rng.below(self.nodes.len() as u64) as usize].id;
                self.hand_over(to);
            }
        }
        // A partition does not last for ever, or nothing would be acknowledged in most runs.
        if self.rng.percent(25) {
            self.network.cut.clear();
        }
    }

    /// One fault around whoever leads.
    fn drill(&mut self) {
        let leads = |n: &super::node::Node<W>| {
            let status = n.live.as_ref().and_then(|l| l.core.status(super::node::GROUP));
            status.is_some_and(|s| s.role == crate::Role::Leader)
        };
        let count = self.nodes.len();
        let Some(leader) = self.nodes.iter().position(leads) else {
            self.network.cut.clear();
            return;
        };
        let other = (leader + 1 + self.rng.below(count as u64 - 1) as usize) % count;
        let (id, other_id) = (self.nodes[leader].id, self.nodes[other].id);
        match self.rng.below(12) {
            0..=2 => {
                // The one hears nothing and would lead; the other, which was heard just now, forgets.
                self.note(format!("{id} and {other_id} are cut off from each other"));
                self.network.cut.extend([(leader, other), (other, leader)]);
                let third = (0..count).find(|n| *n != leader && *n != other).unwrap_or(other);
                let after = 500 + self.rng.below(500);
                self.plan(after, Event::Crash { node: third, times: 8 });
            }
            3..=5 => {
                // Answers arrive when questions do not any more.
                self.note(format!("all is slow to {id}"));
                self.network.slow_to = Some(leader);
                let after = 300 + self.rng.below(300);
                self.plan(after, Event::Unheard { node: leader });
            }
            6 | 7 => self.crash(other, 1),
            8 => {
                let until = self.now + 100 + self.rng.below(2500);
                self.note(format!("{id} pauses until {until}"));
                self.nodes[leader].paused_until = until;
            }
            9 => self.hand_over(other_id),
            10 => {
                let victim = if self.rng.percent(50) { leader } else { other };
                self.kill(victim, true);
            }
            _ => {
                self.note("the network is whole".into());
                (self.network.cut, self.network.slow_to) = (BTreeSet::new(), None);
            }
        }
        if self.rng.percent(15) {
            self.network.cut.clear();
        }
    }

    pub(super) fn unheard(&mut self, node: usize) {
        if self.faulty() {
            let id = self.nodes[node].id;
            self.note(format!("{id} is not heard"));
            self.network.cut.extend((0..self.nodes.len()).map(|to| (node, to)));
        }
    }

    pub(super) fn crash(&mut self, node: usize, times: u32) {
        if !self.faulty() || times == 0 {
            return;
        }
        self.kill(node, false);
        let after = 10 + self.rng.below(40);
        self.plan(after, Event::Start { node });
        let after = 100 + self.rng.below(200);
        self.plan(after, Event::Crash { node, times: times - 1 });
    }

    fn hand_over(&mut self, to: crate::NodeId) {
        self.note(format!("hand leadership to {to}"));
        for node in 0..self.nodes.len() {
            if let Some(live) = &mut self.nodes[node].live {
                live.inbox.push(Input::Transfer { group: super::node::GROUP, to });
                self.plan_turn(node, 0);
            }
        }
    }

    /// One to three members change.
    fn any_change(&mut self) -> Vec<Change> {
        let mut changes: Vec<Change> = Vec::new();
        for _ in 0..1 + self.rng.below(3) {
            let node = self.nodes[self.rng.below(self.nodes.len() as u64) as usize].id;
            if changes.iter().all(|c| c.node() != node) {
                changes.push(match self.rng.below(5) {
                    0 => Change::Learner(node),
                    1 => Change::Remove(node),
                    _ => Change::Voter(node),
                });
            }
        }
        changes
    }

    pub(super) fn kill(&mut self, node: usize, power: bool) {
        let n = &mut self.nodes[node];
        let id = n.id;
        let was_live = n.live.is_some();
        n.stop();
        if power {
            n.disk.power_loss();
            self.report.power_losses += 1;
        } else {
            n.disk.kill();
        }
        self.note(format!("{id} {}", if power { "loses power" } else { "is killed" }));
        if was_live {
            let after = 50 + self.rng.below(2500);
            self.plan(after, Event::Start { node });
        }
    }

    /// The end of all faults. Nodes whose disks were tampered with die one last time.
    pub(super) fn heal(&mut self) {
        self.note("all faults end".into());
        self.network = Network { healed_at: self.step(), ..Network::default() };
        for node in 0..self.nodes.len() {
            let n = &mut self.nodes[node];
            n.disk.set_capacity(None);
            n.paused_until = 0;
            n.full = false;
            if n.doomed && n.live.is_some() {
                self.kill(node, true);
            }
            if self.nodes[node].live.is_none() {
                self.plan(100, Event::Start { node });
            }
        }
        self.plan(200, Event::Mend);
    }
}
