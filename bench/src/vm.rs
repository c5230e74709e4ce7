//! Making a VM: how soon the API accepts it, and what the whole path costs over starting QEMU by hand.
//!
//! Nothing is polled while a guest boots: it would take CPU from an emulated guest. By hand, the guest's
//! serial line is a socket that we listen on; photon's side follows a watch until QEMU runs and then the
//! console's WebSocket. Emulated boots scatter by a fifth, so beside the median of paired differences stand
//! its quartiles and two figures that scatter less: when photon started QEMU, and QEMU's CPU time.

use crate::{
    sample::{Samples, median, quantile},
    up::Cloud,
};
use http::Method;
use photon_base::{Error, Result};
use photon_client::{Change, Client, Credentials, Profile, Watch};
use photon_rt::{
    net::UnixListener,
    process::command,
    time::{Duration, now, timeout, wall},
};
use serde_json::{Value, json};
use std::{path::Path, process::Stdio};
use tokio::io::AsyncReadExt;

const ACCEPTED: usize = 300;
const PAIRS: usize = 20;
const BOOT_LIMIT: Duration = Duration::from_secs(60);

/// One start of a guest, in milliseconds.
struct Start {
    /// Until QEMU was started.
    spawned: f64,
    /// Until the guest's first output.
    first: f64,
    /// CPU time of QEMU until then.
    cpu: f64,
}

/// CPU time of a process with all its threads so far, in milliseconds (clock ticks are too coarse).
fn cpu_ms(pid: u32) -> f64 {
    let threads = photon_rt::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let text = threads.filter_map(|t| photon_rt::fs::read_to_string(t.path().join("schedstat")).ok());
    text.filter_map(|s| s.split_whitespace().next()?.parse::<f64>().ok()).sum::<f64>() / 1e6
}

/// Starts QEMU by hand with one CPU, one network card and a serial line, as a person would.
async fn by_hand(guest: &Path, dir: &Path) -> Result<Start> {
    let socket = dir.join("serial");
    let _ = photon_rt::fs::remove_file(&socket); // left by the round before
    let listener = UnixListener::bind(&socket).map_err(|e| Error::internal("no socket").why(e))?;
    let manifest = photon_rt::fs::read_text(&guest.join("manifest.json"), 1 << 20)?;
    let manifest: Value =
        serde_json::from_str(&manifest).map_err(|e| Error::internal("no manifest").why(e))?;
    let mut c = command("qemu-system-x86_64");
    c.args(["-machine", "q35,accel=tcg", "-m", "128", "-nodefaults", "-no-user-config", "-display", "none"])
        .arg("-kernel")
        .arg(guest.join("vmlinux"))
        .arg("-initrd")
        .arg(guest.join("initrd"))
        .args(["-append", manifest["cmdline"].as_str().unwrap_or_default()])
        .args(["-netdev", "user,id=n0", "-device", "virtio-net-pci,netdev=n0"])
        .arg("-serial")
        .arg(format!("unix:{}", socket.display()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .kill_on_drop(true);
    let t = now();
    let mut child = c.spawn().map_err(|e| Error::internal("qemu does not run").why(e))?;
    let spawned = (now() - t).as_secs_f64() * 1000.0;
    let first = async {
        let (mut stream, _) = listener.accept().await?;
        stream.read_exact(&mut [0u8; 1]).await
    };
    timeout(BOOT_LIMIT, "the guest's first output", first)
        .await?
        .map_err(|e| Error::internal("the guest said nothing").why(e))?;
    let first = (now() - t).as_secs_f64() * 1000.0;
    let cpu = cpu_ms(child.id().unwrap_or(0));
    let _ = child.kill().await; // it may have died already
    Ok(Start { spawned, first, cpu })
}

/// The next change of the one object that is watched; none when it is gone.
async fn change(watch: &mut Watch<'_>) -> Result<Option<Value>> {
    Ok(match watch.next().await? {
        Change::Put(o) => Some(o),
        Change::Delete { .. } => None,
    })
}

/// Asks the API for a VM and waits for the guest's first output on its console.
async fn by_photon(client: &Client, n: usize) -> Result<Start> {
    let name = format!("b{n}");
    let spec = json!({ "image": "tiny", "memory": "128MiB", "networks": [{ "network": "lan" }] });
    let (t, asked) = (now(), wall());
    let body = json!({ "meta": { "name": name }, "spec": spec });
    let vm = client.call(Method::POST, "/v1/projects/p/vms", Some(&body)).await?;
    let since = vm["meta"]["revision"].as_u64().unwrap_or(0);
    let first = async {
        let list = format!("/v1/projects/p/incarnations?fields=meta.name={name}");
        let mut watch = client.watch(&list, since);
        let started = loop {
            match change(&mut watch).await? {
                Some(i) if i["status"]["phase"] == "running" => break i["status"].clone(),
                _ => {}
            }
        };
        let mut console = client.websocket(&format!("/v1/projects/p/vms/{name}/console")).await?;
        use tonic::codegen::tokio_stream::StreamExt;
        match console.next().await {
            Some(Ok(_)) => Ok(started),
            _ => Err(Error::internal("the console closed")),
        }
    };
    let started = timeout(BOOT_LIMIT, "the guest's first output", first).await??;
    let first = (now() - t).as_secs_f64() * 1000.0;
    let cpu = cpu_ms(u32::try_from(started["pid"].as_u64().unwrap_or(0)).unwrap_or(0));
    let at: photon_base::Timestamp = serde_json::from_value(started["since"].clone())
        .map_err(|e| Error::internal("no time of start").why(e))?;
    let mut watch = client.watch(&format!("/v1/projects/p/vms?fields=meta.name={name}"), since);
    client.call(Method::DELETE, &format!("/v1/projects/p/vms/{name}"), None).await?;
    while change(&mut watch).await?.is_some() {}
    Ok(Start { spawned: at.since(asked).as_secs_f64() * 1000.0, first, cpu })
}

/// Accept latency, then pairs of both ways.
pub async fn run(photon: &Path, guest: &Path) -> Result<Value> {
    let cloud = Cloud::new(photon, guest, "host")?;
    cloud.run(&["up", "--detach"]).await?;
    cloud.run(&["project", "create", "p"]).await?;
    cloud.run(&["network", "create", "lan", "--project", "p", "--cidr", "10.9.0.0/16", "--wait"]).await?;
    let p = Profile::load(&cloud.dir.path().join("creds/admin.json"))?;
    let client =
        Client::new(&p.endpoint, &p.ca, Credentials::Password { user: p.user, password: p.password })?;
    let mut accept = Samples::default();
    for n in 0..ACCEPTED {
        let spec = json!({ "image": "tiny", "power": "stopped", "networks": [{ "network": "lan" }] });
        let body = json!({ "meta": { "name": format!("s{n}") }, "spec": spec });
        let t = now();
        client.call(Method::POST, "/v1/projects/p/vms", Some(&body)).await?;
        accept.add(now() - t);
    }
    for n in 0..ACCEPTED {
        client.call(Method::DELETE, &format!("/v1/projects/p/vms/s{n}"), None).await?;
    }
    let mut pairs = Vec::new();
    for n in 0..=PAIRS {
        // Each goes first every second time.
        let (hand, ours) = if n % 2 == 0 {
            let hand = by_hand(guest, cloud.dir.path()).await?;
            (hand, by_photon(&client, n).await?)
        } else {
            let ours = by_photon(&client, n).await?;
            (by_hand(guest, cloud.dir.path()).await?, ours)
        };
        println!(
            "pair {n}: first output by hand {:.0} ms, by photon {:.0} ms (QEMU started after {:.0}); QEMU's CPU {:.0} and {:.0} ms",
            hand.first, ours.first, ours.spawned, hand.cpu, ours.cpu
        );
        if n > 0 {
            pairs.push((hand, ours));
        }
    }
    for args in [&["network", "delete", "lan", "--project", "p", "--wait"][..], &["down", "--vms"][..]] {
        cloud.run(args).await?;
    }
    let of = |f: fn(&(Start, Start)) -> f64| pairs.iter().map(f).collect::<Vec<f64>>();
    let overhead = of(|(hand, ours)| ours.first - hand.first);
    Ok(json!({
        "accept": accept.summary(),
        "by_hand_ms": median(of(|(hand, _)| hand.first)),
        "by_photon_ms": median(of(|(_, ours)| ours.first)),
        "overhead_ms": median(overhead.clone()),
        "overhead_quartiles_ms": [quantile(overhead.clone(), 0.25), quantile(overhead, 0.75)],
        "started_ms": median(of(|(hand, ours)| ours.spawned - hand.spawned)),
        "cpu_ms": { "by_hand": median(of(|(hand, _)| hand.cpu)), "by_photon": median(of(|(_, ours)| ours.cpu)),
                    "more": median(of(|(hand, ours)| ours.cpu - hand.cpu)) },
        "pairs": PAIRS,
    }))
}
