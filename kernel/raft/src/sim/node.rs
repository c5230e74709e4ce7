//! One simulated node: its disk, and while it lives its driver and state machine.

use super::{SimConfig, Workload, carry::Sending};
use crate::{
    GroupId, NodeId, StoreError,
    applier::Applier,
    core::{Core, CoreConfig, Input, Output},
    log::{Log, LogConfig},
    snapshot::{Maker, Receiver, leftovers},
};
use photon_rt::{disk::SimDisk, time::Duration};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

/// The group that the simulator runs.
pub(super) const GROUP: GroupId = GroupId(1);

/// A tick on a node's own clock. Virtual milliseconds.
const TICK_MS: u64 = 100;

/// How far clocks are wrong at most: 4 % each, in millionths.
pub(super) const DRIFT_PPM: u64 = 40_000;

pub(super) struct Node<W: Workload> {
    pub(super) id: NodeId,
    pub(super) disk: SimDisk,
    pub(super) live: Option<Live<W>>,
    /// Counts lives, so that events of an earlier one are recognised.
    pub(super) epoch: u64,
    pub(super) paused_until: u64,
    /// Length of this node's tick, and the speed of its clock in millionths: clocks are crooked.
    pub(super) tick_ms: u64,
    pub(super) clock_ppm: u64,
    /// A failure was injected from which the node may die at any moment.
    pub(super) doomed: bool,
    /// The disk takes nothing more for now.
    pub(super) full: bool,
}

pub(super) struct Live<W: Workload> {
    pub(super) core: Core,
    pub(super) applier: Applier<W::Machine>,
    /// Work for the state machine, in order.
    pub(super) jobs: VecDeque<Output>,
    pub(super) inbox: Vec<Input>,
    /// Snapshots being made, being sent by connection, and received: each connection's id and size.
    pub(super) making: VecDeque<Maker>,
    pub(super) sending: BTreeMap<u64, Sending>,
    pub(super) receiver: Receiver,
    pub(super) taking: BTreeMap<u64, (u64, u64)>,
    /// The lease as readers see it, and operations that wait for the machine to reach an index.
    pub(super) lease: (Duration, u64),
    pub(super) reads: Vec<(u64, usize)>,
    pub(super) turn_planned: bool,
    pub(super) work_planned: bool,
}

impl<W: Workload> Node<W> {
    /// `clock_ppm` is what its clock counts in a second; a tick is `TICK_MS` of that, or `late_ms` more.
    pub(super) fn new(id: NodeId, disk_seed: u64, clock_ppm: u64, late_ms: u64) -> Self {
        let disk = SimDisk::new(disk_seed);
        let tick_ms = (TICK_MS * 1_000_000).div_ceil(clock_ppm) + late_ms;
        Node {
            id,
            disk,
            live: None,
            epoch: 0,
            paused_until: 0,
            tick_ms,
            clock_ppm,
            doomed: false,
            full: false,
        }
    }

    /// Its clock, which nothing stops.
    pub(super) fn clock(&self, now_ms: u64) -> Duration {
        Duration::from_micros((self.id.0 * 3_600_000 + now_ms) * self.clock_ppm / 1000)
    }

    /// Opens log, machine and driver from what the disk holds.
    pub(super) fn start(
        &mut self,
        config: &SimConfig,
        workload: &mut W,
        members: &[NodeId],
        out: &mut dyn FnMut(Output),
    ) -> Result<(), StoreError> {
        let log_config = LogConfig { segment_bytes: config.segment_bytes, cache_bytes: 2 << 10 };
        let log = Log::open_with(Arc::new(self.disk.clone()), log_config, config.bugs)?;
        let io = |source| StoreError::Io { what: "snapshots".into(), source };
        let receiver = Receiver::new(Arc::new(self.disk.clone()), config.bugs).map_err(io)?;
        if !leftovers(&self.disk).map_err(io)?.is_empty() {
            return Err(StoreError::Invalid("half a snapshot was left over".into()));
        }
        let machine = workload.open(&self.disk)?;
        let applier = Applier::new(machine, config.bugs);
        let core_config = CoreConfig {
            max_message_bytes: 2 << 10,
            max_uncommitted_bytes: 64 << 10,
            max_applying_bytes: 1 << 10,
            checkpoint_bytes: config.checkpoint_bytes,
            retain_entries: 10,
            wait_ticks: 30,
            ..CoreConfig::new(self.id)
        };
        let ticks = core_config.election_ticks as u64 - 1;
        let lease = Duration::from_millis(ticks * TICK_MS * 9 / 10);
        let core_config = CoreConfig { lease, ..core_config };
        let mut core = Core::new_with(core_config, log, config.bugs);
        core.attach(GROUP, members, applier.at(), out)?;
        self.epoch += 1;
        self.doomed = false;
        self.live = Some(Live {
            core,
            applier,
            jobs: VecDeque::new(),
            inbox: Vec::new(),
            making: VecDeque::new(),
            sending: BTreeMap::new(),
            receiver,
            taking: BTreeMap::new(),
            lease: (Duration::ZERO, 0),
            reads: Vec::new(),
            turn_planned: false,
            work_planned: false,
        });
        Ok(())
    }

    /// The process ends now.
    pub(super) fn stop(&mut self) {
        // The dead tidy nothing up.
        self.disk.cut_after(0);
        self.live = None;
        self.epoch += 1;
    }
}
