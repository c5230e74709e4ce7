//! ChainFire beside Debian's etcd, one process of each and three: puts, synced before they are answered, and
//! linearizable reads.

use crate::{
    peer::{Server, fdatasync_ms},
    sample::{Samples, median},
};
use bytes::Bytes;
use chainfire::wire::etcdserverpb::{PutRequest, RangeRequest, kv_client::KvClient};
use photon_base::{Error, Result};
use photon_rt::{
    task::Tasks,
    time::{Duration, now, sleep},
};
use serde_json::{Value, json};
use std::path::Path;
use tonic::transport::{Channel, Endpoint};

const VALUE_BYTES: usize = 256;
const ROUND: Duration = Duration::from_secs(3);
const ROUNDS: usize = 5;
const CONNECTIONS: usize = 9;

/// What clients do, and how many at a time.
const CASES: [(&str, usize); 4] = [("put", 1), ("put", 64), ("put", 1000), ("get", 64)];

/// The processes of one side; clients are spread over them.
struct Side(Vec<Server>);

impl Side {
    fn cpu(&self) -> f64 {
        self.0.iter().map(Server::cpu).sum()
    }

    fn resident_mib(&self) -> f64 {
        self.0.iter().map(Server::resident_mib).sum()
    }

    async fn connect(&self, count: usize) -> Result<Vec<Channel>> {
        let mut all = Vec::new();
        for i in 0..count.max(self.0.len()) {
            let url = self.0[i % self.0.len()].url.clone();
            let e = Endpoint::from_shared(url).map_err(|e| Error::internal("not a URL").why(e))?;
            all.push(
                e.tcp_nodelay(true)
                    .connect()
                    .await
                    .map_err(|e| Error::unavailable("cannot connect").why(e))?,
            );
        }
        Ok(all)
    }

    /// Waits until every process serves.
    async fn ready(&self) -> Result<()> {
        for channel in self.connect(1).await? {
            let until = now() + Duration::from_secs(30);
            let mut kv = KvClient::new(channel);
            let key = RangeRequest { key: "x".into(), ..Default::default() };
            while let Err(e) = kv.range(key.clone()).await {
                if now() > until {
                    return Err(Error::unavailable("a cluster does not come up").why(e));
                }
                sleep(Duration::from_millis(50)).await;
            }
        }
        Ok(())
    }
}

struct Round {
    per_second: f64,
    cpu_us: f64,
    samples: Samples,
}

async fn round(server: &Side, channels: &[Channel], case: (&str, usize), number: usize) -> Result<Round> {
    let (put, clients) = (case.0 == "put", case.1);
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
                if put {
                    let key = format!("bench/{number}/{c}/{n}").into_bytes().into();
                    let request = PutRequest { key, value: value.clone(), ..PutRequest::default() };
                    kv.put(request).await.map_err(failed)?;
                } else {
                    let key = format!("bench/{READ}/0/{}", n % READ_KEYS).into_bytes().into();
                    kv.range(RangeRequest { key, ..RangeRequest::default() }).await.map_err(failed)?;
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

async fn compare(ours: &Side, etcd: &Side) -> Result<Vec<Value>> {
    ours.ready().await?;
    etcd.ready().await?;
    let mut rows = Vec::new();
    for case in CASES {
        let count = case.1.min(CONNECTIONS);
        let (co, ce) = (ours.connect(count).await?, etcd.connect(count).await?);
        let (mut so, mut se) = (Samples::default(), Samples::default());
        let (mut ro, mut re) = (Vec::new(), Vec::new());
        for n in 0..=ROUNDS {
            let o = round(ours, &co, case, n * 1000 + case.1).await?;
            let e = round(etcd, &ce, case, n * 1000 + case.1).await?;
            let (what, clients) = case;
            println!(
                "{what}, {clients} clients, round {n}: ours {:.0}/s, etcd {:.0}/s",
                o.per_second, e.per_second
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

/// The ports of a member: clients', peers'.
fn ports(base: u16, member: u16) -> (u16, u16) {
    (base + 2 * member, base + 2 * member + 1)
}

async fn start(program: &Path, first: &[&str], dir: &Path, base: u16, members: u16) -> Result<Side> {
    let url = |port: u16| format!("http://127.0.0.1:{port}");
    let cluster: Vec<String> = (0..members).map(|m| format!("m{m}={}", url(ports(base, m).1))).collect();
    let mut side = Vec::new();
    for m in 0..members {
        let (client, peer) = ports(base, m);
        let (name, data) = (format!("m{m}"), dir.join(m.to_string()).display().to_string());
        let (client_url, peer_url, all) = (url(client), url(peer), cluster.join(","));
        let mut args = first.to_vec();
        args.extend(["--name", &name, "--data-dir", &data, "--listen-client-urls", &client_url]);
        args.extend(["--advertise-client-urls", &client_url, "--listen-peer-urls", &peer_url]);
        args.extend(["--initial-advertise-peer-urls", &peer_url, "--initial-cluster", &all]);
        side.push(Server::start(program, &args, client).await?);
    }
    Ok(Side(side))
}

/// Runs both sides interleaved, as one process each and as clusters of three.
pub async fn run(photon: &Path) -> Result<Value> {
    let folder = |p: &str| {
        tempfile::Builder::new().prefix(p).tempdir_in(".").map_err(|e| Error::internal("no folder").why(e))
    };
    let mut sizes = Vec::new();
    let mut fdatasync = 0.0;
    for (members, base) in [(1, 23_700), (3, 23_800)] {
        let (ours_dir, etcd_dir) = (folder(".bench-ours")?, folder(".bench-etcd")?);
        let ours =
            start(photon, &["chainfire", "serve", "--tls", "off"], ours_dir.path(), base, members).await?;
        let etcd =
            start(Path::new("etcd"), &["--log-level", "error"], etcd_dir.path(), base + 50, members).await?;
        fdatasync = fdatasync_ms(ours_dir.path())?;
        println!("{members} process(es) each");
        let rows = compare(&ours, &etcd).await?;
        let resident = json!({ "ours": ours.resident_mib(), "etcd": etcd.resident_mib() });
        sizes.push(json!({ "members": members, "resident_mib": resident, "rows": rows }));
    }
    let version = photon_rt::process::run("etcd", &["--version"], None, ROUND).await?;
    let version = String::from_utf8_lossy(&version).lines().next().unwrap_or_default().to_string();
    Ok(json!({
        "value_bytes": VALUE_BYTES, "rounds": ROUNDS, "round_seconds": ROUND.as_secs(), "fdatasync_ms": fdatasync,
        "peer": version, "sizes": sizes,
    }))
}
