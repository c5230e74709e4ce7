//! Snapshots on their way in: at most one for each group, a piece at a time, in order.
//!
//! Nothing here trusts the connection: a piece says which snapshot it belongs to and where, and is written only
//! if that is exactly where the file ends. So pieces that come late, twice or from a connection that was given
//! up are refused, and two connections can never mix what they carry.

use super::{
    Descriptor, MAX_SNAPSHOT_BYTES, PIECE_MAX,
    file::{SYNC_EVERY, verify},
    file_name, remove,
};
use crate::{
    GroupId, GroupStatus, NodeId, Position,
    bug::{Bug, Bugs},
};
use photon_rt::{
    disk::{Disk, DiskFile},
    time::{Duration, Instant, now},
};
use raft::eraftpb::{Message, MessageType};
use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Why an announcement or a piece was not taken. The connection that brought it should end.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// This node runs no such group.
    #[error("no such group runs here")]
    Group,
    /// Its sender no longer leads, or this is no announcement of a snapshot.
    #[error("it does not announce a snapshot of the leader")]
    Stale,
    /// It is longer than a snapshot may be.
    #[error("it is too long")]
    Size,
    /// Another snapshot is on its way.
    #[error("another snapshot is on its way")]
    Other,
    /// The piece does not begin where what is here ends, or goes beyond what was announced.
    #[error("a piece of {len} bytes at {at} does not follow {have} of {size}")]
    Place {
        /// Where it begins.
        at: u64,
        /// Its length.
        len: usize,
        /// What is here.
        have: u64,
        /// What was announced.
        size: u64,
    },
    /// The piece's checksum is wrong.
    #[error("the checksum of a piece is wrong")]
    Piece,
    /// The whole is not what was announced; it is thrown away.
    #[error("the snapshot is not the one that was announced: {0}")]
    Damaged(String),
    /// The disk failed; what came is thrown away.
    #[error("cannot keep a snapshot: {0}")]
    Io(#[from] io::Error),
}

/// What is wanted after an announcement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Pieces of this snapshot, from an offset up to its end.
    From {
        /// Which it is.
        id: u64,
        /// Where to go on.
        at: u64,
        /// Where it ends.
        size: u64,
    },
    /// Nothing: all that it holds is here already.
    Nothing,
}

/// What nothing was added to for so long is thrown away.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(600);

/// Checksum of a piece.
pub(crate) fn piece_sum(bytes: &[u8]) -> u32 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

struct Incoming {
    at: Position,
    what: Descriptor,
    name: String,
    file: Box<dyn DiskFile>,
    have: u64,
    synced: u64,
    touched: Instant,
    /// The announcement, to be stepped when all is here.
    message: Message,
}

/// All snapshots on their way in.
pub(crate) struct Receiver {
    disk: Arc<dyn Disk>,
    incoming: Mutex<BTreeMap<GroupId, Arc<Mutex<Incoming>>>>,
    bugs: Bugs,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Receiver {
    /// Begins without any: removes what an earlier run left.
    pub(crate) fn new(disk: Arc<dyn Disk>, bugs: Bugs) -> io::Result<Receiver> {
        super::tidy(&*disk)?;
        Ok(Receiver { disk, incoming: Mutex::default(), bugs })
    }

    /// `from` announces a snapshot of `group`, whose state here is `status`.
    pub(crate) fn announce(
        &self,
        from: NodeId,
        group: GroupId,
        message: Message,
        status: Option<GroupStatus>,
    ) -> Result<Next, Refusal> {
        let status = status.ok_or(Refusal::Group)?;
        let fresh = message.get_msg_type() == MessageType::MsgSnapshot
            && message.from == from.0
            && message.term >= status.term;
        let what =
            Descriptor::decode(&message.get_snapshot().data).filter(|_| fresh).ok_or(Refusal::Stale)?;
        if what.size > MAX_SNAPSHOT_BYTES {
            return Err(Refusal::Size);
        }
        let meta = message.get_snapshot().get_metadata();
        let at = Position { index: meta.index, term: meta.term };
        // At the very commit index it may be wanted: by one that lost its state, not its log.
        if at.index < status.commit {
            return Ok(Next::Nothing);
        }
        let mut all = lock(&self.incoming);
        if let Some(known) = all.get(&group) {
            // Busy with a piece of another connection, or with verifying what came: nobody waits for that.
            let Ok(mut i) = known.try_lock() else { return Err(Refusal::Other) };
            let same = (i.what, i.at) == (what, at);
            if same || self.bugs.on(Bug::MixedSnapshots) {
                (i.message, i.what, i.at, i.touched) = (message, what, at, now());
                return Ok(Next::From { id: what.id, at: i.have.min(what.size), size: what.size });
            }
        }
        if let Some(old) = all.remove(&group) {
            remove(&*self.disk, &lock(&old).name);
        }
        // Not the sender's number alone: who announces one again after it was thrown away starts a new file.
        let name = format!("snap-in-{:016x}-{:016x}", group.0, photon_rt::entropy::u64());
        let file = self.disk.create(&name)?;
        let i = Incoming { at, what, name, file, have: 0, synced: 0, touched: now(), message };
        all.insert(group, Arc::new(Mutex::new(i)));
        Ok(Next::From { id: what.id, at: 0, size: what.size })
    }

    fn find(&self, group: GroupId, id: u64) -> Result<Arc<Mutex<Incoming>>, Refusal> {
        let found = lock(&self.incoming).get(&group).cloned().ok_or(Refusal::Other)?;
        let same = lock(&found).what.id == id;
        if same { Ok(found) } else { Err(Refusal::Other) }
    }

    /// Writes a piece; how much is here then.
    pub(crate) fn piece(
        &self,
        group: GroupId,
        id: u64,
        at: u64,
        bytes: &[u8],
        sum: u32,
    ) -> Result<u64, Refusal> {
        let found = self.find(group, id)?;
        let mut i = lock(&found);
        if i.what.id != id {
            return Err(Refusal::Other);
        }
        let (have, size, len) = (i.have, i.what.size, bytes.len());
        let follows = at == have || self.bugs.on(Bug::PieceAnywhere);
        if !follows || len == 0 || len > PIECE_MAX || len as u64 > size - have.min(size) {
            return Err(Refusal::Place { at, len, have, size });
        }
        if piece_sum(bytes) != sum {
            return Err(Refusal::Piece);
        }
        i.touched = now();
        let written = i.file.write_at(have, bytes).and_then(|()| {
            i.have += len as u64;
            if i.have - i.synced < SYNC_EVERY {
                return Ok(());
            }
            i.synced = i.have;
            i.file.sync_data()
        });
        match written {
            Ok(()) => Ok(i.have),
            Err(e) => {
                drop(i);
                self.forget(group, &found);
                Err(e.into())
            }
        }
    }

    /// All pieces are here: verifies the whole, makes it durable, and gives the message that may now be stepped.
    pub(crate) fn finish(&self, group: GroupId, id: u64) -> Result<Message, Refusal> {
        let found = self.find(group, id)?;
        let i = lock(&found);
        let (have, size) = (i.have, i.what.size);
        if i.what.id != id || have != size {
            return Err(Refusal::Place { at: have, len: 0, have, size });
        }
        let whole = || {
            if !self.bugs.on(Bug::SnapshotNotSynced) {
                i.file.sync_data()?;
            }
            match verify(&*i.file) {
                Ok(got) if got == (i.at, i.what.sum) => {}
                Ok(_) => return Err(Refusal::Damaged("it is another one".into())),
                Err(why) => return Err(Refusal::Damaged(why)),
            }
            let name = file_name(group, i.at.index);
            if self.disk.open(&name).is_ok() {
                // One of this position came before it, and may be in use.
                remove(&*self.disk, &i.name);
            } else {
                self.disk.rename(&i.name, &name)?;
            }
            self.disk.sync_dir()?;
            Ok(i.message.clone())
        };
        let done = whole();
        drop(i);
        // Under its new name, if all went well, it is no longer this one's to remove.
        self.forget(group, &found);
        done
    }

    /// Throws away what nobody needs or goes on with: what the group has otherwise by now, or that of a group
    /// that is gone. True when anything is left.
    pub(crate) fn sweep(&self, now: Instant, status: impl Fn(GroupId) -> Option<GroupStatus>) -> bool {
        let all: Vec<_> = lock(&self.incoming).iter().map(|(g, i)| (*g, i.clone())).collect();
        for (group, incoming) in all {
            let useless = match (incoming.try_lock(), status(group)) {
                (Ok(i), Some(s)) => s.commit > i.at.index || now.duration_since(i.touched) > FORGOTTEN_AFTER,
                (Ok(_), None) => true,
                (Err(_), _) => false, // it is being written to
            };
            if useless {
                self.forget(group, &incoming);
            }
        }
        !lock(&self.incoming).is_empty()
    }

    /// Throws away what came, unless another has taken its place meanwhile.
    fn forget(&self, group: GroupId, which: &Arc<Mutex<Incoming>>) {
        let mut all = lock(&self.incoming);
        if all.get(&group).is_some_and(|i| Arc::ptr_eq(i, which)) {
            all.remove(&group);
        }
        drop(all);
        remove(&*self.disk, &lock(which).name);
    }
}
