//! Rule files as Prometheus reads them: groups of recording and alerting rules, every key known, each mistake said in
//! Prometheus' words.

use super::template;
use crate::{
    labels::{Labels, NAME, Str, quote},
    promql::{Expr, parse},
};
use serde::{Deserialize, Deserializer, de::Error as _};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

/// Largest file, bytes.
const FILE_MAX: u64 = 16 << 20;
/// Most rules of a file.
const RULES_MAX: usize = 20_000;

/// A length of time, 0 among them, milliseconds.
pub(super) fn span<'de, D: Deserializer<'de>>(d: D) -> Result<Option<i64>, D::Error> {
    let text = String::deserialize(d)?;
    crate::promql::duration::parse(&text).map(Some).map_err(D::Error::custom)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default)]
    groups: Vec<WrittenGroup>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct WrittenGroup {
    name: String,
    #[serde(deserialize_with = "span")]
    interval: Option<i64>,
    #[serde(deserialize_with = "span")]
    query_offset: Option<i64>,
    limit: usize,
    labels: BTreeMap<String, String>,
    rules: Vec<WrittenRule>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct WrittenRule {
    record: String,
    alert: String,
    expr: String,
    #[serde(rename = "for", deserialize_with = "span")]
    wait: Option<i64>,
    #[serde(deserialize_with = "span")]
    keep_firing_for: Option<i64>,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
}

/// Rules that are evaluated together, in their order.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// Where it is written.
    pub file: String,
    /// Once in a file.
    pub name: String,
    /// Between two evaluations, milliseconds.
    pub interval_ms: i64,
    /// How far back queries ask.
    pub query_offset_ms: i64,
    /// Most series, or alerts, of a rule; 0: any number.
    pub limit: usize,
    /// In their order.
    pub rules: Vec<Rule>,
}

/// One rule.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// Of the series it records, or of the alert.
    pub name: String,
    /// Evaluated each time.
    pub expr: Expr,
    /// As it is printed.
    pub query: String,
    /// Added to its series, or alerts; templates in an alert's.
    pub labels: Labels,
    /// Nothing: it records.
    pub alert: Option<Alerting>,
}

/// What only alerts have.
#[derive(Clone, Debug, PartialEq)]
pub struct Alerting {
    /// How long it has to be so before it fires, milliseconds.
    pub wait_ms: i64,
    /// How long it goes on firing.
    pub keep_ms: i64,
    /// Texts for people; templates.
    pub annotations: Labels,
}

/// What groups take from elsewhere.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Defaults {
    /// `evaluation_interval`, milliseconds.
    pub interval_ms: i64,
    /// `rule_query_offset`, milliseconds.
    pub query_offset_ms: i64,
}

/// Reads a file; everything that is wrong with it.
pub fn load(path: &Path, d: Defaults) -> Result<Vec<Group>, Vec<String>> {
    let text = photon_rt::fs::read_text(path, FILE_MAX).map_err(|e| vec![e.to_string()])?;
    let name = path.display().to_string();
    read(&name, &text, d).map_err(|all| all.into_iter().map(|e| format!("{name}: {e}")).collect())
}

/// Reads the text of a file of this name.
pub fn read(file: &str, text: &str, d: Defaults) -> Result<Vec<Group>, Vec<String>> {
    // A tree first: it refuses a key that comes twice, of which a map would keep the last.
    let one = |e: serde_yaml_ng::Error| vec![e.to_string()];
    let tree: serde_yaml_ng::Value = serde_yaml_ng::from_str(text).map_err(one)?;
    if tree.is_null() {
        return Ok(Vec::new());
    }
    let written: Written = serde_yaml_ng::from_str(text).map_err(one)?;
    let rules: usize = written.groups.iter().map(|g| g.rules.len()).sum();
    if rules > RULES_MAX {
        return Err(vec![format!("{rules} rules: a file has at most {RULES_MAX}")]);
    }
    let (mut out, mut wrong, mut seen) = (Vec::new(), Vec::new(), BTreeSet::new());
    for g in written.groups {
        if g.name.is_empty() {
            wrong.push("Groupname must not be empty".to_string());
        }
        if !seen.insert(g.name.clone()) {
            wrong.push(format!("groupname: {} is repeated in the same file", quote(&g.name)));
        }
        let names = g.labels.keys().filter(|n| n.is_empty() || **n == NAME);
        wrong.extend(names.map(|n| format!("invalid label name: {n}")));
        let mut rules = Vec::new();
        for (i, r) in g.rules.iter().enumerate() {
            let name = if r.alert.is_empty() { &r.record } else { &r.alert };
            let place = format!("group {}, rule {}, {}: ", quote(&g.name), i + 1, quote(name));
            let mut say = |e: String| wrong.push(format!("{place}{e}"));
            if let Some(rule) = rule(r, &g.labels, &mut say) {
                rules.push(rule);
            }
        }
        out.push(Group {
            file: file.to_string(),
            name: g.name,
            interval_ms: g.interval.filter(|ms| *ms > 0).unwrap_or(d.interval_ms),
            query_offset_ms: g.query_offset.unwrap_or(d.query_offset_ms),
            limit: g.limit,
            rules,
        });
    }
    if wrong.is_empty() { Ok(out) } else { Err(wrong) }
}

fn set(all: &BTreeMap<String, String>) -> impl Iterator<Item = (Str, Str)> + '_ {
    all.iter().map(|(n, v)| (Str::from(n.as_str()), Str::from(v.as_str())))
}

fn rule(r: &WrittenRule, more: &BTreeMap<String, String>, say: &mut dyn FnMut(String)) -> Option<Rule> {
    match (r.record.is_empty(), r.alert.is_empty()) {
        (false, false) => say("only one of 'record' and 'alert' must be set".into()),
        (true, true) => say("one of 'record' or 'alert' must be set".into()),
        _ => {}
    }
    let mut expr = None;
    if r.expr.is_empty() {
        say("field 'expr' must be set in rule".into());
    } else {
        match parse(&r.expr) {
            Ok(e) => expr = Some(e),
            Err(e) => say(format!("could not parse expression: {e}")),
        }
    }
    if !r.record.is_empty() {
        for (has, name) in [
            (!r.annotations.is_empty(), "annotations"),
            (r.wait.is_some_and(|w| w != 0), "for"),
            (r.keep_firing_for.is_some_and(|w| w != 0), "keep_firing_for"),
        ] {
            if has {
                say(format!("invalid field '{name}' in recording rule"));
            }
        }
        if r.record.contains(['{', '}']) {
            say(format!("braces present in the recording rule name; should it be in expr?: {}", r.record));
        }
    }
    for name in r.labels.keys().filter(|n| n.is_empty() || **n == NAME) {
        say(format!("invalid label name: {name}"));
    }
    if r.annotations.contains_key("") {
        say("invalid annotation name: ".into());
    }
    if !r.alert.is_empty() {
        for (what, all) in [("label", &r.labels), ("annotation", &r.annotations)] {
            for (name, text) in all {
                if let Err(e) = template::check(&r.alert, text) {
                    say(format!("{what} {}: {e}", quote(name)));
                }
            }
        }
    }
    let expr = expr?;
    let alert = (!r.alert.is_empty()).then(|| Alerting {
        wait_ms: r.wait.unwrap_or(0),
        keep_ms: r.keep_firing_for.unwrap_or(0),
        annotations: Labels::new(set(&r.annotations)),
    });
    Some(Rule {
        name: if r.alert.is_empty() { r.record.clone() } else { r.alert.clone() },
        query: expr.to_string(),
        expr,
        labels: Labels::new(set(more).chain(set(&r.labels))),
        alert,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const D: Defaults = Defaults { interval_ms: 60_000, query_offset_ms: 0 };

    #[test]
    fn groups_are_read() {
        let text = "
groups:
- name: a
  interval: 30s
  query_offset: 10s
  limit: 5
  labels: {team: x, severity: none}
  rules:
  - {record: 'job:up:sum', expr: 'sum by(job)(up)', labels: {severity: 1}}
  - {alert: Down, expr: up == 0, for: 5m, keep_firing_for: 0s, annotations: {text: '{{ $labels.job }}'}}
- name: b
";
        let all = read("f", text, D).expect("valid");
        assert_eq!(
            (all.len(), all[0].interval_ms, all[0].query_offset_ms, all[0].limit),
            (2, 30_000, 10_000, 5)
        );
        assert_eq!(all[0].rules[0].query, "sum by (job) (up)");
        assert_eq!(all[0].rules[0].labels.to_string(), r#"{severity="1", team="x"}"#);
        assert_eq!(all[0].rules[1].alert.as_ref().map(|a| a.wait_ms), Some(300_000));
        assert_eq!((all[1].interval_ms, all[1].rules.len()), (60_000, 0));
        assert_eq!(read("f", "", D), Ok(Vec::new()));
    }

    #[test]
    fn mistakes_have_prometheus_words() {
        let rule = |r: &str| format!("groups: [{{name: g, rules: [{{{r}}}]}}]");
        for (text, why) in [
            (
                rule("record: a, alert: b, expr: up"),
                "group \"g\", rule 1, \"b\": only one of 'record' and 'alert' must be set",
            ),
            (rule("expr: up"), "one of 'record' or 'alert' must be set"),
            (rule("record: a"), "field 'expr' must be set in rule"),
            (
                rule("record: a, expr: 'sum('"),
                "could not parse expression: 1:5: parse error: unclosed left parenthesis",
            ),
            (rule("record: a, expr: up, for: 5m"), "invalid field 'for' in recording rule"),
            (
                rule("record: a, expr: up, annotations: {a: b}"),
                "invalid field 'annotations' in recording rule",
            ),
            (rule("record: 'a{b=\"c\"}', expr: up"), "braces present in the recording rule name"),
            (rule("alert: a, expr: up, labels: {__name__: x}"), "invalid label name: __name__"),
            (
                rule("alert: a, expr: up, annotations: {t: '{{ nothing }}'}"),
                "annotation \"t\": template: __alert_a:1: function \"nothing\" not defined",
            ),
            (rule("alert: a, expr: up, for: soon"), "not a valid duration string: \"soon\""),
            (rule("alert: a, expr: up, fro: 1m"), "unknown field `fro`"),
            (rule("alert: a, expr: up, labels: {a: b, a: c}"), "duplicate entry"),
            ("groups: [{name: a}, {name: a}]".into(), "groupname: \"a\" is repeated in the same file"),
            ("groups: [{rules: []}]".into(), "Groupname must not be empty"),
            ("group: []".into(), "unknown field `group`"),
        ] {
            let e = read("f", &text, D).expect_err(&text).join("\n");
            assert!(e.contains(why), "{text}: {e}");
        }
    }
}
