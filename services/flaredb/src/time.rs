//! Timestamps of transactions, and the oracle that gives them out.
//!
//! A timestamp is `milliseconds since 1970 << 18 | logical`. The oracle gives out even ones, each once, in
//! rising order. Odd ones are derived by regions for one-phase and asynchronous commits: one more than the
//! greatest even timestamp that anybody read at. So a derived timestamp is never one that the oracle gave or
//! will give, it is below everything the oracle gives later, and a commit never shares its timestamp with the
//! start of another transaction: rollback records and commit records cannot meet.
//!
//! The oracle's windows are made durable before they are used (in ChainFire, under a lease with an epoch):
//! whoever is elected next begins behind the last window. Considered: hybrid clocks without an oracle
//! (CockroachDB): then a read has to restart when it meets a value within the clocks' uncertainty, and what
//! users pay for a bad clock is wrong answers instead of a wait.

use std::ops::Range;

/// A point in time of transactions. 0 is before everything.
pub type Ts = u64;

/// Bits below the milliseconds.
const LOGICAL: u32 = 18;

/// The first timestamp of a millisecond.
pub fn at_ms(ms: u64) -> Ts {
    ms << LOGICAL
}

/// The millisecond of a timestamp.
pub fn ms(ts: Ts) -> u64 {
    ts >> LOGICAL
}

/// True for those that an oracle gives out.
pub fn is_given(ts: Ts) -> bool {
    ts != 0 && ts.is_multiple_of(2)
}

/// The smallest timestamp behind `ts` that a region may commit at by itself.
pub fn derived_after(ts: Ts) -> Ts {
    (ts + 1) | 1
}

/// How long a window is, milliseconds. A new oracle begins at the end of the last one, so for at most this long
/// its timestamps are ahead of clocks.
pub const WINDOW_MS: u64 = 3_000;

/// How long it is while timestamps are ahead of clocks: a store that is restarted again and again must not
/// run away from them.
const STEP_MS: u64 = 20;

/// Gives timestamps out of durable windows.
#[derive(Clone, Debug)]
pub struct Oracle {
    next: Ts,
    end: Ts,
}

impl Oracle {
    /// Behind all windows up to `durable`, the greatest end that was ever made durable (0 for none).
    pub fn new(durable: Ts) -> Oracle {
        let start = durable + (durable & 1);
        Oracle { next: start.max(2), end: start }
    }

    /// The end of the window that must be made durable before [`Oracle::extend`] takes it.
    pub fn wanted(&self, now_ms: u64) -> Ts {
        at_ms((now_ms + WINDOW_MS).max(ms(self.next) + STEP_MS))
    }

    /// Behind this nothing was given, nor derived from what was given.
    pub fn newest(&self) -> Ts {
        self.next - 1
    }

    /// `end` is durable now.
    pub fn extend(&mut self, end: Ts) {
        self.end = self.end.max(end);
    }

    /// `n` timestamps, two apart; `None` when the window is used up.
    pub fn take(&mut self, now_ms: u64, n: u32) -> Option<Range<Ts>> {
        let start = self.next.max(at_ms(now_ms));
        let end = start.checked_add(2 * u64::from(n.max(1)))?;
        if end > self.end {
            return None;
        }
        self.next = end;
        Some(start..end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn restarts_do_not_run_away_from_the_clock() {
        let (mut durable, now) = (0, 1_000_000);
        for _ in 0..1000 {
            let mut o = Oracle::new(durable);
            durable = o.wanted(now);
            o.extend(durable);
            o.take(now, 10).expect("the window is new");
        }
        assert!(ms(durable) <= now + WINDOW_MS + 1000 * STEP_MS);
    }

    proptest! {
        /// Over restarts, and with clocks that jump either way, no timestamp comes twice or late.
        #[test]
        fn rising_over_restarts(steps in proptest::collection::vec((0u64..50_000, 0u8..4, 1u32..5), 1..60)) {
            let (mut durable, mut last) = (0, 0);
            let mut oracle = Oracle::new(durable);
            for (now, what, n) in steps {
                match what {
                    0 => oracle = Oracle::new(durable),
                    1 => {
                        // The window was written, but the answer got lost.
                        durable = durable.max(oracle.wanted(now));
                    }
                    _ => {
                        if oracle.take(now, n).is_none() {
                            durable = durable.max(oracle.wanted(now));
                            oracle.extend(durable);
                        }
                        if let Some(r) = oracle.take(now, n) {
                            prop_assert!(r.start > last && is_given(r.start) && r.end <= durable);
                            prop_assert!(derived_after(r.end - 2) < r.end);
                            last = r.end - 2;
                        }
                    }
                }
            }
        }
    }
}
