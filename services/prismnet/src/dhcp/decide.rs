//! What a client is answered (RFC 2131 section 4.3), as a pure function.

use super::codec::{Kind, Message, Options};
use std::{collections::HashMap, net::Ipv4Addr};

/// What one port is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Its address.
    pub address: Ipv4Addr,
    /// Its host name.
    pub hostname: String,
    /// Its domain, also the first search domain.
    pub domain: String,
    /// Further search domains.
    pub search: Vec<String>,
}

/// What a server of one network knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leases {
    /// The server's own address in the network.
    pub server: Ipv4Addr,
    /// Length of the network's prefix.
    pub prefix: u8,
    /// The way out; None where there is none.
    pub router: Option<Ipv4Addr>,
    /// Resolvers.
    pub dns: Vec<Ipv4Addr>,
    /// Largest packet.
    pub mtu: u16,
    /// Seconds until a client asks again. Leases are static: this only sets how soon a change of the
    /// other values arrives.
    pub seconds: u32,
    /// Who is answered.
    pub by_mac: HashMap<[u8; 6], Lease>,
}

/// An answer and where it goes (always to port 68).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The packet.
    pub packet: Vec<u8>,
    /// The client's address, or the broadcast address while it has none. (Unicast to an address that
    /// the client does not answer for yet would need raw frames; clients take broadcasts.)
    pub to: Ipv4Addr,
}

/// Answers one packet; None when there is nothing to say.
pub fn answer(packet: &[u8], leases: &Leases) -> Option<Answer> {
    let m = Message::parse(packet)?;
    if !m.giaddr.is_unspecified() {
        return None;
    }
    let lease = leases.by_mac.get(&m.mac)?;
    // The address that the client has in mind.
    let wish = m.requested.or(Some(m.ciaddr)).filter(|a| !a.is_unspecified());
    let verdict = match m.kind {
        Kind::Discover => Kind::Offer,
        Kind::Inform => Kind::Ack,
        // It chose another server.
        Kind::Request if m.server.is_some_and(|s| s != leases.server) => return None,
        Kind::Request if wish == Some(lease.address) => Kind::Ack,
        Kind::Request => Kind::Nak,
        Kind::Decline => {
            tracing::warn!(address = %lease.address, "a guest says that its address is in use by another");
            return None;
        }
        // The lease is the port's for as long as the port is.
        Kind::Release | Kind::Offer | Kind::Ack | Kind::Nak => return None,
    };
    let inform = m.kind == Kind::Inform;
    let (yiaddr, options) = match verdict {
        Kind::Nak => (Ipv4Addr::UNSPECIFIED, Options::default()),
        _ if inform => (Ipv4Addr::UNSPECIFIED, options(leases, lease, None)),
        _ => (lease.address, options(leases, lease, Some(leases.seconds))),
    };
    let to = if verdict == Kind::Nak || m.broadcast || m.ciaddr.is_unspecified() {
        Ipv4Addr::BROADCAST
    } else {
        // Never where a guest wants us to send: only to its own address.
        lease.address
    };
    Some(Answer { packet: m.reply(verdict, yiaddr, leases.server, options), to })
}

fn options(leases: &Leases, lease: &Lease, seconds: Option<u32>) -> Options {
    let mut o = Options::default();
    if let Some(s) = seconds {
        o.put(51, &s.to_be_bytes()).put(58, &(s / 2).to_be_bytes()).put(59, &(s / 8 * 7).to_be_bytes());
    }
    let mask = u32::MAX.unbounded_shl(32u32.saturating_sub(u32::from(leases.prefix)));
    o.put(1, &mask.to_be_bytes());
    o.addresses(3, leases.router.as_slice());
    o.addresses(6, &leases.dns);
    o.put(12, lease.hostname.as_bytes());
    o.put(15, lease.domain.as_bytes());
    o.put(26, &leases.mtu.to_be_bytes());
    o.put(28, &(leases.server.to_bits() | !mask).to_be_bytes());
    let search: Vec<String> =
        std::iter::once(&lease.domain).chain(&lease.search).filter(|d| !d.is_empty()).cloned().collect();
    o.search(&search);
    o
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const MINE: Ipv4Addr = Ipv4Addr::new(10, 20, 0, 5);
    const SERVER: Ipv4Addr = Ipv4Addr::new(10, 20, 0, 1);

    fn leases() -> Leases {
        let lease = Lease {
            address: MINE,
            hostname: "a".into(),
            domain: "demo.photon.internal".into(),
            search: vec!["photon.internal".into()],
        };
        Leases {
            server: SERVER,
            prefix: 24,
            router: Some(SERVER),
            dns: vec![SERVER],
            mtu: 1500,
            seconds: 3600,
            by_mac: HashMap::from([(MAC, lease)]),
        }
    }

    /// A request of `kind` with more options.
    fn request(kind: u8, ciaddr: Ipv4Addr, options: &[u8]) -> Vec<u8> {
        let mut p = vec![0; 236];
        p[..3].copy_from_slice(&[1, 1, 6]);
        p[4..8].copy_from_slice(&[1, 2, 3, 4]);
        p[12..16].copy_from_slice(&ciaddr.octets());
        p[28..34].copy_from_slice(&MAC);
        p.extend_from_slice(&[99, 130, 83, 99, 53, 1, kind]);
        p.extend_from_slice(options);
        p.push(255);
        p
    }

    fn option(packet: &[u8], wanted: u8) -> Option<&[u8]> {
        let mut rest = &packet[240..];
        while let [code, len, tail @ ..] = rest {
            if *code == 255 {
                return None;
            }
            let (value, tail) = tail.split_at(usize::from(*len));
            if *code == wanted {
                return Some(value);
            }
            rest = tail;
        }
        None
    }

    fn kind(a: &Answer) -> u8 {
        option(&a.packet, 53).expect("a type")[0]
    }

    const NONE: Ipv4Addr = Ipv4Addr::UNSPECIFIED;

    #[test]
    fn discover_gets_an_offer_with_everything() {
        let a = answer(&request(1, NONE, &[61, 3, 9, 9, 9]), &leases()).expect("an offer");
        assert_eq!((kind(&a), a.to), (2, Ipv4Addr::BROADCAST));
        let p = &a.packet;
        assert_eq!((&p[4..8], &p[16..20], &p[28..34]), (&[1, 2, 3, 4][..], &MINE.octets()[..], &MAC[..]));
        assert_eq!(option(p, 1), Some(&[255, 255, 255, 0][..]));
        assert_eq!(option(p, 3), Some(&SERVER.octets()[..]));
        assert_eq!(option(p, 12), Some(&b"a"[..]));
        assert_eq!(option(p, 26), Some(&[5, 220][..]));
        assert_eq!(option(p, 28), Some(&[10, 20, 0, 255][..]));
        assert_eq!(option(p, 51), Some(&3600u32.to_be_bytes()[..]));
        assert_eq!(option(p, 61), Some(&[9, 9, 9][..]));
        assert_eq!(
            option(p, 119),
            Some(&b"\x04demo\x06photon\x08internal\x00\x06photon\x08internal\x00"[..])
        );
    }

    #[test]
    fn requests_are_granted_for_ones_own_address_only() {
        let of = |a: Ipv4Addr, code: u8| [&[code, 4][..], &a.octets()].concat();
        let other = Ipv4Addr::new(10, 20, 0, 6);
        // After an offer.
        let chosen = [of(MINE, 50), of(SERVER, 54)].concat();
        assert_eq!(kind(&answer(&request(3, NONE, &chosen), &leases()).expect("ack")), 5);
        let greedy = [of(other, 50), of(SERVER, 54)].concat();
        assert_eq!(kind(&answer(&request(3, NONE, &greedy), &leases()).expect("nak")), 6);
        let elsewhere = [of(MINE, 50), of(other, 54)].concat();
        assert_eq!(answer(&request(3, NONE, &elsewhere), &leases()), None);
        // After a restart of the guest, and at renewal.
        assert_eq!(kind(&answer(&request(3, NONE, &of(MINE, 50)), &leases()).expect("ack")), 5);
        assert_eq!(kind(&answer(&request(3, NONE, &of(other, 50)), &leases()).expect("nak")), 6);
        let renewed = answer(&request(3, MINE, &[]), &leases()).expect("ack");
        assert_eq!((kind(&renewed), renewed.to), (5, MINE));
        assert_eq!(kind(&answer(&request(3, other, &[]), &leases()).expect("nak")), 6);
        assert_eq!(kind(&answer(&request(3, NONE, &[]), &leases()).expect("nak")), 6);
        // The rest, without an address.
        let inform = answer(&request(8, MINE, &[]), &leases()).expect("ack");
        assert_eq!((kind(&inform), option(&inform.packet, 51)), (5, None));
        assert_eq!(&inform.packet[16..20], &[0; 4]);
        for silent in [2, 4, 5, 6, 7, 9] {
            assert_eq!(answer(&request(silent, NONE, &of(MINE, 50)), &leases()), None);
        }
    }

    #[test]
    fn strangers_relays_and_damaged_packets_get_no_answer() {
        let good = request(1, NONE, &[]);
        let mut stranger = good.clone();
        stranger[33] = 9;
        assert_eq!(answer(&stranger, &leases()), None);
        let mut relayed = good.clone();
        relayed[24] = 1;
        assert_eq!(answer(&relayed, &leases()), None);
        for len in 0..good.len() - 1 {
            let cut = answer(&good[..len], &leases());
            assert!(cut.is_none() || len >= 243, "{len}");
        }
        assert_eq!(
            answer(&request(1, NONE, &[50, 3, 1, 2, 3]), &leases()),
            None,
            "an address of three bytes"
        );
        assert_eq!(answer(&request(1, NONE, &[12, 200]), &leases()), None, "longer than the packet");
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived_and_answers_are_bounded(
            mut packet in proptest::collection::vec(any::<u8>(), 0..1500), valid in any::<bool>()
        ) {
            if valid && packet.len() > 243 {
                packet[..3].copy_from_slice(&[1, 1, 6]);
                packet[24..28].fill(0);
                packet[28..34].copy_from_slice(&MAC);
                packet[236..243].copy_from_slice(&[99, 130, 83, 99, 53, 1, 1]);
            }
            let mut l = leases();
            let lease = l.by_mac.get_mut(&MAC).expect("mine");
            lease.search = vec!["x".repeat(63); 50];
            l.dns = vec![SERVER; 60];
            if let Some(a) = answer(&packet, &l) {
                prop_assert!(a.packet.len() <= super::super::codec::LEN_MAX.max(300));
                prop_assert!(a.to == MINE || a.to == Ipv4Addr::BROADCAST);
            }
        }
    }
}
