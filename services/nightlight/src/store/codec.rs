//! Columns of instants and of values to bytes and back, bit for bit.
//!
//! Values are one of: all equal; decimals (integers after a scaling by a power of ten that provably gives the same
//! bits back) as offsets, differences or differences of differences, with their common divisor taken out; anything
//! else by XOR with the value before. Values that don't fit their column's form (a stale marker among integers) stand
//! beside it. Numbers are bit-packed at the width that costs least, the few wider ones patched in (PFOR: Zukowski et
//! al., ICDE 2006; decimals as in ALP: Afroozeh, Kuffó, Boncz, SIGMOD 2024).
//!
//! Considered: Gorilla XOR (2.9 bytes a sample on our mix of metrics, against 0.58), `pco` (as good, slower on columns
//! this short).

/// Most samples of one column.
pub const COLUMN_MAX: usize = 1 << 16;
/// Greatest power of ten that is tried.
const SCALE_MAX: usize = 9;
/// Integers up to here are exact in an `f64`.
const EXACT: f64 = 9_007_199_254_740_992.0;
const TENS: [f64; SCALE_MAX + 1] = [1.0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9];

/// Bytes that no encoder made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("damaged column")]
pub struct Damaged;

/// Reads from the front of bytes.
pub(crate) struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    pub fn take(&mut self, n: usize) -> Result<&'a [u8], Damaged> {
        let (head, rest) = self.0.split_at_checked(n).ok_or(Damaged)?;
        self.0 = rest;
        Ok(head)
    }

    pub fn byte(&mut self) -> Result<u8, Damaged> {
        Ok(self.take(1)?[0])
    }

    pub fn fixed(&mut self) -> Result<u64, Damaged> {
        Ok(u64::from_le_bytes(self.take(8)?.try_into().map_err(|_| Damaged)?))
    }

    /// LEB128.
    pub fn varint(&mut self) -> Result<u64, Damaged> {
        let mut out = 0u64;
        for shift in (0..64).step_by(7) {
            let b = self.byte()?;
            let bits = u64::from(b & 0x7f);
            if shift == 63 && bits > 1 {
                return Err(Damaged);
            }
            out |= bits << shift;
            if b < 0x80 {
                return Ok(out);
            }
        }
        Err(Damaged)
    }

    pub fn signed(&mut self) -> Result<i64, Damaged> {
        self.varint().map(unzigzag)
    }
}

pub(crate) fn put_varint(out: &mut Vec<u8>, mut v: u64) {
    while v >= 0x80 {
        out.push(v as u8 | 0x80);
        v >>= 7;
    }
    out.push(v as u8);
}

pub(crate) fn put_signed(out: &mut Vec<u8>, v: i64) {
    put_varint(out, zigzag(v));
}

fn zigzag(v: i64) -> u64 {
    ((v << 1) ^ (v >> 63)) as u64
}

fn unzigzag(v: u64) -> i64 {
    (v >> 1) as i64 ^ -((v & 1) as i64)
}

fn bits(v: u64) -> usize {
    64 - v.leading_zeros() as usize
}

fn varint_len(bits: usize) -> usize {
    bits.div_ceil(7).max(1)
}

/// The width at which packing `values` takes the fewest bytes, and how many.
fn width(values: &[u64]) -> (usize, usize) {
    let mut lengths = [0usize; 65];
    values.iter().for_each(|v| lengths[bits(*v)] += 1);
    let cost = |w: usize| {
        let beyond = (w + 1..65).map(|l| lengths[l] * (1 + varint_len(l - w))).sum::<usize>();
        (values.len() * w).div_ceil(8) + beyond
    };
    (0..=64).map(|w| (w, cost(w))).min_by_key(|x| x.1).unwrap_or((64, values.len() * 8))
}

fn pack(out: &mut Vec<u8>, values: &[u64]) {
    let (w, _) = width(values);
    let wide: Vec<usize> = (0..values.len()).filter(|i| bits(values[*i]) > w).collect();
    out.push(w as u8);
    put_varint(out, wide.len() as u64);
    let (mut word, mut used) = (0u128, 0usize);
    for v in values {
        let low = if w == 64 { *v } else { v & ((1 << w) - 1) };
        word |= u128::from(low) << used;
        used += w;
        while used >= 8 {
            out.push(word as u8);
            word >>= 8;
            used -= 8;
        }
    }
    if used > 0 {
        out.push(word as u8);
    }
    let mut before = 0;
    for i in wide {
        put_varint(out, (i - before) as u64);
        put_varint(out, values[i] >> w);
        before = i;
    }
}

fn unpack(input: &mut Input<'_>, n: usize) -> Result<Vec<u64>, Damaged> {
    let w = usize::from(input.byte()?);
    let wide = input.varint()?;
    if w > 64 || wide > n as u64 {
        return Err(Damaged);
    }
    let packed = input.take((n * w).div_ceil(8))?;
    let mut out = Vec::with_capacity(n);
    let (mut word, mut have, mut next) = (0u128, 0usize, packed.iter());
    for _ in 0..n {
        while have < w {
            word |= u128::from(*next.next().ok_or(Damaged)?) << have;
            have += 8;
        }
        let mask = if w == 64 { u64::MAX } else { (1 << w) - 1 };
        out.push(word as u64 & mask);
        word >>= w;
        have -= w;
    }
    let mut at = 0usize;
    for _ in 0..wide {
        at = usize::try_from(input.varint()?).ok().and_then(|d| at.checked_add(d)).ok_or(Damaged)?;
        let high = input.varint()?;
        let slot = out.get_mut(at).ok_or(Damaged)?;
        if w >= 64 || bits(high) + w > 64 {
            return Err(Damaged);
        }
        *slot |= high << w;
    }
    Ok(out)
}

const OFFSETS: u8 = 0;
const DIFFERENCES: u8 = 1;
const BENDS: u8 = 2;

/// Integers in the cheapest of three forms. Arithmetic wraps: it is undone by arithmetic that wraps.
fn put_integers(out: &mut Vec<u8>, values: &[i64]) {
    let Some(first) = values.first().copied() else { return };
    let differences: Vec<i64> = values.windows(2).map(|w| w[1].wrapping_sub(w[0])).collect();
    // Differences that wrapped have no divisor in common with the offsets.
    let wraps = values.windows(2).any(|w| w[1].checked_sub(w[0]).is_none());
    let common = differences.iter().fold(0u64, |g, d| gcd(g, d.unsigned_abs()));
    let divisor = if wraps || common > i64::MAX as u64 { 1 } else { common.max(1) };
    let step: Vec<i64> = differences.iter().map(|d| d / divisor as i64).collect();
    let least = values.iter().copied().min().unwrap_or(first);
    let offsets: Vec<u64> = values.iter().map(|v| v.wrapping_sub(least) as u64 / divisor).collect();
    let steps: Vec<u64> = step.iter().map(|d| zigzag(*d)).collect();
    let bends: Vec<u64> = step.windows(2).map(|w| zigzag(w[1].wrapping_sub(w[0]))).collect();
    let costs = [width(&offsets).1, width(&steps).1, width(&bends).1];
    let form = (0..3u8).min_by_key(|i| costs[usize::from(*i)]).unwrap_or(OFFSETS);
    out.push(form);
    put_varint(out, divisor);
    match form {
        OFFSETS => {
            put_signed(out, least);
            pack(out, &offsets);
        }
        DIFFERENCES => {
            put_signed(out, first);
            pack(out, &steps);
        }
        _ => {
            put_signed(out, first);
            put_signed(out, step.first().copied().unwrap_or(0));
            pack(out, &bends);
        }
    }
}

fn integers(input: &mut Input<'_>, n: usize) -> Result<Vec<i64>, Damaged> {
    if n == 0 {
        return Ok(Vec::new());
    }
    let form = input.byte()?;
    let divisor = input.varint()? as i64;
    let first = input.signed()?;
    let mut out = Vec::with_capacity(n);
    match form {
        OFFSETS => {
            let all = unpack(input, n)?;
            out.extend(all.into_iter().map(|o| first.wrapping_add((o as i64).wrapping_mul(divisor))));
        }
        DIFFERENCES => {
            out.push(first);
            let mut v = first;
            for d in unpack(input, n - 1)? {
                v = v.wrapping_add(unzigzag(d).wrapping_mul(divisor));
                out.push(v);
            }
        }
        BENDS => {
            let mut step = input.signed()?;
            let mut v = first;
            out.push(v);
            if n > 1 {
                v = v.wrapping_add(step.wrapping_mul(divisor));
                out.push(v);
                for b in unpack(input, n - 2)? {
                    step = step.wrapping_add(unzigzag(b));
                    v = v.wrapping_add(step.wrapping_mul(divisor));
                    out.push(v);
                }
            } else {
                unpack(input, 0)?;
            }
        }
        _ => return Err(Damaged),
    }
    Ok(out)
}

fn gcd(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

/// Instants, milliseconds.
pub fn put_times(out: &mut Vec<u8>, t: &[i64]) {
    put_integers(out, t);
}

/// `n` instants.
pub(crate) fn times(input: &mut Input<'_>, n: usize) -> Result<Vec<i64>, Damaged> {
    integers(input, n)
}

const EQUAL: u8 = 0;
const DECIMAL: u8 = 1;
const XOR: u8 = 2;

fn scaled(v: f64, scale: usize) -> Option<i64> {
    let i = (v * TENS[scale]).round();
    // Through the integer, as it will be read: −0 is none.
    let same = i.abs() < EXACT && (i as i64 as f64 / TENS[scale]).to_bits() == v.to_bits();
    same.then_some(i as i64)
}

/// The power of ten that makes integers of (nearly) all values.
fn scale_of(v: &[f64]) -> usize {
    let mut scale = 0;
    for x in v.iter().filter(|x| x.is_finite()) {
        if scaled(*x, scale).is_none()
            && let Some(more) = (scale + 1..=SCALE_MAX).find(|s| scaled(*x, *s).is_some())
        {
            scale = more;
        }
    }
    scale
}

/// Values.
pub fn put_values(out: &mut Vec<u8>, v: &[f64]) {
    let Some(first) = v.first() else { return };
    if v.iter().all(|x| x.to_bits() == first.to_bits()) {
        out.push(EQUAL);
        out.extend_from_slice(&first.to_bits().to_le_bytes());
        return;
    }
    let scale = scale_of(v);
    let odd: Vec<usize> = (0..v.len()).filter(|i| scaled(v[*i], scale).is_none()).collect();
    let mut xor = vec![XOR];
    put_xor(&mut xor, v);
    if odd.len() <= v.len() / 4 {
        let mut decimal = vec![DECIMAL, scale as u8];
        put_varint(&mut decimal, odd.len() as u64);
        let mut before = 0;
        for i in &odd {
            put_varint(&mut decimal, (i - before) as u64);
            decimal.extend_from_slice(&v[*i].to_bits().to_le_bytes());
            before = *i;
        }
        // What stands beside the column leaves no gap in it.
        let whole: Vec<i64> = v.iter().filter_map(|x| scaled(*x, scale)).collect();
        put_integers(&mut decimal, &whole);
        if decimal.len() < xor.len() {
            out.extend_from_slice(&decimal);
            return;
        }
    }
    out.extend_from_slice(&xor);
}

fn put_xor(out: &mut Vec<u8>, v: &[f64]) {
    let apart: Vec<u64> = v.windows(2).map(|w| w[0].to_bits() ^ w[1].to_bits()).collect();
    let zeros = apart.iter().filter(|x| **x != 0).map(|x| x.trailing_zeros()).min().unwrap_or(0);
    out.extend_from_slice(&v[0].to_bits().to_le_bytes());
    out.push(zeros as u8);
    pack(out, &apart.iter().map(|x| x >> zeros).collect::<Vec<_>>());
}

/// `n` values.
pub(crate) fn values(input: &mut Input<'_>, n: usize) -> Result<Vec<f64>, Damaged> {
    if n == 0 {
        return Ok(Vec::new());
    }
    match input.byte()? {
        EQUAL => Ok(vec![f64::from_bits(input.fixed()?); n]),
        DECIMAL => {
            let scale = usize::from(input.byte()?);
            let ten = *TENS.get(scale).ok_or(Damaged)?;
            let count = usize::try_from(input.varint()?).map_err(|_| Damaged)?;
            if count > n {
                return Err(Damaged);
            }
            let mut odd = Vec::with_capacity(count);
            let mut at = 0usize;
            for _ in 0..count {
                let step = usize::try_from(input.varint()?).map_err(|_| Damaged)?;
                at = at.checked_add(step).filter(|at| *at < n).ok_or(Damaged)?;
                odd.push((at, f64::from_bits(input.fixed()?)));
            }
            let mut whole = integers(input, n - count)?.into_iter();
            let mut odd = odd.into_iter().peekable();
            let mut out = Vec::with_capacity(n);
            for i in 0..n {
                match odd.next_if(|o| o.0 == i) {
                    Some((_, v)) => out.push(v),
                    None => out.push(whole.next().ok_or(Damaged)? as f64 / ten),
                }
            }
            Ok(out)
        }
        XOR => {
            let mut word = input.fixed()?;
            let zeros = u32::from(input.byte()?);
            let mut out = vec![f64::from_bits(word)];
            for x in unpack(input, n - 1)? {
                word ^= x.checked_shl(zeros).ok_or(Damaged)?;
                out.push(f64::from_bits(word));
            }
            Ok(out)
        }
        _ => Err(Damaged),
    }
}

/// All of `bytes` as `n` instants.
pub fn read_times(bytes: &[u8], n: usize) -> Result<Vec<i64>, Damaged> {
    whole(bytes, n, times)
}

/// All of `bytes` as `n` values.
pub fn read_values(bytes: &[u8], n: usize) -> Result<Vec<f64>, Damaged> {
    whole(bytes, n, values)
}

fn whole<T>(
    bytes: &[u8],
    n: usize,
    read: impl Fn(&mut Input<'_>, usize) -> Result<Vec<T>, Damaged>,
) -> Result<Vec<T>, Damaged> {
    let mut input = Input(bytes);
    let out = if n > COLUMN_MAX { return Err(Damaged) } else { read(&mut input, n)? };
    if input.0.is_empty() { Ok(out) } else { Err(Damaged) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::STALE_BITS;
    use proptest::prelude::*;

    fn value() -> impl Strategy<Value = f64> {
        prop_oneof![
            any::<u64>().prop_map(f64::from_bits),
            any::<i32>().prop_map(f64::from),
            (any::<i32>(), 0..7).prop_map(|(i, s)| f64::from(i) / 10f64.powi(s)),
            prop::sample::select(vec![
                0.0,
                -0.0,
                f64::INFINITY,
                f64::NEG_INFINITY,
                f64::from_bits(STALE_BITS),
                f64::from_bits(0x7ff8_0000_0000_0001),
                f64::from_bits(0xfff0_dead_beef_0001),
                f64::MAX,
                f64::MIN_POSITIVE,
                f64::from_bits(1),
                0.1,
                0.3,
                1e22,
                9_007_199_254_740_991.0,
                9_007_199_254_740_993.0,
                1e15 + 0.3,
            ]),
        ]
    }

    /// Runs of one kind, as real series have, and wild mixtures.
    fn column() -> impl Strategy<Value = Vec<f64>> {
        prop_oneof![
            prop::collection::vec(value(), 0..300),
            (any::<i32>(), prop::collection::vec(0u16..500, 0..300), 0..4, value()).prop_map(
                |(start, steps, scale, odd)| {
                    let mut at = i64::from(start);
                    let last = steps.len();
                    let each = |(i, s): (usize, u16)| {
                        at += i64::from(s);
                        if i + 1 == last { odd } else { at as f64 / 10f64.powi(scale) }
                    };
                    steps.into_iter().enumerate().map(each).collect()
                }
            ),
            (value(), 0..300usize).prop_map(|(v, n)| vec![v; n]),
        ]
    }

    fn bits_of(v: &[f64]) -> Vec<u64> {
        v.iter().map(|x| x.to_bits()).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn values_come_back_bit_for_bit(v in column()) {
            let mut out = Vec::new();
            put_values(&mut out, &v);
            prop_assert_eq!(read_values(&out, v.len()).map(|r| bits_of(&r)), Ok(bits_of(&v)));
            // Never much larger than the bits themselves.
            prop_assert!(out.len() <= v.len() * 8 + 16);
        }

        #[test]
        fn instants_come_back(t in prop_oneof![
            prop::collection::vec(any::<i64>(), 0..300),
            (any::<i32>(), prop::collection::vec(14_990i64..15_010, 0..300)).prop_map(|(start, steps)| {
                steps.iter().scan(i64::from(start), |at, s| { *at += s; Some(*at) }).collect()
            }),
        ]) {
            let mut out = Vec::new();
            put_times(&mut out, &t);
            prop_assert_eq!(read_times(&out, t.len()), Ok(t));
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..60), n in 0usize..400) {
            let _ = read_values(&bytes, n);
            let _ = read_times(&bytes, n);
        }

        #[test]
        fn damage_does_not_panic(v in column(), at in any::<prop::sample::Index>(), with in any::<u8>()) {
            let mut out = Vec::new();
            put_values(&mut out, &v);
            if !out.is_empty() {
                let i = at.index(out.len());
                out[i] = with;
                let _ = read_values(&out, v.len());
            }
        }
    }

    /// The mix of the field note: a fifth each of integer counters, counters with two decimals, gauges in steps of
    /// 4 KiB, constants, gauges with one decimal.
    #[test]
    fn a_sample_takes_well_under_a_byte() {
        let mut r = photon_rt::entropy::Rng::new(7);
        let (mut bytes, mut samples) = (0, 0);
        let mut kinds = [0usize; 5];
        for series in 0..250 {
            let mut at = r.below(100_000) as i64;
            for _ in 0..2880 / 240 {
                let column: Vec<f64> = (0..240)
                    .map(|_| match series % 5 {
                        0 => {
                            at += r.below(10) as i64;
                            at as f64
                        }
                        1 => {
                            at += r.below(100) as i64;
                            at as f64 / 100.0
                        }
                        2 => {
                            at = (at + r.below(17) as i64 - 8).max(0);
                            (at * 4096) as f64
                        }
                        3 => 1.0,
                        _ => {
                            at += r.below(11) as i64 - 5;
                            at as f64 / 10.0
                        }
                    })
                    .collect();
                let mut out = Vec::new();
                put_values(&mut out, &column);
                bytes += out.len();
                kinds[series % 5] += out.len();
                samples += 240;
            }
        }
        let a_sample = bytes as f64 / f64::from(samples);
        println!(
            "{a_sample:.3} bytes a sample; by kind {:?}",
            kinds.map(|k| k as f64 / f64::from(samples) * 5.0)
        );
        assert!(a_sample < 0.6, "{a_sample} bytes a sample");
    }
}
