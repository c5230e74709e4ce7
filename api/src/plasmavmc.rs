//! Kinds of PlasmaVMC. What the owner has is a `vm`; one run of it on one host is an `incarnation`, which
//! carries an epoch: a host that has seen a greater epoch of a VM refuses the smaller one.

use crate::{Condition, NetworkSpec};
use photon_base::{Bytes, Error, Name, Result, Timestamp, Uid};
use photon_resource::{Column, Flag, Reference, Resource, Scope};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;

/// Form of an image's content.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ImageFormat {
    /// Bytes of a disk.
    #[default]
    Raw,
    /// QEMU's format, version 2 or 3, without backing or data files.
    Qcow2,
    /// A kernel and an initial RAM file system, started without firmware. Built in; can't be imported.
    Kernel,
}

/// Something to boot from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ImageSpec {
    /// Format of the content that is uploaded.
    #[serde(default)]
    pub format: ImageFormat,
    /// What it is.
    #[serde(default)]
    pub description: String,
    /// Least memory of a guest.
    #[serde(default)]
    pub min_memory: Bytes,
}

/// State of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImageStatus {
    /// pending (waits for content), ready or failed.
    #[serde(default)]
    pub phase: String,
    /// SHA-256 of the content as uploaded.
    #[serde(default)]
    pub sha256: String,
    /// Size of the disk that a guest sees; for kernels the size of the files.
    #[serde(default)]
    pub size: Bytes,
    /// Hosts that hold the content; VMs of the image run there.
    #[serde(default)]
    pub hosts: Vec<Name>,
    /// Generation that this state answers.
    #[serde(default)]
    pub observed_generation: u64,
    /// Aspects.
    #[serde(default)]
    pub conditions: Vec<Condition>,
}

impl Resource for ImageSpec {
    type Status = ImageStatus;
    const KIND: &'static str = "image";
    const PLURAL: &'static str = "images";
    const SCOPE: Scope = Scope::Cluster;
    const SERVICE: &'static str = "plasmavmc";
    const COLUMNS: &'static [Column] = &[
        Column { title: "FORMAT", pointer: "/spec/format" },
        Column { title: "SIZE", pointer: "/status/size" },
        Column { title: "PHASE", pointer: "/status/phase" },
        Column { title: "DESCRIPTION", pointer: "/spec/description" },
    ];
    const SETTLED: &'static [&'static str] = &["ready"];
    const FAILED: &'static [&'static str] = &["failed"];
    const FINALIZERS: &'static [&'static str] = &["plasmavmc-agent"];

    fn validate_update(&self, old: &Self) -> Result<()> {
        if self.format != old.format { Err(Error::invalid("format", "can't be changed")) } else { Ok(()) }
    }
}

/// Whether a VM should run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Power {
    /// It runs.
    #[default]
    Running,
    /// It is off.
    Stopped,
    /// It stands still and keeps its memory.
    Paused,
}

/// What happens when a VM's process or guest ends by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    /// It starts again, whatever the reason.
    Always,
    /// It starts again unless the guest shut itself down.
    #[default]
    OnFailure,
    /// It stays off.
    Never,
}

/// An interface of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NicSpec {
    /// Network it is on.
    pub network: Name,
    /// Address wished for; any free one otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<Ipv4Addr>,
}

fn one() -> u32 {
    1
}

fn default_memory() -> Bytes {
    Bytes::mib(256)
}

/// A virtual machine as its owner wants it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VmSpec {
    /// Image to boot from.
    pub image: Name,
    /// Virtual CPUs, 1–64.
    #[serde(default = "one")]
    pub cpus: u32,
    /// Memory, 32MiB–1TiB, in whole MiB.
    #[serde(default = "default_memory")]
    pub memory: Bytes,
    /// Size of the root disk; the image's own size if not given. Not for images without a disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<Bytes>,
    /// Interfaces, at most 8, each on another network.
    #[serde(default)]
    pub networks: Vec<NicSpec>,
    /// running, stopped or paused.
    #[serde(default)]
    pub power: Power,
    /// What to do when it ends by itself: always, on-failure or never start again.
    #[serde(default)]
    pub restart: Restart,
    /// Raise it by one to have the guest reboot in an orderly way.
    #[serde(default)]
    pub reboots: u64,
    /// Raise it by one to have the machine reset at once.
    #[serde(default)]
    pub resets: u64,
}

/// Where a VM or an incarnation is in its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Waits for a host, a port or an image.
    #[default]
    Pending,
    /// The process is being started.
    Starting,
    /// The guest runs.
    Running,
    /// The guest stands still.
    Paused,
    /// The guest is being shut down.
    Stopping,
    /// It is off.
    Stopped,
    /// It can't run; the conditions say why.
    Failed,
}

/// State of a VM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VmStatus {
    /// Where it is in its life.
    #[serde(default)]
    pub phase: Phase,
    /// Addresses in the order of its interfaces.
    #[serde(default)]
    pub addresses: Vec<Ipv4Addr>,
    /// Host it is on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<Name>,
    /// Epoch of the newest incarnation.
    #[serde(default)]
    pub epoch: u64,
    /// Times that it was started again after ending by itself.
    #[serde(default)]
    pub restarts: u64,
    /// Generation that this state answers.
    #[serde(default)]
    pub observed_generation: u64,
    /// Aspects.
    #[serde(default)]
    pub conditions: Vec<Condition>,
}

impl Resource for VmSpec {
    type Status = VmStatus;
    const KIND: &'static str = "vm";
    const PLURAL: &'static str = "vms";
    const SCOPE: Scope = Scope::Project;
    const SERVICE: &'static str = "plasmavmc";
    const COLUMNS: &'static [Column] = &[
        Column { title: "PHASE", pointer: "/status/phase" },
        Column { title: "ADDRESS", pointer: "/status/addresses" },
        Column { title: "HOST", pointer: "/status/host" },
        Column { title: "IMAGE", pointer: "/spec/image" },
        Column { title: "CPUS", pointer: "/spec/cpus" },
        Column { title: "MEMORY", pointer: "/spec/memory" },
    ];
    const FLAGS: &'static [Flag] = &[Flag {
        name: "network",
        pointer: "/networks/-/network",
        help: "Network of an interface; may be repeated",
    }];
    const SETTLED: &'static [&'static str] = &["running", "paused", "stopped"];
    const FAILED: &'static [&'static str] = &["failed"];
    const FINALIZERS: &'static [&'static str] = &["plasmavmc", "plasmavmc-disk"];

    fn validate(&self) -> Result<()> {
        if !(1..=64).contains(&self.cpus) {
            return Err(Error::invalid("cpus", format!("{} is not between 1 and 64", self.cpus)));
        }
        let mib = Bytes::mib(1).0;
        if self.memory < Bytes::mib(32)
            || self.memory > Bytes::gib(1024)
            || !self.memory.0.is_multiple_of(mib)
        {
            return Err(Error::invalid(
                "memory",
                format!("{} is not between 32MiB and 1TiB in whole MiB", self.memory),
            ));
        }
        if self
            .disk
            .is_some_and(|d| d < Bytes::mib(1) || d > Bytes::gib(16 << 10) || !d.0.is_multiple_of(mib))
        {
            return Err(Error::invalid("disk", "is not between 1MiB and 16TiB in whole MiB"));
        }
        if self.networks.len() > 8 {
            return Err(Error::invalid("networks", "are more than 8"));
        }
        for (i, n) in self.networks.iter().enumerate() {
            if self.networks[..i].iter().any(|o| o.network == n.network) {
                return Err(Error::invalid(
                    format!("networks[{i}].network"),
                    format!("{} is named twice", n.network),
                ));
            }
        }
        Ok(())
    }

    fn validate_update(&self, old: &Self) -> Result<()> {
        for (field, same) in [
            ("image", self.image == old.image),
            ("networks", self.networks == old.networks),
            ("disk", self.disk == old.disk),
            ("cpus", self.cpus == old.cpus || self.power == Power::Stopped),
            ("memory", self.memory == old.memory || self.power == Power::Stopped),
        ] {
            if !same {
                let hint = match field {
                    "cpus" | "memory" => "stop the vm first: photon vm stop NAME",
                    _ => "make a new vm",
                };
                return Err(Error::invalid(field, "can't be changed now").hint(hint));
            }
        }
        if self.reboots < old.reboots || self.resets < old.resets {
            return Err(Error::invalid(
                if self.reboots < old.reboots { "reboots" } else { "resets" },
                "can only rise",
            ));
        }
        Ok(())
    }

    fn references(&self) -> Vec<Reference> {
        let image = Reference { field: "image".into(), kind: ImageSpec::KIND, name: self.image.clone() };
        let nic = |(i, n): (usize, &NicSpec)| Reference {
            field: format!("networks[{i}].network"),
            kind: NetworkSpec::KIND,
            name: n.network.clone(),
        };
        std::iter::once(image).chain(self.networks.iter().enumerate().map(nic)).collect()
    }
}

/// One run of a VM on one host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct IncarnationSpec {
    /// Identity of the VM.
    pub vm: Uid,
    /// Host that runs it.
    pub host: Name,
    /// Rises with each incarnation of the VM.
    pub epoch: u64,
    /// Image to boot from.
    pub image: Name,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Memory.
    pub memory: Bytes,
    /// Size of the root disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<Bytes>,
    /// Ports of its interfaces, in order.
    #[serde(default)]
    pub ports: Vec<Name>,
    /// running, stopped or paused.
    #[serde(default)]
    pub power: Power,
    /// Orderly reboots asked for so far.
    #[serde(default)]
    pub reboots: u64,
    /// Resets asked for so far.
    #[serde(default)]
    pub resets: u64,
}

/// State of an incarnation, written by its host's agent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct IncarnationStatus {
    /// Where it is in its life.
    #[serde(default)]
    pub phase: Phase,
    /// True when it ended because the guest shut down, false when it was stopped or died.
    #[serde(default)]
    pub guest_shutdown: bool,
    /// True when it ended because its host was told to stop its VMs; it starts again with the host.
    #[serde(default)]
    pub host_stopped: bool,
    /// True when it ended by itself, though wanted.
    #[serde(default)]
    pub ended: bool,
    /// Process on the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Whether the guest runs on hardware virtualisation (kvm) or is emulated (tcg).
    #[serde(default)]
    pub accelerator: String,
    /// When the process was started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// Orderly reboots done.
    #[serde(default)]
    pub reboots: u64,
    /// Resets done.
    #[serde(default)]
    pub resets: u64,
    /// Why it failed, for people.
    #[serde(default)]
    pub message: String,
    /// Generation that this state answers.
    #[serde(default)]
    pub observed_generation: u64,
}

impl Resource for IncarnationSpec {
    type Status = IncarnationStatus;
    const KIND: &'static str = "incarnation";
    const PLURAL: &'static str = "incarnations";
    const SCOPE: Scope = Scope::Project;
    const SERVICE: &'static str = "plasmavmc";
    const SYSTEM: bool = true;
    const COLUMNS: &'static [Column] = &[
        Column { title: "PHASE", pointer: "/status/phase" },
        Column { title: "HOST", pointer: "/spec/host" },
        Column { title: "EPOCH", pointer: "/spec/epoch" },
        Column { title: "PID", pointer: "/status/pid" },
        Column { title: "ACCELERATOR", pointer: "/status/accelerator" },
    ];
    const FINALIZERS: &'static [&'static str] = &["plasmavmc-agent"];
}

/// A machine that runs VMs; made by its own agent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HostSpec {
    /// True keeps new VMs away.
    #[serde(default)]
    pub cordoned: bool,
}

/// State of a host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HostStatus {
    /// ready or unready.
    #[serde(default)]
    pub phase: String,
    /// CPUs.
    #[serde(default)]
    pub cpus: u32,
    /// Memory.
    #[serde(default)]
    pub memory: Bytes,
    /// kvm or tcg.
    #[serde(default)]
    pub accelerator: String,
    /// Whether VMs get networks of their own (root) or user-mode networking.
    #[serde(default)]
    pub networking: String,
    /// Last sign of life.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seen: Option<Timestamp>,
}

impl Resource for HostSpec {
    type Status = HostStatus;
    const KIND: &'static str = "host";
    const PLURAL: &'static str = "hosts";
    const SCOPE: Scope = Scope::Cluster;
    const SERVICE: &'static str = "plasmavmc";
    const COLUMNS: &'static [Column] = &[
        Column { title: "PHASE", pointer: "/status/phase" },
        Column { title: "CPUS", pointer: "/status/cpus" },
        Column { title: "MEMORY", pointer: "/status/memory" },
        Column { title: "ACCELERATOR", pointer: "/status/accelerator" },
        Column { title: "NETWORKING", pointer: "/status/networking" },
    ];
}
