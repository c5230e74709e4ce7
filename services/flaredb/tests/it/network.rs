//! Three nodes that speak over the network, and a client of all: it finds leaders, and new ones.

use crate::node::{k, number};
use axum::Router;
use bytes::Bytes;
use flaredb::{
    Node, Refusal,
    client::{Options, Txn, World, raw},
    key::{self, Mode},
    node::{Cluster, cluster::RETAIN},
    remote::{Config, Remote},
    wire::{
        Door, FlareDb,
        others::{self, Network, Plain},
    },
};
use photon_kv::{Kv, MemKv};
use photon_raft::{NodeId, peers::Peers};
use photon_rt::{
    net::TcpListener,
    task::Tasks,
    time::{Duration, now},
};
use photon_serve::listen::Listener;
use std::{collections::BTreeMap, path::Path, sync::Arc};

struct Served {
    node: Node,
    tasks: Tasks,
}

async fn listen() -> TcpListener {
    photon_rt::net::listen("127.0.0.1:0".parse().expect("address")).await.expect("listen")
}

/// Three nodes, and their URLs with commas between.
async fn three(dir: &Path) -> (Vec<Served>, String) {
    let (mut clients, mut logs) = (BTreeMap::new(), BTreeMap::new());
    for n in 1..=3 {
        clients.insert(n, listen().await);
        logs.insert(n, listen().await);
    }
    let url = |l: &TcpListener| format!("http://{}", l.local_addr().expect("address"));
    let urls: BTreeMap<u64, String> = clients.iter().map(|(n, l)| (*n, url(l))).collect();
    let addrs: BTreeMap<u64, _> = logs.iter().map(|(n, l)| (*n, l.local_addr().expect("address"))).collect();
    let kv: Arc<dyn Kv> = Arc::new(MemKv::new());
    let mut all = Vec::new();
    for ((n, client), log) in clients.into_iter().zip(logs.into_values()) {
        let tasks = Tasks::new();
        let peers = Peers::new(NodeId(n), 5, Arc::new(Plain(addrs.clone())), &tasks);
        let cluster = Cluster {
            me: NodeId(n),
            members: (1..=3).map(NodeId).collect(),
            peers: peers.clone(),
            others: Arc::new(Network::new(&urls, &tasks).expect("URLs")),
            kv: kv.clone(),
            oracle: Bytes::from_static(b"oracle"),
            election: Duration::from_millis(500),
            retain: RETAIN,
        };
        let node = Node::open_in(&dir.join(n.to_string()), cluster).await.expect("open");
        others::serve(peers, vec![1, 2, 3], log, &tasks);
        let db = FlareDb::new_in(node.clone(), Door::Open, format!("n{n}"), urls.clone(), &tasks);
        let (router, direct) = (Router::new(), Some(db.direct()));
        let listener = Listener {
            name: "flaredb",
            socket: client,
            tls: None,
            tokens: None,
            router,
            direct,
            lenient_authority: false,
        };
        listener.start(&tasks);
        all.push(Served { node, tasks });
    }
    (all, urls.into_values().collect::<Vec<_>>().join(","))
}

async fn tried<T>(f: impl AsyncFn() -> Result<T, Refusal>) -> T {
    let begun = now();
    loop {
        match f().await {
            Ok(t) => return t,
            Err(e) => {
                assert!(e.is_about_routing() && begun.elapsed() < Duration::from_secs(60), "{e}");
                photon_rt::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_follows_leaders_over_several_nodes() {
    let dir = tempfile::tempdir().expect("temp dir");
    let (mut all, urls) = three(dir.path()).await;
    let begun = now();
    let db = loop {
        match Remote::open(Config::plain(&urls)).await {
            Ok(db) => break db,
            Err(e) => assert!(begun.elapsed() < Duration::from_secs(60), "{e}"),
        }
    };
    let raw_key = key::key(Mode::Raw, b"a").expect("short");
    tried(async || raw::put(&db, raw_key.clone(), "1".into()).await).await;
    tried(async || db.split(key::border(&k(50)).expect("border")).await).await;
    let set = async |value: u64| {
        tried(async || {
            let mut t = Txn::begin(db.clone(), Options::default()).await?;
            for n in [1, 99] {
                t.put(k(n), value.to_be_bytes().to_vec())?;
            }
            t.commit().await.map_err(|e| Refusal::Unknown(format!("{e:?}")))
        })
        .await
    };
    let get = async |n| {
        number(tried(async || Txn::begin(db.clone(), Options::default()).await?.get(&k(n)).await).await)
    };
    set(7).await;
    let last = db.timestamp().await.expect("timestamp");
    let stores = db.stores().await.expect("stores");
    assert_eq!(stores.iter().map(|s| (s.id, s.regions)).collect::<Vec<_>>(), [(1, 2), (2, 2), (3, 2)]);
    assert!(
        stores.iter().all(|s| urls.contains(&s.url)) && stores.iter().map(|s| s.leaders).sum::<u64>() <= 2
    );
    // The node that leads the left half goes without a word.
    let leader = tried(async || {
        let all = db.regions().await?;
        let first = all.first().map_or(0, |r| r.leader);
        if first > 0 { Ok(first) } else { Err(Refusal::NotLeader(1)) }
    })
    .await;
    let dead = all.remove(usize::try_from(leader).expect("small") - 1);
    dead.node.stop("killed");
    dead.tasks.shutdown().await;
    drop(dead);
    set(8).await;
    assert_eq!((get(1).await, get(99).await), (8, 8));
    assert!(tried(async || db.timestamp().await).await > last, "time went back");
    assert_eq!(tried(async || raw::get(&db, &raw_key).await).await.expect("there").0, "1");
    for s in all {
        s.tasks.shutdown().await;
        s.node.stop("over");
    }
}
