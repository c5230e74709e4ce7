//! Figures of one node: single-key puts and gets, transactions over two regions, a scan; and the disk's own.
//! `cargo run --profile bench-fast -p flaredb --example figures [SECONDS]`

use bytes::Bytes;
use flaredb::{
    Node,
    client::{Options, Txn, World},
    key::{self, Mode, Span},
};
use photon_kv::Direction;
use photon_rt::{
    disk::{Disk, RealDisk},
    task::Tasks,
    time::{Duration, now},
};

const KEYS: u64 = 100_000;

fn k(n: u64) -> Bytes {
    key::key(Mode::Txn, &n.to_be_bytes()).expect("short")
}

/// Runs `f` in `clients` tasks for some time: operations a second, and the median and 99th percentile in ms.
async fn measure<F, R>(node: &Node, name: &str, clients: u64, seconds: u64, f: F)
where
    F: Fn(Node, u64) -> R + Clone + Send + 'static,
    R: Future<Output = bool> + Send,
{
    let tasks = Tasks::new();
    let cpu = photon_rt::time::cpu_used();
    let runs: Vec<_> = (0..clients)
        .map(|_| {
            let (node, f) = (node.clone(), f.clone());
            tasks.spawn("client", async move {
                let (begun, mut took, mut failed) = (now(), Vec::new(), 0u64);
                while begun.elapsed() < Duration::from_secs(seconds) {
                    let at = now();
                    let n = node.draw(KEYS);
                    match f(node.clone(), n).await {
                        true => took.push(at.elapsed().as_secs_f64() * 1000.0),
                        false => failed += 1,
                    }
                }
                (took, failed)
            })
        })
        .collect();
    let (mut took, mut failed) = (Vec::new(), 0);
    for r in runs {
        let (t, f) = r.await.expect("no panic").expect("not cancelled");
        took.extend(t);
        failed += f;
    }
    took.sort_by(f64::total_cmp);
    let cpu = (photon_rt::time::cpu_used() - cpu).as_secs_f64() * 1e6 / took.len().max(1) as f64;
    let at = |p: usize| took.get(took.len() * p / 100).copied().unwrap_or(0.0);
    let rate = took.len() as u64 / seconds;
    println!(
        "{name}, {clients} clients: {rate}/s, p50 {:.2} ms, p99 {:.2} ms, {cpu:.0} us CPU each, {failed} failed",
        at(50),
        at(99)
    );
}

#[tokio::main]
async fn main() {
    let seconds = std::env::args().nth(1).and_then(|s| s.parse().ok()).unwrap_or(5);
    let dir = std::env::temp_dir().join(format!("flaredb-figures-{}", std::process::id()));
    let node = Node::open(&dir).await.expect("open");
    let disk = RealDisk::open(&dir).expect("disk");
    let file = disk.create("probe").expect("file");
    file.allocate(1 << 20).expect("room");
    let begun = now();
    for i in 0..200 {
        file.write_at(i * 4096, &[7; 4096]).expect("write");
        file.sync_data().expect("sync");
    }
    println!("fdatasync of 4 KiB: {:.2} ms", begun.elapsed().as_secs_f64() * 1000.0 / 200.0);
    for from in (0..KEYS).step_by(200) {
        let mut t = Txn::begin(node.clone(), Options::default()).await.expect("begin");
        for n in from..from + 200 {
            t.put(k(n), vec![1; 100]).expect("small");
        }
        t.commit().await.expect("commit");
    }
    node.split(key::border(&k(KEYS / 2)).expect("border")).await.expect("split");
    let put = |node: Node, n: u64| async move {
        let Ok(mut t) = Txn::begin(node, Options::default()).await else { return false };
        t.put(k(n), vec![2; 100]).is_ok() && t.commit().await.is_ok()
    };
    let get = |node: Node, n: u64| async move {
        let Ok(mut t) = Txn::begin(node, Options::default()).await else { return false };
        matches!(t.get(&k(n)).await, Ok(Some(_)))
    };
    let pair = |node: Node, n: u64| async move {
        let Ok(mut t) = Txn::begin(node, Options::default()).await else { return false };
        let (a, b) = (k(n / 2), k(KEYS / 2 + n / 2));
        t.put(a, vec![3; 100]).is_ok() && t.put(b, vec![3; 100]).is_ok() && t.commit().await.is_ok()
    };
    for clients in [1, 64] {
        measure(&node, "put", clients, seconds, put).await;
        measure(&node, "get", clients, seconds, get).await;
        measure(&node, "two regions", clients, seconds, pair).await;
    }
    let begun = now();
    let (mut rows, mut span) = (0, Span::prefix(Mode::Txn, b""));
    let mut t = Txn::begin(node.clone(), Options::default()).await.expect("begin");
    loop {
        let page = t.scan(&span, Direction::Forward, 10_000).await.expect("scan");
        let Some(last) = page.last() else { break };
        span.start = key::after(&last.key);
        rows += page.len();
    }
    println!("scan: {:.0} rows/s", rows as f64 / begun.elapsed().as_secs_f64());
    node.shutdown().await;
    let _ = photon_rt::fs::remove_dir_all(&dir);
}
