//! PrismNET: tenant networks on one host.
//!
//! Rooms: [`control`] decides which port has which address, [`agent`] makes networks and ports of this host
//! so, [`engine`] is the data plane (explicit plans in, kernel state out), [`dhcp`] answers guests. Port
//! 9091. State: the kinds `network` and `port`, and claims of addresses below
//! `/photon.internal/claim/ipam/`.
//!
//! Invariants: no address is held twice and none is lost, wherever a crash falls; a guest can send only
//! from its own addresses; networks never meet, whatever their prefixes.

pub mod agent;
pub mod control;
pub mod dhcp;
pub mod engine;
