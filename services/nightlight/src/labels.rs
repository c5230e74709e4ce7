//! What identifies a series: [`Labels`], a set of names with values; and what selects series:
//! [`Matcher`].
//!
//! Invariants: labels are sorted by name, no name occurs twice, no value is empty (in Prometheus' data
//! model an absent label and an empty one are the same thing).

use regex::Regex;
use std::{fmt, sync::Arc};

/// The label that holds the metric's name.
pub const NAME: &str = "__name__";
/// Largest compiled form of one regular expression, in bytes: a bomb such as `(a{1000}){1000}` is refused.
const REGEX_BYTES_MAX: usize = 1 << 20;

/// A shared string.
pub type Str = Arc<str>;

/// A set of labels. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Labels(Arc<[(Str, Str)]>);

impl Labels {
    /// From pairs in any order. Of a repeated name the last one holds; empty values vanish.
    pub fn new(pairs: impl IntoIterator<Item = (Str, Str)>) -> Self {
        let mut all: Vec<(Str, Str)> = pairs.into_iter().collect();
        // Stable, and the later of two is taken over into the earlier, which stays.
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all.dedup_by(|later, earlier| {
            let same = later.0 == earlier.0;
            if same {
                std::mem::swap(later, earlier);
            }
            same
        });
        all.retain(|(_, v)| !v.is_empty());
        Labels(all.into())
    }

    /// From literals.
    pub fn of(pairs: &[(&str, &str)]) -> Self {
        Self::new(pairs.iter().map(|(n, v)| (Str::from(*n), Str::from(*v))))
    }

    /// The value of `name`; empty when there is none.
    pub fn get(&self, name: &str) -> &str {
        match self.0.binary_search_by(|(n, _)| (**n).cmp(name)) {
            Ok(i) => &self.0[i].1,
            Err(_) => "",
        }
    }

    /// The metric's name; empty when there is none.
    pub fn name(&self) -> &str {
        self.get(NAME)
    }

    /// Name and value of each, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&Str, &Str)> {
        self.0.iter().map(|(n, v)| (n, v))
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True for the empty set.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Those for which `keep` holds.
    pub fn filter(&self, keep: impl Fn(&str) -> bool) -> Self {
        if self.0.iter().all(|(n, _)| keep(n)) {
            return self.clone();
        }
        Labels(self.0.iter().filter(|(n, _)| keep(n)).cloned().collect())
    }

    /// Only those named; `names` in any order.
    pub fn only(&self, names: &[Str]) -> Self {
        self.filter(|n| names.iter().any(|k| **k == *n))
    }

    /// Without those named.
    pub fn without(&self, names: &[Str]) -> Self {
        self.filter(|n| !names.iter().any(|k| **k == *n))
    }

    /// Without the metric's name.
    pub fn nameless(&self) -> Self {
        self.filter(|n| n != NAME)
    }

    /// With `name` set to `value`; an empty value removes it.
    pub fn with(&self, name: &str, value: &str) -> Self {
        let found = self.0.binary_search_by(|(n, _)| (**n).cmp(name));
        let (before, after) = match found {
            Ok(i) if *self.0[i].1 == *value => return self.clone(),
            Err(_) if value.is_empty() => return self.clone(),
            Ok(i) => (&self.0[..i], &self.0[i + 1..]),
            Err(i) => self.0.split_at(i),
        };
        let new = (!value.is_empty()).then(|| (Str::from(name), Str::from(value)));
        Labels(before.iter().cloned().chain(new).chain(after.iter().cloned()).collect())
    }
}

impl fmt::Display for Labels {
    /// As Prometheus prints a series: `name{a="b"}`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        let rest: Vec<String> = self
            .iter()
            .filter(|(n, _)| &***n != NAME)
            .map(|(n, v)| {
                let name = if is_label(n) { n.to_string() } else { quote(n) };
                format!("{name}={}", quote(v))
            })
            .collect();
        if !rest.is_empty() || self.name().is_empty() { write!(f, "{{{}}}", rest.join(", ")) } else { Ok(()) }
    }
}

/// True for `[a-zA-Z_][a-zA-Z0-9_]*`: a label name that needs no quotes.
pub fn is_label(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|b| b == b'_' || b.is_ascii_alphabetic())
        && bytes.all(|b| b == b'_' || b.is_ascii_alphanumeric())
}

/// True for `[a-zA-Z_:][a-zA-Z0-9_:]*`: a metric name that needs no quotes.
pub fn is_metric(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|b| b == b'_' || b == b':' || b.is_ascii_alphabetic())
        && bytes.all(|b| b == b'_' || b == b':' || b.is_ascii_alphanumeric())
}

/// A string in double quotes, escaped as Go's `%q` does.
pub fn quote(s: &str) -> String {
    let mut out = String::with_capacity(s.len() + 2);
    out.push('"');
    for c in s.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{b}' => out.push_str("\\v"),
            '\u{c}' => out.push_str("\\f"),
            c if (c as u32) < 0x20 || c as u32 == 0x7f => out.push_str(&format!("\\x{:02x}", c as u32)),
            c if c.is_control() => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// How a matcher compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MatchOp {
    /// `=`
    Equal,
    /// `!=`
    NotEqual,
    /// `=~`
    Regex,
    /// `!~`
    NotRegex,
}

impl MatchOp {
    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            MatchOp::Equal => "=",
            MatchOp::NotEqual => "!=",
            MatchOp::Regex => "=~",
            MatchOp::NotRegex => "!~",
        }
    }
}

/// A condition on one label.
#[derive(Clone, Debug)]
pub struct Matcher {
    /// Label.
    pub name: Str,
    /// Comparison.
    pub op: MatchOp,
    /// Value or regular expression (anchored at both ends).
    pub value: Str,
    regex: Option<Regex>,
}

impl PartialEq for Matcher {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name && self.op == other.op && self.value == other.value
    }
}

impl Matcher {
    /// A matcher; the error says what is wrong with the regular expression.
    pub fn new(name: &str, op: MatchOp, value: &str) -> Result<Self, String> {
        let regex = match op {
            MatchOp::Regex | MatchOp::NotRegex => Some(anchored(value)?),
            MatchOp::Equal | MatchOp::NotEqual => None,
        };
        Ok(Matcher { name: name.into(), op, value: value.into(), regex })
    }

    /// Whether a label of this value passes (empty: the label is absent).
    pub fn matches(&self, value: &str) -> bool {
        match (self.op, &self.regex) {
            (MatchOp::Regex, Some(r)) => r.is_match(value),
            (MatchOp::NotRegex, Some(r)) => !r.is_match(value),
            (MatchOp::NotEqual | MatchOp::NotRegex, _) => *value != *self.value,
            _ => *value == *self.value,
        }
    }
}

/// The expression, matching whole values only, dots matching line ends (as Prometheus compiles them).
pub fn anchored(pattern: &str) -> Result<Regex, String> {
    // Checked alone first: `a)(b` must not become valid by the anchors around it.
    regex::RegexBuilder::new(pattern)
        .size_limit(REGEX_BYTES_MAX)
        .build()
        .and_then(|_| {
            regex::RegexBuilder::new(&format!("^(?s:{pattern})$")).size_limit(REGEX_BYTES_MAX).build()
        })
        .map_err(|e| {
            let text = e.to_string();
            let last = text.lines().last().unwrap_or_default();
            format!("error parsing regexp: {}", last.trim_start_matches("error: "))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_a_sorted_set() {
        let l = Labels::of(&[("z", "1"), ("a", "2"), ("z", "3"), ("empty", "")]);
        assert_eq!(l.to_string(), r#"{a="2", z="3"}"#);
        assert_eq!((l.get("z"), l.get("empty"), l.len()), ("3", "", 2));
        assert_eq!(l.with("a", "").to_string(), r#"{z="3"}"#);
        assert_eq!(Labels::of(&[(NAME, "up")]).to_string(), "up");
        assert_eq!(Labels::default().to_string(), "{}");
    }

    #[test]
    fn expressions_are_anchored_and_bounded() {
        let m = |op, v| Matcher::new("a", op, v).expect("matcher");
        assert!(m(MatchOp::Regex, "b|c").matches("c") && !m(MatchOp::Regex, "b|c").matches("bc"));
        assert!(m(MatchOp::Regex, "a.b").matches("a\nb"));
        assert!(m(MatchOp::NotRegex, "b.+").matches("b"));
        assert!(anchored("a)(b").is_err());
        assert!(anchored("((a{1000}){1000}){1000}").is_err());
    }

    #[test]
    fn the_last_of_a_name_holds_and_an_empty_value_is_none() {
        let all = Labels::of(&[("b", "1"), ("a", "1"), ("b", "2"), ("c", "3"), ("c", "")]);
        assert_eq!(all, Labels::of(&[("a", "1"), ("b", "2")]));
        assert_eq!(all.with("aa", "x"), Labels::of(&[("a", "1"), ("aa", "x"), ("b", "2")]));
        assert_eq!(all.with("b", "3"), Labels::of(&[("a", "1"), ("b", "3")]));
        assert_eq!(all.with("a", ""), Labels::of(&[("b", "2")]));
        assert_eq!((all.with("z", ""), all.with("a", "1")), (all.clone(), all));
    }
}
