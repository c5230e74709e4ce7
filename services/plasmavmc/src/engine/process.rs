//! QEMU as a process: starting it detached, finding ours among all, ending exactly it.
//!
//! A process is ours when it belongs to our user and its arguments hold [`MARKER`] and the pid file of
//! an incarnation under our run folder. That is checked after its pidfd was opened: the pidfd keeps
//! meaning this process, so a reused pid never makes us signal a stranger.

#![allow(unsafe_code)]

use super::args::{MARKER, file};
use photon_base::{Error, Result, Uid};
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};
use std::{
    os::fd::{AsRawFd, OwnedFd},
    os::unix::{fs::MetadataExt, process::CommandExt},
    path::Path,
    process::Stdio,
};

/// A running QEMU of ours. Holding it keeps its identity, not its life.
#[derive(Debug)]
pub struct Process {
    /// Process id.
    pub pid: u32,
    /// Its start, in the kernel's clock ticks since boot.
    pub ticks: u64,
    fd: OwnedFd,
}

/// Log of QEMU's own words, kept below this many bytes by [`trim_log`].
pub const LOG_MAX: u64 = 64 << 10;

/// Starts QEMU in a session of its own, so that nothing that happens to photon or its terminal reaches
/// it. `taps` are the only descriptors that it inherits beside its log.
pub fn spawn(program: &str, args: &[String], dir: &Path, taps: &[OwnedFd]) -> Result<Process> {
    let internal = |what: &str, e: &dyn std::fmt::Display| Error::internal(what).why(e);
    let log = photon_rt::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(dir.join("log"))
        .map_err(|e| internal("cannot open QEMU's log", &e))?;
    let errors = log.try_clone().map_err(|e| internal("cannot open QEMU's log", &e))?;
    let inherited: Vec<i32> = taps.iter().map(AsRawFd::as_raw_fd).collect();
    #[expect(clippy::disallowed_methods, reason = "photon_rt::process::run waits; a VM is left running")]
    let mut command = std::process::Command::new(program);
    command.args(args).current_dir(dir).stdin(Stdio::null()).stdout(log).stderr(errors);
    let prepare = move || -> std::io::Result<()> {
        rustix::process::setsid()?;
        for fd in &inherited {
            // SAFETY: the descriptor is open: `taps` outlives spawn() below, which runs this closure in
            // the forked child. Clearing close-on-exec there leaves photon's own copy as it is.
            if unsafe { libc::fcntl(*fd, libc::F_SETFD, 0) } < 0 {
                return Err(std::io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: between fork and exec only setsid and fcntl are called, both async-signal-safe; nothing
    // allocates or locks.
    unsafe { command.pre_exec(prepare) };
    let child = command.spawn().map_err(|e| {
        let err = Error::unavailable(format!("cannot start {program}")).why(&e);
        if e.kind() == std::io::ErrorKind::NotFound { err.hint("install it: ./dev setup") } else { err }
    })?;
    // The handle is dropped without waiting; `reap` collects the child through its pidfd. Until then it
    // cannot vanish, so opening the pidfd by its pid meets the right process.
    open(child.id()).ok_or_else(|| Error::internal("QEMU was started and cannot be found"))
}

fn open(pid: u32) -> Option<Process> {
    let raw = i32::try_from(pid).ok().and_then(Pid::from_raw)?;
    let fd = rustix::process::pidfd_open(raw, PidfdFlags::empty()).ok()?;
    Some(Process { pid, ticks: start_ticks(pid)?, fd })
}

/// Field 22 of `/proc/PID/stat`; the name before it may itself contain spaces and brackets.
fn start_ticks(pid: u32) -> Option<u64> {
    let stat = photon_rt::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// The incarnation under `vm_dir` that process `pid` runs, if it is a QEMU of ours.
fn incarnation(pid: u32, vm_dir: &Path) -> Option<Uid> {
    let proc_dir = format!("/proc/{pid}");
    if photon_rt::fs::metadata(&proc_dir).ok()?.uid() != rustix::process::geteuid().as_raw() {
        return None;
    }
    let line = photon_rt::fs::read(format!("{proc_dir}/cmdline")).ok()?;
    let mut words = line.split(|b| *b == 0).skip_while(|w| *w != MARKER.as_bytes());
    words.next()?;
    let path = Path::new(std::str::from_utf8(words.next()?).ok()?);
    if path.file_name()? != file::PID || path.parent()?.parent()? != vm_dir {
        return None;
    }
    path.parent()?.file_name()?.to_str()?.parse().ok()
}

impl Process {
    /// Process `pid`, if it is the QEMU of incarnation `id` under `vm_dir` (and, when known, has the
    /// start time `ticks`).
    pub fn verify(pid: u32, ticks: Option<u64>, id: Uid, vm_dir: &Path) -> Option<Process> {
        let p = open(pid)?;
        // After the pidfd: what is read now is about the process that the pidfd means, or it has died.
        let same = incarnation(pid, vm_dir) == Some(id) && ticks.is_none_or(|t| t == p.ticks);
        (same && p.alive()).then_some(p)
    }

    /// Every QEMU of ours, found by its arguments: also those whose records are gone.
    pub fn scan(vm_dir: &Path) -> Vec<(Uid, Process)> {
        let Ok(entries) = photon_rt::fs::read_dir("/proc") else { return Vec::new() };
        let pids = entries.flatten().filter_map(|e| e.file_name().to_str().and_then(|n| n.parse().ok()));
        pids.filter_map(|pid| {
            let id = incarnation(pid, vm_dir)?;
            Some((id, Process::verify(pid, None, id, vm_dir)?))
        })
        .collect()
    }

    /// False once it has ended, also while nobody has collected its status.
    pub fn alive(&self) -> bool {
        // A pidfd becomes readable when its process ends (pidfd_open(2)).
        let mut fds = [rustix::event::PollFd::new(&self.fd, rustix::event::PollFlags::IN)];
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        rustix::event::poll(&mut fds, Some(&now)).is_ok_and(|n| n == 0)
    }

    /// Ends it at once.
    pub fn kill(&self) {
        let _ = rustix::process::pidfd_send_signal(&self.fd, Signal::KILL);
    }

    /// Resolves when it has ended.
    pub async fn wait(&self) -> Result<()> {
        let fd = self.fd.try_clone().map_err(|e| Error::internal("pidfd").why(e))?;
        // SAFETY: an OwnedFd names one open descriptor until it is dropped, and AsyncFd owns it.
        let fd =
            unsafe { tokio::io::unix::AsyncFd::register_with_interest(fd, tokio::io::Interest::READABLE) }
                .map_err(|e| Error::internal("pidfd").why(e))?;
        let _ready = fd.readable().await.map_err(|e| Error::internal("pidfd").why(e))?;
        Ok(())
    }

    /// Collects its exit status: None when another process is its parent. Never waits.
    pub fn reap(&self) -> Option<i32> {
        use std::os::fd::AsFd;
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        let status = rustix::process::waitid(WaitId::PidFd(self.fd.as_fd()), options).ok()??;
        status.exit_status().or_else(|| status.terminating_signal().map(|s| -s))
    }
}

/// Cuts QEMU's log when it has grown above [`LOG_MAX`]: a guest can make QEMU complain at will. It is
/// opened for appending, so QEMU goes on at the new end.
pub fn trim_log(dir: &Path) {
    let Ok(f) = photon_rt::fs::OpenOptions::new().write(true).open(dir.join("log")) else { return };
    if f.metadata().is_ok_and(|m| m.len() > LOG_MAX) {
        let _ = f.set_len(0);
    }
}

/// The last words of QEMU's log, for an error.
pub fn log_tail(dir: &Path) -> String {
    let bytes = photon_rt::fs::read(dir.join("log")).unwrap_or_default();
    let tail = &bytes[bytes.len().saturating_sub(600)..];
    String::from_utf8_lossy(tail).trim().replace('\n', " | ")
}
