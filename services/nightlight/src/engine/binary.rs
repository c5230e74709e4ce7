//! Operators: between numbers, between series and numbers, and between series that match.

use super::{
    Column, Error, Grid, Point, Series,
    eval::{Eval, Sink},
    fail,
    native::Operator,
};
use crate::{
    labels::{Labels, NAME, Str},
    promql::{Span, Type, ast::*},
};
use std::collections::HashMap;

/// What `op` makes of two numbers; for a comparison: whether it holds, as 1 or 0.
pub(super) fn scalar(op: Op, l: f64, r: f64) -> f64 {
    match op {
        Op::Add => l + r,
        Op::Sub => l - r,
        Op::Mul => l * r,
        Op::Div => l / r,
        Op::Mod => l % r,
        Op::Pow => pow(l, r),
        Op::Atan2 => l.atan2(r),
        _ => f64::from(u8::from(compare(op, l, r))),
    }
}

/// C's `pow`, which Go's agrees with: 1^NaN and x^0 are 1.
pub(super) fn pow(l: f64, r: f64) -> f64 {
    l.powf(r)
}

fn compare(op: Op, l: f64, r: f64) -> bool {
    match op {
        Op::Eq => l == r,
        Op::Ne => l != r,
        Op::Lt => l < r,
        Op::Le => l <= r,
        Op::Gt => l > r,
        Op::Ge => l >= r,
        _ => true,
    }
}

/// One element: none where a comparison filters it out. `kept` is what a filter lets through.
fn element(b: &Binary, l: f64, r: f64, kept: f64) -> Option<f64> {
    match b.op.is_comparison() {
        true if b.return_bool => Some(scalar(b.op, l, r)),
        true => compare(b.op, l, r).then_some(kept),
        false => Some(scalar(b.op, l, r)),
    }
}

/// The same where either may be a histogram.
fn any_element(op: &Operator<'_, '_>, b: &Binary, l: &Point, r: &Point, kept: &Point) -> Option<Point> {
    let out = op.apply(l, r)?;
    match (b.op.is_comparison() && !b.return_bool, &out) {
        (true, Point::Number(holds)) => (*holds == 1.0).then(|| kept.clone()),
        _ => Some(out),
    }
}

fn drops_name(b: &Binary) -> bool {
    !b.op.is_comparison() || b.return_bool
}

pub(super) fn eval(ev: &Eval<'_>, span: Span, b: &Binary, g: Grid, sink: Sink<'_>) -> Result<(), Error> {
    let op = Operator::new(ev, b.op, span);
    match (b.lhs.ty(), b.rhs.ty()) {
        (Type::Vector, Type::Scalar) => {
            let r = ev.scalar(&b.rhs, g)?;
            with_scalar(ev, b, &b.lhs, g, sink, &|i, v| match v {
                Point::Number(v) if !b.op.is_trim() => element(b, v, r[i], v).map(Point::Number),
                v => any_element(&op, b, &v, &Point::Number(r[i]), &v),
            })
        }
        (Type::Scalar, Type::Vector) => {
            let l = ev.scalar(&b.lhs, g)?;
            with_scalar(ev, b, &b.rhs, g, sink, &|i, v| match v {
                Point::Number(v) => element(b, l[i], v, v).map(Point::Number),
                v => any_element(&op, b, &Point::Number(l[i]), &v, &v),
            })
        }
        _ if b.op.is_set() => set(ev, b, g, sink),
        _ => join(ev, &op, b, g, sink),
    }
}

fn with_scalar(
    ev: &Eval<'_>,
    b: &Binary,
    e: &Expr,
    g: Grid,
    sink: Sink<'_>,
    f: &dyn Fn(usize, Point) -> Option<Point>,
) -> Result<(), Error> {
    let change = |col: &mut Column| {
        for i in 0..col.v.len() {
            if let Some(v) = col.point(i) {
                match f(i, v) {
                    Some(v) => col.put(i, v),
                    None => col.unset(i),
                }
            }
        }
    };
    if drops_name(b) {
        let mut some = |s: Series| if s.col.any() { sink(s) } else { Ok(()) };
        return ev.nameless(e, g, &mut some, &change);
    }
    ev.vector(e, g, &mut |mut s| {
        change(&mut s.col);
        if s.col.any() { sink(s) } else { Ok(()) }
    })
}

/// What of a series' labels decides whom it matches.
fn signature(m: &Matching, labels: &Labels) -> Labels {
    if m.on { labels.only(&m.labels) } else { labels.without(&m.labels).nameless() }
}

/// `and`, `or`, `unless`: whether something of the other side is there at the same step.
fn set(ev: &Eval<'_>, b: &Binary, g: Grid, sink: Sink<'_>) -> Result<(), Error> {
    let m = &b.matching;
    let mut there: HashMap<Labels, Vec<bool>> = HashMap::new();
    let mut mark = |s: &Series| -> Result<(), Error> {
        let slot = match there.entry(signature(m, &s.labels)) {
            std::collections::hash_map::Entry::Occupied(e) => e.into_mut(),
            std::collections::hash_map::Entry::Vacant(e) => {
                ev.hold(g.n)?;
                e.insert(vec![false; g.n])
            }
        };
        slot.iter_mut().zip(&s.col.on).for_each(|(a, b)| *a |= *b);
        Ok(())
    };
    let strip = |s: &mut Series, there: &HashMap<Labels, Vec<bool>>, keep_where: bool| {
        let found = there.get(&signature(m, &s.labels));
        for i in 0..g.n {
            s.col.on[i] &= found.is_some_and(|f| f[i]) == keep_where;
        }
        s.col.any()
    };
    if b.op != Op::Or {
        ev.vector(&b.rhs, g, &mut |s| mark(&s))?;
        return ev.vector(&b.lhs, g, &mut |mut s| {
            if strip(&mut s, &there, b.op == Op::And) { sink(s) } else { Ok(()) }
        });
    }
    let mut distinct = ev.distinct(true);
    ev.vector(&b.lhs, g, &mut |s| {
        mark(&s)?;
        distinct.pass(s, &mut *sink)
    })?;
    ev.vector(&b.rhs, g, &mut |mut s| {
        if strip(&mut s, &there, false) { distinct.pass(s, &mut *sink) } else { Ok(()) }
    })?;
    distinct.end(sink)
}

/// The series of the "one" side that share a signature: at each step at most one of them has a value.
struct One {
    col: Column,
    /// Which of `labels` it is, at each step.
    who: Vec<u32>,
    labels: Vec<Labels>,
    /// Steps at which the other side had a partner.
    met: Vec<bool>,
    /// Steps at which two had a value: an error as soon as the other side has anything there.
    twice: Option<(usize, Labels, Labels)>,
}

/// Arithmetic and comparison between series of both sides with equal signatures.
fn join(ev: &Eval<'_>, op: &Operator<'_, '_>, b: &Binary, g: Grid, sink: Sink<'_>) -> Result<(), Error> {
    let m = &b.matching;
    // "Many" is the side that may have several series a signature; the left one when neither may.
    let swapped = m.card == Card::OneToMany;
    let (many, one) = if swapped { (&b.rhs, &b.lhs) } else { (&b.lhs, &b.rhs) };
    let (fill_many, fill_one) =
        if swapped { (m.fill_right, m.fill_left) } else { (m.fill_left, m.fill_right) };
    let mut ones: HashMap<Labels, One> = HashMap::new();
    ev.vector(one, g, &mut |s| {
        ev.hold(s.col.weight())?;
        let slot = ones.entry(signature(m, &s.labels)).or_insert_with(|| One {
            col: Column::empty(g.n),
            who: vec![0; g.n],
            labels: Vec::new(),
            met: vec![false; g.n],
            twice: None,
        });
        for i in 0..g.n {
            let Some(v) = s.col.point(i) else { continue };
            if slot.col.on[i] && slot.twice.is_none() {
                slot.twice = Some((i, slot.labels[slot.who[i] as usize].clone(), s.labels.clone()));
            }
            slot.col.put(i, v);
            slot.who[i] = slot.labels.len() as u32;
        }
        slot.labels.push(s.labels);
        Ok(())
    })?;
    let compute = |many: Point, one: Point| {
        let (l, r) = if swapped { (one, many) } else { (many, one) };
        match (l, r) {
            (Point::Number(l), Point::Number(r)) => element(b, l, r, l).map(Point::Number),
            (l, r) => any_element(op, b, &l, &r, &l),
        }
    };
    let mut many_there = vec![false; g.n];
    let mut out = ev.distinct(true);
    // Of one-to-one: the steps at which a signature has had its one partner.
    let mut taken: HashMap<Labels, Vec<bool>> = HashMap::new();
    let none = Labels::default();
    let mut matched: Vec<Series> = Vec::new();
    ev.vector(many, g, &mut |s| {
        many_there.iter_mut().zip(&s.col.on).for_each(|(a, b)| *a |= *b);
        let sig = signature(m, &s.labels);
        let mut partner = ones.get_mut(&sig);
        if partner.is_none() && fill_one.is_none() {
            return Ok(());
        }
        let has_taken = m.card == Card::OneToOne;
        if has_taken && !taken.contains_key(&sig) {
            ev.hold(g.n)?;
            taken.insert(sig.clone(), vec![false; g.n]);
        }
        // The partner may change from step to step, and the labels that it gives with it.
        let mut parts: Vec<(Option<u32>, Series)> = Vec::new();
        for i in 0..g.n {
            let Some(v) = s.col.point(i) else { continue };
            let (other, who) = match (&mut partner, fill_one) {
                (Some(p), _) if p.col.on[i] => {
                    p.met[i] = true;
                    let Some(v) = p.col.point(i) else { continue };
                    (v, Some(p.who[i]))
                }
                (_, Some(fill)) => (Point::Number(fill), None),
                _ => continue,
            };
            let Some(v) = compute(v, other) else { continue };
            if has_taken && let Some(taken) = taken.get_mut(&sig) {
                if taken[i] {
                    return fail(
                        "multiple matches for labels: many-to-one matching must be explicit (group_left/group_right)",
                    );
                }
                taken[i] = true;
            }
            let at = match parts.iter().position(|p| p.0 == who) {
                Some(at) => at,
                None => {
                    let theirs = match (&partner, who) {
                        (Some(p), Some(w)) => &p.labels[w as usize],
                        _ => &none,
                    };
                    let labels = result_labels(b, &s.labels, theirs);
                    parts.push((who, Series { labels, col: Column::empty(g.n) }));
                    parts.len() - 1
                }
            };
            parts[at].1.col.put(i, v);
        }
        matched.extend(parts.into_iter().map(|p| p.1));
        Ok(())
    })?;
    for one in ones.values() {
        if let Some((i, a, c)) = &one.twice
            && many_there[*i]
        {
            let side = if swapped { "left" } else { "right" };
            let sig = signature(m, a);
            return fail(format!(
                "found duplicate series for the match group {sig} on the {side} hand-side of the operation: [{c}, {a}];many-to-many matching not allowed: matching labels must be unique on one side"
            ));
        }
    }
    for s in matched {
        out.pass(s, &mut *sink).map_err(|e| match e {
            Error::Execution(_) if m.card != Card::OneToOne => Error::Execution(
                "multiple matches for labels: grouping labels must ensure unique matches".into(),
            ),
            e => e,
        })?;
    }
    if let Some(fill) = fill_many {
        for (sig, one) in &ones {
            for (w, labels) in one.labels.iter().enumerate() {
                let mut col = Column::empty(g.n);
                for i in 0..g.n {
                    if !one.met[i]
                        && one.who[i] as usize == w
                        && let Some(v) = one.col.point(i)
                        && let Some(v) = compute(Point::Number(fill), v)
                    {
                        col.put(i, v);
                    }
                }
                if col.any() {
                    let ours = if m.card == Card::OneToOne { labels } else { sig };
                    out.pass(Series { labels: result_labels(b, ours, labels), col }, &mut *sink)?;
                }
            }
        }
    }
    out.end(sink)
}

/// Labels of a result: those of the "many" side, or what both sides share.
fn result_labels(b: &Binary, many: &Labels, one: &Labels) -> Labels {
    let m = &b.matching;
    let mut out = if drops_name(b) { many.nameless() } else { many.clone() };
    if m.card == Card::OneToOne {
        return if m.on { out.only(&m.labels) } else { out.without(&m.labels) };
    }
    let include = m.include.iter().filter(|l: &&Str| !drops_name(b) || ***l != *NAME);
    for label in include {
        out = out.with(label, one.get(label));
    }
    out
}
