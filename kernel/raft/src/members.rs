//! Who belongs to a group, and how that changes: always by an entry in the group's own log, several
//! changes at once through joint consensus (Raft thesis 4.3), which is left by itself.
//!
//! A node joins as a learner (it gets everything and counts for nothing) and becomes a voter when it
//! has caught up. The number of a node is never given to another one: a node that forgot what it
//! voted must come back under a new number.

use crate::{
    NodeId,
    codec::{CodecError, MAX_MEMBERS, Reader, put_u64},
};
use bytes::Bytes;
use raft::eraftpb::{ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState};
use std::collections::{BTreeMap, BTreeSet};

/// One change of the members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The node gets the log and does not vote; a voter loses its vote.
    Learner(NodeId),
    /// The node votes.
    Voter(NodeId),
    /// The node is no member.
    Remove(NodeId),
}

impl Change {
    /// The node that changes.
    pub fn node(self) -> NodeId {
        match self {
            Change::Learner(n) | Change::Voter(n) | Change::Remove(n) => n,
        }
    }
}

/// Most changes in one step.
pub const CHANGES_MAX: usize = 64;

/// Members of a group, as of the last change applied here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    /// Vote.
    pub voters: BTreeSet<NodeId>,
    /// Voted before a change that is under way, and still do.
    pub outgoing: BTreeSet<NodeId>,
    /// Get everything and don't vote.
    pub learners: BTreeSet<NodeId>,
    /// On the leader: how far each other member's log surely goes. Updated once a tick.
    pub matched: BTreeMap<NodeId, u64>,
}

impl Members {
    pub(crate) fn of(conf: &ConfState) -> Members {
        let set = |ids: &[u64]| ids.iter().copied().map(NodeId).collect::<BTreeSet<_>>();
        let mut learners = set(&conf.learners);
        // They leave with the joint state; until then they vote and are listed as such.
        learners.extend(set(&conf.learners_next));
        Members {
            voters: set(&conf.voters),
            outgoing: set(&conf.voters_outgoing),
            learners,
            matched: BTreeMap::new(),
        }
    }

    /// True when the node is a member of any kind.
    pub fn contains(&self, node: NodeId) -> bool {
        self.voters.contains(&node) || self.outgoing.contains(&node) || self.learners.contains(&node)
    }

    /// True while a change of several members is under way.
    pub fn is_joint(&self) -> bool {
        !self.outgoing.is_empty()
    }
}

/// Bytes of a change, as the entry's context carries them. An empty row leaves the joint state.
pub(crate) fn encode(changes: &[Change]) -> Bytes {
    let mut out = Vec::new();
    for c in changes {
        let kind = match c {
            Change::Learner(_) => 1,
            Change::Voter(_) => 2,
            Change::Remove(_) => 3,
        };
        out.push(kind);
        put_u64(&mut out, c.node().0);
    }
    out.into()
}

/// See [`encode`].
pub(crate) fn decode(context: Bytes) -> Result<Vec<Change>, CodecError> {
    let mut r = Reader::new(context);
    let mut changes = Vec::new();
    while r.end().is_err() {
        if changes.len() == CHANGES_MAX {
            return Err(CodecError::Limit("changes"));
        }
        let kind = r.u8()?;
        let node = match r.u64()? {
            0 => return Err(CodecError::Invalid("member")),
            n => NodeId(n),
        };
        changes.push(match kind {
            1 => Change::Learner(node),
            2 => Change::Voter(node),
            3 => Change::Remove(node),
            _ => return Err(CodecError::Invalid("change")),
        });
    }
    Ok(changes)
}

/// The change as the `raft` crate wants it.
pub(crate) fn to_raft(changes: &[Change]) -> ConfChangeV2 {
    let single = |c: &Change| {
        let kind = match c {
            Change::Learner(_) => ConfChangeType::AddLearnerNode,
            Change::Voter(_) => ConfChangeType::AddNode,
            Change::Remove(_) => ConfChangeType::RemoveNode,
        };
        let mut s = ConfChangeSingle { node_id: c.node().0, ..ConfChangeSingle::default() };
        s.set_change_type(kind);
        s
    };
    let mut cc = ConfChangeV2::default();
    // One change needs no joint state; several pass through it and leave it by themselves.
    cc.set_transition(ConfChangeTransition::Auto);
    cc.set_changes(changes.iter().map(single).collect::<Vec<_>>().into());
    cc
}

/// Why `changes`, asked of the leader `me`, cannot be; `None` when they can.
pub(crate) fn objection(now: &Members, me: NodeId, changes: &[Change]) -> Option<String> {
    if changes.is_empty() || changes.len() > CHANGES_MAX {
        return Some(format!("1 to {CHANGES_MAX} members change in one step"));
    }
    let mut nodes: Vec<NodeId> = changes.iter().map(|c| c.node()).collect();
    nodes.sort_unstable();
    nodes.dedup();
    if nodes.len() < changes.len() || nodes.contains(&NodeId(0)) {
        return Some("a member changes once in a step, and 0 is none".into());
    }
    let mut voters = now.voters.clone();
    let mut others = now.learners.clone();
    for c in changes {
        let n = c.node();
        voters.remove(&n);
        others.remove(&n);
        match c {
            Change::Voter(_) => voters.insert(n),
            Change::Learner(_) => others.insert(n),
            Change::Remove(_) => true,
        };
    }
    if !voters.contains(&me) {
        return Some("the leader cannot take its own vote away; hand leadership over first".into());
    }
    (voters.len() + others.len() > MAX_MEMBERS).then(|| format!("a group has at most {MAX_MEMBERS} members"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn change() -> impl Strategy<Value = Change> {
        (0u8..3, 1u64..).prop_map(|(k, n)| match k {
            0 => Change::Learner(NodeId(n)),
            1 => Change::Voter(NodeId(n)),
            _ => Change::Remove(NodeId(n)),
        })
    }

    proptest! {
        #[test]
        fn changes_round_trip(changes in prop::collection::vec(change(), 0..CHANGES_MAX)) {
            prop_assert_eq!(decode(encode(&changes)), Ok(changes));
        }

        #[test]
        fn foreign_bytes_are_refused_or_mean_something(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(changes) = decode(bytes.into()) {
                prop_assert!(changes.len() <= CHANGES_MAX && changes.iter().all(|c| c.node().0 != 0));
            }
        }
    }

    #[test]
    fn what_cannot_be_is_refused_before_it_is_proposed() {
        let set = |ids: &[u64]| ids.iter().copied().map(NodeId).collect::<BTreeSet<_>>();
        let now = Members { voters: set(&[1, 2]), learners: set(&[3]), ..Members::default() };
        let me = NodeId(1);
        for wrong in [
            vec![],
            vec![Change::Remove(me)],
            vec![Change::Learner(me)],
            vec![Change::Voter(NodeId(0))],
            vec![Change::Voter(NodeId(3)), Change::Remove(NodeId(3))],
            vec![Change::Voter(NodeId(3)); CHANGES_MAX + 1],
        ] {
            assert!(objection(&now, me, &wrong).is_some(), "{wrong:?}");
        }
        let right = [Change::Voter(NodeId(3)), Change::Remove(NodeId(2)), Change::Learner(NodeId(4))];
        assert_eq!(objection(&now, me, &right), None);
    }
}
