//! The engine: a tree and a store of samples in, a value out ([`run`]).
//!
//! Series flow one at a time from the store towards the result, each as a column with one slot a step
//! ([`Column`]); only joins, rankings and groups hold more than one. Functions over ranges slide along a series
//! instead of starting anew at each step (`window`). What does not depend on the step is computed once.
//!
//! Rooms: `eval` walks the tree, `window` has functions over ranges, `call` functions over instants, `binary`
//! operators between series, `aggregate` groups, `native` all of these where native histograms are among the samples,
//! `explain` what each node took and which are equal, `buckets` classic histograms, `ends` ranges that are `anchored` or `smoothed`, `info` joins with info metrics,
//! `date` the calendar.
//!
//! Invariants: ranges are open at the left and closed at the right (Prometheus 3); a query loads at most
//! [`Limits::samples`] samples, holds at most [`Limits::points`], and looks at its [`Cancel`] between series.
//! Pure: what is "now" comes from the caller.

mod aggregate;
mod binary;
mod buckets;
mod call;
pub(crate) mod date;
mod ends;
mod eval;
mod explain;
mod info;
mod memory;
mod native;
mod window;

pub use explain::{Clock, Node};
pub use memory::Memory;

use crate::{
    histogram::Histogram,
    labels::{Labels, Matcher},
    promql::{Expr, Type},
};
use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// Bits of the NaN that says "this series ended here".
pub const STALE_BITS: u64 = 0x7ff0_0000_0000_0002;
/// Most steps of a range query (Prometheus' own limit).
pub const STEPS_MAX: i64 = 11_000;

/// True for the NaN that says "this series ended here".
pub fn is_stale(v: f64) -> bool {
    v.to_bits() == STALE_BITS
}

/// Samples of one series, oldest first, no two at the same instant.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Samples {
    /// Milliseconds since 1970.
    pub t: Vec<i64>,
    /// Values, as many as instants; of a histogram its sum, so that stale markers of both kinds look alike.
    pub v: Vec<f64>,
    /// Histograms, as many as instants; empty where all samples are numbers.
    pub h: Vec<Option<Arc<Histogram>>>,
}

impl Samples {
    /// Numbers only.
    pub fn numbers(t: Vec<i64>, v: Vec<f64>) -> Self {
        Samples { t, v, h: Vec::new() }
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.t.len()
    }

    /// True when there is none.
    pub fn is_empty(&self) -> bool {
        self.t.is_empty()
    }

    /// The histogram at `i`, if it is one.
    pub fn histogram(&self, i: usize) -> Option<&Arc<Histogram>> {
        self.h.get(i).and_then(Option::as_ref)
    }

    /// What is at `i`.
    pub fn point(&self, i: usize) -> Point {
        match self.histogram(i) {
            Some(h) => Point::Histogram(h.clone()),
            None => Point::Number(self.v[i]),
        }
    }

    /// Adds a sample after the others.
    pub fn push(&mut self, t: i64, p: Point) {
        match p {
            Point::Number(v) => {
                self.v.push(v);
                if !self.h.is_empty() {
                    self.h.push(None);
                }
            }
            Point::Histogram(h) => {
                self.h.resize(self.t.len(), None);
                self.v.push(h.sum);
                self.h.push(Some(h));
            }
        }
        self.t.push(t);
    }

    /// About how many points of a number they weigh.
    pub fn weight(&self) -> usize {
        self.t.len() + self.h.iter().flatten().map(|h| h.bytes() / POINT_BYTES).sum::<usize>()
    }
}

/// What a number takes in a column, bytes.
const POINT_BYTES: usize = 9;

/// A sample's value.
#[derive(Clone, Debug, PartialEq)]
pub enum Point {
    /// A number.
    Number(f64),
    /// A native histogram.
    Histogram(Arc<Histogram>),
}

impl Point {
    /// The number, if it is one.
    pub fn number(&self) -> Option<f64> {
        match self {
            Point::Number(v) => Some(*v),
            Point::Histogram(_) => None,
        }
    }
}

/// Receives one series after the other.
pub type Each<'a> = &'a mut dyn FnMut(&Labels, &Samples) -> Result<(), Error>;

/// Where samples come from.
pub trait Storage {
    /// Calls `each` for every series that passes all `matchers`, with its samples of `from_ms..=to_ms` (stale
    /// markers included); a series without any may be left out. Ends at the first error of `each`.
    fn select(&self, matchers: &[Matcher], from_ms: i64, to_ms: i64, each: Each<'_>) -> Result<(), Error>;
}

/// Why a query has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The query or the data allow no answer.
    #[error("{0}")]
    Execution(String),
    /// It would take more than it may.
    #[error("{0}")]
    Limit(String),
    /// Somebody gave it up.
    #[error("query was canceled in query execution")]
    Cancelled,
    /// The store failed.
    #[error("{0}")]
    Storage(String),
}

pub(crate) fn fail<T>(message: impl Into<String>) -> Result<T, Error> {
    Err(Error::Execution(message.into()))
}

/// A wish to end a query; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Ends the query soon.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn check(&self) -> Result<(), Error> {
        if self.0.load(Ordering::Relaxed) { Err(Error::Cancelled) } else { Ok(()) }
    }
}

/// What a query may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Samples read from the store.
    pub samples: u64,
    /// Points held, 9 bytes each; histograms weigh as many as they have bytes for.
    pub points: u64,
}

impl Limits {
    /// As many points as fit so many bytes.
    pub fn of_bytes(self, bytes: u64) -> Self {
        Limits { points: bytes / POINT_BYTES as u64, ..self }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Limits { samples: 500_000_000, points: 50_000_000 }
    }
}

/// When a query is evaluated.
#[derive(Clone, Copy, Debug)]
pub struct Query {
    /// First instant, milliseconds.
    pub start_ms: i64,
    /// Last instant; the first one in an instant query.
    pub end_ms: i64,
    /// Between instants; 0 makes an instant query.
    pub step_ms: i64,
    /// How old the newest sample of a series may be.
    pub lookback_ms: i64,
    /// Step of subqueries that name none.
    pub subquery_step_ms: i64,
    /// What it may take.
    pub limits: Limits,
}

impl Query {
    /// At one instant, with Prometheus' defaults.
    pub fn instant(at_ms: i64) -> Self {
        Query {
            start_ms: at_ms,
            end_ms: at_ms,
            step_ms: 0,
            lookback_ms: 300_000,
            subquery_step_ms: 60_000,
            limits: Limits::default(),
        }
    }

    /// At several instants.
    pub fn range(start_ms: i64, end_ms: i64, step_ms: i64) -> Self {
        Query { end_ms, step_ms, ..Query::instant(start_ms) }
    }
}

/// Instants of evaluation: `start`, `start + step`, … ; `n` of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Grid {
    pub start: i64,
    pub step: i64,
    pub n: usize,
}

impl Grid {
    pub fn at(self, i: usize) -> i64 {
        self.start.saturating_add(self.step.saturating_mul(i as i64))
    }

    pub fn last(self) -> i64 {
        self.at(self.n.saturating_sub(1))
    }
}

/// A value for each step, or none.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Column {
    pub v: Vec<f64>,
    pub on: Vec<bool>,
    /// Histograms at the steps that have one; empty where there is none at all.
    pub h: Vec<Option<Arc<Histogram>>>,
}

impl Column {
    pub fn empty(n: usize) -> Self {
        Column { v: vec![0.0; n], on: vec![false; n], h: Vec::new() }
    }

    pub fn full(v: Vec<f64>) -> Self {
        Column { on: vec![true; v.len()], v, h: Vec::new() }
    }

    /// The number at a step.
    pub fn get(&self, i: usize) -> Option<f64> {
        if self.on[i] && self.h.get(i).is_none_or(Option::is_none) { Some(self.v[i]) } else { None }
    }

    /// The histogram at a step.
    pub fn histogram(&self, i: usize) -> Option<&Arc<Histogram>> {
        if self.on[i] { self.h.get(i).and_then(Option::as_ref) } else { None }
    }

    /// Whatever is at a step.
    pub fn point(&self, i: usize) -> Option<Point> {
        match self.histogram(i) {
            Some(h) => Some(Point::Histogram(h.clone())),
            None => self.get(i).map(Point::Number),
        }
    }

    pub fn set(&mut self, i: usize, v: f64) {
        self.v[i] = v;
        self.on[i] = true;
        if !self.h.is_empty() {
            self.h[i] = None;
        }
    }

    pub fn put(&mut self, i: usize, p: Point) {
        match p {
            Point::Number(v) => self.set(i, v),
            Point::Histogram(h) => {
                self.h.resize(self.v.len(), None);
                (self.on[i], self.h[i]) = (true, Some(h));
            }
        }
    }

    pub fn unset(&mut self, i: usize) {
        self.on[i] = false;
    }

    /// Leaves numbers only.
    pub fn drop_histograms(&mut self) {
        for (on, h) in self.on.iter_mut().zip(std::mem::take(&mut self.h)) {
            *on &= h.is_none();
        }
    }

    pub fn any(&self) -> bool {
        self.on.iter().any(|on| *on)
    }

    /// About how many points of a number it weighs.
    pub fn weight(&self) -> usize {
        self.v.len() + self.h.iter().flatten().map(|h| h.bytes() / POINT_BYTES).sum::<usize>()
    }
}

/// One series on its way.
#[derive(Clone, Debug)]
pub(crate) struct Series {
    pub labels: Labels,
    pub col: Column,
}

/// The value of a query.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// One number at one instant.
    Scalar(i64, f64),
    /// A string at one instant.
    String(i64, String),
    /// At one instant: a sample a series.
    Vector(Vec<(Labels, i64, Point)>),
    /// Samples of each series.
    Matrix(Vec<(Labels, Samples)>),
}

/// Remarks on a query that has an answer all the same.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Notes {
    /// Things that are probably wrong.
    pub warnings: BTreeSet<String>,
    /// Things worth knowing.
    pub infos: BTreeSet<String>,
}

/// What a query took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Series read from the store.
    pub series: u64,
    /// Samples read from the store.
    pub samples: u64,
    /// Most points held.
    pub points: u64,
}

/// A value with what is to say about it.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The value.
    pub value: Value,
    /// Remarks, with positions in `text`.
    pub notes: Notes,
    /// What it took.
    pub stats: Stats,
}

/// Evaluates `expr` (parsed from `text`, for positions) over `storage`.
pub fn run(
    storage: &dyn Storage,
    text: &str,
    expr: &Expr,
    query: Query,
    cancel: &Cancel,
) -> Result<Answer, Error> {
    let eval = eval::Eval::new(storage, text, expr, query, cancel, None);
    let value = evaluate(&eval, expr, query)?;
    let (notes, stats, _) = eval.finish();
    Ok(Answer { value, notes, stats })
}

/// [`run`], and what every node of the query took. Times are in the unit of `clock`.
pub fn explain(
    storage: &dyn Storage,
    text: &str,
    expr: &Expr,
    query: Query,
    cancel: &Cancel,
    clock: Clock<'_>,
) -> Result<(Answer, Node), Error> {
    let begun = clock();
    let trace = explain::Trace::new(clock);
    let eval = eval::Eval::new(storage, text, expr, query, cancel, Some(trace));
    let value = evaluate(&eval, expr, query)?;
    let (notes, stats, trace) = eval.finish();
    let took = clock().saturating_sub(begun);
    let node = trace.map(|t| t.end(expr, took, stats)).unwrap_or_default();
    Ok((Answer { value, notes, stats }, node))
}

fn evaluate(eval: &eval::Eval<'_>, expr: &Expr, query: Query) -> Result<Value, Error> {
    let instant = query.step_ms == 0;
    if query.step_ms < 0 || query.end_ms < query.start_ms {
        return fail("end timestamp must not be before start time, and the step must be positive");
    }
    let n = if instant { 1 } else { (query.end_ms - query.start_ms) / query.step_ms + 1 };
    if n > STEPS_MAX {
        return fail(format!(
            "exceeded maximum resolution of {STEPS_MAX} points per timeseries. Try decreasing the query resolution (?step=XX)"
        ));
    }
    if !instant && !matches!(expr.ty(), Type::Scalar | Type::Vector) {
        let got = crate::labels::quote(expr.ty().documented());
        return fail(format!(
            "invalid expression type {got} for range query, must be Scalar or instant Vector"
        ));
    }
    let grid = Grid { start: query.start_ms, step: query.step_ms, n: n as usize };
    eval.top(expr, grid, instant)
}
