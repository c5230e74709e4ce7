//! One photon a data folder: an advisory lock that the kernel gives back when the process ends, however
//! it ends. The file holds the process id.

use photon_base::{Code, Error, Result};
use photon_rt::fs;
use rustix::fs::{FlockOperation, flock};
use std::{
    io::{Read, Seek, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
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
        let mut tries = 0;
        // Whoever asks whether it is held holds it for a moment.
        while flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            tries += 1;
            if tries == TRIES {
                return Ok(None);
            }
            pause();
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

/// The process that runs on `data_dir`, if one does. The file may hold the number of a process before,
/// by now perhaps somebody else's: only a process that has the file open counts.
pub fn running_pid(data_dir: &Path) -> Option<u32> {
    let path = data_dir.join("photon.lock");
    let mut file = fs::OpenOptions::new().read(true).open(path).ok()?;
    for _ in 0..TRIES {
        if flock(&file, FlockOperation::NonBlockingLockShared).is_ok() {
            return None; // nobody holds it; ours goes with `file`
        }
        let mut text = String::new();
        file.rewind().ok()?;
        file.read_to_string(&mut text).ok()?;
        if let Some(pid) = text.trim().parse().ok().filter(|pid| holds(*pid, &file)) {
            return Some(pid);
        }
        pause(); // it has just taken the lock and will write its number
    }
    None
}

/// False when process `pid` does not have `file` open, or does not exist. Another user's process can't be
/// looked into, and gets the benefit of the doubt: only that user and root can signal it.
fn holds(pid: u32, file: &fs::File) -> bool {
    let Ok(ours) = file.metadata() else { return false };
    match fs::read_dir(format!("/proc/{pid}/fd")) {
        Ok(all) => all
            .flatten()
            .any(|fd| fs::metadata(fd.path()).is_ok_and(|m| (m.dev(), m.ino()) == (ours.dev(), ours.ino()))),
        Err(e) => e.kind() == std::io::ErrorKind::PermissionDenied,
    }
}

fn pause() {
    let _ = rustix::thread::nanosleep(&rustix::fs::Timespec { tv_sec: 0, tv_nsec: 10_000_000 }); // a signal only shortens it
}

/// Looks at a lock that somebody holds, 10 ms apart.
const TRIES: u32 = 30;

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

    #[test]
    fn those_who_ask_keep_nobody_out_and_an_old_number_is_nobody_s() {
        let dir = std::env::temp_dir().join(format!("photon-lock-{:x}", photon_rt::entropy::u64()));
        drop(Lock::take(&dir).expect("take").expect("free"));
        let asking = open(&dir).expect("open");
        flock(&asking, FlockOperation::NonBlockingLockShared).expect("ask");
        let asker = std::thread::Builder::new().spawn(move || {
            pause();
            drop(asking);
        });
        let held = Lock::take(&dir).expect("take").expect("free but for the one who asks");
        asker.expect("thread").join().expect("join");
        // The number in the file is that of a process before, which is another program now.
        let mut file =
            fs::OpenOptions::new().write(true).truncate(true).open(dir.join("photon.lock")).expect("open");
        write!(file, "4194305").expect("write"); // above the greatest number that Linux gives
        assert_eq!(running_pid(&dir), None);
        drop(held);
        fs::remove_dir_all(&dir).expect("clean");
    }
}
