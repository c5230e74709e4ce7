//! The store with real threads, on real and simulated disks.

mod bench;
mod cluster;
mod journal;
mod store;
