//! Several members on loopback, driven by etcdctl and by etcd's own calls.

use crate::harness::{Server, channel, ok};
use chainfire::{
    ChainFireConfig,
    cluster::{Founder, Peering, PlainTcp},
    wire::etcdserverpb::{
        lease_client::LeaseClient, watch_client::WatchClient, watch_request::RequestUnion, *,
    },
};
use photon_kv::engine::FjallOptions;
use photon_rt::{
    net::TcpListener,
    time::{Duration, now, sleep, timeout},
};
use std::{net::SocketAddr, path::Path, sync::Arc};

/// A place for a member: its folder, and a port for its peers that stays its own.
pub struct Place {
    pub name: String,
    pub dir: tempfile::TempDir,
    peers: SocketAddr,
    /// How often the leader compares.
    pub compare: Duration,
}

impl Place {
    /// The socket is bound again at each start; nobody else takes a port just released, in practice.
    pub async fn new(name: &str) -> (Place, TcpListener) {
        let socket = photon_rt::net::listen(SocketAddr::from(([127, 0, 0, 1], 0))).await.expect("loopback");
        let peers = socket.local_addr().expect("address");
        let dir = tempfile::tempdir().expect("temp dir");
        (Place { name: name.into(), dir, peers, compare: Duration::from_secs(3_600) }, socket)
    }

    pub fn founder(&self) -> Founder {
        Founder::new(&self.name, format!("http://{}", self.peers))
    }

    pub async fn start(&self, initial: &[Founder], existing: bool, socket: Option<TcpListener>) -> Server {
        self.open(initial, existing, socket).await.expect("it starts")
    }

    pub fn peering(&self, initial: &[Founder], existing: bool) -> Peering {
        Peering { existing, token: "test".into(), ..Peering::new(initial.to_vec(), Arc::new(PlainTcp)) }
    }

    pub async fn open(
        &self,
        initial: &[Founder],
        existing: bool,
        socket: Option<TcpListener>,
    ) -> photon_base::Result<Server> {
        let socket = match socket {
            Some(s) => s,
            None => photon_rt::net::listen(self.peers).await.expect("its port"),
        };
        let dir: &Path = self.dir.path();
        let config = ChainFireConfig {
            name: self.name.clone(),
            peering: Some(self.peering(initial, existing)),
            client_urls: vec![format!("http://client-of-{}", self.name)],
            corrupt_check: self.compare,
            // So small that a test's keys get into tables, and are read from there.
            engine: FjallOptions { write_buffer: 64 << 10, cache: 1 << 10 },
            ..ChainFireConfig::new(dir)
        };
        let s = Server::open(config).await?;
        s.chainfire.serve_peers(socket, None).expect("peers");
        Ok(s)
    }
}

pub async fn until(what: &str, mut f: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !f().await {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(Duration::from_secs(60), what, wait).await.expect("in time");
}

pub async fn three() -> (Vec<Place>, Vec<Founder>, Vec<Option<Server>>) {
    let (mut places, mut sockets) = (Vec::new(), Vec::new());
    for name in ["a", "b", "c"] {
        let (place, socket) = Place::new(name).await;
        places.push(place);
        sockets.push(Some(socket));
    }
    let founders: Vec<Founder> = places.iter().map(Place::founder).collect();
    let mut servers = Vec::new();
    for (place, socket) in places.iter().zip(&mut sockets) {
        servers.push(Some(place.start(&founders, false, socket.take()).await));
    }
    (places, founders, servers)
}

pub fn leader(servers: &[Option<Server>]) -> Option<usize> {
    servers.iter().position(|s| s.as_ref().is_some_and(|s| s.chainfire.raft_role() == "leader"))
}

#[tokio::test(flavor = "multi_thread")]
async fn three_founders_serve_through_the_loss_of_a_leader() {
    let (places, founders, mut servers) = three().await;
    until("a leader", async || leader(&servers).is_some()).await;
    let urls: Vec<String> = servers.iter().flatten().map(|s| s.operator.clone()).collect();
    for (i, u) in urls.iter().enumerate() {
        ok(u, &["put", &format!("k{i}"), "v"]).await;
    }
    for u in &urls {
        assert_eq!(ok(u, &["get", "k", "--prefix", "--keys-only"]).await, "k0\n\nk1\n\nk2\n\n");
    }
    until("everybody to say its name", async || {
        let list = ok(&urls[0], &["member", "list"]).await;
        ["client-of-a", "client-of-b", "client-of-c"].iter().all(|n| list.contains(n))
    })
    .await;
    // A lease made and kept alive through a follower; a watch on a follower.
    let first = leader(&servers).expect("just seen");
    let follower = (first + 1) % 3;
    let other = (first + 2) % 3;
    let mut leases = LeaseClient::new(channel(&urls[follower]).await);
    leases.lease_grant(LeaseGrantRequest { id: 7, ttl: 4 }).await.expect("grant");
    ok(&urls[other], &["put", "leased", "x", "--lease=7"]).await;
    let mut watch = WatchClient::new(channel(&urls[follower]).await);
    let create = WatchCreateRequest { key: "w".into(), ..Default::default() };
    let ask = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    let asks = futures::StreamExt::chain(
        futures::stream::once(async { ask }),
        futures::stream::pending::<WatchRequest>(),
    );
    let mut events = watch.watch(asks).await.expect("watch").into_inner();
    assert!(events.message().await.expect("created").expect("open").created);
    let begun = now();
    while now() - begun < Duration::from_secs(6) {
        let beat = futures::stream::iter([LeaseKeepAliveRequest { id: 7 }]);
        let mut answers = leases.lease_keep_alive(beat).await.expect("stream").into_inner();
        assert_eq!(answers.message().await.expect("answer").expect("one").ttl, 4);
        sleep(Duration::from_millis(500)).await;
    }
    // The leader goes.
    servers[first].take().expect("it runs").stop().await;
    until("another leader", async || leader(&servers).is_some()).await;
    ok(&urls[other], &["put", "w", "after"]).await;
    let event = timeout(Duration::from_secs(10), "the event", events.message()).await.expect("in time");
    let event = event.expect("stream").expect("open");
    assert_eq!(event.events[0].kv.as_ref().expect("kv").value, "after");
    assert_eq!(ok(&urls[follower], &["get", "leased", "--print-value-only"]).await, "x\n");
    // Nobody keeps it alive any more.
    until("the lease to end", async || ok(&urls[other], &["get", "leased"]).await.is_empty()).await;
    // The old leader comes back and has missed nothing.
    let back = places[first].start(&founders, false, None).await;
    assert_eq!(ok(&back.operator, &["get", "w", "--print-value-only"]).await, "after\n");
    let health = ok(&back.operator, &["endpoint", "health"]).await;
    assert!(health.contains("is healthy") || health.is_empty(), "{health}");
    back.stop().await;
    for s in servers.into_iter().flatten() {
        s.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_of_one_grows_and_its_founder_leaves() {
    let (a, socket) = Place::new("a").await;
    let first = a.start(&[a.founder()], false, Some(socket)).await;
    until("it to lead", async || first.chainfire.raft_role() == "leader").await;
    ok(&first.operator, &["put", "k", "old"]).await;
    let mut servers = vec![first];
    let mut known = vec![a.founder()];
    for name in ["b", "c"] {
        let (place, socket) = Place::new(name).await;
        let founder = place.founder();
        // Through any member: the wish is what counts.
        let through = servers.last().expect("one").operator.clone();
        let url = format!("--peer-urls={}", founder.peer_url);
        until("the founders to be written down", async || {
            !ok(&through, &["member", "list"]).await.is_empty()
        })
        .await;
        ok(&through, &["member", "add", name, &url]).await;
        known.push(founder);
        let s = place.start(&known, true, Some(socket)).await;
        until("it to vote", async || {
            let list = ok(&servers[0].operator, &["member", "list"]).await;
            list.lines().filter(|l| l.ends_with("false")).count() == known.len() && list.contains(name)
        })
        .await;
        assert_eq!(ok(&s.operator, &["get", "k", "--print-value-only"]).await, "old\n");
        servers.push(s);
        std::mem::forget(place.dir); // outlives the test's end, as its member does
    }
    let list = ok(&servers[1].operator, &["member", "list"]).await;
    let founder = list.lines().find(|l| l.contains(", a, ")).expect("listed");
    let id = founder.split(',').next().expect("id").to_string();
    ok(&servers[1].operator, &["member", "remove", &id]).await;
    until("another to lead, without it", async || {
        servers[1..].iter().any(|s| s.chainfire.raft_role() == "leader")
    })
    .await;
    servers.remove(0).stop().await;
    ok(&servers[0].operator, &["put", "k", "new"]).await;
    assert_eq!(ok(&servers[1].operator, &["get", "k", "--print-value-only"]).await, "new\n");
    let list = ok(&servers[0].operator, &["member", "list"]).await;
    assert_eq!(list.lines().count(), 2, "{list}");
    for s in servers {
        s.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_are_asked_of_any_member_and_signs_of_life_are_no_entries() {
    let (_places, _, servers) = three().await;
    until("a leader", async || leader(&servers).is_some()).await;
    let lead = leader(&servers).expect("just seen");
    let url = |i: usize| servers[(lead + i) % 3].as_ref().expect("runs").operator.clone();
    until("everybody to say its name", async || {
        let list = ok(&url(0), &["member", "list"]).await;
        ["client-of-a", "client-of-b", "client-of-c"].iter().all(|n| list.contains(n))
    })
    .await;
    let (mut near, mut far) =
        (LeaseClient::new(channel(&url(1)).await), LeaseClient::new(channel(&url(2)).await));
    near.lease_grant(LeaseGrantRequest { id: 9, ttl: 60 }).await.expect("grant");
    ok(&url(1), &["put", "k", "v", "--lease=9"]).await;
    let ask = LeaseTimeToLiveRequest { id: 9, keys: true };
    let left = far.lease_time_to_live(ask).await.expect("time to live").into_inner();
    assert_eq!((left.granted_ttl, &left.keys[..]), (60, &["k".into()][..]));
    assert!((50..=60).contains(&left.ttl), "{left:?}");
    let gone = LeaseTimeToLiveRequest { id: 77, keys: false };
    assert_eq!(far.lease_time_to_live(gone).await.expect("answer").into_inner().ttl, -1);
    assert_eq!(far.lease_leases(LeaseLeasesRequest {}).await.expect("list").into_inner().leases[0].id, 9);
    // The leader counts on; then a sign of life through a member that does not lead starts anew.
    sleep(Duration::from_millis(2_100)).await;
    let old = near.lease_time_to_live(ask).await.expect("time to live").into_inner().ttl;
    assert!(old <= 58, "{old}");
    let commit = || servers[lead].as_ref().expect("runs").chainfire.raft().commit;
    let before = commit();
    let beats =
        futures::stream::iter((0..500).map(|i| LeaseKeepAliveRequest { id: if i == 400 { 78 } else { 9 } }));
    let mut answers = far.lease_keep_alive(beats).await.expect("stream").into_inner();
    let mut heard = Vec::new();
    while let Some(a) = answers.message().await.expect("answer") {
        heard.push((a.id, a.ttl));
    }
    assert_eq!(heard.len(), 500);
    assert!(heard.iter().enumerate().all(|(i, a)| *a == if i == 400 { (78, 0) } else { (9, 60) }));
    assert_eq!(commit(), before, "signs of life are no entries of the log");
    let new = near.lease_time_to_live(ask).await.expect("time to live").into_inner().ttl;
    assert!(new >= 59, "{new}");
    for s in servers.into_iter().flatten() {
        s.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_was_removed_while_it_was_away_is_told_and_ends() {
    let (places, founders, mut servers) = three().await;
    until("a leader", async || leader(&servers).is_some()).await;
    let urls: Vec<String> = servers.iter().flatten().map(|s| s.operator.clone()).collect();
    ok(&urls[0], &["put", "k", "v"]).await;
    until("everybody to say its name", async || {
        let list = ok(&urls[0], &["member", "list"]).await;
        ["client-of-a", "client-of-b", "client-of-c"].iter().all(|n| list.contains(n))
    })
    .await;
    // A leader that is stopped hands over: the next term is the next leader's, and nobody had to wait for it.
    let gone = leader(&servers).expect("just seen");
    let term = servers[gone].as_ref().expect("it runs").chainfire.raft().term;
    servers[gone].take().expect("it runs").stop().await;
    until("the heir to lead", async || leader(&servers).is_some()).await;
    let heir = leader(&servers).expect("just seen");
    let raft = servers[heir].as_ref().expect("it runs").chainfire.raft();
    assert_eq!(raft.term, term + 1, "one election");
    let through = &urls[heir];
    let list = ok(through, &["member", "list"]).await;
    let name = format!(", {}, ", places[gone].name);
    let id = list.lines().find(|l| l.contains(&name)).and_then(|l| l.split(',').next()).expect("listed");
    ok(through, &["member", "remove", id]).await;
    until("the group to be without it", async || {
        ok(through, &["endpoint", "status", "-w", "fields"]).await.contains("\"Leader\"")
            && ok(through, &["member", "list"]).await.lines().count() == 2
    })
    .await;
    // It comes back, knows nothing of that, and nobody sends it anything.
    let back = places[gone].start(&founders, false, None).await;
    let why = timeout(Duration::from_secs(60), "the removed member to end", back.chainfire.failed()).await;
    let why = why.expect("in time").to_string();
    assert!(why.contains("this member was removed from its cluster"), "{why}");
    assert!(why.contains("member add"), "what to do: {why}");
    let refused = crate::harness::etcdctl(&back.operator, &["put", "k", "w"], None).await;
    assert!(refused.as_ref().is_err_and(|e| e.contains("stopped")), "{refused:?}");
    back.stop().await;
    // Nor did it disturb the others.
    let after = servers[heir].as_ref().expect("it runs").chainfire.raft();
    assert_eq!((after.term, after.role), (raft.term, raft.role));
    assert_eq!(ok(through, &["get", "k", "--print-value-only"]).await, "v\n");
    for s in servers.into_iter().flatten() {
        s.stop().await;
    }
}
