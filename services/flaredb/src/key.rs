//! Keys as FlareDB orders them.
//!
//! A full key is `mode ‖ esc(group) ‖ esc(rest)`. `esc` keeps order and says where it ends: a zero byte
//! becomes `00 ff`, the end is `00 01`. So full keys are free of prefixes of each other, a timestamp can
//! follow one without a length, and all keys of a row group lie together, between `mode ‖ esc(group)` and
//! the next group. A key without a group is a group of its own, with an empty rest.
//!
//! A region's borders are starts of groups, nothing else: that is why a row group is never split.
//!
//! Considered: groups of eight bytes with a marker (MyRocks, TiKV): nine bytes for an empty part where this
//! needs two, and no shorter unless a key is a tenth of zeros.

use crate::Refusal;
use bytes::Bytes;

/// Longest group and rest of a key together, bytes.
pub const MAX_KEY: usize = 16 << 10;

/// Longest value, bytes.
pub const MAX_VALUE: usize = 1 << 20;

/// Longest full key: every byte a zero.
pub const MAX_FULL_KEY: usize = 1 + 2 * (MAX_KEY + 2);

/// Which promises a key lives under. The two never meet in one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mode {
    /// One version: compare-and-swap, blind puts.
    Raw = b'r' as isize,
    /// Versions by timestamp: transactions.
    Txn = b'x' as isize,
}

fn escape(out: &mut Vec<u8>, part: &[u8]) {
    for b in part {
        out.push(*b);
        if *b == 0 {
            out.push(0xff);
        }
    }
}

fn closed(out: &mut Vec<u8>, part: &[u8]) {
    escape(out, part);
    out.extend_from_slice(&[0, 1]);
}

/// Takes an escaped part off the front.
fn unescape(bytes: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut out = Vec::new();
    let mut at = 0;
    loop {
        match (*bytes.get(at)?, bytes.get(at + 1)) {
            (0, Some(0xff)) => {
                out.push(0);
                at += 2;
            }
            (0, Some(1)) => return Some((out, &bytes[at + 2..])),
            (0, _) => return None,
            (b, _) => {
                out.push(b);
                at += 1;
            }
        }
    }
}

/// The full key of `rest` in row group `group`.
pub fn in_group(mode: Mode, group: &[u8], rest: &[u8]) -> Result<Bytes, Refusal> {
    if group.is_empty() {
        return Err(Refusal::EmptyKey);
    }
    let len = group.len() + rest.len();
    if len > MAX_KEY {
        return Err(Refusal::KeyTooLong { len, limit: MAX_KEY });
    }
    let mut out = Vec::with_capacity(len + 5);
    out.push(mode as u8);
    closed(&mut out, group);
    closed(&mut out, rest);
    Ok(out.into())
}

/// The full key of a key that is its own group.
pub fn key(mode: Mode, user: &[u8]) -> Result<Bytes, Refusal> {
    in_group(mode, user, &[])
}

/// A full key taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parts {
    /// Under which promises.
    pub mode: Mode,
    /// Its row group.
    pub group: Vec<u8>,
    /// The rest.
    pub rest: Vec<u8>,
}

fn mode_of(full: &[u8]) -> Option<Mode> {
    match full.first()? {
        b'r' => Some(Mode::Raw),
        b'x' => Some(Mode::Txn),
        _ => None,
    }
}

/// Takes a full key apart; `None` when it is not one.
pub fn split(full: &[u8]) -> Option<Parts> {
    let mode = mode_of(full)?;
    let (group, tail) = unescape(&full[1..])?;
    let (rest, tail) = unescape(tail)?;
    (tail.is_empty() && !group.is_empty() && group.len() + rest.len() <= MAX_KEY).then_some(Parts {
        mode,
        group,
        rest,
    })
}

/// Refuses what is no full key of this mode. Cheaper than [`split`]: nothing is copied.
pub fn check(mode: Mode, full: &[u8]) -> Result<(), Refusal> {
    if full.len() > MAX_FULL_KEY {
        return Err(Refusal::KeyTooLong { len: full.len(), limit: MAX_FULL_KEY });
    }
    let bad = || Refusal::Malformed("a key is not encoded as a key of this mode".into());
    if mode_of(full) != Some(mode) {
        return Err(bad());
    }
    let (group, rest) = part(&full[1..]).ok_or_else(bad)?;
    let (more, tail) = part(rest).ok_or_else(bad)?;
    if !tail.is_empty() || group == 0 {
        return Err(bad());
    }
    if group + more > MAX_KEY {
        return Err(Refusal::KeyTooLong { len: group + more, limit: MAX_KEY });
    }
    Ok(())
}

/// Length of the escaped part at the front, unescaped, and what follows it.
fn part(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let (mut at, mut len) = (0, 0);
    loop {
        match (*bytes.get(at)?, bytes.get(at + 1)) {
            (0, Some(0xff)) => at += 2,
            (0, Some(1)) => return Some((len, &bytes[at + 2..])),
            (0, _) => return None,
            _ => at += 1,
        }
        len += 1;
    }
}

/// Where the group of a full key begins: the greatest border of regions that is not behind the key.
pub fn border(full: &[u8]) -> Option<Bytes> {
    mode_of(full)?;
    let (_, tail) = part(&full[1..])?;
    Some(Bytes::copy_from_slice(&full[..full.len() - tail.len()]))
}

/// True for what may be the border between two regions.
pub fn is_border(bytes: &[u8]) -> bool {
    bytes.len() <= MAX_FULL_KEY
        && mode_of(bytes).is_some()
        && (bytes.len() == 1 || part(&bytes[1..]).is_some_and(|(n, tail)| n > 0 && tail.is_empty()))
}

/// The smallest bound behind a full key: behind its versions, too.
pub fn after(full: &[u8]) -> Bytes {
    let mut out = full.to_vec();
    if let Some(last) = out.last_mut() {
        *last = 2;
    }
    out.into()
}

/// A bound that lies between full keys: one within the versions of a key moves behind them.
fn clean(bound: &Bytes) -> Bytes {
    let tail = mode_of(bound).and_then(|_| part(&bound[1..])).and_then(|(_, rest)| part(rest));
    match tail {
        Some((_, tail)) if !tail.is_empty() => after(&bound[..bound.len() - tail.len()]),
        _ => bound.clone(),
    }
}

/// Full keys from `start` up to `end`; an empty `end` is behind all.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Span {
    /// First.
    pub start: Bytes,
    /// First behind it.
    pub end: Bytes,
}

impl Span {
    /// All there is.
    pub fn all() -> Span {
        Span { start: Bytes::new(), end: Bytes::new() }
    }

    /// Everything below a byte prefix of full keys.
    fn below(prefix: Vec<u8>) -> Span {
        let r = photon_kv::Range::prefix(prefix);
        Span { start: r.start, end: r.end }
    }

    /// Keys whose group begins with `prefix`; for keys without groups: that begin with it.
    pub fn prefix(mode: Mode, prefix: &[u8]) -> Span {
        let mut out = vec![mode as u8];
        escape(&mut out, prefix);
        Span::below(out)
    }

    /// Keys of row group `group` whose rest begins with `prefix`.
    pub fn group(mode: Mode, group: &[u8], prefix: &[u8]) -> Span {
        let mut out = vec![mode as u8];
        closed(&mut out, group);
        escape(&mut out, prefix);
        Span::below(out)
    }

    /// Groups from `start` up to `end`; empty bounds are open, within the mode.
    pub fn between(mode: Mode, start: &[u8], end: &[u8]) -> Span {
        let all = Span::below(vec![mode as u8]);
        let bound = |part: &[u8]| {
            let mut out = vec![mode as u8];
            closed(&mut out, part);
            Bytes::from(out)
        };
        Span {
            start: if start.is_empty() { all.start } else { bound(start) },
            end: if end.is_empty() { all.end } else { bound(end) },
        }
    }

    /// The same full keys, by bounds that lie between the versions of different keys.
    pub fn clean(&self) -> Span {
        Span { start: clean(&self.start), end: clean(&self.end) }
    }

    /// True when `key` lies inside.
    pub fn contains(&self, key: &[u8]) -> bool {
        key >= &self.start[..] && (self.end.is_empty() || key < &self.end[..])
    }

    /// True when no key can lie inside.
    pub fn is_empty(&self) -> bool {
        !self.end.is_empty() && self.start >= self.end
    }

    /// True when some key may lie in both.
    pub fn overlaps(&self, other: &Span) -> bool {
        (other.end.is_empty() || self.start < other.end) && (self.end.is_empty() || other.start < self.end)
    }

    /// The part inside `other`.
    pub fn within(&self, other: &Span) -> Span {
        let end = match (self.end.is_empty(), other.end.is_empty()) {
            (true, _) => other.end.clone(),
            (_, true) => self.end.clone(),
            _ => self.end.clone().min(other.end.clone()),
        };
        Span { start: self.start.clone().max(other.start.clone()), end }
    }

    /// True when `other` lies inside.
    pub fn covers(&self, other: &Span) -> bool {
        self.start <= other.start && (self.end.is_empty() || (!other.end.is_empty() && other.end <= self.end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(prop_oneof![Just(0u8), Just(1), Just(255), any::<u8>()], 0..6)
    }

    proptest! {
        #[test]
        fn order_is_that_of_groups_then_rests(a in bytes(), b in bytes(), c in bytes(), d in bytes()) {
            prop_assume!(!a.is_empty() && !c.is_empty());
            let (x, y) = (in_group(Mode::Txn, &a, &b).unwrap(), in_group(Mode::Txn, &c, &d).unwrap());
            prop_assert_eq!(x.cmp(&y), (&a, &b).cmp(&(&c, &d)));
            prop_assert!(x == y || !y.starts_with(&x));
            let parts = split(&x).unwrap();
            prop_assert_eq!((parts.group, parts.rest), (a.clone(), b));
            prop_assert!(check(Mode::Txn, &x).is_ok() && check(Mode::Raw, &x).is_err());
            let border = border(&x).unwrap();
            prop_assert!(is_border(&border) && border <= x && !is_border(&x));
            // Nothing lies between a key with its versions and the bound behind it.
            let (next, version) = (after(&x), [&x[..], &[0xff; 8]].concat());
            prop_assert!(version[..] < next[..] && (y <= x || y >= next));
            let within = Span { start: version.into(), end: Bytes::new() };
            prop_assert_eq!(within.clean().start, next);
            let at = Span { start: x.clone(), end: Bytes::new() };
            prop_assert!(at.clean().start == x);
            // A border of another group never falls into this one.
            let other = super::border(&y).unwrap();
            if a != c { prop_assert_eq!(other > x, c > a); }
        }

        #[test]
        fn spans_hold_what_they_say(k in bytes(), rest in bytes(), p in bytes(), q in bytes()) {
            prop_assume!(!k.is_empty());
            let full = in_group(Mode::Raw, &k, &rest).unwrap();
            prop_assert_eq!(Span::prefix(Mode::Raw, &p).contains(&full), k.starts_with(&p));
            let inside = k == q && rest.starts_with(&p);
            if !q.is_empty() { prop_assert_eq!(Span::group(Mode::Raw, &q, &p).contains(&full), inside); }
            let between = (p.is_empty() || k >= p) && (q.is_empty() || k < q);
            prop_assert_eq!(Span::between(Mode::Raw, &p, &q).contains(&full), between);
            prop_assert!(!Span::between(Mode::Txn, &[], &[]).contains(&full));
        }

        #[test]
        fn foreign_bytes_are_told_apart(raw in proptest::collection::vec(any::<u8>(), 0..12)) {
            let whole = split(&raw);
            let ok = check(Mode::Raw, &raw).is_ok() || check(Mode::Txn, &raw).is_ok();
            prop_assert_eq!(whole.is_some(), ok);
            if let Some(p) = whole { prop_assert!(in_group(p.mode, &p.group, &p.rest).unwrap() == raw); }
            let _ = (border(&raw), is_border(&raw));
        }
    }

    #[test]
    fn limits() {
        assert!(in_group(Mode::Raw, &[0; MAX_KEY], &[]).is_ok_and(|k| k.len() <= MAX_FULL_KEY));
        assert_eq!(
            in_group(Mode::Raw, &[0; MAX_KEY], b"x"),
            Err(Refusal::KeyTooLong { len: MAX_KEY + 1, limit: MAX_KEY })
        );
        assert_eq!(key(Mode::Raw, b""), Err(Refusal::EmptyKey));
        const { assert!(MAX_FULL_KEY + 8 < photon_kv::engine::MAX_KEY) };
    }
}
