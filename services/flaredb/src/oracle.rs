//! Who gives out timestamps when there are several nodes: one at a time, by turns.
//!
//! One record in the kernel's `Kv` says who, in which epoch, and up to where timestamps may have been given
//! ([`Record`]). Only a compare-and-swap changes it. Whoever takes it over begins behind that end, with an epoch
//! greater by one, so no timestamp is given twice. That alone would let a deposed oracle give *older* ones than its
//! heir, out of what is left of its window. So a window also ends by time: an oracle gives for [`LEASE`] from when
//! it *began* to write the record, and nobody takes the record over before having seen it unchanged for
//! [`TAKEOVER`], which is longer on any clock that runs at most a tenth too fast or too slow (Gray and Cheriton,
//! SOSP 1989). Nobody compares clocks: only their speeds matter.
//!
//! [`Keeper`] decides and is pure; [`Clock`] runs it over [`Outside`], for which there is the network
//! (`node::time`) and the simulation (the tests). Nobody is elected ahead of time: a node that needs a timestamp
//! asks the holder, and becomes it when the holder does not answer for that long.
//!
//! Every wait here ends by itself: attempts are counted, and what is outside is bounded by [`Outside`].

use crate::{
    Refusal,
    bug::{self, Bug},
    refusal::Outcome,
    time::{Oracle, Ts},
};
use photon_rt::time::Duration;
use std::{
    future::Future,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::sync::{Notify, oneshot};

/// How long a window may be given from, on the clock of whoever holds it.
pub(crate) const LEASE: Duration = Duration::from_millis(1_000);

/// How long a record must have been seen unchanged by whoever takes it over.
pub(crate) const TAKEOVER: Duration = Duration::from_millis(1_250);

/// Most timestamps that are asked for at once.
const MANY: u32 = 4_096;

/// How often a request turns to the record, or to somebody, before it gives up.
const ATTEMPTS: u32 = 24;

/// The record of the oracle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    /// The node that gives.
    pub holder: u64,
    /// Rises by one with every other holder, or run of the same.
    pub epoch: u64,
    /// Nothing at or behind it was given.
    pub end: Ts,
}

impl std::fmt::Display for Record {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} {}", self.holder, self.epoch, self.end)
    }
}

impl Record {
    /// Of its text.
    pub(crate) fn parse(text: &[u8]) -> Outcome<Record> {
        let wrong = || Refusal::Broken("the record of who gives timestamps cannot be read".into());
        let text = std::str::from_utf8(text).map_err(|_| wrong())?;
        let parts: Vec<u64> = text.splitn(4, ' ').map_while(|p| p.parse().ok()).collect();
        match parts[..] {
            [holder, epoch, end] if holder > 0 && epoch > 0 => Ok(Record { holder, epoch, end }),
            _ => Err(wrong()),
        }
    }
}

/// A change of the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Swap {
    /// Its revision now; none when there is no record.
    pub expected: Option<u64>,
    /// What it shall be.
    pub record: Record,
    /// Where the oracle of this window begins.
    behind: Ts,
}

/// What is to be done for a timestamp.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// Nothing: this is the first of them.
    Given(Ts),
    /// Ask this node.
    Ask(u64),
    /// Read the record.
    Read,
    /// Change it.
    Swap(Swap),
    /// Let so much time pass, then read the record.
    Wait(Duration),
}

/// The record as it was last seen here.
#[derive(Clone, Copy, Debug)]
struct Seen {
    record: Option<Record>,
    revision: u64,
    /// When this node first saw it so.
    since: Duration,
}

/// What one run of a node knows of the oracle.
#[derive(Debug)]
struct Keeper {
    me: u64,
    oracle: Oracle,
    /// Epoch that this run has held; 0 for none.
    epoch: u64,
    /// Until when it may give, on its own clock.
    until: Duration,
    seen: Option<Seen>,
}

impl Keeper {
    fn new(me: u64) -> Keeper {
        Keeper { me, oracle: Oracle::new(0), epoch: 0, until: Duration::ZERO, seen: None }
    }

    fn holds(&self, now: Duration) -> bool {
        now < self.until || (bug::on(Bug::DeposedGives) && self.epoch > 0)
    }

    /// This node's own record, if that is what was last seen.
    fn own(&self) -> Option<(Record, u64)> {
        let seen = self.seen.as_ref()?;
        let mine = |r: &Record| (r.holder, r.epoch) == (self.me, self.epoch);
        seen.record.filter(mine).map(|r| (r, seen.revision))
    }

    /// A longer window for the same epoch.
    fn renewal(&self, wall_ms: u64) -> Option<Swap> {
        let (record, revision) = self.own()?;
        let end = self.oracle.wanted(wall_ms).max(record.end);
        Some(Swap { expected: Some(revision), record: Record { end, ..record }, behind: record.end })
    }

    /// Half of the lease is over.
    fn is_due(&self, now: Duration) -> bool {
        now + LEASE / 2 > self.until
    }

    /// `deaf`: who was asked and did not answer.
    fn next(&mut self, now: Duration, wall_ms: u64, n: u32, deaf: Option<u64>) -> Next {
        if self.holds(now)
            && let Some(r) = self.oracle.take(wall_ms, n)
        {
            return Next::Given(r.start);
        }
        let Some(seen) = self.seen else { return Next::Read };
        if let Some(swap) = self.renewal(wall_ms) {
            return Next::Swap(swap);
        }
        let (epoch, behind) = match seen.record {
            None => (1, 0),
            Some(r) if r.holder != self.me && deaf != Some(r.holder) => return Next::Ask(r.holder),
            // Also a record of this node's former run, which may have ended a moment ago.
            Some(r) => {
                let age = now.saturating_sub(seen.since);
                if age < TAKEOVER && !bug::on(Bug::TakenTooEarly) {
                    return Next::Wait(TAKEOVER - age);
                }
                (r.epoch + 1, r.end)
            }
        };
        let behind = if bug::on(Bug::WindowForgotten) { 0 } else { behind };
        let end = Oracle::new(behind).wanted(wall_ms);
        let expected = seen.record.map(|_| seen.revision);
        Next::Swap(Swap { expected, record: Record { holder: self.me, epoch, end }, behind })
    }

    /// The record was read. True when it is another than before.
    fn saw(&mut self, now: Duration, found: Option<(Record, u64)>) -> bool {
        let revision = found.map_or(0, |f| f.1);
        if self.seen.is_some_and(|s| s.revision == revision) {
            return false;
        }
        self.seen = Some(Seen { record: found.map(|f| f.0), revision, since: now });
        true
    }

    /// A swap that was begun at `began` has made `revision`.
    fn swapped(&mut self, began: Duration, now: Duration, swap: &Swap, revision: u64) {
        if swap.record.epoch != self.epoch {
            self.oracle = Oracle::new(swap.behind);
            self.epoch = swap.record.epoch;
        }
        self.oracle.extend(swap.record.end);
        self.until = if bug::on(Bug::LeaseFromAnswer) { now } else { began } + LEASE;
        self.seen = Some(Seen { record: Some(swap.record), revision, since: now });
    }

    /// What became of a swap is not known, or somebody else was faster: only reading tells.
    fn lost(&mut self) {
        self.seen = None;
    }
}

/// Everything outside. Each answer takes a bounded time.
pub(crate) trait Outside: Send + Sync + 'static {
    /// A clock that never jumps.
    fn now(&self) -> Duration;
    /// Milliseconds since 1970, more or less.
    fn wall_ms(&self) -> u64;
    /// The record and its revision.
    fn read(&self) -> impl Future<Output = Outcome<Option<(Record, u64)>>> + Send;
    /// Changes it; its new revision. After an error it may or may not have been changed.
    fn swap(&self, swap: &Swap) -> impl Future<Output = Outcome<u64>> + Send;
    /// Asks a node that gives them itself for timestamps: the first.
    fn ask(&self, holder: u64, n: u32) -> impl Future<Output = Outcome<Ts>> + Send;
    /// Lets time pass.
    fn sleep(&self, d: Duration) -> impl Future<Output = ()> + Send;
}

type Wanted = (u32, oneshot::Sender<Outcome<Ts>>);

/// Timestamps of one node among several.
pub(crate) struct Clock<O> {
    keeper: Mutex<Keeper>,
    outside: O,
    /// Held by whoever reads or changes the record, or asks another node, for all that wait.
    alone: tokio::sync::Mutex<()>,
    wanted: Mutex<Vec<Wanted>>,
    /// The lease should be renewed.
    due: Notify,
    /// Behind this nothing was given, as far as is known here.
    newest: AtomicU64,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<O: Outside> Clock<O> {
    /// Of node `me`.
    pub(crate) fn new(me: u64, outside: O) -> Clock<O> {
        Clock {
            keeper: Mutex::new(Keeper::new(me)),
            outside,
            alone: tokio::sync::Mutex::default(),
            wanted: Mutex::default(),
            due: Notify::new(),
            newest: AtomicU64::new(0),
        }
    }

    fn given(&self, first: Ts, n: u32) -> Ts {
        // With what was derived from the last one.
        self.newest.fetch_max(first + 2 * u64::from(n.max(1)) - 1, Ordering::Relaxed);
        first
    }

    /// Gives at once if this node is the oracle.
    fn at_once(&self, n: u32) -> Option<Ts> {
        let mut keeper = lock(&self.keeper);
        // The clock is read under the lock: what is given comes in the order of looking at it.
        let now = self.outside.now();
        if !keeper.holds(now) {
            return None;
        }
        let first = keeper.oracle.take(self.outside.wall_ms(), n)?.start;
        if keeper.is_due(now) {
            self.due.notify_one();
        }
        Some(self.given(first, n))
    }

    /// `n` fresh timestamps, two apart: the first.
    pub(crate) async fn timestamps(&self, n: u32) -> Outcome<Ts> {
        loop {
            if let Some(first) = self.at_once(n) {
                return Ok(first);
            }
            let (give, mut get) = oneshot::channel();
            lock(&self.wanted).push((n, give));
            let _alone = self.alone.lock().await;
            // Whoever fetched while this waited began after it was wanted.
            if get.is_empty() {
                self.fetch().await;
            }
            match get.try_recv() {
                Ok(answer) => return answer,
                // Too many were before it, or whoever fetched was cut off.
                Err(_) => continue,
            }
        }
    }

    /// The same for another node, which takes this one for the oracle: refused if it is not.
    pub(crate) async fn for_other(&self, n: u32) -> Outcome<Ts> {
        if let Some(first) = self.at_once(n) {
            return Ok(first);
        }
        let _alone = self.alone.lock().await;
        self.obtain(n, false).await
    }

    async fn fetch(&self) {
        let mut taken: Vec<Wanted> = Vec::new();
        let mut sum = 0;
        {
            let mut all = lock(&self.wanted);
            let mut fits = |(n, _): &Wanted| {
                sum += (*n).max(1);
                sum <= MANY.max(*n)
            };
            let many = all.iter().take_while(|w| fits(w)).count();
            taken.extend(all.drain(..many));
        }
        let n = taken.iter().map(|(n, _)| (*n).max(1)).sum();
        if n == 0 {
            return;
        }
        let mut first = self.obtain(n, true).await;
        for (n, give) in taken {
            let _ = give.send(first.clone()); // whoever wanted it may be gone
            if let Ok(f) = &mut first {
                *f += 2 * u64::from(n.max(1));
            }
        }
    }

    /// With `alone` held.
    async fn obtain(&self, n: u32, elsewhere: bool) -> Outcome<Ts> {
        let o = &self.outside;
        let (mut deaf, mut why) = (None, None);
        for _ in 0..ATTEMPTS {
            let next = lock(&self.keeper).next(o.now(), o.wall_ms(), n, deaf);
            match next {
                Next::Given(first) => return Ok(self.given(first, n)),
                Next::Ask(_) | Next::Wait(_) if !elsewhere => return Err(Refusal::NotLeader(0)),
                Next::Ask(holder) => match o.ask(holder, n).await {
                    Ok(first) => return Ok(self.given(first, n)),
                    Err(e) => {
                        (deaf, why) = (Some(holder), Some(e));
                        self.look(&mut deaf).await?;
                    }
                },
                Next::Read => self.look(&mut deaf).await?,
                Next::Swap(swap) => self.change(&swap).await,
                Next::Wait(d) => {
                    o.sleep(d).await;
                    self.look(&mut deaf).await?;
                }
            }
        }
        let why = why.map_or_else(|| "others change the record all the time".into(), |e| e.to_string());
        Err(Refusal::Unreachable(format!("nobody gives timestamps: {why}")))
    }

    async fn look(&self, deaf: &mut Option<u64>) -> Outcome<()> {
        let found = self.outside.read().await?;
        if lock(&self.keeper).saw(self.outside.now(), found) {
            // Whoever wrote it lives.
            *deaf = None;
        }
        Ok(())
    }

    async fn change(&self, swap: &Swap) {
        let began = self.outside.now();
        let done = self.outside.swap(swap).await;
        let mut keeper = lock(&self.keeper);
        match done {
            Ok(revision) => {
                if swap.record.epoch != keeper.epoch {
                    tracing::info!(epoch = swap.record.epoch, "this node gives timestamps");
                    // What others gave lies before that. (In a renewal what lies there is still to be given.)
                    self.newest.fetch_max(swap.behind.saturating_sub(1), Ordering::Relaxed);
                }
                keeper.swapped(began, self.outside.now(), swap, revision);
            }
            Err(e) => {
                tracing::debug!(error = %e, "the record of the oracle was not changed, perhaps");
                keeper.lost();
            }
        }
    }

    /// Renews the lease once when it is next needed. To be called again and again.
    pub(crate) async fn renew(&self) {
        self.due.notified().await;
        let _alone = self.alone.lock().await;
        let swap = {
            let keeper = lock(&self.keeper);
            keeper.renewal(self.outside.wall_ms()).filter(|_| keeper.is_due(self.outside.now()))
        };
        if let Some(swap) = swap {
            self.change(&swap).await;
        }
    }

    /// Whether `ts` was given; otherwise the newest one that can have been.
    pub(crate) async fn admit(&self, ts: Ts) -> Outcome<std::result::Result<(), Ts>> {
        if ts <= self.newest.load(Ordering::Relaxed) {
            return Ok(Ok(()));
        }
        let fresh = self.timestamps(1).await?;
        Ok(if ts < fresh { Ok(()) } else { Err(fresh) })
    }
}

#[cfg(test)]
mod tests;
