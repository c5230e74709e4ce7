//! The store with real threads, on real and simulated disks.

mod store;
