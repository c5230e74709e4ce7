//! Puts into ChainFire and into Debian's etcd, both syncing every write before they answer.

use crate::{
    peer::{Server, fdatasync_ms},
    sample::{Samples, median},
};
use bytes::Bytes;
use chainfire::wire::etcdserverpb::{PutRequest, kv_client::KvClient};
use photon_base::{Error, Result};
use photon_rt::{
    task::Tasks,
    time::{Duration, now},
};
use serde_json::{Value, json};
use std::path::Path;
use tonic::transport::{Channel, Endpoint};

const VALUE_BYTES: usize = 256;
const ROUND: Duration = Duration::from_secs(3);
const ROUNDS: usize = 5;
const CONNECTIONS: usize = 8;

struct Round {
    per_second: f64,
    cpu_us: f64,
    samples: Samples,
}

async fn connect(url: &str, count: usize) -> Result<Vec<Channel>> {
    let mut all = Vec::new();
    for _ in 0..count {
        let e = Endpoint::from_shared(url.to_string()).map_err(|e| Error::internal("not a URL").why(e))?;
        all.push(
            e.tcp_nodelay(true).connect().await.map_err(|e| Error::unavailable("cannot connect").why(e))?,
        );
    }
    Ok(all)
}

async fn round(server: &Server, channels: &[Channel], clients: usize, number: usize) -> Result<Round> {
    let tasks = Tasks::new();
    let value = Bytes::from(vec![b'v'; VALUE_BYTES]);
    let (begun, cpu) = (now(), server.cpu());
    let end = begun + ROUND;
    let mut running = Vec::new();
    for c in 0..clients {
        let mut kv = KvClient::new(channels[c % channels.len()].clone());
        let value = value.clone();
        running.push(tasks.spawn("client", async move {
            let mut samples = Samples::default();
            let mut n = 0u64;
            while now() < end {
                let key = format!("bench/{number}/{c}/{n}").into_bytes().into();
                let request = PutRequest { key, value: value.clone(), ..PutRequest::default() };
                let t = now();
                kv.put(request).await.map_err(|e| Error::unavailable("a put failed").why(e))?;
                samples.add(now() - t);
                n += 1;
            }
            Ok::<_, Error>((samples, n))
        }));
    }
    let (mut samples, mut puts) = (Samples::default(), 0);
    for r in running {
        let (s, n) = r.await.ok().flatten().ok_or_else(|| Error::internal("a client ended early"))??;
        samples.join(s);
        puts += n;
    }
    let seconds = (now() - begun).as_secs_f64();
    let cpu_us = (server.cpu() - cpu) * 1e6 / puts.max(1) as f64;
    Ok(Round { per_second: puts as f64 / seconds, cpu_us, samples })
}

/// Runs both interleaved, with 1 and with 64 clients.
pub async fn run(photon: &Path) -> Result<Value> {
    let folder = |p: &str| {
        tempfile::Builder::new().prefix(p).tempdir_in(".").map_err(|e| Error::internal("no folder").why(e))
    };
    let (ours_dir, etcd_dir) = (folder(".bench-ours")?, folder(".bench-etcd")?);
    let path = |d: &tempfile::TempDir| d.path().display().to_string();
    let (a, b) = (path(&ours_dir), path(&etcd_dir));
    let url = |port: u16| format!("http://127.0.0.1:{port}");
    let ours = Server::start(
        photon,
        &["chainfire", "serve", "--tls", "off", "--data-dir", &a, "--listen-client-urls", &url(23790)],
        23790,
    )
    .await?;
    let etcd = Server::start(
        Path::new("etcd"),
        &[
            "--data-dir",
            &b,
            "--listen-client-urls",
            &url(23791),
            "--advertise-client-urls",
            &url(23791),
            "--listen-peer-urls",
            &url(23792),
            "--initial-advertise-peer-urls",
            &url(23792),
            "--initial-cluster",
            &format!("default={}", url(23792)),
            "--log-level",
            "error",
        ],
        23791,
    )
    .await?;
    let fdatasync = fdatasync_ms(ours_dir.path())?;
    let mut rows = Vec::new();
    for clients in [1, 64] {
        let count = clients.min(CONNECTIONS);
        let (co, ce) = (connect(&ours.url, count).await?, connect(&etcd.url, count).await?);
        let (mut so, mut se) = (Samples::default(), Samples::default());
        let (mut ro, mut re) = (Vec::new(), Vec::new());
        for n in 0..=ROUNDS {
            let o = round(&ours, &co, clients, n * 1000 + clients).await?;
            let e = round(&etcd, &ce, clients, n * 1000 + clients).await?;
            println!("{clients} clients, round {n}: ours {:.0}/s, etcd {:.0}/s", o.per_second, e.per_second);
            if n == 0 {
                continue; // warm-up
            }
            so.join(o.samples);
            se.join(e.samples);
            ro.push((o.per_second, o.cpu_us));
            re.push((e.per_second, e.cpu_us));
        }
        let ratio = median(ro.iter().zip(&re).map(|(o, e)| o.0 / e.0).collect());
        let side = |r: &[(f64, f64)], s: Samples| {
            json!({ "per_second": median(r.iter().map(|x| x.0).collect()), "cpu_us": median(r.iter().map(|x| x.1).collect()),
                    "latency": s.summary() })
        };
        rows.push(
            json!({ "clients": clients, "ratio": ratio, "ours": side(&ro, so), "etcd": side(&re, se) }),
        );
    }
    let version = photon_rt::process::run("etcd", &["--version"], None, ROUND).await?;
    let version = String::from_utf8_lossy(&version).lines().next().unwrap_or_default().to_string();
    Ok(json!({
        "value_bytes": VALUE_BYTES, "rounds": ROUNDS, "round_seconds": ROUND.as_secs(), "fdatasync_ms": fdatasync,
        "peer": version, "resident_mib": { "ours": ours.resident_mib(), "etcd": etcd.resident_mib() }, "rows": rows,
    }))
}
