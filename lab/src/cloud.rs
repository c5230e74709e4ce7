//! One cloud under test.

use serde_json::Value;
use std::{
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::atomic::{AtomicU16, Ordering},
    time::{Duration, Instant},
};

/// Longest wait for an emulated guest to boot: it takes 2 to 3 s of a core, which is a minute and more on a machine
/// where ten others want each core (measured: 54 s in the mean, 75 at most). Longer is a guest that hangs.
pub const BOOT: Duration = Duration::from_secs(300);

/// Offsets of port numbers, so that clouds of one test run do not meet.
static NEXT_OFFSET: AtomicU16 = AtomicU16::new(0);

/// A data folder with ports; a photon may run on it.
pub struct Cloud {
    pub dir: tempfile::TempDir,
    pub offset: u16,
    pub networking: &'static str,
}

/// Folder of the programs that cargo built for this test run.
pub fn target_dir() -> PathBuf {
    let exe = std::env::current_exe().expect("this test has a path");
    // …/target/debug/deps/it-…
    exe.parent().and_then(Path::parent).expect("a test binary lies two folders deep").to_path_buf()
}

/// Root of the checkout.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the lab lies in the checkout").to_path_buf()
}

pub fn photon_exe() -> PathBuf {
    let exe = target_dir().join("photon");
    assert!(exe.exists(), "{} is missing: run `cargo build --workspace` or ./dev test", exe.display());
    exe
}

pub fn guest_dir() -> PathBuf {
    let dir = target_dir().parent().expect("target").join("guest");
    assert!(dir.join("manifest.json").exists(), "{} is missing: run ./dev guest", dir.display());
    dir
}

/// What a command printed, and how it ended.
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl From<Output> for Ran {
    fn from(o: Output) -> Ran {
        Ran {
            code: o.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&o.stdout).into_owned(),
            err: String::from_utf8_lossy(&o.stderr).into_owned(),
        }
    }
}

impl Cloud {
    /// A cloud that does not run yet. `networking`: host or user.
    pub fn new(networking: &'static str) -> Cloud {
        // Far from the default ports and from each other.
        let n = NEXT_OFFSET.fetch_add(1, Ordering::SeqCst);
        // Below 32768, where the kernel takes ports for connections that go out.
        let offset = 10_000 + n * 10 + (std::process::id() % 200) as u16 * 60;
        // Unix sockets below it have short names: so must the folder.
        let dir =
            tempfile::Builder::new().prefix("ph").rand_bytes(5).tempdir_in("/tmp").expect("a folder in /tmp");
        Cloud { dir, offset, networking }
    }

    pub fn port(&self, number: u16) -> u16 {
        number + self.offset
    }

    pub fn command(&self) -> Command {
        let mut c = Command::new(photon_exe());
        c.env("PHOTON_DATA_DIR", self.dir.path())
            .env("PHOTON_GUEST_DIR", guest_dir())
            .env("PHOTON_PORT_OFFSET", self.offset.to_string())
            .env("PHOTON_NETWORKING", self.networking)
            .env("PHOTON_NODE", "node-1")
            .stdin(Stdio::null());
        c
    }

    /// Runs `photon ARGS` to its end.
    pub fn run(&self, args: &[&str]) -> Ran {
        self.command().args(args).output().expect("photon runs").into()
    }

    /// Runs `photon ARGS`, which must succeed, and returns its standard output.
    pub fn ok(&self, args: &[&str]) -> String {
        let r = self.run(args);
        assert!(
            r.code == 0,
            "photon {}: exit {}\n{}{}\n{}",
            args.join(" "),
            r.code,
            r.out,
            r.err,
            self.log_tail()
        );
        r.out
    }

    /// `photon ARGS -o json`.
    pub fn json(&self, args: &[&str]) -> Value {
        let text = self.ok(&[args, &["-o", "json"]].concat());
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("photon {}: {e}: {text}", args.join(" ")))
    }

    pub fn up(&self) {
        self.ok(&["up", "--detach"]);
    }

    pub fn pid(&self) -> Option<i32> {
        std::fs::read_to_string(self.dir.path().join("photon.lock")).ok()?.trim().parse().ok()
    }

    /// Kills photon as a crash would, and waits until it is gone.
    pub fn kill(&self) {
        let pid = self.pid().expect("a running photon");
        let _ = Command::new("kill").args(["-9", &pid.to_string()]).status();
        wait("photon to be gone", Duration::from_secs(10), || !alive(pid));
    }

    pub fn log_tail(&self) -> String {
        let log = std::fs::read_to_string(self.dir.path().join("photon.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    /// Process ids of QEMUs that run from this cloud's folder.
    pub fn qemus(&self) -> Vec<i32> {
        let marker = self.dir.path().to_string_lossy().into_owned();
        processes(|cmdline| cmdline.contains("qemu-system") && cmdline.contains(&marker))
    }
}

impl Drop for Cloud {
    fn drop(&mut self) {
        let _ = self.run(&["down", "--vms"]);
        for pid in self.qemus() {
            let _ = Command::new("kill").args(["-9", &pid.to_string()]).status();
        }
    }
}

pub fn alive(pid: i32) -> bool {
    // A zombie has no command line.
    std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|c| !c.is_empty())
}

/// Processes whose command line (arguments joined by spaces) meets the condition.
pub fn processes(f: impl Fn(&str) -> bool) -> Vec<i32> {
    let mut out = Vec::new();
    for e in std::fs::read_dir("/proc").expect("/proc").flatten() {
        let Ok(pid) = e.file_name().to_string_lossy().parse::<i32>() else { continue };
        let Ok(raw) = std::fs::read(e.path().join("cmdline")) else { continue };
        if f(&String::from_utf8_lossy(&raw).replace('\0', " ")) {
            out.push(pid);
        }
    }
    out
}

/// Waits for a condition; panics with its name when it does not come.
pub fn wait(what: &str, limit: Duration, mut f: impl FnMut() -> bool) {
    let until = Instant::now() + limit;
    while !f() {
        assert!(Instant::now() < until, "waited {} s for {what}", limit.as_secs());
        std::thread::sleep(Duration::from_millis(20));
    }
}
