//! `photon up` and `photon down`.

use super::{Format, Global, output};
use crate::{
    config::{Config, Settings},
    node::{Lock, Node, report::Reporter, running_pid},
};
use photon_base::{Code, Error, Result};
use photon_client::Profile;
use photon_rt::{
    process::exists,
    time::{Duration, now, sleep},
};
use rustix::process::{Pid, Signal, kill_process};
use std::{ffi::OsString, path::PathBuf, process::Stdio};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    signal::unix::{SignalKind, signal},
};

/// Longest start that a detached `up` waits for, and longest stop.
const START_TIME_MAX: Duration = Duration::from_secs(120);
const STOP_TIME_MAX: Duration = Duration::from_secs(30);

/// `photon up`.
pub async fn up(global: &Global, settings: Settings, file: Option<PathBuf>, detach: bool) -> Result<()> {
    let config = Config::load(global.data_dir(), file.as_deref(), settings.clone())?;
    if let Some(pid) = running_pid(&config.data_dir) {
        return already(global, &config, pid);
    }
    if detach {
        return detached(global, &config, background_args(std::env::args_os().skip(1))).await;
    }
    photon_rt::fs::private_dir(&config.data_dir)?;
    let Some(lock) = Lock::take(&config.data_dir)? else {
        return already(global, &config, running_pid(&config.data_dir).unwrap_or(0));
    };
    settings.remember(&config.data_dir)?;
    photon_serve::logging::start(&config.log, false);
    let failed = |e: std::io::Error| Error::internal("cannot listen for signals").why(e);
    let mut term = signal(SignalKind::terminate()).map_err(failed)?;
    let mut int = signal(SignalKind::interrupt()).map_err(failed)?;
    let reporter = Reporter::new(global.output == Format::Json);
    let node = tokio::select! {
        n = Box::pin(Node::start(config, lock, &reporter)) => n?,
        _ = term.recv() => return Ok(()),
        _ = int.recv() => return Ok(()),
    };
    tokio::select! {
        e = node.failed() => {
            tracing::error!(error = %e, "stopping");
            return Err(e);
        }
        _ = term.recv() => {}
        _ = int.recv() => eprintln!("\nstopping; VMs run on and are adopted at the next start (photon down --vms stops them)"),
    }
    photon_rt::time::timeout(STOP_TIME_MAX, "stopping", node.stop()).await
}

fn already(global: &Global, config: &Config, pid: u32) -> Result<()> {
    let endpoint =
        Profile::load(&config.data_dir.join("creds/admin.json")).map(|p| p.endpoint).unwrap_or_default();
    match global.output {
        Format::Table | Format::Name => {
            output::line(&format!(
                "PhotonCloud is running already: process {pid}, {endpoint}\nstop it: photon down"
            ));
        }
        f => output::value(
            f,
            &serde_json::json!({ "event": "ready", "already": true, "pid": pid, "endpoint": endpoint }),
        ),
    }
    Ok(())
}

/// Starts photon with these arguments in the background and relays what it reports until it is ready.
pub async fn detached(global: &Global, config: &Config, args: Vec<OsString>) -> Result<()> {
    photon_rt::fs::private_dir(&config.data_dir)?;
    let log_path = config.data_dir.join("photon.log");
    let cannot = |what: &str, e: std::io::Error| Error::internal(format!("cannot {what}")).why(e);
    let log = photon_rt::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(&log_path)
        .map_err(|e| cannot("open the log", e))?;
    let exe = std::env::current_exe().map_err(|e| cannot("find this program", e))?;
    let mut cmd = photon_rt::process::command("setsid");
    cmd.arg(exe)
        .args(args)
        .args(["--output", "json"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log);
    let mut child = cmd.spawn().map_err(|e| cannot("start in the background", e))?;
    let stdout =
        child.stdout.take().ok_or_else(|| Error::internal("the background process has no output"))?;
    let mut lines = BufReader::new(stdout).lines();
    let relay = async {
        while let Ok(Some(line)) = lines.next_line().await {
            let v: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
            if global.output == Format::Json {
                output::line(&line);
            } else {
                output::line(&relayed(&v));
            }
            if v["event"] == "ready" {
                return true;
            }
        }
        false
    };
    if photon_rt::time::timeout(START_TIME_MAX, "starting", relay).await? {
        return Ok(());
    }
    let status = child.wait().await.map_err(|e| cannot("wait for the background process", e))?;
    let log = photon_rt::fs::read_to_string(&log_path).unwrap_or_default();
    let last: Vec<&str> = log.lines().rev().take(3).collect();
    let why: String = last.into_iter().rev().collect::<Vec<_>>().join(" | ");
    Err(Error::internal(format!("PhotonCloud did not start ({status})"))
        .why(why)
        .hint(format!("see {}", log_path.display())))
}

/// The same arguments without `--detach`, and without `--output`, which the background process has its own.
fn background_args(given: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut out = Vec::new();
    let mut given = given;
    while let Some(a) = given.next() {
        let text = a.to_string_lossy();
        match &*text {
            "--detach" | "-d" => {}
            "-o" | "--output" => drop(given.next()),
            t if t.starts_with("--output=") => {}
            // Short flags joined: `-ojson`, `-dojson`, `-do json`.
            t if t.starts_with("-o") || t.starts_with("-do") => {
                if t == "-do" {
                    given.next();
                }
            }
            _ => out.push(a),
        }
    }
    out
}

fn relayed(v: &serde_json::Value) -> String {
    let text = |k: &str| v[k].as_str().unwrap_or_default().to_string();
    let ms = v["ms"].as_u64().unwrap_or(0);
    let event = match v["event"].as_str() {
        Some("ready") => crate::node::report::Event::Ready {
            ms,
            summary: crate::node::report::Summary {
                endpoint: text("endpoint"),
                data_dir: text("data_dir"),
                credentials: text("credentials"),
                notes: v["notes"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter_map(|n| n.as_str().map(String::from))
                    .collect(),
            },
        },
        event => {
            let component = crate::services::find(&text("component")).map_or("api", |s| s.name);
            match event {
                Some("waiting") => crate::node::report::Event::Waiting { component, why: text("why") },
                _ => crate::node::report::Event::Component { component, ms },
            }
        }
    };
    crate::node::report::human(&event)
}

/// `photon down`.
pub async fn down(global: &Global, vms: bool) -> Result<()> {
    let dir = global.data_dir();
    match running_pid(&dir) {
        None => output::line("PhotonCloud is not running"),
        Some(pid) => {
            let target = i32::try_from(pid).ok().and_then(Pid::from_raw);
            let target = target.ok_or_else(|| Error::internal("the lock file holds no process"))?;
            kill_process(target, Signal::TERM)
                .map_err(|e| Error::new(Code::Denied, format!("cannot stop process {pid}")).why(e))?;
            let until = now() + STOP_TIME_MAX;
            while running_pid(&dir) == Some(pid) && exists(pid) {
                if now() > until {
                    return Err(Error::new(Code::Timeout, format!("process {pid} does not stop"))
                        .hint(format!("kill -9 {pid}; nothing acknowledged is lost")));
                }
                sleep(Duration::from_millis(20)).await;
            }
            output::line("PhotonCloud stopped");
        }
    }
    if !vms {
        return Ok(());
    }
    // Held while they stop: a cloud that starts meanwhile would adopt them.
    let Some(_lock) = Lock::take(&dir)? else {
        return Err(Error::new(Code::Conflict, "the cloud was started again meanwhile; its VMs run on")
            .hint("photon down --vms"));
    };
    crate::node::stop_vms(&dir).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_background_process_gets_every_argument_but_detach_and_output() {
        for (given, expected) in [
            ("up --detach --node json --output json", "up --node json"),
            ("-o yaml up -d --port-offset 7", "up --port-offset 7"),
            ("up --output=json --detach", "up"),
            ("up -ojson -d --node name", "up --node name"),
            ("up -do json --listen ::1", "up --listen ::1"),
        ] {
            let args = background_args(given.split(' ').map(OsString::from));
            assert_eq!(args.join(" ".as_ref()), expected, "{given}");
        }
    }
}
