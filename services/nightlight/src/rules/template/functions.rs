//! The functions of templates: Go's own, and Prometheus'.

use super::{
    Context, Value,
    run::numbered,
    value::{general, printf},
};
use crate::{labels::quote, scrape::target::percent};
use std::{net::IpAddr, rc::Rc};

type Made = Result<Value, String>;

/// Name, fewest and most arguments (-1: any number).
const ALL: [(&str, usize, isize); 48] = [
    ("and", 1, -1),
    ("args", 0, -1),
    ("eq", 2, -1),
    ("externalURL", 0, 0),
    ("first", 1, 1),
    ("ge", 2, 2),
    ("graphLink", 1, 1),
    ("gt", 2, 2),
    ("html", 1, -1),
    ("humanize", 1, 1),
    ("humanize1024", 1, 1),
    ("humanizeDuration", 1, 1),
    ("humanizePercentage", 1, 1),
    ("humanizeTimestamp", 1, 1),
    ("index", 1, -1),
    ("js", 1, -1),
    ("label", 2, 2),
    ("le", 2, 2),
    ("len", 1, 1),
    ("lt", 2, 2),
    ("match", 2, 2),
    ("ne", 2, 2),
    ("not", 1, 1),
    ("now", 0, 0),
    ("or", 1, -1),
    ("parseDuration", 1, 1),
    ("pathPrefix", 0, 0),
    ("print", 0, -1),
    ("printf", 1, -1),
    ("println", 0, -1),
    ("query", 1, 1),
    ("reReplaceAll", 3, 3),
    ("safeHtml", 1, 1),
    ("slice", 1, 3),
    ("sortByLabel", 2, 2),
    ("stripDomain", 1, 1),
    ("stripPort", 1, 1),
    ("strvalue", 1, 1),
    ("tableLink", 1, 1),
    ("title", 1, 1),
    ("tmpl", 2, 2),
    ("toDuration", 1, 1),
    ("toLower", 1, 1),
    ("toTime", 1, 1),
    ("toUpper", 1, 1),
    ("urlQueryEscape", 1, 1),
    ("urlquery", 1, -1),
    ("value", 1, 1),
];

fn signature(name: &str) -> Option<(usize, isize)> {
    ALL.iter().find(|(n, ..)| *n == name).map(|(_, least, most)| (*least, *most))
}

/// Whether there is one of this name.
pub(super) fn known(name: &str) -> bool {
    signature(name).is_some()
}

/// Fewest and most arguments.
pub(super) fn arity(name: &str) -> (usize, Option<usize>) {
    signature(name).map_or((0, None), |(least, most)| (least, usize::try_from(most).ok()))
}

fn string(v: &Value) -> Result<&str, String> {
    match v {
        Value::Str(s) => Ok(s),
        other => Err(format!("wrong type for value; expected string; got {}", other.kind())),
    }
}

fn number(v: &Value) -> Result<f64, String> {
    match v {
        Value::Float(v) => Ok(*v),
        Value::Int(n) => Ok(*n as f64),
        Value::Str(s) => {
            let wrong = |_| format!("strconv.ParseFloat: parsing {}: invalid syntax", quote(s));
            s.parse().map_err(wrong)
        }
        Value::Time(ms) => Ok(*ms as f64 / 1000.0),
        Value::Duration(ns) => Ok(*ns as f64 / 1e9),
        other => Err(format!("can't convert {} to float", other.kind())),
    }
}

fn list(v: &Value) -> Result<&[Value], String> {
    match v {
        Value::List(l) => Ok(l),
        other => Err(format!("wrong type for value; expected template.queryResult; got {}", other.kind())),
    }
}

/// A field of a sample, and a label of it.
fn of_sample(v: &Value, field: &str) -> Made {
    match v {
        Value::Struct("*template.sample", f) => {
            Ok(f.iter().find(|(n, _)| *n == field).map_or(Value::Nil, |(_, v)| v.clone()))
        }
        other => Err(format!("wrong type for value; expected *template.sample; got {}", other.kind())),
    }
}

fn label(v: &Value, name: &str) -> Result<String, String> {
    Ok(match of_sample(v, "Labels")? {
        Value::Map(m) => m.get(name).map_or_else(String::new, Value::text),
        _ => String::new(),
    })
}

fn scaled(mut v: f64, base: f64, prefixes: [&str; 8]) -> String {
    let mut prefix = "";
    for p in prefixes {
        if v.abs() < base {
            break;
        }
        (prefix, v) = (p, v / base);
    }
    format!("{}{prefix}", general(v, 4))
}

const GREAT: [&str; 8] = ["k", "M", "G", "T", "P", "E", "Z", "Y"];
const BINARY: [&str; 8] = ["ki", "Mi", "Gi", "Ti", "Pi", "Ei", "Zi", "Yi"];
const SMALL: [&str; 8] = ["m", "u", "n", "p", "f", "a", "z", "y"];

fn humanize(v: f64) -> String {
    match v.abs() {
        a if a == 0.0 || !a.is_finite() => general(v, 4),
        a if a >= 1.0 => scaled(v, 1000.0, GREAT),
        _ => small(v),
    }
}

fn small(mut v: f64) -> String {
    let mut prefix = "";
    for p in SMALL {
        if v.abs() >= 1.0 {
            break;
        }
        (prefix, v) = (p, v * 1000.0);
    }
    format!("{}{prefix}", general(v, 4))
}

fn humanize_duration(v: f64) -> String {
    if !v.is_finite() {
        return general(v, 4);
    }
    if v == 0.0 {
        return format!("{}s", general(v, 4));
    }
    if v.abs() < 1.0 {
        return format!("{}s", small(v));
    }
    let sign = if v < 0.0 { "-" } else { "" };
    let n = v.abs() as i64;
    let (d, h, m, s) = (n / 86_400, n / 3600 % 24, n / 60 % 60, n % 60);
    match (d, h, m) {
        (1.., ..) => format!("{sign}{d}d {h}h {m}m {s}s"),
        (_, 1.., _) => format!("{sign}{h}h {m}m {s}s"),
        (_, _, 1..) => format!("{sign}{m}m {s}s"),
        _ => format!("{sign}{}s", general(v.abs(), 4)),
    }
}

/// A number of seconds as milliseconds; a text for what is none.
fn instant(v: f64) -> Result<i64, String> {
    let ms = (v * 1000.0).round();
    match ms {
        ms if !ms.is_finite() => Err("value is NaN or Inf".into()),
        ms if ms.abs() >= 9.2e15 => Err(format!(
            "{} cannot be represented as a nanoseconds timestamp since it overflows int64",
            general(v, 17)
        )),
        ms => Ok(ms as i64),
    }
}

/// Host and port of `HOST:PORT`.
fn host_port(text: &str) -> Option<(&str, &str)> {
    match text.strip_prefix('[') {
        Some(rest) => rest.split_once("]:"),
        None => text.split_once(':').filter(|(_, port)| !port.contains(':')),
    }
}

fn strip_domain(text: &str) -> String {
    let (host, port) = host_port(text).map_or((text, None), |(h, p)| (h, Some(p)));
    if host.parse::<IpAddr>().is_ok() {
        return text.to_string();
    }
    let host = host.split('.').next().unwrap_or_default();
    port.map_or_else(|| host.to_string(), |p| format!("{host}:{p}"))
}

fn regex(pattern: &str) -> Result<regex::Regex, String> {
    let built = regex::RegexBuilder::new(pattern).size_limit(1 << 20).build();
    built.map_err(|e| format!("error parsing regexp: {}", e.to_string().lines().last().unwrap_or_default()))
}

/// Go's `Sprint`: spaces between operands of which neither is a text.
fn print(args: &[Value]) -> String {
    let mut out = String::new();
    for (i, a) in args.iter().enumerate() {
        let text = |v: &Value| matches!(v, Value::Str(_));
        if i > 0 && !text(a) && !text(&args[i - 1]) {
            out.push(' ');
        }
        out.push_str(&a.text());
    }
    out
}

fn compare(a: &Value, b: &Value) -> Result<std::cmp::Ordering, String> {
    let order = match (a, b) {
        (Value::Int(a), Value::Int(b))
        | (Value::Time(a), Value::Time(b))
        | (Value::Duration(a), Value::Duration(b)) => Some(a.cmp(b)),
        (Value::Float(a), Value::Float(b)) => Some(a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Greater)),
        (Value::Str(a), Value::Str(b)) => Some(a.cmp(b)),
        _ => None,
    };
    order.ok_or_else(|| "incompatible types for comparison".to_string())
}

fn equal(a: &Value, b: &Value) -> Result<bool, String> {
    match (a, b) {
        (Value::Bool(a), Value::Bool(b)) => Ok(a == b),
        (Value::Float(a), Value::Float(b)) => Ok(a == b),
        (Value::Nil, other) | (other, Value::Nil) => Ok(*other == Value::Nil),
        _ => compare(a, b).map(|o| o.is_eq()),
    }
}

fn html(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&#34;"),
            '\'' => out.push_str("&#39;"),
            '\0' => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

fn js(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\'' => out.push_str("\\'"),
            '"' => out.push_str("\\\""),
            '<' | '>' | '&' | '=' => out.push_str(&format!("\\u{:04X}", c as u32)),
            c if (c as u32) < 0x20 => out.push_str(&format!("\\u{:04X}", c as u32)),
            c => out.push(c),
        }
    }
    out
}

fn title(text: &str) -> String {
    let mut begins = true;
    text.chars()
        .flat_map(|c| {
            let word = c.is_alphanumeric() || matches!(c, '_' | '\'');
            let first = begins && word;
            begins = !word;
            if first { c.to_uppercase().collect::<Vec<_>>() } else { vec![c] }
        })
        .collect()
}

fn index(v: &Value, keys: &[Value]) -> Made {
    let mut v = v.clone();
    for k in keys {
        v = match (&v, k) {
            (Value::Map(m), Value::Str(k)) => m.get(k).cloned().unwrap_or_else(|| Value::Str(String::new())),
            (Value::List(l), Value::Int(i)) => {
                let found = usize::try_from(*i).ok().and_then(|i| l.get(i));
                found.cloned().ok_or_else(|| format!("error calling index: index out of range: {i}"))?
            }
            (Value::Str(s), Value::Int(i)) => {
                let found = usize::try_from(*i).ok().and_then(|i| s.as_bytes().get(i));
                Value::Int(i64::from(*found.ok_or_else(|| format!("index out of range: {i}"))?))
            }
            (Value::Nil, _) => return Err("index of untyped nil".into()),
            (other, _) => return Err(format!("can't index item of type {}", other.kind())),
        };
    }
    Ok(v)
}

fn slice(v: &Value, ends: &[Value]) -> Made {
    let len = match v {
        Value::Str(s) => s.len(),
        Value::List(l) => l.len(),
        other => return Err(format!("can't slice item of type {}", other.kind())),
    };
    let end = |at: usize, default: usize| match ends.get(at) {
        None => Ok(default),
        Some(Value::Int(i)) => {
            let i = usize::try_from(*i).ok().filter(|i| *i <= len);
            i.ok_or_else(|| "index out of range".to_string())
        }
        Some(other) => Err(format!("cannot index slice/array with type {}", other.kind())),
    };
    let (from, to) = (end(0, 0)?, end(1, len)?);
    if from > to {
        return Err(format!("invalid slice index: {from} > {to}"));
    }
    match v {
        Value::List(l) => Ok(Value::List(Rc::new(l[from..to].to_vec()))),
        other => {
            let text = other.text();
            text.get(from..to).map(|t| Value::Str(t.into())).ok_or_else(|| "slice within a character".into())
        }
    }
}

/// Calls one; the number of arguments was looked at before.
pub(super) fn call(name: &str, args: &[Value], cx: &Context<'_>) -> Made {
    let text = |t: String| Ok(Value::Str(t));
    let joined = || args.iter().map(Value::text).collect::<Vec<_>>().join("");
    match name {
        "args" => Ok(numbered(args)),
        "not" => Ok(Value::Bool(!args[0].truth())),
        "eq" => {
            for b in &args[1..] {
                if equal(&args[0], b)? {
                    return Ok(Value::Bool(true));
                }
            }
            Ok(Value::Bool(false))
        }
        "ne" => Ok(Value::Bool(!equal(&args[0], &args[1])?)),
        "lt" => Ok(Value::Bool(compare(&args[0], &args[1])?.is_lt())),
        "le" => Ok(Value::Bool(compare(&args[0], &args[1])?.is_le())),
        "gt" => Ok(Value::Bool(compare(&args[0], &args[1])?.is_gt())),
        "ge" => Ok(Value::Bool(compare(&args[0], &args[1])?.is_ge())),
        "len" => Ok(Value::Int(match &args[0] {
            Value::Str(s) => s.len(),
            Value::Map(m) => m.len(),
            Value::List(l) => l.len(),
            other => return Err(format!("len of type {}", other.kind())),
        } as i64)),
        "index" => index(&args[0], &args[1..]),
        "slice" => slice(&args[0], &args[1..]),
        "print" => text(print(args)),
        "println" => text(args.iter().map(Value::text).collect::<Vec<_>>().join(" ") + "\n"),
        "printf" => text(printf(string(&args[0])?, &args[1..])),
        "html" => text(html(&joined())),
        "js" => text(js(&joined())),
        "urlquery" | "urlQueryEscape" => text(percent(&joined())),
        "query" => {
            let found = (cx.query)(string(&args[0])?)?;
            Ok(Value::List(Rc::new(found.iter().map(|(l, p)| Value::sample(l, p)).collect())))
        }
        "first" => list(&args[0])?.first().cloned().ok_or("first() called on vector with no elements".into()),
        "label" => text(label(&args[1], string(&args[0])?)?),
        "value" => of_sample(&args[0], "Value"),
        "strvalue" => text(label(&args[0], "__value__")?),
        "sortByLabel" => {
            let mut all = Vec::new();
            for s in list(&args[1])? {
                all.push((label(s, string(&args[0])?)?, s.clone()));
            }
            all.sort_by(|a, b| a.0.cmp(&b.0));
            Ok(Value::List(Rc::new(all.into_iter().map(|(_, s)| s).collect())))
        }
        "humanize" => text(humanize(number(&args[0])?)),
        "humanize1024" => {
            let v = number(&args[0])?;
            text(if v.abs() <= 1.0 || !v.is_finite() { general(v, 4) } else { scaled(v, 1024.0, BINARY) })
        }
        "humanizeDuration" => text(humanize_duration(number(&args[0])?)),
        "humanizePercentage" => text(format!("{}%", general(number(&args[0])? * 100.0, 4))),
        "humanizeTimestamp" => {
            let v = number(&args[0])?;
            if !v.is_finite() {
                return text(general(v, 4));
            }
            text(Value::Time(instant(v)?).text())
        }
        "toTime" => Ok(Value::Time(instant(number(&args[0])?)?)),
        "toDuration" => {
            let v = number(&args[0])?;
            match (v * 1e9).trunc() {
                ns if !ns.is_finite() => Err("value is NaN or Inf".into()),
                ns if ns.abs() >= 9.2e18 => Err(format!(
                    "{} cannot be represented as a nanoseconds duration since it overflows int64",
                    general(v, 17)
                )),
                ns => Ok(Value::Duration(ns as i64)),
            }
        }
        "parseDuration" => {
            let ms = crate::promql::duration::parse(string(&args[0])?)?;
            Ok(Value::Float(ms as f64 / 1000.0))
        }
        "now" => Ok(Value::Float(cx.at_ms as f64 / 1000.0)),
        "externalURL" => text(cx.external_url.into()),
        "pathPrefix" => {
            let path = cx.external_url.split_once("://").map_or("", |(_, r)| r);
            text(path.find('/').map_or(String::new(), |i| path[i..].to_string()))
        }
        "reReplaceAll" => {
            let (pattern, by, of) = (string(&args[0])?, string(&args[1])?, string(&args[2])?);
            text(regex(pattern)?.replace_all(of, by).into_owned())
        }
        "match" => Ok(Value::Bool(regex(string(&args[0])?)?.is_match(string(&args[1])?))),
        "safeHtml" => text(args[0].text()),
        "title" => text(title(string(&args[0])?)),
        "toUpper" => text(string(&args[0])?.to_uppercase()),
        "toLower" => text(string(&args[0])?.to_lowercase()),
        "graphLink" => text(link(string(&args[0])?, 0)),
        "tableLink" => text(link(string(&args[0])?, 1)),
        "stripPort" => {
            let s = string(&args[0])?;
            text(host_port(s).map_or(s, |(h, _)| h).to_string())
        }
        "stripDomain" => text(strip_domain(string(&args[0])?)),
        // `and`, `or` and `tmpl` are the walker's; the parser lets no other name through.
        other => Err(format!("function {} not defined", quote(other))),
    }
}

/// The page that shows an expression, as graph (0) or table (1).
pub fn link(expr: &str, tab: u8) -> String {
    format!("/graph?g0.expr={}&g0.tab={tab}", percent(expr))
}
