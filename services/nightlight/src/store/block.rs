//! Blocks: samples of many series that never change again.
//!
//! `PHNLBLK1`, pages, index, foot. A page of instants is written once however many series share it (those of one
//! target do). The index holds texts, series (sorted by labels) and their columns, each with a CRC-32C over both its
//! pages; it stays in memory, pages are read when they are asked for.

use super::{
    StoreError,
    codec::{self, Damaged, Input, put_signed, put_varint},
    disk,
    index::Index,
    log::checksum,
};
use crate::{
    engine::Samples,
    labels::{Labels, Matcher, Str},
};
use photon_rt::disk::{Disk, DiskFile, read_exact_at};
use std::collections::{BTreeMap, HashMap};

const MAGIC: &[u8; 8] = b"PHNLBLK1";
/// Length of the index, its checksum, magic.
const FOOT: usize = 8 + 4 + 8;
/// Most samples of one column.
const CHUNK: usize = 960;
/// Largest index and page, bytes.
const INDEX_MAX: u64 = 4 << 30;
const PAGE_MAX: usize = 1 << 20;

pub(super) fn name(n: u64) -> String {
    format!("block-{n:016x}")
}

/// One column: where its two pages are.
struct Column {
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
    pub min_t: i64,
    pub max_t: i64,
    /// Size of the file.
    pub bytes: u64,
    file: Box<dyn DiskFile>,
    series: Vec<Series>,
    index: Index,
}

/// Writes a block of series sorted by labels, each with samples sorted by time; durable when this returns.
pub(super) fn write(d: &dyn Disk, number: u64, all: &[(Labels, Samples)]) -> Result<(), StoreError> {
    let mut out = MAGIC.to_vec();
    let mut texts: BTreeMap<&Str, usize> = BTreeMap::new();
    for (labels, _) in all {
        for (n, v) in labels.iter() {
            texts.insert(n, 0);
            texts.insert(v, 0);
        }
    }
    let mut index = Vec::new();
    put_varint(&mut index, texts.len() as u64);
    for (i, (text, at)) in texts.iter_mut().enumerate() {
        *at = i;
        put_varint(&mut index, text.len() as u64);
        index.extend_from_slice(text.as_bytes());
    }
    put_varint(&mut index, all.len() as u64);
    let mut shared: HashMap<Vec<u8>, u64> = HashMap::new();
    for (labels, samples) in all {
        put_varint(&mut index, labels.len() as u64);
        for (n, v) in labels.iter() {
            put_varint(&mut index, texts[n] as u64);
            put_varint(&mut index, texts[v] as u64);
        }
        put_varint(&mut index, samples.t.len().div_ceil(CHUNK) as u64);
        for (t, v) in samples.t.chunks(CHUNK).zip(samples.v.chunks(CHUNK)) {
            let (mut times, mut values) = (Vec::new(), Vec::new());
            codec::put_times(&mut times, t);
            codec::put_values(&mut values, v);
            let sum = checksum(&[&times, &values]);
            let (len, end) = (times.len(), out.len() as u64);
            let at = *shared.entry(times).or_insert_with_key(|times| {
                out.extend_from_slice(times);
                end
            });
            put_varint(&mut index, t.len() as u64);
            put_signed(&mut index, t[0]);
            put_varint(&mut index, t[t.len() - 1].wrapping_sub(t[0]) as u64);
            put_varint(&mut index, at);
            put_varint(&mut index, len as u64);
            put_varint(&mut index, out.len() as u64);
            put_varint(&mut index, values.len() as u64);
            index.extend_from_slice(&sum.to_le_bytes());
            out.extend_from_slice(&values);
        }
    }
    let sum = checksum(&[&index]);
    out.extend_from_slice(&index);
    out.extend_from_slice(&(index.len() as u64).to_le_bytes());
    out.extend_from_slice(&sum.to_le_bytes());
    out.extend_from_slice(MAGIC);
    disk("write a block", photon_rt::disk::replace(d, &name(number), &out))
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
        let series = read_index(&index).map_err(|_| damaged("its index says what no writer wrote"))?;
        let mut index = Index::default();
        series.iter().for_each(|s| index.push(&s.labels));
        let columns = || series.iter().flat_map(|s| &s.columns);
        let min_t = columns().map(|c| c.min_t).min().unwrap_or(i64::MAX);
        let max_t = columns().map(|c| c.max_t).max().unwrap_or(i64::MIN);
        Ok(Block { number, min_t, max_t, bytes, file, series, index })
    }

    pub fn overlaps(&self, from: i64, to: i64) -> bool {
        self.min_t <= to && self.max_t >= from
    }

    /// Series that pass, with their numbers.
    pub fn select(&self, matchers: &[Matcher]) -> Vec<(Labels, u32)> {
        let found = self.index.matching(matchers);
        found.into_iter().map(|i| (self.series[i as usize].labels.clone(), i)).collect()
    }

    pub fn series(&self, matchers: &[Matcher], from: i64, to: i64, each: &mut dyn FnMut(&Labels)) {
        for i in self.index.matching(matchers) {
            let s = &self.series[i as usize];
            if s.columns.iter().any(|c| c.max_t >= from && c.min_t <= to) {
                each(&s.labels);
            }
        }
    }

    /// The columns of a series that touch the time.
    pub fn read(&self, at: u32, from: i64, to: i64) -> Result<Samples, StoreError> {
        let mut out = Samples::default();
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
            let v = codec::read_values(&values, c.n).map_err(|_| damaged())?;
            out.t.extend(t);
            out.v.extend(v);
        }
        Ok(out)
    }
}

fn read_index(bytes: &[u8]) -> Result<Vec<Series>, Damaged> {
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
            let n = size(&mut input)?;
            let min_t = input.signed()?;
            let max_t = min_t.wrapping_add(input.varint()? as i64);
            let times = (input.varint()?, size(&mut input)?);
            let values = (input.varint()?, size(&mut input)?);
            let sum = u32::from_le_bytes(input.take(4)?.try_into().map_err(|_| Damaged)?);
            columns.push(Column { n, min_t, max_t, times, values, sum });
        }
        all.push(Series { labels: Labels::new(pairs), columns });
    }
    Ok(all)
}
