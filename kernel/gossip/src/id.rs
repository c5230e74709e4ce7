//! Who a node is in the eyes of SWIM: a name, one life of it, an address.
//!
//! Invariant: of two identities of one name exactly one beats the other ([`Id::beats`]), everywhere.

use aws_lc_rs::digest;
use photon_base::{Name, Timestamp};
use std::{net::SocketAddr, sync::Arc};

/// One life of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Id {
    /// Eight bytes of the name's SHA-256: what lists are ordered and compared by. Two names of one key
    /// (2^-41 for 4,096 names) would look like two nodes that claim one name, and be told.
    pub key: u64,
    /// Rises with every life: milliseconds on the wall, then 20 random bits.
    pub generation: u64,
    /// Where it listens.
    pub addr: SocketAddr,
    /// The name.
    pub name: Arc<Name>,
}

impl Id {
    pub(crate) fn new(name: Name, generation: u64, addr: SocketAddr) -> Self {
        let hash = digest::digest(&digest::SHA256, name.as_str().as_bytes());
        let mut key = [0; 8];
        key.copy_from_slice(&hash.as_ref()[..8]);
        Id { key: u64::from_be_bytes(key), generation, addr, name: Arc::new(name) }
    }

    /// True when this life is the one to believe in. Two nodes that draw one generation are told apart
    /// by their addresses.
    pub(crate) fn beats(&self, other: &Id) -> bool {
        (self.generation, self.addr, &self.name) > (other.generation, other.addr, &other.name)
    }
}

/// A generation for a life that begins now. Wall clock and entropy rather than a counter on disk: a disk
/// that is lost or restored must not bring an old life back. A clock that went back is made good by
/// whoever knows a later life (`Core::renew`).
pub(crate) fn generation(wall: Timestamp, entropy: u64) -> u64 {
    (wall.0.min((1 << 44) - 1) << 20) | (entropy & 0xf_ffff)
}

impl foca::Identity for Id {
    type Addr = u64;

    /// Never by foca itself: a new life needs the clock, and must beat what others know.
    fn renew(&self) -> Option<Self> {
        None
    }

    fn addr(&self) -> u64 {
        self.key
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        self.beats(adversary)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_two_lives_wins() {
        let id = |g, port| Id::new("a".parse().unwrap(), g, SocketAddr::from(([10, 0, 0, 1], port)));
        for (a, b) in [(id(1, 9), id(2, 1)), (id(2, 1), id(2, 2))] {
            assert!(b.beats(&a) && !a.beats(&b));
        }
        assert!(!id(1, 1).beats(&id(1, 1)));
        assert!(generation(Timestamp(2), 0) > generation(Timestamp(1), u64::MAX));
    }
}
