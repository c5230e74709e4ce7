//! A tree and data to text.

use super::{
    Context, DEPTH_MAX, OUTPUT_MAX, STEPS_MAX, Value, functions,
    parse::{Kind, Node, Operand, Pipe, Tree},
};
use crate::labels::quote;
use std::{collections::BTreeMap, rc::Rc};

/// Why a walk ends early.
pub(super) enum Stop {
    Break,
    Continue,
    Error(String),
}

impl From<String> for Stop {
    fn from(e: String) -> Self {
        Stop::Error(e)
    }
}

type Step<T> = Result<T, Stop>;

pub(super) struct Run<'a> {
    tree: &'a Tree,
    name: &'a str,
    text: &'a str,
    pub cx: &'a Context<'a>,
    out: String,
    variables: Vec<(String, Value)>,
    steps: usize,
    depth: usize,
}

pub(super) fn run(
    tree: &Tree,
    name: &str,
    text: &str,
    dot: Value,
    cx: &Context<'_>,
) -> Result<String, String> {
    let variables = vec![("$".to_string(), dot.clone())];
    let mut r = Run { tree, name, text, cx, out: String::new(), variables, steps: 0, depth: 0 };
    match r.all(&tree.main, &dot) {
        Ok(()) | Err(Stop::Break | Stop::Continue) => Ok(r.out),
        Err(Stop::Error(e)) => Err(e),
    }
}

impl Run<'_> {
    /// An error at a word, as Go shows it.
    fn wrong(&self, at: &Operand, why: impl std::fmt::Display) -> Stop {
        let before = &self.text[..at.start];
        let line = before.matches('\n').count() + 1;
        let column = before.len() - before.rfind('\n').map_or(0, |i| i + 1);
        let word = &self.text[at.start..at.end];
        let name = self.name;
        let short: String = word.chars().take(20).collect();
        let dots = if short.len() < word.len() { "..." } else { "" };
        Stop::Error(format!(
            "template: {name}:{line}:{column}: executing {} at <{short}{dots}>: {why}",
            quote(name)
        ))
    }

    fn write(&mut self, text: &str) -> Step<()> {
        if self.out.len() + text.len() > OUTPUT_MAX {
            return Err(Stop::Error(format!("the text has more than {OUTPUT_MAX} bytes")));
        }
        self.out.push_str(text);
        Ok(())
    }

    fn all(&mut self, nodes: &[Node], dot: &Value) -> Step<()> {
        nodes.iter().try_for_each(|n| self.node(n, dot))
    }

    /// Walks a list; variables that it declares end with it.
    fn scope(&mut self, nodes: &[Node], dot: &Value, known: usize) -> Step<()> {
        let done = self.all(nodes, dot);
        self.variables.truncate(known);
        done
    }

    fn node(&mut self, node: &Node, dot: &Value) -> Step<()> {
        self.steps += 1;
        if self.steps > STEPS_MAX {
            return Err(Stop::Error(format!("the template takes more than {STEPS_MAX} steps")));
        }
        let known = self.variables.len();
        match node {
            Node::Text(t) => self.write(t),
            Node::Action(p) => {
                let v = self.pipe(p, dot)?;
                if !p.declared.is_empty() {
                    return Ok(());
                }
                match v {
                    Value::Nil => self.write("<no value>"),
                    v => self.write(&v.text()),
                }
            }
            Node::If(p, yes, no) => {
                let v = self.pipe(p, dot)?;
                self.scope(if v.truth() { yes } else { no }, dot, known)
            }
            Node::With(p, yes, no) => {
                let v = self.pipe(p, dot)?;
                if v.truth() { self.scope(yes, &v, known) } else { self.scope(no, dot, known) }
            }
            Node::Range(p, each, none) => self.range(p, each, none, dot),
            Node::Template(start, name, with) => {
                let with = with.as_ref().map_or(Ok(Value::Nil), |p| self.pipe(p, dot))?;
                let at = Operand { start: *start, end: *start, kind: Kind::Dot, fields: Vec::new() };
                let done = self.template(name, with);
                done.map_err(|e| e.unwrap_or_else(|why| self.wrong(&at, why)))
            }
            Node::Break => Err(Stop::Break),
            Node::Continue => Err(Stop::Continue),
        }
    }

    /// Walks a named template; the inner error is one of its own.
    pub fn template(&mut self, name: &str, dot: Value) -> Result<(), Result<Stop, String>> {
        let tree = self.tree;
        let nodes =
            tree.defined.get(name).ok_or_else(|| Err(format!("template {} not defined", quote(name))))?;
        if self.depth >= DEPTH_MAX {
            return Err(Err(format!("exceeded maximum template depth ({DEPTH_MAX})")));
        }
        self.depth += 1;
        let outer = std::mem::replace(&mut self.variables, vec![("$".into(), dot.clone())]);
        let done = self.all(nodes, &dot);
        (self.variables, self.depth) = (outer, self.depth - 1);
        done.map_err(Ok)
    }

    /// [`Run::template`], its text for itself.
    pub fn text_of(&mut self, name: &str, dot: Value) -> Result<String, Result<Stop, String>> {
        let outer = std::mem::take(&mut self.out);
        let done = self.template(name, dot);
        let made = std::mem::replace(&mut self.out, outer);
        done.map(|()| made)
    }

    fn range(&mut self, p: &Pipe, each: &[Node], none: &[Node], dot: &Value) -> Step<()> {
        let known = self.variables.len();
        let over = self.pipe_value(p, dot)?;
        let items: Vec<(Value, Value)> = match &over {
            Value::List(l) => l.iter().enumerate().map(|(i, v)| (Value::Int(i as i64), v.clone())).collect(),
            Value::Map(m) => m.iter().map(|(k, v)| (Value::Str(k.clone()), v.clone())).collect(),
            Value::Nil => Vec::new(),
            other => {
                let at = &p.commands[0][0];
                return Err(self.wrong(at, format!("range can't iterate over {}", other.text())));
            }
        };
        if items.is_empty() {
            return self.scope(none, dot, known);
        }
        for (key, value) in items {
            match &p.declared[..] {
                [one] => self.set(one, value.clone(), p.assigns),
                [k, v] => {
                    self.set(k, key, p.assigns);
                    self.set(v, value.clone(), p.assigns);
                }
                _ => {}
            }
            match self.scope(each, &value, known) {
                Err(Stop::Break) => break,
                Ok(()) | Err(Stop::Continue) => {}
                Err(e) => return Err(e),
            }
            self.steps += 1;
        }
        Ok(())
    }

    fn set(&mut self, name: &str, v: Value, assigns: bool) {
        match self.variables.iter_mut().rev().find(|(n, _)| assigns && n == name) {
            Some(slot) => slot.1 = v,
            None => self.variables.push((name.to_string(), v)),
        }
    }

    fn pipe(&mut self, p: &Pipe, dot: &Value) -> Step<Value> {
        let v = self.pipe_value(p, dot)?;
        for name in &p.declared {
            self.set(name, v.clone(), p.assigns);
        }
        Ok(v)
    }

    fn pipe_value(&mut self, p: &Pipe, dot: &Value) -> Step<Value> {
        let mut last = None;
        for command in &p.commands {
            last = Some(self.command(command, dot, last)?);
        }
        Ok(last.unwrap_or(Value::Nil))
    }

    fn command(&mut self, words: &[Operand], dot: &Value, last: Option<Value>) -> Step<Value> {
        self.steps += 1;
        let first = &words[0];
        let Kind::Function(name) = &first.kind else { return self.operand(first, dot) };
        // They look no further than they have to.
        if matches!(name.as_str(), "and" | "or") {
            let mut v = None;
            for w in &words[1..] {
                let this = self.operand(w, dot)?;
                let ends = this.truth() == (name == "or");
                v = Some(this);
                if ends {
                    return Ok(v.unwrap_or(Value::Nil));
                }
            }
            return last.or(v).ok_or_else(|| {
                self.wrong(first, format!("wrong number of args for {name}: want at least 1 got 0"))
            });
        }
        let mut args = Vec::with_capacity(words.len());
        for w in &words[1..] {
            args.push(self.operand(w, dot)?);
        }
        args.extend(last);
        self.call(first, name, args)
    }

    fn call(&mut self, at: &Operand, name: &str, args: Vec<Value>) -> Step<Value> {
        let (least, most) = functions::arity(name);
        if args.len() < least || most.is_some_and(|m| args.len() > m) {
            let want = if most.is_none() { format!("at least {least}") } else { least.to_string() };
            let got = args.len();
            return Err(self.wrong(at, format!("wrong number of args for {name}: want {want} got {got}")));
        }
        if name == "tmpl" {
            let template = args[0].text();
            let made = self.text_of(&template, args[1].clone());
            return made
                .map(Value::Str)
                .map_err(|e| e.unwrap_or_else(|why| self.wrong(at, format!("error calling tmpl: {why}"))));
        }
        let v = functions::call(name, &args, self.cx);
        let v = v.map_err(|why| self.wrong(at, format!("error calling {name}: {why}")))?;
        self.fields(at, v)
    }

    fn operand(&mut self, o: &Operand, dot: &Value) -> Step<Value> {
        let v = match &o.kind {
            Kind::Dot => dot.clone(),
            Kind::Literal(v) => return Ok(v.clone()),
            Kind::Variable(name) => {
                let found = self.variables.iter().rev().find(|(n, _)| n == name);
                found
                    .map(|(_, v)| v.clone())
                    .ok_or_else(|| self.wrong(o, format!("undefined variable: {name}")))?
            }
            Kind::Function(name) => return self.call(o, name, Vec::new()),
            Kind::Pipe(p) => {
                let known = self.variables.len();
                let v = self.pipe(p, dot);
                self.variables.truncate(known);
                v?
            }
        };
        self.fields(o, v)
    }

    fn fields(&self, o: &Operand, mut v: Value) -> Step<Value> {
        for name in &o.fields {
            v = match &v {
                Value::Map(m) => m.get(name).cloned().unwrap_or_else(|| Value::Str(String::new())),
                Value::Struct(_, all) if all.iter().any(|(n, _)| n == name) => {
                    all.iter().find(|(n, _)| n == name).map_or(Value::Nil, |(_, v)| v.clone())
                }
                Value::Nil => {
                    return Err(self.wrong(o, format!("nil data; no entry for key {}", quote(name))));
                }
                other => {
                    let kind = other.kind();
                    return Err(self.wrong(o, format!("can't evaluate field {name} in type {kind}")));
                }
            };
        }
        Ok(v)
    }
}

/// `args`: what a template is given, by number.
pub(super) fn numbered(args: &[Value]) -> Value {
    let all: BTreeMap<String, Value> =
        args.iter().enumerate().map(|(i, a)| (format!("arg{i}"), a.clone())).collect();
    Value::Map(Rc::new(all))
}
