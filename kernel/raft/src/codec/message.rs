//! What is sent between nodes.

use super::{
    CodecError, MAX_CONTEXT_BYTES, MAX_ENTRIES, Reader, put_bytes, put_u64,
    value::{encode_conf_state, encode_entry_body, read_conf_state, read_entry},
};
use crate::snapshot::Descriptor;
use bytes::Bytes;
use raft::eraftpb::{Entry, EntryType, Message, MessageType, Snapshot, SnapshotMetadata};

/// Version of the encoding; another one is refused.
const VERSION: u8 = 1;

/// Numbers of the message types, ours for ever. Local ones have none.
const TYPES: [(MessageType, u8); 14] = [
    (MessageType::MsgAppend, 1),
    (MessageType::MsgAppendResponse, 2),
    (MessageType::MsgRequestVote, 3),
    (MessageType::MsgRequestVoteResponse, 4),
    (MessageType::MsgSnapshot, 5),
    (MessageType::MsgHeartbeat, 6),
    (MessageType::MsgHeartbeatResponse, 7),
    (MessageType::MsgTransferLeader, 8),
    (MessageType::MsgTimeoutNow, 9),
    (MessageType::MsgReadIndex, 10),
    (MessageType::MsgReadIndexResp, 11),
    (MessageType::MsgRequestPreVote, 12),
    (MessageType::MsgRequestPreVoteResponse, 13),
    (MessageType::MsgPropose, 14),
];

/// Bytes of `m`, appended to `out`.
pub fn encode_message(out: &mut Vec<u8>, m: &Message) -> Result<(), CodecError> {
    let (_, number) =
        TYPES.iter().find(|(t, _)| *t == m.get_msg_type()).ok_or(CodecError::Invalid("message type"))?;
    out.push(VERSION);
    out.push(*number);
    for v in [
        m.to,
        m.from,
        m.term,
        m.log_term,
        m.index,
        m.commit,
        m.commit_term,
        m.request_snapshot,
        m.reject_hint,
    ] {
        put_u64(out, v);
    }
    out.push(u8::from(m.reject));
    // Zigzag, so that small negative priorities stay short.
    put_u64(out, ((m.priority << 1) ^ (m.priority >> 63)) as u64);
    put_bytes(out, &m.context);
    put_u64(out, m.entries.len() as u64);
    for e in m.entries.iter() {
        put_u64(out, e.index);
        put_u64(out, e.term);
        encode_entry_body(out, e)?;
    }
    match m.snapshot.as_ref() {
        None => out.push(0),
        Some(s) => {
            out.push(1);
            put_u64(out, s.get_metadata().index);
            put_u64(out, s.get_metadata().term);
            encode_conf_state(out, s.get_metadata().get_conf_state());
            put_bytes(out, &s.data);
        }
    }
    Ok(())
}

/// The message in `input`, which it must fill.
pub fn decode_message(input: Bytes) -> Result<Message, CodecError> {
    let mut r = Reader::new(input);
    if r.u8()? != VERSION {
        return Err(CodecError::Invalid("version"));
    }
    let number = r.u8()?;
    let (kind, _) = TYPES.iter().find(|(_, n)| *n == number).ok_or(CodecError::Invalid("message type"))?;
    let mut m = Message::default();
    m.set_msg_type(*kind);
    m.to = r.u64()?;
    m.from = r.u64()?;
    m.term = r.u64()?;
    m.log_term = r.u64()?;
    m.index = r.u64()?;
    m.commit = r.u64()?;
    m.commit_term = r.u64()?;
    m.request_snapshot = r.u64()?;
    m.reject_hint = r.u64()?;
    m.reject = r.bool("reject")?;
    let zigzag = r.u64()?;
    m.priority = (zigzag >> 1) as i64 ^ -((zigzag & 1) as i64);
    m.context = r.bytes(MAX_CONTEXT_BYTES, "message context")?;
    for _ in 0..r.count(MAX_ENTRIES, "entries")? {
        let (index, term) = (r.u64()?, r.u64()?);
        m.mut_entries().push(read_entry(&mut r, index, term)?);
    }
    if r.bool("snapshot")? {
        let mut s = Snapshot::default();
        let meta: &mut SnapshotMetadata = s.mut_metadata();
        meta.index = r.u64()?;
        meta.term = r.u64()?;
        meta.set_conf_state(read_conf_state(&mut r)?);
        s.data = r.bytes(Descriptor::BYTES, "snapshot")?;
        m.set_snapshot(s);
    }
    r.end()?;
    check(&m)?;
    Ok(m)
}

/// Refuses what a correct peer never sends and the `raft` crate would panic on.
fn check(m: &Message) -> Result<(), CodecError> {
    if m.from == 0 || m.to == 0 {
        return Err(CodecError::Invalid("sender or receiver"));
    }
    match m.get_msg_type() {
        MessageType::MsgAppend => {
            let mut term = m.log_term;
            for (i, e) in m.entries.iter().enumerate() {
                if Some(e.index) != m.index.checked_add(1 + i as u64) || e.term < term || e.term > m.term {
                    return Err(CodecError::Invalid("entry position"));
                }
                term = e.term;
            }
        }
        // Commands on their way to the leader of a term; members are changed on the leader itself.
        MessageType::MsgPropose => {
            let command =
                |e: &Entry| e.index == 0 && e.term == 0 && e.get_entry_type() == EntryType::EntryNormal;
            if m.term == 0 || m.entries.is_empty() || !m.entries.iter().all(command) {
                return Err(CodecError::Invalid("proposal"));
            }
        }
        MessageType::MsgReadIndex | MessageType::MsgReadIndexResp if m.entries.len() == 1 => {}
        MessageType::MsgReadIndex | MessageType::MsgReadIndexResp => {
            return Err(CodecError::Invalid("read request"));
        }
        _ if !m.entries.is_empty() => return Err(CodecError::Invalid("entries")),
        _ => {}
    }
    match (m.get_msg_type(), m.snapshot.as_ref()) {
        (MessageType::MsgSnapshot, Some(s)) if s.get_metadata().index > 0 => {
            let cs = s.get_metadata().get_conf_state();
            match Descriptor::decode(&s.data) {
                Some(_) if !cs.voters.is_empty() => Ok(()),
                _ => Err(CodecError::Invalid("snapshot members or descriptor")),
            }
        }
        (MessageType::MsgSnapshot, _) | (_, Some(_)) => Err(CodecError::Invalid("snapshot")),
        _ => Ok(()),
    }
}
