//! The vocabulary that every other room shares: errors with a code, a reason and a hint
//! ([`Error`]), names ([`Name`]), identities of records ([`Uid`]), instants on the wall clock
//! ([`Timestamp`]), quantities ([`Bytes`]) and page cursors ([`Cursor`]).
//!
//! Invariants: no I/O, no clock, no entropy, no async; every parser accepts foreign input and
//! answers with an [`Error`] that names the field; every type prints what it parses.

mod cursor;
mod error;
mod id;
mod name;
mod quantity;
mod timestamp;

pub use cursor::Cursor;
pub use error::{Code, Error, Result};
pub use id::Uid;
pub use name::Name;
pub use quantity::Bytes;
pub use timestamp::Timestamp;
