//! FlareDB: the distributed store under everything large.
//!
//! Rooms: [`key`] and [`time`] (encodings that keep order), [`model`] (a region as a pure state machine).

mod bug;
pub mod client;
pub mod key;
mod machine;
pub mod model;
pub mod node;
mod refusal;
#[cfg(test)]
mod sim;
pub mod time;

pub use node::Node;
pub use refusal::{LockInfo, Outcome, Refusal};
