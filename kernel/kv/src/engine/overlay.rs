//! Uncommitted writes on top of a view.

use super::*;
use std::{
    cmp::Ordering,
    collections::{BTreeMap, HashMap},
    iter::Peekable,
};

/// A view that also sees the writes collected in it, until [`Overlay::into_batch`] hands them over.
pub struct Overlay {
    base: Arc<dyn View>,
    writes: HashMap<Space, BTreeMap<Bytes, Option<Bytes>>>,
}

impl Overlay {
    /// No writes yet.
    pub fn new(base: Arc<dyn View>) -> Self {
        Overlay { base, writes: HashMap::new() }
    }

    /// Sets a key.
    pub fn put(&mut self, space: Space, key: impl Into<Bytes>, value: impl Into<Bytes>) {
        self.writes.entry(space).or_default().insert(key.into(), Some(value.into()));
    }

    /// Removes a key.
    pub fn remove(&mut self, space: Space, key: impl Into<Bytes>) {
        self.writes.entry(space).or_default().insert(key.into(), None);
    }

    /// The writes, in the order of keyspaces and keys.
    pub fn into_batch(self) -> Batch {
        let mut spaces: Vec<_> = self.writes.into_iter().collect();
        spaces.sort_by_key(|(s, _)| *s);
        let writes = spaces.into_iter().flat_map(|(s, m)| m.into_iter().map(move |(k, v)| (s, k, v)));
        Batch { writes: writes.collect() }
    }
}

impl View for Overlay {
    fn get(&self, space: Space, key: &[u8]) -> EngineResult<Option<Bytes>> {
        match self.writes.get(&space).and_then(|m| m.get(key)) {
            Some(v) => Ok(v.clone()),
            None => self.base.get(space, key),
        }
    }

    fn scan<'a>(&'a self, space: Space, range: KeyRange, direction: Direction) -> Scan<'a> {
        let above = match self.writes.get(&space) {
            Some(m) if !m.is_empty() && !range.is_empty() => {
                m.range((range.start.clone(), range.end.clone()))
            }
            _ => return self.base.scan(space, range, direction),
        };
        let below = self.base.scan(space, range, direction);
        match direction {
            Direction::Forward => Box::new(Merge::new(below, above, direction)),
            Direction::Backward => Box::new(Merge::new(below, above.rev(), direction)),
        }
    }
}

struct Merge<'a, A: Iterator<Item = (&'a Bytes, &'a Option<Bytes>)>> {
    below: Peekable<Scan<'a>>,
    above: Peekable<A>,
    direction: Direction,
}

impl<'a, A: Iterator<Item = (&'a Bytes, &'a Option<Bytes>)>> Merge<'a, A> {
    fn new(below: Scan<'a>, above: A, direction: Direction) -> Self {
        Merge { below: below.peekable(), above: above.peekable(), direction }
    }
}

impl<'a, A: Iterator<Item = (&'a Bytes, &'a Option<Bytes>)>> Iterator for Merge<'a, A> {
    type Item = EngineResult<(Bytes, Bytes)>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let order = match (self.below.peek(), self.above.peek()) {
                (None, None) => return None,
                (Some(_), None) | (Some(Err(_)), _) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(Ok((b, _))), Some((a, _))) => match self.direction {
                    Direction::Forward => b.cmp(a),
                    Direction::Backward => a.cmp(&b),
                },
            };
            if order == Ordering::Less {
                return self.below.next();
            }
            if order == Ordering::Equal {
                self.below.next();
            }
            if let Some((k, Some(v))) = self.above.next() {
                return Some(Ok((k.clone(), v.clone())));
            }
        }
    }
}
