//! What runs on every host: makes this host's incarnations so ([`incarnation`]), keeps images ([`images`])
//! and disks ([`disks`]), says that the host is alive ([`host`]), joins consoles ([`console`]).
//!
//! Invariants: the agent acts only on incarnations of its own host; what it finds on the host and no
//! object explains it removes; it reports what is so, never what should be.

mod console;
mod disks;
mod host;
mod images;
mod incarnation;

pub use console::ConsoleRoute;
pub use disks::Disks;
pub use host::report_host;
pub use images::{ContentRoute, ImageKeeper, Images};
pub use incarnation::Incarnations;

use crate::engine::Hypervisor;
use photon_base::{Name, Result, Uid};
use photon_reconcile::Poke;
use photon_resource::Key;
use photon_rt::task::Tasks;
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};
use tokio::sync::broadcast::error::RecvError;

/// Where QEMUs of the data folder `dir` have their sockets and records.
pub fn run_dir(dir: &Path) -> PathBuf {
    dir.join("run")
}

/// One host's agent. Clones are the same agent.
#[derive(Clone)]
pub struct HostAgent(Arc<Inner>);

struct Inner {
    host: Name,
    dir: PathBuf,
    hypervisor: Hypervisor,
    /// Incarnations seen, to find the object of a process that changed.
    keys: Mutex<HashMap<Uid, Key>>,
}

impl HostAgent {
    /// Adopts what runs from `dir`. Changes of processes make the reconcilers of their objects run.
    pub async fn open(dir: &Path, host: Name, poke: Poke, tasks: &Tasks) -> Result<HostAgent> {
        photon_rt::fs::private_dir(dir)?;
        let hypervisor = Hypervisor::new(&run_dir(dir), tasks.clone()).await?;
        let mut changes = hypervisor.changes();
        let agent =
            HostAgent(Arc::new(Inner { host, dir: dir.to_path_buf(), hypervisor, keys: Mutex::default() }));
        let a = agent.clone();
        tasks.spawn("vm-changes", async move {
            loop {
                match changes.recv().await {
                    Ok(id) => a.key(id).iter().for_each(|k| poke.poke(k)),
                    Err(RecvError::Lagged(_)) => a.keys().values().for_each(|k| poke.poke(k)),
                    Err(RecvError::Closed) => return,
                }
            }
        });
        Ok(agent)
    }

    /// This host.
    pub fn host(&self) -> &Name {
        &self.0.host
    }

    /// The QEMUs.
    pub fn hypervisor(&self) -> &Hypervisor {
        &self.0.hypervisor
    }

    fn keys(&self) -> std::sync::MutexGuard<'_, HashMap<Uid, Key>> {
        self.0.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn key(&self, id: Uid) -> Option<Key> {
        self.keys().get(&id).cloned()
    }

    fn dir(&self) -> &Path {
        &self.0.dir
    }
}
