//! Cluster-wide decisions: which port has which address.

mod ipam;

pub use ipam::{IPAM_FINALIZER, Ipam};
