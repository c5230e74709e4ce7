//! FlareDB: the distributed store under everything large. A multi-Raft transactional key-value database.
//!
//! Rooms, from the inside out: [`key`] and [`time`] (encodings that keep order, and timestamps), `oracle` (which of
//! several nodes gives them out),
//! [`model`] (one region as a pure state machine), `machine` (that machine below a Raft log, on the engine
//! that all regions of a node share), [`node`] (the regions of a node, alone or one of several: routing, gates, splits, merges,
//! restarts), [`client`] (transactions as their coordinator runs them), [`wire`] (gRPC on port 2479: keyspaces, who
//! may what, bounds, metrics), [`remote`] (the client's world over that). `sim` runs clients and regions from a
//! seed and checks what they saw; `bug` holds the mistakes that prove it.
//!
//! **Data.** Full keys are in one order and carry their mode: raw keys (one version; conditions and writes on
//! keys of one region are one log entry) and transactional keys (versions by timestamp). Keys of one row group
//! are never split apart. A region is a range of full keys; its borders are starts of row groups.
//! `<data_dir>/log` is the Raft log of all regions, `<data_dir>/state` the engine (`model::layout`).
//!
//! **A write's way.** Coordinator → the leader of the region that it takes for the owner of the key → bounds,
//! epoch and timestamps are checked → for commits whose timestamp the region derives, its gate gives the
//! floor → one log entry, fdatasync → the machine checks the epoch again and applies: writes, or a refusal and
//! nothing → answer. **A read's way.** Its timestamp must have been given: whoever read in
//! the future would push others' commits there. It raises the gate's floor, waits for derived commits under way on what
//! it reads, for the log (ReadIndex or lease), takes one view of the engine, and checks the epoch in it.
//!
//! **A transaction.** It reads at its start timestamp and buffers its writes. Commit: all keys are locked with
//! their new values (prewrite), then the primary is committed, which decides, then the rest. Shorter ways: one
//! phase when one region has it all; asynchronous commit, where the locks themselves are the commit.
//! Serializable transactions look again at what they read, at their commit timestamp, while their locks are
//! held. Pessimistic ones reserve keys as they read them, and find deadlocks.
//!
//! # What users can build on
//!
//! Ordered scans both ways; values to 1 MiB, keys to 16 KiB; multi-key compare-and-swap within a region (a row
//! group always is in one); row groups are never split; snapshot isolation or strict serializability over any
//! keys; an error ([`Refusal`]) for everything that is not done, and then nothing is changed; whoever is told
//! "committed" finds it after any crash; whoever is told "unknown" was told so because nobody who knows could
//! be reached.
//!
//! # Invariants
//!
//! What a region does is a function of its log. A command of another version of the range is refused when it is
//! applied, not only when it is sent. Two owners of a key at different times have different versions, the
//! later one the greater. A commit never becomes visible below a timestamp at which somebody has read. The
//! primary decides, whoever asks. No number of a region is given twice. A merge takes nobody in who has not durably
//! stopped on every member. Of several nodes, one gives timestamps at a time.
//!
//! # What is to come, and where it goes
//!
//! `placement` (pure: region map and heartbeats to operators; its elected place is a lease
//! with an epoch through the kernel's `Kv`), members of a region that change by
//! `photon_raft::Change`; TLS between nodes, several nodes in a cloud. `feed` (changes of a range up to a resolved timestamp, which the gate
//! and the oldest lock bound). `backup` (a scan at a timestamp, then the feed). The decisions that these
//! rest on are in docs/decisions/0007-flaredb.md.

mod bug;
pub mod client;
pub mod key;
mod machine;
pub mod model;
pub mod node;
mod oracle;
mod refusal;
pub mod remote;
#[cfg(test)]
mod sim;
pub mod time;
pub mod wire;

pub use node::Node;
pub use refusal::{LockInfo, Outcome, Refusal};
