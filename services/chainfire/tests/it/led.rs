//! Clients that want a leader (`hasleader`), beside a real etcd.

use crate::{
    cluster::{leader, three, until},
    harness::{Etcd, channel},
};
use chainfire::wire::etcdserverpb::{
    kv_client::KvClient, watch_client::WatchClient, watch_request::RequestUnion, *,
};
use photon_rt::time::{Duration, timeout};
use tonic::{Code, Request, Streaming};

fn led<T>(message: T) -> Request<T> {
    let mut r = Request::new(message);
    r.metadata_mut().insert("hasleader", "true".parse().expect("ascii"));
    r
}

async fn watch(url: &str, wants_leader: bool) -> Streaming<WatchResponse> {
    let create = WatchCreateRequest { key: "w".into(), ..Default::default() };
    let ask = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    let asks = futures::StreamExt::chain(
        futures::stream::once(async { ask }),
        futures::stream::pending::<WatchRequest>(),
    );
    let mut client = WatchClient::new(channel(url).await);
    let asked = if wants_leader { client.watch(led(asks)).await } else { client.watch(asks).await };
    let mut answers = asked.expect("a watch").into_inner();
    assert!(answers.message().await.expect("an answer").expect("one").created);
    answers
}

/// How a watch ends and how a read is refused once `silence` has left the member at `url` without a quorum.
async fn refusals(url: &str, silence: impl AsyncFnOnce()) -> [(Code, String); 2] {
    let (mut strict, mut patient) = (watch(url, true).await, watch(url, false).await);
    silence().await;
    let limit = Duration::from_secs(60);
    let told = timeout(limit, "the end of the watch", strict.message()).await.expect("in time");
    let ended = told.expect_err("no event, and no orderly end");
    let get = || RangeRequest { key: "k".into(), serializable: true, ..Default::default() };
    let mut kv = KvClient::new(channel(url).await);
    let refused = kv.range(led(get())).await.expect_err("without a leader");
    kv.range(get()).await.expect("who does not ask for one is answered");
    let quiet = timeout(Duration::from_millis(200), "an answer", patient.message()).await;
    assert!(quiet.is_err(), "who does not ask for one goes on waiting: {quiet:?}");
    [ended, refused].map(|s| (s.code(), s.message().to_string()))
}

#[tokio::test(flavor = "multi_thread")]
async fn who_wants_a_leader_is_told_that_there_is_none() {
    let dir = tempfile::tempdir().expect("temp dir");
    let members = Etcd::three(dir.path()).await;
    let theirs = refusals(&members[0].url, async || {
        for m in &members[1..] {
            m.signal("STOP").await;
        }
    });
    let theirs = theirs.await;
    drop(members);

    let (_places, _, mut servers) = three().await;
    until("a leader", async || leader(&servers).is_some()).await;
    let one = servers.remove(0).expect("it runs");
    let ours = refusals(&one.operator, async || {
        for s in servers.drain(..).flatten() {
            s.stop().await;
        }
    });
    assert_eq!(ours.await, theirs);
    one.stop().await;
}
