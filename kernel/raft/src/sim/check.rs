//! What Raft promises, checked after every turn, and what clients may rely on, checked at the end.

use crate::{
    Command, NodeId, Position,
    core::{Core, Role},
};
use bytes::Bytes;
use raft::eraftpb::{Message, MessageType};
use std::{
    collections::{BTreeMap, BinaryHeap, HashMap, btree_map::Entry as Slot},
    hash::{DefaultHasher, Hash, Hasher},
};

use super::node::GROUP;

/// How a client's operation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Nobody said anything (yet).
    Open,
    /// Done; the log index at which it takes effect, if told.
    Done(Option<u64>),
    /// Surely not done.
    Refused,
    /// Perhaps.
    Unknown,
}

/// One operation in the history.
#[derive(Clone, Debug)]
pub(super) struct Operation {
    /// The command; `None` for a read.
    pub(super) command: Option<Bytes>,
    pub(super) invoked: u64,
    pub(super) returned: u64,
    pub(super) outcome: Outcome,
}

#[derive(Default)]
pub(super) struct Checker {
    leaders: BTreeMap<u64, NodeId>,
    /// Votes given, by voter and term.
    votes: HashMap<(NodeId, u64), u64>,
    /// Every entry ever seen: by index and term its content and its predecessor's term.
    entries: BTreeMap<Position, (u64, Option<u64>)>,
    /// What each node's log held when last seen.
    logs: HashMap<NodeId, BTreeMap<u64, u64>>,
    /// What was applied at each index, first by anybody.
    pub(super) chosen: BTreeMap<u64, (u64, Bytes)>,
    digests: HashMap<u64, u64>,
    pub(super) operations: Vec<Operation>,
}

fn hash(value: impl Hash) -> u64 {
    let mut h = DefaultHasher::new();
    value.hash(&mut h);
    h.finish()
}

impl Checker {
    /// Terms in which somebody led.
    pub(super) fn terms_led(&self) -> u64 {
        self.leaders.len() as u64
    }

    /// A node restarted: its log may be shorter than it was, by what was never acknowledged.
    pub(super) fn restarted(&mut self, node: NodeId) {
        self.logs.remove(&node);
    }

    /// After a turn of `node`.
    pub(super) fn turn(&mut self, node: NodeId, core: &Core) -> Result<(), String> {
        let status = core.status(GROUP).ok_or_else(|| format!("{node} lost its group"))?;
        if status.applied > status.commit || status.commit > status.last_index {
            return Err(format!("{node}: {status:?} is out of order"));
        }
        self.log_matching(node, core)?;
        if status.role == Role::Leader {
            let first = !self.leaders.contains_key(&status.term);
            let leader = *self.leaders.entry(status.term).or_insert(node);
            if leader != node {
                return Err(format!("election safety: {leader} and {node} both lead term {}", status.term));
            }
            // Later leaders may have committed what this one cannot know.
            if first && self.leaders.keys().next_back() == Some(&status.term) {
                self.leader_completeness(node, core, status.start.index, status.term)?;
            }
        }
        Ok(())
    }

    fn log_matching(&mut self, node: NodeId, core: &Core) -> Result<(), String> {
        let seen = self.logs.entry(node).or_default();
        core.with_log(|log| {
            let fail = |e: crate::StoreError| format!("{node}: {e}");
            let (start, last) = (log.start(GROUP).map_err(fail)?, log.last_index(GROUP).map_err(fail)?);
            seen.split_off(&(last + 1));
            let mut index = last;
            while index > start.index {
                let term =
                    log.term(GROUP, index).map_err(fail)?.ok_or_else(|| format!("{node} misses {index}"))?;
                if seen.insert(index, term) == Some(term) {
                    break;
                }
                let entry = log.entries(GROUP, index, index + 1, u64::MAX).map_err(fail)?;
                let entry = entry.first().ok_or_else(|| format!("{node} misses {index}"))?;
                if (entry.index, entry.term) != (index, term) {
                    return Err(format!("{node}: entry {}/{} at {index}/{term}", entry.index, entry.term));
                }
                let content = hash((&entry.data[..], &entry.context[..]));
                // The predecessor of the first entry is only known by its term.
                let before = log.term(GROUP, index - 1).map_err(fail)?;
                match self.entries.entry(Position { index, term }) {
                    Slot::Vacant(v) => drop(v.insert((content, before))),
                    Slot::Occupied(o) if *o.get() != (content, before) => {
                        return Err(format!(
                            "log matching: {node} holds another entry {index} of term {term}"
                        ));
                    }
                    Slot::Occupied(_) => {}
                }
                index -= 1;
            }
            Ok(())
        })
    }

    fn leader_completeness(&self, node: NodeId, core: &Core, start: u64, term: u64) -> Result<(), String> {
        core.with_log(|log| {
            for (index, (chosen, _)) in self.chosen.range(start + 1..) {
                let held = log.term(GROUP, *index).map_err(|e| e.to_string())?;
                if held != Some(*chosen) {
                    return Err(format!(
                        "leader completeness: {node} leads term {term} with {held:?} at {index}, applied was term {chosen}"
                    ));
                }
            }
            Ok(())
        })
    }

    /// A message leaves `node`.
    pub(super) fn sent(&mut self, node: NodeId, m: &Message) -> Result<(), String> {
        if m.get_msg_type() == MessageType::MsgRequestVoteResponse && !m.reject {
            let to = *self.votes.entry((node, m.term)).or_insert(m.to);
            if to != m.to {
                return Err(format!("{node} voted for {to} and for {} in term {}", m.to, m.term));
            }
        }
        Ok(())
    }

    /// `node` is about to apply these.
    pub(super) fn applying(&mut self, node: NodeId, commands: &[Command]) -> Result<(), String> {
        for c in commands {
            let Position { index, term } = c.position;
            let (t, data) = self.chosen.entry(index).or_insert_with(|| (term, c.data.clone()));
            if (*t, &data[..]) != (term, &c.data[..]) {
                return Err(format!(
                    "state machine safety: {node} applies {index} of term {term}, applied was one of term {t}"
                ));
            }
        }
        Ok(())
    }

    /// `node` has applied up to `index` and is in a state of this digest.
    pub(super) fn applied(&mut self, node: NodeId, index: u64, digest: u64) -> Result<(), String> {
        let first = *self.digests.entry(index).or_insert(digest);
        if first != digest {
            return Err(format!(
                "state machine safety: the state of {node} at {index} differs from another node's"
            ));
        }
        Ok(())
    }

    /// At the end: everything acknowledged happened once, nothing refused happened, and the order of
    /// effects respects real time.
    pub(super) fn history(&self) -> Result<(), String> {
        let mut places: HashMap<&[u8], Vec<u64>> = HashMap::new();
        for (index, (_, data)) in &self.chosen {
            places.entry(data).or_default().push(*index);
        }
        for (i, op) in self.operations.iter().enumerate() {
            let Some(command) = &op.command else { continue };
            let at = places.get(&command[..]).map_or(&[][..], |v| v);
            let wrong = match op.outcome {
                Outcome::Done(Some(index)) => at != [index],
                Outcome::Done(None) => at.len() != 1,
                Outcome::Refused => !at.is_empty(),
                Outcome::Open | Outcome::Unknown => at.len() > 1,
            };
            if wrong {
                return Err(format!("operation {i} ended as {:?} but took effect at {at:?}", op.outcome));
            }
        }
        self.linearizable()
    }

    /// Effects are ordered by log index (a read at the index that its machine had reached), so
    /// linearizability is that this order never contradicts real time.
    fn linearizable(&self) -> Result<(), String> {
        let mut done: Vec<(u64, u64, u64, bool)> = Vec::new();
        for op in &self.operations {
            if let Outcome::Done(Some(point)) = op.outcome {
                done.push((op.invoked, op.returned, point, op.command.is_some()));
            }
        }
        done.sort_unstable();
        let mut ended = BinaryHeap::new();
        let mut floor = 0;
        for (invoked, returned, point, write) in done {
            while let Some(&(std::cmp::Reverse(end), p)) = ended.peek()
                && end < invoked
            {
                floor = floor.max(p);
                ended.pop();
            }
            if point < floor || write && point == floor {
                return Err(format!(
                    "linearizability: an operation begun at step {invoked} takes effect at {point}, after one at {floor} had returned"
                ));
            }
            ended.push((std::cmp::Reverse(returned), point));
        }
        Ok(())
    }
}
