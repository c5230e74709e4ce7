//! The snapshot file: a whole state, to be kept elsewhere and restored into an empty folder.
//!
//! etcd's file is a bbolt database; ours holds our own records, in etcd's framing: a multiple of 512
//! bytes, then the SHA-256 of all before. `etcdctl snapshot save` checks that size, so it can fetch the
//! file from us as from etcd; `photon chainfire snapshot status|restore` read it.
//!
//! | bytes | |
//! |---|---|
//! | 512 | [`MAGIC`], zeros |
//! | … | records as the machine moves them between members (`photon_kv::engine::dump`) |
//! | 1 | [`END`] |
//! | … | zeros up to a multiple of 512 |
//! | 32 | SHA-256 |

use crate::{
    EtcdResult,
    cluster::ORIGIN,
    machine::{Fill, dump, fatal},
    model::{Reader, hash::hash_kv, layout::*},
    wire::etcdserverpb::{SnapshotRequest, maintenance_client::MaintenanceClient},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt};
use photon_base::{Code, Error, Result};
use photon_kv::engine::{
    Engine, FjallEngine, FjallOptions, KeyRange, View,
    dump::{Record, take_record},
};
use photon_raft::{MachineError, Position};
use sha2::{Digest, Sha256};
use std::{
    io::{ErrorKind, Read, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
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
    /// The file's checksum.
    sum: String,
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
    let sum = want.iter().map(|b| format!("{b:02x}")).collect();
    Ok((Records { file, left: size - 32 - BLOCK as u64, buffer: BytesMut::new(), sum }, size))
}

impl Records {
    fn next(&mut self) -> std::result::Result<Option<Record>, MachineError> {
        loop {
            if self.buffer.first() == Some(&END) {
                return Ok(None);
            }
            if let Some(record) = take_record(&mut self.buffer, SPACES.len()).map_err(fatal)? {
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
/// users, roles. The log and the members begin anew, and the number of the cluster follows from the file too:
/// several founders restored from the same file are one new cluster, and members of the old one are refused.
pub fn restore(path: &Path, data_dir: &Path) -> Result<SnapshotStatus> {
    let (records, total_size) = open(path)?;
    let sum = records.sum.clone();
    let state_dir = data_dir.join("state");
    for taken in [&state_dir, &data_dir.join("log")] {
        if photon_rt::fs::metadata(taken).is_ok() {
            return Err(Error::new(Code::Conflict, format!("{} exists", taken.display()))
                .why("a snapshot is only restored where nothing is lost by it")
                .hint("choose a folder that is empty"));
        }
    }
    photon_rt::fs::private_dir(data_dir)?;
    let engine = FjallEngine::open(&state_dir, &SPACES, FjallOptions::default())
        .map_err(|e| Error::internal("the new folder cannot be written").why(e))?;
    let state = records.fill(&engine).map_err(|e| damaged(path, e))?;
    // Members of the cluster that the file is from must neither be waited for nor come back.
    crate::recover::begin_anew(&engine, Vec::new())?;
    let origin = format!(" {total_size} {}", sum);
    photon_rt::fs::write_atomic(&data_dir.join(ORIGIN), origin.as_bytes(), 0o600)?;
    describe(&engine, &state, total_size)
        .map_err(|e| Error::internal("the restored state cannot be read").why(e))
}

/// Asks a store without TLS for its snapshot.
pub async fn fetch(url: &str) -> Result<impl Stream<Item = Result<Bytes>> + Unpin + use<>> {
    let away = |e: &dyn std::fmt::Display| Error::unavailable(format!("no snapshot from {url}")).why(e);
    let channel = tonic::transport::Endpoint::from_shared(url.to_string())
        .map_err(|e| Error::invalid("endpoints", "is not a URL").why(e))?
        .connect()
        .await
        .map_err(|e| away(&e))?;
    let mut client = MaintenanceClient::new(channel).max_decoding_message_size(2 * READ);
    let pieces = client.snapshot(SnapshotRequest {}).await.map_err(|e| away(&e.message()))?.into_inner();
    Ok(pieces.map(|p| match p {
        Ok(p) => Ok(p.blob),
        Err(e) => Err(Error::unavailable("the snapshot broke off").why(e.message())),
    }))
}

/// The pieces of a snapshot out of the lines of the JSON gateway.
#[derive(Default)]
pub struct JsonPieces(BytesMut);

impl JsonPieces {
    /// Takes more of the answer; gives the pieces that are whole.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Vec<Bytes>> {
        self.0.extend_from_slice(bytes);
        let mut out = Vec::new();
        while let Some(end) = self.0.iter().position(|b| *b == b'\n') {
            let line = self.0.split_to(end + 1);
            let bad = || Error::unavailable("the answer is not a snapshot").why(Shown(&line));
            let v: serde_json::Value = serde_json::from_slice(&line).map_err(|_| bad())?;
            if let Some(why) = v.pointer("/error/message").or(v.get("message")) {
                return Err(Error::unavailable("the store gives no snapshot").why(why));
            }
            if let Some(blob) = v.pointer("/result/blob").and_then(|b| b.as_str()) {
                out.push(STANDARD.decode(blob).map_err(|_| bad())?.into());
            }
        }
        if self.0.len() > 4 * READ {
            return Err(Error::unavailable("the answer is not a snapshot"));
        }
        Ok(out)
    }
}

/// The beginning of a line, for people.
struct Shown<'a>(&'a [u8]);

impl std::fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.0[..self.0.len().min(200)]))
    }
}

/// Writes a file that appears once it is whole.
pub struct Saver {
    path: PathBuf,
    part: PathBuf,
    file: photon_rt::fs::File,
}

impl Saver {
    /// Begins the file.
    pub fn new(path: &Path) -> Result<Saver> {
        let mut part = path.as_os_str().to_os_string();
        part.push(".part");
        let part = PathBuf::from(part);
        let file = photon_rt::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&part)
            .map_err(|e| unwritten(&part, e))?;
        Ok(Saver { path: path.to_path_buf(), part, file })
    }

    /// Adds a piece.
    pub fn add(&mut self, piece: &[u8]) -> Result<()> {
        self.file.write_all(piece).map_err(|e| unwritten(&self.part, e))
    }

    /// Checks what was written and gives the file its name. Blocks.
    pub fn finish(self) -> Result<SnapshotStatus> {
        let told = status(&self.part)?;
        let failed = |e| unwritten(&self.path, e);
        self.file.sync_all().map_err(failed)?;
        photon_rt::fs::rename(&self.part, &self.path).map_err(failed)?;
        let folder = self.path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        photon_rt::fs::open(folder).and_then(|d| d.sync_all()).map_err(failed)?;
        Ok(told)
    }
}

impl Drop for Saver {
    fn drop(&mut self) {
        let _ = photon_rt::fs::remove_file(&self.part); // gone already when the file is whole
    }
}

fn unwritten(path: &Path, e: std::io::Error) -> Error {
    Error::internal(format!("cannot write {}", path.display())).why(e)
}
