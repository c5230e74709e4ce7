//! Reading a state: present keys from `latest`, older ones from `data`.

use super::layout::*;
use crate::{
    EtcdError, EtcdResult, Scope, Span,
    wire::{
        etcdserverpb::{
            Compare, RangeRequest, RangeResponse, ResponseHeader,
            compare::{CompareResult, CompareTarget, TargetUnion},
            range_request::{SortOrder, SortTarget},
        },
        mvccpb::KeyValue,
    },
};
use bytes::Bytes;
use photon_kv::{
    Direction,
    engine::{KeyRange, View},
};
use std::cmp::Ordering;

/// Most bytes of keys and values that one answer carries.
const MAX_ANSWER: usize = 512 << 20;

/// A state: what is stored, and how far it goes.
#[derive(Clone, Copy)]
pub struct Reader<'a> {
    pub view: &'a dyn View,
    /// The revision that `latest` shows.
    pub revision: i64,
    /// Revisions below this one are gone.
    pub compacted: i64,
}

/// Keys that were found, and how many there are in all.
#[derive(Default)]
pub struct Found {
    pub kvs: Vec<KeyValue>,
    pub count: u64,
}

impl<'a> Reader<'a> {
    /// The newest version of a key.
    pub fn latest(&self, key: &[u8]) -> EtcdResult<Option<KeyValue>> {
        self.view.get(LATEST, key)?.map(decode).transpose()
    }

    /// The revision to read for a request that names `revision` (0: the present).
    pub fn resolve(&self, revision: i64) -> EtcdResult<i64> {
        match revision {
            r if r > self.revision => Err(EtcdError::FutureRevision),
            r if r <= 0 => Ok(self.revision),
            r if r < self.compacted => Err(EtcdError::Compacted),
            r => Ok(r),
        }
    }

    /// The version of a key that was valid just after `revision`.
    pub fn at(&self, key: &[u8], revision: i64) -> EtcdResult<Option<KeyValue>> {
        let floor = data_floor(key);
        let newest = data_key(key, Stamp { main: revision, sub: u32::MAX });
        let range = KeyRange::half_open(newest, KeyRangeEnd::after(&floor));
        match self.view.scan(DATA, range, Direction::Forward).next().transpose()? {
            Some((_, v)) if !v.is_empty() => decode(v).map(Some),
            _ => Ok(None),
        }
    }

    /// The keys of a span at a resolved revision, lazily, as stored versions.
    pub fn scan(
        &self,
        span: Span,
        revision: i64,
        direction: Direction,
    ) -> Box<dyn Iterator<Item = EtcdResult<Bytes>> + Send + 'a> {
        if span.is_empty() {
            return Box::new(std::iter::empty());
        }
        if revision == self.revision {
            let range = match span.end {
                Some(end) => KeyRange::half_open(span.start, end),
                None => KeyRange::from(span.start),
            };
            return Box::new(self.view.scan(LATEST, range, direction).map(|i| Ok(i?.1)));
        }
        let start = data_floor(&span.start);
        let range = match span.end {
            Some(end) => KeyRange::half_open(start, data_floor(&end)),
            None => KeyRange::from(start),
        };
        let versions = self.view.scan(DATA, range, direction);
        Box::new(Versions { versions, revision, direction, current: None, held: None })
    }

    /// All that a caller sees of a span; at most `limit` keys (0: all), but the count of all of them.
    pub fn find(
        &self,
        scope: Scope,
        span: Span,
        revision: i64,
        limit: usize,
        count_only: bool,
    ) -> EtcdResult<Found> {
        let mut found = Found::default();
        let mut bytes = 0;
        for part in scope.visible(span) {
            if revision == self.revision && count_only {
                let range = match part.end {
                    Some(end) => KeyRange::half_open(part.start, end),
                    None => KeyRange::from(part.start),
                };
                found.count += self.view.count(LATEST, range)?;
                continue;
            }
            for item in self.scan(part, revision, Direction::Forward) {
                let item = item?;
                found.count += 1;
                if !count_only && (limit == 0 || found.kvs.len() < limit) {
                    bytes += item.len();
                    if bytes > MAX_ANSWER {
                        return Err(EtcdError::Unsupported(
                            "the answer is too large; page it with a limit".into(),
                        ));
                    }
                    found.kvs.push(decode(item)?);
                }
            }
        }
        Ok(found)
    }

    /// Answers a range request. The header has only the revision.
    pub fn range(&self, scope: Scope, r: &RangeRequest) -> EtcdResult<RangeResponse> {
        let revision = self.resolve(r.revision)?;
        let limit = usize::try_from(r.limit).unwrap_or(0);
        let filtered = r.min_mod_revision != 0
            || r.max_mod_revision != 0
            || r.min_create_revision != 0
            || r.max_create_revision != 0;
        let sorted = r.sort_order != SortOrder::None as i32;
        // One more than asked for tells whether there is more. Sorting and filtering need all. (A sort
        // target without an order sorts only what the limit let through: so does etcd.)
        let fetch = if sorted || filtered || limit == 0 { 0 } else { limit + 1 };
        let span = Span::of(&r.key, &r.range_end);
        let found = if r.range_end.is_empty() && revision == self.revision {
            let kv = if scope.may_name(&r.key) { self.latest(&r.key)? } else { None };
            let count = u64::from(kv.is_some());
            Found { kvs: kv.into_iter().filter(|_| !r.count_only).collect(), count }
        } else {
            self.find(scope, span, revision, fetch, r.count_only)?
        };
        let mut kvs = found.kvs;
        if filtered {
            kvs.retain(|kv| within(r, kv));
        }
        sort(&mut kvs, r.sort_order, r.sort_target);
        let more = limit > 0 && kvs.len() > limit;
        if more {
            kvs.truncate(limit);
        }
        if r.keys_only {
            kvs.iter_mut().for_each(|kv| kv.value = Bytes::new());
        }
        let header = Some(ResponseHeader { revision: self.revision, ..Default::default() });
        Ok(RangeResponse { header, kvs, more, count: found.count as i64 })
    }

    /// True when all compares of a transaction hold.
    pub fn holds(&self, scope: Scope, compares: &[Compare]) -> EtcdResult<bool> {
        for c in compares {
            let held = if c.range_end.is_empty() {
                self.compare_one(c, self.latest(&c.key)?.as_ref())
            } else {
                self.compare_range(scope, c)?
            };
            if !held {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn compare_range(&self, scope: Scope, c: &Compare) -> EtcdResult<bool> {
        let mut any = false;
        for part in scope.visible(Span::of(&c.key, &c.range_end)) {
            for item in self.scan(part, self.revision, Direction::Forward) {
                any = true;
                if !self.compare_one(c, Some(&decode(item?)?)) {
                    return Ok(false);
                }
            }
        }
        Ok(any || self.compare_one(c, None))
    }

    /// A key that does not exist compares as all zeros, except that its value equals nothing.
    fn compare_one(&self, c: &Compare, kv: Option<&KeyValue>) -> bool {
        let number = |have: fn(&KeyValue) -> i64, want: i64| kv.map_or(0, have).cmp(&want);
        let order = match (CompareTarget::try_from(c.target), &c.target_union) {
            (Ok(CompareTarget::Value), u) => {
                let want: &[u8] = if let Some(TargetUnion::Value(v)) = u { v } else { &[] };
                match kv {
                    Some(kv) => kv.value[..].cmp(want),
                    None => return false,
                }
            }
            (Ok(CompareTarget::Version), u) => {
                number(|k| k.version, if let Some(TargetUnion::Version(v)) = u { *v } else { 0 })
            }
            (Ok(CompareTarget::Create), u) => number(
                |k| k.create_revision,
                if let Some(TargetUnion::CreateRevision(v)) = u { *v } else { 0 },
            ),
            (Ok(CompareTarget::Mod), u) => {
                number(|k| k.mod_revision, if let Some(TargetUnion::ModRevision(v)) = u { *v } else { 0 })
            }
            (Ok(CompareTarget::Lease), u) => {
                number(|k| k.lease, if let Some(TargetUnion::Lease(v)) = u { *v } else { 0 })
            }
            (Err(_), _) => Ordering::Equal,
        };
        match CompareResult::try_from(c.result) {
            Ok(CompareResult::Equal) => order.is_eq(),
            Ok(CompareResult::NotEqual) => order.is_ne(),
            Ok(CompareResult::Greater) => order.is_gt(),
            Ok(CompareResult::Less) => order.is_lt(),
            Err(_) => true,
        }
    }
}

/// True when a pair passes a request's filters.
pub fn within(r: &RangeRequest, kv: &KeyValue) -> bool {
    let above = |min: i64, v: i64| min == 0 || v >= min;
    let below = |max: i64, v: i64| max == 0 || v <= max;
    below(r.max_mod_revision, kv.mod_revision)
        && above(r.min_mod_revision, kv.mod_revision)
        && below(r.max_create_revision, kv.create_revision)
        && above(r.min_create_revision, kv.create_revision)
}

fn sort(kvs: &mut [KeyValue], order: i32, target: i32) {
    let none = order == SortOrder::None as i32;
    let compare: fn(&KeyValue, &KeyValue) -> Ordering = match SortTarget::try_from(target) {
        Ok(SortTarget::Key) if none => return, // scanned in this order
        Ok(SortTarget::Key) => |a, b| a.key.cmp(&b.key),
        Ok(SortTarget::Version) => |a, b| a.version.cmp(&b.version),
        Ok(SortTarget::Create) => |a, b| a.create_revision.cmp(&b.create_revision),
        Ok(SortTarget::Mod) => |a, b| a.mod_revision.cmp(&b.mod_revision),
        Ok(SortTarget::Value) => |a, b| a.value.cmp(&b.value),
        Err(_) => return,
    };
    if order == SortOrder::Descend as i32 {
        kvs.sort_by(|a, b| compare(b, a));
    } else {
        kvs.sort_by(compare);
    }
}

/// The end of the range of all versions of one key.
struct KeyRangeEnd;

impl KeyRangeEnd {
    /// `floor` ends in `00 01`; everything up to `00 02` belongs to the key.
    fn after(floor: &Bytes) -> Bytes {
        let mut end = floor.to_vec();
        if let Some(last) = end.last_mut() {
            *last += 1;
        }
        end.into()
    }
}

/// All versions of one key, newest first.
pub fn all_versions(key: &[u8]) -> KeyRange {
    let floor = data_floor(key);
    let end = KeyRangeEnd::after(&floor);
    KeyRange::half_open(floor, end)
}

/// Of all versions of each key, the newest up to a revision; deletions are left out.
struct Versions<'a> {
    versions: photon_kv::engine::Scan<'a>,
    revision: i64,
    direction: Direction,
    /// Key being looked at, and (forward) whether its version was found.
    current: Option<(Bytes, bool)>,
    /// Backward: the newest valid version of the current key so far.
    held: Option<Bytes>,
}

impl Iterator for Versions<'_> {
    type Item = EtcdResult<Bytes>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let (k, v) = match self.versions.next() {
                None => {
                    let last = self.held.take()?;
                    return (!last.is_empty()).then_some(Ok(last));
                }
                Some(Err(e)) => return Some(Err(e.into())),
                Some(Ok(item)) => item,
            };
            let Some((key, at)) = split_data_key(&k) else {
                return Some(Err(EtcdError::Internal("a key in `data` cannot be read".into())));
            };
            let same = self.current.as_ref().is_some_and(|(c, _)| *c == key);
            match self.direction {
                Direction::Forward => {
                    let done = same && self.current.as_ref().is_some_and(|(_, found)| *found);
                    let valid = at.main <= self.revision;
                    if !same || (valid && !done) {
                        self.current = Some((key, valid));
                    }
                    if valid && !done && !v.is_empty() {
                        return Some(Ok(v));
                    }
                }
                Direction::Backward => {
                    let before = if same { None } else { self.held.take() };
                    self.current = Some((key, true));
                    if at.main <= self.revision {
                        self.held = Some(v);
                    }
                    if let Some(b) = before
                        && !b.is_empty()
                    {
                        return Some(Ok(b));
                    }
                }
            }
        }
    }
}
