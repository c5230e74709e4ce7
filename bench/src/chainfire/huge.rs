//! More data than etcd takes: how long a put lasts beside 20 GiB, and while history is removed from them.
//! `PHOTON_BENCH_GIB` scales it.

use super::{OURS, Side, folder, start};
use crate::{
    peer::{Server, fdatasync_ms},
    sample::{Samples, Summary},
};
use bytes::Bytes;
use chainfire::wire::etcdserverpb::{
    CompactionRequest, DefragmentRequest, PutRequest, RequestOp, TxnRequest, kv_client::KvClient,
    maintenance_client::MaintenanceClient, request_op::Request,
};
use photon_base::{Error, Result};
use photon_rt::{
    entropy::Rng,
    task::Tasks,
    time::{Duration, now, sleep},
};
use serde_json::{Value, json};
use std::path::Path;

const VALUE_BYTES: usize = 64 << 10;
/// Values of a transaction: 1 MiB.
const OPS: u64 = 16;
const PER_GIB: u64 = (1 << 30) / VALUE_BYTES as u64;
const LOADERS: u64 = 8;
/// Loading ends then, with what is there.
const LOAD_MAX: Duration = Duration::from_secs(300);
const PROBERS: u64 = 64;
const IDLE: Duration = Duration::from_secs(10);
const BUSY: Duration = Duration::from_secs(40);

fn failed(what: &str) -> impl Fn(tonic::Status) -> Error + '_ {
    move |e| Error::unavailable(format!("{what} failed")).why(e)
}

/// What no compression makes smaller.
fn noise() -> Bytes {
    let mut rng = Rng::new(1);
    let words = (0..(8 * VALUE_BYTES / 8)).flat_map(|_| rng.next_u64().to_le_bytes());
    Bytes::from(words.collect::<Vec<u8>>())
}

/// Puts values `from..to`; how many are there, and why there are no more.
async fn load(side: &Side, from: u64, to: u64) -> Result<(u64, Option<String>)> {
    let tasks = Tasks::new();
    let (noise, end) = (noise(), now() + LOAD_MAX);
    let mut running = Vec::new();
    for (l, channel) in (0..LOADERS).zip(side.connect(LOADERS as usize).await?) {
        let (mut kv, noise) = (KvClient::new(channel), noise.clone());
        running.push(tasks.spawn("loader", async move {
            let (mut at, mut done) = (from + l * OPS, 0);
            while at < to && now() < end {
                let put = |n: u64| {
                    let begin = (n as usize * 4099) % (noise.len() - VALUE_BYTES);
                    let value = noise.slice(begin..begin + VALUE_BYTES);
                    let put = PutRequest { key: format!("huge/{n:09}").into(), value, ..Default::default() };
                    RequestOp { request: Some(Request::RequestPut(put)) }
                };
                let success: Vec<_> = (at..(at + OPS).min(to)).map(put).collect();
                let n = success.len() as u64;
                if let Err(e) = kv.txn(TxnRequest { success, ..Default::default() }).await {
                    return (done, Some(format!("{:?}: {}", e.code(), e.message())));
                }
                done += n;
                at += LOADERS * OPS;
            }
            (done, None)
        }));
    }
    let (mut done, mut why) = (0, None);
    for r in running {
        let (n, refused) = r.await.ok().flatten().ok_or_else(|| Error::internal("a loader ended early"))?;
        done += n;
        why = why.or(refused);
    }
    Ok((done, why))
}

/// Puts of small values beside all that, for a time.
async fn probe(side: &Side, time: Duration) -> Result<Summary> {
    let tasks = Tasks::new();
    let end = now() + time;
    let channels = side.connect(8).await?;
    let mut running = Vec::new();
    for p in 0..PROBERS {
        let mut kv = KvClient::new(channels[p as usize % channels.len()].clone());
        running.push(tasks.spawn("prober", async move {
            let mut samples = Samples::default();
            for n in 0.. {
                if now() >= end {
                    break;
                }
                let (key, value) = (format!("probe/{p}/{}", n % 1000).into(), vec![b'v'; 256].into());
                let t = now();
                kv.put(PutRequest { key, value, ..Default::default() }).await.map_err(failed("a put"))?;
                samples.add(now() - t);
            }
            Ok::<_, Error>(samples)
        }));
    }
    let mut all = Samples::default();
    for r in running {
        all.join(r.await.ok().flatten().ok_or_else(|| Error::internal("a prober ended early"))??);
    }
    Ok(all.summary())
}

/// Rewrites a tenth, forgets the old versions, and has the engine compact.
async fn churn(side: &Side, values: u64) -> Result<()> {
    let (_, refused) = load(side, 0, values / 10).await?;
    if let Some(why) = refused {
        return Err(Error::internal("a value was not written again").why(why));
    }
    let channel = side.connect(1).await?.remove(0);
    let mut kv = KvClient::new(channel.clone());
    let key = PutRequest { key: "huge".into(), ..Default::default() };
    let header = kv.put(key).await.map_err(failed("a put"))?.into_inner().header.unwrap_or_default();
    let compact = CompactionRequest { revision: header.revision, physical: true };
    kv.compact(compact).await.map_err(failed("a compaction"))?;
    let defragment = DefragmentRequest::default();
    MaintenanceClient::new(channel).defragment(defragment).await.map_err(failed("a defragmentation"))?;
    Ok(())
}

/// Ours with all of it, and what etcd says when its quota (its default, for the whole size) is reached.
pub async fn run(photon: &Path) -> Result<Value> {
    let bad = |e| Error::invalid("PHOTON_BENCH_GIB", "it is not a number").why(e);
    let gib = std::env::var("PHOTON_BENCH_GIB").unwrap_or_else(|_| "20".into());
    let gib: f64 = gib.parse().map_err(bad)?;
    let values = (gib * PER_GIB as f64) as u64;
    let dir = folder(".bench-huge")?;
    let fdatasync = fdatasync_ms(dir.path())?;
    let side = start(photon, &OURS, dir.path(), 24_100, 1, None).await?;
    side.ready().await?;
    let begun = now();
    let (done, refused) = load(&side, 0, values).await?;
    if let Some(why) = refused {
        return Err(Error::internal("ours refuses more data").why(why));
    }
    let load_s = (now() - begun).as_secs_f64();
    println!("  {:.2} GiB put in {load_s:.0} s", done as f64 / PER_GIB as f64);
    sleep(Duration::from_secs(5)).await;
    let idle = probe(&side, IDLE).await?;
    println!("  idle: {} puts, p99 {} us", idle.count, idle.p99_us);
    let (busy, churned) = tokio::join!(probe(&side, BUSY), churn(&side, done));
    churned?;
    let busy = busy?;
    let resident: f64 = side.0.iter().map(Server::resident_mib).sum();
    println!("  compacting: {} puts, p99 {} us, {resident:.0} MiB resident", busy.count, busy.p99_us);
    drop(side);
    let etcd_dir = folder(".bench-huge-etcd")?;
    let quota = ((gib / 10.0) * (1u64 << 30) as f64) as u64;
    let flags = ["--log-level", "error", "--quota-backend-bytes", &quota.to_string()];
    let etcd = start(Path::new("etcd"), &flags, etcd_dir.path(), 24_110, 1, None).await?;
    etcd.ready().await?;
    let (taken, refusal) = load(&etcd, 0, values).await?;
    let taken = taken as f64 / PER_GIB as f64;
    println!(
        "  etcd took {taken:.2} GiB: {}",
        refusal.as_deref().unwrap_or("and refused nothing in its time")
    );
    Ok(json!({
        "gib": done as f64 / PER_GIB as f64, "load_s": load_s, "fdatasync_ms": fdatasync, "idle": idle, "busy": busy,
        "ratio": busy.p99_us as f64 / idle.p99_us as f64, "resident_mib": resident,
        "etcd": { "quota_gib": gib / 10.0, "gib": taken, "refusal": refusal },
    }))
}
