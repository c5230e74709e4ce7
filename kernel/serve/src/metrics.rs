//! Counters and gauges of this process, and their text form (Prometheus exposition format 0.0.4).

use axum::{Router, routing::get};
use std::{
    collections::BTreeMap,
    fmt::Write,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

/// A number that only rises.
#[derive(Clone, Debug, Default)]
pub struct Counter(Arc<AtomicU64>);

impl Counter {
    /// One more.
    pub fn inc(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// `n` more.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }
}

/// A number that rises and falls.
#[derive(Clone, Debug, Default)]
pub struct Gauge(Arc<AtomicU64>);

impl Gauge {
    /// Sets it.
    pub fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }
}

/// `statm` counts pages of this size on x86-64 and on our arm64 kernels.
const PAGE_BYTES: u64 = 4096;

struct Family {
    help: &'static str,
    kind: &'static str,
    series: BTreeMap<String, Arc<AtomicU64>>,
}

static FAMILIES: Mutex<BTreeMap<&'static str, Family>> = Mutex::new(BTreeMap::new());

fn series(
    name: &'static str,
    help: &'static str,
    kind: &'static str,
    labels: &[(&str, &str)],
) -> Arc<AtomicU64> {
    let pairs: Vec<String> = labels
        .iter()
        .map(|(k, v)| {
            format!("{k}=\"{}\"", v.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
        })
        .collect();
    let mut all = FAMILIES.lock().unwrap_or_else(PoisonError::into_inner);
    let family = all.entry(name).or_insert_with(|| Family { help, kind, series: BTreeMap::new() });
    family.series.entry(pairs.join(",")).or_default().clone()
}

/// The counter of this name and these labels; the same each time.
pub fn counter(name: &'static str, help: &'static str, labels: &[(&str, &str)]) -> Counter {
    Counter(series(name, help, "counter", labels))
}

/// The gauge of this name and these labels; the same each time.
pub fn gauge(name: &'static str, help: &'static str, labels: &[(&str, &str)]) -> Gauge {
    Gauge(series(name, help, "gauge", labels))
}

/// Everything counted so far, and what the operating system says of this process.
pub fn text() -> String {
    let mut out = String::new();
    for (name, f) in FAMILIES.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        let _ = writeln!(out, "# HELP {name} {}\n# TYPE {name} {}", f.help, f.kind); // a String takes all
        for (labels, v) in &f.series {
            let v = v.load(Ordering::Relaxed);
            let _ = if labels.is_empty() {
                writeln!(out, "{name} {v}")
            } else {
                writeln!(out, "{name}{{{labels}}} {v}")
            };
        }
    }
    let cpu = photon_rt::time::cpu_used().as_secs_f64();
    let _ = writeln!(out, "# HELP process_cpu_seconds_total CPU time used, user and system.");
    let _ = writeln!(out, "# TYPE process_cpu_seconds_total counter\nprocess_cpu_seconds_total {cpu}");
    if let Some(rss) = resident_bytes() {
        let _ = writeln!(out, "# HELP process_resident_memory_bytes Resident memory.");
        let _ =
            writeln!(out, "# TYPE process_resident_memory_bytes gauge\nprocess_resident_memory_bytes {rss}");
    }
    out
}

/// Resident memory of this process.
pub fn resident_bytes() -> Option<u64> {
    let statm = photon_rt::fs::read_to_string("/proc/self/statm").ok()?;
    statm.split_whitespace().nth(1)?.parse::<u64>().ok().map(|pages| pages * PAGE_BYTES)
}

/// `GET /metrics`.
pub fn routes() -> Router {
    Router::new()
        .route("/metrics", get(|| async { ([("content-type", "text/plain; version=0.0.4")], text()) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_has_help_type_and_escaped_labels() {
        counter("test_total", "A test.", &[("a", "x\"y")]).add(3);
        counter("test_total", "A test.", &[("a", "x\"y")]).inc();
        let t = text();
        assert!(t.contains("# TYPE test_total counter\ntest_total{a=\"x\\\"y\"} 4\n"), "{t}");
        assert!(t.contains("process_resident_memory_bytes "));
    }
}
