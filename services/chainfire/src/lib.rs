//! ChainFire: the coordination store, an etcd v3 that etcd's own clients take for etcd.
//!
//! Rooms: [`model`] (etcd's semantics as a pure state machine over an ordered engine; `model::layout`
//! says what is on disk), `machine` (that state machine below the log), `hub` (changes for watchers, with an `index` of who wants what), `follow` (watches that read together),
//! `lessor` (lease timers) and `leases` (what clients and time ask of them), [`cluster`] (members), `sweep` (removal of compacted history), `room` (on the disk), `heal` (of damage), `queue` (locks and
//! elections), `store` (the running service),
//! [`snapshot`] (the file of a whole state), [`recover`] (a cluster out of one disk), [`import`] (copies another etcd), `kv` (the same store as a `photon_kv::Kv` for the kernel), [`wire`] (gRPC and HTTP).
//! etcdctl 3.4 needs a listener with `lenient_authority` (`photon_serve::listen`).
//!
//! Port: 2379 (gRPC and HTTP on one). Data: `<data_dir>/log` (the raft log), `<data_dir>/state` (the engine).
//!
//! A write's way: gRPC → shape and permission checks → command bytes → log, fdatasync → [`machine`]
//! applies a batch of commands to an overlay, writes it as one engine batch together with its place
//! in the log, publishes the new state, appends to the hub's ring → answer. A read's way: wait until
//! everything acknowledged is applied → read the published state.
//!
//! Invariants: a revision is what etcd would have given; the engine holds a prefix of the log and
//! knows which; a watcher sees every revision that it wants once, in order, whole; nobody but an
//! [`Scope::Operator`] sees keys under [`RESERVED_PREFIX`] or leases that an operator made.

pub mod cluster;
mod command;
mod compactor;
mod error;
mod follow;
mod heal;
mod hub;
pub mod import;
mod index;
mod kv;
mod leases;
mod lessor;
mod login;
mod machine;
#[allow(missing_docs, reason = "internal; public items are for the rooms of this crate")]
mod model;
mod plant;
mod queue;
pub mod recover;
mod room;
mod scope;
#[cfg(test)]
mod sim;
pub mod snapshot;
mod store;
mod sweep;
mod tokens;
mod who;
pub mod wire;

pub use compactor::Retention;
pub use error::{EtcdError, EtcdResult};
pub use scope::{RESERVED_PREFIX, Scope, Span};
pub use store::{ChainFire, ChainFireConfig};
pub use who::Anonymous;
