//! Programs under measurement.

use photon_base::{Error, Result};
use photon_rt::{
    process::{Child, command},
    time::{Duration, now, sleep},
};
use std::{io::Write, path::Path, process::Stdio};

/// A server that ends with this value.
pub struct Server {
    pub child: Child,
    pub url: String,
    pub port: u16,
}

impl Server {
    /// Starts `program` and waits until `port` answers.
    pub async fn start(program: &Path, args: &[&str], port: u16) -> Result<Server> {
        let mut cmd = command(program);
        cmd.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        let child =
            cmd.spawn().map_err(|e| Error::internal(format!("cannot run {}", program.display())).why(e))?;
        let until = now() + Duration::from_secs(30);
        while photon_rt::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            if now() > until {
                return Err(Error::unavailable(format!("{} does not answer on {port}", program.display())));
            }
            sleep(Duration::from_millis(20)).await;
        }
        Ok(Server { child, url: format!("http://127.0.0.1:{port}"), port })
    }

    /// CPU time used so far, in seconds (clock ticks of 10 ms).
    pub fn cpu(&self) -> f64 {
        cpu_of(self.pid())
    }

    /// Kills it, and waits until it is gone.
    pub async fn kill(mut self) -> Result<()> {
        self.child.kill().await.map_err(|e| Error::internal("cannot kill a server").why(e))
    }

    pub fn pid(&self) -> u32 {
        self.child.id().unwrap_or(0)
    }

    /// Resident memory in MiB.
    pub fn resident_mib(&self) -> f64 {
        resident_mib(self.pid())
    }
}

/// CPU time of a process.
pub fn cpu_of(pid: u32) -> f64 {
    let stat = photon_rt::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // Behind the program's name, which may hold anything: fields 14 and 15 of proc(5).
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |i: usize| fields.get(i).and_then(|f| f.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / 100.0
}

/// Resident memory of a process.
pub fn resident_mib(pid: u32) -> f64 {
    let statm = photon_rt::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
    statm.split_whitespace().nth(1).and_then(|p| p.parse::<f64>().ok()).unwrap_or(0.0) * 4096.0 / 1048576.0
}

/// Most memory that a process has had so far, in MiB.
pub fn peak_mib(pid: u32) -> f64 {
    let status = photon_rt::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    let kib = line.and_then(|l| l.split_whitespace().next()).and_then(|n| n.parse::<f64>().ok());
    kib.unwrap_or(f64::NAN) / 1024.0
}

/// Median time of writing and syncing 4 KiB in `dir`, in milliseconds: the disk's own share.
pub fn fdatasync_ms(dir: &Path) -> Result<f64> {
    let failed = |e: std::io::Error| Error::internal("cannot measure the disk").why(e);
    let path = dir.join("probe");
    let mut f = photon_rt::fs::OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .open(&path)
        .map_err(failed)?;
    let mut times = Vec::new();
    for _ in 0..50 {
        let t = now();
        f.write_all(&[0; 4096]).map_err(failed)?;
        f.sync_data().map_err(failed)?;
        times.push((now() - t).as_secs_f64() * 1000.0);
    }
    Ok(crate::sample::median(times))
}
