//! Changes for watchers: one ring of the newest revisions, shared by all, and who to wake for them.
//!
//! The ring holds changes; it does not know who reads them. Who wants to be woken registers an interest with
//! its [`Bell`]; [`Hub::call`], a task of its own, looks each change up in an index and rings the bells of
//! those that want it, with the first revision that they have not taken yet. So a change costs what it
//! matches, not what exists, and nothing waits for a watcher or is kept for one: its place in history is its
//! own (`follow`).
//!
//! Invariants: revisions of the ring follow each other without a gap; when [`Hub::called`] says `r`, every
//! bell registered before has rung, or rings, for what it wants up to `r`.

use crate::{follow::Interest, index::Index, model::Changes};
use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
};
use tokio::sync::{Notify, watch};

/// Most revisions that are read from the ring at a time.
pub const READ_REVISIONS: usize = 1_000;

/// The ring, and the bells.
pub struct Hub {
    ring: Mutex<Ring>,
    revision: watch::Sender<i64>,
    limit: usize,
    wanted: Mutex<Wanted>,
    called: AtomicI64,
}

struct Ring {
    /// Revision of the first entry; entries follow each other without a gap.
    first: i64,
    entries: VecDeque<Arc<Changes>>,
    bytes: usize,
}

impl Ring {
    fn last(&self) -> i64 {
        self.first + self.entries.len() as i64 - 1
    }
}

/// What wakes one reader.
pub struct Bell {
    /// The first revision that it has not been taken for; the greatest number when there is none.
    first: AtomicI64,
    notify: Notify,
}

impl Default for Bell {
    fn default() -> Bell {
        Bell { first: AtomicI64::new(i64::MAX), notify: Notify::new() }
    }
}

impl Bell {
    /// There is something at a revision; true when the reader may not know of anything yet.
    pub fn mark(&self, revision: i64) -> bool {
        self.first.fetch_min(revision, Ordering::AcqRel) == i64::MAX
    }

    /// The first revision marked since the last call, or the greatest number.
    pub fn take(&self) -> i64 {
        self.first.swap(i64::MAX, Ordering::AcqRel)
    }

    /// Waits until it rings. It may have rung for what was taken already.
    pub async fn rung(&self) {
        self.notify.notified().await;
    }
}

/// Who is woken.
struct Wanted {
    index: Index<u64, Caller>,
    tickets: u64,
}

struct Caller {
    interest: Arc<Interest>,
    /// First revision that it wants.
    from: i64,
    bell: Arc<Bell>,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Hub {
    /// Empty at `revision`; keeps at most `limit` bytes of changes (and always the last revision).
    pub fn new(revision: i64, limit: usize) -> Hub {
        let ring = Ring { first: revision + 1, entries: VecDeque::new(), bytes: 0 };
        let index = Index::new(photon_rt::entropy::u64());
        Hub {
            ring: Mutex::new(ring),
            revision: watch::Sender::new(revision),
            limit,
            wanted: Mutex::new(Wanted { index, tickets: 0 }),
            called: AtomicI64::new(revision),
        }
    }

    /// Adds consecutive revisions, after the state that has them was published.
    pub fn append(&self, history: Vec<Changes>, revision: i64) {
        let mut r = lock(&self.ring);
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
        *lock(&self.ring) = Ring { first: revision + 1, entries: VecDeque::new(), bytes: 0 };
        self.revision.send_replace(revision);
    }

    /// The newest revision of the ring.
    pub fn last(&self) -> i64 {
        lock(&self.ring).last()
    }

    /// Revisions from `next` on, or none if the ring no longer has that one.
    pub fn read(&self, next: i64) -> Option<Vec<Arc<Changes>>> {
        let r = lock(&self.ring);
        let skip = usize::try_from(next.checked_sub(r.first)?).ok()?;
        Some(r.entries.range(skip.min(r.entries.len())..).take(READ_REVISIONS).cloned().collect())
    }

    /// Rings `bell` for what is wanted from a revision on, also for what was there before the call.
    pub fn register(&self, interest: &Arc<Interest>, from: i64, bell: &Arc<Bell>) -> u64 {
        let mut w = lock(&self.wanted);
        w.tickets += 1;
        let ticket = w.tickets;
        let caller = Caller { interest: interest.clone(), from, bell: bell.clone() };
        w.index.insert(&interest.span, ticket, caller);
        if from <= self.called.load(Ordering::Acquire) {
            bell.mark(from);
        }
        ticket
    }

    /// Ends what [`Hub::register`] began.
    pub fn forget(&self, interest: &Interest, ticket: u64) {
        lock(&self.wanted).index.remove(&interest.span, ticket);
    }

    /// All bells have been told of what they want up to this revision.
    pub fn called(&self) -> i64 {
        self.called.load(Ordering::Acquire)
    }

    /// Rings for the next revisions; false when there are none.
    pub fn call(&self) -> bool {
        let mut bells = Vec::new();
        let w = lock(&self.wanted);
        let next = self.called.load(Ordering::Acquire) + 1;
        let to = match self.read(next) {
            Some(entries) => {
                let Some(last) = entries.last() else { return false };
                for e in &entries {
                    for c in &e.changes {
                        w.index.at(&c.kv.key, |_, who| {
                            if e.revision >= who.from && who.interest.admits(c) && who.bell.mark(e.revision) {
                                bells.push(who.bell.clone());
                            }
                        });
                    }
                }
                last.revision
            }
            // The ring is ahead: nobody knows whom the revisions between concern.
            None => {
                w.index.each(|_, who| {
                    if who.bell.mark(next) {
                        bells.push(who.bell.clone());
                    }
                });
                self.last()
            }
        };
        self.called.store(to, Ordering::Release);
        drop(w);
        bells.iter().for_each(|b| b.notify.notify_one());
        true
    }

    /// Wakes everybody: what they may see has changed.
    pub fn rouse(&self) {
        lock(&self.wanted).index.each(|_, who| who.bell.notify.notify_one());
    }

    /// True when nobody is called.
    #[cfg(test)]
    pub fn is_deaf(&self) -> bool {
        lock(&self.wanted).index.is_empty()
    }

    /// Calls for every revision that is appended. A task of its own: a change that ten thousand want must not
    /// keep the next write waiting.
    pub async fn calling(&self) {
        let mut news = self.revision.subscribe();
        loop {
            while self.call() {
                tokio::task::yield_now().await;
            }
            if news.changed().await.is_err() {
                return;
            }
        }
    }
}
