//! Regions, their leaders and logs, an oracle, and a network between them and the clients that loses, delays
//! and doubles what it carries. The regions run the real state machine, gate and queries; each has a storage
//! of its own, so that what is sent to the wrong one is really lost.
//!
//! A region's log is reduced to what a client can notice of Raft: entries are applied in order, later; a
//! change of the leader keeps some of those not yet applied, drops the others, and raises the term.

use super::exec::{Exec, Party};
use crate::{
    Refusal,
    client::{Background, Request, Response, World, deadlock::Detector},
    key::Span,
    model::{
        Answer, Command, Descriptor, Effect, Gate, Op, RegionState, SPACES,
        command::*,
        gate::Entry,
        layout::{META, meta_key},
        region,
    },
    refusal::Outcome,
    time::{Oracle, Ts},
};
use bytes::Bytes;
use photon_kv::{
    Direction,
    engine::{Engine, MemEngine, Overlay, Space},
};
use prost::Message;
use std::{
    collections::{BTreeMap, VecDeque},
    future::Future,
    sync::{Arc, Mutex},
};

/// An answer that is waited for.
type Slot = Arc<Mutex<Option<Outcome<Response>>>>;

struct Appended {
    term: u64,
    command: Command,
    gate: Option<u64>,
    slot: Slot,
}

struct Region {
    engine: MemEngine,
    gate: Gate,
    term: u64,
    log: VecDeque<Appended>,
}

impl Region {
    fn state(&self, id: u64) -> Outcome<RegionState> {
        region::state_of(&*self.engine.view(), id)
    }
}

struct Inner {
    regions: BTreeMap<u64, Region>,
    oracle: Oracle,
    detector: Detector,
    next_region: u64,
    faults: bool,
    pub counts: BTreeMap<&'static str, u64>,
}

/// The world of one client. Clones are the same one.
#[derive(Clone)]
pub struct SimWorld {
    pub exec: Exec,
    inner: Arc<Mutex<Inner>>,
    party: Party,
    cache: Arc<Mutex<BTreeMap<Bytes, Descriptor>>>,
}

const TIMEOUT_MS: u64 = 400;

impl SimWorld {
    pub fn new(exec: Exec) -> SimWorld {
        let engine = MemEngine::new(SPACES.len());
        put_state(&engine, &RegionState::first(1, &[]));
        let first = Region { engine, gate: Gate::default(), term: 1, log: VecDeque::new() };
        let inner = Inner {
            regions: BTreeMap::from([(1, first)]),
            oracle: Oracle::new(0),
            detector: Detector::default(),
            next_region: 2,
            faults: true,
            counts: BTreeMap::new(),
        };
        let world = SimWorld { exec, inner: Arc::new(Mutex::new(inner)), party: 0, cache: Arc::default() };
        world.reopen(1);
        world
    }

    /// The same world as another client sees it, with a cache of its own.
    pub fn of(&self, party: Party) -> SimWorld {
        SimWorld { party, cache: Arc::default(), ..self.clone() }
    }

    fn with<T>(&self, f: impl FnOnce(&mut Inner) -> T) -> T {
        f(&mut self.inner.lock().expect("one thread"))
    }

    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.with(|w| w.counts.clone())
    }

    pub fn count(&self, what: &'static str) {
        self.with(|w| *w.counts.entry(what).or_default() += 1);
    }

    pub fn end_faults(&self) {
        self.with(|w| w.faults = false);
    }

    fn chance(&self, percent: u64) -> bool {
        self.with(|w| w.faults) && self.exec.percent(percent)
    }

    async fn travel(&self) {
        let ms = if self.chance(4) { self.exec.draw(600) } else { self.exec.draw(6) };
        self.exec.sleep(ms).await;
    }

    /// The gate opens with a timestamp that is taken after the region has its new leader or range.
    fn reopen(&self, id: u64) {
        let me = self.clone();
        self.exec.spawn(0, async move {
            loop {
                let now = me.with(|w| w.regions.get(&id).and_then(|r| Some((r.term, r.state(id).ok()?))));
                let Some((term, state)) = now.filter(|(_, s)| !s.gone) else { return };
                me.exec.sleep(me.exec.draw(60)).await;
                let Ok(fresh) = me.timestamp().await else { continue };
                let done = me.with(|w| {
                    let Some(r) = w.regions.get_mut(&id) else { return true };
                    let same = r.term == term && r.state(id).is_ok_and(|s| s.region == state.region);
                    if same {
                        r.gate.open(term, state.region.version, fresh);
                    }
                    same
                });
                if done {
                    return;
                }
            }
        });
    }

    /// A leader takes a request. The answer lands in `slot`.
    async fn serve(&self, id: u64, epoch: u64, request: Request, slot: Slot) {
        let answer = match &request {
            Request::Do(op) => match self.admit(id, epoch, op.clone()) {
                Ok((command, gate)) => return self.append(id, command, gate, slot).await,
                Err(e) => Err(e),
            },
            _ => self.look(id, epoch, &request).await,
        };
        *slot.lock().expect("one thread") = Some(answer);
    }

    fn admit(&self, id: u64, epoch: u64, op: Op) -> Outcome<(Command, Option<u64>)> {
        self.with(|w| {
            let region = w.regions.get_mut(&id).ok_or(Refusal::NoRegion(id))?;
            let state = region.state(id)?;
            let mut command = Command::new(epoch, op);
            command.check()?;
            region::belongs(&state, epoch)?;
            let gate = region.gate.admit(id, region.term, &mut command)?;
            Ok((command, gate))
        })
    }

    async fn append(&self, id: u64, command: Command, gate: Option<u64>, slot: Slot) {
        // On its way into the log the leader may change.
        if self.chance(15) {
            self.exec.sleep(self.exec.draw(80)).await;
        }
        let there = self.with(|w| match w.regions.get_mut(&id) {
            Some(r) => {
                r.log.push_back(Appended { term: r.term, command, gate, slot });
                true
            }
            None => false,
        });
        if there {
            self.exec.sleep(self.exec.draw(12)).await;
            self.apply(id);
        }
    }

    /// Applies some of what is in the log of a region.
    fn apply(&self, id: u64) {
        let n = 1 + self.exec.draw(3);
        for _ in 0..n {
            let Some(effects) = self.with(|w| w.apply_one(id)) else { return };
            for e in effects {
                match e {
                    Effect::Begin(d) => self.reopen(d.id),
                    Effect::End(_) => {}
                }
                self.reopen(id);
            }
        }
    }

    /// Another replica becomes leader.
    pub fn new_leader(&self, id: u64) {
        let keep = self.exec.draw(4) as usize;
        self.count("leaders");
        self.with(|w| {
            let Some(r) = w.regions.get_mut(&id) else { return };
            let lost: Vec<Appended> = r.log.drain(keep.min(r.log.len())..).collect();
            drop(lost); // nobody answers: the outcome is unknown
            r.term += 1;
            r.gate = Gate::default();
        });
        // What it inherited is applied before it answers anybody.
        loop {
            let more = self.with(|w| w.regions.get(&id).is_some_and(|r| !r.log.is_empty()));
            if !more {
                break;
            }
            self.apply(id);
        }
        self.reopen(id);
    }

    pub fn regions(&self) -> Vec<Descriptor> {
        self.with(|w| {
            let states = w.regions.iter().filter_map(|(id, r)| r.state(*id).ok());
            let mut all: Vec<Descriptor> = states.filter(|s| !s.gone).map(|s| s.region).collect();
            all.sort_by(|a, b| a.start.cmp(&b.start));
            all
        })
    }

    /// Tells a region something as its leader would, and waits for it.
    pub async fn order(&self, region: &Descriptor, op: Op) -> Outcome<Answer> {
        let slot = Slot::default();
        self.serve(region.id, region.version, Request::Do(op), slot.clone()).await;
        for _ in 0..200 {
            if let Some(answer) = slot.lock().expect("one thread").take() {
                return match answer? {
                    Response::Done(a) => Ok(a),
                    _ => Err(Refusal::Malformed("an answer to another question".into())),
                };
            }
            self.exec.sleep(3).await;
            self.apply(region.id);
        }
        Err(Refusal::Unknown("no answer".into()))
    }

    pub async fn split(&self, region: &Descriptor, at: Bytes) -> Outcome<Answer> {
        let id = self.with(|w| {
            w.next_region += 1;
            w.next_region
        });
        self.order(region, Op::Split(Split { at, id })).await
    }

    /// Merges `source` into its left neighbour.
    pub async fn merge(&self, target: &Descriptor, source: &Descriptor) -> Outcome<Answer> {
        let prepare = |begin| Op::PrepareMerge(PrepareMerge { target: target.id, begin });
        self.order(source, prepare(true)).await?;
        let state = self
            .with(|w| w.regions.get(&source.id).map_or(Err(Refusal::NoRegion(0)), |r| r.state(source.id)))?;
        let merge = CommitMerge { source: Some(state.region.clone()), index: state.index };
        let done = self.order(target, Op::CommitMerge(merge)).await;
        if done.is_err() {
            // The target first: then the merge can't happen any more.
            loop {
                let now = self.regions().into_iter().find(|r| r.id == target.id);
                let Some(now) = now else { return done };
                if self.order(&now, prepare(false)).await.is_ok() {
                    break;
                }
            }
            let _ = self.order(&state.region, prepare(false)).await;
        }
        done
    }

    async fn look(&self, id: u64, epoch: u64, request: &Request) -> Outcome<Response> {
        let Some((span, Some(at))) = request.reads() else {
            return Err(Refusal::Malformed("no read at a timestamp".into()));
        };
        let term = self.with(|w| w.regions.get(&id).map(|r| r.term)).ok_or(Refusal::NoRegion(id))?;
        loop {
            let entry = self.with(|w| {
                Ok::<_, Refusal>(w.regions.get_mut(&id).ok_or(Refusal::NoRegion(id))?.gate.read(at, &span))
            })?;
            match entry {
                Entry::Now => break,
                Entry::After(_) => self.exec.sleep(1).await,
            }
        }
        // Asking the others whether this one still leads takes time.
        if self.exec.percent(30) {
            self.exec.sleep(self.exec.draw(10)).await;
        }
        self.with(|w| {
            let region = w.regions.get(&id).ok_or(Refusal::NoRegion(id))?;
            if region.term != term {
                return Err(Refusal::NotLeader(id));
            }
            answer(&region.engine, id, epoch, request)
        })
    }
}

/// Answers a read from one state.
fn answer(engine: &MemEngine, id: u64, epoch: u64, request: &Request) -> Outcome<Response> {
    let view = engine.view();
    let state = region::state_of(&*view, id)?;
    let Some((span, at)) = request.reads() else { return Err(Refusal::Malformed("nothing".into())) };
    region::readable(&state, epoch, &span, at)?;
    request.read(&*view)
}

fn put_state(engine: &MemEngine, s: &RegionState) {
    let mut over = Overlay::new(engine.view());
    over.put(META, meta_key(s.region.id), s.encode_to_vec());
    engine.write(over.into_batch()).expect("memory");
}

/// Moves what a span holds from one storage to another.
fn carry(from: &MemEngine, to: &MemEngine, span: &Span) {
    let (view, mut out, mut gone) = (from.view(), Overlay::new(to.view()), Overlay::new(from.view()));
    for space in (1..SPACES.len()).map(Space) {
        for item in view.scan(space, crate::model::layout::range(span), Direction::Forward) {
            let (k, v) = item.expect("memory");
            gone.remove(space, k.clone());
            out.put(space, k, v);
        }
    }
    to.write(out.into_batch()).expect("memory");
    from.write(gone.into_batch()).expect("memory");
}

impl Inner {
    fn apply_one(&mut self, id: u64) -> Option<Vec<Effect>> {
        let entry = self.regions.get_mut(&id)?.log.pop_front()?;
        // A region that is to be taken in brings its state along.
        if let Some(Op::CommitMerge(CommitMerge { source: Some(s), .. })) = &entry.command.op
            && let Some(state) = self.regions.get(&s.id).and_then(|r| r.state(s.id).ok())
        {
            put_state(&self.regions[&id].engine, &state);
        }
        let region = self.regions.get_mut(&id)?;
        let mut state = region.state(id).expect("it is here");
        let mut over = Overlay::new(region.engine.view());
        let mut effects = Vec::new();
        let bytes = Bytes::from(entry.command.encode_to_vec());
        let command = Command::decode_entry(bytes).expect("our own");
        let answer = region::apply(&mut over, &mut state, entry.term, &command, &mut effects);
        if let Err(Refusal::Broken(why)) = &answer {
            panic!("region {id} stops: {why}");
        }
        state.index += 1;
        over.put(META, meta_key(id), state.encode_to_vec());
        region.engine.write(over.into_batch()).expect("memory");
        if let Some(n) = entry.gate {
            region.gate.done(n);
        }
        *entry.slot.lock().expect("one thread") = Some(answer.map(Response::Done));
        let engine = region.engine.clone();
        for e in &effects {
            match e {
                Effect::Begin(d) => {
                    let new = MemEngine::new(SPACES.len());
                    carry(&engine, &new, &d.span());
                    put_state(&new, &region::state_of(&*engine.view(), d.id).expect("just made"));
                    let region = Region { engine: new, gate: Gate::default(), term: 1, log: VecDeque::new() };
                    self.regions.insert(d.id, region);
                    *self.counts.entry("splits").or_default() += 1;
                }
                Effect::End(source) => {
                    let old = self.regions.remove(source).expect("it stopped here");
                    carry(&old.engine, &engine, &Span::all());
                    *self.counts.entry("merges").or_default() += 1;
                }
            }
        }
        Some(effects)
    }
}

impl World for SimWorld {
    async fn timestamp(&self) -> Outcome<Ts> {
        self.exec.sleep(self.exec.draw(3)).await;
        let now = self.exec.now_ms();
        let ts = self.with(|w| {
            if let Some(r) = w.oracle.take(now, 1) {
                return r.start;
            }
            let end = w.oracle.wanted(now);
            w.oracle.extend(end);
            w.oracle.take(now, 1).expect("the window was extended").start
        });
        self.exec.sleep(self.exec.draw(3)).await;
        Ok(ts)
    }

    async fn locate(&self, key: &Bytes) -> Outcome<Descriptor> {
        let cached = |c: &BTreeMap<Bytes, Descriptor>| {
            let (_, d) = c.range(..=key.clone()).next_back()?;
            d.span().contains(key).then(|| d.clone())
        };
        if let Some(d) = cached(&self.cache.lock().expect("one thread")) {
            return Ok(d);
        }
        self.exec.sleep(self.exec.draw(5)).await;
        let found = self.regions().into_iter().find(|d| d.span().contains(key));
        let found = found.ok_or(Refusal::NoRegion(0))?;
        self.cache.lock().expect("one thread").insert(found.start.clone(), found.clone());
        Ok(found)
    }

    async fn locate_below(&self, end: &Bytes) -> Outcome<Descriptor> {
        // Not cached: the fewer right answers, the better.
        let below = |d: &Descriptor| {
            (end.is_empty() || d.start < *end) && (d.end.is_empty() || (!end.is_empty() && d.end >= *end))
        };
        let found = self.regions().into_iter().find(below).ok_or(Refusal::NoRegion(0))?;
        self.exec.sleep(self.exec.draw(20)).await;
        Ok(found)
    }

    fn forget(&self, region: &Descriptor) {
        self.cache.lock().expect("one thread").retain(|_, d| d.id != region.id);
    }

    async fn ask(&self, region: &Descriptor, request: Request) -> Outcome<Response> {
        let (id, epoch) = (region.id, region.version);
        let slot = Slot::default();
        if !self.chance(4) {
            let (me, to, again) = (self.of(0), slot.clone(), request.clone());
            let twice = self.chance(4);
            self.exec.spawn(0, async move {
                me.travel().await;
                me.serve(id, epoch, request, to).await;
                if twice {
                    me.exec.sleep(me.exec.draw(3_000)).await;
                    me.count("doubled");
                    me.serve(id, epoch, again, Slot::default()).await;
                }
            });
        }
        let until = self.exec.now_ms() + TIMEOUT_MS;
        while self.exec.now_ms() < until {
            self.exec.sleep(1 + self.exec.draw(3)).await;
            let answer = slot.lock().expect("one thread").take();
            if let Some(answer) = answer {
                if self.chance(3) {
                    break;
                }
                return answer;
            }
        }
        self.count("unanswered");
        Err(Refusal::Unknown("no answer in time".into()))
    }

    async fn sleep(&self, ms: u64) {
        self.exec.sleep(ms).await;
    }

    fn draw(&self, n: u64) -> u64 {
        self.exec.draw(n)
    }

    fn background(&self, task: Background) {
        self.exec.spawn(self.party, task);
    }

    fn waits(&self, waiter: Ts, holder: Ts) -> impl Future<Output = Outcome<()>> + Send {
        let now = self.exec.now_ms();
        let answer = self.with(|w| w.detector.waits(waiter, holder, now));
        if answer.is_err() {
            self.count("deadlocks");
        }
        std::future::ready(answer)
    }

    fn waited(&self, waiter: Ts) {
        self.with(|w| w.detector.waited(waiter));
    }
}
