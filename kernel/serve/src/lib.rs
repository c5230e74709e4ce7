//! How any service is run: listeners with TLS that turn a connection into a `Caller` ([`listen`]),
//! HTTP/2 from clients whose authority is malformed ([`authority`]), `/health` ([`health`]), metrics in Prometheus' text form ([`metrics`]), logs ([`logging`]).
//!
//! Invariants: a handler sees a `Caller` only if this room proved it by certificate or token; a
//! connection costs bounded memory and time before it has proven anything; shutdown lets running
//! requests end, for a bounded time.

pub mod authority;
pub mod health;
pub mod listen;
pub mod logging;
pub mod metrics;
mod unread;
