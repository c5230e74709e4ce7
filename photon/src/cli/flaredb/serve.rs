//! `photon flaredb serve`: one node alone, or one of several, outside of a cloud.

use super::failed;
use crate::cli::{Global, output};
use bytes::Bytes;
use flaredb::{
    Node,
    node::{Cluster, cluster::RETAIN},
    wire::{
        Door, FlareDb,
        others::{self, Network, Plain},
    },
};
use photon_base::{Code, Error, Result};
use photon_etcd::{Etcd, config::Config};
use photon_kv::Kv;
use photon_raft::{NodeId, peers::Peers};
use photon_rt::{task::Tasks, time::Duration};
use photon_serve::listen::Listener;
use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};
use tokio::signal::unix::{SignalKind, signal};

/// Key in the coordinator of who gives timestamps. What else the nodes agree on lies below it.
const ORACLE: &str = "/flaredb/oracle";

/// How it is run.
#[derive(clap::Args)]
pub struct ServeArgs {
    /// `off`: plain text, on loopback only.
    #[arg(long, value_parser = ["off"], required = true)]
    tls: String,
    /// Where clients connect; of several nodes, what --cluster says.
    #[arg(long, default_value = "127.0.0.1:2479", value_name = "ADDRESS:PORT", conflicts_with = "cluster")]
    listen: SocketAddr,
    /// Number of this node among several.
    #[arg(long, value_name = "N", requires_all = ["cluster", "coordinator"])]
    number: Option<u64>,
    /// All nodes of the store, the same for each and for ever: number, where the others connect, where clients do.
    #[arg(long, value_name = "N=ADDRESS:PORT/ADDRESS:PORT,…", requires = "number")]
    cluster: Option<String>,
    /// An etcd or ChainFire, in which the nodes agree on who gives timestamps.
    #[arg(long, value_name = "URL,…", requires = "number")]
    coordinator: Option<String>,
    /// Time without a sign of life after which another node takes over, milliseconds.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(100..=50_000))]
    election_timeout: u64,
    /// debug, info, warn or error.
    #[arg(long, default_value = "info", value_name = "LEVEL")]
    log_level: String,
}

/// Where a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    peers: SocketAddr,
    clients: SocketAddr,
}

/// Reads `--cluster`.
fn places(text: &str) -> Result<BTreeMap<u64, Place>> {
    let one = |part: &str| {
        let (number, places) = part.trim().split_once('=')?;
        let (peers, clients) = places.split_once('/')?;
        let place = Place { peers: peers.parse().ok()?, clients: clients.parse().ok()? };
        Some((number.parse().ok().filter(|n| *n > 0)?, place))
    };
    let wrong = || Error::invalid("cluster", format!("{text:?} is not N=ADDRESS:PORT/ADDRESS:PORT,…"));
    let all: Vec<(u64, Place)> = text.split(',').map(one).collect::<Option<_>>().ok_or_else(wrong)?;
    let (n, map) = (all.len(), all.into_iter().collect::<BTreeMap<_, _>>());
    match map.len() == n {
        true => Ok(map),
        false => Err(Error::invalid("cluster", "names a number twice")),
    }
}

fn loopback(addr: SocketAddr) -> Result<()> {
    if addr.ip().is_loopback() {
        return Ok(());
    }
    Err(Error::new(Code::Denied, format!("{addr} is not loopback"))
        .why("without TLS and identities everybody who reaches the port could read and write everything")
        .hint("use 127.0.0.1; or photon up, which has both"))
}

/// A name for the set of nodes, so that those of two stores do not take each other for their own.
fn cluster_number(text: &str) -> u64 {
    // FNV-1a.
    let sum = text
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325, |h: u64, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    sum.max(1)
}

/// Opens this node as one of several, with its URLs for clients.
async fn join(
    global: &Global,
    args: &ServeArgs,
    me: u64,
    all: &BTreeMap<u64, Place>,
    tasks: &Tasks,
) -> Result<(Node, BTreeMap<u64, String>)> {
    let own = all.get(&me).ok_or_else(|| Error::invalid("cluster", format!("does not name node {me}")))?;
    let socket = photon_rt::net::listen(own.peers).await?;
    let urls: BTreeMap<u64, String> =
        all.iter().map(|(n, p)| (*n, format!("http://{}", p.clients))).collect();
    let coordinator = args.coordinator.as_deref().unwrap_or_default();
    let kv: Arc<dyn Kv> = Arc::new(Etcd::open(Config::new(coordinator)?.with_home(ORACLE)).await?);
    let named =
        all.iter().map(|(n, p)| format!("{n}={}/{}", p.peers, p.clients)).collect::<Vec<_>>().join(",");
    let dial = Plain(all.iter().map(|(n, p)| (*n, p.peers)).collect());
    let peers = Peers::new(NodeId(me), cluster_number(&named), Arc::new(dial), tasks);
    let cluster = Cluster {
        me: NodeId(me),
        members: all.keys().map(|n| NodeId(*n)).collect(),
        peers: peers.clone(),
        others: Arc::new(Network::new(&urls, tasks)?),
        kv,
        oracle: Bytes::from_static(ORACLE.as_bytes()),
        election: Duration::from_millis(args.election_timeout),
        retain: RETAIN,
    };
    let node = Node::open_in(&global.data_dir(), cluster).await.map_err(failed)?;
    others::serve(peers, all.keys().copied().collect(), socket, tasks);
    Ok((node, urls))
}

/// Runs FlareDB until a signal, or until its disk fails.
pub async fn serve(global: &Global, args: ServeArgs) -> Result<()> {
    let all = args.cluster.as_deref().map(places).transpose()?;
    let mine = all.as_ref().and_then(|all| all.get(&args.number?));
    let listen = mine.map_or(args.listen, |p| p.clients);
    loopback(listen)?;
    for p in all.iter().flat_map(|all| all.values()) {
        loopback(p.peers)?;
        loopback(p.clients)?;
    }
    photon_serve::logging::start(&args.log_level, false);
    // The port first: one that is taken should change nothing.
    let socket = photon_rt::net::listen(listen).await?;
    let tasks = Tasks::new();
    let (node, db) = match (args.number, &all) {
        (Some(me), Some(all)) => {
            let (node, urls) = join(global, &args, me, all, &tasks).await?;
            let db = FlareDb::new_in(node.clone(), Door::Open, format!("n{me}"), urls, &tasks);
            (node, db)
        }
        _ => {
            let node = Node::open(&global.data_dir()).await.map_err(failed)?;
            (node.clone(), FlareDb::new(node, Door::Open, "this".into(), &tasks))
        }
    };
    Listener {
        name: "flaredb",
        socket,
        tls: None,
        tokens: None,
        router: db.pages(),
        direct: Some(db.direct()),
        lenient_authority: false,
    }
    .start(&tasks);
    output::line(&format!("ready to serve requests on http://{listen}"));
    let deaf = |e: std::io::Error| Error::internal("cannot listen for signals").why(e);
    let mut term = signal(SignalKind::terminate()).map_err(deaf)?;
    let mut int = signal(SignalKind::interrupt()).map_err(deaf)?;
    let why = tokio::select! {
        _ = term.recv() => None,
        _ = int.recv() => None,
        why = node.ended() => Some(why),
    };
    // Leadership is handed over while the others can still be reached.
    node.shutdown().await;
    tasks.shutdown().await;
    match why {
        Some(why) => Err(Error::internal("FlareDB can't go on").why(why).hint("see its log, and the disk")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_named_with_both_their_addresses() {
        let two = places("1=127.0.0.1:1/127.0.0.1:2, 7=[::1]:3/[::1]:4").expect("valid");
        assert_eq!((two.len(), two[&7].clients.port(), two[&1].peers.port()), (2, 4, 1));
        for wrong in [
            "",
            "1",
            "1=127.0.0.1:1",
            "0=127.0.0.1:1/127.0.0.1:2",
            "a=127.0.0.1:1/127.0.0.1:2",
            "1=127.0.0.1/127.0.0.1:2",
            "1=127.0.0.1:1/127.0.0.1:2,1=127.0.0.1:3/127.0.0.1:4",
        ] {
            assert!(places(wrong).is_err(), "{wrong}");
        }
        assert!(loopback("10.0.0.1:1".parse().expect("address")).is_err());
    }
}
