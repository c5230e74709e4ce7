//! A running etcd is copied: 10,000 keys, leases, and writes that go on meanwhile.

use crate::harness::{Etcd as RealEtcd, Server};
use chainfire::import::{Import, Progress, import};
use photon_base::Code;
use photon_etcd::{
    Config, Etcd, RangeQuery,
    proto::{
        etcdserverpb::{DeleteRangeRequest, PutRequest, RequestOp, TxnRequest, request_op::Request},
        mvccpb::KeyValue,
    },
};
use photon_lab::proxy::Proxy;
use photon_rt::{
    entropy::Rng,
    task::Tasks,
    time::{Duration, timeout},
};
use std::{
    future::Pending,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};
use tokio::sync::oneshot;

async fn client(url: &str) -> Etcd {
    Etcd::open(Config::new(url).expect("url")).await.expect("connects")
}

async fn send(c: &Etcd, ops: Vec<Request>) {
    let success = ops.into_iter().map(|r| RequestOp { request: Some(r) }).collect();
    c.txn(TxnRequest { success, ..Default::default() }, false).await.expect("txn");
}

fn put(key: String, value: Vec<u8>, lease: i64) -> Request {
    Request::RequestPut(PutRequest { key: key.into(), value: value.into(), lease, ..Default::default() })
}

/// Keys, values and leases, without revisions.
async fn all(c: &Etcd, revision: i64) -> Vec<(String, Vec<u8>, i64)> {
    let plain = |kv: KeyValue| (String::from_utf8_lossy(&kv.key).into_owned(), kv.value.to_vec(), kv.lease);
    let (mut found, mut start) = (Vec::new(), Vec::new());
    loop {
        let q = RangeQuery { start: start.into(), revision, limit: 5000, ..Default::default() };
        let page = c.range(q, true).await.expect("range");
        start = page.kvs.last().map(|kv| [&kv.key[..], &[0]].concat()).unwrap_or_default();
        found.extend(page.kvs.into_iter().map(plain));
        if !page.more {
            return found;
        }
    }
}

async fn fill(c: &Etcd, short: i64) {
    for (id, ttl) in [(11, short), (12, 600)] {
        c.grant(id, ttl).await.expect("grant");
    }
    for chunk in 0..100 {
        let ops = (0..100).map(|i| {
            let n = chunk * 100 + i;
            let lease = [0, 0, 0, 11, 12][n % 5];
            put(format!("k/{n:05}"), format!("value {n}").repeat(n % 20).into_bytes(), lease)
        });
        send(c, ops.collect()).await;
    }
}

/// Writes until told to stop: puts, deletes, puts under leases old and new.
async fn busy(c: Etcd, stop: Arc<AtomicBool>) {
    let mut dice = Rng::new(9);
    let mut leases = vec![11, 12];
    while !stop.load(SeqCst) {
        let key = format!("k/{:05}", dice.below(12_000));
        match dice.below(12) {
            0..=2 => {
                let gone = DeleteRangeRequest { key: key.into(), ..Default::default() };
                send(&c, vec![Request::RequestDeleteRange(gone)]).await;
            }
            3 if leases.len() < 50 => {
                leases.push(c.grant(0, 3 + dice.below(100) as i64).await.expect("grant"))
            }
            4 => {
                // Many keys end at once.
                let (key, range_end) =
                    (format!("k/{:03}", dice.below(100)), format!("k/{:03}~", dice.below(100)));
                let gone =
                    DeleteRangeRequest { key: key.into(), range_end: range_end.into(), ..Default::default() };
                if dice.below(20) == 0 {
                    send(&c, vec![Request::RequestDeleteRange(gone)]).await;
                }
            }
            5 => {
                let ops = (0..40).map(|i| put(format!("m/{i}"), vec![dice.below(256) as u8], 0)).collect();
                send(&c, ops).await;
            }
            n => {
                let lease = if n % 2 == 0 { 0 } else { leases[dice.below(leases.len() as u64) as usize] };
                if lease == 0 || c.time_to_live(lease, false).await.expect("asked").ttl > 1 {
                    send(&c, vec![put(key, vec![dice.below(256) as u8; 20], lease)]).await;
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn import_follows_a_busy_etcd_to_the_last_change() {
    let (dir, ours) = (tempfile::tempdir().expect("temp dir"), tempfile::tempdir().expect("temp dir"));
    let etcd = RealEtcd::start(dir.path()).await;
    let server = Server::start(ours.path()).await;
    let source = client(&etcd.url).await;
    fill(&source, 20).await;
    let mut kept = source.keep_alive(11, 20);
    let before = Proxy::before(&etcd.url, 5).await;
    let behind = Proxy::before(&server.operator, 6).await;
    // Two ways to each, and both lose connections now and then.
    let (from, to) =
        (client(&format!("{0},{0}", before.url)).await, client(&format!("{0},{0}", behind.url)).await);
    before.lose(3);
    behind.lose(3);
    let tasks = Tasks::new();
    let stop = Arc::new(AtomicBool::new(false));
    let writes = tasks.spawn("busy", busy(source.clone(), stop.clone()));
    let (cut, cut_over) = oneshot::channel();
    let (seen, progress) = tokio::sync::watch::channel(Progress::default());
    let (f, t) = (from.clone(), to.clone());
    let importing = tasks.spawn("import", async move {
        let until = async {
            let _ = cut_over.await; // told, or the test is over
        };
        import(&f, &t, Import::default(), Some(until), |p| {
            seen.send_replace(*p);
        })
        .await
    });
    let mut watched = progress.clone();
    let tail = watched.wait_for(|p| p.followed > 0 && p.changes > 500);
    timeout(Duration::from_secs(120), "five hundred changes", tail).await.expect("in time").expect("goes on");
    stop.store(true, SeqCst);
    writes.await.expect("no panic");
    let last = source.now().await.expect("revision");
    cut.send(()).expect("it listens");
    let done = timeout(Duration::from_secs(60), "the end", importing).await.expect("in time");
    let done = done.expect("no panic").expect("not cancelled").expect("the import succeeds");
    assert!(done.followed >= last && done.keys >= 9_000 && done.left_out == 0, "{done:?}");
    // Leases end meanwhile, on both sides: those that live are compared, with their keys.
    let target = client(&server.operator).await;
    let (a, b) = (all(&source, 0).await, all(&target, 0).await);
    let mut lasting = (Vec::new(), Vec::new());
    for (side, keys) in [(&mut lasting.0, &a), (&mut lasting.1, &b)] {
        side.extend(keys.iter().filter(|(_, _, lease)| [0, 11, 12].contains(lease)).cloned());
    }
    assert!(lasting.0.len() > 3_000, "{}", lasting.0.len());
    assert_eq!(lasting.0.len(), lasting.1.len());
    assert!(lasting.0 == lasting.1, "key by key");
    for (key, value, lease) in a.iter().filter(|(_, _, lease)| ![0, 11, 12].contains(lease)) {
        if source.time_to_live(*lease, false).await.expect("asked").ttl > 3 {
            assert!(b.iter().any(|x| x == &(key.clone(), value.clone(), *lease)), "{key} of lease {lease}");
        }
    }
    for (id, ttl) in [(11, 20), (12, 600)] {
        let left = target.time_to_live(id, false).await.expect("asked");
        assert!(left.granted_ttl == ttl && left.ttl > 0, "{left:?}");
    }
    assert!(timeout(Duration::from_millis(1), "its end", kept.lost()).await.is_err(), "the holder lost it");
    // A holder that comes over goes on with its lease; when the lease ends, its keys do.
    assert_eq!(target.renew(11).await.expect("renewed"), 20);
    target.revoke(11).await.expect("revoked");
    assert!(all(&target, 0).await.iter().all(|(_, _, lease)| *lease != 11));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn import_copies_one_revision_and_keeps_off_what_is_there() {
    let (dir, ours) = (tempfile::tempdir().expect("temp dir"), tempfile::tempdir().expect("temp dir"));
    let etcd = RealEtcd::start(dir.path()).await;
    let server = Server::start(ours.path()).await;
    let (from, to) = (client(&etcd.url).await, client(&server.operator).await);
    fill(&from, 300).await;
    send(&from, vec![put("/photon.internal/r/vm/p/a".into(), b"x".to_vec(), 0)]).await;
    // Values that make a page larger than an answer may be.
    for i in 0..70 {
        send(&from, vec![put(format!("big/{i}"), vec![i; 1 << 20], 0)]).await;
    }
    let never = || None::<Pending<()>>;
    let part = Import { prefix: "k/001".into(), ..Default::default() };
    let done = import(&from, &to, part, never(), |_| {}).await.expect("a part");
    assert_eq!((done.keys, done.total, done.leases), (100, 100, 2));
    let e = import(&from, &to, Import::default(), never(), |_| {}).await.expect_err("not empty");
    assert!(e.code == Code::Conflict && e.report().contains("--merge"), "{e}");
    assert_eq!(all(&to, 0).await.len(), 100, "nothing was written");
    let mut pages = 0;
    let merge = Import { merge: true, ..Default::default() };
    let done = import(&from, &to, merge, never(), |_| pages += 1).await.expect("merged");
    assert_eq!((done.keys, done.left_out, done.changes), (10_070, 1, 0));
    assert!(pages > 5);
    let mut want = all(&from, done.revision).await;
    want.retain(|(key, ..)| !key.starts_with("/photon.internal/"));
    let got = all(&to, 0).await;
    let lasting =
        |all: Vec<(String, Vec<u8>, i64)>| all.into_iter().filter(|x| x.2 != 11).collect::<Vec<_>>();
    assert!(lasting(want) == lasting(got), "key by key");
    let e = import(&to, &client(&server.operator).await, Import::default(), never(), |_| {}).await;
    assert_eq!(e.expect_err("itself").code, Code::Invalid);
    server.stop().await;
}
