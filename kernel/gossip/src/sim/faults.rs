//! What goes wrong, and when it is over.

use super::{Host, World, address, facts};
use crate::peer::Liveness;
use std::collections::BTreeSet;

const YEAR: i64 = 365 * 24 * 3_600_000;

impl World {
    fn pick(&mut self, of: &[usize]) -> usize {
        of[self.rng.below(of.len() as u64) as usize]
    }

    pub(super) fn heal_what_is_over(&mut self) {
        let now = self.now;
        self.cuts.retain(|_, until| *until > now);
        if self.split.as_ref().is_some_and(|(_, until)| *until <= now) {
            self.split = None;
            self.whole_since = now;
        }
    }

    /// No more faults; those that go on end now, and whoever would have started again does so soon.
    pub(super) fn calm(&mut self) {
        self.next_fault = u64::MAX;
        self.config.fault_every = 0;
        self.cuts.clear();
        self.split = None;
        self.whole_since = self.now;
        for i in 0..self.config.nodes {
            let h = &mut self.hosts[i];
            h.paused_until = h.paused_until.min(self.now);
            h.deaf_until = h.deaf_until.min(self.now);
            h.mute_until = h.mute_until.min(self.now);
            h.well_since = self.now;
            if h.restart_at != u64::MAX {
                h.restart_at = h.restart_at.min(self.now + 1_000);
            }
        }
    }

    pub(super) fn pause(&mut self, i: usize, ms: u64) {
        let until = self.now + ms;
        self.hosts[i].paused_until = until;
        self.hosts[i].well_since = until;
    }

    /// A kill, and a restart after `ms`: at another address, or with another clock, if so drawn.
    fn restart(&mut self, i: usize, ms: u64) {
        self.kill(i);
        self.hosts[i].restart_at = self.now + ms;
        if self.rng.percent(30) {
            let back = [-YEAR, -60_000, 60_000, YEAR][self.rng.below(4) as usize];
            self.hosts[i].wall_offset += back;
        }
        // The seeds are the two hosts that stay where they are.
        if self.rng.percent(30) && i != 0 && i != self.config.nodes - 1 {
            let h = &mut self.hosts[i];
            self.at.remove(&h.addr);
            h.moves += 1;
            h.addr = address(i, h.moves);
            self.at.insert(h.addr, i);
        }
        self.new_facts(i);
    }

    pub(super) fn new_facts(&mut self, i: usize) {
        let h = &mut self.hosts[i];
        h.facts = facts(format!("https://{i}:{}", self.now));
        if let Some(p) = &mut h.process {
            p.core.set_facts(h.facts.clone());
        }
    }

    pub(super) fn split(&mut self, ms: u64) {
        let nodes = self.config.nodes;
        let size = 1 + self.rng.below(nodes as u64 / 2) as usize;
        let mut side = BTreeSet::new();
        while side.len() < size {
            side.insert(self.rng.below(nodes as u64) as usize);
        }
        self.split = Some((side, self.now + ms));
        self.whole_since = self.now + ms;
    }

    pub(super) fn fault(&mut self) {
        self.next_fault = self.now + 1 + self.rng.below(2 * self.config.fault_every);
        let running = self.running();
        let well: Vec<usize> =
            running.iter().copied().filter(|i| self.hosts[*i].well_since <= self.now).collect();
        if well.len() * 2 < self.config.nodes {
            return;
        }
        let i = self.pick(&well);
        if self.config.only_pauses {
            // Those first who suspect somebody: when they go on, their suspicion is long out of date.
            let suspects = |h: &Host| {
                let p = h.process.as_ref();
                p.is_some_and(|p| p.view.values().any(|s| s.state == Liveness::Suspect))
            };
            let who = well.iter().copied().find(|i| suspects(&self.hosts[*i])).unwrap_or(i);
            let ms = 5_000 + self.rng.below(10_000);
            return self.pause(who, ms);
        }
        // The seeds are never away for long: who has lost everybody has nowhere else to go.
        let longest = if i == 0 || i == self.config.nodes - 1 { 3_000 } else { u64::MAX };
        match self.rng.below(12) {
            0 | 1 => {
                let ms = 100 + self.rng.below(40_000);
                self.restart(i, ms.min(longest));
            }
            2 => {
                let now = self.clock(i);
                if let Some(p) = &mut self.hosts[i].process {
                    p.core.leave(now);
                }
                self.flush(i);
                let ms = 20_000 + self.rng.below(40_000);
                self.restart(i, ms.min(longest));
            }
            3 | 4 => {
                let ms = 500 + self.rng.below(25_000);
                self.pause(i, ms.min(longest));
            }
            5 | 6 => {
                let until = self.now + 5_000 + self.rng.below(20_000);
                let j = self.pick(&well);
                self.cuts.insert((i, j), until);
            }
            7 => {
                let until = self.now + (2_000 + self.rng.below(20_000)).min(longest);
                let deaf = self.rng.percent(50);
                let h = &mut self.hosts[i];
                if deaf {
                    h.deaf_until = until;
                } else {
                    h.mute_until = until;
                }
                h.well_since = until;
            }
            8 if self.split.is_none() => {
                let ms = 2_000 + self.rng.below(40_000);
                self.split(ms);
            }
            9 => {
                let by = self.rng.below(2 * YEAR as u64) as i64 - YEAR;
                self.hosts[i].wall_offset += by;
            }
            _ => self.new_facts(i),
        }
    }
}
