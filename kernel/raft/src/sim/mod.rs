//! A whole cluster in one thread, from one seed: real logs, drivers and state machines on a virtual
//! clock, network and disks that fail. Generic over the state machine: another crate brings a
//! [`Workload`] and calls [`run`].
//!
//! For the first part of a run faults are injected (messages dropped, delayed, reordered, doubled;
//! one-way partitions; kills, power losses, failing syncs, full disks, pauses, crooked clocks), and where
//! not all nodes are founders, members come and go. Then
//! they stop, and the cluster must heal: elect, converge, serve. After every turn a checker
//! looks at all that Raft promises; at the end the clients' history must be linearizable, with
//! everything acknowledged in it once and nothing refused in it at all.

mod carry;
mod check;
mod clients;
mod cluster;
mod faults;
pub mod kv;
mod node;
#[cfg(test)]
mod tests;

use crate::{Machine, MachineError, bug::Bugs};
use bytes::Bytes;
use photon_rt::{disk::SimDisk, entropy::Rng};

/// What the simulator must know of a state machine.
pub trait Workload {
    /// The machine.
    type Machine: Machine;

    /// Opens the machine from what its disk holds; an empty disk is a new machine. It shares the disk
    /// with the log, so its file names must not end in `.log` nor begin with `snap-`.
    fn open(&mut self, disk: &SimDisk) -> Result<Self::Machine, MachineError>;

    /// A command that no other call returns.
    fn command(&mut self, rng: &mut Rng) -> Bytes;

    /// A number that differs when the states that two machines reached by the same log differ.
    fn digest(&self, machine: &Self::Machine) -> u64;

    /// Looks at the reply to an acknowledged command.
    fn replied(&mut self, _command: &Bytes, _reply: <Self::Machine as Machine>::Reply) -> Result<(), String> {
        Ok(())
    }

    /// Looks at the machine at a linearizable point.
    fn read(&mut self, _machine: &Self::Machine) -> Result<(), String> {
        Ok(())
    }
}

/// Shape of a run.
#[derive(Clone, Debug)]
pub struct SimConfig {
    /// Number of nodes.
    pub nodes: u64,
    /// How many of them are members from the beginning; in the end all shall be.
    pub founders: u64,
    /// Number of clients, each with one operation at a time.
    pub clients: u64,
    /// How long faults go on. Virtual milliseconds.
    pub faults_ms: u64,
    /// How long the cluster may then take to heal. Virtual milliseconds.
    pub heal_ms: u64,
    /// Mean time between two faults.
    pub fault_every_ms: u64,
    /// Segment size of the logs. Bytes.
    pub segment_bytes: u64,
    /// Bytes of log after which a checkpoint is taken.
    pub checkpoint_bytes: u64,
    /// Only those faults, but often, that a leader's lease has to withstand.
    pub lease_drill: bool,
    pub(crate) bugs: Bugs,
}

impl SimConfig {
    /// The shape of this crate's own run of `seed`.
    pub fn of_seed(seed: u64) -> Self {
        match seed % 8 {
            // Members come and go.
            0 | 1 => SimConfig { founders: 3, ..SimConfig::new(5) },
            2 => SimConfig::new(5),
            3 => SimConfig::drill(),
            _ => SimConfig::new(3),
        }
    }

    /// Three nodes whose leaders are hard to tell.
    pub fn drill() -> Self {
        SimConfig { lease_drill: true, fault_every_ms: 900, ..SimConfig::new(3) }
    }

    /// A cluster of `nodes` under all faults.
    pub fn new(nodes: u64) -> Self {
        SimConfig {
            nodes,
            founders: nodes,
            clients: 3,
            faults_ms: 12_000,
            heal_ms: 20_000,
            fault_every_ms: 700,
            segment_bytes: 8 << 10,
            checkpoint_bytes: 6 << 10,
            lease_drill: false,
            bugs: Bugs::default(),
        }
    }
}

/// What happened in a run that found nothing wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Operations acknowledged.
    pub acknowledged: u64,
    /// Reads answered.
    pub reads: u64,
    /// Reads that a leader answered by its lease.
    pub leased: u64,
    /// Operations refused for certain.
    pub refused: u64,
    /// Different leaders seen, by term.
    pub leaders: u64,
    /// Restarts of nodes.
    pub restarts: u64,
    /// Power losses.
    pub power_losses: u64,
    /// Snapshots made.
    pub made: u64,
    /// Pieces of them that arrived.
    pub pieces: u64,
    /// Transfers that went on where an earlier one broke.
    pub resumed: u64,
    /// Snapshots installed.
    pub restores: u64,
    /// Changes of the members in force on some node.
    pub changes: u64,
    /// Greatest index that a log was purged up to.
    pub purges: u64,
    /// A number that differs when anything in the run did.
    pub trace: u64,
}

/// A promise that was broken, and how to see it again.
#[derive(Clone, thiserror::Error)]
#[error("seed {seed}, {now_ms} ms: {what}\n  replay: SIM_SEED={seed} cargo run -p photon-raft --example replay\n{}", .trace.join("\n"))]
pub struct Violation {
    /// The seed.
    pub seed: u64,
    /// Virtual time.
    pub now_ms: u64,
    /// What was broken.
    pub what: String,
    /// The last things that happened.
    pub trace: Vec<String>,
}

impl std::fmt::Debug for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")
    }
}

/// Runs one seed. A panic of the code under test is a violation too.
pub fn run<W: Workload>(seed: u64, config: &SimConfig, workload: W) -> Result<Report, Violation> {
    photon_rt::entropy::seed(Some(seed));
    let mut cluster = cluster::Cluster::new(seed, config.clone(), workload);
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| cluster.run()));
    photon_rt::entropy::seed(None);
    let result = result.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().map(|s| (*s).to_string());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
        Err(format!("panic: {text}"))
    });
    match result {
        Ok(()) => Ok(cluster.report()),
        Err(what) => Err(Violation { seed, now_ms: cluster.now(), what, trace: cluster.trace_tail() }),
    }
}
