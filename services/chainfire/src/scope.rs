//! Who sees what: the reserved prefix, and ranges with it cut out.

use bytes::Bytes;

/// Where the cloud keeps its own records. Ordinary clients neither see nor touch it.
pub const RESERVED_PREFIX: &[u8] = b"/photon.internal/";

/// First key behind the reserved ones.
const RESERVED_END: &[u8] = b"/photon.internal0";

/// How far a caller sees. The listener that authenticates callers puts it into the extensions of
/// every request; a gRPC request without one is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// The cloud's operator and the cloud itself: everything.
    Operator,
    /// Anybody else: everything but reserved keys and the leases of operators.
    Tenant,
}

impl Scope {
    /// True when the caller may name this key.
    pub fn may_name(self, key: &[u8]) -> bool {
        self == Scope::Operator || !is_reserved(key)
    }

    /// The parts of a span that the caller sees, in order; at most two.
    pub fn visible(self, span: Span) -> impl DoubleEndedIterator<Item = Span> {
        let (low, high) = match self {
            Scope::Operator => (Some(span), None),
            Scope::Tenant => {
                let below = Span { start: span.start.clone(), end: end_before(&span.end, RESERVED_PREFIX) };
                let above = Span { start: span.start.clone().max(RESERVED_END.into()), end: span.end };
                (Some(below), Some(above))
            }
        };
        [low, high].into_iter().flatten().filter(|s| !s.is_empty())
    }
}

/// True for keys under [`RESERVED_PREFIX`].
pub fn is_reserved(key: &[u8]) -> bool {
    key.starts_with(RESERVED_PREFIX)
}

fn end_before(end: &Option<Bytes>, limit: &'static [u8]) -> Option<Bytes> {
    match end {
        Some(e) if &e[..] < limit => Some(e.clone()),
        _ => Some(Bytes::from_static(limit)),
    }
}

/// `[start, end)`; no end means "to the last key".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// First key.
    pub start: Bytes,
    /// First key behind.
    pub end: Option<Bytes>,
}

impl Span {
    /// What etcd means by `key` and `range_end`: none is the key alone, `"\0"` is all keys from `key` on.
    pub fn of(key: &Bytes, range_end: &Bytes) -> Span {
        let end = match &range_end[..] {
            b"" => {
                let mut next = key.to_vec();
                next.push(0);
                Some(next.into())
            }
            b"\0" => None,
            _ => Some(range_end.clone()),
        };
        Span { start: key.clone(), end }
    }

    /// True when no key lies inside.
    pub fn is_empty(&self) -> bool {
        self.end.as_ref().is_some_and(|e| e <= &self.start)
    }

    /// True when `key` lies inside.
    pub fn contains(&self, key: &[u8]) -> bool {
        key >= &self.start[..] && self.end.as_ref().is_none_or(|e| key < &e[..])
    }
}

impl From<photon_kv::Range> for Span {
    fn from(r: photon_kv::Range) -> Span {
        Span { start: r.start, end: (!r.end.is_empty()).then_some(r.end) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key() -> impl Strategy<Value = Bytes> {
        prop_oneof![
            Just(Bytes::from_static(RESERVED_PREFIX)),
            Just(Bytes::from_static(b"/photon.internal")),
            Just(Bytes::from_static(RESERVED_END)),
            Just(Bytes::from_static(b"/photon.internal/x")),
            Just(Bytes::from_static(b"\0")),
            prop::collection::vec(prop::sample::select(vec![0u8, b'/', b'p', 0xff]), 0..4)
                .prop_map(Bytes::from),
        ]
    }

    proptest! {
        #[test]
        fn visible_parts_are_the_span_without_the_reserved_keys(start in key(), end in key(), probe in key()) {
            let span = Span::of(&start, &end);
            for scope in [Scope::Operator, Scope::Tenant] {
                let hits = scope.visible(span.clone()).filter(|s| s.contains(&probe)).count();
                prop_assert_eq!(hits, usize::from(span.contains(&probe) && scope.may_name(&probe)));
            }
        }
    }
}
