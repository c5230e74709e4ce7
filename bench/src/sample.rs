//! Samples and what they say.

use serde::{Deserialize, Serialize};

/// Durations of one kind of operation, in microseconds.
#[derive(Default)]
pub struct Samples(Vec<u64>);

/// What samples say.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Summary {
    pub count: usize,
    pub p50_us: u64,
    pub p99_us: u64,
}

impl Samples {
    pub fn add(&mut self, d: std::time::Duration) {
        self.0.push(d.as_micros() as u64);
    }

    pub fn join(&mut self, other: Samples) {
        self.0.extend(other.0);
    }

    pub fn summary(mut self) -> Summary {
        self.0.sort_unstable();
        let at = |p: usize| {
            self.0.get((self.0.len() * p / 100).min(self.0.len().saturating_sub(1))).copied().unwrap_or(0)
        };
        Summary { count: self.0.len(), p50_us: at(50), p99_us: at(99) }
    }
}

/// The middle of some numbers.
pub fn median(v: Vec<f64>) -> f64 {
    quantile(v, 0.5)
}

/// The number below which the share `q` of some numbers lies.
pub fn quantile(mut v: Vec<f64>, q: f64) -> f64 {
    v.sort_by(f64::total_cmp);
    v.get((v.len() as f64 * q) as usize).copied().unwrap_or(f64::NAN)
}
