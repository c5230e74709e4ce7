//! A transaction from its first read to its commit.

use super::{
    Request, Response, World, resolve,
    route::{self, Place},
};
use crate::{
    Refusal,
    bug::{self, Bug},
    key::{self, Span},
    model::{
        Answer, Kind, Op,
        command::*,
        limits::{MAX_ASYNC_KEYS, MAX_ROWS, MAX_TTL_MS},
        read::{Project, Query, ReadRange, Row, Snapshot},
    },
    refusal::Outcome,
    time::{self, Ts},
};
use bytes::Bytes;
use photon_kv::Direction;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// Most bytes that a transaction may write.
pub const MAX_TXN_BYTES: usize = 256 << 20;

/// Most ranges that a serializable transaction may read; beyond it reads ever larger ones.
const MAX_READS: usize = 1024;

/// Most keys and bytes that a transaction in one phase, one entry of the log, may write.
const ONE_PHASE_KEYS: usize = 256;
const ONE_PHASE_BYTES: usize = 2 << 20;

/// How often locks in the way, or commits that came too early, are tried again before a transaction gives up.
const PATIENCE: u32 = 40;

/// What a transaction is promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    /// It reads one snapshot, and no key that it writes was written by another since. Two transactions that
    /// each read what the other writes may both commit (write skew).
    Snapshot,
    /// As if all transactions ran one after the other, in an order that agrees with real time.
    Serializable,
}

/// How to run a transaction.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// What it is promised.
    pub isolation: Isolation,
    /// Reserve keys as they are read for update, instead of looking for conflicts in the end.
    pub pessimistic: bool,
    /// Count as committed once all keys are locked: one round less.
    pub async_commit: bool,
    /// Commit at once when one region has all keys.
    pub one_phase: bool,
    /// How long it may be silent before others end it. Milliseconds.
    pub ttl_ms: u64,
}

impl Default for Options {
    fn default() -> Self {
        let isolation = Isolation::Snapshot;
        Options { isolation, pessimistic: false, async_commit: true, one_phase: true, ttl_ms: 3_000 }
    }
}

/// Why a transaction did not commit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Abort {
    /// It surely did not, and never will: all of it may be tried again if the reason is a passing one.
    #[error("the transaction was rolled back: {0}")]
    RolledBack(Refusal),
    /// It may have been committed: nobody who knows could be reached.
    #[error("whether the transaction was committed is not known: {0}")]
    Unknown(Refusal),
}

/// A transaction. One that is dropped leaves its locks to whoever meets them, after its time to live.
pub struct Txn<W: World> {
    world: W,
    options: Options,
    start: Ts,
    /// What it will write; `None` is a deletion.
    buffer: BTreeMap<Bytes, Option<Bytes>>,
    bytes: usize,
    /// Reserved keys.
    locked: BTreeSet<Bytes>,
    for_update: Ts,
    primary: Option<Bytes>,
    reads: Vec<ReadRange>,
    pass: Vec<Ts>,
    beating: Option<Arc<AtomicBool>>,
}

impl<W: World> Drop for Txn<W> {
    fn drop(&mut self) {
        self.rest();
    }
}

impl<W: World> Txn<W> {
    /// Begins one, now.
    pub async fn begin(world: W, options: Options) -> Outcome<Self> {
        let start = world.timestamp().await?;
        Ok(Txn {
            world,
            options,
            start,
            buffer: BTreeMap::new(),
            bytes: 0,
            locked: BTreeSet::new(),
            for_update: 0,
            primary: None,
            reads: Vec::new(),
            pass: vec![start],
            beating: None,
        })
    }

    /// Its timestamp: what it sees.
    pub fn start(&self) -> Ts {
        self.start
    }

    /// Reads a key as it was at the start, with this transaction's own writes.
    pub async fn get(&mut self, key: &Bytes) -> Outcome<Option<Bytes>> {
        key::check(key::Mode::Txn, key)?;
        if let Some(own) = self.buffer.get(key) {
            return Ok(own.clone());
        }
        self.note(ReadRange::key(key));
        let at = self.start;
        match self.read(at, key, |s| Request::Get(key.clone(), s)).await? {
            Response::Value(v) => Ok(v.map(|(v, _)| v)),
            _ => Err(Refusal::Malformed("an answer to another question".into())),
        }
    }

    /// Reads up to `limit` (at most [`MAX_ROWS`]) rows of a span, with own writes: fewer mean that there are no more.
    pub async fn scan(&mut self, span: &Span, direction: Direction, limit: usize) -> Outcome<Vec<Row>> {
        if span.is_empty() {
            return Err(Refusal::InvertedRange);
        }
        let own: Vec<(Bytes, Option<Bytes>)> = self
            .buffer
            .iter()
            .filter(|(k, _)| span.contains(k))
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect();
        if limit == 0 || limit > MAX_ROWS {
            return Err(Refusal::TooMany { what: "rows", n: limit, limit: MAX_ROWS });
        }
        // Own deletions may take rows away again.
        let wanted = limit + own.iter().filter(|(_, v)| v.is_none()).count();
        self.note(ReadRange(span.clone()));
        let rows = self.rows(span, direction, wanted).await?;
        let complete = rows.len() < wanted;
        let last = rows.last().map(|r| r.key.clone());
        let mut merged: BTreeMap<Bytes, Row> = rows.into_iter().map(|r| (r.key.clone(), r)).collect();
        for (key, value) in own {
            let beyond = match (&last, direction) {
                (Some(l), Direction::Forward) => key > *l,
                (Some(l), Direction::Backward) => key < *l,
                (None, _) => false,
            };
            match value {
                Some(_) if beyond && !complete => {}
                Some(value) => drop(merged.insert(key.clone(), Row { key, value, version: self.start })),
                None => drop(merged.remove(&key)),
            }
        }
        let rows = merged.into_values();
        Ok(match direction {
            Direction::Forward => rows.take(limit).collect(),
            Direction::Backward => rows.rev().take(limit).collect(),
        })
    }

    /// Rows of a span over all its regions, in the direction asked for.
    async fn rows(&mut self, span: &Span, direction: Direction, wanted: usize) -> Outcome<Vec<Row>> {
        let mut left = span.clone();
        let mut rows: Vec<Row> = Vec::new();
        while rows.len() < wanted && !left.is_empty() {
            let limit = (wanted - rows.len()).min(MAX_ROWS);
            let ask = |s: Snapshot, clip: &Span| {
                let (span, filter, project) = (left.within(clip), Vec::new(), Project::All);
                Request::Scan(Query { span, direction, limit, filter, project }, s)
            };
            let place = match direction {
                Direction::Forward => Place::Of(&left.start),
                Direction::Backward => Place::Below(&left.end),
            };
            let (answer, clip) = self.read_span(self.start, place, ask).await?;
            let Response::Page(page) = answer else {
                return Err(Refusal::Malformed("an answer to another question".into()));
            };
            rows.extend(page.rows);
            match (direction, page.rest) {
                (Direction::Forward, Some(rest)) => left.start = rest.start,
                (Direction::Backward, Some(rest)) => left.end = rest.end,
                // That was the last of this region.
                (Direction::Forward, None) if clip.end.is_empty() => break,
                (Direction::Forward, None) => left.start = clip.end,
                (Direction::Backward, None) if clip.start <= left.start => break,
                (Direction::Backward, None) => left.end = clip.start,
            }
        }
        Ok(rows)
    }

    async fn read(&mut self, at: Ts, key: &Bytes, f: impl Fn(Snapshot) -> Request) -> Outcome<Response> {
        self.read_span(at, Place::Of(key), |s, _| f(s)).await.map(|(r, _)| r)
    }

    /// Reads at `at` from the region of a place, however many locks are in the way. The span is the region's.
    async fn read_span(
        &mut self,
        at: Ts,
        place: Place<'_>,
        f: impl Fn(Snapshot, &Span) -> Request,
    ) -> Outcome<(Response, Span)> {
        // Who commits behind the start need not commit behind a later timestamp.
        let mut pass = if at == self.start { self.pass.clone() } else { vec![self.start] };
        for attempt in 0..PATIENCE {
            let snapshot = Snapshot { at, pass: pass.clone() };
            let clip = std::sync::Mutex::new(Span::all());
            let answer = route::ask(&self.world, place, |region| {
                *clip.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = region.span();
                f(snapshot.clone(), &region.span())
            });
            match answer.await {
                Err(Refusal::Locked(locks)) => {
                    let way = resolve::clear(&self.world, locks, at).await?;
                    let wait = way.wait.is_some();
                    pass.extend(way.pass);
                    if at == self.start {
                        self.pass.clone_from(&pass);
                    }
                    if wait {
                        route::back_off(&self.world, attempt).await;
                    }
                }
                answer => {
                    let clip = clip.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
                    return answer.map(|r| (r, clip));
                }
            }
        }
        Err(Refusal::Overloaded)
    }

    fn note(&mut self, range: ReadRange) {
        if self.options.isolation != Isolation::Serializable || self.reads.contains(&range) {
            return;
        }
        if self.reads.len() >= MAX_READS {
            // One range around all of them: more conflicts, no fewer promises.
            let around = self.reads.drain(..).fold(range.0, |a, b| Span {
                start: a.start.min(b.0.start),
                end: if a.end.is_empty() || b.0.end.is_empty() { Bytes::new() } else { a.end.max(b.0.end) },
            });
            self.reads.push(ReadRange(around));
            return;
        }
        self.reads.push(range);
    }

    fn set(&mut self, key: Bytes, value: Option<Bytes>) -> Outcome<()> {
        key::check(key::Mode::Txn, &key)?;
        let len = value.as_ref().map_or(0, Bytes::len);
        if len > key::MAX_VALUE {
            return Err(Refusal::ValueTooLarge { len, limit: key::MAX_VALUE });
        }
        self.bytes += key.len() + len;
        if self.bytes > MAX_TXN_BYTES {
            return Err(Refusal::TooMany {
                what: "bytes of a transaction",
                n: self.bytes,
                limit: MAX_TXN_BYTES,
            });
        }
        self.buffer.insert(key, value);
        Ok(())
    }

    /// Sets a key when the transaction commits.
    pub fn put(&mut self, key: Bytes, value: impl Into<Bytes>) -> Outcome<()> {
        self.set(key, Some(value.into()))
    }

    /// Removes a key when the transaction commits.
    pub fn delete(&mut self, key: Bytes) -> Outcome<()> {
        self.set(key, None)
    }

    /// Reserves a key and reads it as it is now: nobody else changes it until this transaction ends. Only
    /// for pessimistic transactions. Deadlocks are found; then the transaction must be given up.
    pub async fn get_for_update(&mut self, key: &Bytes) -> Outcome<Option<Bytes>> {
        key::check(key::Mode::Txn, key)?;
        if !self.options.pessimistic {
            return Err(Refusal::Malformed("the transaction is not pessimistic".into()));
        }
        if let Some(own) = self.buffer.get(key) {
            return Ok(own.clone());
        }
        let value = self.reserve(key).await;
        self.world.waited(self.start);
        value
    }

    async fn reserve(&mut self, key: &Bytes) -> Outcome<Option<Bytes>> {
        let primary = self.primary.get_or_insert_with(|| key.clone()).clone();
        for attempt in 0..PATIENCE {
            let for_update = self.world.timestamp().await?;
            let lock = PessimisticLock {
                start: self.start,
                primary: primary.clone(),
                ttl_ms: self.ttl(for_update),
                for_update,
                keys: vec![key.clone()],
            };
            // Whatever the answer, it may be locked from now on.
            self.locked.insert(key.clone());
            match route::act(&self.world, key, Op::Lock(lock)).await {
                Ok(Answer::Locked(mut values)) => {
                    self.for_update = self.for_update.max(for_update);
                    self.beat();
                    return Ok(values.pop().flatten());
                }
                Ok(_) => return Err(Refusal::Malformed("an answer to another question".into())),
                Err(Refusal::Locked(locks)) => {
                    let way = resolve::clear(&self.world, locks, 0).await?;
                    if let Some(holder) = way.wait {
                        self.world.waits(self.start, holder).await?;
                        route::back_off(&self.world, attempt).await;
                    }
                }
                Err(Refusal::Conflict { .. }) => {} // with a newer timestamp
                Err(e) => return Err(e),
            }
        }
        Err(Refusal::Overloaded)
    }

    /// A time to live that counts from `now`.
    fn ttl(&self, now: Ts) -> u64 {
        let age = time::ms(now).saturating_sub(time::ms(self.start));
        (age + self.options.ttl_ms).min(MAX_TTL_MS)
    }

    /// From now on says regularly that this transaction lives.
    fn beat(&mut self) {
        let (Some(primary), None) = (self.primary.clone(), &self.beating) else { return };
        let beating = Arc::new(AtomicBool::new(true));
        self.beating = Some(beating.clone());
        let (world, start, ttl) = (self.world.clone(), self.start, self.options.ttl_ms);
        self.world.background(Box::pin(async move {
            loop {
                world.sleep((ttl / 3).max(1)).await;
                if !beating.load(Ordering::Acquire) {
                    return;
                }
                let Ok(now) = world.timestamp().await else { continue };
                let age = time::ms(now).saturating_sub(time::ms(start));
                let beat = Heartbeat { primary: primary.clone(), start, ttl_ms: (age + ttl).min(MAX_TTL_MS) };
                // Anything else: it is not locked yet, or nobody answered.
                let ended = route::act(&world, &primary, Op::Heartbeat(beat)).await;
                if let Err(Refusal::RolledBack(_) | Refusal::Committed(_)) = ended {
                    return;
                }
            }
        }));
    }

    /// Beats no more.
    fn rest(&self) {
        if let Some(b) = &self.beating {
            b.store(false, Ordering::Release);
        }
    }

    /// Gives it up.
    pub async fn rollback(mut self) -> Result<(), Abort> {
        let keys = self.keys();
        match self.give_up(keys, Refusal::RolledBack(self.start)).await {
            Err(Abort::RolledBack(_)) => Ok(()),
            Err(e) => Err(e),
            Ok(at) => Err(Abort::Unknown(Refusal::Committed(at))),
        }
    }

    fn keys(&self) -> Vec<Bytes> {
        let all: BTreeSet<&Bytes> = self.buffer.keys().chain(&self.locked).collect();
        all.into_iter().cloned().collect()
    }

    fn mutations(&self) -> Vec<(Bytes, Mutation)> {
        let one = |key: Bytes| {
            let (kind, value) = match self.buffer.get(&key) {
                Some(Some(v)) => (Kind::Put, v.clone()),
                Some(None) => (Kind::Delete, Bytes::new()),
                None => (Kind::Lock, Bytes::new()),
            };
            let locked = self.locked.contains(&key);
            (key.clone(), Mutation { kind: kind as i32, key, value, locked, absent: false })
        };
        self.keys().into_iter().map(one).collect()
    }

    /// Commits. The commit timestamp; that of a transaction that wrote nothing is its start.
    pub async fn commit(mut self) -> Result<Ts, Abort> {
        let mutations = self.mutations();
        let Some((first, _)) = mutations.first() else { return Ok(self.start) };
        if mutations.len() > 1 {
            self.beat();
        }
        let primary = self.primary.get_or_insert_with(|| first.clone()).clone();
        let keys: Vec<Bytes> = mutations.iter().map(|(k, _)| k.clone()).collect();
        let done = self.try_commit(&primary, mutations).await;
        self.world.waited(self.start);
        match done {
            Ok(at) => Ok(at),
            Err(e) => self.give_up(keys, e).await,
        }
    }

    /// An error means that it is not known to be committed; [`Txn::give_up`] finds out.
    async fn try_commit(&mut self, primary: &Bytes, mutations: Vec<(Bytes, Mutation)>) -> Outcome<Ts> {
        let serializable = self.options.isolation == Isolation::Serializable;
        if self.options.one_phase
            && let Some(at) = self.in_one_phase(primary, &mutations).await?
        {
            return Ok(at);
        }
        let secondaries: Vec<Bytes> =
            mutations.iter().map(|(k, _)| k).filter(|k| *k != primary).cloned().collect();
        let is_async = self.options.async_commit
            && !serializable
            && secondaries.len() <= MAX_ASYNC_KEYS
            && secondaries.iter().map(Bytes::len).sum::<usize>() < (64 << 10);
        let mut min_commit = match self.prewrite(primary, mutations, is_async, &secondaries).await? {
            Answer::Committed(at) => return Ok(at),
            Answer::Prewritten { min_commit } => min_commit,
            _ => return Err(Refusal::Malformed("an answer to another question".into())),
        };
        if is_async {
            self.finish(primary.clone(), secondaries, min_commit, true);
            return Ok(min_commit);
        }
        for _ in 0..4 {
            let commit = self.world.timestamp().await?;
            if commit < min_commit {
                continue; // readers are ahead of the oracle only while it is being replaced
            }
            if serializable && !bug::on(Bug::ReadsUnchecked) {
                self.recheck(commit).await?;
            }
            if bug::on(Bug::ToldTooEarly) {
                self.finish(primary.clone(), secondaries, commit, true);
                return Ok(commit);
            }
            let op = Commit { start: self.start, commit, keys: vec![primary.clone()] };
            match route::act(&self.world, primary, Op::Commit(op)).await {
                Ok(_) => {
                    self.finish(primary.clone(), secondaries, commit, false);
                    return Ok(commit);
                }
                Err(Refusal::CommitTooEarly(min)) => min_commit = min,
                Err(Refusal::Committed(at)) => return Ok(at),
                Err(e) => return Err(e),
            }
        }
        Err(Refusal::CommitTooEarly(min_commit))
    }

    /// `None` when one region does not have it all.
    async fn in_one_phase(
        &mut self,
        primary: &Bytes,
        mutations: &[(Bytes, Mutation)],
    ) -> Outcome<Option<Ts>> {
        let serializable = self.options.isolation == Isolation::Serializable;
        for attempt in 0..PATIENCE {
            let region = match self.world.locate(primary).await {
                Ok(r) => r,
                Err(e) if e.is_about_routing() => {
                    route::back_off(&self.world, attempt).await;
                    continue;
                }
                Err(e) => return Err(e),
            };
            let span = region.span();
            let reads_fit = !serializable || self.reads.iter().all(|r| span.covers(&r.0));
            if mutations.len() > ONE_PHASE_KEYS
                || self.bytes > ONE_PHASE_BYTES
                || !reads_fit
                || !mutations.iter().all(|(k, _)| span.contains(k))
            {
                return Ok(None);
            }
            let reads = self.reads.iter().filter(|_| serializable && !bug::on(Bug::ReadsUnchecked));
            let reads = reads.map(|r| ReadSpan { start: r.0.start.clone(), end: r.0.end.clone() });
            if self.reads.iter().any(|r| r.0.end.is_empty()) {
                return Ok(None);
            }
            let p = Prewrite {
                start: self.start,
                primary: primary.clone(),
                ttl_ms: self.options.ttl_ms,
                mutations: mutations.iter().map(|(_, m)| m.clone()).collect(),
                for_update: self.for_update,
                one_phase: true,
                reads: reads.collect(),
                ..Prewrite::default()
            };
            match self.world.ask(&region, Request::Do(Op::Prewrite(p))).await {
                Ok(Response::Done(Answer::Committed(at))) => return Ok(Some(at)),
                // An earlier attempt in two phases has locked some of it.
                Ok(_) => return Ok(None),
                Err(Refusal::Locked(locks)) => self.make_way(locks, attempt).await?,
                Err(e) if e.is_about_routing() => {
                    self.world.forget(&region);
                    route::back_off(&self.world, attempt).await;
                }
                Err(e) => return Err(e),
            }
        }
        Err(Refusal::Overloaded)
    }

    /// Others hold locks that this transaction needs.
    async fn make_way(&mut self, locks: Vec<crate::LockInfo>, attempt: u32) -> Outcome<()> {
        let way = resolve::clear(&self.world, locks, 0).await?;
        if let Some(holder) = way.wait {
            // Locks are held here, too, so waiting may close a circle.
            self.world.waits(self.start, holder).await?;
            route::back_off(&self.world, attempt).await;
        }
        Ok(())
    }

    async fn prewrite(
        &mut self,
        primary: &Bytes,
        mutations: Vec<(Bytes, Mutation)>,
        is_async: bool,
        secondaries: &[Bytes],
    ) -> Outcome<Answer> {
        let (start, for_update, ttl_ms) = (self.start, self.for_update, self.options.ttl_ms);
        for attempt in 0..PATIENCE {
            let now = self.world.timestamp().await?;
            let age = time::ms(now).saturating_sub(time::ms(start));
            let op = |items: Vec<(Bytes, Mutation)>| {
                let has_primary = items.iter().any(|(k, _)| k == primary);
                Op::Prewrite(Prewrite {
                    start,
                    primary: primary.clone(),
                    ttl_ms: (age + ttl_ms).min(MAX_TTL_MS),
                    mutations: items.into_iter().map(|(_, m)| m).collect(),
                    for_update,
                    is_async,
                    secondaries: if has_primary && is_async { secondaries.to_vec() } else { Vec::new() },
                    ..Prewrite::default()
                })
            };
            match route::spread(&self.world, mutations.clone(), op).await {
                Ok(answers) => {
                    let mut min = 0;
                    for a in answers {
                        match a {
                            Answer::Prewritten { min_commit } => min = min.max(min_commit),
                            a => return Ok(a),
                        }
                    }
                    return Ok(Answer::Prewritten { min_commit: min });
                }
                Err(Refusal::Locked(locks)) => self.make_way(locks, attempt).await?,
                Err(e) => return Err(e),
            }
        }
        Err(Refusal::Overloaded)
    }

    /// What was read at the start must still be so at `commit`, when all that is written is locked.
    async fn recheck(&mut self, commit: Ts) -> Outcome<()> {
        let start = self.start;
        for range in self.reads.clone() {
            if bug::on(Bug::PhantomsUnchecked) && key::check(key::Mode::Txn, &range.0.start).is_err() {
                continue;
            }
            let mut left = range.0;
            loop {
                let ask = |at: Snapshot, clip: &Span| Request::Unchanged {
                    range: ReadRange(left.within(clip)),
                    start,
                    at,
                };
                let (_, clip) = self.read_span(commit, Place::Of(&left.start), ask).await?;
                if clip.end.is_empty() || (!left.end.is_empty() && left.end <= clip.end) {
                    break;
                }
                left.start = clip.end;
            }
        }
        Ok(())
    }

    /// The transaction is committed: the rest of its locks follows, while nobody waits.
    fn finish(&self, primary: Bytes, secondaries: Vec<Bytes>, commit: Ts, with_primary: bool) {
        self.rest();
        let (world, start) = (self.world.clone(), self.start);
        let op = move |items: Vec<(Bytes, ())>| {
            Op::Commit(Commit { start, commit, keys: items.into_iter().map(|(k, ())| k).collect() })
        };
        self.world.background(Box::pin(async move {
            // Whoever meets a lock that stays settles it; the primary first, as others do.
            if with_primary && route::spread(&world, vec![(primary, ())], op).await.is_err() {
                return;
            }
            let keys = secondaries.into_iter().map(|k| (k, ())).collect();
            let _ = route::spread(&world, keys, op).await;
        }));
    }

    /// Rolls the primary back, or learns that it is committed. Nothing else is touched before.
    async fn give_up(&mut self, keys: Vec<Bytes>, why: Refusal) -> Result<Ts, Abort> {
        self.rest();
        self.world.waited(self.start);
        let start = self.start;
        let Some(primary) = self.primary.clone().or_else(|| keys.first().cloned()) else {
            return Err(Abort::RolledBack(why));
        };
        let rollback = move |keys| Op::Rollback(Rollback { start, keys });
        match route::act(&self.world, &primary, rollback(vec![primary.clone()])).await {
            Ok(_) => {}
            Err(Refusal::Committed(at)) => {
                let rest = keys.into_iter().filter(|k| *k != primary).collect();
                self.finish(primary, rest, at, false);
                return Ok(at);
            }
            Err(e) => return Err(Abort::Unknown(e)),
        }
        let world = self.world.clone();
        let rest: Vec<(Bytes, ())> = keys.into_iter().filter(|k| *k != primary).map(|k| (k, ())).collect();
        self.world.background(Box::pin(async move {
            let op = |items: Vec<(Bytes, ())>| rollback(items.into_iter().map(|(k, ())| k).collect());
            let _ = route::spread(&world, rest, op).await; // or whoever meets a lock
        }));
        Err(Abort::RolledBack(why))
    }
}
