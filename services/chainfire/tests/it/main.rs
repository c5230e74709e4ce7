//! Integration tests of ChainFire: foreign clients, a real etcd as oracle, restarts, hostile input.

mod codegen;
mod differential;
mod etcdctl;
mod harness;
mod hostile;
mod kv;
mod tenant;
mod watch;
