//! Placement. Pure: hosts and what runs on them in, a host or the reasons against each out.

use photon_api::{HostSpec, IncarnationSpec};
use photon_base::{Bytes, Name};
use photon_resource::Object;

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// This host.
    On(Name),
    /// None, and why, host by host.
    Nowhere(String),
}

/// Something that a VM needs and only some hosts have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bond {
    /// They have it.
    pub hosts: Vec<Name>,
    /// What it is, as in `its disk is`.
    pub why: String,
}

/// Memory that stays the host's own.
const RESERVED: Bytes = Bytes::mib(512);

/// The ready host with the most free memory that has what the VM needs, and room for `memory` and as many CPUs.
pub fn place(
    hosts: &[Object<HostSpec>],
    running: &[Object<IncarnationSpec>],
    bonds: &[Bond],
    cpus: u32,
    memory: Bytes,
) -> Place {
    if hosts.is_empty() {
        return Place::Nowhere("no host has joined yet".into());
    }
    let mut best: Option<(u64, &Name)> = None;
    let mut against = Vec::new();
    for h in hosts {
        let name = &h.meta.name;
        let used: u64 = running.iter().filter(|i| i.spec.host == *name).map(|i| i.spec.memory.0).sum();
        let free = h.status.memory.0.saturating_sub(RESERVED.0).saturating_sub(used);
        let refusal = if let Some(b) = bonds.iter().find(|b| !b.hosts.contains(name)) {
            let there: Vec<&str> = b.hosts.iter().map(Name::as_str).collect();
            Some(format!("is not where {} ({})", b.why, there.join(", ")))
        } else if h.spec.cordoned {
            Some("is cordoned".to_string())
        } else if h.status.phase != "ready" || !h.is_wanted() {
            Some("is not ready".to_string())
        } else if cpus > h.status.cpus.saturating_mul(4) {
            Some(format!("has {} cpus, and a guest may have at most four times as many", h.status.cpus))
        } else if free < memory.0 {
            Some(format!("has {} of memory free", Bytes(free >> 20 << 20)))
        } else {
            None
        };
        match refusal {
            Some(r) => against.push(format!("{name} {r}")),
            None if best.is_none_or(|(f, _)| free > f) => best = Some((free, name)),
            None => {}
        }
    }
    match best {
        Some((_, name)) => Place::On(name.clone()),
        None => {
            let shown = against.len().min(5);
            let more = against.len() - shown;
            let tail = if more > 0 { format!(", and {more} more") } else { String::new() };
            Place::Nowhere(format!("{}{tail}", against[..shown].join("; ")))
        }
    }
}
