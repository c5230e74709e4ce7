//! ChainFire beside Debian's etcd: steady load on one process of each and on three ([`steady`]), and what grows with
//! the number of keys, watchers and leases ([`scale`]), and of bytes ([`huge`]).

pub mod huge;
pub mod scale;
mod steady;
mod tls;

use crate::peer::{Server, fdatasync_ms};
use chainfire::wire::etcdserverpb::{RangeRequest, kv_client::KvClient};
use photon_base::{Error, Result};
use photon_rt::time::{Duration, now, sleep};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use steady::{ROUND, ROUNDS, VALUE_BYTES};
use tls::Tls;
use tonic::transport::{Channel, Endpoint};

/// The processes of one side; clients are spread over them.
struct Side(Vec<Server>, Option<Arc<Tls>>);

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
            let server = &self.0[i % self.0.len()];
            if let Some(tls) = &self.1 {
                all.push(tls.connect(server.port).await?);
                continue;
            }
            let url = server.url.clone();
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

/// The ports of a member: clients', peers'.
fn ports(base: u16, member: u16) -> (u16, u16) {
    (base + 2 * member, base + 2 * member + 1)
}

async fn start(
    program: &Path,
    first: &[&str],
    dir: &Path,
    base: u16,
    members: u16,
    tls: Option<&Arc<Tls>>,
) -> Result<Side> {
    let scheme = if tls.is_some() { "https" } else { "http" };
    let flags = tls.map(|t| t.flags()).unwrap_or_default();
    let url = |port: u16| format!("{scheme}://127.0.0.1:{port}");
    let cluster: Vec<String> = (0..members).map(|m| format!("m{m}={}", url(ports(base, m).1))).collect();
    let mut side = Vec::new();
    for m in 0..members {
        let (client, peer) = ports(base, m);
        let (name, data) = (format!("m{m}"), dir.join(m.to_string()).display().to_string());
        let (client_url, peer_url, all) = (url(client), url(peer), cluster.join(","));
        let mut args = first.to_vec();
        args.extend(flags.iter().map(String::as_str));
        args.extend(["--name", &name, "--data-dir", &data, "--listen-client-urls", &client_url]);
        args.extend(["--advertise-client-urls", &client_url, "--listen-peer-urls", &peer_url]);
        args.extend(["--initial-advertise-peer-urls", &peer_url, "--initial-cluster", &all]);
        side.push(Server::start(program, &args, client).await?);
    }
    Ok(Side(side, tls.cloned()))
}

/// How each begins. etcd's quota is raised to what it allows, and it may take as much in a transaction as ours.
const OURS: [&str; 4] = ["chainfire", "serve", "--tls", "off"];
/// With certificates instead.
const OURS_TLS: [&str; 2] = ["chainfire", "serve"];
const ETCD: [&str; 4] = ["--log-level", "error", "--quota-backend-bytes", "8589934592"];

fn folder(prefix: &str) -> Result<tempfile::TempDir> {
    // On the disk of the checkout, not in memory.
    tempfile::Builder::new().prefix(prefix).tempdir_in(".").map_err(|e| Error::internal("no folder").why(e))
}

async fn version() -> Result<String> {
    let version = photon_rt::process::run("etcd", &["--version"], None, ROUND).await?;
    Ok(String::from_utf8_lossy(&version).lines().next().unwrap_or_default().to_string())
}

/// Runs both sides interleaved: as one process each, as clusters of three, as one each with TLS.
pub async fn run(photon: &Path, only: Option<&str>) -> Result<Value> {
    let mut sizes = Vec::new();
    let mut fdatasync = 0.0;
    for (members, base, secure) in [(1, 23_700, false), (3, 23_800, false), (1, 23_900, true)] {
        if !steady::any(secure, only) {
            continue;
        }
        let tls = if secure { Some(Arc::new(Tls::new()?)) } else { None };
        let ours_first = if secure { &OURS_TLS[..] } else { &OURS[..] };
        let (ours_dir, etcd_dir) = (folder(".bench-ours")?, folder(".bench-etcd")?);
        let ours = start(photon, ours_first, ours_dir.path(), base, members, tls.as_ref()).await?;
        let etcd = start(Path::new("etcd"), &ETCD, etcd_dir.path(), base + 50, members, tls.as_ref()).await?;
        fdatasync = fdatasync_ms(ours_dir.path())?;
        println!("{members} process(es) each{}", if secure { ", TLS" } else { "" });
        let rows = steady::compare(&ours, &etcd, secure, only).await?;
        let resident = json!({ "ours": ours.resident_mib(), "etcd": etcd.resident_mib() });
        sizes.push(json!({ "members": members, "tls": secure, "resident_mib": resident, "rows": rows }));
    }
    let version = version().await?;
    Ok(json!({
        "value_bytes": VALUE_BYTES, "rounds": ROUNDS, "round_seconds": ROUND.as_secs(), "fdatasync_ms": fdatasync,
        "peer": version, "sizes": sizes,
    }))
}
