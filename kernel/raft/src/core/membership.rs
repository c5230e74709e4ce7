//! Changes of a group's members: proposed on the leader, in force on each node as soon as it is committed
//! there.
//!
//! The members are durable before anything behind their entry leaves for the state machine. So after a
//! restart they are those of the machine's position or later, never earlier, and an entry up to
//! `members_index` has no further effect.

use super::{
    CoreConfig, Output,
    group::{Group, Waiting},
    storage::SharedLog,
};
use crate::{
    Change, Members, NodeId, Position, ProposeError, StoreError,
    bug::{Bug, Bugs},
    members,
};
use raft::{StateRole, eraftpb::Entry};

impl Group {
    pub(super) fn on_change(
        &mut self,
        proposal: u64,
        changes: &[Change],
        tick: u64,
        config: &CoreConfig,
        out: &mut dyn FnMut(Output),
    ) {
        // What came before it in this turn stands before it in the log.
        self.flush(tick, config, out);
        match self.propose_change(changes) {
            Ok(at) => self.waiting.push_back(Waiting { at, proposal, since: tick }),
            Err(error) => out(Output::Failed { group: self.id, proposal, error }),
        }
    }

    fn propose_change(&mut self, changes: &[Change]) -> Result<Position, ProposeError> {
        let r = &self.raft.raft;
        if r.state != StateRole::Leader {
            return Err(ProposeError::NotLeader { leader: self.leader() });
        }
        if r.has_pending_conf() || self.members.is_joint() {
            return Err(ProposeError::Changing);
        }
        if let Some(why) = members::objection(&self.members, NodeId(self.me), changes) {
            return Err(ProposeError::Refused(why));
        }
        let at = Position { index: r.raft_log.last_index() + 1, term: r.term };
        let context = members::encode(changes).to_vec();
        match self.raft.propose_conf_change(context, members::to_raft(changes)) {
            Ok(()) => Ok(at),
            Err(raft::Error::ProposalDropped) => Err(ProposeError::Overloaded),
            Err(e) => Err(ProposeError::Unknown(e.to_string())),
        }
    }

    /// A change is committed.
    pub(super) fn change_members(
        &mut self,
        e: &Entry,
        proposal: Option<u64>,
        log: &SharedLog,
        bugs: Bugs,
        out: &mut dyn FnMut(Output),
    ) -> Result<(), StoreError> {
        if e.index > self.members_index {
            let changes = members::decode(e.context.clone())
                .map_err(|err| StoreError::Damaged(format!("{}, entry {}: {err}", self.id, e.index)))?;
            let mut change = members::to_raft(&changes);
            if bugs.on(Bug::NoJointState) && changes.len() > 1 {
                change = members::to_raft(&changes[..1]);
            }
            match self.raft.apply_conf_change(&change) {
                Ok(conf) => {
                    tracing::info!(group = self.id.0, index = e.index, members = ?conf, "members");
                    if !bugs.on(Bug::MembersNotPersisted) {
                        let mut log = log.lock();
                        log.set_members(self.id, &conf, e.index);
                        log.commit()?;
                    }
                    (self.members, self.members_index) = (Members::of(&conf), e.index);
                    self.forget_answers();
                    // It does not tell whoever is new that it is a member.
                    self.raft.store().slot().clear();
                    self.look_removed();
                    self.tell_members(out);
                }
                // The same everywhere, as everybody had the same members: it changes nothing.
                Err(err) => {
                    tracing::warn!(group = self.id.0, index = e.index, error = %err, "members stay");
                    if let Some(proposal) = proposal {
                        let error = ProposeError::Refused(err.to_string());
                        out(Output::Failed { group: self.id, proposal, error });
                    }
                    return Ok(());
                }
            }
            let r = &mut self.raft.raft;
            if r.state == StateRole::Leader && !r.promotable() {
                // Proposed by another leader, committed by this one: who has no vote does not lead.
                let term = r.term;
                r.become_follower(term, 0);
            }
        }
        self.reads_ready.extend(proposal.map(|p| (e.index, vec![p])));
        Ok(())
    }

    pub(super) fn tell_members(&self, out: &mut dyn FnMut(Output)) {
        out(Output::Members { group: self.id, members: self.members.clone() });
    }

    /// On the leader, once a tick: how far the others have come.
    pub(super) fn tell_progress(&mut self, out: &mut dyn FnMut(Output)) {
        let r = &self.raft.raft;
        let mut matched = std::collections::BTreeMap::new();
        if r.state == StateRole::Leader {
            let others = r.prs().iter().filter(|(id, _)| **id != self.me);
            matched.extend(others.map(|(id, p)| (NodeId(*id), p.matched)));
        }
        if matched != self.members.matched {
            self.members.matched = matched;
            self.tell_members(out);
        }
    }
}
