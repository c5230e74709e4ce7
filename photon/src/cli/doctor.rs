//! `photon doctor`: what this machine has, and the fix of what it lacks.

use super::{Format, Global, output};
use crate::{
    config,
    services::{SERVICES, Transport},
};
use photon_base::{Code, Error, Result};
use photon_rt::time::{Duration, now};
use serde_json::{Value, json};
use std::{io::Write, path::Path};

struct Check {
    name: &'static str,
    /// ok, note (works with less) or fail.
    state: &'static str,
    found: String,
    fix: &'static str,
}

fn check(
    name: &'static str,
    ok: bool,
    state_if_not: &'static str,
    found: impl Into<String>,
    fix: &'static str,
) -> Check {
    Check {
        name,
        state: if ok { "ok" } else { state_if_not },
        found: found.into(),
        fix: if ok { "" } else { fix },
    }
}

async fn version_of(program: &'static str, arg: &str) -> Option<String> {
    let out = photon_rt::process::run(program, &[arg], None, Duration::from_secs(10)).await.ok()?;
    String::from_utf8_lossy(&out).lines().next().map(|l| l.chars().take(60).collect())
}

/// Median time of writing and syncing 4 KiB.
fn fsync_ms(dir: &Path) -> std::io::Result<f64> {
    photon_rt::fs::create_dir_all(dir)?;
    let path = dir.join(".doctor.tmp");
    let mut f = photon_rt::fs::OpenOptions::new().create(true).write(true).truncate(true).open(&path)?;
    let mut times = Vec::new();
    for _ in 0..20 {
        let t = now();
        f.write_all(&[0u8; 4096])?;
        f.sync_data()?;
        times.push((now() - t).as_secs_f64() * 1000.0);
    }
    photon_rt::fs::remove_file(&path)?;
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

/// Runs every check; fails when one does.
pub async fn doctor(global: &Global) -> Result<()> {
    let root = config::is_root();
    let mut all = Vec::new();
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    all.push(check("kernel", true, "fail", kernel, ""));
    all.push(check(
        "privileges",
        root,
        "note",
        if root { "root" } else { "not root: VMs get user-mode networking and do not reach each other" },
        "run as root for networks of your own",
    ));
    let scratch = std::env::temp_dir();
    let kvm = plasmavmc::engine::works(plasmavmc::engine::QEMU, plasmavmc::engine::Accel::Kvm, &scratch)
        .await
        .unwrap_or(false);
    all.push(check(
        "virtualisation",
        kvm,
        "note",
        if kvm { "kvm" } else { "no usable /dev/kvm: guests are emulated (tcg), about ten times slower, and not a wall between tenants" },
        "enable virtualisation in the firmware, and load kvm_intel or kvm_amd",
    ));
    for (name, program, arg) in [
        ("qemu", "qemu-system-x86_64", "--version"),
        ("qemu-img", "qemu-img", "--version"),
        ("ip", "ip", "-V"),
        ("nft", "nft", "--version"),
    ] {
        let found = version_of(program, arg).await;
        let missing = if root || name.starts_with("qemu") { "fail" } else { "note" };
        all.push(check(
            name,
            found.is_some(),
            missing,
            found.unwrap_or_else(|| "missing".into()),
            "./dev setup, or install qemu-system-x86 qemu-utils iproute2 nftables",
        ));
    }
    let tun = Path::new("/dev/net/tun").exists();
    all.push(check(
        "tun",
        tun,
        if root { "fail" } else { "note" },
        if tun { "/dev/net/tun" } else { "missing" },
        "modprobe tun",
    ));
    let running = crate::node::running_pid(&global.data_dir()).is_some();
    for p in SERVICES.iter().flat_map(|s| s.ports).chain([&crate::services::FRONT]) {
        let addr = ([127, 0, 0, 1], p.number).into();
        let free = match p.transport {
            Transport::Gossip => photon_rt::net::udp(addr).await.is_ok(),
            _ => photon_rt::net::listen(addr).await.is_ok(),
        };
        if !free && !running {
            all.push(check(
                "port",
                false,
                "fail",
                format!("{} is taken", p.number),
                "stop who has it, or: photon up --port-offset 1000",
            ));
        }
    }
    let year = photon_rt::time::wall().to_string();
    all.push(check(
        "clock",
        year.as_str() > "2025",
        "fail",
        year,
        "set the clock: certificates depend on it",
    ));
    match fsync_ms(&global.data_dir()) {
        Ok(ms) => all.push(check(
            "disk",
            ms < 20.0,
            "note",
            format!("write and sync of 4 KiB: {ms:.2} ms"),
            "use an SSD for --data-dir",
        )),
        Err(e) => all.push(check(
            "disk",
            false,
            "fail",
            e.to_string(),
            "choose a folder you may write: --data-dir DIR",
        )),
    }
    let rows: Vec<Value> = all
        .iter()
        .map(|c| json!({ "check": c.name, "state": c.state, "found": c.found, "fix": c.fix }))
        .collect();
    match global.output {
        Format::Table | Format::Name => {
            output::table(
                &[("CHECK", "/check"), ("STATE", "/state"), ("FOUND", "/found"), ("FIX", "/fix")],
                &rows,
            );
        }
        f => output::value(f, &json!({ "checks": rows })),
    }
    match all.iter().filter(|c| c.state == "fail").count() {
        0 => Ok(()),
        n => Err(Error::new(Code::Unsupported, format!("{n} checks failed"))
            .hint("the table above has the fix of each")),
    }
}
