//! Ranges that change: splits, merges, and when a region is split by itself.
//!
//! Whoever changes ranges only proposes; the logs decide, so that two nodes may try at once. What a merge needs
//! beyond them is that every member has stopped the source ([`Node::region_state`]).

use super::{Inner, Node, PATIENCE, Replica, broken, cluster, known, lock, refused};
use crate::{
    Refusal,
    client::{Request, Response, World},
    key,
    model::{
        Answer, Descriptor, Op, RegionState, SPACES,
        command::{CommitMerge, PrepareMerge, Split},
        layout::{META, range},
        region,
    },
    refusal::Outcome,
};
use bytes::Bytes;
use photon_kv::{
    Direction,
    engine::{Batch, Engine},
};
use photon_raft::{NodeId, Role};
use photon_rt::time::Duration;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Weak, atomic::Ordering},
};

/// Key of the greatest number of a region that this node has given out.
const GIVEN: &[u8] = b"given";

/// Size from which on a region is split.
pub const REGION_BYTES: u64 = 256 << 20;

/// How often sizes are looked at.
const TEND_EVERY: Duration = Duration::from_secs(10);

/// How long a merge waits for each member.
const MEMBER_MAX: Duration = Duration::from_secs(5);

/// See [`GIVEN`].
pub(super) fn last_number(engine: &dyn Engine) -> Outcome<u64> {
    match engine.view().get(META, GIVEN)? {
        Some(b) => b[..].try_into().map(u64::from_be_bytes).map_err(broken),
        None => Ok(0),
    }
}

/// Splits what is too large, and ends what whoever merged did not, for as long as the node is there.
pub(super) async fn tend(node: Weak<Inner>) {
    let mut halfway = BTreeSet::new();
    loop {
        photon_rt::time::sleep(TEND_EVERY).await;
        let Some(inner) = node.upgrade() else { return };
        let node = Node(inner);
        if let Err(e) = node.tend(REGION_BYTES).await {
            tracing::warn!(error = %e, "regions could not be measured or split; tried again");
        }
        // Twice in a row: whoever merges waits for members less long than that.
        let now = node.halfway();
        for id in now.intersection(&halfway) {
            match node.give_up_merge(*id).await {
                Ok(()) => tracing::info!(region = id, "a merge that nobody ended was given up"),
                Err(e) => tracing::debug!(region = id, error = %e, "a merge is given up later"),
            }
        }
        halfway = now;
    }
}

impl Node {
    /// Regions led here that have stopped in order to become part of a neighbour.
    fn halfway(&self) -> BTreeSet<u64> {
        let view = self.0.shared.engine.view();
        let leads = |r: &Arc<Replica>| r.group.status().role == Role::Leader;
        let led: Vec<u64> =
            lock(&self.0.replicas).iter().filter(|(_, r)| leads(r)).map(|(id, _)| *id).collect();
        let stopped = |id: &u64| region::state_of(&*view, *id).is_ok_and(|s| !s.gone && s.merging != 0);
        led.into_iter().filter(stopped).collect()
    }

    /// Splits the region that has the border `at` inside.
    pub async fn split(&self, at: Bytes) -> Outcome<Vec<Descriptor>> {
        let mut last = self.0.ranges.lock().await;
        let region = self.locate(&at).await?;
        let id = self.new_number(&mut last).await?;
        let answer = self.ask(&region, Request::Do(Op::Split(Split { at, id }))).await?;
        self.settled(|r| r.contains_key(&id)).await?;
        match answer {
            Response::Done(Answer::Regions(two)) => Ok(two),
            _ => Err(broken("an answer to another question")),
        }
    }

    /// Makes the region `source` part of its left neighbour.
    pub async fn merge(&self, source: u64) -> Outcome<Descriptor> {
        let _one = self.0.ranges.lock().await;
        let all = self.regions();
        let at = all.iter().position(|r| r.id == source).ok_or(Refusal::NoRegion(source))?;
        let Some(target) = at.checked_sub(1).and_then(|i| all.get(i)) else {
            return Err(Refusal::Malformed("the first region has no left neighbour".into()));
        };
        let prepare = Op::PrepareMerge(PrepareMerge { target: target.id, begin: true });
        if target.members != all[at].members {
            let why = format!("regions {} and {source} have replicas on different nodes", target.id);
            return Err(Refusal::Malformed(why));
        }
        self.ask(&all[at], Request::Do(prepare)).await?;
        let done = match self.stopped_everywhere(source, target.id).await {
            Ok(merge) => self.ask(target, Request::Do(Op::CommitMerge(merge))).await,
            Err(e) => Err(e),
        };
        match done {
            Ok(Response::Done(Answer::Regions(r))) => {
                self.settled(|r| !r.contains_key(&source)).await?;
                r.into_iter().next().ok_or_else(|| broken("an answer to another question"))
            }
            Ok(_) => Err(broken("an answer to another question")),
            Err(e) => {
                self.give_up_merge(source).await?;
                Err(e)
            }
        }
    }

    /// A number for a region that no node has given or will give: each takes those of its own, and notes it first.
    async fn new_number(&self, last: &mut u64) -> Outcome<u64> {
        let (engine, members) = (self.0.shared.engine.clone(), &self.0.members);
        let greatest = known(&*engine.view())?.iter().map(|s| s.region.id).max().unwrap_or(0);
        let nodes = members.len().max(1) as u64;
        let mine = members.iter().position(|m| *m == self.0.me.0).unwrap_or(0) as u64;
        let next = greatest.max(*last) + 1;
        let id = next + (mine + nodes - next % nodes) % nodes;
        let note = move || {
            let mut b = Batch::default();
            b.put(META, GIVEN, id.to_be_bytes().to_vec());
            engine.write(b)?;
            engine.persist()
        };
        photon_rt::task::blocking(note).await?;
        *last = id;
        Ok(id)
    }

    /// A region's state here, durable: what a crash of this node would not take back.
    pub async fn region_state(&self, id: u64) -> Outcome<RegionState> {
        let engine = self.0.shared.engine.clone();
        photon_rt::task::blocking(move || {
            let state = region::state_of(&*engine.view(), id)?;
            engine.persist()?;
            Ok(state)
        })
        .await
    }

    /// The second half of a merge, once the source has durably stopped on every member: where it had not, its
    /// neighbour could not take it in. A member that is away holds a merge up; it is then given up.
    async fn stopped_everywhere(&self, source: u64, target: u64) -> Outcome<CommitMerge> {
        let here = self.region_state(source).await?;
        if here.merging != target {
            return Err(Refusal::Merging(source));
        }
        if let Some(others) = &self.0.others {
            for m in here.region.members.iter().map(|m| NodeId(*m)).filter(|m| *m != self.0.me) {
                let stopped = async {
                    loop {
                        let there = cluster::bounded(others.region(m, source)).await;
                        let same = |s: &RegionState| s.region == here.region && s.merging == target;
                        if there.is_ok_and(|s| same(&s) && s.index >= here.index && !s.gone) {
                            return Ok(());
                        }
                        if let Some(why) = self.stopped() {
                            return Err(Refusal::Unknown(why));
                        }
                        photon_rt::time::sleep(Duration::from_millis(20)).await;
                    }
                };
                let waited = photon_rt::time::timeout(MEMBER_MAX, "a member", stopped).await;
                let away = || {
                    Refusal::Unreachable(format!("{m} has not stopped region {source}: no merge without it"))
                };
                waited.unwrap_or_else(|_| Err(away()))?;
            }
        }
        Ok(CommitMerge { source: Some(here.region), index: here.index })
    }

    /// Waits until what runs here is as it should be.
    pub(super) async fn settled(&self, done: impl Fn(&BTreeMap<u64, Arc<Replica>>) -> bool) -> Outcome<()> {
        let wait = async {
            loop {
                let changed = self.0.changed.notified();
                if done(&lock(&self.0.replicas)) {
                    return Ok(());
                }
                tokio::select! {
                    () = changed => {}
                    why = self.0.store.ended() => return Err(Refusal::Unknown(why)),
                }
            }
        };
        let waited = photon_rt::time::timeout(PATIENCE, "a region", wait).await;
        waited.unwrap_or_else(|_| Err(Refusal::Unknown("a region does not come up".into())))
    }

    /// Takes the first half of a merge back: the target is fenced, so that the second half can't follow, then the
    /// source goes on.
    pub(super) async fn give_up_merge(&self, source: u64) -> Outcome<()> {
        let undo = || Request::Do(Op::PrepareMerge(PrepareMerge { target: 0, begin: false }));
        for _ in 0..100 {
            let state = region::state_of(&*self.0.shared.engine.view(), source)?;
            // What the logs of both still hold is applied first.
            for id in [source, state.merging] {
                if let Ok(r) = self.replica(id) {
                    r.group.read_index().await.map_err(|e| refused(id, e))?;
                }
            }
            let view = self.0.shared.engine.view();
            let state = region::state_of(&*view, source)?;
            if state.gone || state.merging == 0 {
                return Ok(());
            }
            let fenced = match RegionState::load(&*view, state.merging)? {
                // Its log has ended, and took nothing in.
                Some(t) if t.gone => Ok(()),
                Some(t) => self.ask(&t.region, undo()).await.map(|_| ()),
                None => Err(Refusal::NoRegion(state.merging)),
            };
            let undone = match fenced {
                Ok(()) => self.ask(&state.region, undo()).await.map(|_| ()),
                Err(e) => Err(e),
            };
            match undone {
                Err(e) if e.is_about_routing() => photon_rt::time::sleep(Duration::from_millis(20)).await,
                done => return done,
            }
        }
        Err(Refusal::Overloaded)
    }

    /// Splits regions led here that hold more than `max` bytes, each once. Measures only those into which much was
    /// written since. How many were split.
    pub async fn tend(&self, max: u64) -> Outcome<usize> {
        let all: Vec<(u64, Arc<Replica>)> =
            lock(&self.0.replicas).iter().map(|(id, r)| (*id, r.clone())).collect();
        let mut n = 0;
        for (id, r) in all {
            if r.group.status().role != Role::Leader {
                continue; // whoever leads it sees to it
            }
            let written = r.written.load(Ordering::Relaxed);
            let before = r.measured.load(Ordering::Relaxed);
            if before != 0 && written - before.min(written) < max / 4 {
                continue;
            }
            let (size, middle) = match self.measure(id).await {
                Ok(m) => m,
                Err(e) if e.is_about_routing() => continue, // it went away
                Err(e) => return Err(e),
            };
            r.measured.store(written.max(1), Ordering::Relaxed);
            if size > max
                && let Some(at) = middle
            {
                match self.split(at).await {
                    Ok(_) => {
                        r.measured.store(0, Ordering::Relaxed); // its half may still be too large
                        n += 1;
                    }
                    Err(e) if e.is_about_routing() => {}
                    Err(e) => return Err(e),
                }
            }
        }
        Ok(n)
    }

    /// The bytes of a region's keys and values, and the border nearest to their middle, if it has one inside: a
    /// region of one row group has none. Reads all of it.
    pub async fn measure(&self, id: u64) -> Outcome<(u64, Option<Bytes>)> {
        let view = self.0.shared.engine.view();
        photon_rt::task::blocking(move || {
            let state = region::state_of(&*view, id)?;
            if state.gone {
                return Err(Refusal::NoRegion(id));
            }
            let bounds = range(&state.region.span());
            let mut sizes: BTreeMap<Bytes, u64> = BTreeMap::new();
            let mut total = 0;
            // Groups are counted in runs: no more than this many borders are remembered.
            const BORDERS: usize = 10_000;
            for space in (1..SPACES.len()).map(photon_kv::engine::Space) {
                for item in view.scan(space, bounds.clone(), Direction::Forward) {
                    let (k, v) = item?;
                    let size = (k.len() + v.len()) as u64;
                    total += size;
                    let Some(border) = key::border(&k) else { continue };
                    if sizes.len() < BORDERS || sizes.contains_key(&border) {
                        *sizes.entry(border).or_default() += size;
                    } else if let Some((_, s)) = sizes.range_mut(..=border).next_back() {
                        *s += size;
                    }
                }
            }
            let mut sum = 0;
            for (border, size) in sizes {
                if sum >= total / 2 && border > state.region.start {
                    return Ok((total, Some(border)));
                }
                sum += size;
            }
            Ok((total, None))
        })
        .await
    }
}
