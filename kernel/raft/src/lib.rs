//! Replicated state machines: many Raft groups in one loop over one log.
//!
//! A [`Machine`] is what a group replicates; a [`Group`] is the handle through which the rest of the
//! program proposes commands and waits for reads to be linearizable.

mod machine;

pub use machine::{Command, Machine, MachineError, Position};
