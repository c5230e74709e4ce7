//! Quantiles and fractions of histograms: classic ones (series that differ in `le`, each counting what is not above
//! it) and native ones.

use super::{
    Column, Error, Grid, Series,
    eval::{Eval, Sink},
    window::warn_quantile,
};
use crate::{
    histogram::{self, Histogram, Nan},
    labels::Labels,
    promql::{Expr, number},
};
use std::collections::BTreeMap;

/// A bucket that falls by less than this part of the count before it is taken as rounding.
const SMALL: f64 = 1e-12;

/// Upper bound and cumulative count.
type Bucket = (f64, f64);

/// A histogram at one step.
enum Input<'h> {
    Classic(Vec<Bucket>),
    Native(&'h Histogram),
}

#[derive(Default)]
struct Group {
    metric: String,
    classic: Vec<(f64, Column)>,
    native: Vec<Column>,
}

/// Calls `f(step, histogram, metric)` for every histogram at every step, and gives what it answers.
fn histograms(
    ev: &Eval<'_>,
    e: &Expr,
    g: Grid,
    sink: Sink<'_>,
    f: &dyn Fn(usize, Input<'_>, &str) -> f64,
) -> Result<(), Error> {
    let mut all: BTreeMap<Labels, Group> = BTreeMap::new();
    ev.vector(e, g, &mut |s| {
        ev.hold(s.col.weight())?;
        let metric = s.labels.name().to_string();
        let group = all.entry(s.labels.nameless().with("le", "")).or_default();
        let mut numbers = s.col;
        if !numbers.h.is_empty() {
            let mut native = numbers.clone();
            (0..g.n).filter(|i| native.h[*i].is_none()).for_each(|i| native.on[i] = false);
            numbers.drop_histograms();
            group.native.push(native);
            group.metric.clone_from(&metric);
        }
        if !numbers.any() {
            return Ok(());
        }
        let text = s.labels.get("le");
        let Some(bound) = bound(text) else {
            let le = crate::labels::quote(text);
            let what = format!("bucket label \"le\" is missing or has a malformed value of {le}");
            ev.warn(e.span, &(what + &for_metric(&metric)));
            return Ok(());
        };
        group.metric = metric;
        group.classic.push((bound, numbers));
        Ok(())
    })?;
    for (labels, mut group) in all {
        group.classic.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut col = Column::empty(g.n);
        for i in 0..g.n {
            let there: Vec<Bucket> =
                group.classic.iter().filter_map(|(le, c)| Some((*le, c.get(i)?))).collect();
            let mut native = group.native.iter().filter_map(|c| c.histogram(i));
            match (native.next(), there.is_empty()) {
                (Some(_), true) if native.next().is_some() => {
                    return super::fail("vector cannot contain metrics with the same labelset");
                }
                (Some(_), false) => ev.warn(
                    e.span,
                    &("vector contains a mix of classic and native histograms".to_string()
                        + &for_metric(&group.metric)),
                ),
                (Some(h), true) => col.set(i, f(i, Input::Native(h), &group.metric)),
                (None, false) => col.set(i, f(i, Input::Classic(there), &group.metric)),
                (None, true) => {}
            }
        }
        if col.any() {
            sink(Series { labels, col })?;
        }
    }
    Ok(())
}

fn for_metric(metric: &str) -> String {
    if metric.is_empty() {
        String::new()
    } else {
        format!(" for metric name {}", crate::labels::quote(metric))
    }
}

/// The φ-quantile of either kind, with what is to say about it.
fn either(ev: &Eval<'_>, e: &Expr, q: f64, input: Input<'_>, metric: &str) -> f64 {
    let h = match input {
        Input::Classic(buckets) => {
            let (v, forced) = of(q, buckets);
            if forced {
                let what = "input to histogram_quantile needed to be fixed for monotonicity (see https://prometheus.io/docs/prometheus/latest/querying/functions/#histogram_quantile)";
                ev.info(e.span, &(what.to_string() + &for_metric(metric)));
            }
            return v;
        }
        Input::Native(h) => h,
    };
    let (v, nan) = histogram::quantile(q, h);
    let what = match nan {
        Nan::Absent => return v,
        Nan::Result => "input to histogram_quantile has NaN observations, result is NaN",
        Nan::Skewed => "input to histogram_quantile has NaN observations, result is skewed higher",
    };
    ev.info(e.span, &(what.to_string() + &for_metric(metric)));
    v
}

fn bound(text: &str) -> Option<f64> {
    // Rust reads "infinity" too, as Go does; neither takes spaces.
    text.parse().ok()
}

/// Buckets of one bound added up; counts that fall are raised to the one before.
fn tidy(buckets: Vec<Bucket>) -> (Vec<Bucket>, bool) {
    let mut forced = false;
    let mut out: Vec<Bucket> = Vec::with_capacity(buckets.len());
    for (le, count) in buckets {
        match out.last_mut() {
            Some(last) if last.0 == le => last.1 += count,
            _ => out.push((le, count)),
        }
    }
    let mut before = f64::NEG_INFINITY;
    for (_, count) in &mut out {
        let small = (*count - before).abs() <= SMALL * before.abs().max(count.abs());
        if *count < before || (small && before.is_finite()) {
            forced |= !small;
            *count = before;
        }
        before = *count;
    }
    (out, forced)
}

/// `histogram_quantile(φ, buckets)`
pub(super) fn quantile(ev: &Eval<'_>, args: &[Expr], g: Grid, sink: Sink<'_>) -> Result<(), Error> {
    let q = ev.scalar(&args[0], g)?;
    q.iter().for_each(|q| warn_quantile(ev, &args[0], *q));
    histograms(ev, &args[1], g, sink, &|i, h, metric| either(ev, &args[1], q[i], h, metric))
}

/// `histogram_quantiles(buckets, "label", φ…)`
pub(super) fn quantiles(
    ev: &Eval<'_>,
    args: &[Expr],
    label: &str,
    g: Grid,
    sink: Sink<'_>,
) -> Result<(), Error> {
    for arg in &args[2..] {
        let q = ev.scalar(arg, g)?;
        q.iter().for_each(|q| warn_quantile(ev, arg, *q));
        histograms(
            ev,
            &args[0],
            g,
            &mut |s| {
                let labels = s.labels.with(label, &number(q[0]));
                sink(Series { labels, ..s })
            },
            &|i, h, metric| either(ev, &args[0], q[i], h, metric),
        )?;
    }
    Ok(())
}

/// `histogram_fraction(lower, upper, buckets)`
pub(super) fn fraction(ev: &Eval<'_>, args: &[Expr], g: Grid, sink: Sink<'_>) -> Result<(), Error> {
    let (lower, upper) = (ev.scalar(&args[0], g)?, ev.scalar(&args[1], g)?);
    histograms(ev, &args[2], g, sink, &|i, h, metric| {
        let h = match h {
            Input::Classic(buckets) => return within(lower[i], upper[i], buckets),
            Input::Native(h) => h,
        };
        let (v, nan) = histogram::fraction(lower[i], upper[i], h);
        if nan {
            let what =
                "input to histogram_fraction has NaN observations, which are excluded from all fractions";
            ev.info(args[2].span, &(what.to_string() + &for_metric(metric)));
        }
        v
    })
}

/// The φ-quantile, and whether counts had to be raised.
fn of(q: f64, buckets: Vec<Bucket>) -> (f64, bool) {
    if q.is_nan() {
        return (f64::NAN, false);
    }
    if q < 0.0 {
        return (f64::NEG_INFINITY, false);
    }
    if q > 1.0 {
        return (f64::INFINITY, false);
    }
    if buckets.last().is_none_or(|b| b.0 != f64::INFINITY) {
        return (f64::NAN, false);
    }
    let (b, forced) = tidy(buckets);
    let n = b.len();
    if n < 2 || b[n - 1].1 == 0.0 || b[n - 1].1.is_nan() {
        return (f64::NAN, false);
    }
    let rank = q * b[n - 1].1;
    let at = b[..n - 1].partition_point(|b| b.1 < rank);
    if at == n - 1 {
        return (b[n - 2].0, forced);
    }
    if at == 0 && b[0].0 <= 0.0 {
        return (b[0].0, forced);
    }
    let (start, below) = if at == 0 { (0.0, 0.0) } else { b[at - 1] };
    (start + (b[at].0 - start) * ((rank - below) / (b[at].1 - below)), forced)
}

/// The part of all observations between two values, counts spread evenly within a bucket.
fn within(lower: f64, upper: f64, buckets: Vec<Bucket>) -> f64 {
    if lower.is_nan() || upper.is_nan() || buckets.last().is_none_or(|b| b.0 != f64::INFINITY) {
        return f64::NAN;
    }
    let (b, _) = tidy(buckets);
    let total = b[b.len() - 1].1;
    if b.len() < 2 || total == 0.0 || total.is_nan() {
        return f64::NAN;
    }
    if lower >= upper {
        return 0.0;
    }
    let below = |x: f64| {
        if x == f64::NEG_INFINITY {
            return 0.0;
        }
        let at = b.partition_point(|b| b.0 < x);
        if at >= b.len() {
            return total;
        }
        let (start, count) = match at {
            0 if b[0].0 > 0.0 => (0.0, 0.0),
            0 => (f64::NEG_INFINITY, 0.0),
            _ => b[at - 1],
        };
        if x == b[at].0 {
            return b[at].1;
        }
        // Nothing is known of how the outermost buckets are filled.
        if start.is_infinite() || b[at].0.is_infinite() || x < start {
            return count;
        }
        count + (b[at].1 - count) * ((x - start) / (b[at].0 - start))
    };
    (below(upper) - below(lower)) / total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_of_buckets() {
        let of = |q, b| of(q, b).0;
        let b = vec![(0.1, 10.0), (0.5, 30.0), (1.0, 40.0), (f64::INFINITY, 40.0)];
        assert_eq!(of(0.5, b.clone()), 0.1 + 0.4 * 0.5);
        assert_eq!(of(0.0, b.clone()), 0.0);
        assert_eq!(of(1.0, b.clone()), 1.0);
        assert_eq!(of(1.5, b.clone()), f64::INFINITY);
        assert!(of(0.5, b[..3].to_vec()).is_nan());
        assert_eq!(of(0.9, vec![(1.0, 5.0), (2.0, 4.0), (f64::INFINITY, 10.0)]), 2.0);
        assert_eq!(of(0.5, vec![(-1.0, 5.0), (f64::INFINITY, 5.0)]), -1.0);
        assert_eq!(within(0.1, 0.5, b.clone()), 0.5);
        assert_eq!(within(f64::NEG_INFINITY, f64::INFINITY, b.clone()), 1.0);
        assert_eq!(within(1.0, 0.5, b), 0.0);
    }
}
