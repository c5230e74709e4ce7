//! A ChainFire of several members: who this one is, where the others are, and the leader's work of making
//! the Raft group what [`crate::model::members`] says that it shall be.
//!
//! A cluster is founded by members that all know each other's names and peer URLs (etcd's static bootstrap),
//! or grows from one. A member that joins later knows the URLs of some others, is added through any of them,
//! and learns the rest from the log. Numbers follow from peer URLs, as in etcd, and stay when those change:
//! they are kept in `<data_dir>/member.json`.

use crate::{
    ChainFire, EtcdError, EtcdResult,
    command::Op,
    machine::Shared,
    model::{
        Rules,
        members::{MemberChange, MemberRecord, MemberVerb},
    },
    who::Who,
};
use photon_auth::{CertPair, client_config};
use photon_base::{Code, Error, Result};
use photon_raft::{
    Change, GroupStatus, Members, NodeId, Role,
    peers::{Dial, Dialing, Peers, Stream},
};
use photon_rt::{
    net::{TcpListener, TcpStream},
    task::Tasks,
    time::{Duration, sleep, timeout},
};
use rustls::{ServerConfig, pki_types::ServerName};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    io,
    path::Path,
    sync::{Arc, Weak},
};
use tokio::sync::Semaphore;
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// A member of the first hour.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Founder {
    /// Its name.
    pub name: String,
    /// Where members reach it.
    pub peer_url: String,
}

/// How a member finds the others.
#[derive(Clone)]
pub struct Peering {
    /// All founders, this member among them; for one that joins, members that it can reach, and itself.
    pub initial: Vec<Founder>,
    /// This member joins a cluster that there is already, in which it was added before.
    pub existing: bool,
    /// Tells clusters apart that are founded with the same URLs.
    pub token: String,
    /// Makes connections.
    pub connect: Arc<dyn Connect>,
}

impl std::fmt::Debug for Peering {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Peering").field("initial", &self.initial).field("existing", &self.existing).finish()
    }
}

/// Makes a connection to a peer URL. It must make sure that a member of the cluster answers.
pub trait Connect: Send + Sync + 'static {
    /// A new connection.
    fn connect(&self, url: &str) -> Dialing;
}

/// Plain TCP, for drop-ins on loopback.
#[derive(Clone, Copy, Debug)]
pub struct PlainTcp;

impl Connect for PlainTcp {
    fn connect(&self, url: &str) -> Dialing {
        let addr = url.strip_prefix("http://").map(|a| a.trim_end_matches('/').to_string());
        Box::pin(async move {
            let wrong = || io::Error::new(io::ErrorKind::InvalidInput, "not http://HOST:PORT");
            let stream = TcpStream::connect(addr.ok_or_else(wrong)?).await?;
            stream.set_nodelay(true)?;
            Ok(Box::new(stream) as Box<dyn Stream>)
        })
    }
}

/// TLS, with a certificate on both sides.
pub struct TlsTcp(TlsConnector);

impl TlsTcp {
    /// Shows `identity` and trusts `ca` alone (PEM).
    pub fn new(identity: &CertPair, ca: &str) -> Result<TlsTcp> {
        Ok(TlsTcp(client_config(ca, Some(identity), &[])?.into()))
    }
}

impl Connect for TlsTcp {
    fn connect(&self, url: &str) -> Dialing {
        let authority = url.strip_prefix("https://").map(|a| a.trim_end_matches('/').to_string());
        let tls = self.0.clone();
        Box::pin(async move {
            let wrong = || io::Error::new(io::ErrorKind::InvalidInput, "not https://HOST:PORT");
            let authority = authority.ok_or_else(wrong)?;
            let (host, _) = authority.rsplit_once(':').ok_or_else(wrong)?;
            let host = host.trim_start_matches('[').trim_end_matches(']').to_string();
            let name = ServerName::try_from(host).map_err(|_| wrong())?;
            let stream = TcpStream::connect(&authority).await?;
            stream.set_nodelay(true)?;
            Ok(Box::new(tls.connect(name, stream).await?) as Box<dyn Stream>)
        })
    }
}

/// Numbers that stay the same whatever happens to URLs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Seat {
    pub member: u64,
    /// 0 until a member of the cluster has told.
    pub cluster: u64,
}

/// An id that stays the same across restarts (FNV-1a; ids need to differ, not to be secret). Never 0 or 1:
/// those are nobody, and the member of a cluster without peers.
pub(crate) fn stable_id(kind: &[u8], name: &[u8]) -> u64 {
    let hash = |h: u64, b: &u8| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3);
    kind.iter().chain(name).fold(0xcbf2_9ce4_8422_2325, hash).max(2)
}

/// The number of the member with this peer URL.
pub(crate) fn member_id(peer_url: &str) -> u64 {
    stable_id(b"member-url", peer_url.trim_end_matches('/').as_bytes())
}

impl Peering {
    pub(crate) fn me(&self, name: &str) -> Result<&Founder> {
        self.initial.iter().find(|f| f.name == name).ok_or_else(|| {
            Error::invalid("initial-cluster", format!("does not name this member, {name:?}"))
                .hint("--name and --initial-cluster NAME=URL,… must agree")
        })
    }

    /// What the configuration says; what a member once was given stays.
    fn computed(&self, name: &str) -> Result<Seat> {
        let member = member_id(&self.me(name)?.peer_url);
        let mut all: Vec<String> =
            self.initial.iter().map(|f| format!("{}={}", f.name, f.peer_url)).collect();
        all.sort();
        let founded = stable_id(b"cluster", format!("{} {}", self.token, all.join(",")).as_bytes());
        Ok(Seat { member, cluster: if self.existing { 0 } else { founded } })
    }

    pub(crate) fn seat(&self, name: &str, dir: Option<&Path>) -> Result<Seat> {
        let path = dir.map(|d| d.join("member.json"));
        if let Some(p) = path.as_ref().filter(|p| p.exists()) {
            return photon_rt::fs::read_text(p, 1 << 10).and_then(|t| {
                serde_json::from_str(&t)
                    .map_err(|e| Error::internal(format!("{} is damaged", p.display())).why(e))
            });
        }
        let seat = self.computed(name)?;
        keep(seat, dir)?;
        Ok(seat)
    }

    /// Members of the new group; none for one that joins.
    pub(crate) fn founders(&self) -> Vec<NodeId> {
        if self.existing {
            return Vec::new();
        }
        self.initial.iter().map(|f| NodeId(member_id(&f.peer_url))).collect()
    }

    fn records(&self) -> Vec<MemberRecord> {
        let record = |f: &Founder| MemberRecord {
            id: member_id(&f.peer_url),
            name: f.name.clone(),
            peer_urls: vec![f.peer_url.clone()],
            ..Default::default()
        };
        self.initial.iter().map(record).collect()
    }
}

fn keep(seat: Seat, dir: Option<&Path>) -> Result<()> {
    let Some(dir) = dir else { return Ok(()) };
    let text = serde_json::to_string(&seat).unwrap_or_default();
    photon_rt::fs::write_atomic(&dir.join("member.json"), text.as_bytes(), 0o600)
}

/// Where members are: what the log says, else what this member was told at its start.
pub(crate) struct AddressBook {
    shared: Arc<Shared>,
    told: BTreeMap<NodeId, String>,
    connect: Arc<dyn Connect>,
}

impl AddressBook {
    pub(crate) fn new(peering: &Peering, shared: Arc<Shared>) -> AddressBook {
        let told = peering.initial.iter().map(|f| (NodeId(member_id(&f.peer_url)), f.peer_url.clone()));
        AddressBook { shared, told: told.collect(), connect: peering.connect.clone() }
    }
}

impl Dial for AddressBook {
    fn dial(&self, to: NodeId) -> Dialing {
        let known = self.shared.published().rules.member(to.0).and_then(|m| m.peer_urls.first().cloned());
        match known.or_else(|| self.told.get(&to).cloned()) {
            Some(url) => self.connect.connect(&url),
            None => Box::pin(async move {
                Err(io::Error::new(io::ErrorKind::NotFound, format!("no URL of {to} is known")))
            }),
        }
    }
}

/// Most connections of peers at a time.
const CONNECTIONS_MAX: usize = 256;

/// Time for a TLS handshake.
const HANDSHAKE_MAX: Duration = Duration::from_secs(5);

/// Serves members that connect: by TLS whose verifier lets only members in, or in plain text on loopback.
fn serve(peers: Peers, socket: TcpListener, tls: Option<TlsAcceptor>, tasks: &Tasks) {
    let owner = tasks.clone();
    tasks.spawn("chainfire-peers", async move {
        let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        while let Ok(slot) = slots.clone().acquire_owned().await {
            let Ok((stream, _)) = socket.accept().await else {
                sleep(Duration::from_millis(50)).await; // out of file descriptors, most likely
                continue;
            };
            let (peers, tls) = (peers.clone(), tls.clone());
            owner.spawn("chainfire-peer", async move {
                let _ = stream.set_nodelay(true); // only latency is lost without it
                let served = match tls {
                    None => peers.serve(stream, |_| true).await.map_err(|e| e.to_string()),
                    Some(tls) => match timeout(HANDSHAKE_MAX, "a peer's handshake", tls.accept(stream)).await
                    {
                        Ok(Ok(stream)) => peers.serve(stream, |_| true).await.map_err(|e| e.to_string()),
                        Ok(Err(e)) => Err(e.to_string()),
                        Err(e) => Err(e.to_string()),
                    },
                };
                if let Err(e) = served {
                    tracing::debug!(error = e, "a peer's connection ended");
                }
                drop(slot);
            });
        }
    });
}

/// Entries that a learner may lack and still be let vote.
const NEAR: u64 = 1_000;

/// The next step from the members that are to those that shall be; pure. `Err` names a voter to hand
/// leadership to, as the leader itself is to go.
fn next_step(
    me: NodeId,
    now: &Members,
    status: &GroupStatus,
    wanted: &Rules,
) -> std::result::Result<Vec<Change>, NodeId> {
    if now.is_joint() || wanted.members.is_empty() {
        return Ok(Vec::new());
    }
    let mut changes = Vec::new();
    for m in &wanted.members {
        let node = NodeId(m.id);
        let near = now.matched.get(&node).is_some_and(|i| i.saturating_add(NEAR) >= status.commit);
        match (now.voters.contains(&node), now.learners.contains(&node)) {
            (false, false) => changes.push(Change::Learner(node)),
            (false, true) if !m.learner && near => changes.push(Change::Voter(node)),
            _ => {}
        }
    }
    let gone = now.voters.iter().chain(&now.learners).filter(|n| wanted.member(n.0).is_none());
    let gone: Vec<NodeId> = gone.copied().collect();
    if gone.contains(&me) {
        let stays = |n: &&NodeId| **n != me && !gone.contains(n);
        let heir = now.voters.iter().filter(stays).max_by_key(|n| now.matched.get(n));
        // Without an heir it stays until there is one.
        return heir.map_or(Ok(changes), |h| Err(*h));
    }
    changes.extend(gone.into_iter().map(Change::Remove));
    changes.truncate(photon_raft::CHANGES_MAX);
    Ok(changes)
}

impl ChainFire {
    /// Serves other members on `socket`. Without TLS (a configuration that lets only members in): for
    /// loopback alone.
    pub fn serve_peers(&self, socket: TcpListener, tls: Option<Arc<ServerConfig>>) -> Result<()> {
        let peers = self.inner.peers.clone().ok_or_else(|| {
            Error::new(Code::Unsupported, "this member has no peers").hint("configure the initial cluster")
        })?;
        serve(peers, socket, tls.map(TlsAcceptor::from), &self.inner.tasks);
        Ok(())
    }

    /// etcd's number of a member. The one of a cluster without peers has another in Raft.
    pub(crate) fn etcd_id(&self, node: NodeId) -> u64 {
        if node == self.inner.node { self.inner.member_id } else { node.0 }
    }

    /// The cluster's number; 0 while this member waits to be told.
    pub(crate) fn cluster_id(&self) -> u64 {
        self.inner.peers.as_ref().map_or(self.inner.cluster_id, Peers::cluster)
    }

    /// Changes who shall be a member.
    pub(crate) async fn change_members(
        &self,
        who: &Who,
        verb: MemberVerb,
        member: MemberRecord,
    ) -> EtcdResult<()> {
        if self.inner.peers.is_none() {
            return Err(EtcdError::Unsupported(
                "this member was started without peers: --initial-cluster, --listen-peer-urls".into(),
            ));
        }
        // Whoever comes first must not be taken for all there are.
        let founded = self.inner.config.peering.as_ref().filter(|p| !p.existing);
        if let Some(p) = founded.filter(|_| self.published().rules.members.is_empty()) {
            self.propose_members(&Who::cloud(), MemberVerb::Found, p.records()).await?;
        }
        self.propose_members(who, verb, vec![member]).await
    }

    async fn propose_members(
        &self,
        who: &Who,
        verb: MemberVerb,
        members: Vec<MemberRecord>,
    ) -> EtcdResult<()> {
        let op = Op::Members(MemberChange { verb: verb as i32, members });
        self.propose_revision(who, op).await.map(drop)
    }

    /// Hands leadership to a voter, and waits until it leads.
    pub(crate) async fn move_leader(&self, to: u64) -> EtcdResult<()> {
        let group = &self.inner.group;
        if to == self.inner.member_id {
            return Ok(());
        }
        // Alone, this member has another number in Raft than for clients.
        if self.inner.peers.is_none() || !group.members().voters.contains(&NodeId(to)) {
            return Err(EtcdError::BadLeaderTransferee);
        }
        group.transfer(NodeId(to));
        let mut status = group.watch_status();
        let moved = status.wait_for(|s| s.leader == Some(NodeId(to)));
        match photon_rt::time::timeout(MOVE_MAX, "handing leadership over", moved).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(EtcdError::Timeout),
        }
    }

    /// Members as clients see them: number, record, and whether it does not vote yet.
    pub(crate) fn members(&self) -> Vec<(MemberRecord, bool)> {
        let state = self.published();
        let group = self.inner.group.members();
        let votes = |id: u64| group.voters.contains(&NodeId(id));
        if !state.rules.members.is_empty() {
            let with = |m: &MemberRecord| (m.clone(), !votes(m.id));
            return state.rules.members.iter().map(with).collect();
        }
        let c = &self.inner.config;
        let me = MemberRecord {
            id: self.inner.member_id,
            name: c.name.clone(),
            peer_urls: c.peer_urls.clone(),
            client_urls: c.client_urls.clone(),
            learner: false,
        };
        vec![(me, false)]
    }

    /// One round of what this member does for the cluster's sake.
    async fn tend(&self, peering: &Peering) {
        let (i, state) = (&self.inner, self.published());
        let Some(peers) = &i.peers else { return };
        let seat = Seat { member: i.member_id, cluster: peers.cluster() };
        if i.cluster_id != seat.cluster
            && let Err(e) = keep(seat, i.data_dir.as_deref())
        {
            tracing::warn!(error = %e, "the cluster's number could not be kept");
        }
        let (status, group) = (i.group.status(), i.group.members());
        let done = match state.rules.member(i.member_id) {
            None if state.rules.members.is_empty() && status.role == Role::Leader => {
                self.propose_members(&Who::cloud(), MemberVerb::Found, peering.records()).await
            }
            Some(m) if (&m.name, &m.client_urls) != (&i.config.name, &i.config.client_urls) => {
                let (name, client_urls) = (i.config.name.clone(), i.config.client_urls.clone());
                let me = MemberRecord { id: i.member_id, name, client_urls, ..Default::default() };
                self.propose_members(&Who::cloud(), MemberVerb::Publish, vec![me]).await
            }
            _ => Ok(()),
        };
        if let Err(e) = done {
            tracing::debug!(error = %e, "members are told later");
        }
        if status.role != Role::Leader {
            return;
        }
        match next_step(i.node, &group, &status, &state.rules) {
            Ok(changes) if changes.is_empty() => {}
            Ok(changes) => {
                tracing::info!(?changes, "members change");
                let gone = changes.iter().filter(|c| matches!(c, Change::Remove(_))).map(|c| c.node());
                let gone: Vec<NodeId> = gone.collect();
                match i.group.change(changes).await {
                    Ok(()) => gone.into_iter().for_each(|n| peers.forget(n)),
                    Err(e) => tracing::debug!(error = %e, "members change later"),
                }
            }
            Err(heir) => i.group.transfer(heir),
        }
    }
}

/// Time for leadership to be handed over.
const MOVE_MAX: Duration = Duration::from_secs(5);

/// Between two looks at what is to be done.
const TEND_EVERY: Duration = Duration::from_millis(100);

/// Tends the cluster for ever.
pub(crate) async fn tend(inner: Weak<crate::store::Inner>, peering: Peering) {
    loop {
        sleep(TEND_EVERY).await;
        let Some(inner) = inner.upgrade() else { return };
        ChainFire { inner }.tend(&peering).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn set(ids: &[u64]) -> BTreeSet<NodeId> {
        ids.iter().copied().map(NodeId).collect()
    }

    fn wanted(voters: &[u64], learners: &[u64]) -> Rules {
        let m = |id: &u64, learner| MemberRecord { id: *id, learner, ..Default::default() };
        let all = voters.iter().map(|i| m(i, false)).chain(learners.iter().map(|i| m(i, true)));
        Rules { members: all.collect(), ..Default::default() }
    }

    #[test]
    fn the_group_follows_what_is_wanted_step_by_step() {
        let me = NodeId(1);
        let status = GroupStatus { commit: 10_000, ..Default::default() };
        let step = |now: &Members, w: &Rules| next_step(me, now, &status, w);
        let one = Members { voters: set(&[1]), ..Default::default() };
        assert_eq!(step(&one, &Rules::default()), Ok(vec![]), "nothing is written down yet");
        assert_eq!(step(&one, &wanted(&[1, 2], &[3])).map(|c| c.len()), Ok(2));
        let mut grown = Members { voters: set(&[1]), learners: set(&[2, 3]), ..Default::default() };
        assert_eq!(step(&grown, &wanted(&[1, 2], &[3])), Ok(vec![]), "who is far behind waits");
        grown.matched = [(NodeId(2), 9_500), (NodeId(3), 9_999)].into();
        assert_eq!(step(&grown, &wanted(&[1, 2], &[3])), Ok(vec![Change::Voter(NodeId(2))]));
        let three = Members { voters: set(&[1, 2, 3]), ..Default::default() };
        assert_eq!(step(&three, &wanted(&[1, 3], &[])), Ok(vec![Change::Remove(NodeId(2))]));
        assert_eq!(step(&three, &wanted(&[2], &[])), Err(NodeId(2)), "the leader hands over first");
        let joint = Members { outgoing: set(&[1]), ..three };
        assert_eq!(step(&joint, &wanted(&[1], &[])), Ok(vec![]), "one change at a time");
    }

    #[test]
    fn numbers_follow_from_urls_and_stay() {
        let dir = std::env::temp_dir().join(format!("photon-seat-{:x}", photon_rt::entropy::u64()));
        photon_rt::fs::private_dir(&dir).expect("folder");
        let f = |n: &str| Founder { name: n.into(), peer_url: format!("http://{n}:2380") };
        let founders = Peering {
            initial: vec![f("a"), f("b")],
            existing: false,
            token: "t".into(),
            connect: Arc::new(PlainTcp),
        };
        let a = founders.seat("a", Some(&dir)).expect("seat");
        assert_ne!(a.member, founders.computed("b").expect("seat").member);
        assert_eq!(a.cluster, founders.computed("b").expect("seat").cluster);
        let other = Peering { token: "u".into(), ..founders.clone() };
        assert_ne!(a.cluster, other.computed("a").expect("seat").cluster);
        assert_eq!(other.seat("a", Some(&dir)).expect("kept"), a);
        assert!(founders.seat("c", None).is_err());
        photon_rt::fs::remove_dir_all(&dir).expect("clean");
    }
}
