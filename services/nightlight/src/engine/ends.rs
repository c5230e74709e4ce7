//! Ranges that are `anchored` (they begin with the sample before them) or `smoothed` (their ends are interpolated from
//! the samples on both sides). Samples outside are looked for no further away than the lookback.

use super::{
    Column, Error, Point, Samples,
    eval::{Eval, Windows},
    fail,
    native::Says,
    window,
};
use crate::{
    histogram::{Added, Hint, Histogram, Incompatible},
    promql::{Span, ast::Ends},
};
use std::sync::Arc;

/// Refuses functions for which the ends of a range mean nothing.
pub(super) fn check(ends: Ends, function: &str) -> Result<(), Error> {
    let (word, all): (&str, &[&str]) = match ends {
        Ends::Plain => return Ok(()),
        Ends::Anchored => ("anchored", &["changes", "delta", "increase", "rate", "resets"]),
        Ends::Smoothed => ("smoothed", &["delta", "increase", "rate"]),
    };
    if all.contains(&function) {
        return Ok(());
    }
    fail(format!("{word} modifier can only be used with: {} - not with {function}", all.join(", ")))
}

/// The samples that count for one window: the last one that may stand for its beginning, and the first that may stand
/// for its end.
fn span(t: &[i64], start: i64, end: i64, smoothed: bool) -> Option<(usize, usize)> {
    let mut last = t.len().checked_sub(1)?;
    let first = t[..last].partition_point(|t| *t <= start).saturating_sub(1);
    if smoothed {
        last = t[..last].partition_point(|t| *t < end);
    }
    (t[last] > start && !(smoothed && t[first] > end)).then_some((first, last))
}

/// The value between two samples; a counter that fell began anew at zero.
fn between(a: (i64, f64), b: (i64, f64), t: i64, counter: bool) -> f64 {
    let from = if counter && b.1 < a.1 { 0.0 } else { a.1 };
    from + (b.1 - from) * (t - a.0) as f64 / (b.0 - a.0) as f64
}

/// Values at both ends of a window.
fn edges(
    s: &Samples,
    (first, last): (usize, usize),
    start: i64,
    end: i64,
    smoothed: bool,
    counter: bool,
) -> (f64, f64) {
    let at = |i: usize| (s.t[i], s.v[i]);
    let left = if smoothed && s.t[first] < start {
        between(at(first), at(first + 1), start, counter)
    } else {
        s.v[first]
    };
    let right = if smoothed && last > 0 && s.t[last] > end {
        between(at(last - 1), at(last), end, counter)
    } else {
        s.v[last]
    };
    (left, right)
}

/// Windows wide enough to see what is outside.
fn widened(w: Windows, lookback: i64, smoothed: bool) -> Windows {
    let ahead = if smoothed { lookback } else { 0 };
    let ends = super::Grid { start: w.ends.start.saturating_add(ahead), ..w.ends };
    Windows { ends, range: w.range.saturating_add(lookback).saturating_add(ahead), steps: w.steps }
}

/// `rate` and its like over windows with such ends; `s` reaches out on both sides.
pub(super) fn column(
    ev: &Eval<'_>,
    name: &str,
    metric: &str,
    s: &Samples,
    w: Windows,
    ends: Ends,
    at: Span,
) -> Column {
    let (smoothed, counter) = (ends == Ends::Smoothed, matches!(name, "rate" | "increase"));
    let mut col = Column::empty(w.ends.n);
    window::each(s, widened(w, ev.query.lookback_ms, smoothed), |i, lo, hi| {
        let (end, start) = (w.ends.at(i), w.ends.at(i).saturating_sub(w.range));
        let mut part = Samples::numbers(s.t[lo..hi].to_vec(), s.v[lo..hi].to_vec());
        if !s.h.is_empty() {
            part.h = s.h[lo..hi].to_vec();
        }
        let natives = part.h.iter().flatten().count();
        let says = Says::new(ev, at, metric);
        let counting = matches!(name, "changes" | "resets");
        if natives > 0 && natives < part.len() && !counting {
            return says.mixed();
        }
        let Some((mut first, last)) = span(&part.t, start, end, smoothed) else { return };
        if counting {
            let all = Samples {
                t: part.t.split_off(first),
                v: part.v.split_off(first),
                h: if part.h.is_empty() { Vec::new() } else { part.h.split_off(first) },
            };
            return col.set(i, counted(name, &all));
        }
        if natives > 0 {
            if let Some(mut h) = rise(&part, (first, last), start, end, smoothed, counter, &says) {
                if name == "rate" {
                    h.div(w.range as f64 / 1000.0);
                }
                h.hint = Hint::Gauge;
                col.put(i, Point::Histogram(Arc::new(h)));
            }
            return;
        }
        let (left, right) = edges(&part, (first, last), start, end, smoothed, counter);
        let mut change = right - left;
        if counter {
            // Resets within; those at the ends are in the interpolation.
            first += usize::from(part.t[first] <= start);
            let inner = if part.t[last] >= end { last } else { last + 1 };
            let mut before = left;
            for v in part.v.get(first..inner).unwrap_or_default() {
                if *v < before {
                    change += before;
                }
                before = *v;
            }
            if right < before {
                change += before;
            }
        }
        col.set(i, if name == "rate" { change / (w.range as f64 / 1000.0) } else { change });
    });
    col
}

fn counted(name: &str, s: &Samples) -> f64 {
    let differ = |i: usize| match (s.point(i - 1), s.point(i)) {
        (Point::Number(a), Point::Number(b)) if name == "resets" => b < a,
        (Point::Number(a), Point::Number(b)) => a != b && !(a.is_nan() && b.is_nan()),
        (Point::Histogram(a), Point::Histogram(b)) if name == "resets" => b.is_reset_after(&a),
        (Point::Histogram(a), Point::Histogram(b)) => !a.same(&b),
        _ => true,
    };
    (1..s.len()).filter(|i| differ(*i)).count() as f64
}

/// The histogram between two.
fn between_natives(
    a: (i64, &Histogram),
    b: (i64, &Histogram),
    t: i64,
    counter: bool,
    said: &mut Added,
) -> Result<Histogram, Incompatible> {
    let part = (t - a.0) as f64 / (b.0 - a.0) as f64;
    let mut out = b.1.clone();
    if counter && b.1.is_reset_after(a.1) {
        out.mul(part);
        return Ok(out);
    }
    said.reconciled |= out.sub(a.1)?.reconciled;
    out.mul(part);
    said.reconciled |= out.add(a.1)?.reconciled;
    Ok(out)
}

fn rise(
    s: &Samples,
    (first, last): (usize, usize),
    start: i64,
    end: i64,
    smoothed: bool,
    counter: bool,
    says: &Says<'_, '_>,
) -> Option<Histogram> {
    let all: Vec<&Arc<Histogram>> = s.h.iter().flatten().collect();
    let within = &all[first..=last];
    if within.iter().any(|h| h.is_custom() != all[first].is_custom()) {
        says.schemas();
        return None;
    }
    if counter && within.iter().any(|h| h.hint == Hint::Gauge) {
        says.not_counter();
    }
    let mut said = Added::default();
    let mut compute = || -> Result<Histogram, Incompatible> {
        let at = |i: usize| (s.t[i], &**all[i]);
        let left = if smoothed && s.t[first] < start {
            between_natives(at(first), at(first + 1), start, counter, &mut said)?
        } else {
            (**all[first]).clone()
        };
        let right = if smoothed && last > 0 && s.t[last] > end {
            between_natives(at(last - 1), at(last), end, counter, &mut said)?
        } else {
            (**all[last]).clone()
        };
        if !counter && (left.hint != Hint::Gauge || right.hint != Hint::Gauge) {
            says.not_gauge();
        }
        let mut out = right.clone();
        said.reconciled |= out.sub(&left)?.reconciled;
        if counter {
            let mut before = &left;
            let mut from = first + 1;
            // The interpolation at the left spans this reset already.
            if smoothed && s.t[first] < start && from < all.len() && all[from].is_reset_after(all[first]) {
                before = all[from];
                from += 1;
            }
            for h in all.get(from..last).unwrap_or_default() {
                if h.is_reset_after(before) {
                    said.reconciled |= out.add(before)?.reconciled;
                }
                before = h;
            }
            if from <= last && right.is_reset_after(before) {
                said.reconciled |= out.add(before)?.reconciled;
            }
        }
        Ok(out)
    };
    let out = compute();
    says.added(Added { collision: false, ..said }, "subtraction");
    out.inspect_err(|Incompatible| says.schemas()).ok()
}

/// The samples of a range with its ends made samples, as a query of such a range shows them.
pub(super) fn shown(s: &Samples, start: i64, end: i64, smoothed: bool) -> Samples {
    let only = (0..s.len()).filter(|i| s.histogram(*i).is_none());
    let s = Samples::numbers(only.clone().map(|i| s.t[i]).collect(), only.map(|i| s.v[i]).collect());
    let mut out = Samples::default();
    let Some((first, last)) = span(&s.t, start, end, smoothed) else { return out };
    let (left, right) = edges(&s, (first, last), start, end, smoothed, false);
    out.push(start, Point::Number(left));
    for i in first..=last {
        if s.t[i] > start && s.t[i] < end {
            out.push(s.t[i], Point::Number(s.v[i]));
        }
    }
    out.push(end, Point::Number(right));
    out
}

/// The value of a `smoothed` selector at an instant: between the sample before (or at) it and the one after.
pub(super) fn instant(s: &Samples, t: i64, lookback: i64) -> Option<Point> {
    let next = s.t.partition_point(|x| *x <= t);
    let last = next.checked_sub(1).filter(|i| s.t[*i] > t.saturating_sub(lookback))?;
    if s.t[last] == t || next >= s.len() || s.t[next] > t.saturating_add(lookback) {
        return Some(s.point(last));
    }
    match (s.point(last), s.point(next)) {
        (Point::Number(a), Point::Number(b)) => {
            Some(Point::Number(between((s.t[last], a), (s.t[next], b), t, false)))
        }
        (Point::Histogram(a), Point::Histogram(b)) => {
            let between =
                between_natives((s.t[last], &a), (s.t[next], &b), t, false, &mut Added::default()).ok()?;
            Some(Point::Histogram(Arc::new(between)))
        }
        (p, _) => Some(p),
    }
}
