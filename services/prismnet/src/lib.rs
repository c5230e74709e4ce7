//! PrismNET: tenant networks on one host.
//!
//! Rooms: [`control`] decides which port has which address. Port 9091. State: the kinds `network` and
//! `port`, and claims of addresses below `/photon.internal/claim/ipam/`.

pub mod agent;
pub mod control;
pub mod dhcp;
pub mod engine;
