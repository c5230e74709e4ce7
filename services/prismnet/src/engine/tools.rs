//! The tools `ip`, `nft` and the kernel's settings, in the host's namespace or in a named one.

use photon_base::{Error, Result};
use photon_rt::{process::run, task::blocking, time::Duration};
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// How long one run may take.
pub const LIMIT: Duration = Duration::from_secs(20);

/// A device as `ip` tells of it.
#[derive(Deserialize)]
pub struct Link {
    pub ifname: String,
    #[serde(default)]
    pub addr_info: Vec<Address>,
}

/// An address of a device.
#[derive(Deserialize)]
pub struct Address {
    pub local: Option<std::net::IpAddr>,
    #[serde(default)]
    pub prefixlen: u8,
}

/// Runs a batch of `ip` commands; they stop at the first that fails.
pub async fn ip(netns: Option<&str>, script: &str) -> Result<()> {
    if script.is_empty() {
        return Ok(());
    }
    let mut args = netns.map_or(vec![], |n| vec!["-n", n]);
    args.extend(["-batch", "-"]);
    run("ip", &args, Some(script.as_bytes()), LIMIT).await.map(drop)
}

/// Applies a text of `nft`, whole or not at all.
pub async fn nft(netns: Option<&str>, script: &str) -> Result<()> {
    match netns {
        Some(n) => run("ip", &["netns", "exec", n, "nft", "-f", "-"], Some(script.as_bytes()), LIMIT).await,
        None => run("nft", &["-f", "-"], Some(script.as_bytes()), LIMIT).await,
    }
    .map(drop)
}

/// Every device with its addresses.
pub async fn links(netns: Option<&str>) -> Result<Vec<Link>> {
    let mut args = netns.map_or(vec![], |n| vec!["-n", n]);
    args.extend(["-j", "addr", "show"]);
    let json = run("ip", &args, None, LIMIT).await?;
    serde_json::from_slice(&json).map_err(|e| Error::internal("ip's answer is not understood").why(e))
}

/// Makes sure that there is no device `name`. One end of a veth pair vanishes by itself some time after
/// the other's namespace, so a failure to delete counts only while the device is there.
pub async fn drop_link(netns: Option<&str>, name: &str) -> Result<()> {
    if !has(&links(netns).await?, name) {
        return Ok(());
    }
    match ip(netns, &format!("link del {name}\n")).await {
        Err(e) if has(&links(netns).await?, name) => Err(e),
        _ => Ok(()),
    }
}

/// True when there is a device `name`.
pub fn has(links: &[Link], name: &str) -> bool {
    links.iter().any(|l| l.ifname == name)
}

/// Writes kernel settings, in the namespace if one is named.
pub async fn sysctl(netns: Option<PathBuf>, settings: Vec<(String, &'static str)>) -> Result<()> {
    let write = move || -> std::io::Result<()> {
        for (key, value) in &settings {
            let path = Path::new("/proc/sys").join(key.replace('.', "/"));
            // A kernel without a feature has no setting to forbid it.
            if path.exists() {
                let mut file = photon_rt::fs::OpenOptions::new().write(true).open(&path)?;
                std::io::Write::write_all(&mut file, value.as_bytes())?;
            }
        }
        Ok(())
    };
    blocking(move || match netns {
        Some(ns) => photon_rt::net::in_netns(&ns, write),
        None => write(),
    })
    .await
    .map_err(|e| Error::internal("kernel settings cannot be written").why(e))
}

/// One kernel setting.
pub fn set(key: impl Into<String>, value: &'static str) -> (String, &'static str) {
    (key.into(), value)
}
