//! Snapshots: how chunks become one byte string, and the file that makes installing one crash-safe.
//!
//! A received snapshot is first a durable file, then a state frame in the log, and only then the
//! state machine's state. So whatever a crash leaves of the machine, the log is the authority and the
//! file lets the installation be repeated; it is removed when the machine has it.

use crate::{GroupId, MachineError, Position, StoreError, codec};
use bytes::Bytes;
use crc_fast::{CrcAlgorithm, checksum};
use photon_rt::disk::{Disk, read_all, replace};

const MAGIC: &[u8; 8] = b"PHOTONSN";

fn prefix(group: GroupId) -> String {
    format!("snap-{:016x}-", group.0)
}

fn file_name(group: GroupId, index: u64) -> String {
    format!("{}{index:016x}", prefix(group))
}

/// Joins chunks, each with its length.
pub(crate) fn join(chunks: impl Iterator<Item = Result<Bytes, MachineError>>) -> Result<Bytes, MachineError> {
    let mut out = Vec::new();
    for chunk in chunks {
        codec::put_bytes(&mut out, &chunk?);
        if out.len() > codec::MAX_SNAPSHOT_BYTES {
            return Err(MachineError(format!(
                "a snapshot above {} bytes cannot be sent yet",
                codec::MAX_SNAPSHOT_BYTES
            )));
        }
    }
    Ok(out.into())
}

/// The chunks that [`join`] joined.
pub(crate) fn split(data: Bytes) -> impl Iterator<Item = Result<Bytes, MachineError>> + Send {
    let mut reader = Some(codec::Reader::new(data));
    std::iter::from_fn(move || {
        let mut r = reader.take()?;
        if r.end().is_ok() {
            return None;
        }
        match r.bytes(codec::MAX_SNAPSHOT_BYTES, "chunk") {
            Ok(chunk) => {
                reader = Some(r);
                Some(Ok(chunk))
            }
            Err(e) => Some(Err(MachineError(format!("the snapshot is damaged: {e}")))),
        }
    })
}

/// Makes a received snapshot durable.
pub(super) fn save(disk: &dyn Disk, group: GroupId, at: Position, data: &[u8]) -> Result<(), StoreError> {
    let mut bytes = Vec::with_capacity(data.len() + 16);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&checksum(CrcAlgorithm::Crc32Iscsi, data).to_le_bytes());
    bytes.extend_from_slice(data);
    replace(disk, &file_name(group, at.index), &bytes)
        .map_err(StoreError::io(format!("store the snapshot of {group} at {}", at.index)))
}

/// The saved snapshot that the log begins after.
pub(crate) fn load(disk: &dyn Disk, group: GroupId, at: Position) -> Result<Bytes, MachineError> {
    let name = file_name(group, at.index);
    let fail = |e: String| MachineError(format!("{name}: {e}"));
    let file = disk.open(&name).map_err(|e| fail(e.to_string()))?;
    let bytes = read_all(&*file, codec::MAX_SNAPSHOT_BYTES as u64 + 16).map_err(|e| fail(e.to_string()))?;
    let valid = bytes.len() >= 16
        && bytes[..8] == *MAGIC
        && bytes[8..16] == checksum(CrcAlgorithm::Crc32Iscsi, &bytes[16..]).to_le_bytes();
    if valid { Ok(Bytes::from(bytes).slice(16..)) } else { Err(fail("the checksum is wrong".into())) }
}

/// True when [`load`] has something to load.
pub(super) fn exists(disk: &dyn Disk, group: GroupId, at: Position) -> bool {
    disk.open(&file_name(group, at.index)).is_ok()
}

/// Removes saved snapshots of a group up to `index`. Leftovers do no harm, so failures are only told.
pub(super) fn discard(disk: &dyn Disk, group: GroupId, index: u64) {
    let Ok(names) = disk.list() else { return };
    for name in names {
        let Some(rest) = name.strip_prefix(&prefix(group)) else { continue };
        let old = rest
            .strip_suffix(".tmp")
            .map_or_else(|| u64::from_str_radix(rest, 16).is_ok_and(|i| i <= index), |_| true);
        if old && let Err(e) = disk.remove(&name) {
            tracing::warn!(file = name, error = %e, "cannot remove an installed snapshot");
        }
    }
}
