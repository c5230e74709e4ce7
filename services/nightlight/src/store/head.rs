//! What the log holds, in memory, ready to be read.

use super::{
    Arrival, Options, Outcome, StoreError, clip,
    codec::{self, Input},
    index::Index,
    join,
};
use crate::{
    engine::Samples,
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
}

#[derive(Clone)]
struct Chunk {
    min_t: i64,
    max_t: i64,
    n: usize,
    bytes: Arc<[u8]>,
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
        let damaged = |_| StoreError::Damaged { file: "memory".into(), what: "a column of the head".into() };
        let t = codec::times(&mut input, self.n).map_err(damaged)?;
        let v = codec::values(&mut input, self.n).map_err(damaged)?;
        Ok(Samples::numbers(t, v))
    }
}

/// One series at one moment; appends don't change it.
pub(super) struct View {
    sealed: Vec<Chunk>,
    open: Samples,
    late: Samples,
}

impl View {
    pub fn read(&self) -> Result<Samples, StoreError> {
        let mut pieces = self.sealed.iter().map(Chunk::read).collect::<Result<Vec<_>, _>>()?;
        pieces.push(self.open.clone());
        pieces.push(self.late.clone());
        Ok(join(pieces))
    }
}

enum Fate {
    Stored,
    Same,
    TooOld,
    Conflict,
}

impl Series {
    fn newest(&self) -> Option<i64> {
        self.open.t.last().copied().or_else(|| self.sealed.last().map(|c| c.max_t))
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
        match self.at(t) {
            Some(have) if have.to_bits() == v.to_bits() => Fate::Same,
            Some(_) => Fate::Conflict,
            None => {
                self.late.insert(t, v);
                Fate::Stored
            }
        }
    }

    /// The value at exactly `t`.
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
        let touching = |c: &&Chunk| c.max_t >= from && c.min_t <= to;
        let mut open = self.open.clone();
        clip(&mut open, from, to);
        let late: Vec<(i64, f64)> =
            if from <= to { self.late.range(from..=to).map(|(t, v)| (*t, *v)).collect() } else { Vec::new() };
        View {
            sealed: self.sealed.iter().filter(touching).cloned().collect(),
            open,
            late: Samples::numbers(late.iter().map(|x| x.0).collect(), late.iter().map(|x| x.1).collect()),
        }
    }

    fn touches(&self, from: i64, to: i64) -> bool {
        self.sealed.iter().any(|c| c.max_t >= from && c.min_t <= to)
            || self.open.t.first().is_some_and(|t| *t <= to) && self.open.t.last().is_some_and(|t| *t >= from)
            || (from <= to && self.late.range(from..=to).next().is_some())
    }
}

impl Head {
    /// Series held.
    pub fn len(&self) -> usize {
        self.series.len()
    }

    /// Adds what the log holds. What it refuses follows from what it holds, so a replay refuses the same.
    pub fn apply(&mut self, batch: Vec<Arrival>, options: &Options) -> Outcome {
        let mut out = Outcome::default();
        for a in batch {
            let at = match self.by_labels.get(&a.labels) {
                Some(at) => *at,
                None if self.series.len() >= options.series_max => {
                    out.over_limit += a.samples.len() as u64;
                    continue;
                }
                None => self.begin(&a.labels),
            };
            let series = &mut self.series[at as usize];
            for (t, v) in a.samples {
                match series.push(t, v, options.late_ms) {
                    Fate::Stored => {
                        out.stored += 1;
                        self.samples += 1;
                    }
                    Fate::Same => out.stored += 1,
                    Fate::TooOld => out.too_old += 1,
                    Fate::Conflict => out.conflicting += 1,
                }
            }
        }
        out
    }

    fn begin(&mut self, labels: &Labels) -> u32 {
        let at = self.series.len() as u32;
        self.index.push(labels);
        self.by_labels.insert(labels.clone(), at);
        self.series.push(Series {
            labels: labels.clone(),
            sealed: Vec::new(),
            open: Samples::default(),
            late: BTreeMap::new(),
        });
        at
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

    /// Everything, sorted by labels.
    pub fn all(&self) -> Result<Vec<(Labels, Samples)>, StoreError> {
        let mut out = Vec::with_capacity(self.series.len());
        for s in &self.series {
            let samples = s.view(i64::MIN, i64::MAX).read()?;
            if !samples.t.is_empty() {
                out.push((s.labels.clone(), samples));
            }
        }
        out.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(out)
    }
}
