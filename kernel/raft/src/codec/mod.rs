//! Our own bytes for what Raft stores and sends. The protobuf that the `raft` crate brings is never
//! written to disk or network: its parser has a known weakness against hostile bytes
//! (RUSTSEC-2024-0437), and a format that lives on disk for years should be ours.
//!
//! Integers are LEB128, byte strings carry their length. Decoding allocates in proportion to its
//! input, has a limit for every count, and never panics; it also refuses what the `raft` crate would
//! panic on (gaps between entries, a read request without a context).

mod message;
mod notice;
mod value;

pub use message::{decode_message, encode_message};
pub use notice::{Notice, decode_notice, encode_notice, is_notice};
pub use value::{
    decode_conf_state, decode_entry_body, decode_hard_state, encode_conf_state, encode_entry_body,
    encode_hard_state,
};

use bytes::Bytes;

/// Why bytes were refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// The input ends within a value.
    #[error("the input ends too early")]
    Short,
    /// Bytes are left after the last value.
    #[error("bytes are left over")]
    Trailing,
    /// A number or count is above its limit.
    #[error("{0} is above its limit")]
    Limit(&'static str),
    /// A value that has no meaning here.
    #[error("{0} has no valid value")]
    Invalid(&'static str),
}

/// Most data one entry may carry.
pub const MAX_ENTRY_BYTES: usize = 32 << 20;
/// Most entries in one message.
pub const MAX_ENTRIES: usize = 1 << 16;
/// Most members in one list of a configuration.
pub const MAX_MEMBERS: usize = 1 << 10;
/// Longest context of an entry or message.
pub const MAX_CONTEXT_BYTES: usize = 1 << 12;

pub(crate) fn put_u64(out: &mut Vec<u8>, mut v: u64) {
    while v >= 0x80 {
        out.push(v as u8 | 0x80);
        v >>= 7;
    }
    out.push(v as u8);
}

pub(crate) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_u64(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// A cursor over input; byte strings come out as slices of it, without a copy.
pub(crate) struct Reader {
    input: Bytes,
    at: usize,
}

impl Reader {
    pub(crate) fn new(input: Bytes) -> Self {
        Reader { input, at: 0 }
    }

    pub(crate) fn u8(&mut self) -> Result<u8, CodecError> {
        let b = *self.input.get(self.at).ok_or(CodecError::Short)?;
        self.at += 1;
        Ok(b)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, CodecError> {
        let mut v = 0u64;
        for shift in (0..70).step_by(7) {
            let b = self.u8()?;
            let bits = u64::from(b & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            v |= bits << shift;
            if b & 0x80 == 0 {
                return Ok(v);
            }
        }
        Err(CodecError::Limit("an integer"))
    }

    pub(crate) fn bool(&mut self, what: &'static str) -> Result<bool, CodecError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(CodecError::Invalid(what)),
        }
    }

    pub(crate) fn count(&mut self, limit: usize, what: &'static str) -> Result<usize, CodecError> {
        match usize::try_from(self.u64()?) {
            Ok(n) if n <= limit => Ok(n),
            _ => Err(CodecError::Limit(what)),
        }
    }

    pub(crate) fn bytes(&mut self, limit: usize, what: &'static str) -> Result<Bytes, CodecError> {
        let n = self.count(limit, what)?;
        let end = self.at.checked_add(n).filter(|end| *end <= self.input.len()).ok_or(CodecError::Short)?;
        let out = self.input.slice(self.at..end);
        self.at = end;
        Ok(out)
    }

    pub(crate) fn end(&self) -> Result<(), CodecError> {
        if self.at == self.input.len() { Ok(()) } else { Err(CodecError::Trailing) }
    }
}

#[cfg(test)]
mod tests;
