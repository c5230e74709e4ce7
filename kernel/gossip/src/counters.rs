//! What gossip counts about itself. The metrics door stands above this room: whoever has it reads
//! [`Counters::each`].

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($name:ident: $help:literal,)*) => {
        /// Counts since the start, and gauges.
        #[derive(Debug, Default)]
        pub struct Counters { $(
            #[doc = $help]
            pub(crate) $name: AtomicU64,
        )* }

        impl Counters {
            /// Name, meaning and value of each. Names that end in `_total` are counters, others gauges.
            pub fn each(&self) -> Vec<(&'static str, &'static str, u64)> {
                vec![$((
                    concat!("photon_gossip_", stringify!($name)),
                    $help,
                    self.$name.load(Ordering::Relaxed),
                )),*]
            }
        }
    };
}

counters! {
    packets_received_total: "Packets that came in, good and bad",
    packets_sent_total: "Packets sent",
    bytes_received_total: "Bytes that came in",
    bytes_sent_total: "Bytes sent",
    unsealed_total: "Packets dropped because no holder of the cluster's key made them",
    malformed_total: "Packets of key holders dropped because they are no message of ours",
    replayed_total: "Packets dropped because they came before",
    refused_total: "Packets and news dropped because their node was forgotten, or there are too many nodes",
    unsent_total: "Packets that the system did not take",
    renewed_total: "Times this node began a new life because others held it for dead",
    rivals_total: "Times another node was heard that claims this node's name",
    superseded: "1 while a newer node has this node's name",
    peers_alive: "Other nodes that answer",
    peers_suspect: "Other nodes under suspicion",
    peers_down: "Other nodes that do not answer, or left",
}

impl Counters {
    pub(crate) fn add(counter: &AtomicU64, n: usize) {
        counter.fetch_add(n as u64, Ordering::Relaxed);
    }
    pub(crate) fn inc(counter: &AtomicU64) {
        Self::add(counter, 1);
    }
    pub(crate) fn set(gauge: &AtomicU64, n: usize) {
        gauge.store(n as u64, Ordering::Relaxed);
    }
}
