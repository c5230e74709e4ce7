//! One node with all its regions: transactions while ranges change, restarts, refusals.

use bytes::Bytes;
use flaredb::{
    Node, Refusal,
    client::{Isolation, Options, Request, Response, Txn, World, gc, raw},
    key::{self, Mode, Span},
    model::{Op, command::*, read::Snapshot},
    time,
};
use photon_kv::Direction;
use photon_rt::task::Tasks;

pub fn k(n: u64) -> Bytes {
    key::key(Mode::Txn, format!("k{n:04}").as_bytes()).expect("short")
}

pub fn number(v: Option<Bytes>) -> u64 {
    v.map_or(0, |v| u64::from_be_bytes(v[..].try_into().expect("eight bytes")))
}

async fn set(node: &Node, keys: &[u64], value: u64) {
    let mut t = Txn::begin(node.clone(), Options::default()).await.expect("begin");
    for n in keys {
        t.put(k(*n), value.to_be_bytes().to_vec()).expect("small");
    }
    t.commit().await.expect("commit");
}

async fn get(node: &Node, n: u64) -> u64 {
    let mut t = Txn::begin(node.clone(), Options::default()).await.expect("begin");
    number(t.get(&k(n)).await.expect("get"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_finds_everything() {
    let dir = tempfile::tempdir().expect("temp dir");
    let node = Node::open(dir.path()).await.expect("open");
    set(&node, &[1, 500, 900], 7).await;
    let two = node.split(key::border(&k(400)).expect("border")).await.expect("split");
    let three = node.split(key::border(&k(800)).expect("border")).await.expect("split");
    assert_eq!((two.len(), three[1].id), (2, 3));
    set(&node, &[1, 500, 900], 8).await;
    let last = node.timestamp().await.expect("timestamp");
    node.shutdown().await;
    drop(node);

    let node = Node::open(dir.path()).await.expect("open again");
    assert_eq!(node.regions().len(), 3);
    assert!(node.timestamp().await.expect("timestamp") > last, "time went back");
    assert_eq!((get(&node, 1).await, get(&node, 500).await, get(&node, 900).await), (8, 8, 8));
    let one = node.merge(2).await.expect("merge");
    assert_eq!((one.start.clone(), one.end.clone()), (Bytes::new(), three[1].start.clone()));
    let all = node.merge(3).await.expect("merge");
    assert_eq!(all.span(), Span::all());
    assert!(matches!(node.merge(1).await, Err(Refusal::Malformed(_))));
    set(&node, &[500], 9).await;
    // A number is not given twice, whatever became of its region.
    let again = node.split(key::border(&k(400)).expect("border")).await.expect("split");
    assert_eq!(again[1].id, 4);
    assert_eq!(node.measure(4).await.expect("measure").1, key::border(&k(900)));
    // Without a word of goodbye.
    node.stop("test");
    drop(node);
    let node = Node::open(dir.path()).await.expect("open a third time");
    assert_eq!(node.regions().len(), 2);
    assert_eq!((get(&node, 1).await, get(&node, 500).await, get(&node, 900).await), (8, 9, 8));
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn money_is_moved_while_ranges_change() {
    const ACCOUNTS: u64 = 20;
    let dir = tempfile::tempdir().expect("temp dir");
    let node = Node::open(dir.path()).await.expect("open");
    let all: Vec<u64> = (0..ACCOUNTS).collect();
    set(&node, &all, 100).await;
    let tasks = Tasks::new();
    let movers: Vec<_> = (0..6u64)
        .map(|w| {
            let node = node.clone();
            tasks.spawn("mover", async move {
                let options = Options {
                    isolation: if w % 2 == 0 { Isolation::Snapshot } else { Isolation::Serializable },
                    pessimistic: w == 0,
                    async_commit: w < 4,
                    ..Options::default()
                };
                let mut done = 0;
                while done < 40 {
                    let (a, b) = (node.draw(ACCOUNTS), node.draw(ACCOUNTS));
                    if a == b {
                        continue;
                    }
                    let mut t = Txn::begin(node.clone(), options).await.expect("begin");
                    let (x, y) = if options.pessimistic {
                        (t.get_for_update(&k(a)).await, t.get_for_update(&k(b)).await)
                    } else {
                        (t.get(&k(a)).await, t.get(&k(b)).await)
                    };
                    let (Ok(x), Ok(y)) = (x, y) else {
                        t.rollback().await.expect("rollback");
                        continue;
                    };
                    let (x, y) = (number(x), number(y));
                    let amount = node.draw(10).min(x);
                    t.put(k(a), (x - amount).to_be_bytes().to_vec()).expect("small");
                    t.put(k(b), (y + amount).to_be_bytes().to_vec()).expect("small");
                    done += u64::from(t.commit().await.is_ok());
                }
            })
        })
        .collect();
    let mut audits = 0;
    let mut round = 0u64;
    while !movers.iter().all(|m| m.is_finished()) || round < 20 {
        round += 1;
        let regions = node.regions();
        if round.is_multiple_of(2) && regions.len() > 1 {
            let at = 1 + node.draw(regions.len() as u64 - 1) as usize;
            node.merge(regions[at].id).await.expect("merge");
        } else {
            let at = key::border(&k(node.draw(ACCOUNTS))).expect("border");
            match node.split(at).await {
                Ok(_) | Err(Refusal::OutOfRange(_)) => {}
                Err(e) => panic!("split: {e}"),
            }
        }
        let mut t = Txn::begin(node.clone(), Options::default()).await.expect("begin");
        let way = if round.is_multiple_of(3) { Direction::Backward } else { Direction::Forward };
        let rows = t.scan(&Span::prefix(Mode::Txn, b"k"), way, 100).await.expect("scan");
        let total: u64 = rows.into_iter().map(|r| number(Some(r.value))).sum();
        assert_eq!(total, 100 * ACCOUNTS, "round {round}");
        audits += 1;
    }
    for m in movers {
        m.await.expect("no panic").expect("not cancelled");
    }
    assert!(audits >= 20);
    let safe = node.timestamp().await.expect("timestamp");
    gc::collect(&node, safe, 100).await.expect("collect");
    let mut t = Txn::begin(node.clone(), Options::default()).await.expect("begin");
    let rows = t.scan(&Span::prefix(Mode::Txn, b"k"), Direction::Forward, 100).await.expect("scan");
    assert_eq!(rows.iter().map(|r| number(Some(r.value.clone()))).sum::<u64>(), 100 * ACCOUNTS);
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn large_regions_split_between_row_groups() {
    let dir = tempfile::tempdir().expect("temp dir");
    let node = Node::open(dir.path()).await.expect("open");
    let row =
        |group: u32, n: u32| key::in_group(Mode::Txn, &group.to_be_bytes(), &n.to_be_bytes()).expect("short");
    let options = Options { one_phase: true, ..Options::default() };
    for group in 0..20 {
        let mut t = Txn::begin(node.clone(), options).await.expect("begin");
        // The third group alone is larger than a region should be.
        for n in 0..if group == 3 { 100 } else { 10 } {
            t.put(row(group, n), vec![1; 2000]).expect("small");
        }
        t.commit().await.expect("commit");
    }
    const MAX: u64 = 100_000;
    while node.tend(MAX).await.expect("tend") > 0 {}
    let regions = node.regions();
    assert!(regions.len() >= 5, "{regions:?}");
    for r in &regions {
        let (size, middle) = node.measure(r.id).await.expect("measure");
        assert!(size <= MAX || middle.is_none(), "region {} has {size} bytes", r.id);
    }
    for group in 0..20 {
        let owner = |n| regions.iter().find(|r| r.span().contains(&row(group, n))).expect("an owner").id;
        assert!((0..100).all(|n| owner(n) == owner(0)), "row group {group} was split");
    }
    let mut t = Txn::begin(node.clone(), Options::default()).await.expect("begin");
    let rows = t.scan(&Span::prefix(Mode::Txn, b""), Direction::Forward, 1000).await.expect("scan");
    assert_eq!(rows.len(), 19 * 10 + 100);
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_transaction_is_one_transaction() {
    let dir = tempfile::tempdir().expect("temp dir");
    let node = Node::open(dir.path()).await.expect("open");
    for n in [1000, 2000] {
        node.split(key::border(&k(n)).expect("border")).await.expect("split");
    }
    let mut t = Txn::begin(node.clone(), Options { ttl_ms: 500, ..Options::default() }).await.expect("begin");
    for n in 0..3000 {
        // Twelve of the longest values there are.
        let bytes = if n % 250 == 0 { key::MAX_VALUE } else { 100 };
        t.put(k(n), vec![n as u8; bytes]).expect("within limits");
    }
    let before = node.timestamp().await.expect("timestamp");
    t.commit().await.expect("commit");
    let mut count = 0;
    let mut span = Span::prefix(Mode::Txn, b"k");
    let mut t = Txn::begin(node.clone(), Options::default()).await.expect("begin");
    loop {
        let rows = t.scan(&span, Direction::Forward, 700).await.expect("scan");
        let Some(last) = rows.last() else { break };
        span.start = key::after(&last.key);
        assert!(rows.iter().all(|r| r.version > before));
        count += rows.len();
    }
    assert_eq!(count, 3000);
    // Backward, over all regions, with own writes and deletions.
    t.delete(k(2999)).expect("small");
    t.delete(k(1000)).expect("small");
    t.put(k(1500), "own").expect("small");
    let span = Span::between(Mode::Txn, b"k0900", b"k9999");
    let rows = t.scan(&span, Direction::Backward, 2500).await.expect("scan");
    assert_eq!((rows.len(), rows[0].key.clone(), rows[2097].key.clone()), (2098, k(2998), k(900)));
    assert!(rows.windows(2).all(|w| w[0].key > w[1].key) && rows[2998 - 1500].value == "own");
    let few = t.scan(&span, Direction::Backward, 3).await.expect("scan");
    assert_eq!(few, rows[..3]);
    let too_large = t.put(k(1), vec![0; key::MAX_VALUE + 1]);
    assert!(matches!(too_large, Err(Refusal::ValueTooLarge { .. })));
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_is_named_and_changes_nothing() {
    let dir = tempfile::tempdir().expect("temp dir");
    let node = Node::open(dir.path()).await.expect("open");
    set(&node, &[1], 1).await;
    let old = node.regions().remove(0);
    node.split(key::border(&k(5)).expect("border")).await.expect("split");
    let now = node.timestamp().await.expect("timestamp");
    let read = |at| Request::Get(k(1), Snapshot::at(at));
    let stale = node.ask(&old, read(now)).await;
    assert!(matches!(stale, Err(Refusal::StaleEpoch(d)) if d.version == 2));
    let region = node.locate(&k(1)).await.expect("region");
    let far = time::at_ms(time::ms(now) + 3_600_000);
    let future = node.ask(&region, read(far)).await;
    assert!(matches!(future, Err(Refusal::FromTheFuture { .. })), "{future:?}");
    assert_eq!(node.ask(&region, read(now | 1)).await, Err(Refusal::NotATimestamp(now | 1)));
    let outside = Request::Get(k(9), Snapshot::at(now));
    assert_eq!(node.ask(&region, outside).await, Err(Refusal::OutOfRange(1)));
    let raw = |checks: Vec<RawCheck>, value: &str| {
        let key = key::key(Mode::Raw, b"a").expect("short");
        let write = RawWrite { key: key.clone(), value: Some(value.to_string().into()) };
        (Request::Do(Op::Raw(RawCommit { checks, writes: vec![write] })), key)
    };
    let (put, a) = raw(vec![], "1");
    let first = node.locate(&a).await.expect("region");
    assert!(matches!(node.ask(&first, put).await, Ok(Response::Done(_))));
    let want = RawCheck { key: a.clone(), want: Some(Want::Value("2".into())) };
    let refused = Refusal::CheckFailed { index: 0, version: 1, value: Some("1".into()) };
    assert_eq!(node.ask(&first, raw(vec![want], "3").0).await, Err(refused));
    assert_eq!(raw::get(&node, &a).await.expect("get").expect("there").0, "1");
    assert_eq!(get(&node, 1).await, 1);
    node.shutdown().await;
}

/// Reads beyond what is remembered one by one become one range: it must hold all of them, the last, too.
#[tokio::test(flavor = "multi_thread")]
async fn many_reads_are_all_looked_at_again() {
    let dir = tempfile::tempdir().expect("temp dir");
    let node = Node::open(dir.path()).await.expect("open");
    let options = Options { isolation: Isolation::Serializable, ..Options::default() };
    for changed in [None, Some(0), Some(1500), Some(2999)] {
        let mut t = Txn::begin(node.clone(), options).await.expect("begin");
        for n in (0..3000).rev().step_by(2) {
            t.get(&k(n)).await.expect("get");
        }
        t.get(&k(0)).await.expect("get");
        t.get(&k(1500)).await.expect("get");
        if let Some(n) = changed {
            set(&node, &[n], 1).await;
        }
        t.put(k(5000), b"x".to_vec()).expect("small");
        assert_eq!(t.commit().await.is_err(), changed.is_some(), "{changed:?}");
    }
    node.shutdown().await;
}
