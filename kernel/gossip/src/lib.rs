//! Which other nodes answer, and where they are. Every node of a cloud runs this on one UDP port (2381);
//! what it costs a node does not grow with the cluster. It never decides who is a member of a consensus
//! group.
//!
//! Rooms: [`Gossip`] (`run`) is the edge: socket, clock, a task. `core` decides: packets, deadlines and
//! wishes in, packets and a view out, nothing else; SWIM itself is foca's (Das et al. 2002, with suspicion).
//! `wire` is the form of messages, `seal` keeps everybody out who has not the cluster's key, `peer` is what
//! others see, `sim` runs fifty cores on a bad network from one seed.
//!
//! Invariants:
//! - A node has a name; a life of it is a generation (`id`). Of two lives of one name the later one is
//!   believed everywhere. A node that others hold for dead begins a new life at once, and so does one that
//!   restarts; a name that another node took at another address is not fought over: the later life keeps it,
//!   the other one says so and waits until the name is free.
//! - Down is believed only of the life that it was said of.
//! - Rumours spread quickly and may get lost; what nodes know is also compared, pair by pair, for ever
//!   (`core/sync`), so that every difference goes away without another event.
//! - Whoever cannot hear doubts itself first: a node that hears nobody, or stood still, waits twice as long
//!   before it holds others for dead (Lifeguard, Dadgar et al. 2018); one that others held for dead drops its
//!   judgements and asks again.
//! - Packets come from holders of the key, count once, have at most 1,400 bytes, and are answered by at most
//!   one packet, to the address inside the seal.
//! - Bounded: [`PEERS_MAX`] nodes, facts ([`FACTS_BYTES_MAX`]), seeds, forgotten names.

mod bug;
mod core;
mod counters;
mod id;
mod peer;
mod run;
mod seal;
#[cfg(test)]
mod sim;
mod wire;
#[cfg(test)]
mod wire_tests;

pub use core::{PEERS_MAX, SEEDS_MAX, Timings};
pub use counters::Counters;
pub use peer::{
    FACT_KEY_MAX, FACT_VALUE_MAX, FACTS_BYTES_MAX, FACTS_MAX, Facts, Liveness, Peer, Seen, check_facts,
};
pub use run::{Gossip, GossipConfig, PeersView};
pub use seal::GossipKey;
