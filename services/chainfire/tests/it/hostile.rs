//! Input that no honest client sends: a clear error, bounded memory, nothing changed.

use crate::harness::{Server, channel};
use chainfire::wire::etcdserverpb::{kv_client::KvClient, request_op::Request as Op, *};
use photon_rt::{entropy::Rng, time::Duration};
use prost::{Message, bytes::Bytes};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::{Code, transport::Channel};

async fn server() -> (tempfile::TempDir, Server, KvClient<Channel>) {
    let dir = tempfile::tempdir().expect("temp dir");
    let s = Server::start(dir.path()).await;
    let kv = KvClient::new(channel(&s.operator).await);
    (dir, s, kv)
}

async fn revision(kv: &mut KvClient<Channel>) -> i64 {
    let r = RangeRequest { key: "a".into(), ..Default::default() };
    kv.range(r).await.expect("alive").into_inner().header.expect("header").revision
}

#[tokio::test(flavor = "multi_thread")]
async fn sizes_are_bounded_in_etcds_words() {
    let (_dir, s, mut kv) = server().await;
    let put = |n: usize| PutRequest { key: "k".into(), value: vec![0; n].into(), ..Default::default() };
    kv.put(put(1_500_000)).await.expect("fits");
    let e = kv.put(put(1_600_000)).await.expect_err("too large");
    assert_eq!((e.code(), e.message()), (Code::InvalidArgument, "etcdserver: request is too large"));
    let e = kv.put(put(3 << 20)).await.expect_err("far too large");
    assert_eq!((e.code(), e.message()), (Code::ResourceExhausted, "grpc: received message larger than max"));
    let op = |i: u32| RequestOp {
        request: Some(Op::RequestPut(PutRequest {
            key: i.to_be_bytes().to_vec().into(),
            ..Default::default()
        })),
    };
    let txn = |n| TxnRequest { success: (0..n).map(op).collect(), ..Default::default() };
    kv.txn(txn(128)).await.expect("etcd's limit");
    for n in [129, 100_000] {
        let e = kv.txn(txn(n)).await.expect_err("too many");
        assert_eq!(
            (e.code(), e.message()),
            (Code::InvalidArgument, "etcdserver: too many operations in txn request")
        );
    }
    let e = kv.txn(txn(1_000_000)).await.expect_err("a million");
    assert_eq!(e.code(), Code::ResourceExhausted);
    let put = |n: usize| PutRequest { key: vec![1; n].into(), ..Default::default() };
    let e = kv.put(put(65_522)).await.expect_err("a key that nothing can hold");
    assert_eq!((e.code(), e.message()), (Code::InvalidArgument, "etcdserver: request is too large"));
    assert_eq!(revision(&mut kv).await, 3, "only the two that were accepted");
    s.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deep_nesting_is_refused() {
    let (_dir, s, mut kv) = server().await;
    let mut t = TxnRequest::default();
    for _ in 0..40 {
        t = TxnRequest {
            success: vec![RequestOp { request: Some(Op::RequestTxn(t)) }],
            ..Default::default()
        };
    }
    kv.txn(t.clone()).await.expect("deep, but within what the decoder allows");
    for _ in 0..5_000 {
        t = TxnRequest {
            success: vec![RequestOp { request: Some(Op::RequestTxn(t)) }],
            ..Default::default()
        };
        if t.encoded_len() > 20_000 {
            break;
        }
    }
    assert!(kv.txn(t).await.is_err());
    assert_eq!(revision(&mut kv).await, 1);
    s.stop().await;
}

/// Bytes straight into the listener: no panic, and it goes on serving.
#[tokio::test(flavor = "multi_thread")]
async fn random_bytes_do_no_harm() {
    let (_dir, s, mut kv) = server().await;
    let addr = s.operator.trim_start_matches("http://").to_string();
    let mut rng = Rng::new(3);
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    for round in 0..60 {
        let mut c = photon_rt::net::TcpStream::connect(&addr).await.expect("connects");
        let mut junk: Vec<u8> = (0..rng.below(2_000)).map(|_| rng.next_u64() as u8).collect();
        if round % 2 == 0 {
            junk.splice(0..0, preface.iter().copied());
        }
        // It may hang up in the middle; that is a fine answer.
        let _ = c.write_all(&junk).await;
        let _ = c.shutdown().await;
        let mut answer = Vec::new();
        let _ = photon_rt::time::timeout(Duration::from_secs(5), "hang up", c.read_to_end(&mut answer)).await;
    }
    assert_eq!(revision(&mut kv).await, 1);
    s.stop().await;
}

/// Well-framed gRPC around bytes that are no message.
#[tokio::test(flavor = "multi_thread")]
async fn malformed_messages_are_errors() {
    let (_dir, s, mut kv) = server().await;
    let mut rng = Rng::new(4);
    let mut grpc = tonic::client::Grpc::new(channel(&s.operator).await);
    for path in [
        "/etcdserverpb.KV/Put",
        "/etcdserverpb.KV/Txn",
        "/etcdserverpb.Lease/LeaseGrant",
        "/etcdserverpb.KV/No",
    ] {
        for _ in 0..50 {
            let junk: Vec<u8> = (0..1 + rng.below(100)).map(|_| rng.next_u64() as u8 | 0x80).collect();
            grpc.ready().await.expect("ready");
            let codec = Raw;
            let path = http::uri::PathAndQuery::from_static(path);
            let r: Result<tonic::Response<Bytes>, _> =
                grpc.unary(tonic::Request::new(junk.into()), path, codec).await;
            assert!(r.is_err());
        }
    }
    assert_eq!(revision(&mut kv).await, 1);
    s.stop().await;
}

/// Bytes as they are.
struct Raw;

impl tonic::codec::Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Raw;
    type Decoder = Raw;

    fn encoder(&mut self) -> Raw {
        Raw
    }

    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl tonic::codec::Encoder for Raw {
    type Item = Bytes;
    type Error = tonic::Status;

    fn encode(&mut self, item: Bytes, out: &mut tonic::codec::EncodeBuf<'_>) -> Result<(), tonic::Status> {
        prost::bytes::BufMut::put(out, item);
        Ok(())
    }
}

impl tonic::codec::Decoder for Raw {
    type Item = Bytes;
    type Error = tonic::Status;

    fn decode(&mut self, b: &mut tonic::codec::DecodeBuf<'_>) -> Result<Option<Bytes>, tonic::Status> {
        use prost::bytes::Buf;
        Ok(Some(b.copy_to_bytes(b.remaining())))
    }
}
