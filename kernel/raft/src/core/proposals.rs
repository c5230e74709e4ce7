//! Commands proposed on this node, on their way into the log. They are entries that say where they are from,
//! so that the reply is computed here, by this node's own machine, and whoever proposed sees its effect at
//! once. A node that does not lead sends them to who does.
//!
//! None is put into the log twice, and none that can still get there is given up for refused:
//! - What a follower sends is meant for one term, and a leader takes it in that term only. It is sent again,
//!   in that term, until it comes back; the leader knows by the number what it has taken.
//! - Once an entry of a later term is committed, whatever was meant for an earlier one and has not come back
//!   never will (logs agree up to there, and terms only rise within them: Ongaro, 3.6). Only then it is
//!   proposed anew, to whoever leads now.
//! - Without a leader it waits for one, but not long: [`PATIENCE`].

use super::{CoreConfig, Output, group::Group};
use crate::{
    NodeId, ProposeError,
    bug::{Bug, Bugs},
    codec,
};
use bytes::Bytes;
use raft::{
    StateRole,
    eraftpb::{Entry, Message, MessageType},
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Election timeouts without a leader after which nobody is kept waiting.
const PATIENCE: u64 = 2;

/// Most commands of a node that a leader remembers out of order; more are lost, and sent again.
const MAX_AHEAD: usize = 1 << 16;

/// Most runs of nodes whose commands a leader remembers in its term.
const MAX_HEARD: usize = 1 << 10;

/// Where a command is from. It is the context of its entry; a leader's own empty entries have none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Origin {
    node: u64,
    /// Run of that node.
    incarnation: u64,
    /// Rises in the order of proposing. (Callers' numbers do not: they are drawn by many threads.)
    number: u64,
}

impl Origin {
    fn encode(self) -> Bytes {
        let mut out = Vec::with_capacity(24);
        for v in [self.node, self.incarnation, self.number] {
            out.extend_from_slice(&v.to_le_bytes());
        }
        out.into()
    }

    /// None for what no node of this version wrote.
    fn decode(context: &[u8]) -> Option<Origin> {
        let bytes: &[u8; 24] = context.try_into().ok()?;
        let at = |i: usize| u64::from_le_bytes(bytes[i..i + 8].try_into().expect("eight bytes"));
        Some(Origin { node: at(0), incarnation: at(8), number: at(16) })
    }
}

/// For which term a command was sent, when, and how long to wait before it is sent again. Ticks.
struct Sent {
    term: u64,
    at: u64,
    pause: u64,
}

struct Proposal {
    /// The caller's number.
    caller: u64,
    data: Bytes,
    /// Tick of the call.
    since: u64,
    /// None while it surely is in nobody's log.
    sent: Option<Sent>,
}

/// What a leader took of one run of another node, in its term.
#[derive(Default)]
struct Heard {
    /// Everything below was taken, or is not wanted any more.
    below: u64,
    /// Taken beyond that.
    ahead: BTreeSet<u64>,
}

impl Heard {
    /// False when it was taken before, or too much is out of order.
    fn take(&mut self, number: u64) -> bool {
        if number < self.below || self.ahead.len() >= MAX_AHEAD || !self.ahead.insert(number) {
            return false;
        }
        self.advance(self.below);
        true
    }

    /// The sender waits for nothing below `floor`.
    fn advance(&mut self, floor: u64) {
        if floor > self.below {
            self.ahead = self.ahead.split_off(&floor);
            self.below = floor;
        }
        while self.ahead.remove(&self.below) {
            self.below += 1;
        }
    }
}

/// All commands of this node that are under way, and those of others that it took as leader.
#[derive(Default)]
pub(super) struct Proposals {
    /// Distinguishes this run of the node.
    incarnation: u64,
    last: u64,
    by_number: BTreeMap<u64, Proposal>,
    /// To be sent, or sent again.
    queue: VecDeque<u64>,
    /// Term of the newest entry that was handed over.
    settled: u64,
    /// Since when no leader is known.
    leaderless: Option<u64>,
    /// By node and run, in the term beside it.
    heard: BTreeMap<(u64, u64), Heard>,
    heard_term: u64,
}

impl Proposals {
    pub(super) fn new(incarnation: u64) -> Proposals {
        Proposals { incarnation, ..Proposals::default() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_number.is_empty()
    }

    /// All callers that wait, who wait no more.
    pub(super) fn drain(&mut self) -> Vec<u64> {
        self.queue.clear();
        std::mem::take(&mut self.by_number).into_values().map(|p| p.caller).collect()
    }

    /// Takes those for which `which` holds out, and answers them.
    fn fail(&mut self, which: impl Fn(&Proposal) -> bool, mut answer: impl FnMut(Proposal)) {
        let numbers: Vec<u64> = self.by_number.iter().filter(|(_, p)| which(p)).map(|(n, _)| *n).collect();
        numbers.into_iter().filter_map(|n| self.by_number.remove(&n)).for_each(&mut answer);
    }

    /// What was sent for a term before `term` goes back to the queue: it is lost.
    fn reclaim(&mut self, term: u64) {
        for (number, p) in &mut self.by_number {
            if p.sent.as_ref().is_some_and(|s| s.term < term) {
                p.sent = None;
                self.queue.push_back(*number);
            }
        }
    }
}

impl Group {
    /// A command of this node; it goes on at the end of the turn.
    pub(super) fn queue(&mut self, caller: u64, data: Bytes, tick: u64) {
        let p = &mut self.proposals;
        p.last += 1;
        p.by_number.insert(p.last, Proposal { caller, data, since: tick, sent: None });
        p.queue.push_back(p.last);
    }

    /// Proposes what is queued, as far as there is somebody to propose it to.
    pub(super) fn flush(&mut self, tick: u64, config: &CoreConfig, out: &mut dyn FnMut(Output)) {
        if self.proposals.queue.is_empty() {
            return;
        }
        if self.is_forsaken(tick, config) {
            self.fail(|p| p.sent.is_none(), out);
            self.proposals.queue.clear();
            return;
        }
        let leads = self.raft.raft.state == StateRole::Leader;
        // A leader takes nothing while it hands over; that ends soon.
        let leader = self.leader().filter(|_| self.raft.raft.lead_transferee.is_none());
        let Some(to) = leader.filter(|l| leads == (l.0 == self.me)) else { return };
        while let Some((m, numbers)) = self.batch(leads, tick, config) {
            if !leads {
                self.forward(to, m, out);
                continue;
            }
            let error = match self.raft.step(m) {
                Ok(()) => continue,
                Err(raft::Error::ProposalDropped) => ProposeError::Overloaded,
                Err(e) => ProposeError::Unknown(e.to_string()),
            };
            for p in numbers.into_iter().filter_map(|n| self.proposals.by_number.remove(&n)) {
                out(Output::Failed { group: self.id, proposal: p.caller, error: error.clone() });
            }
        }
    }

    /// The next few of the queue in one message, marked as sent.
    fn batch(&mut self, leads: bool, tick: u64, config: &CoreConfig) -> Option<(Message, Vec<u64>)> {
        let term = self.raft.raft.term;
        let mut m = Message { from: self.me, ..Message::default() };
        m.set_msg_type(MessageType::MsgPropose);
        let (mut numbers, mut bytes) = (Vec::new(), 0);
        let p = &mut self.proposals;
        while let Some(number) = p.queue.front().copied() {
            let Some(one) = p.by_number.get_mut(&number) else {
                p.queue.pop_front();
                continue;
            };
            // Again only where it was taken for the first one: at the leader of the same term.
            let pause = match &one.sent {
                None => config.election_ticks as u64,
                Some(s) if s.term == term && !leads => 2 * s.pause,
                Some(_) => {
                    p.queue.pop_front();
                    continue;
                }
            };
            let size = one.data.len() as u64;
            if bytes > 0 && bytes + size > config.max_message_bytes {
                break;
            }
            bytes += size + 1;
            one.sent = Some(Sent { term, at: tick, pause });
            let origin = Origin { node: self.me, incarnation: p.incarnation, number };
            let data = one.data.clone();
            m.mut_entries().push(Entry { data, context: origin.encode(), ..Entry::default() });
            numbers.push(number);
            p.queue.pop_front();
        }
        (!numbers.is_empty()).then_some((m, numbers))
    }

    fn forward(&mut self, to: NodeId, mut m: Message, out: &mut dyn FnMut(Output)) {
        m.to = to.0;
        m.term = self.raft.raft.term;
        m.index = self.proposals.by_number.first_key_value().map_or(0, |(n, _)| *n);
        let mut bytes = Vec::new();
        match codec::encode_message(&mut bytes, &m) {
            Ok(()) => out(Output::Send { to, group: self.id, message: bytes.into() }),
            Err(e) => tracing::error!(group = self.id.0, error = %e, "cannot encode a proposal"),
        }
    }

    /// Commands of another node, for this one to propose if it leads in the term for which they are meant.
    /// Otherwise they are lost, and their node finds out.
    pub(super) fn on_forwarded(&mut self, mut message: Message, bugs: Bugs) {
        let r = &self.raft.raft;
        if r.state != StateRole::Leader || r.term != message.term || r.lead_transferee.is_some() {
            return;
        }
        let p = &mut self.proposals;
        if p.heard_term != r.term {
            (p.heard_term, p.heard) = (r.term, BTreeMap::new());
        }
        let mut ours = Message { from: self.me, ..Message::default() };
        ours.set_msg_type(MessageType::MsgPropose);
        for e in message.take_entries() {
            let Some(o) = Origin::decode(&e.context).filter(|o| o.node == message.from) else { return };
            if p.heard.len() >= MAX_HEARD {
                return;
            }
            let heard = p.heard.entry((o.node, o.incarnation)).or_default();
            heard.advance(message.index);
            if heard.take(o.number) || bugs.on(Bug::ForwardedTwice) {
                ours.mut_entries().push(e);
            }
        }
        if !ours.entries.is_empty()
            && let Err(e) = self.raft.step(ours)
        {
            // Too much is waiting: who sent it tells its caller when the time is over.
            tracing::debug!(group = self.id.0, error = %e, "forwarded proposals dropped");
        }
    }

    /// An entry is handed over: the number of its command, if that is from here. An entry of a later term
    /// decides about all that was sent before.
    pub(super) fn came_back(&mut self, e: &Entry) -> Option<u64> {
        let p = &mut self.proposals;
        if e.term > p.settled {
            p.settled = e.term;
            p.reclaim(e.term);
        }
        let o = Origin::decode(&e.context)?;
        let ours = o.node == self.me && o.incarnation == p.incarnation;
        if ours { p.by_number.remove(&o.number).map(|p| p.caller) } else { None }
    }

    /// Once a tick: sends again what may have got lost, and ends what waits too long.
    pub(super) fn tend_proposals(
        &mut self,
        tick: u64,
        config: &CoreConfig,
        bugs: Bugs,
        out: &mut dyn FnMut(Output),
    ) {
        let leader = self.leader();
        let p = &mut self.proposals;
        p.leaderless = if leader.is_some() { None } else { p.leaderless.or(Some(tick)) };
        let term = self.raft.raft.term;
        if leader.is_some() && bugs.on(Bug::ProposedAnewTooSoon) {
            p.reclaim(term);
        }
        if leader.is_some_and(|l| l.0 != self.me) {
            let late = |s: &Sent| s.term == term && tick.saturating_sub(s.at) >= s.pause;
            let late = p.by_number.iter().filter(|(_, p)| p.sent.as_ref().is_some_and(late));
            p.queue.extend(late.map(|(n, _)| *n));
        }
        let expired = |p: &Proposal| tick.saturating_sub(p.since) > config.wait_ticks;
        if self.is_forsaken(tick, config) {
            self.fail(|_| true, out);
        } else if self.proposals.by_number.first_key_value().is_some_and(|(_, p)| expired(p)) {
            self.fail(expired, out);
        }
    }

    /// True when there has been no leader for so long that waiting for one is no service.
    pub(super) fn is_forsaken(&self, tick: u64, config: &CoreConfig) -> bool {
        let long = |since| tick.saturating_sub(since) >= PATIENCE * config.election_ticks as u64;
        self.removed || self.leader().is_none() && self.proposals.leaderless.is_some_and(long)
    }

    /// A snapshot took the place of entries: some of what was sent may have been among them.
    pub(super) fn proposals_skipped(&mut self, term: u64, out: &mut dyn FnMut(Output)) {
        self.proposals.settled = self.proposals.settled.max(term);
        self.fail(|p| p.sent.is_some(), out);
    }

    fn fail(&mut self, which: impl Fn(&Proposal) -> bool, out: &mut dyn FnMut(Output)) {
        let (group, leader) = (self.id, self.leader());
        self.proposals.fail(which, |p| {
            let error = match p.sent {
                None => ProposeError::NotLeader { leader },
                Some(_) => ProposeError::Unknown("no quorum confirmed it in time".into()),
            };
            out(Output::Failed { group, proposal: p.caller, error });
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::{
        GroupId, Position,
        core::{Core, Input},
        log::{Log, LogConfig},
    };
    use photon_rt::{disk::SimDisk, time::Duration};
    use std::sync::Arc;

    /// Two nodes' commands with these numbers, sent for a term.
    fn forwarded(term: u64, floor: u64, numbers: &[u64]) -> Input {
        let mut m = Message { from: 2, to: 1, term, index: floor, ..Message::default() };
        m.set_msg_type(MessageType::MsgPropose);
        for number in numbers {
            let context = Origin { node: 2, incarnation: 9, number: *number }.encode();
            m.mut_entries().push(Entry { context, data: Bytes::from_static(b"c"), ..Entry::default() });
        }
        Input::Message { group: GroupId(1), message: m }
    }

    #[test]
    fn a_leader_takes_what_is_meant_for_its_term_and_only_once() {
        let log = Log::open(Arc::new(SimDisk::new(1)), LogConfig::default()).expect("open");
        let mut core = Core::new(CoreConfig::new(NodeId(1)), log);
        core.attach(GroupId(1), &[NodeId(1)], Position::default(), &mut |_| {}).expect("attach");
        let now = core.status(GroupId(1)).expect("there");
        let mut after = |input| {
            core.turn(Duration::ZERO, [input], &mut |_| {}).expect("turn");
            core.status(GroupId(1)).expect("there").last_index - now.last_index
        };
        assert_eq!(after(forwarded(now.term - 1, 1, &[1])), 0, "a leader of before may have it in its log");
        assert_eq!(after(forwarded(now.term + 1, 1, &[1])), 0, "or one to come");
        assert_eq!(after(forwarded(now.term, 1, &[2, 3])), 2);
        assert_eq!(after(forwarded(now.term, 1, &[1, 2, 3])), 3, "the one that was late");
        assert_eq!(after(forwarded(now.term, 5, &[4, 5])), 4, "nobody waits for the fourth any more");
        assert_eq!(after(forwarded(now.term, 1, &[5, 1, 6])), 5);
    }

    #[test]
    fn origins_round_trip() {
        let o = Origin { node: 7, incarnation: u64::MAX, number: 1 };
        assert_eq!(Origin::decode(&o.encode()), Some(o));
        assert_eq!(Origin::decode(b"c"), None);
    }

    #[test]
    fn a_leader_takes_each_number_once_in_any_order() {
        let mut h = Heard::default();
        h.advance(5);
        assert!(!h.take(4), "not wanted any more");
        assert!(h.take(7) && h.take(5) && !h.take(7) && !h.take(5));
        assert!(h.take(6) && !h.take(6));
        assert_eq!((h.below, h.ahead.len()), (8, 0), "nothing is kept of what is in order");
        h.take(20);
        h.advance(15);
        assert!(!h.take(14) && !h.take(20) && h.take(15));
        h.advance(3);
        assert!(!h.take(10), "the floor does not fall");
    }
}
