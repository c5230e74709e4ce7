//! Which watches want a key: single keys by hash, ranges in a tree (a treap by start that knows how far each
//! subtree reaches). A look-up costs what it finds and a logarithm of the ranges, whatever they are.
//!
//! Not an interval tree of a crate: those on offer are built once, and watches come and go.

use crate::Span;
use bytes::Bytes;
use std::{cmp::Ordering, collections::HashMap};

/// Values under spans. Values of one span have distinct, ordered ids.
#[derive(Clone)]
pub struct Index<K, T> {
    keys: HashMap<Bytes, Vec<(K, T)>>,
    ranges: Link<K, T>,
    len: usize,
    /// Of the tree's ranks: nobody who chooses ranges can foresee it, or the tree could be made a list.
    seed: u64,
}

type Link<K, T> = Option<Box<Node<K, T>>>;

#[derive(Clone)]
struct Node<K, T> {
    span: Span,
    /// The greatest end of this subtree; none is "to the last key".
    reach: Option<Bytes>,
    /// Not smaller than the ranks below.
    rank: u64,
    left: Link<K, T>,
    right: Link<K, T>,
    here: Vec<(K, T)>,
}

/// True for the span of one key.
fn single(s: &Span) -> bool {
    s.end.as_ref().is_some_and(|e| {
        e.len() == s.start.len() + 1 && e.starts_with(&s.start) && e.last().is_some_and(|b| *b == 0)
    })
}

/// As ends: none lies behind all.
fn order_ends(a: &Option<Bytes>, b: &Option<Bytes>) -> Ordering {
    match (a, b) {
        (Some(a), Some(b)) => a.cmp(b),
        (a, b) => a.is_none().cmp(&b.is_none()),
    }
}

fn order(a: &Span, b: &Span) -> Ordering {
    a.start.cmp(&b.start).then_with(|| order_ends(&a.end, &b.end))
}

/// Adds to, or takes from, values in the order of their ids.
fn put<K: Ord, T>(all: &mut Vec<(K, T)>, id: K, value: T) -> Option<T> {
    match all.binary_search_by(|(k, _)| k.cmp(&id)) {
        Ok(i) => Some(std::mem::replace(&mut all[i].1, value)),
        Err(i) => {
            all.insert(i, (id, value));
            None
        }
    }
}

fn take<K: Ord, T>(all: &mut Vec<(K, T)>, id: &K) -> Option<T> {
    let i = all.binary_search_by(|(k, _)| k.cmp(id)).ok()?;
    Some(all.remove(i).1)
}

impl<K, T> Node<K, T> {
    /// After a change below.
    fn measure(mut self: Box<Self>) -> Box<Self> {
        let mut reach = self.span.end.clone();
        for below in [&self.left, &self.right].into_iter().flatten() {
            if order_ends(&reach, &below.reach).is_lt() {
                reach = below.reach.clone();
            }
        }
        self.reach = reach;
        self
    }
}

fn find<'a, K, T>(at: &'a mut Link<K, T>, span: &Span) -> Option<&'a mut Node<K, T>> {
    let n = at.as_deref_mut()?;
    match order(span, &n.span) {
        Ordering::Less => find(&mut n.left, span),
        Ordering::Greater => find(&mut n.right, span),
        Ordering::Equal => Some(n),
    }
}

/// Nodes before `span`, and the others.
fn split<K, T>(at: Link<K, T>, span: &Span) -> (Link<K, T>, Link<K, T>) {
    let Some(mut n) = at else { return (None, None) };
    if order(&n.span, span).is_lt() {
        let (l, r) = split(n.right.take(), span);
        n.right = l;
        (Some(n.measure()), r)
    } else {
        let (l, r) = split(n.left.take(), span);
        n.left = r;
        (l, Some(n.measure()))
    }
}

/// All of `l` lie before all of `r`.
fn merge<K, T>(l: Link<K, T>, r: Link<K, T>) -> Link<K, T> {
    match (l, r) {
        (Some(mut l), Some(mut r)) => Some(if l.rank >= r.rank {
            l.right = merge(l.right.take(), Some(r));
            l.measure()
        } else {
            r.left = merge(Some(l), r.left.take());
            r.measure()
        }),
        (l, r) => l.or(r),
    }
}

fn without<K, T>(at: Link<K, T>, span: &Span) -> Link<K, T> {
    let mut n = at?;
    match order(span, &n.span) {
        Ordering::Less => n.left = without(n.left.take(), span),
        Ordering::Greater => n.right = without(n.right.take(), span),
        Ordering::Equal => return merge(n.left.take(), n.right.take()),
    }
    Some(n.measure())
}

fn visit<'a, K, T>(at: &'a Link<K, T>, key: &[u8], f: &mut impl FnMut(&'a K, &'a T)) {
    let Some(n) = at else { return };
    if n.reach.as_ref().is_some_and(|r| &r[..] <= key) {
        return;
    }
    visit(&n.left, key, f);
    if &n.span.start[..] <= key {
        if n.span.contains(key) {
            n.here.iter().for_each(|(k, t)| f(k, t));
        }
        visit(&n.right, key, f);
    }
}

fn walk<'a, K, T>(at: &'a Link<K, T>, f: &mut impl FnMut(&'a K, &'a T)) {
    let Some(n) = at else { return };
    walk(&n.left, f);
    n.here.iter().for_each(|(k, t)| f(k, t));
    walk(&n.right, f);
}

impl<K: Ord + Copy, T> Index<K, T> {
    /// Empty; `seed` is random.
    pub fn new(seed: u64) -> Index<K, T> {
        Index { keys: HashMap::new(), ranges: None, len: 0, seed: seed | 1 }
    }

    /// True when nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds a value; replaces that of the same span and id.
    pub fn insert(&mut self, span: &Span, id: K, value: T) {
        let old = if single(span) {
            put(self.keys.entry(span.start.clone()).or_default(), id, value)
        } else if let Some(n) = find(&mut self.ranges, span) {
            put(&mut n.here, id, value)
        } else {
            // xorshift64
            self.seed ^= self.seed << 13;
            self.seed ^= self.seed >> 7;
            self.seed ^= self.seed << 17;
            let node = Node {
                span: span.clone(),
                reach: span.end.clone(),
                rank: self.seed,
                left: None,
                right: None,
                here: vec![(id, value)],
            };
            let (l, r) = split(self.ranges.take(), span);
            self.ranges = merge(merge(l, Some(Box::new(node))), r);
            None
        };
        self.len += usize::from(old.is_none());
    }

    /// Takes a value out.
    pub fn remove(&mut self, span: &Span, id: K) -> Option<T> {
        let out;
        if single(span) {
            let all = self.keys.get_mut(&span.start)?;
            out = take(all, &id)?;
            if all.is_empty() {
                self.keys.remove(&span.start);
            }
        } else {
            let n = find(&mut self.ranges, span)?;
            out = take(&mut n.here, &id)?;
            if n.here.is_empty() {
                self.ranges = without(self.ranges.take(), span);
            }
        }
        self.len -= 1;
        Some(out)
    }

    /// All values whose span holds `key`.
    pub fn at<'a>(&'a self, key: &[u8], mut f: impl FnMut(&'a K, &'a T)) {
        for (k, t) in self.keys.get(key).into_iter().flatten() {
            f(k, t);
        }
        visit(&self.ranges, key, &mut f);
    }

    /// All values.
    pub fn each<'a>(&'a self, mut f: impl FnMut(&'a K, &'a T)) {
        for (k, t) in self.keys.values().flatten() {
            f(k, t);
        }
        walk(&self.ranges, &mut f);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use photon_rt::entropy::Rng;

    fn depth<K, T>(at: &Link<K, T>) -> usize {
        at.as_ref().map_or(0, |n| 1 + depth(&n.left).max(depth(&n.right)))
    }

    fn key(rng: &mut Rng) -> Bytes {
        let len = rng.below(4) as usize;
        (0..len).map(|_| [0u8, b'a', b'b', 0xff][rng.below(4) as usize]).collect::<Vec<u8>>().into()
    }

    fn span(rng: &mut Rng) -> Span {
        let (start, end) = (key(rng), key(rng));
        match rng.below(4) {
            0 => Span { start, end: None },
            1 => Span::of(&start, &Bytes::new()),
            _ => Span { start, end: Some(end) },
        }
    }

    #[test]
    fn finds_what_a_list_finds() {
        for seed in 0..300 {
            let mut rng = Rng::new(seed);
            let mut index = Index::new(seed);
            let mut list: Vec<(Span, u64)> = Vec::new();
            for id in 0..200 {
                if rng.percent(60) || list.is_empty() {
                    let s = span(&mut rng);
                    index.insert(&s, id, id * 3);
                    list.push((s, id));
                } else {
                    let (s, id) = list.swap_remove(rng.below(list.len() as u64) as usize);
                    assert_eq!(index.remove(&s, id), Some(id * 3));
                    assert_eq!(index.remove(&s, id), None);
                }
                let k = key(&mut rng);
                let mut found = Vec::new();
                index.at(&k, |id, v| found.push((*id, *v)));
                found.sort();
                let mut wanted: Vec<(u64, u64)> =
                    list.iter().filter(|(s, _)| s.contains(&k)).map(|(_, id)| (*id, id * 3)).collect();
                wanted.sort();
                assert_eq!(found, wanted, "seed {seed}, key {k:?}");
                let mut all = 0;
                index.each(|_, _| all += 1);
                assert_eq!((all, index.is_empty()), (list.len(), list.is_empty()));
            }
        }
    }

    /// Ranges in order, and each inside the one before: what a plain tree would make a list of.
    #[test]
    fn stays_shallow() {
        let mut index = Index::new(7);
        for i in 0..10_000u64 {
            let start = Bytes::from(format!("{i:05}"));
            let end = Some(Bytes::from(format!("z{:05}", 99_999 - i)));
            index.insert(&Span { start, end }, i, ());
        }
        assert!(depth(&index.ranges) < 64, "{}", depth(&index.ranges));
        let mut found = 0;
        index.at(b"00003", |_, ()| found += 1);
        assert_eq!(found, 4);
    }
}
