//! etcd v3's interface: its messages ([`proto`], which ChainFire answers with).

pub mod codec;
pub mod proto;
