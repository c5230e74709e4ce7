//! Makes the incarnations of this host so.

use super::{HostAgent, Images, disks};
use crate::control::INCARNATION_FINALIZER;
use crate::engine::{Accel, Boot, Cause, Disk, Format, Launch, Nic, NicBackend, Observed, Stop};
use async_trait::async_trait;
use photon_api::{
    ImageFormat, ImageSpec, IncarnationSpec, IncarnationStatus, NetworkSpec, Phase, PortSpec, Power,
};
use photon_base::{Code, Error, Name, Result};
use photon_reconcile::{Context, Next, Reconcile};
use photon_resource::{Key, Object};
use photon_rt::time::Duration;
use std::{net::Ipv4Addr, path::PathBuf};

/// Time that a guest gets to shut down.
const SHUTDOWN_TIME_MAX: Duration = Duration::from_secs(20);

/// Reconciles incarnations.
pub struct Incarnations {
    /// This host's agent.
    pub agent: HostAgent,
    /// Its images.
    pub images: Images,
}

/// What a launch still waits for, or the launch.
enum Plan {
    Wait(String),
    Go(Box<Launch>),
}

#[async_trait]
impl Reconcile for Incarnations {
    type Kind = IncarnationSpec;

    fn name(&self) -> &'static str {
        "plasmavmc-agent"
    }

    async fn reconcile(&self, cx: &Context, key: &Key) -> Result<Next> {
        let Some(i) = cx.get::<IncarnationSpec>(key.project.as_ref(), &key.name)? else {
            return Ok(Next::Done);
        };
        if i.spec.host != *self.agent.host() {
            return Ok(Next::Done);
        }
        let hv = self.agent.hypervisor();
        if !i.is_wanted() {
            hv.remove(i.meta.id).await?;
            self.agent.forget_mark(i.meta.id);
            self.agent.keys().remove(&i.meta.id);
            if i.has_finalizer(INCARNATION_FINALIZER) {
                let mut tx = cx.begin();
                tx.update(&i, |i| i.meta.finalizers.retain(|f| f != INCARNATION_FINALIZER)).await?;
                tx.commit().await?;
            }
            return Ok(Next::Done);
        }
        self.agent.keys().insert(i.meta.id, key.clone());
        match i.spec.power {
            Power::Stopped => self.stop(cx, i).await,
            Power::Running | Power::Paused => self.run(cx, i).await,
        }
    }

    /// Ends what no object explains: processes of incarnations that are gone from the store.
    async fn sweep(&self, cx: &Context) -> Result<()> {
        let mut live: Vec<_> = cx.list::<IncarnationSpec>(None)?.iter().map(|i| i.meta.id).collect();
        let hv = self.agent.hypervisor();
        let found = hv.list().await?;
        if found.iter().all(|f| live.contains(&f.id)) {
            return Ok(());
        }
        // The view may be older than a process that was just started: ask the store itself.
        live = cx.store().list_all::<IncarnationSpec>(None).await?.iter().map(|i| i.meta.id).collect();
        for f in found.iter().filter(|f| !live.contains(&f.id)) {
            tracing::warn!(incarnation = %f.id, "removing a virtual machine that no object explains");
            hv.remove(f.id).await?;
        }
        Ok(())
    }
}

impl Incarnations {
    async fn report(
        &self,
        cx: &Context,
        i: &Object<IncarnationSpec>,
        status: IncarnationStatus,
    ) -> Result<()> {
        if status == i.status {
            return Ok(());
        }
        let mut tx = cx.begin();
        tx.update(i, |i| i.status = status).await?;
        tx.commit().await.map(|_| ())
    }

    /// The status that an observation means.
    fn status(&self, i: &Object<IncarnationSpec>, observed: &Observed) -> IncarnationStatus {
        let mut s = i.status.clone();
        s.observed_generation = i.meta.generation;
        match observed {
            Observed::Absent => (s.phase, s.pid) = (Phase::Pending, None),
            Observed::Running(r) => {
                (s.pid, s.since, s.message) = (Some(r.pid), Some(r.since), String::new());
                s.phase = match r.status.as_str() {
                    "running" => Phase::Running,
                    "paused" => Phase::Paused,
                    // Before its first instruction: its console is being listened to.
                    "starting" | "prelaunch" => Phase::Starting,
                    other => {
                        s.message = format!("the machine stands still: {other}");
                        Phase::Failed
                    }
                };
                if s.phase == Phase::Starting {
                    s.observed_generation = i.status.observed_generation; // not settled yet
                }
            }
            Observed::Exited(exit) => {
                (s.phase, s.pid) = (Phase::Stopped, None);
                s.ended = i.spec.power != Power::Stopped;
                s.host_stopped = self.agent.host_stopped(i.meta.id);
                s.guest_shutdown = exit.cause == Cause::GuestShutdown && !s.host_stopped;
                s.message = match (exit.cause, exit.status) {
                    _ if s.host_stopped => "its host stopped its VMs".into(),
                    (Cause::GuestShutdown, _) => "the guest shut down".into(),
                    (Cause::Stopped, _) => "it was stopped on its host".into(),
                    (Cause::Crash, Some(n)) if n < 0 => format!("its process was killed by signal {}", -n),
                    (Cause::Crash, Some(n)) => format!("its process ended with status {n}"),
                    (Cause::Crash, None) => "its process ended".into(),
                };
            }
        }
        s
    }

    async fn stop(&self, cx: &Context, i: Object<IncarnationSpec>) -> Result<Next> {
        let hv = self.agent.hypervisor();
        let mut observed = hv.observe(i.meta.id);
        if matches!(observed, Observed::Running(_)) {
            if i.status.phase != Phase::Stopping {
                let mut s = i.status.clone();
                s.phase = Phase::Stopping;
                self.report(cx, &i, s).await?;
                return Ok(Next::Done); // our own write calls us again
            }
            observed = hv.ensure_stopped(i.meta.id, Stop::Graceful { limit: SHUTDOWN_TIME_MAX }).await?;
        }
        let mut s = self.status(&i, &observed);
        s.phase = Phase::Stopped;
        self.report(cx, &i, s).await?;
        Ok(Next::Done)
    }

    async fn run(&self, cx: &Context, i: Object<IncarnationSpec>) -> Result<Next> {
        let hv = self.agent.hypervisor();
        let mut observed = hv.observe(i.meta.id);
        let mut fresh = false;
        if observed == Observed::Absent {
            if i.status.ended {
                return Ok(Next::Done); // it has ended and was forgotten; the controller makes a new one
            }
            match self.plan(cx, &i).await? {
                Plan::Wait(for_what) => {
                    let mut s = i.status.clone();
                    (s.phase, s.message) = (Phase::Pending, for_what);
                    self.report(cx, &i, s).await?;
                    return Ok(Next::Done);
                }
                Plan::Go(launch) => match hv.ensure_running(&launch).await {
                    Ok(o) => (observed, fresh) = (o, true),
                    Err(e) => return self.refused(cx, &i, e).await,
                },
            }
        }
        if let Observed::Running(r) = &observed
            && r.status != "starting"
        {
            match (i.spec.power, r.paused()) {
                (Power::Paused, false) => hv.pause(i.meta.id).await?,
                (Power::Running, true) => hv.resume(i.meta.id).await?,
                _ => {}
            }
            if !fresh && i.spec.resets > i.status.resets {
                hv.reset(i.meta.id).await?;
            } else if !fresh && i.spec.reboots > i.status.reboots {
                // A guest without an agent is reset: the owner asked for a reboot, not for a refusal.
                if hv.agent(i.meta.id)?.reboot().await.is_err() {
                    hv.reset(i.meta.id).await?;
                }
            }
            observed = hv.observe(i.meta.id);
        }
        let mut s = self.status(&i, &observed);
        if matches!(observed, Observed::Running(_)) {
            (s.reboots, s.resets) = (i.spec.reboots, i.spec.resets);
            s.accelerator = if hv.accel().await == Accel::Kvm { "kvm" } else { "tcg" }.into();
            let unsettled = match (i.spec.power, s.phase) {
                (Power::Paused, Phase::Running) | (Power::Running, Phase::Paused) => true,
                (_, phase) => phase == Phase::Starting,
            };
            if unsettled {
                s.observed_generation = i.status.observed_generation;
            }
        }
        self.report(cx, &i, s).await?;
        Ok(Next::Done)
    }

    /// A start that did not work: final when it never can, else tried again.
    async fn refused(&self, cx: &Context, i: &Object<IncarnationSpec>, e: Error) -> Result<Next> {
        let mut s = i.status.clone();
        let last = matches!(e.code, Code::Invalid | Code::Conflict | Code::Unsupported | Code::Denied);
        s.phase = if last { Phase::Failed } else { Phase::Starting };
        s.message = e.to_string();
        if last {
            s.observed_generation = i.meta.generation;
        }
        self.report(cx, i, s).await?;
        if last { Ok(Next::After(Duration::from_secs(30))) } else { Err(e) }
    }

    async fn plan(&self, cx: &Context, i: &Object<IncarnationSpec>) -> Result<Plan> {
        let Some(image) = cx.get::<ImageSpec>(None, &i.spec.image)? else {
            return Ok(Plan::Wait(format!("image {} does not exist", i.spec.image)));
        };
        let Some(content) = self.images.content(image.meta.id) else {
            return Ok(Plan::Wait(format!("image {} is not on this host", i.spec.image)));
        };
        let mut nics = Vec::new();
        for name in &i.spec.ports {
            match nic(cx, i, name)? {
                Ok(n) => nics.push(n),
                Err(wait) => return Ok(Plan::Wait(wait)),
            }
        }
        let (boot, disks) = match image.spec.format {
            ImageFormat::Kernel => {
                let kernel = Boot::Kernel {
                    vmlinux: content.join("vmlinux"),
                    initrd: content.join("initrd"),
                    cmdline: self.images.cmdline(image.meta.id)?,
                };
                (kernel, Vec::new())
            }
            ImageFormat::Raw | ImageFormat::Qcow2 => {
                let path: PathBuf =
                    disks::ensure_root(self.agent.dir(), i.spec.vm, &content, i.spec.disk).await?;
                (Boot::Disk, vec![Disk { path, format: Format::Qcow2, read_only: false }])
            }
        };
        Ok(Plan::Go(Box::new(Launch {
            vm: i.spec.vm,
            id: i.meta.id,
            epoch: i.spec.epoch,
            name: i.meta.name.to_string(),
            cpus: u16::try_from(i.spec.cpus).unwrap_or(u16::MAX),
            memory: i.spec.memory,
            boot,
            disks,
            nics,
            accel: self.agent.hypervisor().accel().await,
        })))
    }
}

/// The interface of a port, or what it waits for.
fn nic(cx: &Context, i: &Object<IncarnationSpec>, name: &Name) -> Result<std::result::Result<Nic, String>> {
    let project = i.meta.project.as_ref();
    let Some(port) = cx.get::<PortSpec>(project, name)? else {
        return Ok(Err(format!("port {name} does not exist")));
    };
    let Some(network) = cx.get::<NetworkSpec>(project, &port.spec.network)? else {
        return Ok(Err(format!("network {} does not exist", port.spec.network)));
    };
    let (Some(address), Some(mac), "active") =
        (port.status.address, &port.status.mac, port.status.phase.as_str())
    else {
        return Ok(Err(format!("port {name} is not ready")));
    };
    let backend = match (&port.status.device, &port.status.netns) {
        (Some(device), Some(netns)) => {
            NicBackend::Tap { ifname: device.clone(), netns: PathBuf::from("/run/netns").join(netns) }
        }
        _ => {
            let cidr = network.spec.cidr;
            let own = |a: &Ipv4Addr| *a != address && cidr.is_assignable(*a);
            let dns = (2..cidr.size()).rev().filter_map(|n| cidr.nth(n)).find(own).unwrap_or(cidr.gateway());
            NicBackend::User {
                address,
                prefix: cidr.len,
                gateway: cidr.gateway(),
                dns,
                hostname: port.spec.hostname.as_ref().map(ToString::to_string).unwrap_or_default(),
                domain: project.map(|p| format!("{p}.photon.internal")).unwrap_or_default(),
                isolated: !network.spec.nat,
            }
        }
    };
    let mtu = u16::try_from(network.status.mtu).ok().filter(|m| *m >= 576).unwrap_or(1500);
    Ok(Ok(Nic { mac: parse_mac(mac)?, mtu, backend }))
}

fn parse_mac(text: &str) -> Result<[u8; 6]> {
    let mut out = [0; 6];
    let mut parts = text.split(':');
    for b in &mut out {
        let byte = parts.next().and_then(|p| u8::from_str_radix(p, 16).ok());
        *b = byte.ok_or_else(|| Error::internal(format!("{text:?} is no MAC address")))?;
    }
    Ok(out)
}
