use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

const A: Space = Space(0);
const B: Space = Space(1);

/// The write buffer is larger than what the tests write: a flush would sync the journal, and the
/// tests then tear what no power loss can.
fn fjall_at(dir: &std::path::Path) -> FjallEngine {
    FjallEngine::open(dir, &["a", "b", "c"], FjallOptions { cache: 4 << 20, write_buffer: 16 << 20 })
        .expect("open")
}

fn collect(v: &dyn View, s: Space, r: KeyRange, d: Direction) -> Vec<(Bytes, Bytes)> {
    v.scan(s, r, d).collect::<EngineResult<_>>().expect("scan")
}

#[derive(Clone, Debug)]
enum Op {
    Write(Vec<(usize, Vec<u8>, Option<Vec<u8>>)>),
    Scan(usize, Vec<u8>, Option<Vec<u8>>, bool),
    Get(usize, Vec<u8>),
    Fold,
}

fn key() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(prop::sample::select(vec![0u8, 1, b'a', 0xff]), 1..4)
}

fn op() -> impl Strategy<Value = Op> {
    let write = prop::collection::vec(
        (0usize..2, key(), prop::option::of(prop::collection::vec(any::<u8>(), 0..4))),
        1..5,
    );
    prop_oneof![
        4 => write.prop_map(Op::Write),
        2 => (0usize..2, key(), prop::option::of(key()), any::<bool>()).prop_map(|(s, a, b, r)| Op::Scan(s, a, b, r)),
        2 => (0usize..2, key()).prop_map(|(s, k)| Op::Get(s, k)),
        1 => Just(Op::Fold),
    ]
}

/// Plays `ops` on an overlay that is folded into `engine` now and then, and on a map.
fn play(engine: &dyn Engine, ops: Vec<Op>) {
    let mut model = vec![BTreeMap::<Vec<u8>, Vec<u8>>::new(); 2];
    let mut over = Overlay::new(engine.view());
    for op in ops {
        match op {
            Op::Write(ws) => {
                for (s, k, v) in ws {
                    match v {
                        Some(v) => {
                            over.put(Space(s), k.clone(), v.clone());
                            model[s].insert(k, v);
                        }
                        None => {
                            over.remove(Space(s), k.clone());
                            model[s].remove(&k);
                        }
                    }
                }
            }
            Op::Get(s, k) => {
                let got = over.get(Space(s), &k).expect("get");
                assert_eq!(got.as_deref(), model[s].get(&k).map(Vec::as_slice));
            }
            Op::Scan(s, a, b, back) => {
                let range = match &b {
                    Some(b) => KeyRange::half_open(a.clone(), b.clone()),
                    None => KeyRange::from(a.clone()),
                };
                let inside = |k: &[u8]| k >= &a[..] && b.as_ref().is_none_or(|b| k < &b[..]);
                let mut want: Vec<_> = model[s].iter().filter(|(k, _)| inside(k)).collect();
                assert_eq!(over.count(Space(s), range.clone()).expect("count"), want.len() as u64);
                let d = if back { Direction::Backward } else { Direction::Forward };
                if back {
                    want.reverse();
                }
                let got = collect(&over, Space(s), range, d);
                assert!(
                    got.iter().map(|(k, v)| (&k[..], &v[..])).eq(want.iter().map(|(k, v)| (&k[..], &v[..])))
                );
            }
            Op::Fold => {
                engine.write(over.into_batch()).expect("write");
                over = Overlay::new(engine.view());
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn overlay_on_memory_equals_a_map(ops in prop::collection::vec(op(), 1..60)) {
        play(&MemEngine::new(2), ops);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]

    #[test]
    fn overlay_on_fjall_equals_a_map(ops in prop::collection::vec(op(), 1..60)) {
        let dir = tempfile::tempdir().expect("temp dir");
        play(&fjall_at(dir.path()), ops);
    }
}

#[test]
fn a_view_does_not_change() {
    let dir = tempfile::tempdir().expect("temp dir");
    let (f, m) = (fjall_at(dir.path()), MemEngine::new(3));
    for e in [&f as &dyn Engine, &m] {
        let mut b = Batch::default();
        b.put(A, "k", "1");
        e.write(b).expect("write");
        let old = e.view();
        let mut b = Batch::default();
        b.put(A, "k", "2");
        b.remove(A, "nothing");
        e.write(b).expect("write");
        assert_eq!(old.get(A, b"k").expect("get").as_deref(), Some(&b"1"[..]));
        assert_eq!(e.view().get(A, b"k").expect("get").as_deref(), Some(&b"2"[..]));
        e.clear(A).expect("clear");
        assert_eq!(e.view().count(A, KeyRange::all()).expect("count"), 0);
    }
}

#[test]
fn memory_loses_only_a_suffix_since_persist() {
    let e = MemEngine::new(1);
    for i in 0..10u8 {
        let mut b = Batch::default();
        b.put(A, vec![i], "");
        e.write(b).expect("write");
        if i == 3 {
            e.persist().expect("persist");
        }
    }
    assert_eq!(e.pending(), 6);
    for kept in 0..=6 {
        let keys = collect(&*e.crash(kept).view(), A, KeyRange::all(), Direction::Forward);
        assert_eq!(keys.len(), 4 + kept);
    }
}

/// The number of the newest batch of which all halves are there; fails when a half is alone or a
/// batch in the middle is missing.
fn prefix(e: &dyn Engine) -> u64 {
    let v = e.view();
    let a = collect(&*v, A, KeyRange::all(), Direction::Forward);
    let b = collect(&*v, B, KeyRange::all(), Direction::Forward);
    assert!(a.iter().map(|(k, _)| k).eq(b.iter().map(|(k, _)| k)), "a batch was torn");
    for (i, (k, _)) in a.iter().enumerate() {
        assert_eq!(&k[..], (i as u64).to_be_bytes(), "a batch is missing in the middle");
    }
    a.len() as u64
}

#[test]
fn fjall_survives_a_torn_journal_as_a_prefix() {
    let dir = tempfile::tempdir().expect("temp dir");
    let home = dir.path().join("e");
    let total = 3_000u64;
    let persisted = 1_000;
    let mut synced = 0;
    {
        let e = fjall_at(&home);
        for i in 0..total {
            let mut b = Batch::default();
            b.put(A, i.to_be_bytes().to_vec(), vec![7u8; 600]);
            b.put(B, i.to_be_bytes().to_vec(), vec![7u8; 30]);
            e.write(b).expect("write");
            if i + 1 == persisted {
                e.persist().expect("persist");
                synced = used_bytes(&newest_journal(&home));
            }
        }
        e.persist().expect("persist");
        // An image as a crash leaves it: copied while the engine is open, so nothing was closed nicely.
        copy(&home, &dir.path().join("image"));
    }
    let image = dir.path().join("image");
    let journal = newest_journal(&image);
    let used = used_bytes(&journal);
    let mut rng = photon_rt::entropy::Rng::new(7);
    let mut seen_short = false;
    for round in 0..12 {
        let torn = dir.path().join(format!("torn{round}"));
        copy(&image, &torn);
        let j = newest_journal(&torn);
        let mut bytes = photon_rt::fs::read(&j).expect("read journal");
        let cut = (synced + rng.below(used - synced)) as usize;
        match round % 3 {
            0 => bytes.truncate(cut),
            1 => bytes[cut..].fill(0),
            // A page in the middle that never reached the disk, although later ones did.
            _ => {
                let end = (cut + 4096).min(bytes.len());
                bytes[cut..end].fill(0);
            }
        }
        photon_rt::fs::write_atomic(&j, &bytes, 0o600).expect("write journal");
        let e = fjall_at(&torn);
        let n = prefix(&e);
        assert!((persisted..=total).contains(&n), "{n}");
        seen_short |= n < total;
        // And it goes on from there.
        let mut b = Batch::default();
        b.put(A, n.to_be_bytes().to_vec(), "");
        b.put(B, n.to_be_bytes().to_vec(), "");
        e.write(b).expect("write");
        e.persist().expect("persist");
        drop(e);
        assert_eq!(prefix(&fjall_at(&torn)), n + 1);
    }
    assert!(seen_short, "no round tore anything: the test tests nothing");
}

fn copy(from: &std::path::Path, to: &std::path::Path) {
    photon_rt::fs::private_dir(to).expect("mkdir");
    for entry in photon_rt::fs::read_dir(from).expect("list") {
        let entry = entry.expect("entry");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("type").is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("copy");
        }
    }
}

fn newest_journal(dir: &std::path::Path) -> std::path::PathBuf {
    let mut found: Vec<_> = photon_rt::fs::read_dir(dir)
        .expect("list")
        .map(|e| e.expect("entry").path())
        .filter(|p| p.extension().is_some_and(|x| x == "jnl"))
        .collect();
    found.sort_by_key(|p| p.file_stem().and_then(|s| s.to_str()).and_then(|s| s.parse::<u64>().ok()));
    found.pop().expect("a journal")
}

fn used_bytes(journal: &std::path::Path) -> u64 {
    let bytes = photon_rt::fs::read(journal).expect("read");
    bytes.iter().rposition(|b| *b != 0).map_or(0, |i| i as u64 + 1)
}

/// fjall's worker sends itself messages, into the same box of a thousand into which each commit over the size of a
/// write buffer puts one: while it merges tables, more than that can come.
#[test]
fn commits_never_fill_the_workers_mailbox() {
    let dir = tempfile::tempdir().expect("temp dir");
    let options = FjallOptions { cache: 1 << 20, write_buffer: 64 << 10 };
    let e = FjallEngine::open(dir.path(), &["a"], options).expect("open");
    for n in 0..15_000u64 {
        let mut b = Batch::default();
        // Keys all over the place: what is sealed overlaps what lies below, which is merged again and again.
        b.put(A, (n.wrapping_mul(0x9e37_79b9_7f4a_7c15)).to_be_bytes().to_vec(), vec![n as u8; 100]);
        e.write(b).expect("write");
        assert!(e.buffered() < 4 * options.write_buffer, "at {n}: nothing is sealed any more");
    }
}
