//! The resource model and its generic server: one mechanism gives every service its API.
//!
//! A kind is a Rust type that implements [`Resource`]; a [`Registry`] knows all kinds of a program
//! ([`KindInfo`], with the types erased); a [`Store`] keeps objects on any `photon_kv::Kv` and holds
//! the rules (names, references, finalizers, generations, idempotency); [`Tx`] alone changes objects,
//! and writes the audit record of each change of a wish into the same commit, for users and for
//! the cloud's own parts alike; [`http`] serves it: CRUD, lists with cursors, watches, dry runs,
//! problem documents, OpenAPI.
//!
//! Invariants: an object that refers to another keeps it from being removed; a generation changes
//! exactly when the wish does; nobody but a holder of an `Authorized` reaches the store through HTTP.

mod admit;
mod audit;
mod diff;
mod draft;
pub mod http;
mod keys;
mod kind;
mod meta;
mod object;
mod openapi;
mod registry;
mod selector;
mod store;
mod tx;

use audit::Actor;
pub use audit::AuditRecord;
pub use diff::{FieldChange, diff};
pub use draft::Draft;
pub use keys::{AUDIT_PREFIX, Key, RESOURCE_PREFIX, ROOT, claim_key, kind_range, parse_key};
pub use kind::{Column, Flag, Reference, Resource, Scope};
pub use meta::{Meta, Owner};
pub use object::{Object, Raw};
pub use registry::{KindInfo, Registry};
pub use selector::Selector;
pub use store::{ListPage, ListQuery, Store};
pub use tx::{PROJECT_KIND, Tx};
