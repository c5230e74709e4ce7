//! Parts of the language whose answers were worked out by hand: ranges with ends, `info`, histograms among numbers.

use crate::reference::query;
use nightlight::{
    engine::{Answer, Cancel, Memory, Node, Point, Value, run},
    histogram::{Hint, Histogram},
    labels::Labels,
    promql::parse,
};
use std::sync::Arc;

fn ask(data: &Memory, text: &str, at: i64) -> Answer {
    let e = parse(text).unwrap_or_else(|e| panic!("{text}: {e}"));
    run(data, text, &e, query((at, at, 0)), &Cancel::default()).unwrap_or_else(|e| panic!("{text}: {e}"))
}

/// Each series as `labels value`, and the remarks.
fn told(a: &Answer) -> (Vec<String>, Vec<String>) {
    let value = |p: &Point| match p {
        Point::Number(v) => format!("{}", (v * 1e9).round() / 1e9),
        Point::Histogram(h) => h.to_string(),
    };
    let lines = match &a.value {
        Value::Vector(v) => v.iter().map(|(l, _, p)| format!("{l} {}", value(p))).collect(),
        Value::Matrix(m) => m
            .iter()
            .flat_map(|(l, s)| (0..s.len()).map(move |i| format!("{l} @{} {}", s.t[i], value(&s.point(i)))))
            .collect(),
        other => vec![format!("{other:?}")],
    };
    (lines, a.notes.warnings.iter().chain(&a.notes.infos).cloned().collect())
}

fn gives(data: &Memory, text: &str, at: i64, lines: &[&str], notes: &[&str]) {
    let (got, said) = told(&ask(data, text, at));
    assert_eq!(got, lines, "{text}");
    assert_eq!(said.len(), notes.len(), "{text}: {said:?}");
    for n in notes {
        assert!(said.iter().any(|s| s.contains(n)), "{text}: {n} in {said:?}");
    }
}

fn fails(data: &Memory, text: &str, words: &str) {
    let e = parse(text).unwrap_or_else(|e| panic!("{text}: {e}"));
    let e = run(data, text, &e, query((100_000, 100_000, 0)), &Cancel::default()).expect_err(text);
    assert!(e.to_string().contains(words), "{text}: {e}");
}

#[test]
fn ranges_with_ends() {
    let mut data = Memory::default();
    let (up, falls) = (Labels::of(&[("__name__", "up_total")]), Labels::of(&[("__name__", "falls_total")]));
    for k in 0..20 {
        data.push(&up, k * 15_000, (k + 1) as f64).expect("in order");
        // 0, 10, 20, 30, 40, then anew 0, 10, …
        data.push(&falls, k * 15_000, (k % 5 * 10) as f64).expect("in order");
    }
    gives(&data, "increase(up_total[1m] anchored)", 125_000, &["{} 4"], &[]);
    gives(&data, "increase(up_total[1m] smoothed)", 125_000, &["{} 4"], &[]);
    gives(&data, "rate(up_total[1m] smoothed)", 125_000, &["{} 0.066666667"], &[]);
    gives(&data, "delta(up_total[1m] anchored)", 125_000, &["{} 4"], &[]);
    // Anchored: from the sample at 60 s (40) to that at 120 s (30), with one reset, at 75 s.
    gives(&data, "increase(falls_total[1m] anchored)", 125_000, &["{} 30"], &[]);
    gives(&data, "delta(falls_total[1m] anchored)", 125_000, &["{} -10"], &[]);
    gives(&data, "resets(falls_total[1m] anchored)", 125_000, &["{} 1"], &[]);
    gives(&data, "changes(falls_total[1m] anchored)", 125_000, &["{} 4"], &[]);
    gives(&data, "changes(falls_total[1m])", 125_000, &["{} 3"], &[]);
    // Smoothed: at 65 s a third of the way from 0 (it began anew) to 0; at 125 s 33.33.
    gives(&data, "increase(falls_total[1m] smoothed)", 125_000, &["{} 33.333333333"], &[]);
    gives(&data, "up_total smoothed", 125_000, &["up_total 9.333333333"], &[]);
    gives(&data, "up_total smoothed", 285_000, &["up_total 20"], &[]);
    gives(
        &data,
        "up_total[20s] smoothed",
        125_000,
        &["up_total @105000 8", "up_total @120000 9", "up_total @125000 9.333333333"],
        &[],
    );
    gives(&data, "increase(up_total[1m] anchored)", 5_000_000, &[], &[]);
    fails(
        &data,
        "sum_over_time(up_total[1m] anchored)",
        "anchored modifier can only be used with: changes, delta, increase, rate, resets - not with sum_over_time",
    );
    fails(
        &data,
        "changes(up_total[1m] smoothed)",
        "smoothed modifier can only be used with: delta, increase, rate - not with changes",
    );
}

#[test]
fn info_joins_by_job_and_instance() {
    let mut data = Memory::default();
    let l = |pairs: &[(&str, &str)]| Labels::of(pairs);
    let target = [("job", "a"), ("instance", "1")];
    let with = |name: &'static str, more: &[(&'static str, &'static str)]| {
        let mut all = vec![("__name__", name)];
        all.extend(target);
        all.extend_from_slice(more);
        l(&all)
    };
    data.push(&with("m", &[("x", "y")]), 90_000, 5.0).expect("in order");
    data.push(&l(&[("__name__", "m"), ("job", "b"), ("instance", "1")]), 90_000, 6.0).expect("in order");
    data.push(&with("target_info", &[("version", "1"), ("os", "linux")]), 80_000, 1.0).expect("in order");
    data.push(&with("target_info", &[("version", "2"), ("os", "linux")]), 95_000, 1.0).expect("in order");
    data.push(&with("build_info", &[("rev", "z")]), 95_000, 1.0).expect("in order");
    let other = r#"m{instance="1", job="b"} 6"#;
    let at = 100_000;
    gives(
        &data,
        "info(m)",
        at,
        &[r#"m{instance="1", job="a", os="linux", version="2", x="y"} 5"#, other],
        &[],
    );
    gives(
        &data,
        "info(m, {version=~\".+\"})",
        at,
        &[r#"m{instance="1", job="a", version="2", x="y"} 5"#],
        &[],
    );
    gives(
        &data,
        "info(m, {__name__=\"build_info\"})",
        at,
        &[r#"m{instance="1", job="a", rev="z", x="y"} 5"#, other],
        &[],
    );
    gives(
        &data,
        "info(m, {__name__=~\".*_info\", rev=~\".*\"})",
        at,
        &[r#"m{instance="1", job="a", rev="z", x="y"} 5"#, other],
        &[],
    );
    // At 90 s only the older one is there.
    gives(
        &data,
        "info(m offset 10s)",
        at,
        &[r#"m{instance="1", job="a", os="linux", version="1", x="y"} 5"#, other],
        &[],
    );
    gives(
        &data,
        "info(target_info{version=\"1\"})",
        at,
        &[r#"target_info{instance="1", job="a", os="linux", version="1"} 1"#],
        &[],
    );
    data.push(&with("target_info", &[("version", "3")]), 95_000, 1.0).expect("in order");
    fails(&data, "info(m)", "found duplicate series for info metric");
}

fn native(positive: &[(i32, f64)], hint: Hint) -> Point {
    let count = positive.iter().map(|b| b.1).sum();
    let h = Histogram { positive: positive.to_vec(), count, sum: count * 2.0, hint, ..Histogram::default() };
    Point::Histogram(Arc::new(h))
}

#[test]
fn histograms_among_numbers() {
    let mut data = Memory::default();
    let l = |name: &str, s: &str| Labels::of(&[("__name__", name), ("s", s)]);
    for k in 0..10i64 {
        let h = |n: i64, hint| native(&[(0, n as f64), (2, n as f64)], hint);
        data.put(&l("h", "1"), k * 10_000, h(k + 1, Hint::Unknown)).expect("in order");
        data.put(&l("g", "1"), k * 10_000, h(k + 1, Hint::Gauge)).expect("in order");
        let mixed = if k < 5 { Point::Number(k as f64) } else { h(k, Hint::Unknown) };
        data.put(&l("mixed", "1"), k * 10_000, mixed).expect("in order");
        data.push(&l("f", "1"), k * 10_000, k as f64).expect("in order");
        let custom = Histogram {
            schema: -53,
            bounds: [1.0, 5.0].into(),
            positive: vec![(0, k as f64)],
            count: k as f64,
            ..Histogram::default()
        };
        data.put(&l("c", "1"), k * 10_000, Point::Histogram(Arc::new(custom))).expect("in order");
        data.push(&l("h", "1").with("le", "1"), k * 10_000, k as f64).expect("in order");
    }
    let at = 90_000;
    let h = r#"h{s="1"}"#;
    gives(&data, "h{le=\"\"}", at, &["h{s=\"1\"} {count:20, sum:40, (0.5,1]:10, (2,4]:10}"], &[]);
    gives(&data, "-g", at, &["{s=\"1\"} {count:-20, sum:-40, (0.5,1]:-10, (2,4]:-10}"], &[]);
    gives(&data, "g * 2", at, &["{s=\"1\"} {count:40, sum:80, (0.5,1]:20, (2,4]:20}"], &[]);
    gives(&data, "0.5 * g / 2", at, &["{s=\"1\"} {count:5, sum:10, (0.5,1]:2.5, (2,4]:2.5}"], &[]);
    let op = |text: &str, what: &str| {
        let words = format!("incompatible sample types encountered for binary operator {what}");
        gives(&data, text, at, &[], &[&words]);
    };
    op("g + 1", r#""+": histogram + float"#);
    op("1 - g", r#""-": float - histogram"#);
    op("g > bool g", r#"">": histogram > histogram"#);
    op("2 ^ g", r#""^": float ^ histogram"#);
    gives(&data, "g == g", at, &["g{s=\"1\"} {count:20, sum:40, (0.5,1]:10, (2,4]:10}"], &[]);
    gives(&data, "g != bool g", at, &["{s=\"1\"} 0"], &[]);
    gives(&data, "g - ignoring (x) h{le=\"\"}", at, &["{s=\"1\"} {count:0, sum:0}"], &[]);
    gives(&data, "g + on (s) c", at, &[], &["mix of histograms with exponential and custom buckets"]);
    gives(&data, "histogram_count(g >/ 1) + histogram_sum(g >/ 1)", at, &["{s=\"1\"} 38.284271247"], &[]);
    gives(&data, "histogram_count(g </ 1) + histogram_sum(g </ 1)", at, &["{s=\"1\"} 17.071067812"], &[]);
    // Sums and means, of one kind only.
    gives(
        &data,
        "sum({__name__=~\"f|g\"})",
        at,
        &[],
        &["mix of histograms and floats for aggregation (1:5)"],
    );
    gives(
        &data,
        "avg({__name__=~\"g|h\",le=\"\"})",
        at,
        &["{} {count:20, sum:40, (0.5,1]:10, (2,4]:10}"],
        &[],
    );
    gives(
        &data,
        "sum({__name__=~\"g|c\"})",
        at,
        &[],
        &["mix of histograms with exponential and custom buckets"],
    );
    gives(&data, "count({__name__=~\"f|g\"})", at, &["{} 2"], &[]);
    gives(&data, "max({__name__=~\"f|g\"})", at, &["{} 9"], &["ignored histogram in max aggregation"]);
    gives(
        &data,
        "topk(5, {__name__=~\"f|g\"})",
        at,
        &["f{s=\"1\"} 9"],
        &["ignored histogram in topk aggregation"],
    );
    gives(&data, "quantile(0.5, g)", at, &[], &["ignored histogram in quantile aggregation"]);
    gives(&data, "count_values(\"v\", c)", at, &["{v=\"{count:9, sum:0, [-Inf,1]:9}\"} 1"], &[]);
    // Over ranges.
    gives(&data, "increase(h{le=\"\"}[80s])", at, &["{s=\"1\"} {count:16, sum:32, (0.5,1]:8, (2,4]:8}"], &[]);
    gives(
        &data,
        "rate(g[1m])",
        at,
        &["{s=\"1\"} {count:0.2, sum:0.4, (0.5,1]:0.1, (2,4]:0.1}"],
        &["not a counter: \"g\" (1:6)"],
    );
    gives(
        &data,
        "delta(h{le=\"\"}[1m])",
        at,
        &["{s=\"1\"} {count:12, sum:24, (0.5,1]:6, (2,4]:6}"],
        &["not a gauge: \"h\" (1:7)"],
    );
    gives(&data, "idelta(g[1m])", at, &["{s=\"1\"} {count:2, sum:4, (0.5,1]:1, (2,4]:1}"], &[]);
    gives(
        &data,
        "irate(h{le=\"\"}[1m])",
        at,
        &["{s=\"1\"} {count:0.2, sum:0.4, (0.5,1]:0.1, (2,4]:0.1}"],
        &[],
    );
    gives(&data, "sum_over_time(g[30s])", at, &["{s=\"1\"} {count:54, sum:108, (0.5,1]:27, (2,4]:27}"], &[]);
    gives(&data, "avg_over_time(g[30s])", at, &["{s=\"1\"} {count:18, sum:36, (0.5,1]:9, (2,4]:9}"], &[]);
    gives(&data, "count_over_time(mixed[2m])", at, &["{s=\"1\"} 10"], &[]);
    gives(
        &data,
        "rate(mixed[2m])",
        at,
        &[],
        &["mix of histograms and floats for metric name \"mixed\" (1:6)"],
    );
    gives(&data, "sum_over_time(mixed[2m])", at, &[], &["mix of histograms and floats for metric name"]);
    gives(
        &data,
        "max_over_time(mixed[2m])",
        at,
        &["{s=\"1\"} 4"],
        &["ignored histograms in a range containing both"],
    );
    gives(&data, "max_over_time(g[2m])", at, &[], &[]);
    gives(&data, "changes(mixed[2m])", at, &["{s=\"1\"} 9"], &[]);
    gives(&data, "resets(mixed[2m])", at, &["{s=\"1\"} 1"], &[]);
    gives(
        &data,
        "rate(h{le=\"\"}[1m] smoothed)",
        85_000,
        &["{s=\"1\"} {count:0.2, sum:0.4, (0.5,1]:0.1, (2,4]:0.1}"],
        &[],
    );
    gives(
        &data,
        "increase(h{le=\"\"}[1m] anchored)",
        85_000,
        &["{s=\"1\"} {count:12, sum:24, (0.5,1]:6, (2,4]:6}"],
        &[],
    );
    // Functions.
    gives(&data, "abs(g)", at, &[], &[]);
    gives(&data, "timestamp(g)", at, &["{s=\"1\"} 90"], &[]);
    gives(&data, "histogram_count({__name__=~\"f|g\"})", at, &["{s=\"1\"} 20"], &[]);
    gives(&data, "histogram_avg(g)", at, &["{s=\"1\"} 2"], &[]);
    gives(&data, "histogram_quantile(0.25, g)", at, &["{s=\"1\"} 0.707106781"], &[]);
    gives(&data, "histogram_fraction(0, 1, g)", at, &["{s=\"1\"} 0.5"], &[]);
    gives(
        &data,
        "histogram_quantile(0.5, h)",
        at,
        &[],
        &["vector contains a mix of classic and native histograms for metric name \"h\""],
    );
    gives(&data, "sort(g)", at, &[], &[]);
    gives(&data, "scalar(g)", at, &["Scalar(90000, NaN)"], &[]);
    gives(
        &data,
        "label_replace(g, \"a\", \"b\", \"\", \"\")",
        at,
        &["g{a=\"b\", s=\"1\"} {count:20, sum:40, (0.5,1]:10, (2,4]:10}"],
        &[],
    );
    gives(&data, "g unless f or c", at, &["c{s=\"1\"} {count:9, sum:0, [-Inf,1]:9}"], &[]);
    assert!(ask(&data, h, at).notes.warnings.is_empty());
}

#[test]
fn nodes_are_explained_and_equal_ones_computed_once() {
    let mut data = Memory::default();
    for s in ["1", "2", "3"] {
        for k in 0..100 {
            data.push(&Labels::of(&[("__name__", "a_total"), ("s", s)]), k * 10_000, k as f64)
                .expect("in order");
        }
    }
    let ticks = std::cell::Cell::new(0);
    let clock = || {
        ticks.set(ticks.get() + 1);
        ticks.get()
    };
    let text =
        "sum(rate(a_total[5m])) / (sum(rate(a_total[5m])) + sum(rate(a_total[5m]) > 100)) or vector(1)";
    let e = parse(text).expect("query");
    let (q, cancel) = (query((600_000, 660_000, 30_000)), Cancel::default());
    let (answer, node) = nightlight::engine::explain(&data, text, &e, q, &cancel, &clock).expect("answer");
    // Every series is read once, though the rate is there three times.
    assert_eq!(answer.stats.series, 3, "{}", node.table(1, "ticks"));
    assert_eq!(node.samples, answer.stats.samples);
    fn all<'n>(n: &'n Node, text: &str, out: &mut Vec<&'n Node>) {
        if n.text == text {
            out.push(n);
        }
        n.children.iter().for_each(|c| all(c, text, out));
    }
    for (text, series) in [("sum(rate(a_total[5m]))", 1), ("rate(a_total[5m])", 3)] {
        let mut found = Vec::new();
        all(&node, text, &mut found);
        let shared: Vec<bool> = found.iter().map(|n| n.shared).collect();
        assert_eq!(shared.iter().filter(|s| !**s).count(), 1, "{}", node.table(1, "ticks"));
        assert!(shared.len() == 2 && found.iter().all(|n| n.series == series && n.bytes >= series * 27));
        assert!(found.iter().all(|n| n.shared || n.time > 0));
    }
    // The same answer as without looking.
    let plain = run(&data, text, &e, q, &Cancel::default()).expect("answer");
    assert_eq!((plain.value, plain.notes), (answer.value, answer.notes));
    // Memory is bounded by bytes.
    let mut little = q;
    little.limits = little.limits.of_bytes(90);
    let refused = run(&data, "a_total", &parse("a_total").expect("query"), little, &Cancel::default());
    assert!(refused.is_ok(), "three series of three points are 81 bytes");
    little.limits = little.limits.of_bytes(80);
    let refused = run(&data, "a_total", &parse("a_total").expect("query"), little, &Cancel::default());
    assert!(refused.is_err_and(|e| e.to_string().contains("too many samples into memory")));
}
