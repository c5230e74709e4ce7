//! Ordinary files: small, read whole, replaced whole. Data with a durability promise of its own goes
//! through [`crate::disk`].

use photon_base::{Code, Error, Result};
pub use std::fs::{File, Metadata, OpenOptions};
use std::{
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::Path,
};

/// The bytes of a file.
pub fn read(path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
    std::fs::read(path)
}

/// The text of a file; prefer [`read_text`] for files that others write.
pub fn read_to_string(path: impl AsRef<Path>) -> io::Result<String> {
    std::fs::read_to_string(path)
}

/// Entries of a folder.
pub fn read_dir(path: impl AsRef<Path>) -> io::Result<std::fs::ReadDir> {
    std::fs::read_dir(path)
}

/// Target of a symbolic link.
pub fn read_link(path: impl AsRef<Path>) -> io::Result<std::path::PathBuf> {
    std::fs::read_link(path)
}

/// Facts about a file.
pub fn metadata(path: impl AsRef<Path>) -> io::Result<Metadata> {
    std::fs::metadata(path)
}

/// Makes a folder and its parents.
pub fn create_dir_all(path: impl AsRef<Path>) -> io::Result<()> {
    std::fs::create_dir_all(path)
}

/// Removes a folder with its content.
pub fn remove_dir_all(path: impl AsRef<Path>) -> io::Result<()> {
    std::fs::remove_dir_all(path)
}

/// Removes a file.
pub fn remove_file(path: impl AsRef<Path>) -> io::Result<()> {
    std::fs::remove_file(path)
}

/// Gives a file another name, replacing what has it.
pub fn rename(from: impl AsRef<Path>, to: impl AsRef<Path>) -> io::Result<()> {
    std::fs::rename(from, to)
}

/// Opens a file for reading.
pub fn open(path: impl AsRef<Path>) -> io::Result<File> {
    File::open(path)
}

/// Room on the file system of a path, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// What others than root may still take.
    pub free: u64,
    /// Size of the file system.
    pub total: u64,
}

/// Room on the file system of `path`.
pub fn space(path: impl AsRef<Path>) -> io::Result<Space> {
    let s = rustix::fs::statvfs(path.as_ref())?;
    Ok(Space { free: s.f_bavail.saturating_mul(s.f_frsize), total: s.f_blocks.saturating_mul(s.f_frsize) })
}

fn context(what: &str, path: &Path, e: std::io::Error) -> Error {
    let code = match e.kind() {
        std::io::ErrorKind::NotFound => Code::NotFound,
        std::io::ErrorKind::PermissionDenied => Code::Denied,
        _ => Code::Internal,
    };
    Error::new(code, format!("cannot {what} {}", path.display())).why(e)
}

/// Makes `path` and its parents, `path` itself with mode 0700.
pub fn private_dir(path: &Path) -> Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|e| context("create", path, e))
}

/// Replaces `path` by `data` so that a crash leaves the old or the new content, never a mixture, and
/// the new one is durable on return. `mode` is the file's mode from the first byte on.
pub fn write_atomic(path: &Path, data: &[u8], mode: u32) -> Result<()> {
    let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let tmp = dir.join(format!(".{name}.{:x}.tmp", crate::entropy::u64()));
    let write = || -> std::io::Result<()> {
        let mut f = OpenOptions::new().write(true).create_new(true).mode(mode).open(&tmp)?;
        f.set_permissions(std::fs::Permissions::from_mode(mode))?;
        f.write_all(data)?;
        f.sync_all()?;
        rename(&tmp, path)?;
        File::open(dir)?.sync_all()
    };
    write().map_err(|e| {
        let _ = remove_file(&tmp);
        context("write", path, e)
    })
}

/// The text of `path`, refused above `limit` bytes.
pub fn read_text(path: &Path, limit: u64) -> Result<String> {
    let meta = metadata(path).map_err(|e| context("read", path, e))?;
    if meta.len() > limit {
        return Err(Error::new(Code::Invalid, format!("{} is too large", path.display()))
            .why(format!("{} bytes, at most {limit} are read", meta.len())));
    }
    read_to_string(path).map_err(|e| context("read", path, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn write_atomic_replaces_and_keeps_the_mode() {
        let dir = std::env::temp_dir().join(format!("photon-rt-fs-{:x}", crate::entropy::u64()));
        private_dir(&dir).expect("temp dir");
        let f = dir.join("secret");
        write_atomic(&f, b"one", 0o600).expect("write");
        write_atomic(&f, b"two", 0o600).expect("replace");
        assert_eq!(read_text(&f, 10).expect("read"), "two");
        assert_eq!(metadata(&f).expect("stat").permissions().mode() & 0o777, 0o600);
        assert_eq!(read_dir(&dir).expect("list").count(), 1, "no temporary file is left");
        assert_eq!(read_text(&f, 2).expect_err("too large").code, Code::Invalid);
        remove_dir_all(&dir).expect("clean");
    }
}
