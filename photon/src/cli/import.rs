//! `photon chainfire import`: copies a running etcd.

use super::{Format, Global, output};
use crate::node::Paths;
use chainfire::import::{Import, Progress, import};
use photon_base::{Error, Result};
use photon_client::Profile;
use photon_etcd::{Config, Etcd, config::Files};
use photon_rt::time::{Duration, Instant, now};
use std::{future::Future, path::PathBuf};
use tokio::signal::unix::{SignalKind, signal};

/// Copy a running etcd into a ChainFire (or another etcd).
///
/// Keys are copied as of one revision, with their leases: same numbers, granted their whole time again. Revisions
/// and versions are the target's own, so clients have to read anew after the cut-over. A cloud's own records
/// (below /photon.internal/) are left out unless --prefix names them.
///
/// With --follow what happens after that revision is copied too, until Ctrl-C or SIGTERM: stop the writers, then
/// interrupt; it ends when the last change has arrived.
///
/// Example: photon chainfire import --from http://127.0.0.1:22379 --follow
#[derive(clap::Args)]
pub struct ImportArgs {
    /// The etcd to copy: its endpoints.
    #[arg(long, value_name = "URL[,URL…]")]
    from: String,
    /// The authority of its certificates (PEM), for https.
    #[arg(long, value_name = "FILE")]
    from_ca: Option<PathBuf>,
    /// A certificate to show it.
    #[arg(long, value_name = "FILE")]
    from_cert: Option<PathBuf>,
    /// Its key.
    #[arg(long, value_name = "FILE")]
    from_key: Option<PathBuf>,
    /// File with USER:PASSWORD of its users.
    #[arg(long, value_name = "FILE")]
    from_login: Option<PathBuf>,
    /// The target; by default the cloud of this machine, as its admin.
    #[arg(long, env = "ETCDCTL_ENDPOINTS", value_name = "URL[,URL…]")]
    endpoints: Option<String>,
    /// The authority of the target's certificates (PEM).
    #[arg(long, env = "ETCDCTL_CACERT", value_name = "FILE")]
    cacert: Option<PathBuf>,
    /// A certificate to show the target.
    #[arg(long, env = "ETCDCTL_CERT", value_name = "FILE")]
    cert: Option<PathBuf>,
    /// Its key.
    #[arg(long, env = "ETCDCTL_KEY", value_name = "FILE")]
    key: Option<PathBuf>,
    /// File with USER:PASSWORD of the target's users.
    #[arg(long, value_name = "FILE")]
    login: Option<PathBuf>,
    /// Only keys that begin with this.
    #[arg(long, default_value = "")]
    prefix: String,
    /// Write over what the target has.
    #[arg(long)]
    merge: bool,
    /// Go on with what happens after, until interrupted.
    #[arg(long)]
    follow: bool,
}

/// Between two lines about how far it is.
const TOLD_EVERY: Duration = Duration::from_secs(1);

/// Runs it.
pub async fn run(global: &Global, args: ImportArgs) -> Result<()> {
    let from = Files {
        ca: args.from_ca.as_deref(),
        cert: args.from_cert.as_deref(),
        key: args.from_key.as_deref(),
        login: args.from_login.as_deref(),
    };
    // Ordinary callers see no cloud's own records, nor may they ask for them.
    let home = if args.prefix.is_empty() { "\0".to_string() } else { args.prefix.clone() };
    let from = Etcd::open(Config::with_files(&args.from, &from)?.with_home(home.clone())).await?;
    let to = Etcd::open(target(global, &args)?.with_home(home)).await?;
    let import_ = Import { prefix: args.prefix.clone().into(), merge: args.merge };
    let mut teller = Teller { format: global.output, told: now(), following: false };
    let tell = |p: &Progress| teller.tell(p);
    let done = match args.follow {
        true => Box::pin(import(&from, &to, import_, Some(interrupted()?), tell)).await?,
        false => {
            let never = None::<std::future::Pending<()>>;
            Box::pin(import(&from, &to, import_, never, tell)).await?
        }
    };
    from.shutdown().await;
    to.shutdown().await;
    match global.output {
        Format::Table | Format::Name => {
            output::line(&format!(
                "{} keys and {} leases of revision {}, then {} changes up to revision {}",
                done.keys, done.leases, done.revision, done.changes, done.followed
            ));
            if done.left_out > 0 {
                output::line(&format!(
                    "{} keys left out: a cloud's own records, below /photon.internal/",
                    done.left_out
                ));
            }
        }
        Format::Json => output::line(&event("done", &done).to_string()),
        f => output::value(f, &event("done", &done)),
    }
    Ok(())
}

fn target(global: &Global, args: &ImportArgs) -> Result<Config> {
    let paths = Paths::new(&global.data_dir());
    let (ca, cert, key) = (paths.creds("ca.crt"), paths.creds("admin.crt"), paths.creds("admin.key"));
    let login = args.login.as_deref();
    match &args.endpoints {
        Some(urls) => {
            let (ca, cert, key) = (args.cacert.as_deref(), args.cert.as_deref(), args.key.as_deref());
            // `photon env` exports certificates that a plain-text target has no use for.
            let files = match urls.starts_with("http://") {
                true => Files { login, ..Files::default() },
                false => Files { ca, cert, key, login },
            };
            Config::with_files(urls, &files)
        }
        None if paths.coordinator().exists() => {
            Err(Error::invalid("endpoints", "is missing: this cloud has no store of its own")
                .hint("--endpoints says where to copy to"))
        }
        None => {
            let files = Files { ca: Some(&ca), cert: Some(&cert), key: Some(&key), login };
            Config::with_files(&own_store(&Profile::load(&paths.creds("admin.json"))?)?, &files)
        }
    }
}

/// The ChainFire port beside the front door.
pub fn own_store(profile: &Profile) -> Result<String> {
    beside(profile, 2379)
}

/// Another port beside the front door.
pub fn beside(profile: &Profile, number: u16) -> Result<String> {
    let front: http::Uri =
        profile.door().parse().map_err(|e| Error::invalid("endpoint", "is not a URL").why(e))?;
    let (host, port) = (front.host().unwrap_or("127.0.0.1"), front.port_u16().unwrap_or(8443));
    // All ports of a node are moved by the same number.
    let moved = (u32::from(port) + u32::from(number)).checked_sub(u32::from(crate::services::FRONT.number));
    let port = moved.and_then(|p| u16::try_from(p).ok()).ok_or_else(|| {
        Error::invalid(
            "endpoint",
            format!("port {port} is no front door of a node: the others are counted from it"),
        )
        .hint("log in at the front door of a node: photon login --endpoint https://HOST:8443")
    })?;
    Ok(format!("https://{host}:{port}"))
}

fn interrupted() -> Result<impl Future<Output = ()>> {
    let failed = |e: std::io::Error| Error::internal("cannot listen for signals").why(e);
    let mut term = signal(SignalKind::terminate()).map_err(failed)?;
    let mut int = signal(SignalKind::interrupt()).map_err(failed)?;
    Ok(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
    })
}

fn event(name: &str, p: &Progress) -> serde_json::Value {
    let mut v = serde_json::to_value(p).unwrap_or_default();
    v["event"] = name.into();
    v
}

/// Says how far it is, once a second: to people on standard error, to programs one JSON event a line.
struct Teller {
    format: Format,
    told: Instant,
    following: bool,
}

impl Teller {
    fn tell(&mut self, p: &Progress) {
        // That the tail begins is told at once: writers may be stopped from now on.
        let turn = p.followed > 0 && !self.following;
        self.following |= turn;
        if !turn && now() - self.told < TOLD_EVERY {
            return;
        }
        self.told = now();
        match self.format {
            Format::Json => output::line(&event("progress", p).to_string()),
            _ if self.following => {
                eprintln!("following: {} changes, at revision {}", p.changes, p.followed);
            }
            _ => eprintln!("copying: {} of {} keys, {} leases", p.keys, p.total, p.leases),
        }
    }
}
