//! Who waits for whom. A transaction waits for one other at a time, so the graph is a set of chains, and a
//! circle is found by following one.

use crate::{Refusal, refusal::Outcome, time::Ts};
use std::collections::BTreeMap;

/// How long a wait is remembered, milliseconds: whoever waits says it again more often than that.
pub const REMEMBERED_MS: u64 = 5_000;

/// Most waits that are remembered; more are let wait without a look.
const MAX_WAITS: usize = 100_000;

/// The waits of all transactions that asked here.
#[derive(Debug, Default)]
pub struct Detector {
    waits: BTreeMap<Ts, (Ts, u64)>,
}

impl Detector {
    /// `waiter` is about to wait for `holder`. Refused if `holder` waits, over others, for `waiter`: the one that
    /// would close the circle is the one to give up.
    pub fn waits(&mut self, waiter: Ts, holder: Ts, now_ms: u64) -> Outcome<()> {
        if self.waits.len() >= MAX_WAITS {
            self.waits.retain(|_, (_, since)| *since + REMEMBERED_MS > now_ms);
        }
        let mut at = holder;
        // A chain is no longer than the number of waits.
        for _ in 0..=self.waits.len() {
            if at == waiter {
                self.waits.remove(&waiter);
                return Err(Refusal::Deadlock(holder));
            }
            match self.waits.get(&at) {
                Some((next, since)) if *since + REMEMBERED_MS > now_ms => at = *next,
                _ => break,
            }
        }
        if self.waits.len() < MAX_WAITS {
            self.waits.insert(waiter, (holder, now_ms));
        }
        Ok(())
    }

    /// True when nobody is known to wait.
    pub fn is_idle(&self, now_ms: u64) -> bool {
        self.waits.values().all(|(_, since)| *since + REMEMBERED_MS <= now_ms)
    }

    /// `waiter` got what it wanted, or gave up.
    pub fn waited(&mut self, waiter: Ts) {
        self.waits.remove(&waiter);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_circle_is_refused_and_forgotten_waits_are_none() {
        let mut d = Detector::default();
        assert_eq!(d.waits(2, 4, 0), Ok(()));
        assert_eq!(d.waits(4, 6, 0), Ok(()));
        assert_eq!(d.waits(6, 2, 0), Err(Refusal::Deadlock(2)));
        d.waited(4);
        assert_eq!(d.waits(6, 2, 0), Ok(()));
        assert_eq!(d.waits(4, 6, 1), Err(Refusal::Deadlock(6)));
        assert!(!d.is_idle(REMEMBERED_MS - 1));
        assert_eq!(d.waits(4, 6, REMEMBERED_MS), Ok(()), "the others gave no sign any more");
        assert!(d.is_idle(2 * REMEMBERED_MS), "who crashed waits for nobody");
    }
}
