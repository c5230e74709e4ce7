//! Whether a tree makes sense: types of operands and arguments, modifiers where they mean something.

use super::ast::*;
use crate::labels::{NAME, quote};

/// A complaint and where.
pub(super) type Complaint = (Span, String);

fn expect(e: &Expr, want: Type, context: &str) -> Result<(), Complaint> {
    check(e)?;
    if e.ty() == want {
        return Ok(());
    }
    let (want, got) = (want.documented(), e.ty().documented());
    Err((e.span, format!("expected type {want} in {context}, got {got}")))
}

/// The first complaint about a tree.
pub(super) fn check(e: &Expr) -> Result<(), Complaint> {
    match &e.kind {
        Kind::Number { .. } | Kind::String(_) => Ok(()),
        Kind::Paren(inner) => check(inner),
        Kind::Selector(s) | Kind::Range { selector: s, .. } => selector(s, e.span),
        Kind::Subquery(s) => {
            check(&s.expr)?;
            match s.expr.ty() {
                Type::Vector => Ok(()),
                other => {
                    let got = other.documented();
                    Err((e.span, format!("subquery is only allowed on instant vector, got {got} instead")))
                }
            }
        }
        Kind::Unary { expr, .. } => {
            check(expr)?;
            match expr.ty() {
                Type::Scalar | Type::Vector => Ok(()),
                other => Err((
                    e.span,
                    format!(
                        "unary expression only allowed on expressions of type scalar or instant vector, got {}",
                        quote(other.documented())
                    ),
                )),
            }
        }
        Kind::Aggregate(a) => {
            expect(&a.expr, Type::Vector, "aggregation expression")?;
            match (&a.param, a.op.param()) {
                (Some(p), Some(want)) => expect(p, want, "aggregation parameter"),
                _ => Ok(()),
            }
        }
        Kind::Call { function, args } => call(e, function, args),
        Kind::Binary(b) => binary(e, b),
    }
}

fn selector(s: &Selector, span: Span) -> Result<(), Complaint> {
    let names = || s.matchers.iter().filter(|m| &*m.name == NAME);
    if let Some(name) = &s.name
        && let Some(second) = names().find(|m| m.value != *name || names().count() > 1)
    {
        let (a, b) = (quote(name), quote(&second.value));
        return Err((span, format!("metric name must not be set twice: {a} or {b}")));
    }
    if s.matchers.iter().all(|m| m.matches("")) {
        return Err((span, "vector selector must contain at least one non-empty matcher".into()));
    }
    Ok(())
}

fn call(e: &Expr, function: &super::functions::Function, args: &[Expr]) -> Result<(), Complaint> {
    let (full, name, got) = (function.args.len(), quote(function.name), args.len());
    let least = full - function.optional.unsigned_abs() as usize;
    let wrong = |what: String| Err((e.span, format!("expected {what} in call to {name}, got {got}")));
    if function.optional == 0 && got != full {
        return wrong(format!("{full} argument(s)"));
    }
    if got < least {
        return wrong(format!("at least {least} argument(s)"));
    }
    if function.optional > 0 && got > full {
        return wrong(format!("at most {full} argument(s)"));
    }
    for (i, arg) in args.iter().enumerate() {
        let want = function.args[i.min(full - 1)];
        expect(arg, want, &format!("call to function {name}"))?;
    }
    if function.name == "info" && args.get(1).is_some_and(|a| !matches!(a.kind, Kind::Selector(_))) {
        return Err((args[1].span, "expected label selectors only, got vector selector instead".into()));
    }
    Ok(())
}

fn binary(e: &Expr, b: &Binary) -> Result<(), Complaint> {
    check(&b.lhs)?;
    check(&b.rhs)?;
    let (l, r) = (b.lhs.ty(), b.rhs.ty());
    let m = &b.matching;
    if b.return_bool && !b.op.is_comparison() {
        return Err((b.at.0, "bool modifier can only be used on comparison operators".into()));
    }
    if b.op.is_comparison() && !b.return_bool && l == Type::Scalar && r == Type::Scalar {
        return Err((b.at.0, "comparisons between scalars must use BOOL modifier".into()));
    }
    if b.op.is_set() && m.card != Card::OneToOne {
        return Err((e.span, format!("no grouping allowed for {} operation", quote(b.op.as_str()))));
    }
    if m.on
        && let Some(both) = m.labels.iter().find(|l| m.include.contains(l))
    {
        return Err((b.at.0, format!("label {} must not occur in ON and GROUP clause at once", quote(both))));
    }
    for (side, ty) in [(&b.lhs, l), (&b.rhs, r)] {
        if ty != Type::Scalar && ty != Type::Vector {
            return Err((
                side.span,
                "binary expression must contain only scalar and instant vector types".into(),
            ));
        }
    }
    let both = l == Type::Vector && r == Type::Vector;
    if !both && (!m.labels.is_empty() || m.on) {
        return Err((e.span, "vector matching only allowed between instant vectors".into()));
    }
    let fills = m.fill_left.is_some() || m.fill_right.is_some();
    if fills && (!both || b.op.is_set()) {
        return Err((e.span, "filling in missing series only allowed between instant vectors".into()));
    }
    if b.op.is_trim() && r != Type::Scalar {
        let op = quote(b.op.as_str());
        return Err((
            e.span,
            format!("operator {op} needs a histogram on its left and a number on its right"),
        ));
    }
    if b.op.is_trim() && l == Type::Scalar {
        let op = quote(b.op.as_str());
        return Err((e.span, format!("operator {op} not allowed for Scalar operations")));
    }
    if !both && b.op.is_set() {
        let op = quote(b.op.as_str());
        return Err((e.span, format!("set operator {op} not allowed in binary scalar expression")));
    }
    Ok(())
}
