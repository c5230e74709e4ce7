//! A store in memory, without index or codec: for tests, rule tests and values that never touch a disk.

use super::{Each, Error, Point, Samples, Storage};
use crate::labels::{Labels, Matcher};
use std::collections::BTreeMap;

/// Series in memory.
#[derive(Clone, Debug, Default)]
pub struct Memory(BTreeMap<Labels, Samples>);

impl Memory {
    /// Adds a sample; one at an instant that is taken, or older than the newest, is refused.
    pub fn push(&mut self, labels: &Labels, t: i64, v: f64) -> Result<(), Error> {
        self.put(labels, t, Point::Number(v))
    }

    /// Adds a number or a histogram.
    pub fn put(&mut self, labels: &Labels, t: i64, p: Point) -> Result<(), Error> {
        let s = self.0.entry(labels.clone()).or_default();
        if s.t.last().is_some_and(|last| *last >= t) {
            return Err(Error::Storage(format!("sample of {labels} at {t} is not newer than the last")));
        }
        s.push(t, p);
        Ok(())
    }

    /// All series.
    pub fn iter(&self) -> impl Iterator<Item = (&Labels, &Samples)> {
        self.0.iter()
    }
}

impl Storage for Memory {
    fn select(&self, matchers: &[Matcher], from_ms: i64, to_ms: i64, each: Each<'_>) -> Result<(), Error> {
        for (labels, all) in &self.0 {
            if !matchers.iter().all(|m| m.matches(labels.get(&m.name))) {
                continue;
            }
            let (a, b) = (all.t.partition_point(|t| *t < from_ms), all.t.partition_point(|t| *t <= to_ms));
            if a < b {
                let h = if all.h.is_empty() { Vec::new() } else { all.h[a..b].to_vec() };
                each(labels, &Samples { t: all.t[a..b].to_vec(), v: all.v[a..b].to_vec(), h })?;
            }
        }
        Ok(())
    }
}
