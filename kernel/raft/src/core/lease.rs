//! The leader's lease: for how long nobody else can lead, so that it may answer reads without asking.
//!
//! Every heartbeat carries the leader's clock at its sending, and the answer brings it back. Whoever answered
//! votes for nobody else until [`CoreConfig::election_ticks`] of its own ticks have passed since (Raft thesis
//! 6.4.1 and 4.2.3), which are at least `election_ticks - 1` whole ones. So from the sending that a quorum
//! answered (its members' newest, this node's own being now), the lease holds for [`CoreConfig::lease`], which
//! is shorter by a margin for clocks of different rates.
//!
//! The promise is kept here, not by the `raft` crate: the crate forgets it when it restarts and when it hears
//! of a higher term. A node that has restarted therefore votes for nobody as if it had just heard of a leader.
//!
//! There is no lease: before an entry of this term is committed; while members change; from the moment in
//! which leadership is being handed over, and after the message that does so has left never again in this
//! term, as it may arrive at any time and makes others forget their promise.

use super::{CoreConfig, Output, group::Group};
use crate::bug::{Bug, Bugs};
use bytes::Bytes;
use photon_rt::time::Duration;
use raft::{
    StateRole,
    eraftpb::{Message, MessageType},
};
use std::collections::BTreeMap;

/// Bytes that the sending's time adds to the context of a heartbeat.
const STAMP: usize = 8;

/// See the module.
#[derive(Default)]
pub(super) struct Lease {
    /// Newest sending that each other node has answered, in `term`.
    answered: BTreeMap<u64, Duration>,
    term: u64,
    /// Term in which another node was told to take over.
    handed_over: u64,
    /// Tick at which a leader was last heard; the start, for a node that may have heard one before.
    pub(super) heard: Option<u64>,
    told: (Duration, u64),
}

/// An election that the leader itself asked for.
fn is_handover(m: &Message) -> bool {
    m.context == raft::CAMPAIGN_TRANSFER
}

impl Group {
    /// Looks at a message before it is stepped. False when it must not be: it asks for a vote that was promised
    /// away.
    pub(super) fn admit(
        &mut self,
        m: &mut Message,
        now: Duration,
        tick: u64,
        config: &CoreConfig,
        bugs: Bugs,
        out: &mut dyn FnMut(Output),
    ) -> bool {
        let term = self.raft.raft.term;
        match m.get_msg_type() {
            MessageType::MsgAppend | MessageType::MsgHeartbeat | MessageType::MsgSnapshot
                if m.term >= term =>
            {
                self.lease.heard = Some(tick);
                self.removed = false;
            }
            MessageType::MsgRequestVote | MessageType::MsgRequestPreVote if !self.may_campaign(m, out) => {
                return false;
            }
            MessageType::MsgRequestVote | MessageType::MsgRequestPreVote if !is_handover(m) => {
                let promised = |heard: u64| tick.saturating_sub(heard) < config.election_ticks as u64;
                return !self.lease.heard.is_some_and(promised);
            }
            MessageType::MsgHeartbeatResponse => {
                let at = m.context.len().saturating_sub(STAMP);
                let stamp: Option<[u8; STAMP]> = m.context.split_off(at)[..].try_into().ok();
                let sent = stamp.map(|s| Duration::from_nanos(u64::from_le_bytes(s)));
                if let Some(sent) = sent.filter(|sent| m.term == term && *sent <= now) {
                    if self.lease.term != term {
                        (self.lease.term, self.lease.answered) = (term, BTreeMap::new());
                    }
                    let sent = if bugs.on(Bug::LeaseFromAnswer) { now } else { sent };
                    let newest = self.lease.answered.entry(m.from).or_default();
                    *newest = sent.max(*newest);
                }
            }
            _ => {}
        }
        true
    }

    /// Marks a message that leaves at `now`, or later.
    pub(super) fn stamp(&mut self, m: &mut Message, now: Duration, bugs: Bugs, out: &mut dyn FnMut(Output)) {
        match m.get_msg_type() {
            MessageType::MsgHeartbeat => {
                let stamp = (now.as_nanos() as u64).to_le_bytes();
                m.context = Bytes::from([&m.context[..], &stamp].concat());
            }
            MessageType::MsgTimeoutNow if !bugs.on(Bug::LeaseKeptInTransfer) => {
                self.lease.handed_over = self.lease.handed_over.max(m.term);
                self.tell(Duration::ZERO, out);
            }
            _ => {}
        }
    }

    /// Members change: who answered before may count for nothing now.
    pub(super) fn forget_answers(&mut self) {
        self.lease.answered.clear();
    }

    /// Until when nobody else can lead; zero without a lease.
    fn until(&self, config: &CoreConfig, bugs: Bugs) -> Duration {
        let r = &self.raft.raft;
        let (voters, me) = (&self.members.voters, crate::NodeId(self.me));
        let handing = r.lead_transferee.is_some() || self.lease.handed_over == r.term;
        if config.lease.is_zero()
            || r.state != StateRole::Leader
            || !r.commit_to_current_term()
            || handing && !bugs.on(Bug::LeaseKeptInTransfer)
            || self.members.is_joint()
            || !voters.contains(&me)
        {
            return Duration::ZERO;
        }
        // Without this node's vote, more than the half of the others is needed.
        let others = voters.len() / 2;
        if others == 0 {
            return Duration::MAX;
        }
        let answered =
            |n: &crate::NodeId| self.lease.answered.get(&n.0).filter(|_| self.lease.term == r.term);
        let mut sent: Vec<Duration> = voters.iter().filter_map(answered).copied().collect();
        sent.sort_unstable();
        let quorum = sent.len().checked_sub(others).and_then(|i| sent.get(i));
        quorum.map_or(Duration::ZERO, |sent| *sent + config.lease)
    }

    /// Tells how far the lease goes and what is committed, before anything leaves that depends on it.
    pub(super) fn tell_lease(&mut self, config: &CoreConfig, bugs: Bugs, out: &mut dyn FnMut(Output)) {
        self.tell(self.until(config, bugs), out);
    }

    fn tell(&mut self, until: Duration, out: &mut dyn FnMut(Output)) {
        let commit = if until.is_zero() { 0 } else { self.raft.raft.raft_log.committed };
        if self.lease.told != (until, commit) {
            self.lease.told = (until, commit);
            out(Output::Lease { group: self.id, until, commit });
        }
    }
}
