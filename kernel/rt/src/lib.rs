//! The only door to the world: clock ([`time`]), entropy ([`entropy`]), tasks ([`task`]), sockets
//! ([`net`]), files ([`fs`], and [`disk`] for data whose durability matters), processes
//! ([`process`]). `clippy.toml` bans every other way in, so that what passes through here is all a
//! simulation has to replace.
//!
//! Invariants: under a paused tokio runtime and [`entropy::seed`] everything here except sockets and
//! processes is a function of the seed. Tasks belong to a [`task::Tasks`] and end with it.

#![allow(clippy::disallowed_methods, reason = "this crate is the door that the ban points to")]

pub mod disk;
pub mod entropy;
pub mod fs;
pub mod net;
pub mod process;
pub mod task;
pub mod time;
