//! Rule tests as `promtool test rules` runs them: series in a short notation, rules evaluated over them from instant 0
//! on, alerts and expressions compared with what is expected. Left out: native histograms in the notation, which are
//! refused.

use super::{
    file::{self, span},
    group::{ALERT_NAME, Group, State, World},
};
use crate::{
    engine::{Cancel, Memory, Point, STALE_BITS},
    labels::{Labels, MatchOp, Str},
    promql::{duration, parse, parse_selector},
    store::Entry,
};
use serde::Deserialize;
use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
};

/// Largest file, bytes.
const FILE_MAX: u64 = 16 << 20;
/// Most samples of one series, and most evaluations of one test.
const SAMPLES_MAX: usize = 1_000_000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default)]
    rule_files: Vec<PathBuf>,
    #[serde(default, deserialize_with = "span")]
    evaluation_interval: Option<i64>,
    #[serde(default)]
    group_eval_order: Vec<String>,
    #[serde(default)]
    tests: Vec<Test>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Test {
    name: String,
    #[serde(deserialize_with = "span")]
    interval: Option<i64>,
    input_series: Vec<Series>,
    alert_rule_test: Vec<AlertTest>,
    promql_expr_test: Vec<ExprTest>,
    external_labels: BTreeMap<String, String>,
    external_url: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Series {
    series: String,
    values: String,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct AlertTest {
    #[serde(deserialize_with = "span")]
    eval_time: Option<i64>,
    alertname: String,
    exp_alerts: Vec<Expected>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Expected {
    exp_labels: BTreeMap<String, String>,
    exp_annotations: BTreeMap<String, String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ExprTest {
    expr: String,
    #[serde(deserialize_with = "span")]
    eval_time: Option<i64>,
    exp_samples: Vec<Sample>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Sample {
    labels: String,
    value: f64,
}

/// Runs the tests of a file; what differs, or why they can't be run. Blocking.
pub fn run(path: &Path) -> Result<(), Vec<String>> {
    let text = photon_rt::fs::read_text(path, FILE_MAX).map_err(|e| vec![e.to_string()])?;
    let one = |e: serde_yaml_ng::Error| vec![e.to_string()];
    let _unique: serde_yaml_ng::Value = serde_yaml_ng::from_str(&text).map_err(one)?;
    let w: Written = serde_yaml_ng::from_str(&text).map_err(one)?;
    let dir = path.parent().unwrap_or(Path::new("."));
    let interval = w.evaluation_interval.filter(|ms| *ms > 0).unwrap_or(60_000);
    let mut wrong = Vec::new();
    let (mut paths, mut groups) = (Vec::new(), Vec::new());
    for pattern in &w.rule_files {
        paths.extend(crate::scrape::matching(&dir.join(pattern)));
    }
    for p in paths {
        match file::load(&p, file::Defaults { interval_ms: interval, query_offset_ms: 0 }) {
            Ok(all) => groups.extend(all),
            Err(all) => wrong.extend(all),
        }
    }
    if !wrong.is_empty() {
        return Err(wrong);
    }
    let mut seen = BTreeSet::new();
    if let Some(twice) = w.group_eval_order.iter().find(|g| !seen.insert(*g)) {
        return Err(vec![format!("group name repeated in evaluation order: {twice}")]);
    }
    let place = |name: &str| w.group_eval_order.iter().position(|g| g == name).unwrap_or(0);
    groups.sort_by(|a: &file::Group, b| {
        (place(&a.name), &a.file, &a.name).cmp(&(place(&b.name), &b.file, &b.name))
    });
    for t in &w.tests {
        if let Err(e) = test(t, &groups, interval) {
            wrong.extend(e);
        }
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong) }
}

fn set(all: &BTreeMap<String, String>) -> Labels {
    Labels::new(all.iter().map(|(n, v)| (Str::from(n.as_str()), Str::from(v.as_str()))))
}

/// Labels of `name{a="b"}`.
fn metric(text: &str) -> Result<Labels, String> {
    let matchers = parse_selector(text).map_err(|e| e.to_string())?;
    if let Some(m) = matchers.iter().find(|m| m.op != MatchOp::Equal) {
        return Err(format!("{text}: {}{}: only = can name a series", m.name, m.op.as_str()));
    }
    Ok(Labels::new(matchers.into_iter().map(|m| (m.name, m.value))))
}

/// Instants are `interval_ms` apart, from 0 on; nothing where there is no sample.
fn values(text: &str) -> Result<Vec<Option<f64>>, String> {
    let mut out: Vec<Option<f64>> = Vec::new();
    for word in text.split_whitespace() {
        let wrong =
            || format!("{word:?}: expected NUMBER, NUMBERxTIMES, NUMBER+STEPxTIMES, _, _xTIMES or stale");
        let (head, times) = match word.rsplit_once('x') {
            // In 0x1f the letter belongs to the number.
            Some((head, n)) if head != "0" && head != "-0" => {
                (head, Some(n.parse::<usize>().map_err(|_| wrong())?))
            }
            _ => (word, None),
        };
        if out.len().saturating_add(times.unwrap_or(0)) >= SAMPLES_MAX {
            return Err(format!("a series has at most {SAMPLES_MAX} samples"));
        }
        match head {
            "_" => out.extend(std::iter::repeat_n(None, times.unwrap_or(1))),
            "stale" if times.is_none() => out.push(Some(f64::from_bits(STALE_BITS))),
            h if h.starts_with("{{") => return Err("native histograms in series are not supported".into()),
            h => {
                let (first, step) = match times {
                    None => (number(h).ok_or_else(wrong)?, 0.0),
                    Some(_) => progression(h).ok_or_else(wrong)?,
                };
                let mut v = first;
                for _ in 0..=times.unwrap_or(0) {
                    out.push(Some(v));
                    v += step;
                }
            }
        }
    }
    Ok(out)
}

fn number(text: &str) -> Option<f64> {
    let e = parse(text).ok()?;
    let negative = text.starts_with('-');
    match e.kind {
        crate::promql::ast::Kind::Number { value, .. } => Some(value),
        crate::promql::ast::Kind::Unary { expr, .. } => match expr.kind {
            crate::promql::ast::Kind::Number { value, .. } => Some(if negative { -value } else { value }),
            _ => None,
        },
        _ => None,
    }
}

/// First value and step of `a+b`, `a-b` or `a`.
fn progression(text: &str) -> Option<(f64, f64)> {
    let signs = text
        .char_indices()
        .skip(1)
        .filter(|(i, c)| matches!(c, '+' | '-') && !text[..*i].ends_with(['e', 'E', '+', '-']));
    for (i, c) in signs {
        if let (Some(a), Some(b)) = (number(&text[..i]), number(&text[i + 1..])) {
            return Some((a, if c == '-' { -b } else { b }));
        }
    }
    number(text).map(|a| (a, 0.0))
}

fn alerts(all: &[(Labels, Labels)]) -> String {
    if all.is_empty() {
        return "[]".into();
    }
    let one = |(i, (l, a)): (usize, &(Labels, Labels))| {
        format!("            {i}:\n              Labels:{l}\n              Annotations:{a}")
    };
    format!("[\n{}\n            ]", all.iter().enumerate().map(one).collect::<Vec<_>>().join("\n"))
}

fn samples(all: &[(Labels, Point)]) -> String {
    if all.is_empty() {
        return "nil".into();
    }
    let one = |(l, p): &(Labels, Point)| match p {
        Point::Number(v) => {
            format!("{l} {}", crate::histogram::text::go_float(*v).replace("e+", "E+").replace("e-", "E-"))
        }
        Point::Histogram(h) => format!("{l} {h}"),
    };
    all.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn test(t: &Test, specs: &[file::Group], interval: i64) -> Result<(), Vec<String>> {
    let mut data = Memory::default();
    let step = t.interval.filter(|ms| *ms > 0).unwrap_or(interval);
    for s in &t.input_series {
        let here = |e: String| vec![format!("{}: {e}", s.series)];
        let labels = metric(&s.series).map_err(here)?;
        for (i, v) in values(&s.values).map_err(here)?.into_iter().enumerate() {
            if let Some(v) = v {
                data.push(&labels, i as i64 * step, v).map_err(|e| here(e.to_string()))?;
            }
        }
    }
    let group = if t.name.is_empty() { String::new() } else { format!("    name: {},\n", t.name) };
    if let Some(a) = t.alert_rule_test.iter().find(|a| a.alertname.is_empty()) {
        let at = duration::print(a.eval_time.unwrap_or(0));
        return Err(vec![format!(
            "{group}    an item under alert_rule_test misses required attribute alertname at eval_time {at}"
        )]);
    }
    let asked =
        t.alert_rule_test.iter().map(|a| a.eval_time).chain(t.promql_expr_test.iter().map(|e| e.eval_time));
    let last = asked.flatten().max().unwrap_or(0);
    if last / interval > SAMPLES_MAX as i64 {
        return Err(vec![format!("{group}    a test has at most {SAMPLES_MAX} evaluations")]);
    }
    let data = RefCell::new(data);
    let cancel = Cancel::default();
    let external = set(&t.external_labels);
    let query =
        |e: &crate::promql::Expr, text: &str, at: i64| super::query(&*data.borrow(), e, text, at, &cancel);
    let write = |batch: Vec<Entry>| {
        let mut data = data.borrow_mut();
        for e in batch {
            let numbers = e.samples.into_iter().map(|(t, v)| (t, Point::Number(v)));
            for (at, p) in numbers.chain(e.histograms.into_iter().map(|(t, h)| (t, Point::Histogram(h)))) {
                data.put(&e.labels, at, p).map_err(|e| e.to_string())?;
            }
        }
        Ok(())
    };
    let world = World {
        query: &query,
        write: &write,
        clock: &|| 0.0,
        external: &external,
        external_url: &t.external_url,
        resend_ms: i64::MAX / 8,
    };
    let mut groups: Vec<Group> = specs.iter().map(|s| Group::new(Arc::new(s.clone()), true)).collect();
    let mut wrong = Vec::new();
    let mut at = 0;
    while at <= last {
        for g in &mut groups {
            g.evaluate(at, &world);
        }
        for r in groups.iter().flat_map(|g| &g.rules) {
            if let super::group::Health::Bad(e) = &r.health {
                let when = duration::print(at);
                wrong.push(format!("{group}    rule: {}, time: {when}, err: {e}", r.spec.name));
            }
        }
        if !wrong.is_empty() {
            return Err(wrong);
        }
        for a in t.alert_rule_test.iter().filter(|a| (at..at + interval).contains(&a.eval_time.unwrap_or(0)))
        {
            let rules = groups.iter().flat_map(|g| &g.rules);
            let rules = rules.filter(|r| r.spec.alert.is_some() && r.spec.name == a.alertname);
            let firing = rules.flat_map(|r| r.active().filter(|a| a.state == State::Firing));
            let mut got: Vec<(Labels, Labels)> =
                firing.map(|a| (a.labels.clone(), a.annotations.clone())).collect();
            let expected = a.exp_alerts.iter();
            let mut want: Vec<(Labels, Labels)> = expected
                .map(|e| (set(&e.exp_labels).with(ALERT_NAME, &a.alertname), set(&e.exp_annotations)))
                .collect();
            got.sort();
            want.sort();
            if got != want {
                let (name, when) = (&a.alertname, duration::print(a.eval_time.unwrap_or(0)));
                let (want, got) = (alerts(&want), alerts(&got));
                wrong.push(format!(
                    "{group}    alertname: {name}, time: {when}, \n        exp:{want}, \n        got:{got}"
                ));
            }
        }
        at += interval;
    }
    for e in &t.promql_expr_test {
        let (at, when) = (e.eval_time.unwrap_or(0), duration::print(e.eval_time.unwrap_or(0)));
        let place = format!("{group}    expr: {}, time: {when},", crate::labels::quote(&e.expr));
        let got = parse(&e.expr).map_err(|e| e.to_string()).and_then(|x| query(&x, &e.expr, at));
        let wanted = e.exp_samples.iter().map(|s| Ok((metric(&s.labels)?, Point::Number(s.value))));
        let wanted: Result<Vec<(Labels, Point)>, String> = wanted.collect();
        match (got, wanted) {
            (Ok(mut got), Ok(mut want)) => {
                got.sort_by(|a, b| a.0.cmp(&b.0));
                want.sort_by(|a, b| a.0.cmp(&b.0));
                let same = |a: &Point, b: &Point| match (a, b) {
                    (Point::Number(a), Point::Number(b)) => a == b || (a.is_nan() && b.is_nan()),
                    _ => a == b,
                };
                let all = got.len() == want.len()
                    && got.iter().zip(&want).all(|(a, b)| a.0 == b.0 && same(&a.1, &b.1));
                if !all {
                    let (want, got) = (samples(&want), samples(&got));
                    wrong.push(format!("{place}\n        exp: {want}\n        got: {got}"));
                }
            }
            (Err(e), _) | (_, Err(e)) => wrong.push(format!("{place} err: {e}")),
        }
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_have_a_short_notation() {
        let some = |v: &[f64]| v.iter().map(|v| Some(*v)).collect::<Vec<_>>();
        for (text, want) in [
            ("1 2 -3", some(&[1.0, 2.0, -3.0])),
            ("1+2x3", some(&[1.0, 3.0, 5.0, 7.0])),
            ("10-2x2", some(&[10.0, 8.0, 6.0])),
            ("-2+4x1", some(&[-2.0, 2.0])),
            ("5x2", some(&[5.0, 5.0, 5.0])),
            ("1e1+1e-1x1", some(&[10.0, 10.1])),
            ("0x1F Inf", some(&[31.0, f64::INFINITY])),
            ("1 _ _x2 2", vec![Some(1.0), None, None, None, Some(2.0)]),
            ("", vec![]),
        ] {
            assert_eq!(values(text), Ok(want), "{text}");
        }
        assert!(values("stale").is_ok_and(|v| v[0].is_some_and(crate::engine::is_stale)));
        for text in ["x", "1x", "1+x3", "a", "1x9999999999", "{{}}", "stalex3", "sum(x)"] {
            assert!(values(text).is_err(), "{text}");
        }
        assert!(metric("a{b=~\"c\"}").is_err());
    }
}
