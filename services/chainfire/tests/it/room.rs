//! Disks that get full, as small file systems in memory.

use crate::harness::{Server, channel, etcdctl, ok};
use chainfire::{
    ChainFireConfig,
    wire::etcdserverpb::{
        PutRequest, RequestOp, TxnRequest, kv_client::KvClient, lease_client::LeaseClient,
        request_op::Request, *,
    },
};
use photon_rt::time::{Duration, sleep, timeout};
use std::path::{Path, PathBuf};

/// A mounted file system, unmounted with the value.
struct Small(tempfile::TempDir);

impl Small {
    async fn new(mib: u64) -> Small {
        let me = Small(tempfile::tempdir().expect("temp dir"));
        let (size, dir) = (format!("size={mib}m"), me.0.path().display().to_string());
        let args = ["-t", "tmpfs", "-o", &size, "photon-test", &dir];
        let mounted = photon_rt::process::run("mount", &args, None, Duration::from_secs(10)).await;
        mounted.expect("this test mounts a file system of its own: start it as root");
        me
    }

    fn data(&self) -> PathBuf {
        self.0.path().join("data")
    }

    /// Takes all room but this much.
    fn fill(&self, leave: u64) {
        let free = photon_rt::fs::space(self.0.path()).expect("statvfs").free;
        let take = vec![0; usize::try_from(free.saturating_sub(leave)).expect("small")];
        photon_rt::fs::write_atomic(&self.ballast(), &take, 0o600).expect("ballast");
    }

    fn ballast(&self) -> PathBuf {
        self.0.path().join("ballast")
    }

    fn empty(&self) {
        photon_rt::fs::remove_file(self.ballast()).expect("remove");
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let gone = std::process::Command::new("umount").arg("-l").arg(self.0.path()).status();
        assert!(gone.is_ok_and(|s| s.success()) || std::thread::panicking(), "umount");
    }
}

async fn until(what: &str, mut f: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !f().await {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(Duration::from_secs(60), what, wait).await.expect("in time");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nearly_full_disk_refuses_what_grows_and_serves_again_by_itself() {
    let disk = Small::new(400).await; // keeps a quarter
    let s = Server::start(&disk.data()).await;
    let url = &s.operator;
    ok(url, &["put", "k", "v"]).await;
    ok(url, &["put", "gone", "v"]).await;
    disk.fill(80 << 20);
    until("the alarm", async || ok(url, &["alarm", "list"]).await.contains("alarm:NOSPACE")).await;
    let mut kv = KvClient::new(channel(url).await);
    let put = PutRequest { key: "k".into(), value: "w".into(), ..Default::default() };
    let refused = kv.put(put.clone()).await.expect_err("refused");
    assert_eq!(refused.message(), "etcdserver: mvcc: database space exceeded");
    assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
    let txn = TxnRequest {
        success: vec![RequestOp { request: Some(Request::RequestPut(put)) }],
        ..Default::default()
    };
    assert_eq!(kv.txn(txn).await.expect_err("refused").code(), tonic::Code::ResourceExhausted);
    let grant = LeaseClient::new(channel(url).await).lease_grant(LeaseGrantRequest { id: 0, ttl: 60 }).await;
    assert_eq!(grant.expect_err("refused").message(), "etcdserver: mvcc: database space exceeded");
    assert_eq!(ok(url, &["del", "gone"]).await, "1\n");
    assert_eq!(ok(url, &["get", "k", "--print-value-only"]).await, "v\n");
    ok(url, &["compact", "2"]).await;
    // A restart without room changes nothing, and the alarm is still the member's own.
    s.stop().await;
    let s = Server::start(&disk.data()).await;
    let url = &s.operator;
    etcdctl(url, &["put", "k", "w"], None).await.expect_err("refused");
    disk.empty();
    until("room", async || ok(url, &["alarm", "list"]).await.is_empty()).await;
    ok(url, &["put", "k", "w"]).await;
    s.stop().await;
}

async fn fill_up(url: &str, from: usize) -> usize {
    let mut kv = KvClient::new(channel(url).await);
    let value = vec![b'x'; 64 << 10];
    for i in from.. {
        let put =
            PutRequest { key: format!("k{i:06}").into(), value: value.clone().into(), ..Default::default() };
        if kv.put(put).await.is_err() {
            return i;
        }
    }
    unreachable!("the disk is full at some time")
}

async fn reopen(dir: &Path) -> Server {
    Server::with(ChainFireConfig { reserve: Some(0), ..ChainFireConfig::new(dir) }).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_runs_into_a_full_disk_ends_and_comes_back_whole() {
    let disk = Small::new(400).await;
    let mut acknowledged = 0;
    // With little room the engine meets the end first, with more the log, which takes 64 MiB at a time.
    for leave in [3 << 20, 100 << 20] {
        let s = reopen(&disk.data()).await;
        disk.fill(leave);
        acknowledged = fill_up(&s.operator, acknowledged).await;
        let why = timeout(Duration::from_secs(20), "the end", s.chainfire.ended()).await.expect("it ends");
        assert!(
            why.contains("No space left") || why.contains("os error 28") || why.contains("Poisoned"),
            "{why}"
        );
        etcdctl(&s.operator, &["put", "k", "v", "--command-timeout=2s"], None).await.expect_err("it ended");
        s.stop().await;
        disk.empty();
        let s = reopen(&disk.data()).await;
        let all =
            RangeRequest { key: "k".into(), range_end: "l".into(), count_only: true, ..Default::default() };
        let count =
            KvClient::new(channel(&s.operator).await).range(all).await.expect("count").into_inner().count;
        let found = usize::try_from(count).expect("a count");
        assert!(
            (acknowledged..=acknowledged + 1).contains(&found),
            "{acknowledged} acknowledged, {found} found"
        );
        acknowledged = found;
        s.stop().await;
    }
}
