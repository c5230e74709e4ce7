//! Which series a list of matchers means: for each label the sorted table of its values, for each value the series
//! that have it. A regular expression runs over values, not over series.

use crate::labels::{Labels, MatchOp, Matcher, Str};
use std::collections::BTreeMap;

#[derive(Default)]
pub(super) struct Index {
    by_label: BTreeMap<Str, BTreeMap<Str, Vec<u32>>>,
    n: u32,
}

impl Index {
    /// Adds the series of the next number.
    pub fn push(&mut self, labels: &Labels) {
        for (name, value) in labels.iter() {
            self.by_label.entry(name.clone()).or_default().entry(value.clone()).or_default().push(self.n);
        }
        self.n += 1;
    }

    /// Numbers of the series that pass all, rising.
    pub fn matching(&self, matchers: &[Matcher]) -> Vec<u32> {
        let mut out: Option<Vec<u32>> = None;
        // Those that name what must be there come first: they are short.
        for m in matchers.iter().filter(|m| !m.matches("")) {
            let found = self.having(m, true);
            out = Some(match out {
                Some(have) => intersect(&have, &found),
                None => found,
            });
        }
        let mut out = out.unwrap_or_else(|| (0..self.n).collect());
        // The others pass where the label is absent: take away those whose value doesn't.
        for m in matchers.iter().filter(|m| m.matches("")) {
            if out.is_empty() {
                break;
            }
            let wrong = self.having(m, false);
            out.retain(|s| wrong.binary_search(s).is_err());
        }
        out
    }

    /// Series with the label, whose value passes (or doesn't).
    fn having(&self, m: &Matcher, passes: bool) -> Vec<u32> {
        let Some(values) = self.by_label.get(&m.name) else { return Vec::new() };
        if m.op == MatchOp::Equal && passes {
            return values.get(&m.value).cloned().unwrap_or_default();
        }
        let mut out = Vec::new();
        for (value, series) in values {
            if m.matches(value) == passes {
                out.extend_from_slice(series);
            }
        }
        out.sort_unstable();
        out
    }
}

/// What both sorted lists hold; steps through the shorter, searches in the longer.
fn intersect(a: &[u32], b: &[u32]) -> Vec<u32> {
    let (short, mut long) = if a.len() <= b.len() { (a, b) } else { (b, a) };
    let mut out = Vec::new();
    for x in short {
        let at = long.partition_point(|y| y < x);
        long = &long[at..];
        if long.first() == Some(x) {
            out.push(*x);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pair() -> impl Strategy<Value = (String, String)> {
        (prop::sample::select(vec!["a", "b", "c"]), "[xy]{0,2}").prop_map(|(n, v)| (n.to_string(), v))
    }

    proptest! {
        #[test]
        fn agrees_with_looking_at_every_series(
            all in prop::collection::vec(prop::collection::vec(pair(), 0..4), 0..30),
            wanted in prop::collection::vec((pair(), 0..4usize), 0..4),
        ) {
            let mut index = Index::default();
            let str = |s: &String| Str::from(s.as_str());
            let all: Vec<Labels> =
                all.iter().map(|l| Labels::new(l.iter().map(|(n, v)| (str(n), str(v))))).collect();
            all.iter().for_each(|l| index.push(l));
            let ops = [MatchOp::Equal, MatchOp::NotEqual, MatchOp::Regex, MatchOp::NotRegex];
            let wanted: Vec<Matcher> =
                wanted.iter().map(|((n, v), op)| Matcher::new(n, ops[*op], v).expect("matcher")).collect();
            let slow: Vec<u32> = (0..all.len() as u32)
                .filter(|i| wanted.iter().all(|m| m.matches(all[*i as usize].get(&m.name))))
                .collect();
            prop_assert_eq!(index.matching(&wanted), slow);
        }
    }
}
