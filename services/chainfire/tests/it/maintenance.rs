//! Maintenance: digests, snapshots, alarms, hand-over, beside a real etcd.

use crate::harness::{Etcd, Server, channel, etcdctl, ok};
use chainfire::{
    ChainFireConfig, RESERVED_PREFIX,
    snapshot::{JsonPieces, Saver, fetch, restore, status},
    wire::etcdserverpb::{
        alarm_request::AlarmAction, kv_client::KvClient, lease_client::LeaseClient,
        maintenance_client::MaintenanceClient, *,
    },
};
use futures::StreamExt;
use photon_rt::time::Duration;
use prost::bytes::Bytes;
use tonic::{Code, Status, transport::Channel};

fn put(key: &[u8], value: &[u8]) -> PutRequest {
    PutRequest {
        key: Bytes::copy_from_slice(key),
        value: Bytes::copy_from_slice(value),
        ..Default::default()
    }
}

fn refusal<T: std::fmt::Debug>(r: Result<tonic::Response<T>, Status>) -> (Code, String) {
    let e = r.expect_err("refused");
    (e.code(), e.message().to_string())
}

async fn hash(url: &str, revision: i64) -> u32 {
    let mut m = MaintenanceClient::new(channel(url).await);
    m.hash_kv(HashKvRequest { revision }).await.expect("hash").into_inner().hash
}

/// More than one pass over the old versions would be needed to order them if little memory were
/// allowed (`model::hash` allows four in its own test); here the content is what etcd orders.
#[tokio::test(flavor = "multi_thread")]
async fn hash_kv_is_etcds_before_and_after_compaction() {
    let dir = tempfile::tempdir().expect("temp dir");
    let server = Server::start(&dir.path().join("ours")).await;
    let etcd = Etcd::start(&dir.path().join("theirs")).await;
    for url in [&server.operator, &etcd.url] {
        let c = channel(url).await;
        let (mut kv, mut lease) = (KvClient::new(c.clone()), LeaseClient::new(c));
        lease.lease_grant(LeaseGrantRequest { id: 9, ttl: 1000 }).await.expect("grant");
        for i in 0..40u8 {
            kv.put(PutRequest { lease: i64::from(i % 3 / 2 * 9), ..put(&[b'k', i % 13], &[i]) })
                .await
                .expect("put");
        }
        let some = DeleteRangeRequest {
            key: Bytes::from_static(b"k\x02"),
            range_end: Bytes::from_static(b"k\x06"),
            ..Default::default()
        };
        kv.delete_range(some).await.expect("delete");
        lease.lease_revoke(LeaseRevokeRequest { id: 9 }).await.expect("revoke");
    }
    for compact in [0, 20, 42, 43] {
        if compact > 0 {
            for url in [&server.operator, &etcd.url] {
                let r = CompactionRequest { revision: compact, physical: true };
                KvClient::new(channel(url).await).compact(r).await.expect("compact");
            }
        }
        for at in [0, 25, 42, 43].into_iter().filter(|at| *at == 0 || *at > compact) {
            assert_eq!(hash(&server.operator, at).await, hash(&etcd.url, at).await, "{compact} {at}");
        }
    }
    // Nothing lives: etcd then counts what the compaction left.
    for url in [&server.operator, &etcd.url] {
        let all = DeleteRangeRequest { key: "\0".into(), range_end: "\0".into(), ..Default::default() };
        KvClient::new(channel(url).await).delete_range(all).await.expect("delete");
    }
    assert_eq!(hash(&server.operator, 0).await, hash(&etcd.url, 0).await);
    server.stop().await;
}

async fn alarms(url: &str) -> Vec<String> {
    let c = channel(url).await;
    let (mut m, mut kv, mut lease) =
        (MaintenanceClient::new(c.clone()), KvClient::new(c.clone()), LeaseClient::new(c));
    let mut out = Vec::new();
    kv.put(put(b"k", b"v")).await.expect("put");
    lease.lease_grant(LeaseGrantRequest { id: 1, ttl: 1000 }).await.expect("grant");
    let ask =
        |action: AlarmAction, member_id, alarm| AlarmRequest { action: action as i32, member_id, alarm };
    use AlarmAction::*;
    for (action, member, kind) in [
        (Get, 0, 0),
        (Deactivate, 7, 1),
        (Activate, 7, 1),
        (Activate, 7, 1),
        (Get, 0, 1),
        (Get, 0, 2),
        (Deactivate, 0, 1),
        (Deactivate, 7, 1),
        (Activate, 8, 2),
        (Get, 0, 0),
        (Deactivate, 8, 2),
        (Get, 0, 0),
    ] {
        let mut r = m.alarm(ask(action, member, kind)).await.expect("alarm").into_inner();
        r.header = None; // 3.4 sends none
        out.push(format!("{action:?} {member} {kind}: {r:?}"));
        let errors = m.status(StatusRequest {}).await.expect("status").into_inner().errors;
        out.push(format!("{errors:?}"));
        let op = |r| RequestOp { request: Some(r) };
        let nothing = TxnRequest {
            success: vec![op(request_op::Request::RequestDeleteRange(DeleteRangeRequest {
                key: "none".into(),
                ..Default::default()
            }))],
            ..Default::default()
        };
        let grows = TxnRequest {
            failure: vec![op(request_op::Request::RequestPut(put(b"k", b"w")))],
            ..Default::default()
        };
        let read = RangeRequest { key: "k".into(), ..Default::default() };
        let said = [
            kv.put(put(b"k", b"v")).await.err(),
            kv.txn(nothing).await.err(),
            kv.txn(grows).await.err(),
            kv.range(read).await.err(),
            kv.delete_range(DeleteRangeRequest { key: "no".into(), ..Default::default() }).await.err(),
            lease.lease_grant(LeaseGrantRequest { id: 1, ttl: 1000 }).await.err(),
            lease.lease_revoke(LeaseRevokeRequest { id: 2 }).await.err(),
            kv.compact(CompactionRequest { revision: 1, physical: false }).await.err(),
        ];
        out.push(format!("{:?}", said.map(|e| e.map(|e| (e.code(), e.message().to_string())))));
    }
    let to = m.move_leader(MoveLeaderRequest { target_id: 1 }).await;
    out.push(format!("{:?}", refusal(to)));
    let me = m.status(StatusRequest {}).await.expect("status").into_inner().leader;
    out.push(format!(
        "{:?}",
        m.move_leader(MoveLeaderRequest { target_id: me }).await.expect("self").into_inner()
    ));
    out.push(format!("{:?}", m.defragment(DefragmentRequest {}).await.expect("defragment").into_inner()));
    out
}

#[tokio::test(flavor = "multi_thread")]
async fn alarms_and_hand_over_are_etcds() {
    let dir = tempfile::tempdir().expect("temp dir");
    let server = Server::start(&dir.path().join("ours")).await;
    let etcd = Etcd::start(&dir.path().join("theirs")).await;
    let (ours, theirs) = tokio::join!(alarms(&server.operator), alarms(&etcd.url));
    for (a, b) in ours.iter().zip(&theirs) {
        assert_eq!(a, b);
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alarm_outlives_a_restart_and_is_the_operators() {
    let dir = tempfile::tempdir().expect("temp dir");
    let server = Server::start(dir.path()).await;
    let raise =
        AlarmRequest { action: AlarmAction::Activate as i32, member_id: 1, alarm: AlarmType::Nospace as i32 };
    let mut tenant = MaintenanceClient::new(channel(&server.tenant).await);
    assert_eq!(refusal(tenant.alarm(raise).await).0, Code::PermissionDenied);
    MaintenanceClient::new(channel(&server.operator).await).alarm(raise).await.expect("raise");
    server.stop().await;
    let server = Server::start(dir.path()).await;
    let mut kv = KvClient::new(channel(&server.operator).await);
    let full = (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded".to_string());
    assert_eq!(refusal(kv.put(put(b"k", b"v")).await), full);
    let e = etcdctl(&server.operator, &["put", "k", "v"], None).await.expect_err("full");
    assert!(e.contains("database space exceeded"), "{e}");
    assert!(ok(&server.operator, &["alarm", "list"]).await.contains("alarm:NOSPACE"));
    ok(&server.operator, &["alarm", "disarm"]).await;
    kv.put(put(b"k", b"v")).await.expect("put");
    server.stop().await;
}

async fn every(kv: &mut KvClient<Channel>, revision: i64) -> RangeResponse {
    let all = RangeRequest { key: "\0".into(), range_end: "\0".into(), revision, ..Default::default() };
    kv.range(all).await.expect("range").into_inner()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_saved_by_etcdctl_is_restored_whole() {
    let dir = tempfile::tempdir().expect("temp dir");
    let server = Server::start(&dir.path().join("a")).await;
    let c = channel(&server.operator).await;
    let (mut kv, mut lease) = (KvClient::new(c.clone()), LeaseClient::new(c));
    lease.lease_grant(LeaseGrantRequest { id: 5, ttl: 1000 }).await.expect("grant");
    for i in 0..300u32 {
        let value = vec![i as u8; (i as usize * 97) % 9000];
        kv.put(PutRequest { lease: i64::from(i % 2) * 5, ..put(format!("k{}", i % 50).as_bytes(), &value) })
            .await
            .expect("put");
    }
    kv.compact(CompactionRequest { revision: 200, physical: false }).await.expect("compact");
    kv.put(put(&[RESERVED_PREFIX, b"x"].concat(), b"secret")).await.expect("put");
    let (before, old) = (every(&mut kv, 0).await, every(&mut kv, 250).await);
    let digest = hash(&server.operator, 0).await;
    let file = dir.path().join("snap.db");
    let name = file.to_str().expect("path");
    ok(&server.operator, &["snapshot", "save", name]).await;
    let mut tenant = MaintenanceClient::new(channel(&server.tenant).await);
    let e = tenant.snapshot(SnapshotRequest {}).await.err().map(|e| e.code());
    assert_eq!(e, Some(Code::PermissionDenied), "tenants get none");
    // And the same by our own client, over gRPC and over the JSON gateway.
    let (plain, lines) = (dir.path().join("plain"), dir.path().join("lines"));
    let mut saver = Saver::new(&plain).expect("begins");
    let mut pieces = fetch(&server.operator).await.expect("snapshot");
    while let Some(p) = pieces.next().await {
        saver.add(&p.expect("piece")).expect("writes");
    }
    assert_eq!(saver.finish().expect("whole").hash, digest);
    let url = format!("{}/v3/maintenance/snapshot", server.operator);
    let args = ["-s", "-d", "{}", &url];
    let json = photon_rt::process::run("curl", &args, None, Duration::from_secs(20)).await.expect("curl");
    let (mut saver, mut parser) = (Saver::new(&lines).expect("begins"), JsonPieces::default());
    for part in json.chunks(1000) {
        parser.feed(part).expect("lines").iter().for_each(|p| saver.add(p).expect("writes"));
    }
    assert_eq!(saver.finish().expect("whole").hash, digest);
    let cut = Saver::new(&dir.path().join("cut")).expect("begins");
    assert!(cut.finish().is_err());
    assert!(photon_rt::fs::metadata(dir.path().join("cut.part")).is_err(), "nothing is left");
    server.stop().await;

    let told = status(&file).expect("status");
    assert_eq!((told.hash, told.revision), (digest, before.header.as_ref().expect("header").revision));
    let target = dir.path().join("b");
    assert_eq!(restore(&file, &target).expect("restore"), told);
    let e = restore(&file, &target).expect_err("not over another");
    assert_eq!(e.code, photon_base::Code::Conflict);
    let server = Server::with(ChainFireConfig::new(&target)).await;
    let c = channel(&server.operator).await;
    let (mut kv, mut lease) = (KvClient::new(c.clone()), LeaseClient::new(c));
    assert_eq!(every(&mut kv, 0).await.kvs, before.kvs);
    assert_eq!(every(&mut kv, 250).await.kvs, old.kvs);
    let ttl = LeaseTimeToLiveRequest { id: 5, keys: true };
    assert_eq!(lease.lease_time_to_live(ttl).await.expect("ttl").into_inner().keys.len(), 25);
    assert_eq!(hash(&server.operator, 0).await, digest);
    kv.put(put(b"after", b"1")).await.expect("the restored store goes on");
    server.stop().await;
    let server = Server::with(ChainFireConfig::new(&target)).await;
    let mut kv = KvClient::new(channel(&server.operator).await);
    assert_eq!(every(&mut kv, 0).await.count, before.count + 1, "and starts again");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_snapshot_is_refused_and_changes_nothing() {
    let dir = tempfile::tempdir().expect("temp dir");
    let server = Server::start(&dir.path().join("a")).await;
    let c = channel(&server.operator).await;
    KvClient::new(c.clone()).put(put(b"k", b"v")).await.expect("put");
    let mut pieces =
        MaintenanceClient::new(c).snapshot(SnapshotRequest {}).await.expect("snapshot").into_inner();
    let (mut whole, mut left) = (Vec::new(), 1);
    while let Some(p) = pieces.next().await {
        let p = p.expect("piece");
        whole.extend_from_slice(&p.blob);
        left = p.remaining_bytes;
    }
    assert_eq!((left, whole.len() % 512), (0, 32));
    server.stop().await;
    let file = dir.path().join("snap");
    for i in (0..whole.len()).step_by(61) {
        let mut bad = whole.clone();
        bad[i] ^= 1;
        photon_rt::fs::write_atomic(&file, &bad, 0o600).expect("write");
        let e = restore(&file, &dir.path().join("b")).expect_err("damaged");
        assert_eq!(e.code, photon_base::Code::Invalid, "{e}");
        photon_rt::fs::write_atomic(&file, &whole[..i], 0o600).expect("write");
        assert_eq!(status(&file).expect_err("short").code, photon_base::Code::Invalid);
    }
    assert!(photon_rt::fs::metadata(dir.path().join("b")).is_err(), "nothing was made");
}

/// `--auto-compaction-retention`: what is older than that is forgotten, what is younger is not.
#[tokio::test(flavor = "multi_thread")]
async fn history_is_compacted_by_itself() {
    let dir = tempfile::tempdir().expect("temp dir");
    let retention = Some(chainfire::Retention::Time(Duration::from_millis(500)));
    let server = Server::with(ChainFireConfig { retention, ..ChainFireConfig::new(dir.path()) }).await;
    for i in 0..3 {
        ok(&server.operator, &["put", "k", &i.to_string()]).await;
    }
    crate::cluster::until("the first revisions to be forgotten", async || {
        let old = etcdctl(&server.operator, &["get", "k", "--rev=2"], None).await;
        old.is_err_and(|e| e.contains("required revision has been compacted"))
    })
    .await;
    assert_eq!(ok(&server.operator, &["get", "k", "--print-value-only"]).await.trim(), "2");
    assert_eq!(ok(&server.operator, &["get", "k", "--rev=4", "--print-value-only"]).await.trim(), "2");
    server.stop().await;
}
