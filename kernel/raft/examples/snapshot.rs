//! A snapshot of many gigabytes on its way between two nodes of one process, over loopback and real disks: how
//! long it takes, and how much memory. `cargo run --release -p photon-raft --example snapshot -- [MIB] [MIB/S]`

use bytes::Bytes;
use photon_raft::{
    Change, Command, GroupId, Machine, MachineError, NodeId, Position, Store, StoreConfig,
    peers::{Dial, Dialing, Peers, Stream},
    snapshot::Chunks,
};
use photon_rt::{
    disk::RealDisk,
    net::TcpStream,
    task::Tasks,
    time::{Duration, now, sleep},
};
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

const MIB: u64 = 1 << 20;

/// As many MiB as the number says, which is all it remembers.
struct Big(Position, Arc<AtomicU64>);

fn piece(i: u64) -> Bytes {
    let mut word = i;
    let mut next = || {
        word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        word
    };
    (0..MIB / 8).flat_map(|_| next().to_le_bytes()).collect::<Vec<u8>>().into()
}

impl Machine for Big {
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
        let size = self.1.load(Ordering::Relaxed);
        Ok((self.0, Box::new((0..size).map(|i| Ok(piece(i))))))
    }

    fn restore(
        &mut self,
        at: Position,
        chunks: &mut dyn Iterator<Item = Result<Bytes, MachineError>>,
    ) -> Result<(), MachineError> {
        let mut size = 0;
        for chunk in chunks {
            if chunk? != piece(size) {
                return Err(MachineError(format!("piece {size} is another one")));
            }
            size += 1;
        }
        self.0 = at;
        self.1.store(size, Ordering::Relaxed);
        Ok(())
    }
}

struct To(SocketAddr);

impl Dial for To {
    fn dial(&self, _: NodeId) -> Dialing {
        let addr = self.0;
        Box::pin(async move { Ok(Box::new(TcpStream::connect(addr).await?) as Box<dyn Stream>) })
    }
}

fn memory() -> String {
    let text = photon_rt::fs::read_text(std::path::Path::new("/proc/self/status"), 1 << 16).expect("proc");
    let line = text.lines().find(|l| l.starts_with("VmHWM")).expect("VmHWM");
    line.split_whitespace().skip(1).collect::<Vec<_>>().join(" ")
}

#[tokio::main]
async fn main() {
    let arg = |i, or| std::env::args().nth(i).and_then(|a| a.parse().ok()).unwrap_or(or);
    let (mib, rate) = (arg(1, 2048), arg(2, 0));
    let dir = std::env::temp_dir().join(format!("photon-snapshot-{:x}", photon_rt::entropy::u64()));
    let tasks = Tasks::new();
    let mut sockets = Vec::new();
    for _ in 0..2 {
        sockets.push(photon_rt::net::listen(SocketAddr::from(([127, 0, 0, 1], 0))).await.expect("listen"));
    }
    let addrs: Vec<SocketAddr> = sockets.iter().map(|s| s.local_addr().expect("address")).collect();
    let mut nodes = Vec::new();
    for (i, socket) in sockets.into_iter().enumerate() {
        let id = NodeId(i as u64 + 1);
        let peers = Peers::new(id, 1, Arc::new(To(addrs[1 - i])), &tasks);
        let disk = Arc::new(RealDisk::open(&dir.join(i.to_string())).expect("disk"));
        let config = StoreConfig { snapshot_rate: rate * MIB, ..StoreConfig::new(id) };
        let store = Arc::new(Store::open(config, disk, peers.transport()).expect("open"));
        peers.attach(&store);
        let size = Arc::new(AtomicU64::new(if i == 0 { mib } else { 0 }));
        let founders: &[NodeId] = if i == 0 { &[NodeId(1)] } else { &[] };
        let group = store
            .create_group(GroupId(1), founders, Big(Position::default(), size.clone()))
            .await
            .expect("group");
        let own = tasks.clone();
        tasks.spawn("accept", async move {
            while let Ok((stream, _)) = socket.accept().await {
                let peers = peers.clone();
                own.spawn("peer", async move { peers.serve(stream, |_| true).await });
            }
        });
        nodes.push((store, group, size));
    }
    let first = &nodes[0].1;
    first.propose(Bytes::from_static(b"x")).await.expect("alone");
    println!("{mib} MiB; before: {} at most", memory());
    let begun = now();
    first.change(vec![Change::Learner(NodeId(2))]).await.expect("added");
    let (mut slowest, mut writes) = (Duration::ZERO, 0);
    while nodes[1].2.load(Ordering::Relaxed) != mib {
        let one = now();
        first.propose(Bytes::from_static(b"meanwhile")).await.expect("alone");
        (slowest, writes) = (slowest.max(one.elapsed()), writes + 1);
        sleep(Duration::from_millis(5)).await;
    }
    let took = begun.elapsed();
    println!(
        "installed after {took:?} ({:.0} MiB/s, made, carried, verified twice and checked); {} at most; {writes} writes meanwhile, the slowest {slowest:?}",
        mib as f64 / took.as_secs_f64(),
        memory()
    );
    for (store, ..) in &nodes {
        store.shutdown().await;
    }
    tasks.shutdown().await;
    photon_rt::fs::remove_dir_all(&dir).expect("clean");
}
