//! Text to a tree. Errors have Go's words.

use super::{DEPTH_MAX, Value, functions};
use crate::{labels::quote, promql::unquote};
use std::collections::BTreeMap;

/// A piece of a template.
#[derive(Debug)]
pub(super) enum Node {
    Text(String),
    Action(Pipe),
    If(Pipe, Vec<Node>, Vec<Node>),
    With(Pipe, Vec<Node>, Vec<Node>),
    Range(Pipe, Vec<Node>, Vec<Node>),
    Template(usize, String, Option<Pipe>),
    Break,
    Continue,
}

/// `$a, $b := command | command`
#[derive(Debug)]
pub(super) struct Pipe {
    pub declared: Vec<String>,
    /// `=` instead of `:=`.
    pub assigns: bool,
    pub commands: Vec<Vec<Operand>>,
}

/// One word of a command, and where it stands.
#[derive(Debug)]
pub(super) struct Operand {
    pub start: usize,
    pub end: usize,
    pub kind: Kind,
    /// `.A.B` behind it.
    pub fields: Vec<String>,
}

#[derive(Debug)]
pub(super) enum Kind {
    Dot,
    Literal(Value),
    Variable(String),
    Function(String),
    Pipe(Box<Pipe>),
}

/// The main template, and those it defines.
#[derive(Debug, Default)]
pub(super) struct Tree {
    pub main: Vec<Node>,
    pub defined: BTreeMap<String, Vec<Node>>,
}

/// What a list ended with.
#[derive(PartialEq)]
enum Last {
    Eof,
    End,
    Else,
    ElseIf,
    ElseWith,
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    variables: Vec<String>,
    defined: BTreeMap<String, Vec<Node>>,
    /// The last action takes the space behind it.
    trims: bool,
    depth: usize,
    ranges: usize,
}

pub(super) fn parse(name: &str, text: &str) -> Result<Tree, String> {
    let mut p = Parser {
        text,
        at: 0,
        variables: vec!["$".into()],
        defined: BTreeMap::new(),
        trims: false,
        depth: 0,
        ranges: 0,
    };
    let main = p.list().and_then(|(nodes, end)| match end {
        Last::Eof => Ok(nodes),
        Last::End => Err("unexpected {{end}}".into()),
        _ => Err("unexpected {{else}}".into()),
    });
    match main {
        Ok(main) => Ok(Tree { main, defined: p.defined }),
        Err(e) => {
            let line = text.as_bytes()[..p.at.min(text.len())].iter().filter(|b| **b == b'\n').count() + 1;
            Err(format!("template: {name}:{line}: {e}"))
        }
    }
}

type Parse<T> = Result<T, String>;

impl Parser<'_> {
    fn rest(&self) -> &str {
        &self.text[self.at..]
    }

    fn space(&mut self) {
        self.at = self.text.len() - self.rest().trim_start().len();
    }

    /// Takes `word` if it comes next.
    fn take(&mut self, word: &str) -> bool {
        let found = self.rest().starts_with(word);
        if found {
            self.at += word.len();
        }
        found
    }

    fn word(&mut self) -> String {
        let is = |c: char| c == '_' || c.is_alphanumeric();
        let end = self.rest().find(|c| !is(c)).unwrap_or(self.rest().len());
        let word = self.rest()[..end].to_string();
        self.at += end;
        word
    }

    fn deeper<T>(&mut self, f: impl FnOnce(&mut Self) -> Parse<T>) -> Parse<T> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(format!("nested too deeply: at most {DEPTH_MAX} levels are read"));
        }
        let out = f(self);
        self.depth -= 1;
        out
    }

    /// The end of an action.
    fn close(&mut self) -> Parse<()> {
        self.space();
        if self.closes() && self.rest().starts_with('-') {
            self.at += 3;
            self.trims = true;
        } else if self.take("}}") {
            self.trims = false;
        } else if self.rest().is_empty() {
            return Err("unclosed action".into());
        } else {
            let c = self.rest().chars().next().unwrap_or(' ');
            return Err(format!("unexpected {} in command", quote(&c.to_string())));
        }
        Ok(())
    }

    fn closes(&self) -> bool {
        let rest = self.rest();
        let spaced = self.text[..self.at].ends_with(char::is_whitespace);
        rest.starts_with("}}") || (spaced && rest.starts_with("-}}"))
    }

    fn list(&mut self) -> Parse<(Vec<Node>, Last)> {
        self.deeper(Self::list_inside)
    }

    fn list_inside(&mut self) -> Parse<(Vec<Node>, Last)> {
        let mut out = Vec::new();
        loop {
            let open = self.rest().find("{{");
            let end = open.unwrap_or(self.rest().len());
            let source = self.text;
            let mut text = &source[self.at..self.at + end];
            let after = self.at + end + if open.is_some() { 2 } else { 0 };
            let marked =
                self.text[after..].strip_prefix('-').is_some_and(|r| r.starts_with(char::is_whitespace));
            if std::mem::take(&mut self.trims) {
                text = text.trim_start();
            }
            if marked && open.is_some() {
                text = text.trim_end();
            }
            if !text.is_empty() {
                out.push(Node::Text(text.to_string()));
            }
            self.at = after;
            if open.is_none() {
                return Ok((out, Last::Eof));
            }
            self.at += usize::from(marked);
            self.space();
            if self.take("/*") {
                let end = self.rest().find("*/").ok_or("unclosed comment")?;
                self.at += end + 2;
                self.close()?;
                continue;
            }
            let before = self.at;
            match self.word().as_str() {
                "end" => {
                    self.close()?;
                    return Ok((out, Last::End));
                }
                "else" => {
                    self.space();
                    let inner = self.at;
                    let end = match self.word().as_str() {
                        "if" => Last::ElseIf,
                        "with" => Last::ElseWith,
                        _ => {
                            self.at = inner;
                            self.close()?;
                            Last::Else
                        }
                    };
                    return Ok((out, end));
                }
                "if" => out.push(self.branch(Last::ElseIf, Node::If)?),
                "with" => out.push(self.branch(Last::ElseWith, Node::With)?),
                "range" => {
                    self.ranges += 1;
                    let node = self.branch(Last::Eof, Node::Range)?;
                    self.ranges -= 1;
                    out.push(node);
                }
                "define" => {
                    self.space();
                    let name = self.string()?;
                    self.close()?;
                    let variables = std::mem::replace(&mut self.variables, vec!["$".into()]);
                    let (body, end) = self.list()?;
                    self.variables = variables;
                    if end != Last::End {
                        return Err("unexpected EOF".into());
                    }
                    self.defined.insert(name, body);
                }
                "template" => {
                    self.space();
                    let start = self.at;
                    let name = self.string()?;
                    self.space();
                    let with = if self.closes() { None } else { Some(self.pipe(false)?) };
                    self.close()?;
                    out.push(Node::Template(start, name, with));
                }
                word @ ("break" | "continue") => {
                    if self.ranges == 0 {
                        return Err(format!("{{{{{word}}}}} outside {{{{range}}}}"));
                    }
                    out.push(if word == "break" { Node::Break } else { Node::Continue });
                    self.close()?;
                }
                _ => {
                    self.at = before;
                    let pipe = self.pipe(false)?;
                    self.close()?;
                    out.push(Node::Action(pipe));
                }
            }
        }
    }

    /// What follows `if`, `with` or `range`; `again` is the way of `else` that begins another of them.
    fn branch(&mut self, again: Last, make: fn(Pipe, Vec<Node>, Vec<Node>) -> Node) -> Parse<Node> {
        self.deeper(|p| {
            let known = p.variables.len();
            p.space();
            let pipe = p.pipe(again == Last::Eof)?;
            p.close()?;
            let (body, end) = p.list()?;
            let other = match end {
                Last::End => Vec::new(),
                Last::Else => {
                    let (other, end) = p.list()?;
                    if end != Last::End {
                        return Err(
                            if end == Last::Eof { "unexpected EOF" } else { "unexpected {{else}}" }.into()
                        );
                    }
                    other
                }
                Last::Eof => return Err("unexpected EOF".into()),
                end if end == again => vec![p.branch(again, make)?],
                _ => return Err("unexpected {{else}}".into()),
            };
            p.variables.truncate(known);
            Ok(make(pipe, body, other))
        })
    }

    fn pipe(&mut self, range: bool) -> Parse<Pipe> {
        self.deeper(|p| p.pipe_inside(range))
    }

    fn pipe_inside(&mut self, range: bool) -> Parse<Pipe> {
        self.space();
        let mut pipe = Pipe { declared: Vec::new(), assigns: false, commands: Vec::new() };
        let before = self.at;
        // `$x :=`, `$x =`, and `$i, $x :=` in a range; anything else is a command that begins with a variable.
        let mut names = Vec::new();
        while self.rest().starts_with('$') && names.len() < 2 {
            self.at += 1;
            names.push(format!("${}", self.word()));
            self.space();
            if !(range && self.take(",")) {
                break;
            }
            self.space();
        }
        let declares = !names.is_empty() && self.take(":=");
        let assigns = !names.is_empty() && !declares && self.take("=");
        if declares {
            pipe.declared = names;
        } else if assigns {
            if let Some(unknown) = names.iter().find(|n| !self.variables.contains(n)) {
                return Err(format!("undefined variable {}", quote(unknown)));
            }
            (pipe.declared, pipe.assigns) = (names, true);
        } else {
            self.at = before;
        }
        loop {
            let command = self.command()?;
            pipe.commands.push(command);
            self.space();
            if !self.take("|") {
                break;
            }
        }
        for later in &pipe.commands[1..] {
            if !matches!(later[0].kind, Kind::Function(_)) {
                return Err(format!("non executable command in pipeline stage {}", pipe.commands.len()));
            }
        }
        if declares {
            self.variables.extend(pipe.declared.iter().cloned());
        }
        Ok(pipe)
    }

    fn command(&mut self) -> Parse<Vec<Operand>> {
        let mut out = Vec::new();
        loop {
            self.space();
            if self.closes() || self.rest().starts_with(['|', ')']) {
                break;
            }
            if self.rest().is_empty() {
                return Err("unclosed action".into());
            }
            out.push(self.operand()?);
        }
        match &out[..] {
            [] => Err("missing value for command".into()),
            [first, _, ..] if !matches!(first.kind, Kind::Function(_)) => {
                let word = &self.text[first.start..first.end];
                Err(format!("can't give argument to non-function {word}"))
            }
            _ => Ok(out),
        }
    }

    fn operand(&mut self) -> Parse<Operand> {
        let start = self.at;
        let c = self.rest().chars().next().unwrap_or(' ');
        let next = self.rest()[c.len_utf8()..].chars().next().unwrap_or(' ');
        let kind = match c {
            '"' | '`' => Kind::Literal(Value::Str(self.string()?)),
            '\'' => {
                let quoted = self.quoted('\'')?;
                let text = unquote(&quoted)?;
                let c = text.chars().next().ok_or("malformed character constant: ''")?;
                Kind::Literal(Value::Int(i64::from(u32::from(c))))
            }
            '.' if !next.is_ascii_digit() => {
                if !next.is_alphanumeric() && next != '_' {
                    self.at += 1;
                }
                Kind::Dot
            }
            '$' => {
                self.at += 1;
                let name = format!("${}", self.word());
                if !self.variables.contains(&name) {
                    return Err(format!("undefined variable {}", quote(&name)));
                }
                Kind::Variable(name)
            }
            '(' => {
                self.at += 1;
                let pipe = self.pipe(false)?;
                self.space();
                if !self.take(")") {
                    return Err("unclosed left paren".into());
                }
                Kind::Pipe(Box::new(pipe))
            }
            c if c.is_ascii_digit() || matches!(c, '.' | '+' | '-') => Kind::Literal(self.number()?),
            c if c == '_' || c.is_alphabetic() => match self.word().as_str() {
                "true" => Kind::Literal(Value::Bool(true)),
                "false" => Kind::Literal(Value::Bool(false)),
                "nil" => Kind::Literal(Value::Nil),
                name if functions::known(name) => Kind::Function(name.to_string()),
                name => return Err(format!("function {} not defined", quote(name))),
            },
            c => return Err(format!("unexpected {} in command", quote(&c.to_string()))),
        };
        let mut fields = Vec::new();
        if !matches!(kind, Kind::Literal(_)) {
            while self.rest().starts_with('.') && !self.rest()[1..].starts_with(|c: char| c.is_whitespace()) {
                let dot = self.at;
                self.at += 1;
                let name = self.word();
                if name.is_empty() {
                    self.at = dot;
                    return Err("unexpected <.> in operand".into());
                }
                fields.push(name);
            }
        }
        Ok(Operand { start, end: self.at, kind, fields })
    }

    fn string(&mut self) -> Parse<String> {
        match self.rest().chars().next() {
            Some(open @ ('"' | '`')) => {
                let quoted = self.quoted(open)?;
                unquote(&quoted)
            }
            _ => Err("unexpected text: a quoted name was expected".into()),
        }
    }

    /// A literal with its quotes.
    fn quoted(&mut self, open: char) -> Parse<String> {
        let mut escaped = false;
        for (i, c) in self.rest().char_indices().skip(1) {
            match c {
                _ if escaped => escaped = false,
                '\\' if open != '`' => escaped = true,
                '\n' if open != '`' => break,
                c if c == open => {
                    let text = self.rest()[..=i].to_string();
                    self.at += i + 1;
                    return Ok(text);
                }
                _ => {}
            }
        }
        Err(match open {
            '`' => "unterminated raw quoted string",
            '\'' => "unterminated character constant",
            _ => "unterminated quoted string",
        }
        .into())
    }

    fn number(&mut self) -> Parse<Value> {
        let start = self.at;
        let mut last = ' ';
        let more = |c: char, last: char| {
            c.is_ascii_alphanumeric()
                || matches!(c, '.' | '_')
                || (matches!(c, '+' | '-') && matches!(last, 'e' | 'E' | ' '))
        };
        while let Some(c) = self.rest().chars().next().filter(|c| more(*c, last)) {
            (last, self.at) = (c, self.at + c.len_utf8());
        }
        let text = &self.text[start..self.at];
        let (sign, digits) = match text.strip_prefix('-') {
            Some(digits) => (-1, digits),
            None => (1, text.strip_prefix('+').unwrap_or(text)),
        };
        let plain = digits.replace('_', "");
        let whole = match plain.get(..2).map(str::to_ascii_lowercase).as_deref() {
            Some("0x") => i64::from_str_radix(&plain[2..], 16).ok(),
            Some("0b") => i64::from_str_radix(&plain[2..], 2).ok(),
            Some("0o") => i64::from_str_radix(&plain[2..], 8).ok(),
            _ => plain.parse().ok().filter(|_| plain.starts_with(|c: char| c.is_ascii_digit())),
        };
        let real = || {
            plain
                .parse::<f64>()
                .ok()
                .filter(|_| plain.bytes().all(|b| b.is_ascii_digit() || b".eE+-".contains(&b)))
        };
        whole
            .map(|n| Value::Int(sign * n))
            .or_else(|| real().map(|v| Value::Float(sign as f64 * v)))
            .ok_or_else(|| format!("bad number syntax: {}", quote(text)))
    }
}
