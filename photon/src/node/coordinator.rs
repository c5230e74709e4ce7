//! Where the cloud's records are: in this node's own ChainFire, or in a foreign etcd cluster (`--coordinator`).
//!
//! On a foreign etcd the records lie below `/photon.internal/`, in the clear: whoever can read that etcd can read the
//! cloud, password hashes included, and whoever can write it can do anything to it. One record says which cloud it is, so that two
//! clouds never share one place. Such a cloud has one node.

use super::{Paths, cluster, identity::Identity, report::Reporter};
use crate::config::Config;
use async_trait::async_trait;
use axum::{Router, routing::post};
use chainfire::{ChainFire, ChainFireConfig};
use nodes::{Member, Members};
use photon_auth::LiveCertificate;
use photon_base::{Code, Error, Name, Result};
use photon_etcd::Etcd;
use photon_gossip::Gossip;
use photon_kv::{Check, Kv, ReadAt, Write};
use photon_resource::http::problem;
use std::{net::SocketAddr, sync::Arc};

/// The record that says which cloud's records these are.
const WHOSE: &str = "/photon.internal/cloud";

/// The store of the cloud's records.
#[derive(Clone)]
pub enum Coordinator {
    /// This node's own.
    Own(ChainFire),
    /// Another's.
    Foreign {
        /// Its client.
        etcd: Etcd,
        /// Where it is, for people.
        urls: String,
        /// This node, as the only one.
        me: Member,
    },
}

impl Coordinator {
    /// Opens what the configuration says.
    pub async fn open(
        config: &Config,
        paths: &Paths,
        identity: &Identity,
        certificate: &Arc<LiveCertificate>,
        gossip: &Gossip,
        reporter: &Reporter,
    ) -> Result<Coordinator> {
        match &config.coordinator {
            Some(c) => foreign(c, config, paths, identity).await,
            None => own(config, paths, identity, certificate, gossip, reporter).await.map(Coordinator::Own),
        }
    }

    /// For the kernel.
    pub fn kv(&self) -> Arc<dyn Kv> {
        match self {
            Coordinator::Own(c) => c.kv(),
            Coordinator::Foreign { etcd, .. } => Arc::new(etcd.clone()),
        }
    }

    /// The nodes that hold the records.
    pub fn seats(&self) -> Arc<dyn Members> {
        match self {
            Coordinator::Own(c) => Arc::new(cluster::Seats(c.clone())),
            Coordinator::Foreign { me, etcd, .. } => {
                Arc::new(Alone { me: me.clone(), cluster: etcd.cluster_id() })
            }
        }
    }

    /// Where a foreign one is.
    pub fn urls(&self) -> Option<String> {
        match self {
            Coordinator::Own(_) => None,
            Coordinator::Foreign { urls, .. } => Some(urls.clone()),
        }
    }

    /// The store's revision.
    pub async fn revision(&self) -> Result<i64> {
        match self {
            Coordinator::Own(c) => Ok(c.revision()),
            Coordinator::Foreign { etcd, .. } => Ok(etcd.now().await?),
        }
    }

    /// Forgets history, if that is this node's to do: of a foreign etcd it always is, as kube-apiserver does it.
    pub async fn forget_before(&self, revision: i64) -> Result<()> {
        match self {
            // Each node takes notes; one of them is enough to act on them.
            Coordinator::Own(c) if c.raft_role() == "leader" => c.forget_before(revision).await,
            Coordinator::Own(_) => Ok(()),
            Coordinator::Foreign { etcd, .. } => Ok(etcd.compact(revision).await?),
        }
    }

    /// Why the store ended, when it does by itself; a foreign one only stops to answer.
    pub async fn failed(&self) -> Error {
        match self {
            Coordinator::Own(c) => cluster::failed(c).await,
            Coordinator::Foreign { .. } => std::future::pending().await,
        }
    }

    /// Stops it, or talking to it.
    pub async fn shutdown(&self) {
        match self {
            Coordinator::Own(c) => c.shutdown().await,
            Coordinator::Foreign { etcd, .. } => etcd.shutdown().await,
        }
    }
}

async fn own(
    config: &Config,
    paths: &Paths,
    identity: &Identity,
    certificate: &Arc<LiveCertificate>,
    gossip: &Gossip,
    reporter: &Reporter,
) -> Result<ChainFire> {
    if paths.coordinator().exists() {
        let urls = photon_rt::fs::read_text(&paths.coordinator(), 8192).unwrap_or_default();
        return Err(Error::new(Code::Conflict, "this cloud's records are in an etcd cluster")
            .why(format!("it was started with --coordinator {}", urls.trim()))
            .hint("say --coordinator again (or coordinator = … in photon.toml)"));
    }
    let mut c = ChainFireConfig::new(paths.service("chainfire"));
    c.name = config.node.to_string();
    c.client_urls = vec![format!("https://{}", SocketAddr::new(config.reach(), config.port(2379)?))];
    c.peer_urls = vec![cluster::peer_url(config)?];
    c.peering = Some(cluster::peering(config, identity, certificate, gossip)?);
    let peers = photon_rt::net::listen(SocketAddr::new(config.listen, config.port(2380)?)).await?;
    let chainfire = ChainFire::open(c).await?;
    cluster::serve_peers(&chainfire, peers, identity, certificate)?;
    cluster::catch_up(&chainfire, reporter).await?;
    Ok(chainfire)
}

async fn foreign(
    config_etcd: &photon_etcd::Config,
    config: &Config,
    paths: &Paths,
    identity: &Identity,
) -> Result<Coordinator> {
    let urls = config_etcd.endpoints();
    if identity.cluster.joined.is_some() || paths.service("chainfire").join("log").exists() {
        return Err(Error::new(Code::Conflict, "this cloud has a store of its own already")
            .why(format!("its records are in {}", paths.service("chainfire").display()))
            .hint("start without --coordinator; or use another --data-dir"));
    }
    let etcd = Etcd::open(config_etcd.clone()).await?;
    let cloud = identity.cluster.id.to_string();
    claim(&etcd, &urls, &cloud).await?;
    photon_rt::fs::write_atomic(&paths.coordinator(), urls.as_bytes(), 0o600)?;
    let id = identity.cluster.id.derive(config.node.as_str()).0 as u64;
    let name = config.node.to_string();
    let me = Member { id, name, peer_url: String::new(), votes: true, leads: true, behind: None };
    Ok(Coordinator::Foreign { etcd, urls, me })
}

/// Makes the place this cloud's, or finds that it is.
async fn claim(etcd: &Etcd, urls: &str, cloud: &str) -> Result<()> {
    loop {
        if let Some(v) = etcd.get(WHOSE.as_bytes(), ReadAt::Latest).await? {
            if v.value == cloud.as_bytes() {
                return Ok(());
            }
            let whose = String::from_utf8_lossy(&v.value).into_owned();
            return Err(Error::new(Code::Conflict, format!("{urls} holds the records of another cloud"))
                .why(format!("{WHOSE} says {whose}; this one is {cloud}"))
                .hint("use the data folder that this etcd was first used with, or another etcd"));
        }
        let put = Write::Put(WHOSE.into(), cloud.to_string().into());
        match etcd.commit(vec![Check::absent(WHOSE)], vec![put]).await {
            Err(photon_kv::KvError::CheckFailed(_)) => {}
            other => {
                other?;
            }
        }
    }
}

/// A node that shares its store with no other.
struct Alone {
    me: Member,
    cluster: u64,
}

fn unsupported() -> Error {
    Error::new(Code::Unsupported, "a cloud on a foreign coordinator has one node")
        .why("nodes share their own store, and this cloud has none")
        .hint("a cloud of several nodes: photon up without --coordinator, then photon join")
}

#[async_trait]
impl Members for Alone {
    fn all(&self) -> Vec<Member> {
        vec![self.me.clone()]
    }

    fn cluster(&self) -> u64 {
        self.cluster
    }

    fn me(&self) -> u64 {
        self.me.id
    }

    async fn admit(&self, _: u64, _: &Name, _: &str, _: bool) -> Result<()> {
        Err(unsupported())
    }

    async fn enfranchise(&self, _: u64) -> Result<()> {
        Err(unsupported())
    }

    async fn dismiss(&self, _: u64) -> Result<bool> {
        Err(unsupported())
    }

    fn hand_over(&self) -> bool {
        false
    }
}

/// In place of the routes by which machines join.
pub fn nobody_joins() -> Router {
    let refuse = async || problem(&unsupported());
    Router::new().route("/v1/join-tokens", post(refuse)).route("/v1/join", post(refuse))
}
