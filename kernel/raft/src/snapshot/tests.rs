use super::*;
use crate::{GroupStatus, bug::Bugs};
use photon_rt::{disk::SimDisk, time::Duration};
use proptest::prelude::*;
use raft::eraftpb::{Message, MessageType};

const G: GroupId = GroupId(7);
const AT: Position = Position { index: 9, term: 3 };
const FROM: NodeId = NodeId(2);

fn chunks(all: &[Bytes]) -> Chunks {
    let all: Vec<_> = all.iter().cloned().map(Ok).collect();
    Box::new(all.into_iter())
}

fn make(disk: &SimDisk, all: &[Bytes]) -> Made {
    let mut maker = Maker::begin(Arc::new(disk.clone()), G, AT, chunks(all)).expect("begins");
    while maker.step().expect("writes").is_some() {}
    maker.finish().expect("made")
}

fn message(made: &Made) -> Message {
    let mut m = Message { from: FROM.0, to: 1, term: 3, ..Message::default() };
    m.set_msg_type(MessageType::MsgSnapshot);
    m.mut_snapshot().data = made.descriptor().encode();
    (m.mut_snapshot().mut_metadata().index, m.mut_snapshot().mut_metadata().term) = (AT.index, AT.term);
    m
}

fn receiver(disk: &SimDisk) -> Receiver {
    Receiver::new(Arc::new(disk.clone()), Bugs::default()).expect("opens")
}

fn announce(r: &Receiver, made: &Made) -> u64 {
    match r.announce(FROM, G, message(made), Some(GroupStatus::default())).expect("taken") {
        Next::From { id, at, size } if (id, size) == (made.descriptor().id, made.descriptor().size) => at,
        other => panic!("{other:?}"),
    }
}

fn piece(r: &Receiver, made: &Made, at: u64, len: usize) -> Result<u64, Refusal> {
    let bytes = made.read(at, len).expect("reads");
    r.piece(G, made.descriptor().id, at, &bytes, piece_sum(&bytes))
}

fn words(seed: u8) -> Vec<Bytes> {
    (0..50).map(|i| Bytes::from(vec![seed.wrapping_add(i); usize::from(i) * 7])).collect()
}

fn loaded(disk: &SimDisk) -> Result<Vec<Bytes>, MachineError> {
    load(disk, G, AT)?.collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn what_was_made_arrives_whatever_breaks(
        all in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..400), 0..20),
        steps in prop::collection::vec((1usize..300, 0u8..8), 1..400),
    ) {
        let (there, here) = (SimDisk::new(1), SimDisk::new(2));
        let all: Vec<Bytes> = all.into_iter().map(Bytes::from).collect();
        let (made, r) = (make(&there, &all), receiver(&here));
        let size = made.descriptor().size;
        let mut at = announce(&r, &made);
        // In the end something follows, whatever the rest is.
        for (len, trouble) in steps.into_iter().chain([(300, 7)]).cycle() {
            match trouble {
                // The connection breaks, and the sender asks again.
                0 => prop_assert_eq!(announce(&r, &made), at),
                // Something late, doubled or from elsewhere comes between.
                1 if at > 0 => {
                    let refused = matches!(piece(&r, &made, at - 1, len), Err(Refusal::Place { .. }));
                    prop_assert!(refused);
                }
                2 => prop_assert!(matches!(r.piece(G, 1, at, b"x", 0), Err(Refusal::Other))),
                _ => at = piece(&r, &made, at, len).expect("follows"),
            }
            if at == size {
                break;
            }
        }
        prop_assert!(loaded(&here).is_err(), "it has no name before it is verified");
        let m = r.finish(G, made.descriptor().id).expect("whole");
        prop_assert_eq!(m, message(&made));
        here.power_loss();
        prop_assert_eq!(loaded(&here).expect("loads"), all);
        prop_assert!(leftovers(&here).expect("list").is_empty());
        drop(made);
        prop_assert!(there.list().expect("list").is_empty(), "the file goes with who has it");
    }

    #[test]
    fn foreign_files_are_refused_or_mean_something(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let disk = SimDisk::new(1);
        let made = make(&disk, &words(1));
        let whole = made.read(0, 1 << 20).expect("reads");
        for content in [bytes.clone(), [&whole[..40], &bytes].concat(), [&whole[..], &bytes].concat()] {
            photon_rt::disk::replace(&disk, &file_name(G, AT.index), &content).expect("writes");
            if let Ok(all) = loaded(&disk) {
                prop_assert_eq!(all, words(1));
            }
        }
    }
}

#[test]
fn what_was_not_announced_is_refused() {
    let (there, here) = (SimDisk::new(1), SimDisk::new(2));
    let (made, r) = (make(&there, &words(1)), receiver(&here));
    let told = |m: Message, s: Option<GroupStatus>| r.announce(FROM, G, m, s);
    let now = GroupStatus::default();
    assert!(matches!(told(message(&made), None), Err(Refusal::Group)), "an unknown group");
    let later = GroupStatus { term: 4, ..now };
    assert!(matches!(told(message(&made), Some(later)), Err(Refusal::Stale)), "a leader of before");
    let other = r.announce(NodeId(3), G, message(&made), Some(now));
    assert!(matches!(other, Err(Refusal::Stale)), "for another node");
    let mut huge = message(&made);
    huge.mut_snapshot().data = Descriptor { size: MAX_SNAPSHOT_BYTES + 1, ..made.descriptor() }.encode();
    assert!(matches!(told(huge, Some(now)), Err(Refusal::Size)));
    let known = GroupStatus { commit: 10, ..now };
    assert_eq!(told(message(&made), Some(known)).expect("taken"), Next::Nothing);
    assert!(matches!(piece(&r, &made, 0, 10), Err(Refusal::Other)), "nothing is on its way");
    assert!(here.list().expect("list").is_empty(), "and nothing was written");

    // More than was announced, although each piece follows.
    let mut short = message(&made);
    short.mut_snapshot().data = Descriptor { size: 100, ..made.descriptor() }.encode();
    assert!(matches!(told(short, Some(now)), Ok(Next::From { at: 0, size: 100, .. })));
    assert_eq!(piece(&r, &made, 0, 90).expect("follows"), 90);
    assert!(matches!(piece(&r, &made, 90, 11), Err(Refusal::Place { have: 90, size: 100, .. })));
    assert!(matches!(r.piece(G, made.descriptor().id, 90, b"", 0), Err(Refusal::Place { .. })), "nothing");
    assert!(matches!(r.piece(G, made.descriptor().id, 90, b"abc", 0), Err(Refusal::Piece)));
    assert!(matches!(r.finish(G, made.descriptor().id), Err(Refusal::Place { .. })), "not all is here");
    assert_eq!(piece(&r, &made, 90, 10).expect("follows"), 100);
    assert!(matches!(r.finish(G, made.descriptor().id), Err(Refusal::Damaged(_))));
    assert!(here.list().expect("list").is_empty(), "what is damaged is thrown away");
}

#[test]
fn another_snapshot_begins_anew_and_a_restart_leaves_nothing() {
    let (there, here) = (SimDisk::new(1), SimDisk::new(2));
    let (first, second) = (make(&there, &words(1)), make(&there, &words(2)));
    let r = receiver(&here);
    announce(&r, &first);
    piece(&r, &first, 0, 500).expect("follows");
    assert_eq!(announce(&r, &first), 500, "the same one goes on");
    assert_eq!(announce(&r, &second), 0);
    assert!(matches!(piece(&r, &first, 500, 10), Err(Refusal::Other)), "the first one's late piece");
    assert_eq!(here.list().expect("list").len(), 1);
    piece(&r, &second, 0, 500).expect("follows");
    here.kill();
    assert_eq!(announce(&receiver(&here), &second), 0, "another run");
    assert_eq!(leftovers(&here).expect("list").len(), 1, "the new one alone");
}

#[test]
fn what_nobody_goes_on_with_is_thrown_away() {
    let (there, here) = (SimDisk::new(1), SimDisk::new(2));
    let made = make(&there, &words(1));
    let later = photon_rt::time::now() + Duration::from_secs(700);
    let soon = photon_rt::time::now();
    let status = |commit| move |_| Some(GroupStatus { commit, ..GroupStatus::default() });
    let r = receiver(&here);
    let begin = || assert_eq!(announce(&r, &made), 0);
    begin();
    assert!(r.sweep(soon, status(9)), "it is wanted");
    assert!(!r.sweep(soon, status(10)), "the log brought what is in it");
    begin();
    assert!(!r.sweep(soon, |_| None), "its group is gone");
    begin();
    assert!(!r.sweep(later, status(8)), "its sender has given up");
    assert!(here.list().expect("list").is_empty());
    assert!(matches!(piece(&r, &made, 0, 10), Err(Refusal::Other)));
}

#[test]
fn a_bit_that_turns_around_is_noticed() {
    for byte in [0, 9, 30, 35, 39, 41, 300, 1000] {
        let disk = SimDisk::new(1);
        let made = make(&disk, &words(1));
        photon_rt::disk::replace(&disk, &file_name(G, AT.index), &made.read(0, 1 << 20).expect("reads"))
            .expect("writes");
        assert_eq!(loaded(&disk).expect("loads"), words(1));
        assert!(disk.flip_bit(&file_name(G, AT.index), byte, 3));
        loaded(&disk).expect_err("damaged");
    }
}

#[test]
fn a_snapshot_that_cannot_be_made_leaves_nothing() {
    let disk = SimDisk::new(1);
    let failing: Chunks =
        Box::new(words(1).into_iter().map(Ok).chain([Err(MachineError("unreadable".into()))]));
    let mut maker = Maker::begin(Arc::new(disk.clone()), G, AT, failing).expect("begins");
    let why = loop {
        match maker.step() {
            Ok(more) => assert!(more.is_some(), "it never ends well"),
            Err(e) => break e,
        }
    };
    assert!(why.to_string().contains("unreadable"));
    drop(maker);
    assert!(disk.list().expect("list").is_empty());
}

#[test]
fn those_who_share_a_pace_wait_for_each_other() {
    let pace = Pace::new(1000);
    let now = photon_rt::time::now();
    let second = Duration::from_secs(1);
    assert!(pace.take(now, 500) <= second / 2);
    let (b, c) = (pace.take(now, 500), pace.take(now, 1000));
    assert_eq!(c - b, second);
    assert!(b <= second && b >= second - Duration::from_millis(100));
    // After an hour of silence there is no hour's worth of burst.
    let later = now + Duration::from_secs(3600);
    assert!(pace.take(later, 1000) >= second - Duration::from_millis(100));
    assert_eq!(Pace::new(0).take(now, usize::MAX), Duration::ZERO);
    assert!(Pace::new(1).piece() >= 4 << 10 && Pace::new(0).piece() == PIECE_MAX);
    pace.end();
    assert!(!pace.wait(1 << 20), "nobody waits for what has ended");
}
