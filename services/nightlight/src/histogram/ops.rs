//! Arithmetic, change of resolution, and whether a counter began anew.

use super::{Buckets, CUSTOM, Hint, Histogram, same_bits};
use std::sync::Arc;

/// Listed bounds and an exponential schema have no buckets in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot apply this operation on histograms with a mix of exponential and custom bucket schemas")]
pub struct Incompatible;

/// What is worth saying about a sum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Added {
    /// One side says that its counter began anew, the other that it did not.
    pub collision: bool,
    /// Listed bounds differed: only those that both have are left.
    pub reconciled: bool,
}

/// `a + sign·b`, index by index.
fn merge(a: &Buckets, b: &Buckets, sign: f64) -> Buckets {
    let mut out = Buckets::with_capacity(a.len().max(b.len()));
    let (mut i, mut k) = (0, 0);
    loop {
        let next = match (a.get(i), b.get(k)) {
            (None, None) => return out,
            (Some(x), Some(y)) if x.0 == y.0 => {
                (i, k) = (i + 1, k + 1);
                (x.0, x.1 + sign * y.1)
            }
            (Some(x), y) if y.is_none_or(|y| x.0 < y.0) => {
                i += 1;
                *x
            }
            (_, Some(y)) => {
                k += 1;
                (y.0, sign * y.1)
            }
            (Some(x), None) => {
                i += 1;
                *x
            }
        };
        if next.1 != 0.0 {
            out.push(next);
        }
    }
}

/// Buckets under new indexes that rise where the old ones do.
fn regroup(b: &Buckets, to: impl Fn(i32) -> i32) -> Buckets {
    let mut out = Buckets::new();
    for (i, count) in b {
        let i = to(*i);
        match out.last_mut() {
            Some(last) if last.0 == i => last.1 += count,
            _ => out.push((i, *count)),
        }
    }
    out
}

/// Bounds that both lists have.
fn common(a: &[f64], b: &[f64]) -> Arc<[f64]> {
    let mut rest = b.iter().peekable();
    let mut both = |x: &f64| {
        while rest.next_if(|y| *y < x).is_some() {}
        rest.peek().is_some_and(|y| *y == x)
    };
    a.iter().copied().filter(|x| both(x)).collect()
}

impl Histogram {
    /// At a resolution that is not higher; histograms of listed bounds stay as they are.
    pub fn reduced(&self, schema: i8) -> Histogram {
        let mut out = self.clone();
        out.reduce(schema);
        out
    }

    pub(super) fn reduce(&mut self, schema: i8) {
        if self.schema == CUSTOM || schema >= self.schema {
            return;
        }
        let by = u32::from((i16::from(self.schema) - i16::from(schema)).unsigned_abs());
        let to = |i: i32| ((i64::from(i) - 1) >> by) as i32 + 1;
        self.positive = regroup(&self.positive, to);
        self.negative = regroup(&self.negative, to);
        self.schema = schema;
    }

    /// With fewer listed bounds, all of them among its own.
    fn rebounded(&self, bounds: &Arc<[f64]>) -> Histogram {
        let to = |i: i32| {
            let upper = self.bound(i);
            bounds.partition_point(|b| *b < upper) as i32
        };
        Histogram { positive: regroup(&self.positive, to), bounds: bounds.clone(), ..self.clone() }
    }

    /// How many observations a bucket around zero of this threshold would have; the threshold grows to the end of
    /// a bucket that holds something and would be cut.
    fn zero_count_for(&self, mut threshold: f64) -> (f64, f64) {
        if threshold == self.zero_threshold {
            return (self.zero_count, threshold);
        }
        'again: loop {
            let mut count = self.zero_count;
            for b in &self.positive {
                let b = self.above(*b);
                if b.lower >= threshold {
                    break;
                }
                count += b.count;
                if b.upper > threshold {
                    threshold = b.upper;
                    break;
                }
            }
            for b in &self.negative {
                let b = self.below(*b);
                if b.upper <= -threshold {
                    break;
                }
                count += b.count;
                if b.lower < -threshold {
                    threshold = -b.lower;
                    continue 'again;
                }
            }
            return (count, threshold);
        }
    }

    /// With a bucket around zero of at least this threshold.
    fn widen_zero(&mut self, threshold: f64) {
        let (count, threshold) = self.zero_count_for(threshold);
        (self.zero_count, self.zero_threshold) = (count, threshold);
        let keep = |b: &(i32, f64), h: &Histogram| h.above(*b).lower >= threshold;
        let (positive, negative) = (std::mem::take(&mut self.positive), std::mem::take(&mut self.negative));
        self.positive = positive.into_iter().filter(|b| keep(b, self)).collect();
        self.negative = negative.into_iter().filter(|b| keep(b, self)).collect();
    }

    fn hint_with(&mut self, other: Hint) -> bool {
        let (next, collision) = match (self.hint, other) {
            (a, b) if a == b => (a, false),
            (Hint::Gauge, _) | (_, Hint::Gauge) => (Hint::Gauge, false),
            (Hint::Unknown, _) | (_, Hint::Unknown) => (Hint::Unknown, false),
            _ => (Hint::Unknown, true),
        };
        self.hint = next;
        collision
    }

    /// Adds `sign` times the other. On an error nothing has changed.
    fn combine(&mut self, other: &Histogram, sign: f64) -> Result<Added, Incompatible> {
        if self.is_custom() != other.is_custom() {
            return Err(Incompatible);
        }
        let mut said = Added { collision: self.hint_with(other.hint), reconciled: false };
        let mut other = std::borrow::Cow::Borrowed(other);
        if self.is_custom() {
            if !same_bits(&self.bounds, &other.bounds) {
                let bounds = common(&self.bounds, &other.bounds);
                *self = self.rebounded(&bounds);
                other = std::borrow::Cow::Owned(other.rebounded(&bounds));
                said.reconciled = true;
            }
        } else {
            while self.zero_threshold != other.zero_threshold {
                if self.zero_threshold < other.zero_threshold {
                    self.widen_zero(other.zero_threshold);
                }
                if other.zero_threshold < self.zero_threshold {
                    other.to_mut().widen_zero(self.zero_threshold);
                }
            }
            let schema = self.schema.min(other.schema);
            self.reduce(schema);
            if other.schema != schema {
                other.to_mut().reduce(schema);
            }
        }
        self.zero_count += sign * other.zero_count;
        self.count += sign * other.count;
        self.sum += sign * other.sum;
        self.positive = merge(&self.positive, &other.positive, sign);
        self.negative = merge(&self.negative, &other.negative, sign);
        self.integer = false;
        Ok(said)
    }

    /// Adds another. On an error nothing has changed.
    pub fn add(&mut self, other: &Histogram) -> Result<Added, Incompatible> {
        self.combine(other, 1.0)
    }

    /// Takes another away. On an error nothing has changed.
    pub fn sub(&mut self, other: &Histogram) -> Result<Added, Incompatible> {
        self.combine(other, -1.0)
    }

    fn each(&mut self, f: impl Fn(f64) -> f64) {
        for v in [&mut self.zero_count, &mut self.count, &mut self.sum] {
            *v = f(*v);
        }
        for side in [&mut self.positive, &mut self.negative] {
            side.iter_mut().for_each(|b| b.1 = f(b.1));
            side.retain(|b| b.1 != 0.0);
        }
        self.integer = false;
    }

    /// All counts and the sum times a number.
    pub fn mul(&mut self, by: f64) {
        self.each(|v| v * by);
        if by < 0.0 {
            self.hint = Hint::Gauge;
        }
    }

    /// All counts and the sum divided by a number; no bucket is left of a division by zero.
    pub fn div(&mut self, by: f64) {
        self.each(|v| v / by);
        if by == 0.0 {
            self.positive.clear();
            self.negative.clear();
        }
        if by < 0.0 {
            self.hint = Hint::Gauge;
        }
    }

    /// A number in it is beyond all numbers.
    pub fn overflows(&self) -> bool {
        [self.zero_count, self.count, self.sum].iter().any(|v| v.is_infinite())
            || self.positive.iter().chain(&self.negative).any(|b| b.1.is_infinite())
    }

    /// Whether the counter began anew since `before`: something counts less, or the layout became finer.
    pub fn is_reset_after(&self, before: &Histogram) -> bool {
        match self.hint {
            Hint::Reset => return true,
            Hint::NotReset => return false,
            Hint::Unknown | Hint::Gauge => {}
        }
        if self.count < before.count || self.is_custom() != before.is_custom() {
            return true;
        }
        if self.is_custom() {
            if same_bits(&self.bounds, &before.bounds) {
                return falls(&self.positive, &before.positive);
            }
            let bounds = common(&self.bounds, &before.bounds);
            return falls(&self.rebounded(&bounds).positive, &before.rebounded(&bounds).positive);
        }
        if self.schema > before.schema || self.zero_threshold < before.zero_threshold {
            return true;
        }
        let (zero, threshold) = before.zero_count_for(self.zero_threshold);
        if threshold != self.zero_threshold || self.zero_count < zero {
            return true;
        }
        let mut before = std::borrow::Cow::Borrowed(before);
        if before.zero_threshold < self.zero_threshold {
            before.to_mut().widen_zero(self.zero_threshold);
        }
        if before.schema > self.schema {
            before.to_mut().reduce(self.schema);
        }
        falls(&self.positive, &before.positive) || falls(&self.negative, &before.negative)
    }

    /// Without what is above (`upper`) or below a value; a bucket that is cut keeps its share.
    pub fn trimmed(&self, at: f64, upper: bool) -> Histogram {
        let mut out = self.clone();
        out.integer = false;
        if at.is_nan() {
            return out;
        }
        let share = |b: super::Bucket| -> f64 {
            if b.upper <= at {
                return b.count;
            }
            if b.lower >= at {
                return 0.0;
            }
            super::read::below(&b, at, self.is_custom()) * b.count
        };
        let keep = |b: super::Bucket| if upper { share(b) } else { b.count - share(b) };
        let zero = super::read::zero_of(self);
        out.zero_count = if self.zero_count != 0.0 { keep(zero) } else { 0.0 };
        out.positive = self.positive.iter().map(|b| (b.0, keep(self.above(*b)))).collect();
        out.negative = self.negative.iter().map(|b| (b.0, keep(self.below(*b)))).collect();
        out.positive.retain(|b| b.1 != 0.0);
        out.negative.retain(|b| b.1 != 0.0);
        let left = out.buckets();
        out.count = left.iter().map(|b| b.count).sum();
        // What is left is estimated from the middle of each bucket, unless nothing was taken.
        if out.count != self.count {
            out.sum = left.iter().map(|b| super::read::middle(b, self.is_custom()) * b.count).sum();
        }
        out
    }
}

/// Some bucket counts less than before.
fn falls(now: &Buckets, before: &Buckets) -> bool {
    let mut k = 0;
    before.iter().any(|(i, count)| {
        while now.get(k).is_some_and(|b| b.0 < *i) {
            k += 1;
        }
        let have = now.get(k).filter(|b| b.0 == *i).map_or(0.0, |b| b.1);
        have < *count
    })
}
