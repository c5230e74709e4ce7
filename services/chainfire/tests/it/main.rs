//! Integration tests of ChainFire: foreign clients, a real etcd as oracle, restarts, hostile input.

#![allow(clippy::disallowed_methods, reason = "these tests start foreign programs and kill them")]

mod auth;
mod client;
mod cluster;
mod damage;
mod differential;
mod etcdctl;
mod gateway;
mod harness;
mod hostile;
mod import;
mod kill;
mod kv;
mod led;
mod line;
mod maintenance;
mod room;
mod stream;
mod tenant;
mod watch;
