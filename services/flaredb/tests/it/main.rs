//! FlareDB on the real log and engine.

mod cluster;
mod codegen;
mod crash;
mod network;
mod node;
mod wire;
