//! Histograms as senders hand them over: runs of buckets, counts absolute or as differences. What Prometheus refuses
//! is refused in its words.

use super::{BUCKETS_MAX, Buckets, CUSTOM, Hint, Histogram};

/// Integers up to here are exact in an `f64`.
const EXACT: u64 = 1 << 53;

/// A run of buckets: how far it begins after the one before, and how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Buckets left out before it; for the first run the index it begins at.
    pub offset: i32,
    /// How many.
    pub length: u32,
}

/// Counts of buckets.
#[derive(Clone, Debug, PartialEq)]
pub enum Counts {
    /// Each as the difference to the one before.
    Deltas(Vec<i64>),
    /// Each as it is.
    Absolute(Vec<f64>),
}

/// The parts of a histogram.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "they are those of Histogram")]
pub struct Parts {
    pub schema: i32,
    pub hint: Hint,
    pub zero_threshold: f64,
    pub zero_count: f64,
    pub count: f64,
    pub sum: f64,
    pub positive: (Vec<Span>, Counts),
    pub negative: (Vec<Span>, Counts),
    pub bounds: Vec<f64>,
}

fn side(name: &str, spans: &[Span], counts: &Counts) -> Result<(Buckets, f64, bool), String> {
    let wrong = |why: String| Err(format!("{name} side: {why}"));
    for (i, s) in spans.iter().enumerate().skip(1) {
        if s.offset < 0 {
            let (n, o) = (i + 1, s.offset);
            return wrong(format!(
                "span number {n} with offset {o}: histogram has a span whose offset is negative"
            ));
        }
    }
    let need = spans.iter().map(|s| u64::from(s.length)).sum::<u64>();
    let (have, integer) = match counts {
        Counts::Deltas(d) => (d.len(), true),
        Counts::Absolute(c) => (c.len(), false),
    };
    if need != have as u64 {
        return wrong(format!(
            "spans need {need} buckets, have {have} buckets: histogram spans specify different number of buckets than provided"
        ));
    }
    if have > BUCKETS_MAX {
        return wrong(format!("{have} buckets, at most {BUCKETS_MAX} are taken"));
    }
    let mut out = Buckets::new();
    let (mut index, mut at, mut running, mut total) = (0i64, 0, 0i64, 0.0);
    for s in spans {
        index += i64::from(s.offset);
        for _ in 0..s.length {
            let count = match counts {
                Counts::Deltas(d) => {
                    running = running
                        .checked_add(d[at])
                        .filter(|c| c.unsigned_abs() <= EXACT)
                        .ok_or_else(|| format!("{name} side: a count is beyond 2^53"))?;
                    running as f64
                }
                Counts::Absolute(c) => c[at],
            };
            at += 1;
            if count < 0.0 {
                return wrong(format!(
                    "bucket number {at} has observation count of {}: histogram has a bucket whose observation count is negative",
                    super::go_float(count)
                ));
            }
            let Ok(i) = i32::try_from(index) else { return wrong("a bucket's index is too great".into()) };
            if count != 0.0 {
                out.push((i, count));
            }
            total += count;
            index += 1;
        }
    }
    Ok((out, total, integer))
}

impl Histogram {
    /// From its parts, checked.
    pub fn from_parts(p: Parts) -> Result<Self, String> {
        if p.schema != i32::from(CUSTOM) && !(-4..=52).contains(&p.schema) {
            return Err(format!("histogram has an invalid schema: {}", p.schema));
        }
        let custom = p.schema == i32::from(CUSTOM);
        let (positive, above, integer) = side("positive", &p.positive.0, &p.positive.1)?;
        let (negative, below, whole) = side("negative", &p.negative.0, &p.negative.1)?;
        if custom {
            check_bounds(&p, &positive)?;
        } else if !p.bounds.is_empty() {
            return Err("histogram with exponential schema must not have custom bounds".into());
        }
        if !(p.zero_threshold >= 0.0 && p.zero_threshold.is_finite()) {
            return Err(format!("histogram has an invalid zero threshold: {}", p.zero_threshold));
        }
        if p.zero_count < 0.0 {
            return Err(format!(
                "zero bucket has observation count of {}: histogram has a bucket whose observation count is negative",
                p.zero_count
            ));
        }
        if p.count < 0.0 {
            return Err(format!(
                "observation count is {}: histogram's observation count is negative",
                p.count
            ));
        }
        let found = above + below + p.zero_count;
        let integer = integer && whole;
        let texts = (super::go_float(found), super::go_float(p.count));
        if integer && !crate::engine::is_stale(p.sum) {
            if p.sum.is_nan() && found > p.count {
                return Err(format!(
                    "{} observations found in buckets, but the Count field is {}: histogram's observation count should be at least the number of observations found in the buckets",
                    texts.0, texts.1
                ));
            }
            if !p.sum.is_nan() && found != p.count {
                return Err(format!(
                    "{} observations found in buckets, but the Count field is {}: histogram's observation count should equal the number of observations found in the buckets (in absence of NaN)",
                    texts.0, texts.1
                ));
            }
        }
        // Resolutions beyond 8 exist on the wire only.
        let schema = if custom { CUSTOM } else { p.schema.min(8) as i8 };
        let mut h = Histogram {
            schema: if custom { CUSTOM } else { p.schema as i8 },
            hint: p.hint,
            integer,
            zero_threshold: p.zero_threshold,
            zero_count: p.zero_count,
            count: p.count,
            sum: p.sum,
            positive,
            negative,
            bounds: p.bounds.into(),
        };
        h.reduce(schema);
        Ok(h)
    }
}

fn check_bounds(p: &Parts, positive: &Buckets) -> Result<(), String> {
    let wrong = |why: &str| Err(format!("custom buckets: {why}"));
    if p.zero_count != 0.0 {
        return wrong("must have zero count of 0");
    }
    if p.zero_threshold != 0.0 {
        return wrong("must have zero threshold of 0");
    }
    if !p.negative.0.is_empty() {
        return wrong("must not have negative spans");
    }
    if p.bounds.len() > BUCKETS_MAX {
        return wrong("too many bounds");
    }
    if !p.bounds.iter().all(|b| b.is_finite()) {
        return wrong("histogram custom bounds must be finite");
    }
    if !p.bounds.windows(2).all(|w| w[0] < w[1]) {
        return wrong("histogram custom bounds must be in strictly increasing order");
    }
    let begins = p.positive.0.first().is_some_and(|s| s.offset < 0);
    if begins || positive.last().is_some_and(|b| b.0 as usize > p.bounds.len()) {
        return wrong("histogram custom bounds are too few");
    }
    Ok(())
}
