//! One node's side of the lease, message by message.

use super::*;
use crate::{codec, log::LogConfig};
use photon_rt::disk::SimDisk;
use raft::eraftpb::{Message, MessageType};
use std::sync::Arc;

const G: GroupId = GroupId(1);
const LEASE: Duration = Duration::from_millis(810);

fn open(disk: &SimDisk) -> Core {
    let log =
        Log::open(Arc::new(disk.clone()), LogConfig { segment_bytes: 64 << 10, ..LogConfig::default() });
    let mut core = Core::new(CoreConfig { lease: LEASE, ..CoreConfig::new(NodeId(1)) }, log.expect("open"));
    core.attach(G, &[NodeId(1), NodeId(2), NodeId(3)], Position::default(), &mut |_| {}).expect("attach");
    core
}

/// What comes out, messages decoded.
#[derive(Debug)]
enum Out {
    Sent(Message),
    Lease(Duration),
}

fn turn(core: &mut Core, ms: u64, inputs: Vec<Input>) -> Vec<Out> {
    let mut out = Vec::new();
    core.turn(Duration::from_millis(ms), inputs, &mut |o| match o {
        Output::Send { message, .. } if !codec::is_notice(&message) => {
            out.push(Out::Sent(codec::decode_message(message).expect("ours")));
        }
        Output::Lease { until, .. } => out.push(Out::Lease(until)),
        _ => {}
    })
    .expect("turn");
    out
}

fn message(from: u64, kind: MessageType, term: u64) -> Message {
    let mut m = Message { from, to: 1, term, ..Message::default() };
    m.set_msg_type(kind);
    m
}

fn input(message: Message) -> Vec<Input> {
    vec![Input::Message { group: G, message }]
}

fn first(out: Vec<Out>, kind: MessageType) -> Option<Message> {
    out.into_iter().find_map(|o| match o {
        Out::Sent(m) if m.get_msg_type() == kind && m.to == 2 => Some(m),
        _ => None,
    })
}

/// Node 2 votes for node 1.
fn elect(core: &mut Core) {
    let mut ask = None;
    while ask.is_none() {
        ask = first(turn(core, 0, vec![Input::Tick]), MessageType::MsgRequestPreVote);
    }
    let term = ask.expect("just seen").term;
    let out = turn(core, 0, input(message(2, MessageType::MsgRequestPreVoteResponse, term)));
    assert!(first(out, MessageType::MsgRequestVote).is_some());
    turn(core, 0, input(message(2, MessageType::MsgRequestVoteResponse, term)));
    assert_eq!(core.status(G).expect("there").role, Role::Leader);
}

/// What is said of the lease, in milliseconds.
fn leases(out: &[Out]) -> Vec<u64> {
    let ms = |o: &Out| if let Out::Lease(until) = o { Some(until.as_millis() as u64) } else { None };
    out.iter().filter_map(ms).collect()
}

#[test]
fn a_lease_begins_when_the_question_left_and_ends_when_leadership_is_offered() {
    let mut core = open(&SimDisk::new(1));
    elect(&mut core);
    let term = core.status(G).expect("there").term;
    let beat = |core: &mut Core, ms| loop {
        if let Some(m) = first(turn(core, ms, vec![Input::Tick]), MessageType::MsgHeartbeat) {
            break m;
        }
    };
    let answer = |question: Message| {
        let context = question.context;
        input(Message { context, ..message(2, MessageType::MsgHeartbeatResponse, term) })
    };
    let question = beat(&mut core, 10_000);
    assert_eq!(
        leases(&turn(&mut core, 10_300, answer(question))),
        [0u64; 0],
        "nothing of this term is committed"
    );
    let index = core.status(G).expect("there").last_index;
    let done = Message { index, ..message(2, MessageType::MsgAppendResponse, term) };
    let out = turn(&mut core, 10_300, input(done));
    assert_eq!(leases(&out), [10_810], "{out:?}");
    assert!(matches!(out[0], Out::Lease(_)), "before the others hear of what is committed: {out:?}");
    let (old, new) = (beat(&mut core, 10_200), beat(&mut core, 10_400));
    assert_eq!(leases(&turn(&mut core, 10_500, answer(new))), [11_210]);
    assert_eq!(leases(&turn(&mut core, 10_500, answer(old))), [0u64; 0], "a late answer takes nothing back");
    for context in [vec![1; 7], vec![0xff; 8]] {
        let strange =
            Message { context: context.into(), ..message(3, MessageType::MsgHeartbeatResponse, term) };
        assert_eq!(leases(&turn(&mut core, 10_500, input(strange))), [0u64; 0]);
    }
    let out = turn(&mut core, 10_600, vec![Input::Transfer { group: G, to: NodeId(2) }]);
    assert_eq!(leases(&out), [0]);
    assert!(matches!(out[0], Out::Lease(_)), "before the offer leaves: {out:?}");
    assert!(first(out, MessageType::MsgTimeoutNow).is_some());
    // The offer came to nothing, as it seems, but may still arrive.
    for _ in 0..30 {
        let question = beat(&mut core, 11_000);
        assert_eq!(leases(&turn(&mut core, 11_000, answer(question))), [0u64; 0]);
    }
    assert_eq!(core.status(G).expect("there").role, Role::Leader);
}

/// Ticks until node 3 gets a vote of node 1, in ever later terms.
fn ticks_until_a_vote(core: &mut Core) -> u64 {
    for ticks in 0..40 {
        let term = core.status(G).expect("there").term + 1;
        let ask = Message { index: 100, log_term: 50, ..message(3, MessageType::MsgRequestVote, term) };
        let granted = |o: &Out| matches!(o, Out::Sent(m) if m.get_msg_type() == MessageType::MsgRequestVoteResponse && !m.reject);
        if turn(core, 0, input(ask)).iter().any(granted) {
            return ticks;
        }
        turn(core, 0, vec![Input::Tick]);
    }
    panic!("no vote at all");
}

#[test]
fn a_promise_outlasts_what_the_crate_forgets() {
    assert_eq!(ticks_until_a_vote(&mut open(&SimDisk::new(1))), 0, "nobody was ever heard");
    let disk = SimDisk::new(2);
    let heard = |core: &mut Core| turn(core, 0, input(message(2, MessageType::MsgHeartbeat, 2)));
    let mut core = open(&disk);
    heard(&mut core);
    assert_eq!(ticks_until_a_vote(&mut core), 10);
    // A higher term, upon which the crate knows no leader and would vote for anybody.
    let mut core = open(&SimDisk::new(3));
    heard(&mut core);
    turn(&mut core, 0, input(message(3, MessageType::MsgAppendResponse, 5)));
    assert_eq!(core.status(G).expect("there").leader, None);
    assert_eq!(ticks_until_a_vote(&mut core), 10);
    // A restart, after which nobody knows any more.
    disk.kill();
    assert_eq!(ticks_until_a_vote(&mut open(&disk)), 10);
    // Who was asked by that leader to take over gets it at once.
    let mut core = open(&SimDisk::new(4));
    heard(&mut core);
    let context = raft::CAMPAIGN_TRANSFER.into();
    let ask = Message { index: 100, log_term: 2, context, ..message(3, MessageType::MsgRequestVote, 3) };
    let out = turn(&mut core, 0, input(ask));
    assert!(matches!(&out[..], [Out::Sent(m)] if !m.reject), "{out:?}");
}
