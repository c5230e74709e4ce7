//! The life of a VM: ports, one incarnation at a time, restarts, removal. Every step is an "ensure" with
//! children whose names follow from the VM's; undoing is wanting absence.

use super::schedule::{Bond, Place, place};
use async_trait::async_trait;
use photon_api::{
    HostSpec, ImageSpec, IncarnationSpec, Phase, PortSpec, Power, Restart, VmSpec, VmStatus, set_condition,
};
use photon_base::{Code, Error, Name, Result};
use photon_reconcile::{Context, Next, Reconcile};
use photon_resource::{Key, Object, Tx};
use photon_rt::time::{Duration, wall};
use std::net::Ipv4Addr;

/// Keeps a VM until its children are gone.
pub const VM_FINALIZER: &str = "plasmavmc";
/// Keeps a VM until its host has removed the disk.
pub const DISK_FINALIZER: &str = "plasmavmc-disk";

/// Keeps an incarnation until its host has ended it.
pub const INCARNATION_FINALIZER: &str = "plasmavmc-agent";

/// Pause before the `n`th restart in a row of a VM that keeps ending by itself.
fn restart_pause(n: u64) -> Duration {
    Duration::from_secs((1u64 << n.min(6)) - 1).min(Duration::from_secs(60))
}

/// A run that lasted this long was a success: the count of restarts in a row starts again.
const STEADY: Duration = Duration::from_secs(600);

/// `PARENT-SUFFIX`, made to fit a name.
pub fn child_name(parent: &Name, suffix: &str) -> Result<Name> {
    let whole = format!("{parent}-{suffix}");
    if whole.len() <= Name::LEN_MAX {
        return whole.parse();
    }
    // Two long parents with the same beginning must not meet.
    let tag = photon_base::Uid(0).derive(parent.as_str()).short(8);
    let room = Name::LEN_MAX - suffix.len() - tag.len() - 2;
    format!("{}-{tag}-{suffix}", &parent.as_str()[..room].trim_end_matches('-')).parse()
}

/// Brings VMs to life and to rest.
pub struct VmController;

struct World<'a> {
    cx: &'a Context,
    vm: Object<VmSpec>,
    incarnation: Option<Object<IncarnationSpec>>,
    ports: Vec<Option<Object<PortSpec>>>,
    /// Its host was removed for good: nobody there will clean up, and its disk is lost.
    host_gone: bool,
}

fn port_name(vm: &Name, index: usize) -> Result<Name> {
    child_name(vm, &format!("nic{index}"))
}

#[async_trait]
impl Reconcile for VmController {
    type Kind = VmSpec;

    fn name(&self) -> &'static str {
        "plasmavmc-vm"
    }

    fn once_per_cluster(&self) -> bool {
        true
    }

    async fn reconcile(&self, cx: &Context, key: &Key) -> Result<Next> {
        let project = key.project.as_ref();
        let Some(vm) = cx.get::<VmSpec>(project, &key.name)? else { return Ok(Next::Done) };
        let mut ports = Vec::new();
        for i in 0..vm.spec.networks.len() {
            let found = cx.get::<PortSpec>(project, &port_name(&key.name, i)?)?;
            // A port of that name that belongs to somebody else is not ours to use or remove.
            if let Some(p) = &found
                && p.meta.owner.as_ref().is_none_or(|o| o.id != vm.meta.id)
            {
                return blocked(
                    cx,
                    &vm,
                    format!("port {} exists and belongs to something else", p.meta.name),
                )
                .await;
            }
            ports.push(found);
        }
        let incarnation = cx.get::<IncarnationSpec>(project, &key.name)?;
        let host = vm.status.host.as_ref().or(incarnation.as_ref().map(|i| &i.spec.host));
        let host_gone = match host {
            Some(h) => cx.get::<HostSpec>(None, h)?.is_none(),
            None => false,
        };
        let w = World { cx, vm, incarnation, ports, host_gone };
        match (w.vm.is_wanted(), w.host_gone) {
            (true, false) => w.ensure().await,
            (true, true) => w.bereave().await,
            (false, _) => w.remove().await,
        }
    }
}

async fn blocked(cx: &Context, vm: &Object<VmSpec>, message: String) -> Result<Next> {
    let mut status = vm.status.clone();
    status.phase = Phase::Failed;
    status.observed_generation = vm.meta.generation;
    set_condition(&mut status.conditions, "Ready", false, "Blocked", message, wall());
    write_status(cx, vm, status).await?;
    Ok(Next::Done)
}

async fn write_status(cx: &Context, vm: &Object<VmSpec>, status: VmStatus) -> Result<()> {
    if status == vm.status {
        return Ok(());
    }
    let mut tx = cx.begin();
    tx.update(vm, |v| v.status = status).await?;
    tx.commit().await.map(|_| ())
}

impl World<'_> {
    /// What stands in the way, said in the status.
    async fn waiting(&self, phase: Phase, reason: &str, message: impl Into<String>) -> Result<Next> {
        let mut s = self.mirrored();
        s.phase = phase;
        set_condition(&mut s.conditions, "Ready", false, reason, message, wall());
        write_status(self.cx, &self.vm, s).await?;
        Ok(Next::Done)
    }

    /// The status as far as it follows from the children.
    fn mirrored(&self) -> VmStatus {
        let addresses: Vec<Ipv4Addr> = self.ports.iter().flatten().filter_map(|p| p.status.address).collect();
        let mut s = self.vm.status.clone();
        s.addresses = addresses;
        s.observed_generation = self.vm.meta.generation;
        if let Some(i) = &self.incarnation {
            s.host = Some(i.spec.host.clone());
            s.epoch = s.epoch.max(i.spec.epoch);
        }
        s
    }

    async fn ensure(&self) -> Result<Next> {
        match &self.incarnation {
            Some(i) if i.meta.owner.as_ref().is_none_or(|o| o.id != self.vm.meta.id) || !i.is_wanted() => {
                // An older one is going; the next one waits for it.
                self.waiting(Phase::Pending, "Cleaning", "the run before is being cleaned up").await
            }
            Some(i) if i.status.ended => self.after_end(i).await,
            Some(i) => self.follow(i).await,
            None if self.vm.spec.power == Power::Stopped => self.rest().await,
            None => self.start().await,
        }
    }

    /// Ports, image and host, then an incarnation.
    async fn start(&self) -> Result<Next> {
        if let Some(wait) = self.restart_wait() {
            return Ok(Next::After(wait));
        }
        let image = self.cx.get::<ImageSpec>(None, &self.vm.spec.image)?;
        match &image {
            Some(i) if i.status.phase == "ready" => {
                if self.vm.spec.memory < i.spec.min_memory {
                    let why = format!("image {} needs {} of memory", i.meta.name, i.spec.min_memory);
                    return self.waiting(Phase::Failed, "MemoryTooSmall", why).await;
                }
            }
            _ => {
                let why = format!("image {} has no content yet", self.vm.spec.image);
                return self.waiting(Phase::Pending, "ImageNotReady", why).await;
            }
        }
        let hosts = self.cx.list::<HostSpec>(None)?;
        let running = self.cx.list::<IncarnationSpec>(None)?;
        let bonds = self.bonds(image.as_ref())?;
        let host = match place(&hosts, &running, &bonds, self.vm.spec.cpus, self.vm.spec.memory) {
            Place::On(h) => h,
            Place::Nowhere(why) => return self.waiting(Phase::Pending, "NoHost", why).await,
        };
        let mut tx = self.cx.begin();
        let mut missing = false;
        for (i, nic) in self.vm.spec.networks.iter().enumerate() {
            match &self.ports[i] {
                None => {
                    let spec = PortSpec {
                        network: nic.network.clone(),
                        address: nic.address,
                        hostname: Some(self.vm.meta.name.clone()),
                        host: Some(host.clone()),
                    };
                    tx.create_child(&self.vm, port_name(&self.vm.meta.name, i)?, &spec).await?;
                    missing = true;
                }
                Some(p) if p.spec.host.as_ref() != Some(&host) => {
                    tx.update(p, |p| p.spec.host = Some(host.clone())).await?;
                    missing = true;
                }
                Some(_) => {}
            }
        }
        let allocated = |p: &Option<Object<PortSpec>>| p.as_ref().is_some_and(|p| p.status.address.is_some());
        if missing {
            tx.commit().await?;
            return Ok(Next::Done); // the ports' changes call again
        }
        if let Some(p) = self.ports.iter().flatten().find(|p| p.status.phase == "failed") {
            let why =
                p.status.conditions.iter().find(|c| !c.status).map(|c| c.message.clone()).unwrap_or_default();
            return self.waiting(Phase::Failed, "NoAddress", why).await;
        }
        if !self.ports.iter().all(allocated) {
            return self.waiting(Phase::Pending, "WaitingForAddress", "its ports have no address yet").await;
        }
        let epoch = self.vm.status.epoch + 1;
        let spec = IncarnationSpec {
            vm: self.vm.meta.id,
            host: host.clone(),
            epoch,
            image: self.vm.spec.image.clone(),
            cpus: self.vm.spec.cpus,
            memory: self.vm.spec.memory,
            disk: self.vm.spec.disk,
            ports: (0..self.ports.len()).map(|i| port_name(&self.vm.meta.name, i)).collect::<Result<_>>()?,
            power: self.vm.spec.power,
            reboots: self.vm.spec.reboots,
            resets: self.vm.spec.resets,
        };
        // One commit: the epoch that a VM has reached can't be lost, so it can't be given twice.
        tx.create_child(&self.vm, self.vm.meta.name.clone(), &spec).await?;
        let mut s = self.mirrored();
        (s.phase, s.host, s.epoch) = (Phase::Starting, Some(host), epoch);
        set_condition(&mut s.conditions, "Ready", false, "Starting", "placed; its host starts it", wall());
        tx.update(&self.vm, |v| v.status = s).await?;
        tx.commit().await?;
        Ok(Next::Done)
    }

    /// What ties the VM to some hosts and not others.
    fn bonds(&self, image: Option<&Object<ImageSpec>>) -> Result<Vec<Bond>> {
        let mut bonds = Vec::new();
        if let Some(host) = &self.vm.status.host {
            bonds.push(Bond { hosts: vec![host.clone()], why: "its disk is".into() });
        }
        if let Some(i) = image.filter(|i| !i.status.hosts.is_empty()) {
            let why = format!("image {} is", i.meta.name);
            bonds.push(Bond { hosts: i.status.hosts.clone(), why });
        }
        // Networks do not reach from one host to another yet: who shares one stays together.
        let ports = self.cx.list::<PortSpec>(self.vm.meta.project.as_ref())?;
        for nic in &self.vm.spec.networks {
            let others = ports.iter().filter(|p| {
                let ours = p.meta.owner.as_ref().is_some_and(|o| o.id == self.vm.meta.id);
                p.spec.network == nic.network && !ours
            });
            if let Some(host) = others.filter_map(|p| p.spec.host.clone()).next() {
                bonds.push(Bond { hosts: vec![host], why: format!("network {} is", nic.network) });
            }
        }
        Ok(bonds)
    }

    /// How long to wait before the next start of a VM that keeps ending.
    fn restart_wait(&self) -> Option<Duration> {
        let ended =
            self.vm.status.conditions.iter().find(|c| c.kind == "Ended" && c.reason != "HostStopped")?;
        restart_pause(self.vm.status.restarts).checked_sub(wall().since(ended.since)).filter(|d| !d.is_zero())
    }

    /// Passes wishes on to a live incarnation and reports what it says.
    async fn follow(&self, i: &Object<IncarnationSpec>) -> Result<Next> {
        let want = &self.vm.spec;
        let mut tx = self.cx.begin();
        if (i.spec.power, i.spec.reboots, i.spec.resets) != (want.power, want.reboots, want.resets) {
            tx.update(i, |i| {
                (i.spec.power, i.spec.reboots, i.spec.resets) = (want.power, want.reboots, want.resets)
            })
            .await?;
            tx.commit().await?;
            return Ok(Next::Done);
        }
        let answered = i.status.observed_generation == i.meta.generation;
        if answered && want.power == Power::Stopped && i.status.phase == Phase::Stopped {
            self.drop_incarnation(&mut tx, i).await?;
            tx.commit().await?;
            return Ok(Next::Done);
        }
        let mut s = self.mirrored();
        s.phase = i.status.phase;
        if !answered {
            // Not settled: whoever waits must not take the old state for the new.
            s.observed_generation = self.vm.status.observed_generation.min(self.vm.meta.generation - 1);
        }
        let (ok, reason) = match i.status.phase {
            Phase::Running | Phase::Paused => (true, "Running"),
            Phase::Failed => (false, "HostCannotRunIt"),
            _ => (false, "Starting"),
        };
        set_condition(&mut s.conditions, "Ready", ok, reason, i.status.message.clone(), wall());
        let steady = i.status.since.is_some_and(|t| wall().since(t) > STEADY);
        if steady {
            s.restarts = 0;
        }
        write_status(self.cx, &self.vm, s).await?;
        Ok(Next::Done)
    }

    async fn drop_incarnation(&self, tx: &mut Tx<'_>, i: &Object<IncarnationSpec>) -> Result<()> {
        tx.update(i, |i| {
            i.meta.deleting = Some(wall());
            if self.host_gone {
                i.meta.finalizers.retain(|f| f != INCARNATION_FINALIZER);
            }
        })
        .await
    }

    /// Its host is gone for good. A VM that has nothing on a disk starts elsewhere; another one is lost.
    async fn bereave(&self) -> Result<Next> {
        let image = self.cx.get::<ImageSpec>(None, &self.vm.spec.image)?;
        let diskless = self.vm.spec.disk.is_none()
            && image.is_some_and(|i| i.spec.format == photon_api::ImageFormat::Kernel);
        let mut s = self.vm.status.clone();
        let host = s.host.as_ref().map_or("its host", Name::as_str).to_string();
        let mut tx = self.cx.begin();
        tx.because(&format!("{host} was removed"));
        if let Some(i) = &self.incarnation {
            s.epoch = s.epoch.max(i.spec.epoch);
            self.drop_incarnation(&mut tx, i).await?;
        }
        s.observed_generation = self.vm.meta.generation;
        if diskless {
            (s.host, s.phase) = (None, Phase::Pending);
            set_condition(
                &mut s.conditions,
                "Ready",
                false,
                "HostGone",
                format!("{host} was removed"),
                wall(),
            );
        } else {
            s.phase = Phase::Failed;
            let message = format!("{host} was removed, and its disk with it: photon vm delete");
            set_condition(&mut s.conditions, "Ready", false, "HostGone", message, wall());
        }
        if s != self.vm.status {
            tx.update(&self.vm, |v| v.status = s).await?;
        }
        if !tx.is_empty() {
            tx.commit().await?;
        }
        Ok(Next::Done)
    }

    /// It ended by itself: start again, or accept that it is off.
    async fn after_end(&self, i: &Object<IncarnationSpec>) -> Result<Next> {
        let again = match self.vm.spec.restart {
            Restart::Always => true,
            Restart::OnFailure => !i.status.guest_shutdown,
            Restart::Never => false,
        };
        let by_host = i.status.host_stopped;
        let again = (again || by_host) && self.vm.spec.power != Power::Stopped;
        let (reason, message) = match i.status.guest_shutdown {
            _ if by_host => ("HostStopped", "its host stopped its VMs".to_string()),
            true => ("GuestShutdown", "the guest shut itself down".to_string()),
            false => ("ProcessDied", format!("the virtual machine's process ended: {}", i.status.message)),
        };
        let mut s = self.mirrored();
        set_condition(&mut s.conditions, "Ended", true, reason, message.clone(), wall());
        set_condition(&mut s.conditions, "Ready", false, reason, "", wall());
        (s.phase, s.restarts) = if again {
            (Phase::Pending, s.restarts + u64::from(!by_host))
        } else {
            (Phase::Stopped, s.restarts)
        };
        let mut tx = self.cx.begin();
        tx.because(&message);
        self.drop_incarnation(&mut tx, i).await?;
        tx.update(&self.vm, |v| {
            v.status = s;
            if !again {
                // The guest's wish becomes the wish: `photon vm start` brings it back.
                v.spec.power = Power::Stopped;
                v.status.observed_generation = v.meta.generation;
            }
        })
        .await?;
        tx.commit().await?;
        Ok(Next::Done)
    }

    /// Off, and meant to be.
    async fn rest(&self) -> Result<Next> {
        let mut s = self.mirrored();
        s.phase = Phase::Stopped;
        set_condition(&mut s.conditions, "Ready", false, "Stopped", "", wall());
        s.conditions.retain(|c| {
            c.kind != "Ended" || c.reason != "ProcessDied" || self.vm.spec.restart == Restart::Never
        });
        s.restarts = 0;
        write_status(self.cx, &self.vm, s).await?;
        Ok(Next::Done)
    }

    /// Incarnation first, then ports, then the VM itself.
    async fn remove(&self) -> Result<Next> {
        if !self.vm.meta.finalizers.iter().any(|f| f == VM_FINALIZER) {
            return Ok(Next::Done);
        }
        let mut tx = self.cx.begin();
        if let Some(i) = self
            .incarnation
            .as_ref()
            .filter(|i| i.meta.owner.as_ref().is_some_and(|o| o.id == self.vm.meta.id))
        {
            if !i.is_wanted() && !self.host_gone {
                return Ok(Next::Done);
            }
            self.drop_incarnation(&mut tx, i).await?;
        } else if self.ports.iter().any(Option::is_some) {
            for p in self.ports.iter().flatten().filter(|p| p.is_wanted()) {
                tx.update(p, |p| p.meta.deleting = Some(wall())).await?;
            }
            if tx.is_empty() {
                return Ok(Next::Done);
            }
        } else {
            let lost = |f: &str| self.host_gone && f == DISK_FINALIZER;
            tx.update(&self.vm, |v| v.meta.finalizers.retain(|f| f != VM_FINALIZER && !lost(f))).await?;
        }
        match tx.commit().await {
            Ok(_) => Ok(Next::Done),
            Err(e) if e.code == Code::Conflict && e.what.contains("in use") => {
                Err(Error::internal("a port of the vm is named by something else").why(e))
            }
            Err(e) => Err(e),
        }
    }
}

#[cfg(test)]
mod tests;
