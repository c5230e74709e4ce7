//! The engine that runs virtual machines as QEMU processes on this host. It knows nothing of resources:
//! explicit values in, facts out.
//!
//! - [`Launch`]: what one incarnation shall be; `args` turns it into QEMU's command line.
//! - [`Hypervisor`]: `ensure_running`, `ensure_stopped`, `reset`, `observe`, `list`, `remove`.
//! - [`image`]: foreign images checked and converted, disks on top of them.
//! - [`Console`]: the serial line with its backlog; [`Agent`]: the guest agent.
//!
//! Invariants: every operation can be repeated after a crash at any point, and what is absent can be
//! removed. QEMU outlives photon and is adopted by the next one from its records and the process
//! table. No incarnation runs twice, none runs after a greater epoch of its VM was accepted. An end
//! without a record of the guest's own shutdown is a crash.

mod accel;
mod agent;
mod args;
mod command;
mod console;
mod hypervisor;
pub mod image;
mod launch;
mod lines;
mod process;
mod qmp;
mod record;
mod tap;
mod vm;

pub use accel::works;
pub use agent::{Agent, Info};
pub use command::Command;
pub use console::{BACKLOG, Console, Piece, Viewer};
pub use hypervisor::{Hypervisor, Listed, QEMU, Stop};
pub use launch::{Accel, Boot, DISKS_MAX, Disk, Format, Launch, NICS_MAX, Nic, NicBackend};
pub use qmp::{Event, Qmp, Status};
pub use record::{Cause, Exit};
pub use vm::{Observed, Running};
