//! The client of our own API: several front doors, one used until it fails; TLS that trusts only the cluster's
//! authority, login on demand, retries of what is safe to retry (reads, and changes under an idempotency key),
//! watches that resume, WebSockets for consoles.
//!
//! Invariants: an answer is never made up (what cannot be known says so); a change is sent again only
//! under the same idempotency key; secrets are never part of an error or a log line.

mod connection;
mod meet;
mod profile;
mod sse;
mod watch;

pub use connection::{Body, Client, Credentials, WebSocket};
pub use meet::{Met, meet};
pub use profile::Profile;
pub use watch::{Change, Watch};
