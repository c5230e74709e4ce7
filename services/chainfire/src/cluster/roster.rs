//! The members for the rest of the cloud: who they are, how far they are, and changes of them. etcd's clients
//! have `wire::cluster`.

use super::{ChainFire, MemberRecord, MemberVerb};
use crate::who::Who;
use photon_base::{Error, Result};
use photon_raft::{NodeId, Role};

/// A member as this one sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mate {
    /// Its number.
    pub id: u64,
    /// Its name; empty until it has started, if it was added by an etcd client.
    pub name: String,
    /// Where members reach it.
    pub peer_urls: Vec<String>,
    /// It votes.
    pub votes: bool,
    /// It leads.
    pub leads: bool,
    /// Entries that it lacks; known to the leader alone.
    pub behind: Option<u64>,
}

impl ChainFire {
    /// All members.
    pub fn mates(&self) -> Vec<Mate> {
        let (status, group) = (self.raft(), self.inner.group.members());
        let node = |id: u64| if id == self.inner.member_id { self.inner.node } else { NodeId(id) };
        let behind = |n: NodeId| match group.matched.get(&n) {
            _ if status.role != Role::Leader => None,
            _ if n == self.inner.node => Some(0),
            matched => Some(status.commit.saturating_sub(matched.copied().unwrap_or(0))),
        };
        let mate = |(m, learner): (MemberRecord, bool)| Mate {
            id: m.id,
            name: m.name,
            peer_urls: m.peer_urls,
            votes: !learner,
            leads: status.leader == Some(node(m.id)),
            behind: behind(node(m.id)),
        };
        self.members().into_iter().map(mate).collect()
    }

    /// The cluster's number, 0 while this member waits to be told.
    pub fn cluster_number(&self) -> u64 {
        self.cluster_id()
    }

    /// This member's number.
    pub fn member_number(&self) -> u64 {
        self.inner.member_id
    }

    /// Adds a member, which votes once it has caught up if `votes`. Adding it again changes nothing.
    pub async fn admit(&self, id: u64, name: &str, peer_url: &str, votes: bool) -> Result<()> {
        if self.published().rules.member(id).is_some() {
            return Ok(());
        }
        let (name, peer_urls) = (name.to_string(), vec![peer_url.to_string()]);
        let record = MemberRecord { id, name, peer_urls, learner: !votes, ..Default::default() };
        self.change(MemberVerb::Add, record).await
    }

    /// Lets a learner vote once it has caught up.
    pub async fn enfranchise(&self, id: u64) -> Result<()> {
        self.change(MemberVerb::Promote, MemberRecord { id, ..Default::default() }).await
    }

    /// Removes a member. True when it is gone; until then, call again.
    pub async fn dismiss(&self, id: u64) -> Result<bool> {
        if self.published().rules.member(id).is_some() {
            self.change(MemberVerb::Remove, MemberRecord { id, ..Default::default() }).await?;
        }
        let group = self.inner.group.members();
        let node = if id == self.inner.member_id { self.inner.node } else { NodeId(id) };
        Ok(!group.is_joint() && !group.voters.contains(&node) && !group.learners.contains(&node))
    }

    /// Hands leadership, if it is here, to the voter that lacks least. True when it was here and somebody else
    /// can have it.
    pub fn hand_over(&self) -> bool {
        let group = self.inner.group.members();
        let others = group.voters.iter().filter(|n| **n != self.inner.node);
        let heir = others.max_by_key(|n| group.matched.get(n));
        match heir {
            Some(to) if self.raft().role == Role::Leader => {
                self.inner.group.transfer(*to);
                true
            }
            _ => false,
        }
    }

    /// Resolves when this member knows everything that was acknowledged before the call: it has been let in, has
    /// caught up, and reaches a quorum.
    pub async fn caught_up(&self) -> Result<()> {
        self.linearizable()
            .await
            .map(drop)
            .map_err(|e| Error::unavailable("the cluster does not answer").why(e))
    }

    async fn change(&self, verb: MemberVerb, record: MemberRecord) -> Result<()> {
        self.change_members(&Who::cloud(), verb, record)
            .await
            .map_err(|e| Error::unavailable("the members cannot be changed now").why(e))
    }
}
