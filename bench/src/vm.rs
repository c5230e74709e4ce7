//! Making a VM: how soon the API accepts it, and what the whole path costs over starting QEMU by hand.

use crate::{
    sample::{Samples, median},
    up::Cloud,
};
use http::Method;
use photon_base::{Error, Result};
use photon_client::{Client, Credentials, Profile};
use photon_rt::{
    net::UnixStream,
    process::command,
    time::{Duration, now, sleep, timeout},
};
use serde_json::{Value, json};
use std::{path::Path, process::Stdio};
use tokio::io::AsyncReadExt;

const ACCEPTED: usize = 300;
const PAIRS: usize = 7;
const BOOT_LIMIT: Duration = Duration::from_secs(60);

/// Time from spawning QEMU by hand, with the arguments that photon would use, to the guest's first output.
async fn by_hand(guest: &Path, dir: &Path) -> Result<f64> {
    let socket = dir.join("serial");
    let _ = photon_rt::fs::remove_file(&socket); // left by the round before
    let manifest = photon_rt::fs::read_text(&guest.join("manifest.json"), 1 << 20)?;
    let manifest: Value =
        serde_json::from_str(&manifest).map_err(|e| Error::internal("no manifest").why(e))?;
    let mut c = command("qemu-system-x86_64");
    c.args([
        "-machine",
        "q35,accel=tcg",
        "-m",
        "128",
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-kernel",
    ])
    .arg(guest.join("vmlinux"))
    .arg("-initrd")
    .arg(guest.join("initrd"))
    .args(["-append", manifest["cmdline"].as_str().unwrap_or_default()])
    .args(["-netdev", "user,id=n0", "-device", "virtio-net-pci,netdev=n0"])
    .arg("-serial")
    .arg(format!("unix:{},server=on,wait=off", socket.display()))
    .stdin(Stdio::null())
    .stdout(Stdio::null())
    .kill_on_drop(true);
    let t = now();
    let mut child = c.spawn().map_err(|e| Error::internal("qemu does not run").why(e))?;
    let first = async {
        let mut stream = loop {
            match UnixStream::connect(&socket).await {
                Ok(s) => break s,
                Err(_) => sleep(Duration::from_millis(2)).await,
            }
        };
        let mut b = [0u8; 1];
        let _ = stream.read_exact(&mut b).await; // nothing more can come of a guest that died
    };
    timeout(BOOT_LIMIT, "the guest's first output", first).await?;
    let ms = (now() - t).as_secs_f64() * 1000.0;
    let _ = child.kill().await; // it may have died already
    Ok(ms)
}

/// Time from asking the API for a VM to the guest's first output on its console.
async fn by_photon(client: &Client, n: usize) -> Result<f64> {
    let name = format!("b{n}");
    let spec = json!({ "image": "tiny", "memory": "128MiB", "networks": [{ "network": "lan" }] });
    let t = now();
    client
        .call(Method::POST, "/v1/projects/p/vms", Some(&json!({ "meta": { "name": name }, "spec": spec })))
        .await?;
    let first = async {
        loop {
            match client.websocket(&format!("/v1/projects/p/vms/{name}/console")).await {
                Ok(mut ws) => {
                    use std::pin::Pin;
                    use tonic::codegen::tokio_stream::Stream;
                    let next = std::future::poll_fn(|cx| Pin::new(&mut ws).poll_next(cx)).await;
                    if next.is_some_and(|m| m.is_ok()) {
                        return;
                    }
                }
                Err(_) => sleep(Duration::from_millis(2)).await,
            }
        }
    };
    timeout(BOOT_LIMIT, "the guest's first output", first).await?;
    let ms = (now() - t).as_secs_f64() * 1000.0;
    client.call(Method::DELETE, &format!("/v1/projects/p/vms/{name}"), None).await?;
    while client.get(&format!("/v1/projects/p/vms/{name}")).await.is_ok() {
        sleep(Duration::from_millis(20)).await;
    }
    Ok(ms)
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
        let hand = by_hand(guest, cloud.dir.path()).await?;
        let ours = by_photon(&client, n).await?;
        println!("pair {n}: by hand {hand:.0} ms, by photon {ours:.0} ms");
        if n > 0 {
            pairs.push((hand, ours));
        }
    }
    for args in [&["network", "delete", "lan", "--project", "p", "--wait"][..], &["down", "--vms"][..]] {
        cloud.run(args).await?;
    }
    Ok(json!({
        "accept": accept.summary(),
        "by_hand_ms": median(pairs.iter().map(|p| p.0).collect()),
        "by_photon_ms": median(pairs.iter().map(|p| p.1).collect()),
        "overhead_ms": median(pairs.iter().map(|p| p.1 - p.0).collect()),
        "pairs": PAIRS,
    }))
}
