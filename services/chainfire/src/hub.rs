//! Changes for watchers: one ring of the newest revisions, shared by all; each watcher is a cursor.
//! One that falls behind the ring reads history from the store and rejoins; nobody waits for it.

use crate::{
    EtcdError, EtcdResult, Scope, Span,
    machine::{Published, Shared},
    model::{Change, Changes, layout::*},
    plant::{Plant, planted},
    wire::mvccpb::KeyValue,
};
use photon_kv::{Direction, engine::KeyRange};
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::watch;

/// Most revisions that one step of a cursor looks at.
const STEP_REVISIONS: usize = 1_000;

/// A step ends once it has collected this many bytes of changes. A revision is never split.
const STEP_BYTES: usize = 1 << 20;

/// The ring.
pub struct Hub {
    ring: Mutex<Ring>,
    revision: watch::Sender<i64>,
    limit: usize,
}

struct Ring {
    /// Revision of the first entry; entries follow each other without a gap.
    first: i64,
    entries: VecDeque<Arc<Changes>>,
    bytes: usize,
}

impl Hub {
    /// Empty at `revision`; keeps at most `limit` bytes of changes (and always the last revision).
    pub fn new(revision: i64, limit: usize) -> Hub {
        let ring = Ring { first: revision + 1, entries: VecDeque::new(), bytes: 0 };
        Hub { ring: Mutex::new(ring), revision: watch::Sender::new(revision), limit }
    }

    fn lock(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds consecutive revisions, after the state that has them was published.
    pub fn append(&self, history: Vec<Changes>, revision: i64) {
        let mut r = self.lock();
        for c in history {
            r.bytes += c.bytes();
            r.entries.push_back(Arc::new(c));
        }
        while r.bytes > self.limit && r.entries.len() > 1 {
            if let Some(old) = r.entries.pop_front() {
                r.bytes -= old.bytes();
                r.first += 1;
            }
        }
        drop(r);
        self.revision.send_replace(revision);
    }

    /// The state was replaced by one at `revision`: watchers read what is between from the store.
    pub fn jump(&self, revision: i64) {
        *self.lock() = Ring { first: revision + 1, entries: VecDeque::new(), bytes: 0 };
        self.revision.send_replace(revision);
    }

    /// Tells when the store's revision has grown.
    pub fn subscribe(&self) -> watch::Receiver<i64> {
        self.revision.subscribe()
    }

    /// Revisions from `next` on, or none if the ring no longer has that one.
    fn read(&self, next: i64) -> Option<Vec<Arc<Changes>>> {
        let r = self.lock();
        let skip = usize::try_from(next.checked_sub(r.first)?).ok()?;
        Some(r.entries.iter().skip(skip).take(STEP_REVISIONS).cloned().collect())
    }
}

/// What a watcher wants to see.
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
    fn wants(&self, c: &Change) -> bool {
        let filtered = if c.put { self.no_put } else { self.no_delete };
        !filtered && self.span.contains(&c.kv.key) && self.scope.may_name(&c.kv.key)
    }
}

/// A watcher's place in history.
#[derive(Clone, Debug)]
pub struct Cursor {
    /// What it wants.
    pub interest: Interest,
    /// First revision that it has not seen.
    pub next: i64,
}

/// The history that a watcher needs is gone; it goes back to this revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone(pub i64);

impl Cursor {
    /// True when there are revisions that this cursor has not looked at.
    pub fn behind(&self, revision: i64) -> bool {
        self.next <= revision
    }

    /// Takes a bounded step towards the present: the wanted changes by revision (revisions without
    /// any are left out). Touches the disk only when the cursor fell behind the ring.
    pub async fn step(&mut self, shared: &Arc<Shared>) -> EtcdResult<Result<Vec<Changes>, Gone>> {
        let now = shared.published();
        if !self.behind(now.revision) {
            return Ok(Ok(Vec::new()));
        }
        match shared.hub.read(self.next) {
            Some(entries) => Ok(Ok(self.take(entries))),
            None if planted(Plant::WatchForgets) => {
                self.next = now.revision + 1;
                Ok(Ok(Vec::new()))
            }
            None if self.next < now.compacted => Ok(Err(Gone(now.compacted))),
            None => {
                let (mut me, state) = (self.clone(), now.clone());
                let (me, found) = photon_rt::task::blocking(move || {
                    let found = me.history(&state);
                    (me, found)
                })
                .await;
                *self = me;
                // The sweeper may have removed what this step was reading.
                if now.compacted < shared.published().compacted && found.is_err() {
                    return Ok(Err(Gone(shared.published().compacted)));
                }
                found.map(Ok)
            }
        }
    }

    fn take(&mut self, entries: Vec<Arc<Changes>>) -> Vec<Changes> {
        let mut out = Vec::new();
        let mut bytes = 0;
        for e in entries {
            self.next = e.revision + 1;
            let wanted: Vec<Change> = e
                .changes
                .iter()
                .filter(|c| self.interest.wants(c))
                .map(|c| Change {
                    prev: if self.interest.prev_kv { c.prev.clone() } else { None },
                    ..c.clone()
                })
                .collect();
            if !wanted.is_empty() {
                let c = Changes { revision: e.revision, changes: wanted };
                bytes += c.bytes();
                out.push(c);
                if bytes >= STEP_BYTES {
                    break;
                }
            }
        }
        out
    }

    /// The same from the store.
    fn history(&mut self, state: &Published) -> EtcdResult<Vec<Changes>> {
        let reader = state.reader();
        let view = reader.view;
        let mut out: Vec<Changes> = Vec::new();
        let (mut bytes, mut revisions, mut last) = (0, 0, 0);
        let from = event_key(Stamp { main: self.next, sub: 0 });
        let mut next = state.revision + 1;
        for item in view.scan(EVENTS, KeyRange::from(from), Direction::Forward) {
            let (k, key) = item?;
            let bad = || EtcdError::Internal("an event in the store cannot be read".into());
            let at = split_event_key(&k).ok_or_else(bad)?;
            if at.main != last {
                (last, revisions) = (at.main, revisions + 1);
                if revisions > STEP_REVISIONS || bytes >= STEP_BYTES {
                    next = at.main;
                    break;
                }
            }
            if !self.interest.span.contains(&key) || !self.interest.scope.may_name(&key) {
                continue;
            }
            let stored = view.get(DATA, &data_key(&key, at))?.ok_or_else(bad)?;
            let put = !stored.is_empty();
            let kv = if put {
                decode(stored)?
            } else {
                KeyValue { key: key.clone(), mod_revision: at.main, ..Default::default() }
            };
            let mut change = Change { kv, put, prev: None };
            if !self.interest.wants(&change) {
                continue;
            }
            if self.interest.prev_kv && at.main > state.compacted {
                change.prev = reader.at(&key, at.main - 1)?;
            }
            match out.last_mut() {
                Some(c) if c.revision == at.main => c.changes.push(change),
                _ => out.push(Changes { revision: at.main, changes: vec![change] }),
            }
            bytes = out.iter().map(Changes::bytes).sum();
        }
        self.next = next;
        Ok(out)
    }
}
