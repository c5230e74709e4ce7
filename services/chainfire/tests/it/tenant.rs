//! What an ordinary caller can't see or touch: the reserved prefix and the leases of operators.

use crate::harness::{Server, channel};
use chainfire::{
    RESERVED_PREFIX,
    wire::etcdserverpb::{
        compare::{CompareResult, CompareTarget, TargetUnion},
        kv_client::KvClient,
        lease_client::LeaseClient,
        request_op::Request as Op,
        watch_client::WatchClient,
        watch_request::RequestUnion,
        *,
    },
};
use futures::StreamExt;
use photon_rt::time::Duration;
use prost::bytes::Bytes;
use tonic::{Code, transport::Channel};

const DENIED: (Code, &str) = (Code::PermissionDenied, "etcdserver: permission denied");
const NO_LEASE: (Code, &str) = (Code::NotFound, "etcdserver: requested lease not found");

fn secret(name: &str) -> Bytes {
    [RESERVED_PREFIX, name.as_bytes()].concat().into()
}

fn put(key: impl Into<Bytes>) -> PutRequest {
    PutRequest { key: key.into(), value: "v".into(), ..Default::default() }
}

fn get(key: impl Into<Bytes>, end: &'static str) -> RangeRequest {
    RangeRequest { key: key.into(), range_end: end.into(), ..Default::default() }
}

fn delete(key: impl Into<Bytes>, end: &'static str) -> DeleteRangeRequest {
    DeleteRangeRequest { key: key.into(), range_end: end.into(), prev_kv: true }
}

fn compare(key: impl Into<Bytes>, end: &'static str) -> Compare {
    Compare { key: key.into(), range_end: end.into(), ..Default::default() }
}

fn op(request: Op) -> RequestOp {
    RequestOp { request: Some(request) }
}

/// `ops` as the branch of a transaction within the untaken branch of a transaction within one.
fn buried(ops: Vec<RequestOp>) -> TxnRequest {
    let wrap = |t: TxnRequest| vec![op(Op::RequestTxn(t))];
    let inner = TxnRequest { success: ops, ..Default::default() };
    TxnRequest {
        success: wrap(TxnRequest { failure: wrap(inner), ..Default::default() }),
        ..Default::default()
    }
}

struct Stage {
    _dir: tempfile::TempDir,
    server: Server,
    operator: KvClient<Channel>,
    tenant: KvClient<Channel>,
    leases: LeaseClient<Channel>,
    /// Of the operator.
    operator_leases: LeaseClient<Channel>,
}

/// Keys `a`, `z`, two reserved ones between them, and a lease 7 of the operator on a reserved and an
/// open key.
async fn stage() -> Stage {
    let dir = tempfile::tempdir().expect("temp dir");
    let server = Server::start(dir.path()).await;
    let (o, t) = (channel(&server.operator).await, channel(&server.tenant).await);
    let mut operator = KvClient::new(o.clone());
    let mut operator_leases = LeaseClient::new(o);
    operator_leases.lease_grant(LeaseGrantRequest { ttl: 1000, id: 7 }).await.expect("grant");
    for key in ["+".into(), "a".into(), secret("1"), secret("2"), "z".into()] {
        operator.put(put(key)).await.expect("put");
    }
    operator.put(PutRequest { lease: 7, ..put(secret("leased")) }).await.expect("put");
    operator.put(PutRequest { lease: 7, ..put("open") }).await.expect("put");
    Stage {
        _dir: dir,
        server,
        operator,
        tenant: KvClient::new(t.clone()),
        leases: LeaseClient::new(t),
        operator_leases,
    }
}

fn refusal<T: std::fmt::Debug>(r: Result<T, tonic::Status>) -> (Code, &'static str) {
    let e = r.expect_err("refused");
    (e.code(), String::from(e.message()).leak())
}

#[tokio::test(flavor = "multi_thread")]
async fn single_reserved_keys_are_denied() {
    let mut s = stage().await;
    assert_eq!(refusal(s.tenant.put(put(secret("1"))).await), DENIED);
    assert_eq!(refusal(s.tenant.put(put(secret(""))).await), DENIED);
    assert_eq!(refusal(s.tenant.range(get(secret("1"), "")).await), DENIED);
    assert_eq!(refusal(s.tenant.delete_range(delete(secret("1"), "")).await), DENIED);
    s.tenant.put(put("/photon.internal")).await.expect("only the prefix is reserved");
    s.tenant.put(put("/photon.internal0")).await.expect("and what follows it is not");
    let n = s.operator.range(get(secret("1"), "")).await.expect("operator").into_inner().count;
    assert_eq!(n, 1);
    s.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_leave_reserved_keys_out() {
    let mut s = stage().await;
    let seen = |r: RangeResponse| -> (i64, Vec<String>) {
        (r.count, r.kvs.iter().map(|kv| String::from_utf8_lossy(&kv.key).into_owned()).collect())
    };
    let all = s.tenant.range(get("\0", "\0")).await.expect("range").into_inner();
    assert_eq!(seen(all), (4, vec!["+".into(), "a".into(), "open".into(), "z".into()]));
    for (sort, limit) in [(0, 2), (2, 3)] {
        let r = RangeRequest { limit, sort_order: sort, ..get("\0", "\0") };
        let r = s.tenant.range(r).await.expect("range").into_inner();
        assert_eq!((r.count, r.kvs.len() as i64, r.more), (4, limit, true));
        assert!(r.kvs.iter().all(|kv| !kv.key.starts_with(RESERVED_PREFIX)));
    }
    let count = RangeRequest { count_only: true, ..get("+", "b") };
    assert_eq!(s.tenant.range(count.clone()).await.expect("range").into_inner().count, 2);
    assert_eq!(s.operator.range(count).await.expect("range").into_inner().count, 5);
    let old = RangeRequest { revision: 6, ..get("\0", "\0") };
    assert_eq!(seen(s.tenant.range(old).await.expect("range").into_inner()).0, 3);
    let inside = s.tenant.range(get(secret(""), "/photon.internal0")).await.expect("range").into_inner();
    assert_eq!(seen(inside), (0, vec![]));
    let gone = s.tenant.delete_range(delete("\0", "\0")).await.expect("delete").into_inner();
    assert_eq!((gone.deleted, gone.prev_kvs.len()), (4, 4));
    let left = s.operator.range(get("\0", "\0")).await.expect("range").into_inner();
    assert_eq!(left.count, 3, "the reserved keys are still there");
    let none =
        s.tenant.delete_range(delete(secret(""), "/photon.internal0")).await.expect("delete").into_inner();
    assert_eq!(none.deleted, 0);
    s.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn transactions_that_touch_reserved_keys_are_denied_whole() {
    let mut s = stage().await;
    let touching = [
        Op::RequestPut(put(secret("1"))),
        Op::RequestPut(PutRequest { prev_kv: true, ..put(secret("1")) }),
        Op::RequestPut(PutRequest { ignore_value: true, value: Bytes::new(), ..put(secret("1")) }),
        Op::RequestRange(get(secret("1"), "")),
        Op::RequestDeleteRange(delete(secret("1"), "")),
    ];
    let before = s.operator.range(get("\0", "\0")).await.expect("range").into_inner();
    for t in touching {
        let ops = vec![op(Op::RequestPut(put("mine"))), op(t)];
        let direct = TxnRequest { success: ops.clone(), ..Default::default() };
        let untaken = TxnRequest { failure: ops.clone(), ..Default::default() };
        for txn in [direct, untaken, buried(ops)] {
            assert_eq!(refusal(s.tenant.txn(txn.clone()).await), DENIED, "{txn:?}");
        }
    }
    let peek = TxnRequest { compare: vec![compare(secret("1"), "")], ..Default::default() };
    assert_eq!(refusal(s.tenant.txn(peek.clone()).await), DENIED);
    assert_eq!(refusal(s.tenant.txn(buried(vec![op(Op::RequestTxn(peek))])).await), DENIED);
    let after = s.operator.range(get("\0", "\0")).await.expect("range").into_inner();
    assert_eq!((before.kvs, before.header), (after.kvs, after.header), "nothing was written");
    s.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_within_transactions_leave_reserved_keys_out() {
    let mut s = stage().await;
    // "No key of the range exists" holds for a tenant where only reserved ones do.
    let absent = Compare {
        result: CompareResult::Equal as i32,
        target: CompareTarget::Version as i32,
        target_union: Some(TargetUnion::Version(0)),
        ..compare(secret(""), "/photon.internal0")
    };
    let txn = TxnRequest { compare: vec![absent.clone()], ..Default::default() };
    assert!(s.tenant.txn(txn.clone()).await.expect("txn").into_inner().succeeded);
    assert!(!s.operator.txn(txn).await.expect("txn").into_inner().succeeded);
    // And a compare over everything is not decided by a reserved key: all others are at version 1.
    s.operator.put(put(secret("1"))).await.expect("put");
    let ones = Compare { target_union: Some(TargetUnion::Version(1)), ..absent };
    let ones = Compare { key: "\0".into(), range_end: "\0".into(), ..ones };
    let nested = TxnRequest {
        compare: vec![ones],
        success: vec![
            op(Op::RequestRange(get("\0", "\0"))),
            op(Op::RequestTxn(TxnRequest {
                success: vec![op(Op::RequestDeleteRange(delete("\0", "\0")))],
                ..Default::default()
            })),
        ],
        ..Default::default()
    };
    let r = s.tenant.txn(nested).await.expect("txn").into_inner();
    assert!(r.succeeded);
    match &r.responses[0].response {
        Some(response_op::Response::ResponseRange(r)) => assert_eq!((r.count, r.kvs.len()), (4, 4)),
        other => panic!("{other:?}"),
    }
    match &r.responses[1].response {
        Some(response_op::Response::ResponseTxn(t)) => match &t.responses[0].response {
            Some(response_op::Response::ResponseDeleteRange(d)) => {
                assert_eq!((d.deleted, d.prev_kvs.len()), (4, 4))
            }
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
    assert_eq!(s.operator.range(get("\0", "\0")).await.expect("range").into_inner().count, 3);
    s.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_of_operators_are_out_of_reach() {
    let mut s = stage().await;
    assert_eq!(refusal(s.leases.lease_revoke(LeaseRevokeRequest { id: 7 }).await), NO_LEASE);
    let ttl = LeaseTimeToLiveRequest { id: 7, keys: true };
    let r = s.leases.lease_time_to_live(ttl).await.expect("ttl").into_inner();
    assert_eq!((r.ttl, r.granted_ttl, r.keys.len()), (-1, 0, 0));
    let list = s.leases.lease_leases(LeaseLeasesRequest {}).await.expect("list").into_inner();
    assert!(list.leases.is_empty());
    let one = futures::stream::iter([LeaseKeepAliveRequest { id: 7 }]);
    let alive = s.leases.lease_keep_alive(one).await.expect("stream").into_inner().next().await;
    assert_eq!(alive.expect("an answer").expect("no error").ttl, 0, "as if it did not exist");
    let attach = PutRequest { lease: 7, ..put("mine") };
    assert_eq!(refusal(s.tenant.put(attach.clone()).await), NO_LEASE);
    let txn = TxnRequest { success: vec![op(Op::RequestPut(attach.clone()))], ..Default::default() };
    assert_eq!(refusal(s.tenant.txn(txn.clone()).await), NO_LEASE);
    let nested = TxnRequest { success: vec![op(Op::RequestTxn(txn))], ..Default::default() };
    assert_eq!(refusal(s.tenant.txn(nested).await), NO_LEASE);
    let keep = PutRequest { ignore_lease: true, ..put("open") };
    assert_eq!(refusal(s.tenant.put(keep).await), NO_LEASE, "keeping a lease is attaching to it");
    // A tenant's own lease carries no key of the cloud, whoever puts it there.
    s.leases.lease_grant(LeaseGrantRequest { ttl: 1000, id: 8 }).await.expect("grant");
    assert_eq!(refusal(s.operator.put(PutRequest { lease: 8, ..put(secret("x")) }).await), NO_LEASE);
    s.tenant.put(PutRequest { lease: 8, ..put("mine") }).await.expect("put");
    s.leases.lease_revoke(LeaseRevokeRequest { id: 8 }).await.expect("revoke");
    // And the operator's still works.
    let ttl = LeaseTimeToLiveRequest { id: 7, keys: true };
    let r = s.operator_leases.lease_time_to_live(ttl).await.expect("ttl").into_inner();
    assert_eq!(r.keys, [secret("leased"), "open".into()]);
    s.operator_leases.lease_revoke(LeaseRevokeRequest { id: 7 }).await.expect("revoke");
    assert_eq!(s.operator.range(get(secret("leased"), "")).await.expect("range").into_inner().count, 0);
    s.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn watches_leave_reserved_keys_out() {
    let mut s = stage().await;
    let mut client = WatchClient::new(channel(&s.server.tenant).await);
    let create = |key: Bytes, end: &'static str, id| {
        let c = WatchCreateRequest {
            key,
            range_end: end.into(),
            start_revision: 2,
            prev_kv: true,
            watch_id: id,
            ..Default::default()
        };
        WatchRequest { request_union: Some(RequestUnion::CreateRequest(c)) }
    };
    let requests = vec![create(secret("1"), "", 1), create("\0".into(), "\0", 2)];
    let requests = futures::stream::iter(requests).chain(futures::stream::pending());
    let mut stream = client.watch(requests).await.expect("watch").into_inner();
    let mut next = async || {
        photon_rt::time::timeout(Duration::from_secs(5), "watch", stream.next())
            .await
            .expect("in time")
            .expect("open")
            .expect("no error")
    };
    let denied = next().await;
    assert!(denied.created && denied.canceled, "{denied:?}");
    assert_eq!((denied.watch_id, denied.cancel_reason.as_str()), (1, DENIED.1));
    assert!(next().await.created);
    s.operator.put(put(secret("1"))).await.expect("put");
    s.operator.delete_range(delete(secret("1"), "")).await.expect("delete");
    let last = s.operator.put(put("z")).await.expect("put").into_inner().header.expect("header").revision;
    let mut keys = Vec::new();
    loop {
        let r = next().await;
        for e in r.events {
            let kv = e.kv.expect("kv");
            keys.push(String::from_utf8_lossy(&kv.key).into_owned());
            if kv.mod_revision == last {
                assert_eq!(keys, ["+", "a", "z", "open", "z"]);
                s.server.stop().await;
                return;
            }
        }
    }
}
