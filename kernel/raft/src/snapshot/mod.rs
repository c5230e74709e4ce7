//! Snapshots as files: made piece by piece beside the state machine, carried piece by piece to a member that
//! lacks what the log no longer holds, and installed piece by piece. Memory is a piece at both ends.
//!
//! A snapshot's life: [`Maker`] writes the chunks of [`crate::Machine::snapshot`] into `snap-out-…`; the Raft
//! message that announces it carries no state, only a [`Descriptor`]; [`Receiver`] writes what comes into
//! `snap-in-…`, verifies the whole, and gives it the name under which [`load`] finds it. Only then is the
//! message stepped. So whatever a crash leaves of the machine, the log is the authority and the file lets
//! the installation be repeated; it is removed when the machine has it.
//!
//! Invariants: a file with its final name is whole and durable; a piece is written only where the file ends,
//! and only into the file of the very snapshot that it is a piece of; `snap-out-` and `snap-in-` files
//! belong to one run of the store and are removed at the next start.
//!
//! | bytes of a file | |
//! |---|---|
//! | 8 | `PHOTONS2` |
//! | 8 + 8 | index and term of what it reflects |
//! | 8 | length of the rest |
//! | 8 | CRC-64/NVME over the rest, then index, term and length |
//! | … | chunks, each behind its length (u32) |
//!
//! All little-endian.

mod file;
mod pace;
mod receive;
#[cfg(test)]
mod tests;

pub use file::Made;
pub(crate) use file::{Maker, load};
pub(crate) use pace::Pace;
pub use receive::{Next, Refusal};
pub(crate) use receive::{Receiver, piece_sum};

use crate::{GroupId, MachineError, NodeId, Position, store};
use bytes::Bytes;
use photon_rt::disk::Disk;
use std::sync::Arc;

/// What [`crate::Machine::snapshot`] yields.
pub type Chunks = Box<dyn Iterator<Item = Result<Bytes, MachineError>> + Send>;

/// Longest snapshot that is announced or taken. Bytes.
pub const MAX_SNAPSHOT_BYTES: u64 = 1 << 40;

/// Longest piece on its way. Bytes.
pub const PIECE_MAX: usize = 256 << 10;

/// Says which file the announced snapshot is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Descriptor {
    /// Drawn when it was made: two snapshots of one position may differ in their bytes.
    pub(crate) id: u64,
    pub(crate) size: u64,
    pub(crate) sum: u64,
}

impl Descriptor {
    /// Bytes of [`Descriptor::encode`].
    pub(crate) const BYTES: usize = 24;

    pub(crate) fn encode(self) -> Bytes {
        let words = [self.id, self.size, self.sum];
        words.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>().into()
    }

    /// None for what no node of this version wrote.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Descriptor> {
        let bytes: &[u8; Self::BYTES] = bytes.try_into().ok()?;
        let at = |i: usize| u64::from_le_bytes(bytes[i..i + 8].try_into().expect("eight bytes"));
        Some(Descriptor { id: at(0), size: at(8), sum: at(16) })
    }
}

/// How carrying a snapshot to a member ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is there, whole, and announced to its driver.
    Sent,
    /// Not all of it; what is there can be continued.
    Broken,
    /// What arrived was not what was announced: this file must not be sent again.
    Damaged,
}

/// A snapshot that a transport is to carry. Dropped without [`Shipment::ended`] it counts as broken.
pub struct Shipment {
    /// To whom.
    pub to: NodeId,
    /// Of which group.
    pub group: GroupId,
    /// The announcement, for the receiver's [`crate::Store::announced`].
    pub message: Bytes,
    /// None when it has ended.
    made: Option<Arc<Made>>,
    tell: Arc<store::Inner>,
}

impl Shipment {
    pub(crate) fn new(
        to: NodeId,
        group: GroupId,
        message: Bytes,
        made: Arc<Made>,
        tell: Arc<store::Inner>,
    ) -> Shipment {
        Shipment { to, group, message, made: Some(made), tell }
    }

    /// Its length.
    pub fn size(&self) -> u64 {
        self.file().descriptor().size
    }

    /// The file, to be read on a thread that may block.
    pub fn file(&self) -> Arc<Made> {
        self.made.clone().expect("it ends by being dropped")
    }

    /// Reports how it ended.
    pub fn ended(mut self, outcome: Outcome) {
        self.tell(outcome);
    }

    fn tell(&mut self, outcome: Outcome) {
        if let Some(made) = self.made.take() {
            self.tell.shipped(self.group, self.to, made, outcome);
        }
    }
}

impl Drop for Shipment {
    fn drop(&mut self) {
        self.tell(Outcome::Broken);
    }
}

fn prefix(group: GroupId) -> String {
    format!("snap-{:016x}-", group.0)
}

fn file_name(group: GroupId, index: u64) -> String {
    format!("{}{index:016x}", prefix(group))
}

/// True when [`load`] has something to load.
pub(crate) fn exists(disk: &dyn Disk, group: GroupId, at: Position) -> bool {
    disk.open(&file_name(group, at.index)).is_ok()
}

/// Removes the received snapshot of exactly this index, which is of no use.
pub(crate) fn reject(disk: &dyn Disk, group: GroupId, index: u64) {
    remove(disk, &file_name(group, index));
}

/// Removes received snapshots of a group up to `index`.
pub(crate) fn discard(disk: &dyn Disk, group: GroupId, index: u64) {
    let Ok(names) = disk.list() else { return };
    let prefix = prefix(group);
    for name in names {
        let at = name.strip_prefix(&prefix).and_then(|rest| u64::from_str_radix(rest, 16).ok());
        if at.is_some_and(|at| at <= index) {
            remove(disk, &name);
        }
    }
}

/// Leftovers do no harm, so failures are only told.
fn remove(disk: &dyn Disk, name: &str) {
    if let Err(e) = disk.remove(name)
        && e.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(file = name, error = %e, "cannot remove a snapshot that is no longer needed");
    }
}

/// Files of an earlier run: half made or half received, of use to nobody.
pub(crate) fn leftovers(disk: &dyn Disk) -> std::io::Result<Vec<String>> {
    let mut names = disk.list()?;
    names.retain(|n| n.starts_with("snap-out-") || n.starts_with("snap-in-"));
    Ok(names)
}

/// Removes [`leftovers`].
pub(crate) fn tidy(disk: &dyn Disk) -> std::io::Result<()> {
    leftovers(disk)?.iter().try_for_each(|n| disk.remove(n))
}
