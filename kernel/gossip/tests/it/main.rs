//! Gossip over real sockets on loopback.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use photon_base::Name;
use photon_gossip::{Facts, Gossip, GossipConfig, GossipKey, Liveness, Peer, PeersView, Timings};
use photon_rt::{net, task::Tasks, time};
use std::{net::SocketAddr, time::Duration};

/// A bound for conditions that are waited for, far above what they take: the machine may be busy.
const LONG: Duration = Duration::from_secs(60);

struct Node {
    name: Name,
    addr: SocketAddr,
    gossip: Gossip,
    tasks: Tasks,
}

fn name(i: usize) -> Name {
    format!("n{i}").parse().unwrap()
}

fn api(text: &str) -> Facts {
    Facts::from([("api".to_string(), text.to_string())])
}

fn fast() -> Timings {
    Timings {
        probe_every: Duration::from_millis(200),
        probe_wait: Duration::from_millis(80),
        suspect: Duration::from_millis(800),
        sync_every: Duration::from_millis(200),
        reach_every: Duration::from_millis(300),
        ..Timings::default()
    }
}

async fn start(i: usize, at: Option<SocketAddr>, seeds: Vec<SocketAddr>, key: u8) -> Node {
    let socket = net::udp(at.unwrap_or(([127, 0, 0, 1], 0).into())).await.unwrap();
    let addr = socket.local_addr().unwrap();
    let me = Peer { name: name(i), gossip: addr, facts: api(&format!("https://{addr}")) };
    let config = GossipConfig { me, key: GossipKey::new([key; 32]), seeds, timings: fast() };
    let tasks = Tasks::new();
    let gossip = Gossip::start(config, socket, &tasks).unwrap();
    Node { name: name(i), addr, gossip, tasks }
}

impl Node {
    async fn until(&self, what: &str, holds: impl Fn(&PeersView) -> bool) {
        let mut peers = self.gossip.peers();
        let seen = time::timeout(LONG, what, async {
            peers.wait_for(&holds).await.unwrap();
        });
        if let Err(e) = seen.await {
            panic!("{}: {e}: {:#?}", self.name, self.gossip.peers().borrow());
        }
    }

    async fn sees(&self, other: &Name, state: Liveness) {
        let what = format!("seeing {other} {state:?}");
        self.until(&what, |p| p.get(other).is_some_and(|s| s.state == state)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_nodes_find_each_other_miss_one_and_have_it_back() {
    let mut nodes = vec![start(0, None, vec![], 1).await];
    let seed = nodes[0].addr;
    for i in 1..5 {
        nodes.push(start(i, None, vec![seed], 1).await);
    }
    for n in &nodes {
        n.until("seeing all four others with their facts", |p| {
            p.len() == 4 && p.values().all(|s| s.state.is_up() && !s.peer.facts.is_empty())
        })
        .await;
    }

    // Killed: its socket is gone, without a word.
    let dead = nodes.remove(2);
    dead.tasks.shutdown().await;
    for n in &nodes {
        n.sees(&dead.name, Liveness::Down).await;
    }
    // Back under its name and address.
    let back = start(2, Some(dead.addr), vec![seed], 1).await;
    for n in &nodes {
        n.sees(&back.name, Liveness::Alive).await;
    }
    back.until("seeing all", |p| p.values().filter(|s| s.state.is_up()).count() == 4).await;

    // Somewhere else: the new address replaces the old one. Its facts change, too.
    back.tasks.shutdown().await;
    let moved = start(2, None, vec![seed], 1).await;
    moved.gossip.set_facts(api("changed")).unwrap();
    for n in &nodes {
        n.until("seeing it moved, with new facts", |p| {
            let s = &p[&moved.name];
            s.state.is_up() && s.peer.gossip == moved.addr && s.peer.facts == api("changed")
        })
        .await;
    }

    moved.gossip.leave().await;
    for n in &nodes {
        n.sees(&moved.name, Liveness::Left).await;
        n.gossip.forget(moved.name.clone()).unwrap();
        n.until("having forgotten it", |p| !p.contains_key(&moved.name)).await;
    }
    let quiet = nodes[0].gossip.peers().borrow().values().all(|s| s.state.is_up());
    assert!(quiet, "the others are as they were");
}

#[tokio::test]
async fn strangers_and_garbage_change_nothing() {
    let a = start(0, None, vec![], 1).await;
    let b = start(1, None, vec![a.addr], 1).await;
    a.sees(&b.name, Liveness::Alive).await;
    let stranger = start(2, None, vec![a.addr, b.addr], 2).await;
    let socket = net::udp(([127, 0, 0, 1], 0).into()).await.unwrap();
    for n in [0, 1, 40, 41, 42, 1_400, 1_401, 9_000] {
        socket.send_to(&vec![1; n], a.addr).await.unwrap();
    }
    let count = |g: &Gossip, what: &str| {
        g.counters().each().iter().find(|(n, _, _)| n.ends_with(what)).map(|(_, _, v)| *v).unwrap()
    };
    let told = async {
        while count(&a.gossip, "unsealed_total") < 9 || count(&b.gossip, "unsealed_total") < 1 {
            time::sleep(Duration::from_millis(10)).await;
        }
    };
    time::timeout(LONG, "dropping them all", told).await.unwrap();
    assert!(a.gossip.peers().borrow().keys().eq([&b.name]));
    assert!(stranger.gossip.peers().borrow().is_empty());
    // Nobody answers those who have not the key.
    assert_eq!(count(&stranger.gossip, "packets_received_total"), 0);
    let mut buffer = [0; 1];
    assert!(socket.try_recv(&mut buffer).is_err());
    a.sees(&b.name, Liveness::Alive).await;
}

#[tokio::test]
async fn what_others_could_not_reach_is_refused() {
    let socket = || net::udp(([127, 0, 0, 1], 0).into());
    for bad in ["0.0.0.0:2381", "[::]:2381", "10.0.0.1:0"] {
        let me = Peer { name: name(0), gossip: bad.parse().unwrap(), facts: Facts::new() };
        let config =
            GossipConfig { me, key: GossipKey::new([1; 32]), seeds: vec![], timings: Timings::default() };
        let e = Gossip::start(config, socket().await.unwrap(), &Tasks::new()).unwrap_err();
        assert!(e.report().contains("can't reach this node"), "{}", e.report());
    }
}
