//! Reading a log that nobody will go on with: for a cluster whose quorum is lost, and of which one disk is
//! left. What stands in the log is taken whether it was committed or not, as nobody can tell any more.

use crate::{Command, GroupId, Machine, Position, StoreError, log::Log};
use raft::eraftpb::EntryType;

/// Bytes of commands applied at a time.
const STEP: u64 = 4 << 20;

/// Applies every command of `group` behind the state of `machine`. Answers how far the log goes. Fails when
/// entries between the two are missing; what was applied until then stays.
pub fn salvage(log: &Log, group: GroupId, machine: &mut impl Machine) -> Result<Position, StoreError> {
    let (floor, start, last) = (log.floor(group)?, log.start(group)?, log.last_index(group)?);
    let from = machine.applied();
    let lacks = |what: String| {
        StoreError::Damaged(format!("{group}: the state machine holds {}, {what}", from.index))
    };
    if from.index < floor {
        return Err(lacks(format!("but the log begins after {}", start.index)));
    }
    if from.index >= start.index && log.term(group, from.index)? != Some(from.term) {
        return Err(lacks(format!("of term {}, which the log does not hold", from.term)));
    }
    let mut next = from.index.max(start.index) + 1;
    while next <= last {
        let entries = log.entries(group, next, last + 1, STEP)?;
        let Some(end) = entries.last().map(|e| e.index) else { break };
        let commands: Vec<Command> = entries
            .into_iter()
            .filter(|e| e.get_entry_type() == EntryType::EntryNormal && !e.context.is_empty())
            .map(|e| Command { position: Position { index: e.index, term: e.term }, data: e.data })
            .collect();
        machine.apply(&commands)?;
        next = end + 1;
    }
    Ok(Position { index: last, term: log.term(group, last)?.unwrap_or(start.term) })
}
