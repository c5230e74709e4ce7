//! Opening a log: read every segment, replay every whole batch, cut a torn one off the end, refuse
//! everything else.

use super::{
    GroupState, Log, MAGIC, SEGMENT_HEADER, Segment,
    frame::{self, Frame, Kind},
    group::Place,
};
use crate::{Position, StoreError, bug::Bug, codec};
use bytes::Bytes;
use crc_fast::{CrcAlgorithm, checksum};
use photon_rt::disk::read_all;

/// Longest segment: one batch of the largest size that a turn can build, with a wide margin.
const MAX_SEGMENT: u64 = 8 << 30;

pub(super) fn segment_name(id: u64) -> String {
    format!("{id:016x}.log")
}

/// `magic, id, salt, first batch, zero, CRC-32C of all before`.
pub(super) fn segment_header(id: u64, salt: u64, first_batch: u64) -> [u8; SEGMENT_HEADER] {
    let mut h = [0; SEGMENT_HEADER];
    h[..8].copy_from_slice(MAGIC);
    h[8..16].copy_from_slice(&id.to_le_bytes());
    h[16..24].copy_from_slice(&salt.to_le_bytes());
    h[24..32].copy_from_slice(&first_batch.to_le_bytes());
    let crc = checksum(CrcAlgorithm::Crc32Iscsi, &h[..40]);
    h[40..48].copy_from_slice(&crc.to_le_bytes());
    h
}

/// Salt and first batch of a valid header.
fn parse_header(bytes: &[u8], id: u64) -> Option<(u64, u64)> {
    let h = bytes.get(..SEGMENT_HEADER)?;
    let word = |at: usize| u64::from_le_bytes(h[at..at + 8].try_into().expect("eight bytes"));
    let valid = &h[..8] == MAGIC && word(8) == id && word(40) == checksum(CrcAlgorithm::Crc32Iscsi, &h[..40]);
    valid.then(|| (word(16), word(24)))
}

/// A whole batch: where it begins, and its frames.
type Batch = (usize, Vec<(usize, Frame)>);

/// The whole batches from `at` on, and where the last of them ends.
fn whole_batches(bytes: &[u8], salt: u64, mut batch: u64) -> (Vec<Batch>, usize, u64) {
    let (mut batches, mut begin, mut at) = (Vec::new(), SEGMENT_HEADER, SEGMENT_HEADER);
    let mut frames = Vec::new();
    while let Some((f, _)) = frame::parse(&bytes[at..], salt) {
        if f.batch != batch {
            break;
        }
        frames.push((at, f));
        at += frame::size(f.len as usize);
        if f.last {
            batches.push((begin, std::mem::take(&mut frames)));
            (begin, batch) = (at, batch + 1);
        }
    }
    (batches, begin, batch)
}

/// True when behind `from` stands a frame of a batch later than `torn`: then `torn` had been synced.
fn later_batch(bytes: &[u8], from: usize, salt: u64, torn: u64) -> Option<usize> {
    const PAGE: usize = 4096;
    let mut at = from;
    while at + frame::HEADER <= bytes.len() {
        // The unused rest of a segment is zeros: skip it by the page.
        if bytes.len() - at >= PAGE && bytes[at..at + PAGE] == [0; PAGE] {
            at += PAGE - frame::HEADER;
            continue;
        }
        if frame::parse(&bytes[at..], salt).is_some_and(|(f, _)| f.batch > torn) {
            return Some(at);
        }
        at += 8;
    }
    None
}

impl Log {
    pub(super) fn recover(&mut self) -> Result<(), StoreError> {
        let mut ids = Vec::new();
        for name in self.disk.list().map_err(StoreError::io("list the segments"))? {
            if name.ends_with(".log.tmp") {
                // A segment that never got its name.
                self.disk.remove(&name).map_err(StoreError::io(format!("remove {name}")))?;
            } else if let Some(hex) = name.strip_suffix(".log") {
                let id = u64::from_str_radix(hex, 16).ok().filter(|id| segment_name(*id) == name);
                ids.push(
                    id.ok_or_else(|| StoreError::Damaged(format!("{name} is not the name of a segment")))?,
                );
            }
        }
        ids.sort_unstable();
        for pair in ids.windows(2) {
            if pair[0] + 1 != pair[1] {
                return Err(StoreError::Damaged(format!(
                    "segments between {} and {} are missing",
                    pair[0], pair[1]
                )));
            }
        }
        for (i, id) in ids.iter().enumerate() {
            self.recover_segment(*id, i == 0, i + 1 == ids.len())?;
        }
        if let Some((id, g)) = self.groups.iter().find(|(_, g)| !g.is_whole()) {
            return Err(StoreError::Damaged(format!(
                "group {id} lacks its state or its entries {}..={}",
                g.start.index + 1,
                g.base
            )));
        }
        for (id, g) in &self.groups {
            if g.hard.commit > g.last_index() || g.hard.commit < g.start.index {
                return Err(StoreError::Damaged(format!(
                    "group {id} has committed {} but holds {}..={}",
                    g.hard.commit,
                    g.start.index + 1,
                    g.last_index()
                )));
            }
        }
        Ok(())
    }

    fn recover_segment(&mut self, id: u64, first: bool, last: bool) -> Result<(), StoreError> {
        let name = segment_name(id);
        let io = |what| StoreError::io(format!("{what} segment {id}"));
        let damaged = |what: String| StoreError::Damaged(format!("segment {id} ({name}): {what}"));
        let file = self.disk.open(&name).map_err(io("open"))?;
        let bytes = read_all(&*file, MAX_SEGMENT).map_err(io("read"))?;
        let (salt, first_batch) =
            parse_header(&bytes, id).ok_or_else(|| damaged("the header is damaged".into()))?;
        if !first && first_batch != self.next_batch {
            return Err(damaged(format!(
                "it begins with batch {first_batch}, but {} is the next one",
                self.next_batch
            )));
        }
        let (mut batches, mut end, mut next) = whole_batches(&bytes, salt, first_batch);
        if self.bugs.on(Bug::RecoveryDropsBatch) && last && batches.len() > 1 {
            (end, _) = batches.pop().expect("checked");
            next -= 1;
        }
        if let Some(at) = later_batch(&bytes, end, salt, next) {
            return Err(damaged(format!(
                "the frame at {end} is damaged although valid data follows at {at}; \
                 restore this node from its peers or a backup"
            )));
        }
        for (_, frames) in &batches {
            for (at, f) in frames {
                let body = &bytes[at + frame::HEADER..at + frame::HEADER + f.len as usize];
                self.replay(id, *at, f, body).map_err(|e| damaged(format!("frame at {at}: {e}")))?;
            }
        }
        let dirty = bytes[end..].iter().any(|b| *b != 0);
        if dirty && !last {
            return Err(damaged(format!("the frame at {end} is damaged although a later segment follows")));
        }
        if last {
            if dirty {
                // What is left of the torn batch must not be there when the next crash is examined.
                tracing::warn!(segment = id, at = end, "cut a torn, never acknowledged append off the log");
                file.truncate(end as u64).map_err(io("cut"))?;
            }
            if dirty || (bytes.len() as u64) < self.config.segment_bytes {
                file.allocate(self.config.segment_bytes).map_err(io("allocate"))?;
                file.sync_data().map_err(io("sync"))?;
            }
        }
        self.next_batch = next;
        self.segments.insert(id, Segment { file, salt, len: end as u64 });
        self.trim_cache();
        Ok(())
    }

    fn replay(&mut self, segment: u64, at: usize, f: &Frame, body: &[u8]) -> Result<(), StoreError> {
        let bad = |e: codec::CodecError| StoreError::Damaged(e.to_string());
        match f.kind {
            Kind::Entry => {
                let place = Place {
                    term: f.term,
                    segment,
                    offset: at as u64,
                    len: frame::size(f.len as usize) as u32,
                };
                let entry =
                    codec::decode_entry_body(Bytes::copy_from_slice(body), f.index, f.term).map_err(bad)?;
                let keep_tail = self.bugs.on(Bug::ConflictKeepsTail);
                let g = self.groups.entry(f.group).or_default();
                let freed = g.append(f.index, place, true, keep_tail)?;
                self.cached_bytes = self.cached_bytes + entry.data.len() - freed;
                g.cache.push_back(entry);
                self.cache_order.push_back((f.group, f.index));
                self.trim_cache();
            }
            Kind::Hard => {
                let hard = codec::decode_hard_state(Bytes::copy_from_slice(body)).map_err(bad)?;
                self.groups.entry(f.group).or_default().hard = hard;
            }
            Kind::State => {
                let mut r = codec::Reader::new(Bytes::copy_from_slice(body));
                let keep = r.bool("keep").map_err(bad)?;
                let floor = r.u64().map_err(bad)?;
                let hard = r.bytes(64, "hard state").and_then(codec::decode_hard_state).map_err(bad)?;
                let conf = r.bytes(1 << 20, "members").and_then(codec::decode_conf_state).map_err(bad)?;
                // Logs from before members could change end here.
                let conf_index = if r.end().is_ok() { f.index } else { r.u64().map_err(bad)? };
                r.end().map_err(bad)?;
                let state = GroupState { keep, floor, hard, conf, conf_index };
                self.take_state(f.group, Position { index: f.index, term: f.term }, state, segment)?;
            }
            Kind::Members => {
                let conf = codec::decode_conf_state(Bytes::copy_from_slice(body)).map_err(bad)?;
                let g = self.groups.entry(f.group).or_default();
                (g.conf, g.conf_index) = (conf, f.index);
            }
            Kind::Remove => {
                if let Some(g) = self.groups.remove(&f.group) {
                    self.cached_bytes -= g.cache.iter().map(|e| e.data.len()).sum::<usize>();
                }
            }
        }
        Ok(())
    }
}
