//! What a query took, node by node; and which parts of it are the same and are computed once.

use super::{Grid, Series, Stats};
use crate::promql::{Expr, Type, ast::*};
use std::{cell::RefCell, collections::HashMap, fmt::Write};

/// What one node of a query took, with everything below it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// The expression.
    pub text: String,
    /// Bytes `start..end` of the query.
    pub span: (u32, u32),
    /// Series that came out of it.
    pub series: u64,
    /// Samples read from the store.
    pub samples: u64,
    /// Bytes of all its series.
    pub bytes: u64,
    /// Time, in the caller's unit, without that of what takes its series.
    pub time: u64,
    /// It was computed before, and taken from there.
    pub shared: bool,
    /// What it is made of.
    pub children: Vec<Node>,
}

impl Node {
    /// For people: one line a node, those below indented. `unit` divides times, `name` names the unit.
    pub fn table(&self, unit: u64, name: &str) -> String {
        let mut out = String::new();
        self.line(&mut out, 0, unit.max(1), name);
        out
    }

    fn line(&self, out: &mut String, depth: usize, unit: u64, name: &str) {
        let (time, shared) = (self.time / unit, if self.shared { " (shared)" } else { "" });
        let (text, pad) = (&self.text, "  ".repeat(depth));
        let (series, samples, bytes) = (self.series, self.samples, self.bytes);
        // A String takes all.
        let _ = writeln!(
            out,
            "{pad}{text}: {series} series, {samples} samples, {bytes} bytes, {time} {name}{shared}"
        );
        self.children.iter().for_each(|c| c.line(out, depth + 1, unit, name));
    }
}

/// Tells the time, in any unit, never backwards.
pub type Clock<'a> = &'a dyn Fn() -> u64;

/// Nodes as they are being measured.
pub(super) struct Trace<'a> {
    clock: Clock<'a>,
    open: RefCell<Vec<Node>>,
}

/// Longest text of a node that is kept, bytes.
const TEXT_MAX: usize = 500;

impl<'a> Trace<'a> {
    pub fn new(clock: Clock<'a>) -> Self {
        Trace { clock, open: RefCell::new(vec![Node::default()]) }
    }

    pub fn now(&self) -> u64 {
        (self.clock)()
    }

    pub fn enter(&self, e: &Expr) {
        let mut text = e.to_string();
        if text.len() > TEXT_MAX {
            let end = (0..=TEXT_MAX).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
            text.truncate(end);
            text.push('…');
        }
        self.open.borrow_mut().push(Node { text, span: (e.span.start, e.span.end), ..Node::default() });
    }

    /// The node that was entered last ends.
    pub fn leave(&self, series: u64, bytes: u64, time: u64, samples: u64, shared: bool) {
        let mut open = self.open.borrow_mut();
        let Some(mut node) = open.pop() else { return };
        (node.series, node.bytes, node.time, node.samples, node.shared) =
            (series, bytes, time, samples, shared);
        if let Some(parent) = open.last_mut() {
            parent.children.push(node);
        }
    }

    /// The whole.
    pub fn end(self, e: &Expr, time: u64, stats: Stats) -> Node {
        let root = self.open.into_inner().into_iter().next().unwrap_or_default();
        match root.children.len() {
            1 => root.children.into_iter().next().unwrap_or_default(),
            // A number, or nothing but numbers at the top.
            _ => Node {
                text: e.to_string(),
                span: (e.span.start, e.span.end),
                samples: stats.samples,
                series: stats.series,
                time,
                ..root
            },
        }
    }
}

/// Longest query in which equal parts are looked for, bytes.
const SHARED_TEXT_MAX: usize = 16 << 10;

/// Which nodes of a query are equal to another one: number of the group, by address of the node.
#[derive(Default)]
pub(super) struct Shared {
    groups: HashMap<*const Expr, usize>,
    /// Series of groups that were computed, by group and steps.
    kept: RefCell<HashMap<(usize, Steps), Vec<Series>>>,
}

/// Start, step, number.
type Steps = (i64, i64, usize);

impl Shared {
    pub fn of(e: &Expr, text: &str) -> Self {
        let (mut seen, mut groups) = (HashMap::new(), HashMap::new());
        if text.len() <= SHARED_TEXT_MAX {
            walk(e, &mut |e| {
                let n = seen.entry(e.to_string()).or_insert(0);
                *n += 1;
                // What is below comes with it.
                *n == 1
            });
            seen.retain(|_, n| *n > 1);
        }
        if !seen.is_empty() {
            // Any of them may be the first to be computed.
            seen.values_mut().zip(0..).for_each(|(n, group)| *n = group);
            walk(e, &mut |e| {
                groups.extend(seen.get(&e.to_string()).map(|g| (std::ptr::from_ref(e), *g)));
                true
            });
        }
        Shared { groups, kept: RefCell::default() }
    }

    /// The group of a node that has equals.
    pub fn group(&self, e: &Expr) -> Option<usize> {
        self.groups.get(&std::ptr::from_ref(e)).copied()
    }

    pub fn get(&self, group: usize, g: Grid) -> Option<Vec<Series>> {
        self.kept.borrow().get(&(group, (g.start, g.step, g.n))).cloned()
    }

    pub fn keep(&self, group: usize, g: Grid, all: Vec<Series>) {
        self.kept.borrow_mut().insert((group, (g.start, g.step, g.n)), all);
    }
}

/// Calls `f` with every instant vector, from the top; not with what is below one for which it says no.
fn walk(e: &Expr, f: &mut dyn FnMut(&Expr) -> bool) {
    if e.ty() == Type::Vector && !matches!(e.kind, Kind::Paren(_)) && !f(e) {
        return;
    }
    e.children().into_iter().for_each(|e| walk(e, f));
}
