//! The figures of docs/decisions/0008-nightlight.md, measured in this process: CPU time of ingestion, of queries over
//! twelve hours of two hundred series, bytes a sample, replay of a log of ten million samples.
//!
//! `cargo run --release -p nightlight --example figures [samples of the log, millions]`

use nightlight::{
    engine::{Cancel, Query, explain},
    labels::{Labels, NAME},
    promql::parse,
    store::{Arrival, Options, Store},
};
use photon_rt::{
    disk::{Disk, RealDisk},
    entropy::Rng,
    time::{cpu_used, since_boot},
};
use std::sync::Arc;

const STEP: i64 = 15_000;
const BEGIN: i64 = 1_600_000_000_000;
const SERIES: usize = 1000;

/// The field note's mix: a fifth each of integer counters, counters of two decimals, gauges in steps of 4 KiB,
/// constants, gauges of one decimal.
struct Mix {
    rng: Rng,
    at: Vec<i64>,
    labels: Vec<Labels>,
}

impl Mix {
    fn new() -> Self {
        let name = |i: usize| {
            Labels::of(&[
                (NAME, ["c_total", "d_total", "mem_bytes", "up", "temp"][i % 5]),
                ("job", &format!("job-{}", i % 7)),
                ("instance", &format!("host-{}:9100", i / 5 % 20)),
                ("n", &(i / 100).to_string()),
            ])
        };
        Mix { rng: Rng::new(1), at: vec![0; SERIES], labels: (0..SERIES).map(name).collect() }
    }

    /// All series at step `k`.
    fn batch(&mut self, k: i64) -> Vec<Arrival> {
        let rng = &mut self.rng;
        let each = |(i, at): (usize, &mut i64)| {
            let target = i / 5 % 20;
            let v = match i % 5 {
                0 => {
                    *at += rng.below(10) as i64;
                    *at as f64
                }
                1 => {
                    *at += rng.below(100) as i64;
                    *at as f64 / 100.0
                }
                2 => {
                    *at = (*at + rng.below(17) as i64 - 8).max(0);
                    (*at * 4096) as f64
                }
                3 => 1.0,
                _ => {
                    *at += rng.below(11) as i64 - 5;
                    *at as f64 / 10.0
                }
            };
            let t = BEGIN + k * STEP + target as i64 * 700;
            Arrival { labels: self.labels[i].clone(), samples: vec![(t, v)] }
        };
        self.at.iter_mut().enumerate().map(each).collect()
    }
}

fn measured<T>(what: &str, f: impl FnOnce() -> T) -> (T, f64) {
    let (cpu, wall) = (cpu_used(), since_boot());
    let out = f();
    let (cpu, wall) = ((cpu_used() - cpu).as_secs_f64(), (since_boot() - wall).as_secs_f64());
    println!("{what}: {:.1} ms CPU, {:.1} ms", cpu * 1e3, wall * 1e3);
    (out, cpu)
}

fn bytes(disk: &Arc<dyn Disk>) -> u64 {
    let names = disk.list().expect("list");
    names.iter().map(|n| disk.open(n).and_then(|f| f.len()).expect("length")).sum()
}

fn main() {
    let millions: i64 = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(10);
    let dir = std::env::temp_dir().join(format!("nightlight-figures-{}", std::process::id()));
    let open = |name: &str| -> Arc<dyn Disk> { Arc::new(RealDisk::open(&dir.join(name)).expect("folder")) };
    let mut mix = Mix::new();
    let disk = open("twelve-hours");
    let store = Store::open(disk.clone(), Options::default()).expect("open");
    let steps = 12 * 240;
    let samples = steps as f64 * SERIES as f64;
    let ((), cpu) = measured("ingest of 2.88 M samples, 1,000 a batch, one sender", || {
        for k in 0..steps {
            let batch = mix.batch(k);
            assert_eq!(store.append(batch).expect("append").stored, SERIES as u64);
        }
    });
    println!("  {:.3} CPU-s a million samples (making them included)", cpu / samples * 1e6);
    measured("cut to a block", || store.cut().expect("cut"));
    let size = bytes(&disk);
    println!("  {:.3} bytes a sample, all files", size as f64 / samples);
    let (start, end) = (BEGIN + 300_000, BEGIN + (steps - 1) * STEP);
    for text in [
        "sum by (job) (rate(c_total[5m]))",
        "topk(5, rate(c_total[5m]))",
        "quantile_over_time(0.9, temp[1h])",
        "max_over_time(temp[1h])",
        "count({__name__=~\".+\"}) by (__name__)",
        "sum(rate(c_total[5m])) / sum(rate(c_total[5m]))",
    ] {
        let e = parse(text).expect("query");
        let query = Query::range(start, end, 60_000);
        let mut best = f64::MAX;
        let mut node = None;
        for _ in 0..5 {
            let cpu = cpu_used();
            let clock = || since_boot().as_micros() as u64;
            let (answer, n) = explain(&store, text, &e, query, &Cancel::default(), &clock).expect("answer");
            assert!(answer.stats.series > 0);
            best = best.min((cpu_used() - cpu).as_secs_f64() * 1e3);
            node = Some(n);
        }
        println!("{text}: {best:.1} ms CPU (best of 5)");
        print!("{}", node.unwrap_or_default().table(1, "µs"));
    }
    drop(store);
    let disk = open("log");
    let options = Options { log_bytes: u64::MAX, ..Options::default() };
    let store = Store::open(disk.clone(), options).expect("open");
    for k in 0..millions * 1_000_000 / SERIES as i64 {
        store.append(mix.batch(k)).expect("append");
    }
    println!("log of {millions} M samples: {:.1} MB", bytes(&disk) as f64 / 1e6);
    drop(store);
    measured("replay", || Store::open(disk, options).expect("open").size());
    photon_rt::fs::remove_dir_all(&dir).expect("cleaned");
}
