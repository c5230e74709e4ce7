//! Queries that ask for too much: each ends, on a stack and within limits that are fixed.

use nightlight::{
    engine::{Answer, Cancel, Each, Error, Limits, Memory, Query, Samples, Storage, Value, run},
    labels::{Labels, Matcher, NAME},
    promql::parse,
};

fn data(series: u32) -> Memory {
    let mut all = Memory::default();
    for i in 0..series {
        let labels = Labels::of(&[(NAME, "x"), ("i", &i.to_string())]);
        for k in 0..10 {
            all.push(&labels, k * 15_000, f64::from(i)).expect("in order");
        }
    }
    all
}

fn ask(data: &dyn Storage, text: &str, query: Query) -> Result<Answer, Error> {
    run(data, text, &parse(text).expect("a query"), query, &Cancel::default())
}

#[test]
fn the_highest_trees_fit_the_stack() {
    let data = data(3);
    let query = Query::range(0, 150_000, 15_000);
    for (left, middle, right, n) in [
        ("", "x", " + 1", 240),
        ("", "x", " or x", 240),
        ("", "x", " * on (i) x", 240),
        ("", "1", " + 1", 240),
        ("abs(", "x", ")", 90),
        ("-(", "x", ")", 45),
        ("sum(", "x", ")", 90),
        ("label_replace(", "x", ", 'a', 'b', 'c', 'd')", 90),
        ("max_over_time(", "x", "[1m:30s])", 20),
    ] {
        let text = format!("{}{middle}{}", left.repeat(n), right.repeat(n));
        match ask(&data, &text, query).map(|a| a.value) {
            Ok(Value::Matrix(m)) => assert!(!m.is_empty(), "{left}{middle}{right}"),
            other => panic!("{left}{middle}{right}: {other:?}"),
        }
    }
}

#[test]
fn limits_hold() {
    let data = data(100);
    let query = Query::range(0, 150_000, 1000);
    let within = |samples, points| Query { limits: Limits { samples, points }, ..query };
    assert!(ask(&data, "x", within(1000, 100_000)).is_ok());
    // 100 series of 10 samples.
    let e = ask(&data, "sum(rate(x[1m]))", within(999, 100_000)).expect_err("samples");
    assert!(matches!(&e, Error::Limit(m) if m.contains("more than 999 samples")), "{e}");
    let e = ask(&data, "x", within(1000, 5000)).expect_err("points");
    assert!(matches!(&e, Error::Limit(m) if m.contains("too many samples into memory")), "{e}");
    // A sum holds one column however many series flow through it.
    assert!(ask(&data, "sum(rate(x[1m]))", within(1000, 500)).is_ok());
    assert!(ask(&data, "topk(1, x)", within(1000, 500)).is_err());
    let e = ask(&data, "max_over_time(x[100y:1ms])", query).expect_err("steps");
    assert!(matches!(&e, Error::Limit(m) if m.contains("steps")), "{e}");
    assert!(ask(&data, "x", Query::range(0, 11_000_000, 1000)).is_err());
}

/// Samples without end; the query is given up at the hundredth series.
struct Endless(Cancel);

impl Storage for Endless {
    fn select(&self, _: &[Matcher], _: i64, to_ms: i64, each: Each<'_>) -> Result<(), Error> {
        for i in 0u64.. {
            if i == 100 {
                self.0.cancel();
            }
            assert!(i < 102, "the query went on");
            let labels = Labels::of(&[(NAME, "x"), ("i", &i.to_string())]);
            each(&labels, &Samples::numbers(vec![to_ms], vec![1.0]))?;
        }
        Ok(())
    }
}

#[test]
fn a_query_can_be_given_up() {
    let cancel = Cancel::default();
    let e = parse("sum(x)").expect("a query");
    let got = run(&Endless(cancel.clone()), "sum(x)", &e, Query::instant(5), &cancel);
    assert_eq!(got, Err(Error::Cancelled));
}
