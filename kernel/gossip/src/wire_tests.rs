//! What goes in comes out; what is not ours is refused; nothing panics.

use crate::{
    id::Id,
    peer::{Facts, Liveness},
    seal::PLAIN_MAX,
    wire::*,
};
use foca::{Header, Message as Kind};
use proptest::prelude::*;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

fn id() -> impl Strategy<Value = Id> {
    let ip = prop_oneof![
        any::<u32>().prop_map(|b| IpAddr::from(Ipv4Addr::from(b & 0x7fff_ffff | 0x0100_0000))),
        any::<u128>().prop_map(|b| IpAddr::from(Ipv6Addr::from(b >> 8 | 1))),
    ];
    ("[a-z0-9]{1,63}", any::<u64>(), ip, 1u16..)
        .prop_map(|(n, g, ip, port)| Id::new(n.parse().unwrap(), g, SocketAddr::new(ip, port)))
}

fn state() -> impl Strategy<Value = Liveness> {
    use Liveness::*;
    prop::sample::select(vec![Alive, Suspect, Down, Left])
}

fn stamp() -> impl Strategy<Value = Stamp> {
    (any::<u64>(), any::<u32>()).prop_map(|(generation, version)| Stamp { generation, version })
}

fn facts() -> impl Strategy<Value = Facts> {
    prop::collection::btree_map("[a-z]{1,8}", "[ -~]{0,40}", 0..6)
}

fn swim() -> impl Strategy<Value = Swim> {
    let kind = (0..7, any::<u8>(), id()).prop_map(|(k, n, id)| match k {
        0 => Kind::Ping(n),
        1 => Kind::Ack(n),
        2 => Kind::PingReq { target: id, probe_number: n },
        3 => Kind::IndirectPing { origin: id, probe_number: n },
        4 => Kind::IndirectAck { target: id, probe_number: n },
        5 => Kind::ForwardedAck { origin: id, probe_number: n },
        _ => Kind::Gossip,
    });
    let member = (id(), 0..u16::MAX, state()).prop_map(|(id, i, s)| to_member(id, i, s));
    let news = (id(), stamp(), facts()).prop_map(|(id, stamp, facts)| News {
        name: (*id.name).clone(),
        stamp,
        facts,
    });
    let head = (id(), any::<u16>(), id(), kind);
    (head, prop::collection::vec(member, 0..4), prop::collection::vec(news, 0..3)).prop_map(
        |(h, members, news)| {
            let (src, src_incarnation, dst, message) = h;
            Swim { header: Header { src, src_incarnation, dst, message }, members, news }
        },
    )
}

fn ask() -> impl Strategy<Value = Ask> {
    let entry = (any::<u64>(), any::<u64>(), any::<u16>(), state(), stamp()).prop_map(
        |(key, generation, incarnation, state, stamp)| Entry { key, generation, incarnation, state, stamp },
    );
    (id(), any::<(u16, u16, u32, u64, u64)>(), prop::collection::vec(entry, 0..39)).prop_map(
        |(src, (incarnation, up, round, from, to), entries)| Ask {
            src,
            incarnation,
            up,
            round,
            from,
            to,
            entries,
        },
    )
}

fn record() -> impl Strategy<Value = Record> {
    (id(), any::<u16>(), state(), stamp(), facts())
        .prop_map(|(id, incarnation, state, stamp, facts)| Record { id, incarnation, state, stamp, facts })
}

/// A valid message of any kind, as bytes.
fn plain() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        swim().prop_map(|s| [vec![SWIM], s.encode().unwrap()].concat()),
        ask().prop_map(|a| a.encode()),
        (id(), prop::collection::vec(record(), 0..4)).prop_map(|(src, records)| {
            let mut w = TellWriter::new(&src, 1, 2, PLAIN_MAX);
            for r in &records {
                w.push(r);
            }
            w.finish(3)
        }),
    ]
}

proptest! {
    #[test]
    fn swim_comes_back(s in swim()) {
        let bytes = [vec![SWIM], s.encode().unwrap()].concat();
        prop_assert_eq!(decode(&bytes), Ok(Message::Swim(s)));
    }

    #[test]
    fn a_question_comes_back_and_fits(a in ask()) {
        prop_assume!(a.entries.len() <= Ask::room(&a.src));
        let bytes = a.encode();
        prop_assert!((ASK_MIN..=PLAIN_MAX).contains(&bytes.len()), "{}", bytes.len());
        prop_assert_eq!(decode(&bytes), Ok(Message::Ask(a)));
    }

    #[test]
    fn an_answer_comes_back_and_is_at_most_thrice_the_question(
        src in id(), records in prop::collection::vec(record(), 0..40), asked in ASK_MIN..PLAIN_MAX,
    ) {
        let mut w = TellWriter::new(&src, 1, 2, asked);
        let fitting: Vec<Record> = records.into_iter().take_while(|r| w.push(r)).collect();
        let bytes = w.finish(7);
        prop_assert!(bytes.len() <= (asked * TELL_TIMES).min(PLAIN_MAX));
        let tell = Tell { src, incarnation: 1, round: 2, upto: 7, records: fitting };
        prop_assert_eq!(decode(&bytes), Ok(Message::Tell(tell)));
    }

    /// Also for somebody who has the key: changed, cut and lengthened messages, and noise.
    #[test]
    fn nothing_panics(
        mut bytes in plain(), at in any::<prop::sample::Index>(), with in any::<u8>(),
        cut in any::<prop::sample::Index>(), tail in prop::collection::vec(any::<u8>(), 0..40),
    ) {
        let n = at.index(bytes.len());
        bytes[n] = with;
        let _ = decode(&bytes);
        let _ = decode(&bytes[..cut.index(bytes.len())]);
        bytes.extend_from_slice(&tail);
        let _ = decode(&bytes);
        let _ = decode(&tail);
    }
}

#[test]
fn the_largest_record_fits_the_smallest_answer() {
    let long = "x".repeat(63);
    let addr = SocketAddr::new(Ipv6Addr::LOCALHOST.into(), 1);
    let me = Id::new(long.parse().unwrap(), u64::MAX, addr);
    let facts: Facts = (0..4).map(|i| (format!("k{i}"), "v".repeat(221))).collect();
    crate::check_facts(&facts).unwrap();
    let stamp = Stamp::default();
    let record = Record { id: me.clone(), incarnation: 0, state: Liveness::Alive, stamp, facts };
    assert!(TellWriter::new(&me, 0, 0, ASK_MIN).push(&record));
}
