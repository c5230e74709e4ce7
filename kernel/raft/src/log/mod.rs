//! One log for all groups of a node: every turn appends once and syncs once, whatever the number of
//! groups.
//!
//! The log is a row of segment files `NNNNNNNNNNNNNNNN.log`. A segment begins with a header (its
//! number, a random salt, the number of its first batch) and goes on with frames (`frame`). The frames of
//! one append are a batch: recovery takes all of it or nothing. As the next batch is only written
//! after the last was synced, at most the final batch can be torn; a bad frame with a later batch
//! behind it, or in an earlier segment, is damage to synced data and an error (`recover`).
//!
//! Limits of that: damage that hits exactly the last synced batch and nothing else looks like a torn
//! append and is cut off. Replication is what heals it; a log alone cannot know better.
//!
//! After any failed write or sync the log is poisoned: it never retries (fsyncgate), all later calls
//! fail, and the next start recovers from what the disk really holds.

mod frame;
mod group;
mod recover;
#[cfg(test)]
mod tests;

use crate::{
    GroupId, Position, StoreError,
    bug::{Bug, Bugs},
    codec,
};
use bytes::Bytes;
use frame::{Frame, Kind};
use group::{GroupLog, Place};
use photon_rt::disk::{Disk, DiskFile, read_exact_at};
use raft::eraftpb::{ConfState, Entry, EntryType, HardState};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

/// Sizes of the log.
#[derive(Clone, Copy, Debug)]
pub struct LogConfig {
    /// A segment is closed when the next batch would make it longer than this. Bytes.
    pub segment_bytes: u64,
    /// Newest entries kept in memory, all groups together. Bytes of data.
    pub cache_bytes: usize,
}

impl Default for LogConfig {
    fn default() -> Self {
        LogConfig { segment_bytes: 64 << 20, cache_bytes: 64 << 20 }
    }
}

const SEGMENT_HEADER: usize = 48;
const MAGIC: &[u8; 8] = b"PHOTONLG";

struct Segment {
    file: Box<dyn DiskFile>,
    salt: u64,
    /// Bytes used; what follows is zeros.
    len: u64,
}

/// What a state frame says beside the position before the first entry.
#[derive(Clone)]
struct GroupState {
    /// Whether later entries stay.
    keep: bool,
    floor: u64,
    hard: HardState,
    conf: ConfState,
    conf_index: u64,
}

/// A change that takes effect once its batch is durable.
enum Pending {
    Entry { group: u64, entry: Entry, offset: usize, len: usize },
    Hard { group: u64, hard: HardState },
    State { group: u64, start: Position, state: GroupState },
    Members { group: u64, conf: ConfState, index: u64 },
    Remove { group: u64 },
}

/// The log of a node.
pub struct Log {
    disk: Arc<dyn Disk>,
    config: LogConfig,
    groups: BTreeMap<u64, GroupLog>,
    segments: BTreeMap<u64, Segment>,
    next_batch: u64,
    /// Frames of the batch being built, and where each ends.
    buffer: Vec<u8>,
    ends: Vec<usize>,
    pending: Vec<Pending>,
    scratch: Vec<u8>,
    cached_bytes: usize,
    cache_order: VecDeque<(u64, u64)>,
    poisoned: Option<String>,
    bugs: Bugs,
    syncs: u64,
}

impl Log {
    /// Opens the log in `disk` and replays it.
    pub fn open(disk: Arc<dyn Disk>, config: LogConfig) -> Result<Log, StoreError> {
        Log::open_with(disk, config, Bugs::default())
    }

    pub(crate) fn open_with(disk: Arc<dyn Disk>, config: LogConfig, bugs: Bugs) -> Result<Log, StoreError> {
        let mut log = Log {
            disk,
            config,
            groups: BTreeMap::new(),
            segments: BTreeMap::new(),
            next_batch: 1,
            buffer: Vec::new(),
            ends: Vec::new(),
            pending: Vec::new(),
            scratch: Vec::new(),
            cached_bytes: 0,
            cache_order: VecDeque::new(),
            poisoned: None,
            bugs,
            syncs: 0,
        };
        log.recover()?;
        Ok(log)
    }

    /// Groups that the log knows.
    pub fn groups(&self) -> Vec<GroupId> {
        self.groups.keys().map(|g| GroupId(*g)).collect()
    }

    /// True when the log knows the group.
    pub fn has(&self, group: GroupId) -> bool {
        self.groups.contains_key(&group.0)
    }

    fn group(&self, group: GroupId) -> Result<&GroupLog, StoreError> {
        self.groups.get(&group.0).ok_or_else(|| StoreError::Invalid(format!("{group} is not in the log")))
    }

    /// Hard state and members of a group.
    pub fn state(&self, group: GroupId) -> Result<(HardState, ConfState), StoreError> {
        self.group(group).map(|g| (g.hard.clone(), g.conf.clone()))
    }

    /// Index of the entry that made the members what [`Log::state`] says.
    pub fn members_index(&self, group: GroupId) -> Result<u64, StoreError> {
        self.group(group).map(|g| g.conf_index)
    }

    /// Position before the first entry.
    pub fn start(&self, group: GroupId) -> Result<Position, StoreError> {
        self.group(group).map(|g| g.start)
    }

    /// A state machine that holds all commands up to this index lacks none before the first entry.
    pub fn floor(&self, group: GroupId) -> Result<u64, StoreError> {
        self.group(group).map(|g| g.floor)
    }

    /// Index of the last entry.
    pub fn last_index(&self, group: GroupId) -> Result<u64, StoreError> {
        self.group(group).map(GroupLog::last_index)
    }

    /// Term of the entry at `index` (or of the position before the first), if the log holds it.
    pub fn term(&self, group: GroupId, index: u64) -> Result<Option<u64>, StoreError> {
        self.group(group).map(|g| g.term(index))
    }

    /// Bytes of entries appended to a group since the log was opened.
    pub fn written(&self, group: GroupId) -> u64 {
        self.groups.get(&group.0).map_or(0, |g| g.written)
    }

    /// Bytes that the segments hold.
    pub fn bytes(&self) -> u64 {
        self.segments.values().map(|s| s.len).sum()
    }

    /// Number of segments.
    pub fn segments(&self) -> usize {
        self.segments.len()
    }

    /// How many batches were synced since the log was opened.
    pub fn syncs(&self) -> u64 {
        self.syncs
    }

    /// The disk that the log lives on.
    pub fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    /// Groups with entries in the oldest segment, which therefore cannot be removed.
    pub fn pinning(&self) -> Vec<GroupId> {
        let Some(oldest) = self.segments.keys().next() else { return Vec::new() };
        let pins = |g: &GroupLog| g.first_segment().is_some_and(|s| s == *oldest);
        self.groups.iter().filter(|(_, g)| pins(g)).map(|(id, _)| GroupId(*id)).collect()
    }

    /// Entries `low..high`, at least one if there is one, and no more than `max_bytes` of data
    /// beyond it. The checksum of everything that comes from disk is verified.
    pub fn entries(
        &self,
        group: GroupId,
        low: u64,
        high: u64,
        max_bytes: u64,
    ) -> Result<Vec<Entry>, StoreError> {
        let g = self.group(group)?;
        let mut out = Vec::new();
        let mut bytes = 0u64;
        for index in low..high {
            let entry = match g.cached(index) {
                Some(e) => e.clone(),
                None => {
                    let place = g.place(index).ok_or_else(|| {
                        StoreError::Invalid(format!(
                            "{group} has entries {}..={}, not {index}",
                            g.start.index + 1,
                            g.last_index()
                        ))
                    })?;
                    self.read(group, index, place)?
                }
            };
            // The fixed part counts too, so that many small entries are bounded as well.
            bytes += entry.data.len() as u64 + 32;
            if bytes > max_bytes && !out.is_empty() {
                break;
            }
            out.push(entry);
        }
        Ok(out)
    }

    fn read(&self, group: GroupId, index: u64, place: Place) -> Result<Entry, StoreError> {
        let damaged = |what: &str| {
            StoreError::Damaged(format!(
                "{group}, entry {index} at {} of segment {}: {what}",
                place.offset, place.segment
            ))
        };
        let segment = self.segments.get(&place.segment).ok_or_else(|| damaged("the segment is gone"))?;
        let mut bytes = vec![0; place.len as usize];
        read_exact_at(&*segment.file, place.offset, &mut bytes)
            .map_err(StoreError::io(format!("read segment {}", place.segment)))?;
        match frame::parse(&bytes, segment.salt) {
            Some((Frame { kind: Kind::Entry, group: g, index: i, term, len, .. }, _))
                if (g, i, term) == (group.0, index, place.term) =>
            {
                let body = Bytes::from(bytes).slice(frame::HEADER..frame::HEADER + len as usize);
                codec::decode_entry_body(body, index, term).map_err(|e| damaged(&e.to_string()))
            }
            Some(_) => Err(damaged("another frame is there")),
            None => Err(damaged("the checksum is wrong")),
        }
    }

    fn push(&mut self, kind: Kind, group: u64, at: Position, pending: impl FnOnce(usize, usize) -> Pending) {
        let offset = self.buffer.len();
        frame::push(&mut self.buffer, kind, group, at.term, at.index, &self.scratch);
        self.ends.push(self.buffer.len());
        self.pending.push(pending(offset, self.buffer.len() - offset));
    }

    /// Adds entries to the batch; they replace those of the group from the first one's index on.
    pub fn append(&mut self, group: GroupId, entries: &[Entry]) -> Result<(), StoreError> {
        for e in entries {
            self.scratch.clear();
            codec::encode_entry_body(&mut self.scratch, e)
                .map_err(|err| StoreError::Invalid(format!("{group}, entry {}: {err}", e.index)))?;
            let at = Position { index: e.index, term: e.term };
            let mut entry = e.clone();
            if entry.get_entry_type() != EntryType::EntryNormal {
                entry.data = Bytes::new(); // as it will be read again
            }
            self.push(Kind::Entry, group.0, at, |offset, len| Pending::Entry {
                group: group.0,
                entry,
                offset,
                len,
            });
        }
        Ok(())
    }

    /// Adds a hard state to the batch.
    pub fn set_hard_state(&mut self, group: GroupId, hard: &HardState) {
        self.scratch.clear();
        codec::encode_hard_state(&mut self.scratch, hard);
        let hard = hard.clone();
        self.push(Kind::Hard, group.0, Position::default(), |_, _| Pending::Hard { group: group.0, hard });
    }

    /// Adds to the batch that the group's log begins after `start`, where no state machine that has all
    /// up to `floor` lacks anything: a new group, or an installed snapshot. Entries it had are dropped.
    pub fn reset(&mut self, group: GroupId, start: Position, floor: u64, conf: &ConfState, hard: &HardState) {
        let (conf, hard) = (conf.clone(), hard.clone());
        let state = GroupState { keep: false, floor, hard, conf, conf_index: start.index };
        self.push_state(group.0, start, state);
    }

    /// Adds to the batch that the entry at `index` made the members so.
    pub fn set_members(&mut self, group: GroupId, conf: &ConfState, index: u64) {
        self.scratch.clear();
        codec::encode_conf_state(&mut self.scratch, conf);
        let (group, conf) = (group.0, conf.clone());
        let at = Position { index, term: 0 };
        self.push(Kind::Members, group, at, |_, _| Pending::Members { group, conf, index });
    }

    fn push_state(&mut self, group: u64, start: Position, state: GroupState) {
        self.scratch.clear();
        self.scratch.push(u8::from(state.keep));
        codec::put_u64(&mut self.scratch, state.floor);
        let (mut h, mut c) = (Vec::new(), Vec::new());
        codec::encode_hard_state(&mut h, &state.hard);
        codec::encode_conf_state(&mut c, &state.conf);
        codec::put_bytes(&mut self.scratch, &h);
        codec::put_bytes(&mut self.scratch, &c);
        codec::put_u64(&mut self.scratch, state.conf_index);
        self.push(Kind::State, group, start, |_, _| Pending::State { group, start, state });
    }

    /// The group's state as it will be after the batch, and the position that its log begins after.
    fn newest_state(&self, group: u64, g: &GroupLog) -> (Position, GroupState) {
        let now = GroupState {
            keep: true,
            floor: g.floor,
            hard: g.hard.clone(),
            conf: g.conf.clone(),
            conf_index: g.conf_index,
        };
        let mut newest = (g.start, now);
        for p in &self.pending {
            match p {
                Pending::Hard { group: id, hard } if *id == group => newest.1.hard = hard.clone(),
                Pending::Members { group: id, conf, index } if *id == group => {
                    (newest.1.conf, newest.1.conf_index) = (conf.clone(), *index);
                }
                Pending::State { group: id, start, state } if *id == group => {
                    newest = (*start, GroupState { keep: true, ..state.clone() });
                }
                _ => {}
            }
        }
        newest
    }

    /// Adds to the batch that entries up to `index` are no longer needed, the last command among them
    /// being at `command` or before, and rewrites what else keeps old segments alive.
    /// [`Log::collect`] removes segments afterwards.
    pub fn purge(&mut self, group: GroupId, index: u64, command: u64) -> Result<(), StoreError> {
        let g = self.group(group)?;
        let index = index.min(g.last_index());
        // A purge before it in this batch may have gone further.
        let purged = index > self.newest_state(group.0, g).0.index;
        // Where the oldest entry will be that anybody still needs.
        let active = self.segments.keys().next_back().copied().unwrap_or(0);
        let needed = |(id, g): (&u64, &GroupLog)| {
            if *id == group.0 { g.segment_after(index) } else { g.first_segment() }
        };
        let first_needed = self.groups.iter().filter_map(needed).min().unwrap_or(active);
        // States that lie before it would hold their segments for ever: they move forward.
        let alone = |(id, g): (&u64, &GroupLog)| {
            let moves = !(purged && *id == group.0) && g.state_segment < first_needed;
            moves.then(|| (*id, self.newest_state(*id, g)))
        };
        let moving: Vec<_> = self.groups.iter().filter_map(alone).collect();
        if purged {
            let term =
                g.term(index).ok_or_else(|| StoreError::Invalid(format!("{group} has no entry {index}")))?;
            let (_, mut state) = self.newest_state(group.0, g);
            state.floor = command.min(index);
            // The commit index is not always written; what is purged was committed.
            state.hard.commit = state.hard.commit.max(index);
            self.push_state(group.0, Position { index, term }, state);
        }
        for (id, (start, state)) in moving {
            self.push_state(id, start, state);
        }
        Ok(())
    }

    /// Adds to the batch that the group is gone.
    pub fn remove(&mut self, group: GroupId) {
        self.scratch.clear();
        self.push(Kind::Remove, group.0, Position::default(), |_, _| Pending::Remove { group: group.0 });
    }

    /// True when the batch holds something.
    pub fn is_dirty(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Fails if the log has stopped.
    pub fn check(&self) -> Result<(), StoreError> {
        self.poisoned.as_ref().map_or(Ok(()), |why| Err(StoreError::Poisoned(why.clone())))
    }

    fn poison<T>(&mut self, result: Result<T, StoreError>) -> Result<T, StoreError> {
        if let Err(e) = &result {
            tracing::error!(error = %e, "the log stops; nothing more will be acknowledged");
            self.poisoned.get_or_insert(e.to_string());
        }
        result
    }

    /// Writes the batch, syncs it, and lets it take effect.
    pub fn commit(&mut self) -> Result<(), StoreError> {
        self.check()?;
        if self.pending.is_empty() {
            return Ok(());
        }
        let written = self.write();
        let (segment, base) = self.poison(written)?;
        self.next_batch += 1;
        self.syncs += 1;
        self.buffer.clear();
        // A single huge batch shall not hold its memory for ever.
        self.buffer.shrink_to(1 << 20);
        self.ends.clear();
        for change in std::mem::take(&mut self.pending) {
            let done = self.take_effect(change, segment, base);
            self.poison(done)?;
        }
        self.trim_cache();
        Ok(())
    }

    fn write(&mut self) -> Result<(u64, u64), StoreError> {
        let need = self.buffer.len() as u64;
        let full = match self.segments.last_key_value() {
            Some((_, s)) => s.len > SEGMENT_HEADER as u64 && s.len + need > self.config.segment_bytes,
            None => true,
        };
        if full {
            self.roll(need)?;
        }
        let (id, segment) = self.segments.iter_mut().next_back().expect("roll makes a segment");
        let mut from = 0;
        for (i, end) in self.ends.iter().enumerate() {
            let last = i + 1 == self.ends.len();
            frame::seal(&mut self.buffer[from..*end], segment.salt, self.next_batch, last);
            from = *end;
        }
        let base = segment.len;
        let io = || StoreError::io(format!("append to segment {id}"));
        segment.file.write_at(base, &self.buffer).map_err(io())?;
        if !self.bugs.on(Bug::ForgottenFsync) {
            let mut synced = segment.file.sync_data();
            if self.bugs.on(Bug::RetriedFsync) && synced.is_err() {
                synced = segment.file.sync_data();
            }
            synced.map_err(StoreError::io(format!("sync segment {id}")))?;
        }
        segment.len += need;
        Ok((*id, base))
    }

    /// Begins a new segment with room for `need` bytes. It gets its name only when its header is
    /// durable, so a segment without a valid header is damage.
    fn roll(&mut self, need: u64) -> Result<(), StoreError> {
        let id = self.segments.keys().next_back().map_or(1, |id| id + 1);
        let salt = photon_rt::entropy::u64();
        let io = |what| StoreError::io(format!("{what} segment {id}"));
        let name = recover::segment_name(id);
        let tmp = format!("{name}.tmp");
        let file = self.disk.create(&tmp).map_err(io("create"))?;
        file.write_at(0, &recover::segment_header(id, salt, self.next_batch)).map_err(io("write"))?;
        file.allocate(self.config.segment_bytes.max(SEGMENT_HEADER as u64 + need)).map_err(io("allocate"))?;
        file.sync_data().map_err(io("sync"))?;
        self.disk.rename(&tmp, &name).map_err(io("name"))?;
        self.disk.sync_dir().map_err(io("sync the name of"))?;
        self.segments.insert(id, Segment { file, salt, len: SEGMENT_HEADER as u64 });
        Ok(())
    }

    fn take_effect(&mut self, change: Pending, segment: u64, base: u64) -> Result<(), StoreError> {
        match change {
            Pending::Entry { group, entry, offset, len } => {
                let keep_tail = self.bugs.on(Bug::ConflictKeepsTail);
                let g = self.known(group)?;
                let place =
                    Place { term: entry.term, segment, offset: base + offset as u64, len: len as u32 };
                let freed = g.append(entry.index, place, false, keep_tail)?;
                let (index, bytes) = (entry.index, entry.data.len());
                g.written += len as u64;
                g.cache.push_back(entry);
                self.cached_bytes = self.cached_bytes + bytes - freed;
                self.cache_order.push_back((group, index));
            }
            Pending::Hard { group, hard } => self.known(group)?.hard = hard,
            Pending::Members { group, conf, index } => {
                let g = self.known(group)?;
                (g.conf, g.conf_index) = (conf, index);
            }
            Pending::State { group, start, state } => self.take_state(group, start, state, segment)?,
            Pending::Remove { group } => {
                if let Some(g) = self.groups.remove(&group) {
                    self.cached_bytes -= g.cache.iter().map(|e| e.data.len()).sum::<usize>();
                }
            }
        }
        Ok(())
    }

    fn take_state(
        &mut self,
        group: u64,
        start: Position,
        state: GroupState,
        segment: u64,
    ) -> Result<(), StoreError> {
        let g = self.groups.entry(group).or_default();
        let freed = g.begin(start, state.floor, state.keep)?;
        (g.hard, g.conf, g.conf_index) = (state.hard, state.conf, state.conf_index);
        g.state_segment = segment;
        self.cached_bytes -= freed;
        Ok(())
    }

    fn known(&mut self, group: u64) -> Result<&mut GroupLog, StoreError> {
        self.groups
            .get_mut(&group)
            .ok_or_else(|| StoreError::Invalid(format!("group {group} is not in the log")))
    }

    fn trim_cache(&mut self) {
        // The order may name entries that were cut off since; they free nothing and go too.
        while self.cached_bytes > self.config.cache_bytes
            || self.cache_order.len() > self.config.cache_bytes / 16 + 16
        {
            let Some((group, index)) = self.cache_order.pop_front() else { break };
            if let Some(g) = self.groups.get_mut(&group) {
                self.cached_bytes -= g.evict(index);
            }
        }
    }

    /// Removes segments in which nothing is alive, oldest first. Returns how many.
    pub fn collect(&mut self) -> Result<usize, StoreError> {
        self.check()?;
        let alive = |g: &GroupLog| g.first_segment().unwrap_or(u64::MAX).min(g.state_segment);
        let active = self.segments.keys().next_back().copied().unwrap_or(0);
        let first_alive = self.groups.values().map(alive).min().unwrap_or(active).min(active);
        let mut removed = 0;
        while let Some(id) = self.segments.keys().next().copied().filter(|id| *id < first_alive) {
            let io = |what| StoreError::io(format!("{what} segment {id}"));
            // One by one: after a crash the segments that are left must follow each other.
            let done = self
                .disk
                .remove(&recover::segment_name(id))
                .map_err(io("remove"))
                .and_then(|()| self.disk.sync_dir().map_err(io("sync the removal of")));
            self.poison(done)?;
            self.segments.remove(&id);
            removed += 1;
        }
        Ok(removed)
    }
}
