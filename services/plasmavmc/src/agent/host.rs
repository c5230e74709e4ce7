//! The host's own record.

use super::HostAgent;
use crate::engine::Accel;
use photon_api::{HostSpec, HostStatus};
use photon_base::{Bytes, Code, Result};
use photon_resource::{Draft, Store};
use photon_rt::{task::Tasks, time::Duration, time::wall};

/// Signs of life are this far apart: often enough for people, rare enough for an idle cluster to be idle.
/// Failure detection is by leases, which a later issue brings.
const PERIOD: Duration = Duration::from_secs(10);

fn memory() -> Bytes {
    let text = photon_rt::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix("MemTotal:"));
    let kib = line.and_then(|l| l.split_whitespace().next()).and_then(|n| n.parse::<u64>().ok());
    Bytes(kib.unwrap_or(0) << 10)
}

async fn report(agent: &HostAgent, store: &Store, networking: &str) -> Result<()> {
    let status = HostStatus {
        phase: "ready".into(),
        cpus: std::thread::available_parallelism().map_or(1, |n| n.get() as u32),
        memory: memory(),
        accelerator: if agent.hypervisor().accel().await == Accel::Kvm { "kvm" } else { "tcg" }.into(),
        networking: networking.into(),
        seen: Some(wall()),
    };
    let mut tx = store.begin();
    match store.get::<HostSpec>(None, agent.host()).await? {
        Some(h) => tx.update(&h, |h| h.status = status).await?,
        None => {
            let draft = Draft::new(agent.host().clone(), &HostSpec::default()).status(&status);
            tx.create(store.kind_of::<HostSpec>()?, draft).await?;
        }
    }
    tx.commit().await.map(|_| ())
}

/// Reports once, then for ever.
pub async fn report_host(
    agent: HostAgent,
    store: Store,
    networking: &'static str,
    tasks: &Tasks,
) -> Result<()> {
    let store = store.acting_as("plasmavmc-host");
    report(&agent, &store, networking).await?;
    tasks.spawn("host-report", async move {
        loop {
            photon_rt::time::sleep(PERIOD).await;
            match report(&agent, &store, networking).await {
                Err(e) if e.code != Code::Conflict => tracing::warn!(error = %e, "cannot report this host"),
                _ => {}
            }
        }
    });
    Ok(())
}
