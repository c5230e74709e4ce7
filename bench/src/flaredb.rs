//! FlareDB beside Debian's PostgreSQL: point work on one node, everything synced before it is answered. PostgreSQL is
//! driven by its own pgbench with prepared statements; ours by our client, which takes more CPU.

use crate::{
    peer::{Server, fdatasync_ms},
    sample::{Samples, median},
};
use bytes::Bytes;
use flaredb::{
    client::raw,
    key::{self, Mode},
    model::command::{RawWrite, Want},
    remote::{Config, Remote},
};
use photon_base::{Error, Result};
use photon_rt::{
    fs, process,
    task::Tasks,
    time::{Duration, now, sleep},
};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

const VALUE_BYTES: usize = 256;
const KEYS: u64 = 100_000;
const ROUND: Duration = Duration::from_secs(3);
const ROUNDS: usize = 5;
const CONNECTIONS: usize = 9;
const PORT: u16 = 24_479;
const PEER_PORT: u16 = 24_432;

const CASES: [(&str, usize); 6] = [("get", 1), ("put", 1), ("cas", 1), ("get", 64), ("put", 64), ("cas", 64)];

/// The user that PostgreSQL runs as when the bench runs as root: it refuses root.
const NOBODY: &str = "65534";

fn value() -> String {
    "v".repeat(VALUE_BYTES)
}

struct Round {
    per_second: f64,
    cpu_us: f64,
    samples: Samples,
}

fn failed(e: impl std::fmt::Display) -> Error {
    Error::unavailable("a request failed").why(e)
}

/// PostgreSQL in a folder of its own.
struct Postgres {
    server: Server,
    bin: PathBuf,
    dir: PathBuf,
    version: String,
}

async fn run(program: &Path, args: &[&str]) -> Result<String> {
    let out = process::run(&program.display().to_string(), args, None, Duration::from_secs(120)).await?;
    Ok(String::from_utf8_lossy(&out).into_owned())
}

/// What begins a command so that it does not run as root.
async fn unprivileged() -> Result<Vec<String>> {
    let id = run(Path::new("id"), &["-u"]).await?;
    let drop = ["setpriv", "--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", "--"];
    Ok(if id.trim() == "0" { drop.map(String::from).to_vec() } else { vec!["env".into()] })
}

impl Postgres {
    async fn start(dir: &Path) -> Result<Postgres> {
        let mut found: Vec<PathBuf> = Vec::new();
        for e in fs::read_dir(Path::new("/usr/lib/postgresql")).into_iter().flatten().flatten() {
            found.push(e.path().join("bin"));
        }
        found.sort();
        let bin = found.pop().ok_or_else(|| {
            Error::not_found("PostgreSQL").hint("./dev bench flaredb installs it: apt-get install postgresql")
        })?;
        let version = run(&bin.join("postgres"), &["--version"]).await?.trim().to_string();
        let first = unprivileged().await?;
        let first: Vec<&str> = first.iter().map(String::as_str).collect();
        if first.len() > 1 {
            run(Path::new("chown"), &["-R", NOBODY, &dir.display().to_string()]).await?;
        }
        let data = dir.join("data").display().to_string();
        let program = |name: &str| bin.join(name).display().to_string();
        let initdb = program("initdb");
        let more = ["-D", &data, "-U", "bench", "-A", "trust", "--locale", "C", "-E", "UTF8"];
        let args = [&first[1..], &[initdb.as_str()], &more[..]].concat();
        run(Path::new(first[0]), &args).await?;
        // Its defaults, which sync every commit; said again, because the figures rest on it.
        let (postgres, port) = (program("postgres"), PEER_PORT.to_string());
        let more = [
            "-D",
            &data,
            "-p",
            &port,
            "-c",
            "listen_addresses=127.0.0.1",
            "-c",
            "unix_socket_directories=",
            "-c",
            "fsync=on",
            "-c",
            "synchronous_commit=on",
            "-c",
            "full_page_writes=on",
        ];
        let args = [&first[1..], &[postgres.as_str()], &more[..]].concat();
        let server = Server::start(Path::new(first[0]), &args, PEER_PORT).await?;
        let me = Postgres { server, bin, dir: dir.to_path_buf(), version };
        // It listens before it is ready.
        let until = now() + Duration::from_secs(30);
        while let Err(e) = me.sql("SELECT 1").await {
            if now() > until {
                return Err(e);
            }
            sleep(Duration::from_millis(50)).await;
        }
        let sql = format!(
            "CREATE TABLE kv (k bigint PRIMARY KEY, v text NOT NULL); \
             INSERT INTO kv SELECT k, '{}' FROM generate_series(0, {}) k; VACUUM ANALYZE kv; CHECKPOINT;",
            value(),
            KEYS - 1
        );
        // One by one: a VACUUM stands alone.
        for one in sql.split_inclusive(';') {
            me.sql(one).await?;
        }
        Ok(me)
    }

    async fn sql(&self, text: &str) -> Result<String> {
        let port = PEER_PORT.to_string();
        let more = ["-X", "-q", "-v", "ON_ERROR_STOP=1", "-c", text];
        let args = [&["-h", "127.0.0.1", "-p", &port, "-U", "bench", "-d", "postgres"], &more[..]].concat();
        run(&self.bin.join("psql"), &args).await
    }

    /// CPU time of all its processes, those that ended included: whoever forks them has waited for them.
    fn cpu(&self) -> f64 {
        let mut ticks = 0.0;
        let me = self.server.pid();
        for e in fs::read_dir(Path::new("/proc")).into_iter().flatten().flatten() {
            let Some(pid) = e.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
            let at = |i: usize| fields.get(i).and_then(|f| f.parse::<f64>().ok()).unwrap_or(0.0);
            if pid == me {
                ticks += at(11) + at(12) + at(13) + at(14);
            } else if at(1) == f64::from(me) {
                ticks += at(11) + at(12);
            }
        }
        ticks / 100.0
    }

    async fn round(&self, case: (&str, usize), number: usize) -> Result<Round> {
        let (what, clients) = case;
        let v = value();
        let sql = match what {
            "get" => "SELECT v FROM kv WHERE k = :id;".to_string(),
            "put" => {
                format!("INSERT INTO kv VALUES (:id, '{v}') ON CONFLICT (k) DO UPDATE SET v = excluded.v;")
            }
            _ => format!("UPDATE kv SET v = '{v}' WHERE k = :id AND v = '{v}';"),
        };
        let script = self.dir.join(format!("{what}.sql"));
        fs::write_atomic(&script, format!("\\set id random(0, {})\n{sql}\n", KEYS - 1).as_bytes(), 0o644)?;
        let logs = self.dir.join(format!("logs-{what}-{clients}-{number}"));
        fs::create_dir_all(&logs).map_err(failed)?;
        let (port, seconds, clients) =
            (PEER_PORT.to_string(), ROUND.as_secs().to_string(), clients.to_string());
        let (script, prefix) = (script.display().to_string(), logs.join("l").display().to_string());
        let threads = if clients == "1" { "1" } else { "2" };
        let args = [
            "-h",
            "127.0.0.1",
            "-p",
            &port,
            "-U",
            "bench",
            "-n",
            "-M",
            "prepared",
            "-f",
            &script,
            "-c",
            &clients,
            "-j",
            threads,
            "-T",
            &seconds,
            "-l",
            "--log-prefix",
            &prefix,
            "postgres",
        ];
        let cpu = self.cpu();
        let said = run(&self.bin.join("pgbench"), &args).await?;
        let cpu = self.cpu() - cpu;
        let tps =
            said.lines().find_map(|l| l.strip_prefix("tps = ")?.split_whitespace().next()?.parse().ok());
        let per_second: f64 = tps.ok_or_else(|| Error::internal("pgbench gave no figure").why(&said))?;
        let mut samples = Samples::default();
        let mut n = 0u64;
        for e in fs::read_dir(&logs).into_iter().flatten().flatten() {
            // client, transaction, microseconds, …
            for line in fs::read_to_string(e.path()).unwrap_or_default().lines() {
                if let Some(us) = line.split(' ').nth(2).and_then(|f| f.parse().ok()) {
                    samples.add(Duration::from_micros(us));
                    n += 1;
                }
            }
        }
        fs::remove_dir_all(&logs).map_err(failed)?;
        if n == 0 {
            return Err(Error::internal("pgbench logged nothing"));
        }
        Ok(Round { per_second, cpu_us: cpu * 1e6 / n as f64, samples })
    }

    /// Ends it in a way that leaves no shared memory behind.
    async fn stop(mut self) -> Result<()> {
        run(Path::new("kill"), &["-QUIT", &self.server.pid().to_string()]).await?;
        self.server.child.wait().await.map_err(failed).map(drop)
    }
}

fn full(n: u64) -> Bytes {
    key::key(Mode::Raw, format!("key{n:08}").as_bytes()).expect("a short key")
}

async fn load(db: &Remote) -> Result<()> {
    for from in (0..KEYS).step_by(1000) {
        let write = |n| RawWrite { key: full(n), value: Some(value().into()) };
        let all = (from..(from + 1000).min(KEYS)).map(write).collect();
        raw::commit(db, Vec::new(), all).await.map_err(|e| e.error())?;
    }
    Ok(())
}

async fn round(server: &Server, db: &Remote, case: (&'static str, usize)) -> Result<Round> {
    let (what, clients) = case;
    let tasks = Tasks::new();
    let (begun, cpu) = (now(), server.cpu());
    let end = begun + ROUND;
    let mut running = Vec::new();
    for _ in 0..clients {
        let (db, value) = (db.clone(), Bytes::from(value()));
        running.push(tasks.spawn("client", async move {
            let mut samples = Samples::default();
            let mut n = 0u64;
            while now() < end {
                let key = full(photon_rt::entropy::u64() % KEYS);
                let t = now();
                match what {
                    "get" => {
                        raw::get(&db, &key)
                            .await
                            .map_err(failed)?
                            .ok_or_else(|| Error::not_found("a key"))?;
                    }
                    "put" => drop(raw::put(&db, key, value.clone()).await.map_err(failed)?),
                    _ => {
                        let want = Want::Value(value.clone());
                        raw::cas(&db, key, want, Some(value.clone())).await.map_err(failed)?;
                    }
                }
                samples.add(now() - t);
                n += 1;
            }
            Ok::<_, Error>((samples, n))
        }));
    }
    let (mut samples, mut all) = (Samples::default(), 0);
    for r in running {
        let (s, n) = r.await.ok().flatten().ok_or_else(|| Error::internal("a client ended early"))??;
        samples.join(s);
        all += n;
    }
    let per_second = all as f64 / (now() - begun).as_secs_f64();
    Ok(Round { per_second, cpu_us: (server.cpu() - cpu) * 1e6 / all.max(1) as f64, samples })
}

/// Not below the checkout, which may lie where only root may look, and not in memory.
fn folder(prefix: &str) -> Result<tempfile::TempDir> {
    let made = tempfile::Builder::new().prefix(prefix).tempdir_in("/var/tmp");
    made.map_err(|e| Error::internal("no folder").why(e))
}

/// Runs both sides interleaved.
pub async fn measure(photon: &Path, only: Option<&str>) -> Result<Value> {
    let (ours_dir, peer_dir) = (folder("bench-flaredb")?, folder("bench-postgres")?);
    let fdatasync = fdatasync_ms(ours_dir.path())?;
    let (data, listen) = (ours_dir.path().join("data").display().to_string(), format!("127.0.0.1:{PORT}"));
    let args =
        ["--data-dir", &data, "flaredb", "serve", "--tls", "off", "--listen", &listen, "--log-level", "warn"];
    let ours = Server::start(photon, &args, PORT).await?;
    let config = Config { connections: CONNECTIONS, ..Config::plain(&ours.url) };
    let db = Remote::open(config).await?;
    load(&db).await?;
    let peer = Postgres::start(peer_dir.path()).await?;
    let mut rows = Vec::new();
    for case in CASES {
        if only.is_some_and(|o| o != format!("{}/{}", case.0, case.1)) {
            continue;
        }
        let (mut so, mut sp) = (Samples::default(), Samples::default());
        let (mut ro, mut rp) = (Vec::new(), Vec::new());
        for n in 0..=ROUNDS {
            let o = round(&ours, &db, case).await?;
            let p = peer.round(case, n).await?;
            println!(
                "{}, {} clients, round {n}: ours {:.0}/s {:.0} us, PostgreSQL {:.0}/s {:.0} us",
                case.0, case.1, o.per_second, o.cpu_us, p.per_second, p.cpu_us
            );
            if n == 0 {
                continue; // warm-up
            }
            so.join(o.samples);
            sp.join(p.samples);
            ro.push((o.per_second, o.cpu_us));
            rp.push((p.per_second, p.cpu_us));
        }
        let ratio = median(ro.iter().zip(&rp).map(|(o, p)| o.0 / p.0).collect());
        let side = |r: &[(f64, f64)], s: Samples| {
            json!({ "per_second": median(r.iter().map(|x| x.0).collect()), "cpu_us": median(r.iter().map(|x| x.1).collect()),
                    "latency": s.summary() })
        };
        rows.push(json!({ "what": case.0, "clients": case.1, "ratio": ratio, "ours": side(&ro, so), "peer": side(&rp, sp) }));
    }
    let (version, resident) = (peer.version.clone(), ours.resident_mib());
    peer.stop().await?;
    ours.kill().await?;
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    Ok(json!({
        "value_bytes": VALUE_BYTES, "keys": KEYS, "rounds": ROUNDS, "round_seconds": ROUND.as_secs(),
        "fdatasync_ms": fdatasync, "peer": version, "resident_mib": resident,
        "load": load.split(' ').next().unwrap_or_default(), "rows": rows,
    }))
}
