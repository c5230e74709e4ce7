//! Until the engine's image room lands.
use crate::engine::Format;
use photon_base::{Bytes, Code, Error, Result};
use photon_rt::time::Duration;
use std::path::Path;

pub async fn import(upload: &Path, format: Format, dest: &Path) -> Result<Bytes> {
    if format != Format::Raw {
        return Err(Error::new(Code::Unsupported, "qcow2 import is not wired yet"));
    }
    let io = |e: std::io::Error| Error::internal("cannot take the image").why(e);
    photon_rt::fs::rename(upload, dest).map_err(io)?;
    Ok(Bytes(photon_rt::fs::metadata(dest).map_err(io)?.len()))
}

pub async fn root_disk(base: &Path, dest: &Path, size: Option<Bytes>) -> Result<()> {
    let (base, dest) = (base.display().to_string(), dest.display().to_string());
    let size = size.map(|s| s.0.to_string());
    let mut args = vec!["create", "-q", "-f", "qcow2", "-b", &base, "-F", "raw", &dest];
    args.extend(size.as_deref());
    photon_rt::process::run("qemu-img", &args, None, Duration::from_secs(60)).await.map(|_| ())
}
