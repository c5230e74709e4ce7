//! This node's own life: what others say of it, and when it begins another one.

use super::{Core, Due, Now};
use crate::{
    bug::Bug,
    counters::Counters,
    id::{Id, generation},
    peer::Liveness,
    wire::to_member,
};

impl Core {
    /// Somebody whom we believe says that our name is in this state.
    pub(super) fn about_me(&mut self, id: &Id, incarnation: u16, state: Liveness, teller: &Id) {
        if *id == self.me {
            if state == Liveness::Suspect {
                if self.bugs.on(Bug::SuspicionNotRefuted) {
                    return;
                }
                if incarnation >= self.incarnation {
                    self.incarnation = incarnation.saturating_add(1);
                }
            }
            if state != Liveness::Alive && !self.renewing && self.rival.is_none() {
                self.told_by = Some(teller.addr);
                let said = to_member(id.clone(), incarnation, state);
                let done = self.foca.apply_many(std::iter::once(said), false, &mut self.swim);
                self.log(done);
            }
        } else if id.beats(&self.me) {
            // At our address: a former life of ours, under a clock that was ahead. Down: nobody's any more.
            let free = id.addr == self.me.addr || !state.is_up() || self.bugs.on(Bug::RivalsOutbid);
            self.floor = self.floor.max(id.generation);
            if free {
                self.rival = None;
            } else if self.rival.as_ref() != Some(id) {
                Counters::inc(&self.counters.rivals_total);
                tracing::error!(
                    name = %id.name, here = %self.me.addr, there = %id.addr,
                    "another node has this node's name since later; this one waits until it is gone; \
                     give one of them another name"
                );
                self.rival = Some(id.clone());
            }
            Counters::set(&self.counters.superseded, usize::from(self.rival.is_some()));
            self.told_by = Some(teller.addr);
            let down = to_member(self.me.clone(), 0, Liveness::Down);
            let done = self.foca.apply_many(std::iter::once(down), false, &mut self.swim);
            self.log(done);
        }
    }

    /// A packet came whose sender has our name.
    pub(super) fn namesake(&mut self, now: Now, src: &Id) {
        if *src == self.me || src.addr == self.me.addr {
            // Our own, or one of a former life that was still on its way.
            return;
        }
        if src.beats(&self.me) {
            return self.about_me(src, 0, Liveness::Alive, src);
        }
        if self.verdicts.take(now) && self.rival.is_none() {
            Counters::inc(&self.counters.rivals_total);
            tracing::error!(
                name = %src.name, here = %self.me.addr, there = %src.addr,
                "an older node claims this node's name; give one of them another name"
            );
            self.tell_one(&self.my_record(), src, 0);
        }
    }

    /// foca has learnt that this life is over.
    pub(super) fn died(&mut self, now: Now) {
        if !self.left && self.rival.is_none() && !self.renewing {
            self.renewing = true;
            // Not faster than that: should something be wrong for good, the others do not drown in lives.
            self.at(now.mono.max(self.renewed + self.timings.probe_every), Due::Renew);
        }
    }

    /// Begins another life, later than every life of this name that we have heard of.
    pub(super) fn renew(&mut self, now: Now) {
        self.renewing = false;
        if self.left || self.rival.is_some() {
            return;
        }
        let past = match self.bugs.on(Bug::FormerLifeWins) {
            true => self.me.generation,
            false => self.me.generation.max(self.floor),
        };
        let fresh = generation(now.wall, self.rng.next_u64());
        self.me = Id { generation: fresh.max(past.saturating_add(1)), ..self.me.clone() };
        self.incarnation = 0;
        self.renewed = now.mono;
        Counters::inc(&self.counters.renewed_total);
        tracing::info!(generation = self.me.generation, "others held this node for dead: a new life");
        // Whoever was held for dead was cut off or stood still, and those that it holds for dead may well live:
        // it asks the others again instead of spreading what it made up meanwhile. So foca starts anew, without
        // rumours to tell.
        if self.bugs.on(Bug::StaleRumours) {
            let done = self.foca.change_identity(self.me.clone(), &mut self.swim);
            self.log(done);
        } else {
            self.timers.retain(|_, d| !matches!(d, Due::Swim(_) | Due::Doubted(_)));
            self.foca = super::swim(&self.me, &self.timings, self.rng.next_u64());
            self.up = 0;
        }
        let doubt = |s| if s == Liveness::Down { Liveness::Alive } else { s };
        let members: Vec<_> =
            self.table.values().map(|k| to_member(k.id.clone(), k.incarnation, doubt(k.state))).collect();
        let done = self.foca.apply_many(members.into_iter(), false, &mut self.swim);
        self.log(done);
        let done = self.foca.gossip(&mut self.swim);
        self.log(done);
        self.follow(now, 10);
        self.tell_facts();
        self.reconcile(now);
        if let Some(addr) = self.told_by.take() {
            self.hello(addr);
        }
    }
}
