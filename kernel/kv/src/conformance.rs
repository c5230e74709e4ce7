//! What every [`Kv`] must do, as tests to be called with a fresh store of each kind: [`all`] by hand
//! chosen cases, [`equal`] by random ones against another store (usually [`crate::MemKv`]).
//!
//! They panic where a store is wrong, and use only keys under one prefix, so that a store that
//! already holds something else can be tested too. Revisions are compared relative to where the store
//! was when the test began.

use crate::{
    Change, Check, Committed, Direction, Events, Kv, KvError, Page, Range, ReadAt, Revision, Versioned,
    Watch, Write,
};
use bytes::Bytes;
use futures::StreamExt;
use photon_rt::{
    entropy::Rng,
    time::{Duration, timeout},
};
use std::sync::Arc;

const PREFIX: &[u8] = b"/conformance/";

fn key(name: &str) -> Bytes {
    [PREFIX, name.as_bytes()].concat().into()
}

fn put(name: &str, value: &str) -> Write {
    Write::Put(key(name), Bytes::copy_from_slice(value.as_bytes()))
}

async fn commit(kv: &dyn Kv, writes: Vec<Write>) -> Revision {
    kv.commit(vec![], writes).await.expect("an unconditional commit succeeds").revision
}

/// The next changes. A store may also say how far a watch is; that is left out here.
async fn next(w: &mut Watch) -> Events {
    loop {
        let item = timeout(Duration::from_secs(10), "an event", w.next()).await.expect("an event comes");
        let events = item.expect("the watch goes on").expect("the watch works");
        if !events.changes.is_empty() {
            return events;
        }
    }
}

/// Runs every case on `kv`.
pub async fn all(kv: Arc<dyn Kv>) {
    revisions_and_marks(&*kv).await;
    checks(&*kv).await;
    commits_are_whole(&*kv).await;
    scans(&*kv).await;
    history(&*kv).await;
    watches(&*kv).await;
    watches_under_load(&kv).await;
    one_winner(&kv).await;
}

async fn revisions_and_marks(kv: &dyn Kv) {
    let a = commit(kv, vec![put("r/a", "1")]).await;
    let b = commit(kv, vec![put("r/a", "2"), put("r/b", "1")]).await;
    assert_eq!(b, a + 1, "revisions rise by one");
    let got = kv.get(&key("r/a"), ReadAt::Latest).await.expect("get").expect("there");
    assert_eq!(got, Versioned { key: key("r/a"), value: "2".into(), created: a, modified: b });
    assert_eq!(
        commit(kv, vec![Write::Delete(key("r/none"))]).await,
        b,
        "nothing happened, nothing is counted"
    );
    let d = commit(kv, vec![Write::Delete(key("r/a")), Write::Delete(key("r/none"))]).await;
    assert_eq!(d, b + 1);
    assert_eq!(kv.get(&key("r/a"), ReadAt::Latest).await.expect("get"), None);
    let again = commit(kv, vec![put("r/a", "3")]).await;
    let got = kv.get(&key("r/a"), ReadAt::Local).await.expect("get").expect("there");
    assert_eq!((got.created, got.modified), (again, again), "a new life begins");
    assert_eq!(commit(kv, vec![]).await, again);
    assert_eq!(commit(kv, vec![put("r/empty", "")]).await, again + 1);
    let got = kv.get(&key("r/empty"), ReadAt::Latest).await.expect("get").expect("an empty value is a value");
    assert!(got.value.is_empty());
}

async fn checks(kv: &dyn Kv) {
    let r = commit(kv, vec![put("c/a", "1")]).await;
    let try_ = async |checks: Vec<Check>| kv.commit(checks, vec![put("c/b", "x")]).await;
    let failed = |i| Err(KvError::CheckFailed(i));
    assert_eq!(try_(vec![Check::absent(key("c/a"))]).await, failed(0));
    assert_eq!(try_(vec![Check::Present(key("c/a")), Check::Present(key("c/none"))]).await, failed(1));
    assert_eq!(try_(vec![Check::Modified(key("c/a"), r + 1)]).await, failed(0));
    assert_eq!(try_(vec![Check::Modified(key("c/none"), 0)]).await, failed(0), "absence is no revision");
    assert_eq!(try_(vec![Check::Absent(Range::prefix(key("c/")))]).await, failed(0));
    assert_eq!(
        kv.get(&key("c/b"), ReadAt::Latest).await.expect("get"),
        None,
        "a refused commit writes nothing"
    );
    let ok = try_(vec![
        Check::Modified(key("c/a"), r),
        Check::Absent(Range::prefix(key("c/x"))),
        Check::Absent(Range { start: key("c/b"), end: key("c/c") }),
        Check::Absent(Range { start: key("c/z"), end: key("c/b") }),
    ]);
    assert_eq!(ok.await, Ok(Committed { revision: r + 1 }));
    assert_eq!(kv.commit(vec![Check::Present(key("c/none"))], vec![]).await, failed(0), "checks alone");
    assert_eq!(kv.commit(vec![Check::Present(key("c/b"))], vec![]).await, Ok(Committed { revision: r + 1 }));
}

async fn commits_are_whole(kv: &dyn Kv) {
    let twice = kv.commit(vec![], vec![put("w/a", "1"), Write::Delete(key("w/a"))]).await;
    assert!(matches!(twice, Err(KvError::Invalid(_))), "{twice:?}");
    assert_eq!(kv.get(&key("w/a"), ReadAt::Latest).await.expect("get"), None);
    let many: Vec<Write> = (0..200).map(|i| put(&format!("w/many/{i:03}"), "x")).collect();
    let r = commit(kv, many).await;
    let page =
        kv.scan(Range::prefix(key("w/many/")), ReadAt::Latest, 1000, Direction::Forward).await.expect("scan");
    assert_eq!((page.items.len(), page.more, page.revision), (200, false, r));
    assert!(page.items.iter().all(|v| v.modified == r && v.created == r));
}

fn names(p: &Page) -> Vec<String> {
    p.items.iter().map(|v| String::from_utf8_lossy(&v.key[PREFIX.len()..]).into_owned()).collect()
}

async fn scans(kv: &dyn Kv) {
    commit(kv, ["s/a", "s/b", "s/b\0", "s/c", "s/d"].map(|n| put(n, "x")).into()).await;
    let all = Range::prefix(key("s/"));
    let scan = async |r: &Range, limit, d| kv.scan(r.clone(), ReadAt::Latest, limit, d).await.expect("scan");
    let page = scan(&all, 2, Direction::Forward).await;
    assert_eq!((names(&page), page.more), (vec!["s/a".into(), "s/b".into()], true));
    let page = scan(&all, 2, Direction::Backward).await;
    assert_eq!((names(&page), page.more), (vec!["s/d".into(), "s/c".into()], true));
    let page = scan(&all, 5, Direction::Forward).await;
    assert_eq!((page.items.len(), page.more), (5, false));
    let page = scan(&all, 0, Direction::Forward).await;
    assert_eq!((page.items.len(), page.more), (0, true));
    let page = scan(&Range { start: key("s/b"), end: key("s/d") }, 9, Direction::Backward).await;
    assert_eq!(names(&page), ["s/c", "s/b\0", "s/b"]);
    assert_eq!(names(&scan(&Range::key(key("s/b")), 9, Direction::Forward).await), ["s/b"]);
    let empty = scan(&Range { start: key("s/d"), end: key("s/a") }, 9, Direction::Forward).await;
    assert_eq!((empty.items.len(), empty.more), (0, false));
    let open = scan(&Range { start: key("s/d"), end: Bytes::new() }, 1, Direction::Forward).await;
    assert_eq!(names(&open), ["s/d"]);
}

async fn history(kv: &dyn Kv) {
    let r1 = commit(kv, vec![put("h/a", "1"), put("h/b", "1")]).await;
    let r2 = commit(kv, vec![put("h/a", "2"), Write::Delete(key("h/b"))]).await;
    let r3 = commit(kv, vec![put("h/c", "3")]).await;
    let value = async |name: &str, at| {
        let v = kv.get(&key(name), ReadAt::Revision(at)).await.expect("get");
        v.map(|v| String::from_utf8_lossy(&v.value).into_owned())
    };
    assert_eq!(value("h/a", r1).await.as_deref(), Some("1"));
    assert_eq!(value("h/a", r2).await.as_deref(), Some("2"));
    assert_eq!(value("h/a", r3).await.as_deref(), Some("2"));
    assert_eq!(value("h/b", r1).await.as_deref(), Some("1"));
    assert_eq!(value("h/b", r2).await, None);
    assert_eq!(value("h/a", r1 - 1).await, None);
    for d in [Direction::Forward, Direction::Backward] {
        for (at, want) in [(r1, vec!["h/a", "h/b"]), (r2, vec!["h/a"]), (r3, vec!["h/a", "h/c"])] {
            let page = kv.scan(Range::prefix(key("h/")), ReadAt::Revision(at), 9, d).await.expect("scan");
            let mut got = names(&page);
            if d == Direction::Backward {
                got.reverse();
            }
            assert_eq!((got, page.revision), (want.into_iter().map(String::from).collect(), at));
        }
    }
    let future = kv.get(&key("h/a"), ReadAt::Revision(r3 + 1)).await;
    assert_eq!(future, Err(KvError::Future(r3)));
    let future = kv.scan(Range::prefix(key("h/")), ReadAt::Revision(r3 + 1), 1, Direction::Forward).await;
    assert_eq!(future, Err(KvError::Future(r3)));
}

async fn watches(kv: &dyn Kv) {
    let r1 = commit(kv, vec![put("e/a", "1"), put("x/other", "1"), put("e/b", "1")]).await;
    let mut past = kv.watch(Range::prefix(key("e/")), r1);
    let mut now = kv.watch(Range::prefix(key("e/")), 0);
    let mut later = kv.watch(Range::prefix(key("e/")), r1 + 3);
    let first = next(&mut past).await;
    assert_eq!(
        (first.revision, first.changes.len()),
        (r1, 2),
        "only the range, and the whole revision: {first:?}"
    );
    commit(kv, vec![put("x/other", "2")]).await;
    let r3 = commit(kv, vec![Write::Delete(key("e/b")), put("e/a", "2")]).await;
    for w in [&mut past, &mut now] {
        let e = next(w).await;
        assert_eq!(e.revision, r3);
        assert_eq!(
            e.changes[0],
            Change::Delete { key: key("e/b"), revision: r3 },
            "in the order of the commit"
        );
        let v = Versioned { key: key("e/a"), value: "2".into(), created: r1, modified: r3 };
        assert_eq!(e.changes[1], Change::Put(v));
    }
    let r4 = commit(kv, vec![put("e/c", "1")]).await;
    for w in [&mut past, &mut now, &mut later] {
        assert_eq!(next(w).await.revision, r4);
    }
}

/// Watches that start at every point of a stream of commits see the rest of it, once and in order.
async fn watches_under_load(kv: &Arc<dyn Kv>) {
    const COMMITS: u64 = 200;
    let first = commit(&**kv, vec![put("l/begin", "")]).await + 1;
    let tasks = photon_rt::task::Tasks::new();
    let mut done = Vec::new();
    for offset in (0..COMMITS).step_by(20) {
        let mut w = kv.watch(Range::prefix(key("l/")), first + offset);
        done.push(tasks.spawn("conformance-watch", async move {
            let mut want = first + offset;
            while want < first + COMMITS {
                let e = next(&mut w).await;
                assert_eq!(e.revision, want, "a gap or a duplicate");
                assert_eq!(e.changes.len(), 2, "a torn revision");
                want += 1;
            }
        }));
    }
    for i in 0..COMMITS {
        commit(&**kv, vec![put(&format!("l/{}", i % 7), "x"), put("l/last", "x")]).await;
    }
    for d in done {
        assert_eq!(d.await.expect("no panic"), Some(()));
    }
}

/// Of many that claim a key, one gets it.
async fn one_winner(kv: &Arc<dyn Kv>) {
    let claims = (0..16).map(|i| {
        let kv = kv.clone();
        async move {
            let writes = vec![put("o/claim", &i.to_string())];
            kv.commit(vec![Check::absent(key("o/claim"))], writes).await
        }
    });
    let results = futures::future::join_all(claims).await;
    assert_eq!(results.iter().filter(|r| r.is_ok()).count(), 1);
    assert!(results.iter().all(|r| matches!(r, Ok(_) | Err(KvError::CheckFailed(0)))));
}

/// Plays the same random commits and reads on two stores and compares the answers. Both must be at
/// the same revision, and nobody else may write.
pub async fn equal(a: &dyn Kv, b: &dyn Kv, seed: u64, steps: usize) {
    let mut rng = Rng::new(seed);
    let whole = Range::prefix(PREFIX);
    let start = a.scan(whole.clone(), ReadAt::Latest, 0, Direction::Forward).await.expect("scan").revision;
    let mut revision = start;
    for step in 0..steps {
        let ctx = format!("seed {seed}, step {step}");
        if rng.percent(60) {
            let (checks, writes) = (random_checks(&mut rng, revision), random_writes(&mut rng));
            let x = a.commit(checks.clone(), writes.clone()).await;
            let y = b.commit(checks.clone(), writes.clone()).await;
            assert_eq!(blur(x.clone()), blur(y), "{ctx}: {checks:?} {writes:?}");
            if let Ok(c) = x {
                revision = c.revision;
            }
            continue;
        }
        let at = match rng.below(4) {
            0 => ReadAt::Latest,
            1 => ReadAt::Local,
            _ => ReadAt::Revision((revision + 1).saturating_sub(rng.below(12)).max(start)),
        };
        let k = random_key(&mut rng);
        assert_eq!(a.get(&k, at).await, b.get(&k, at).await, "{ctx}: get {k:?} {at:?}");
        let d = if rng.percent(50) { Direction::Forward } else { Direction::Backward };
        let (range, limit) = (random_range(&mut rng), rng.below(6) as u32);
        let (x, y) = (a.scan(range.clone(), at, limit, d).await, b.scan(range.clone(), at, limit, d).await);
        assert_eq!(x, y, "{ctx}: scan {range:?} {at:?} {limit} {d:?}");
    }
    let (mut x, mut y) = (a.watch(whole.clone(), start + 1), b.watch(whole, start + 1));
    for _ in start..revision {
        assert_eq!(next(&mut x).await, next(&mut y).await, "seed {seed}: history");
    }
}

/// Words of refusals are a store's own.
fn blur(r: Result<Committed, KvError>) -> Result<Committed, KvError> {
    r.map_err(|e| if let KvError::Invalid(_) = e { KvError::Invalid(String::new()) } else { e })
}

fn random_key(rng: &mut Rng) -> Bytes {
    let names = ["a", "a\0", "aa", "ab", "b", "b/", "b/a", "\u{7f}", "\0"];
    key(names[rng.below(names.len() as u64) as usize])
}

fn random_range(rng: &mut Rng) -> Range {
    match rng.below(4) {
        0 => Range::key(random_key(rng)),
        1 => Range::prefix(random_key(rng)),
        2 => Range { start: random_key(rng), end: random_key(rng) },
        _ => Range { start: random_key(rng), end: Bytes::new() },
    }
}

fn random_checks(rng: &mut Rng, revision: Revision) -> Vec<Check> {
    (0..rng.below(3))
        .map(|_| match rng.below(6) {
            0..=1 => Check::Modified(random_key(rng), revision.saturating_sub(rng.below(8))),
            2..=3 => Check::Present(random_key(rng)),
            _ => Check::Absent(random_range(rng)),
        })
        .collect()
}

fn random_writes(rng: &mut Rng) -> Vec<Write> {
    (0..rng.below(4))
        .map(|_| match rng.below(3) {
            0 => Write::Delete(random_key(rng)),
            _ => Write::Put(random_key(rng), vec![b'0' + rng.below(10) as u8].into()),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemKv;

    #[tokio::test]
    async fn the_model_conforms() {
        all(Arc::new(MemKv::new())).await;
        equal(&MemKv::new(), &MemKv::new(), 1, 300).await;
    }
}
