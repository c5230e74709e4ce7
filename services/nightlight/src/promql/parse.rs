//! Tokens to a tree: recursive descent, operators by precedence. The grammar is Prometheus' own, its odd corners
//! included: `sum` may be a metric, `by` a label, `-1^2` is −1.

use super::{
    BYTES_MAX, HEIGHT_MAX, NESTING_MAX, ParseError,
    ast::*,
    check, duration, functions,
    lex::{Keyword, Tok, Token, lex, parse_number, unquote},
};
use crate::labels::{MatchOp, Matcher, NAME, Str};

/// Binds tighter than `* / %` and looser than `^`.
const UNARY: u8 = 6;

type Parse<T> = Result<T, (Span, String)>;

struct Parser<'a> {
    tokens: Vec<Token<'a>>,
    at: usize,
    /// Aggregations whose arguments are being read: a stray token there is said to be "in aggregation".
    aggregations: u32,
    depth: u16,
}

/// The tree of a query, its types checked.
pub fn parse(text: &str) -> Result<Expr, ParseError> {
    run(text, |p| {
        if p.peek().tok == Tok::Eof {
            return Err((Span::default(), "no expression found in input".into()));
        }
        let e = p.expr(0)?;
        p.end()?;
        check::check(&e)?;
        Ok(e)
    })
}

/// The conditions of a selector without modifiers, as `match[]` holds one.
pub fn parse_selector(text: &str) -> Result<Vec<Matcher>, ParseError> {
    run(text, |p| {
        let e = p.primary()?;
        p.end()?;
        check::check(&e)?;
        match e.kind {
            Kind::Selector(s) if s.when == When::default() => Ok(s.matchers),
            _ => Err((e.span, "expected a series selector".into())),
        }
    })
}

fn run<T>(text: &str, f: impl FnOnce(&mut Parser<'_>) -> Parse<T>) -> Result<T, ParseError> {
    if text.len() > BYTES_MAX {
        let message = format!("query has {} bytes, at most {BYTES_MAX} are read", text.len());
        return Err(ParseError::new(text, Span::default(), message));
    }
    let mut p = Parser { tokens: lex(text), at: 0, aggregations: 0, depth: 0 };
    f(&mut p).map_err(|(span, message)| ParseError::new(text, span, message))
}

fn node(span: Span, kind: Kind) -> Parse<Expr> {
    let below = match &kind {
        Kind::Number { .. } | Kind::String(_) | Kind::Selector(_) | Kind::Range { .. } => 0,
        Kind::Subquery(s) => s.expr.height,
        Kind::Unary { expr, .. } | Kind::Paren(expr) => expr.height,
        Kind::Binary(b) => b.lhs.height.max(b.rhs.height),
        Kind::Aggregate(a) => a.expr.height.max(a.param.as_ref().map_or(0, |p| p.height)),
        Kind::Call { args, .. } => args.iter().map(|a| a.height).max().unwrap_or(0),
    };
    if below >= HEIGHT_MAX {
        return Err((span, too_deep(HEIGHT_MAX)));
    }
    Ok(Expr { span, kind, height: below + 1 })
}

fn too_deep(most: u16) -> String {
    format!("expression is nested too deeply: at most {most} levels are read")
}

impl<'a> Parser<'a> {
    fn peek(&self) -> &Token<'a> {
        // The last token is never consumed.
        &self.tokens[self.at.min(self.tokens.len() - 1)]
    }

    fn second(&self) -> &Tok {
        &self.tokens[(self.at + 1).min(self.tokens.len() - 1)].tok
    }

    fn next(&mut self) -> Token<'a> {
        let t = self.peek().clone();
        if self.at + 1 < self.tokens.len() {
            self.at += 1;
        }
        t
    }

    fn take(&mut self, tok: &Tok) -> Option<Span> {
        if self.peek().tok == *tok { Some(self.next().span) } else { None }
    }

    fn keyword(&mut self, k: Keyword) -> bool {
        self.take(&Tok::Keyword(k)).is_some()
    }

    /// The next token does not belong here.
    fn unexpected<T>(&self, context: &str, expected: &str) -> Parse<T> {
        let t = self.peek();
        if let Tok::Error(message) = &t.tok {
            return Err((t.span, message.clone()));
        }
        let mut message = format!("unexpected {}", t.describe());
        let context = if context.is_empty() && self.aggregations > 0 { "aggregation" } else { context };
        if !context.is_empty() {
            message.push_str(&format!(" in {context}"));
        }
        if !expected.is_empty() {
            message.push_str(&format!(", expected {expected}"));
        }
        Err((t.span, message))
    }

    fn expect(&mut self, tok: &Tok, context: &str, expected: &str) -> Parse<Span> {
        match self.take(tok) {
            Some(span) => Ok(span),
            None => self.unexpected(context, expected),
        }
    }

    fn end(&self) -> Parse<()> {
        if self.peek().tok == Tok::Eof { Ok(()) } else { self.unexpected("", "") }
    }

    fn deeper<T>(&mut self, f: impl FnOnce(&mut Self) -> Parse<T>) -> Parse<T> {
        if self.depth >= NESTING_MAX {
            return Err((self.peek().span, too_deep(NESTING_MAX)));
        }
        self.depth += 1;
        let out = f(self);
        self.depth -= 1;
        out
    }

    /// An expression of operators that bind at least as tightly as `least`.
    fn expr(&mut self, least: u8) -> Parse<Expr> {
        self.deeper(|p| {
            let mut lhs = p.unary()?;
            while let Tok::Op(op) = p.peek().tok
                && op.precedence() >= least
            {
                let at = Here(p.next().span);
                let mut b = p.modifiers(op, at)?;
                let right = if op == Op::Pow { op.precedence() } else { op.precedence() + 1 };
                let rhs = p.expr(right)?;
                let span = lhs.span.to(rhs.span);
                (b.0.lhs, b.0.rhs) = (lhs, rhs);
                lhs = node(span, Kind::Binary(b.0))?;
            }
            Ok(lhs)
        })
    }

    fn unary(&mut self) -> Parse<Expr> {
        let negative = match self.peek().tok {
            Tok::Op(Op::Sub) => true,
            Tok::Op(Op::Add) => false,
            _ => return self.postfix(),
        };
        let start = self.next().span;
        let e = self.expr(UNARY)?;
        let span = start.to(e.span);
        match e.kind {
            Kind::Number { value, duration } => {
                let value = if negative { -value } else { value };
                node(span, Kind::Number { value, duration })
            }
            kind => {
                let expr = Box::new(Expr { kind, ..e });
                node(span, Kind::Unary { negative, expr })
            }
        }
    }

    fn modifiers(&mut self, op: Op, at: Here) -> Parse<(Box<Binary>,)> {
        let nothing =
            || Expr { span: Span::default(), kind: Kind::Number { value: 0.0, duration: false }, height: 1 };
        let mut m = Matching::default();
        let return_bool = self.keyword(Keyword::Bool);
        let on = self.keyword(Keyword::On);
        if on || self.keyword(Keyword::Ignoring) {
            m.on = on;
            m.labels = self.label_names()?;
            let left = self.keyword(Keyword::GroupLeft);
            if left || self.keyword(Keyword::GroupRight) {
                m.card = if left { Card::ManyToOne } else { Card::OneToMany };
                if self.peek().tok == Tok::LeftParen {
                    m.include = self.label_names()?;
                }
            }
        }
        loop {
            let (left, right) = match self.peek().tok {
                Tok::Keyword(Keyword::Fill) => (true, true),
                Tok::Keyword(Keyword::FillLeft) => (true, false),
                Tok::Keyword(Keyword::FillRight) => (false, true),
                _ => break,
            };
            self.next();
            self.expect(&Tok::LeftParen, "fill modifier", "\"(\"")?;
            let value = self.signed("fill modifier", "number")?;
            self.expect(&Tok::RightParen, "fill modifier", "\")\"")?;
            if left {
                m.fill_left = Some(value);
            }
            if right {
                m.fill_right = Some(value);
            }
        }
        Ok((Box::new(Binary { op, at, lhs: nothing(), rhs: nothing(), return_bool, matching: m }),))
    }

    fn signed(&mut self, context: &str, expected: &str) -> Parse<f64> {
        let negative = self.take(&Tok::Op(Op::Sub)).is_some();
        if !negative {
            self.take(&Tok::Op(Op::Add));
        }
        match self.number()? {
            Some((value, ..)) => Ok(if negative { -value } else { value }),
            None => self.unexpected(context, expected),
        }
    }

    /// A number or a duration as a number of seconds.
    fn number(&mut self) -> Parse<Option<(f64, bool, Span)>> {
        let t = self.peek().clone();
        let out = match t.tok {
            Tok::Number => {
                let value = parse_number(t.text);
                (value.ok_or_else(|| (t.span, format!("error parsing number: {}", t.text)))?, false)
            }
            Tok::Duration => (self.literal(&t)? as f64 / 1000.0, true),
            _ => return Ok(None),
        };
        self.next();
        Ok(Some((out.0, out.1, t.span)))
    }

    fn literal(&self, t: &Token<'_>) -> Parse<i64> {
        match duration::parse(t.text) {
            Ok(ms) => Ok(ms),
            Err(e) => Err((t.span, e)),
        }
    }

    /// `(a, b, "c.d")`
    fn label_names(&mut self) -> Parse<Vec<Str>> {
        self.expect(&Tok::LeftParen, "grouping opts", "\"(\"")?;
        let mut names: Vec<Str> = Vec::new();
        loop {
            if self.take(&Tok::RightParen).is_some() {
                return Ok(names);
            }
            let t = self.peek().clone();
            match t.tok {
                Tok::Ident | Tok::Keyword(_) | Tok::Agg(_) => names.push(t.text.into()),
                Tok::Op(Op::And | Op::Or | Op::Unless | Op::Atan2) => names.push(t.text.into()),
                Tok::Str => {
                    let name = unquote(t.text).map_err(|e| (t.span, e))?;
                    if name.is_empty() {
                        return Err((t.span, "invalid label name for grouping: \"\"".into()));
                    }
                    names.push(name.into());
                }
                _ => return self.unexpected("grouping opts", "label"),
            }
            self.next();
            if self.peek().tok != Tok::RightParen && self.take(&Tok::Comma).is_none() {
                return self.unexpected("grouping opts", "\",\" or \")\"");
            }
        }
    }

    fn postfix(&mut self) -> Parse<Expr> {
        let mut e = self.primary()?;
        loop {
            match self.peek().tok {
                Tok::LeftBracket => e = self.bracket(e)?,
                Tok::Keyword(Keyword::Offset) => {
                    self.next();
                    let d = self.offset()?;
                    let what = "offset modifier must be preceded by an instant vector selector or range vector selector or a subquery";
                    let when = when(&mut e).ok_or_else(|| what.to_string());
                    match when {
                        Err(message) => return Err((e.span, message)),
                        Ok(w) if w.offset.is_some() => {
                            return Err((e.span, "offset may not be set multiple times".into()));
                        }
                        Ok(w) => w.offset = Some(d),
                    }
                    self.stretch(&mut e);
                }
                Tok::At => {
                    self.next();
                    let at = self.instant()?;
                    let what = "@ modifier must be preceded by an instant vector selector or range vector selector or a subquery";
                    match when(&mut e) {
                        None => return Err((e.span, what.into())),
                        Some(w) if w.at.is_some() => {
                            return Err((e.span, "@ <timestamp> may not be set multiple times".into()));
                        }
                        Some(w) => w.at = Some(at),
                    }
                    self.stretch(&mut e);
                }
                Tok::Keyword(k @ (Keyword::Anchored | Keyword::Smoothed)) => {
                    self.next();
                    let word = if k == Keyword::Anchored { Ends::Anchored } else { Ends::Smoothed };
                    let name = if k == Keyword::Anchored { "anchored" } else { "smoothed" };
                    match &mut e.kind {
                        Kind::Selector(s) | Kind::Range { selector: s, .. } if s.ends == Ends::Plain => {
                            s.ends = word
                        }
                        Kind::Selector(_) | Kind::Range { .. } => {
                            return Err((
                                e.span,
                                format!("{name} and another modifier can't be set at once"),
                            ));
                        }
                        _ => {
                            let what =
                                "must be preceded by an instant vector selector or range vector selector";
                            return Err((e.span, format!("{name} modifier {what}")));
                        }
                    }
                    self.stretch(&mut e);
                }
                _ => return Ok(e),
            }
        }
    }

    /// The expression now ends where the last consumed token does.
    fn stretch(&self, e: &mut Expr) {
        e.span.end = self.tokens[self.at - 1].span.end;
    }

    /// What follows `offset`: a duration, or arithmetic in parentheses.
    fn offset(&mut self) -> Parse<Duration> {
        let negative = self.peek().tok == Tok::Op(Op::Sub);
        if negative || self.peek().tok == Tok::Op(Op::Add) {
            self.next();
            let d = self.duration_atom("offset")?;
            return Ok(match d {
                Duration::Ms(ms) if negative => Duration::Ms(-ms),
                Duration::Ms(ms) => Duration::Ms(ms),
                d => Duration::Sign(negative, Box::new(d)),
            });
        }
        self.duration_atom("offset")
    }

    fn duration_expr(&mut self, least: u8, context: &str) -> Parse<Duration> {
        self.deeper(|p| {
            let mut lhs = match p.peek().tok {
                Tok::Op(op @ (Op::Add | Op::Sub)) => {
                    p.next();
                    match (op, p.duration_expr(UNARY, context)?) {
                        (Op::Sub, Duration::Ms(ms)) => Duration::Ms(-ms),
                        (Op::Add, Duration::Ms(ms)) => Duration::Ms(ms),
                        (op, d) => Duration::Sign(op == Op::Sub, Box::new(d)),
                    }
                }
                _ => p.duration_atom(context)?,
            };
            let mut terms = 0;
            while let Tok::Op(op @ (Op::Add | Op::Sub | Op::Mul | Op::Div | Op::Mod | Op::Pow)) = p.peek().tok
                && op.precedence() >= least
            {
                terms += 1;
                if terms > NESTING_MAX {
                    return Err((p.peek().span, too_deep(NESTING_MAX)));
                }
                p.next();
                let right = if op == Op::Pow { op.precedence() } else { op.precedence() + 1 };
                let rhs = p.duration_expr(right, context)?;
                lhs = Duration::Binary(op, Box::new(lhs), Box::new(rhs));
            }
            Ok(lhs)
        })
    }

    fn duration_atom(&mut self, context: &str) -> Parse<Duration> {
        if let Some((seconds, ..)) = self.number()? {
            let ms = (seconds * 1000.0).round();
            if !ms.is_finite() || ms > duration::MS_MAX as f64 {
                return Err((self.tokens[self.at - 1].span, "duration out of range".into()));
            }
            return Ok(Duration::Ms(ms as i64));
        }
        if self.take(&Tok::LeftParen).is_some() {
            let d = self.duration_expr(0, context)?;
            self.expect(&Tok::RightParen, context, "\")\"")?;
            return Ok(Duration::Paren(Box::new(d)));
        }
        let t = self.peek().clone();
        let word = t.text.to_ascii_lowercase();
        if !matches!(t.tok, Tok::Ident | Tok::Agg(AggOp::Min | AggOp::Max))
            || *self.second() != Tok::LeftParen
        {
            return self.unexpected(context, "duration");
        }
        self.next();
        self.next();
        let d = match word.as_str() {
            "step" => Duration::Step,
            "range" => Duration::Range,
            "min" | "max" | "min_of" | "max_of" => {
                let a = Box::new(self.duration_expr(0, context)?);
                self.expect(&Tok::Comma, context, "\",\"")?;
                let b = Box::new(self.duration_expr(0, context)?);
                if word.starts_with("min") { Duration::Min(a, b) } else { Duration::Max(a, b) }
            }
            _ => {
                self.at -= 2;
                return self.unexpected(context, "duration");
            }
        };
        self.expect(&Tok::RightParen, context, "\")\"")?;
        Ok(d)
    }

    /// What follows `@`.
    fn instant(&mut self) -> Parse<At> {
        for (k, at) in [(Keyword::Start, At::Start), (Keyword::End, At::End)] {
            if self.peek().tok == Tok::Keyword(k) && *self.second() == Tok::LeftParen {
                self.next();
                self.next();
                self.expect(&Tok::RightParen, "@", "\")\"")?;
                return Ok(at);
            }
        }
        if !matches!(self.peek().tok, Tok::Number | Tok::Duration | Tok::Op(Op::Add | Op::Sub)) {
            return self.unexpected("@", "timestamp");
        }
        let span = self.peek().span;
        let seconds = self.signed("@", "timestamp")?;
        let ms = (seconds * 1000.0).round();
        if !ms.is_finite() || ms.abs() >= i64::MAX as f64 {
            return Err((span, format!("timestamp out of bounds for @ modifier: {seconds:.6}")));
        }
        Ok(At::Ms(ms as i64))
    }

    /// `[5m]` or `[5m:1m]` after `e`.
    fn bracket(&mut self, e: Expr) -> Parse<Expr> {
        let open = self.next().span;
        let range_at = self.peek().span;
        let range = self.duration_expr(0, "subquery or range selector")?;
        positive(&range, range_at)?;
        let colon = self.take(&Tok::Colon).is_some();
        if !colon && self.peek().tok != Tok::RightBracket {
            return self.unexpected("subquery or range", "\":\" or \"]\"");
        }
        let mut step = None;
        if colon && self.peek().tok != Tok::RightBracket {
            let step_at = self.peek().span;
            let d = self.duration_expr(0, "subquery selector")?;
            positive(&d, step_at)?;
            step = Some(d);
        }
        let close = self.expect(&Tok::RightBracket, "subquery selector", "\"]\"")?;
        let span = e.span.to(close);
        if colon {
            let inner = Subquery { expr: e, range, step, when: When::default() };
            return node(span, Kind::Subquery(Box::new(inner)));
        }
        let refuse = |what: &str| Err((open.to(close), what.to_string()));
        match e.kind {
            Kind::Selector(s) if s.when.offset.is_some() => {
                refuse("no offset modifiers allowed before range")
            }
            Kind::Selector(s) if s.when.at.is_some() => refuse("no @ modifiers allowed before range"),
            Kind::Selector(s) if s.ends != Ends::Plain => {
                refuse("no anchored or smoothed modifiers allowed before range")
            }
            Kind::Selector(selector) => node(span, Kind::Range { selector, range }),
            _ => refuse("ranges only allowed for vector selectors"),
        }
    }

    fn primary(&mut self) -> Parse<Expr> {
        if let Some((value, duration, span)) = self.number()? {
            return node(span, Kind::Number { value, duration });
        }
        let t = self.peek().clone();
        match t.tok {
            Tok::Str => {
                self.next();
                node(t.span, Kind::String(unquote(t.text).map_err(|e| (t.span, e))?))
            }
            Tok::LeftParen => {
                self.next();
                let e = self.expr(0)?;
                let close = self.expect(&Tok::RightParen, "", "")?;
                node(t.span.to(close), Kind::Paren(Box::new(e)))
            }
            Tok::LeftBrace => self.selector(None),
            Tok::Agg(op) => match self.second() {
                Tok::LeftParen | Tok::Keyword(Keyword::By | Keyword::Without) => self.aggregate(op),
                // Anywhere else it is a metric's name.
                _ => self.selector(Some(self.peek().text)),
            },
            Tok::Ident if *self.second() == Tok::LeftParen => self.call(),
            Tok::Keyword(Keyword::Start | Keyword::End) if *self.second() == Tok::LeftParen => self.call(),
            Tok::Ident | Tok::MetricIdent => self.selector(Some(t.text)),
            Tok::Keyword(
                Keyword::By
                | Keyword::Offset
                | Keyword::Without
                | Keyword::Start
                | Keyword::End
                | Keyword::Anchored
                | Keyword::Smoothed,
            )
            | Tok::Op(Op::And | Op::Or | Op::Unless) => self.selector(Some(t.text)),
            _ => self.unexpected("", ""),
        }
    }

    fn selector(&mut self, name: Option<&str>) -> Parse<Expr> {
        let mut span = self.peek().span;
        let mut s = Selector { name: name.map(Str::from), ..Selector::default() };
        if name.is_some() {
            self.next();
        }
        if self.peek().tok == Tok::LeftBrace {
            self.next();
            span = span.to(self.matchers(&mut s)?);
        }
        if let Some(name) = &s.name {
            s.matchers.push(Matcher::new(NAME, MatchOp::Equal, name).map_err(|e| (span, e))?);
        }
        node(span, Kind::Selector(s))
    }

    /// Up to and with the closing brace.
    fn matchers(&mut self, s: &mut Selector) -> Parse<Span> {
        loop {
            if let Some(span) = self.take(&Tok::RightBrace) {
                return Ok(span);
            }
            let t = self.peek().clone();
            let name = match t.tok {
                Tok::Ident => t.text.to_string(),
                Tok::Str => unquote(t.text).map_err(|e| (t.span, e))?,
                _ => return self.unexpected("label matching", "identifier or \"}\""),
            };
            self.next();
            let op = match self.peek().tok {
                Tok::Assign => Some(MatchOp::Equal),
                Tok::Op(Op::Ne) => Some(MatchOp::NotEqual),
                Tok::Regex => Some(MatchOp::Regex),
                Tok::NotRegex => Some(MatchOp::NotRegex),
                _ => None,
            };
            match op {
                Some(op) => {
                    self.next();
                    let v = self.peek().clone();
                    if v.tok != Tok::Str {
                        return self.unexpected("label matching", "string");
                    }
                    self.next();
                    let value = unquote(v.text).map_err(|e| (v.span, e))?;
                    s.matchers.push(Matcher::new(&name, op, &value).map_err(|e| (t.span, e))?);
                }
                // A quoted string alone is the metric's name.
                None if t.tok == Tok::Str => match &s.name {
                    Some(first) => {
                        let (a, b) = (crate::labels::quote(first), crate::labels::quote(&name));
                        return Err((t.span, format!("metric name must not be set twice: {a} or {b}")));
                    }
                    None => s.name = Some(name.into()),
                },
                None => return self.unexpected("label matching", "label matching operator"),
            }
            if self.peek().tok != Tok::RightBrace && self.take(&Tok::Comma).is_none() {
                return self.unexpected("label matching", "\",\" or \"}\"");
            }
        }
    }

    fn args(&mut self) -> Parse<Vec<Expr>> {
        self.expect(&Tok::LeftParen, "", "")?;
        let mut args = Vec::new();
        if self.take(&Tok::RightParen).is_some() {
            return Ok(args);
        }
        loop {
            args.push(self.expr(0)?);
            let Some(comma) = self.take(&Tok::Comma) else { break };
            if self.peek().tok == Tok::RightParen {
                return Err((comma, "trailing commas not allowed in function call args".into()));
            }
        }
        self.expect(&Tok::RightParen, "", "")?;
        Ok(args)
    }

    fn call(&mut self) -> Parse<Expr> {
        let t = self.next();
        let function = functions::find(t.text);
        let Some(function) = function else {
            return Err((t.span, format!("unknown function with name {}", crate::labels::quote(t.text))));
        };
        let args = self.args()?;
        let mut e = node(t.span, Kind::Call { function, args })?;
        self.stretch(&mut e);
        Ok(e)
    }

    fn grouping(&mut self) -> Parse<Option<(bool, Vec<Str>)>> {
        let without = self.keyword(Keyword::Without);
        if !without && !self.keyword(Keyword::By) {
            return Ok(None);
        }
        Ok(Some((without, self.label_names()?)))
    }

    fn aggregate(&mut self, op: AggOp) -> Parse<Expr> {
        let start = self.next().span;
        let mut grouping = self.grouping()?;
        self.aggregations += 1;
        let mut args = self.args()?;
        self.aggregations -= 1;
        if grouping.is_none() {
            grouping = self.grouping()?;
        }
        let span = start.to(self.tokens[self.at - 1].span);
        if args.is_empty() {
            return Err((span, "no arguments for aggregate expression provided".into()));
        }
        let wanted = 1 + usize::from(op.param().is_some());
        if args.len() != wanted {
            let got = args.len();
            return Err((
                span,
                format!(
                    "wrong number of arguments for aggregate expression provided, expected {wanted}, got {got}"
                ),
            ));
        }
        let last = args.pop();
        let Some(expr) = last else { return self.unexpected("aggregation", "") };
        let (without, grouping) = grouping.unwrap_or_default();
        let a = Aggregate { op, expr, param: args.pop(), without, grouping };
        node(span, Kind::Aggregate(Box::new(a)))
    }
}

fn positive(d: &Duration, at: Span) -> Parse<()> {
    match d {
        Duration::Ms(ms) if *ms <= 0 => Err((at, "duration must be greater than 0".into())),
        _ => Ok(()),
    }
}

fn when(e: &mut Expr) -> Option<&mut When> {
    match &mut e.kind {
        Kind::Selector(s) | Kind::Range { selector: s, .. } => Some(&mut s.when),
        Kind::Subquery(s) => Some(&mut s.when),
        _ => None,
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
