//! A core alone: what it refuses, and its bounds.

use super::{Core, Now, PEERS_MAX, Start, Timings};
use crate::{
    bug::Bugs,
    counters::Counters,
    id::Id,
    peer::{Facts, Liveness},
    wire::{Ask, Message, Record, Stamp, TELL_TIMES, TellWriter, decode},
};
use photon_base::{Name, Timestamp};
use std::{net::SocketAddr, sync::Arc, time::Duration};

const NOW: Now = Now { mono: Duration::from_secs(5), wall: Timestamp(1_800_000_000_000) };

fn addr(i: usize) -> SocketAddr {
    ([10, 1, (i >> 8) as u8, i as u8], 2381).into()
}

fn name(i: usize) -> Name {
    format!("n{i}").parse().unwrap()
}

fn core() -> (Core, Arc<Counters>) {
    let counters = Arc::new(Counters::default());
    let start = Start {
        name: "me".parse().unwrap(),
        addr: ([10, 0, 0, 1], 2381).into(),
        facts: Facts::new(),
        seeds: vec![addr(1)],
        timings: Timings::default(),
        bugs: Bugs::default(),
    };
    (Core::new(start, NOW, 1, counters.clone()), counters)
}

fn record(i: usize, generation: u64, state: Liveness) -> Record {
    let id = Id::new(name(i), generation, addr(i));
    Record { id, incarnation: 0, state, stamp: Stamp::default(), facts: Facts::new() }
}

/// An unasked answer of node `i`.
fn tell(i: usize, generation: u64, records: &[Record]) -> Vec<u8> {
    let src = Id::new(name(i), generation, addr(i));
    let mut w = TellWriter::new(&src, 0, 0, 1_400);
    for r in records {
        assert!(w.push(r));
    }
    w.finish(0)
}

fn count(c: &Counters, what: &str) -> u64 {
    c.each().iter().find(|(n, _, _)| n.ends_with(what)).unwrap().2
}

fn state(core: &mut Core, i: usize) -> Option<Liveness> {
    core.changed = true;
    core.view_if_changed().unwrap().get(&name(i)).map(|s| s.state)
}

#[test]
fn a_packet_counts_once() {
    let (mut core, counters) = core();
    for _ in 0..3 {
        core.packet(NOW, 7, &tell(1, 5, &[]));
    }
    assert_eq!(count(&counters, "replayed_total"), 2);
    // One of a former life is not believed, whatever its number.
    core.packet(NOW, 9, &tell(1, 4, &[record(2, 1, Liveness::Alive)]));
    assert_eq!(state(&mut core, 2), None);
}

#[test]
fn the_table_is_bounded_and_the_dead_make_room() {
    let (mut core, counters) = core();
    core.packet(NOW, 1, &tell(0, 1, &[]));
    let alive = |i| if i == 9 { Liveness::Down } else { Liveness::Alive };
    let others: Vec<Record> = (1..PEERS_MAX + 50).map(|i| record(i, 1, alive(i))).collect();
    for (n, some) in others.chunks(20).enumerate() {
        core.packet(NOW, 2 + n as u64, &tell(0, 1, some));
    }
    core.packet(NOW, 1, &tell(PEERS_MAX + 60, 1, &[]));
    assert_eq!(core.table.len(), PEERS_MAX);
    assert_eq!(core.foca.iter_membership_state().len(), PEERS_MAX);
    assert_eq!(state(&mut core, 9), None, "the dead one made room");
    assert_eq!(state(&mut core, PEERS_MAX + 60), None);
    assert_eq!(count(&counters, "refused_total"), 50);
}

#[test]
fn a_forgotten_node_is_not_heard_before_it_starts_again() {
    let (mut core, counters) = core();
    core.packet(NOW, 1, &tell(1, 5, &[]));
    core.packet(NOW, 1, &tell(2, 5, &[]));
    core.forget(NOW, &name(1));
    core.packet(NOW, 2, &tell(1, 5, &[]));
    core.packet(NOW, 2, &tell(2, 5, &[record(1, 5, Liveness::Alive)]));
    assert_eq!((state(&mut core, 1), count(&counters, "refused_total")), (None, 2));
    core.packet(NOW, 1, &tell(1, 6, &[]));
    assert_eq!(state(&mut core, 1), Some(Liveness::Alive));
}

#[test]
fn who_was_down_long_enough_is_not_listed_any_more() {
    let (mut core, _) = core();
    core.packet(NOW, 1, &tell(1, 5, &[record(2, 1, Liveness::Down), record(3, 1, Liveness::Left)]));
    assert_eq!((state(&mut core, 2), state(&mut core, 3)), (Some(Liveness::Down), Some(Liveness::Left)));
    let at = |s| Now { mono: NOW.mono + Duration::from_secs(s), ..NOW };
    core.sweep(at(23 * 3600));
    assert_eq!(core.table.len(), 3);
    core.sweep(at(24 * 3600));
    assert_eq!(core.table.len(), 1);
}

/// A packet is answered by at most one, of at most three times its size, to the address inside the seal; and
/// former lives, which anybody could replay, not without end.
#[test]
fn answers_do_not_multiply() {
    let (mut core, _) = core();
    core.packet(NOW, 1, &tell(1, 5, &[]));
    core.take();
    let mut answers = 0;
    for round in 0..500 {
        let src = Id::new(name(1), 4, addr(1));
        let ask =
            Ask { src, incarnation: 0, up: 0, round, from: 0, to: u64::MAX, entries: Vec::new() }.encode();
        core.packet(NOW, u64::from(round), &ask);
        let out = core.take();
        assert!(out.len() <= 1);
        for (to, plain) in out {
            assert_eq!(to, addr(1));
            assert!(plain.len() <= TELL_TIMES * ask.len());
            let Ok(Message::Tell(t)) = decode(&plain) else { panic!("no answer") };
            assert_eq!((t.round, t.records[0].id.generation), (round, 5), "it is told of its later life");
            answers += 1;
        }
    }
    assert_eq!(answers, 50);
}
