//! Replicated state machines: many Raft groups in one loop over one log.
//!
//! A [`Machine`] is what a group replicates; a [`Group`] is the handle through which the rest of the
//! program proposes commands and waits for reads to be linearizable; a [`Store`] runs all groups of
//! a node.
//!
//! Rooms, from the inside out: [`codec`] (our bytes for entries and messages), [`log`] (one log, one
//! sync per turn), [`snapshot`] (files that are made, carried and installed piece by piece), [`core`] (the
//! driver around the `raft` crate, pure), [`Store`] and [`Group`] (the threads and the handle), [`peers`]
//! (connections between nodes), [`sim`] (whole clusters from a seed, on the same driver).
//!
//! Invariants: nothing is acknowledged, voted or applied before it is durable; a machine is never
//! ahead of its log; damage to synced data is an error, never a shorter log; after a failed write or
//! sync the store stops. Every queue is bounded: proposals by bytes in flight, messages and reads by
//! number, work for machines by bytes.

mod applier;
mod apply;
mod bug;
pub mod codec;
pub mod core;
mod group;
mod inbox;
mod lease;
pub mod log;
mod machine;
mod members;
pub mod peers;
mod salvage;
pub mod sim;
pub mod snapshot;
mod store;
mod types;

pub use self::core::{GroupStatus, Leadership, Role};
pub use group::Group;
pub use machine::{Command, Machine, MachineError, Position};
pub use members::{CHANGES_MAX, Change, Members};
pub use salvage::salvage;
pub use store::{NoTransport, Store, StoreConfig, Transport};
pub use types::{GroupId, NodeId, ProposeError, StoreError};
