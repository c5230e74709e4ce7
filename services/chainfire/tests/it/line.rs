//! Locks and elections, beside a real etcd.

use crate::harness::{Etcd, Server, channel};
use chainfire::{
    RESERVED_PREFIX,
    wire::{
        etcdserverpb::{kv_client::KvClient, lease_client::LeaseClient, *},
        v3electionpb::{election_client::ElectionClient, *},
        v3lockpb::{lock_client::LockClient, *},
    },
};
use futures::StreamExt;
use photon_rt::time::{Duration, sleep, timeout};
use prost::bytes::Bytes;
use tonic::{Code, Status, transport::Channel};

struct Client {
    kv: KvClient<Channel>,
    lease: LeaseClient<Channel>,
    lock: LockClient<Channel>,
    election: ElectionClient<Channel>,
}

impl Client {
    async fn new(url: &str) -> Client {
        let c = channel(url).await;
        Client {
            kv: KvClient::new(c.clone()),
            lease: LeaseClient::new(c.clone()),
            lock: LockClient::new(c.clone()),
            election: ElectionClient::new(c),
        }
    }

    async fn grant(&mut self, id: i64) {
        self.lease.lease_grant(LeaseGrantRequest { id, ttl: 1000 }).await.expect("grant");
    }

    /// Waits until a key exists.
    async fn standing(&mut self, key: &str) {
        for _ in 0..500 {
            let r = RangeRequest { key: key.as_bytes().to_vec().into(), ..Default::default() };
            if self.kv.range(r).await.expect("range").into_inner().count > 0 {
                return;
            }
            sleep(Duration::from_millis(10)).await;
        }
        panic!("{key} does not appear");
    }

    async fn keys(&mut self) -> Vec<String> {
        let all = RangeRequest { key: "\0".into(), range_end: "\0".into(), ..Default::default() };
        let kvs = self.kv.range(all).await.expect("range").into_inner().kvs;
        kvs.iter().map(|kv| format!("{kv:?}")).collect()
    }
}

fn bare(h: Option<ResponseHeader>) -> i64 {
    h.expect("header").revision
}

fn outcome<T: std::fmt::Debug>(r: Result<tonic::Response<T>, Status>, show: impl Fn(T) -> String) -> String {
    match r {
        Ok(r) => show(r.into_inner()),
        Err(e) => format!("{:?} {}", e.code(), e.message()),
    }
}

fn locked(r: Result<tonic::Response<LockResponse>, Status>) -> String {
    outcome(r, |r| format!("{:?} at {}", r.key, bare(r.header)))
}

fn lock(name: &'static str, lease: i64) -> LockRequest {
    LockRequest { name: name.into(), lease }
}

async fn locks(url: &str) -> Vec<String> {
    let mut c = Client::new(url).await;
    let mut out = Vec::new();
    for id in [0x10, 0x20, 0x30] {
        c.grant(id).await;
    }
    out.push(locked(c.lock.lock(lock("l", 0x10)).await));
    out.push(locked(c.lock.lock(lock("l", 0x10)).await));
    out.push(locked(c.lock.lock(lock("l", 0x99)).await));
    // Two wait; the first of them goes away, so the second is next.
    let mut second = c.lock.clone();
    let second = tokio::spawn(async move { second.lock(lock("l", 0x20)).await });
    c.standing("l/20").await;
    let mut third = c.lock.clone();
    let third = tokio::spawn(async move { locked(third.lock(lock("l", 0x30)).await) });
    c.standing("l/30").await;
    out.extend(c.keys().await);
    second.abort();
    // Its place goes with it.
    for _ in 0..500 {
        if c.keys().await.len() == 2 {
            break;
        }
        sleep(Duration::from_millis(10)).await;
    }
    out.extend(c.keys().await);
    assert!(!third.is_finished());
    let key: Bytes = "l/10".into();
    out.push(outcome(c.lock.unlock(UnlockRequest { key: key.clone() }).await, |r| {
        bare(r.header).to_string()
    }));
    out.push(timeout(Duration::from_secs(10), "the lock", third).await.expect("in time").expect("joins"));
    out.push(outcome(c.lock.unlock(UnlockRequest { key }).await, |r| bare(r.header).to_string()));
    out.push(outcome(c.lock.unlock(UnlockRequest { key: Bytes::new() }).await, |r| {
        bare(r.header).to_string()
    }));
    c.lease.lease_revoke(LeaseRevokeRequest { id: 0x30 }).await.expect("revoke");
    out.extend(c.keys().await);
    out
}

#[tokio::test(flavor = "multi_thread")]
async fn locks_are_etcds() {
    let dir = tempfile::tempdir().expect("temp dir");
    let server = Server::start(&dir.path().join("ours")).await;
    let etcd = Etcd::start(&dir.path().join("theirs")).await;
    let (ours, theirs) = tokio::join!(locks(&server.operator), locks(&etcd.url));
    for (i, (a, b)) in ours.iter().zip(&theirs).enumerate() {
        assert_eq!(a, b, "answer {i}");
    }
    assert_eq!(ours.len(), theirs.len());
    server.stop().await;
}

fn led(r: Result<tonic::Response<CampaignResponse>, Status>) -> String {
    outcome(r, |r| format!("{:?} at {}", r.leader, bare(r.header)))
}

fn leader(r: Result<tonic::Response<LeaderResponse>, Status>) -> String {
    outcome(r, |r| format!("{:?} at {}", r.kv, bare(r.header)))
}

fn run(lease: i64, value: &'static str) -> CampaignRequest {
    CampaignRequest { name: "e".into(), lease, value: value.into() }
}

async fn elections(url: &str) -> Vec<String> {
    let mut c = Client::new(url).await;
    let mut out = Vec::new();
    for id in [0x10, 0x20] {
        c.grant(id).await;
    }
    let ask = || LeaderRequest { name: "e".into() };
    out.push(leader(c.election.leader(ask()).await));
    out.push(led(c.election.campaign(run(0x10, "one")).await));
    out.push(led(c.election.campaign(run(0x10, "uno")).await));
    out.push(leader(c.election.leader(ask()).await));
    let mut second = c.election.clone();
    let second = tokio::spawn(async move { led(second.campaign(run(0x20, "two")).await) });
    c.standing("e/20").await;
    let key = |rev| LeaderKey { name: "e".into(), key: "e/10".into(), rev, lease: 0x10 };
    let created = 2;
    for leader in [None, Some(key(created)), Some(key(created + 7))] {
        let r = ProclaimRequest { leader, value: "eins".into() };
        out.push(outcome(c.election.proclaim(r).await, |r| bare(r.header).to_string()));
    }
    assert!(!second.is_finished());
    for leader in [None, Some(key(created + 7)), Some(key(created)), Some(key(created))] {
        let r = ResignRequest { leader };
        out.push(outcome(c.election.resign(r).await, |r| bare(r.header).to_string()));
    }
    out.push(timeout(Duration::from_secs(10), "the office", second).await.expect("in time").expect("joins"));
    out.push(leader(c.election.leader(ask()).await));
    out.push(led(c.election.campaign(run(0x99, "x")).await));
    out.extend(c.keys().await);
    out
}

#[tokio::test(flavor = "multi_thread")]
async fn elections_are_etcds() {
    let dir = tempfile::tempdir().expect("temp dir");
    let server = Server::start(&dir.path().join("ours")).await;
    let etcd = Etcd::start(&dir.path().join("theirs")).await;
    let (ours, theirs) = tokio::join!(elections(&server.operator), elections(&etcd.url));
    for (i, (a, b)) in ours.iter().zip(&theirs).enumerate() {
        assert_eq!(a, b, "answer {i}");
    }
    assert_eq!(ours.len(), theirs.len());
    server.stop().await;
}

async fn observed(url: &str) -> Vec<String> {
    let mut c = Client::new(url).await;
    for id in [0x10, 0x20] {
        c.grant(id).await;
    }
    let mut out = Vec::new();
    c.election.campaign(run(0x10, "one")).await.expect("leads");
    let seen = c.election.observe(LeaderRequest { name: "e".into() }).await.expect("observe");
    let mut seen = seen.into_inner();
    let mut next = async || {
        let r = timeout(Duration::from_secs(10), "a leader", seen.next()).await.expect("in time");
        leader(r.expect("open").map(tonic::Response::new))
    };
    out.push(next().await);
    let key =
        |key: &'static str, rev, lease| Some(LeaderKey { name: "e".into(), key: key.into(), rev, lease });
    let r = ProclaimRequest { leader: key("e/10", 2, 0x10), value: "eins".into() };
    c.election.proclaim(r).await.expect("proclaims");
    out.push(next().await);
    c.election.resign(ResignRequest { leader: key("e/10", 2, 0x10) }).await.expect("resigns");
    c.election.campaign(run(0x20, "two")).await.expect("leads");
    out.push(next().await);
    c.lease.lease_revoke(LeaseRevokeRequest { id: 0x20 }).await.expect("revoke");
    c.election.campaign(run(0x10, "three")).await.expect("leads");
    out.push(next().await);
    out
}

#[tokio::test(flavor = "multi_thread")]
async fn observers_see_what_etcds_see() {
    let dir = tempfile::tempdir().expect("temp dir");
    let server = Server::start(&dir.path().join("ours")).await;
    let etcd = Etcd::start(&dir.path().join("theirs")).await;
    let (ours, theirs) = tokio::join!(observed(&server.operator), observed(&etcd.url));
    assert_eq!(ours, theirs);
    server.stop().await;
}

/// Tokens grow from holder to holder, and a transaction that names its token is refused once another
/// holds the lock.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_fences_off_the_holder_before() {
    let dir = tempfile::tempdir().expect("temp dir");
    let server = Server::start(dir.path()).await;
    let mut c = Client::new(&server.tenant).await;
    let mut last = 0;
    for id in [0x10, 0x20, 0x30] {
        c.grant(id).await;
        let key = c.lock.lock(lock("l", id)).await.expect("locks").into_inner().key;
        let r = RangeRequest { key: key.clone(), ..Default::default() };
        let token = c.kv.range(r).await.expect("range").into_inner().kvs[0].create_revision;
        assert!(token > last);
        last = token;
        let write = TxnRequest {
            compare: vec![Compare {
                target: compare::CompareTarget::Create as i32,
                key: key.clone(),
                target_union: Some(compare::TargetUnion::CreateRevision(token)),
                ..Default::default()
            }],
            success: vec![RequestOp {
                request: Some(request_op::Request::RequestPut(PutRequest {
                    key: "guarded".into(),
                    ..Default::default()
                })),
            }],
            ..Default::default()
        };
        assert!(c.kv.txn(write.clone()).await.expect("txn").into_inner().succeeded);
        c.lease.lease_revoke(LeaseRevokeRequest { id }).await.expect("its lease ends");
        assert!(!c.kv.txn(write).await.expect("txn").into_inner().succeeded);
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tenants_stand_in_no_line_of_the_cloud() {
    let dir = tempfile::tempdir().expect("temp dir");
    let server = Server::start(dir.path()).await;
    let mut c = Client::new(&server.tenant).await;
    let mut operator = Client::new(&server.operator).await;
    c.grant(1).await;
    operator.grant(2).await;
    let inside: Bytes = [RESERVED_PREFIX, b"x"].concat().into();
    let at: Bytes = RESERVED_PREFIX[..RESERVED_PREFIX.len() - 1].to_vec().into();
    let token =
        operator.election.campaign(CampaignRequest { name: inside.clone(), lease: 2, value: "v".into() });
    let token = token.await.expect("the operator may").into_inner().leader;
    let denied = (Code::Unknown, "etcdserver: permission denied");
    for name in [inside.clone(), at] {
        let e = c.lock.lock(LockRequest { name: name.clone(), lease: 1 }).await.expect_err("denied");
        assert_eq!((e.code(), e.message()), denied);
        let r = CampaignRequest { name: name.clone(), lease: 1, value: "v".into() };
        assert_eq!(c.election.campaign(r).await.expect_err("denied").message(), denied.1);
        let e = c.election.leader(LeaderRequest { name }).await.expect_err("nothing is seen");
        assert_eq!(e.message(), "election: no leader");
    }
    let e = c.lock.unlock(UnlockRequest { key: token.clone().expect("leader").key }).await;
    assert_eq!(e.expect_err("denied").message(), denied.1);
    let r = ProclaimRequest { leader: token.clone(), value: "mine".into() };
    assert_eq!(c.election.proclaim(r).await.expect_err("denied").message(), denied.1);
    assert_eq!(
        c.election.resign(ResignRequest { leader: token }).await.expect_err("denied").message(),
        denied.1
    );
    server.stop().await;
}
