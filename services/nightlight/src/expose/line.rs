//! What both text forms share: the series at the start of a line, and numbers.

use super::ParseError;
use crate::labels::{Labels, NAME, Str, quote};
use std::borrow::Cow;

/// A place in a page.
#[derive(Clone, Copy)]
pub(super) struct Cursor<'a> {
    /// The whole page.
    pub text: &'a str,
    /// Where the entry begins that is being read.
    pub entry: usize,
    /// Next byte.
    pub at: usize,
    /// OpenMetrics: nothing but what has to be there.
    pub strict: bool,
}

impl<'a> Cursor<'a> {
    pub fn new(text: &'a str, strict: bool) -> Self {
        Cursor { text, entry: 0, at: 0, strict }
    }

    pub fn byte(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    /// Spaces and tabs, which only the older form allows everywhere.
    pub fn blanks(&mut self) {
        while !self.strict && matches!(self.byte(), Some(b' ' | b'\t')) {
            self.at += 1;
        }
    }

    /// Everything up to a byte of which `ends` holds, or to the end.
    pub fn until(&mut self, ends: impl Fn(u8) -> bool) -> &'a str {
        let rest = &self.text.as_bytes()[self.at..];
        let n = rest.iter().position(|b| ends(*b)).unwrap_or(rest.len());
        let start = self.at;
        self.at += n;
        // A token ends before an ASCII byte or at the end: that is a border of characters.
        &self.text[start..self.at]
    }

    /// Something else was expected here.
    pub fn unexpected(&self, what: &str) -> ParseError {
        // The page ends with a line's end, written or not: that is what stands behind it.
        let (got, kind) = match self.byte() {
            None => ("\n", "INVALID"),
            Some(b'=') => (self.span(self.at, 2), "EQUAL"),
            Some(b'{') => ("{", "BOPEN"),
            Some(b'}') => ("}", "BCLOSE"),
            Some(b',') => (",", "COMMA"),
            Some(_) => (self.span(self.at, 1), "INVALID"),
        };
        let before = &self.text[self.entry.min(self.at)..self.at];
        let before = before.get(before.len().saturating_sub(200)..).unwrap_or(before);
        let read = format!("{before}{got}");
        ParseError(format!("{what}, got {} ({}) while parsing: {}", quote(got), quote(kind), quote(&read)))
    }

    /// Up to `n` characters from `at` on, of this line.
    fn span(&self, at: usize, n: usize) -> &'a str {
        let rest = &self.text[at..];
        let end = rest.char_indices().nth(n).map_or(rest.len(), |(i, _)| i);
        &rest[..end]
    }

    /// Something is wrong with what was just read.
    pub fn wrong(&self, what: impl std::fmt::Display) -> ParseError {
        ParseError(format!("{what} while parsing: {}", quote(&self.text[self.entry..self.at])))
    }

    /// A name of the old alphabet; empty if there is none.
    fn plain_name(&mut self, colons: bool) -> &'a str {
        let bytes = &self.text.as_bytes()[self.at..];
        let plain = |b: u8| b == b'_' || (colons && b == b':') || b.is_ascii_alphabetic();
        let n = match bytes.first() {
            Some(b) if plain(*b) => {
                bytes.iter().position(|b| !plain(*b) && !b.is_ascii_digit()).unwrap_or(bytes.len())
            }
            _ => 0,
        };
        let name = &self.text[self.at..self.at + n];
        self.at += n;
        name
    }

    /// `"…"`, escapes still in it; nothing if there is none that ends.
    fn quoted(&mut self) -> Option<&'a str> {
        let bytes = self.text.as_bytes();
        if self.byte() != Some(b'"') {
            return None;
        }
        let start = self.at + 1;
        let mut i = start;
        loop {
            match bytes.get(i)? {
                b'"' => break,
                b'\\' => i += 2,
                b'\n' if self.strict => return None,
                _ => i += 1,
            }
        }
        self.at = i + 1;
        self.text.get(start..i)
    }

    /// A family's name, in quotes or not.
    pub fn family(&mut self) -> Option<Cow<'a, str>> {
        match self.byte() {
            Some(b'"') => self.quoted().map(unescape),
            _ => Some(self.plain_name(true)).filter(|n| !n.is_empty()).map(Cow::Borrowed),
        }
    }

    /// `name{a="b"}` or `{"name",a="b"}`; `each` gets every label, the name as `__name__`.
    pub fn series(&mut self, each: &mut dyn FnMut(&'a str, Cow<'a, str>)) -> Result<&'a str, ParseError> {
        let start = self.at;
        let name = self.plain_name(true);
        if !name.is_empty() {
            each(NAME, Cow::Borrowed(name));
        }
        let after_name = self.at;
        self.blanks();
        if self.byte() == Some(b'{') {
            let named = self.labels(!name.is_empty(), each)?;
            if !named {
                return Err(self.wrong("metric name not set"));
            }
        } else {
            self.at = after_name;
            if name.is_empty() {
                return Err(self.unexpected("expected a valid start token"));
            }
        }
        Ok(&self.text[start..self.at])
    }

    /// `{a="b"}`; true if the metric has a name now.
    pub fn labels(
        &mut self,
        mut named: bool,
        each: &mut dyn FnMut(&'a str, Cow<'a, str>),
    ) -> Result<bool, ParseError> {
        self.at += 1; // the brace
        loop {
            self.blanks();
            if self.byte() == Some(b'}') {
                self.at += 1;
                return Ok(named);
            }
            let in_quotes = self.byte() == Some(b'"');
            let name = if in_quotes {
                self.quoted().ok_or_else(|| self.unexpected("expected label name or left brace"))?
            } else {
                self.plain_name(false)
            };
            if name.is_empty() && !in_quotes {
                return Err(self.unexpected("expected label name or left brace"));
            }
            self.blanks();
            if in_quotes && matches!(self.byte(), Some(b',' | b'}')) {
                if named {
                    return Err(self.wrong("metric name already set"));
                }
                named = true;
                each(NAME, unescape(name));
            } else {
                if self.byte() != Some(b'=') {
                    return Err(self.unexpected("expected equal"));
                }
                self.at += 1;
                self.blanks();
                let value = self.quoted().ok_or_else(|| self.unexpected("expected label value"))?;
                // A label name with escapes is rare enough to be kept as it stands for the skipping reader.
                each(name, unescape(value));
            }
            self.blanks();
            match self.byte() {
                Some(b',') => self.at += 1,
                Some(b'}') => {}
                _ => return Err(self.unexpected("expected comma or brace close")),
            }
        }
    }
}

/// `\\`, `\"` and `\n`; anything else stands for itself.
pub(super) fn unescape(text: &str) -> Cow<'_, str> {
    if !text.contains('\\') {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match (c, chars.peek()) {
            ('\\', Some('\\')) => out.push('\\'),
            ('\\', Some('"')) => out.push('"'),
            ('\\', Some('n')) => out.push('\n'),
            _ => {
                out.push(c);
                continue;
            }
        }
        chars.next();
    }
    Cow::Owned(out)
}

/// A number as Go reads it, short of the forms that came after Go 1.13.
pub(super) fn number(token: &str) -> Result<f64, String> {
    if token.contains(['p', 'P', '_']) {
        return Err("unsupported character in float".into());
    }
    let digits = token.strip_prefix(['+', '-']).unwrap_or(token);
    let signed_nan = digits.len() < token.len() && digits.eq_ignore_ascii_case("nan");
    match token.parse::<f64>() {
        Ok(v) if !signed_nan => Ok(v),
        _ => Err(format!("strconv.ParseFloat: parsing {}: invalid syntax", quote(token))),
    }
}

/// A number as OpenMetrics writes the values of `le` and `quantile`: with a point or an exponent.
pub(super) fn normal(text: &str) -> Option<String> {
    let v = number(text).ok()?;
    let mut out = match v {
        v if v.is_nan() => return Some("NaN".into()),
        v if v.is_infinite() => return Some(if v > 0.0 { "+Inf" } else { "-Inf" }.into()),
        // As Go's shortest form: an exponent below 1e-4 and from 1e21 on.
        v if v == 0.0 || (1e-4..1e21).contains(&v.abs()) => format!("{v}"),
        v => {
            let t = format!("{v:e}");
            let (digits, exponent) = t.split_once('e').unwrap_or((&t, "0"));
            let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |e| ('-', e));
            format!("{digits}e{sign}{exponent:0>2}")
        }
    };
    if !out.contains(['.', 'e']) {
        out.push_str(".0");
    }
    Some(out)
}

/// The labels of a series as a reader of this module gave it out, `__name__` among them.
pub fn labels_of(series: &str, numeric: Option<&str>) -> Result<Labels, ParseError> {
    let mut all: Vec<(Str, Str)> = Vec::new();
    let mut twice = None;
    Cursor::new(series, false).series(&mut |name, value| {
        let name: Str = unescape(name).as_ref().into();
        if all.iter().any(|(n, _)| *n == name) {
            twice = Some(name.clone());
        }
        let value: Str = match numeric {
            Some(label) if label == &*name => normal(&value).map_or_else(|| Str::from(&*value), Str::from),
            _ => Str::from(&*value),
        };
        all.push((name, value));
    })?;
    match twice {
        Some(name) => Err(ParseError(format!("label name {} is not unique: invalid sample", quote(&name)))),
        None => Ok(Labels::new(all)),
    }
}
