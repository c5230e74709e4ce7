//! What can be told of the observations: quantiles, fractions, spread. Between the bounds of a bucket they are taken
//! to be spread evenly over the logarithm; evenly in the bucket around zero and between listed bounds.

use super::{Bucket, Histogram};

/// What NaN among the observations does to an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nan {
    /// There is none, or it does not matter.
    Absent,
    /// The quantile falls on one.
    Result,
    /// The quantile is higher than it would be without.
    Skewed,
}

/// The bucket around zero reaches only to the side where other buckets are.
pub(super) fn zero_of(h: &Histogram) -> Bucket {
    one_sided(h, h.zero())
}

fn one_sided(h: &Histogram, mut b: Bucket) -> Bucket {
    if b.lower < 0.0 && b.upper > 0.0 && !h.is_custom() {
        match (h.negative.is_empty(), h.positive.is_empty()) {
            (true, false) => b.lower = 0.0,
            (false, true) => b.upper = 0.0,
            _ => {}
        }
    }
    b
}

/// Which part of a bucket is below `v`, for `v` within its bounds.
pub(super) fn below(b: &Bucket, v: f64, custom: bool) -> f64 {
    if b.lower.is_infinite() || b.upper.is_infinite() {
        return if b.lower.is_infinite() { 0.0 } else { 1.0 };
    }
    if custom || (b.lower <= 0.0 && b.upper >= 0.0) {
        return (v - b.lower) / (b.upper - b.lower);
    }
    let (lower, upper, v) = (b.lower.abs().log2(), b.upper.abs().log2(), v.abs().log2());
    if b.lower > 0.0 { (v - lower) / (upper - lower) } else { 1.0 - (v - upper) / (lower - upper) }
}

/// The value that stands for all observations of a bucket.
pub(super) fn middle(b: &Bucket, custom: bool) -> f64 {
    if custom {
        return (b.upper + b.lower) / 2.0;
    }
    if b.lower <= 0.0 && b.upper >= 0.0 {
        return 0.0;
    }
    let m = (b.upper * b.lower).sqrt();
    if b.upper < 0.0 { -m } else { m }
}

/// The φ-quantile, and what NaN did to it.
pub fn quantile(q: f64, h: &Histogram) -> (f64, Nan) {
    if q < 0.0 {
        return (f64::NEG_INFINITY, Nan::Absent);
    }
    if q > 1.0 {
        return (f64::INFINITY, Nan::Absent);
    }
    if h.count == 0.0 || q.is_nan() {
        return (f64::NAN, Nan::Absent);
    }
    let mut all = h.buckets();
    let total: f64 = all.iter().map(|b| b.count).sum();
    // Observations of NaN are in no bucket: then ranks count from below.
    let nan = h.sum.is_nan() && total < h.count;
    let forward = h.sum.is_nan() || q < 0.5;
    let mut rank = if forward { q * h.count } else { (1.0 - q) * h.count };
    if !forward {
        all.reverse();
    }
    let mut count = 0.0;
    let mut at = None;
    for b in &all {
        count += b.count;
        at = Some(*b);
        if count >= rank {
            break;
        }
    }
    let Some(b) = at else { return (f64::NAN, if nan { Nan::Result } else { Nan::Absent }) };
    let mut b = one_sided(h, b);
    let count = count.min(h.count);
    if count < rank {
        return if nan { (f64::NAN, Nan::Result) } else { (b.upper, Nan::Absent) };
    }
    let said = if nan { Nan::Skewed } else { Nan::Absent };
    if h.is_custom() {
        if b.lower == f64::NEG_INFINITY {
            if b.upper <= 0.0 {
                return (b.upper, said);
            }
            b.lower = 0.0;
        } else if b.upper == f64::INFINITY {
            return (b.lower, said);
        }
    }
    rank = if forward { rank - (count - b.count) } else { count - rank };
    let part = rank / b.count;
    if h.is_custom() || (b.lower <= 0.0 && b.upper >= 0.0) {
        return (b.lower + (b.upper - b.lower) * part, said);
    }
    let (lower, upper) = (b.lower.abs().log2(), b.upper.abs().log2());
    let v = if b.lower > 0.0 {
        (lower + (upper - lower) * part).exp2()
    } else {
        -(upper + (lower - upper) * (1.0 - part)).exp2()
    };
    (v, said)
}

/// The part of all observations between two values, and whether there was NaN among them.
pub fn fraction(lower: f64, upper: f64, h: &Histogram) -> (f64, bool) {
    if h.count == 0.0 || lower.is_nan() || upper.is_nan() {
        return (f64::NAN, false);
    }
    let all = h.buckets();
    let total: f64 = all.iter().map(|b| b.count).sum();
    let nan = h.sum.is_nan() && total < h.count;
    if lower >= upper {
        return (0.0, nan);
    }
    let rank = |v: f64| -> f64 {
        let mut rank = 0.0;
        for b in &all {
            let mut b = one_sided(h, *b);
            if h.is_custom() && b.lower == f64::NEG_INFINITY && b.upper > 0.0 {
                b.lower = 0.0;
            }
            if b.lower >= v {
                return rank;
            }
            if b.upper > v {
                return rank + b.count * below(&b, v, h.is_custom());
            }
            rank += b.count;
        }
        if nan { total } else { h.count }
    };
    let (low, high) = (rank(lower).min(h.count), rank(upper).min(h.count));
    ((high - low) / h.count, nan)
}

/// Variance, every observation in the middle of its bucket.
pub fn stdvar(h: &Histogram) -> f64 {
    let mean = h.sum / h.count;
    let all = h.buckets();
    let apart = |b: &Bucket| {
        let d = middle(b, h.is_custom()) - mean;
        b.count * d * d
    };
    all.iter().map(apart).sum::<f64>() / h.count
}
