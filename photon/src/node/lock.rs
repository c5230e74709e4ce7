//! One photon a data folder: an advisory lock that the kernel gives back when the process ends, however
//! it ends. The file holds the process id.

use photon_base::{Code, Error, Result};
use photon_rt::fs;
use rustix::fs::{FlockOperation, flock};
use std::{
    io::{Read, Seek, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

/// The lock, held as long as this value lives.
pub struct Lock(#[allow(dead_code, reason = "held for its effect")] fs::File);

fn open(data_dir: &Path) -> Result<fs::File> {
    let path = data_dir.join("photon.lock");
    fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(|e| Error::new(Code::Denied, format!("cannot open {}", path.display())).why(e))
}

impl Lock {
    /// Takes the lock of `data_dir`; none when another process has it.
    pub fn take(data_dir: &Path) -> Result<Option<Lock>> {
        fs::private_dir(data_dir)?;
        let mut file = open(data_dir)?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Ok(None);
        }
        let write = |f: &mut fs::File| -> std::io::Result<()> {
            f.set_len(0)?;
            f.rewind()?;
            write!(f, "{}", std::process::id())
        };
        write(&mut file).map_err(|e| Error::internal("cannot write the lock file").why(e))?;
        Ok(Some(Lock(file)))
    }
}

/// The process that runs on `data_dir`, if one does.
pub fn running_pid(data_dir: &Path) -> Option<u32> {
    let path = data_dir.join("photon.lock");
    let mut file = fs::OpenOptions::new().read(true).open(path).ok()?;
    if flock(&file, FlockOperation::NonBlockingLockShared).is_ok() {
        return None; // nobody holds it; ours goes with `file`
    }
    let mut text = String::new();
    file.read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_holds_it() {
        let dir = std::env::temp_dir().join(format!("photon-lock-{:x}", photon_rt::entropy::u64()));
        assert_eq!(running_pid(&dir), None);
        let held = Lock::take(&dir).expect("take").expect("free");
        assert!(Lock::take(&dir).expect("take").is_none());
        assert_eq!(running_pid(&dir), Some(std::process::id()));
        drop(held);
        assert_eq!(running_pid(&dir), None);
        assert!(Lock::take(&dir).expect("take").is_some());
        fs::remove_dir_all(&dir).expect("clean");
    }
}
