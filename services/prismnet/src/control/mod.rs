//! Cluster-wide decisions: which port has which address.

mod ipam;

pub use ipam::{AGENT_FINALIZER, IPAM_FINALIZER, Ipam};
