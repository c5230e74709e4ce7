//! Files with a durability promise: the trait, the real disk and (in [`sim`]) the simulated one.
//!
//! A [`Disk`] is one flat directory. What the promise is: bytes written are durable once
//! [`DiskFile::sync_data`] returned; a name (created, renamed, removed) is durable once
//! [`Disk::sync_dir`] returned. A crash may keep any part of what was not synced, in any order.
//! A failed sync says nothing about the past and the next successful one does not repair it: the
//! owner of the file must stop writing and recover from what is on disk ("fsyncgate", Rebello et
//! al., USENIX ATC 2020).
//!
//! Considered: a memory-mapped or io_uring file; both are faster at queue depths that one log thread
//! with one sync per turn never has.

pub mod sim;

pub use sim::SimDisk;

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

/// One flat directory of files.
pub trait Disk: Send + Sync + 'static {
    /// Opens an existing file for reading and writing.
    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>>;
    /// Makes an empty file; an existing one of that name is emptied.
    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>>;
    /// Gives `from` the name `to`, replacing what had it.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a name.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// All names, sorted.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Makes all changes of names durable.
    fn sync_dir(&self) -> io::Result<()>;
}

/// An open file.
pub trait DiskFile: Send + Sync + 'static {
    /// Writes all of `data` at `offset`, growing the file as needed.
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()>;
    /// Reads up to `out.len()` bytes; less only at the end of the file.
    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<usize>;
    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// True when the file holds nothing.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Cuts the file to `len` bytes.
    fn truncate(&self, len: u64) -> io::Result<()>;
    /// Grows the file to at least `len` bytes of zeros and reserves the space, so that later writes
    /// within neither fail for lack of it nor make `sync_data` wait for the file system's journal
    /// (measured on ext4: 0.15 ms instead of 2 ms).
    fn allocate(&self, len: u64) -> io::Result<()>;
    /// Makes the content and the length durable.
    fn sync_data(&self) -> io::Result<()>;
}

/// Reads the whole of an open file, refused above `limit` bytes.
pub fn read_all(file: &dyn DiskFile, limit: u64) -> io::Result<Vec<u8>> {
    let len = file.len()?;
    if len > limit {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{len} bytes, at most {limit} are read"),
        ));
    }
    let mut out = vec![0; len as usize];
    read_exact_at(file, 0, &mut out)?;
    Ok(out)
}

/// Fills `out` from `offset`; an end of file within is an error.
pub fn read_exact_at(file: &dyn DiskFile, offset: u64, out: &mut [u8]) -> io::Result<()> {
    match file.read_at(offset, out)? {
        n if n == out.len() => Ok(()),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Makes file `name` hold exactly `data`, durably, so that a crash leaves the old or the new content.
pub fn replace(disk: &dyn Disk, name: &str, data: &[u8]) -> io::Result<()> {
    let tmp = format!("{name}.tmp");
    let file = disk.create(&tmp)?;
    file.write_at(0, data)?;
    file.sync_data()?;
    drop(file);
    disk.rename(&tmp, name)?;
    disk.sync_dir()
}

/// A directory of the operating system.
#[derive(Clone, Debug)]
pub struct RealDisk {
    dir: PathBuf,
}

impl RealDisk {
    /// The directory `dir`, made (mode 0700) if it does not exist.
    pub fn open(dir: &Path) -> photon_base::Result<Self> {
        crate::fs::private_dir(dir)?;
        Ok(RealDisk { dir: dir.to_path_buf() })
    }

    /// Names are the kernel's own, never a user's: a separator in one is a defect of ours.
    fn path(&self, name: &str) -> io::Result<PathBuf> {
        if name.is_empty() || name.contains('/') || name == "." || name == ".." {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{name:?} is not a plain file name"),
            ));
        }
        Ok(self.dir.join(name))
    }
}

impl Disk for RealDisk {
    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(RealFile(OpenOptions::new().read(true).write(true).open(self.path(name)?)?)))
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true).mode(0o600);
        Ok(Box::new(RealFile(options.open(self.path(name)?)?)))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.path(from)?, self.path(to)?)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.path(name)?)
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.dir)? {
            let entry = entry?;
            if entry.file_type()?.is_file()
                && let Ok(name) = entry.file_name().into_string()
            {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    fn sync_dir(&self) -> io::Result<()> {
        File::open(&self.dir)?.sync_all()
    }
}

struct RealFile(File);

impl DiskFile for RealFile {
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_all_at(data, offset)
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while done < out.len() {
            match self.0.read_at(&mut out[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        if self.len()? >= len {
            return Ok(());
        }
        match rustix::fs::fallocate(&self.0, rustix::fs::FallocateFlags::empty(), 0, len) {
            Ok(()) => Ok(()),
            // A file system without it: only the length can be had.
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => self.0.set_len(len),
            Err(e) => Err(e.into()),
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What both disks must do alike.
    pub(super) fn behaves(disk: &dyn Disk) {
        let f = disk.create("a").expect("create");
        assert!(f.is_empty().expect("len"));
        f.write_at(3, b"xyz").expect("write");
        f.write_at(0, b"abc").expect("write");
        f.sync_data().expect("sync");
        assert_eq!(read_all(&*f, 100).expect("read"), b"abcxyz");
        assert!(read_all(&*f, 5).is_err(), "the limit holds");
        f.allocate(10).expect("allocate");
        assert_eq!(f.len().expect("len"), 10);
        assert_eq!(read_all(&*f, 100).expect("read"), b"abcxyz\0\0\0\0");
        f.allocate(4).expect("never shrinks");
        f.truncate(2).expect("truncate");
        let mut buf = [9; 4];
        assert_eq!(f.read_at(1, &mut buf).expect("short read"), 1);
        assert_eq!(f.read_at(7, &mut buf).expect("beyond the end"), 0);
        assert!(read_exact_at(&*f, 0, &mut buf).is_err());
        replace(disk, "a", b"new").expect("replace");
        assert_eq!(read_all(&*disk.open("a").expect("open"), 9).expect("read"), b"new");
        disk.rename("a", "b").expect("rename");
        assert_eq!(disk.list().expect("list"), ["b"]);
        assert_eq!(disk.open("a").err().map(|e| e.kind()), Some(io::ErrorKind::NotFound));
        disk.remove("b").expect("remove");
        assert!(disk.remove("b").is_err());
        disk.sync_dir().expect("sync");
        assert!(disk.list().expect("list").is_empty());
    }

    #[test]
    fn the_real_disk_behaves() {
        let dir = std::env::temp_dir().join(format!("photon-rt-disk-{:x}", crate::entropy::u64()));
        let disk = RealDisk::open(&dir).expect("temp dir");
        behaves(&disk);
        assert!(disk.open("../x").is_err(), "no way out of the directory");
        crate::fs::remove_dir_all(&dir).expect("clean");
    }

    #[test]
    fn the_simulated_disk_behaves() {
        behaves(&SimDisk::new(1));
    }
}
