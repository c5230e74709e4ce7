//! Automatic compaction, as etcd's `--auto-compaction-mode` and `--auto-compaction-retention` have it
//! (`server/etcdserver/api/v3compactor`): history older than a time, or beyond a number of revisions, is
//! forgotten. Every member remembers which revision there was when; the leader compacts.

use crate::{ChainFire, store::Inner};
use photon_raft::Role;
use photon_rt::time::{Duration, Instant, now, sleep};
use std::{collections::VecDeque, sync::Weak};

/// How much history is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retention {
    /// As much as there was in this time.
    Time(Duration),
    /// So many revisions.
    Revisions(i64),
}

const HOUR: Duration = Duration::from_secs(3_600);
/// Between two compactions when revisions are counted.
const COUNTED_EVERY: Duration = Duration::from_secs(300);

struct Compactor {
    retention: Retention,
    /// Revisions by when they were the newest, oldest first.
    seen: VecDeque<(Instant, i64)>,
    last: Instant,
}

impl Compactor {
    fn new(retention: Retention, now: Instant) -> Compactor {
        Compactor { retention, seen: VecDeque::new(), last: now }
    }

    /// Between two looks. A time is looked at ten times within itself or within an hour, as in etcd.
    fn pause(&self) -> Duration {
        match self.retention {
            Retention::Time(t) => (t.min(HOUR) / 10).max(Duration::from_millis(10)),
            Retention::Revisions(_) => COUNTED_EVERY,
        }
    }

    /// What to forget before, if anything.
    fn look(&mut self, now: Instant, revision: i64) -> Option<i64> {
        let due = match self.retention {
            Retention::Revisions(n) => return Some(revision - n).filter(|r| *r > 0),
            Retention::Time(t) => now.checked_sub(t),
        };
        self.seen.push_back((now, revision));
        let due = due?;
        // Of those that are old enough only the youngest counts.
        while self.seen.get(1).is_some_and(|(at, _)| *at <= due) {
            self.seen.pop_front();
        }
        let Retention::Time(t) = self.retention else { return None };
        let (at, old) = *self.seen.front()?;
        if at > due || now < self.last + t.min(HOUR) {
            return None;
        }
        self.last = now;
        Some(old)
    }
}

/// Compacts while this member leads.
pub(crate) async fn run(inner: Weak<Inner>, retention: Retention) {
    let mut compactor = Compactor::new(retention, now());
    loop {
        sleep(compactor.pause()).await;
        let Some(me) = inner.upgrade().map(|inner| ChainFire { inner }) else { return };
        let before = compactor.look(now(), me.revision());
        let Some(before) = before.filter(|_| me.raft().role == Role::Leader) else { continue };
        match me.forget_before(before).await {
            Ok(()) => tracing::info!(before, "history was compacted"),
            Err(e) => tracing::warn!(error = %e, before, "history is compacted later"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_of_history_is_kept_and_no_less() {
        let begin = now();
        let (minute, hours) = (Duration::from_secs(60), 3 * HOUR);
        let mut c = Compactor::new(Retention::Time(hours), begin);
        assert_eq!(c.pause(), 6 * minute);
        let mut done = Vec::new();
        // A revision a minute.
        for step in 1..=100 {
            let minutes = 6 * step;
            if let Some(r) = c.look(begin + minutes * minute, i64::from(minutes)) {
                assert!(r <= i64::from(minutes) - 180, "at {minutes}: {r}");
                done.push((minutes, r));
            }
        }
        assert_eq!(done.first(), Some(&(186, 6)));
        assert!(done.windows(2).all(|w| w[1].0 - w[0].0 == 60 && w[1].1 - w[0].1 == 60), "hourly: {done:?}");
        assert!(c.seen.len() < 40);
        let mut short = Compactor::new(Retention::Time(minute), begin);
        let steps = (1..=40u32).filter_map(|i| short.look(begin + i * minute / 10, i64::from(i)));
        assert_eq!(steps.collect::<Vec<_>>(), [1, 11, 21], "every minute");
    }

    #[test]
    fn a_number_of_revisions_is_kept() {
        let mut c = Compactor::new(Retention::Revisions(1_000), now());
        assert_eq!((c.look(now(), 900), c.look(now(), 1_500)), (None, Some(500)));
        assert_eq!(c.pause(), COUNTED_EVERY);
    }
}
