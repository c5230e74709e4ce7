//! The log: batches in the order in which they were acknowledged.
//!
//! Series have numbers, those of the head that belongs to the log: the labels of one are written once.
//!
//! A frame is magic, length, number, CRC-32C of what follows, then the batches of one write. Exactly one frame is on
//! its way to the disk at a time, so after a crash only the last one can be incomplete: it was never acknowledged and
//! is cut off. A frame that is wrong and has a right one after it is damage, and is not passed over.

use super::{
    Entry, StoreError,
    codec::{Damaged, Input, put_signed, put_varint},
    disk, native,
};
use crate::labels::{Labels, Str};
use photon_rt::disk::{Disk, DiskFile, read_all};
use std::{collections::HashMap, sync::Arc};

const MAGIC: u32 = 0x4c4e_4851;
/// Magic, length, number, checksum.
const HEAD: usize = 4 + 4 + 8 + 4;
/// Largest frame, bytes.
const FRAME_MAX: usize = 256 << 20;
/// Largest log that is read, bytes.
const LOG_MAX: u64 = 16 << 30;

pub(super) fn checksum(parts: &[&[u8]]) -> u32 {
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
    parts.iter().for_each(|p| digest.update(p));
    digest.finalize() as u32
}

pub(super) fn name(n: u64) -> String {
    format!("log-{n:016x}")
}

/// A log that is written to.
pub(super) struct Log {
    file: Box<dyn DiskFile>,
    number: u64,
    end: u64,
    frames: u64,
}

impl Log {
    /// A new one, durable when this returns.
    pub fn create(d: &dyn Disk, number: u64) -> Result<Self, StoreError> {
        let file = disk("create a log", d.create(&name(number)))?;
        disk("create a log", file.sync_data())?;
        disk("create a log", d.sync_dir())?;
        Ok(Log { file, number, end: 0, frames: 0 })
    }

    /// The newest one, of so many frames, after [`replay`] has cut its end.
    pub fn append_to(d: &dyn Disk, number: u64, frames: u64) -> Result<Self, StoreError> {
        let file = disk("open the log", d.open(&name(number)))?;
        let end = disk("read the log", file.len())?;
        // What a dead process wrote may not be on the disk yet, and is about to be served.
        disk("sync the log", file.sync_data())?;
        Ok(Log { file, number, end, frames })
    }

    pub fn number(&self) -> u64 {
        self.number
    }

    pub fn bytes(&self) -> u64 {
        self.end
    }

    /// Writes batches as one frame; they are durable when this returns.
    pub fn write<'a>(&mut self, batches: impl Iterator<Item = &'a [Numbered]>) -> Result<(), StoreError> {
        let mut body = Vec::new();
        encode(&mut body, batches);
        if body.len() > FRAME_MAX {
            let n = body.len();
            return Err(StoreError::TooLarge(format!(
                "a write of {n} bytes, at most {FRAME_MAX} are taken at once"
            )));
        }
        let mut frame = Vec::with_capacity(HEAD + body.len());
        frame.extend_from_slice(&MAGIC.to_le_bytes());
        frame.extend_from_slice(&(body.len() as u32).to_le_bytes());
        frame.extend_from_slice(&self.frames.to_le_bytes());
        let sum = checksum(&[&frame[4..16], &body]);
        frame.extend_from_slice(&sum.to_le_bytes());
        frame.extend_from_slice(&body);
        disk("write to the log", self.file.write_at(self.end, &frame))?;
        disk("sync the log", self.file.sync_data())?;
        self.end += frame.len() as u64;
        self.frames += 1;
        Ok(())
    }
}

/// Samples of a series that has a number in this log: the first of a number brings its labels.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Numbered {
    /// Counts from 0 with the new ones.
    pub at: u32,
    pub new: bool,
    /// Where the number is known already, labels read back are empty.
    pub entry: Entry,
}

fn encode<'a>(out: &mut Vec<u8>, batches: impl Iterator<Item = &'a [Numbered]>) {
    // Texts are written once a frame.
    let mut known: HashMap<Str, u64> = HashMap::new();
    let mut text = |out: &mut Vec<u8>, s: &Str| match known.get(s) {
        Some(n) => put_varint(out, n + 1),
        None => {
            known.insert(s.clone(), known.len() as u64);
            out.push(0);
            put_varint(out, s.len() as u64);
            out.extend_from_slice(s.as_bytes());
        }
    };
    for batch in batches {
        put_varint(out, batch.len() as u64);
        let mut before = 0i64;
        for Numbered { at, new, entry } in batch {
            put_varint(out, u64::from(*at) << 1 | u64::from(*new));
            if *new {
                put_varint(out, entry.labels.len() as u64);
                for (n, v) in entry.labels.iter() {
                    text(out, n);
                    text(out, v);
                }
            }
            put_varint(out, entry.samples.len() as u64);
            for (t, v) in &entry.samples {
                put_signed(out, t.wrapping_sub(before));
                before = *t;
                out.extend_from_slice(&v.to_bits().to_le_bytes());
            }
            put_varint(out, entry.histograms.len() as u64);
            for (t, h) in &entry.histograms {
                put_signed(out, t.wrapping_sub(before));
                before = *t;
                native::put_one(out, h);
            }
        }
    }
}

type Take<'a> = &'a mut dyn FnMut(Vec<Numbered>) -> Result<(), Damaged>;

fn decode(body: &[u8], each: Take<'_>) -> Result<(), Damaged> {
    let mut input = Input(body);
    let mut known: Vec<Str> = Vec::new();
    // No count is greater than the bytes that are left: nothing is allocated on a wrong word.
    let count = |input: &mut Input<'_>| {
        let n = usize::try_from(input.varint()?).map_err(|_| Damaged)?;
        if n > input.0.len() { Err(Damaged) } else { Ok(n) }
    };
    while !input.0.is_empty() {
        let mut batch = Vec::new();
        let mut before = 0i64;
        for _ in 0..count(&mut input)? {
            let number = input.varint()?;
            let (at, new) = (u32::try_from(number >> 1).map_err(|_| Damaged)?, number & 1 == 1);
            let mut labels = Labels::default();
            if new {
                let mut pairs = Vec::new();
                let mut text = |input: &mut Input<'_>| -> Result<Str, Damaged> {
                    match input.varint()? {
                        0 => {
                            let n = usize::try_from(input.varint()?).map_err(|_| Damaged)?;
                            let s: Str = std::str::from_utf8(input.take(n)?).map_err(|_| Damaged)?.into();
                            known.push(s.clone());
                            Ok(s)
                        }
                        n => known.get(n as usize - 1).cloned().ok_or(Damaged),
                    }
                };
                for _ in 0..count(&mut input)? {
                    let n = text(&mut input)?;
                    pairs.push((n, text(&mut input)?));
                }
                labels = Labels::new(pairs);
            }
            let mut samples = Vec::new();
            for _ in 0..count(&mut input)? {
                before = before.wrapping_add(input.signed()?);
                samples.push((before, f64::from_bits(input.fixed()?)));
            }
            let mut histograms = Vec::new();
            for _ in 0..count(&mut input)? {
                before = before.wrapping_add(input.signed()?);
                histograms.push((before, Arc::new(native::one(&mut input)?)));
            }
            batch.push(Numbered { at, new, entry: Entry { labels, samples, histograms } });
        }
        each(batch)?;
    }
    Ok(())
}

/// The bodies of all frames up to the first wrong one, where that begins, and whether one follows that is right.
fn frames(bytes: &[u8]) -> (Vec<&[u8]>, usize, bool) {
    let (mut out, mut at) = (Vec::new(), 0);
    while let Some((n, body)) = frame(&bytes[at..]) {
        if n != out.len() as u64 {
            break;
        }
        out.push(body);
        at += HEAD + body.len();
    }
    let magic = MAGIC.to_le_bytes();
    let rest = &bytes[at..];
    // The frame itself is looked over too: its number may be what is wrong.
    let more = (0..rest.len().saturating_sub(HEAD - 1))
        .any(|i| rest[i..].starts_with(&magic) && frame(&rest[i..]).is_some());
    (out, at, more)
}

fn frame(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let head = bytes.get(..HEAD)?;
    let word = |at: usize| Some(u32::from_le_bytes(head.get(at..at + 4)?.try_into().ok()?));
    let body = bytes.get(HEAD..HEAD.checked_add(word(4)? as usize)?)?;
    let number = u64::from_le_bytes(head.get(8..16)?.try_into().ok()?);
    (word(0)? == MAGIC && word(16)? == checksum(&[&head[4..16], body])).then_some((number, body))
}

/// Hands over all batches of a log; how many frames. Of the newest one an incomplete end is cut off.
pub(super) fn replay(d: &dyn Disk, number: u64, newest: bool, each: Take<'_>) -> Result<u64, StoreError> {
    let file = disk("open a log", d.open(&name(number)))?;
    let bytes = disk("read a log", read_all(&*file, LOG_MAX))?;
    let damaged = |at: usize, what: &str| StoreError::Damaged {
        file: name(number),
        what: format!("{what} at byte {at} of {}", bytes.len()),
    };
    let (bodies, end, more) = frames(&bytes);
    if more || (end < bytes.len() && !newest) {
        return Err(damaged(end, "a frame is wrong and others follow"));
    }
    let n = bodies.len() as u64;
    for body in bodies {
        decode(body, each).map_err(|_| damaged(0, "a frame says what no writer wrote"))?;
    }
    if end < bytes.len() {
        disk("cut the end of the log", file.truncate(end as u64))?;
        disk("cut the end of the log", file.sync_data())?;
    }
    Ok(n)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::histogram::Histogram;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&bytes, &mut |_| Ok(()));
            let _ = frames(&bytes);
        }

        #[test]
        fn batches_come_back(all in prop::collection::vec(
            ("[a-z]{1,3}", prop::collection::vec((any::<i64>(), any::<u64>()), 0..5)), 0..8)
        ) {
            let batch: Vec<Numbered> = all
                .iter()
                .zip(0..)
                .map(|((n, s), at)| {
                    let native = |t: i64, v: u64| {
                        let (count, sum) = (v as f64, f64::from_bits(v));
                        let h = Histogram { count, sum, positive: vec![(3, 1.5)], ..Histogram::default() };
                        (t, Arc::new(h))
                    };
                    let new = at % 3 > 0;
                    let labels = Labels::of(&[("__name__", n), ("same", "x")]);
                    let entry = Entry {
                        labels: if new { labels } else { Labels::default() },
                        samples: s.iter().map(|(t, v)| (*t, f64::from_bits(*v))).collect(),
                        histograms: s.iter().map(|(t, v)| native(*t, *v)).collect(),
                    };
                    Numbered { at, new, entry }
                })
                .collect();
            let mut bytes = Vec::new();
            encode(&mut bytes, [batch.as_slice(), &batch].into_iter());
            let mut back = Vec::new();
            let read = decode(&bytes, &mut |b| {
                back.push(b);
                Ok(())
            });
            prop_assert!(read.is_ok());
            prop_assert_eq!(format!("{back:?}"), format!("{:?}", vec![&batch, &batch]));
        }
    }
}
