//! The file: how it is made, verified and read again.

use super::{Chunks, Descriptor, MAX_SNAPSHOT_BYTES, file_name, remove};
use crate::{GroupId, MachineError, Position};
use bytes::Bytes;
use crc_fast::{CrcAlgorithm, Digest};
use photon_rt::disk::{Disk, DiskFile, read_exact_at};
use std::{io, sync::Arc};

const MAGIC: &[u8; 8] = b"PHOTONS2";
const HEADER: u64 = 40;
/// Longest chunk of a state machine: sixteen times what its contract allows.
const CHUNK_MAX: usize = 16 << 20;
/// Written data is synced in portions, so that no sync of the log ever waits for gigabytes.
pub(super) const SYNC_EVERY: u64 = 16 << 20;
/// Read at a time when the whole is verified.
const STEP: usize = 1 << 20;

fn digest() -> Digest {
    Digest::new(CrcAlgorithm::Crc64Nvme)
}

fn close(mut sum: Digest, at: Position, len: u64) -> u64 {
    for v in [at.index, at.term, len] {
        sum.update(&v.to_le_bytes());
    }
    sum.finalize()
}

fn header(at: Position, len: u64, sum: u64) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    for v in [at.index, at.term, len, sum] {
        out.extend_from_slice(&v.to_le_bytes());
    }
    out
}

/// A snapshot being written, chunk by chunk.
pub(crate) struct Maker {
    disk: Arc<dyn Disk>,
    name: String,
    file: Box<dyn DiskFile>,
    at: Position,
    id: u64,
    chunks: Chunks,
    len: u64,
    synced: u64,
    sum: Digest,
    done: bool,
}

impl Maker {
    /// Begins the file of a snapshot of `group` at `at`.
    pub(crate) fn begin(
        disk: Arc<dyn Disk>,
        group: GroupId,
        at: Position,
        chunks: Chunks,
    ) -> Result<Maker, MachineError> {
        let id = photon_rt::entropy::u64();
        let name = format!("snap-out-{:016x}-{id:016x}", group.0);
        let file = disk.create(&name).map_err(|e| MachineError(format!("{name}: {e}")))?;
        Ok(Maker { disk, name, file, at, id, chunks, len: 0, synced: 0, sum: digest(), done: false })
    }

    /// Writes the next chunk and says how many bytes that were; none when all are written.
    pub(crate) fn step(&mut self) -> Result<Option<usize>, MachineError> {
        let chunks = &mut self.chunks;
        let Some(chunk) = crate::applier::guard("snapshot", || chunks.next().transpose())? else {
            return Ok(None);
        };
        if chunk.len() > CHUNK_MAX || self.len + chunk.len() as u64 > MAX_SNAPSHOT_BYTES {
            return Err(MachineError(format!(
                "a snapshot of more than {MAX_SNAPSHOT_BYTES} bytes, or a chunk of {}",
                chunk.len()
            )));
        }
        let mut bytes = Vec::with_capacity(chunk.len() + 4);
        bytes.extend_from_slice(&(chunk.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&chunk);
        self.sum.update(&bytes);
        self.write(HEADER + self.len, &bytes)?;
        self.len += bytes.len() as u64;
        if self.len - self.synced >= SYNC_EVERY {
            self.file.sync_data().map_err(|e| self.fail(&e))?;
            self.synced = self.len;
        }
        Ok(Some(bytes.len()))
    }

    fn fail(&self, e: &io::Error) -> MachineError {
        MachineError(format!("{}: {e}", self.name))
    }

    fn write(&self, at: u64, bytes: &[u8]) -> Result<(), MachineError> {
        self.file.write_at(at, bytes).map_err(|e| self.fail(&e))
    }

    /// All is written: from now on it can be sent.
    pub(crate) fn finish(mut self) -> Result<Made, MachineError> {
        let sum = close(std::mem::replace(&mut self.sum, digest()), self.at, self.len);
        self.write(0, &header(self.at, self.len, sum))?;
        let file = self.disk.open(&self.name).map_err(|e| self.fail(&e))?;
        self.done = true;
        let descriptor = Descriptor { id: self.id, size: HEADER + self.len, sum };
        Ok(Made { disk: self.disk.clone(), name: self.name.clone(), file, at: self.at, descriptor })
    }
}

impl Drop for Maker {
    fn drop(&mut self) {
        if !self.done {
            remove(&*self.disk, &self.name);
        }
    }
}

/// A snapshot that can be sent, to several members at once. Its file goes with it.
pub struct Made {
    disk: Arc<dyn Disk>,
    name: String,
    file: Box<dyn DiskFile>,
    at: Position,
    descriptor: Descriptor,
}

impl Made {
    /// What it reflects.
    pub(crate) fn at(&self) -> Position {
        self.at
    }

    pub(crate) fn descriptor(&self) -> Descriptor {
        self.descriptor
    }

    /// Up to `max` bytes from `offset` on; none at its end. Blocks.
    pub fn read(&self, offset: u64, max: usize) -> io::Result<Bytes> {
        let len = self.descriptor.size.saturating_sub(offset).min(max as u64);
        let mut out = vec![0; len as usize];
        read_exact_at(&*self.file, offset, &mut out)?;
        Ok(out.into())
    }
}

impl std::fmt::Debug for Made {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Made").field("name", &self.name).field("at", &self.at).finish()
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        remove(&*self.disk, &self.name);
    }
}

/// Reads the whole file; what it reflects and its checksum, or why it is damaged.
pub(super) fn verify(file: &dyn DiskFile) -> Result<(Position, u64), String> {
    let mut head = [0; HEADER as usize];
    read_exact_at(file, 0, &mut head).map_err(|e| e.to_string())?;
    let word = |i: usize| u64::from_le_bytes(head[i..i + 8].try_into().expect("eight bytes"));
    let (at, len, sum) = (Position { index: word(8), term: word(16) }, word(24), word(32));
    let whole = file.len().map_err(|e| e.to_string())?;
    if head[..8] != *MAGIC || whole.checked_sub(HEADER) != Some(len) {
        return Err("it is no snapshot, or not a whole one".into());
    }
    let mut got = digest();
    let mut buffer = vec![0; STEP.min(len as usize)];
    let mut read = 0;
    while read < len {
        let n = buffer.len().min((len - read) as usize);
        read_exact_at(file, HEADER + read, &mut buffer[..n]).map_err(|e| e.to_string())?;
        got.update(&buffer[..n]);
        read += n as u64;
    }
    if close(got, at, len) == sum { Ok((at, sum)) } else { Err("the checksum is wrong".into()) }
}

/// Chunks of the received snapshot that the log begins after. It is verified before the first one is told.
pub(crate) fn load(disk: &dyn Disk, group: GroupId, at: Position) -> Result<Chunks, MachineError> {
    let name = file_name(group, at.index);
    let fail = |e: String| MachineError(format!("{name}: {e}"));
    let file = disk.open(&name).map_err(|e| fail(e.to_string()))?;
    let (reflects, _) = verify(&*file).map_err(fail)?;
    if reflects != at {
        return Err(fail(format!("it reflects {reflects:?}, not {at:?}")));
    }
    let end = file.len().map_err(|e| fail(e.to_string()))?;
    let mut offset = HEADER;
    let next = move || -> io::Result<Option<Bytes>> {
        if offset == end {
            return Ok(None);
        }
        let mut len = [0; 4];
        read_exact_at(&*file, offset, &mut len)?;
        let len = u32::from_le_bytes(len) as usize;
        if len > CHUNK_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a chunk is too long"));
        }
        let mut chunk = vec![0; len];
        read_exact_at(&*file, offset + 4, &mut chunk)?;
        offset += 4 + len as u64;
        Ok(Some(chunk.into()))
    };
    let mut next = Some(next);
    Ok(Box::new(std::iter::from_fn(move || match next.as_mut()?() {
        Ok(chunk) => chunk.map(Ok),
        Err(e) => {
            next = None;
            Some(Err(MachineError(format!("a received snapshot: {e}"))))
        }
    })))
}
