//! Comparing what nodes know: the slow, sure way beside rumours, and the only way in.
//!
//! A question lists what the asker knows of the nodes in a range of keys (name hashes); the answer brings
//! what is newer, and says how far it got. Ranges go round the ring of keys, one question a period with
//! one random other node, so each node's cost is fixed, a node that knows nobody learns all by asking on,
//! and no difference stays. A question with an empty range is a hello: it says "I live, and this is what I
//! hold you for", and goes to seeds and to nodes that are Down.
//!
//! Two nodes that hold each other for dead would not listen to each other. What breaks that: an answer to
//! one's own question proves that both ways work now, so what it says about oneself is believed whoever says
//! it. A deaf node never gets there, and can't talk others into new lives. Of the two the one who sees fewer
//! others up is told so first: a node that was cut off begins a new life, those that it left behind do not.

use super::{Core, Due, Known, Now};
use crate::{
    bug::Bug,
    counters::Counters,
    id::Id,
    peer::Liveness,
    wire::{Ask, Entry, Record, Tell, TellWriter, to_member},
};
use std::{cmp::Ordering, net::SocketAddr};

/// Questions whose answers are waited for.
const QUESTIONS_MAX: usize = 32;

/// What was asked.
pub(super) struct Question {
    round: u32,
    to: u64,
    hello: bool,
}

impl Core {
    fn entry_of_me(&self) -> Entry {
        Entry {
            key: self.me.key,
            generation: self.me.generation,
            incarnation: self.incarnation,
            state: Liveness::Alive,
            stamp: self.stamp(),
        }
    }

    fn ask(&mut self, whom: SocketAddr, from: u64, to: u64, mut entries: Vec<Entry>, hello: bool) {
        let round = (self.rng.next_u64() >> 32) as u32 | 1;
        entries.push(self.entry_of_me());
        let ask = Ask {
            src: self.me.clone(),
            incarnation: self.incarnation,
            up: self.up as u16,
            round,
            from,
            to,
            entries,
        };
        self.out.push((whom, ask.encode()));
        if self.questions.len() >= QUESTIONS_MAX {
            self.questions.pop_front();
        }
        self.questions.push_back(Question { round, to, hello });
    }

    /// Says to whoever is at `addr` that this node lives, and what it holds them for.
    pub(super) fn hello(&mut self, addr: SocketAddr) {
        let them = self.table.values().filter(|k| k.id.addr == addr).map(Known::entry).take(4).collect();
        self.ask(addr, 1, 0, them, true);
    }

    /// Asks one node that answers about the next range.
    pub(super) fn compare(&mut self, now: Now) {
        if self.bugs.on(Bug::NotCompared) {
            return;
        }
        let up: Vec<SocketAddr> =
            self.table.values().filter(|k| k.state.is_up()).map(|k| k.id.addr).collect();
        if up.is_empty() {
            return;
        }
        let whom = up[self.rng.below(up.len() as u64) as usize];
        let from = self.sync_from;
        let room = Ask::room(&self.me) - 1;
        let mut entries: Vec<Entry> =
            self.table.range(from..).map(|(_, k)| k.entry()).take(room + 1).collect();
        let to = match entries.len() > room {
            true => {
                entries.truncate(room);
                entries.last().map_or(u64::MAX, |e| e.key)
            }
            false => u64::MAX,
        };
        self.ask(whom, from, to, entries, false);
        let silent = |k: &Known| k.state.is_up() && k.stamp.generation < k.id.generation;
        if self.table.values().any(silent) {
            // Rumours brought a node and not its facts.
            self.follow(now, 4);
        }
    }

    /// Asks once more in this part of a period, unless that is already planned.
    pub(super) fn follow(&mut self, now: Now, part: u32) {
        if !std::mem::replace(&mut self.following, true) {
            self.at(now.mono + self.timings.sync_every / part, Due::SyncNow);
        }
    }

    /// Tries some nodes that are Down and some seeds; more of them when nobody answers.
    pub(super) fn reach(&mut self) {
        let many = if self.up == 0 { 4 } else { 2 };
        let mut down: Vec<SocketAddr> = self
            .table
            .values()
            .filter(|k| k.state == Liveness::Down && !self.bugs.on(Bug::DownNotAsked))
            .map(|k| k.id.addr)
            .collect();
        for _ in 0..many.min(down.len()) {
            let i = self.rng.below(down.len() as u64) as usize;
            let addr = down.swap_remove(i);
            self.hello(addr);
        }
        let up = |a: &SocketAddr| self.table.values().any(|k| k.id.addr == *a && k.state.is_up());
        let lost: Vec<SocketAddr> = self.seeds.iter().copied().filter(|a| !up(a)).collect();
        let lost = if self.bugs.on(Bug::DownNotAsked) && !self.table.is_empty() { Vec::new() } else { lost };
        for _ in 0..(many / 2).min(lost.len()) {
            self.next_seed = (self.next_seed + 1) % lost.len();
            self.hello(lost[self.next_seed]);
        }
    }

    pub(super) fn on_ask(&mut self, now: Now, src: &Id, incarnation: u16, ask: Ask, asked: usize) {
        self.heard(now, src, incarnation);
        let me = self.me.clone();
        let of_me = ask.entries.iter().find(|e| e.key == me.key && e.generation == me.generation);
        if !self.believes(src) {
            // Each holds the other for dead: the one who sees fewer was cut off, and gives in.
            let mutual = of_me.is_some_and(|e| !e.state.is_up());
            if mutual && (usize::from(ask.up), src.key) > (self.up, me.key) {
                if self.verdicts.take(now) {
                    self.hello(src.addr);
                }
            } else {
                self.verdict(now, src, ask.round);
            }
            return;
        }
        if let Some(e) = of_me {
            self.about_me(&me, e.incarnation, e.state, src);
        }
        if self.swim_died() || self.rival.is_some() {
            // The next life will say hello.
            return;
        }
        let known = |key| ask.entries.iter().find(|e| e.key == key);
        let mut tell = TellWriter::new(&self.me, self.incarnation, ask.round, asked);
        if known(self.me.key).is_none_or(|e| self.entry_of_me().news_to(e)) {
            tell.push(&self.my_record());
        }
        let mut upto = ask.to;
        if ask.from <= ask.to {
            for (key, k) in self.table.range(ask.from..=ask.to) {
                // Who never heard of a node is not told that it is gone: it would be listed for ever, by
                // turns.
                let news = known(*key).map_or(k.state.is_up(), |e| k.entry().news_to(e));
                if news && !tell.push(&k.record()) {
                    upto = key.saturating_sub(1);
                    break;
                }
            }
        }
        self.out.push((src.addr, tell.finish(upto)));
    }

    pub(super) fn on_tell(&mut self, now: Now, src: &Id, incarnation: u16, tell: Tell) {
        let at = self.questions.iter().position(|q| q.round == tell.round);
        let question = at.and_then(|i| self.questions.remove(i));
        self.heard(now, src, incarnation);
        let believed = self.believes(src);
        let (mut changed, mut new) = (Vec::new(), Vec::new());
        let mut facts = Vec::new();
        for r in tell.records {
            if r.id.key == self.me.key {
                if believed || question.is_some() {
                    self.about_me(&r.id, r.incarnation, r.state, src);
                }
            } else if believed {
                if !self.admits(&r.id, new.len()) {
                    Counters::inc(&self.counters.refused_total);
                    continue;
                }
                let to = if self.table.contains_key(&r.id.key) { &mut changed } else { &mut new };
                to.push(to_member(r.id.clone(), r.incarnation, r.state));
                facts.push((r.id.key, r.stamp, r.facts));
            }
        }
        // What is new to a node that comes is not new to the others.
        for (members, spread) in [(changed, true), (new, false)] {
            let done = self.foca.apply_many(members.into_iter(), spread, &mut self.swim);
            self.log(done);
        }
        self.settle(now);
        let mut more = false;
        for (key, stamp, facts) in facts {
            more |= self.learn(key, stamp, &facts);
        }
        let Some(q) = question.filter(|q| believed && !q.hello) else { return };
        more |= tell.upto < q.to;
        self.sync_from = tell.upto.min(q.to).checked_add(1).unwrap_or(0);
        if more {
            // Where there was news there is more. In calm there is none.
            self.follow(now, 10);
        }
    }

    /// Tells `to` what we hold its name for, when that is not what it says of itself.
    pub(super) fn verdict(&mut self, now: Now, to: &Id, round: u32) {
        if self.left || self.rival.is_some() || self.swim_died() || !self.verdicts.take(now) {
            return;
        }
        if let Some(record) = self.table.get(&to.key).map(Known::record) {
            self.tell_one(&record, to, round);
        }
    }

    pub(super) fn tell_one(&mut self, record: &Record, to: &Id, round: u32) {
        let mut tell = TellWriter::new(&self.me, self.incarnation, round, crate::wire::ASK_MIN);
        tell.push(&Record { facts: Default::default(), stamp: Default::default(), ..record.clone() });
        self.out.push((to.addr, tell.finish(0)));
    }

    /// `src` speaks, so it lives.
    fn heard(&mut self, now: Now, src: &Id, incarnation: u16) {
        let alive = to_member(src.clone(), incarnation, Liveness::Alive);
        let done = self.foca.apply_many(std::iter::once(alive), true, &mut self.swim);
        self.log(done);
        self.settle(now);
    }

    fn swim_died(&self) -> bool {
        self.renewing || self.swim.is_dead()
    }
}

impl Known {
    fn entry(&self) -> Entry {
        Entry {
            key: self.id.key,
            generation: self.id.generation,
            incarnation: self.incarnation,
            state: self.state,
            stamp: self.stamp,
        }
    }
}

impl Entry {
    /// True when this is newer than what `other` is: SWIM's order (§4.2), or newer facts.
    pub(super) fn news_to(&self, other: &Entry) -> bool {
        // Gone is the end of a life; among the living a later incarnation wins, then suspicion.
        let rank = |e: &Entry| match e.state.is_up() {
            true => (false, e.incarnation, e.state == Liveness::Suspect),
            false => (true, 0, false),
        };
        let lives = self.generation.cmp(&other.generation);
        match lives.then(rank(self).cmp(&rank(other))) {
            Ordering::Greater => true,
            _ => self.stamp > other.stamp,
        }
    }
}
