//! FlashDNS: names.
//!
//! Rooms: [`model`] answers a packet from a snapshot (pure), [`wire`] serves UDP and TCP and forwards what is
//! not ours for guests, [`agent`] builds zones from ports. Port 53, on the host and on the gateway of
//! every network. State: none of its own; names follow from ports.
//!
//! Invariants: an answer uses one snapshot; a tenant's view holds only the names of its project; only the
//! views of networks with a way out forward.

pub mod agent;
pub mod model;
pub mod wire;
