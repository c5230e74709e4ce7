//! The engine over the store answers as over samples in memory, however these arrived.

use crate::{
    random::{Dialect, Random},
    reference::{difference, points, query},
};
use nightlight::{
    engine::{Cancel, run},
    promql::parse,
    store::{Arrival, Options, Store},
};
use photon_rt::{
    disk::{Disk, RealDisk},
    entropy::Rng,
};
use std::sync::Arc;

#[test]
fn the_store_answers_as_memory_does() {
    let mut answers = 0;
    for seed in 0..4 {
        let dir = tempfile::tempdir().expect("folder");
        let disk: Arc<dyn Disk> = Arc::new(RealDisk::open(dir.path()).expect("disk"));
        let mut r = Random::new(seed, Dialect::Whole);
        let data = r.samples();
        // In batches of one series each, series in any order, late ones among them, cuts and restarts between.
        let mut batches: Vec<Arrival> = Vec::new();
        for (labels, s) in data.iter() {
            let all: Vec<(i64, f64)> = s.t.iter().copied().zip(s.v.iter().copied()).collect();
            batches.extend(all.chunks(40).map(|c| Arrival { labels: labels.clone(), samples: c.to_vec() }));
        }
        batches.sort_by_key(|b| b.samples[0].0 / 600_000);
        for i in 1..batches.len() {
            if r.rng.percent(20) {
                batches.swap(i - 1, i);
            }
        }
        let options = Options { late_ms: 7_200_000, ..Options::default() };
        let mut store = Store::open(disk.clone(), options).expect("open");
        for b in batches {
            let n = b.samples.len() as u64;
            assert_eq!(store.append(vec![b]).expect("append").stored, n);
            match r.rng.below(40) {
                0 => store.cut().expect("cut"),
                1 => {
                    drop(store);
                    store = Store::open(disk.clone(), options).expect("open");
                }
                _ => {}
            }
        }
        for k in 0..150 {
            r.rng = Rng::new(seed * 7000 + k);
            let (text, when) = (r.vector(2), r.when());
            let e = parse(&text).expect("a query");
            let ask =
                |s: &dyn nightlight::engine::Storage| run(s, &text, &e, query(when), &Cancel::default());
            match (ask(&data), ask(&store)) {
                (Ok(want), Ok(got)) => {
                    let (want, got) = (points(&want.value), points(&got.value));
                    assert_eq!(difference(&got, &want), None, "{text}");
                    answers += usize::from(!want.is_empty());
                }
                (want, got) => assert_eq!(want.is_err(), got.is_err(), "{text}"),
            }
        }
    }
    assert!(answers > 400, "{answers}");
}
