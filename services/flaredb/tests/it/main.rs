//! FlareDB on the real log and engine.

mod crash;
mod node;
