//! The keyspaces on disk. One page; everything else goes through these functions.
//!
//! | space    | key                                     | value                                   |
//! |----------|-----------------------------------------|-----------------------------------------|
//! | `latest` | key                                     | newest live `mvccpb.KeyValue`           |
//! | `data`   | escaped key, revision ↓, sub ↓          | that version, or nothing for a deletion |
//! | `events` | revision ↑, sub ↑                       | key                                     |
//! | `lease`  | `l` id; `a` id key                      | [`LeaseRecord`]; nothing (attached)     |
//! | `meta`   | `state`, `swept`, `rules`               | [`State`]; revision; [`super::Rules`]   |
//!
//! Numbers are big-endian; ↓ means inverted, so that the newest comes first. A key is escaped as
//! `00 → 00 ff` and ends in `00 01`, so that versions sort by key first and no key is a prefix of another.

use crate::wire::mvccpb::KeyValue;
use bytes::{BufMut, Bytes, BytesMut};
use photon_kv::engine::Space;
use prost::Message;

/// Names of the keyspaces, in the order of their numbers.
pub const SPACES: [&str; 5] = ["latest", "data", "events", "lease", "meta"];
pub const LATEST: Space = Space(0);
pub const DATA: Space = Space(1);
pub const EVENTS: Space = Space(2);
pub const LEASE: Space = Space(3);
pub const META: Space = Space(4);

/// Key of [`State`] in `meta`.
pub const STATE: &[u8] = b"state";
/// Key in `meta` of the compaction revision up to which dead versions have been removed.
pub const SWEPT: &[u8] = b"swept";

/// Key in `meta` of the rules in force ([`super::Rules`]).
pub const RULES: &[u8] = b"rules";

/// True for keys that can be kept: escaped and with a stamp they still fit the engine, so up to 65,521
/// bytes without zeros. etcd's only limit is that of the request. Longer ones would need a place of their
/// own, sorted among the others: beside a common beginning no index could order them without its whole
/// keys, and nobody was ever seen to use such keys.
pub fn fits(key: &[u8]) -> bool {
    key.len() + key.iter().filter(|b| **b == 0).count() + 2 + 12 <= photon_kv::engine::MAX_KEY
}

/// Where the state stands.
#[derive(Clone, PartialEq, prost::Message)]
pub struct State {
    #[prost(int64, tag = "1")]
    pub revision: i64,
    /// -1 until the first compaction.
    #[prost(int64, tag = "2")]
    pub compacted: i64,
    #[prost(uint64, tag = "3")]
    pub applied_index: u64,
    #[prost(uint64, tag = "4")]
    pub applied_term: u64,
}

/// A lease as it is kept.
#[derive(Clone, PartialEq, prost::Message)]
pub struct LeaseRecord {
    /// Granted time to live, seconds.
    #[prost(int64, tag = "1")]
    pub ttl: i64,
    /// Made by an operator: invisible to tenants.
    #[prost(bool, tag = "2")]
    pub system: bool,
    /// Seconds left when it was last recorded; 0 is all of `ttl`.
    #[prost(int64, tag = "3")]
    pub left: i64,
    /// How often such a record was taken back.
    #[prost(uint64, tag = "4")]
    pub renewals: u64,
}

/// A place in history: revision, and number within it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stamp {
    pub main: i64,
    pub sub: u32,
}

fn escape(key: &[u8], out: &mut BytesMut) {
    for part in key.split_inclusive(|b| *b == 0) {
        out.put_slice(part);
        if part.ends_with(&[0]) {
            out.put_u8(0xff);
        }
    }
    out.put_slice(&[0, 1]);
}

/// Below all versions of `key`, above those of smaller keys.
pub fn data_floor(key: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(key.len() + 16);
    escape(key, &mut out);
    out.freeze()
}

/// Where a version is kept. Versions with a stamp at or below this one follow it.
pub fn data_key(key: &[u8], at: Stamp) -> Bytes {
    let mut out = BytesMut::with_capacity(key.len() + 16);
    escape(key, &mut out);
    out.put_u64(!(at.main as u64));
    out.put_u32(!at.sub);
    out.freeze()
}

/// Splits what [`data_key`] made: the escaped key with its end mark, and the stamp.
pub fn split_data_key(k: &Bytes) -> Option<(Bytes, Stamp)> {
    let cut = k.len().checked_sub(12)?;
    let main = !u64::from_be_bytes(k[cut..cut + 8].try_into().ok()?) as i64;
    let sub = !u32::from_be_bytes(k[cut + 8..].try_into().ok()?);
    Some((k.slice(..cut), Stamp { main, sub }))
}

pub fn event_key(at: Stamp) -> Bytes {
    let mut out = BytesMut::with_capacity(12);
    out.put_u64(at.main as u64);
    out.put_u32(at.sub);
    out.freeze()
}

pub fn split_event_key(k: &[u8]) -> Option<Stamp> {
    let main = u64::from_be_bytes(k.get(..8)?.try_into().ok()?) as i64;
    let sub = u32::from_be_bytes(k.get(8..12)?.try_into().ok()?);
    Some(Stamp { main, sub })
}

pub fn lease_key(id: i64) -> Bytes {
    let mut out = BytesMut::with_capacity(9);
    out.put_u8(b'l');
    out.put_i64(id);
    out.freeze()
}

/// All leases.
pub fn lease_prefix() -> Bytes {
    Bytes::from_static(b"l")
}

pub fn split_lease_key(k: &[u8]) -> Option<i64> {
    Some(i64::from_be_bytes(k.get(1..9)?.try_into().ok()?))
}

/// All attachments of a lease.
pub fn attach_prefix(id: i64) -> Bytes {
    let mut out = BytesMut::with_capacity(9);
    out.put_u8(b'a');
    out.put_i64(id);
    out.freeze()
}

pub fn attach_key(id: i64, key: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(9 + key.len());
    out.put_u8(b'a');
    out.put_i64(id);
    out.put_slice(key);
    out.freeze()
}

/// The attached key.
pub fn split_attach_key(k: &Bytes) -> Bytes {
    k.slice(9.min(k.len())..)
}

/// A version as it is kept.
pub fn encode(kv: &KeyValue) -> Bytes {
    kv.encode_to_vec().into()
}

/// A version that was kept; our own bytes, checksummed by the engine.
pub fn decode(b: Bytes) -> Result<KeyValue, crate::EtcdError> {
    KeyValue::decode(b)
        .map_err(|e| crate::EtcdError::Internal(format!("a stored version cannot be read: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(prop::sample::select(vec![0u8, 1, 2, b'a', 0xfe, 0xff]), 1..6)
    }

    proptest! {
        #[test]
        fn data_keys_sort_by_key_then_newest_first(a in key(), b in key(), m in 0..5i64, n in 0..5i64, s in 0..3u32, t in 0..3u32) {
            let (x, y) = (Stamp { main: m, sub: s }, Stamp { main: n, sub: t });
            let (ka, kb) = (data_key(&a, x), data_key(&b, y));
            prop_assert_eq!(ka.cmp(&kb), a.cmp(&b).then(y.cmp(&x)));
            prop_assert_eq!(split_data_key(&ka), Some((data_floor(&a), x)));
            prop_assert!(data_floor(&a) < ka);
            if a < b {
                prop_assert!(ka < data_floor(&b));
            }
        }
    }
}
