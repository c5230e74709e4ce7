//! Cluster-wide decisions: where a VM runs, and the life of its incarnations.

mod schedule;
mod vm;

pub use schedule::{Place, place};
pub use vm::{DISK_FINALIZER, INCARNATION_FINALIZER, VM_FINALIZER, VmController, child_name};
