//! The state machine: etcd's semantics over an ordered engine. Pure: its state and answers are a
//! function of the commands.

pub mod apply;
pub mod auth;
pub mod check;
pub mod hash;
pub mod layout;
pub mod members;
pub mod read;
pub mod rules;
pub mod stream;
#[cfg(test)]
mod tests;

pub use apply::{Answer, Batch, Change, Changes, LeaseEffect};
pub use read::Reader;
pub use rules::Rules;
