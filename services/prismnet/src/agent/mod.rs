//! What runs on every host: networks and ports made so by the data plane that this host can have, and DHCP
//! on every network.
//!
//! Invariants: what was ensured with a plan is not ensured again with the same plan by the same process;
//! the sweep never removes what was ensured while it looked (it holds everybody else off).

mod networks;
mod ports;

pub use networks::Networks;
pub use ports::Ports;

use crate::{
    dhcp::Server,
    engine::{DataPlane, NetworkPlan, PortPlan},
};
use photon_base::{Name, Uid};
use photon_rt::task::Tasks;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::RwLock;

/// One host's agent. Clones are the same agent.
#[derive(Clone)]
pub struct HostNet(Arc<Inner>);

struct Inner {
    host: Name,
    plane: Box<dyn DataPlane>,
    tasks: Tasks,
    /// Held for reading while something is ensured, for writing while the sweep looks and removes.
    quiet: RwLock<()>,
    done: Mutex<Done>,
}

/// What this process has made so.
#[derive(Default)]
struct Done {
    networks: HashMap<Uid, NetworkPlan>,
    ports: HashMap<Uid, PortPlan>,
    dhcp: HashMap<Uid, Server>,
}

impl HostNet {
    /// The agent of `host` on `plane`.
    pub fn new(host: Name, plane: Box<dyn DataPlane>, tasks: Tasks) -> HostNet {
        HostNet(Arc::new(Inner { host, plane, tasks, quiet: RwLock::default(), done: Mutex::default() }))
    }

    /// What this host cannot do, one sentence each.
    pub fn missing(&self) -> Vec<String> {
        self.0.plane.missing()
    }

    fn done(&self) -> MutexGuard<'_, Done> {
        self.0.done.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
