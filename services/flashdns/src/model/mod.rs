//! DNS without I/O: names and messages on the wire, zones as immutable snapshots, and [`answer`], the
//! whole behaviour of a server as a function of a packet and a snapshot.
//!
//! NLnet Labs' `domain` was weighed for the codec: 24 crates for one question in and five record types
//! out. It comes with zone files, TSIG and DNSSEC.
//!
//! Invariants: any bytes are survived; every answer is bounded by what its transport carries (512 to
//! 1232 bytes over UDP), so nothing is amplified beyond that; what is not a query is not answered.

mod answer;
mod message;
mod name;
mod zone;

pub use answer::{Transport, Verdict, View, answer};
pub use message::{EDNS_SIZE, Query, Rcode, Refusal, Reply, rtype};
pub use name::Name;
pub use zone::{ADDRESSES_MAX, Zone};
