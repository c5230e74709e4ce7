//! A ChainFire of several members: who this one is, where the others are, and the leader's work of making
//! the Raft group what [`crate::model::members`] says that it shall be.
//!
//! A cluster is founded by members that all know each other's names and peer URLs (etcd's static bootstrap),
//! or grows from one. A member that joins later knows the URLs of some others, is added through any of them,
//! asks them for its number, and learns the rest from the log.

mod ask;
pub(crate) mod compare;
mod connect;
mod join;
mod roster;
mod seat;

pub(crate) use ask::{Asks, FromMember};
pub(crate) use connect::AddressBook;
pub use connect::{Admit, Connect, PlainTcp, Sighted, TlsTcp};
pub use join::{Rejoined, rejoin};
pub use roster::Mate;
pub(crate) use seat::{By, ORIGIN, Seat, keep, new_id, stable_id};
pub use seat::{Founder, Peering, assign};

use crate::{
    ChainFire, EtcdError, EtcdResult,
    command::Op,
    model::{
        Rules,
        members::{MemberChange, MemberRecord, MemberVerb},
    },
    who::Who,
};
use photon_base::{Code, Error, Result};
use photon_raft::{Change, GroupStatus, Members, NodeId, Role};
use photon_rt::{
    net::TcpListener,
    time::{Duration, sleep},
};
use rustls::ServerConfig;
use std::sync::{Arc, Weak};
use tokio_rustls::TlsAcceptor;

/// What helps a member that must not go on with what it has.
pub(crate) const REJOIN: &str =
    "photon chainfire rejoin, with the flags of serve, gives this member a new place in its cluster";

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
        // One that has not been heard of is not near, however short the log: its vote would be missing.
        let near = |i: &u64| *i > 0 && i.saturating_add(NEAR) >= status.commit;
        let near = now.matched.get(&node).is_some_and(near);
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
        let i = &self.inner;
        let (Some(peers), Some(book), Some(peering)) = (i.peers.clone(), i.book.clone(), &i.config.peering)
        else {
            return Err(Error::new(Code::Unsupported, "this member has no peers")
                .hint("configure the initial cluster"));
        };
        let (tls, me) = (tls.map(TlsAcceptor::from), Arc::downgrade(i));
        let gate = connect::Gatekeeper { tls, admit: peering.admit, book, me };
        connect::serve(peers, socket, gate, &i.tasks);
        Ok(())
    }

    /// This member is one of the founders.
    fn founds(&self) -> bool {
        let existing = self.inner.config.peering.as_ref().is_none_or(|p| p.existing);
        self.inner.by == By::Founding && !existing
    }

    /// etcd's number of a member. The one of a cluster without peers has another in Raft.
    pub(crate) fn etcd_id(&self, node: NodeId) -> u64 {
        if node == self.inner.node { self.inner.member_id } else { node.0 }
    }

    /// The cluster's number.
    pub(crate) fn cluster_id(&self) -> u64 {
        self.inner.cluster_id
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
        let founded = self.inner.config.peering.as_ref().filter(|_| self.founds());
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
        let mut status = group.watch_leadership();
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
        let (status, group) = (i.group.status(), i.group.members());
        if status.removed {
            // As etcd does: what it has grows old, and its clients should go to the others.
            i.log.stop("the other members removed it and go on without it");
            return;
        }
        let done = match state.rules.member(i.member_id) {
            None if self.founds() && state.rules.members.is_empty() && status.role == Role::Leader => {
                self.propose_members(&Who::cloud(), MemberVerb::Found, peering.records()).await
            }
            Some(m) if (&m.name, &m.client_urls) != (&i.config.name, &i.config.client_urls) => {
                let (name, client_urls) = (i.config.name.clone(), i.config.client_urls.clone());
                let me = MemberRecord { id: i.member_id, name, client_urls, ..Default::default() };
                self.propose_members(&Who::cloud(), MemberVerb::Publish, vec![me]).await
            }
            Some(m) if peering.moves && m.peer_urls != i.config.peer_urls => {
                let peer_urls = i.config.peer_urls.clone();
                let me = MemberRecord { id: i.member_id, peer_urls, ..Default::default() };
                self.propose_members(&Who::cloud(), MemberVerb::Update, vec![me]).await
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
        grown.matched = [(NodeId(2), 0), (NodeId(3), 0)].into();
        let early = GroupStatus { commit: 10, ..Default::default() };
        assert_eq!(next_step(me, &grown, &early, &wanted(&[1, 2], &[3])), Ok(vec![]), "it has not started");
        grown.matched = [(NodeId(2), 9_500), (NodeId(3), 9_999)].into();
        assert_eq!(step(&grown, &wanted(&[1, 2], &[3])), Ok(vec![Change::Voter(NodeId(2))]));
        let three = Members { voters: set(&[1, 2, 3]), ..Default::default() };
        assert_eq!(step(&three, &wanted(&[1, 3], &[])), Ok(vec![Change::Remove(NodeId(2))]));
        assert_eq!(step(&three, &wanted(&[2], &[])), Err(NodeId(2)), "the leader hands over first");
        let joint = Members { outgoing: set(&[1]), ..three };
        assert_eq!(step(&joint, &wanted(&[1], &[])), Ok(vec![]), "one change at a time");
    }
}
