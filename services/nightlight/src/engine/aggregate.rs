//! Groups of series: sums and their like stream, rankings hold their input.

use super::{
    Column, Error, Grid, Point, Series,
    eval::{Eval, Sink},
    fail,
    native::{Says, Total},
    window::{Moments, Sum, mean, nan_first, quantile, warn_quantile},
};
use crate::{
    labels::Labels,
    promql::{Span, ast::*, number},
};
use std::{cmp::Ordering, collections::BTreeMap};

fn group(a: &Aggregate, labels: &Labels) -> Labels {
    match (a.without, a.grouping.is_empty()) {
        (true, _) => labels.without(&a.grouping).nameless(),
        (false, true) => Labels::default(),
        (false, false) => labels.only(&a.grouping),
    }
}

pub(super) fn eval(ev: &Eval<'_>, span: Span, a: &Aggregate, g: Grid, sink: Sink<'_>) -> Result<(), Error> {
    match a.op {
        AggOp::Sum => {
            let mut natives = Natives::default();
            let over = Over::Both(&mut natives);
            let groups = accumulate(ev, a, g, over, Sum::of, |s, v| s.add(v))?;
            emit_both(ev, a, groups, natives, g, sink, Sum::value)
        }
        AggOp::Avg => average(ev, a, g, sink),
        AggOp::Count | AggOp::Group | AggOp::Min | AggOp::Max | AggOp::Stdvar | AggOp::Stddev => {
            simple(ev, a, g, sink)
        }
        AggOp::Quantile => quantiles(ev, a, g, sink),
        AggOp::CountValues => count_values(ev, a, g, sink),
        AggOp::Topk | AggOp::Bottomk | AggOp::Limitk => ranking(ev, a, g, sink),
        AggOp::LimitRatio => limit_ratio(ev, span, a, g, sink),
    }
}

/// Which samples count.
enum Over<'n> {
    /// All, whatever they are.
    All,
    /// Numbers; that others are left out is said.
    Numbers,
    /// Numbers, and histograms beside them.
    Both(&'n mut Natives),
}

/// Sums of histograms, a step and group; none where they can't be added.
type Natives = BTreeMap<Labels, Vec<Native>>;

#[derive(Clone, Default)]
enum Native {
    #[default]
    Absent,
    Total(Box<Total>),
    Failed,
}

fn ignored(ev: &Eval<'_>, a: &Aggregate) {
    ev.info(a.expr.span, &format!("ignored histogram in {} aggregation", a.op.as_str()));
}

/// Adds the histograms of a series to those of its group.
fn add_natives(ev: &Eval<'_>, a: &Aggregate, s: &Series, slots: &mut [Native]) {
    for (i, slot) in slots.iter_mut().enumerate() {
        let Some(h) = s.col.histogram(i) else { continue };
        match slot {
            Native::Absent => *slot = Native::Total(Box::new(Total::of(h))),
            Native::Total(t) => {
                if t.add(h).is_err() {
                    Says::new(ev, a.expr.span, s.labels.name()).schemas();
                    *slot = Native::Failed;
                }
            }
            Native::Failed => {}
        }
    }
}

/// One accumulator a step and group.
fn accumulate<S: Copy>(
    ev: &Eval<'_>,
    a: &Aggregate,
    g: Grid,
    mut over: Over<'_>,
    first: impl Fn(f64) -> S,
    more: impl Fn(&mut S, f64),
) -> Result<BTreeMap<Labels, Vec<Option<S>>>, Error> {
    let mut groups: BTreeMap<Labels, Vec<Option<S>>> = BTreeMap::new();
    ev.vector(&a.expr, g, &mut |mut s| {
        let key = group(a, &s.labels);
        if !s.col.h.is_empty() {
            match &mut over {
                Over::All => s.col.h.clear(),
                Over::Numbers => ignored(ev, a),
                Over::Both(natives) => {
                    let slots = natives.entry(key.clone()).or_insert_with(|| vec![Native::Absent; g.n]);
                    ev.hold(s.col.weight())?;
                    add_natives(ev, a, &s, slots);
                }
            }
            s.col.drop_histograms();
            if !s.col.any() {
                return Ok(());
            }
        }
        let slots = match groups.entry(key) {
            std::collections::btree_map::Entry::Occupied(e) => e.into_mut(),
            std::collections::btree_map::Entry::Vacant(e) => {
                ev.hold(g.n)?;
                e.insert(vec![None; g.n])
            }
        };
        for (i, slot) in slots.iter_mut().enumerate() {
            if let Some(v) = s.col.get(i) {
                match slot {
                    Some(state) => more(state, v),
                    None => *slot = Some(first(v)),
                }
            }
        }
        Ok(())
    })?;
    Ok(groups)
}

/// Numbers and histograms of each group; where a group has both at a step it has neither.
fn emit_both<S: Copy>(
    ev: &Eval<'_>,
    a: &Aggregate,
    mut groups: BTreeMap<Labels, Vec<Option<S>>>,
    natives: Natives,
    g: Grid,
    sink: Sink<'_>,
    value: impl Fn(S) -> f64,
) -> Result<(), Error> {
    for (labels, slots) in natives {
        let mut col = Column::empty(g.n);
        let numbers = groups.remove(&labels).unwrap_or_else(|| vec![None; g.n]);
        for (i, (number, native)) in numbers.into_iter().zip(slots).enumerate() {
            match (number, native) {
                (Some(v), Native::Absent) => col.set(i, value(v)),
                (Some(_), _) => {
                    ev.warn(a.expr.span, "encountered a mix of histograms and floats for aggregation");
                }
                (None, Native::Total(t)) => {
                    let (h, said) = t.end(a.op == AggOp::Avg);
                    Says::new(ev, a.expr.span, "").added(said, "aggregation");
                    col.put(i, Point::Histogram(std::sync::Arc::new(h)));
                }
                (None, _) => {}
            }
        }
        if col.any() {
            sink(Series { labels, col })?;
        }
    }
    emit(groups, sink, value)
}

fn emit<S: Copy>(
    groups: BTreeMap<Labels, Vec<Option<S>>>,
    sink: Sink<'_>,
    value: impl Fn(S) -> f64,
) -> Result<(), Error> {
    for (labels, slots) in groups {
        let mut col = Column::empty(slots.len());
        for (i, slot) in slots.iter().enumerate() {
            if let Some(s) = slot {
                col.set(i, value(*s));
            }
        }
        if col.any() {
            sink(Series { labels, col })?;
        }
    }
    Ok(())
}

/// The mean by the sum; a second time, divided first, in the rare case that the sum is beyond all numbers.
fn average(ev: &Eval<'_>, a: &Aggregate, g: Grid, sink: Sink<'_>) -> Result<(), Error> {
    let mut natives = Natives::default();
    let groups = accumulate(
        ev,
        a,
        g,
        Over::Both(&mut natives),
        |v| (Sum::of(v), 1u32, v.is_infinite()),
        |s, v| {
            s.0.add(v);
            s.1 += 1;
            s.2 |= v.is_infinite();
        },
    )?;
    let overflown = groups.values().flatten().flatten().any(|s| s.0.value().is_infinite() && !s.2);
    if !overflown {
        return emit_both(ev, a, groups, natives, g, sink, |s| s.0.value() / f64::from(s.1));
    }
    let mut means: BTreeMap<Labels, Vec<Option<f64>>> = BTreeMap::new();
    for (labels, members) in gather(ev, a, g)? {
        let slots = means.entry(labels).or_default();
        for i in 0..g.n {
            let values: Vec<f64> = members.iter().filter_map(|m| m.col.get(i)).collect();
            slots.push(values.split_first().map(|(first, rest)| {
                let mut sum = Sum::of(*first);
                rest.iter().for_each(|v| sum.add(*v));
                mean(sum, &values)
            }));
        }
    }
    emit_both(ev, a, means, natives, g, sink, |v| v)
}

fn simple(ev: &Eval<'_>, a: &Aggregate, g: Grid, sink: Sink<'_>) -> Result<(), Error> {
    match a.op {
        AggOp::Count => emit(accumulate(ev, a, g, Over::All, |_| 1.0, |n, _| *n += 1.0)?, sink, |n| n),
        AggOp::Group => emit(accumulate(ev, a, g, Over::All, |_| 1.0, |_, _| ())?, sink, |n| n),
        AggOp::Min => {
            let less = |old: &mut f64, v: f64| {
                if v < *old || old.is_nan() {
                    *old = v;
                }
            };
            emit(accumulate(ev, a, g, Over::Numbers, |v| v, less)?, sink, |v| v)
        }
        AggOp::Max => {
            let more = |old: &mut f64, v: f64| {
                if v > *old || old.is_nan() {
                    *old = v;
                }
            };
            emit(accumulate(ev, a, g, Over::Numbers, |v| v, more)?, sink, |v| v)
        }
        op => {
            // Measured from the first value, so that what great values share takes no digits.
            let base = |v: f64| if v.is_finite() { v } else { 0.0 };
            let groups = accumulate(
                ev,
                a,
                g,
                Over::Numbers,
                |v| (base(v), Moments::of(v - base(v))),
                |(base, m), v| m.add(v - *base),
            )?;
            let root = op == AggOp::Stddev;
            emit(groups, sink, |(_, m)| if root { (m.m2 / m.n).sqrt() } else { m.m2 / m.n })
        }
    }
}

/// All series of each group.
fn gather(ev: &Eval<'_>, a: &Aggregate, g: Grid) -> Result<BTreeMap<Labels, Vec<Series>>, Error> {
    let mut all: BTreeMap<Labels, Vec<Series>> = BTreeMap::new();
    let numbers = a.op != AggOp::Limitk;
    ev.vector(&a.expr, g, &mut |mut s| {
        if numbers && !s.col.h.is_empty() {
            // Means of histograms are made elsewhere.
            if a.op != AggOp::Avg {
                ignored(ev, a);
            }
            s.col.drop_histograms();
        }
        if s.col.any() {
            ev.hold(s.col.weight())?;
            all.entry(group(a, &s.labels)).or_default().push(s);
        }
        Ok(())
    })?;
    Ok(all)
}

/// `f(step, values of the group there)` for each group and step.
fn emit_gathered(
    all: BTreeMap<Labels, Vec<Series>>,
    g: Grid,
    sink: Sink<'_>,
    f: &dyn Fn(usize, &mut [f64]) -> f64,
) -> Result<(), Error> {
    let mut values = Vec::new();
    for (labels, members) in all {
        let mut col = Column::empty(g.n);
        for i in 0..g.n {
            values.clear();
            values.extend(members.iter().filter_map(|m| m.col.get(i)));
            if !values.is_empty() {
                col.set(i, f(i, &mut values));
            }
        }
        if col.any() {
            sink(Series { labels, col })?;
        }
    }
    Ok(())
}

fn param(a: &Aggregate) -> Result<&Expr, Error> {
    a.param.as_ref().map_or_else(|| fail("aggregation lacks its parameter"), Ok)
}

fn quantiles(ev: &Eval<'_>, a: &Aggregate, g: Grid, sink: Sink<'_>) -> Result<(), Error> {
    let p = param(a)?;
    let q = ev.scalar(p, g)?;
    q.iter().for_each(|q| warn_quantile(ev, p, *q));
    emit_gathered(gather(ev, a, g)?, g, sink, &|i, values| {
        values.sort_unstable_by(nan_first);
        quantile(q[i], values)
    })
}

fn count_values(ev: &Eval<'_>, a: &Aggregate, g: Grid, sink: Sink<'_>) -> Result<(), Error> {
    let label = match &param(a)?.bare().kind {
        Kind::String(s) if !s.is_empty() => s.as_str(),
        _ => return fail("invalid label name \"\""),
    };
    let mut counts: BTreeMap<Labels, Column> = BTreeMap::new();
    ev.vector(&a.expr, g, &mut |s| {
        // `by (label)` would keep the series' own value of the label, which the counted value replaces.
        let base = group(a, &s.labels);
        let mut last: Option<(Point, Labels)> = None;
        for i in 0..g.n {
            let Some(v) = s.col.point(i) else { continue };
            let labels = match (&last, &v) {
                (Some((before, labels)), v) if before == v => labels.clone(),
                (_, Point::Number(v)) => base.with(label, &number(*v)),
                (_, Point::Histogram(h)) => base.with(label, &h.to_string()),
            };
            let col = match counts.entry(labels.clone()) {
                std::collections::btree_map::Entry::Occupied(e) => e.into_mut(),
                std::collections::btree_map::Entry::Vacant(e) => {
                    ev.hold(g.n)?;
                    e.insert(Column::empty(g.n))
                }
            };
            col.set(i, if col.on[i] { col.v[i] + 1.0 } else { 1.0 });
            last = Some((v, labels));
        }
        Ok(())
    })?;
    counts.into_iter().try_for_each(|(labels, col)| sink(Series { labels, col }))
}

/// How many a step; none for a number below 1.
fn count(k: f64) -> Result<usize, Error> {
    if k.is_nan() {
        return fail("Parameter value is NaN");
    }
    if k >= i64::MAX as f64 {
        return fail(format!("Scalar value {} overflows int64", number(k)));
    }
    if k <= i64::MIN as f64 {
        return fail(format!("Scalar value {} underflows int64", number(k)));
    }
    Ok(if k < 1.0 { 0 } else { k as usize })
}

/// `topk`, `bottomk`, `limitk`: series as they came, at the steps where they are among the first `k`.
fn ranking(ev: &Eval<'_>, a: &Aggregate, g: Grid, sink: Sink<'_>) -> Result<(), Error> {
    let k = ev.scalar(param(a)?, g)?.into_iter().map(count).collect::<Result<Vec<_>, _>>()?;
    let before = |x: f64, y: f64| match (a.op, x.is_nan(), y.is_nan()) {
        (AggOp::Limitk, ..) => Ordering::Equal,
        // NaN comes after every number.
        (_, true, _) | (_, _, true) => x.is_nan().cmp(&y.is_nan()),
        (AggOp::Topk, ..) => y.partial_cmp(&x).unwrap_or(Ordering::Equal),
        _ => x.partial_cmp(&y).unwrap_or(Ordering::Equal),
    };
    for (_, mut members) in gather(ev, a, g)? {
        let mut order: Vec<usize> = Vec::with_capacity(members.len());
        for i in 0..g.n {
            order.clear();
            order.extend((0..members.len()).filter(|m| members[*m].col.on[i]));
            // Equal values: the one that came first.
            let by = |x: &usize, y: &usize| before(members[*x].col.v[i], members[*y].col.v[i]).then(x.cmp(y));
            if order.len() > k[i] && k[i] > 0 {
                order.select_nth_unstable_by(k[i], by);
            }
            for m in &order[k[i].min(order.len())..] {
                members[*m].col.on[i] = false;
            }
        }
        if g.n == 1 {
            members.sort_by(|x, y| before(x.col.v[0], y.col.v[0]));
        }
        members.into_iter().filter(|s| s.col.any()).try_for_each(&mut *sink)?;
    }
    Ok(())
}

/// A fixed part of all series, chosen by the hash of their labels: the same ones at each step and in each query;
/// `-r` takes exactly those that `1 - r` leaves.
fn limit_ratio(ev: &Eval<'_>, span: Span, a: &Aggregate, g: Grid, sink: Sink<'_>) -> Result<(), Error> {
    let mut ratio = ev.scalar(param(a)?, g)?;
    for r in &mut ratio {
        if r.is_nan() {
            return fail("Ratio value is NaN");
        }
        if r.abs() > 1.0 {
            let capped = r.signum();
            let (was, is) = (number(*r), number(capped));
            ev.warn(span, &format!("ratio value should be between -1 and 1, got {was}, capping to {is}"));
            *r = capped;
        }
    }
    ev.vector(&a.expr, g, &mut |mut s| {
        let at = position(&s.labels);
        for (on, r) in s.col.on.iter_mut().zip(&ratio) {
            *on &= if *r >= 0.0 { at < *r } else { at >= 1.0 + r };
        }
        if s.col.any() { sink(s) } else { Ok(()) }
    })
}

/// Where in 0..1 the hash of a series falls: xxHash64 over its labels, as Prometheus chooses.
fn position(labels: &Labels) -> f64 {
    let mut bytes = Vec::new();
    for (name, value) in labels.iter() {
        bytes.extend_from_slice(name.as_bytes());
        bytes.push(0xff);
        bytes.extend_from_slice(value.as_bytes());
        bytes.push(0xff);
    }
    xxhash_rust::xxh64::xxh64(&bytes, 0) as f64 / u64::MAX as f64
}
