//! DHCPv4 for the ports of one network: [`answer`] is the whole protocol as a pure function over
//! static leases, [`Server`] the socket inside the network's namespace.
//!
//! `dhcproto` was weighed: 56 crates and 31 CPU-seconds for a codec of a few hundred lines.
//!
//! Invariants: only hardware addresses that belong to a port are answered, each always with the same
//! address; every parser is bounded by the packet; there is no relay, so a packet that names one is
//! dropped.

mod codec;
mod decide;
mod serve;

pub use codec::{Kind, Message, Options};
pub use decide::{Answer, Lease, Leases, answer};
pub use serve::Server;
