//! Commands proposed on a node that does not lead: they travel to the leader as a message and come back
//! as committed entries, which say where they are from. So the reply is computed here, by this node's own
//! machine, and whoever proposed sees its effect at once.
//!
//! A message that got lost on the way, or a leader that did, leaves the outcome unknown: it is told after
//! [`super::CoreConfig::wait_ticks`], never earlier, and nothing is sent twice. What the network delivers
//! twice or out of order the leader recognises by the number, which only rises.

use super::{Output, group::Group};
use crate::{
    ProposeError,
    bug::{Bug, Bugs},
    codec,
};
use bytes::Bytes;
use raft::{
    StateRole,
    eraftpb::{Message, MessageType},
};

/// Where a command is from. It is the context of its entry; a leader's own empty entries have none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Origin {
    pub(super) node: u64,
    /// Run of that node.
    pub(super) incarnation: u64,
    /// Rises in the order of sending. (Callers' numbers do not: they are drawn by many threads.)
    pub(super) number: u64,
}

impl Origin {
    pub(super) fn encode(self) -> Bytes {
        let mut out = Vec::with_capacity(24);
        for v in [self.node, self.incarnation, self.number] {
            out.extend_from_slice(&v.to_le_bytes());
        }
        out.into()
    }

    /// None for what no node of this version wrote.
    pub(super) fn decode(context: &[u8]) -> Option<Origin> {
        let bytes: &[u8; 24] = context.try_into().ok()?;
        let at = |i: usize| u64::from_le_bytes(bytes[i..i + 8].try_into().expect("eight bytes"));
        Some(Origin { node: at(0), incarnation: at(8), number: at(16) })
    }
}

impl Group {
    /// Sends commands to the leader (`proposals`), the last of which is the `last`th ever sent.
    /// False when no leader is known.
    pub(super) fn forward(
        &mut self,
        mut m: Message,
        proposals: &[u64],
        last: u64,
        tick: u64,
        out: &mut dyn FnMut(Output),
    ) -> bool {
        let Some(leader) = self.leader().filter(|l| l.0 != self.me) else { return false };
        m.to = leader.0;
        let mut bytes = Vec::new();
        if let Err(e) = codec::encode_message(&mut bytes, &m) {
            tracing::error!(group = self.id.0, error = %e, "cannot encode a proposal");
            return false;
        }
        let first = last + 1 - proposals.len() as u64;
        self.forwarded.extend((first..).zip(proposals.iter().map(|p| (*p, tick))));
        out(Output::Send { to: leader, group: self.id, message: bytes.into() });
        true
    }

    /// Commands of another node, for this one to propose if it leads. Otherwise they are lost: their
    /// node would not hear in time who leads now.
    pub(super) fn on_forwarded(&mut self, mut message: Message, bugs: Bugs) {
        if self.raft.raft.state != StateRole::Leader {
            return;
        }
        let mut ours = Message { from: self.me, ..Message::default() };
        ours.set_msg_type(MessageType::MsgPropose);
        for e in message.take_entries() {
            let Some(origin) = Origin::decode(&e.context).filter(|o| o.node == message.from) else { return };
            let before = self.heard.insert(origin.node, origin);
            let again = |b: Origin| b.incarnation == origin.incarnation && b.number >= origin.number;
            if let Some(before) = before.filter(|b| again(*b)) {
                self.heard.insert(origin.node, before);
                if !bugs.on(Bug::ForwardedTwice) {
                    continue;
                }
            }
            ours.mut_entries().push(e);
        }
        if !ours.entries.is_empty()
            && let Err(e) = self.raft.step(ours)
        {
            // Too much is waiting: who sent it tells its caller when the time is over.
            tracing::debug!(group = self.id.0, error = %e, "forwarded proposals dropped");
        }
    }

    /// The number of a command of this node that was forwarded and is now committed.
    pub(super) fn came_back(&mut self, context: &[u8]) -> Option<u64> {
        let o = Origin::decode(context)?;
        let ours = o.node == self.me && o.incarnation == self.incarnation;
        if ours { self.forwarded.remove(&o.number).map(|(proposal, _)| proposal) } else { None }
    }

    pub(super) fn expire_forwarded(&mut self, expired: &dyn Fn(u64) -> bool, out: &mut dyn FnMut(Output)) {
        let group = self.id;
        self.forwarded.retain(|_, (proposal, since)| {
            let late = expired(*since);
            if late {
                let error = ProposeError::Unknown("the leader did not confirm it in time".into());
                out(Output::Failed { group, proposal: *proposal, error });
            }
            !late
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_round_trip() {
        let o = Origin { node: 7, incarnation: u64::MAX, number: 1 };
        assert_eq!(Origin::decode(&o.encode()), Some(o));
        assert_eq!(Origin::decode(b"c"), None);
    }
}
