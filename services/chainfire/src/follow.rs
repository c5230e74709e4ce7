//! Following the store: watches that read together. A stream of a client is one [`Follower`], and so is each
//! watch of the kernel.
//!
//! Watches that have seen the same share a cursor and an index ([`Cohort`]), so reading a revision costs what
//! it matches. Those that are in step are woken by the hub, and skip what it says they don't want. One that
//! starts in the past is late: it catches up in a cohort of its own, with others that start then, from the
//! ring or from the store, and joins when it is in step. A follower that nobody polls simply stays where it
//! is and reads history later; nothing is kept for it.
//!
//! Invariants: each watch is told every change that it wants from its first revision on, once, in order, a
//! revision never split between steps; what [`Follower::seen`] says has been told.

use crate::{
    EtcdError, EtcdResult, Scope, Span,
    hub::{Bell, READ_REVISIONS},
    index::Index,
    machine::{Published, Shared},
    model::{Change, Changes, layout::*},
    plant::{Plant, planted},
    wire::mvccpb::KeyValue,
};
use photon_kv::{Direction, engine::KeyRange};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

/// A step ends once it has collected this many bytes of changes. A revision is never split.
const STEP_BYTES: usize = 1 << 20;

/// What a watch wants to see.
#[derive(Clone, Debug)]
pub struct Interest {
    /// Who watches.
    pub scope: Scope,
    /// Keys.
    pub span: Span,
    /// Leave out puts.
    pub no_put: bool,
    /// Leave out deletions.
    pub no_delete: bool,
    /// Tell the version before.
    pub prev_kv: bool,
}

impl Interest {
    /// Whether it wants a change of a key in its span.
    pub fn admits(&self, c: &Change) -> bool {
        let filtered = if c.put { self.no_put } else { self.no_delete };
        !filtered && self.scope.may_name(&c.kv.key)
    }
}

/// The history that a watch needs is gone; it goes back to this revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone(pub i64);

/// What a step found for a watch. After the last two it is no longer followed.
#[derive(Clone, Debug)]
pub enum Found {
    /// Changes by revision (revisions without any are left out), and how far the watch has now seen everything.
    Changes(Vec<Changes>, i64),
    /// It cannot go on.
    Gone(Gone),
    /// The store cannot be read.
    Failed(EtcdError),
}

#[derive(Clone)]
struct Watch {
    interest: Arc<Interest>,
    /// First revision that it has not seen, if the cohort has not seen more.
    from: i64,
}

/// Watches that share a place in history.
struct Cohort {
    watches: Arc<Index<i64, Watch>>,
    /// First revision that they have not seen.
    next: i64,
    /// It has taken a step: no watch that has seen less can join.
    begun: bool,
}

/// What a step of a cohort collects.
#[derive(Default)]
struct Catch {
    by_watch: BTreeMap<i64, Vec<Changes>>,
    bytes: usize,
}

impl Catch {
    fn add(&mut self, id: i64, revision: i64, change: Change) {
        self.bytes += change.bytes();
        let list = self.by_watch.entry(id).or_default();
        match list.last_mut() {
            Some(c) if c.revision == revision => c.changes.push(change),
            _ => list.push(Changes { revision, changes: vec![change] }),
        }
    }
}

impl Cohort {
    fn new(next: i64) -> Cohort {
        Cohort { watches: Arc::new(Index::new(photon_rt::entropy::u64())), next, begun: false }
    }

    /// For changing it. (Shared only while a step reads the store.)
    fn watches(&mut self) -> &mut Index<i64, Watch> {
        Arc::make_mut(&mut self.watches)
    }

    /// Takes a bounded step towards the present; true when there may be more. Touches the disk only where the
    /// ring does not reach.
    async fn step(&mut self, shared: &Arc<Shared>, out: &mut Vec<(i64, Found)>) -> bool {
        self.begun = true;
        let now = shared.published();
        if let Some(entries) = shared.hub.read(self.next) {
            return self.take(entries, out);
        }
        if planted(Plant::WatchForgets) {
            self.next = now.revision + 1;
            return false;
        }
        if self.next < now.compacted {
            self.watches.each(|id, w| {
                if w.from.max(self.next) < now.compacted {
                    out.push((*id, Found::Gone(Gone(now.compacted))));
                }
            });
            self.next = now.compacted;
            return true;
        }
        let (watches, state, next) = (self.watches.clone(), now.clone(), self.next);
        match photon_rt::task::blocking(move || history(&watches, &state, next)).await {
            Ok((found, next)) => {
                self.next = next;
                self.tell(found, out);
            }
            // The sweeper may have removed what this step was reading.
            Err(_) if now.compacted < shared.published().compacted => {}
            Err(e) => self.watches.each(|id, _| out.push((*id, Found::Failed(e.clone())))),
        }
        true
    }

    fn take(&mut self, entries: Vec<Arc<Changes>>, out: &mut Vec<(i64, Found)>) -> bool {
        let mut found = Catch::default();
        let full = entries.len() == READ_REVISIONS;
        let mut more = full;
        let last = entries.last().map(|e| e.revision);
        for e in entries {
            for c in &e.changes {
                self.watches.at(&c.kv.key, |id, w| {
                    if e.revision >= w.from && w.interest.admits(c) {
                        let prev = if w.interest.prev_kv { c.prev.clone() } else { None };
                        found.add(*id, e.revision, Change { prev, kv: c.kv.clone(), put: c.put });
                    }
                });
            }
            self.next = e.revision + 1;
            if found.bytes >= STEP_BYTES {
                more = full || last != Some(e.revision);
                break;
            }
        }
        self.tell(found, out);
        more
    }

    fn tell(&self, found: Catch, out: &mut Vec<(i64, Found)>) {
        let seen = self.next - 1;
        out.extend(found.by_watch.into_iter().map(|(id, list)| (id, Found::Changes(list, seen))));
    }
}

/// The changes that watches want from a revision on, from the store; and the first revision not looked at.
fn history(watches: &Index<i64, Watch>, state: &Published, next: i64) -> EtcdResult<(Catch, i64)> {
    let reader = state.reader();
    let view = reader.view;
    let mut out = Catch::default();
    let (mut revisions, mut last) = (0, 0);
    let from = event_key(Stamp { main: next, sub: 0 });
    for item in view.scan(EVENTS, KeyRange::from(from), Direction::Forward) {
        let (k, key) = item?;
        let bad = || EtcdError::Internal("an event in the store cannot be read".into());
        let at = split_event_key(&k).ok_or_else(bad)?;
        if at.main != last {
            (last, revisions) = (at.main, revisions + 1);
            if revisions > READ_REVISIONS || out.bytes >= STEP_BYTES {
                return Ok((out, at.main));
            }
        }
        let mut wanted: Vec<(i64, &Watch)> = Vec::new();
        watches.at(&key, |id, w| {
            if at.main >= w.from && w.interest.scope.may_name(&key) {
                wanted.push((*id, w));
            }
        });
        if wanted.is_empty() {
            continue;
        }
        let stored = view.get(DATA, &data_key(&key, at))?.ok_or_else(bad)?;
        let put = !stored.is_empty();
        let kv = if put {
            decode(stored)?
        } else {
            KeyValue { key: key.clone(), mod_revision: at.main, ..Default::default() }
        };
        let change = Change { kv, put, prev: None };
        wanted.retain(|(_, w)| w.interest.admits(&change));
        let mut prev = None;
        if wanted.iter().any(|(_, w)| w.interest.prev_kv) && at.main > state.compacted {
            prev = reader.at(&key, at.main - 1)?;
        }
        for (id, w) in wanted {
            let prev = if w.interest.prev_kv { prev.clone() } else { None };
            out.add(id, at.main, Change { prev, ..change.clone() });
        }
    }
    Ok((out, state.revision + 1))
}

/// A place in the hub's index, while in step.
type Ticket = Option<u64>;

/// Watches of one reader, by the ids that it gives them.
pub struct Follower {
    shared: Arc<Shared>,
    bell: Arc<Bell>,
    /// Those in step.
    level: Cohort,
    /// Those that catch up, the next to take a step in front.
    late: VecDeque<Cohort>,
    all: BTreeMap<i64, (Arc<Interest>, Ticket)>,
}

impl Follower {
    /// Without watches.
    pub fn new(shared: Arc<Shared>) -> Follower {
        let level = Cohort::new(shared.hub.last() + 1);
        Follower { shared, bell: Arc::default(), level, late: VecDeque::new(), all: BTreeMap::new() }
    }

    /// Of one watch, with the id 0.
    pub fn of(shared: Arc<Shared>, interest: Interest, from: i64) -> Follower {
        let mut f = Follower::new(shared);
        f.add(0, interest, from);
        f
    }

    /// Follows what `interest` wants from a revision on (which may lie in the future) under a new id.
    pub fn add(&mut self, id: i64, interest: Interest, from: i64) {
        let interest = Arc::new(interest);
        if self.all.is_empty() {
            self.level.next = from.min(self.shared.hub.last() + 1);
        }
        if from >= self.level.next {
            self.all.insert(id, (interest.clone(), None));
            return self.join(id, Watch { interest, from });
        }
        if self.late.back().is_none_or(|c| c.begun) {
            self.late.push_back(Cohort::new(from));
        }
        if let Some(c) = self.late.back_mut() {
            c.next = c.next.min(from);
            c.watches().insert(&interest.span, id, Watch { interest: interest.clone(), from });
        }
        self.all.insert(id, (interest, None));
    }

    /// A watch that has seen everything before its `from`, and no less than those in step, is one of them.
    fn join(&mut self, id: i64, w: Watch) {
        if let Some((_, ticket)) = self.all.get_mut(&id) {
            *ticket = Some(self.shared.hub.register(&w.interest, w.from, &self.bell));
        }
        let span = w.interest.span.clone();
        self.level.watches().insert(&span, id, w);
    }

    /// Ends a watch.
    pub fn remove(&mut self, id: i64) {
        let Some((interest, ticket)) = self.all.remove(&id) else { return };
        if let Some(t) = ticket {
            self.shared.hub.forget(&interest, t);
            self.level.watches().remove(&interest.span, id);
            return;
        }
        self.late.retain_mut(|c| {
            c.watches().remove(&interest.span, id);
            !c.watches.is_empty()
        });
    }

    /// Every watch has been told what it wants up to this revision; none while some catch up.
    pub fn seen(&self) -> Option<i64> {
        self.late.is_empty().then_some(self.level.next - 1)
    }

    /// Takes a bounded step, and adds what was found to `out`; true when there may be more at once. Not to
    /// be given up halfway: what it has found would be lost.
    pub async fn step(&mut self, out: &mut Vec<(i64, Found)>) -> bool {
        let begin = out.len();
        // First how far everybody was called, then for what: see the hub's invariant.
        let called = self.shared.hub.called();
        self.level.next = self.level.next.max(self.bell.take().min(called + 1));
        let mut busy = false;
        if self.level.watches.is_empty() {
            self.level.next = self.level.next.max(self.shared.hub.last() + 1);
        } else if self.level.step(&self.shared, out).await {
            self.bell.mark(self.level.next);
            busy = true;
        }
        if let Some(mut c) = self.late.pop_front() {
            c.step(&self.shared, out).await;
            if c.next >= self.level.next {
                let mut level = Vec::new();
                c.watches.each(|id, w| level.push((*id, w.clone())));
                for (id, w) in level {
                    let from = w.from.max(c.next);
                    self.join(id, Watch { from, ..w });
                }
                // What was called before they joined is marked, but nothing rings for it.
                busy = true;
            } else {
                self.late.push_back(c);
            }
        }
        for (id, found) in &out[begin..] {
            if !matches!(found, Found::Changes(..)) {
                self.remove(*id);
            }
        }
        busy || !self.late.is_empty()
    }

    /// Waits until there may be something to step to. Call it only after a step that left nothing.
    pub async fn news(&self) {
        self.bell.rung().await;
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        for (interest, ticket) in self.all.values() {
            if let Some(t) = ticket {
                self.shared.hub.forget(interest, *t);
            }
        }
    }
}

#[cfg(test)]
#[path = "follow_tests.rs"]
mod tests;
