//! The store with real threads, on real and simulated disks.

#![allow(clippy::unwrap_used, reason = "tests")]

mod cluster;
mod journal;
mod peers;
mod store;
