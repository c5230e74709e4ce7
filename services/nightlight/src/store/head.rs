//! What a log holds, in memory, ready to be read.

use super::{
    Options, Outcome, StoreError, clip,
    codec::{self, Damaged, Input},
    index::Index,
    join,
    log::Numbered,
    native::{self, At},
    weave,
};
use crate::{
    engine::Samples,
    histogram::Histogram,
    labels::{Labels, Matcher},
};
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

/// Most samples of one encoded column.
pub(super) const CHUNK: usize = 240;

#[derive(Default)]
pub(super) struct Head {
    by_labels: HashMap<Labels, u32>,
    series: Vec<Series>,
    index: Index,
    /// Samples held.
    pub samples: u64,
}

struct Series {
    labels: Labels,
    sealed: Vec<Chunk>,
    open: Samples,
    /// Samples that came after newer ones.
    late: BTreeMap<i64, f64>,
    natives: Option<Box<Natives>>,
}

/// The histograms of a series.
#[derive(Default)]
struct Natives {
    sealed: Vec<Chunk>,
    open: BTreeMap<i64, Arc<Histogram>>,
    newest: i64,
}

#[derive(Clone)]
struct Chunk {
    min_t: i64,
    max_t: i64,
    n: usize,
    bytes: Arc<[u8]>,
}

fn damaged<E>(_: E) -> StoreError {
    StoreError::Damaged { file: "memory".into(), what: "a column of the head".into() }
}

impl Chunk {
    fn of(s: &Samples) -> Self {
        let mut bytes = Vec::new();
        codec::put_times(&mut bytes, &s.t);
        codec::put_values(&mut bytes, &s.v);
        let (min_t, max_t) = (s.t.first().copied().unwrap_or(0), s.t.last().copied().unwrap_or(0));
        Chunk { min_t, max_t, n: s.t.len(), bytes: bytes.into() }
    }

    fn read(&self) -> Result<Samples, StoreError> {
        let mut input = Input(&self.bytes);
        let t = codec::times(&mut input, self.n).map_err(damaged)?;
        let v = codec::values(&mut input, self.n).map_err(damaged)?;
        Ok(Samples::numbers(t, v))
    }

    fn of_natives(all: &[At]) -> Self {
        let mut bytes = Vec::new();
        codec::put_times(&mut bytes, &all.iter().map(|a| a.0).collect::<Vec<_>>());
        native::put_column(&mut bytes, all);
        let ends = |a: Option<&At>| a.map_or(0, |a| a.0);
        Chunk { min_t: ends(all.first()), max_t: ends(all.last()), n: all.len(), bytes: bytes.into() }
    }

    fn read_natives(&self) -> Result<Vec<At>, StoreError> {
        let mut input = Input(&self.bytes);
        let t = codec::times(&mut input, self.n).map_err(damaged)?;
        let h = native::read_column(input.0, self.n).map_err(damaged)?;
        Ok(t.into_iter().zip(h.into_iter().map(Arc::new)).collect())
    }

    fn touches(&self, from: i64, to: i64) -> bool {
        self.max_t >= from && self.min_t <= to
    }
}

impl Natives {
    fn at(&self, t: i64) -> Option<Arc<Histogram>> {
        if let Some(h) = self.open.get(&t) {
            return Some(h.clone());
        }
        let holding = self.sealed.iter().filter(|c| c.touches(t, t));
        holding.filter_map(|c| c.read_natives().ok()).flatten().find(|a| a.0 == t).map(|a| a.1)
    }

    fn insert(&mut self, t: i64, h: Arc<Histogram>) {
        self.newest = self.newest.max(t);
        self.open.insert(t, h);
        // The newest half stays open, for what comes late.
        if self.open.len() >= native::CHUNK {
            let keep = self.open.keys().nth(native::CHUNK / 2).copied().unwrap_or(i64::MAX);
            let newer = self.open.split_off(&keep);
            let older: Vec<At> = std::mem::replace(&mut self.open, newer).into_iter().collect();
            self.sealed.extend(native::pieces(&older).into_iter().map(Chunk::of_natives));
        }
    }
}

/// One series at one moment; appends don't change it.
pub(super) struct View {
    sealed: Vec<Chunk>,
    open: Samples,
    late: Samples,
    native_chunks: Vec<Chunk>,
    natives: Vec<At>,
}

impl View {
    pub fn read(&self) -> Result<Samples, StoreError> {
        let mut pieces = self.sealed.iter().map(Chunk::read).collect::<Result<Vec<_>, _>>()?;
        pieces.push(self.open.clone());
        pieces.push(self.late.clone());
        let numbers = join(pieces);
        if self.native_chunks.is_empty() && self.natives.is_empty() {
            return Ok(numbers);
        }
        let mut natives = Vec::new();
        for c in &self.native_chunks {
            natives.extend(c.read_natives()?);
        }
        natives.extend(self.natives.iter().cloned());
        natives.sort_by_key(|a| a.0);
        Ok(weave(numbers, natives))
    }
}

enum Fate {
    Stored,
    Same,
    TooOld,
    Conflict,
}

impl Series {
    fn newest_number(&self) -> Option<i64> {
        self.open.t.last().copied().or_else(|| self.sealed.last().map(|c| c.max_t))
    }

    fn newest(&self) -> Option<i64> {
        self.newest_number().max(self.natives.as_ref().map(|n| n.newest))
    }

    fn push(&mut self, t: i64, v: f64, late_ms: i64) -> Fate {
        match self.newest() {
            Some(newest) if t <= newest => return self.push_late(t, v, newest, late_ms),
            _ => {}
        }
        self.open.t.push(t);
        self.open.v.push(v);
        if self.open.t.len() >= CHUNK {
            self.sealed.push(Chunk::of(&self.open));
            self.open = Samples::default();
        }
        Fate::Stored
    }

    fn push_late(&mut self, t: i64, v: f64, newest: i64, late_ms: i64) -> Fate {
        if t < newest.saturating_sub(late_ms) {
            return Fate::TooOld;
        }
        if self.natives.as_ref().is_some_and(|n| n.at(t).is_some()) {
            return Fate::Conflict;
        }
        match self.at(t) {
            Some(have) if have.to_bits() == v.to_bits() => Fate::Same,
            Some(_) => Fate::Conflict,
            None => {
                self.late.insert(t, v);
                Fate::Stored
            }
        }
    }

    fn push_native(&mut self, t: i64, h: Arc<Histogram>, late_ms: i64) -> Fate {
        if let Some(newest) = self.newest()
            && t <= newest
        {
            if t < newest.saturating_sub(late_ms) {
                return Fate::TooOld;
            }
            if self.at(t).is_some() {
                return Fate::Conflict;
            }
            match self.natives.as_ref().and_then(|n| n.at(t)) {
                Some(have) if *have == *h => return Fate::Same,
                Some(_) => return Fate::Conflict,
                None => {}
            }
        }
        let empty = || Box::new(Natives { newest: i64::MIN, ..Natives::default() });
        self.natives.get_or_insert_with(empty).insert(t, h);
        Fate::Stored
    }

    /// The number at exactly `t`.
    fn at(&self, t: i64) -> Option<f64> {
        if let Some(v) = self.late.get(&t) {
            return Some(*v);
        }
        if let Ok(i) = self.open.t.binary_search(&t) {
            return Some(self.open.v[i]);
        }
        let at = self.sealed.partition_point(|c| c.max_t < t);
        let chunk = self.sealed.get(at).filter(|c| c.min_t <= t)?.read().ok()?;
        chunk.t.binary_search(&t).ok().map(|i| chunk.v[i])
    }

    fn view(&self, from: i64, to: i64) -> View {
        let touching = |c: &&Chunk| c.touches(from, to);
        let mut open = self.open.clone();
        clip(&mut open, from, to);
        let late: Vec<(i64, f64)> =
            if from <= to { self.late.range(from..=to).map(|(t, v)| (*t, *v)).collect() } else { Vec::new() };
        let (mut native_chunks, mut natives) = (Vec::new(), Vec::new());
        if let Some(n) = &self.natives
            && from <= to
        {
            native_chunks = n.sealed.iter().filter(touching).cloned().collect();
            natives = n.open.range(from..=to).map(|(t, h)| (*t, h.clone())).collect();
        }
        View {
            sealed: self.sealed.iter().filter(touching).cloned().collect(),
            open,
            late: Samples::numbers(late.iter().map(|x| x.0).collect(), late.iter().map(|x| x.1).collect()),
            native_chunks,
            natives,
        }
    }

    fn touches(&self, from: i64, to: i64) -> bool {
        from <= to
            && (self.sealed.iter().any(|c| c.touches(from, to))
                || self.open.t.first().is_some_and(|t| *t <= to)
                    && self.open.t.last().is_some_and(|t| *t >= from)
                || self.late.range(from..=to).next().is_some()
                || self.natives.as_ref().is_some_and(|n| {
                    n.open.range(from..=to).next().is_some() || n.sealed.iter().any(|c| c.touches(from, to))
                }))
    }
}

impl Head {
    /// Series held.
    pub fn len(&self) -> usize {
        self.series.len()
    }

    /// The number of a series.
    pub fn number(&self, labels: &Labels) -> Option<u32> {
        self.by_labels.get(labels).copied()
    }

    /// Adds what the log holds. What it refuses follows from what it holds, so a replay refuses the same. An error: no
    /// writer numbered series so.
    pub fn apply(&mut self, batch: Vec<Numbered>, options: &Options) -> Result<Outcome, Damaged> {
        let mut out = Outcome::default();
        for Numbered { at, new, entry: a } in batch {
            if new && (at as usize != self.series.len() || self.by_labels.contains_key(&a.labels)) {
                return Err(Damaged);
            }
            if new {
                self.begin(&a.labels);
            }
            let series = self.series.get_mut(at as usize).ok_or(Damaged)?;
            let mut count = |fate: Fate, native: bool| {
                match fate {
                    Fate::Stored => {
                        out.stored += 1;
                        self.samples += 1;
                    }
                    Fate::Same => out.stored += 1,
                    Fate::TooOld => return out.too_old += 1,
                    Fate::Conflict => return out.conflicting += 1,
                }
                out.histograms += u64::from(native);
            };
            for (t, v) in a.samples {
                count(series.push(t, v, options.late_ms), false);
            }
            for (t, h) in a.histograms {
                count(series.push_native(t, h, options.late_ms), true);
            }
        }
        Ok(out)
    }

    fn begin(&mut self, labels: &Labels) {
        let at = self.series.len() as u32;
        self.index.push(labels);
        self.by_labels.insert(labels.clone(), at);
        self.series.push(Series {
            labels: labels.clone(),
            sealed: Vec::new(),
            open: Samples::default(),
            late: BTreeMap::new(),
            natives: None,
        });
    }

    /// Series that pass, with what they hold of the time.
    pub fn select(&self, matchers: &[Matcher], from: i64, to: i64) -> Vec<(Labels, View)> {
        let found = self.index.matching(matchers);
        found
            .into_iter()
            .map(|i| {
                let s = &self.series[i as usize];
                (s.labels.clone(), s.view(from, to))
            })
            .collect()
    }

    pub fn series(&self, matchers: &[Matcher], from: i64, to: i64, each: &mut dyn FnMut(&Labels)) {
        for i in self.index.matching(matchers) {
            let s = &self.series[i as usize];
            if s.touches(from, to) {
                each(&s.labels);
            }
        }
    }

    /// Labels of all series, sorted, with where to [`Head::read`] each.
    pub fn sorted(&self) -> Vec<(Labels, u32)> {
        let mut out: Vec<(Labels, u32)> =
            self.series.iter().enumerate().map(|(i, s)| (s.labels.clone(), i as u32)).collect();
        out.sort();
        out
    }

    /// Everything of one series.
    pub fn read(&self, at: u32) -> Result<Samples, StoreError> {
        self.series[at as usize].view(i64::MIN, i64::MAX).read()
    }
}
