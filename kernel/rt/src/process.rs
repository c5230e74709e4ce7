//! Processes of the operating system.

pub use tokio::process::{Child, Command};

use photon_base::{Code, Error, Result};
use std::time::Duration;

/// A process to be started; [`run`] is for tools that end by themselves.
pub fn command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    Command::new(program)
}

/// Runs a tool to its end and returns its standard output (at most 16 MiB). A failure carries the
/// tool's own words. Arguments are visible to other users of the host: never pass secrets.
pub async fn run(program: &str, args: &[&str], stdin: Option<&[u8]>, limit: Duration) -> Result<Vec<u8>> {
    use tokio::io::AsyncWriteExt;
    let mut cmd = Command::new(program);
    cmd.args(args)
        .stdin(if stdin.is_some() { std::process::Stdio::piped() } else { std::process::Stdio::null() })
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .kill_on_drop(true);
    let mut child = cmd.spawn().map_err(|e| {
        let err = Error::new(Code::Unsupported, format!("cannot run {program}")).why(&e);
        if e.kind() == std::io::ErrorKind::NotFound { err.hint("install it: ./dev setup") } else { err }
    })?;
    let input = stdin.map(<[u8]>::to_vec);
    let pipe = child.stdin.take();
    let feed = async move {
        if let (Some(mut p), Some(data)) = (pipe, input) {
            let _ = p.write_all(&data).await; // a tool that closes early says why by its status
        }
    };
    let both = async { tokio::join!(feed, child.wait_with_output()).1 };
    let out = crate::time::timeout(limit, program, both)
        .await?
        .map_err(|e| Error::internal(format!("cannot wait for {program}")).why(e))?;
    if out.status.success() {
        let mut stdout = out.stdout;
        stdout.truncate(16 << 20);
        return Ok(stdout);
    }
    let words = String::from_utf8_lossy(&out.stderr);
    let words: String = words.trim().chars().take(500).collect();
    Err(Error::internal(format!("{program} {} failed", args.join(" ")))
        .why(format!("{}: {words}", out.status)))
}

/// True while process `pid` exists (also as a zombie).
pub fn exists(pid: u32) -> bool {
    std::path::Path::new(&format!("/proc/{pid}")).exists()
}
