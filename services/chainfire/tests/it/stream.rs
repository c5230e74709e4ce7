//! RangeStream over the wire. etcd 3.7 is not among the peers that can be installed; the peer here is our
//! own Range, which is compared with a real etcd elsewhere.

use crate::harness::{Server, channel};
use chainfire::{
    RESERVED_PREFIX,
    wire::etcdserverpb::{kv_client::KvClient, range_request::SortOrder, *},
};
use futures::StreamExt;
use prost::{Message, bytes::Bytes};
use tonic::Code;

#[tokio::test(flavor = "multi_thread")]
async fn pieces_merge_to_what_range_answers() {
    let dir = tempfile::tempdir().expect("temp dir");
    let s = Server::start(dir.path()).await;
    let mut kv = KvClient::new(channel(&s.operator).await).max_decoding_message_size(64 << 20);
    for i in 0..40 {
        let key: Bytes = match i {
            0 => [RESERVED_PREFIX, b"x"].concat().into(),
            _ => format!("k{i:02}").into(),
        };
        let r = PutRequest { key, value: vec![b'x'; 100 << 10].into(), ..Default::default() };
        kv.put(r).await.expect("put");
    }
    let tenant = KvClient::new(channel(&s.tenant).await).max_decoding_message_size(64 << 20);
    let all = RangeRequest { key: "\0".into(), range_end: "\0".into(), ..Default::default() };
    for (mut client, keys) in [(kv.clone(), 40), (tenant, 39)] {
        for r in [
            all.clone(),
            RangeRequest { limit: 15, ..all.clone() },
            RangeRequest { count_only: true, ..all.clone() },
            RangeRequest {
                revision: 20,
                keys_only: true,
                sort_order: SortOrder::Ascend as i32,
                ..all.clone()
            },
        ] {
            let mut pieces = client.range_stream(r.clone()).await.expect("stream").into_inner();
            let (mut merged, mut n) = (RangeResponse::default(), 0);
            while let Some(p) = pieces.next().await {
                let p = p.expect("piece").range_response.expect("response");
                merged.merge(&p.encode_to_vec()[..]).expect("merges");
                n += 1;
            }
            assert_eq!(merged, client.range(r.clone()).await.expect("range").into_inner());
            assert!(r != all || n >= 3, "{n} pieces");
            assert!(r.revision != 0 || merged.count == keys);
        }
    }
    let sorted = RangeRequest { sort_order: SortOrder::Descend as i32, ..all.clone() };
    assert_eq!(kv.range_stream(sorted).await.expect_err("unsupported").code(), Code::Unimplemented);
    let future = RangeRequest { revision: 1000, ..all };
    assert_eq!(kv.range_stream(future).await.expect_err("future").code(), Code::OutOfRange);
    s.stop().await;
}
