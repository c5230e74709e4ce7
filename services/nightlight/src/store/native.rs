//! Native histograms to bytes and back, bit for bit: one alone (the log), or a column of them (head and blocks).
//!
//! A column is cut into runs of one layout: schema, hint, kind, threshold and listed bounds. In a run every bucket that
//! any histogram has is a column of its own, coded as numbers are (a bucket that is absent counts nothing, and none is
//! stored empty), and so are counts and sums. Buckets of counters rise slowly, so each costs little.

use super::codec::{self, Damaged, Input, put_signed, put_varint};
use crate::histogram::{BUCKETS_MAX, Buckets, CUSTOM, Hint, Histogram};
use std::{collections::BTreeSet, sync::Arc};

/// A histogram at its instant.
pub type At = (i64, Arc<Histogram>);

/// Most cells (histograms times buckets) of one column that a writer makes, and that a reader takes.
const CELLS: usize = 100_000;
const CELLS_MAX: usize = 1 << 23;
/// Most histograms of one column.
pub(super) const CHUNK: usize = 240;

fn put_layout(out: &mut Vec<u8>, h: &Histogram) {
    out.push(h.schema as u8);
    out.push(h.hint.number() | if h.integer { 4 } else { 0 });
    out.extend_from_slice(&h.zero_threshold.to_bits().to_le_bytes());
    if h.schema == CUSTOM {
        put_varint(out, h.bounds.len() as u64);
        for b in h.bounds.iter() {
            out.extend_from_slice(&b.to_bits().to_le_bytes());
        }
    }
}

fn layout(input: &mut Input<'_>) -> Result<Histogram, Damaged> {
    let schema = input.byte()? as i8;
    if schema != CUSTOM && !(-4..=8).contains(&schema) {
        return Err(Damaged);
    }
    let flags = input.byte()?;
    let zero_threshold = f64::from_bits(input.fixed()?);
    let mut bounds = Vec::new();
    if schema == CUSTOM {
        let n = input.varint()?;
        if n > BUCKETS_MAX as u64 {
            return Err(Damaged);
        }
        for _ in 0..n {
            bounds.push(f64::from_bits(input.fixed()?));
        }
    }
    Ok(Histogram {
        schema,
        hint: Hint::of(i32::from(flags & 3)),
        integer: flags & 4 != 0,
        zero_threshold,
        bounds: bounds.into(),
        ..Histogram::default()
    })
}

fn put_indexes(out: &mut Vec<u8>, all: impl ExactSizeIterator<Item = i32>) {
    put_varint(out, all.len() as u64);
    let mut before = 0;
    for i in all {
        put_signed(out, i64::from(i) - before);
        before = i64::from(i);
    }
}

fn indexes(input: &mut Input<'_>) -> Result<Vec<i32>, Damaged> {
    let n = usize::try_from(input.varint()?).map_err(|_| Damaged)?;
    if n > input.0.len() {
        return Err(Damaged);
    }
    let (mut out, mut at) = (Vec::with_capacity(n), 0i64);
    for k in 0..n {
        let step = input.signed()?;
        at = at.checked_add(step).filter(|_| k == 0 || step > 0).ok_or(Damaged)?;
        out.push(i32::try_from(at).map_err(|_| Damaged)?);
    }
    Ok(out)
}

/// One histogram.
pub(super) fn put_one(out: &mut Vec<u8>, h: &Histogram) {
    put_layout(out, h);
    for v in [h.zero_count, h.count, h.sum] {
        out.extend_from_slice(&v.to_bits().to_le_bytes());
    }
    for side in [&h.positive, &h.negative] {
        put_indexes(out, side.iter().map(|b| b.0));
        for b in side {
            // Counts are mostly small whole numbers.
            if b.1 >= 0.0 && b.1 < 1e15 && b.1.fract() == 0.0 && b.1.to_bits() != (-0.0f64).to_bits() {
                put_varint(out, b.1 as u64 + 1);
            } else {
                out.push(0);
                out.extend_from_slice(&b.1.to_bits().to_le_bytes());
            }
        }
    }
}

/// One histogram from the front of the bytes.
pub(super) fn one(input: &mut Input<'_>) -> Result<Histogram, Damaged> {
    let mut h = layout(input)?;
    h.zero_count = f64::from_bits(input.fixed()?);
    h.count = f64::from_bits(input.fixed()?);
    h.sum = f64::from_bits(input.fixed()?);
    for positive in [true, false] {
        let mut side = Buckets::new();
        for i in indexes(input)? {
            let count = match input.varint()? {
                0 => f64::from_bits(input.fixed()?),
                n => (n - 1) as f64,
            };
            side.push((i, count));
        }
        if positive { h.positive = side } else { h.negative = side }
    }
    Ok(h)
}

fn same_layout(a: &Histogram, b: &Histogram) -> bool {
    a.schema == b.schema
        && a.hint == b.hint
        && a.integer == b.integer
        && a.zero_threshold.to_bits() == b.zero_threshold.to_bits()
        && a.bounds.len() == b.bounds.len()
        && a.bounds.iter().zip(b.bounds.iter()).all(|(x, y)| x.to_bits() == y.to_bits())
}

fn put_values(out: &mut Vec<u8>, v: &[f64]) {
    codec::put_values(out, v);
}

/// All histograms as one column; their instants are coded apart.
pub(super) fn put_column(out: &mut Vec<u8>, all: &[At]) {
    for run in all.chunk_by(|a, b| same_layout(&a.1, &b.1)) {
        put_varint(out, run.len() as u64);
        put_layout(out, &run[0].1);
        for f in [|h: &Histogram| h.zero_count, |h: &Histogram| h.count, |h: &Histogram| h.sum] {
            put_values(out, &run.iter().map(|(_, h)| f(h)).collect::<Vec<_>>());
        }
        let sides: [fn(&Histogram) -> &Buckets; 2] = [|h| &h.positive, |h| &h.negative];
        for side in sides {
            let used: BTreeSet<i32> = run.iter().flat_map(|(_, h)| side(h).iter().map(|b| b.0)).collect();
            put_indexes(out, used.iter().copied());
            for i in used {
                let count = |h: &Histogram| {
                    let b = side(h);
                    b.binary_search_by_key(&i, |b| b.0).map_or(0.0, |at| b[at].1)
                };
                put_values(out, &run.iter().map(|(_, h)| count(h)).collect::<Vec<_>>());
            }
        }
    }
}

/// All of `bytes` as `n` histograms.
pub(super) fn read_column(bytes: &[u8], n: usize) -> Result<Vec<Histogram>, Damaged> {
    let mut input = Input(bytes);
    let mut out: Vec<Histogram> = Vec::new();
    let mut cells = 0;
    while !input.0.is_empty() {
        let len = usize::try_from(input.varint()?).map_err(|_| Damaged)?;
        if len == 0 || len > n - out.len() {
            return Err(Damaged);
        }
        let shape = layout(&mut input)?;
        let mut run = vec![shape; len];
        for part in 0..3 {
            for (h, v) in run.iter_mut().zip(codec::values(&mut input, len)?) {
                match part {
                    0 => h.zero_count = v,
                    1 => h.count = v,
                    _ => h.sum = v,
                }
            }
        }
        for positive in [true, false] {
            for i in indexes(&mut input)? {
                cells += len;
                if cells > CELLS_MAX {
                    return Err(Damaged);
                }
                for (h, v) in run.iter_mut().zip(codec::values(&mut input, len)?) {
                    if v != 0.0 {
                        if positive { h.positive.push((i, v)) } else { h.negative.push((i, v)) }
                    }
                }
            }
        }
        out.append(&mut run);
    }
    if out.len() == n { Ok(out) } else { Err(Damaged) }
}

/// Pieces that make columns of bounded size: a column has a cell for every histogram in every bucket that any of them
/// has, and each change of layout costs its bounds.
pub(super) fn pieces(all: &[At]) -> Vec<&[At]> {
    let mut out = Vec::new();
    let (mut from, mut bounds) = (0, 0);
    let mut used: [BTreeSet<i32>; 2] = Default::default();
    for (i, (_, h)) in all.iter().enumerate() {
        let begins = i == from || !same_layout(&all[i - 1].1, h);
        bounds += if begins { h.bounds.len() } else { 0 };
        for (used, side) in used.iter_mut().zip([&h.positive, &h.negative]) {
            used.extend(side.iter().map(|b| b.0));
        }
        let cells = (used[0].len() + used[1].len() + 4) * (i + 1 - from) + bounds;
        if i > from && (i - from >= CHUNK || cells > CELLS) {
            out.push(&all[from..i]);
            (from, bounds) = (i, h.bounds.len());
            used = [&h.positive, &h.negative].map(|side| side.iter().map(|b| b.0).collect());
        }
    }
    if from < all.len() {
        out.push(&all[from..]);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn number() -> impl Strategy<Value = f64> {
        prop_oneof![
            any::<u32>().prop_map(f64::from),
            any::<u64>().prop_map(f64::from_bits),
            prop::sample::select(vec![-0.0, f64::from_bits(crate::engine::STALE_BITS), 0.5, 1e15, 1e16]),
        ]
    }

    fn histogram() -> impl Strategy<Value = Histogram> {
        let side = || prop::collection::btree_map(-40i32..40, number(), 0..6);
        let numbers = (number(), number(), number(), 0..4i32, any::<bool>());
        let layout = (prop_oneof![Just(CUSTOM), -4i8..=8], prop::collection::vec(number(), 0..4), 0..2u8);
        (layout, side(), side(), numbers).prop_map(
            |((schema, bounds, wide), p, n, (zero, count, sum, hint, integer))| {
                // Empty buckets are never stored.
                let side =
                    |b: std::collections::BTreeMap<i32, f64>| b.into_iter().filter(|b| b.1 != 0.0).collect();
                Histogram {
                    schema,
                    hint: Hint::of(hint),
                    integer,
                    zero_threshold: f64::from(wide) / 1000.0,
                    zero_count: zero,
                    count,
                    sum,
                    positive: side(p),
                    negative: side(n),
                    bounds: if schema == CUSTOM { bounds.into() } else { Arc::new([]) },
                }
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn histograms_come_back_bit_for_bit(all in prop::collection::vec((histogram(), 1..4usize), 0..12)) {
            // Each a few times, so that there are runs.
            let all: Vec<At> = all
                .into_iter()
                .flat_map(|(h, n)| std::iter::repeat_n(Arc::new(h), n))
                .enumerate()
                .map(|(i, h)| (i as i64, h))
                .collect();
            let bits = |h: &Histogram| {
                let mut bytes = Vec::new();
                put_one(&mut bytes, h);
                bytes
            };
            let mut bytes = Vec::new();
            put_column(&mut bytes, &all);
            let back = read_column(&bytes, all.len());
            prop_assert!(back.is_ok());
            for (a, b) in all.iter().zip(back.unwrap_or_default()) {
                prop_assert_eq!(bits(&a.1), bits(&b));
                let alone = bits(&b);
                let mut input = Input(&alone);
                let again = one(&mut input).map(|h| bits(&h));
                prop_assert_eq!(again, Ok(alone.clone()));
                prop_assert!(input.0.is_empty());
            }
            prop_assert_eq!(pieces(&all).concat().len(), all.len());
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..80), n in 0usize..300) {
            let _ = read_column(&bytes, n);
            let _ = one(&mut Input(&bytes));
        }
    }

    /// Few buckets each, but never the same ones; or bounds that change with every histogram.
    #[test]
    fn columns_that_are_written_can_be_read() {
        let apart = |n: i32| {
            let positive = (0..587).map(|i| (n * 587 + i, 1.0)).collect();
            Histogram { positive, ..Histogram::default() }
        };
        let listed = |n: i32| {
            let bounds: Vec<f64> = (0..BUCKETS_MAX as i32).map(|i| f64::from(i * 2 + n % 2)).collect();
            Histogram { schema: CUSTOM, bounds: bounds.into(), ..Histogram::default() }
        };
        for make in [&apart as &dyn Fn(i32) -> Histogram, &listed] {
            let all: Vec<At> = (0..240).map(|n| (i64::from(n), Arc::new(make(n)))).collect();
            for piece in pieces(&all) {
                let mut bytes = Vec::new();
                put_column(&mut bytes, piece);
                assert!(bytes.len() < 4 << 20, "{} bytes of {}", bytes.len(), piece.len());
                assert_eq!(read_column(&bytes, piece.len()).expect("readable").len(), piece.len());
            }
        }
    }
}
