//! Level-triggered controllers. A [`Reconcile`] gets a key, never an event; it reads the [`View`] (an
//! in-memory copy of all objects, fed by one watch) through its [`Context`], makes what is so look like
//! what is wanted, and is called again whenever anything that it read may have changed, when it asked
//! for it, after an error (with growing pauses), and for every key once a minute.
//!
//! Invariants: one call per key at a time; writes go through `photon_resource::Tx`, which refuses
//! what was decided on an outdated read; a reconciler keeps no state that a restart would miss.
//! [`harness`] proves it: a crash after every commit, and the same end state.

mod context;
pub mod harness;
pub mod lease;
mod manager;
mod queue;
mod view;

pub use context::Context;
pub use lease::Lease;
pub use manager::{Manager, Next, Poke, Reconcile};
pub use view::{Feed, View};
