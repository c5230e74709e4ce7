//! What a group replicates.

use crate::snapshot::Chunks;
use bytes::Bytes;

/// A place in a group's log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Index of the entry.
    pub index: u64,
    /// Term it was proposed in.
    pub term: u64,
}

/// A committed command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// Where it stands in the log.
    pub position: Position,
    /// What was proposed, opaque to the log.
    pub data: Bytes,
}

/// A failure that must stop the group: the state on disk can no longer be trusted to follow the log.
/// A command that is merely refused is not an error but a reply.
#[derive(Clone, Debug, thiserror::Error)]
#[error("state machine: {0}")]
pub struct MachineError(pub String);

/// A deterministic state machine: its state is a function of the commands applied, in order.
///
/// Durability contract: `apply` need not sync. What a crash may take away is only a suffix of what was
/// applied: after a restart [`Machine::applied`] tells how far the surviving state goes, data and
/// position are consistent with each other, and the log replays the rest. The log may only be purged
/// up to the position that [`Machine::checkpoint`] returned.
pub trait Machine: Send + 'static {
    /// Answer to whoever proposed the command on this node.
    type Reply: Send + 'static;

    /// Applies commands in log order, one reply for each. Called with consecutive batches; positions
    /// rise, and may have gaps where the log holds entries that are not commands.
    fn apply(&mut self, commands: &[Command]) -> Result<Vec<Self::Reply>, MachineError>;

    /// Last position that the state reflects.
    fn applied(&self) -> Position;

    /// Makes the state durable and says how far it goes.
    fn checkpoint(&mut self) -> Result<Position, MachineError>;

    /// The whole state at `applied()`, as [`Chunks`] of at most 1 MiB, consistent although `apply` goes
    /// on meanwhile. It returns at once; the chunks are taken on another thread, and slowly.
    fn snapshot(&self) -> Result<(Position, Chunks), MachineError>;

    /// Replaces the whole state by a snapshot taken at `at`; durable on return. A crash within leaves
    /// a state that `applied()` reports as `Position::default()`, or the old one, or the new one.
    fn restore(
        &mut self,
        at: Position,
        chunks: &mut dyn Iterator<Item = Result<Bytes, MachineError>>,
    ) -> Result<(), MachineError>;
}
