//! What comes beside samples and is kept in memory only: the newest exemplars, and what metrics are for. Both are
//! bounded, and gone after a restart until senders tell them again.

use super::lock;
use crate::labels::{Labels, Matcher, Str};
use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Mutex,
};

/// Most exemplars; the oldest make room.
const EXEMPLARS_MAX: usize = 100_000;
/// Most characters of an exemplar's labels, names and values together (OpenMetrics).
const EXEMPLAR_CHARS_MAX: usize = 128;
/// Most metrics that are described, and most bytes of a help text.
const METRICS_MAX: usize = 100_000;
const HELP_MAX: usize = 8 << 10;

/// One observation of a series, with where to look for more (a trace's id).
#[derive(Clone, Debug, PartialEq)]
pub struct Exemplar {
    /// Where to look.
    pub labels: Labels,
    /// The observation.
    pub value: f64,
    /// Milliseconds since 1970.
    pub t: i64,
}

/// Exemplars of series.
pub type SeriesExemplars = Vec<(Labels, Vec<Exemplar>)>;

/// What a metric is for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// "counter", "gauge", "histogram", "gaugehistogram", "summary", "info", "stateset" or "unknown".
    pub kind: Str,
    /// For people.
    pub help: Str,
    /// Of its values.
    pub unit: Str,
}

#[derive(Default)]
struct Ring {
    all: VecDeque<(Labels, Exemplar)>,
    newest: HashMap<Labels, Exemplar>,
}

/// Exemplars and metadata of one store.
#[derive(Default)]
pub struct Beside {
    ring: Mutex<Ring>,
    metadata: Mutex<BTreeMap<Str, Metadata>>,
}

impl Beside {
    /// Takes an exemplar; false if it is the newest of its series again, older than that, or too long.
    pub fn exemplar(&self, series: &Labels, e: Exemplar) -> bool {
        let chars: usize = e.labels.iter().map(|(n, v)| n.chars().count() + v.chars().count()).sum();
        let mut ring = lock(&self.ring);
        let late = ring.newest.get(series).is_some_and(|n| e.t < n.t || *n == e);
        if chars > EXEMPLAR_CHARS_MAX || late {
            return false;
        }
        if ring.all.len() >= EXEMPLARS_MAX
            && let Some((labels, gone)) = ring.all.pop_front()
            && ring.newest.get(&labels) == Some(&gone)
        {
            ring.newest.remove(&labels);
        }
        ring.newest.insert(series.clone(), e.clone());
        ring.all.push_back((series.clone(), e));
        true
    }

    /// Exemplars of `from_ms..=to_ms` of the series that pass any of the selections, by series and time.
    pub fn exemplars(&self, any: &[Vec<Matcher>], from_ms: i64, to_ms: i64) -> SeriesExemplars {
        let mut out: BTreeMap<Labels, Vec<Exemplar>> = BTreeMap::new();
        let passes = |l: &Labels| any.iter().any(|all| all.iter().all(|m| m.matches(l.get(&m.name))));
        let ring = lock(&self.ring);
        for (series, e) in ring.all.iter().filter(|(_, e)| (from_ms..=to_ms).contains(&e.t)) {
            if passes(series) {
                out.entry(series.clone()).or_default().push(e.clone());
            }
        }
        out.into_iter().collect()
    }

    /// Says what a metric is for. Beyond the limit new metrics stay undescribed.
    pub fn describe(&self, metric: &str, mut m: Metadata) {
        for text in [&mut m.help, &mut m.unit] {
            if text.len() > HELP_MAX {
                *text = text[..text.floor_char_boundary(HELP_MAX)].into();
            }
        }
        if metric.len() > HELP_MAX {
            return;
        }
        let mut all = lock(&self.metadata);
        if all.len() < METRICS_MAX || all.contains_key(metric) {
            all.insert(metric.into(), m);
        }
    }

    /// What metrics are for, by name; all, or one.
    pub fn metadata(&self, metric: Option<&str>) -> Vec<(Str, Metadata)> {
        let all = lock(&self.metadata);
        let wanted = |name: &Str| metric.is_none_or(|m| **name == *m);
        all.iter().filter(|(n, _)| wanted(n)).map(|(n, m)| (n.clone(), m.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exemplars_are_a_bounded_ring() {
        let b = Beside::default();
        let series = |i: usize| Labels::of(&[("__name__", "m"), ("i", &i.to_string())]);
        let e = |t: i64| Exemplar { labels: Labels::of(&[("trace_id", "x")]), value: t as f64, t };
        assert!(b.exemplar(&series(1), e(5)));
        assert!(!b.exemplar(&series(1), e(5)) && !b.exemplar(&series(1), e(4)));
        let long = Labels::of(&[("trace_id", &"x".repeat(121))]);
        assert!(!b.exemplar(&series(1), Exemplar { labels: long, ..e(9) }));
        for i in 0..EXEMPLARS_MAX {
            assert!(b.exemplar(&series(i % 100), e(10 + i as i64)));
        }
        let one = [vec![Matcher::new("i", crate::labels::MatchOp::Equal, "1").expect("matcher")]];
        let found = b.exemplars(&one, 0, 500);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].1.iter().map(|e| e.t).collect::<Vec<_>>(), [11, 111, 211, 311, 411]);
        assert_eq!(lock(&b.ring).all.len(), EXEMPLARS_MAX);
        b.describe(
            "m",
            Metadata { kind: "counter".into(), help: "é".repeat(HELP_MAX).into(), unit: "".into() },
        );
        assert_eq!(b.metadata(Some("m"))[0].1.help.len(), HELP_MAX);
        assert!(b.metadata(Some("n")).is_empty() && b.metadata(None).len() == 1);
    }
}
