//! A region's state machine on the engine that all regions of a node share, below a Raft group of its own.
//!
//! Invariants: a region's state and how far its log went change in one batch, so a crash of the engine, which
//! takes away only a suffix of all batches, leaves each region at some point of its log, and regions that
//! were split or merged agree with each other. A region that has stopped for a merge is durable before
//! anybody hears of it.

use crate::{
    Refusal,
    key::Span,
    model::{
        Answer, Command, Descriptor, Effect, Op, RegionState, SPACES,
        layout::{META, meta_key, range},
        region,
    },
    refusal::Outcome,
};
use bytes::{Bytes, BytesMut};
use photon_kv::{
    Direction,
    engine::{
        self, Engine, EngineError, Overlay, Space,
        dump::{CHUNK, Dump, Record, take_record},
    },
};
use photon_raft::{Machine, MachineError, Position, snapshot::Chunks};
use prost::Message;
use std::{
    collections::BTreeMap,
    ops::Bound,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::sync::mpsc;

/// Where regions begin, as of what was applied here. A copy for finding them; their own state decides.
#[derive(Debug, Default)]
pub(crate) struct Routes(RwLock<BTreeMap<Bytes, Descriptor>>);

impl Routes {
    pub(crate) fn of(&self, key: &[u8]) -> Option<Descriptor> {
        let all = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let (_, d) = all.range::<[u8], _>((Bound::Unbounded, Bound::Included(key))).next_back()?;
        d.span().contains(key).then(|| d.clone())
    }

    /// Of the last keys before `end`; of the last there are when it is empty.
    pub(crate) fn below(&self, end: &[u8]) -> Option<Descriptor> {
        let all = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let bound = if end.is_empty() { Bound::Unbounded } else { Bound::Excluded(end) };
        let (_, d) = all.range::<[u8], _>((Bound::Unbounded, bound)).next_back()?;
        (d.end.is_empty() || (!end.is_empty() && &d.end[..] >= end)).then(|| d.clone())
    }

    pub(crate) fn all(&self) -> Vec<Descriptor> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// `d` was so at its version. Of two regions that had a key, the one with the greater version has it now:
    /// a new owner is always above both it came from. So news may come late, after a restart even much later.
    pub(crate) fn set(&self, d: &Descriptor) {
        if self.of(&d.start).is_some_and(|o| o.version > d.version) {
            return;
        }
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, o| o.id != d.id && !(d.span().contains(&o.start) && o.version < d.version));
        all.insert(d.start.clone(), d.clone());
    }
}

/// What machines share with whoever runs them.
pub(crate) struct Shared {
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) routes: Routes,
    /// Regions that begin or end: one for each change of ranges, of which one at a time is under way.
    pub(crate) effects: mpsc::UnboundedSender<Effect>,
}

/// The machine of one region.
pub(crate) struct RegionMachine {
    shared: Arc<Shared>,
    state: RegionState,
    /// The range as it is here, for whoever wants to refuse early. Never ahead of the state.
    pub(crate) shown: Arc<RwLock<Descriptor>>,
    /// Bytes of commands applied here.
    pub(crate) written: Arc<AtomicU64>,
}

fn fatal(e: impl std::fmt::Display) -> MachineError {
    MachineError(e.to_string())
}

impl RegionMachine {
    /// The region as the engine has it.
    pub(crate) fn open(shared: Arc<Shared>, id: u64) -> Outcome<RegionMachine> {
        let state = region::state_of(&*shared.engine.view(), id)?;
        if !state.gone {
            shared.routes.set(&state.region);
        }
        let shown = Arc::new(RwLock::new(state.region.clone()));
        Ok(RegionMachine { shared, state, shown, written: Arc::default() })
    }

    /// A region of which nothing is here: another member's snapshot tells all. Until then it has version 0, which
    /// no region has, and no range.
    pub(crate) fn waiting(shared: Arc<Shared>, id: u64) -> RegionMachine {
        let mut state = RegionState::first(id, &[]);
        state.region.version = 0;
        let shown = Arc::new(RwLock::new(state.region.clone()));
        RegionMachine { shared, state, shown, written: Arc::default() }
    }

    fn take(&mut self, state: RegionState) {
        if state.region != self.state.region {
            *self.shown.write().unwrap_or_else(PoisonError::into_inner) = state.region.clone();
        }
        self.state = state;
    }

    /// True when another region took it in.
    pub(crate) fn is_gone(&self) -> bool {
        self.state.gone
    }
}

#[cfg(test)]
impl RegionMachine {
    /// A number that differs when what is stored differs.
    pub(crate) fn digest(&self) -> u64 {
        let view = self.shared.engine.view();
        let mut sum = self.state.revision;
        for space in (1..SPACES.len()).map(Space) {
            for item in view.scan(space, range(&self.state.region.span()), Direction::Forward) {
                let (k, v) = item.expect("memory");
                for b in k.iter().chain(v.iter()) {
                    sum = (sum ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3).rotate_left(5);
                }
            }
        }
        sum
    }
}

impl Machine for RegionMachine {
    type Reply = Outcome<Answer>;

    fn apply(&mut self, commands: &[photon_raft::Command]) -> Result<Vec<Self::Reply>, MachineError> {
        let engine = &*self.shared.engine;
        let mut state = self.state.clone();
        if state.merging != 0 {
            // Its neighbour may have taken it in since.
            state = region::state_of(&*engine.view(), state.region.id).map_err(fatal)?;
        }
        let mut over = Overlay::new(engine.view());
        let (mut replies, mut effects, mut stops) = (Vec::new(), Vec::new(), false);
        for c in commands {
            let command = Command::decode_entry(c.data.clone()).map_err(fatal)?;
            let reply = region::apply(&mut over, &mut state, c.position.term, &command, &mut effects);
            if let Err(Refusal::Broken(why)) = reply {
                return Err(MachineError(why));
            }
            stops |= matches!(command.op, Some(Op::PrepareMerge(_)));
            (state.index, state.term) = (c.position.index, c.position.term);
            replies.push(reply);
            self.written.fetch_add(c.data.len() as u64, Ordering::Relaxed);
        }
        over.put(META, meta_key(state.region.id), state.encode_to_vec());
        engine.write(over.into_batch()).map_err(fatal)?;
        if stops {
            engine.persist().map_err(fatal)?;
        }
        if state.region != self.state.region {
            self.shared.routes.set(&state.region);
        }
        self.take(state);
        for e in effects {
            if let Effect::Begin(d) = &e {
                self.shared.routes.set(d);
            }
            let _ = self.shared.effects.send(e); // nobody listens when the node ends
        }
        Ok(replies)
    }

    fn applied(&self) -> Position {
        Position { index: self.state.index, term: self.state.term }
    }

    fn checkpoint(&mut self) -> Result<Position, MachineError> {
        let at = self.applied();
        self.shared.engine.persist().map_err(fatal)?;
        Ok(at)
    }

    fn snapshot(&self) -> Result<(Position, Chunks), MachineError> {
        // The state first: it says which range is replaced.
        let (view, region) = (self.shared.engine.view(), &self.state.region);
        let bounds = range(&region.span());
        let spaces = (1..SPACES.len()).map(|s| (Space(s), bounds.clone()));
        let dump = Dump::new(view, spaces).led_by(META, &meta_key(region.id), &self.state.encode_to_vec());
        Ok((self.applied(), Box::new(dump.map(|chunk| chunk.map_err(fatal)))))
    }

    fn restore(
        &mut self,
        at: Position,
        chunks: &mut dyn Iterator<Item = Result<Bytes, MachineError>>,
    ) -> Result<(), MachineError> {
        let engine = self.shared.engine.clone();
        let id = self.state.region.id;
        let mut buffer = BytesMut::new();
        let mut next = || -> Result<Option<Record>, MachineError> {
            loop {
                if let Some(r) = take_record(&mut buffer, SPACES.len()).map_err(fatal)? {
                    return Ok(Some(r));
                }
                match chunks.next() {
                    Some(c) => buffer.extend_from_slice(&c?),
                    None if buffer.is_empty() => return Ok(None),
                    None => return Err(fatal("the snapshot ends within a record")),
                }
            }
        };
        // The state comes first: it says which range is replaced.
        let Some((META, key, value)) = next()? else { return Err(fatal("the snapshot has no state")) };
        let mut state = RegionState::decode(value).map_err(fatal)?;
        if key != meta_key(id) || state.region.id != id {
            return Err(fatal("the snapshot is of another region"));
        }
        let span = state.region.span();
        // Had it never had a range, it has nothing to leave behind, and no state to void.
        let own = (self.state.region.version > 0).then(|| self.state.region.span());
        // Neighbours that have stopped here in order to become part of it, and did so elsewhere. (No other can be in
        // the way: it only takes in whom all members have seen stop.)
        let (mut gone, mut kept) = (Vec::new(), Vec::new());
        for o in self.shared.routes.all().into_iter().filter(|o| o.id != id) {
            if !o.span().overlaps(&span) {
                kept.push(o.span());
                continue;
            }
            let stopped = region::state_of(&*engine.view(), o.id).map_err(fatal)?;
            if stopped.merging != id || !span.covers(&o.span()) || o.version >= state.region.version {
                return Err(MachineError(format!(
                    "region {} here overlaps the snapshot of region {id}",
                    o.id
                )));
            }
            gone.push(stopped);
        }
        // Without its position what is stored counts as nothing: a crash from here on begins again.
        let mut batch = engine::Batch::default();
        if own.is_some() {
            let blank = RegionState { index: 0, term: 0, ..self.state.clone() };
            batch.put(META, meta_key(id), blank.encode_to_vec());
        }
        for o in &gone {
            let o = RegionState { gone: true, ..o.clone() };
            batch.put(META, meta_key(o.region.id), o.encode_to_vec());
        }
        engine.write(batch).and_then(|()| engine.persist()).map_err(fatal)?;
        for part in own.iter().chain([&span]) {
            // What was its own and now is another's stays.
            clear(&*engine, part, &kept).map_err(fatal)?;
        }
        let mut batch = engine::Batch::default();
        let mut bytes = 0;
        while let Some((space, key, value)) = next()? {
            if space == META || !span.contains(&key) {
                return Err(fatal("the snapshot holds what is not the region's"));
            }
            bytes += key.len() + value.len();
            batch.put(space, key, value);
            if bytes > CHUNK {
                engine.write(std::mem::take(&mut batch)).map_err(fatal)?;
                bytes = 0;
            }
        }
        engine.write(batch).and_then(|()| engine.persist()).map_err(fatal)?;
        (state.index, state.term) = (at.index, at.term);
        let mut last = engine::Batch::default();
        last.put(META, meta_key(id), state.encode_to_vec());
        engine.write(last).and_then(|()| engine.persist()).map_err(fatal)?;
        self.shared.routes.set(&state.region);
        self.take(state);
        for o in gone {
            let _ = self.shared.effects.send(Effect::End(o.region.id)); // nobody listens when the node ends
        }
        Ok(())
    }
}

/// Removes what the keyed spaces have of a span, except for the parts that others have.
fn clear(engine: &dyn Engine, span: &Span, kept: &[Span]) -> Result<(), EngineError> {
    for space in (1..SPACES.len()).map(Space) {
        let mut from = range(span);
        loop {
            let view = engine.view();
            let (mut batch, mut last, mut n) = (engine::Batch::default(), None, 0);
            for item in view.scan(space, from.clone(), Direction::Forward) {
                let (key, _) = item?;
                n += 1;
                last = Some(key.clone());
                if !kept.iter().any(|k| k.contains(&key)) {
                    batch.remove(space, key);
                }
                if n == 4096 {
                    break;
                }
            }
            engine.write(batch)?;
            match last {
                Some(key) if n == 4096 => from.start = Bound::Excluded(key),
                _ => break,
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        key::{self, Mode},
        model::{command::*, layout::RAW},
    };
    use photon_kv::engine::{KeyRange, MemEngine};

    fn machine(engine: &MemEngine, id: u64) -> RegionMachine {
        let (effects, _) = mpsc::unbounded_channel();
        let shared = Shared { engine: Arc::new(engine.clone()), routes: Routes::default(), effects };
        RegionMachine::open(Arc::new(shared), id).expect("it is there")
    }

    fn full(n: u32) -> Bytes {
        key::key(Mode::Raw, format!("{n:05}").as_bytes()).expect("short")
    }

    fn region(id: u64, start: u32, end: u32) -> RegionState {
        let border = |n| key::border(&full(n)).expect("a key");
        let region =
            Descriptor { id, start: border(start), end: border(end), version: 3, conf: 1, members: vec![] };
        RegionState { region, ..RegionState::default() }
    }

    fn begin(states: &[RegionState]) -> MemEngine {
        let engine = MemEngine::new(SPACES.len());
        let mut b = engine::Batch::default();
        for s in states {
            b.put(META, meta_key(s.region.id), s.encode_to_vec());
            b.put(RAW, s.region.start.clone(), "old");
        }
        engine.write(b).expect("memory");
        engine.persist().expect("memory");
        engine
    }

    fn put(m: &mut RegionMachine, index: u64, n: u32, bytes: usize) {
        let write = RawWrite { key: full(n), value: Some(vec![7; bytes].into()) };
        let op = Op::Raw(RawCommit { checks: vec![], writes: vec![write] });
        let data = Command::new(m.state.region.version, op).encode_to_vec().into();
        let position = Position { index, term: 1 };
        m.apply(&[photon_raft::Command { position, data }]).expect("applies")[0].clone().expect("done");
    }

    #[test]
    fn a_snapshot_replaces_its_region_and_nothing_else_whatever_a_crash_leaves() {
        let source = begin(&[region(1, 0, 500)]);
        let mut from = machine(&source, 1);
        for n in 0..200 {
            put(&mut from, u64::from(n) + 2, n, 20_000);
        }
        let (at, chunks) = from.snapshot().expect("snapshot");
        let chunks: Vec<Bytes> = chunks.map(|c| c.expect("chunk")).collect();
        assert!(chunks.len() > 3 && chunks.iter().all(|c| c.len() <= CHUNK), "{}", chunks.len());
        // Here the region was larger; region 2 has since got a part of it.
        let target = || begin(&[region(1, 0, 500), region(2, 500, 700)]);
        let all = |e: &MemEngine| e.view().count(RAW, KeyRange::all()).expect("count");
        let engine = target();
        let mut to = machine(&engine, 1);
        machine(&engine, 2);
        to.shared.routes.set(&region(2, 500, 700).region);
        to.restore(at, &mut chunks.iter().cloned().map(Ok)).expect("restore");
        assert_eq!((to.applied(), all(&engine)), (at, 202));
        let key = &region(2, 500, 700).region.start;
        assert_eq!(engine.view().get(RAW, key).expect("get"), Some("old".into()));
        // Cut short at any place: the region holds nothing that counts, and takes the snapshot again.
        for cut in 0..chunks.len() {
            let engine = target();
            let mut to = machine(&engine, 1);
            let some = chunks[..cut].iter().cloned().map(Ok);
            let broken = std::iter::once(Err(MachineError("cut".into())));
            assert!(to.restore(at, &mut some.chain(broken)).is_err());
            let engine = engine.crash(cut % (engine.pending() + 1));
            let mut to = machine(&engine, 1);
            assert_eq!(to.applied(), Position::default());
            to.restore(at, &mut chunks.iter().cloned().map(Ok)).expect("again");
            assert_eq!((to.applied(), all(&engine)), (at, 202));
        }
        // One that overlaps another region is refused.
        let engine = begin(&[region(1, 0, 100), region(2, 100, 700)]);
        let mut to = machine(&engine, 1);
        to.shared.routes.set(&region(2, 100, 700).region);
        assert!(to.restore(at, &mut chunks.into_iter().map(Ok)).is_err());
        assert_eq!(all(&engine), 2, "refused, yet something changed");
    }

    #[test]
    fn late_news_does_not_overrule_newer_owners() {
        let routes = Routes::default();
        let d = |id, start, end, version| Descriptor { version, ..region(id, start, end).region };
        routes.set(&d(1, 0, 9, 5));
        routes.set(&d(4, 5, 9, 3));
        assert_eq!(routes.of(&full(6)).map(|r| r.id), Some(1));
        routes.set(&d(1, 0, 5, 6));
        routes.set(&d(7, 5, 9, 6));
        routes.set(&d(4, 5, 9, 3));
        assert_eq!(routes.of(&full(6)).map(|r| r.id), Some(7));
        routes.set(&d(1, 0, 9, 8));
        assert_eq!(routes.all().len(), 1);
    }
}
