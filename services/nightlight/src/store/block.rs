//! Blocks: samples of many series that never change again.
//!
//! `PHNLBLK2`, pages, index, foot. A page of instants is written once however many series share it (those of one
//! target do). The index holds where the block comes from, texts, series (sorted by labels) and their columns of
//! numbers and of histograms, each with a CRC-32C over both its pages; it stays in memory, pages are read when they are
//! asked for.
//!
//! A block says which blocks it was made of (`parents`) and which logs: should they still be there after a crash, they
//! are superseded. Where blocks disagree about an instant, the one of greater `order` holds.

use super::{
    StoreError,
    codec::{self, Damaged, Input, put_signed, put_varint},
    disk,
    index::Index,
    join,
    log::checksum,
    native::{self, At},
    weave,
};
use crate::{
    engine::Samples,
    labels::{Labels, Matcher, Str},
};
use photon_rt::disk::{Disk, DiskFile, read_exact_at};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

const MAGIC: &[u8; 8] = b"PHNLBLK2";
/// Length of the index, its checksum, magic.
const FOOT: usize = 8 + 4 + 8;
/// Most samples of one column.
const CHUNK: usize = 960;
/// Largest index and page, bytes.
const INDEX_MAX: u64 = 4 << 30;
const PAGE_MAX: usize = 16 << 20;
/// Bytes that are gathered before they are written.
const BUFFER: usize = 1 << 20;
/// Most different pages of instants that are remembered, to be shared, while a block is written.
const SHARED_MAX: usize = 100_000;

pub(super) fn name(n: u64) -> String {
    format!("block-{n:016x}")
}

/// Where a block comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Origin {
    /// Greater: holds where blocks disagree.
    pub order: u64,
    /// How often its samples have been rewritten.
    pub level: u64,
    /// All logs up to this one are in it or in blocks before it.
    pub logs: u64,
    /// Blocks that it takes the place of.
    pub parents: Vec<u64>,
}

/// One column: where its two pages are.
struct Column {
    native: bool,
    n: usize,
    min_t: i64,
    max_t: i64,
    times: (u64, usize),
    values: (u64, usize),
    sum: u32,
}

struct Series {
    labels: Labels,
    columns: Vec<Column>,
}

pub(super) struct Block {
    pub number: u64,
    pub origin: Origin,
    pub min_t: i64,
    pub max_t: i64,
    /// Size of the file.
    pub bytes: u64,
    file: Box<dyn DiskFile>,
    series: Vec<Series>,
    index: Index,
}

struct Pages {
    file: Box<dyn DiskFile>,
    buffer: Vec<u8>,
    /// Bytes written before the buffer.
    before: u64,
    shared: HashMap<Vec<u8>, u64>,
}

impl Pages {
    fn end(&self) -> u64 {
        self.before + self.buffer.len() as u64
    }

    fn put(&mut self, bytes: &[u8]) -> Result<u64, StoreError> {
        let at = self.end();
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= BUFFER {
            self.flush()?;
        }
        Ok(at)
    }

    fn flush(&mut self) -> Result<(), StoreError> {
        disk("write a block", self.file.write_at(self.before, &self.buffer))?;
        self.before = self.end();
        self.buffer.clear();
        Ok(())
    }

    /// Writes one column and what the index says of it.
    fn column(
        &mut self,
        index: &mut Vec<u8>,
        native: bool,
        t: &[i64],
        values: &[u8],
    ) -> Result<(), StoreError> {
        let mut times = Vec::new();
        codec::put_times(&mut times, t);
        let sum = checksum(&[&times, values]);
        let len = times.len();
        let at = match self.shared.get(&times) {
            Some(at) => *at,
            None => {
                let at = self.put(&times)?;
                if self.shared.len() >= SHARED_MAX {
                    self.shared.clear();
                }
                self.shared.insert(times, at);
                at
            }
        };
        put_varint(index, (t.len() as u64) << 1 | u64::from(native));
        put_signed(index, t[0]);
        put_varint(index, t[t.len() - 1].wrapping_sub(t[0]) as u64);
        put_varint(index, at);
        put_varint(index, len as u64);
        put_varint(index, self.end());
        put_varint(index, values.len() as u64);
        index.extend_from_slice(&sum.to_le_bytes());
        self.put(values)?;
        Ok(())
    }
}

/// Writes a block of the series named in `labels` (sorted); `read(i)` gives the samples of one, sorted by time; a
/// series without any is left out. False: no series had any, and there is no block. Durable when this returns.
pub(super) fn write(
    d: &dyn Disk,
    number: u64,
    origin: &Origin,
    labels: &[Labels],
    read: &mut dyn FnMut(usize) -> Result<Samples, StoreError>,
) -> Result<bool, StoreError> {
    let tmp = format!("{}.tmp", name(number));
    let some = write_file(d, &tmp, origin, labels, read);
    if !matches!(some, Ok(true)) {
        // It would take room until the next start. The first error is the one that counts.
        let _ = d.remove(&tmp);
        return some;
    }
    disk("write a block", d.rename(&tmp, &name(number)))?;
    disk("write a block", d.sync_dir())?;
    Ok(true)
}

fn write_file(
    d: &dyn Disk,
    tmp: &str,
    origin: &Origin,
    labels: &[Labels],
    read: &mut dyn FnMut(usize) -> Result<Samples, StoreError>,
) -> Result<bool, StoreError> {
    let file = disk("write a block", d.create(tmp))?;
    let mut pages = Pages { file, buffer: MAGIC.to_vec(), before: 0, shared: HashMap::new() };
    let texts: BTreeSet<&Str> = labels.iter().flat_map(|l| l.iter().flat_map(|(n, v)| [n, v])).collect();
    let texts: BTreeMap<&Str, u64> = texts.into_iter().zip(0..).collect();
    let mut index = Vec::new();
    put_varint(&mut index, origin.order);
    put_varint(&mut index, origin.level);
    put_varint(&mut index, origin.logs);
    put_varint(&mut index, origin.parents.len() as u64);
    origin.parents.iter().for_each(|p| put_varint(&mut index, *p));
    put_varint(&mut index, texts.len() as u64);
    for text in texts.keys() {
        put_varint(&mut index, text.len() as u64);
        index.extend_from_slice(text.as_bytes());
    }
    let (mut all, mut series) = (Vec::new(), 0u64);
    for (i, labels) in labels.iter().enumerate() {
        let samples = read(i)?;
        if samples.is_empty() {
            continue;
        }
        series += 1;
        put_varint(&mut all, labels.len() as u64);
        for (n, v) in labels.iter() {
            put_varint(&mut all, texts[n]);
            put_varint(&mut all, texts[v]);
        }
        let (numbers, natives) = split(samples);
        let natives = native::pieces(&natives);
        put_varint(&mut all, (numbers.len().div_ceil(CHUNK) + natives.len()) as u64);
        for (t, v) in numbers.t.chunks(CHUNK).zip(numbers.v.chunks(CHUNK)) {
            let mut values = Vec::new();
            codec::put_values(&mut values, v);
            pages.column(&mut all, false, t, &values)?;
        }
        for piece in natives {
            let mut values = Vec::new();
            native::put_column(&mut values, piece);
            let t: Vec<i64> = piece.iter().map(|a| a.0).collect();
            pages.column(&mut all, true, &t, &values)?;
        }
    }
    if series == 0 {
        return Ok(false);
    }
    put_varint(&mut index, series);
    index.extend_from_slice(&all);
    let sum = checksum(&[&index]);
    let len = index.len() as u64;
    pages.put(&index)?;
    pages.put(&len.to_le_bytes())?;
    pages.put(&sum.to_le_bytes())?;
    pages.put(MAGIC)?;
    pages.flush()?;
    disk("write a block", pages.file.sync_data())?;
    Ok(true)
}

/// Numbers and histograms apart.
fn split(s: Samples) -> (Samples, Vec<At>) {
    if s.h.is_empty() {
        return (s, Vec::new());
    }
    let (mut numbers, mut natives) = (Samples::default(), Vec::new());
    for i in 0..s.len() {
        match s.histogram(i) {
            Some(h) => natives.push((s.t[i], h.clone())),
            None => {
                numbers.t.push(s.t[i]);
                numbers.v.push(s.v[i]);
            }
        }
    }
    (numbers, natives)
}

impl Block {
    pub fn open(d: &dyn Disk, number: u64) -> Result<Self, StoreError> {
        let file = disk("open a block", d.open(&name(number)))?;
        let bytes = disk("read a block", file.len())?;
        let damaged = |what: &str| StoreError::Damaged { file: name(number), what: what.to_string() };
        let mut foot = [0; FOOT];
        let at = bytes.checked_sub(FOOT as u64).ok_or_else(|| damaged("it is too short"))?;
        disk("read a block", read_exact_at(&*file, at, &mut foot))?;
        let mut input = Input(&foot);
        let parse = |_: Damaged| damaged("its foot");
        let len = input.fixed().map_err(parse)?;
        let sum = input.take(4).map_err(parse)?;
        if input.0 != MAGIC || len > at || len > INDEX_MAX {
            return Err(damaged("its foot"));
        }
        let mut index = vec![0; len as usize];
        disk("read a block", read_exact_at(&*file, at - len, &mut index))?;
        if checksum(&[&index]).to_le_bytes() != sum {
            return Err(damaged("its index"));
        }
        let (origin, series) =
            read_index(&index).map_err(|_| damaged("its index says what no writer wrote"))?;
        let mut index = Index::default();
        series.iter().for_each(|s| index.push(&s.labels));
        let columns = || series.iter().flat_map(|s| &s.columns);
        let min_t = columns().map(|c| c.min_t).min().unwrap_or(i64::MAX);
        let max_t = columns().map(|c| c.max_t).max().unwrap_or(i64::MIN);
        Ok(Block { number, origin, min_t, max_t, bytes, file, series, index })
    }

    pub fn overlaps(&self, from: i64, to: i64) -> bool {
        self.min_t <= to && self.max_t >= from
    }

    /// Labels of all series, sorted.
    pub fn labels(&self) -> impl Iterator<Item = &Labels> {
        self.series.iter().map(|s| &s.labels)
    }

    /// Series that pass, with their numbers.
    pub fn select(&self, matchers: &[Matcher]) -> Vec<(Labels, u32)> {
        let found = self.index.matching(matchers);
        found.into_iter().map(|i| (self.series[i as usize].labels.clone(), i)).collect()
    }

    /// Calls `each` for series that pass and have a column that touches the time and is not all `gone`.
    pub fn series(
        &self,
        matchers: &[Matcher],
        (from, to): (i64, i64),
        gone: &dyn Fn(u32, i64, i64) -> bool,
        each: &mut dyn FnMut(&Labels),
    ) {
        for i in self.index.matching(matchers) {
            let s = &self.series[i as usize];
            let there = |c: &Column| c.max_t >= from && c.min_t <= to && !gone(i, c.min_t, c.max_t);
            if s.columns.iter().any(there) {
                each(&s.labels);
            }
        }
    }

    /// The columns of a series that touch the time.
    pub fn read(&self, at: u32, from: i64, to: i64) -> Result<Samples, StoreError> {
        let (mut numbers, mut natives) = (Samples::default(), Vec::new());
        let series = &self.series[at as usize];
        for c in series.columns.iter().filter(|c| c.max_t >= from && c.min_t <= to) {
            let damaged = || StoreError::Damaged {
                file: name(self.number),
                what: format!("pages of {} at byte {}", series.labels, c.values.0),
            };
            let page = |(at, len): (u64, usize)| {
                let mut bytes = vec![0; len];
                disk("read a block", read_exact_at(&*self.file, at, &mut bytes)).map(|()| bytes)
            };
            let (times, values) = (page(c.times)?, page(c.values)?);
            if checksum(&[&times, &values]) != c.sum {
                return Err(damaged());
            }
            let t = codec::read_times(&times, c.n).map_err(|_| damaged())?;
            if c.native {
                let h = native::read_column(&values, c.n).map_err(|_| damaged())?;
                natives.extend(t.into_iter().zip(h.into_iter().map(Arc::new)));
            } else {
                numbers.t.extend(t);
                numbers.v.extend(codec::read_values(&values, c.n).map_err(|_| damaged())?);
            }
        }
        Ok(if natives.is_empty() { numbers } else { weave(numbers, natives) })
    }

    /// The series of these labels, if the block has it.
    pub fn find(&self, labels: &Labels) -> Option<u32> {
        self.series.binary_search_by(|s| s.labels.cmp(labels)).ok().map(|i| i as u32)
    }
}

/// Everything that several blocks (by rising order) have of one series, without what is gone.
pub(super) fn read_all(blocks: &[super::Placed], labels: &Labels) -> Result<Samples, StoreError> {
    let mut pieces = Vec::new();
    for b in blocks {
        if let Some(at) = b.block.find(labels) {
            pieces.push(b.read(at, i64::MIN, i64::MAX)?);
        }
    }
    Ok(join(pieces))
}

fn read_index(bytes: &[u8]) -> Result<(Origin, Vec<Series>), Damaged> {
    let mut input = Input(bytes);
    // No count is greater than the bytes that are left: nothing is allocated on a wrong word.
    let count = |input: &mut Input<'_>| {
        let n = usize::try_from(input.varint()?).map_err(|_| Damaged)?;
        if n > input.0.len() { Err(Damaged) } else { Ok(n) }
    };
    let size = |input: &mut Input<'_>| {
        let n = usize::try_from(input.varint()?).map_err(|_| Damaged)?;
        if n > PAGE_MAX { Err(Damaged) } else { Ok(n) }
    };
    let mut origin =
        Origin { order: input.varint()?, level: input.varint()?, logs: input.varint()?, parents: Vec::new() };
    for _ in 0..count(&mut input)? {
        origin.parents.push(input.varint()?);
    }
    let mut texts: Vec<Str> = Vec::new();
    for _ in 0..count(&mut input)? {
        let n = count(&mut input)?;
        texts.push(std::str::from_utf8(input.take(n)?).map_err(|_| Damaged)?.into());
    }
    let mut all = Vec::new();
    for _ in 0..count(&mut input)? {
        let mut pairs = Vec::new();
        for _ in 0..count(&mut input)? {
            let mut text = || {
                let i = usize::try_from(input.varint()?).map_err(|_| Damaged)?;
                texts.get(i).cloned().ok_or(Damaged)
            };
            pairs.push((text()?, text()?));
        }
        let mut columns = Vec::new();
        for _ in 0..count(&mut input)? {
            let kind = size(&mut input)?;
            let (native, n) = (kind & 1 == 1, kind >> 1);
            let min_t = input.signed()?;
            let max_t = min_t.wrapping_add(input.varint()? as i64);
            let times = (input.varint()?, size(&mut input)?);
            let values = (input.varint()?, size(&mut input)?);
            let sum = u32::from_le_bytes(input.take(4)?.try_into().map_err(|_| Damaged)?);
            columns.push(Column { native, n, min_t, max_t, times, values, sum });
        }
        all.push(Series { labels: Labels::new(pairs), columns });
    }
    Ok((origin, all))
}
