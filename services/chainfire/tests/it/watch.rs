//! The watch protocol: ids, filters, progress, fragments, laggards.

use crate::harness::{Server, channel};
use chainfire::{
    ChainFireConfig,
    wire::{
        etcdserverpb::{kv_client::KvClient, watch_client::WatchClient, watch_request::RequestUnion, *},
        mvccpb::event::EventType,
    },
};
use futures::StreamExt;
use photon_rt::time::{Duration, sleep};
use prost::bytes::Bytes;
use tokio::sync::mpsc;
use tonic::{Streaming, transport::Channel};

/// A watch stream.
struct Stream {
    requests: mpsc::Sender<WatchRequest>,
    responses: Streaming<WatchResponse>,
}

impl Stream {
    async fn open(url: &str) -> Stream {
        let (requests, rx) = mpsc::channel(16);
        let mut client = WatchClient::new(channel(url).await).max_decoding_message_size(64 << 20);
        let rx = tokio_stream::wrappers::ReceiverStream::new(rx);
        Stream { requests, responses: client.watch(rx).await.expect("watch").into_inner() }
    }

    async fn ask(&self, r: RequestUnion) {
        self.requests.send(WatchRequest { request_union: Some(r) }).await.expect("open");
    }

    async fn create(&mut self, c: WatchCreateRequest) -> WatchResponse {
        self.ask(RequestUnion::CreateRequest(c)).await;
        let r = self.next().await;
        assert!(r.created, "{r:?}");
        r
    }

    async fn next(&mut self) -> WatchResponse {
        let r = photon_rt::time::timeout(Duration::from_secs(10), "a response", self.responses.next()).await;
        r.expect("in time").expect("open").expect("no error")
    }
}

async fn server() -> (tempfile::TempDir, Server, KvClient<Channel>) {
    let dir = tempfile::tempdir().expect("temp dir");
    let s = Server::start(dir.path()).await;
    let kv = KvClient::new(channel(&s.operator).await);
    (dir, s, kv)
}

async fn put(kv: &mut KvClient<Channel>, key: &'static str, value: impl Into<Bytes>) -> i64 {
    let r = PutRequest { key: key.into(), value: value.into(), ..Default::default() };
    kv.put(r).await.expect("put").into_inner().header.expect("header").revision
}

fn on(key: &'static str) -> WatchCreateRequest {
    WatchCreateRequest { key: key.into(), ..Default::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_and_cancel() {
    let (_dir, s, mut kv) = server().await;
    let mut w = Stream::open(&s.operator).await;
    assert_eq!(w.create(WatchCreateRequest { watch_id: 1, ..on("a") }).await.watch_id, 1);
    assert_eq!(w.create(on("a")).await.watch_id, 0);
    assert_eq!(w.create(on("a")).await.watch_id, 2, "1 is taken");
    let again = w.create(WatchCreateRequest { watch_id: 2, ..on("a") }).await;
    assert!(again.canceled);
    assert_eq!(again.watch_id, -1);
    assert_eq!(again.cancel_reason, "mvcc: duplicate watch ID provided on the WatchStream");
    let empty = w.create(WatchCreateRequest { range_end: "A".into(), ..on("a") }).await;
    assert_eq!((empty.canceled, empty.cancel_reason.as_str()), (true, "mvcc: watcher range is empty"));
    w.ask(RequestUnion::CancelRequest(WatchCancelRequest { watch_id: 77 })).await;
    w.ask(RequestUnion::CancelRequest(WatchCancelRequest { watch_id: 0 })).await;
    let gone = w.next().await;
    assert_eq!((gone.canceled, gone.watch_id, gone.cancel_reason.as_str()), (true, 0, ""));
    put(&mut kv, "a", "1").await;
    let ids = [w.next().await.watch_id, w.next().await.watch_id];
    assert_eq!(ids, [1, 2]);
    s.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_and_previous_versions() {
    let (_dir, s, mut kv) = server().await;
    let mut w = Stream::open(&s.operator).await;
    w.create(WatchCreateRequest { watch_id: 1, filters: vec![0], prev_kv: true, ..on("a") }).await;
    w.create(WatchCreateRequest { watch_id: 2, filters: vec![1], prev_kv: true, ..on("a") }).await;
    put(&mut kv, "a", "1").await;
    put(&mut kv, "a", "2").await;
    kv.delete_range(DeleteRangeRequest { key: "a".into(), ..Default::default() }).await.expect("delete");
    let mut seen = Vec::new();
    while seen.len() < 3 {
        let r = w.next().await;
        for e in r.events {
            let prev = e.prev_kv.map(|p| String::from_utf8_lossy(&p.value).into_owned());
            seen.push((r.watch_id, e.r#type, prev));
        }
    }
    seen.sort();
    let (put, delete) = (EventType::Put as i32, EventType::Delete as i32);
    assert_eq!(seen, [(1, delete, Some("2".into())), (2, put, None), (2, put, Some("1".into()))]);
    s.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_never_overtakes_events() {
    let (_dir, s, mut kv) = server().await;
    let mut w = Stream::open(&s.operator).await;
    w.create(WatchCreateRequest { range_end: "b".into(), ..on("a") }).await;
    let mut told = 1;
    for i in 0..200 {
        let r = put(&mut kv, if i % 3 == 0 { "a" } else { "other" }, "x").await;
        w.ask(RequestUnion::ProgressRequest(WatchProgressRequest {})).await;
        loop {
            let got = w.next().await;
            let revision = got.header.expect("header").revision;
            if got.events.is_empty() {
                assert_eq!(got.watch_id, -1);
                assert!(revision >= r);
                told = revision;
                break;
            }
            for e in got.events {
                let at = e.kv.expect("kv").mod_revision;
                assert!(at > told, "event {at} after progress {told}");
            }
        }
    }
    s.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_watches_hear_how_far_they_are() {
    let (_dir, s, mut kv) = server().await;
    let mut w = Stream::open(&s.operator).await;
    w.create(WatchCreateRequest { progress_notify: true, ..on("a") }).await;
    let r = put(&mut kv, "other", "1").await;
    let got = w.next().await;
    assert_eq!((got.watch_id, got.events.len(), got.canceled), (0, 0, false));
    assert_eq!(got.header.expect("header").revision, r);
    s.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_revision_is_whole_or_in_fragments() {
    let (_dir, s, mut kv) = server().await;
    let keys = ["a1", "a2", "a3", "a4"];
    // Four values of 1 MiB in one revision do not fit in one request; a deletion with prev_kv shows them.
    for k in keys {
        put(&mut kv, k, vec![b'x'; 1 << 20]).await;
    }
    let mut w = Stream::open(&s.operator).await;
    let create = WatchCreateRequest { range_end: "b".into(), prev_kv: true, ..on("a") };
    w.create(WatchCreateRequest { watch_id: 1, ..create.clone() }).await;
    w.create(WatchCreateRequest { watch_id: 2, fragment: true, ..create }).await;
    let delete = DeleteRangeRequest { key: "a".into(), range_end: "b".into(), ..Default::default() };
    kv.delete_range(delete).await.expect("delete");
    let whole = w.next().await;
    assert_eq!((whole.watch_id, whole.events.len(), whole.fragment), (1, 4, false));
    let mut events = 0;
    for last in [false, false, false, true] {
        let part = w.next().await;
        assert_eq!((part.watch_id, part.fragment), (2, !last));
        events += part.events.len();
    }
    assert_eq!(events, 4);
    s.stop().await;
}

/// A client that does not read keeps nobody waiting, and later gets everything, in order.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_watcher_costs_only_itself() {
    let dir = tempfile::tempdir().expect("temp dir");
    let config = ChainFireConfig { watch_ring: 256 << 10, ..ChainFireConfig::new(dir.path()) };
    let s = Server::with(config).await;
    let mut kv = KvClient::new(channel(&s.operator).await);
    let mut slow = Stream::open(&s.operator).await;
    slow.create(on("k")).await;
    let mut fast = Stream::open(&s.operator).await;
    fast.create(on("k")).await;
    const N: usize = 600;
    let mut seen = 0;
    for _ in 0..N {
        let r = put(&mut kv, "k", vec![b'x'; 32 << 10]).await;
        while seen < r {
            seen = fast.next().await.events.last().expect("events").kv.as_ref().expect("kv").mod_revision;
        }
    }
    // 19 MiB went by, far more than ring and windows hold.
    sleep(Duration::from_millis(50)).await;
    let mut revisions = Vec::new();
    while revisions.len() < N {
        let r = slow.next().await;
        assert!(!r.canceled, "{r:?}");
        revisions.extend(r.events.into_iter().map(|e| e.kv.expect("kv").mod_revision));
    }
    assert!(revisions.iter().copied().eq(2..2 + N as i64), "a gap or a duplicate");
    s.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_below_the_compaction_is_refused() {
    let (_dir, s, mut kv) = server().await;
    for _ in 0..5 {
        put(&mut kv, "a", "1").await;
    }
    kv.compact(CompactionRequest { revision: 5, physical: true }).await.expect("compact");
    let mut w = Stream::open(&s.operator).await;
    w.create(WatchCreateRequest { start_revision: 3, ..on("a") }).await;
    let r = w.next().await;
    assert_eq!((r.canceled, r.compact_revision, r.watch_id), (true, 5, 0));
    w.create(WatchCreateRequest { start_revision: 5, ..on("a") }).await;
    assert_eq!(w.next().await.events.len(), 2);
    s.stop().await;
}
