//! The queue in front of a thread: many may put in, one takes everything out at once. That taking
//! all is what makes group commit natural: what arrives while a sync runs is the next turn.
//!
//! Considered: tokio's mpsc, whose blocking receive takes items one by one and has no deadline.

use std::{
    collections::VecDeque,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

pub(crate) struct Inbox<T> {
    state: Mutex<State<T>>,
    bell: Condvar,
    limit: usize,
}

struct State<T> {
    items: VecDeque<T>,
    closed: bool,
    sleeping: bool,
}

impl<T> Inbox<T> {
    /// `limit` holds for [`Inbox::offer`] only.
    pub(crate) fn new(limit: usize) -> Self {
        let state = State { items: VecDeque::new(), closed: false, sleeping: false };
        Inbox { state: Mutex::new(state), bell: Condvar::new(), limit }
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn insert(&self, item: T, limit: usize, wake: bool) -> Result<(), T> {
        let mut s = self.lock();
        if s.closed || s.items.len() >= limit {
            return Err(item);
        }
        s.items.push_back(item);
        let wake = wake && std::mem::take(&mut s.sleeping);
        drop(s);
        if wake {
            self.bell.notify_one();
        }
        Ok(())
    }

    /// Puts in what is bounded elsewhere. Fails when closed.
    pub(crate) fn push(&self, item: T) -> Result<(), T> {
        self.insert(item, usize::MAX, true)
    }

    /// As [`Inbox::push`], for what can wait until the thread wakes for another reason.
    pub(crate) fn push_quietly(&self, item: T) -> Result<(), T> {
        self.insert(item, usize::MAX, false)
    }

    /// Puts in unless the queue is at its limit or closed.
    pub(crate) fn offer(&self, item: T) -> Result<(), T> {
        self.insert(item, self.limit, true)
    }

    /// Moves everything to `out`, waiting for at most `limit` (for ever if `None`) if there is
    /// nothing. False when closed and empty.
    pub(crate) fn take(&self, out: &mut Vec<T>, limit: Option<Duration>) -> bool {
        let mut s = self.lock();
        if s.items.is_empty() && !s.closed {
            s.sleeping = true;
            s = match limit {
                Some(limit) => self.bell.wait_timeout(s, limit).unwrap_or_else(PoisonError::into_inner).0,
                None => self.bell.wait(s).unwrap_or_else(PoisonError::into_inner),
            };
            s.sleeping = false;
        }
        out.extend(s.items.drain(..));
        !(s.closed && out.is_empty())
    }

    /// Nothing goes in any more; what is in can still be taken.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.bell.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_and_closing() {
        let q = Inbox::new(1);
        q.offer(1).expect("room");
        assert_eq!(q.offer(2), Err(2));
        q.push_quietly(3).expect("no limit");
        let mut out = Vec::new();
        assert!(q.take(&mut out, None));
        assert_eq!(out, [1, 3]);
        assert!(q.take(&mut out, Some(Duration::ZERO)));
        q.close();
        out.clear();
        assert_eq!((q.push(4), q.take(&mut out, None)), (Err(4), false));
    }
}
