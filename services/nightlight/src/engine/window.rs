//! Functions over ranges. Windows move in one direction only, so each function keeps what it can from the one
//! before: counts by prefix, extremes in a monotone deque, quantiles in a sorted window, sums by two stacks
//! (a window is the end of one run and the beginning of the next; nothing is ever subtracted, so nothing cancels).

use super::{
    Column, Error, Grid, Samples, Series, ends,
    eval::{Eval, Sink, Windows, absent_labels, ends_of, unique_without_name},
    fail, native,
};
use crate::promql::{Expr, ast::Ends, number};
use std::{cmp::Ordering, collections::VecDeque};

/// Where the arguments of a function stand: the range, then the numbers.
fn arguments(name: &str) -> (usize, &'static [usize]) {
    match name {
        "quantile_over_time" => (1, &[0]),
        "predict_linear" => (0, &[1]),
        "double_exponential_smoothing" => (0, &[1, 2]),
        _ => (0, &[]),
    }
}

/// The function `name` over a range vector.
pub(super) fn eval(ev: &Eval<'_>, name: &str, args: &[Expr], g: Grid, sink: Sink<'_>) -> Result<(), Error> {
    let (range_at, numbers_at) = arguments(name);
    let range = &args[range_at];
    let mut numbers = Vec::new();
    for at in numbers_at {
        numbers.push(ev.scalar(&args[*at], g)?);
    }
    let ends = ends_of(range);
    ends::check(ends, name)?;
    match name {
        "absent_over_time" => return absent(ev, range, g, sink),
        "quantile_over_time" => {
            for q in &numbers[0] {
                warn_quantile(ev, &args[0], *q);
            }
        }
        "double_exponential_smoothing" => {
            for (what, all) in [("smoothing", &numbers[0]), ("trend", &numbers[1])] {
                if let Some(v) = all.iter().find(|v| !(**v > 0.0 && **v < 1.0)) {
                    let short = if what == "smoothing" { "sf" } else { "tf" };
                    return fail(format!("invalid {what} factor. Expected: 0 < {short} < 1, got: {v:.6}"));
                }
            }
        }
        _ => {}
    }
    let keeps_name = matches!(name, "first_over_time" | "last_over_time");
    let counter = matches!(name, "rate" | "increase");
    let mut out = ev.strict(!keeps_name && !unique_without_name(range));
    ev.windows(range, g, &mut |labels, samples, windows| {
        let col = if ends != Ends::Plain {
            ends::column(ev, name, labels.name(), samples, windows, ends, range.span)
        } else if samples.h.is_empty() {
            column(name, samples, windows, &numbers)
        } else {
            native::column(ev, name, labels, samples, windows, &numbers, range.span)
        };
        if !col.any() {
            return Ok(());
        }
        let metric = labels.name();
        let suffixes = ["_total", "_sum", "_count", "_bucket"];
        let some_number = || (0..col.v.len()).any(|i| col.get(i).is_some());
        if counter && !metric.is_empty() && some_number() && !suffixes.iter().any(|s| metric.ends_with(s)) {
            let quoted = crate::labels::quote(metric);
            let what = "metric might not be a counter, name does not end in _total/_sum/_count/_bucket";
            ev.info(range.span, &format!("{what}: {quoted}"));
        }
        let labels = if keeps_name { labels.clone() } else { labels.nameless() };
        out.pass(Series { labels, col }, &mut *sink)
    })?;
    out.end(sink)
}

pub(super) fn warn_quantile(ev: &Eval<'_>, at: &Expr, q: f64) {
    if !(0.0..=1.0).contains(&q) {
        ev.warn(at.span, &format!("quantile value should be between 0 and 1, got {}", number(q)));
    }
}

/// 1 where no series has a sample in the window.
fn absent(ev: &Eval<'_>, range: &Expr, g: Grid, sink: Sink<'_>) -> Result<(), Error> {
    let mut col = Column::full(vec![1.0; g.n]);
    ev.windows(range, g, &mut |_, samples, windows| {
        each(samples, windows, |i, _, _| col.on[i] = false);
        Ok(())
    })?;
    if col.any() { sink(Series { labels: absent_labels(range), col }) } else { Ok(()) }
}

/// Calls `f(step, first, end)` for every window with samples: they are `first..end`.
pub(super) fn each(s: &Samples, w: Windows, mut f: impl FnMut(usize, usize, usize)) {
    let (mut lo, mut hi) = (0, 0);
    for i in 0..w.ends.n {
        let end = w.ends.at(i);
        let start = end.saturating_sub(w.range);
        while hi < s.t.len() && s.t[hi] <= end {
            hi += 1;
        }
        while lo < hi && s.t[lo] <= start {
            lo += 1;
        }
        if lo < hi {
            f(i, lo, hi);
        }
    }
}

pub(super) fn column(name: &str, s: &Samples, w: Windows, numbers: &[Vec<f64>]) -> Column {
    let mut col = Column::empty(w.ends.n);
    let seconds = |t: i64| t as f64 / 1000.0;
    match name {
        "count_over_time" => each(s, w, |i, lo, hi| col.set(i, (hi - lo) as f64)),
        "present_over_time" => each(s, w, |i, _, _| col.set(i, 1.0)),
        "last_over_time" => each(s, w, |i, _, hi| col.set(i, s.v[hi - 1])),
        "first_over_time" => each(s, w, |i, lo, _| col.set(i, s.v[lo])),
        "ts_of_last_over_time" => each(s, w, |i, _, hi| col.set(i, seconds(s.t[hi - 1]))),
        "ts_of_first_over_time" => each(s, w, |i, lo, _| col.set(i, seconds(s.t[lo]))),
        "max_over_time" | "ts_of_max_over_time" => extreme(s, w, |old, new| old < new, name, &mut col),
        "min_over_time" | "ts_of_min_over_time" => extreme(s, w, |old, new| old > new, name, &mut col),
        "sum_over_time" => fold(s, w, Sum::of, |i, _, _, a| col.set(i, a.value())),
        "avg_over_time" => fold(s, w, Sum::of, |i, lo, hi, a| col.set(i, mean(a, &s.v[lo..hi]))),
        "stdvar_over_time" | "stddev_over_time" => {
            // Measured from a value among them, so that what great values share takes no digits.
            let base = s.v.iter().copied().find(|v| v.is_finite()).unwrap_or(0.0);
            let root = name == "stddev_over_time";
            fold(
                s,
                w,
                |v| Moments::of(v - base),
                |i, _, _, a| {
                    let variance = a.m2 / a.n;
                    col.set(i, if root { variance.sqrt() } else { variance });
                },
            );
        }
        "quantile_over_time" => {
            sorted(s, w, |i, window| col.set(i, quantile(numbers[0][i], window)));
        }
        "mad_over_time" => sorted(s, w, |i, window| {
            let median = quantile(0.5, window);
            let mut apart: Vec<f64> = window.iter().map(|v| (v - median).abs()).collect();
            apart.sort_unstable_by(nan_first);
            col.set(i, quantile(0.5, &apart));
        }),
        "changes" => counted(s, w, |a, b| a != b && !(a.is_nan() && b.is_nan()), &mut col),
        "resets" => counted(s, w, |a, b| b < a, &mut col),
        "rate" | "increase" | "delta" => rate(name, s, w, &mut col),
        "irate" | "idelta" => each(s, w, |i, lo, hi| {
            let apart = if hi - lo >= 2 { s.t[hi - 1] - s.t[hi - 2] } else { 0 };
            if apart > 0 {
                let (a, b) = (s.v[hi - 2], s.v[hi - 1]);
                let step = if name == "irate" && b < a { b } else { b - a };
                col.set(i, if name == "irate" { step / seconds(apart) } else { step });
            }
        }),
        "deriv" => each(s, w, |i, lo, hi| {
            if hi - lo >= 2 {
                col.set(i, regression(s, lo, hi, s.t[lo]).0);
            }
        }),
        "predict_linear" => each(s, w, |i, lo, hi| {
            if hi - lo >= 2 {
                let (slope, intercept) = regression(s, lo, hi, w.steps.at(i));
                col.set(i, slope * numbers[0][i] + intercept);
            }
        }),
        "double_exponential_smoothing" => each(s, w, |i, lo, hi| {
            if hi - lo >= 2 {
                col.set(i, smooth(&s.v[lo..hi], numbers[0][i], numbers[1][i]));
            }
        }),
        _ => {}
    }
    col
}

/// The greatest or smallest of each window; NaN only where nothing else is.
fn extreme(s: &Samples, w: Windows, better: impl Fn(f64, f64) -> bool, name: &str, col: &mut Column) {
    // Instants: of equal values the last counts; values: the first (they differ in the sign of zero).
    let stamps = name.starts_with("ts_of");
    let mut best: VecDeque<usize> = VecDeque::new();
    let mut seen = 0;
    each(s, w, |i, lo, hi| {
        while seen < hi {
            if !s.v[seen].is_nan() {
                while best
                    .back()
                    .is_some_and(|b| better(s.v[*b], s.v[seen]) || (stamps && s.v[*b] == s.v[seen]))
                {
                    best.pop_back();
                }
                best.push_back(seen);
            }
            seen += 1;
        }
        while best.front().is_some_and(|b| *b < lo) {
            best.pop_front();
        }
        let at = best.front().copied();
        col.set(
            i,
            match (at, stamps) {
                (at, true) => s.t[at.unwrap_or(lo)] as f64 / 1000.0,
                (Some(at), false) => s.v[at],
                (None, false) => f64::NAN,
            },
        );
    });
}

/// How many neighbours in each window `differ`.
fn counted(s: &Samples, w: Windows, differ: impl Fn(f64, f64) -> bool, col: &mut Column) {
    let mut upto = Vec::with_capacity(s.v.len());
    let mut n = 0u64;
    for i in 0..s.v.len() {
        n += u64::from(i > 0 && differ(s.v[i - 1], s.v[i]));
        upto.push(n);
    }
    each(s, w, |i, lo, hi| col.set(i, (upto[hi - 1] - upto[lo]) as f64));
}

/// Prometheus' `extrapolatedRate`: the change within the window, extended to the window's ends where the samples
/// come near them, and never below zero for a counter.
fn rate(name: &str, s: &Samples, w: Windows, col: &mut Column) {
    let counter = name != "delta";
    // Where a counter fell: it started anew.
    let falls: Vec<usize> =
        if counter { (1..s.v.len()).filter(|i| s.v[*i] < s.v[*i - 1]).collect() } else { Vec::new() };
    each(s, w, |i, lo, hi| {
        if hi - lo < 2 {
            return;
        }
        let end = w.ends.at(i);
        let (first, last) = (s.v[lo], s.v[hi - 1]);
        let mut change = last - first;
        let from = falls.partition_point(|f| *f <= lo);
        for f in falls[from..].iter().take_while(|f| **f < hi) {
            change += s.v[*f - 1];
        }
        let mut factor = reach(s.t[lo], s.t[hi - 1], hi - lo, end, w.range, |sampled| {
            (counter && change > 0.0 && first >= 0.0).then(|| sampled * (first / change))
        });
        if name == "rate" {
            factor /= w.range as f64 / 1000.0;
        }
        col.set(i, change * factor);
    });
}

/// By how much the change between `n` samples from `first` to `last` is extended, in a window of `range` up to `end`.
/// `to_zero(seconds sampled)`: how long before the first sample a counter would have been zero.
pub(super) fn reach(
    first: i64,
    last: i64,
    n: usize,
    end: i64,
    range: i64,
    to_zero: impl Fn(f64) -> Option<f64>,
) -> f64 {
    let seconds = |ms: i64| ms as f64 / 1000.0;
    let mut to_start = seconds(first - (end - range));
    let mut to_end = seconds(end - last);
    let sampled = seconds(last - first);
    let apart = sampled / (n - 1) as f64;
    let near = apart * 1.1;
    if to_start >= near {
        to_start = apart / 2.0;
    }
    if let Some(zero) = to_zero(sampled) {
        to_start = to_start.min(zero);
    }
    if to_end >= near {
        to_end = apart / 2.0;
    }
    (sampled + to_start + to_end) / sampled
}

/// Something that runs of samples add up to.
trait Run: Copy {
    fn join(self, later: Self) -> Self;
}

/// Calls `f(step, first, end, run of first..end)`, at a constant number of joins a sample however wide the windows.
fn fold<R: Run>(s: &Samples, w: Windows, of: impl Fn(f64) -> R, mut f: impl FnMut(usize, usize, usize, R)) {
    // `tails[k]` is the run from `middle - 1 - k` to `middle`; `head` the run from `middle` to `seen`.
    let (mut tails, mut head): (Vec<R>, Option<R>) = (Vec::new(), None);
    let (mut middle, mut seen) = (0, 0);
    each(s, w, |i, lo, hi| {
        if lo >= middle {
            (middle, seen, head) = (hi, hi, None);
            tails.clear();
            for k in (lo..hi).rev() {
                let one = of(s.v[k]);
                tails.push(tails.last().map_or(one, |t| one.join(*t)));
            }
        }
        while seen < hi {
            let one = of(s.v[seen]);
            head = Some(head.map_or(one, |h| h.join(one)));
            seen += 1;
        }
        let tail = tails[middle - 1 - lo];
        f(i, lo, hi, head.map_or(tail, |h| tail.join(h)));
    });
}

/// A sum with what rounding took from it (Neumaier 1974).
#[derive(Clone, Copy)]
pub(super) struct Sum {
    sum: f64,
    lost: f64,
}

impl Sum {
    pub fn of(v: f64) -> Self {
        Sum { sum: v, lost: 0.0 }
    }

    pub fn add(&mut self, v: f64) {
        *self = self.join(Sum::of(v));
    }

    pub fn value(self) -> f64 {
        if self.sum.is_infinite() { self.sum } else { self.sum + self.lost }
    }
}

impl Run for Sum {
    fn join(self, later: Self) -> Self {
        let sum = self.sum + later.sum;
        if sum.is_infinite() {
            return Sum { sum, lost: 0.0 };
        }
        let lost = if self.sum.abs() >= later.sum.abs() {
            (self.sum - sum) + later.sum
        } else {
            (later.sum - sum) + self.sum
        };
        Sum { sum, lost: self.lost + later.lost + lost }
    }
}

/// The mean; when the sum is too great for a number, of the values divided first.
pub(super) fn mean(sum: Sum, values: &[f64]) -> f64 {
    let n = values.len() as f64;
    if sum.sum.is_infinite() && !values.iter().any(|v| v.is_infinite()) {
        return values.iter().fold(Sum::of(0.0), |a, v| a.join(Sum::of(v / n))).value();
    }
    sum.value() / n
}

/// Count, mean, and sum of squared distances from it (Chan, Golub, LeVeque 1979).
#[derive(Clone, Copy)]
pub(super) struct Moments {
    pub n: f64,
    pub mean: f64,
    pub m2: f64,
}

impl Moments {
    pub fn of(v: f64) -> Self {
        // Infinities and NaN have no distance from anything.
        Moments { n: 1.0, mean: v, m2: if v.is_finite() { 0.0 } else { f64::NAN } }
    }

    pub fn add(&mut self, v: f64) {
        *self = self.join(Moments::of(v));
    }
}

impl Run for Moments {
    fn join(self, later: Self) -> Self {
        let n = self.n + later.n;
        let apart = later.mean - self.mean;
        Moments {
            n,
            mean: self.mean + apart * (later.n / n),
            m2: self.m2 + later.m2 + apart * apart * (self.n * later.n / n),
        }
    }
}

/// Numbers by size, NaN before all.
pub(super) fn nan_first(a: &f64, b: &f64) -> Ordering {
    match (a.is_nan(), b.is_nan()) {
        (true, true) => Ordering::Equal,
        (true, false) => Ordering::Less,
        (false, true) => Ordering::Greater,
        (false, false) => a.total_cmp(b),
    }
}

/// Calls `f(step, values of the window by size)`.
fn sorted(s: &Samples, w: Windows, mut f: impl FnMut(usize, &[f64])) {
    let mut window: Vec<f64> = Vec::new();
    let (mut out, mut seen) = (0, 0);
    each(s, w, |i, lo, hi| {
        if seen <= lo {
            // Nothing is left of the window before.
            window.clear();
            window.extend_from_slice(&s.v[lo..hi]);
            window.sort_unstable_by(nan_first);
        } else {
            for v in &s.v[out..lo] {
                if let Ok(at) = window.binary_search_by(|x| nan_first(x, v)) {
                    window.remove(at);
                }
            }
            for v in &s.v[seen..hi] {
                let at = window.partition_point(|x| nan_first(x, v) == Ordering::Less);
                window.insert(at, *v);
            }
        }
        (out, seen) = (lo, hi);
        f(i, &window);
    });
}

/// The φ-quantile of values sorted by size, between neighbours in proportion.
pub(super) fn quantile(q: f64, sorted: &[f64]) -> f64 {
    if sorted.is_empty() || q.is_nan() {
        return f64::NAN;
    }
    if q < 0.0 {
        return f64::NEG_INFINITY;
    }
    if q > 1.0 {
        return f64::INFINITY;
    }
    let rank = q * (sorted.len() - 1) as f64;
    let low = rank.floor() as usize;
    let high = (low + 1).min(sorted.len() - 1);
    let weight = rank - rank.floor();
    sorted[low] * (1.0 - weight) + sorted[high] * weight
}

/// Least squares: slope a second, and the value at `zero`.
fn regression(s: &Samples, lo: usize, hi: usize, zero: i64) -> (f64, f64) {
    let first = s.v[lo];
    if s.v[lo..hi].iter().all(|v| *v == first) {
        return if first.is_infinite() { (f64::NAN, f64::NAN) } else { (0.0, first) };
    }
    let n = (hi - lo) as f64;
    let (mut x, mut y, mut xy, mut xx) = (Sum::of(0.0), Sum::of(0.0), Sum::of(0.0), Sum::of(0.0));
    for i in lo..hi {
        let at = (s.t[i] - zero) as f64 / 1000.0;
        x.add(at);
        y.add(s.v[i]);
        xy.add(at * s.v[i]);
        xx.add(at * at);
    }
    let (x, y, xy, xx) = (x.value(), y.value(), xy.value(), xx.value());
    let slope = (xy - x * y / n) / (xx - x * x / n);
    (slope, y / n - slope * x / n)
}

/// Holt's double exponential smoothing: level and trend.
fn smooth(v: &[f64], level_factor: f64, trend_factor: f64) -> f64 {
    let (mut before, mut level, mut trend) = (0.0, v[0], v[1] - v[0]);
    for (i, x) in v.iter().enumerate().skip(1) {
        if i > 1 {
            trend = trend_factor * (level - before) + (1.0 - trend_factor) * trend;
        }
        (before, level) = (level, level_factor * x + (1.0 - level_factor) * (level + trend));
    }
    level
}
