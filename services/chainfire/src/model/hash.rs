//! HashKV: etcd's digest of the keyspace, equal to etcd's own for equal histories.
//!
//! etcd (`server/storage/mvcc/hash.go`) takes crc32c over the name of its bucket and then over key and
//! value of every version up to a revision, in the order of revisions: a key is the revision (17 bytes,
//! 18 for a deletion), a value the marshalled `mvccpb.KeyValue`. Of what lies at or below the compaction
//! only versions count that are still live at the revision asked for. All of this follows from MVCC
//! content, which is the same on every member, swept or not.

use super::{layout::*, read::Reader};
use crate::{EtcdError, EtcdResult, Span, wire::mvccpb::KeyValue};
use bytes::{BufMut, Bytes, BytesMut};
use crc_fast::{CrcAlgorithm, Digest};
use photon_kv::{Direction, engine::KeyRange};
use std::collections::BTreeMap;

/// etcd's name of the bucket of versions.
const BUCKET: &[u8] = b"key";

/// Old versions put into order at a time; each time reads all of them. Bounds memory, not work.
const SORTED: usize = if cfg!(test) { 4 } else { 1 << 19 };

/// A digest being made.
pub struct Crc(Digest);

impl Crc {
    /// crc32c with Castagnoli's polynomial.
    pub fn new() -> Crc {
        Crc(Digest::new(CrcAlgorithm::Crc32Iscsi))
    }

    /// Adds bytes.
    pub fn eat(&mut self, b: &[u8]) {
        self.0.update(b);
    }

    /// The digest.
    pub fn sum(&self) -> u32 {
        self.0.finalize() as u32
    }

    fn version(&mut self, at: Stamp, key: &[u8], stored: &[u8]) {
        let mut k = BytesMut::with_capacity(18);
        k.put_i64(at.main);
        k.put_u8(b'_');
        k.put_i64(i64::from(at.sub));
        if stored.is_empty() {
            k.put_u8(b't');
            self.eat(&k);
            let gone = KeyValue { key: Bytes::copy_from_slice(key), ..Default::default() };
            self.eat(&encode(&gone));
        } else {
            self.eat(&k);
            self.eat(stored);
        }
    }
}

/// The digest at a revision (0: the present), and the revision that it is of.
pub fn hash_kv(reader: &Reader<'_>, revision: i64) -> EtcdResult<(u32, i64)> {
    let at = match revision {
        r if r > reader.revision => return Err(EtcdError::FutureRevision),
        r if r <= 0 => reader.revision,
        r if r < reader.compacted => return Err(EtcdError::Compacted),
        r => r,
    };
    let mut crc = Crc::new();
    crc.eat(BUCKET);
    // etcd leaves out what a compaction will remove by comparing with the set of live keys, and does
    // not compare when that set is empty: then what the compaction left counts.
    let everything = || Span { start: Bytes::new(), end: None };
    let live = reader.scan(everything(), at, Direction::Forward).next().transpose()?.is_some();
    old(reader, if live { at } else { reader.compacted }, &mut crc)?;
    let from = Stamp { main: reader.compacted.max(0) + 1, sub: 0 };
    let to = Stamp { main: at + 1, sub: 0 };
    for item in
        reader.view.scan(EVENTS, KeyRange::half_open(event_key(from), event_key(to)), Direction::Forward)
    {
        let (k, key) = item?;
        let bad = || EtcdError::Internal("an event in the store cannot be read".into());
        let stamp = split_event_key(&k).ok_or_else(bad)?;
        let stored = reader.view.get(DATA, &data_key(&key, stamp))?.ok_or_else(bad)?;
        crc.version(stamp, &key, &stored);
    }
    Ok((crc.sum(), at))
}

/// Versions at or below the compaction that are live at `at`, oldest first.
fn old(reader: &Reader<'_>, at: i64, crc: &mut Crc) -> EtcdResult<()> {
    if reader.compacted <= 0 {
        return Ok(());
    }
    let mut done = None;
    loop {
        let mut oldest: BTreeMap<Stamp, Bytes> = BTreeMap::new();
        let mut more = false;
        let mut current: Option<Bytes> = None;
        for item in reader.view.scan(DATA, KeyRange::all(), Direction::Forward) {
            let (k, v) = item?;
            let bad = || EtcdError::Internal("a version in the store cannot be read".into());
            let (key, stamp) = split_data_key(&k).ok_or_else(bad)?;
            if stamp.main > at || current.as_ref() == Some(&key) {
                continue;
            }
            current = Some(key); // this is its newest version up to `at`
            if v.is_empty() || stamp.main > reader.compacted || done.is_some_and(|d| stamp <= d) {
                continue;
            }
            oldest.insert(stamp, k);
            if oldest.len() > SORTED {
                oldest.pop_last();
                more = true;
            }
        }
        for (stamp, k) in &oldest {
            let stored = reader.view.get(DATA, k)?.unwrap_or_default();
            crc.version(*stamp, &[], &stored);
        }
        done = oldest.last_key_value().map(|(s, _)| *s);
        if !more {
            return Ok(());
        }
    }
}
