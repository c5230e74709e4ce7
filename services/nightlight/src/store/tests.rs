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

/// What the store was told, and what of it has to be there.
#[derive(Default)]
struct Told {
    acknowledged: BTreeMap<Key, u64>,
    sent: HashMap<Key, u64>,
    /// Deletions that were acknowledged: series, from, to. Time only goes on, so nothing comes back into one.
    deleted: Vec<(u64, i64, i64)>,
}

impl Told {
    fn check(&mut self, store: &Store) -> Result<(), String> {
        let have = everything(store).map_err(|e| e.to_string())?;
        for (k, v) in &self.acknowledged {
            if have.get(k) != Some(v) {
                return Err(format!("{} at {} is {:?}, not {v}", k.0, k.1, have.get(k)));
            }
        }
        if let Some((k, _)) = have.iter().find(|(k, v)| self.sent.get(*k) != Some(*v)) {
            return Err(format!("{} at {} was never sent", k.0, k.1));
        }
        let gone = |k: &Key| self.deleted.iter().any(|d| d.0 == k.0 && (d.1..=d.2).contains(&k.1));
        if let Some(k) = have.keys().find(|k| gone(k)) {
            return Err(format!("{} at {} was deleted", k.0, k.1));
        }
        // What survived without having been acknowledged stays.
        self.acknowledged = have;
        Ok(())
    }
}

/// Samples of random series, some of them histograms (told apart by nothing but their sum).
fn some(rng: &mut Rng, clock: &mut i64) -> Vec<Entry> {
    let mut batch = Vec::new();
    for _ in 0..1 + rng.below(4) {
        let mut entry = Entry { labels: series(rng.below(6)), samples: Vec::new(), histograms: Vec::new() };
        for _ in 0..rng.below(40) {
            *clock += 1 + rng.below(10) as i64;
            let v = f64::from_bits(rng.next_u64());
            if rng.percent(30) {
                let buckets = (0..rng.below(4) as i32).map(|i| (i * 3, 1.0 + f64::from(i))).collect();
                let h = Histogram { sum: v, count: 4.0, positive: buckets, ..Histogram::default() };
                entry.histograms.push((*clock, Arc::new(h)));
            } else {
                entry.samples.push((*clock, v));
            }
        }
        batch.push(entry);
    }
    batch
}

fn keys(batch: &[Entry]) -> Vec<(Key, u64)> {
    let each = |a: &Entry| {
        let n = number(&a.labels);
        let numbers = a.samples.iter().map(move |(t, v)| ((n, *t), v.to_bits()));
        numbers.chain(a.histograms.iter().map(move |(t, h)| ((n, *t), h.sum.to_bits()))).collect::<Vec<_>>()
    };
    batch.iter().flat_map(each).collect()
}

/// Appends, cuts, deletes, compacts and crashes at random operations of the disk. Everything that was acknowledged has
/// to be there after each crash, nothing that nobody sent, and nothing that was deleted.
fn crashes(seed: u64, careless: bool) -> Result<(), String> {
    let sim = SimDisk::new(seed);
    let disk: Arc<dyn Disk> = if careless { Arc::new(Careless(sim.clone())) } else { Arc::new(sim.clone()) };
    let mut rng = Rng::new(seed);
    let mut told = Told::default();
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
        told.check(&store)?;
        sim.cut_after(rng.below(120));
        for _ in 0..40 {
            match rng.below(20) {
                0 | 1 => {
                    let _ = store.cut();
                    continue;
                }
                2 => {
                    let _ = if rng.percent(50) { store.compact(i64::MAX) } else { store.clean() };
                    continue;
                }
                3 => {
                    let (s, from) = (rng.below(6), clock - rng.below(3000) as i64);
                    let m =
                        Matcher::new("s", crate::labels::MatchOp::Equal, &s.to_string()).expect("matcher");
                    let to = (from + rng.below(1000) as i64).min(clock);
                    let done = store.delete(&[m], from, to);
                    // Not acknowledged: it may have happened.
                    told.acknowledged.retain(|k, _| k.0 != s || !(from..=to).contains(&k.1));
                    match done {
                        Ok(()) => told.deleted.push((s, from, to)),
                        Err(_) => break,
                    }
                    continue;
                }
                _ => {}
            }
            let batch = some(&mut rng, &mut clock);
            let all = keys(&batch);
            told.sent.extend(all.iter().cloned());
            match store.append_all(batch) {
                Ok(o) if o.stored == all.len() as u64 => told.acknowledged.extend(all),
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
fn blocks_merge_and_what_is_deleted_stays_gone() {
    let disk: Arc<dyn Disk> = Arc::new(SimDisk::new(11));
    let mut store = open(&disk);
    let (mut rng, mut clock, mut told) = (Rng::new(11), 1_000_000, Told::default());
    let matcher = |s: u64| Matcher::new("s", crate::labels::MatchOp::Equal, &s.to_string()).expect("matcher");
    let mut most = 0;
    for turn in 0..40 {
        let batch = some(&mut rng, &mut clock);
        let all = keys(&batch);
        told.sent.extend(all.iter().cloned());
        told.acknowledged.extend(all.iter().cloned());
        assert_eq!(store.append_all(batch).expect("append").stored, all.len() as u64);
        store.cut().expect("cut");
        if turn % 7 == 3 {
            let (s, from) = (rng.below(6), clock - 2000);
            store.delete(&[matcher(s)], from, clock).expect("delete");
            told.acknowledged.retain(|k, _| k.0 != s || k.1 < from);
            told.deleted.push((s, from, clock));
        }
        store.compact(i64::MAX).expect("compact");
        most = most.max(store.size().2);
        if turn % 9 == 8 {
            drop(store);
            store = open(&disk);
        }
        told.check(&store).expect("what was told");
    }
    assert!(most < 12, "{most} blocks");
    // A series that is deleted whole is not listed either.
    store.delete(&[matcher(3)], i64::MIN, i64::MAX).expect("delete");
    assert!(!store.series(&[], i64::MIN, i64::MAX).contains(&series(3)));
    let before = store.size().3;
    store.clean().expect("clean");
    assert!(store.size().3 < before, "room is free");
    drop(store);
    // The oldest blocks go first.
    let store = open(&disk);
    let bytes = store.size().3;
    let oldest = everything(&store).expect("read").keys().map(|k| k.1).min();
    assert!(store.shrink(bytes - 1).expect("shrink") == 1);
    assert!(store.size().3 < bytes && everything(&store).expect("read").keys().map(|k| k.1).min() > oldest);
    // A copy opens and says the same.
    let copy: Arc<dyn Disk> = Arc::new(SimDisk::new(12));
    store
        .snapshot(&mut |name| {
            let from = disk.open(name)?;
            photon_rt::disk::replace(&*copy, name, &photon_rt::disk::read_all(&*from, 1 << 30)?)
        })
        .expect("snapshot");
    assert_eq!(everything(&open(&copy)).expect("copy"), everything(&store).expect("read"));
}

#[test]
fn nothing_acknowledged_is_lost() {
    for seed in 0..14 {
        crashes(seed, false).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
    }
    // A planted bug: without syncs samples are lost, and this test sees it.
    assert!((0..12).any(|seed| crashes(seed, true).is_err()));
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
fn a_full_disk_keeps_blocks_from_being_made_and_loses_nothing() {
    let sim = SimDisk::new(8);
    let disk: Arc<dyn Disk> = Arc::new(sim.clone());
    let store = open(&disk);
    let (mut rng, mut clock, mut told) = (Rng::new(8), 1_000_000, Told::default());
    let mut put = |store: &Store, told: &mut Told, n: usize| {
        for _ in 0..n {
            let batch = some(&mut rng, &mut clock);
            let all = keys(&batch);
            told.sent.extend(all.iter().cloned());
            let stored = store.append_all(batch).expect("append").stored;
            assert_eq!(stored, all.len() as u64);
            told.acknowledged.extend(all);
        }
    };
    for _ in 0..3 {
        put(&store, &mut told, 20);
        store.cut().expect("cut");
    }
    put(&store, &mut told, 20);
    let used: u64 =
        disk.list().expect("list").iter().map(|n| disk.open(n).and_then(|f| f.len()).expect("length")).sum();
    sim.set_capacity(Some(used + 2000));
    // Neither a cut nor a merge has the room; both leave none of what they began.
    assert!(matches!(store.cut(), Err(StoreError::Disk { .. })));
    assert!(matches!(store.delete(&[], 0, 1), Err(StoreError::Disk { .. })));
    told.check(&store).expect("all there");
    assert!(disk.list().expect("list").iter().all(|n| !n.ends_with(".tmp")));
    // What comes now is taken as long as the log has room.
    put(&store, &mut told, 1);
    told.check(&store).expect("all there");
    sim.set_capacity(Some(used + 20_000));
    store.cut().expect("cut");
    assert_eq!(store.size().2, 5);
    sim.set_capacity(Some(used + 1000));
    assert!(matches!(store.compact(i64::MAX), Err(StoreError::Disk { .. })));
    told.check(&store).expect("all there");
    sim.set_capacity(None);
    assert_eq!(store.compact(i64::MAX), Ok(1));
    told.check(&store).expect("all there");
    drop(store);
    told.check(&open(&disk)).expect("all there");
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

/// What sits in a small log, or in a block that spans more than the retention, would never be forgotten.
#[test]
fn small_and_slow_stores_forget_too() {
    let disk: Arc<dyn Disk> = Arc::new(SimDisk::new(12));
    let options = Options { log_age: Duration::ZERO, ..Options::default() };
    let store = Store::open(disk, options).expect("open");
    let day = 86_400_000;
    assert!(!store.wants_cut(), "nothing is in it");
    for d in 0..40 {
        let arrival = Arrival { labels: series(1), samples: vec![(d * day, 1.0)] };
        store.append(vec![arrival]).expect("append");
        let keep = Keep { since_ms: Some((d - 10) * day), span_ms: Some(5 * day), bytes: None };
        assert!(store.look_after(keep).expect("upkeep").cut, "day {d}");
    }
    let left = everything(&store).expect("read");
    let oldest = left.keys().map(|k| k.1).min().expect("some");
    assert!((24 * day..=29 * day).contains(&oldest), "the oldest is of day {}", oldest / day);
    assert!(store.size().2 < 12, "{} blocks", store.size().2);
}
