//! Names for readers that know only `[a-zA-Z_:][a-zA-Z0-9_:]*` (Prometheus' "escaping schemes").

use crate::labels::is_metric;
use std::{borrow::Cow, fmt::Write};

/// What becomes of other characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scheme {
    /// They stay; the name stands in quotes.
    #[default]
    AllowUtf8,
    /// Each becomes `_`.
    Underscores,
    /// `.` becomes `_dot_`, `_` two of them, others too.
    Dots,
    /// `U__`, and each as its number: nothing is lost.
    Values,
}

impl Scheme {
    /// By the name that negotiation uses.
    pub fn of(name: &str) -> Option<Self> {
        Some(match name {
            "allow-utf-8" => Scheme::AllowUtf8,
            "underscores" => Scheme::Underscores,
            "dots" => Scheme::Dots,
            "values" => Scheme::Values,
            _ => return None,
        })
    }
}

/// The name as `scheme` writes it.
pub fn escape(name: &str, scheme: Scheme) -> Cow<'_, str> {
    if name.is_empty() || scheme == Scheme::AllowUtf8 || (scheme != Scheme::Dots && is_metric(name)) {
        return Cow::Borrowed(name);
    }
    let mut out = String::with_capacity(name.len() + 8);
    if scheme == Scheme::Values {
        out.push_str("U__");
    }
    for (i, c) in name.chars().enumerate() {
        let plain = c.is_ascii_alphabetic() || c == '_' || c == ':' || (i > 0 && c.is_ascii_digit());
        match scheme {
            Scheme::Dots if c == '_' => out.push_str("__"),
            Scheme::Dots if c == '.' => out.push_str("_dot_"),
            Scheme::Values if c == '_' => out.push_str("__"),
            _ if plain => out.push(c),
            Scheme::Dots => out.push_str("__"),
            Scheme::Values => {
                let _ = write!(out, "_{:x}_", c as u32); // a String takes all
            }
            _ => out.push('_'),
        }
    }
    Cow::Owned(out)
}
