//! Proposals a second of one node on a real disk, beside the disk's own fdatasync: `cargo run --release -p photon-raft --example bench`

use bytes::Bytes;
use photon_raft::{
    Command, GroupId, Machine, MachineError, NoTransport, NodeId, Position, Store, StoreConfig,
    snapshot::Chunks,
};
use photon_rt::{
    disk::{Disk, RealDisk},
    time::{Duration, cpu_used, now},
};
use std::sync::Arc;

/// Counts.
#[derive(Default)]
struct Counter(Position, u64);

impl Machine for Counter {
    type Reply = u64;

    fn apply(&mut self, commands: &[Command]) -> Result<Vec<u64>, MachineError> {
        let from = self.1;
        self.1 += commands.len() as u64;
        self.0 = commands.last().map_or(self.0, |c| c.position);
        Ok((from + 1..=self.1).collect())
    }

    fn applied(&self) -> Position {
        self.0
    }

    fn checkpoint(&mut self) -> Result<Position, MachineError> {
        Ok(Position::default())
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

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let dir = tempfile::tempdir_in("/var/tmp").expect("dir");
    let disk: Arc<dyn Disk> = Arc::new(RealDisk::open(dir.path()).expect("disk"));
    // The disk's own figure: one sync after another of a pre-allocated file.
    let file = disk.create("probe").expect("file");
    file.allocate(8 << 20).expect("room");
    file.sync_data().expect("sync");
    for round in 0..2 {
        let mut syncs = Vec::new();
        for i in 0..500 {
            let at = now();
            file.write_at((round * 500 + i) * 512, &[1; 512]).expect("write");
            file.sync_data().expect("sync");
            syncs.push(at.elapsed());
        }
        syncs.sort();
        println!("fdatasync p50 {:?} p99 {:?}", syncs[250], syncs[495]);
    }
    let store = Store::open(StoreConfig::new(NodeId(1)), disk, NoTransport).expect("open");
    let group = store.create_group(GroupId(1), &[NodeId(1)], Counter::default()).await.expect("group");
    for clients in [1usize, 64, 1, 64, 1000] {
        let until = now() + Duration::from_secs(3);
        let tasks = photon_rt::task::Tasks::new();
        let (begin, cpu) = (now(), cpu_used());
        let each = (0..clients).map(|_| {
            let group = group.clone();
            tasks.spawn("client", async move {
                let mut times = Vec::new();
                while now() < until {
                    let at = now();
                    group.propose(Bytes::from(vec![7; 256])).await.expect("done");
                    times.push(at.elapsed());
                }
                times
            })
        });
        let mut times: Vec<Duration> = Vec::new();
        for t in each.collect::<Vec<_>>() {
            times.extend(t.await.expect("client").expect("not cancelled"));
        }
        times.sort();
        let (n, took) = (times.len(), begin.elapsed());
        println!(
            "{clients:>4} clients: {:>8.0} proposals/s, p50 {:?}, p99 {:?}, CPU {:.1} us each",
            n as f64 / took.as_secs_f64(),
            times[n / 2],
            times[n * 99 / 100],
            (cpu_used() - cpu).as_micros() as f64 / n as f64
        );
    }
    store.shutdown().await;
    for lease_reads in [false, true, false, true] {
        reads(lease_reads).await;
    }
}

/// Linearizable points a second.
async fn reads(lease_reads: bool) {
    let dir = tempfile::tempdir_in("/var/tmp").expect("dir");
    let disk: Arc<dyn Disk> = Arc::new(RealDisk::open(dir.path()).expect("disk"));
    let config = StoreConfig { lease_reads, ..StoreConfig::new(NodeId(1)) };
    let store = Store::open(config, disk, NoTransport).expect("open");
    let group = store.create_group(GroupId(1), &[NodeId(1)], Counter::default()).await.expect("group");
    let tasks = photon_rt::task::Tasks::new();
    let until = now() + Duration::from_secs(2);
    let (begin, cpu) = (now(), cpu_used());
    let each = (0..64).map(|_| {
        let group = group.clone();
        tasks.spawn("reader", async move {
            let mut n = 0u64;
            while now() < until {
                group.read_index().await.expect("read");
                n += 1;
            }
            n
        })
    });
    let mut n = 0;
    for t in each.collect::<Vec<_>>() {
        n += t.await.expect("reader").expect("not cancelled");
    }
    println!(
        "  64 readers, lease {lease_reads}: {:>8.0} reads/s, CPU {:.2} us each",
        n as f64 / begin.elapsed().as_secs_f64(),
        (cpu_used() - cpu).as_micros() as f64 / n as f64
    );
    store.shutdown().await;
}
