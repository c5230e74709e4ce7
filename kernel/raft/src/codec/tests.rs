use super::*;
use proptest::prelude::*;
use raft::eraftpb::{ConfState, Entry, HardState, Message, MessageType, Snapshot};

fn conf_state() -> impl Strategy<Value = ConfState> {
    let ids = || prop::collection::vec(1u64.., 0..5);
    (ids(), ids(), ids(), ids(), any::<bool>()).prop_map(|(mut voters, learners, out, next, auto_leave)| {
        voters.push(7);
        let mut cs = ConfState { voters, learners, auto_leave, ..ConfState::default() };
        cs.voters_outgoing = out;
        cs.learners_next = next;
        cs
    })
}

fn bytes(max: usize) -> impl Strategy<Value = Bytes> {
    prop::collection::vec(any::<u8>(), 0..max).prop_map(Bytes::from)
}

fn message() -> impl Strategy<Value = Message> {
    let head = (1u64.., 1u64.., any::<[u64; 6]>(), any::<bool>(), any::<i64>(), bytes(20));
    let entries = prop::collection::vec((0u64..3, bytes(40), bytes(8)), 0..6);
    (0usize..13, head, entries, conf_state(), any::<[u8; 24]>(), 1u64..u64::MAX / 2).prop_map(
        |(kind, (to, from, n, reject, priority, context), entries, conf, data, index)| {
            let mut m = Message { to, from, reject, priority, context, ..Message::default() };
            [m.commit, m.commit_term, m.request_snapshot, m.reject_hint, m.log_term, m.term] = n;
            m.index = index;
            let kinds = [
                MessageType::MsgAppend,
                MessageType::MsgAppendResponse,
                MessageType::MsgRequestVote,
                MessageType::MsgRequestVoteResponse,
                MessageType::MsgSnapshot,
                MessageType::MsgHeartbeat,
                MessageType::MsgHeartbeatResponse,
                MessageType::MsgTransferLeader,
                MessageType::MsgTimeoutNow,
                MessageType::MsgReadIndex,
                MessageType::MsgReadIndexResp,
                MessageType::MsgRequestPreVote,
                MessageType::MsgRequestPreVoteResponse,
            ];
            m.set_msg_type(kinds[kind]);
            match kinds[kind] {
                MessageType::MsgAppend => {
                    m.log_term /= 2;
                    m.term = u64::MAX - 1;
                    let mut term = m.log_term;
                    for (i, (more, data, context)) in entries.into_iter().enumerate() {
                        term += more;
                        let index = index + 1 + i as u64;
                        m.mut_entries().push(Entry { index, term, data, context, ..Entry::default() });
                    }
                }
                MessageType::MsgReadIndex | MessageType::MsgReadIndexResp => {
                    m.mut_entries().push(Entry { data: Bytes::copy_from_slice(&data), ..Entry::default() });
                }
                MessageType::MsgSnapshot => {
                    let mut s = Snapshot { data: Bytes::copy_from_slice(&data), ..Snapshot::default() };
                    s.mut_metadata().index = index;
                    s.mut_metadata().term = 5;
                    s.mut_metadata().set_conf_state(conf);
                    m.set_snapshot(s);
                }
                _ => {}
            }
            m
        },
    )
}

proptest! {
    #[test]
    fn messages_round_trip(m in message()) {
        let mut out = Vec::new();
        encode_message(&mut out, &m).expect("encodes");
        prop_assert_eq!(decode_message(Bytes::from(out)).expect("decodes"), m);
    }

    #[test]
    fn a_damaged_message_is_refused_or_another_message(m in message(), at: prop::sample::Index, bit in 0u8..8, cut: prop::sample::Index) {
        let mut out = Vec::new();
        encode_message(&mut out, &m).expect("encodes");
        let cut = cut.index(out.len());
        prop_assert!(decode_message(Bytes::copy_from_slice(&out[..cut])).is_err(), "a prefix is never a message");
        let at = at.index(out.len());
        out[at] ^= 1 << bit;
        let _ = decode_message(Bytes::from(out.clone()));
        out.push(0);
        let _ = decode_message(Bytes::from(out));
    }

    #[test]
    fn notices_round_trip(from: u64, to: u64, index: u64, ask: bool, junk in prop::collection::vec(any::<u8>(), 0..40)) {
        let notice = if ask { Notice::Ask { commit: index } } else { Notice::Removed { as_of: index } };
        let (from, to) = (crate::NodeId(from), crate::NodeId(to));
        let bytes = encode_notice(from, to, notice);
        prop_assert!(is_notice(&bytes));
        prop_assert_eq!(decode_notice(bytes.clone()), Ok((from, to, notice)));
        prop_assert!(decode_message(bytes.clone()).is_err());
        prop_assert!(decode_notice(bytes.slice(..bytes.len() - 1)).is_err());
        let _ = decode_notice(junk.into());
    }

    #[test]
    fn random_bytes_do_no_harm(input in prop::collection::vec(any::<u8>(), 0..300)) {
        let input = Bytes::from(input);
        let _ = decode_message(input.clone());
        let mut with_head = vec![1, input.first().copied().unwrap_or(1) % 14];
        with_head.extend_from_slice(&input);
        let _ = decode_message(Bytes::from(with_head));
        let _ = decode_entry_body(input.clone(), 1, 1);
        let _ = decode_hard_state(input.clone());
        let _ = decode_conf_state(input);
    }

    #[test]
    fn values_round_trip(data in bytes(300), context in bytes(20), n: [u64; 3], cs in conf_state()) {
        let e = Entry { index: 4, term: 3, data, context, ..Entry::default() };
        let mut out = Vec::new();
        encode_entry_body(&mut out, &e).expect("encodes");
        prop_assert_eq!(decode_entry_body(Bytes::from(out), 4, 3).expect("decodes"), e);
        let hs = HardState { term: n[0], vote: n[1], commit: n[2], ..HardState::default() };
        let mut out = Vec::new();
        encode_hard_state(&mut out, &hs);
        prop_assert_eq!(decode_hard_state(Bytes::from(out)).expect("decodes"), hs);
        let mut out = Vec::new();
        encode_conf_state(&mut out, &cs);
        prop_assert_eq!(decode_conf_state(Bytes::from(out)).expect("decodes"), cs);
    }
}

#[test]
fn lengths_above_the_input_allocate_nothing() {
    // A message whose last length claims 2^62 bytes, and one that claims 2^16 entries.
    let mut head = vec![1, 1];
    head.extend([1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let mut long = head.clone();
    put_u64(&mut long, 1 << 62);
    assert_eq!(decode_message(Bytes::from(long)), Err(CodecError::Limit("message context")));
    let mut many = head.clone();
    many.push(0);
    put_u64(&mut many, MAX_ENTRIES as u64);
    assert_eq!(decode_message(Bytes::from(many)), Err(CodecError::Short));
    let mut over = head;
    over.push(0);
    put_u64(&mut over, MAX_ENTRIES as u64 + 1);
    assert_eq!(decode_message(Bytes::from(over)), Err(CodecError::Limit("entries")));
    let mut wide = Reader::new(Bytes::from_static(&[0xff; 11]));
    assert_eq!(wide.u64(), Err(CodecError::Limit("an integer")));
}
