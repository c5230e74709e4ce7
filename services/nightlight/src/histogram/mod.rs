//! Native histograms: counts of observations in buckets whose bounds follow from a schema, or are listed.
//!
//! Schemas −4 to 8: bucket `i` ends at `2^(i·2^−schema)`; a bucket around zero takes what is nearer to it than the
//! threshold. Schema −53 ([`CUSTOM`]): bucket `i` ends at the `i`-th listed bound, one more takes the rest.
//!
//! Rooms: `ops` arithmetic and resets, `read` quantiles and fractions, `text` what people and JSON see, `wire` what
//! senders hand over and its checks.
//!
//! Invariants: buckets are sorted by index and none is empty, so that equal histograms are equal values and an absent
//! bucket is one of zero observations; counts are floats, those of integer histograms exact (at most 2^53).

mod ops;
mod read;
pub(crate) mod text;
mod wire;

pub use ops::{Added, Incompatible};
pub use read::{Nan, fraction, quantile, stdvar};
pub use text::go_float;
pub use wire::{Counts, Parts, Span};

use std::sync::Arc;

/// The schema of listed bounds.
pub const CUSTOM: i8 = -53;
/// Most buckets of one histogram.
pub const BUCKETS_MAX: usize = 16_384;

/// What is known of how a histogram follows the one before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Hint {
    /// Nothing.
    #[default]
    Unknown,
    /// The counter began anew.
    Reset,
    /// The counter went on.
    NotReset,
    /// It is no counter.
    Gauge,
}

impl Hint {
    /// Its number in Prometheus' formats.
    pub fn number(self) -> u8 {
        match self {
            Hint::Unknown => 0,
            Hint::Reset => 1,
            Hint::NotReset => 2,
            Hint::Gauge => 3,
        }
    }

    /// The hint of a number; unknown numbers say nothing.
    pub fn of(n: i32) -> Self {
        match n {
            1 => Hint::Reset,
            2 => Hint::NotReset,
            3 => Hint::Gauge,
            _ => Hint::Unknown,
        }
    }
}

/// Index and count of buckets, sorted by index, none empty.
pub type Buckets = Vec<(i32, f64)>;

/// A native histogram at one instant.
#[derive(Clone, Debug)]
pub struct Histogram {
    /// −4 to 8, or [`CUSTOM`].
    pub schema: i8,
    /// How it follows the one before.
    pub hint: Hint,
    /// Counted in whole numbers by who made it.
    pub integer: bool,
    /// Half the width of the bucket around zero.
    pub zero_threshold: f64,
    /// Observations in the bucket around zero.
    pub zero_count: f64,
    /// All observations.
    pub count: f64,
    /// Sum of all observations.
    pub sum: f64,
    /// Buckets above zero; all buckets of listed bounds.
    pub positive: Buckets,
    /// Buckets below zero, by distance.
    pub negative: Buckets,
    /// Listed upper bounds, rising, all finite; empty for other schemas.
    pub bounds: Arc<[f64]>,
}

impl Default for Histogram {
    fn default() -> Self {
        Histogram {
            schema: 0,
            hint: Hint::Unknown,
            integer: false,
            zero_threshold: 0.0,
            zero_count: 0.0,
            count: 0.0,
            sum: 0.0,
            positive: Buckets::new(),
            negative: Buckets::new(),
            bounds: Arc::new([]),
        }
    }
}

/// Bit for bit, the hint included.
impl PartialEq for Histogram {
    fn eq(&self, o: &Self) -> bool {
        self.same(o)
            && self.hint == o.hint
            && self.integer == o.integer
            && self.count.to_bits() == o.count.to_bits()
            && self.zero_count.to_bits() == o.zero_count.to_bits()
    }
}

fn same_bits(a: &[f64], b: &[f64]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(x, y)| x.to_bits() == y.to_bits())
}

/// One bucket with its bounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bucket {
    /// Lower bound.
    pub lower: f64,
    /// Upper bound.
    pub upper: f64,
    /// The lower bound belongs to it.
    pub lower_in: bool,
    /// The upper bound belongs to it.
    pub upper_in: bool,
    /// Observations.
    pub count: f64,
}

/// Where bucket `i` of an exponential schema ends.
fn exponential(i: i32, schema: i8) -> f64 {
    let (whole, part) = if schema <= 0 {
        (i64::from(i) << u32::from(schema.unsigned_abs()), 0.0)
    } else {
        let per = 1i64 << u32::from(schema.unsigned_abs());
        (i64::from(i).div_euclid(per), i64::from(i).rem_euclid(per) as f64 / per as f64)
    };
    // The bucket of the greatest numbers would end beyond them.
    if whole == 1024 && part == 0.0 {
        return f64::MAX;
    }
    if whole > 1024 {
        return f64::INFINITY;
    }
    // Two steps: powers below the normal numbers are no exponents of theirs.
    let near = whole.clamp(-1000, 1000) as i32;
    part.exp2() * 2f64.powi(near) * 2f64.powi((whole - i64::from(near)).max(-1100) as i32)
}

impl Histogram {
    /// The marker of a series that ended.
    pub fn stale() -> Self {
        Histogram { sum: f64::from_bits(crate::engine::STALE_BITS), ..Histogram::default() }
    }

    /// True for the marker of a series that ended.
    pub fn is_stale(&self) -> bool {
        crate::engine::is_stale(self.sum)
    }

    /// Bounds are listed.
    pub fn is_custom(&self) -> bool {
        self.schema == CUSTOM
    }

    /// The same observations in the same buckets, whatever is known of how it came about (`==` of the language).
    pub fn same(&self, o: &Self) -> bool {
        let buckets = |a: &Buckets, b: &Buckets| {
            a.len() == b.len() && a.iter().zip(b).all(|(x, y)| x.0 == y.0 && x.1 == y.1)
        };
        self.schema == o.schema
            && self.count == o.count
            && self.sum.to_bits() == o.sum.to_bits()
            && self.zero_threshold == o.zero_threshold
            && self.zero_count == o.zero_count
            && same_bits(&self.bounds, &o.bounds)
            && buckets(&self.positive, &o.positive)
            && buckets(&self.negative, &o.negative)
    }

    /// The upper bound of bucket `i`.
    fn bound(&self, i: i32) -> f64 {
        if !self.is_custom() {
            return exponential(i, self.schema);
        }
        match usize::try_from(i) {
            Ok(i) => self.bounds.get(i).copied().unwrap_or(f64::INFINITY),
            Err(_) => f64::NEG_INFINITY,
        }
    }

    fn above(&self, (i, count): (i32, f64)) -> Bucket {
        let (lower, upper) = (self.bound(i.saturating_sub(1)), self.bound(i));
        Bucket { lower, upper, lower_in: self.is_custom() && i == 0, upper_in: true, count }
    }

    fn below(&self, (i, count): (i32, f64)) -> Bucket {
        let (lower, upper) = (-self.bound(i), -self.bound(i.saturating_sub(1)));
        Bucket { lower, upper, lower_in: true, upper_in: false, count }
    }

    fn zero(&self) -> Bucket {
        let t = self.zero_threshold;
        Bucket { lower: -t, upper: t, lower_in: true, upper_in: true, count: self.zero_count }
    }

    /// All buckets that hold something, from the lowest to the highest.
    pub fn buckets(&self) -> Vec<Bucket> {
        let mut out = Vec::with_capacity(self.positive.len() + self.negative.len() + 1);
        out.extend(self.negative.iter().rev().map(|b| self.below(*b)));
        if self.zero_count != 0.0 {
            out.push(self.zero());
        }
        out.extend(self.positive.iter().map(|b| self.above(*b)));
        out
    }

    /// About how many bytes it takes in memory.
    pub fn bytes(&self) -> usize {
        std::mem::size_of::<Self>() + (self.positive.len() + self.negative.len()) * 16 + self.bounds.len() * 8
    }
}

#[cfg(test)]
mod tests;
