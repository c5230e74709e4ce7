//! The snapshot file: a whole state, to be kept elsewhere and restored into an empty folder.
//!
//! etcd's file is a bbolt database; ours holds our own records, in etcd's framing: a multiple of 512
//! bytes, then the SHA-256 of all before. `etcdctl snapshot save` checks that size, so it can fetch the
//! file from us as from etcd; `photon chainfire snapshot status|restore` read it.
//!
//! | bytes | |
//! |---|---|
//! | 512 | [`MAGIC`], zeros |
//! | … | records as the machine moves them between members (`machine::take_record`) |
//! | 1 | [`END`] |
//! | … | zeros up to a multiple of 512 |
//! | 32 | SHA-256 |

use crate::{
    EtcdResult,
    machine::{Fill, Record, dump, take_record},
    model::{Reader, hash::hash_kv, layout::*},
};
use bytes::{Bytes, BytesMut};
use photon_base::{Code, Error, Result};
use photon_kv::engine::{Engine, FjallEngine, FjallOptions, KeyRange, View};
use photon_raft::{MachineError, Position};
use sha2::{Digest, Sha256};
use std::{
    io::{ErrorKind, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    sync::Arc,
};

/// How a file begins; the number is the version of the format.
const MAGIC: &[u8] = b"photon-chainfire-snapshot 1\n";

/// Follows the last record. No keyspace has this number.
const END: u8 = 0xff;

/// Everything before the checksum is a multiple of this.
const BLOCK: usize = 512;

/// Bytes read from a file at a time.
const READ: usize = 1 << 20;

/// The pieces of a snapshot of `view`, the checksum last.
pub(crate) fn pieces(view: Arc<dyn View>) -> impl Iterator<Item = std::result::Result<Bytes, MachineError>> {
    let mut head = MAGIC.to_vec();
    head.resize(BLOCK, 0);
    let mut body = std::iter::once(Ok(Bytes::from(head))).chain(dump(view));
    let (mut sum, mut size, mut ended, mut done) = (Sha256::new(), 0, false, false);
    std::iter::from_fn(move || match body.next() {
        Some(Ok(b)) => {
            size += b.len();
            sum.update(&b);
            Some(Ok(b))
        }
        Some(Err(e)) => Some(Err(e)),
        None if !ended => {
            ended = true;
            let mut end = vec![0; BLOCK - size % BLOCK];
            end[0] = END;
            sum.update(&end);
            Some(Ok(end.into()))
        }
        None if !done => {
            done = true;
            Some(Ok(Bytes::copy_from_slice(&sum.clone().finalize())))
        }
        None => None,
    })
}

/// How many bytes [`pieces`] gives, without the checksum: reads everything once.
pub(crate) fn size(view: Arc<dyn View>) -> std::result::Result<u64, MachineError> {
    let mut n = BLOCK as u64;
    for piece in dump(view) {
        n += piece?.len() as u64;
    }
    Ok(n + (BLOCK as u64 - n % BLOCK as u64))
}

/// What a snapshot file holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotStatus {
    /// Digest of the keys and their history (etcd's HashKV at the file's revision).
    pub hash: u32,
    /// Revision.
    pub revision: i64,
    /// Versions of keys.
    pub total_keys: u64,
    /// Bytes of the file.
    pub total_size: u64,
}

fn damaged(path: &Path, why: impl std::fmt::Display) -> Error {
    Error::new(Code::Invalid, format!("{} is not a usable snapshot", path.display()))
        .why(why)
        .hint("take another: photon chainfire snapshot save FILE")
}

/// A file whose checksum was found right, read again for its records.
struct Records {
    file: photon_rt::fs::File,
    /// Bytes before the checksum that were not read yet.
    left: u64,
    buffer: BytesMut,
}

/// Opens a file and checks form and checksum; answers its size too.
fn open(path: &Path) -> Result<(Records, u64)> {
    let failed = |e: std::io::Error| {
        let code = if e.kind() == ErrorKind::NotFound { Code::NotFound } else { Code::Internal };
        Error::new(code, format!("cannot read {}", path.display())).why(e)
    };
    let mut file = photon_rt::fs::open(path).map_err(failed)?;
    let size = file.metadata().map_err(failed)?.len();
    if size % BLOCK as u64 != 32 || size < 2 * BLOCK as u64 {
        return Err(damaged(path, "its size shows that the checksum is missing"));
    }
    let mut head = [0; BLOCK];
    file.read_exact(&mut head).map_err(failed)?;
    if !head.starts_with(MAGIC) {
        return Err(damaged(path, "it was not made by ChainFire, or by a newer one"));
    }
    let mut sum = Sha256::new();
    sum.update(head);
    let mut body = (&mut file).take(size - 32 - BLOCK as u64);
    let mut buffer = vec![0; READ];
    loop {
        match body.read(&mut buffer).map_err(failed)? {
            0 => break,
            n => sum.update(&buffer[..n]),
        }
    }
    let mut want = [0; 32];
    file.read_exact(&mut want).map_err(failed)?;
    if want[..] != sum.finalize()[..] {
        return Err(damaged(path, "the checksum does not fit the content"));
    }
    file.seek(SeekFrom::Start(BLOCK as u64)).map_err(failed)?;
    Ok((Records { file, left: size - 32 - BLOCK as u64, buffer: BytesMut::new() }, size))
}

impl Records {
    fn next(&mut self) -> std::result::Result<Option<Record>, MachineError> {
        loop {
            if self.buffer.first() == Some(&END) {
                return Ok(None);
            }
            if let Some(record) = take_record(&mut self.buffer)? {
                return Ok(Some(record));
            }
            let n = READ.min(usize::try_from(self.left).unwrap_or(READ));
            if n == 0 {
                return Err(MachineError("the file ends within a record".into()));
            }
            let at = self.buffer.len();
            self.buffer.resize(at + n, 0);
            self.file.read_exact(&mut self.buffer[at..]).map_err(|e| MachineError(e.to_string()))?;
            self.left -= n as u64;
        }
    }

    /// Writes all records; the state begins a new log, at its revision.
    fn fill(mut self, engine: &dyn Engine) -> std::result::Result<State, MachineError> {
        let mut fill = Fill::new(engine);
        while let Some(record) = self.next()? {
            fill.add(record)?;
        }
        fill.finish(Position::default())
    }
}

/// Reads a whole file and tells what it holds. Blocks.
pub fn status(path: &Path) -> Result<SnapshotStatus> {
    let (records, total_size) = open(path)?;
    let dir = Scratch::new()?;
    let engine = FjallEngine::open(&dir.0, &SPACES, FjallOptions::default())
        .map_err(|e| Error::internal("no room to look at the snapshot").why(e))?;
    let state = records.fill(&engine).map_err(|e| damaged(path, e))?;
    describe(&engine, &state, total_size).map_err(|e| damaged(path, e))
}

fn describe(engine: &dyn Engine, state: &State, total_size: u64) -> EtcdResult<SnapshotStatus> {
    let view = engine.view();
    let reader = Reader { view: &*view, revision: state.revision, compacted: state.compacted };
    let (hash, revision) = hash_kv(&reader, 0)?;
    Ok(SnapshotStatus { hash, revision, total_keys: view.count(DATA, KeyRange::all())?, total_size })
}

/// A folder that goes when this does.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Scratch> {
        let dir = std::env::temp_dir().join(format!("photon-snapshot-{:x}", photon_rt::entropy::u64()));
        photon_rt::fs::private_dir(&dir)?;
        Ok(Scratch(dir))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = photon_rt::fs::remove_dir_all(&self.0); // in the system's folder for what may be left
    }
}

/// Makes a ChainFire folder out of a snapshot; the folder must not hold one. Blocks.
///
/// What was stored comes back: keys with their history and revisions, leases (with their full time),
/// users, roles, alarms. The log begins anew, so the result is a member of a new cluster of one.
pub fn restore(path: &Path, data_dir: &Path) -> Result<SnapshotStatus> {
    let (records, total_size) = open(path)?;
    let state_dir = data_dir.join("state");
    for taken in [&state_dir, &data_dir.join("log")] {
        if photon_rt::fs::metadata(taken).is_ok() {
            return Err(Error::new(Code::Conflict, format!("{} exists", taken.display()))
                .why("a snapshot is only restored where nothing is lost by it")
                .hint("choose an empty folder with --data-dir"));
        }
    }
    photon_rt::fs::private_dir(data_dir)?;
    let engine = FjallEngine::open(&state_dir, &SPACES, FjallOptions::default())
        .map_err(|e| Error::internal("the new folder cannot be written").why(e))?;
    let state = records.fill(&engine).map_err(|e| damaged(path, e))?;
    describe(&engine, &state, total_size)
        .map_err(|e| Error::internal("the restored state cannot be read").why(e))
}
