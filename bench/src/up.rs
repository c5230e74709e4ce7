//! `photon up` to ready, idle memory, size of the binary. There is no peer that starts as much at once; the
//! aims of the first issue stand beside the figures.

use crate::{peer::resident_mib, sample::median};
use photon_base::{Error, Result};
use photon_rt::time::{Duration, now, sleep};
use serde_json::{Value, json};
use std::path::Path;

const STARTS: usize = 10;
const IDLE: Duration = Duration::from_secs(10);

/// A cloud in a folder of its own, on ports of its own.
pub struct Cloud {
    pub dir: tempfile::TempDir,
    photon: std::path::PathBuf,
    guest: std::path::PathBuf,
    networking: &'static str,
}

impl Cloud {
    pub fn new(photon: &Path, guest: &Path, networking: &'static str) -> Result<Cloud> {
        let dir = tempfile::Builder::new().prefix("pb").rand_bytes(5).tempdir_in("/tmp");
        let dir = dir.map_err(|e| Error::internal("no folder").why(e))?;
        let absolute = |p: &Path| {
            p.canonicalize().map_err(|e| Error::internal(format!("{} is missing", p.display())).why(e))
        };
        Ok(Cloud { dir, photon: absolute(photon)?, guest: absolute(guest)?, networking })
    }

    /// Runs `photon ARGS` to its end.
    pub async fn run(&self, args: &[&str]) -> Result<String> {
        let mut c = photon_rt::process::command(&self.photon);
        c.args(args)
            .env("PHOTON_DATA_DIR", self.dir.path())
            .env("PHOTON_GUEST_DIR", &self.guest)
            .env("PHOTON_NETWORKING", self.networking)
            .env("PHOTON_PORT_OFFSET", "15000");
        let out = c.output().await.map_err(|e| Error::internal("photon does not run").why(e))?;
        if !out.status.success() {
            return Err(Error::internal(format!("photon {} failed", args.join(" ")))
                .why(String::from_utf8_lossy(&out.stderr)));
        }
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    }

    pub fn pid(&self) -> u32 {
        let text = photon_rt::fs::read_to_string(self.dir.path().join("photon.lock")).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    }
}

/// Starts and stops, then idles.
pub async fn run(photon: &Path, guest: &Path) -> Result<Value> {
    let cloud = Cloud::new(photon, guest, "user")?;
    let mut times = Vec::new();
    let mut first = 0.0;
    for n in 0..=STARTS {
        let t = now();
        cloud.run(&["up", "--detach"]).await?;
        let ms = (now() - t).as_secs_f64() * 1000.0;
        println!("start {n}: {ms:.0} ms");
        if n == 0 {
            first = ms;
        } else {
            times.push(ms);
        }
        if n < STARTS {
            cloud.run(&["down"]).await?;
        }
    }
    let cpu = crate::peer::cpu_of(cloud.pid());
    sleep(IDLE).await;
    let idle_cpu = (crate::peer::cpu_of(cloud.pid()) - cpu) / IDLE.as_secs_f64() * 100.0;
    let rss = resident_mib(cloud.pid());
    cloud.run(&["down"]).await?;
    let size = photon_rt::fs::metadata(photon).map(|m| m.len()).unwrap_or(0) as f64 / 1048576.0;
    let slowest = times.iter().copied().fold(0.0, f64::max);
    Ok(json!({ "first_ms": first, "warm_ms": median(times), "slowest_ms": slowest, "idle_mib": rss,
               "idle_cpu_percent": idle_cpu, "binary_mib": size, "starts": STARTS }))
}
