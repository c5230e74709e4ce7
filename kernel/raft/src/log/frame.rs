//! Frames: what a segment consists of after its header.
//!
//! ```text
//! offset  bytes  field
//!      0      4  CRC-32C, begun with the segment's salt, over the rest of the frame
//!      4      4  length of the payload
//!      8      8  batch: number of the append that wrote the frame
//!     16      8  group
//!     24      8  term
//!     32      8  index
//!     40      1  kind
//!     41      1  1 on the last frame of its batch
//!     42      6  zero
//!     48      n  payload, then zeros up to a multiple of 8
//! ```
//! All integers are little-endian. The salt is random and never leaves the disk, so no user can store
//! a value that looks like a frame.

use super::super::codec::{MAX_CONTEXT_BYTES, MAX_ENTRY_BYTES};
use crc_fast::{CrcAlgorithm, Digest};

pub(super) const HEADER: usize = 48;
/// Longest payload: an entry with its context and lengths; states are far smaller.
pub(super) const MAX_PAYLOAD: usize = MAX_ENTRY_BYTES + MAX_CONTEXT_BYTES + 64;

/// What a frame says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// An entry; it replaces every entry of the group from its index on.
    Entry = 1,
    /// Term, vote and commit.
    Hard = 2,
    /// The log of the group begins after (index, term): members, hard state, and whether later
    /// entries stay.
    State = 3,
    /// The group is gone.
    Remove = 4,
    /// Members, as changed by the entry at index.
    Members = 5,
}

/// A frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) len: u32,
    pub(super) batch: u64,
    pub(super) group: u64,
    pub(super) term: u64,
    pub(super) index: u64,
    pub(super) kind: Kind,
    pub(super) last: bool,
}

/// Room a payload of `len` bytes takes with its header.
pub(super) fn size(len: usize) -> usize {
    HEADER + len.next_multiple_of(8)
}

fn crc(salt: u64, bytes: &[u8]) -> u32 {
    // A fresh state per segment: frames of another segment, or forged ones, do not check.
    let mut d = Digest::new(CrcAlgorithm::Crc32Iscsi);
    d.update(&salt.to_le_bytes());
    d.update(bytes);
    d.finalize() as u32
}

/// Appends a frame to `out`, unsealed: [`seal`] adds batch, mark and checksum.
pub(super) fn push(out: &mut Vec<u8>, kind: Kind, group: u64, term: u64, index: u64, payload: &[u8]) {
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    out.extend_from_slice(&[0; 8]);
    for v in [group, term, index] {
        out.extend_from_slice(&v.to_le_bytes());
    }
    out.extend_from_slice(&[kind as u8, 0, 0, 0, 0, 0, 0, 0]);
    out.extend_from_slice(payload);
    out.resize(out.len().next_multiple_of(8), 0);
}

/// Completes the frame that `bytes` hold.
pub(super) fn seal(bytes: &mut [u8], salt: u64, batch: u64, last: bool) {
    bytes[8..16].copy_from_slice(&batch.to_le_bytes());
    bytes[41] = u8::from(last);
    let crc = crc(salt, &bytes[4..]);
    bytes[..4].copy_from_slice(&crc.to_le_bytes());
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

/// The frame at the start of `bytes`, with its payload, if there is a whole and undamaged one.
pub(super) fn parse(bytes: &[u8], salt: u64) -> Option<(Frame, &[u8])> {
    if bytes.len() < HEADER || bytes[42..48] != [0; 6] || bytes[41] > 1 {
        return None;
    }
    let kind = match bytes[40] {
        1 => Kind::Entry,
        2 => Kind::Hard,
        3 => Kind::State,
        4 => Kind::Remove,
        5 => Kind::Members,
        _ => return None,
    };
    let len = u32_at(bytes, 4);
    if len as usize > MAX_PAYLOAD || bytes.len() < size(len as usize) {
        return None;
    }
    let whole = &bytes[..size(len as usize)];
    if crc(salt, &whole[4..]) != u32_at(bytes, 0) {
        return None;
    }
    let frame = Frame {
        len,
        batch: u64_at(bytes, 8),
        group: u64_at(bytes, 16),
        term: u64_at(bytes, 24),
        index: u64_at(bytes, 32),
        kind,
        last: bytes[41] == 1,
    };
    Some((frame, &whole[HEADER..HEADER + len as usize]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn frames_round_trip_and_every_flipped_bit_shows(
            payload in prop::collection::vec(any::<u8>(), 0..100),
            n: [u64; 5],
            last: bool,
            at: prop::sample::Index,
            bit in 0u8..8,
        ) {
            let mut out = Vec::new();
            push(&mut out, Kind::Entry, n[0], n[1], n[2], &payload);
            seal(&mut out, n[3], n[4], last);
            prop_assert_eq!(out.len(), size(payload.len()));
            let (frame, got) = parse(&out, n[3]).expect("whole");
            prop_assert_eq!(got, &payload[..]);
            prop_assert_eq!((frame.group, frame.term, frame.index, frame.batch, frame.last), (n[0], n[1], n[2], n[4], last));
            prop_assert!(parse(&out, n[3] ^ 1).is_none(), "another segment's salt");
            prop_assert!(parse(&out[..out.len() - 1], n[3]).is_none(), "cut");
            let at = at.index(out.len());
            out[at] ^= 1 << bit;
            prop_assert!(parse(&out, n[3]).is_none(), "flipped");
        }

        #[test]
        fn random_bytes_are_no_frame(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(parse(&bytes, 1).is_none());
        }
    }
}
