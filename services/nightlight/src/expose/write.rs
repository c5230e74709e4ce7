//! Pages for others: what `/federate` answers.

use super::{
    Format,
    escape::{Scheme, escape},
};
use crate::labels::{Labels, NAME, is_label, is_metric};
use std::{collections::BTreeMap, fmt::Write};

fn quoted(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            c => out.push(c),
        }
    }
    out.push('"');
}

/// A series as both text forms write it: `name{a="b"}`, or `{"a name",a="b"}`.
pub fn series<'a>(out: &mut String, name: &str, labels: impl Iterator<Item = (&'a str, &'a str)>) {
    let plain = is_metric(name);
    if plain {
        out.push_str(name);
    }
    let mut separator = '{';
    if !plain {
        out.push('{');
        quoted(out, name);
        separator = ',';
    }
    for (n, v) in labels {
        out.push(separator);
        separator = ',';
        if is_label(n) {
            out.push_str(n)
        } else {
            quoted(out, n)
        }
        out.push('=');
        quoted(out, v);
    }
    if separator == ',' {
        out.push('}');
    }
}

/// A page of samples, sorted by name; `samples` are labels, milliseconds, values.
pub fn page(format: Format, scheme: Scheme, samples: &[(Labels, i64, f64)]) -> String {
    let mut out = String::new();
    let mut family = String::new();
    for (labels, at, value) in samples {
        let name = escape(labels.name(), scheme);
        if *name != *family {
            family = name.to_string();
            let kind = if format == Format::OpenMetrics { "unknown" } else { "untyped" };
            out.push_str("# TYPE ");
            if is_metric(&family) {
                out.push_str(&family)
            } else {
                quoted(&mut out, &family)
            }
            let _ = writeln!(out, " {kind}"); // a String takes all
        }
        let rest: Vec<(std::borrow::Cow<'_, str>, &str)> =
            labels.iter().filter(|(n, _)| &***n != NAME).map(|(n, v)| (escape(n, scheme), &**v)).collect();
        series(&mut out, &name, rest.iter().map(|(n, v)| (&**n, *v)));
        let value = crate::promql::number(*value);
        let _ = match format {
            Format::OpenMetrics => {
                let (sign, ms) = (if *at < 0 { "-" } else { "" }, at.unsigned_abs());
                writeln!(out, " {value} {sign}{}.{:03}", ms / 1000, ms % 1000)
            }
            _ => writeln!(out, " {value} {at}"),
        };
    }
    if format == Format::OpenMetrics {
        out.push_str("# EOF\n");
    }
    out
}

/// Families of numbers, for a page about this process.
#[derive(Default)]
pub struct Families(BTreeMap<&'static str, (&'static str, Vec<String>)>);

impl Families {
    /// One series of a family of this kind.
    pub fn add(&mut self, name: &'static str, kind: &'static str, labels: &[(&str, &str)], v: f64) {
        let mut line = String::new();
        series(&mut line, name, labels.iter().copied());
        let _ = write!(line, " {}", crate::promql::number(v)); // a String takes all
        self.0.entry(name).or_insert_with(|| (kind, Vec::new())).1.push(line);
    }

    /// The page.
    pub fn text(&self) -> String {
        let family = |(name, (kind, lines)): (&&str, &(&str, Vec<String>))| {
            format!("# TYPE {name} {kind}\n{}\n", lines.join("\n"))
        };
        self.0.iter().map(family).collect()
    }
}
