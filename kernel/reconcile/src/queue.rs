//! Which keys wait, run or must run again. Pure: time comes in, keys go out.

use crate::context::Reads;
use photon_rt::time::{Duration, Instant};
use std::collections::{
    BTreeSet, HashMap, HashSet,
    hash_map::{Entry, OccupiedEntry},
};

/// A reconciler (by index) and one of its storage keys.
pub type Item = (usize, String);

/// Pause after the first failure, doubled up to the last.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// Pause after the first lost race, doubled likewise.
const RACE_MIN: Duration = Duration::from_millis(4);
/// Changed keys remembered before those that no run under way can have missed are dropped.
const CHANGED_KEPT: usize = 4096;

/// The work of all reconcilers. A key runs at most once at a time; what happens to it meanwhile makes
/// it run once more.
#[derive(Default)]
pub struct Queue {
    due: BTreeSet<(Instant, Item)>,
    when: HashMap<Item, Instant>,
    running: HashMap<Item, bool>,
    failures: HashMap<Item, u32>,
    races: HashMap<Item, u32>,
    /// Counts changes, so that a run can tell which came after its start.
    clock: u64,
    /// When each running item started.
    started: HashMap<Item, u64>,
    /// What changed while anything ran, and when last: a run's reads are known only at its end.
    changed: HashMap<String, u64>,
    reads: HashMap<Item, Reads>,
    by_key: HashMap<String, HashSet<Item>>,
    by_prefix: HashMap<String, HashSet<Item>>,
}

impl Queue {
    /// Makes `item` run at `at` or earlier.
    pub fn add(&mut self, item: Item, at: Instant) {
        if let Some(again) = self.running.get_mut(&item) {
            *again = true;
            return;
        }
        match self.when.get(&item) {
            Some(t) if *t <= at => {}
            found => {
                if let Some(t) = found.copied() {
                    self.due.remove(&(t, item.clone()));
                }
                self.due.insert((at, item.clone()));
                self.when.insert(item, at);
            }
        }
    }

    /// Everyone who read `key`, alone or in a list, runs again; whoever reads it in a run under way, too.
    pub fn touched(&mut self, key: &str, now: Instant) {
        if !self.running.is_empty() {
            self.clock += 1;
            self.changed.insert(key.to_string(), self.clock);
            if self.changed.len() >= CHANGED_KEPT {
                let oldest = self.started.values().min().copied().unwrap_or(self.clock);
                self.changed.retain(|_, at| *at > oldest);
            }
        }
        let mut who: Vec<Item> = self.by_key.get(key).into_iter().flatten().cloned().collect();
        // Lists are of `…/kind/` or `…/kind/project/`: the prefixes of the key that end in a slash.
        for (i, _) in key.match_indices('/') {
            who.extend(self.by_prefix.get(&key[..=i]).into_iter().flatten().cloned());
        }
        for item in who {
            self.add(item, now);
        }
    }

    /// Takes what is due at `now`.
    pub fn pop(&mut self, now: Instant) -> Option<Item> {
        let (at, _) = self.due.first()?;
        if *at > now {
            return None;
        }
        let (_, item) = self.due.pop_first()?;
        self.when.remove(&item);
        self.running.insert(item.clone(), false);
        self.started.insert(item.clone(), self.clock);
        Some(item)
    }

    /// When something is due next.
    pub fn next_at(&self) -> Option<Instant> {
        self.due.first().map(|(t, _)| *t)
    }

    /// `item` ended: `outcome` is when it wants to run again, or none after a failure. `stale` says that
    /// the failure was a lost race, which is no reason to wait long.
    pub fn done(&mut self, item: Item, reads: Reads, outcome: Outcome, now: Instant) {
        let start = self.started.remove(&item).unwrap_or(self.clock);
        let again = self.running.remove(&item).unwrap_or(false) || self.changed_since(start, &reads);
        if self.running.is_empty() {
            self.changed.clear();
        }
        self.remember(&item, reads);
        match outcome {
            Outcome::Done(after) => {
                self.failures.remove(&item);
                self.races.remove(&item);
                if again {
                    self.add(item, now);
                } else if let Some(d) = after {
                    self.add(item, now + d);
                }
            }
            Outcome::Failed => {
                let n = self.failures.entry(item.clone()).or_default();
                // What changed meanwhile may be just what the run failed for.
                let n = if again { 0 } else { std::mem::replace(n, n.saturating_add(1)) };
                self.pause(item, BACKOFF_MIN, n, now);
            }
            Outcome::Raced => {
                // One lost race is no reason to wait long; what loses every time is none, and must not
                // keep the store busy.
                let n = self.races.entry(item.clone()).or_default();
                let n = std::mem::replace(n, n.saturating_add(1));
                self.pause(item, RACE_MIN, n, now);
            }
        }
    }

    /// Runs `item` after `first`, doubled `n` times.
    fn pause(&mut self, item: Item, first: Duration, n: u32, now: Instant) {
        let pause = (first * 2u32.saturating_pow(n.min(16))).min(BACKOFF_MAX);
        let jitter = photon_rt::entropy::u64() % (pause.as_millis() as u64 / 4 + 1);
        self.add(item, now + pause + Duration::from_millis(jitter));
    }

    /// True when something of `reads` changed after `start`.
    fn changed_since(&self, start: u64, reads: &Reads) -> bool {
        self.changed.iter().any(|(key, at)| {
            *at > start
                && (reads.keys.contains(key)
                    || key.match_indices('/').any(|(i, _)| reads.prefixes.contains(&key[..=i])))
        })
    }

    fn remember(&mut self, item: &Item, reads: Reads) {
        if self.reads.get(item) == Some(&reads) {
            return;
        }
        if let Some(old) = self.reads.remove(item) {
            for k in &old.keys {
                if let Entry::Occupied(e) = self.by_key.entry(k.clone()) {
                    forget(e, item);
                }
            }
            for p in &old.prefixes {
                if let Entry::Occupied(e) = self.by_prefix.entry(p.clone()) {
                    forget(e, item);
                }
            }
        }
        for k in &reads.keys {
            self.by_key.entry(k.clone()).or_default().insert(item.clone());
        }
        for p in &reads.prefixes {
            self.by_prefix.entry(p.clone()).or_default().insert(item.clone());
        }
        if reads != Reads::default() {
            self.reads.insert(item.clone(), reads);
        }
    }

    /// Keys waiting or running.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.when.len() + self.running.len()
    }
}

/// Takes one reader out, and the set with it when it was the last.
fn forget(mut readers: OccupiedEntry<'_, String, HashSet<Item>>, item: &Item) {
    readers.get_mut().remove(item);
    if readers.get().is_empty() {
        readers.remove();
    }
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Well; run again after this long, if given.
    Done(Option<Duration>),
    /// With an error.
    Failed,
    /// Somebody else was faster; what was read is outdated.
    Raced,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(k: &str) -> Item {
        (0, k.to_string())
    }

    #[test]
    fn a_key_runs_once_at_a_time_and_again_if_touched() {
        let now = photon_rt::time::now();
        let mut q = Queue::default();
        q.add(item("/r/vm/p/a"), now);
        q.add(item("/r/vm/p/a"), now);
        assert_eq!(q.pop(now), Some(item("/r/vm/p/a")));
        assert_eq!(q.pop(now), None);
        q.add(item("/r/vm/p/a"), now);
        assert_eq!(q.pop(now), None, "it runs already");
        q.done(item("/r/vm/p/a"), Reads::default(), Outcome::Done(None), now);
        assert_eq!(q.pop(now), Some(item("/r/vm/p/a")), "it was touched while it ran");
        q.done(item("/r/vm/p/a"), Reads::default(), Outcome::Done(None), now);
        assert_eq!(q.len(), 0);
    }

    #[test]
    fn whoever_read_a_thing_runs_when_it_changes() {
        let now = photon_rt::time::now();
        let mut q = Queue::default();
        let reads = Reads {
            keys: ["/r/image/-/tiny".to_string()].into(),
            prefixes: ["/r/port/p/".to_string()].into(),
        };
        q.add(item("/r/vm/p/a"), now);
        q.pop(now);
        q.done(item("/r/vm/p/a"), reads, Outcome::Done(None), now);
        for (key, runs) in [
            ("/r/image/-/tiny", true),
            ("/r/port/p/x", true),
            ("/r/port/q/x", false),
            ("/r/image/-/big", false),
        ] {
            q.touched(key, now);
            assert_eq!(q.pop(now).is_some(), runs, "{key}");
            if runs {
                let reads = q.reads[&item("/r/vm/p/a")].clone();
                q.done(item("/r/vm/p/a"), reads, Outcome::Done(None), now);
            }
        }
    }

    #[test]
    fn what_changed_between_a_first_read_and_the_end_of_the_run_is_not_missed() {
        let now = photon_rt::time::now();
        for (read, touched, runs) in [
            (Reads { keys: ["/r/port/p/x".to_string()].into(), ..Reads::default() }, "/r/port/p/x", true),
            (Reads { prefixes: ["/r/port/p/".to_string()].into(), ..Reads::default() }, "/r/port/p/x", true),
            (Reads { keys: ["/r/port/p/x".to_string()].into(), ..Reads::default() }, "/r/port/p/y", false),
        ] {
            let mut q = Queue::default();
            q.touched("/r/port/p/x", now); // before the run: nothing that it could miss
            q.add(item("/r/vm/p/a"), now);
            q.pop(now);
            q.touched(touched, now);
            q.done(item("/r/vm/p/a"), read, Outcome::Done(None), now);
            assert_eq!(q.pop(now).is_some(), runs, "{touched}");
            assert!(runs || q.changed.is_empty(), "nothing is kept when nothing runs");
        }
    }

    #[test]
    fn races_lost_every_time_slow_down_and_a_touch_shortens_a_failure() {
        let now = photon_rt::time::now();
        let mut q = Queue::default();
        let mut run = |outcome, touch: bool| {
            q.add(item("k"), now);
            let at = q.next_at().expect("due");
            q.pop(at);
            if touch {
                q.add(item("k"), now);
            }
            q.done(item("k"), Reads::default(), outcome, now);
            let next = q.next_at().expect("again");
            q.pop(next);
            q.running.clear();
            next - now
        };
        assert!(run(Outcome::Raced, false) < Duration::from_millis(10));
        let last = (0..20).map(|_| run(Outcome::Raced, false)).last().expect("some");
        assert!(last >= BACKOFF_MAX, "{last:?}");
        for _ in 0..12 {
            run(Outcome::Failed, false);
        }
        assert!(run(Outcome::Failed, true) < Duration::from_secs(1));
    }

    #[test]
    fn failures_wait_longer_each_time() {
        let now = photon_rt::time::now();
        let mut q = Queue::default();
        let mut last = Duration::ZERO;
        for _ in 0..6 {
            q.add(item("k"), now);
            let t = q.next_at().expect("due");
            assert_eq!(q.pop(t.max(now)), Some(item("k")));
            q.done(item("k"), Reads::default(), Outcome::Failed, now);
            let wait = q.next_at().expect("again") - now;
            assert!(wait > last, "{wait:?} after {last:?}");
            last = wait;
            let t = q.next_at().expect("again");
            q.pop(t);
            q.running.clear();
        }
    }
}
