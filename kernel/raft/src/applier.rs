//! A state machine with the care that its contract needs: replies counted, positions watched, panics
//! turned into errors. Used by the store's apply thread and by the simulator.

use crate::{
    Command, Machine, MachineError, Position,
    bug::{Bug, Bugs},
    core::Committed,
    snapshot::Chunks,
};
use std::panic::{AssertUnwindSafe, catch_unwind};

pub(crate) struct Applier<M> {
    machine: M,
    /// How far the log was followed; the machine's own position does not move over entries that are
    /// not commands.
    at: Position,
    bugs: Bugs,
}

/// Runs the machine's code; a panic in it is an error of the machine.
pub(crate) fn guard<T>(what: &str, f: impl FnOnce() -> Result<T, MachineError>) -> Result<T, MachineError> {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().map(|s| (*s).to_string());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
        Err(MachineError(format!("panic in {what}: {text}")))
    })
}

impl<M: Machine> Applier<M> {
    pub(crate) fn new(machine: M, bugs: Bugs) -> Self {
        let at = machine.applied();
        Applier { machine, at, bugs }
    }

    pub(crate) fn machine(&self) -> &M {
        &self.machine
    }

    /// Applies one batch that ends at `position`; the reply of each command that somebody waits for.
    pub(crate) fn apply(
        &mut self,
        commands: Vec<Committed>,
        position: Position,
    ) -> Result<Vec<(u64, M::Reply)>, MachineError> {
        let (commands, proposals): (Vec<Command>, Vec<Option<u64>>) =
            commands.into_iter().map(|c| (c.command, c.proposal)).unzip();
        let mut last = self.at;
        for at in commands.iter().map(|c| c.position) {
            if at.index <= last.index || at.term < last.term {
                return Err(MachineError(format!("command at {at:?} after {last:?}")));
            }
            last = at;
        }
        let mut out = Vec::new();
        if !commands.is_empty() {
            let replies = guard("apply", || self.machine.apply(&commands))?;
            if replies.len() != commands.len() {
                return Err(MachineError(format!(
                    "{} replies to {} commands",
                    replies.len(),
                    commands.len()
                )));
            }
            if self.machine.applied() != last {
                let now = self.machine.applied();
                return Err(MachineError(format!("applied up to {last:?}, but the state says {now:?}")));
            }
            out = proposals.into_iter().zip(replies).filter_map(|(p, r)| Some((p?, r))).collect();
        }
        self.at = position;
        Ok(out)
    }

    /// How far the log was followed.
    pub(crate) fn at(&self) -> Position {
        self.at
    }

    /// Makes the state durable. The log may then be purged up to the first position; the second is
    /// the machine's own.
    pub(crate) fn checkpoint(&mut self) -> Result<(Position, Position), MachineError> {
        let machine = guard("checkpoint", || self.machine.checkpoint())?;
        // When nothing applied is missing, the entries since are no commands.
        let position = if machine == self.machine.applied() { self.at.max(machine) } else { machine };
        Ok((position, machine))
    }

    /// Begins a snapshot; applying goes on while its chunks are taken.
    pub(crate) fn snapshot(&self) -> Result<(Position, Chunks), MachineError> {
        let (at, chunks) = guard("snapshot", || self.machine.snapshot())?;
        // Whoever installs it need not be told of entries without a command since.
        Ok((if at == self.machine.applied() { self.at.max(at) } else { at }, chunks))
    }

    pub(crate) fn restore(&mut self, at: Position, mut chunks: Chunks) -> Result<(), MachineError> {
        let claimed = if self.bugs.on(Bug::RestoreWithoutPosition) { self.machine.applied() } else { at };
        guard("restore", || self.machine.restore(claimed, &mut chunks))?;
        if self.machine.applied() != at && !self.bugs.on(Bug::RestoreWithoutPosition) {
            let now = self.machine.applied();
            return Err(MachineError(format!("restored {at:?}, but the state says {now:?}")));
        }
        self.at = at;
        Ok(())
    }
}
