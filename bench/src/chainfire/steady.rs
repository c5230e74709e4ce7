//! Steady load: puts and transactions, synced before they are answered, and linearizable reads.

use super::Side;
use crate::sample::{Samples, median};
use bytes::Bytes;
use chainfire::wire::etcdserverpb::{
    Compare, PutRequest, RangeRequest, RequestOp, TxnRequest, compare::*, kv_client::KvClient,
    request_op::Request,
};
use photon_base::{Error, Result};
use photon_rt::{
    task::Tasks,
    time::{Duration, now},
};
use serde_json::{Value, json};
use tonic::transport::Channel;

pub const VALUE_BYTES: usize = 256;
pub const ROUND: Duration = Duration::from_secs(3);
pub const ROUNDS: usize = 5;
const CONNECTIONS: usize = 9;

/// What clients do, and how many at a time.
const CASES: [(&str, usize); 6] =
    [("put", 1), ("put", 64), ("put", 1000), ("txn", 1000), ("get", 64), ("get", 1000)];

/// The same with TLS: where handshakes are over, it costs with the number of requests.
const TLS_CASES: [(&str, usize); 2] = [("put", 1000), ("get", 1000)];

/// The cases of a side, or `only` the one called so (`put/64`, `put-tls/1000`).
fn cases(tls: bool, only: Option<&str>) -> impl Iterator<Item = (&'static str, usize)> {
    let all = if tls { &TLS_CASES[..] } else { &CASES[..] };
    let suffix = if tls { "-tls" } else { "" };
    all.iter().copied().filter(move |c| only.is_none_or(|o| o == format!("{}{suffix}/{}", c.0, c.1)))
}

/// Whether there is a case at all.
pub fn any(tls: bool, only: Option<&str>) -> bool {
    cases(tls, only).next().is_some()
}

/// Creates a key that must not exist.
fn create(key: Bytes, value: Bytes) -> TxnRequest {
    let absent = Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Version.into(),
        key: key.clone(),
        target_union: Some(TargetUnion::Version(0)),
        ..Compare::default()
    };
    let put = PutRequest { key, value, ..PutRequest::default() };
    let put = RequestOp { request: Some(Request::RequestPut(put)) };
    TxnRequest { compare: vec![absent], success: vec![put], ..TxnRequest::default() }
}

struct Round {
    per_second: f64,
    cpu_us: f64,
    samples: Samples,
}

async fn round(
    server: &Side,
    channels: &[Channel],
    case: (&'static str, usize),
    number: usize,
) -> Result<Round> {
    let (what, clients) = case;
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
                let failed = |e| Error::unavailable("a request failed").why(e);
                let t = now();
                let fresh = || Bytes::from(format!("bench/{what}/{number}/{c}/{n}"));
                match what {
                    "put" => {
                        let put = PutRequest { key: fresh(), value: value.clone(), ..PutRequest::default() };
                        kv.put(put).await.map_err(failed)?;
                    }
                    "txn" => {
                        let done = kv.txn(create(fresh(), value.clone())).await.map_err(failed)?;
                        if !done.into_inner().succeeded {
                            return Err(Error::internal("a fresh key exists"));
                        }
                    }
                    _ => {
                        let key = Bytes::from(format!("bench/put/{READ}/0/{}", n % READ_KEYS));
                        kv.range(RangeRequest { key, ..RangeRequest::default() }).await.map_err(failed)?;
                    }
                }
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

/// The round of puts whose keys are read.
const READ: usize = 1001;
const READ_KEYS: u64 = 100;

/// Runs all cases, or `only` one.
pub async fn compare(ours: &Side, etcd: &Side, tls: bool, only: Option<&str>) -> Result<Vec<Value>> {
    ours.ready().await?;
    etcd.ready().await?;
    let mut rows = Vec::new();
    for case in cases(tls, only) {
        let count = case.1.min(CONNECTIONS);
        let (co, ce) = (ours.connect(count).await?, etcd.connect(count).await?);
        let (mut so, mut se) = (Samples::default(), Samples::default());
        let (mut ro, mut re) = (Vec::new(), Vec::new());
        for n in 0..=ROUNDS {
            let o = round(ours, &co, case, n * 1000 + case.1).await?;
            let e = round(etcd, &ce, case, n * 1000 + case.1).await?;
            println!(
                "{}, {} clients, round {n}: ours {:.0}/s {:.0} us, etcd {:.0}/s {:.0} us",
                case.0, case.1, o.per_second, o.cpu_us, e.per_second, e.cpu_us
            );
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
        rows.push(json!({ "what": case.0, "clients": case.1, "ratio": ratio, "ours": side(&ro, so), "etcd": side(&re, se) }));
    }
    Ok(rows)
}
