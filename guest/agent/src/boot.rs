//! What the first process of a guest does once, and what it starts.

use rustix::{
    mount::{MountFlags, mount},
    process::{Pid, Signal, WaitOptions},
    system::RebootCommand,
};
use std::{ffi::CString, fs::File, process::Command, time::Duration};

/// Says something on the kernel's console, where the host's console log keeps it.
fn complain(what: &str, e: impl std::fmt::Display) {
    eprintln!("init: {what}: {e}");
}

/// Mounts proc, sys, dev, devpts and the in-memory /run and /tmp. A failure is told and not fatal:
/// a guest with half its mounts can still be looked at from its console.
pub fn mounts() {
    for (kind, target) in [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("devpts", "/dev/pts"),
        ("tmpfs", "/run"),
        ("tmpfs", "/tmp"),
    ] {
        let _ = std::fs::create_dir_all(target);
        let options = if kind == "devpts" { "mode=0620,ptmxmode=0666" } else { "" };
        let options = CString::new(options).expect("no NUL in a constant");
        if let Err(e) = mount(kind, target, kind, MountFlags::NOSUID, options.as_c_str()) {
            complain(target, e);
        }
    }
}

/// Loads the modules listed in `/etc/modules`, one path a line, in order.
pub fn modules() {
    let list = std::fs::read_to_string("/etc/modules").unwrap_or_default();
    for path in list.lines().filter(|l| !l.is_empty()) {
        match File::open(path) {
            Ok(f) => match rustix::system::finit_module(f, c"", 0) {
                Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                Err(e) => complain(path, e),
            },
            Err(e) => complain(path, e),
        }
    }
}

fn start(program: &str, args: &[&str]) -> Option<Pid> {
    match Command::new(program).args(args).env("PATH", "/bin:/sbin").env("HOME", "/root").spawn() {
        // The child is reaped by `reap`, never through its handle.
        Ok(child) => i32::try_from(child.id()).ok().and_then(Pid::from_raw),
        Err(e) => {
            complain(program, e);
            None
        }
    }
}

/// Brings lo and eth0 up and starts the DHCP client: its first process ends when there is a lease, or
/// when the first tries had no answer (it goes on in the background then). None without a card.
pub fn network() -> Option<Pid> {
    let _ = Command::new("/bin/ip").args(["link", "set", "lo", "up"]).status();
    if !std::path::Path::new("/sys/class/net/eth0").exists() {
        return None;
    }
    start(
        "/bin/udhcpc",
        &[
            "-i",
            "eth0",
            "-s",
            "/etc/udhcpc.script",
            "-t",
            "4",
            "-T",
            "1",
            "-A",
            "2",
            "-b",
            "-O",
            "search",
            "-S",
        ],
    )
}

/// A login on the serial line.
pub fn login() -> Option<Pid> {
    start("/bin/getty", &["-L", "115200", "ttyS0", "vt100"])
}

/// Waits for the next child to die; None when there is none.
pub fn reap() -> Option<Pid> {
    rustix::process::wait(WaitOptions::empty()).ok().flatten().map(|(pid, _)| pid)
}

/// Ends every process and the guest itself.
pub fn halt(command: RebootCommand) -> ! {
    for signal in [Signal::TERM, Signal::KILL] {
        signal_all(signal);
        std::thread::sleep(Duration::from_millis(100));
    }
    rustix::fs::sync();
    let e = rustix::system::reboot(command);
    complain("power", format!("{e:?}"));
    // The host's limit for a graceful stop takes it from here.
    loop {
        std::thread::sleep(Duration::from_secs(60));
    }
}

/// Sends `signal` to every process that has a command line (kernel threads have none), except us.
fn signal_all(signal: Signal) {
    let Ok(dir) = std::fs::read_dir("/proc") else { return };
    for entry in dir.flatten() {
        let pid = entry.file_name().to_str().and_then(|n| n.parse::<i32>().ok()).and_then(Pid::from_raw);
        let Some(pid) = pid.filter(|p| *p != Pid::INIT) else { continue };
        if std::fs::read(entry.path().join("cmdline")).is_ok_and(|c| !c.is_empty()) {
            let _ = rustix::process::kill_process(pid, signal);
        }
    }
}
