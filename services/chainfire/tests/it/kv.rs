//! ChainFire as the kernel's store.

use crate::harness::Server;
use chainfire::{ChainFire, ChainFireConfig};
use photon_kv::{Check, Direction, KvError, MemKv, Range, ReadAt, Write, conformance};

async fn open() -> (tempfile::TempDir, ChainFire) {
    let dir = tempfile::tempdir().expect("temp dir");
    let c = ChainFire::open(ChainFireConfig::new(dir.path())).await.expect("opens");
    (dir, c)
}

#[tokio::test(flavor = "multi_thread")]
async fn chainfire_conforms() {
    let (_dir, c) = open().await;
    conformance::all(c.kv()).await;
    c.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn chainfire_equals_the_model() {
    for seed in 1..=6 {
        let (_dir, c) = open().await;
        conformance::equal(&*c.kv(), &MemKv::new(), seed, 400).await;
        c.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn watches_read_history_that_left_the_ring() {
    let dir = tempfile::tempdir().expect("temp dir");
    let config = ChainFireConfig { watch_ring: 2_000, ..ChainFireConfig::new(dir.path()) };
    let s = Server::with(config).await;
    conformance::all(s.chainfire.kv()).await;
    s.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn compaction_is_told_to_reads_and_watches() {
    use chainfire::wire::etcdserverpb::{CompactionRequest, kv_client::KvClient};
    use futures::StreamExt;
    let dir = tempfile::tempdir().expect("temp dir");
    let s = Server::start(dir.path()).await;
    let kv = s.chainfire.kv();
    for i in 0..10u8 {
        kv.commit(vec![], vec![Write::Put("k".into(), vec![i].into())]).await.expect("commit");
    }
    let mut client = KvClient::new(crate::harness::channel(&s.operator).await);
    client.compact(CompactionRequest { revision: 8, physical: true }).await.expect("compact");
    assert_eq!(kv.get(b"k", ReadAt::Revision(7)).await, Err(KvError::Compacted(8)));
    assert!(kv.get(b"k", ReadAt::Revision(8)).await.expect("kept").is_some());
    let mut w = kv.watch(Range::key("k"), 7);
    assert_eq!(w.next().await, Some(Err(KvError::Compacted(8))));
    assert_eq!(w.next().await, None);
    let mut w = kv.watch(Range::key("k"), 8);
    assert_eq!(w.next().await.expect("event").expect("kept").revision, 8);
    s.stop().await;
}

/// What was acknowledged is there after a stop without any farewell, and history goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_restart_loses_nothing() {
    let dir = tempfile::tempdir().expect("temp dir");
    let mut revision = 1;
    for round in 0..4u64 {
        let c = ChainFire::open(ChainFireConfig::new(dir.path())).await.expect("opens");
        let kv = c.kv();
        let page =
            kv.scan(Range::prefix("k"), ReadAt::Latest, 1_000, Direction::Forward).await.expect("scan");
        assert_eq!((page.items.len() as u64, page.revision), (round * 50, revision));
        for i in 0..50 {
            let key = format!("k{:04}", round * 50 + i);
            let checks = vec![Check::absent(key.clone())];
            revision =
                kv.commit(checks, vec![Write::Put(key.into(), "v".into())]).await.expect("commit").revision;
        }
        assert_eq!(revision, 1 + (round + 1) * 50);
        if round % 2 == 0 {
            drop(kv);
            drop(c); // as a crash: nothing is flushed or checkpointed on purpose
            photon_rt::time::sleep(photon_rt::time::Duration::from_millis(500)).await;
        } else {
            c.shutdown().await;
        }
    }
}
