//! Experimental parts of the language, off unless they are switched on, under Prometheus' names of them.

use super::{ParseError, Span, ast::*, check::Complaint, parse};

/// What of the language is switched on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// `promql-experimental-functions`: functions and aggregations.
    pub functions: bool,
    /// `promql-extended-range-selectors`: `anchored` and `smoothed`.
    pub extended_ranges: bool,
    /// `promql-duration-expr`: arithmetic over durations.
    pub durations: bool,
    /// `promql-binop-fill-modifiers`: `fill`, `fill_left`, `fill_right`.
    pub fill: bool,
}

impl Features {
    /// Everything.
    pub const ALL: Features =
        Features { functions: true, extended_ranges: true, durations: true, fill: true };
    /// What Prometheus 3 speaks when it is told nothing.
    pub const STABLE: Features =
        Features { functions: false, extended_ranges: false, durations: true, fill: false };

    /// Switches on what `--enable-feature` names, several with commas between; those that are not of the language are
    /// handed back.
    pub fn enable(&mut self, names: &str) -> Vec<String> {
        let mut others = Vec::new();
        for name in names.split(',').map(str::trim).filter(|n| !n.is_empty()) {
            match name {
                "promql-experimental-functions" => self.functions = true,
                "promql-extended-range-selectors" => self.extended_ranges = true,
                "promql-duration-expr" => self.durations = true,
                "promql-binop-fill-modifiers" => self.fill = true,
                other => others.push(other.to_string()),
            }
        }
        others
    }
}

/// The tree of a query that uses nothing that is switched off.
pub fn parse_with(text: &str, features: Features) -> Result<Expr, ParseError> {
    let e = parse(text)?;
    match check(&e, features) {
        Ok(()) => Ok(e),
        Err((span, message)) => Err(ParseError::new(text, span, message)),
    }
}

fn duration(d: &Duration, on: bool, span: Span) -> Result<(), Complaint> {
    match d {
        Duration::Ms(_) => Ok(()),
        _ if on => Ok(()),
        _ => Err((span, "experimental duration expression is not enabled".into())),
    }
}

fn when(w: &When, f: Features, span: Span) -> Result<(), Complaint> {
    w.offset.as_ref().map_or(Ok(()), |d| duration(d, f.durations, span))
}

fn selector(s: &Selector, f: Features, span: Span) -> Result<(), Complaint> {
    let word = match s.ends {
        Ends::Plain => return when(&s.when, f, span),
        _ if f.extended_ranges => return when(&s.when, f, span),
        Ends::Anchored => "anchored",
        Ends::Smoothed => "smoothed",
    };
    Err((span, format!("{word} modifier is experimental and not enabled")))
}

fn check(e: &Expr, f: Features) -> Result<(), Complaint> {
    match &e.kind {
        Kind::Number { .. } | Kind::String(_) => Ok(()),
        Kind::Paren(inner) | Kind::Unary { expr: inner, .. } => check(inner, f),
        Kind::Selector(s) => selector(s, f, e.span),
        Kind::Range { selector: s, range } => {
            duration(range, f.durations, e.span)?;
            selector(s, f, e.span)
        }
        Kind::Subquery(s) => {
            check(&s.expr, f)?;
            duration(&s.range, f.durations, e.span)?;
            s.step.as_ref().map_or(Ok(()), |d| duration(d, f.durations, e.span))?;
            when(&s.when, f, e.span)
        }
        Kind::Binary(b) => {
            check(&b.lhs, f)?;
            check(&b.rhs, f)?;
            if !f.fill && (b.matching.fill_left.is_some() || b.matching.fill_right.is_some()) {
                return Err((b.at.0, "binop fill modifiers are experimental and not enabled".into()));
            }
            Ok(())
        }
        Kind::Aggregate(a) => {
            check(&a.expr, f)?;
            a.param.as_ref().map_or(Ok(()), |p| check(p, f))?;
            if a.op.experimental() && !f.functions {
                let op = a.op.as_str();
                let how = "must be enabled with --enable-feature=promql-experimental-functions";
                return Err((e.span, format!("{op}() is experimental and {how}")));
            }
            Ok(())
        }
        Kind::Call { function, args } => {
            if function.experimental && !f.functions {
                let name = crate::labels::quote(function.name);
                return Err((e.span, format!("function {name} is not enabled")));
            }
            args.iter().try_for_each(|a| check(a, f))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_off_is_refused_in_prometheus_words() {
        let stable = |text: &str| parse_with(text, Features::STABLE).map_err(|e| e.to_string()).err();
        for text in ["rate(x[5m]) + 1", "sum by (a) (x) > 2", "x[2m+step()]", "x offset (1m*2)"] {
            assert_eq!(stable(text), None, "{text}");
        }
        for (text, message) in [
            ("1 + mad_over_time(x[5m])", "1:5: parse error: function \"mad_over_time\" is not enabled"),
            (
                "limitk(2, x)",
                "1:1: parse error: limitk() is experimental and must be enabled with --enable-feature=promql-experimental-functions",
            ),
            ("rate(x[5m] anchored)", "1:6: parse error: anchored modifier is experimental and not enabled"),
            ("x smoothed", "1:1: parse error: smoothed modifier is experimental and not enabled"),
            ("a + fill (0) b", "1:3: parse error: binop fill modifiers are experimental and not enabled"),
        ] {
            assert_eq!(stable(text).as_deref(), Some(message));
            assert!(parse_with(text, Features::ALL).is_ok(), "{text}");
        }
        let mut f = Features { durations: false, ..Features::STABLE };
        assert!(
            parse_with("x[1m+1m]", f)
                .is_err_and(|e| e.message.contains("duration expression is not enabled"))
        );
        assert_eq!(
            f.enable("promql-duration-expr, native-histograms,promql-experimental-functions"),
            ["native-histograms"]
        );
        assert!(parse_with("info(x[1m+1m])", f).is_err() && parse_with("info(x)", f).is_ok());
    }
}
