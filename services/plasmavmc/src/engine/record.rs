//! What survives a crash of photon: one folder per incarnation, and the greatest epoch of each VM.
//!
//! ```text
//! run/lock                     held by the one photon that owns the folder
//! run/epochs/<vm>              greatest epoch ever accepted for this VM
//! run/vm/<incarnation>/        launch.json   written before QEMU is started
//!                              process.json  written after it was started
//!                              exit.json     written when it is known to have ended
//!                              qmp, serial, agent, pid, log, console.0, console.1
//! ```
//! A folder with `launch.json` alone: QEMU was never started, or photon died right after; the process
//! table decides. With `process.json` and without `exit.json` and without a process: it crashed,
//! because a guest that powers off leaves its QEMU paused (see `args`).

use photon_base::{Code, Error, Result, Timestamp, Uid};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::path::{Path, PathBuf};

use super::launch::Launch;

/// Longest run folder, so that `DIR/vm/<32 digits>/serial` fits a Unix socket's 108 bytes.
pub const DIR_LEN_MAX: usize = 60;
const RECORD_MAX: u64 = 1 << 20;

/// A process that was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// Process id; reused by the kernel, so never trusted alone.
    pub pid: u32,
    /// The kernel's start time of that process, in its clock ticks since boot.
    pub ticks: u64,
    /// Wall-clock time of the start.
    pub at: Timestamp,
}

/// Why an incarnation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// The guest powered itself off, also when we had asked it to.
    GuestShutdown,
    /// It was ended by us without the guest's consent.
    Stopped,
    /// QEMU died by itself or was killed by a stranger.
    Crash,
}

/// How an incarnation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Why.
    pub cause: Cause,
    /// QEMU's exit status, or minus the number of the signal that killed it; known only when this
    /// photon had started it.
    pub status: Option<i32>,
    /// When it was noticed.
    pub at: Timestamp,
}

/// The folders of one host.
#[derive(Clone, Debug)]
pub struct Records {
    root: PathBuf,
}

impl Records {
    /// Makes the folders. `root` becomes absolute and free of links, because QEMU's arguments name it.
    pub fn open(root: &Path) -> Result<Records> {
        photon_rt::fs::private_dir(root)?;
        let root = root
            .canonicalize()
            .map_err(|e| Error::internal(format!("cannot resolve {}", root.display())).why(e))?;
        let text = root.to_str().ok_or_else(|| Error::invalid("run_dir", "not UTF-8"))?;
        if text.len() > DIR_LEN_MAX {
            return Err(Error::invalid("run_dir", format!("{text} is longer than {DIR_LEN_MAX} bytes"))
                .why("the path of a Unix socket has at most 108")
                .hint("choose a shorter --data-dir"));
        }
        let records = Records { root };
        for sub in ["epochs", "vm"] {
            photon_rt::fs::private_dir(&records.root.join(sub))?;
        }
        Ok(records)
    }

    /// The run folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The folder that holds all incarnations.
    pub fn incarnations_dir(&self) -> PathBuf {
        self.root.join("vm")
    }

    /// The folder of incarnation `id`.
    pub fn dir(&self, id: Uid) -> PathBuf {
        self.root.join("vm").join(id.to_string())
    }

    /// Every incarnation that has a folder.
    pub fn incarnations(&self) -> Result<Vec<Uid>> {
        uids(&self.incarnations_dir())
    }

    /// Reads a record of incarnation `id`: None when it is not there. A record that cannot be
    /// understood is an error, never "not there".
    fn read<T: DeserializeOwned>(&self, id: Uid, name: &str) -> Result<Option<T>> {
        let path = self.dir(id).join(name);
        match photon_rt::fs::read_text(&path, RECORD_MAX) {
            Ok(text) => serde_json::from_str(&text)
                .map(Some)
                .map_err(|e| Error::internal(format!("{} is damaged", path.display())).why(e)),
            Err(e) if e.code == Code::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn write(&self, id: Uid, name: &str, value: &impl Serialize) -> Result<()> {
        let text = serde_json::to_vec_pretty(value).map_err(|e| Error::internal("a record").why(e))?;
        photon_rt::fs::write_atomic(&self.dir(id).join(name), &text, 0o600)
    }

    /// What the incarnation was asked to be.
    pub fn launch(&self, id: Uid) -> Result<Option<Launch>> {
        self.read(id, "launch.json")
    }

    /// Makes the folder and records the launch.
    pub fn set_launch(&self, launch: &Launch) -> Result<()> {
        photon_rt::fs::private_dir(&self.dir(launch.id))?;
        self.write(launch.id, "launch.json", launch)
    }

    /// The process that was started for it.
    pub fn started(&self, id: Uid) -> Result<Option<Started>> {
        self.read(id, "process.json")
    }

    /// Records the process.
    pub fn set_started(&self, id: Uid, started: Started) -> Result<()> {
        self.write(id, "process.json", &started)
    }

    /// Forgets a process that never became a running VM.
    pub fn unset_started(&self, id: Uid) -> Result<()> {
        absent(&self.dir(id).join("process.json"))
    }

    /// How it ended.
    pub fn exit(&self, id: Uid) -> Result<Option<Exit>> {
        self.read(id, "exit.json")
    }

    /// Records its end. The first record stays: a VM ends once.
    pub fn set_exit(&self, id: Uid, exit: Exit) -> Result<Exit> {
        match self.exit(id)? {
            Some(first) => Ok(first),
            None => self.write(id, "exit.json", &exit).map(|()| exit),
        }
    }

    /// Removes everything about incarnation `id`.
    pub fn remove(&self, id: Uid) -> Result<()> {
        let dir = self.dir(id);
        match photon_rt::fs::remove_dir_all(&dir) {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(Error::internal(format!("cannot remove {}", dir.display())).why(e)),
        }
    }

    /// The greatest epoch accepted for `vm`, 0 when there was none.
    pub fn epoch(&self, vm: Uid) -> Result<u64> {
        let path = self.root.join("epochs").join(vm.to_string());
        match photon_rt::fs::read_text(&path, 64) {
            Ok(text) => text
                .trim()
                .parse()
                .map_err(|e| Error::internal(format!("{} is damaged", path.display())).why(e)),
            Err(e) if e.code == Code::NotFound => Ok(0),
            Err(e) => Err(e),
        }
    }

    /// Accepts `epoch` for `vm`, durably, or refuses it because a greater one was accepted before.
    pub fn accept_epoch(&self, vm: Uid, epoch: u64) -> Result<()> {
        let seen = self.epoch(vm)?;
        if epoch < seen {
            return Err(Error::new(Code::Conflict, format!("epoch {epoch} of VM {vm} is over"))
                .why(format!("this host has accepted epoch {seen}")));
        }
        if epoch > seen {
            let path = self.root.join("epochs").join(vm.to_string());
            photon_rt::fs::write_atomic(&path, epoch.to_string().as_bytes(), 0o600)?;
        }
        Ok(())
    }

    /// Forgets the epoch of a VM that was deleted for ever.
    pub fn forget_epoch(&self, vm: Uid) -> Result<()> {
        absent(&self.root.join("epochs").join(vm.to_string()))
    }
}

fn absent(path: &Path) -> Result<()> {
    match photon_rt::fs::remove_file(path) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(Error::internal(format!("cannot remove {}", path.display())).why(e)),
    }
}

fn uids(dir: &Path) -> Result<Vec<Uid>> {
    let entries = photon_rt::fs::read_dir(dir)
        .map_err(|e| Error::internal(format!("cannot list {}", dir.display())).why(e))?;
    // Other names are temporary files of an interrupted write.
    let mut ids: Vec<Uid> =
        entries.flatten().filter_map(|e| e.file_name().to_str().and_then(|n| n.parse().ok())).collect();
    ids.sort();
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epochs_only_grow_and_survive() {
        let dir = std::env::temp_dir().join(format!("photon-rec-{:x}", photon_rt::entropy::u64()));
        let r = Records::open(&dir).expect("open");
        r.accept_epoch(Uid(1), 3).expect("first");
        r.accept_epoch(Uid(1), 3).expect("same again");
        let r = Records::open(&dir).expect("open again");
        assert_eq!(r.accept_epoch(Uid(1), 2).expect_err("over").code, Code::Conflict);
        r.accept_epoch(Uid(2), 1).expect("another VM");
        r.forget_epoch(Uid(1)).expect("forget");
        r.forget_epoch(Uid(1)).expect("twice");
        r.remove(Uid(9)).expect("nothing there");
        photon_rt::fs::remove_dir_all(&dir).expect("clean");
    }

    #[test]
    fn a_damaged_record_is_an_error_and_a_long_folder_is_refused() {
        let dir = std::env::temp_dir().join(format!("photon-rec-{:x}", photon_rt::entropy::u64()));
        let r = Records::open(&dir).expect("open");
        photon_rt::fs::private_dir(&r.dir(Uid(1))).expect("dir");
        assert_eq!(r.exit(Uid(1)), Ok(None));
        photon_rt::fs::write_atomic(&r.dir(Uid(1)).join("exit.json"), b"{", 0o600).expect("write");
        assert_eq!(r.exit(Uid(1)).expect_err("damaged").code, Code::Internal);
        let exit = Exit { cause: Cause::Crash, status: None, at: Timestamp(1) };
        r.remove(Uid(1)).expect("remove");
        photon_rt::fs::private_dir(&r.dir(Uid(1))).expect("dir");
        r.set_exit(Uid(1), exit).expect("first");
        let second = Exit { cause: Cause::Stopped, ..exit };
        assert_eq!(r.set_exit(Uid(1), second), Ok(exit), "a VM ends once");
        assert!(Records::open(&dir.join("x".repeat(70))).is_err());
        photon_rt::fs::remove_dir_all(&dir).expect("clean");
    }
}
