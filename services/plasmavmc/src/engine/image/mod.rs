//! Disk images: what may come in, how it becomes ours, and disks on top of it.
//!
//! Invariants: QEMU never guesses a format and never opens a foreign file that our own parser
//! ([`check`]) has not read whole first; what a guest runs on is raw content that we wrote, under a
//! copy-on-write layer that we made. Files appear under their final names only when they are complete
//! and durable. Conversion runs in a process of its own with bounded memory and time.

mod header;

pub use header::{Checked, Limits, check};

use super::launch::Format;
use photon_base::{Bytes, Code, Error, Result};
use photon_rt::{process::run, task::blocking, time::Duration};
use std::{
    fs::File,
    path::{Path, PathBuf},
};

/// How long a conversion may take; an image of 100 GB on a slow disk.
const CONVERT_LIMIT: Duration = Duration::from_secs(3600);
/// Address space of a conversion: hostile tables must not eat the host's memory.
const CONVERT_MEMORY: &str = "--as=4294967296";

fn io(what: &str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let what = format!("cannot {what} {}", path.display());
    move |e| Error::internal(what).why(e)
}

/// The name under which a file is made before it gets its own.
fn partial(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".part");
    path.with_file_name(name)
}

/// Gives a complete file its name, durably.
fn publish(part: &Path, dest: &Path) -> Result<()> {
    let sync = |p: &Path| photon_rt::fs::OpenOptions::new().read(true).open(p).and_then(|f| f.sync_all());
    sync(part).map_err(io("write", part))?;
    photon_rt::fs::rename(part, dest).map_err(io("name", dest))?;
    sync(dest.parent().unwrap_or(Path::new("."))).map_err(io("write", dest))
}

/// Takes the foreign file `upload`, said to be of `format`, and leaves its content as raw file at
/// `dest`. `upload` is used up: moved or removed. Returns the size that a guest sees. The same call
/// again after a crash finds `dest` complete, or starts anew from `upload`.
pub async fn import(upload: &Path, format: Format, dest: &Path, limits: Limits) -> Result<Bytes> {
    let (from, to) = (upload.to_path_buf(), dest.to_path_buf());
    let found = blocking(move || -> Result<Option<Checked>> {
        if !from.exists() && to.exists() {
            return Ok(None); // a crash came between naming the result and telling so
        }
        let file = photon_rt::fs::OpenOptions::new().read(true).open(&from).map_err(io("read", &from))?;
        check(&file, format, limits).map(Some)
    })
    .await?;
    let Some(found) = found else { return size_of(dest) };
    match format {
        Format::Raw => {
            let (from, to) = (upload.to_path_buf(), dest.to_path_buf());
            blocking(move || {
                let file =
                    photon_rt::fs::OpenOptions::new().write(true).open(&from).map_err(io("write", &from))?;
                file.set_len(found.size.0).map_err(io("write", &from))?; // up to a whole sector
                publish(&from, &to)
            })
            .await?;
        }
        Format::Qcow2 => {
            let part = partial(dest);
            let (from, to) = (text(upload)?, text(&part)?);
            let args = [
                "-n",
                "10",
                "prlimit",
                CONVERT_MEMORY,
                "qemu-img",
                "convert",
                "-q",
                "-f",
                "qcow2",
                "-O",
                "raw",
                "-S",
                "64k",
                from,
                to,
            ];
            run("nice", &args, None, CONVERT_LIMIT).await.map_err(|e| {
                Error::new(Code::Invalid, "the image cannot be converted")
                    .why(e.why)
                    .hint("qemu-img check FILE")
            })?;
            let (upload, dest) = (upload.to_path_buf(), dest.to_path_buf());
            blocking(move || {
                publish(&part, &dest)?;
                photon_rt::fs::remove_file(&upload).map_err(io("remove", &upload))
            })
            .await?;
        }
    }
    Ok(found.size)
}

fn size_of(path: &Path) -> Result<Bytes> {
    photon_rt::fs::metadata(path).map(|m| Bytes(m.len())).map_err(io("read", path))
}

fn text(path: &Path) -> Result<&str> {
    // An absolute path cannot be taken for one of qemu-img's protocols (nbd:, json:, …).
    path.to_str()
        .filter(|t| t.starts_with('/'))
        .ok_or_else(|| Error::invalid("path", format!("{} is not absolute and UTF-8", path.display())))
}

/// Makes sure that there is a disk at `dest`: a layer that keeps what a guest writes, over the raw
/// content `base`, which is never written. `size` (at least the base's; the base's when not given) is
/// used only when the disk is made.
pub async fn root_disk(base: &Path, dest: &Path, size: Option<Bytes>) -> Result<()> {
    if dest.exists() {
        return Ok(());
    }
    let least = size_of(base)?;
    let size = size.unwrap_or(least);
    if size < least || !size.0.is_multiple_of(512) {
        return Err(Error::invalid(
            "size",
            format!("{size} is not whole sectors of at least the image's {least}"),
        ));
    }
    let part = partial(dest);
    let (from, to, size) = (text(base)?, text(&part)?, size.0.to_string());
    let args = ["create", "-q", "-f", "qcow2", "-F", "raw", "-b", from, to, &size];
    run("qemu-img", &args, None, Duration::from_secs(60)).await?;
    let dest = dest.to_path_buf();
    blocking(move || publish(&part, &dest)).await
}

/// Reads exactly `len` bytes at `at`, or says that the file is cut short.
fn read_at(file: &File, at: u64, len: usize) -> Result<Vec<u8>> {
    use std::os::unix::fs::FileExt;
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, at)
        .map_err(|e| Error::invalid("image", "the file is cut short").why(e))?;
    Ok(bytes)
}
