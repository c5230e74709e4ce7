//! The QMP commands that we send, each once. A test holds every one of them, with its arguments,
//! against the schema of the installed QEMU.

use serde_json::{Value, json};

/// A command of QEMU's machine protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Leaves negotiation; the first command of every connection.
    Capabilities,
    /// Whether the guest runs, and if not why.
    Status,
    /// Freezes the guest's CPUs.
    Stop,
    /// Lets them go on.
    Cont,
    /// The reset button.
    Reset,
    /// The power button; the guest may ignore it.
    Powerdown,
    /// Ends QEMU at once.
    Quit,
    /// QEMU's description of its own protocol.
    Schema,
}

impl Command {
    /// All commands with sample arguments, for the schema test.
    pub fn samples() -> Vec<Command> {
        use Command::{Capabilities, Cont, Powerdown, Quit, Reset, Schema, Status, Stop};
        vec![Capabilities, Status, Stop, Cont, Reset, Powerdown, Quit, Schema]
    }

    /// Name and arguments on the wire.
    pub fn wire(&self) -> (&'static str, Value) {
        match self {
            Command::Capabilities => ("qmp_capabilities", json!({})),
            Command::Status => ("query-status", json!({})),
            Command::Stop => ("stop", json!({})),
            Command::Cont => ("cont", json!({})),
            Command::Reset => ("system_reset", json!({})),
            Command::Powerdown => ("system_powerdown", json!({})),
            Command::Quit => ("quit", json!({})),
            Command::Schema => ("query-qmp-schema", json!({})),
        }
    }
}
