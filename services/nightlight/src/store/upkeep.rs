//! What happens to blocks: they are cut from the head, merged, stripped of what was deleted, and expire.
//!
//! Invariants: one thing at a time (`Store::upkeep`); what takes the place of something is durable before that is
//! removed, and says what it takes the place of; a deletion holds for the blocks that existed when it was asked for.

use super::{
    Placed, State, Store, StoreError,
    block::{self, Block, Origin},
    codec::{Damaged, Input, put_signed, put_varint},
    disk, lock,
    log::{Log, checksum},
    number_of,
};
use crate::{
    engine::Samples,
    labels::{Labels, MatchOp, Matcher},
};
use photon_rt::disk::{Disk, read_all, replace};
use std::{
    collections::{BTreeSet, HashMap},
    ops::Range,
    sync::Arc,
};

/// Blocks of one level that are merged into one of the next.
const FANOUT: usize = 4;
/// Most merges of one turn of upkeep.
const MERGES: usize = 8;
/// The file of deletions, its first bytes, its greatest size.
const DELETIONS: &str = "deletions";
const MAGIC: &[u8; 8] = b"PHNLDEL1";
const DELETIONS_MAX: u64 = 64 << 20;
/// Most deletions that are not yet compacted away.
const PENDING_MAX: usize = 10_000;

/// What is kept.
#[derive(Clone, Copy, Debug, Default)]
pub struct Keep {
    /// Blocks that hold nothing newer than this are forgotten, milliseconds since 1970.
    pub since_ms: Option<i64>,
    /// Beyond this the oldest blocks are forgotten, bytes.
    pub bytes: Option<u64>,
    /// Blocks are not merged into ones that span more than this, milliseconds: a block is forgotten as a whole.
    pub span_ms: Option<i64>,
}

/// What a turn of upkeep did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// The head became a block.
    pub cut: bool,
    /// Blocks forgotten.
    pub expired: usize,
    /// Merges of blocks.
    pub merged: usize,
}

/// For each series of a block: the times that are deleted, sorted, apart from each other.
#[derive(Default)]
pub(super) struct Gone(HashMap<u32, Vec<(i64, i64)>>);

impl Gone {
    /// All of `from..=to` is deleted.
    pub fn covers(&self, at: u32, from: i64, to: i64) -> bool {
        self.0.get(&at).is_some_and(|all| all.iter().any(|g| g.0 <= from && g.1 >= to))
    }

    /// Takes out what is deleted.
    pub fn strip(&self, at: u32, s: &mut Samples) {
        let Some(all) = self.0.get(&at) else { return };
        let keep: Vec<bool> = s.t.iter().map(|t| !all.iter().any(|g| g.0 <= *t && *t <= g.1)).collect();
        let mut by = keep.iter();
        s.t.retain(|_| *by.next().unwrap_or(&true));
        let mut by = keep.iter();
        s.v.retain(|_| *by.next().unwrap_or(&true));
        let mut by = keep.iter();
        s.h.retain(|_| *by.next().unwrap_or(&true));
    }

    fn add(&mut self, at: u32, from: i64, to: i64) {
        let all = self.0.entry(at).or_default();
        all.push((from, to));
        all.sort_unstable();
        let mut out: Vec<(i64, i64)> = Vec::with_capacity(all.len());
        for g in all.drain(..) {
            match out.last_mut() {
                Some(last) if g.0 <= last.1.saturating_add(1) => last.1 = last.1.max(g.1),
                _ => out.push(g),
            }
        }
        *all = out;
    }
}

/// Series and a time that are deleted from blocks of smaller numbers.
struct Deletion {
    before: u64,
    from: i64,
    to: i64,
    matchers: Vec<Matcher>,
}

fn text(out: &mut Vec<u8>, s: &str) {
    put_varint(out, s.len() as u64);
    out.extend_from_slice(s.as_bytes());
}

fn encode(all: &[Deletion]) -> Vec<u8> {
    let mut body = Vec::new();
    for d in all {
        put_varint(&mut body, d.before);
        put_signed(&mut body, d.from);
        put_signed(&mut body, d.to);
        put_varint(&mut body, d.matchers.len() as u64);
        for m in &d.matchers {
            body.push(m.op as u8);
            text(&mut body, &m.name);
            text(&mut body, &m.value);
        }
    }
    [&MAGIC[..], &checksum(&[&body]).to_le_bytes(), &body].concat()
}

fn decode(bytes: &[u8]) -> Result<Vec<Deletion>, Damaged> {
    let mut input = Input(bytes);
    let (magic, sum) = (input.take(8)?, input.take(4)?);
    if magic != MAGIC || checksum(&[input.0]).to_le_bytes() != sum {
        return Err(Damaged);
    }
    let mut out = Vec::new();
    while !input.0.is_empty() {
        let (before, from, to) = (input.varint()?, input.signed()?, input.signed()?);
        let mut matchers = Vec::new();
        for _ in 0..input.varint()? {
            let ops = [MatchOp::Equal, MatchOp::NotEqual, MatchOp::Regex, MatchOp::NotRegex];
            let op = *ops.get(usize::from(input.byte()?)).ok_or(Damaged)?;
            let mut text = || {
                let n = usize::try_from(input.varint()?).map_err(|_| Damaged)?;
                std::str::from_utf8(input.take(n)?).map_err(|_| Damaged)
            };
            matchers.push(Matcher::new(text()?, op, text()?).map_err(|_| Damaged)?);
        }
        out.push(Deletion { before, from, to, matchers });
    }
    Ok(out)
}

fn deletions(d: &dyn Disk) -> Result<Vec<Deletion>, StoreError> {
    if !disk("list files", d.list())?.iter().any(|n| n == DELETIONS) {
        return Ok(Vec::new());
    }
    let file = disk("open the deletions", d.open(DELETIONS))?;
    let bytes = disk("read the deletions", read_all(&*file, DELETIONS_MAX))?;
    decode(&bytes).map_err(|_| StoreError::Damaged {
        file: DELETIONS.into(),
        what: "it is not what was written".into(),
    })
}

fn save(d: &dyn Disk, all: &[Deletion]) -> Result<(), StoreError> {
    disk("write the deletions", replace(d, DELETIONS, &encode(all)))
}

fn place(block: Block, deletions: &[Deletion]) -> Placed {
    let mut gone = Gone::default();
    for d in deletions.iter().filter(|d| block.number < d.before && block.overlaps(d.from, d.to)) {
        for (_, at) in block.select(&d.matchers) {
            gone.add(at, d.from, d.to);
        }
    }
    Placed { block: Arc::new(block), gone: Arc::new(gone) }
}

/// Opens the blocks of these numbers, removes those that others took the place of; sorted by order, and the newest log
/// that is in them.
pub(super) fn open_blocks(d: &dyn Disk, numbers: &BTreeSet<u64>) -> Result<(Vec<Placed>, u64), StoreError> {
    let deletions = deletions(d)?;
    let mut all: Vec<Block> = Vec::new();
    let mut replaced: BTreeSet<u64> = BTreeSet::new();
    // A block is younger than those that it takes the place of.
    for n in numbers.iter().rev() {
        if replaced.contains(n) {
            disk("remove a merged block", d.remove(&block::name(*n)))?;
            continue;
        }
        let b = Block::open(d, *n)?;
        replaced.extend(&b.origin.parents);
        all.push(b);
    }
    all.sort_by_key(|b| b.origin.order);
    let logged = all.iter().map(|b| b.origin.logs).max().unwrap_or(0);
    Ok((all.into_iter().map(|b| place(b, &deletions)).collect(), logged))
}

impl Store {
    fn number(&self) -> u64 {
        let mut w = lock(&self.writer);
        w.next += 1;
        w.next - 1
    }

    /// True when the log is long enough for a cut, or old enough: what is in no block is never forgotten.
    pub fn wants_cut(&self) -> bool {
        let w = lock(&self.writer);
        w.log.bytes() >= self.options.log_bytes
            || (photon_rt::time::now() >= w.begun + self.options.log_age && self.read().head.len() > 0)
    }

    /// Makes a block of the head and starts a new log. Appends and queries go on meanwhile.
    pub fn cut(&self) -> Result<(), StoreError> {
        let _one = lock(&self.upkeep);
        self.cut_held()
    }

    fn cut_held(&self) -> Result<(), StoreError> {
        {
            let mut w = lock(&self.writer);
            if let Some(e) = &w.stopped {
                return Err(StoreError::Stopped(e.to_string()));
            }
            if self.read().head.len() > 0 {
                let next = w.next;
                w.next += 1;
                let log = Log::create(&*self.disk, next).inspect_err(|e| {
                    // A newer log may be there now: nothing may be added to the older one any more.
                    w.stopped.get_or_insert_with(|| e.clone());
                })?;
                let old = std::mem::replace(&mut w.log, log);
                w.begun = photon_rt::time::now();
                let mut state = self.write();
                let head = std::mem::take(&mut state.head);
                state.frozen.push((old.number(), Arc::new(head)));
            }
        }
        self.flush()
    }

    /// Makes blocks of frozen heads. What fails is tried again at the next cut; the logs are still there.
    fn flush(&self) -> Result<(), StoreError> {
        loop {
            let first = self.read().frozen.first().cloned();
            let Some((log, head)) = first else { return Ok(()) };
            let number = self.number();
            let (labels, at): (Vec<Labels>, Vec<u32>) = head.sorted().into_iter().unzip();
            let origin = Origin { order: number, logs: log, ..Origin::default() };
            let some = block::write(&*self.disk, number, &origin, &labels, &mut |i| head.read(at[i]))?;
            let block = if some { Some(Block::open(&*self.disk, number)?) } else { None };
            {
                let mut state = self.write();
                state.frozen.remove(0);
                state.blocks.extend(block.map(|b| place(b, &[])));
            }
            // The block is durable: what the old logs hold is in it.
            let names = disk("list files", self.disk.list())?;
            for name in names.iter().filter(|n| number_of(n, "log").is_some_and(|n| n <= log)) {
                disk("remove an old log", self.disk.remove(name))?;
            }
            disk("remove old logs", self.disk.sync_dir())?;
        }
    }

    /// Removes blocks from the state and then from the disk.
    fn forget(&self, gone: &[u64]) -> Result<usize, StoreError> {
        if gone.is_empty() {
            return Ok(0);
        }
        self.write().blocks.retain(|b| !gone.contains(&b.block.number));
        for n in gone {
            disk("remove an old block", self.disk.remove(&block::name(*n)))?;
        }
        disk("remove old blocks", self.disk.sync_dir())?;
        Ok(gone.len())
    }

    /// Forgets blocks that hold nothing newer than `before_ms`; how many.
    pub fn expire(&self, before_ms: i64) -> Result<usize, StoreError> {
        let _one = lock(&self.upkeep);
        let old = |b: &&Placed| b.block.max_t < before_ms;
        let gone: Vec<u64> = self.read().blocks.iter().filter(old).map(|b| b.block.number).collect();
        self.forget(&gone)
    }

    /// Forgets the oldest blocks until all take at most `bytes`; how many.
    pub fn shrink(&self, bytes: u64) -> Result<usize, StoreError> {
        let _one = lock(&self.upkeep);
        let mut left: u64 = self.read().blocks.iter().map(|b| b.block.bytes).sum();
        let mut gone = Vec::new();
        for b in &self.read().blocks {
            if left <= bytes {
                break;
            }
            left -= b.block.bytes;
            gone.push(b.block.number);
        }
        self.forget(&gone)
    }

    /// Deletes samples of `from_ms..=to_ms` of all series that pass `matchers`; when it answers, they are gone for
    /// good. Their room is free after compaction.
    pub fn delete(&self, matchers: &[Matcher], from_ms: i64, to_ms: i64) -> Result<(), StoreError> {
        let _one = lock(&self.upkeep);
        self.cut_held()?;
        let mut all = deletions(&*self.disk)?;
        if all.len() >= PENDING_MAX {
            return Err(StoreError::TooLarge(format!(
                "{PENDING_MAX} deletions wait for compaction: clean them first"
            )));
        }
        let before = self.number();
        all.push(Deletion { before, from: from_ms, to: to_ms, matchers: matchers.to_vec() });
        save(&*self.disk, &all)?;
        let mut state = self.write();
        for b in state.blocks.iter_mut().filter(|b| b.block.overlaps(from_ms, to_ms)) {
            let mut gone = Gone(b.gone.0.clone());
            for (_, at) in b.block.select(matchers) {
                gone.add(at, from_ms, to_ms);
            }
            b.gone = Arc::new(gone);
        }
        Ok(())
    }

    /// Merges blocks where that pays: several of a level into one of the next, and such as overlap; at most a few a
    /// call. How many merges.
    pub fn compact(&self, span_ms: i64) -> Result<usize, StoreError> {
        let _one = lock(&self.upkeep);
        let mut n = 0;
        while n < MERGES {
            let next = plan(&self.read(), self.options.block_bytes, span_ms);
            let Some(range) = next else { break };
            self.merge(range)?;
            n += 1;
        }
        Ok(n)
    }

    /// Rewrites every block of which something is deleted; how many.
    pub fn clean(&self) -> Result<usize, StoreError> {
        let _one = lock(&self.upkeep);
        let mut n = 0;
        loop {
            let at = self.read().blocks.iter().position(|b| !b.gone.0.is_empty());
            let Some(at) = at else { break };
            self.merge(at..at + 1)?;
            n += 1;
        }
        self.drop_deletions()?;
        Ok(n)
    }

    fn merge(&self, range: Range<usize>) -> Result<(), StoreError> {
        let blocks: Vec<Placed> = self.read().blocks[range.clone()].to_vec();
        let labels: BTreeSet<Labels> = blocks.iter().flat_map(|b| b.block.labels().cloned()).collect();
        let labels: Vec<Labels> = labels.into_iter().collect();
        let origins = || blocks.iter().map(|b| &b.block.origin);
        let (low, high) = (origins().map(|o| o.level).min(), origins().map(|o| o.level).max().unwrap_or(0));
        let origin = Origin {
            order: origins().map(|o| o.order).max().unwrap_or(0),
            level: if low == Some(high) && blocks.len() > 1 { high + 1 } else { high },
            logs: origins().map(|o| o.logs).max().unwrap_or(0),
            parents: blocks.iter().map(|b| b.block.number).collect(),
        };
        let number = self.number();
        let read = &mut |i: usize| block::read_all(&blocks, &labels[i]);
        let some = block::write(&*self.disk, number, &origin, &labels, read)?;
        let merged = if some { Some(place(Block::open(&*self.disk, number)?, &[])) } else { None };
        {
            // One change: nobody sees both or neither.
            let mut state = self.write();
            state.blocks.splice(range, merged);
        }
        for n in &origin.parents {
            disk("remove a merged block", self.disk.remove(&block::name(*n)))?;
        }
        disk("remove merged blocks", self.disk.sync_dir())?;
        self.drop_deletions()
    }

    /// Forgets deletions that no block needs any more.
    fn drop_deletions(&self) -> Result<(), StoreError> {
        let mut all = deletions(&*self.disk)?;
        let n = all.len();
        let state = self.read();
        all.retain(|d| {
            state.blocks.iter().any(|b| {
                b.block.number < d.before
                    && b.block.overlaps(d.from, d.to)
                    && !b.block.select(&d.matchers).is_empty()
            })
        });
        drop(state);
        if all.len() == n { Ok(()) } else { save(&*self.disk, &all) }
    }

    /// Everything there is to do now and then: a cut when the log is long, what is too old or too much forgotten, a few
    /// merges.
    pub fn look_after(&self, keep: Keep) -> Result<Done, StoreError> {
        let mut done = Done::default();
        // What makes room comes first: on a full disk nothing else works.
        if let Some(since) = keep.since_ms {
            done.expired += self.expire(since)?;
        }
        if let Some(bytes) = keep.bytes {
            done.expired += self.shrink(bytes)?;
        }
        if self.wants_cut() {
            self.cut()?;
            done.cut = true;
        }
        done.merged = self.compact(keep.span_ms.unwrap_or(i64::MAX))?;
        Ok(done)
    }

    /// Cuts, and calls `link` with the name of every file of a consistent copy, which is to make it last (a hard link:
    /// the files never change).
    pub fn snapshot(&self, link: &mut dyn FnMut(&str) -> std::io::Result<()>) -> Result<(), StoreError> {
        let _one = lock(&self.upkeep);
        self.cut_held()?;
        let numbers: Vec<u64> = self.read().blocks.iter().map(|b| b.block.number).collect();
        for n in numbers {
            disk("copy a block", link(&block::name(n)))?;
        }
        if !deletions(&*self.disk)?.is_empty() {
            disk("copy the deletions", link(DELETIONS))?;
        }
        Ok(())
    }
}

/// The next merge that pays.
fn plan(state: &State, bytes_max: u64, span_ms: i64) -> Option<Range<usize>> {
    let blocks = &state.blocks;
    let fits = |r: &Range<usize>| blocks[r.clone()].iter().map(|b| b.block.bytes).sum::<u64>() <= bytes_max;
    let overlap = |a: &Block, b: &Block| {
        let both = a.max_t.min(b.max_t).saturating_sub(a.min_t.max(b.min_t));
        let less = a.max_t.saturating_sub(a.min_t).min(b.max_t.saturating_sub(b.min_t));
        both > less / 2 && both > 0
    };
    let mut pairs = (1..blocks.len()).map(|i| i - 1..i + 1);
    let overlapping = pairs.find(|r| overlap(&blocks[r.start].block, &blocks[r.start + 1].block) && fits(r));
    if overlapping.is_some() {
        return overlapping;
    }
    let runs = (FANOUT..=blocks.len()).map(|i| i - FANOUT..i);
    let level = |b: &Placed| b.block.origin.level;
    let mut runs = runs.filter(|r| blocks[r.clone()].iter().all(|b| level(b) == level(&blocks[r.start])));
    let span = |r: &Range<usize>| {
        let of = |b: &Placed| (b.block.min_t, b.block.max_t);
        let (from, to) = blocks[r.clone()].iter().map(of).reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)))?;
        Some(to.saturating_sub(from))
    };
    runs.find(|r| fits(r) && span(r).is_some_and(|s| s <= span_ms))
}
