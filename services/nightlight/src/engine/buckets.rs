//! Classic histograms: series that differ in `le`, each counting what is not above it.

use super::{
    Column, Error, Grid, Series,
    eval::{Eval, Sink},
    window::warn_quantile,
};
use crate::{
    labels::Labels,
    promql::{Expr, number},
};
use std::collections::BTreeMap;

/// A bucket that falls by less than this part of the count before it is taken as rounding.
const SMALL: f64 = 1e-12;

/// Upper bound and cumulative count.
type Bucket = (f64, f64);

/// Calls `f` with the buckets of every histogram at every step, and gives what it answers.
fn histograms(
    ev: &Eval<'_>,
    e: &Expr,
    g: Grid,
    sink: Sink<'_>,
    f: &dyn Fn(usize, Vec<Bucket>) -> f64,
) -> Result<(), Error> {
    let mut all: BTreeMap<Labels, Vec<(f64, Column)>> = BTreeMap::new();
    ev.vector(e, g, &mut |s| {
        let text = s.labels.get("le");
        let Some(bound) = bound(text) else {
            let (le, metric) = (crate::labels::quote(text), crate::labels::quote(s.labels.name()));
            ev.warn(
                e.span,
                &format!(
                    "bucket label \"le\" is missing or has a malformed value of {le} for metric name {metric}"
                ),
            );
            return Ok(());
        };
        ev.hold(g.n)?;
        all.entry(s.labels.nameless().with("le", "")).or_default().push((bound, s.col));
        Ok(())
    })?;
    for (labels, mut buckets) in all {
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut col = Column::empty(g.n);
        for i in 0..g.n {
            let there: Vec<Bucket> = buckets.iter().filter_map(|(le, c)| Some((*le, c.get(i)?))).collect();
            if !there.is_empty() {
                col.set(i, f(i, there));
            }
        }
        if col.any() {
            sink(Series { labels, col })?;
        }
    }
    Ok(())
}

fn bound(text: &str) -> Option<f64> {
    // Rust reads "infinity" too, as Go does; neither takes spaces.
    text.parse().ok()
}

/// Buckets of one bound added up; counts that fall are raised to the one before.
fn tidy(buckets: Vec<Bucket>) -> Vec<Bucket> {
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
            *count = before;
        }
        before = *count;
    }
    out
}

/// `histogram_quantile(φ, buckets)`
pub(super) fn quantile(ev: &Eval<'_>, args: &[Expr], g: Grid, sink: Sink<'_>) -> Result<(), Error> {
    let q = ev.scalar(&args[0], g)?;
    q.iter().for_each(|q| warn_quantile(ev, &args[0], *q));
    histograms(ev, &args[1], g, sink, &|i, buckets| of(q[i], buckets))
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
            &|i, buckets| of(q[i], buckets),
        )?;
    }
    Ok(())
}

/// `histogram_fraction(lower, upper, buckets)`
pub(super) fn fraction(ev: &Eval<'_>, args: &[Expr], g: Grid, sink: Sink<'_>) -> Result<(), Error> {
    let (lower, upper) = (ev.scalar(&args[0], g)?, ev.scalar(&args[1], g)?);
    histograms(ev, &args[2], g, sink, &|i, buckets| within(lower[i], upper[i], buckets))
}

fn of(q: f64, buckets: Vec<Bucket>) -> f64 {
    if q.is_nan() {
        return f64::NAN;
    }
    if q < 0.0 {
        return f64::NEG_INFINITY;
    }
    if q > 1.0 {
        return f64::INFINITY;
    }
    if buckets.last().is_none_or(|b| b.0 != f64::INFINITY) {
        return f64::NAN;
    }
    let b = tidy(buckets);
    let n = b.len();
    if n < 2 || b[n - 1].1 == 0.0 || b[n - 1].1.is_nan() {
        return f64::NAN;
    }
    let rank = q * b[n - 1].1;
    let at = b[..n - 1].partition_point(|b| b.1 < rank);
    if at == n - 1 {
        return b[n - 2].0;
    }
    if at == 0 && b[0].0 <= 0.0 {
        return b[0].0;
    }
    let (start, below) = if at == 0 { (0.0, 0.0) } else { b[at - 1] };
    start + (b[at].0 - start) * ((rank - below) / (b[at].1 - below))
}

/// The part of all observations between two values, counts spread evenly within a bucket.
fn within(lower: f64, upper: f64, buckets: Vec<Bucket>) -> f64 {
    if lower.is_nan() || upper.is_nan() || buckets.last().is_none_or(|b| b.0 != f64::INFINITY) {
        return f64::NAN;
    }
    let b = tidy(buckets);
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
