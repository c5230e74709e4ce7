//! The lease as readers see it, on their own threads, without waiting for those of the store.
//!
//! The log's thread publishes until when nobody else can lead, and what is committed, before anything leaves
//! this node that makes either untrue or visible elsewhere (`core::lease`). A reader looks at the end, then at
//! the index, then at the clock: if that has not reached the end, nobody else led when it looked at the end,
//! and the index covers all that was acknowledged before.

use photon_rt::time::Duration;
use std::sync::{
    Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, AtomicU64, Ordering},
};
use tokio::sync::oneshot;

/// Most reads that wait for the machine at once; more ask the log's thread, which has its own limit.
const MAX_WAITING: usize = 1 << 16;

/// See the module.
#[derive(Default)]
pub(crate) struct Lease {
    /// Nanoseconds since boot; 0 for none.
    until: AtomicU64,
    commit: AtomicU64,
    applied: AtomicU64,
    ended: AtomicBool,
    waiting: Mutex<Waiting>,
}

type Waiting = Vec<(u64, oneshot::Sender<()>)>;

/// What a reader does.
pub(crate) enum Read {
    /// It reads.
    Now,
    /// It reads when this is answered.
    After(oneshot::Receiver<()>),
    /// It asks a quorum.
    Ask,
}

impl Lease {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The log's thread knows more.
    pub(crate) fn set(&self, until: Duration, commit: u64) {
        let nanos = u64::try_from(until.as_nanos()).unwrap_or(u64::MAX);
        if nanos == 0 {
            self.until.store(0, Ordering::SeqCst);
            return;
        }
        // Whoever sees the new end sees the new index.
        self.commit.store(commit, Ordering::SeqCst);
        self.until.store(nanos, Ordering::SeqCst);
    }

    /// The machine reflects everything up to `index`.
    pub(crate) fn applied(&self, index: u64) {
        self.applied.store(index, Ordering::SeqCst);
        let mut w = self.waiting();
        let mut i = 0;
        while i < w.len() {
            if w[i].0 <= index {
                let _ = w.swap_remove(i).1.send(()); // the caller may have gone
            } else {
                i += 1;
            }
        }
    }

    /// The group has stopped: nobody reads any more.
    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
        self.waiting().clear();
    }

    pub(crate) fn read(&self, clock: impl FnOnce() -> Duration) -> Read {
        let until = self.until.load(Ordering::SeqCst);
        let commit = self.commit.load(Ordering::SeqCst);
        if until == 0 || clock().as_nanos() >= u128::from(until) {
            return Read::Ask;
        }
        let ended = || self.ended.load(Ordering::SeqCst);
        let applied = || self.applied.load(Ordering::SeqCst) >= commit;
        if !ended() && applied() {
            return Read::Now;
        }
        let mut w = self.waiting();
        // Again under the lock, which whoever applies or ends takes after it has said so.
        if ended() || w.len() >= MAX_WAITING {
            return Read::Ask;
        }
        if applied() {
            return Read::Now;
        }
        let (done, answer) = oneshot::channel();
        w.push((commit, done));
        Read::After(answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> impl FnOnce() -> Duration {
        move || Duration::from_secs(seconds)
    }

    #[test]
    fn reads_go_on_within_the_lease_when_the_machine_has_come_so_far() {
        let l = Lease::default();
        assert!(matches!(l.read(at(0)), Read::Ask), "no lease yet");
        l.set(Duration::from_secs(10), 5);
        assert!(matches!(l.read(at(10)), Read::Ask), "it is over");
        let Read::After(mut waits) = l.read(at(9)) else { panic!("nothing is applied") };
        l.applied(4);
        assert!(waits.try_recv().is_err(), "not far enough");
        l.applied(5);
        assert!(waits.try_recv().is_ok() && matches!(l.read(at(9)), Read::Now));
        l.set(Duration::ZERO, 0);
        assert!(matches!(l.read(at(0)), Read::Ask), "it was given up");
        l.set(Duration::MAX, 6);
        let Read::After(mut waits) = l.read(at(u32::MAX.into())) else { panic!("alone, it has no end") };
        l.end();
        assert!(waits.try_recv().is_err() && matches!(l.read(at(0)), Read::Ask), "the group has stopped");
    }

    #[test]
    fn the_index_is_looked_at_before_the_clock() {
        let l = Lease::default();
        l.set(Duration::from_secs(10), 0);
        // While it looks at the clock, the lease is given up: others may lead and have acknowledged more, but
        // not when it looked.
        let read = l.read(|| {
            l.set(Duration::ZERO, 0);
            Duration::from_secs(9)
        });
        assert!(matches!(read, Read::Now));
    }
}
