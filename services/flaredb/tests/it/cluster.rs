//! Several nodes in one process, with connections that can be cut: writes through any of them, nodes that die and
//! come back, ranges that change meanwhile.

use crate::node::{k, number};
use bytes::Bytes;
use flaredb::{
    Node, Outcome, Refusal,
    client::{Abort, Options, Request, Response, Txn, World, raw},
    key::{self, Mode, Span},
    model::{Descriptor, RegionState, SPACES},
    node::{Cluster, Others},
    time::Ts,
};
use futures::future::BoxFuture;
use photon_kv::{Direction, Kv, MemKv, engine::MemEngine};
use photon_raft::{
    NodeId, Role,
    peers::{Dial, Dialing, Peers, Stream},
};
use photon_rt::{
    disk::SimDisk,
    task::Tasks,
    time::{Duration, now, sleep, timeout},
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

const NODES: u64 = 3;

/// A node that runs.
#[derive(Clone)]
struct Running {
    node: Node,
    peers: Peers,
    tasks: Tasks,
}

type Net = Arc<Mutex<BTreeMap<u64, Running>>>;

/// How one node reaches the others: as long as they are in the net.
struct Wires(Net);

impl Wires {
    fn at(&self, id: NodeId) -> Outcome<Running> {
        let found = self.0.lock().expect("net").get(&id.0).cloned();
        found.ok_or_else(|| Refusal::Unreachable(format!("{id} is away")))
    }
}

impl Dial for Wires {
    fn dial(&self, to: NodeId) -> Dialing {
        let there = self.at(to);
        Box::pin(async move {
            let there = there.map_err(|_| std::io::ErrorKind::NotConnected)?;
            let (here, other) = tokio::io::duplex(1 << 20);
            let peers = there.peers.clone();
            there.tasks.spawn("peer", async move { peers.serve(other, |_| true).await });
            Ok(Box::new(here) as Box<dyn Stream>)
        })
    }
}

impl Others for Wires {
    fn timestamps(&self, node: NodeId, n: u32) -> BoxFuture<'_, Outcome<Ts>> {
        Box::pin(async move { self.at(node)?.node.timestamps_here(n).await })
    }

    fn region(&self, node: NodeId, id: u64) -> BoxFuture<'_, Outcome<RegionState>> {
        Box::pin(async move { self.at(node)?.node.region_state(id).await })
    }

    fn ask(&self, node: NodeId, region: &Descriptor, request: Request) -> BoxFuture<'_, Outcome<Response>> {
        let region = region.clone();
        Box::pin(async move { self.at(node)?.node.ask_here(&region, request).await })
    }
}

/// Disks and engines of all, and those that run.
struct Store {
    net: Net,
    kv: Arc<MemKv>,
    parts: BTreeMap<u64, (SimDisk, MemEngine)>,
}

impl Store {
    async fn new() -> Store {
        let parts = (1..=NODES).map(|n| (n, (SimDisk::new(n), MemEngine::new(SPACES.len())))).collect();
        let store = Store { net: Net::default(), kv: Arc::new(MemKv::new()), parts };
        for n in 1..=NODES {
            store.start(n).await.expect("starts");
        }
        store
    }

    fn cluster(&self, n: u64, tasks: &Tasks) -> Cluster {
        let wires = Arc::new(Wires(self.net.clone()));
        Cluster {
            me: NodeId(n),
            members: (1..=NODES).map(NodeId).collect(),
            peers: Peers::new(NodeId(n), 7, wires.clone(), tasks),
            others: wires,
            kv: self.kv.clone() as Arc<dyn Kv>,
            oracle: Bytes::from_static(b"oracle"),
            election: Duration::from_millis(400),
            retain: 8,
        }
    }

    async fn start(&self, n: u64) -> Outcome<()> {
        let tasks = Tasks::new();
        let cluster = self.cluster(n, &tasks);
        let peers = cluster.peers.clone();
        let (disk, engine) = self.parts[&n].clone();
        let node = Node::start_in(Arc::new(disk), Arc::new(engine), cluster).await?;
        self.net.lock().expect("net").insert(n, Running { node, peers, tasks });
        Ok(())
    }

    /// The node ends at once, and the power of its machine goes. `keep` of the engine's batches that were not
    /// durable survive.
    async fn kill(&mut self, n: u64, keep: usize) {
        let it = self.net.lock().expect("net").remove(&n).expect("it runs");
        it.node.stop("killed");
        it.tasks.shutdown().await;
        it.node.shutdown().await;
        let (disk, engine) = self.parts.get_mut(&n).expect("a part");
        disk.power_loss();
        *engine = engine.crash(keep.min(engine.pending()));
    }

    fn node(&self, n: u64) -> Node {
        self.net.lock().expect("net")[&n].node.clone()
    }

    fn running(&self) -> Vec<u64> {
        self.net.lock().expect("net").keys().copied().collect()
    }

    /// Who leads the region of a key, as soon as somebody does.
    async fn leader(&self, key: &Bytes) -> u64 {
        wait("a leader", || {
            self.running().into_iter().find(|n| {
                let all = self.node(*n).statuses();
                let of = all.into_iter().find(|(d, _)| d.span().contains(key));
                of.and_then(|(_, s)| s).is_some_and(|s| s.role == Role::Leader)
            })
        })
        .await
    }
}

async fn wait<T>(what: &'static str, f: impl Fn() -> Option<T>) -> T {
    let looking = async {
        loop {
            if let Some(t) = f() {
                return t;
            }
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(60), what, looking).await.unwrap_or_else(|e| panic!("{e}"))
}

/// Runs until it is committed; how often it had to be tried.
async fn set(node: &Node, keys: &[u64], value: u64) {
    let begun = now();
    loop {
        let done: Result<(), Abort> = async {
            let mut t = Txn::begin(node.clone(), Options::default()).await.map_err(Abort::RolledBack)?;
            for n in keys {
                t.put(k(*n), value.to_be_bytes().to_vec()).map_err(Abort::RolledBack)?;
            }
            t.commit().await.map(drop)
        }
        .await;
        match done {
            Ok(()) => return,
            Err(e) => assert!(begun.elapsed() < Duration::from_secs(60), "{e:?}"),
        }
    }
}

async fn get(node: &Node, n: u64) -> u64 {
    let begun = now();
    loop {
        let read = async {
            let mut t = Txn::begin(node.clone(), Options::default()).await?;
            t.get(&k(n)).await
        };
        match read.await {
            Ok(v) => return number(v),
            Err(e) => assert!(begun.elapsed() < Duration::from_secs(60), "{e}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_dies_and_the_others_go_on() {
    let mut store = Store::new().await;
    for n in 1..=NODES {
        set(&store.node(n), &[n, 100 + n], n).await;
    }
    let at = key::border(&k(50)).expect("border");
    let two = store.node(2).split(at).await.expect("split");
    assert_eq!(two[0].members, [1, 2, 3]);
    assert_eq!((two[1].members.clone(), two[1].id % NODES), (vec![1, 2, 3], 1), "node 2's numbers");
    for n in 1..=NODES {
        set(&store.node(n), &[10 + n, 110 + n], 10 * n).await;
    }
    // The leader of the left half dies, with what was not durable.
    let dead = store.leader(&k(1)).await;
    let last = store.node(dead).timestamp().await.expect("timestamp");
    store.kill(dead, 0).await;
    let left: Vec<u64> = store.running();
    for n in &left {
        set(&store.node(*n), &[20 + n, 120 + n], 100 * n).await;
        assert!(store.node(*n).timestamp().await.expect("timestamp") > last, "time went back");
    }
    for n in 1..=NODES {
        for via in &left {
            let node = store.node(*via);
            assert_eq!((get(&node, n).await, get(&node, 100 + n).await), (n, n));
            assert_eq!((get(&node, 10 + n).await, get(&node, 110 + n).await), (10 * n, 10 * n));
        }
    }
    // A merge needs all of them.
    let refused = store.node(left[0]).merge(two[1].id).await;
    assert!(
        matches!(&refused, Err(Refusal::Unreachable(why)) if why.contains("has not stopped")),
        "{refused:?}"
    );
    set(&store.node(left[1]), &[30, 130], 7).await;
    store.start(dead).await.expect("starts again");
    let back = store.node(dead);
    for n in &left {
        assert_eq!((get(&back, 20 + n).await, get(&back, 120 + n).await), (100 * n, 100 * n));
    }
    assert_eq!((get(&back, 30).await, get(&back, 130).await), (7, 7));
    let one = back.merge(two[1].id).await.expect("merge");
    assert_eq!(one.span(), Span::all());
    wait("all to have merged", || {
        (1..=NODES).all(|n| store.node(n).regions() == [one.clone()]).then_some(())
    })
    .await;
    for n in 1..=NODES {
        assert_eq!((get(&store.node(n), n).await, get(&store.node(n), 130).await), (n, 7));
    }
    for n in 1..=NODES {
        store.kill(n, usize::MAX).await;
    }
}

/// Money is moved through every node while the nodes die, one at a time, and ranges change.
#[tokio::test(flavor = "multi_thread")]
async fn money_is_moved_while_nodes_die() {
    const ACCOUNTS: u64 = 12;
    let mut store = Store::new().await;
    let all: Vec<u64> = (0..ACCOUNTS).collect();
    set(&store.node(1), &all, 100).await;
    let (tasks, done) = (Tasks::new(), Arc::new(Mutex::new(BTreeMap::<u64, u64>::new())));
    let net = store.net.clone();
    for w in 1..=2 * NODES {
        let (net, done) = (net.clone(), done.clone());
        tasks.spawn("mover", async move {
            loop {
                // Of a node that is away there is nothing to be had: the next one.
                let node = {
                    let net = net.lock().expect("net");
                    net.get(&(1 + w % NODES)).or_else(|| net.values().next()).map(|r| r.node.clone())
                };
                let Some(node) = node else { continue };
                let options = Options {
                    async_commit: w % 2 == 0,
                    one_phase: w % 3 == 0,
                    ttl_ms: 1_000,
                    ..Options::default()
                };
                let (a, b) = (node.draw(ACCOUNTS), node.draw(ACCOUNTS));
                let moved = async {
                    let mut t = Txn::begin(node.clone(), options).await.ok()?;
                    let (x, y) = (number(t.get(&k(a)).await.ok()?), number(t.get(&k(b)).await.ok()?));
                    let amount = node.draw(10).min(x);
                    if a != b {
                        t.put(k(a), (x - amount).to_be_bytes().to_vec()).ok()?;
                        t.put(k(b), (y + amount).to_be_bytes().to_vec()).ok()?;
                        t.commit().await.ok()?;
                    }
                    Some(())
                };
                if moved.await.is_some() {
                    *done.lock().expect("done").entry(w).or_default() += 1;
                } else {
                    sleep(Duration::from_millis(5)).await;
                }
            }
        });
    }
    let (mut splits, mut audits) = (0, 0);
    for round in 0..4 {
        let before = done.lock().expect("done").clone();
        let node = store.node(1 + round % NODES);
        match node.split(key::border(&k(1 + node.draw(ACCOUNTS - 1))).expect("border")).await {
            Ok(_) => splits += 1,
            Err(e) => assert!(e.is_about_routing(), "{e}"),
        }
        // Whoever leads the first account.
        let dead = store.leader(&k(0)).await;
        store.kill(dead, round as usize).await;
        let left = store.node(store.running()[0]);
        let total = timeout(Duration::from_secs(60), "an audit", async {
            loop {
                let read = async {
                    let mut t = Txn::begin(left.clone(), Options::default()).await?;
                    t.scan(&Span::prefix(Mode::Txn, b"k"), Direction::Forward, 100).await
                };
                match read.await {
                    Ok(rows) => return rows.into_iter().map(|r| number(Some(r.value))).sum::<u64>(),
                    Err(e) => assert!(e.is_about_routing() || matches!(e, Refusal::Locked(_)), "{e}"),
                }
            }
        });
        assert_eq!(total.await.expect("an audit"), 100 * ACCOUNTS, "round {round}");
        audits += 1;
        store.start(dead).await.expect("starts again");
        wait("money to move on", || {
            let now = done.lock().expect("done").values().sum::<u64>();
            (now > before.values().sum::<u64>() + 20).then_some(())
        })
        .await;
        let node = store.node(1 + round % NODES);
        let regions = node.regions();
        if round % 2 == 1 && regions.len() > 1 {
            match node.merge(regions[1].id).await {
                Ok(_) => {}
                Err(e) => assert!(e.is_about_routing(), "{e}"),
            }
        }
    }
    tasks.shutdown().await;
    println!("{splits} splits, {audits} audits, {:?} moves", done.lock().expect("done").values());
    assert!(splits > 1);
    for n in 1..=NODES {
        assert_eq!(store.node(n).stopped(), None);
        let mut t = Txn::begin(store.node(n), Options::default()).await.expect("begin");
        let rows = t.scan(&Span::prefix(Mode::Txn, b"k"), Direction::Forward, 100).await.expect("scan");
        assert_eq!(rows.into_iter().map(|r| number(Some(r.value))).sum::<u64>(), 100 * ACCOUNTS);
    }
    for n in 1..=NODES {
        store.kill(n, 0).await;
    }
}

/// A node is away while the others split and write so much that their logs no longer reach back: it gets the left
/// half by a snapshot, finds that the right one is missing, and gets that, too.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_missed_a_split_gets_both_halves() {
    let mut store = Store::new().await;
    set(&store.node(1), &[1], 1).await;
    store.kill(3, usize::MAX).await;
    let node = store.node(1);
    let row = |n: u64| key::key(Mode::Raw, &n.to_be_bytes()).expect("short");
    // The left half's log grows beyond what is kept for laggards.
    for n in 0..80u64 {
        raw::put(&node, row(n % 8), vec![n as u8; key::MAX_VALUE].into()).await.expect("put");
        if n == 20 {
            node.split(key::border(&k(50)).expect("border")).await.expect("split");
        }
    }
    set(&node, &[1, 99], 5).await;
    let regions = node.regions();
    assert_eq!(regions.len(), 2);
    store.start(3).await.expect("starts again");
    let back = store.node(3);
    wait("both halves", || (back.regions() == regions).then_some(())).await;
    // By snapshots: logs that were followed from the beginning begin there.
    let starts: Vec<u64> = back.statuses().iter().map(|(_, s)| s.expect("it runs").start.index).collect();
    assert!(starts.iter().all(|s| *s > 1), "{starts:?}");
    store.kill(1, usize::MAX).await;
    // Now it counts: without it nothing would be decided.
    set(&back, &[1, 99], 6).await;
    assert_eq!((get(&back, 1).await, get(&back, 99).await), (6, 6));
    for n in 2..=NODES {
        store.kill(n, 0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_is_of_one_node_of_one_store() {
    let mut store = Store::new().await;
    store.kill(3, usize::MAX).await;
    let own = store.parts[&3].clone();
    let why = |r: Outcome<()>| r.expect_err("refused").to_string();
    // Another's.
    store.parts.insert(3, store.parts[&2].clone());
    assert!(why(store.start(3).await).contains("the folder is node 2's"));
    // Gone.
    store.parts.insert(3, (SimDisk::new(9), MemEngine::new(SPACES.len())));
    assert!(why(store.start(3).await).contains("forgotten what it voted"));
    // Of a store of one node.
    let (disk, engine) = (SimDisk::new(9), MemEngine::new(SPACES.len()));
    let alone = Node::start(Arc::new(disk.clone()), Arc::new(engine.clone())).await.expect("starts");
    alone.shutdown().await;
    drop(alone);
    let tasks = Tasks::new();
    let one = Cluster { me: NodeId(1), members: vec![NodeId(1), NodeId(2)], ..store.cluster(3, &tasks) };
    let refused = Node::start_in(Arc::new(disk), Arc::new(engine), one).await.err().expect("refused");
    assert!(refused.to_string().contains("of one node"), "{refused}");
    let twice = Cluster { members: vec![NodeId(3), NodeId(3)], ..store.cluster(3, &tasks) };
    let empty = || (Arc::new(SimDisk::new(8)), Arc::new(MemEngine::new(SPACES.len())));
    assert!(Node::start_in(empty().0, empty().1, twice).await.is_err());
    let stranger = Cluster { me: NodeId(4), ..store.cluster(3, &tasks) };
    assert!(Node::start_in(empty().0, empty().1, stranger).await.is_err());
    store.parts.insert(3, own);
    store.start(3).await.expect("its own");
    for n in 1..=NODES {
        store.kill(n, 0).await;
    }
}
