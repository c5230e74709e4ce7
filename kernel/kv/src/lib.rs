//! Ordered key-value stores: [`Kv`], the trait that everything which stores intent speaks (ChainFire,
//! later FlareDB and a foreign etcd, and [`MemKv`] for tests and as the model), and [`engine`], the
//! local ordered storage below a replicated store. [`conformance`] holds the tests that every store passes.
//!
//! Invariants: revisions rise by one per commit that writes; a commit is all or nothing; a watch is
//! ordered by revision, has no gap and no duplicate, and never splits a revision.

mod api;
pub mod conformance;
pub mod engine;
mod mem;

pub use api::{
    Change, Check, Committed, Direction, Event, Events, Kv, KvError, KvResult, Page, Range, ReadAt, Revision,
    Versioned, Watch, Write,
};
pub use mem::MemKv;
