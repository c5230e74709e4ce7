//! The text of a tree, as Prometheus' formatter writes it on one line.

use super::{ast::*, duration};
use crate::labels::{NAME, Str, is_label, is_metric, quote};
use std::fmt::{self, Display, Formatter, Write};

/// A number as Prometheus writes it in queries and labels: never with an exponent.
pub fn number(v: f64) -> String {
    if v.is_nan() {
        "NaN".into()
    } else if v.is_infinite() {
        if v > 0.0 { "+Inf".into() } else { "-Inf".into() }
    } else {
        format!("{v}")
    }
}

fn labels(f: &mut Formatter<'_>, names: &[Str]) -> fmt::Result {
    f.write_char('(')?;
    for (i, n) in names.iter().enumerate() {
        if i > 0 {
            f.write_str(", ")?;
        }
        if is_label(n) { f.write_str(n)? } else { f.write_str(&quote(n))? }
    }
    f.write_char(')')
}

impl Display for Expr {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Kind::Number { value, duration: true } => {
                f.write_str(&duration::print((value * 1000.0).round() as i64))
            }
            Kind::Number { value, .. } => f.write_str(&number(*value)),
            Kind::String(s) => f.write_str(&quote(s)),
            Kind::Selector(s) => {
                series(f, s)?;
                ends(f, s)?;
                when(f, &s.when)
            }
            Kind::Range { selector, range } => {
                series(f, selector)?;
                write!(f, "[{range}]")?;
                ends(f, selector)?;
                when(f, &selector.when)
            }
            Kind::Subquery(s) => {
                write!(f, "{}[{}:", s.expr, s.range)?;
                if let Some(step) = &s.step {
                    write!(f, "{step}")?;
                }
                f.write_char(']')?;
                when(f, &s.when)
            }
            Kind::Unary { negative, expr } => write!(f, "{}{expr}", if *negative { '-' } else { '+' }),
            Kind::Binary(b) => binary(f, b),
            Kind::Aggregate(a) => {
                f.write_str(a.op.as_str())?;
                if a.without || !a.grouping.is_empty() {
                    f.write_str(if a.without { " without " } else { " by " })?;
                    labels(f, &a.grouping)?;
                    f.write_char(' ')?;
                }
                match &a.param {
                    Some(p) => write!(f, "({p}, {})", a.expr),
                    None => write!(f, "({})", a.expr),
                }
            }
            Kind::Call { function, args } => {
                write!(f, "{}(", function.name)?;
                for (i, a) in args.iter().enumerate() {
                    if i > 0 {
                        f.write_str(", ")?;
                    }
                    write!(f, "{a}")?;
                }
                f.write_char(')')
            }
            Kind::Paren(inner) => write!(f, "({inner})"),
        }
    }
}

fn series(f: &mut Formatter<'_>, s: &Selector) -> fmt::Result {
    let bare = s.name.as_deref().filter(|n| is_metric(n));
    f.write_str(bare.unwrap_or_default())?;
    let mut parts = Vec::new();
    for m in &s.matchers {
        let is_name = &*m.name == NAME && s.name.as_ref() == Some(&m.value);
        match (is_name, bare) {
            (true, Some(_)) => {}
            (true, None) => parts.insert(0, quote(&m.value)),
            (false, _) => {
                let name = if is_label(&m.name) { m.name.to_string() } else { quote(&m.name) };
                parts.push(format!("{name}{}{}", m.op.as_str(), quote(&m.value)));
            }
        }
    }
    if bare.is_none() || !parts.is_empty() { write!(f, "{{{}}}", parts.join(",")) } else { Ok(()) }
}

fn ends(f: &mut Formatter<'_>, s: &Selector) -> fmt::Result {
    f.write_str(match s.ends {
        Ends::Plain => "",
        Ends::Anchored => " anchored",
        Ends::Smoothed => " smoothed",
    })
}

fn when(f: &mut Formatter<'_>, w: &When) -> fmt::Result {
    match w.at {
        Some(At::Ms(ms)) => {
            let sign = if ms < 0 { "-" } else { "" };
            write!(f, " @ {sign}{}.{:03}", ms.unsigned_abs() / 1000, ms.unsigned_abs() % 1000)?;
        }
        Some(At::Start) => f.write_str(" @ start()")?,
        Some(At::End) => f.write_str(" @ end()")?,
        None => {}
    }
    match &w.offset {
        Some(d) => write!(f, " offset {d}"),
        None => Ok(()),
    }
}

fn binary(f: &mut Formatter<'_>, b: &Binary) -> fmt::Result {
    let m = &b.matching;
    write!(f, "{} {}", b.lhs, b.op.as_str())?;
    if b.return_bool {
        f.write_str(" bool")?;
    }
    if m.on || !m.labels.is_empty() || m.card != Card::OneToOne {
        f.write_str(if m.on { " on " } else { " ignoring " })?;
        labels(f, &m.labels)?;
    }
    if m.card != Card::OneToOne {
        f.write_str(if m.card == Card::ManyToOne { " group_left " } else { " group_right " })?;
        labels(f, &m.include)?;
    }
    match (m.fill_left, m.fill_right) {
        (Some(l), Some(r)) if l.to_bits() == r.to_bits() => write!(f, " fill ({})", number(l))?,
        (l, r) => {
            if let Some(l) = l {
                write!(f, " fill_left ({})", number(l))?;
            }
            if let Some(r) = r {
                write!(f, " fill_right ({})", number(r))?;
            }
        }
    }
    write!(f, " {}", b.rhs)
}

impl Display for Duration {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Duration::Ms(ms) => f.write_str(&duration::print(*ms)),
            Duration::Step => f.write_str("step()"),
            Duration::Range => f.write_str("range()"),
            Duration::Sign(negative, d) => write!(f, "{}{d}", if *negative { '-' } else { '+' }),
            Duration::Binary(op, a, b) => write!(f, "{a} {} {b}", op.as_str()),
            Duration::Min(a, b) => write!(f, "min_of({a}, {b})"),
            Duration::Max(a, b) => write!(f, "max_of({a}, {b})"),
            Duration::Paren(d) => write!(f, "({d})"),
        }
    }
}
