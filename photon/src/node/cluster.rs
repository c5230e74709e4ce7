//! This node among the others: its store's peers, the nodes' records, who may join.

use super::{Shared, identity::Identity, report::Reporter};
use crate::config::Config;
use async_trait::async_trait;
use chainfire::{
    ChainFire,
    cluster::{Admit, Founder, Peering, TlsTcp},
};
use nodes::{
    Member, Members,
    agent::Facts,
    control::NodeController,
    enrol::Enrol,
    neighbours::{self, API_FACT, Neighbours, PEER_FACT, SERVES_FACT},
};
use photon_auth::{LiveCertificate, mutual_config};
use photon_base::{Code, Error, Name, Result};
use photon_gossip::{Gossip, GossipConfig, GossipKey, Peer, Timings};
use photon_reconcile::Manager;
use photon_resource::Store;
use photon_rt::{
    net::TcpListener,
    task::Tasks,
    time::{Duration, now, sleep},
};
use std::{net::SocketAddr, sync::Arc};

/// Where the other nodes reach this one's store.
pub fn peer_url(config: &Config) -> Result<String> {
    Ok(format!("https://{}", SocketAddr::new(config.reach(), config.port(2380)?)))
}

/// What this node says of itself.
pub fn facts(config: &Config) -> Result<Facts> {
    Ok(Facts {
        name: config.node.clone(),
        endpoint: config.endpoint()?,
        peer_url: peer_url(config)?,
        gossip: SocketAddr::new(config.reach(), config.port(2381)?).to_string(),
        version: env!("CARGO_PKG_VERSION").into(),
    })
}

/// What gossip says of this node while it starts.
fn told(config: &Config) -> Result<photon_gossip::Facts> {
    let me = facts(config)?;
    let known = [(API_FACT, me.endpoint), (PEER_FACT, me.peer_url), ("version", me.version)];
    Ok(known.into_iter().map(|(k, v)| (k.to_string(), v)).collect())
}

/// Says that this node serves.
pub fn serves(config: &Config, gossip: &Gossip) -> Result<()> {
    let mut facts = told(config)?;
    facts.insert(SERVES_FACT.into(), "yes".into());
    gossip.set_facts(facts)
}

/// Starts gossip.
pub async fn gossip(config: &Config, identity: &Identity, tasks: &Tasks) -> Result<Gossip> {
    let own = SocketAddr::new(config.reach(), config.port(2381)?);
    let joined = identity.cluster.joined.iter().flat_map(|j| &j.gossip);
    let start = GossipConfig {
        me: Peer { name: config.node.clone(), gossip: own, facts: told(config)? },
        key: GossipKey::new(identity.tokens.derived("gossip")),
        seeds: joined.filter_map(|a| a.parse().ok()).filter(|a| *a != own).collect(),
        timings: Timings::default(),
    };
    let socket = photon_rt::net::udp(SocketAddr::new(config.listen, own.port())).await?;
    Gossip::start(start, socket, tasks)
}

/// How this node's store finds the others'.
pub fn peering(
    config: &Config,
    identity: &Identity,
    live: &Arc<LiveCertificate>,
    gossip: &Gossip,
) -> Result<Peering> {
    let connect = Arc::new(TlsTcp::new(live.clone(), identity.authority.cert_pem())?);
    let mut initial = vec![Founder::new(config.node.as_str(), peer_url(config)?)];
    let joined = identity.cluster.joined.as_ref();
    for m in joined.into_iter().flat_map(|j| &j.mates) {
        initial.push(Founder { id: Some(m.id), ..Founder::new(&m.name, &m.peer_url) });
    }
    Ok(Peering {
        existing: joined.is_some(),
        token: identity.cluster.id.to_string(),
        admit: Admit::Hosts,
        sighted: Some(Arc::new(neighbours::peer_url(gossip))),
        moves: true,
        ..Peering::new(initial, connect)
    })
}

/// Serves the other nodes' stores.
pub fn serve_peers(
    store: &ChainFire,
    socket: TcpListener,
    identity: &Identity,
    live: &Arc<LiveCertificate>,
) -> Result<()> {
    store.serve_peers(socket, Some(mutual_config(live.clone(), identity.authority.cert_pem(), &[])?))
}

/// Waits until the store knows everything that was acknowledged: a node that comes, or comes back, catches up with
/// the others first; without a quorum of them there is nothing to start on. Says what it waits for.
pub async fn catch_up(store: &ChainFire, reporter: &Reporter) -> Result<()> {
    tokio::select! {
        () = caught_up(store, reporter) => Ok(()),
        e = failed(store) => Err(e),
    }
}

/// The store's end, if it ends by itself, in words for a node of a cloud.
pub async fn failed(store: &ChainFire) -> Error {
    let e = store.failed().await;
    if store.raft().removed { gone(e.what) } else { e }
}

/// The error of a node that is not of the cloud any more.
fn gone(why: impl std::fmt::Display) -> Error {
    Error::new(Code::Denied, "this node is not of the cloud any more: it was removed")
        .why(why)
        .hint("to come back as a new node: remove its data folder, then photon join ADDRESS --token T")
}

async fn caught_up(store: &ChainFire, reporter: &Reporter) {
    let mut said = now();
    while let Err(e) = store.caught_up().await {
        if now() - said >= SAID_EVERY {
            said = now();
            let others: Vec<String> =
                store.mates().into_iter().filter(|m| m.id != store.member_number()).map(|m| m.name).collect();
            let status = store.raft();
            let others = if others.is_empty() { "the other nodes".into() } else { others.join(", ") };
            let why = match status.leader {
                Some(_) => format!("catching up: {} of {} entries", status.applied, status.commit),
                None => format!("waiting for {others}: no quorum yet"),
            };
            tracing::info!(error = %e, why, "the store is not ready");
            reporter.note("chainfire", &why);
        }
        sleep(Duration::from_millis(50)).await;
    }
}

/// Between two remarks about what is waited for.
const SAID_EVERY: Duration = Duration::from_secs(5);

/// ChainFire's members, as nodes see them.
pub struct Seats(pub ChainFire);

#[async_trait]
impl Members for Seats {
    fn all(&self) -> Vec<Member> {
        let member = |m: chainfire::cluster::Mate| Member {
            id: m.id,
            name: m.name,
            peer_url: m.peer_urls.into_iter().next().unwrap_or_default(),
            votes: m.votes,
            leads: m.leads,
            behind: m.behind,
        };
        self.0.mates().into_iter().map(member).collect()
    }

    fn cluster(&self) -> u64 {
        self.0.cluster_number()
    }

    fn me(&self) -> u64 {
        self.0.member_number()
    }

    async fn admit(&self, id: u64, name: &Name, peer_url: &str, votes: bool) -> Result<()> {
        self.0.admit(id, name.as_str(), peer_url, votes).await
    }

    async fn enfranchise(&self, id: u64) -> Result<()> {
        self.0.enfranchise(id).await
    }

    async fn dismiss(&self, id: u64) -> Result<bool> {
        self.0.dismiss(id).await
    }

    fn hand_over(&self) -> bool {
        self.0.hand_over()
    }
}

/// Makes this node's record, and decides with the others about all of them.
pub async fn start(
    config: &Config,
    store: &Store,
    seats: Arc<dyn Members>,
    gossip: &Gossip,
    manager: &mut Manager,
    tasks: &Tasks,
) -> Result<()> {
    if !nodes::agent::report(store, &facts(config)?, &*seats).await? {
        return Err(gone("its record is gone, or another machine's"));
    }
    nodes::agent::follow_learners(store.clone(), seats.clone(), tasks);
    let look = neighbours::look(gossip, config.node.clone());
    manager.add(Neighbours(gossip.clone()));
    manager.add(nodes::agent::Drain { name: config.node.clone(), members: seats.clone() });
    manager.add(NodeController { members: seats, look });
    Ok(())
}

/// Lets machines in.
pub fn enrol(s: &Shared, seats: Arc<dyn Members>) -> Result<Arc<Enrol>> {
    let keys = s.identity.keys(&s.paths)?;
    Enrol::new(s.store.clone(), s.gate.clone(), seats, keys, env!("CARGO_PKG_VERSION"))
}
