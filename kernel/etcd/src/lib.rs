//! etcd v3's interface: its messages ([`proto`], which ChainFire answers with) and a client of any etcd cluster
//! (etcd's own, or ChainFire over the network), which is also a `photon_kv::Kv`: a cloud runs on a foreign etcd.
//! The crate `etcd-client` was considered: it neither resumes watches nor says which refusals precede a write.
//!
//! Rooms: [`config`] (where the cluster is, how to prove who we are), [`link`] (one connection; other gRPC clients of ours use it too), `client` ([`Etcd`]:
//! which endpoint is asked, what is repeated), `fault` (what a refusal means), `watch` (resuming), `lease` (kept
//! alive), `txn` (a commit as etcd's transaction; pure), `kv` (the trait).
//!
//! What is repeated: reads always. Writes when they surely were not done (no connection, or a refusal that etcd
//! gives before it proposes). A commit whose answer was lost only when it writes a key that it checks to be at a
//! revision: revisions never come back, so it can happen once. All else is told as of unknown outcome.
//!
//! Invariants: a watch has no gap and no duplicate whatever happens to connections and members; answers of another
//! cluster than the first are refused; nothing is sent in plain text except to loopback.
//!
//! Tests against a real etcd and ChainFire: `services/chainfire/tests/it/client.rs`.

mod client;
pub mod codec;
pub mod config;
mod fault;
mod kv;
mod lease;
pub mod link;
pub mod proto;
mod txn;
mod watch;

pub use client::{Etcd, RangeQuery};
pub use config::{Config, Login};
pub use fault::{Fault, Outcome, never_connected};
pub use kv::versioned;
pub use lease::Kept;
pub use watch::{Batch, Ended};
