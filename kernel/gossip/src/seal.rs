//! The seal of every packet, and what keeps replays out.
//!
//! A packet is `version(1) process(16) counter(8) ciphertext tag(16)`. Each packet has an AES-256-GCM key
//! of its own, derived from the cluster's key: HMAC-SHA256(cluster key, label ‖ the 25 bytes in front),
//! as HKDF-Expand (RFC 5869 §2.3) with one block; the same idea as XAES-256-GCM (C2SP). The nonce is zero.
//! That is safe as long as no two packets have the same 25 bytes: `process` is drawn from the kernel when
//! the process starts (2^64 starts for an even chance that two are equal) and `counter` rises by one for
//! each packet. A plain random nonce would not do: 96 bits wear out after 2^32 packets under one key
//! (NIST SP 800-38D §8.3), which a large cluster sends in a day. The cipher proves that the sender has the
//! cluster's key, and with it the cluster; the version is authenticated with the rest.
//!
//! Replays: [`Window`] (RFC 6479) lets each counter of a known life of a node in once. What a node that has
//! just started accepts twice changes nothing: SWIM's states only move up a ladder of (life, incarnation,
//! state), facts up a ladder of (life, version), and answers go to the address inside the seal.

use crate::bug::{Bug, Bugs};
use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey},
    hmac,
};
use zeroize::Zeroizing;

/// Version of the packets' form.
pub(crate) const VERSION: u8 = 1;
const FRONT: usize = 1 + 16 + 8;
const TAG: usize = 16;
/// Largest packet on the wire: below the MTU of every network in use, tunnels included (RFC 8085 §3.2).
pub(crate) const PACKET_MAX: usize = 1_400;
/// Largest content of a packet.
pub(crate) const PLAIN_MAX: usize = PACKET_MAX - FRONT - TAG;

/// The secret that all nodes of a cluster share.
#[derive(Clone)]
pub struct GossipKey(Zeroizing<[u8; 32]>);

impl GossipKey {
    /// A key from 32 secret bytes. They may serve other purposes too: what seals packets is derived.
    pub fn new(bytes: [u8; 32]) -> Self {
        GossipKey(Zeroizing::new(bytes))
    }
}

impl std::fmt::Debug for GossipKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("GossipKey(…)")
    }
}

/// Seals and opens the packets of one process.
pub(crate) struct Seal {
    key: hmac::Key,
    process: [u8; 16],
    counter: u64,
}

/// What was in a packet.
pub(crate) struct Opened<'a> {
    /// Number of the packet in its process.
    pub counter: u64,
    /// Content.
    pub plain: &'a [u8],
}

impl Seal {
    /// `process` has to be drawn anew whenever a process starts.
    pub(crate) fn new(key: &GossipKey, process: [u8; 16], bugs: Bugs) -> Self {
        let key = if bugs.on(Bug::ForeignAccepted) { &[0; 32] } else { &*key.0 };
        Seal { key: hmac::Key::new(hmac::HMAC_SHA256, key), process, counter: 0 }
    }

    fn packet_key(&self, front: &[u8]) -> Option<LessSafeKey> {
        let mut h = hmac::Context::with_key(&self.key);
        h.update(b"photon gossip packet\x01");
        h.update(front);
        UnboundKey::new(&AES_256_GCM, h.sign().as_ref()).ok().map(LessSafeKey::new)
    }

    /// Seals `plain`; nothing when it is too large.
    pub(crate) fn seal(&mut self, plain: &[u8]) -> Option<Vec<u8>> {
        if plain.len() > PLAIN_MAX {
            return None;
        }
        self.counter = self.counter.checked_add(1)?;
        let mut packet = Vec::with_capacity(FRONT + plain.len() + TAG);
        packet.push(VERSION);
        packet.extend_from_slice(&self.process);
        packet.extend_from_slice(&self.counter.to_be_bytes());
        packet.extend_from_slice(plain);
        let (front, body) = packet.split_at_mut(FRONT);
        let key = self.packet_key(front)?;
        let nonce = Nonce::assume_unique_for_key([0; 12]);
        let tag = key.seal_in_place_separate_tag(nonce, Aad::from(&*front), body).ok()?;
        packet.extend_from_slice(tag.as_ref());
        Some(packet)
    }

    /// Opens a packet in place; nothing when it is not of this cluster and version, whole and unchanged.
    pub(crate) fn open<'a>(&self, packet: &'a mut [u8]) -> Option<Opened<'a>> {
        if packet.len() < FRONT + TAG || packet.len() > PACKET_MAX || packet[0] != VERSION {
            return None;
        }
        let (front, body) = packet.split_at_mut(FRONT);
        let counter = u64::from_be_bytes(front[17..].try_into().ok()?);
        let key = self.packet_key(front)?;
        let nonce = Nonce::assume_unique_for_key([0; 12]);
        let plain = key.open_in_place(nonce, Aad::from(&*front), body).ok()?;
        Some(Opened { counter, plain })
    }
}

/// Which counters of a sender were seen: all up to 127 below the highest.
#[derive(Clone, Debug, Default)]
pub(crate) struct Window {
    top: u64,
    /// Bit i: `top - i` was seen.
    bits: u128,
}

impl Window {
    /// True for a counter not seen before, which is then seen.
    pub(crate) fn fresh(&mut self, counter: u64) -> bool {
        if self.bits == 0 || counter > self.top {
            let by = counter.saturating_sub(self.top);
            self.bits = 1 | if by < 128 { self.bits << by } else { 0 };
            self.top = counter;
            return true;
        }
        let back = self.top - counter;
        if back >= 128 || self.bits >> back & 1 == 1 {
            return false;
        }
        self.bits |= 1 << back;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn seal(key: u8, process: u8) -> Seal {
        Seal::new(&GossipKey::new([key; 32]), [process; 16], Bugs::default())
    }

    #[test]
    fn only_the_same_cluster_opens_a_packet() {
        let packet = seal(1, 1).seal(b"hello").unwrap();
        assert_eq!(seal(1, 2).open(&mut packet.clone()).unwrap().plain, b"hello");
        assert!(seal(2, 2).open(&mut packet.clone()).is_none());
        for i in 0..packet.len() {
            let mut changed = packet.clone();
            changed[i] ^= 1;
            assert!(seal(1, 2).open(&mut changed).is_none(), "byte {i}");
            assert!(seal(1, 2).open(&mut packet[..i].to_vec()).is_none(), "cut at {i}");
        }
    }

    #[test]
    fn equal_contents_are_sealed_differently() {
        let mut s = seal(1, 1);
        let (a, b) = (s.seal(b"hello").unwrap(), s.seal(b"hello").unwrap());
        assert_ne!(a[FRONT..], b[FRONT..]);
        assert_ne!(a[FRONT..], seal(1, 2).seal(b"hello").unwrap()[FRONT..]);
    }

    #[test]
    fn packets_have_a_largest_size() {
        let mut s = seal(1, 1);
        assert_eq!(s.seal(&[0; PLAIN_MAX]).unwrap().len(), PACKET_MAX);
        assert!(s.seal(&[0; PLAIN_MAX + 1]).is_none());
    }

    proptest! {
        #[test]
        fn the_window_lets_each_counter_in_once(counters in prop::collection::vec(0u64..400, 1..200)) {
            let (mut w, mut seen, mut top) = (Window::default(), std::collections::BTreeSet::new(), 0);
            for c in counters {
                let fresh = w.fresh(c);
                prop_assert!(!(fresh && seen.contains(&c)), "{c} twice");
                prop_assert!(fresh || seen.contains(&c) || top - c >= 128, "{c} refused");
                seen.insert(c);
                top = top.max(c);
            }
        }

        #[test]
        fn random_bytes_open_nothing(mut bytes in prop::collection::vec(any::<u8>(), 0..1500)) {
            prop_assert!(seal(1, 1).open(&mut bytes).is_none());
        }
    }
}
