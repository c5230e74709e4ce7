//! Flipped bits in real files: never a state that was not.

use super::*;
use photon_rt::entropy::Rng;
use std::{collections::BTreeMap, os::unix::fs::FileExt, path::Path, path::PathBuf};

const SPACES: [&str; 2] = ["a", "b"];
const A: Space = Space(0);
const B: Space = Space(1);
const BATCHES: u64 = 600;

type State = [BTreeMap<Bytes, Bytes>; 2];

fn open(dir: &Path) -> EngineResult<FjallEngine> {
    FjallEngine::open(dir, &SPACES, FjallOptions { cache: 1 << 20, write_buffer: 64 << 10 })
}

/// The `n`th batch: overwrites and removes, and says its number.
fn batch(n: u64) -> Batch {
    let mut rng = Rng::new(n);
    let mut b = Batch::default();
    b.put(A, "n", n.to_string());
    for space in [A, B] {
        let mut value = vec![0; 300];
        value.iter_mut().for_each(|v| *v = rng.below(256) as u8);
        b.put(space, format!("k{:02}", rng.below(90)), value);
        b.remove(space, format!("x{:02}", n % 50));
        b.put(space, format!("x{:02}", (n + 25) % 50), n.to_string());
    }
    b
}

fn after(batches: u64) -> State {
    let mut s = State::default();
    for n in 1..=batches {
        for (space, k, v) in batch(n).writes {
            match v {
                Some(v) => s[space.0].insert(k, v),
                None => s[space.0].remove(&k),
            };
        }
    }
    s
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut out = Vec::new();
    for e in photon_rt::fs::read_dir(dir).expect("list") {
        let path = e.expect("entry").path();
        if path.is_dir() { out.extend(files(&path)) } else { out.push(path) }
    }
    out.sort();
    out
}

/// Bytes up to the last that is not zero.
fn used(bytes: &[u8]) -> usize {
    const PAGE: [u8; 4096] = [0; 4096];
    let pages = bytes.chunks(4096).rposition(|p| p != &PAGE[..p.len()]).map_or(0, |i| (i + 1) * 4096);
    bytes[..pages.min(bytes.len())].iter().rposition(|b| *b != 0).map_or(0, |i| i + 1)
}

/// Copies a folder; of files that were allocated ahead, the used part.
fn copy(from: &Path, to: &Path) {
    for f in files(from) {
        let target = to.join(f.strip_prefix(from).expect("inside"));
        photon_rt::fs::private_dir(target.parent().expect("folder")).expect("folder");
        let bytes = photon_rt::fs::read(&f).expect("read");
        let used = used(&bytes);
        photon_rt::fs::write_atomic(&target, &bytes[..used], 0o600).expect("write");
        let file = photon_rt::fs::OpenOptions::new().write(true).open(&target).expect("open");
        file.set_len(bytes.len() as u64).expect("length");
    }
}

fn state(e: &FjallEngine) -> EngineResult<State> {
    let view = e.view();
    let all = |s| view.scan(s, KeyRange::all(), Direction::Forward).collect::<EngineResult<BTreeMap<_, _>>>();
    Ok([all(A)?, all(B)?])
}

#[test]
fn a_flipped_bit_is_an_error_or_takes_the_newest_batches_away() {
    let dir = tempfile::tempdir().expect("temp dir");
    let whole = dir.path().join("whole");
    let e = open(&whole).expect("open");
    for n in 1..=BATCHES {
        e.write(batch(n)).expect("write");
    }
    e.persist().expect("persist");
    drop(e);
    let all = files(&whole);
    assert!(all.iter().any(|f| f.components().any(|c| c.as_os_str() == "tables")), "{all:?}");
    let mut rng = Rng::new(7);
    let (mut errors, mut shorter, mut same) = (0, 0, 0);
    for trial in 0..40 {
        let torn = dir.path().join(format!("t{trial}"));
        copy(&whole, &torn);
        let candidates: Vec<PathBuf> =
            files(&torn).into_iter().filter(|f| f.file_name().is_some_and(|n| n != "lock")).collect();
        let file = &candidates[rng.below(candidates.len() as u64) as usize];
        let bytes = photon_rt::fs::read(file).expect("read");
        let used = used(&bytes);
        if used == 0 {
            continue;
        }
        let (at, bit) = (rng.below(used as u64), rng.below(8));
        let f = photon_rt::fs::OpenOptions::new().write(true).open(file).expect("open");
        f.write_all_at(&[bytes[at as usize] ^ 1 << bit], at).expect("flip");
        drop(f);
        let what = format!("bit {bit} of byte {at} of {}", file.display());
        // Twice: what is found once must not be forgotten.
        let mut heard = Vec::new();
        for _ in 0..2 {
            match open(&torn).and_then(|e| state(&e)) {
                Ok(s) => {
                    let n = s[0]
                        .get(&b"n"[..])
                        .map_or(0, |v| String::from_utf8_lossy(v).parse().expect("number"));
                    assert!(s == after(n), "{what}: a state that was not, at {n}");
                    heard.push(Some(n));
                }
                Err(e) => {
                    assert!(e.is_damage(), "{what}: {e}");
                    heard.push(None);
                }
            }
        }
        match heard[..] {
            [None, None] => errors += 1,
            [Some(a), Some(b)] if a == b && a == BATCHES => same += 1,
            [Some(a), Some(b)] if a == b => shorter += 1,
            _ => panic!("{what}: {heard:?}"),
        }
        photon_rt::fs::remove_dir_all(&torn).expect("clean");
    }
    assert!(errors > 10, "{errors} errors, {shorter} shorter, {same} the same");
}

#[test]
fn damage_under_a_running_engine_is_told_once_and_for_all() {
    let dir = tempfile::tempdir().expect("temp dir");
    let e = open(dir.path()).expect("open");
    for n in 1..=BATCHES {
        e.write(batch(n)).expect("write");
    }
    e.persist().expect("persist");
    drop(e);
    let e = open(dir.path()).expect("open");
    for path in files(dir.path()).into_iter().filter(|f| f.to_string_lossy().contains("tables")) {
        let bytes = photon_rt::fs::read(&path).expect("read");
        let f = photon_rt::fs::OpenOptions::new().write(true).open(&path).expect("open");
        for at in (0..bytes.len()).step_by(200) {
            f.write_all_at(&[bytes[at] ^ 1], at as u64).expect("flip");
        }
    }
    assert!(e.damage().is_none(), "nobody has looked");
    let found = state(&e).expect_err("damaged");
    assert!(found.is_damage(), "{found}");
    assert!(e.damage().is_some());
}

/// fjall's own wait for its worker never ends once that has died of damage; and without a worker that seals write
/// buffers there may be nothing to wait for.
#[test]
fn writing_on_over_damaged_tables_ends_with_an_error() {
    let dir = tempfile::tempdir().expect("dir");
    let e = open(dir.path()).expect("opens");
    let tables = || files(dir.path()).into_iter().filter(|f| f.to_string_lossy().contains("/tables/"));
    let (mut n, mut damaged) = (0, std::collections::HashSet::new());
    let ended = loop {
        n += 1;
        if let Err(e) = e.write(batch(n)) {
            break e;
        }
        assert!(n < 200_000, "it writes on for ever");
        if n % 3_000 == 0 {
            // Each once: a bit flipped twice is whole again.
            for path in tables().filter(|p| damaged.insert(p.clone())) {
                // Some are gone by now: merged, as long as that works.
                let Ok(file) = photon_rt::fs::OpenOptions::new().read(true).write(true).open(&path) else {
                    continue;
                };
                let (mut at, mut byte) = (0, [0]);
                while file.read_exact_at(&mut byte, at).is_ok() {
                    file.write_all_at(&[byte[0] ^ 1], at).expect("flip");
                    at += 500;
                }
            }
        }
    };
    assert!(matches!(ended, EngineError::Damaged(_) | EngineError::Failed(_)), "{ended:?}");
}
