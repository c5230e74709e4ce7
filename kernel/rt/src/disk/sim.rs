//! A disk in memory, with the failures of real ones, all drawn from one seed.
//!
//! It keeps, per file, the bytes that programs see and the bytes that are surely on the platter, with
//! the writes between the two. [`SimDisk::power_loss`] lets any part of those writes survive, sector
//! by sector and in any order, and of the un-synced changes of names a prefix (file systems keep
//! their journal in order). Handles opened before a power loss or a [`SimDisk::kill`] are dead.

use super::{Disk, DiskFile};
use crate::entropy::Rng;
use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Unit in which a write survives or does not.
pub const SECTOR: u64 = 512;

/// The disk. Clones are the same disk.
#[derive(Clone)]
pub struct SimDisk(Arc<Mutex<State>>);

#[derive(Clone, Debug)]
enum Change {
    Write { offset: u64, data: Vec<u8> },
    Truncate { len: u64 },
    Extend { len: u64 },
}

#[derive(Default)]
struct Inode {
    durable: Vec<u8>,
    current: Vec<u8>,
    pending: Vec<Change>,
}

#[derive(Clone)]
enum NameChange {
    Link(String, u64),
    Unlink(String),
    Rename(String, String),
}

struct State {
    rng: Rng,
    inodes: BTreeMap<u64, Inode>,
    next_inode: u64,
    names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    pending_names: Vec<NameChange>,
    generation: u64,
    off: bool,
    /// Changes and syncs still allowed before the power goes.
    cut_after: Option<u64>,
    operations: u64,
    failing_syncs: u32,
    capacity: Option<u64>,
}

fn power_off() -> io::Error {
    io::Error::other("the simulated power is off")
}

fn apply_names(names: &mut BTreeMap<String, u64>, change: &NameChange) {
    match change {
        NameChange::Link(name, inode) => {
            names.insert(name.clone(), *inode);
        }
        NameChange::Unlink(name) => {
            names.remove(name);
        }
        NameChange::Rename(from, to) => {
            if let Some(inode) = names.remove(from) {
                names.insert(to.clone(), inode);
            }
        }
    }
}

fn apply_bytes(content: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Write { offset, data } => {
            let end = *offset as usize + data.len();
            if content.len() < end {
                content.resize(end, 0);
            }
            content[*offset as usize..end].copy_from_slice(data);
        }
        Change::Truncate { len } => content.resize(*len as usize, 0),
        Change::Extend { len } => content.resize((*len as usize).max(content.len()), 0),
    }
}

impl Inode {
    fn change(&mut self, change: Change) {
        apply_bytes(&mut self.current, &change);
        self.pending.push(change);
    }

    /// Lets a part of the un-synced writes reach the platter.
    fn lose(&mut self, rng: &mut Rng) {
        // Most crashes are mild (nothing or everything was written back); the rest tear.
        let mode = rng.below(4);
        for change in std::mem::take(&mut self.pending) {
            match (&change, mode) {
                (_, 0) => {}
                (_, 1) => apply_bytes(&mut self.durable, &change),
                (Change::Write { offset, data }, _) => {
                    let mut at = 0;
                    while at < data.len() {
                        let here = offset + at as u64;
                        let n = ((SECTOR - here % SECTOR) as usize).min(data.len() - at);
                        if rng.percent(50) {
                            let part = Change::Write { offset: here, data: data[at..at + n].to_vec() };
                            apply_bytes(&mut self.durable, &part);
                        }
                        at += n;
                    }
                }
                _ => {
                    if rng.percent(50) {
                        apply_bytes(&mut self.durable, &change);
                    }
                }
            }
        }
        self.current = self.durable.clone();
    }
}

impl State {
    /// Counts one change or sync; the power may go before it happens.
    fn operation(&mut self) -> io::Result<()> {
        if self.off {
            return Err(power_off());
        }
        if let Some(left) = &mut self.cut_after {
            if *left == 0 {
                self.off = true;
                return Err(power_off());
            }
            *left -= 1;
        }
        self.operations += 1;
        Ok(())
    }

    fn used(&self) -> u64 {
        self.inodes.values().map(|i| i.current.len() as u64).sum()
    }

    /// Refuses growth by `more` bytes on a full disk.
    fn room(&self, more: u64) -> io::Result<()> {
        match self.capacity {
            Some(capacity) if more > 0 && self.used() + more > capacity => {
                Err(io::ErrorKind::StorageFull.into())
            }
            _ => Ok(()),
        }
    }

    fn name(&mut self, change: NameChange) {
        apply_names(&mut self.names, &change);
        self.pending_names.push(change);
        self.forget_unreachable();
    }

    fn forget_unreachable(&mut self) {
        // An inode stays while a name, durable or not, may lead to it.
        let (names, durable, pending) = (&self.names, &self.durable_names, &self.pending_names);
        self.inodes.retain(|id, _| {
            names.values().any(|i| i == id)
                || durable.values().any(|i| i == id)
                || pending.iter().any(|c| matches!(c, NameChange::Link(_, i) if i == id))
        });
    }
}

impl SimDisk {
    /// An empty disk whose failures follow from `seed`.
    pub fn new(seed: u64) -> Self {
        SimDisk(Arc::new(Mutex::new(State {
            rng: Rng::new(seed),
            inodes: BTreeMap::new(),
            next_inode: 1,
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            pending_names: Vec::new(),
            generation: 0,
            off: false,
            cut_after: None,
            operations: 0,
            failing_syncs: 0,
            capacity: None,
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The power goes and comes back: what was not synced survives in part. Old handles are dead.
    pub fn power_loss(&self) {
        let mut s = self.state();
        let s = &mut *s;
        for inode in s.inodes.values_mut() {
            inode.lose(&mut s.rng);
        }
        let keep = s.rng.below(s.pending_names.len() as u64 + 1) as usize;
        for change in s.pending_names.drain(..).take(keep) {
            apply_names(&mut s.durable_names, &change);
        }
        s.names = s.durable_names.clone();
        s.forget_unreachable();
        s.generation += 1;
        s.off = false;
        s.cut_after = None;
        s.failing_syncs = 0;
    }

    /// The process dies, the machine runs on: nothing is lost, old handles are dead.
    pub fn kill(&self) {
        let mut s = self.state();
        s.generation += 1;
        s.off = false;
        s.cut_after = None;
        s.failing_syncs = 0;
    }

    /// After `n` more changes or syncs everything fails until [`SimDisk::power_loss`] or
    /// [`SimDisk::kill`].
    pub fn cut_after(&self, n: u64) {
        self.state().cut_after = Some(n);
    }

    /// True while everything fails because of [`SimDisk::cut_after`].
    pub fn is_off(&self) -> bool {
        self.state().off
    }

    /// How many changes and syncs there were.
    pub fn operations(&self) -> u64 {
        self.state().operations
    }

    /// The next `n` syncs of files fail, and as on real kernels the data that they should have
    /// written is then taken for clean: a later sync succeeds without writing it.
    pub fn fail_syncs(&self, n: u32) {
        self.state().failing_syncs = n;
    }

    /// From now on files hold at most this many bytes in total.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.state().capacity = bytes;
    }

    /// Bytes held by files now.
    pub fn used(&self) -> u64 {
        self.state().used()
    }

    /// Turns one bit of a file around, on the platter and in the cache. False when there is no such
    /// byte.
    pub fn flip_bit(&self, name: &str, byte: u64, bit: u8) -> bool {
        let mut s = self.state();
        let Some(inode) = s.names.get(name).copied() else { return false };
        let Some(inode) = s.inodes.get_mut(&inode) else { return false };
        let at = byte as usize;
        match (inode.current.get_mut(at), inode.durable.get_mut(at)) {
            (Some(c), Some(d)) => {
                *c ^= 1 << (bit % 8);
                *d ^= 1 << (bit % 8);
                true
            }
            _ => false,
        }
    }
}

impl Disk for SimDisk {
    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let s = self.state();
        if s.off {
            return Err(power_off());
        }
        let inode = *s.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(Box::new(SimFile { disk: self.clone(), inode, generation: s.generation }))
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let mut s = self.state();
        s.operation()?;
        let inode = match s.names.get(name).copied() {
            Some(inode) => {
                if let Some(i) = s.inodes.get_mut(&inode) {
                    i.change(Change::Truncate { len: 0 });
                }
                inode
            }
            None => {
                let inode = s.next_inode;
                s.next_inode += 1;
                s.inodes.insert(inode, Inode::default());
                s.name(NameChange::Link(name.to_string(), inode));
                inode
            }
        };
        Ok(Box::new(SimFile { disk: self.clone(), inode, generation: s.generation }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut s = self.state();
        s.operation()?;
        if !s.names.contains_key(from) {
            return Err(io::ErrorKind::NotFound.into());
        }
        s.name(NameChange::Rename(from.to_string(), to.to_string()));
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut s = self.state();
        s.operation()?;
        if !s.names.contains_key(name) {
            return Err(io::ErrorKind::NotFound.into());
        }
        s.name(NameChange::Unlink(name.to_string()));
        Ok(())
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let s = self.state();
        if s.off { Err(power_off()) } else { Ok(s.names.keys().cloned().collect()) }
    }

    fn sync_dir(&self) -> io::Result<()> {
        let mut s = self.state();
        s.operation()?;
        s.durable_names = s.names.clone();
        s.pending_names.clear();
        s.forget_unreachable();
        Ok(())
    }
}

struct SimFile {
    disk: SimDisk,
    inode: u64,
    generation: u64,
}

impl SimFile {
    fn with<T>(&self, change: bool, f: impl FnOnce(&mut State, u64) -> io::Result<T>) -> io::Result<T> {
        let mut s = self.disk.state();
        if s.generation != self.generation || s.off {
            return Err(power_off());
        }
        if change {
            s.operation()?;
        }
        f(&mut s, self.inode)
    }

    fn inode(state: &mut State, inode: u64) -> io::Result<&mut Inode> {
        // A file that was removed while open: nobody can see its bytes any more.
        state.inodes.get_mut(&inode).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn grow(state: &mut State, inode: u64, end: u64) -> io::Result<()> {
        let have = Self::inode(state, inode)?.current.len() as u64;
        state.room(end.saturating_sub(have))
    }
}

impl DiskFile for SimFile {
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.with(true, |s, inode| {
            Self::grow(s, inode, offset + data.len() as u64)?;
            Self::inode(s, inode)?.change(Change::Write { offset, data: data.to_vec() });
            Ok(())
        })
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<usize> {
        self.with(false, |s, inode| {
            let have = &Self::inode(s, inode)?.current;
            let from = (offset as usize).min(have.len());
            let n = out.len().min(have.len() - from);
            out[..n].copy_from_slice(&have[from..from + n]);
            Ok(n)
        })
    }

    fn len(&self) -> io::Result<u64> {
        self.with(false, |s, inode| Ok(Self::inode(s, inode)?.current.len() as u64))
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.with(true, |s, inode| {
            Self::inode(s, inode)?.change(Change::Truncate { len });
            Ok(())
        })
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.with(true, |s, inode| {
            Self::grow(s, inode, len)?;
            Self::inode(s, inode)?.change(Change::Extend { len });
            Ok(())
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.with(true, |s, inode| {
            let fails = s.failing_syncs > 0;
            s.failing_syncs = s.failing_syncs.saturating_sub(1);
            let inode = Self::inode(s, inode)?;
            let pending = std::mem::take(&mut inode.pending);
            if fails {
                return Err(io::Error::other("the simulated sync failed"));
            }
            for change in &pending {
                apply_bytes(&mut inode.durable, change);
            }
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::read_all;

    fn content(disk: &SimDisk, name: &str) -> Option<Vec<u8>> {
        disk.open(name).ok().map(|f| read_all(&*f, 1 << 20).expect("read"))
    }

    #[test]
    fn what_was_synced_survives_and_the_rest_may_not() {
        let (mut kept, mut lost, mut torn) = (0, 0, 0);
        for seed in 0..200 {
            let disk = SimDisk::new(seed);
            let f = disk.create("f").expect("create");
            f.write_at(0, &[1; 2048]).expect("write");
            f.sync_data().expect("sync");
            disk.sync_dir().expect("sync");
            f.write_at(0, &[2; 2048]).expect("write");
            disk.power_loss();
            assert!(f.len().is_err(), "old handles are dead");
            let got = content(&disk, "f").expect("the name was synced");
            assert_eq!(got.len(), 2048);
            for sector in got.chunks(SECTOR as usize) {
                assert!(sector.iter().all(|b| *b == sector[0]), "a sector is never torn");
            }
            match got.iter().map(|b| u64::from(*b)).sum::<u64>() {
                2048 => lost += 1,
                4096 => kept += 1,
                _ => torn += 1,
            }
        }
        assert!(kept > 10 && lost > 10 && torn > 10, "kept {kept}, lost {lost}, torn {torn}");
    }

    #[test]
    fn a_name_that_was_not_synced_may_vanish() {
        let vanished = (0..50)
            .filter(|seed| {
                let disk = SimDisk::new(*seed);
                disk.create("f").expect("create").sync_data().expect("sync");
                disk.power_loss();
                content(&disk, "f").is_none()
            })
            .count();
        assert!((5..45).contains(&vanished), "{vanished}");
    }

    #[test]
    fn a_failed_sync_is_not_repaired_by_the_next() {
        let disk = SimDisk::new(1);
        let f = disk.create("f").expect("create");
        disk.sync_dir().expect("sync");
        f.write_at(0, b"data").expect("write");
        disk.fail_syncs(1);
        f.sync_data().expect_err("fails once");
        f.sync_data().expect("and then lies");
        disk.power_loss();
        assert_eq!(content(&disk, "f").expect("name"), b"");
    }

    #[test]
    fn a_full_disk_refuses_growth_only() {
        let disk = SimDisk::new(1);
        let f = disk.create("f").expect("create");
        f.write_at(0, &[0; 100]).expect("write");
        disk.set_capacity(Some(100));
        f.write_at(0, &[1; 100]).expect("in place");
        assert_eq!(f.write_at(1, &[1; 100]).map_err(|e| e.kind()), Err(io::ErrorKind::StorageFull));
        assert_eq!(f.allocate(101).map_err(|e| e.kind()), Err(io::ErrorKind::StorageFull));
        disk.set_capacity(None);
        f.allocate(101).expect("room again");
        assert_eq!(disk.used(), 101);
    }

    #[test]
    fn the_power_can_go_at_a_chosen_operation() {
        let disk = SimDisk::new(1);
        disk.cut_after(2);
        let f = disk.create("f").expect("first");
        f.write_at(0, b"x").expect("second");
        f.sync_data().expect_err("third");
        assert!(disk.is_off() && disk.open("f").is_err());
        disk.power_loss();
        assert!(!disk.is_off());
        assert_eq!(disk.operations(), 2);
    }

    #[test]
    fn bits_flip() {
        let disk = SimDisk::new(1);
        let f = disk.create("f").expect("create");
        f.write_at(0, &[0; 4]).expect("write");
        f.sync_data().expect("sync");
        assert!(disk.flip_bit("f", 2, 3) && !disk.flip_bit("f", 9, 0) && !disk.flip_bit("g", 0, 0));
        assert_eq!(content(&disk, "f").expect("read"), [0, 0, 8, 0]);
    }
}
