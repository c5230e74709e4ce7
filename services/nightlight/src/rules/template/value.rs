//! What flows through a template, and what it looks like as text: Go's `%v` and `Printf`.

use super::Data;
use crate::{
    engine::Point,
    histogram::text::go_float,
    labels::{Labels, quote},
};
use std::{collections::BTreeMap, rc::Rc};

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// `nil`
    Nil,
    /// A truth.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A number.
    Float(f64),
    /// A text.
    Str(String),
    /// A text for each name; for one that is not there, the empty text.
    Map(Rc<BTreeMap<String, Value>>),
    /// Several.
    List(Rc<Vec<Value>>),
    /// One with fields: the name of its type, and them.
    Struct(&'static str, Rc<Vec<(&'static str, Value)>>),
    /// An instant, milliseconds since 1970.
    Time(i64),
    /// A length of time, nanoseconds.
    Duration(i64),
}

impl From<&Point> for Value {
    fn from(p: &Point) -> Self {
        match p {
            Point::Number(v) => Value::Float(*v),
            Point::Histogram(h) => Value::Str(h.to_string()),
        }
    }
}

impl From<&Labels> for Value {
    fn from(l: &Labels) -> Self {
        Value::Map(Rc::new(l.iter().map(|(n, v)| (n.to_string(), Value::Str(v.to_string()))).collect()))
    }
}

impl Value {
    pub(super) fn alert(d: &Data<'_>, external_url: &str) -> Self {
        let fields = vec![
            ("Labels", d.labels.into()),
            ("ExternalLabels", d.external.into()),
            ("ExternalURL", Value::Str(external_url.into())),
            ("Value", d.value.into()),
        ];
        let name = "struct { Labels map[string]string; ExternalLabels map[string]string; ExternalURL string; Value interface {} }";
        Value::Struct(name, Rc::new(fields))
    }

    pub(super) fn sample(labels: &Labels, p: &Point) -> Self {
        Value::Struct("*template.sample", Rc::new(vec![("Labels", labels.into()), ("Value", p.into())]))
    }

    /// As `if` sees it.
    pub(super) fn truth(&self) -> bool {
        match self {
            Value::Nil => false,
            Value::Bool(b) => *b,
            Value::Int(n) | Value::Duration(n) => *n != 0,
            Value::Float(v) => *v != 0.0,
            Value::Str(s) => !s.is_empty(),
            Value::Map(m) => !m.is_empty(),
            Value::List(l) => !l.is_empty(),
            Value::Struct(..) | Value::Time(_) => true,
        }
    }

    /// As Go names its type.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Value::Nil => "<nil>",
            Value::Bool(_) => "bool",
            Value::Int(_) => "int",
            Value::Float(_) => "float64",
            Value::Str(_) => "string",
            Value::Map(_) => "map[string]string",
            Value::List(_) => "template.queryResult",
            Value::Struct(name, _) => name,
            Value::Time(_) => "*time.Time",
            Value::Duration(_) => "*time.Duration",
        }
    }

    /// `%v`
    pub(super) fn text(&self) -> String {
        match self {
            Value::Nil => "<nil>".into(),
            Value::Bool(b) => b.to_string(),
            Value::Int(n) => n.to_string(),
            Value::Float(v) => go_float(*v),
            Value::Str(s) => s.clone(),
            Value::Map(m) => {
                let all: Vec<String> = m.iter().map(|(k, v)| format!("{k}:{}", v.text())).collect();
                format!("map[{}]", all.join(" "))
            }
            Value::List(l) => format!("[{}]", l.iter().map(Value::text).collect::<Vec<_>>().join(" ")),
            Value::Struct(_, f) => {
                format!("{{{}}}", f.iter().map(|(_, v)| v.text()).collect::<Vec<_>>().join(" "))
            }
            Value::Time(ms) => instant(*ms),
            Value::Duration(ns) => length(*ns),
        }
    }
}

/// Go's `Time.String` in UTC: `2006-01-02 15:04:05.999 +0000 UTC`.
fn instant(ms: i64) -> String {
    let days = ms.div_euclid(86_400_000);
    let (y, m, d) = crate::engine::date::civil(days);
    let of_day = ms.rem_euclid(86_400_000);
    let (s, ms) = (of_day / 1000, of_day % 1000);
    let fraction = format!(".{ms:03}");
    let fraction = fraction.trim_end_matches('0').trim_end_matches('.');
    format!("{y:04}-{m:02}-{d:02} {:02}:{:02}:{:02}{fraction} +0000 UTC", s / 3600, s / 60 % 60, s % 60)
}

/// Go's `Duration.String`: `1h1m1.5s`.
fn length(ns: i64) -> String {
    if ns == 0 {
        return "0s".into();
    }
    let (sign, n) = (if ns < 0 { "-" } else { "" }, ns.unsigned_abs());
    for (unit, size) in [("ns", 1u64), ("µs", 1000), ("ms", 1_000_000)] {
        if n < size * 1000 {
            return format!("{sign}{}{unit}", n as f64 / size as f64);
        }
    }
    let (h, m) = (n / 3_600_000_000_000, n / 60_000_000_000 % 60);
    let s = (n % 60_000_000_000) as f64 / 1e9;
    let hours = if h > 0 { format!("{h}h") } else { String::new() };
    let minutes = if h > 0 || m > 0 { format!("{m}m") } else { String::new() };
    format!("{sign}{hours}{minutes}{s}s")
}

/// `%.{precision}g`
pub(super) fn general(v: f64, precision: usize) -> String {
    if !v.is_finite() {
        return go_float(v);
    }
    let p = precision.max(1);
    let text = format!("{v:.*e}", p - 1);
    let (digits, power) = text.split_once('e').unwrap_or((&text, "0"));
    let power: i32 = power.parse().unwrap_or(0);
    let short = |t: &str| match t.contains('.') {
        true => t.trim_end_matches('0').trim_end_matches('.').to_string(),
        false => t.to_string(),
    };
    if power < -4 || power >= p as i32 {
        let sign = if power < 0 { '-' } else { '+' };
        return format!("{}e{sign}{:02}", short(digits), power.unsigned_abs());
    }
    short(&format!("{v:.*}", usize::try_from(p as i32 - 1 - power).unwrap_or(0)))
}

/// Largest width and precision: less than what `format!` takes.
const WIDTH_MAX: usize = 60_000;

/// Go's `Sprintf` for the verbs that make sense here.
pub(super) fn printf(format: &str, args: &[Value]) -> String {
    let (mut out, mut chars, mut next) = (String::new(), format.chars().peekable(), 0);
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let (mut minus, mut plus, mut zero, mut space) = (false, false, false, false);
        while let Some(f) = chars.next_if(|c| "-+0 #".contains(*c)) {
            match f {
                '-' => minus = true,
                '+' => plus = true,
                '0' => zero = true,
                ' ' => space = true,
                _ => {}
            }
        }
        let mut number = || {
            let mut n = None;
            while let Some(d) = chars.next_if(char::is_ascii_digit).and_then(|c| c.to_digit(10)) {
                n = Some((n.unwrap_or(0) * 10 + d as usize).min(WIDTH_MAX));
            }
            n
        };
        let width = number().unwrap_or(0);
        let precision = chars.next_if_eq(&'.').map(|_| {
            let mut n = 0;
            while let Some(d) = chars.next_if(char::is_ascii_digit).and_then(|c| c.to_digit(10)) {
                n = (n * 10 + d as usize).min(WIDTH_MAX);
            }
            n
        });
        let Some(verb) = chars.next() else {
            out.push_str("%!(NOVERB)");
            break;
        };
        if verb == '%' {
            out.push('%');
            continue;
        }
        let Some(arg) = args.get(next) else {
            out.push_str(&format!("%!{verb}(MISSING)"));
            continue;
        };
        next += 1;
        let Some(text) = one(verb, precision, arg) else {
            out.push_str(&format!("%!{verb}({}={})", arg.kind(), arg.text()));
            continue;
        };
        let number = matches!(arg, Value::Int(_) | Value::Float(_)) && !matches!(verb, 'c' | 'q');
        let text = match number && !text.starts_with(['-', '+']) {
            true if plus => format!("+{text}"),
            true if space => format!(" {text}"),
            _ => text,
        };
        let lack = width.saturating_sub(text.chars().count());
        if minus {
            out.push_str(&text);
            out.push_str(&" ".repeat(lack));
        } else if zero && number {
            let signed = usize::from(text.starts_with(['-', '+', ' ']));
            out.push_str(&text[..signed]);
            out.push_str(&"0".repeat(lack));
            out.push_str(&text[signed..]);
        } else {
            out.push_str(&" ".repeat(lack));
            out.push_str(&text);
        }
    }
    if next < args.len() {
        let extra: Vec<String> = args[next..]
            .iter()
            .map(|a| match a {
                Value::Nil => "<nil>".into(),
                a => format!("{}={}", a.kind(), a.text()),
            })
            .collect();
        out.push_str(&format!("%!(EXTRA {})", extra.join(", ")));
    }
    out
}

fn one(verb: char, precision: Option<usize>, arg: &Value) -> Option<String> {
    let cut = |s: &str| match precision {
        Some(p) => s.chars().take(p).collect(),
        None => s.to_string(),
    };
    Some(match (verb, arg) {
        ('v' | 'g', Value::Float(v)) => precision.map_or_else(|| go_float(*v), |p| general(*v, p)),
        ('v', a) => a.text(),
        ('s', Value::Str(s)) => cut(s),
        ('s', a @ (Value::Time(_) | Value::Duration(_))) => a.text(),
        ('q', Value::Str(s)) => quote(&cut(s)),
        ('x', Value::Str(s)) => s.bytes().map(|b| format!("{b:02x}")).collect(),
        ('t', Value::Bool(b)) => b.to_string(),
        ('d', Value::Int(n) | Value::Duration(n)) => n.to_string(),
        ('x', Value::Int(n)) => format!("{}{:x}", if *n < 0 { "-" } else { "" }, n.unsigned_abs()),
        ('X', Value::Int(n)) => format!("{}{:X}", if *n < 0 { "-" } else { "" }, n.unsigned_abs()),
        ('c', Value::Int(n)) => char::from_u32(u32::try_from(*n).ok()?)?.to_string(),
        ('f' | 'F', Value::Float(v)) if v.is_finite() => format!("{v:.*}", precision.unwrap_or(6)),
        ('e', Value::Float(v)) if v.is_finite() => {
            let text = format!("{v:.*e}", precision.unwrap_or(6));
            let (digits, power) = text.split_once('e')?;
            let (sign, power) = power.strip_prefix('-').map_or(('+', power), |p| ('-', p));
            format!("{digits}e{sign}{power:0>2}")
        }
        ('f' | 'F' | 'e', Value::Float(v)) => go_float(*v),
        ('T', a) => a.kind().into(),
        _ => return None,
    })
}
