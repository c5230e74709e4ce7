//! How a member that was removed learns of it, although nobody sends it anything any more.
//!
//! Whoever has heard of no leader for long asks all members that it knows. A node that knows later members than
//! the asker can know, the asker not among them, says so: the asker was a member as of what it knows, so it was
//! removed since. (Who is not known yet here is not taken for removed: it knows more than this node.) A removed
//! member does not campaign, and its requests for votes are answered in the same way.
//!
//! A number is never given to another member, so whoever was removed stays so; should a leader be heard again
//! all the same, this node was a member for it, and goes on as one.

use super::{CoreConfig, Output, group::Group};
use crate::{
    NodeId,
    codec::{self, Notice},
};
use raft::{StateRole, eraftpb::Message};

impl Group {
    fn note(&self, to: NodeId, notice: Notice, out: &mut dyn FnMut(Output)) {
        let message = codec::encode_notice(NodeId(self.me), to, notice);
        out(Output::Send { to, group: self.id, message });
    }

    /// True when `node`, which was a member as of `commit`, surely is none; it is told.
    fn tell_removed(&self, node: NodeId, commit: u64, out: &mut dyn FnMut(Output)) -> bool {
        let gone =
            commit < self.members_index && !self.members.voters.is_empty() && !self.members.contains(node);
        if gone {
            self.note(node, Notice::Removed { as_of: self.members_index }, out);
        }
        gone
    }

    pub(super) fn on_notice(&mut self, from: NodeId, notice: Notice, out: &mut dyn FnMut(Output)) {
        match notice {
            Notice::Ask { commit } => drop(self.tell_removed(from, commit, out)),
            Notice::Removed { as_of } => {
                let member = self.members.contains(from) && self.members.contains(NodeId(self.me));
                if member && as_of > self.raft.raft.raft_log.committed {
                    self.set_removed(true);
                }
            }
        }
    }

    /// False for a request of somebody who was removed, and who is told so.
    pub(super) fn may_campaign(&self, m: &Message, out: &mut dyn FnMut(Output)) -> bool {
        !self.tell_removed(NodeId(m.from), m.commit, out)
    }

    /// The members that are in force here are other ones.
    pub(super) fn look_removed(&mut self) {
        if !self.members.voters.is_empty() {
            self.set_removed(!self.members.contains(NodeId(self.me)));
        }
    }

    pub(super) fn set_removed(&mut self, removed: bool) {
        if removed && !self.removed {
            tracing::warn!(group = self.id.0, "this node was removed from the group");
            let term = self.raft.raft.term;
            // Whom it followed does not follow up on what it is asked.
            self.raft.raft.become_follower(term, 0);
        }
        self.removed = removed;
    }

    /// Once a tick: asks when it has been quiet for long.
    pub(super) fn ask_around(&mut self, tick: u64, config: &CoreConfig, out: &mut dyn FnMut(Output)) {
        let patience = 2 * config.election_ticks as u64;
        let quiet_since = self.lease.heard.unwrap_or(0).max(self.asked);
        let leads = self.raft.raft.state == StateRole::Leader;
        if leads || self.removed || tick.saturating_sub(quiet_since) < patience {
            return;
        }
        self.asked = tick;
        let commit = self.raft.raft.raft_log.committed;
        let m = &self.members;
        let others: Vec<NodeId> = m.voters.iter().chain(&m.outgoing).chain(&m.learners).copied().collect();
        for to in others.into_iter().filter(|n| n.0 != self.me) {
            self.note(to, Notice::Ask { commit }, out);
        }
    }
}
