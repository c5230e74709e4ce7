use super::*;
use crate::{
    key::{self, Mode},
    model::{
        Kind,
        command::{Mutation, Prewrite},
        read::Snapshot,
    },
};

/// A read waits for a derived commit that is under way in a region, and the region becomes part of another one
/// before anybody hears what became of that commit: the read must go to the new region, not wait for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_read_waits_for_no_region_that_is_gone() {
    let dir = tempfile::tempdir().expect("temp dir");
    let node = Node::open(dir.path()).await.expect("open");
    let key = key::key(Mode::Txn, b"k5").expect("short");
    let at = key::border(&key).expect("border");
    let region = node.split(at).await.expect("split").pop().expect("two");
    let replica = node.replica(region.id).expect("there");

    let mutation = Mutation { kind: Kind::Put as i32, key: key.clone(), ..Mutation::default() };
    let start = node.timestamp().await.expect("timestamp");
    let prewrite = Prewrite {
        start,
        primary: key.clone(),
        mutations: vec![mutation],
        one_phase: true,
        ..Prewrite::default()
    };
    let term = node.open_gate(&replica, region.version).await.expect("leads");
    let mut command = Command::new(region.version, Op::Prewrite(prewrite));
    lock(&replica.gate).admit(region.id, term, &mut command).expect("open").expect("derived");

    let at = node.timestamp().await.expect("timestamp");
    let (other, asked, read) = (node.clone(), region.clone(), key.clone());
    let reader = node.0.tasks.spawn("reader", async move {
        other.ask(&asked, Request::Get(read, Snapshot { at, pass: Vec::new() })).await
    });
    // It has come to the gate when it has raised the floor.
    while lock(&replica.gate).floor() < at {
        tokio::task::yield_now().await;
    }
    node.merge(region.id).await.expect("merge");
    let answer = reader.await.expect("no panic").expect("not cancelled");
    assert_eq!(answer, Err(Refusal::NotLeader(region.id)));
    node.shutdown().await;
}
