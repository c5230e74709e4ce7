//! Three stores on TCP connections, one of which is cut in the middle of everything.

use crate::journal::Journal;
use bytes::Bytes;
use photon_raft::{
    Change, Group, GroupId, NodeId, ProposeError, Role, Store, StoreConfig,
    peers::{Dial, Dialing, Peers, Stream},
};
use photon_rt::{
    disk::SimDisk,
    net::{TcpListener, TcpStream},
    task::Tasks,
    time::{Duration, sleep, timeout},
};
use std::{
    collections::HashMap,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

type Book = Arc<Mutex<HashMap<NodeId, SocketAddr>>>;

/// With a number, connections that carry snapshots break when so many bytes have left.
struct Tcp(Book, Option<usize>);

/// Breaks.
struct Brittle {
    stream: TcpStream,
    first: Vec<u8>,
    left: usize,
}

impl AsyncRead for Brittle {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Brittle {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        if self.first.len() < 4 {
            self.first.extend_from_slice(&buf[..buf.len().min(4)]);
        }
        let len = if self.first.starts_with(b"PHPS") { buf.len().min(self.left) } else { buf.len() };
        if len == 0 {
            return Poll::Ready(Err(std::io::ErrorKind::ConnectionReset.into()));
        }
        let done = Pin::new(&mut self.stream).poll_write(cx, &buf[..len]);
        if let Poll::Ready(Ok(n)) = done {
            self.left = self.left.saturating_sub(n);
        }
        done
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl Dial for Tcp {
    fn dial(&self, to: NodeId) -> Dialing {
        let (addr, left) = (self.0.lock().unwrap().get(&to).copied(), self.1.unwrap_or(usize::MAX));
        Box::pin(async move {
            let addr = addr.ok_or(std::io::ErrorKind::NotFound)?;
            let stream = TcpStream::connect(addr).await?;
            Ok(Box::new(Brittle { stream, first: Vec::new(), left }) as Box<dyn Stream>)
        })
    }
}

struct Node {
    store: Arc<Store>,
    group: Group<Journal>,
    machine: Journal,
    tasks: Tasks,
    /// Connections that came in.
    accepted: Arc<Mutex<Vec<Tasks>>>,
}

async fn start(id: u64, founders: &[NodeId], book: &Book) -> Node {
    start_with(id, founders, book, None).await
}

async fn start_with(id: u64, founders: &[NodeId], book: &Book, brittle: Option<usize>) -> Node {
    let tasks = Tasks::new();
    let peers = Peers::new(NodeId(id), 1, Arc::new(Tcp(book.clone(), brittle)), &tasks);
    let mut config = StoreConfig::new(NodeId(id));
    config.tick = Duration::from_millis(20);
    let disk = Arc::new(SimDisk::new(id));
    let store = Arc::new(Store::open(config, disk, peers.transport()).expect("open"));
    peers.attach(&store);
    let socket: TcpListener =
        photon_rt::net::listen("127.0.0.1:0".parse().expect("address")).await.expect("listen");
    book.lock().unwrap().insert(NodeId(id), socket.local_addr().expect("address"));
    let machine = Journal::default();
    let group = store.create_group(GroupId(1), founders, machine.clone()).await.expect("group");
    let accepted = Arc::new(Mutex::new(Vec::new()));
    let each = accepted.clone();
    tasks.spawn("accept", async move {
        while let Ok((stream, _)) = socket.accept().await {
            let own = Tasks::new();
            let peers = peers.clone();
            own.spawn("peer", async move { peers.serve(stream, |_| true).await });
            each.lock().unwrap().push(own);
        }
    });
    Node { store, group, machine, tasks, accepted }
}

async fn until(what: &str, f: impl Fn() -> bool) {
    let wait = async {
        while !f() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(60), what, wait).await.expect("in time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_on_tcp_survives_cut_connections_and_sends_snapshots() {
    let book = Book::default();
    let founders = [NodeId(1), NodeId(2)];
    let mut nodes = Vec::new();
    for id in 1..=2 {
        nodes.push(start(id, &founders, &book).await);
    }
    let leads = |n: &Node| n.group.status().role == Role::Leader;
    until("somebody to lead", || nodes.iter().any(leads)).await;
    // From both ends, while every connection is cut again and again.
    let mut acknowledged = 0;
    for i in 0..300 {
        if i % 50 == 25 {
            nodes.iter().for_each(|n| n.accepted.lock().unwrap().clear());
        }
        let text = Bytes::from(format!("{i} {}", "x".repeat(5_000)));
        match nodes[i % 2].group.propose(text).await {
            Ok(_) => acknowledged += 1,
            // Cut off on its way, or the leader was.
            Err(ProposeError::Unknown(_) | ProposeError::NotLeader { .. }) => {}
            Err(e) => panic!("{e}"),
        }
    }
    assert!(acknowledged > 200, "{acknowledged}");
    // A third node has nothing: 1.5 MB come as a snapshot, on a connection of their own.
    nodes.push(start(3, &[], &book).await);
    until("somebody to lead", || nodes.iter().any(leads)).await;
    let leader = nodes.iter().find(|n| leads(n)).expect("just seen");
    let added = async {
        while let Err(e) = leader.group.change(vec![Change::Voter(NodeId(3))]).await {
            assert!(matches!(e, ProposeError::Changing), "{e}");
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(30), "the third to be added", added).await.expect("in time");
    until("the third to be a voter", || nodes[2].group.members().voters.len() == 3).await;
    nodes[2].group.read_index().await.expect("read");
    let commands = nodes[2].machine.commands();
    assert!(commands.len() >= acknowledged);
    assert_eq!(commands, nodes[0].machine.commands()[..commands.len()]);
    for n in nodes {
        n.store.shutdown().await;
        n.tasks.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_goes_on_where_its_connection_broke() {
    let book = Book::default();
    // 8 MB, over connections that break after 2 MB: anew each time, it would never arrive.
    let first = start_with(1, &[NodeId(1)], &book, Some(2 << 20)).await;
    for i in 0..80 {
        first.group.propose(Bytes::from(vec![i; 100_000])).await.expect("alone");
    }
    let second = start(2, &[], &book).await;
    first.group.change(vec![Change::Learner(NodeId(2))]).await.expect("added");
    until("it to have all", || second.machine.commands().len() == 80).await;
    assert_eq!(second.machine.commands(), first.machine.commands());
    assert!(second.group.status().start.index >= 80, "by snapshot");
    for n in [first, second] {
        n.store.shutdown().await;
        n.tasks.shutdown().await;
    }
}
