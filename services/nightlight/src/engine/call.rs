//! Functions over instant vectors.

use super::{
    Column, Error, Grid, Series, buckets, date,
    eval::{Eval, Sink, absent_labels},
    fail, info, native, window,
};
use crate::{
    labels::{Labels, anchored, quote},
    promql::{Expr, ast::Kind},
};
use std::cmp::Ordering;

pub(super) fn eval(
    ev: &Eval<'_>,
    e: &Expr,
    name: &str,
    args: &[Expr],
    g: Grid,
    sink: Sink<'_>,
) -> Result<(), Error> {
    let Kind::Call { function, .. } = &e.kind else { return fail("expected a call") };
    if function.args.contains(&crate::promql::Type::Matrix) {
        return window::eval(ev, name, args, g, sink);
    }
    match name {
        "vector" => {
            let v = ev.scalar(&args[0], g)?;
            sink(Series { labels: Labels::default(), col: Column::full(v) })
        }
        "absent" => {
            let mut col = Column::full(vec![1.0; g.n]);
            ev.vector(&args[0], g, &mut |s| {
                col.on.iter_mut().zip(&s.col.on).for_each(|(a, there)| *a &= !there);
                Ok(())
            })?;
            if col.any() { sink(Series { labels: absent_labels(&args[0]), col }) } else { Ok(()) }
        }
        "timestamp" => timestamp(ev, &args[0], g, sink),
        "clamp" | "clamp_min" | "clamp_max" => {
            let bound = |at: usize| ev.scalar(&args[at], g);
            let unbounded = |v: f64| Ok(vec![v; g.n]);
            let low = if name == "clamp_max" { unbounded(f64::NEG_INFINITY) } else { bound(1) }?;
            let high = match name {
                "clamp" => bound(2),
                "clamp_max" => bound(1),
                _ => unbounded(f64::INFINITY),
            }?;
            ev.numbers(&args[0], g, sink, &|col| {
                for i in 0..col.v.len() {
                    let (v, l, h) = (col.v[i], low[i], high[i]);
                    col.on[i] &= name != "clamp" || (l <= h || l.is_nan() || h.is_nan());
                    // Unlike Rust's min and max, Go's give NaN if any is.
                    let any_nan = v.is_nan() || l.is_nan() || h.is_nan();
                    col.v[i] = if any_nan { f64::NAN } else { v.min(h).max(l) };
                }
            })
        }
        "round" => {
            let to = match args.get(1) {
                Some(arg) => ev.scalar(arg, g)?,
                None => vec![1.0; g.n],
            };
            ev.numbers(&args[0], g, sink, &|col| {
                for (v, to) in col.v.iter_mut().zip(&to) {
                    let inverse = 1.0 / to;
                    *v = (*v * inverse + 0.5).floor() / inverse;
                }
            })
        }
        "minute" | "hour" | "day_of_week" | "day_of_month" | "day_of_year" | "days_in_month" | "month"
        | "year" => match args.first() {
            None => {
                let v = (0..g.n).map(|i| date::part(name, g.at(i) as f64 / 1000.0)).collect();
                sink(Series { labels: Labels::default(), col: Column::full(v) })
            }
            Some(arg) => ev.numbers(arg, g, sink, &|col| {
                col.v.iter_mut().for_each(|v| *v = date::part(name, *v));
            }),
        },
        "sort" | "sort_desc" | "sort_by_label" | "sort_by_label_desc" => sort(ev, name, args, g, sink),
        "label_replace" => label_replace(ev, args, g, sink),
        "label_join" => label_join(ev, args, g, sink),
        "histogram_quantile" => buckets::quantile(ev, args, g, sink),
        "histogram_quantiles" => buckets::quantiles(ev, args, text(&args[1])?, g, sink),
        "histogram_fraction" => buckets::fraction(ev, args, g, sink),
        "histogram_avg" | "histogram_count" | "histogram_stddev" | "histogram_stdvar" | "histogram_sum" => {
            native::of_each(ev, name, &args[0], g, sink)
        }
        "info" => info::eval(ev, args, g, sink),
        _ => match element(name) {
            Some(f) => ev.numbers(&args[0], g, sink, &|col| {
                col.v.iter_mut().for_each(|v| *v = f(*v));
            }),
            None => fail(format!("function {name}() is not supported by this version")),
        },
    }
}

/// Functions of one number.
fn element(name: &str) -> Option<fn(f64) -> f64> {
    Some(match name {
        "abs" => f64::abs,
        "acos" => f64::acos,
        "acosh" => f64::acosh,
        "asin" => f64::asin,
        "asinh" => f64::asinh,
        "atan" => f64::atan,
        "atanh" => f64::atanh,
        "ceil" => f64::ceil,
        "cos" => f64::cos,
        "cosh" => f64::cosh,
        "deg" => |v| v * 180.0 / std::f64::consts::PI,
        "exp" => f64::exp,
        "floor" => f64::floor,
        "ln" => f64::ln,
        "log10" => f64::log10,
        "log2" => f64::log2,
        "rad" => |v| v * std::f64::consts::PI / 180.0,
        "sgn" => |v| match v.partial_cmp(&0.0) {
            Some(Ordering::Less) => -1.0,
            Some(Ordering::Greater) => 1.0,
            _ => v,
        },
        "sin" => f64::sin,
        "sinh" => f64::sinh,
        "sqrt" => f64::sqrt,
        "tan" => f64::tan,
        "tanh" => f64::tanh,
        _ => return None,
    })
}

/// Instants of samples: a selector's own, or else the step's.
fn timestamp(ev: &Eval<'_>, arg: &Expr, g: Grid, sink: Sink<'_>) -> Result<(), Error> {
    let mut distinct = ev.distinct(!super::eval::unique_without_name(arg));
    let mut pass = |s: Series| distinct.pass(Series { labels: s.labels.nameless(), ..s }, &mut *sink);
    match &arg.bare().kind {
        Kind::Selector(s) => ev.selector(s, g, true, &mut pass)?,
        _ => ev.vector(arg, g, &mut |mut s| {
            s.col.h.clear();
            (0..g.n).for_each(|i| s.col.v[i] = g.at(i) as f64 / 1000.0);
            pass(s)
        })?,
    }
    distinct.end(sink)
}

fn text(e: &Expr) -> Result<&str, Error> {
    match &e.bare().kind {
        Kind::String(s) => Ok(s),
        _ => fail("expected a string"),
    }
}

fn sort(ev: &Eval<'_>, name: &str, args: &[Expr], g: Grid, sink: Sink<'_>) -> Result<(), Error> {
    // Only an instant has an order; over several steps series come sorted by labels whatever is done here.
    if ev.query.step_ms != 0 {
        return ev.vector(&args[0], g, sink);
    }
    let mut all = Vec::new();
    let by_value = !name.starts_with("sort_by_label");
    ev.vector(&args[0], g, &mut |mut s| {
        if by_value {
            s.col.drop_histograms();
        }
        ev.hold(s.col.weight())?;
        all.push(s);
        Ok(())
    })?;
    let labels = args[1..].iter().map(text).collect::<Result<Vec<_>, _>>()?;
    let descending = name.ends_with("_desc");
    all.sort_by(|a, b| {
        let order = if name.starts_with("sort_by_label") {
            let by = labels.iter().map(|l| natural(a.labels.get(l), b.labels.get(l)));
            by.fold(Ordering::Equal, Ordering::then).then_with(|| a.labels.cmp(&b.labels))
        } else {
            let (x, y) = (a.col.v[0], b.col.v[0]);
            // NaN is last in either direction.
            return match (x.is_nan(), y.is_nan()) {
                (false, false) if descending => y.total_cmp(&x),
                (false, false) => x.total_cmp(&y),
                (x, y) => x.cmp(&y),
            };
        };
        if descending { order.reverse() } else { order }
    });
    all.into_iter().try_for_each(sink)
}

/// Texts in the order people expect: numbers within them by size.
fn natural(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    let digits = |s: &[u8]| s.iter().take_while(|c| c.is_ascii_digit()).count();
    loop {
        let (n, m) = (digits(a), digits(b));
        if n > 0 && m > 0 {
            let trim = |s: &[u8]| s.iter().skip_while(|c| **c == b'0').copied().collect::<Vec<u8>>();
            let (x, y) = (trim(&a[..n]), trim(&b[..m]));
            match x.len().cmp(&y.len()).then_with(|| x.cmp(&y)) {
                Ordering::Equal => (a, b) = (&a[n..], &b[m..]),
                order => return order,
            }
            continue;
        }
        match (a.split_first(), b.split_first()) {
            (Some((x, rest_a)), Some((y, rest_b))) if x == y => (a, b) = (rest_a, rest_b),
            (x, y) => return x.map(|x| x.0).cmp(&y.map(|y| y.0)),
        }
    }
}

fn label_replace(ev: &Eval<'_>, args: &[Expr], g: Grid, sink: Sink<'_>) -> Result<(), Error> {
    let (to, replacement, from, pattern) =
        (text(&args[1])?, text(&args[2])?, text(&args[3])?, text(&args[4])?);
    let Ok(regex) = anchored(pattern) else {
        return fail(format!("invalid regular expression in label_replace(): {pattern}"));
    };
    if to.is_empty() {
        return fail(format!("invalid destination label name in label_replace(): {to}"));
    }
    relabelled(ev, &args[0], g, sink, &|labels| match regex.captures(labels.get(from)) {
        Some(found) => {
            let mut value = String::new();
            found.expand(replacement, &mut value);
            labels.with(to, &value)
        }
        None => labels.clone(),
    })
}

fn label_join(ev: &Eval<'_>, args: &[Expr], g: Grid, sink: Sink<'_>) -> Result<(), Error> {
    let (to, separator) = (text(&args[1])?, text(&args[2])?);
    let from = args[3..].iter().map(text).collect::<Result<Vec<_>, _>>()?;
    if to.is_empty() {
        return fail(format!("invalid destination label name in label_join(): {}", quote(to)));
    }
    relabelled(ev, &args[0], g, sink, &|labels| {
        let parts: Vec<&str> = from.iter().map(|l| labels.get(l)).collect();
        labels.with(to, &parts.join(separator))
    })
}

fn relabelled(
    ev: &Eval<'_>,
    e: &Expr,
    g: Grid,
    sink: Sink<'_>,
    f: &dyn Fn(&Labels) -> Labels,
) -> Result<(), Error> {
    let mut out = ev.strict(true);
    ev.vector(e, g, &mut |s| out.pass(Series { labels: f(&s.labels), ..s }, &mut *sink))?;
    out.end(sink)
}
