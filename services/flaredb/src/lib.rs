//! FlareDB: the distributed store under everything large.
//!
//! Rooms: [`key`] and [`time`] (encodings that keep order), [`model`] (a region as a pure state machine).

#[allow(missing_docs, reason = "wip")]
pub mod key;
pub mod model;
mod refusal;
pub mod time;

pub use refusal::{LockInfo, Outcome, Refusal};
