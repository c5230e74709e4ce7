//! The walk over the tree.

use super::{
    Cancel, Column, Error, Grid, Notes, Point, Query, Samples, Series, Stats, Storage, Value, call,
    explain::{Shared, Trace},
    fail, is_stale,
};
use crate::{
    labels::{Labels, MatchOp, NAME},
    promql::{Expr, Span, Type, ast::*, duration, position},
};
use std::{cell::RefCell, collections::HashMap, sync::Arc};

/// Receives one series after the other.
pub(super) type Sink<'a> = &'a mut dyn FnMut(Series) -> Result<(), Error>;

/// The windows of a function over a range: window `i` is `(ends.at(i) - range, ends.at(i)]`.
#[derive(Clone, Copy)]
pub(super) struct Windows {
    pub ends: Grid,
    pub range: i64,
    /// The instants of evaluation, before `offset` and `@`.
    pub steps: Grid,
}

pub(super) struct Eval<'a> {
    storage: &'a dyn Storage,
    text: &'a str,
    pub query: Query,
    cancel: &'a Cancel,
    notes: RefCell<Notes>,
    stats: RefCell<Stats>,
    shared: Shared,
    trace: Option<Trace<'a>>,
}

/// Most remarks of each kind.
const NOTES_MAX: usize = 10;

impl<'a> Eval<'a> {
    pub fn new(
        storage: &'a dyn Storage,
        text: &'a str,
        expr: &Expr,
        query: Query,
        cancel: &'a Cancel,
        trace: Option<Trace<'a>>,
    ) -> Self {
        let shared = Shared::of(expr, text);
        let (notes, stats) = (RefCell::default(), RefCell::default());
        Eval { storage, text, query, cancel, notes, stats, shared, trace }
    }

    pub fn finish(self) -> (Notes, Stats, Option<Trace<'a>>) {
        (self.notes.into_inner(), self.stats.into_inner(), self.trace)
    }

    /// Calls `f` with a sink that counts what goes through it, and writes down what it took.
    fn measured(
        &self,
        e: &Expr,
        sink: Sink<'_>,
        f: &dyn Fn(Sink<'_>) -> Result<bool, Error>,
    ) -> Result<(), Error> {
        let Some(trace) = &self.trace else { return f(sink).map(|_| ()) };
        trace.enter(e);
        let (begun, before) = (trace.now(), self.stats.borrow().samples);
        let (mut series, mut bytes, mut elsewhere) = (0, 0, 0);
        let done = f(&mut |s| {
            series += 1;
            bytes += (s.col.weight() * super::POINT_BYTES) as u64;
            let left = trace.now();
            let done = sink(s);
            elsewhere += trace.now().saturating_sub(left);
            done
        });
        let took = trace.now().saturating_sub(begun).saturating_sub(elsewhere);
        let samples = self.stats.borrow().samples - before;
        trace.leave(series, bytes, took, samples, matches!(done, Ok(true)));
        done.map(|_| ())
    }

    /// The series of a node; if it has equals they are kept for these. True: they were.
    fn once(&self, e: &Expr, g: Grid, sink: Sink<'_>) -> Result<bool, Error> {
        let Some(group) = self.shared.group(e) else { return self.node(e, g, sink).map(|()| false) };
        if let Some(all) = self.shared.get(group, g) {
            all.into_iter().try_for_each(sink)?;
            return Ok(true);
        }
        let remarks = |n: &Notes| n.warnings.len() + n.infos.len();
        let before = remarks(&self.notes.borrow());
        let mut kept = Vec::new();
        self.node(e, g, &mut |s| {
            self.hold(s.col.weight())?;
            kept.push(s.clone());
            sink(s)
        })?;
        // Remarks have positions: the equal node has to make its own.
        if remarks(&self.notes.borrow()) == before {
            self.shared.keep(group, g, kept);
        }
        Ok(false)
    }

    fn note(&self, kind: &str, span: Span, message: &str) -> String {
        let (line, column) = position(self.text, span);
        format!("PromQL {kind}: {message} ({line}:{column})")
    }

    pub fn warn(&self, span: Span, message: &str) {
        let all = &mut self.notes.borrow_mut().warnings;
        if all.len() < NOTES_MAX {
            all.insert(self.note("warning", span, message));
        }
    }

    pub fn info(&self, span: Span, message: &str) {
        let all = &mut self.notes.borrow_mut().infos;
        if all.len() < NOTES_MAX {
            all.insert(self.note("info", span, message));
        }
    }

    /// Counts points that are kept until the query ends.
    pub fn hold(&self, points: usize) -> Result<(), Error> {
        let mut stats = self.stats.borrow_mut();
        stats.points += points as u64;
        if stats.points > self.query.limits.points {
            return Err(Error::Limit(
                "query processing would load too many samples into memory in query execution".into(),
            ));
        }
        Ok(())
    }

    fn loaded(&self, samples: usize) -> Result<(), Error> {
        self.cancel.check()?;
        let mut stats = self.stats.borrow_mut();
        stats.series += 1;
        stats.samples += samples as u64;
        if stats.samples > self.query.limits.samples {
            return Err(Error::Limit(format!(
                "query reads more than {} samples: narrow the selectors or the time range",
                self.query.limits.samples
            )));
        }
        Ok(())
    }

    /// The value of the whole query.
    pub fn top(&self, e: &Expr, g: Grid, instant: bool) -> Result<Value, Error> {
        match e.ty() {
            Type::String => match &e.bare().kind {
                Kind::String(s) => Ok(Value::String(g.start, s.clone())),
                _ => fail("expected a string"),
            },
            Type::Scalar if instant => Ok(Value::Scalar(g.start, self.scalar(e, g)?[0])),
            Type::Scalar => {
                let v = self.scalar(e, g)?;
                let t = (0..g.n).map(|i| g.at(i)).collect();
                Ok(Value::Matrix(vec![(Labels::default(), Samples::numbers(t, v))]))
            }
            Type::Matrix => {
                let mut out = Vec::new();
                let ends = ends_of(e);
                self.windows(e, g, &mut |labels, s, w| {
                    self.hold(s.weight())?;
                    let end = w.ends.at(0);
                    let s = match ends {
                        Ends::Plain => s.clone(),
                        ends => super::ends::shown(s, end - w.range, end, ends == Ends::Smoothed),
                    };
                    if !s.is_empty() {
                        out.push((labels.clone(), s));
                    }
                    Ok(())
                })?;
                out.sort_by(|a, b| a.0.cmp(&b.0));
                Ok(Value::Matrix(out))
            }
            Type::Vector if instant => {
                let mut out = Vec::new();
                self.vector(e, g, &mut |s| {
                    if let Some(p) = s.col.point(0) {
                        self.hold(s.col.weight())?;
                        out.push((s.labels, g.start, p));
                    }
                    Ok(())
                })?;
                if !is_ordered(e) {
                    out.sort_by(|a, b| a.0.cmp(&b.0));
                }
                Ok(Value::Vector(out))
            }
            Type::Vector => {
                let mut out = Vec::new();
                self.vector(e, g, &mut |s| {
                    let mut points = Samples::default();
                    for i in 0..g.n {
                        if let Some(p) = s.col.point(i) {
                            points.push(g.at(i), p);
                        }
                    }
                    self.hold(points.weight())?;
                    if !points.t.is_empty() {
                        out.push((s.labels, points));
                    }
                    Ok(())
                })?;
                out.sort_by(|a, b| a.0.cmp(&b.0));
                Ok(Value::Matrix(out))
            }
        }
    }

    /// A number for each step.
    pub fn scalar(&self, e: &Expr, g: Grid) -> Result<Vec<f64>, Error> {
        match &e.kind {
            Kind::Number { value, .. } => Ok(vec![*value; g.n]),
            Kind::Paren(inner) => self.scalar(inner, g),
            Kind::Unary { negative, expr } => {
                let mut v = self.scalar(expr, g)?;
                if *negative {
                    v.iter_mut().for_each(|v| *v = -*v);
                }
                Ok(v)
            }
            Kind::Binary(b) => {
                let (mut l, r) = (self.scalar(&b.lhs, g)?, self.scalar(&b.rhs, g)?);
                l.iter_mut().zip(r).for_each(|(l, r)| *l = super::binary::scalar(b.op, *l, r));
                Ok(l)
            }
            Kind::Call { function, args } => self.scalar_call(function.name, args, g),
            _ => fail("expected a scalar"),
        }
    }

    fn scalar_call(&self, name: &str, args: &[Expr], g: Grid) -> Result<Vec<f64>, Error> {
        let q = self.query;
        let seconds = |ms: i64| Ok(vec![ms as f64 / 1000.0; g.n]);
        match (name, args) {
            ("time", _) => Ok((0..g.n).map(|i| g.at(i) as f64 / 1000.0).collect()),
            ("pi", _) => Ok(vec![std::f64::consts::PI; g.n]),
            ("start", _) => seconds(q.start_ms),
            ("end", _) => seconds(q.end_ms),
            ("range", _) => seconds(q.end_ms - q.start_ms),
            ("step", _) => seconds(q.step_ms),
            ("scalar", [arg]) => {
                // The value, where exactly one series has one.
                let (mut out, mut seen) = (vec![f64::NAN; g.n], vec![false; g.n]);
                self.vector(arg, g, &mut |s| {
                    for i in 0..g.n {
                        if let Some(v) = s.col.get(i) {
                            out[i] = if seen[i] { f64::NAN } else { v };
                            seen[i] = true;
                        }
                    }
                    Ok(())
                })?;
                Ok(out)
            }
            _ => fail(format!("function {name} is not evaluated to a scalar")),
        }
    }

    /// The series of an instant vector, one after the other.
    pub fn vector(&self, e: &Expr, g: Grid, sink: Sink<'_>) -> Result<(), Error> {
        if g.n > 1 && invariant(e) {
            let one = Grid { n: 1, ..g };
            return self.measured(
                e,
                &mut |s| {
                    let repeat = |h: &Option<_>| vec![h.clone(); g.n];
                    let h = s.col.h.first().map(repeat).unwrap_or_default();
                    let col = Column { v: vec![s.col.v[0]; g.n], on: vec![s.col.on[0]; g.n], h };
                    sink(Series { labels: s.labels, col })
                },
                &|sink| self.once(e, one, sink),
            );
        }
        match e.kind {
            Kind::Paren(_) => self.node(e, g, sink),
            _ => self.measured(e, sink, &|sink| self.once(e, g, sink)),
        }
    }

    fn node(&self, e: &Expr, g: Grid, sink: Sink<'_>) -> Result<(), Error> {
        match &e.kind {
            Kind::Paren(inner) => self.vector(inner, g, sink),
            Kind::Selector(s) => self.selector(s, g, false, sink),
            Kind::Unary { negative: false, expr } => self.vector(expr, g, sink),
            Kind::Unary { negative: true, expr } => self.nameless(expr, g, sink, &|col| {
                col.v.iter_mut().for_each(|v| *v = -*v);
                col.h.iter_mut().flatten().for_each(|h| Arc::make_mut(h).mul(-1.0));
            }),
            Kind::Binary(b) => super::binary::eval(self, e.span, b, g, sink),
            Kind::Aggregate(a) => super::aggregate::eval(self, e.span, a, g, sink),
            Kind::Call { function, args } => call::eval(self, e, function.name, args, g, sink),
            _ => fail("expected an instant vector"),
        }
    }

    /// Each column of `e` changed by `f`, the metric's name dropped.
    pub fn nameless(&self, e: &Expr, g: Grid, sink: Sink<'_>, f: &dyn Fn(&mut Column)) -> Result<(), Error> {
        let mut distinct = self.distinct(!unique_without_name(e));
        self.vector(e, g, &mut |mut s| {
            f(&mut s.col);
            s.labels = s.labels.nameless();
            distinct.pass(s, &mut *sink)
        })?;
        distinct.end(sink)
    }

    /// Each column of `e` changed by `f`, which sees numbers only; the metric's name and histograms dropped.
    pub fn numbers(&self, e: &Expr, g: Grid, sink: Sink<'_>, f: &dyn Fn(&mut Column)) -> Result<(), Error> {
        let mut some = |s: Series| if s.col.any() { sink(s) } else { Ok(()) };
        self.nameless(e, g, &mut some, &|col| {
            col.drop_histograms();
            f(col);
        })
    }

    /// Makes series of equal labels one. `needed`: there may be such.
    pub fn distinct(&self, needed: bool) -> Distinct<'_, 'a> {
        let held = if needed { Some(HashMap::new()) } else { None };
        Distinct { eval: self, held, order: Vec::new(), strict: false }
    }

    /// Refuses series of equal labels, even where their values are at different steps.
    pub fn strict(&self, needed: bool) -> Distinct<'_, 'a> {
        Distinct { strict: true, ..self.distinct(needed) }
    }

    /// The instants that a selector reads for the steps of `g`.
    fn shifted(&self, when: &When, g: Grid) -> Result<Grid, Error> {
        let offset = match &when.offset {
            Some(d) => self.duration(d)?,
            None => 0,
        };
        let at = match when.at {
            None => return Ok(Grid { start: g.start.saturating_sub(offset), ..g }),
            Some(At::Ms(ms)) => ms,
            Some(At::Start) => self.query.start_ms,
            Some(At::End) => self.query.end_ms,
        };
        Ok(Grid { start: at.saturating_sub(offset), step: 0, n: g.n })
    }

    pub fn duration(&self, d: &Duration) -> Result<i64, Error> {
        let q = self.query;
        duration::resolve(d, q.step_ms, q.end_ms - q.start_ms).map_err(Error::Execution)
    }

    fn positive(&self, d: &Duration) -> Result<i64, Error> {
        match self.duration(d)? {
            ms if ms > 0 => Ok(ms),
            _ => fail("duration must be greater than 0"),
        }
    }

    /// The newest sample of each series at each step, not older than the lookback; `stamps`: its instant instead of
    /// its value, in seconds.
    pub fn selector(&self, s: &Selector, g: Grid, stamps: bool, sink: Sink<'_>) -> Result<(), Error> {
        let (at, lookback) = (self.shifted(&s.when, g)?, self.query.lookback_ms);
        let from = at.start.saturating_sub(lookback).saturating_add(1);
        if s.ends == Ends::Anchored {
            return fail("anchored modifier can only be used with ranges");
        }
        let smoothed = s.ends == Ends::Smoothed && !stamps;
        let to = at.last().saturating_add(if smoothed { lookback } else { 0 });
        self.storage.select(&s.matchers, from, to, &mut |labels, samples| {
            self.loaded(samples.t.len())?;
            let mut col = Column::empty(g.n);
            if smoothed {
                let samples = fresh(samples);
                for i in 0..g.n {
                    if let Some(p) = super::ends::instant(&samples, at.at(i), lookback) {
                        col.put(i, p);
                    }
                }
                return if col.any() { sink(Series { labels: labels.clone(), col }) } else { Ok(()) };
            }
            let mut next = 0;
            for i in 0..g.n {
                let t = at.at(i);
                while next < samples.t.len() && samples.t[next] <= t {
                    next += 1;
                }
                let Some(last) = next.checked_sub(1) else { continue };
                if samples.t[last] <= t.saturating_sub(lookback) || is_stale(samples.v[last]) {
                    continue;
                }
                match samples.histogram(last) {
                    _ if stamps => col.set(i, samples.t[last] as f64 / 1000.0),
                    Some(h) => col.put(i, Point::Histogram(h.clone())),
                    None => col.set(i, samples.v[last]),
                }
            }
            if col.any() { sink(Series { labels: labels.clone(), col }) } else { Ok(()) }
        })
    }

    /// The samples of a range vector with the windows over them, series by series. Stale markers are gone.
    pub fn windows(
        &self,
        e: &Expr,
        g: Grid,
        each: &mut dyn FnMut(&Labels, &Samples, Windows) -> Result<(), Error>,
    ) -> Result<(), Error> {
        match &e.bare().kind {
            Kind::Range { selector, range } => {
                let range = self.positive(range)?;
                let ends = self.shifted(&selector.when, g)?;
                let windows = Windows { ends, range, steps: g };
                let lookback = self.query.lookback_ms;
                let before = if selector.ends == Ends::Plain { 0 } else { lookback };
                let after = if selector.ends == Ends::Smoothed { lookback } else { 0 };
                let from = ends.start.saturating_sub(range).saturating_sub(before).saturating_add(1);
                let to = ends.last().saturating_add(after);
                self.storage.select(&selector.matchers, from, to, &mut |labels, samples| {
                    self.loaded(samples.t.len())?;
                    if !samples.v.iter().any(|v| is_stale(*v)) {
                        return each(labels, samples, windows);
                    }
                    let clean = fresh(samples);
                    if clean.t.is_empty() { Ok(()) } else { each(labels, &clean, windows) }
                })
            }
            Kind::Subquery(s) => {
                let range = self.positive(&s.range)?;
                let step = match &s.step {
                    Some(d) => self.positive(d)?,
                    None => self.query.subquery_step_ms,
                };
                let ends = self.shifted(&s.when, g)?;
                let windows = Windows { ends, range, steps: g };
                // Inner steps are multiples of the step: the same ones for every outer step.
                let first = (ends.start.saturating_sub(range).div_euclid(step) + 1) * step;
                if ends.last() < first {
                    return Ok(());
                }
                let n = (ends.last() - first) / step + 1;
                if n as u64 > self.query.limits.points {
                    return Err(Error::Limit(format!("subquery has {n} steps: choose a longer step")));
                }
                let inner = Grid { start: first, step, n: n as usize };
                self.vector(&s.expr, inner, &mut |series| {
                    self.cancel.check()?;
                    let mut samples = Samples::default();
                    for i in 0..inner.n {
                        if let Some(p) = series.col.point(i) {
                            samples.push(inner.at(i), p);
                        }
                    }
                    if samples.t.is_empty() { Ok(()) } else { each(&series.labels, &samples, windows) }
                })
            }
            _ => fail("expected a range vector"),
        }
    }
}

/// Without stale markers.
fn fresh(samples: &Samples) -> Samples {
    let mut clean = Samples::default();
    for i in (0..samples.len()).filter(|i| !is_stale(samples.v[*i])) {
        clean.push(samples.t[i], samples.point(i));
    }
    clean
}

/// How the ends of a range are treated.
pub(super) fn ends_of(e: &Expr) -> Ends {
    match &e.bare().kind {
        Kind::Range { selector, .. } => selector.ends,
        _ => Ends::Plain,
    }
}

/// Whether the order of an instant query's result means something.
fn is_ordered(e: &Expr) -> bool {
    match &e.bare().kind {
        Kind::Call { function, .. } => function.name.starts_with("sort"),
        Kind::Aggregate(a) => matches!(a.op, AggOp::Topk | AggOp::Bottomk),
        _ => false,
    }
}

/// Whether a value is the same at every step.
fn invariant(e: &Expr) -> bool {
    match &e.kind {
        Kind::Number { .. } | Kind::String(_) => true,
        Kind::Selector(s) | Kind::Range { selector: s, .. } => s.when.at.is_some(),
        Kind::Subquery(s) => s.when.at.is_some(),
        Kind::Unary { expr, .. } | Kind::Paren(expr) => invariant(expr),
        Kind::Binary(b) => invariant(&b.lhs) && invariant(&b.rhs),
        Kind::Aggregate(a) => invariant(&a.expr) && a.param.as_ref().is_none_or(invariant),
        Kind::Call { function, args } => match function.name {
            "time" | "predict_linear" | "info" => false,
            // Of anything but a selector it is the step's own instant.
            "timestamp" => args.iter().all(|a| matches!(a.bare().kind, Kind::Selector(_)) && invariant(a)),
            _ if args.is_empty() => function.returns == Type::Scalar,
            _ => args.iter().all(invariant),
        },
    }
}

/// The labels that `absent` gives: what the selector asks for by equality, each name once.
pub(super) fn absent_labels(e: &Expr) -> Labels {
    let (Kind::Selector(s) | Kind::Range { selector: s, .. }) = &e.bare().kind else {
        return Labels::default();
    };
    let once = |name: &str| s.matchers.iter().filter(|m| *m.name == *name).count() == 1;
    let asked = s.matchers.iter().filter(|m| m.op == MatchOp::Equal && &*m.name != NAME && once(&m.name));
    Labels::new(asked.map(|m| (m.name.clone(), m.value.clone())))
}

/// True when no two series of `e` differ in their metric's name alone.
pub(super) fn unique_without_name(e: &Expr) -> bool {
    match &e.kind {
        Kind::Selector(s) | Kind::Range { selector: s, .. } => {
            s.matchers.iter().any(|m| &*m.name == NAME && m.op == MatchOp::Equal)
        }
        Kind::Paren(inner) | Kind::Unary { expr: inner, .. } => unique_without_name(inner),
        Kind::Subquery(s) => unique_without_name(&s.expr),
        Kind::Aggregate(a) => {
            let ranking = matches!(a.op, AggOp::Topk | AggOp::Bottomk | AggOp::Limitk | AggOp::LimitRatio);
            if ranking { unique_without_name(&a.expr) } else { !a.grouping.iter().any(|l| **l == *NAME) }
        }
        _ => false,
    }
}

/// Series of equal labels made one; two values at one step are an error.
pub(super) struct Distinct<'e, 'a> {
    eval: &'e Eval<'a>,
    held: Option<HashMap<Labels, usize>>,
    order: Vec<Series>,
    strict: bool,
}

impl Distinct<'_, '_> {
    /// Takes a series, and lets it through at once if it can't have a double.
    pub fn pass(&mut self, s: Series, sink: Sink<'_>) -> Result<(), Error> {
        let Some(held) = &mut self.held else { return sink(s) };
        if let Some(at) = held.get(&s.labels) {
            let col = &mut self.order[*at].col;
            for i in 0..col.v.len() {
                if let Some(p) = s.col.point(i) {
                    if col.on[i] || self.strict {
                        return fail("vector cannot contain metrics with the same labelset");
                    }
                    col.put(i, p);
                }
            }
            return Ok(());
        }
        self.eval.hold(s.col.weight())?;
        held.insert(s.labels.clone(), self.order.len());
        self.order.push(s);
        Ok(())
    }

    /// Lets through what was held.
    pub fn end(self, sink: Sink<'_>) -> Result<(), Error> {
        self.order.into_iter().try_for_each(sink)
    }
}
