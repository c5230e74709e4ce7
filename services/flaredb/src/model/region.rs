//! Whether a command belongs to a region at all, and the commands that change its range.

use super::{Answer, Changes, Command, Descriptor, Op, RegionState, command::*, layout::*, raw, txn};
use crate::{
    Refusal,
    bug::{self, Bug},
    key::Span,
    refusal::Outcome,
    time::{self, Ts},
};
use bytes::Bytes;
use photon_kv::engine::{Overlay, View};
use prost::Message;

/// What whoever runs the region has to do after a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// A region was split off: run it too.
    Begin(Descriptor),
    /// A region was taken in: it runs no more.
    End(u64),
}

/// Refuses what does not belong to a region in this state. Readers ask the same of the state they read.
pub fn belongs(state: &RegionState, epoch: u64) -> Outcome<()> {
    if state.gone {
        return Err(Refusal::NoRegion(state.region.id));
    }
    if epoch != state.region.version && !bug::on(Bug::EpochUnchecked) {
        return Err(Refusal::StaleEpoch(Box::new(state.region.clone())));
    }
    Ok(())
}

/// Refuses a read at `at` from a region in this state.
pub fn readable(state: &RegionState, epoch: u64, span: &Span, at: Option<Ts>) -> Outcome<()> {
    belongs(state, epoch)?;
    if !state.region.span().covers(span) {
        return Err(Refusal::OutOfRange(state.region.id));
    }
    match at {
        Some(ts) if !time::is_given(ts) => Err(Refusal::NotATimestamp(ts)),
        Some(ts) if ts < state.safe_point => {
            Err(Refusal::BeforeSafePoint { ts, safe_point: state.safe_point })
        }
        _ => Ok(()),
    }
}

/// The keys that the region must have. Those of the transaction that lie elsewhere are not among them.
pub(crate) fn keys(op: &Op) -> Vec<&Bytes> {
    match op {
        Op::Raw(r) => r.checks.iter().map(|c| &c.key).chain(r.writes.iter().map(|w| &w.key)).collect(),
        Op::Prewrite(p) => p.mutations.iter().map(|m| &m.key).collect(),
        Op::Commit(c) => c.keys.iter().collect(),
        Op::Rollback(r) => r.keys.iter().collect(),
        Op::Lock(l) => l.keys.iter().collect(),
        Op::Unlock(u) => u.keys.iter().collect(),
        Op::Status(s) => vec![&s.primary],
        Op::Secondaries(s) => s.keys.iter().collect(),
        Op::Resolve(r) => r.keys.iter().collect(),
        Op::Heartbeat(h) => vec![&h.primary],
        Op::Gc(_) | Op::Split(_) | Op::PrepareMerge(_) | Op::CommitMerge(_) => Vec::new(),
    }
}

/// Applies one command that was committed in `term`. Nothing is written when it is refused; whether it was or
/// not, the caller then notes in `state` how far the log went.
pub fn apply(
    over: &mut Overlay,
    state: &mut RegionState,
    term: u64,
    command: &Command,
    effects: &mut Vec<Effect>,
) -> Outcome<Answer> {
    // Bounds hold whoever proposed it.
    command.check()?;
    belongs(state, command.epoch)?;
    let Some(op) = &command.op else { return Err(Refusal::Malformed("no operation".into())) };
    if command.derives().is_some() && command.term != term && !bug::on(Bug::TermUnchecked) {
        // The floor was right for a leader that no longer is one.
        return Err(Refusal::NotLeader(state.region.id));
    }
    let id = state.region.id;
    let span = state.region.span();
    if keys(op).iter().any(|k| !span.contains(k)) && !bug::on(Bug::EpochUnchecked) {
        return Err(Refusal::OutOfRange(id));
    }
    if state.merging != 0 && !matches!(op, Op::PrepareMerge(_)) {
        return Err(Refusal::Merging(id));
    }
    let mut out = Changes { safe_point: state.safe_point, collected: state.collected, ..Changes::default() };
    let answer = match op {
        Op::Raw(r) => {
            let version = state.revision + 1;
            let answer = raw::commit(over, r, version, &mut out)?;
            state.revision = version;
            answer
        }
        Op::Prewrite(p) => {
            out.begins(p.start)?;
            if p.reads.iter().any(|r| !span.covers(&span_read(r))) {
                return Err(Refusal::OutOfRange(id));
            }
            txn::prewrite(over, p, command.floor, &mut out)?
        }
        Op::Commit(c) => txn::commit(over, c, &mut out)?,
        Op::Rollback(r) => txn::rollback(over, r, &mut out)?,
        Op::Lock(l) => {
            out.begins(l.start)?;
            txn::lock(over, l, &mut out)?
        }
        Op::Unlock(u) => txn::unlock(over, u, &mut out)?,
        Op::Status(s) => txn::status(over, s, &mut out)?,
        Op::Secondaries(s) => txn::secondaries(over, s, &mut out)?,
        Op::Resolve(r) => txn::resolve(over, r, &mut out)?,
        Op::Heartbeat(h) => txn::heartbeat(over, h, &mut out)?,
        Op::Gc(g) => {
            let answer = txn::gc(over, &span, g, &mut out)?;
            (state.safe_point, state.collected) = (out.safe_point, out.collected);
            answer
        }
        Op::Split(s) => split(over, state, s, &mut out, effects)?,
        Op::PrepareMerge(p) => {
            if p.begin {
                if p.target == 0 || p.target == id || (state.merging != 0 && state.merging != p.target) {
                    return Err(Refusal::Merging(id));
                }
                state.merging = p.target;
            } else {
                state.merging = 0;
                state.region.version += 1;
            }
            Answer::Regions(vec![state.region.clone()])
        }
        Op::CommitMerge(c) => merge(over, state, c, &mut out, effects)?,
    };
    out.apply(over);
    Ok(answer)
}

/// What was read.
pub(crate) fn span_read(r: &ReadSpan) -> Span {
    let end = if r.end.is_empty() { crate::key::after(&r.start) } else { r.end.clone() };
    Span { start: r.start.clone(), end }
}

/// The new region takes the right half: its end is this one's. Both exist from this entry on, and nothing
/// is copied.
fn split(
    over: &Overlay,
    state: &mut RegionState,
    s: &Split,
    out: &mut Changes,
    effects: &mut Vec<Effect>,
) -> Outcome<Answer> {
    if !state.region.span().contains(&s.at) || s.at == state.region.start {
        return Err(Refusal::OutOfRange(state.region.id));
    }
    let version = state.region.version + 1;
    let mut right = state.clone();
    right.region = Descriptor { id: s.id, start: s.at.clone(), version, ..state.region.clone() };
    (right.index, right.term) = (0, 0);
    state.region.end = s.at.clone();
    state.region.version = version;
    // A replica that lags behind may have got the new region from its other members already, by a snapshot. No
    // number is given twice, so it is the same one, only further on.
    if RegionState::load(over, s.id)?.is_none() {
        out.put(META, meta_key(s.id), right.encode_to_vec());
        effects.push(Effect::Begin(right.region.clone()));
    }
    Ok(Answer::Regions(vec![state.region.clone(), right.region]))
}

/// Takes the right neighbour in. It must have stopped, here, at the entry that is named: whoever proposes
/// this has seen on every member that it has, durably. To give a merge up, the target is fenced first (a
/// [`PrepareMerge`] that begins nothing raises its version), so that no such entry can follow, then the source.
fn merge(
    over: &Overlay,
    state: &mut RegionState,
    c: &CommitMerge,
    out: &mut Changes,
    effects: &mut Vec<Effect>,
) -> Outcome<Answer> {
    let source = c.source.as_ref().ok_or_else(|| Refusal::Malformed("no source".into()))?;
    let id = state.region.id;
    if state.region.end.is_empty() || state.region.end != source.start {
        return Err(Refusal::Malformed(format!("region {} is not the right neighbour of {id}", source.id)));
    }
    if state.region.members != source.members {
        return Err(Refusal::Malformed(format!(
            "regions {id} and {} have replicas on different nodes",
            source.id
        )));
    }
    // From here on all members must agree, so what differs here is no refusal.
    let found = RegionState::load(over, source.id)?.filter(|s| s.region == *source && s.merging == id);
    let Some(mut gone) = found.filter(|s| !s.gone && s.index >= c.index) else {
        return Err(Refusal::Broken(format!(
            "region {} has not stopped here, but is merged into {id}",
            source.id
        )));
    };
    gone.gone = true;
    out.put(META, meta_key(source.id), gone.encode_to_vec());
    state.region.end = source.end.clone();
    // Above both: no client knows this version.
    state.region.version = state.region.version.max(source.version) + 1;
    state.revision = state.revision.max(gone.revision);
    state.safe_point = state.safe_point.max(gone.safe_point);
    state.collected = state.collected.max(gone.collected);
    effects.push(Effect::End(source.id));
    Ok(Answer::Regions(vec![state.region.clone(), source.clone()]))
}

/// Looks at one key or span the way a read has to: state first, all from one view.
pub fn state_of(view: &dyn View, id: u64) -> Outcome<RegionState> {
    RegionState::load(view, id)?.ok_or(Refusal::NoRegion(id))
}
