//! The threads behind the log's: one that applies, and one that writes snapshots, so that neither the next
//! sync nor the next command waits for them.

use crate::{
    GroupId, Machine, MachineError, Position,
    applier::Applier,
    core::{Committed, Input, Output},
    group::Shared,
    snapshot::{Chunks, Made, Maker, load},
    store::{Ask, Inner},
};
use photon_rt::time::Duration;
use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
};

/// What the apply thread is told, in order.
pub(crate) enum Job {
    Attach {
        id: GroupId,
        machine: Box<dyn Applies>,
    },
    Detach {
        id: GroupId,
    },
    Do(Output),
    /// Checkpoint every machine and end.
    Finish,
}

/// A state machine of any type, with those who wait for its replies.
pub(crate) trait Applies: Send {
    fn apply(&mut self, commands: Vec<Committed>, position: Position) -> Result<Position, MachineError>;
    fn checkpoint(&mut self) -> Result<(Position, Position), MachineError>;
    fn snapshot(&self) -> Result<(Position, Chunks), MachineError>;
    fn restore(&mut self, at: Position, chunks: Chunks) -> Result<(), MachineError>;
    fn read_ready(&self, read: u64);
}

pub(crate) struct Typed<M: Machine> {
    pub(crate) applier: Applier<M>,
    pub(crate) shared: Arc<Shared<M>>,
}

impl<M: Machine> Applies for Typed<M> {
    fn apply(&mut self, commands: Vec<Committed>, position: Position) -> Result<Position, MachineError> {
        let replies = self.applier.apply(commands, position)?;
        self.shared.applied(self.applier.at().index);
        for (proposal, reply) in replies {
            self.shared.reply(proposal, reply);
        }
        Ok(self.applier.at())
    }

    fn checkpoint(&mut self) -> Result<(Position, Position), MachineError> {
        self.applier.checkpoint()
    }

    fn snapshot(&self) -> Result<(Position, Chunks), MachineError> {
        self.applier.snapshot()
    }

    fn restore(&mut self, at: Position, chunks: Chunks) -> Result<(), MachineError> {
        self.applier.restore(at, chunks)?;
        self.shared.applied(self.applier.at().index);
        Ok(())
    }

    fn read_ready(&self, read: u64) {
        self.shared.read_ready(read);
    }
}

pub(crate) fn apply_loop(inner: &Inner) {
    let mut machines: BTreeMap<GroupId, Box<dyn Applies>> = BTreeMap::new();
    let mut jobs = Vec::new();
    while inner.jobs.take(&mut jobs, None) {
        for job in jobs.drain(..) {
            match job {
                Job::Attach { id, machine } => {
                    machines.insert(id, machine);
                }
                Job::Detach { id } => {
                    machines.remove(&id);
                }
                Job::Do(output) => work(inner, &mut machines, output),
                Job::Finish => {
                    let ids: Vec<GroupId> = machines.keys().copied().collect();
                    for group in ids {
                        work(inner, &mut machines, Output::Checkpoint { group });
                    }
                    return;
                }
            }
        }
    }
}

fn work(inner: &Inner, machines: &mut BTreeMap<GroupId, Box<dyn Applies>>, output: Output) {
    let (group, done) = match output {
        Output::Apply { group, commands, position, bytes } => {
            let Some(m) = machines.get_mut(&group) else { return };
            let done = m.apply(commands, position).map(|position| Input::Applied { group, position, bytes });
            (group, done)
        }
        Output::ReadReady { group, read } => {
            if let Some(m) = machines.get(&group) {
                m.read_ready(read);
            }
            return;
        }
        Output::Restore { group, position } => {
            let Some(m) = machines.get_mut(&group) else { return };
            let done = load(&*inner.disk, group, position).and_then(|chunks| m.restore(position, chunks));
            (group, done.map(|()| Input::Restored { group, position }))
        }
        Output::Checkpoint { group } => {
            let Some(m) = machines.get_mut(&group) else { return };
            (
                group,
                m.checkpoint().map(|(position, machine)| Input::Checkpointed { group, position, machine }),
            )
        }
        Output::TakeSnapshot { group } => {
            let Some(m) = machines.get(&group) else { return };
            let begun = m.snapshot().map(|(position, chunks)| match position.index {
                // There is nothing in it yet.
                0 => Input::Snapshot { group, made: None },
                _ => {
                    let _ = inner.chores.push(Chore::Make { group, position, chunks });
                    Input::SnapshotBegun { group, position }
                }
            });
            (group, begun)
        }
        Output::Send { .. }
        | Output::SendSnapshot { .. }
        | Output::Dispose { .. }
        | Output::Failed { .. }
        | Output::Lease { .. }
        | Output::Members { .. }
        | Output::Status { .. } => return,
    };
    let input = match done {
        Ok(input) => input,
        Err(e) => {
            tracing::error!(group = group.0, error = %e, "the state machine failed; the group stops here");
            machines.remove(&group);
            let why = e.to_string();
            if let Some(member) = inner.member(group) {
                member.stopped(&why);
            }
            Input::Stop { group, why }
        }
    };
    // How far applying came is news for the log thread only when it holds entries back.
    let quiet = matches!(input, Input::Applied { .. }) && !inner.backlogged.load(Ordering::Acquire);
    let _ =
        if quiet { inner.inbox.push_quietly(Ask::Input(input)) } else { inner.inbox.push(Ask::Input(input)) };
}

/// What takes long and can wait.
pub(crate) enum Chore {
    /// Write a snapshot.
    Make { group: GroupId, position: Position, chunks: Chunks },
    /// Let go of one.
    Dispose(Arc<Made>),
    /// Something is on its way in, or the group that it was for is gone: look after it.
    Look,
}

/// Writes snapshots, one after the other, at the pace that the store sets, and removes what nobody needs.
pub(crate) fn snapshot_loop(inner: &Inner) {
    let mut chores = Vec::new();
    let mut limit = None;
    while inner.chores.take(&mut chores, limit) {
        for chore in chores.drain(..) {
            let (group, position, chunks) = match chore {
                Chore::Make { group, position, chunks } => (group, position, chunks),
                Chore::Dispose(made) => {
                    drop(made);
                    continue;
                }
                Chore::Look => continue,
            };
            let made = match make(inner, group, position, chunks) {
                Ok(made) => made.map(Arc::new),
                Err(e) => {
                    tracing::error!(group = group.0, error = %e, "no snapshot could be made; tried again when it is wanted");
                    None
                }
            };
            let _ = inner.inbox.push(Ask::Input(Input::Snapshot { group, made }));
        }
        let now = |group| inner.member(group).map(|m| m.now());
        limit = inner.receiver.sweep(photon_rt::time::now(), now).then_some(SWEEP_EVERY);
    }
}

/// Between two looks at what is on its way in, while anything is.
const SWEEP_EVERY: Duration = Duration::from_secs(60);

/// None when the store ends meanwhile.
fn make(
    inner: &Inner,
    group: GroupId,
    position: Position,
    chunks: Chunks,
) -> Result<Option<Made>, MachineError> {
    let begun = photon_rt::time::now();
    let mut maker = Maker::begin(inner.disk.clone(), group, position, chunks)?;
    while let Some(bytes) = maker.step()? {
        if !inner.making.wait(bytes) {
            return Ok(None);
        }
    }
    let made = maker.finish()?;
    let (bytes, took) = (made.descriptor().size, begun.elapsed().as_millis() as u64);
    tracing::info!(group = group.0, index = position.index, bytes, ms = took, "snapshot made");
    Ok(Some(made))
}
