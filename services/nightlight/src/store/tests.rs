//! Crashes, damage and full disks, on a simulated disk.

use super::*;
use crate::labels::NAME;
use photon_rt::{
    disk::{DiskFile, SimDisk},
    entropy::Rng,
};
use std::collections::HashMap;

fn series(i: u64) -> Labels {
    Labels::of(&[(NAME, "m"), ("s", &i.to_string())])
}

/// Number of a series, and an instant.
type Key = (u64, i64);

fn number(l: &Labels) -> u64 {
    l.get("s").parse().expect("a series of these tests")
}

fn everything(store: &Store) -> Result<BTreeMap<Key, u64>, crate::engine::Error> {
    let mut out = BTreeMap::new();
    store.select(&[], i64::MIN, i64::MAX, &mut |l, s| {
        assert!(s.t.windows(2).all(|w| w[0] < w[1]), "instants rise");
        for (t, v) in s.t.iter().zip(&s.v) {
            out.insert((number(l), *t), v.to_bits());
        }
        Ok(())
    })?;
    Ok(out)
}

fn open(disk: &Arc<dyn Disk>) -> Store {
    Store::open(disk.clone(), Options::default()).expect("open")
}

#[test]
fn late_equal_and_conflicting_samples() {
    let disk: Arc<dyn Disk> = Arc::new(SimDisk::new(1));
    let store = open(&disk);
    let put = |s: &[(i64, f64)]| {
        store.append(vec![Arrival { labels: series(1), samples: s.to_vec() }]).expect("append")
    };
    let hour = 3_600_000;
    let stored = |stored| Outcome { stored, ..Outcome::default() };
    assert_eq!(put(&[(hour, 1.0), (hour + 2, 3.0)]), stored(2));
    assert_eq!(put(&[(hour + 1, 2.0), (hour + 1, 2.0)]), stored(2));
    assert_eq!(put(&[(hour + 1, 2.5)]), Outcome { conflicting: 1, ..Outcome::default() });
    assert_eq!(put(&[(1, 0.0)]), Outcome { too_old: 1, ..Outcome::default() });
    assert_eq!(put(&[(2, f64::NAN)]), stored(1));
    let want: Vec<(i64, u64)> = [(2, f64::NAN), (hour, 1.0), (hour + 1, 2.0), (hour + 2, 3.0)]
        .map(|(t, v)| (t, v.to_bits()))
        .to_vec();
    let look =
        |s: &Store| everything(s).expect("read").into_iter().map(|((_, t), v)| (t, v)).collect::<Vec<_>>();
    assert_eq!(look(&store), want);
    store.cut().expect("cut");
    assert_eq!(look(&store), want);
    // What came last holds, across blocks too.
    put(&[(hour + 1, 7.0), (hour * 9, 9.0)]);
    let want = [want[0], want[1], (hour + 1, 7f64.to_bits()), want[3], (hour * 9, 9f64.to_bits())];
    assert_eq!(look(&store), want);
    store.cut().expect("cut");
    drop(store);
    let store = open(&disk);
    assert_eq!(look(&store), want);
    assert_eq!(store.expire(hour * 2).expect("expire"), 1);
    // The younger block still has what came with it.
    assert_eq!(look(&store), [(hour + 1, 7f64.to_bits()), (hour * 9, 9f64.to_bits())]);
    assert_eq!(store.series(&[], hour * 8, hour * 10), [series(1)]);
    assert!(store.series(&[], hour * 10, hour * 11).is_empty());
    let wide = Labels::of(&[(NAME, &"x".repeat(LABEL_BYTES_MAX))]);
    let refused = store.append(vec![Arrival { labels: wide, samples: vec![(1, 1.0)] }]);
    assert!(matches!(refused, Err(StoreError::TooLarge(_))));
}

/// A disk that takes a sync for done.
struct Careless(SimDisk);
struct CarelessFile(Box<dyn DiskFile>);

impl Disk for Careless {
    fn open(&self, name: &str) -> std::io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(CarelessFile(self.0.open(name)?)))
    }
    fn create(&self, name: &str) -> std::io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(CarelessFile(self.0.create(name)?)))
    }
    fn rename(&self, from: &str, to: &str) -> std::io::Result<()> {
        self.0.rename(from, to)
    }
    fn remove(&self, name: &str) -> std::io::Result<()> {
        self.0.remove(name)
    }
    fn list(&self) -> std::io::Result<Vec<String>> {
        self.0.list()
    }
    fn sync_dir(&self) -> std::io::Result<()> {
        self.0.sync_dir()
    }
}

impl DiskFile for CarelessFile {
    fn write_at(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        self.0.write_at(offset, data)
    }
    fn read_at(&self, offset: u64, out: &mut [u8]) -> std::io::Result<usize> {
        self.0.read_at(offset, out)
    }
    fn len(&self) -> std::io::Result<u64> {
        self.0.len()
    }
    fn truncate(&self, len: u64) -> std::io::Result<()> {
        self.0.truncate(len)
    }
    fn allocate(&self, len: u64) -> std::io::Result<()> {
        self.0.allocate(len)
    }
    fn sync_data(&self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Appends, cuts and crashes at random operations of the disk. Everything that was acknowledged has to be there after
/// each crash, and nothing that nobody sent.
fn crashes(seed: u64, careless: bool) -> Result<(), String> {
    let sim = SimDisk::new(seed);
    let disk: Arc<dyn Disk> = if careless { Arc::new(Careless(sim.clone())) } else { Arc::new(sim.clone()) };
    let mut rng = Rng::new(seed);
    let mut acknowledged: BTreeMap<Key, u64> = BTreeMap::new();
    let mut sent: HashMap<Key, u64> = HashMap::new();
    let mut clock = 1_000_000;
    for _ in 0..10 {
        let store = loop {
            match Store::open(disk.clone(), Options::default()) {
                Ok(s) => break s,
                Err(e) if sim.is_off() => {
                    let _ = e;
                    sim.power_loss();
                }
                Err(e) => return Err(format!("open: {e}")),
            }
        };
        let have = everything(&store).map_err(|e| e.to_string())?;
        for (k, v) in &acknowledged {
            if have.get(k) != Some(v) {
                return Err(format!("{} at {} is {:?}, not {v}", k.0, k.1, have.get(k)));
            }
        }
        if let Some((k, _)) = have.iter().find(|(k, v)| sent.get(*k) != Some(*v)) {
            return Err(format!("{} at {} was never sent", k.0, k.1));
        }
        // What survived without having been acknowledged stays.
        acknowledged = have;
        sim.cut_after(rng.below(60));
        for _ in 0..40 {
            if rng.percent(10) {
                let _ = store.cut();
                continue;
            }
            let mut batch = Vec::new();
            for _ in 0..1 + rng.below(4) {
                let samples = (0..rng.below(40))
                    .map(|_| {
                        clock += 1 + rng.below(10) as i64;
                        (clock, f64::from_bits(rng.next_u64()))
                    })
                    .collect();
                batch.push(Arrival { labels: series(rng.below(6)), samples });
            }
            let all: Vec<_> = batch
                .iter()
                .flat_map(|a| a.samples.iter().map(|(t, v)| ((number(&a.labels), *t), v.to_bits())))
                .collect();
            sent.extend(all.iter().cloned());
            match store.append(batch) {
                Ok(o) if o.stored == all.len() as u64 => acknowledged.extend(all),
                Ok(o) => return Err(format!("{o:?} of {}", all.len())),
                Err(_) => break,
            }
        }
        drop(store);
        if rng.percent(30) { sim.kill() } else { sim.power_loss() }
    }
    Ok(())
}

#[test]
fn nothing_acknowledged_is_lost() {
    for seed in 0..25 {
        crashes(seed, false).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
    }
    // A planted bug: without syncs samples are lost, and this test sees it.
    assert!((0..20).any(|seed| crashes(seed, true).is_err()));
}

#[test]
fn damage_is_never_silent() {
    let sim = SimDisk::new(3);
    let disk: Arc<dyn Disk> = Arc::new(sim.clone());
    let store = open(&disk);
    for k in 0..30i64 {
        let samples = (0..20).map(|i| (1000 + k * 20 + i, (k * i) as f64)).collect();
        store.append(vec![Arrival { labels: series(k as u64 % 3), samples }]).expect("append");
        if k == 14 {
            store.cut().expect("cut");
        }
    }
    let want = everything(&store).expect("read");
    drop(store);
    let mut seen = 0;
    for name in disk.list().expect("list") {
        let len = disk.open(&name).and_then(|f| f.len()).expect("length");
        for byte in (0..len).step_by(7) {
            assert!(sim.flip_bit(&name, byte, (byte % 8) as u8));
            let got = Store::open(disk.clone(), Options::default())
                .map_err(|e| e.to_string())
                .and_then(|s| everything(&s).map_err(|e| e.to_string()));
            match got {
                Err(_) => seen += 1,
                Ok(all) if all == want => {}
                // A wrong last frame can't be told from one that was never finished.
                Ok(all) => {
                    let last = byte + 700 > len && name.starts_with("log");
                    assert!(last && all.iter().all(|(k, v)| want.get(k) == Some(v)), "{name} byte {byte}");
                    // It is gone from the file now: there is nothing left to compare with.
                    assert!(seen > 50, "{seen}");
                    return;
                }
            }
            assert!(sim.flip_bit(&name, byte, (byte % 8) as u8));
        }
    }
    assert!(seen > 50, "{seen}");
}

#[test]
fn a_full_disk_stops_the_store_and_loses_nothing() {
    let sim = SimDisk::new(4);
    let disk: Arc<dyn Disk> = Arc::new(sim.clone());
    let store = open(&disk);
    sim.set_capacity(Some(20_000));
    let (mut stored, mut t) = (0, 0);
    let error = loop {
        let samples = (0..50).map(|i| (t + i, i as f64)).collect();
        t += 50;
        match store.append(vec![Arrival { labels: series(1), samples }]) {
            Ok(o) => stored += o.stored,
            Err(e) => break e,
        }
    };
    assert!(matches!(error, StoreError::Disk { .. }), "{error}");
    assert!(stored > 100);
    let more = vec![Arrival { labels: series(1), samples: vec![(t, 1.0)] }];
    sim.set_capacity(None);
    assert!(matches!(store.append(more.clone()), Err(StoreError::Stopped(_))));
    assert!(matches!(store.cut(), Err(StoreError::Stopped(_))));
    drop(store);
    let store = open(&disk);
    assert!(everything(&store).expect("read").len() as u64 >= stored);
    assert_eq!(store.append(more).expect("append").stored, 1);
}

#[test]
fn writers_share_syncs() {
    let sim = SimDisk::new(5);
    let disk: Arc<dyn Disk> = Arc::new(sim.clone());
    let store = Arc::new(open(&disk));
    let before = sim.operations();
    let start = Arc::new(std::sync::Barrier::new(9));
    let held = lock(&store.writer);
    let threads: Vec<_> = (0..8)
        .map(|i| {
            let (store, start) = (store.clone(), start.clone());
            photon_rt::task::thread("writer", move || {
                start.wait();
                let one = |k: i64| vec![Arrival { labels: series(i), samples: vec![(k, 1.0)] }];
                (0..20).all(|k| store.append(one(k)).is_ok_and(|o| o.stored == 1))
            })
            .expect("thread")
        })
        .collect();
    start.wait();
    // All eight are in the queue before the first write.
    while lock(&store.queue).waiting.len() < 8 {
        std::thread::yield_now();
    }
    drop(held);
    assert!(threads.into_iter().all(|t| t.join().expect("thread")));
    assert_eq!(everything(&store).expect("read").len(), 160);
    let (operations, alone) = (sim.operations() - before, 160 * 2);
    assert!(operations <= alone - 14, "{operations} operations; alone it would be {alone}");
}

/// The mix of the field note with four targets that are scraped at their own instants: all files, after a cut.
#[test]
fn a_block_takes_well_under_a_byte_a_sample() {
    let disk: Arc<dyn Disk> = Arc::new(SimDisk::new(6));
    let store = open(&disk);
    let mut rng = Rng::new(6);
    let mut at = [0i64; 200];
    for k in 0..1440 {
        let mut batch = Vec::new();
        for (i, at) in at.iter_mut().enumerate() {
            let target = i % 4;
            let t = 1_600_000_000_000 + k * 15_000 + target as i64 * 1777 + (k * 7 + target as i64) % 4;
            let v = match i / 4 % 5 {
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
            let labels = Labels::of(&[
                (NAME, &format!("metric_{}", i / 4 % 10)),
                ("instance", &format!("host-{target}:9100")),
                ("s", &i.to_string()),
            ]);
            batch.push(Arrival { labels, samples: vec![(t, v)] });
        }
        assert_eq!(store.append(batch).expect("append").stored, 200);
    }
    let before = everything(&store).expect("read");
    store.cut().expect("cut");
    assert_eq!(everything(&store).expect("read"), before);
    let bytes: u64 =
        disk.list().expect("list").iter().map(|n| disk.open(n).and_then(|f| f.len()).expect("length")).sum();
    let a_sample = bytes as f64 / before.len() as f64;
    println!("{a_sample:.3} bytes a sample in {bytes} bytes");
    assert!(a_sample < 0.65, "{a_sample}");
}
