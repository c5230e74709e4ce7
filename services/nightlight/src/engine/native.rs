//! Native histograms in functions and operators: what has a meaning for them is computed, everything else leaves them
//! out and says so, as Prometheus does and in its words.

use super::{
    Column, Error, Grid, Point, Samples, Series,
    eval::{Eval, Sink, Windows},
    window,
};
use crate::{
    histogram::{Added, Hint, Histogram, Incompatible, stdvar},
    labels::{Labels, quote},
    promql::{Expr, Span, ast::Op},
};
use std::{cell::Cell, sync::Arc};

/// Remarks about histograms, at one place of the query.
pub(super) struct Says<'e, 'a> {
    ev: &'e Eval<'a>,
    at: Span,
    metric: String,
}

impl<'e, 'a> Says<'e, 'a> {
    pub fn new(ev: &'e Eval<'a>, at: Span, metric: &str) -> Self {
        Says { ev, at, metric: quote(metric) }
    }

    pub fn mixed(&self) {
        self.ev.warn(
            self.at,
            &format!("encountered a mix of histograms and floats for metric name {}", self.metric),
        );
    }

    pub fn schemas(&self) {
        let what =
            "vector contains a mix of histograms with exponential and custom buckets schemas for metric name";
        self.ev.warn(self.at, &format!("{what} {}", self.metric));
    }

    fn ignored(&self) {
        let what = "ignored histograms in a range containing both floats and histograms for metric name";
        self.ev.info(self.at, &format!("{what} {}", self.metric));
    }

    pub fn not_counter(&self) {
        self.ev.warn(self.at, &format!("this native histogram metric is not a counter: {}", self.metric));
    }

    pub fn not_gauge(&self) {
        self.ev.warn(self.at, &format!("this native histogram metric is not a gauge: {}", self.metric));
    }

    /// What was noticed while an `operation` ran ("addition", "subtraction", "aggregation").
    pub fn added(&self, said: Added, operation: &str) {
        if said.collision {
            self.ev.warn(self.at, &format!("conflicting counter resets during histogram {operation}"));
        }
        if said.reconciled {
            self.ev.info(self.at, &format!("mismatched custom buckets were reconciled during {operation}"));
        }
    }

    fn reconciled(&self, said: Added, operation: &str) {
        self.added(Added { collision: false, ..said }, operation);
    }
}

/// `histogram_count` and its like: a number of each histogram, nothing of numbers.
pub(super) fn of_each(ev: &Eval<'_>, name: &str, arg: &Expr, g: Grid, sink: Sink<'_>) -> Result<(), Error> {
    let f: fn(&Histogram) -> f64 = match name {
        "histogram_count" => |h| h.count,
        "histogram_sum" => |h| h.sum,
        "histogram_avg" => |h| h.sum / h.count,
        "histogram_stdvar" => stdvar,
        _ => |h| stdvar(h).sqrt(),
    };
    let mut some = |s: Series| if s.col.any() { sink(s) } else { Ok(()) };
    ev.nameless(arg, g, &mut some, &|col| {
        for i in 0..col.v.len() {
            match col.histogram(i).map(|h| f(h)) {
                Some(v) => col.v[i] = v,
                None => col.on[i] = false,
            }
        }
        col.h.clear();
    })
}

/// A sum of histograms that is being made, and what was noticed.
#[derive(Clone)]
pub(super) struct Total {
    sum: Histogram,
    /// Set once the sum is beyond all numbers: the mean so far.
    mean: Option<Histogram>,
    n: f64,
    reset: bool,
    not_reset: bool,
    said: Added,
}

impl Total {
    pub fn of(h: &Histogram) -> Self {
        let mut t = Total {
            sum: h.clone(),
            mean: None,
            n: 1.0,
            reset: false,
            not_reset: false,
            said: Added::default(),
        };
        t.track(h.hint);
        t
    }

    fn track(&mut self, hint: Hint) {
        self.reset |= hint == Hint::Reset;
        self.not_reset |= hint == Hint::NotReset;
    }

    pub fn add(&mut self, h: &Histogram) -> Result<(), Incompatible> {
        self.track(h.hint);
        self.n += 1.0;
        let before = if self.mean.is_none() { Some(self.sum.clone()) } else { None };
        self.said.reconciled |= self.sum.add(h)?.reconciled;
        if self.sum.overflows() && !h.overflows() {
            let mut mean = match (self.mean.take(), before) {
                (Some(m), _) => m,
                (None, Some(mut sum)) => {
                    sum.div(self.n - 1.0);
                    sum
                }
                (None, None) => return Ok(()),
            };
            let mut part = h.clone();
            part.div(self.n);
            mean.mul((self.n - 1.0) / self.n);
            mean.add(&part)?;
            self.mean = Some(mean);
        }
        Ok(())
    }

    /// The sum, or the mean.
    pub fn end(mut self, mean: bool) -> (Histogram, Added) {
        self.said.collision = self.reset && self.not_reset;
        let h = match self.mean {
            Some(m) if mean => m,
            _ if mean => {
                self.sum.div(self.n);
                self.sum
            }
            _ => self.sum,
        };
        (h, self.said)
    }
}

fn total(all: &[&Arc<Histogram>], mean: bool, says: &Says<'_, '_>) -> Option<Histogram> {
    let (first, rest) = all.split_first()?;
    let mut t = Total::of(first);
    for h in rest {
        if t.add(h).is_err() {
            says.schemas();
            return None;
        }
    }
    let (h, said) = t.end(mean);
    says.added(said, "aggregation");
    Some(h)
}

/// The function `name` over windows of samples of which some are histograms.
pub(super) fn column(
    ev: &Eval<'_>,
    name: &str,
    labels: &Labels,
    s: &Samples,
    w: Windows,
    numbers: &[Vec<f64>],
    at: Span,
) -> Column {
    let says = Says::new(ev, at, labels.name());
    let upto: Vec<usize> = std::iter::once(0)
        .chain(s.h.iter().scan(0, |n, h| {
            *n += usize::from(h.is_some());
            Some(*n)
        }))
        .collect();
    let native = |lo: usize, hi: usize| upto[hi] - upto[lo];
    match name {
        "count_over_time" | "present_over_time" | "ts_of_last_over_time" | "ts_of_first_over_time" => {
            return window::column(name, s, w, numbers);
        }
        "first_over_time" | "last_over_time" => {
            let mut col = Column::empty(w.ends.n);
            let first = name == "first_over_time";
            window::each(s, w, |i, lo, hi| col.put(i, s.point(if first { lo } else { hi - 1 })));
            return col;
        }
        "changes" => {
            return compared(s, w, |a, b| match (a, b) {
                (Point::Number(a), Point::Number(b)) => a != b && !(a.is_nan() && b.is_nan()),
                (Point::Histogram(a), Point::Histogram(b)) => !a.same(b),
                _ => true,
            });
        }
        "resets" => {
            return compared(s, w, |a, b| match (a, b) {
                (Point::Number(a), Point::Number(b)) => b < a,
                (Point::Histogram(a), Point::Histogram(b)) => b.is_reset_after(a),
                _ => true,
            });
        }
        "irate" | "idelta" => return instant(name == "irate", s, w, &says),
        _ => {}
    }
    let only = (0..s.len()).filter(|i| s.histogram(*i).is_none());
    let only = Samples::numbers(only.clone().map(|i| s.t[i]).collect(), only.map(|i| s.v[i]).collect());
    let mut col = window::column(name, &only, w, numbers);
    let both = matches!(name, "sum_over_time" | "avg_over_time" | "rate" | "increase" | "delta");
    window::each(s, w, |i, lo, hi| {
        let n = native(lo, hi);
        if n == 0 {
            return;
        }
        if n < hi - lo {
            if both {
                says.mixed();
                col.unset(i);
            } else {
                says.ignored();
            }
            return;
        }
        if !both {
            return;
        }
        let all: Vec<&Arc<Histogram>> = s.h[lo..hi].iter().flatten().collect();
        let h = match name {
            "sum_over_time" => total(&all, false, &says),
            "avg_over_time" => total(&all, true, &says),
            _ if hi - lo < 2 => None,
            _ => rise(&all, name != "delta", &says).map(|mut h| {
                let zero = (all[0].count, h.count);
                let factor = window::reach(s.t[lo], s.t[hi - 1], hi - lo, w.ends.at(i), w.range, |sampled| {
                    let (first, change) = zero;
                    (name != "delta" && change > 0.0 && first >= 0.0).then(|| sampled * (first / change))
                });
                h.mul(if name == "rate" { factor / (w.range as f64 / 1000.0) } else { factor });
                h
            }),
        };
        if let Some(h) = h {
            col.put(i, Point::Histogram(Arc::new(h)));
        }
    });
    col
}

/// How many neighbours in each window `differ`.
fn compared(s: &Samples, w: Windows, differ: impl Fn(&Point, &Point) -> bool) -> Column {
    let all: Vec<Point> = (0..s.len()).map(|i| s.point(i)).collect();
    let mut n = 0u64;
    let upto: Vec<u64> = (0..all.len())
        .map(|i| {
            n += u64::from(i > 0 && differ(&all[i - 1], &all[i]));
            n
        })
        .collect();
    let mut col = Column::empty(w.ends.n);
    window::each(s, w, |i, lo, hi| col.set(i, (upto[hi - 1] - upto[lo]) as f64));
    col
}

/// The change from the first to the last of at least two histograms, what was lost by resets added.
fn rise(all: &[&Arc<Histogram>], counter: bool, says: &Says<'_, '_>) -> Option<Histogram> {
    let (first, last) = (all[0], all[all.len() - 1]);
    let gauge = |h: &Histogram| h.hint == Hint::Gauge;
    if counter && all.iter().any(|h| gauge(h)) {
        says.not_counter();
    }
    let gauges = gauge(first) && gauge(last);
    if !counter && !gauges {
        says.not_gauge();
    }
    // What was before a reset right after the first is of no matter, its layout neither.
    let nothing;
    let mut before: &Histogram = first;
    if counter && all[1].is_reset_after(first) {
        nothing = Histogram { schema: all[1].schema, bounds: all[1].bounds.clone(), ..Histogram::default() };
        before = &nothing;
    }
    let inner = if counter { &all[1..] } else { &all[all.len() - 1..] };
    if inner.iter().any(|h| h.is_custom() != before.is_custom()) {
        says.schemas();
        return None;
    }
    let schema = inner.iter().map(|h| h.schema).fold(before.schema, i8::min);
    let mut out = last.reduced(schema);
    let step = |r: Result<Added, Incompatible>, operation: &str| match r {
        Ok(said) => {
            says.reconciled(said, operation);
            true
        }
        Err(Incompatible) => {
            says.schemas();
            false
        }
    };
    if !step(out.sub(before), "subtraction") {
        return None;
    }
    if counter {
        for h in &all[1..] {
            if h.is_reset_after(before) && !step(out.add(before), "addition") {
                return None;
            }
            before = h;
        }
    }
    out.hint = Hint::Gauge;
    Some(out)
}

/// `irate` and `idelta`: the last two samples.
fn instant(counter: bool, s: &Samples, w: Windows, says: &Says<'_, '_>) -> Column {
    let mut col = Column::empty(w.ends.n);
    window::each(s, w, |i, lo, hi| {
        if hi - lo < 2 || s.t[hi - 1] == s.t[hi - 2] {
            return;
        }
        let seconds = (s.t[hi - 1] - s.t[hi - 2]) as f64 / 1000.0;
        match (s.point(hi - 2), s.point(hi - 1)) {
            (Point::Number(a), Point::Number(b)) => {
                let step = if counter && b < a { b } else { b - a };
                col.set(i, if counter { step / seconds } else { step });
            }
            (Point::Histogram(a), Point::Histogram(b)) => {
                let gauge = |h: &Histogram| h.hint == Hint::Gauge;
                if counter && (gauge(&a) || gauge(&b)) {
                    says.not_counter();
                }
                let gauges = gauge(&a) && gauge(&b);
                if !counter && !gauges {
                    says.not_gauge();
                }
                let mut h = (*b).clone();
                if !counter || !b.is_reset_after(&a) {
                    match h.sub(&a) {
                        Ok(said) => says.reconciled(said, "subtraction"),
                        Err(Incompatible) => return says.schemas(),
                    }
                }
                h.hint = Hint::Gauge;
                if counter {
                    h.div(seconds);
                }
                col.put(i, Point::Histogram(Arc::new(h)));
            }
            _ => says.mixed(),
        }
    });
    col
}

/// Operators where a histogram is on one side or on both; what to say is gathered and said once.
pub(super) struct Operator<'e, 'a> {
    ev: &'e Eval<'a>,
    op: Op,
    at: Span,
    /// What the first element said, so that a million do not say it a million times.
    said: Cell<bool>,
}

impl<'e, 'a> Operator<'e, 'a> {
    pub fn new(ev: &'e Eval<'a>, op: Op, at: Span) -> Self {
        Operator { ev, op, at, said: Cell::new(false) }
    }

    fn refuse(&self, l: &str, r: &str) -> Option<Point> {
        if !self.said.replace(true) {
            let op = self.op.as_str();
            self.ev.info(
                self.at,
                &format!(
                    "incompatible sample types encountered for binary operator {}: {l} {op} {r}",
                    quote(op)
                ),
            );
        }
        None
    }

    /// None where the operator has no meaning; of a comparison whether it holds, as 1 or 0.
    pub fn apply(&self, l: &Point, r: &Point) -> Option<Point> {
        let whole = |h: Histogram| Some(Point::Histogram(Arc::new(h)));
        match (l, r) {
            (Point::Number(_), Point::Number(_)) if self.op.is_trim() => self.refuse("float", "float"),
            (Point::Number(l), Point::Number(r)) => {
                Some(Point::Number(super::binary::scalar(self.op, *l, *r)))
            }
            (Point::Number(v), Point::Histogram(h)) => match self.op {
                Op::Mul => {
                    let mut h = (**h).clone();
                    h.mul(*v);
                    whole(h)
                }
                _ => self.refuse("float", "histogram"),
            },
            (Point::Histogram(h), Point::Number(v)) => match self.op {
                Op::Mul | Op::Div => {
                    let mut h = (**h).clone();
                    if self.op == Op::Mul {
                        h.mul(*v)
                    } else {
                        h.div(*v)
                    }
                    whole(h)
                }
                Op::TrimUpper | Op::TrimLower => whole(h.trimmed(*v, self.op == Op::TrimUpper)),
                _ => self.refuse("histogram", "float"),
            },
            (Point::Histogram(l), Point::Histogram(r)) => match self.op {
                Op::Add | Op::Sub => {
                    let mut h = (**l).clone();
                    let (done, operation) =
                        if self.op == Op::Add { (h.add(r), "addition") } else { (h.sub(r), "subtraction") };
                    match done {
                        Ok(said) => {
                            if self.op == Op::Sub {
                                h.hint = Hint::Gauge;
                            }
                            Says::new(self.ev, self.at, "").added(said, operation);
                            whole(h)
                        }
                        Err(Incompatible) => {
                            Says::new(self.ev, self.at, "").schemas();
                            None
                        }
                    }
                }
                Op::Eq => Some(Point::Number(f64::from(u8::from(l.same(r))))),
                Op::Ne => Some(Point::Number(f64::from(u8::from(!l.same(r))))),
                _ => self.refuse("histogram", "histogram"),
            },
        }
    }
}
