//! Transactions on the keys of one region: Percolator (Peng and Dabek, OSDI 2010) with pessimistic locks,
//! asynchronous commit and one-phase commit as TiKV has them.
//!
//! Everything here reads a state and says what to write: [`Changes`], or a refusal and nothing. Every
//! step may come twice, late, or after the transaction ended: it finds its own traces. The traces are never
//! removed above the safe point, and nothing is taken that started below it.

use super::{
    Answer, Changes, Fate, Kind, Lock, Written, command::*, layout::*, limits::SHORT_VALUE, read::*,
};
use crate::{
    Refusal,
    bug::{self, Bug},
    key::{self, Span},
    refusal::Outcome,
    time::{self, Ts},
};
use bytes::Bytes;
use photon_kv::engine::View;
use prost::Message;

/// What became of a transaction on a key.
fn trace(view: &dyn View, key: &[u8], start: Ts) -> Outcome<Option<Written>> {
    for w in records(view, key, Ts::MAX, start) {
        let w = w?;
        if w.start == start {
            return Ok(Some(w));
        }
    }
    Ok(None)
}

fn write(out: &mut Changes, key: &[u8], w: &Written) {
    out.put(WRITE, versioned(key, w.at), w.encode());
}

fn put_lock(out: &mut Changes, key: &Bytes, lock: &Lock) {
    out.put(LOCK, key.clone(), lock.encode_to_vec());
}

/// Turns a lock into a commit.
fn commit_lock(out: &mut Changes, key: &Bytes, lock: Lock, at: Ts) {
    let w = Written { at, start: lock.start, fate: Fate::Done(lock.kind()), value: lock.value };
    write(out, key, &w);
    out.remove(LOCK, key.clone());
}

/// Removes a lock and what it would have written, and leaves a trace.
fn rollback_lock(out: &mut Changes, key: &Bytes, lock: &Lock) {
    out.remove(LOCK, key.clone());
    if lock.kind() == Kind::Put && lock.value.is_none() {
        out.remove(DATA, versioned(key, lock.start));
    }
    refuse_later(out, key, lock.start);
}

/// A trace that makes a late prewrite fail.
fn refuse_later(out: &mut Changes, key: &[u8], start: Ts) {
    if bug::on(Bug::NoTrace) {
        return;
    }
    write(out, key, &Written { at: start, start, fate: Fate::RolledBack, value: None });
}

/// What prewriting one key came to.
enum Pre {
    /// It has to be locked; `since` is where the transaction's knowledge of it ends.
    Lock,
    /// It is locked already, and commits at this or later.
    Held(Ts),
    /// It was committed already.
    Done(Ts),
}

fn prewrite_key(view: &dyn View, p: &Prewrite, m: &Mutation) -> Outcome<Pre> {
    let mut reserved = false;
    match Lock::load(view, &m.key)? {
        Some(l) if l.start == p.start && l.kind() == Kind::Pessimistic => reserved = true,
        Some(l) if l.start == p.start => return Ok(Pre::Held(l.min_commit)),
        Some(l) => return Err(Refusal::Locked(vec![info(&m.key, &l)])),
        None => {}
    }
    let mut newer = None;
    for w in records(view, &m.key, Ts::MAX, p.start) {
        let w = w?;
        match w.fate {
            Fate::RolledBack if w.start == p.start => return Err(Refusal::RolledBack(p.start)),
            Fate::Done(_) if w.start == p.start => return Ok(Pre::Done(w.at)),
            Fate::Done(_) => newer = newer.or(Some(w.at)),
            Fate::RolledBack => {}
        }
    }
    if m.locked && !reserved {
        return Err(Refusal::NotLocked(p.start));
    }
    // Who holds a reservation has seen what was there when it was made, and nobody wrote since.
    if let Some(commit) = newer.filter(|_| !reserved && !bug::on(Bug::ConflictUnchecked)) {
        return Err(Refusal::Conflict { key: m.key.clone(), commit, since: p.start });
    }
    if m.absent && visible(view, &m.key, Ts::MAX)?.is_some() {
        return Err(Refusal::AlreadyExists { key: m.key.clone() });
    }
    Ok(Pre::Lock)
}

/// First phase, or with `one_phase` the whole of it. `floor`: nobody read at a later timestamp.
pub fn prewrite(view: &dyn View, p: &Prewrite, floor: Ts, out: &mut Changes) -> Outcome<Answer> {
    let derives = p.is_async || p.one_phase;
    let mut min_commit = time::derived_after(p.start.max(p.for_update));
    if derives && !bug::on(Bug::FloorLost) {
        min_commit = min_commit.max(time::derived_after(floor));
    }
    let mut held = 0;
    let mut locks = Vec::new();
    let mut todo = Vec::new();
    for m in &p.mutations {
        match prewrite_key(view, p, m) {
            Ok(Pre::Lock) => todo.push(m),
            Ok(Pre::Held(min)) => held = held.max(min),
            Ok(Pre::Done(at)) => return Ok(Answer::Committed(at)),
            Err(Refusal::Locked(l)) => locks.extend(l),
            Err(e) => return Err(e),
        }
    }
    if !locks.is_empty() {
        return Err(Refusal::Locked(locks));
    }
    if p.one_phase && todo.len() == p.mutations.len() {
        for r in &p.reads {
            let span = read_range(r);
            unchanged(view, &span, p.start, &Snapshot::at(Ts::MAX))?;
        }
    }
    for m in todo {
        let long = m.kind() == Kind::Put && m.value.len() > SHORT_VALUE;
        if long {
            out.put(DATA, versioned(&m.key, p.start), m.value.clone());
        }
        let value = (m.kind() == Kind::Put && !long).then(|| m.value.clone());
        let is_primary = m.key == p.primary;
        let lock = Lock {
            kind: m.kind,
            primary: p.primary.clone(),
            start: p.start,
            ttl_ms: p.ttl_ms,
            for_update: p.for_update,
            min_commit,
            is_async: p.is_async && !p.one_phase,
            secondaries: if is_primary && p.is_async { p.secondaries.clone() } else { Vec::new() },
            value,
        };
        if p.one_phase && held == 0 {
            commit_lock(out, &m.key, lock, min_commit);
        } else {
            put_lock(out, &m.key, &lock);
        }
    }
    match p.one_phase && held == 0 {
        true => Ok(Answer::Committed(min_commit)),
        false => Ok(Answer::Prewritten { min_commit: min_commit.max(held) }),
    }
}

pub(crate) fn read_range(r: &ReadSpan) -> ReadRange {
    if r.end.is_empty() {
        ReadRange::key(&r.start)
    } else {
        ReadRange(Span { start: r.start.clone(), end: r.end.clone() })
    }
}

/// Second phase.
pub fn commit(view: &dyn View, c: &Commit, out: &mut Changes) -> Outcome<Answer> {
    for key in &c.keys {
        match Lock::load(view, key)?.filter(|l| l.start == c.start) {
            // A reservation was never filled: the transaction can't have meant this.
            Some(l) if l.kind() == Kind::Pessimistic => return Err(Refusal::NotLocked(c.start)),
            Some(l) if l.min_commit > c.commit && !bug::on(Bug::PushIgnored) => {
                return Err(Refusal::CommitTooEarly(l.min_commit));
            }
            Some(l) => commit_lock(out, key, l, c.commit),
            None => match trace(view, key, c.start)? {
                Some(Written { fate: Fate::RolledBack, .. }) => return Err(Refusal::RolledBack(c.start)),
                Some(w) if w.at != c.commit => return Err(Refusal::Committed(w.at)),
                Some(_) => {}
                None => {
                    out.missing(c.start)?;
                    return Err(Refusal::NotLocked(c.start));
                }
            },
        }
    }
    Ok(Answer::Done)
}

/// Gives keys up.
pub fn rollback(view: &dyn View, r: &Rollback, out: &mut Changes) -> Outcome<Answer> {
    for key in &r.keys {
        match Lock::load(view, key)?.filter(|l| l.start == r.start) {
            Some(l) => rollback_lock(out, key, &l),
            None => match trace(view, key, r.start)? {
                Some(Written { fate: Fate::Done(_), at, .. }) => return Err(Refusal::Committed(at)),
                Some(_) => {}
                None => {
                    out.missing(r.start)?;
                    refuse_later(out, key, r.start);
                }
            },
        }
    }
    Ok(Answer::Done)
}

/// Reserves keys and reads them at `for_update`.
pub fn lock(view: &dyn View, r: &PessimisticLock, out: &mut Changes) -> Outcome<Answer> {
    let mut locks = Vec::new();
    let mut values = Vec::new();
    for key in &r.keys {
        let old = Lock::load(view, key)?;
        if let Some(l) = old.as_ref().filter(|l| l.start != r.start) {
            locks.push(info(key, l));
            continue;
        }
        for w in records(view, key, Ts::MAX, r.start) {
            let w = w?;
            match w.fate {
                Fate::RolledBack if w.start == r.start => return Err(Refusal::RolledBack(r.start)),
                Fate::Done(_) if w.start == r.start => return Err(Refusal::Committed(w.at)),
                Fate::Done(_) if w.at > r.for_update && old.is_none() => {
                    let (key, commit, since) = (key.clone(), w.at, r.for_update);
                    return Err(Refusal::Conflict { key, commit, since });
                }
                _ => {}
            }
        }
        values.push(visible(view, key, Ts::MAX)?.map(|(v, _)| v));
        let for_update = old.as_ref().map_or(0, |l| l.for_update).max(r.for_update);
        if old.is_none_or(|l| l.kind() == Kind::Pessimistic) {
            let lock = Lock {
                kind: Kind::Pessimistic as i32,
                primary: r.primary.clone(),
                start: r.start,
                ttl_ms: r.ttl_ms,
                for_update,
                min_commit: time::derived_after(for_update),
                ..Lock::default()
            };
            put_lock(out, key, &lock);
        }
    }
    if locks.is_empty() { Ok(Answer::Locked(values)) } else { Err(Refusal::Locked(locks)) }
}

/// Takes reservations back.
pub fn unlock(view: &dyn View, r: &PessimisticRollback, out: &mut Changes) -> Outcome<Answer> {
    for key in &r.keys {
        let mine =
            |l: &Lock| l.start == r.start && l.kind() == Kind::Pessimistic && l.for_update <= r.for_update;
        if Lock::load(view, key)?.is_some_and(|l| mine(&l)) {
            out.remove(LOCK, key.clone());
        }
    }
    Ok(Answer::Done)
}

/// What is known of a transaction at its primary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// It may still commit, though not before `min_commit`.
    Alive {
        /// How long it may be silent from its start on.
        ttl_ms: u64,
        /// It commits at this or later.
        min_commit: Ts,
    },
    /// It is asynchronous and has been silent for too long: what its other keys say decides.
    Silent {
        /// Of the primary.
        min_commit: Ts,
        /// Its other keys.
        secondaries: Vec<Bytes>,
    },
    /// It was committed.
    Committed(Ts),
    /// It was rolled back, or never will be anything else.
    RolledBack,
    /// Nothing is known: its prewrite may be on its way.
    Missing,
}

/// Looks a transaction up, and ends it if its time is over.
pub fn status(view: &dyn View, s: &CheckStatus, out: &mut Changes) -> Outcome<Answer> {
    let lock = Lock::load(view, &s.primary)?.filter(|l| l.start == s.start);
    let Some(mut l) = lock else {
        return Ok(Answer::Status(match trace(view, &s.primary, s.start)? {
            Some(Written { fate: Fate::Done(_), at, .. }) => Status::Committed(at),
            Some(_) => Status::RolledBack,
            None => {
                out.missing(s.start)?;
                if s.rollback_missing {
                    refuse_later(out, &s.primary, s.start);
                    Status::RolledBack
                } else {
                    Status::Missing
                }
            }
        }));
    };
    let is_over = time::ms(s.start).saturating_add(l.ttl_ms) < time::ms(s.now);
    if l.is_async && !s.force_sync {
        return Ok(Answer::Status(if is_over {
            Status::Silent { min_commit: l.min_commit, secondaries: l.secondaries }
        } else {
            Status::Alive { ttl_ms: l.ttl_ms, min_commit: l.min_commit }
        }));
    }
    if is_over {
        rollback_lock(out, &s.primary, &l);
        return Ok(Answer::Status(Status::RolledBack));
    }
    if s.reader != 0 && !l.is_async && l.kind() != Kind::Pessimistic && l.min_commit <= s.reader {
        // Readers need not wait for writers: this one will commit behind the read.
        l.min_commit = time::derived_after(s.reader);
        put_lock(out, &s.primary, &l);
    }
    Ok(Answer::Status(Status::Alive { ttl_ms: l.ttl_ms, min_commit: l.min_commit }))
}

/// Whether all these keys of an asynchronous transaction are locked. One that is not never will be.
pub fn secondaries(view: &dyn View, s: &CheckSecondaries, out: &mut Changes) -> Outcome<Answer> {
    let mut min_commit = 0;
    for key in &s.keys {
        match Lock::load(view, key)?.filter(|l| l.start == s.start) {
            Some(l) if l.kind() == Kind::Pessimistic => {
                rollback_lock(out, key, &l);
                return Ok(Answer::Secondaries(Secondaries::Missing));
            }
            Some(l) if !l.is_async => return Ok(Answer::Secondaries(Secondaries::NotAsync)),
            Some(l) => min_commit = min_commit.max(l.min_commit),
            None => match trace(view, key, s.start)? {
                Some(Written { fate: Fate::Done(_), at, .. }) => {
                    return Ok(Answer::Secondaries(Secondaries::Committed(at)));
                }
                Some(_) => return Ok(Answer::Secondaries(Secondaries::Missing)),
                None => {
                    out.missing(s.start)?;
                    refuse_later(out, key, s.start);
                    return Ok(Answer::Secondaries(Secondaries::Missing));
                }
            },
        }
    }
    Ok(Answer::Secondaries(Secondaries::Locked { min_commit }))
}

/// What the secondary keys of an asynchronous transaction say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Secondaries {
    /// All are locked: the transaction counts as committed, at the greatest of these.
    Locked {
        /// The greatest here.
        min_commit: Ts,
    },
    /// It was committed.
    Committed(Ts),
    /// One is not, and never will be: it counts as rolled back.
    Missing,
    /// One was locked for two phases: the primary decides.
    NotAsync,
}

/// Makes locks follow the fate of their transaction.
pub fn resolve(view: &dyn View, r: &Resolve, out: &mut Changes) -> Outcome<Answer> {
    for key in &r.keys {
        match Lock::load(view, key)?.filter(|l| l.start == r.start) {
            // It was reserved, but not among what was written.
            Some(l) if r.commit != 0 && l.kind() == Kind::Pessimistic => out.remove(LOCK, key.clone()),
            Some(l) if r.commit != 0 => commit_lock(out, key, l, r.commit),
            Some(l) => rollback_lock(out, key, &l),
            None => {}
        }
    }
    Ok(Answer::Done)
}

/// Keeps a transaction alive.
pub fn heartbeat(view: &dyn View, h: &Heartbeat, out: &mut Changes) -> Outcome<Answer> {
    let Some(mut l) = Lock::load(view, &h.primary)?.filter(|l| l.start == h.start) else {
        return match trace(view, &h.primary, h.start)? {
            Some(Written { fate: Fate::Done(_), at, .. }) => Err(Refusal::Committed(at)),
            Some(_) => Err(Refusal::RolledBack(h.start)),
            None => Err(Refusal::NotLocked(h.start)),
        };
    };
    if h.ttl_ms > l.ttl_ms {
        l.ttl_ms = h.ttl_ms;
        put_lock(out, &h.primary, &l);
    }
    Ok(Answer::Done)
}

/// Removes versions that no read at or behind the safe point sees. With a limit of 0 it only raises the safe
/// point, which is refused while there are locks from before it: nothing can become part of that history any
/// more. Whoever collects raises it in all regions first: until then a lock elsewhere may need a trace here.
pub fn gc(view: &dyn View, span: &Span, g: &Gc, out: &mut Changes) -> Outcome<Answer> {
    if g.limit > 0 && out.safe_point < g.safe_point {
        return Err(Refusal::Malformed("the safe point is to be raised first".into()));
    }
    let old = locks(view, span, |l| l.start <= g.safe_point)?;
    if !old.is_empty() {
        return Err(Refusal::Locked(old));
    }
    if g.limit == 0 {
        out.safe_point = out.safe_point.max(g.safe_point);
        return Ok(Answer::Collected { next: None });
    }
    out.collected = out.collected.max(g.safe_point);
    let from = Span { start: g.from.clone(), end: Bytes::new() }.clean().within(span);
    let mut current: Option<Bytes> = None;
    let mut seen = false;
    for (n, item) in view.scan(WRITE, range(&from), photon_kv::Direction::Forward).enumerate() {
        let (k, v) = item?;
        let (key, at) = unversioned(&k)?;
        if current.as_ref() != Some(&key) {
            if n >= g.limit as usize {
                return Ok(Answer::Collected { next: Some(key) });
            }
            (current, seen) = (Some(key.clone()), false);
        }
        if at > g.safe_point {
            continue;
        }
        let w = Written::parse(at, &v)?;
        let keep = w.fate == Fate::Done(Kind::Put) && !seen && !bug::on(Bug::CollectsTooMuch);
        seen |= matches!(w.fate, Fate::Done(Kind::Put | Kind::Delete));
        if !keep {
            out.remove(WRITE, k);
            if w.fate == Fate::Done(Kind::Put) && w.value.is_none() {
                out.remove(DATA, versioned(&key, w.start));
            }
        }
    }
    Ok(Answer::Collected { next: None })
}

/// Refuses a key that is not one, for reads that come from outside.
pub fn check_key(key: &[u8]) -> Outcome<()> {
    key::check(key::Mode::Txn, key)
}
