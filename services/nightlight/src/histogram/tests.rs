//! Histograms with values worked out by hand or known from Prometheus' documentation, and laws that hold for all.

use super::*;
use proptest::prelude::*;

fn h(schema: i8, positive: &[(i32, f64)]) -> Histogram {
    let count = positive.iter().map(|b| b.1).sum();
    Histogram { schema, positive: positive.to_vec(), count, sum: 5.0, ..Histogram::default() }
}

fn custom(bounds: &[f64], counts: &[(i32, f64)]) -> Histogram {
    Histogram { bounds: bounds.into(), ..h(CUSTOM, counts) }
}

#[test]
fn bounds_are_powers() {
    assert_eq!(exponential(0, 0), 1.0);
    assert_eq!(exponential(3, 0), 8.0);
    assert_eq!(exponential(-2, -1), 1.0 / 16.0);
    assert_eq!(exponential(1, 1), std::f64::consts::SQRT_2);
    assert_eq!(exponential(-4, 2), 0.5);
    assert_eq!(exponential(1024, 0), f64::MAX);
    assert_eq!(exponential(1025, 0), f64::INFINITY);
    assert_eq!(exponential(-1074, 0), f64::from_bits(1));
    assert_eq!(exponential(i32::MIN, -4), 0.0);
    assert_eq!(exponential(i32::MAX, -4), f64::INFINITY);
}

#[test]
fn quantiles_fractions_and_spread() {
    let one = h(0, &[(0, 1.0), (1, 2.0), (2, 1.0)]);
    assert!((quantile(0.5, &one).0 - std::f64::consts::SQRT_2).abs() < 1e-12);
    assert_eq!(quantile(1.0, &one).0, 4.0);
    assert_eq!(quantile(0.0, &one).0, 0.5);
    assert_eq!(quantile(-1.0, &one).0, f64::NEG_INFINITY);
    assert_eq!(quantile(1.1, &one).0, f64::INFINITY);
    assert!(quantile(0.5, &Histogram::default()).0.is_nan());
    assert_eq!(fraction(1.0, 2.0, &one).0, 0.5);
    assert_eq!(fraction(f64::NEG_INFINITY, 1.0, &one).0, 0.25);
    assert!((fraction(f64::NEG_INFINITY, 2f64.sqrt(), &one).0 - 0.5).abs() < 1e-12);
    assert_eq!(fraction(3.0, 1.0, &one).0, 0.0);
    // Observations at √½, √2 (twice) and √8; their sum is said to be 5.
    let wanted: f64 = [0.5f64, 2.0, 2.0, 8.0].iter().map(|x| (x.sqrt() - 1.25).powi(2)).sum::<f64>() / 4.0;
    assert!((stdvar(&one) - wanted).abs() < 1e-12);
    // The bucket around zero reaches to one side only, and is filled evenly.
    let zero = Histogram { zero_count: 2.0, zero_threshold: 0.5, count: 3.0, ..h(0, &[(1, 1.0)]) };
    assert!((quantile(1.0 / 3.0, &zero).0 - 0.25).abs() < 1e-12);
    // The sum is NaN and a bucket is missing: somebody observed NaN.
    let nan = Histogram { sum: f64::NAN, count: 5.0, ..one };
    assert_eq!(quantile(0.9, &nan).1, Nan::Result);
    assert_eq!(quantile(0.5, &nan).1, Nan::Skewed);
    let listed = custom(&[1.0, 2.0, 5.0], &[(0, 2.0), (1, 2.0), (3, 4.0)]);
    assert_eq!(quantile(0.125, &listed).0, 0.5);
    assert_eq!(quantile(0.375, &listed).0, 1.5);
    assert_eq!(quantile(0.9, &listed).0, 5.0);
    assert_eq!(fraction(0.5, 1.5, &listed).0, 0.25);
}

#[test]
fn texts() {
    let all = Histogram {
        zero_count: 2.0,
        zero_threshold: 0.001,
        negative: vec![(0, 1.0), (1, 3.0)],
        count: 1e6,
        ..h(0, &[(0, 1.0)])
    };
    assert_eq!(all.to_string(), "{count:1e+06, sum:5, [-2,-1):3, [-1,-0.5):1, [-0.001,0.001]:2, (0.5,1]:1}");
    let number = |v: f64| crate::promql::number(v);
    assert_eq!(
        all.json(&number),
        r#"{"count":"1000000","sum":"5","buckets":[[1,"-2","-1","3"],[1,"-1","-0.5","1"],[3,"-0.001","0.001","2"],[0,"0.5","1","1"]]}"#
    );
    assert_eq!(Histogram::default().json(&number), r#"{"count":"0","sum":"0"}"#);
    assert_eq!(custom(&[1.0], &[(0, 1.0), (1, 2.0)]).to_string(), "{count:3, sum:5, [-Inf,1]:1, (1,+Inf]:2}");
    for (v, text) in
        [(123_456.0, "123456"), (1e-5, "1e-05"), (0.0001, "0.0001"), (-0.0, "-0"), (2.5e20, "2.5e+20")]
    {
        assert_eq!(go_float(v), text);
    }
}

#[test]
fn resets_are_seen() {
    let before = h(1, &[(0, 3.0), (4, 2.0)]);
    let more = h(1, &[(0, 3.0), (2, 1.0), (4, 2.0)]);
    assert!(!more.is_reset_after(&before) && before.is_reset_after(&more));
    assert!(h(1, &[(0, 9.0)]).is_reset_after(&before), "a bucket is gone");
    assert!(!more.reduced(0).is_reset_after(&before), "coarser");
    assert!(more.is_reset_after(&before.reduced(0)), "finer");
    assert!(Histogram { hint: Hint::Reset, ..more.clone() }.is_reset_after(&before));
    assert!(!Histogram { hint: Hint::NotReset, ..before.clone() }.is_reset_after(&more));
    let wide = Histogram { zero_threshold: 2.0, zero_count: 3.0, ..h(1, &[(4, 5.0)]) };
    assert!(
        !Histogram { count: 8.0, ..wide.clone() }.is_reset_after(&before),
        "what was near is in the bucket around zero"
    );
    assert!(Histogram { zero_count: 2.0, count: 8.0, ..wide }.is_reset_after(&before));
    assert!(custom(&[1.0], &[(0, 9.0)]).is_reset_after(&before));
    let (a, b) = (custom(&[1.0, 2.0], &[(0, 1.0), (1, 1.0)]), custom(&[2.0, 3.0], &[(0, 2.0)]));
    assert!(!b.is_reset_after(&a), "over the bound that both have nothing fell");
    assert!(custom(&[2.0], &[(0, 1.0), (1, 1.0)]).is_reset_after(&a));
}

#[test]
fn sums_of_unlike_histograms() {
    let mut a = h(2, &[(1, 1.0), (2, 1.0)]);
    assert_eq!(a.add(&h(0, &[(1, 4.0)])), Ok(Added::default()));
    assert_eq!((a.schema, a.positive.clone(), a.count, a.sum), (0, vec![(1, 6.0)], 6.0, 10.0));
    assert_eq!(a.add(&custom(&[1.0], &[(0, 1.0)])), Err(Incompatible));
    // The threshold of 0.7 would cut the bucket that ends at 1: it grows to it.
    let mut a = h(0, &[(0, 1.0), (1, 1.0)]);
    let other = Histogram { zero_threshold: 0.7, zero_count: 2.0, count: 2.0, ..h(0, &[]) };
    assert!(a.add(&other).is_ok());
    assert_eq!((a.zero_threshold, a.zero_count, a.positive.clone()), (1.0, 3.0, vec![(1, 1.0)]));
    let mut a = custom(&[1.0, 2.0, 3.0], &[(0, 1.0), (1, 1.0), (2, 1.0), (3, 1.0)]);
    let said = a.add(&custom(&[2.0, 4.0], &[(0, 10.0), (2, 5.0)]));
    assert_eq!(said, Ok(Added { reconciled: true, collision: false }));
    assert_eq!((a.bounds.to_vec(), a.positive.clone()), (vec![2.0], vec![(0, 12.0), (1, 7.0)]));
    let mut a = Histogram { hint: Hint::Reset, ..h(0, &[]) };
    let said = a.add(&Histogram { hint: Hint::NotReset, ..h(0, &[]) });
    assert_eq!(said, Ok(Added { reconciled: false, collision: true }));
    let mut a = h(0, &[(1, 2.0)]);
    a.div(0.0);
    assert!(a.positive.is_empty() && a.count.is_infinite());
}

#[test]
fn trimming_keeps_shares() {
    let all = h(0, &[(0, 4.0), (1, 4.0), (2, 4.0)]);
    assert_eq!(all.trimmed(2.0, true).positive, [(0, 4.0), (1, 4.0)]);
    assert_eq!(all.trimmed(2.0, false).positive, [(2, 4.0)]);
    let cut = all.trimmed(2f64.sqrt(), true);
    assert!((cut.count - 6.0).abs() < 1e-9, "{cut}");
}

fn parts() -> Parts {
    Parts {
        schema: 1,
        hint: Hint::Unknown,
        zero_threshold: 0.001,
        zero_count: 1.0,
        count: 7.0,
        sum: 3.0,
        positive: (
            vec![Span { offset: -1, length: 2 }, Span { offset: 2, length: 1 }],
            Counts::Deltas(vec![2, -1, 1]),
        ),
        negative: (vec![Span { offset: 0, length: 1 }], Counts::Deltas(vec![1])),
        bounds: Vec::new(),
    }
}

#[test]
fn senders_are_checked() {
    let good = Histogram::from_parts(parts()).expect("good");
    assert_eq!((good.positive, good.negative), (vec![(-1, 2.0), (0, 1.0), (3, 2.0)], vec![(0, 1.0)]));
    let fails = |change: &dyn Fn(&mut Parts), words: &str| {
        let mut p = parts();
        change(&mut p);
        let e = Histogram::from_parts(p).expect_err(words);
        assert!(e.contains(words), "{e}");
    };
    fails(
        &|p| p.positive.0[1].offset = -1,
        "positive side: span number 2 with offset -1: histogram has a span whose offset is negative",
    );
    fails(
        &|p| p.positive.0[1].length = 2,
        "positive side: spans need 4 buckets, have 3 buckets: histogram spans specify different number of buckets than provided",
    );
    fails(
        &|p| p.negative.1 = Counts::Deltas(vec![-1]),
        "negative side: bucket number 1 has observation count of -1: histogram has a bucket whose observation count is negative",
    );
    fails(
        &|p| p.count = 8.0,
        "7 observations found in buckets, but the Count field is 8: histogram's observation count should equal",
    );
    fails(&|p| p.schema = 53, "histogram has an invalid schema: 53");
    fails(&|p| p.schema = -5, "histogram has an invalid schema: -5");
    fails(&|p| p.bounds = vec![1.0], "histogram with exponential schema must not have custom bounds");
    fails(&|p| p.positive.0[0].length = u32::MAX, "spans need");
    fails(&|p| p.positive.1 = Counts::Deltas(vec![i64::MAX, i64::MAX, 1]), "beyond 2^53");
    fails(&|p| p.positive.0[0].offset = i32::MAX, "index is too great");
    let list = |bounds: &[f64]| {
        Histogram::from_parts(Parts {
            schema: -53,
            zero_threshold: 0.0,
            zero_count: 0.0,
            count: 2.0,
            positive: (vec![Span { offset: 0, length: 2 }], Counts::Deltas(vec![1, 0])),
            negative: (Vec::new(), Counts::Deltas(Vec::new())),
            bounds: bounds.to_vec(),
            ..parts()
        })
    };
    assert!(list(&[1.0]).is_ok());
    assert!(list(&[]).is_err_and(|e| e.ends_with("histogram custom bounds are too few")));
    assert!(list(&[1.0, 1.0]).is_err_and(|e| e.contains("strictly increasing")));
    assert!(list(&[f64::INFINITY]).is_err_and(|e| e.contains("must be finite")));
    let fine =
        Histogram::from_parts(Parts { schema: 10, zero_count: 0.0, count: 6.0, ..parts() }).expect("fine");
    assert_eq!((fine.schema, fine.count), (8, 6.0));
}

fn any_histogram() -> impl Strategy<Value = Histogram> {
    let side = || prop::collection::btree_map(-30i32..30, 1u32..1000, 0..12);
    (-4i8..=8, side(), side(), 0u32..50).prop_map(|(schema, positive, negative, zero)| {
        let side = |b: std::collections::BTreeMap<i32, u32>| -> Buckets {
            b.into_iter().map(|(i, c)| (i, f64::from(c))).collect()
        };
        let (positive, negative) = (side(positive), side(negative));
        let zero_count = f64::from(zero);
        let count = zero_count + positive.iter().chain(&negative).map(|b| b.1).sum::<f64>();
        Histogram { schema, positive, negative, zero_count, count, sum: 1.0, ..Histogram::default() }
    })
}

proptest! {
    #[test]
    fn adding_and_taking_away(a in any_histogram(), b in any_histogram()) {
        let mut sum = a.clone();
        prop_assert!(sum.add(&b).is_ok());
        let inside = sum.zero_count + sum.positive.iter().chain(&sum.negative).map(|b| b.1).sum::<f64>();
        prop_assert_eq!(inside, sum.count);
        let mut other = b.clone();
        prop_assert!(other.add(&a).is_ok());
        prop_assert!(sum.same(&other));
        prop_assert!(!sum.is_reset_after(&a.reduced(sum.schema)));
        let mut back = sum.clone();
        prop_assert!(back.sub(&b).is_ok());
        prop_assert!(back.same(&a.reduced(back.schema)));
    }

    #[test]
    fn quantiles_and_fractions_are_inverse(a in any_histogram(), q in 0.01f64..0.99) {
        prop_assume!(a.count > 0.0);
        let v = quantile(q, &a).0;
        let back = fraction(f64::NEG_INFINITY, v, &a).0;
        // A bucket around zero of no width holds all its observations at once.
        prop_assert!((back - q).abs() < 1e-6 || v == 0.0 || a.bound(0) == 0.0, "{q} {v} {back} {a}");
    }
}
