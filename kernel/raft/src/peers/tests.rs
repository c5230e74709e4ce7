//! The bytes, and who is refused. Whole clusters on these connections are in `tests/it/peers.rs`.

use super::*;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

struct Nobody;

impl Dial for Nobody {
    fn dial(&self, _: NodeId) -> Dialing {
        Box::pin(async { Err(io::ErrorKind::NotFound.into()) })
    }
}

fn peers(tasks: &Tasks) -> Peers {
    Peers::new(NodeId(1), 7, Arc::new(Nobody), tasks)
}

#[tokio::test]
async fn only_a_peer_of_this_cluster_that_means_this_node_is_heard() {
    let tasks = Tasks::new();
    let right = Hello { lane: frame::Lane::Quick, cluster: 7, from: NodeId(2), to: NodeId(1) };
    for (hello, answer) in [
        (right, 0),
        (Hello { cluster: 8, ..right }, Refusal::Cluster as u8),
        (Hello { to: NodeId(3), ..right }, Refusal::Node as u8),
        (Hello { from: NodeId(1), ..right }, Refusal::Identity as u8),
        (Hello { from: NodeId(9), ..right }, Refusal::Identity as u8),
    ] {
        let (mut here, there) = duplex(1 << 10);
        let p = peers(&tasks);
        let talk = async {
            here.write_all(&hello.encode()).await.expect("write");
            let got = here.read_u8().await.expect("answer");
            drop(here);
            got
        };
        let (served, got) = futures::join!(p.serve(there, |n| n == NodeId(2)), talk);
        assert_eq!(got, answer, "{hello:?}");
        assert_eq!(served.is_ok(), answer == 0, "{served:?}");
    }
    let (mut here, there) = duplex(1 << 10);
    here.write_all(&[b'x'; 40]).await.expect("write");
    assert!(matches!(peers(&tasks).serve(there, |_| true).await, Err(PeerError::Io(_))));
    tasks.shutdown().await;
}

proptest! {
    #[test]
    fn frames_come_out_as_they_went_in(
        messages in prop::collection::vec((any::<u64>(), prop::collection::vec(any::<u8>(), 0..300)), 0..10),
        cut in any::<prop::sample::Index>(),
        noise in prop::collection::vec(any::<u8>(), 0..64),
    ) {
        let mut bytes = Vec::new();
        for (g, m) in &messages {
            bytes.extend_from_slice(&frame::head(GroupId(*g), m));
            bytes.extend_from_slice(m);
        }
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
        let read = |bytes: Vec<u8>| runtime.block_on(async move {
            let mut r = frame::Reader::new(&bytes[..]);
            let mut out = Vec::new();
            loop {
                match r.next().await {
                    Ok(Some((g, m))) => out.push((g.0, m.to_vec())),
                    Ok(None) => return (out, true),
                    Err(_) => return (out, false),
                }
            }
        });
        prop_assert_eq!(read(bytes.clone()), (messages.clone(), true));
        if !bytes.is_empty() {
            let (some, _) = read(bytes[..cut.index(bytes.len())].to_vec());
            prop_assert!(messages.starts_with(&some));
        }
        let _ = read(noise);
    }
}
