//! FlareDB on the real log and engine.

mod codegen;
mod crash;
mod node;
mod wire;
