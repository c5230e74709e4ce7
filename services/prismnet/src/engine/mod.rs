//! The data plane of one host: explicit plans in, kernel state out. It knows nothing of resources.
//!
//! A stopgap until the eBPF data plane, behind the trait that the real one will have: one network
//! namespace per network, a bridge in it, TAP devices on the bridge, NAT to the outside through a veth
//! pair. [`LinuxPlane`] does it as root; [`UserPlane`] makes nothing (VMs use QEMU's user networking)
//! and says what is missing.
//!
//! Invariants: every `ensure` can be repeated and heals what a crash left half done; every removal is
//! safe when nothing is there. A TAP is never up without its filter rules. Networks share no device,
//! no route table and no neighbour table, so equal prefixes never meet; nothing of a network reaches
//! the host or another network.

mod linux;
mod user;

pub use linux::{BRIDGE, LinuxPlane};
pub use user::UserPlane;

use async_trait::async_trait;
use photon_base::{Error, Result, Uid};
use std::{collections::BTreeMap, net::Ipv4Addr, path::PathBuf};

/// A network as it shall be on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkPlan {
    /// The network.
    pub id: Uid,
    /// Address of the gateway, which is also where DHCP and DNS answer.
    pub gateway: Ipv4Addr,
    /// Length of the prefix.
    pub prefix: u8,
    /// Largest packet.
    pub mtu: u16,
    /// Whether guests reach the outside.
    pub nat: bool,
}

impl NetworkPlan {
    /// The network's own address.
    pub fn base(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.gateway.to_bits() & u32::MAX.unbounded_shl(32 - u32::from(self.prefix)))
    }

    fn check(&self) -> Result<()> {
        if !(8..=30).contains(&self.prefix) {
            return Err(Error::invalid("prefix", format!("{} is not within 8–30", self.prefix)));
        }
        if !(576..=9216).contains(&self.mtu) {
            return Err(Error::invalid("mtu", format!("{} is not within 576–9216", self.mtu)));
        }
        if self.gateway == self.base() {
            return Err(Error::invalid("gateway", "it is the network's own address"));
        }
        Ok(())
    }
}

/// A port as it shall be on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortPlan {
    /// The port.
    pub id: Uid,
    /// Its network, ensured before.
    pub network: Uid,
    /// The only hardware address that may send.
    pub mac: [u8; 6],
    /// The only address that may send.
    pub address: Ipv4Addr,
    /// Largest packet.
    pub mtu: u16,
}

/// What exists on this host: names of TAP devices by the name of their namespace.
pub type Found = BTreeMap<String, Vec<String>>;

/// How networks and ports come to be on a host.
#[async_trait]
pub trait DataPlane: Send + Sync {
    /// What this host cannot do and what would help, one sentence each; empty when all is well.
    fn missing(&self) -> Vec<String>;

    /// Path of a network's namespace; None where VMs use user-mode networking.
    fn netns(&self, network: Uid) -> Option<PathBuf>;

    /// Name of a port's TAP device inside the namespace.
    fn tap(&self, port: Uid) -> Option<String>;

    /// Makes the network be as planned.
    async fn ensure_network(&self, plan: &NetworkPlan) -> Result<()>;

    /// Makes the port be as planned. Its network must be there.
    async fn ensure_port(&self, plan: &PortPlan) -> Result<()>;

    /// Makes the port not be.
    async fn remove_port(&self, network: Uid, port: Uid) -> Result<()>;

    /// Makes the network and all its ports not be.
    async fn remove_network(&self, network: Uid) -> Result<()>;

    /// Everything of ours on this host.
    async fn list(&self) -> Result<Found>;

    /// Removes everything of ours that is not in `keep` (networks with their ports).
    async fn sweep(&self, keep: &BTreeMap<Uid, Vec<Uid>>) -> Result<()>;
}
