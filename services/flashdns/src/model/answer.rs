//! A packet and a snapshot in, an answer out.

use super::{
    message::{CLASS_IN, Query, Rcode, Refusal, Reply, bare, rtype},
    zone::{NEGATIVE_TTL, TTL, Zone},
};
use std::{net::IpAddr, sync::Arc};

/// What one listener's clients see: a network's guests, or the host.
#[derive(Clone, Debug)]
pub struct View {
    /// Names of ours.
    pub zone: Arc<Zone>,
    /// Whether other names are looked up elsewhere; otherwise they are refused.
    pub forward: bool,
}

/// How a query came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// In a datagram: the answer is at most what the client said it takes.
    Udp,
    /// Over a connection.
    Tcp,
}

impl Transport {
    /// The largest answer to `query`.
    pub fn limit(self, query: &Query) -> usize {
        match self {
            Transport::Udp => query.udp_size(),
            Transport::Tcp => usize::from(u16::MAX),
        }
    }
}

/// What to do with a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing.
    Silence,
    /// Send this.
    Reply(Vec<u8>),
    /// Ask another server.
    Forward(Query),
}

/// Decides about one packet.
pub fn answer(packet: &[u8], view: &View, transport: Transport) -> Verdict {
    match Query::parse(packet) {
        Err(Refusal::Silence) => Verdict::Silence,
        Err(Refusal::Code(id, recursion, code)) => Verdict::Reply(bare(id, recursion, code)),
        Ok(query) => decide(query, view, transport),
    }
}

fn decide(q: Query, view: &View, transport: Transport) -> Verdict {
    let limit = transport.limit(&q);
    let plain = |code| Verdict::Reply(Reply::new(&q, code, false, view.forward).finish(limit));
    if q.edns.is_some_and(|e| e.version != 0) {
        return plain(Rcode::BadVers);
    }
    // Zone transfers are not for clients, and the other classes are not for us.
    if q.class != CLASS_IN || q.qtype == rtype::OPT || (rtype::IXFR - 2..rtype::ANY).contains(&q.qtype) {
        return plain(Rcode::Refused);
    }
    let zone = &view.zone;
    let Some(apex) = zone.apex(&q.name) else {
        return match (view.forward, q.recursion) {
            (true, true) => Verdict::Forward(q),
            _ => plain(Rcode::Refused),
        };
    };
    let is_apex = q.name == apex;
    let exists = is_apex || zone.exists(&q.name);
    let code = if exists { Rcode::NoError } else { Rcode::NxDomain };
    let mut reply = Reply::new(&q, code, true, view.forward);
    let mut found = false;
    if q.qtype == rtype::ANY && exists {
        found = true;
        reply = reply.answer(&q.name, rtype::HINFO, TTL, b"\x07RFC8482\x00");
    }
    for address in zone.addresses(&q.name) {
        let (kind, data) = match address {
            IpAddr::V4(a) => (rtype::A, a.octets().to_vec()),
            IpAddr::V6(a) => (rtype::AAAA, a.octets().to_vec()),
        };
        if kind == q.qtype {
            found = true;
            reply = reply.answer(&q.name, kind, TTL, &data);
        }
    }
    if q.qtype == rtype::PTR {
        for name in zone.pointers(&q.name) {
            found = true;
            reply = reply.answer(&q.name, rtype::PTR, TTL, name.wire());
        }
    }
    if is_apex && q.qtype == rtype::SOA {
        found = true;
        reply = reply.answer(&apex, rtype::SOA, TTL, &zone.soa());
    }
    if is_apex && q.qtype == rtype::NS {
        found = true;
        reply = reply.answer(&apex, rtype::NS, TTL, zone.server().wire());
    }
    if !found {
        // No data, or no name: the SOA says for how long that may be kept (RFC 2308).
        reply = reply.authority(&apex, rtype::SOA, NEGATIVE_TTL, &zone.soa());
    }
    Verdict::Reply(reply.finish(limit))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Name;
    use proptest::prelude::*;

    fn view(forward: bool) -> View {
        let mut z = Zone::new("photon.internal", 7, &["10.20.0.1".parse().expect("ip")]).expect("zone");
        z.insert("a.demo.photon.internal", "10.20.0.5".parse().expect("ip")).expect("a");
        z.insert("a.demo.photon.internal", "fd00::5".parse().expect("ip")).expect("a");
        z.insert("b.demo.photon.internal", "10.20.0.6".parse().expect("ip")).expect("b");
        for i in 0..ADDRESSES {
            z.insert("many.demo.photon.internal", IpAddr::from([10, 30, 0, i])).expect("many");
        }
        assert!(z.insert("many.demo.photon.internal", IpAddr::from([10, 30, 1, 1])).is_err());
        assert!(z.insert("a.example.org", IpAddr::from([1, 1, 1, 1])).is_err());
        z.own_reverse([10, 20, 0, 0].into(), 24);
        View { zone: Arc::new(z), forward }
    }
    const ADDRESSES: u8 = crate::model::ADDRESSES_MAX as u8;

    fn ask(name: &str, qtype: u16, edns: Option<u16>) -> Vec<u8> {
        let mut p = vec![0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(edns.is_some())];
        for label in name.split('.').filter(|l| !l.is_empty()) {
            p.push(label.len() as u8);
            p.extend_from_slice(label.as_bytes());
        }
        p.push(0);
        p.extend_from_slice(&qtype.to_be_bytes());
        p.extend_from_slice(&[0, 1]);
        if let Some(size) = edns {
            p.extend_from_slice(&[0, 0, 41]);
            p.extend_from_slice(&size.to_be_bytes());
            p.extend_from_slice(&[0, 0, 0, 0, 0, 0]);
        }
        p
    }

    /// (code, authoritative, truncated, answers, authorities, length)
    fn facts(v: Verdict) -> (u8, bool, bool, u8, u8, usize) {
        let Verdict::Reply(p) = v else { panic!("{v:?}") };
        assert_eq!(p[..2], [0xab, 0xcd]);
        assert_ne!(p[2] & 0x80, 0);
        (p[3] & 0xf, p[2] & 4 != 0, p[2] & 2 != 0, p[7], p[9], p.len())
    }

    fn udp(name: &str, qtype: u16) -> (u8, bool, bool, u8, u8) {
        let (a, b, c, d, e, _) = facts(answer(&ask(name, qtype, None), &view(false), Transport::Udp));
        (a, b, c, d, e)
    }

    const YES: (u8, bool, bool, u8, u8) = (0, true, false, 1, 0);
    const NODATA: (u8, bool, bool, u8, u8) = (0, true, false, 0, 1);
    const NXDOMAIN: (u8, bool, bool, u8, u8) = (3, true, false, 0, 1);
    const REFUSED: (u8, bool, bool, u8, u8) = (5, false, false, 0, 0);

    #[test]
    fn names_types_and_what_is_not_there() {
        assert_eq!(udp("a.demo.photon.internal", rtype::A), YES);
        assert_eq!(udp("A.dEMO.Photon.INTERNAL", rtype::AAAA), YES);
        assert_eq!(udp("b.demo.photon.internal", rtype::AAAA), NODATA);
        assert_eq!(udp("a.demo.photon.internal", 16), NODATA, "TXT");
        assert_eq!(udp("demo.photon.internal", rtype::A), NODATA, "an empty non-terminal");
        assert_eq!(udp("c.demo.photon.internal", rtype::A), NXDOMAIN);
        assert_eq!(udp("x.a.demo.photon.internal", rtype::A), NXDOMAIN);
        assert_eq!(udp("photon.internal", rtype::SOA), YES);
        assert_eq!(udp("photon.internal", rtype::NS), YES);
        assert_eq!(udp("ns.photon.internal", rtype::A), YES);
        assert_eq!(udp("photon.internal", rtype::A), NODATA);
        assert_eq!(udp("health.local", rtype::A), YES);
        assert_eq!(udp("5.0.20.10.in-addr.arpa", rtype::PTR), YES);
        assert_eq!(udp("9.0.20.10.in-addr.arpa", rtype::PTR), NXDOMAIN);
        assert_eq!(udp("5.0.30.10.in-addr.arpa", rtype::PTR), YES, "known though not our prefix");
        assert_eq!(udp("5.0.40.10.in-addr.arpa", rtype::PTR), REFUSED);
        assert_eq!(udp("a.demo.photon.internal", rtype::ANY), YES);
        assert_eq!(udp("example.org", rtype::A), REFUSED);
        assert_eq!(udp("photon.internal", rtype::AXFR), REFUSED);
        assert_eq!(udp(".", rtype::NS), REFUSED);
    }

    #[test]
    fn large_answers_are_cut_over_udp_and_whole_over_tcp() {
        let name = "many.demo.photon.internal";
        let (_, _, cut, answers, _, len) =
            facts(answer(&ask(name, rtype::A, None), &view(false), Transport::Udp));
        assert!(cut && answers == 0 && len <= 512);
        let (_, _, cut, answers, _, len) =
            facts(answer(&ask(name, rtype::A, Some(4096)), &view(false), Transport::Udp));
        assert!(!cut && answers == ADDRESSES && len <= 1232);
        let (_, _, cut, answers, ..) =
            facts(answer(&ask(name, rtype::A, None), &view(false), Transport::Tcp));
        assert!(!cut && answers == ADDRESSES);
    }

    #[test]
    fn others_names_are_forwarded_for_guests_only() {
        let Verdict::Forward(q) =
            answer(&ask("Example.org", rtype::A, Some(4096)), &view(true), Transport::Udp)
        else {
            panic!("forwarded");
        };
        let sent = q.forwarded(99);
        let mut back = sent.clone();
        back[2] |= 0x80;
        assert!(q.is_answered_by(&back, 99));
        assert!(!q.is_answered_by(&back, 98) && !q.is_answered_by(&sent, 99));
        back[13] ^= 0x20; // another case is another question: it was not we who were answered
        assert!(!q.is_answered_by(&back, 99));
        assert!(matches!(
            answer(&ask("a.demo.photon.internal", 1, None), &view(true), Transport::Udp),
            Verdict::Reply(_)
        ));
        let mut iterative = ask("example.org", 1, None);
        iterative[2] = 0;
        assert_eq!(facts(answer(&iterative, &view(true), Transport::Udp)).0, 5);
    }

    #[test]
    fn hostile_packets_get_a_code_or_silence() {
        let good = ask("a.demo.photon.internal", rtype::A, Some(1232));
        let say = |p: &[u8]| answer(p, &view(true), Transport::Udp);
        let mut reply = good.clone();
        reply[2] |= 0x80;
        assert_eq!(say(&reply), Verdict::Silence, "an answer is not answered");
        assert_eq!(say(&good[..11]), Verdict::Silence);
        let mut update = good.clone();
        update[2] = 5 << 3;
        assert_eq!(facts(say(&update)).0, 4);
        let mut two = good.clone();
        two[5] = 2;
        assert_eq!(facts(say(&two)).0, 1);
        assert_eq!(facts(say(&good[..good.len() - 1])).0, 1, "half an OPT record");
        let mut version = good.clone();
        let at = version.len() - 5;
        version[at] = 1;
        let Verdict::Reply(p) = say(&version) else { panic!() };
        assert_eq!((p[3] & 0xf, p[p.len() - 6]), (0, 1), "BADVERS is 16: 0 in the header, 1 in OPT");
        let mut chaos = good;
        let at = 12 + Name::from_text("a.demo.photon.internal").expect("name").wire().len() + 3;
        chaos[at] = 3;
        assert_eq!(facts(say(&chaos)).0, 5);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived_and_answers_are_bounded(
            mut packet in proptest::collection::vec(any::<u8>(), 0..700), head in any::<bool>(), tcp in any::<bool>()
        ) {
            if head && packet.len() >= 12 {
                packet[2..12].copy_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 1]);
            }
            let transport = if tcp { Transport::Tcp } else { Transport::Udp };
            if let Verdict::Reply(p) = answer(&packet, &view(true), transport) {
                prop_assert!(p.len() >= 12 && p[..2] == packet[..2] && p[2] & 0x80 != 0);
                prop_assert!(p.len() <= 1232 || tcp);
            }
        }

        #[test]
        fn mutated_queries_are_survived(at in 0usize..60, with in any::<u8>(), name in "[a-z]{1,20}(\\.[a-z]{1,20}){0,6}") {
            let mut p = ask(&name, 1, Some(1232));
            let at = at % p.len();
            p[at] = with;
            let _ = answer(&p, &view(true), Transport::Udp);
        }
    }
}
