//! What a region's leader remembers beside its state, so that commits whose timestamps the region derives
//! (one-phase, asynchronous) never slip behind a read that was answered already.
//!
//! A read at `ts` first raises the gate's floor, then waits for derived commits that were proposed under a
//! lower floor and touch what it reads, then reads. A derived commit takes the floor when it is proposed. So
//! whichever comes first, the other one sees it.
//!
//! A gate is right in one term and for one version of the range: a new leader, or a region that took another
//! one in, opens it anew, with a fresh timestamp of the oracle, which is behind every read anybody answered.
//! A command carries its term; one that is appended in another is refused ([`super::region::apply`]).

use super::Command;
use crate::{
    Refusal,
    bug::{self, Bug},
    key::Span,
    refusal::Outcome,
    time::Ts,
};
use bytes::Bytes;
use std::collections::BTreeMap;

/// Most derived commits that may be under way.
const MAX_PENDING: usize = 4096;

/// The gate of one region.
#[derive(Debug, Default)]
pub struct Gate {
    /// Term and version of the range that it is right for.
    open: Option<(u64, u64)>,
    floor: Ts,
    pending: BTreeMap<u64, Vec<Bytes>>,
    next: u64,
}

/// What a read has to wait for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Nothing: it may read now.
    Now,
    /// This derived commit, then ask again.
    After(u64),
}

impl Gate {
    /// True when derived commits are possible.
    pub fn is_open(&self, term: u64, version: u64) -> bool {
        if bug::on(Bug::GateKeptInMerge) {
            return self.open.is_some_and(|(t, _)| t == term);
        }
        self.open == Some((term, version)) || bug::on(Bug::GateOpenAtOnce)
    }

    /// Opens it. `fresh` was given by the oracle after this replica had become leader in `term`, or after the
    /// range had come to `version`.
    pub fn open(&mut self, term: u64, version: u64, fresh: Ts) {
        if self.open.is_some_and(|(t, _)| t != term) {
            // What the former term left is applied, or will never be: this leader has its whole log.
            self.pending.clear();
        }
        self.open = Some((term, version));
        self.floor = self.floor.max(fresh);
    }

    /// Raises the floor for a read; then says whether it has to wait.
    pub fn read(&mut self, at: Ts, span: &Span) -> Entry {
        self.floor = self.floor.max(at);
        let hit = self
            .pending
            .iter()
            .find(|(_, keys)| !bug::on(Bug::PendingIgnored) && keys.iter().any(|k| span.contains(k)));
        hit.map_or(Entry::Now, |(n, _)| Entry::After(*n))
    }

    /// Sets term and floor of a command that needs them, before it is proposed. The number is for
    /// [`Gate::done`], which must follow, whatever becomes of it.
    pub fn admit(&mut self, region: u64, term: u64, command: &mut Command) -> Outcome<Option<u64>> {
        let version = command.epoch;
        let Some(p) = command.derives() else { return Ok(None) };
        if !self.is_open(term, version) {
            return Err(Refusal::NotLeader(region));
        }
        if self.pending.len() >= MAX_PENDING {
            return Err(Refusal::Overloaded);
        }
        let keys: Vec<Bytes> = p.mutations.iter().map(|m| m.key.clone()).collect();
        (command.term, command.floor) = (term, self.floor);
        self.next += 1;
        self.pending.insert(self.next, keys);
        Ok(Some(self.next))
    }

    /// The derived commit was applied or will never be.
    pub fn done(&mut self, number: u64) {
        self.pending.remove(&number);
    }

    /// What it lets derived commits be newer than.
    #[cfg(test)]
    pub(crate) fn floor(&self) -> Ts {
        self.floor
    }
}
