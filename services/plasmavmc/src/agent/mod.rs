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

pub use console::{ConsoleRoute, PassOn};
pub use disks::Disks;
pub use host::report_host;
pub use images::{ContentRoute, ImageKeeper, Images};
pub use incarnation::Incarnations;

use crate::engine::{Hypervisor, Observed, Stop};
use photon_base::{Name, Result, Uid};
use photon_reconcile::Poke;
use photon_resource::Key;
use photon_rt::{task::Tasks, time::Duration};
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

/// Marks of incarnations that were ended because their host was told to stop its VMs: what a guest does when it is
/// asked to shut down looks the same as its own wish.
fn marks(dir: &Path) -> PathBuf {
    dir.join("host-stopped")
}

/// Time for a guest to shut down when the host stops its VMs.
const HOST_STOP_TIME_MAX: Duration = Duration::from_secs(10);

/// Stops every VM that runs from the data folder `dir`, and notes that it was not the guests' wish. The
/// agent itself must not run. Returns how many there were.
pub async fn stop_all(dir: &Path) -> Result<usize> {
    let tasks = Tasks::new();
    let hypervisor = Hypervisor::new(&run_dir(dir), tasks.clone()).await?;
    let marks = marks(dir);
    photon_rt::fs::private_dir(&marks)?;
    let mut running = Vec::new();
    for v in hypervisor.list().await? {
        if matches!(hypervisor.observe(v.id), Observed::Running(_)) {
            photon_rt::fs::write_atomic(&marks.join(v.id.to_string()), b"", 0o600)?;
            running.push(v.id);
        }
    }
    let stop =
        running.iter().map(|id| hypervisor.ensure_stopped(*id, Stop::Graceful { limit: HOST_STOP_TIME_MAX }));
    for r in futures::future::join_all(stop).await {
        r?;
    }
    tasks.shutdown().await;
    Ok(running.len())
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

    /// Whether the host, not the guest, wanted this incarnation to end.
    fn host_stopped(&self, id: Uid) -> bool {
        marks(&self.0.dir).join(id.to_string()).exists()
    }

    fn forget_mark(&self, id: Uid) {
        let _ = photon_rt::fs::remove_file(marks(&self.0.dir).join(id.to_string())); // mostly there is none
    }

    fn dir(&self) -> &Path {
        &self.0.dir
    }
}
