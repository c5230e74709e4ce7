//! fjall 3: a log-structured merge tree in safe Rust. Considered: redb (a B-tree pays two syncs per
//! commit and its writes are four times slower here), RocksDB (ten minutes of C++).

use super::*;
use ::fjall::{AbstractTree, LsmError};
use ::fjall::{
    Database, Guard, Keyspace, KeyspaceCreateOptions, PersistMode, Readable,
    config::{CompressionPolicy, FilterPolicy, FilterPolicyEntry},
};
use photon_rt::time::Duration;
use std::{
    io::ErrorKind,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::{Mutex, OnceLock, PoisonError},
};

/// Memory of a [`FjallEngine`].
#[derive(Clone, Copy, Debug)]
pub struct FjallOptions {
    /// Block cache, bytes.
    pub cache: u64,
    /// Write buffer per keyspace, bytes. Up to four of them wait to be flushed.
    pub write_buffer: u64,
}

/// Bytes of journals from which on keyspaces that lag are flushed so that old journals can go; fjall's least. A
/// start reads all journals again, key by key, and a keyspace that seldom changes holds them back: with fjall's own
/// 512 MiB a store of a million keys took eleven seconds to open.
const JOURNALS: u64 = 64 << 20;

impl Default for FjallOptions {
    fn default() -> Self {
        FjallOptions { cache: 64 << 20, write_buffer: 16 << 20 }
    }
}

/// An engine in a folder.
///
/// Writes go to fjall's journal without a sync; [`Engine::persist`] syncs it. Exactly one worker
/// thread flushes and compacts: it syncs the journal before it makes a table of a write buffer
/// durable, and no buffer with batches that are not synced can be sealed between the two, so a table
/// never holds a batch whose other half, in another keyspace, a power loss could take away. (Two workers
/// leave that gap in fjall 3.1.) Full buffers are sealed here, not by the worker: see `seal`.
pub struct FjallEngine {
    db: Database,
    spaces: Arc<Vec<Keyspace>>,
    damage: Damage,
    /// Bytes of a write buffer.
    full: u64,
    /// Held while a batch is written or full buffers are sealed.
    writing: Mutex<()>,
}

/// The first damage that was met.
type Damage = Arc<OnceLock<String>>;

fn sort_out(e: ::fjall::Error) -> EngineError {
    use ::fjall::Error as E;
    let text = e.to_string();
    match e {
        E::Locked => EngineError::Locked,
        E::Poisoned => EngineError::Failed("its worker failed, by damaged tables or a failing disk".into()),
        E::KeyspaceDeleted => EngineError::Failed(text),
        E::Io(e) | E::Storage(LsmError::Io(e)) => match e.kind() {
            // A file shorter than it was, or gone.
            ErrorKind::UnexpectedEof | ErrorKind::NotFound | ErrorKind::InvalidData => {
                EngineError::Damaged(text)
            }
            _ => EngineError::Failed(text),
        },
        _ => EngineError::Damaged(text),
    }
}

/// Runs fjall's code on bytes that may be damaged. It trusts some of them, so that a panic there means damage
/// too.
fn guard<T>(damage: &Damage, f: impl FnOnce() -> Result<T, ::fjall::Error>) -> EngineResult<T> {
    let done = catch_unwind(AssertUnwindSafe(f)).map_or_else(
        |panic| {
            let text = panic.downcast_ref::<&str>().map(|s| (*s).to_string());
            let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
            Err(EngineError::Damaged(format!("panic: {text}")))
        },
        |r| r.map_err(sort_out),
    );
    if let Err(EngineError::Damaged(why)) = &done {
        damage.get_or_init(|| why.clone());
    }
    done
}

/// A file whose presence says that damage was found which fjall itself does not see again.
const MARK: &str = "damaged";

impl FjallEngine {
    /// Opens or makes the store at `dir` with keyspaces of these names. [`Space`] counts them. Damage that is
    /// found stays an error until the folder is removed.
    pub fn open(dir: &Path, names: &[&str], options: FjallOptions) -> EngineResult<Self> {
        let mark = dir.join(MARK);
        if let Ok(why) = photon_rt::fs::read_text(&mark, 64 << 10) {
            return Err(EngineError::Damaged(why));
        }
        let journals = match photon_rt::fs::metadata(dir) {
            Ok(_) => examine::examine(dir).map_err(EngineError::Damaged)?,
            Err(_) => examine::Journals::default(),
        };
        let engine = guard(&Damage::default(), || Self::open_unexamined(dir, names, options))?;
        let tabled = engine.spaces.iter().filter_map(|s| s.tree.get_highest_persisted_seqno()).max();
        if let (Some(torn), Some(tabled)) = (journals.torn, tabled)
            && tabled >= torn
        {
            let why =
                format!("the journal lost synced batches: it is torn at {torn}, tables go up to {tabled}");
            // fjall has cut the journal: the next start would find it whole.
            photon_rt::fs::write_atomic(&mark, why.as_bytes(), 0o600)
                .map_err(|e| EngineError::Failed(e.to_string()))?;
            return Err(EngineError::Damaged(why));
        }
        Ok(engine)
    }

    fn open_unexamined(dir: &Path, names: &[&str], options: FjallOptions) -> Result<Self, ::fjall::Error> {
        let db = Database::builder(dir)
            .cache_size(options.cache)
            .worker_threads(1)
            .max_journaling_size(JOURNALS)
            .manual_journal_persist(true)
            .open()?;
        let settings = || {
            KeyspaceCreateOptions::default()
                .manual_journal_persist(true)
                .max_memtable_size(options.write_buffer)
                .filter_policy(FilterPolicy::all(FilterPolicyEntry::Bloom(
                    ::fjall::config::BloomConstructionPolicy::BitsPerKey(10.0),
                )))
                .data_block_compression_policy(CompressionPolicy::all(::fjall::CompressionType::Lz4))
        };
        let spaces = names.iter().map(|n| db.keyspace(n, settings)).collect::<Result<Vec<_>, _>>()?;
        Ok(FjallEngine {
            db,
            spaces: Arc::new(spaces),
            damage: Damage::default(),
            full: options.write_buffer,
            writing: Mutex::default(),
        })
    }
}

/// Write buffers of a keyspace that may wait to be flushed, and tables that may wait to be merged. One and two
/// below where fjall itself waits.
const MAX_SEALED: usize = 3;
const MAX_RUNS: usize = 28;
const LOOK_EVERY: Duration = Duration::from_millis(5);

impl FjallEngine {
    #[cfg(test)]
    pub(super) fn buffered(&self) -> u64 {
        self.spaces.iter().map(|s| s.tree.active_memtable().size()).max().unwrap_or(0)
    }

    /// Seals full write buffers. fjall asks its worker for that, once with each commit until it is done; a thousand
    /// commits while the worker merges tables fill the worker's mailbox, and then it waits for ever to put its own
    /// next task there (3.1, fjall-rs/fjall#323). A dead worker would never seal, and memory fill up unnoticed.
    ///
    /// What is sealed is synced first: see [`FjallEngine`].
    fn seal(&self) -> EngineResult<()> {
        let full = |s: &&Keyspace| s.tree.active_memtable().size() > self.full;
        if !self.spaces.iter().any(|s| full(&s)) {
            return Ok(());
        }
        guard(&self.damage, || {
            self.db.persist(PersistMode::SyncData)?;
            self.spaces.iter().filter(full).try_for_each(|s| s.rotate_memtable().map(|_| ()))
        })
    }

    /// Waits until the worker has kept up. fjall waits for it without looking whether it lives (3.1), which would
    /// be for ever if it met damage or a full disk meanwhile; here that is an error.
    fn wait_for_worker(&self) -> EngineResult<()> {
        let behind =
            |s: &Keyspace| s.tree.sealed_memtable_count() >= MAX_SEALED || s.tree.l0_run_count() >= MAX_RUNS;
        while self.spaces.iter().any(behind) {
            guard(&self.damage, || self.db.persist(PersistMode::Buffer))?;
            photon_rt::time::block_for(LOOK_EVERY);
        }
        Ok(())
    }
}

impl Engine for FjallEngine {
    fn write(&self, batch: Batch) -> EngineResult<()> {
        let mut b = ::fjall::OwnedWriteBatch::with_capacity(self.db.clone(), batch.writes.len());
        for (space, key, value) in batch.writes {
            if key.is_empty() || key.len() > MAX_KEY {
                return Err(EngineError::Failed(format!("a key of {} bytes", key.len())));
            }
            match value {
                Some(v) => b.insert(&self.spaces[space.0], key, v),
                None => b.remove(&self.spaces[space.0], key),
            }
        }
        let _alone = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        self.seal()?;
        self.wait_for_worker()?;
        guard(&self.damage, || b.commit())
    }

    fn persist(&self) -> EngineResult<()> {
        guard(&self.damage, || self.db.persist(PersistMode::SyncData))
    }

    fn view(&self) -> Arc<dyn View> {
        Arc::new(FjallView {
            snapshot: self.db.snapshot(),
            spaces: self.spaces.clone(),
            damage: self.damage.clone(),
        })
    }

    fn clear(&self, space: Space) -> EngineResult<()> {
        guard(&self.damage, || self.spaces[space.0].clear())
    }

    fn disk_bytes(&self) -> u64 {
        self.spaces.iter().map(Keyspace::disk_space).sum::<u64>() + self.db.write_buffer_size()
    }

    fn damage(&self) -> Option<String> {
        self.damage.get().cloned()
    }

    fn compact(&self) -> EngineResult<()> {
        guard(&self.damage, || self.spaces.iter().try_for_each(|s| s.major_compact()))
    }
}

struct FjallView {
    snapshot: ::fjall::Snapshot,
    spaces: Arc<Vec<Keyspace>>,
    damage: Damage,
}

impl FjallView {
    fn range(&self, space: Space, range: KeyRange) -> ::fjall::Iter {
        self.snapshot.range(&self.spaces[space.0], (range.start, range.end))
    }
}

/// A scan that ends with the first error.
struct Items<'a, I> {
    iter: Option<I>,
    damage: &'a Damage,
}

impl<I: Iterator<Item = Guard>> Iterator for Items<'_, I> {
    type Item = EngineResult<(Bytes, Bytes)>;

    fn next(&mut self) -> Option<Self::Item> {
        let iter = self.iter.as_mut()?;
        let item = guard(self.damage, || iter.next().map(Guard::into_inner).transpose()).transpose()?;
        if item.is_err() {
            self.iter = None;
        }
        Some(item.map(|(k, v)| (k.into(), v.into())))
    }
}

impl View for FjallView {
    fn get(&self, space: Space, key: &[u8]) -> EngineResult<Option<Bytes>> {
        if key.is_empty() || key.len() > MAX_KEY {
            return Ok(None);
        }
        let found = guard(&self.damage, || self.snapshot.get(&self.spaces[space.0], key))?;
        Ok(found.map(Into::into))
    }

    fn scan<'a>(&'a self, space: Space, range: KeyRange, direction: Direction) -> Scan<'a> {
        if range.is_empty() {
            return Box::new(std::iter::empty());
        }
        let iter = self.range(space, range);
        let damage = &self.damage;
        match direction {
            Direction::Forward => Box::new(Items { iter: Some(iter), damage }),
            Direction::Backward => Box::new(Items { iter: Some(iter.rev()), damage }),
        }
    }

    fn count(&self, space: Space, range: KeyRange) -> EngineResult<u64> {
        if range.is_empty() {
            return Ok(0);
        }
        guard(&self.damage, || self.range(space, range).try_fold(0, |n, g| g.key().map(|_| n + 1)))
    }
}
