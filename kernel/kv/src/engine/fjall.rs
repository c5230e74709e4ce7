//! fjall 3: a log-structured merge tree in safe Rust. Considered: redb (a B-tree pays two syncs per
//! commit and its writes are four times slower here), RocksDB (ten minutes of C++).

use super::*;
use ::fjall::{
    Database, Guard, Keyspace, KeyspaceCreateOptions, PersistMode, Readable,
    config::{CompressionPolicy, FilterPolicy, FilterPolicyEntry},
};
use std::path::Path;

/// Memory of a [`FjallEngine`].
#[derive(Clone, Copy, Debug)]
pub struct FjallOptions {
    /// Block cache, bytes.
    pub cache: u64,
    /// Write buffer per keyspace, bytes. Up to four of them wait to be flushed.
    pub write_buffer: u64,
}

impl Default for FjallOptions {
    fn default() -> Self {
        FjallOptions { cache: 64 << 20, write_buffer: 16 << 20 }
    }
}

/// An engine in a folder.
///
/// Writes go to fjall's journal without a sync; [`Engine::persist`] syncs it. Exactly one worker
/// thread flushes and compacts: it syncs the journal before it makes a table of a write buffer
/// durable, and with a single worker no other buffer can be sealed between the two, so a table never
/// holds a batch whose other half, in another keyspace, a power loss could take away. (Two workers
/// leave that gap in fjall 3.1.)
pub struct FjallEngine {
    db: Database,
    spaces: Arc<Vec<Keyspace>>,
}

fn fail(e: impl std::fmt::Display) -> EngineError {
    EngineError(e.to_string())
}

impl FjallEngine {
    /// Opens or makes the store at `dir` with keyspaces of these names. [`Space`] counts them.
    pub fn open(dir: &Path, names: &[&str], options: FjallOptions) -> EngineResult<Self> {
        let db = Database::builder(dir)
            .cache_size(options.cache)
            .worker_threads(1)
            .manual_journal_persist(true)
            .open()
            .map_err(fail)?;
        let settings = || {
            KeyspaceCreateOptions::default()
                .manual_journal_persist(true)
                .max_memtable_size(options.write_buffer)
                .filter_policy(FilterPolicy::all(FilterPolicyEntry::Bloom(
                    ::fjall::config::BloomConstructionPolicy::BitsPerKey(10.0),
                )))
                .data_block_compression_policy(CompressionPolicy::all(::fjall::CompressionType::Lz4))
        };
        let spaces =
            names.iter().map(|n| db.keyspace(n, settings)).collect::<Result<Vec<_>, _>>().map_err(fail)?;
        Ok(FjallEngine { db, spaces: Arc::new(spaces) })
    }
}

impl Engine for FjallEngine {
    fn write(&self, batch: Batch) -> EngineResult<()> {
        let mut b = ::fjall::OwnedWriteBatch::with_capacity(self.db.clone(), batch.writes.len());
        for (space, key, value) in batch.writes {
            if key.is_empty() || key.len() > MAX_KEY {
                return Err(EngineError(format!("a key of {} bytes", key.len())));
            }
            match value {
                Some(v) => b.insert(&self.spaces[space.0], key, v),
                None => b.remove(&self.spaces[space.0], key),
            }
        }
        b.commit().map_err(fail)
    }

    fn persist(&self) -> EngineResult<()> {
        self.db.persist(PersistMode::SyncData).map_err(fail)
    }

    fn view(&self) -> Arc<dyn View> {
        Arc::new(FjallView { snapshot: self.db.snapshot(), spaces: self.spaces.clone() })
    }

    fn clear(&self, space: Space) -> EngineResult<()> {
        self.spaces[space.0].clear().map_err(fail)
    }

    fn disk_bytes(&self) -> u64 {
        self.spaces.iter().map(Keyspace::disk_space).sum::<u64>() + self.db.write_buffer_size()
    }

    fn compact(&self) -> EngineResult<()> {
        self.spaces.iter().try_for_each(|s| s.major_compact()).map_err(fail)
    }
}

struct FjallView {
    snapshot: ::fjall::Snapshot,
    spaces: Arc<Vec<Keyspace>>,
}

impl FjallView {
    fn range(&self, space: Space, range: KeyRange) -> ::fjall::Iter {
        self.snapshot.range(&self.spaces[space.0], (range.start, range.end))
    }
}

fn item(g: Guard) -> EngineResult<(Bytes, Bytes)> {
    let (k, v) = g.into_inner().map_err(fail)?;
    Ok((k.into(), v.into()))
}

impl View for FjallView {
    fn get(&self, space: Space, key: &[u8]) -> EngineResult<Option<Bytes>> {
        if key.is_empty() || key.len() > MAX_KEY {
            return Ok(None);
        }
        Ok(self.snapshot.get(&self.spaces[space.0], key).map_err(fail)?.map(Into::into))
    }

    fn scan<'a>(&'a self, space: Space, range: KeyRange, direction: Direction) -> Scan<'a> {
        if range.is_empty() {
            return Box::new(std::iter::empty());
        }
        let iter = self.range(space, range);
        match direction {
            Direction::Forward => Box::new(iter.map(item)),
            Direction::Backward => Box::new(iter.rev().map(item)),
        }
    }

    fn count(&self, space: Space, range: KeyRange) -> EngineResult<u64> {
        if range.is_empty() {
            return Ok(0);
        }
        self.range(space, range).try_fold(0, |n, g| g.key().map(|_| n + 1)).map_err(fail)
    }
}
