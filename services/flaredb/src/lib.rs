//! FlareDB: the distributed store under everything large.
//!
//! Rooms: [`key`] and [`time`] (encodings that keep order), [`model`] (a region as a pure state machine).

mod bug;
pub mod client;
pub mod key;
pub mod model;
mod refusal;
#[cfg(test)]
mod sim;
pub mod time;

pub use refusal::{LockInfo, Outcome, Refusal};
