//! Text to tokens. The whole text at once: it is bounded, and the parser may look ahead.
//!
//! Considered: a generated lexer (logos); inside braces, inside brackets and outside are three languages, and
//! the messages have to be Prometheus' own.

use super::ast::{AggOp, Op, Span};
use crate::labels::quote;

/// Kind of a token.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Tok {
    Eof,
    /// The text can't be read on; the message.
    Error(String),
    Ident,
    /// An identifier with a colon.
    MetricIdent,
    Number,
    Duration,
    Str,
    Keyword(Keyword),
    Agg(AggOp),
    Op(Op),
    /// `=` within braces, or a mistaken one outside.
    Assign,
    /// `=~`
    Regex,
    /// `!~`
    NotRegex,
    At,
    Comma,
    Colon,
    LeftParen,
    RightParen,
    LeftBrace,
    RightBrace,
    LeftBracket,
    RightBracket,
}

/// Words with a meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keyword {
    Anchored,
    Bool,
    By,
    End,
    Fill,
    FillLeft,
    FillRight,
    GroupLeft,
    GroupRight,
    Ignoring,
    Offset,
    On,
    Smoothed,
    Start,
    Without,
}

fn keyword(word: &str) -> Option<Tok> {
    use Keyword::*;
    let lower = word.to_ascii_lowercase();
    Some(match lower.as_str() {
        "anchored" => Tok::Keyword(Anchored),
        "bool" => Tok::Keyword(Bool),
        "by" => Tok::Keyword(By),
        "end" => Tok::Keyword(End),
        "fill" => Tok::Keyword(Fill),
        "fill_left" => Tok::Keyword(FillLeft),
        "fill_right" => Tok::Keyword(FillRight),
        "group_left" => Tok::Keyword(GroupLeft),
        "group_right" => Tok::Keyword(GroupRight),
        "ignoring" => Tok::Keyword(Ignoring),
        "offset" => Tok::Keyword(Offset),
        "on" => Tok::Keyword(On),
        "smoothed" => Tok::Keyword(Smoothed),
        "start" => Tok::Keyword(Start),
        "without" => Tok::Keyword(Without),
        "and" => Tok::Op(Op::And),
        "or" => Tok::Op(Op::Or),
        "unless" => Tok::Op(Op::Unless),
        "atan2" => Tok::Op(Op::Atan2),
        "inf" | "nan" => Tok::Number,
        name => Tok::Agg(AggOp::ALL.into_iter().find(|a| a.as_str() == name)?),
    })
}

/// A token and where it stands.
#[derive(Clone, Debug)]
pub(super) struct Token<'a> {
    pub tok: Tok,
    pub span: Span,
    pub text: &'a str,
}

impl Token<'_> {
    /// As Prometheus names it in "unexpected …".
    pub fn describe(&self) -> String {
        let text = || quote(self.text);
        match &self.tok {
            Tok::Eof => "end of input".into(),
            Tok::Error(e) => format!("error {e}"),
            Tok::Ident => format!("identifier {}", text()),
            Tok::MetricIdent => format!("metric identifier {}", text()),
            Tok::Number => format!("number {}", text()),
            Tok::Duration => format!("duration {}", text()),
            Tok::Str => format!("string {}", text()),
            Tok::Keyword(_) => format!("<{}>", self.text),
            Tok::Agg(_) => format!("<aggr:{}>", self.text),
            Tok::Op(_) | Tok::Regex | Tok::NotRegex | Tok::At => format!("<op:{}>", self.text),
            _ => quote(self.text),
        }
    }
}

struct Lexer<'a> {
    text: &'a str,
    at: usize,
    parens: usize,
    in_braces: bool,
    in_brackets: bool,
    colon: bool,
    /// A number was read since the bracket opened.
    number: bool,
}

/// All tokens; the last is [`Tok::Eof`] or [`Tok::Error`].
pub(super) fn lex(text: &str) -> Vec<Token<'_>> {
    let mut l =
        Lexer { text, at: 0, parens: 0, in_braces: false, in_brackets: false, colon: false, number: false };
    let mut out = Vec::new();
    loop {
        l.skip();
        let start = l.at;
        let tok = l.next().unwrap_or_else(Tok::Error);
        let end = tok_end(&tok, start, l.at);
        let last = matches!(tok, Tok::Eof | Tok::Error(_));
        // Prometheus finds a parenthesis too many after having read it.
        let late = matches!(&tok, Tok::Error(_)) && text[start..].starts_with(')');
        let span = Span { start: start as u32 + u32::from(late), end: end as u32 };
        out.push(Token { tok, span, text: &text[start..end] });
        if last {
            return out;
        }
    }
}

/// The text of a broken token is not sliced: it may end within a character.
fn tok_end(tok: &Tok, start: usize, at: usize) -> usize {
    if matches!(tok, Tok::Error(_)) { start } else { at }
}

/// A character as Go's `%q` prints it.
fn rune(c: char) -> String {
    match c {
        '\'' => "'\\''".into(),
        '"' => "'\"'".into(),
        c => {
            let q = quote(&c.to_string());
            format!("'{}'", &q[1..q.len() - 1])
        }
    }
}

fn is_word(c: char) -> bool {
    c == '_' || c.is_ascii_alphanumeric()
}

impl<'a> Lexer<'a> {
    fn peek(&self) -> Option<char> {
        self.text[self.at..].chars().next()
    }

    fn take(&mut self, wanted: impl Fn(char) -> bool) -> bool {
        match self.peek() {
            Some(c) if wanted(c) => {
                self.at += c.len_utf8();
                true
            }
            _ => false,
        }
    }

    fn run(&mut self, wanted: impl Fn(char) -> bool) {
        while self.take(&wanted) {}
    }

    /// Spaces and comments.
    fn skip(&mut self) {
        loop {
            self.run(|c| matches!(c, ' ' | '\t' | '\n' | '\r'));
            if self.in_brackets || !self.take(|c| c == '#') {
                return;
            }
            self.run(|c| c != '\n' && c != '\r');
        }
    }

    fn next(&mut self) -> Result<Tok, String> {
        let Some(c) = self.peek() else {
            return match self {
                Lexer { in_braces: true, .. } => Err("unexpected end of input inside braces".into()),
                Lexer { parens: 0, in_brackets: true, number: true, .. } => {
                    Err("unclosed left bracket".into())
                }
                Lexer { in_brackets: true, number: false, .. } => {
                    Err("unexpected end of input in duration expression".into())
                }
                Lexer { parens: 1.., .. } => Err("unclosed left parenthesis".into()),
                _ => Ok(Tok::Eof),
            };
        };
        if self.in_braces { self.braces(c) } else { self.outside(c) }
    }

    fn braces(&mut self, c: char) -> Result<Tok, String> {
        if c == '_' || c.is_ascii_alphabetic() {
            self.run(is_word);
            return Ok(Tok::Ident);
        }
        if matches!(c, '"' | '\'' | '`') {
            return self.string(c);
        }
        self.at += c.len_utf8();
        Ok(match c {
            ',' => Tok::Comma,
            '=' if self.take(|c| c == '~') => Tok::Regex,
            '=' => Tok::Assign,
            '!' if self.take(|c| c == '~') => Tok::NotRegex,
            '!' if self.take(|c| c == '=') => Tok::Op(Op::Ne),
            '!' => {
                let next = self.peek().unwrap_or('\u{fffd}');
                return Err(format!("unexpected character after '!' inside braces: {}", rune(next)));
            }
            '{' => return Err("unexpected left brace '{'".into()),
            '}' => {
                self.in_braces = false;
                Tok::RightBrace
            }
            c => return Err(format!("unexpected character inside braces: {}", rune(c))),
        })
    }

    fn outside(&mut self, c: char) -> Result<Tok, String> {
        let second = self.text[self.at..].chars().nth(1);
        if c.is_ascii_digit() || (c == '.' && second.is_some_and(|c| c.is_ascii_digit())) {
            self.number = true;
            return self.scan_number();
        }
        if self.in_brackets {
            return self.brackets(c);
        }
        if matches!(c, '"' | '\'' | '`') {
            return self.string(c);
        }
        if c == '_' || c == ':' || c.is_ascii_alphabetic() {
            return Ok(self.word());
        }
        self.at += c.len_utf8();
        Ok(match c {
            '=' if self.take(|c| c == '=') => Tok::Op(Op::Eq),
            '=' if self.peek() == Some('~') => return Err("unexpected character after '=': '~'".into()),
            '=' => Tok::Assign,
            '!' if self.take(|c| c == '=') => Tok::Op(Op::Ne),
            '!' => {
                let next = self.peek().unwrap_or('\u{fffd}');
                return Err(format!("unexpected character after '!': {}", rune(next)));
            }
            '<' if self.take(|c| c == '=') => Tok::Op(Op::Le),
            '<' if self.take(|c| c == '/') => Tok::Op(Op::TrimUpper),
            '<' => Tok::Op(Op::Lt),
            '>' if self.take(|c| c == '=') => Tok::Op(Op::Ge),
            '>' if self.take(|c| c == '/') => Tok::Op(Op::TrimLower),
            '>' => Tok::Op(Op::Gt),
            '{' => {
                self.in_braces = true;
                Tok::LeftBrace
            }
            '[' => {
                (self.in_brackets, self.colon, self.number) = (true, false, false);
                Tok::LeftBracket
            }
            ']' => return Err("unexpected right bracket ']'".into()),
            '@' => Tok::At,
            c => match self.punctuation(c) {
                Some(tok) => tok?,
                None => return Err(format!("unexpected character: {}", rune(c))),
            },
        })
    }

    /// What stands in `[5m + step():1m]`.
    fn brackets(&mut self, c: char) -> Result<Tok, String> {
        if c.is_ascii_alphabetic() || c == '_' {
            let start = self.at;
            self.run(is_word);
            return match self.text[start..self.at].to_ascii_lowercase().as_str() {
                "step" | "range" | "min" | "max" | "min_of" | "max_of" => Ok(Tok::Ident),
                _ => Err(format!("unexpected character in duration expression: {}", rune(c))),
            };
        }
        self.at += c.len_utf8();
        Ok(match c {
            ':' if self.colon => return Err("unexpected repeated colon in duration expression".into()),
            ':' => {
                self.colon = true;
                Tok::Colon
            }
            '[' => return Err("unexpected left bracket '['".into()),
            ']' => {
                self.in_brackets = false;
                Tok::RightBracket
            }
            c => match self.punctuation(c) {
                Some(tok) => tok?,
                None => return Err(format!("unexpected character in duration expression: {}", rune(c))),
            },
        })
    }

    /// What means the same everywhere; `c` is consumed already.
    fn punctuation(&mut self, c: char) -> Option<Result<Tok, String>> {
        Some(Ok(match c {
            ',' => Tok::Comma,
            '+' => Tok::Op(Op::Add),
            '-' => Tok::Op(Op::Sub),
            '*' => Tok::Op(Op::Mul),
            '/' => Tok::Op(Op::Div),
            '%' => Tok::Op(Op::Mod),
            '^' => Tok::Op(Op::Pow),
            '(' => {
                self.parens += 1;
                Tok::LeftParen
            }
            ')' => match self.parens.checked_sub(1) {
                Some(n) => {
                    self.parens = n;
                    Tok::RightParen
                }
                None => return Some(Err("unexpected right parenthesis ')'".into())),
            },
            _ => return None,
        }))
    }

    fn word(&mut self) -> Tok {
        let start = self.at;
        self.run(|c| is_word(c) || c == ':');
        let word = &self.text[start..self.at];
        match keyword(word) {
            // New words, which are metrics' names unless a parenthesis follows.
            Some(Tok::Keyword(Keyword::Fill | Keyword::FillLeft | Keyword::FillRight))
                if !self.text[self.at..].trim_start().starts_with('(') =>
            {
                Tok::Ident
            }
            Some(tok) => tok,
            None if word.contains(':') => Tok::MetricIdent,
            None => Tok::Ident,
        }
    }

    /// A string's value is made by [`unquote`]; here only its end and its escapes are found.
    fn string(&mut self, open: char) -> Result<Tok, String> {
        let start = self.at;
        self.at += 1;
        loop {
            match self.peek() {
                None if open == '`' => return Err("unterminated raw string".into()),
                None => return Err("unterminated quoted string".into()),
                Some('\n') if open != '`' => return Err("unterminated quoted string".into()),
                Some('\\') if open != '`' => {
                    self.at += 1;
                    let Some(c) = self.peek() else { return Err("escape sequence not terminated".into()) };
                    self.at += c.len_utf8();
                }
                Some(c) => {
                    self.at += c.len_utf8();
                    if c == open {
                        unquote(&self.text[start..self.at])?;
                        return Ok(Tok::Str);
                    }
                }
            }
        }
    }

    /// A number in Go's syntax, or a duration.
    fn scan_number(&mut self) -> Result<Tok, String> {
        let start = self.at;
        self.run(|c| is_word(c) || c == '.');
        // The sign of an exponent belongs to it: `1e-3`, but not `0x1e-3`.
        let text = &self.text[start..self.at];
        let hex = text.starts_with("0x") || text.starts_with("0X");
        let digits = text.trim_end_matches(['e', 'E']);
        let exponent = text.len() == digits.len() + 1
            && digits.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'_'));
        if exponent && !hex && matches!(self.peek(), Some('+' | '-')) {
            self.at += 1;
            self.run(|c| c.is_ascii_digit() || c == '_');
        }
        let text = &self.text[start..self.at];
        if parse_number(text).is_some() {
            return Ok(Tok::Number);
        }
        let units = text.bytes().all(|b| b.is_ascii_digit() || b"smhdwy".contains(&b));
        if units && text.bytes().last().is_some_and(|b| b.is_ascii_alphabetic()) {
            return Ok(Tok::Duration);
        }
        Err(format!("bad number or duration syntax: {}", quote(text)))
    }
}

/// A number in Go's syntax: decimal, hexadecimal, octal (leading 0), underscores between digits, `Inf`, `NaN`.
pub(super) fn parse_number(text: &str) -> Option<f64> {
    match text.to_ascii_lowercase().as_str() {
        "inf" => return Some(f64::INFINITY),
        "nan" => return Some(f64::NAN),
        _ => {}
    }
    if text.ends_with('_') || text.starts_with('_') || text.contains("__") {
        return None;
    }
    let plain: String = text.chars().filter(|c| *c != '_').collect();
    if let Some(hex) = plain.strip_prefix("0x").or_else(|| plain.strip_prefix("0X")) {
        let valid = !hex.is_empty() && hex.bytes().all(|b| b.is_ascii_hexdigit());
        return if valid { u64::from_str_radix(hex, 16).ok().map(|n| n as f64) } else { None };
    }
    let octal = plain.len() > 1 && plain.starts_with('0') && plain.bytes().all(|b| b.is_ascii_digit());
    if octal && let Ok(n) = i64::from_str_radix(&plain, 8) {
        return Some(n as f64);
    }
    let valid = plain.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'e' | b'E' | b'+' | b'-'));
    if valid { plain.parse().ok() } else { None }
}

/// The value of a quoted string, by Go's rules.
pub(crate) fn unquote(quoted: &str) -> Result<String, String> {
    let mut chars = quoted.chars();
    let open = chars.next().unwrap_or('"');
    let inner = &quoted[open.len_utf8()..quoted.len() - open.len_utf8()];
    if open == '`' {
        return Ok(inner.to_string());
    }
    // Bytes, because \xff makes one; what is no UTF-8 in the end is refused.
    let mut out = Vec::with_capacity(inner.len());
    let mut chars = inner.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
            continue;
        }
        let c = chars.next().ok_or("escape sequence not terminated")?;
        let (digits, base, first) = match c {
            'a' => (0, 7, None),
            'b' => (0, 8, None),
            'f' => (0, 12, None),
            'n' => (0, 10, None),
            'r' => (0, 13, None),
            't' => (0, 9, None),
            'v' => (0, 11, None),
            '\\' => (0, 92, None),
            c if c == open => (0, c as u32, None),
            '0'..='7' => (3, 8, Some(c)),
            'x' => (2, 16, None),
            'u' => (4, 16, None),
            'U' => (8, 16, None),
            c => return Err(format!("unknown escape sequence U+{:04X} {}", c as u32, rune(c))),
        };
        if digits == 0 {
            out.push(base as u8);
            continue;
        }
        let mut value = 0u64;
        for i in 0..digits {
            let c = match first {
                Some(c) if i == 0 => c,
                _ => chars.next().ok_or("escape sequence not terminated")?,
            };
            let digit = c.to_digit(base).ok_or_else(|| {
                format!("illegal character U+{:04X} {} in escape sequence", c as u32, rune(c))
            })?;
            value = value * u64::from(base) + u64::from(digit);
        }
        match digits {
            2 | 3 if value <= 255 => out.push(value as u8),
            4 | 8 => {
                let c = u32::try_from(value).ok().and_then(char::from_u32);
                let c = c.ok_or("escape sequence is an invalid Unicode code point")?;
                out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
            }
            _ => return Err("escape sequence is an invalid Unicode code point".into()),
        }
    }
    String::from_utf8(out).map_err(|_| "invalid UTF-8 rune".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_follow_go() {
        for (text, value) in [
            ("5", 5.0),
            (".5", 0.5),
            ("5.", 5.0),
            ("1e3", 1000.0),
            ("1e-3", 0.001),
            ("0x1F", 31.0),
            ("0755", 493.0),
            ("1_000.5", 1000.5),
            ("08", 8.0),
        ] {
            assert_eq!(parse_number(text), Some(value), "{text}");
            assert_eq!(lex(text)[0].tok, Tok::Number, "{text}");
        }
        for text in ["1__0", "1_", "0x", "1.2.3", "1e", "1a", "0x1.5"] {
            assert!(matches!(lex(text)[0].tok, Tok::Error(_)), "{text} {:?}", lex(text)[0]);
        }
        assert_eq!(lex("0x1e-3").len(), 4);
        assert_eq!(lex("1e-3").len(), 2);
    }

    #[test]
    fn strings_follow_go() {
        for (quoted, value) in [
            (r#""a\"b""#, "a\"b"),
            (r"'a\'b'", "a'b"),
            (r"`a\b`", r"a\b"),
            (r#""\x41\101\u00e9\U0001F600\n""#, "AAé😀\n"),
            (r#""\xc3\xa9""#, "é"),
        ] {
            assert_eq!(unquote(quoted).as_deref(), Ok(value));
        }
        for bad in [r#""\q""#, r#""\xff""#, r#""\ud800""#, r#""\400""#, r#""\x4""#] {
            assert!(unquote(bad).is_err(), "{bad}");
        }
    }
}
