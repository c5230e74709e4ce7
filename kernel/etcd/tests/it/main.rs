//! Integration tests. Those of the client against a real etcd and ChainFire are `services/chainfire/tests/it/client.rs`,
//! where both can be started.

mod codegen;
