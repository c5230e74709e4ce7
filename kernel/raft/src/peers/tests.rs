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

mod hostile {
    use super::*;
    use crate::{
        Command, GroupId, Machine, MachineError, NoTransport, Position, StoreConfig, snapshot,
        snapshot::{Chunks, Descriptor, piece_sum},
    };
    use photon_rt::disk::{Disk, SimDisk};
    use raft::eraftpb::{ConfState, Message, MessageType};

    struct Nothing(Position);

    impl Machine for Nothing {
        type Reply = ();

        fn apply(&mut self, commands: &[Command]) -> Result<Vec<()>, MachineError> {
            self.0 = commands.last().map_or(self.0, |c| c.position);
            Ok(vec![(); commands.len()])
        }

        fn applied(&self) -> Position {
            self.0
        }

        fn checkpoint(&mut self) -> Result<Position, MachineError> {
            Ok(self.0)
        }

        fn snapshot(&self) -> Result<(Position, Chunks), MachineError> {
            Err(MachineError("none".into()))
        }

        fn restore(
            &mut self,
            _: Position,
            _: &mut dyn Iterator<Item = Result<Bytes, MachineError>>,
        ) -> Result<(), MachineError> {
            Err(MachineError("none".into()))
        }
    }

    fn announcement(group: u64, size: u64) -> Vec<u8> {
        let mut m = Message { from: 2, to: 1, term: 3, ..Message::default() };
        m.set_msg_type(MessageType::MsgSnapshot);
        m.mut_snapshot().data = Descriptor { id: 5, size, sum: 6 }.encode();
        let meta = m.mut_snapshot().mut_metadata();
        (meta.index, meta.term) = (9, 3);
        meta.set_conf_state(ConfState { voters: vec![1, 2], ..ConfState::default() });
        let mut message = Vec::new();
        codec::encode_message(&mut message, &m).expect("encodes");
        let mut out = frame::head(GroupId(group), &message).to_vec();
        out.extend(message);
        out
    }

    fn piece(at: u64, bytes: &[u8], sum: u32) -> Vec<u8> {
        let mut out = at.to_le_bytes().to_vec();
        out.extend((bytes.len() as u32).to_le_bytes());
        out.extend(sum.to_le_bytes());
        out.extend(bytes);
        out
    }

    #[tokio::test]
    async fn snapshots_that_are_not_as_announced_end_their_connection() {
        let tasks = Tasks::new();
        let disk = SimDisk::new(1);
        let store = Store::open(StoreConfig::new(NodeId(1)), Arc::new(disk.clone()), NoTransport);
        let store = Arc::new(store.expect("open"));
        store.create_group(GroupId(1), &[], Nothing(Position::default())).await.expect("group");
        let p = peers(&tasks);
        p.attach(&store);
        let x = [7; 60];
        let good = piece(0, &x, piece_sum(&x));
        let too_long = (snapshot::PIECE_MAX as u32 + 1).to_le_bytes();
        for (what, sent, says) in [
            ("an unknown group", announcement(9, 100), vec![4]),
            ("too much", announcement(1, snapshot::MAX_SNAPSHOT_BYTES + 1), vec![4]),
            ("no announcement", [&frame::head(GroupId(1), b"junk")[..], b"junk"].concat(), vec![4]),
            ("a gap", [announcement(1, 100), piece(1, &x, piece_sum(&x))].concat(), vec![0, 4]),
            ("a wrong checksum", [announcement(1, 100), piece(0, &x, 1)].concat(), vec![0, 4]),
            (
                "beyond the end",
                [announcement(1, 100), good.clone(), piece(60, &x, piece_sum(&x))].concat(),
                vec![0, 4],
            ),
            (
                "a longer piece than any",
                [&announcement(1, 100)[..], &[0; 8], &too_long, &[0; 4]].concat(),
                vec![0],
            ),
            ("something else", [announcement(1, 60), good].concat(), vec![0, 3]),
        ] {
            let (here, there) = duplex(1 << 10);
            let talk = async {
                let (mut answers, mut here) = tokio::io::split(here);
                let hello = Hello { lane: Lane::Snapshots, cluster: 7, from: NodeId(2), to: NodeId(1) };
                here.write_all(&hello.encode()).await.expect("write");
                here.write_all(&sent).await.expect("write");
                let mut got = Vec::new();
                answers.read_to_end(&mut got).await.expect("the other side closes it");
                got
            };
            let (served, got) = futures::join!(p.serve(there, |_| true), talk);
            assert!(served.is_err(), "{what}");
            let kinds: Vec<u8> = got[1..].chunks(9).map(|a| a[0]).collect();
            assert_eq!((got[0], kinds), (0, says), "{what}: {served:?}");
        }
        assert!(disk.list().expect("list").iter().all(|n| !n.starts_with("snap-")), "nothing is left");
        store.shutdown().await;
        tasks.shutdown().await;
    }
}
