//! What is written to the log: entries, the hard state, the configuration.

use super::{CodecError, MAX_CONTEXT_BYTES, MAX_ENTRY_BYTES, MAX_MEMBERS, Reader, put_bytes, put_u64};
use bytes::Bytes;
use raft::eraftpb::{ConfState, Entry, EntryType, HardState};

const NORMAL: u8 = 0;
const CHANGE: u8 = 1;

/// Body of an entry, that is, all but its index and term. A change of the members is its context, in our
/// own encoding (`members.rs`); what the `raft` crate adds as data is protobuf and goes nowhere.
pub fn encode_entry_body(out: &mut Vec<u8>, e: &Entry) -> Result<(), CodecError> {
    if e.data.len() > MAX_ENTRY_BYTES || e.context.len() > MAX_CONTEXT_BYTES {
        return Err(CodecError::Limit("entry"));
    }
    match e.get_entry_type() {
        EntryType::EntryNormal => {
            out.push(NORMAL);
            put_bytes(out, &e.context);
            put_bytes(out, &e.data);
        }
        EntryType::EntryConfChange | EntryType::EntryConfChangeV2 => {
            out.push(CHANGE);
            put_bytes(out, &e.context);
        }
    }
    Ok(())
}

pub(super) fn read_entry(r: &mut Reader, index: u64, term: u64) -> Result<Entry, CodecError> {
    let kind = r.u8()?;
    let context = r.bytes(MAX_CONTEXT_BYTES, "entry context")?;
    match kind {
        NORMAL => {}
        CHANGE => {
            crate::members::decode(context.clone())?;
            let mut e = Entry { index, term, context, ..Entry::default() };
            e.set_entry_type(EntryType::EntryConfChangeV2);
            return Ok(e);
        }
        _ => return Err(CodecError::Invalid("entry type")),
    }
    let data = r.bytes(MAX_ENTRY_BYTES, "entry data")?;
    Ok(Entry { index, term, context, data, ..Entry::default() })
}

/// The entry at `index` of `term` from its body.
pub fn decode_entry_body(body: Bytes, index: u64, term: u64) -> Result<Entry, CodecError> {
    let mut r = Reader::new(body);
    let e = read_entry(&mut r, index, term)?;
    r.end()?;
    Ok(e)
}

/// Term, vote, commit.
pub fn encode_hard_state(out: &mut Vec<u8>, hs: &HardState) {
    for v in [hs.term, hs.vote, hs.commit] {
        put_u64(out, v);
    }
}

/// See [`encode_hard_state`].
pub fn decode_hard_state(body: Bytes) -> Result<HardState, CodecError> {
    let mut r = Reader::new(body);
    let hs = HardState { term: r.u64()?, vote: r.u64()?, commit: r.u64()?, ..HardState::default() };
    r.end()?;
    Ok(hs)
}

/// The members of a group.
pub fn encode_conf_state(out: &mut Vec<u8>, cs: &ConfState) {
    for list in [&cs.voters, &cs.learners, &cs.voters_outgoing, &cs.learners_next] {
        put_u64(out, list.len() as u64);
        list.iter().for_each(|id| put_u64(out, *id));
    }
    out.push(u8::from(cs.auto_leave));
}

pub(super) fn read_conf_state(r: &mut Reader) -> Result<ConfState, CodecError> {
    let mut list = || -> Result<Vec<u64>, CodecError> {
        let n = r.count(MAX_MEMBERS, "members")?;
        let mut ids = Vec::new();
        for _ in 0..n {
            match r.u64()? {
                0 => return Err(CodecError::Invalid("member")),
                id => ids.push(id),
            }
        }
        Ok(ids)
    };
    let mut cs = ConfState { voters: list()?, learners: list()?, ..ConfState::default() };
    cs.voters_outgoing = list()?;
    cs.learners_next = list()?;
    cs.auto_leave = r.bool("auto leave")?;
    Ok(cs)
}

/// See [`encode_conf_state`].
pub fn decode_conf_state(body: Bytes) -> Result<ConfState, CodecError> {
    let mut r = Reader::new(body);
    let cs = read_conf_state(&mut r)?;
    r.end()?;
    Ok(cs)
}
