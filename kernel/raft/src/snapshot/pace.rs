//! How fast snapshots may be made and carried: a token bucket without a bucket. Each takes its bytes and is
//! told how long to wait; those who share a pace wait for each other.

use photon_rt::time::{Duration, Instant};
use std::sync::{Condvar, Mutex, PoisonError};

pub(crate) struct Pace {
    /// Bytes a second; 0 for no limit.
    rate: u64,
    /// When all that was taken so far may have been used; then, whether nobody shall wait any more.
    state: Mutex<(Option<Instant>, bool)>,
    bell: Condvar,
}

/// Longest that an idle time counts: a pause is no licence for a burst.
const SAVED_MAX: Duration = Duration::from_millis(50);

impl Pace {
    pub(crate) fn new(rate: u64) -> Pace {
        Pace { rate, state: Mutex::new((None, false)), bell: Condvar::new() }
    }

    /// A length of pieces that come often enough for whoever waits for the next.
    pub(crate) fn piece(&self) -> usize {
        let rate = if self.rate == 0 { u64::MAX } else { self.rate };
        (rate / 8).clamp(4 << 10, super::PIECE_MAX as u64) as usize
    }

    /// Takes `bytes`; how long to wait before the next.
    pub(crate) fn take(&self, now: Instant, bytes: usize) -> Duration {
        if self.rate == 0 {
            return Duration::ZERO;
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let cost = Duration::from_nanos((bytes as u64).saturating_mul(1_000_000_000) / self.rate);
        let earliest = now.checked_sub(SAVED_MAX).unwrap_or(now);
        let free = state.0.unwrap_or(now).max(earliest) + cost;
        state.0 = Some(free);
        free.saturating_duration_since(now)
    }

    /// Blocks for the time that [`Pace::take`] says; false when [`Pace::end`] was called.
    pub(crate) fn wait(&self, bytes: usize) -> bool {
        let wait = self.take(photon_rt::time::now(), bytes);
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let ended = self.bell.wait_timeout_while(state, wait, |s| !s.1);
        !ended.unwrap_or_else(PoisonError::into_inner).0.1
    }

    /// Lets nobody wait any more.
    pub(crate) fn end(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).1 = true;
        self.bell.notify_all();
    }
}
