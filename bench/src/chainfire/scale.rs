//! What grows: a million keys listed and opened again, ten thousand watchers on few streams and on as many, a
//! hundred thousand leases. One process
//! of each side, in turns.

use super::{ETCD, OURS, folder, ports, start, version};
use crate::{
    peer::{Server, fdatasync_ms, peak_mib},
    sample::Samples,
};
use bytes::Bytes;
use chainfire::wire::etcdserverpb::{
    LeaseGrantRequest, LeaseKeepAliveRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
    WatchCreateRequest, WatchRequest, kv_client::KvClient, lease_client::LeaseClient, request_op::Request,
    watch_client::WatchClient, watch_request::RequestUnion,
};
use photon_base::{Error, Result};
use photon_rt::{
    task::Tasks,
    time::{Duration, Instant, now, sleep, sleep_until, timeout},
};
use serde_json::{Value, json};
use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};

const KEYS: u64 = 1_000_000;
const VALUE_BYTES: usize = 100;
/// Operations of a transaction (etcd's limit), and transactions at a time.
const OPS: u64 = 128;
const LOADERS: u64 = 16;
/// Whole answers of a list: keys and values, and then some.
const ANSWER_MAX: usize = 1 << 30;
const LISTS: usize = 3;

const WATCHERS: usize = 10_000;
const WATCH_CONNECTIONS: usize = 100;
const EVENTS: u64 = 1_000;
const WATCHED: Duration = Duration::from_secs(15);

const LEASES: usize = 100_000;
const LEASE_STREAMS: usize = 50;
/// Grants under way at a time: one after another, etcd's would last longer than a lease.
const GRANTERS: usize = 16 * LEASE_STREAMS;
/// Each lease is kept alive as often as etcd's own client does it for one of 60 s. It lasts longer, because a
/// server that is late must not be measured at revoking: etcd answers for an expired lease when that is done.
const LEASE_TTL: i64 = 600;
const LEASE_EVERY: Duration = Duration::from_secs(20);
const LEASED: Duration = Duration::from_secs(30);

fn failed(what: &str) -> impl Fn(tonic::Status) -> Error + '_ {
    move |e| Error::unavailable(format!("{what} failed")).why(e)
}

async fn channel(url: &str) -> Result<Channel> {
    let e = Endpoint::from_shared(url.to_string()).map_err(|e| Error::internal("not a URL").why(e))?;
    e.tcp_nodelay(true).connect().await.map_err(|e| Error::unavailable("cannot connect").why(e))
}

fn key(n: u64) -> Bytes {
    format!("scale/{n:012}").into()
}

/// Puts all keys. Seconds.
async fn load(url: &str) -> Result<f64> {
    let begun = now();
    let tasks = Tasks::new();
    let mut running = Vec::new();
    for l in 0..LOADERS {
        let mut kv = KvClient::new(channel(url).await?);
        running.push(tasks.spawn("loader", async move {
            let value = Bytes::from(vec![b'v'; VALUE_BYTES]);
            let mut at = l * OPS;
            while at < KEYS {
                let put = |n: u64| {
                    let put = PutRequest { key: key(n), value: value.clone(), ..PutRequest::default() };
                    RequestOp { request: Some(Request::RequestPut(put)) }
                };
                let success = (at..(at + OPS).min(KEYS)).map(put).collect();
                kv.txn(TxnRequest { success, ..TxnRequest::default() }).await.map_err(failed("a load"))?;
                at += LOADERS * OPS;
            }
            Ok::<_, Error>(())
        }));
    }
    for r in running {
        r.await.ok().flatten().ok_or_else(|| Error::internal("a loader ended early"))??;
    }
    Ok((now() - begun).as_secs_f64())
}

/// Lists everything: seconds, and CPU seconds of the server.
async fn list(server: &Server) -> Result<(f64, f64)> {
    let mut kv = KvClient::new(channel(&server.url).await?).max_decoding_message_size(ANSWER_MAX);
    let (begun, cpu) = (now(), server.cpu());
    let all = RangeRequest { key: "scale/".into(), range_end: "scale0".into(), ..RangeRequest::default() };
    let got = kv.range(all).await.map_err(failed("a list"))?.into_inner();
    if got.kvs.len() as u64 != KEYS {
        return Err(Error::internal(format!("a list gave {} keys", got.kvs.len())));
    }
    Ok(((now() - begun).as_secs_f64(), server.cpu() - cpu))
}

/// The same as a stream, which etcd has from 3.7 on.
async fn stream(server: &Server) -> Result<(f64, f64)> {
    let mut kv = KvClient::new(channel(&server.url).await?).max_decoding_message_size(ANSWER_MAX);
    let (begun, cpu) = (now(), server.cpu());
    let all = RangeRequest { key: "scale/".into(), range_end: "scale0".into(), ..RangeRequest::default() };
    let mut pieces = kv.range_stream(all).await.map_err(failed("a stream"))?.into_inner();
    let mut count = 0;
    while let Some(p) = pieces.message().await.map_err(failed("a stream"))? {
        count += p.range_response.map_or(0, |r| r.kvs.len());
    }
    if count as u64 != KEYS {
        return Err(Error::internal(format!("a stream gave {count} keys")));
    }
    Ok(((now() - begun).as_secs_f64(), server.cpu() - cpu))
}

async fn count(server: &Server) -> Result<f64> {
    let mut kv = KvClient::new(channel(&server.url).await?);
    let begun = now();
    let (key, range_end) = ("scale/".into(), "scale0".into());
    let only = RangeRequest { key, range_end, count_only: true, ..RangeRequest::default() };
    let got = kv.range(only).await.map_err(failed("a count"))?.into_inner();
    if got.count as u64 != KEYS {
        return Err(Error::internal(format!("a count gave {}", got.count)));
    }
    Ok((now() - begun).as_secs_f64())
}

/// Loads, lists, counts, and starts again.
async fn keys(program: &Path, first: &[&str], base: u16) -> Result<Value> {
    let dir = folder(".bench-keys")?;
    let side = start(program, first, dir.path(), base, 1, None).await?;
    side.ready().await?;
    let ours = first[0] == OURS[0];
    let server = &side.0[0];
    let load_s = load(&server.url).await?;
    println!("  {KEYS} keys put in {load_s:.1} s");
    let loaded_mib = server.resident_mib();
    let mut counts = Vec::new();
    let mut streams = Vec::new();
    for _ in 0..LISTS {
        counts.push(count(server).await?);
        if ours {
            streams.push(stream(server).await?);
        }
    }
    // The streams' memory, before whole answers need theirs.
    let streamed_mib = peak_mib(server.pid());
    let mut lists = Vec::new();
    for _ in 0..LISTS {
        lists.push(list(server).await?);
    }
    let listed_mib = peak_mib(server.pid());
    let middle =
        |v: &[(f64, f64)], f: fn(&(f64, f64)) -> f64| crate::sample::median(v.iter().map(f).collect());
    println!("  listed in {:.2} s, peak {listed_mib:.0} MiB", middle(&lists, |l| l.0));
    for server in side.0 {
        server.kill().await?; // as by a crash
    }
    let begun = now();
    let again = start(program, first, dir.path(), base, 1, None).await?;
    again.ready().await?;
    let restart_s = (now() - begun).as_secs_f64();
    println!("  first answer {restart_s:.2} s after the start");
    Ok(json!({
        "load_s": load_s, "loaded_mib": loaded_mib, "count_s": crate::sample::median(counts),
        "list_s": middle(&lists, |l| l.0), "list_cpu_s": middle(&lists, |l| l.1), "list_peak_mib": listed_mib,
        "stream_s": if ours { middle(&streams, |l| l.0) } else { f64::NAN }, "stream_peak_mib": if ours { streamed_mib } else { f64::NAN },
        "restart_s": restart_s, "restarted_mib": again.resident_mib(),
    }))
}

/// Ten thousand watchers of a key each, on so many streams; a thousand keys change every second.
async fn watchers(program: &Path, first: &[&str], base: u16, streams: usize) -> Result<Value> {
    let dir = folder(".bench-watch")?;
    let side = start(program, first, dir.path(), base, 1, None).await?;
    side.ready().await?;
    let server = &side.0[0];
    let tasks = Tasks::new();
    let sent: Arc<Mutex<HashMap<Bytes, Instant>>> = Arc::default();
    let samples: Arc<Mutex<Samples>> = Arc::default();
    let (ready, mut created) = mpsc::channel::<()>(WATCHERS);
    let mut connections = Vec::new();
    for _ in 0..WATCH_CONNECTIONS {
        connections.push(channel(&server.url).await?);
    }
    for s in 0..streams {
        let mut client = WatchClient::new(connections[s % WATCH_CONNECTIONS].clone());
        let (to, requests) = mpsc::channel(64);
        let (sent, samples, ready) = (sent.clone(), samples.clone(), ready.clone());
        tasks.spawn("watch-requests", async move {
            for w in (s..WATCHERS).step_by(streams) {
                let create = WatchCreateRequest {
                    key: format!("watched/{w}").into(),
                    ..WatchCreateRequest::default()
                };
                let request = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
                if to.send(request).await.is_err() {
                    return;
                }
            }
            std::future::pending::<()>().await; // the stream ends with its requests
        });
        tasks.spawn("watch", async move {
            let opened = client.watch(ReceiverStream::new(requests)).await.map_err(failed("a watch"))?;
            let mut answers = opened.into_inner();
            while let Some(a) = answers.message().await.map_err(failed("a watch"))? {
                if a.created {
                    let _ = ready.send(()).await; // only the beginning is waited for
                }
                for e in a.events {
                    let key = e.kv.unwrap_or_default().key;
                    let at = sent.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
                    if let Some(at) = at {
                        samples.lock().unwrap_or_else(PoisonError::into_inner).add(now() - at);
                    }
                }
            }
            Ok::<_, Error>(())
        });
    }
    for _ in 0..WATCHERS {
        created.recv().await.ok_or_else(|| Error::internal("a watch ended"))?;
    }
    let (begun, cpu) = (now(), server.cpu());
    let kv = KvClient::new(channel(&server.url).await?);
    let total = EVENTS * WATCHED.as_secs();
    for n in 0..total {
        sleep_until(begun + Duration::from_micros(n * 1_000_000 / EVENTS)).await;
        let key = Bytes::from(format!("watched/{}", (n * 7919) % WATCHERS as u64));
        let mut kv = kv.clone();
        let sent = sent.clone();
        tasks.spawn("put", async move {
            sent.lock().unwrap_or_else(PoisonError::into_inner).insert(key.clone(), now());
            let put = PutRequest { key, value: "x".into(), ..PutRequest::default() };
            kv.put(put).await.map_err(failed("a put")).map(drop)
        });
    }
    let until = now() + Duration::from_secs(10);
    while !sent.lock().unwrap_or_else(PoisonError::into_inner).is_empty() && now() < until {
        sleep(Duration::from_millis(10)).await;
    }
    let (took, cpu) = ((now() - begun).as_secs_f64(), server.cpu() - cpu);
    let missed = sent.lock().unwrap_or_else(PoisonError::into_inner).len();
    let latency = std::mem::take(&mut *samples.lock().unwrap_or_else(PoisonError::into_inner)).summary();
    let resident = server.resident_mib();
    tasks.shutdown().await;
    println!("  p99 {} us, {:.1} % of a core", latency.p99_us, cpu / took * 100.0);
    Ok(
        json!({ "latency": latency, "cpu_percent": cpu / took * 100.0, "missed": missed, "resident_mib": resident }),
    )
}

/// A hundred thousand leases, each kept alive three times in its life.
async fn leases(program: &Path, first: &[&str], base: u16) -> Result<Value> {
    let dir = folder(".bench-lease")?;
    let side = start(program, first, dir.path(), base, 1, None).await?;
    side.ready().await?;
    let server = &side.0[0];
    let tasks = Tasks::new();
    let begun = now();
    let mut granting = Vec::new();
    let mut granted = Vec::new();
    for _ in 0..LEASE_STREAMS {
        granted.push((LeaseClient::new(channel(&server.url).await?), Vec::new()));
    }
    for g in 0..GRANTERS {
        let mut client = granted[g % LEASE_STREAMS].0.clone();
        granting.push(tasks.spawn("grant", async move {
            let mut ids = Vec::new();
            for _ in (g..LEASES).step_by(GRANTERS) {
                let grant = LeaseGrantRequest { ttl: LEASE_TTL, id: 0 };
                ids.push(client.lease_grant(grant).await.map_err(failed("a grant"))?.into_inner().id);
            }
            Ok::<_, Error>(ids)
        }));
    }
    for (g, granting) in granting.into_iter().enumerate() {
        let ids = granting.await.ok().flatten().ok_or_else(|| Error::internal("a grant ended early"))??;
        granted[g % LEASE_STREAMS].1.extend(ids);
    }
    let grant_s = (now() - begun).as_secs_f64();
    println!("  {LEASES} leases granted in {grant_s:.1} s");
    let (begun, cpu) = (now(), server.cpu());
    let end = begun + LEASED;
    let mut keeping = Vec::new();
    for (mut client, ids) in granted {
        keeping.push(tasks.spawn("keep-alive", async move {
            let (to, requests) = mpsc::channel(16);
            // etcd opens its side with the first answer, and so wants a question first.
            let _ = to.send(LeaseKeepAliveRequest { id: ids[0] }).await; // the answer tells
            let opened = client.lease_keep_alive(ReceiverStream::new(requests)).await;
            let mut answers = opened.map_err(failed("a keep-alive"))?.into_inner();
            let pause = LEASE_EVERY / ids.len() as u32;
            let (mut samples, mut due) = (Samples::default(), now());
            for (n, id) in ids.iter().cycle().enumerate() {
                sleep_until(due).await;
                due += pause;
                if now() >= end {
                    break;
                }
                let t = now();
                if n > 0 {
                    let _ = to.send(LeaseKeepAliveRequest { id: *id }).await;
                }
                let answer = timeout(LEASED, "a keep-alive", answers.message()).await?;
                let answer = answer.map_err(failed("a keep-alive"))?;
                if answer.is_none_or(|a| a.ttl != LEASE_TTL) {
                    return Err(Error::internal("a lease is gone"));
                }
                samples.add(now() - t);
            }
            Ok::<_, Error>(samples)
        }));
    }
    let mut samples = Samples::default();
    for k in keeping {
        samples.join(k.await.ok().flatten().ok_or_else(|| Error::internal("a keep-alive ended early"))??);
    }
    let (took, cpu) = ((now() - begun).as_secs_f64(), server.cpu() - cpu);
    let latency = samples.summary();
    println!(
        "  {} keep-alives, p99 {} us, {:.1} % of a core",
        latency.count,
        latency.p99_us,
        cpu / took * 100.0
    );
    Ok(json!({ "grant_s": grant_s, "latency": latency, "cpu_percent": cpu / took * 100.0,
            "per_second": latency.count as f64 / took, "cpu_us": cpu * 1e6 / latency.count.max(1) as f64, "resident_mib": server.resident_mib() }))
}

/// All cases of both sides, or `only` one.
pub async fn run(photon: &Path, only: Option<&str>) -> Result<Value> {
    let probe = folder(".bench-probe")?;
    let fdatasync = fdatasync_ms(probe.path())?;
    let wanted = |case: &str| only.is_none_or(|o| o == case);
    let etcd = Path::new("etcd");
    let how = json!({ "keys": KEYS, "value_bytes": VALUE_BYTES, "watchers": WATCHERS, "events": EVENTS, "leases": LEASES });
    let mut out = json!({ "how": how, "fdatasync_ms": fdatasync, "peer": version().await? });
    for (i, case) in
        ["keys", "watchers", "streams", "leases"].into_iter().enumerate().filter(|(_, c)| wanted(c))
    {
        let base = ports(24_000, 20 * i as u16).0;
        for (side, program, first, base) in [("ours", photon, OURS, base), ("etcd", etcd, ETCD, base + 10)] {
            println!("{case}: {side}");
            out[case][side] = match case {
                "keys" => keys(program, &first, base).await?,
                "watchers" => watchers(program, &first, base, WATCH_CONNECTIONS).await?,
                "streams" => watchers(program, &first, base, WATCHERS).await?,
                _ => leases(program, &first, base).await?,
            };
        }
    }
    Ok(out)
}
