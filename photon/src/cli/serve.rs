//! One service run alone, as a drop-in.

use super::{Global, output};
use chainfire::{
    ChainFire, ChainFireConfig, Scope,
    cluster::{Connect, Founder, Peering, PlainTcp, TlsTcp},
};
use photon_auth::{CertPair, LiveCertificate, mutual_config};
use photon_base::{Code, Error, Result};
use photon_rt::{net::TcpListener, task::Tasks, time::Duration};
use photon_serve::listen::Listener;
use std::{net::SocketAddr, path::PathBuf, sync::Arc};
use tokio::signal::unix::{SignalKind, signal};

/// `photon chainfire …`.
#[derive(clap::Subcommand)]
pub enum ChainfireCommand {
    /// Run an etcd-compatible store alone: with certificates on both sides, or in plain text on loopback.
    ///
    /// One member: photon chainfire serve --tls off --data-dir /tmp/cf --listen-client-urls http://127.0.0.1:2379
    ///
    /// One of three, each with its own name, folder and ports:
    /// photon chainfire serve --tls off --name a --data-dir /tmp/a --listen-client-urls http://127.0.0.1:2379
    /// --listen-peer-urls http://127.0.0.1:2380
    /// --initial-cluster a=http://127.0.0.1:2380,b=http://127.0.0.1:3380,c=http://127.0.0.1:4380
    ///
    /// A member that joins later: etcdctl member add d --peer-urls http://127.0.0.1:5380, then start it with
    /// --initial-cluster-state existing and an --initial-cluster that names it and at least one other member.
    ///
    /// On a network, instead of --tls off, with https URLs: --cert-file, --key-file, --trusted-ca-file and the same
    /// with --peer- before it. Whoever has a certificate of that authority may do everything.
    #[command(verbatim_doc_comment)]
    Serve(Box<ServeArgs>),
    /// Give this member, whose log is damaged or gone, a new place in its cluster. Wipes what it has.
    ///
    /// The other members must run and this one must not. Takes the flags of `serve`; start it with the same
    /// flags as before then.
    ///
    /// Example: photon chainfire rejoin --tls off --name b --data-dir /tmp/b
    /// --initial-cluster a=http://127.0.0.1:2380,b=http://127.0.0.1:3380,c=http://127.0.0.1:4380
    #[command(verbatim_doc_comment)]
    Rejoin(Box<ServeArgs>),
    /// Make a new cluster of one out of what a stopped member has on disk, when the quorum is lost for good.
    ///
    /// Members of the old cluster cannot come back into it; add new ones.
    ///
    /// Example: photon chainfire recover --data-dir /tmp/b --name b --peer-url http://127.0.0.1:3380
    Recover {
        /// Name of the member.
        #[arg(long, env = "ETCD_NAME", default_value = "default")]
        name: String,
        /// Where members will reach it.
        #[arg(long, value_name = "URL")]
        peer_url: String,
    },
    /// Save the store to a file, look at such a file, restore it.
    #[command(subcommand)]
    Snapshot(super::chainfire::SnapshotCommand),
    Import(Box<super::import::ImportArgs>),
}

/// etcd's names, where they have a meaning here.
#[derive(clap::Args)]
pub struct ServeArgs {
    /// `off`: plain text, on loopback only.
    #[arg(long, value_parser = ["off"])]
    tls: Option<String>,
    #[command(flatten)]
    certificates: Certificates,
    /// Name of this member.
    #[arg(long, env = "ETCD_NAME", default_value = "default")]
    name: String,
    /// Where clients connect.
    #[arg(
        long,
        env = "ETCD_LISTEN_CLIENT_URLS",
        default_value = "http://127.0.0.1:2379",
        value_name = "URL,…"
    )]
    listen_client_urls: String,
    /// Where `/metrics` and `/health` are served too, in plain text.
    #[arg(long, env = "ETCD_LISTEN_METRICS_URLS", value_name = "URL,…")]
    listen_metrics_urls: Option<String>,
    /// Where clients are told to connect; default: where they do.
    #[arg(long, env = "ETCD_ADVERTISE_CLIENT_URLS", value_name = "URL")]
    advertise_client_urls: Option<String>,
    /// Where other members connect. Without it and --initial-cluster there are no others.
    #[arg(long, env = "ETCD_LISTEN_PEER_URLS", value_name = "URL")]
    listen_peer_urls: Option<String>,
    /// Where other members are told to connect; default: where they do.
    #[arg(long, env = "ETCD_INITIAL_ADVERTISE_PEER_URLS", value_name = "URL")]
    initial_advertise_peer_urls: Option<String>,
    /// All founders, or for one that joins itself and some members; default: this member alone.
    #[arg(long, env = "ETCD_INITIAL_CLUSTER", value_name = "NAME=URL,…")]
    initial_cluster: Option<String>,
    /// Whether the cluster is founded now, or is there already.
    #[arg(long, env = "ETCD_INITIAL_CLUSTER_STATE", value_parser = ["new", "existing"], default_value = "new")]
    initial_cluster_state: String,
    /// Tells clusters apart that are founded with the same URLs.
    #[arg(long, env = "ETCD_INITIAL_CLUSTER_TOKEN", default_value = "etcd-cluster")]
    initial_cluster_token: String,
    /// Time without a sign of life after which a member stands for election, milliseconds.
    #[arg(long, env = "ETCD_ELECTION_TIMEOUT", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(50..=50_000))]
    election_timeout: u64,
    /// How often an idle watch that asked for it hears how far it is, as in 10m or 5s.
    #[arg(long, env = "ETCD_EXPERIMENTAL_WATCH_PROGRESS_NOTIFY_INTERVAL", default_value = "10m", value_parser = super::etcd::duration, value_name = "TIME")]
    watch_progress_notify_interval: Duration,
    /// How often the leader compares what members hold; 0 never.
    #[arg(long, env = "ETCD_EXPERIMENTAL_CORRUPT_CHECK_TIME", default_value = "1h", value_parser = super::etcd::duration, value_name = "TIME")]
    corrupt_check_time: Duration,
    /// Forget history by itself: what is older than this time, as in 1h (a bare number is hours), or with
    /// --auto-compaction-mode revision all but so many revisions; 0: never, clients compact.
    #[arg(long, env = "ETCD_AUTO_COMPACTION_RETENTION", default_value = "0", value_name = "TIME or NUMBER")]
    auto_compaction_retention: String,
    /// What the retention counts.
    #[arg(long, env = "ETCD_AUTO_COMPACTION_MODE", value_parser = ["periodic", "revision"], default_value = "periodic")]
    auto_compaction_mode: String,
    /// Bytes of the disk to keep free: below, writes are refused until there is room again (alarm NOSPACE).
    /// Default: a fiftieth, 192 MiB to 2 GiB, but at most a quarter. 0: do not watch.
    #[arg(long, value_name = "BYTES")]
    disk_reserve: Option<u64>,
    /// debug, info, warn or error.
    #[arg(long, env = "ETCD_LOG_LEVEL", default_value = "info", value_name = "LEVEL")]
    log_level: String,
}

/// Who lets whom in, in etcd's names. Both sides show a certificate, always.
#[derive(clap::Args)]
struct Certificates {
    /// Certificate shown to clients (PEM).
    #[arg(long, env = "ETCD_CERT_FILE", value_name = "FILE", conflicts_with = "tls", requires_all = ["key_file", "trusted_ca_file"])]
    cert_file: Option<PathBuf>,
    /// Its key.
    #[arg(long, env = "ETCD_KEY_FILE", value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// The authority whose certificates let clients in.
    #[arg(long, env = "ETCD_TRUSTED_CA_FILE", value_name = "FILE")]
    trusted_ca_file: Option<PathBuf>,
    /// Always so; taken because etcd takes it.
    #[arg(long, env = "ETCD_CLIENT_CERT_AUTH")]
    client_cert_auth: bool,
    /// Certificate shown to other members (PEM).
    #[arg(long, env = "ETCD_PEER_CERT_FILE", value_name = "FILE", requires_all = ["peer_key_file", "peer_trusted_ca_file"])]
    peer_cert_file: Option<PathBuf>,
    /// Its key.
    #[arg(long, env = "ETCD_PEER_KEY_FILE", value_name = "FILE")]
    peer_key_file: Option<PathBuf>,
    /// The authority whose certificates let members in.
    #[arg(long, env = "ETCD_PEER_TRUSTED_CA_FILE", value_name = "FILE")]
    peer_trusted_ca_file: Option<PathBuf>,
    /// Always so; taken because etcd takes it.
    #[arg(long, env = "ETCD_PEER_CLIENT_CERT_AUTH")]
    peer_client_cert_auth: bool,
}

/// A certificate with its key, and the authority that others must be of.
struct Files {
    pair: CertPair,
    ca: String,
}

impl Files {
    fn read(cert: &Option<PathBuf>, key: &Option<PathBuf>, ca: &Option<PathBuf>) -> Result<Option<Files>> {
        let (Some(cert), Some(key), Some(ca)) = (cert, key, ca) else { return Ok(None) };
        let text = |p: &PathBuf| photon_rt::fs::read_text(p, 1 << 20);
        Ok(Some(Files { pair: CertPair { cert_pem: text(cert)?, key_pem: text(key)? }, ca: text(ca)? }))
    }
}

impl Certificates {
    fn for_clients(&self) -> Result<Option<Files>> {
        Files::read(&self.cert_file, &self.key_file, &self.trusted_ca_file)
    }

    fn for_members(&self) -> Result<Option<Files>> {
        Files::read(&self.peer_cert_file, &self.peer_key_file, &self.peer_trusted_ca_file)
    }
}

/// Addresses to listen on, of URLs with commas between. In plain text only loopback's: anything else would
/// serve everybody, as there are no identities.
fn addresses(flag: &str, urls: &str, tls: bool) -> Result<Vec<SocketAddr>> {
    urls.split(',').map(|url| address(flag, url.trim(), tls)).collect()
}

fn address(flag: &str, url: &str, tls: bool) -> Result<SocketAddr> {
    let scheme = if tls { "https://" } else { "http://" };
    let local =
        |a: &str| a.strip_prefix("localhost:").map_or_else(|| a.to_string(), |p| format!("127.0.0.1:{p}"));
    let addr: SocketAddr = url
        .strip_prefix(scheme)
        .and_then(|a| local(a.trim_end_matches('/')).parse().ok())
        .ok_or_else(|| Error::invalid(flag, format!("{url:?} is not {scheme}ADDRESS:PORT")))?;
    if !tls && !addr.ip().is_loopback() {
        return Err(Error::new(Code::Denied, format!("{addr} is not loopback"))
            .why("without TLS and identities everybody who reaches the port could read and write everything")
            .hint("use 127.0.0.1, or --cert-file, --key-file, --trusted-ca-file"));
    }
    Ok(addr)
}

/// Where others are may be a name; what follows it is checked when it is dialled.
fn reachable(flag: &str, url: &str, tls: bool) -> Result<()> {
    let named = url.strip_prefix("https://").and_then(|a| a.trim_end_matches('/').rsplit_once(':'));
    match named {
        Some((host, port)) if tls && !host.is_empty() && port.parse::<u16>().is_ok() => Ok(()),
        _ => address(flag, url, tls).map(drop),
    }
}

impl ServeArgs {
    /// Where members connect to this one, and how it finds the others.
    fn peering(&self, files: Option<&Files>) -> Result<Option<(Vec<SocketAddr>, Peering)>> {
        let tls = files.is_some();
        let advertised = self.initial_advertise_peer_urls.as_ref().or(self.listen_peer_urls.as_ref());
        let initial = match (&self.initial_cluster, advertised) {
            (None, None) => return Ok(None),
            (Some(text), _) => founders(text)?,
            (None, Some(url)) => vec![Founder::new(&self.name, url)],
        };
        let connect: Arc<dyn Connect> = match files {
            Some(f) => Arc::new(TlsTcp::new(LiveCertificate::new(&f.pair)?, &f.ca)?),
            None => Arc::new(PlainTcp),
        };
        let existing = self.initial_cluster_state == "existing";
        let token = self.initial_cluster_token.clone();
        let peering = Peering { existing, token, ..Peering::new(initial, connect) };
        let me = peering.me(&self.name)?;
        let is_mine =
            |a: &String| a.split(',').any(|a| a.trim_end_matches('/') == me.peer_url.trim_end_matches('/'));
        if advertised.is_some_and(|a| !is_mine(a)) {
            return Err(Error::invalid("initial-cluster", "names another URL for this member than its own")
                .hint("--initial-advertise-peer-urls (or --listen-peer-urls) must agree with it"));
        }
        let listen = self.listen_peer_urls.as_deref().unwrap_or(&me.peer_url);
        let listen = addresses("listen-peer-urls", listen, tls)?;
        for f in &peering.initial {
            reachable("initial-cluster", &f.peer_url, tls)?;
        }
        Ok(Some((listen, peering)))
    }
}

fn founders(text: &str) -> Result<Vec<Founder>> {
    let one = |part: &str| {
        let (name, url) = part.split_once('=').filter(|(n, u)| !n.is_empty() && !u.is_empty())?;
        Some(Founder::new(name, url))
    };
    let all: Option<Vec<Founder>> = text.split(',').map(|p| one(p.trim())).collect();
    all.ok_or_else(|| Error::invalid("initial-cluster", format!("{text:?} is not NAME=URL,NAME=URL,…")))
}

/// Runs `photon chainfire …`.
pub async fn chainfire(global: &Global, command: ChainfireCommand) -> Result<()> {
    match command {
        ChainfireCommand::Serve(args) => serve(global, *args).await,
        ChainfireCommand::Rejoin(args) => {
            let members = args.certificates.for_members()?;
            let (_, peering) = args.peering(members.as_ref())?.ok_or_else(|| {
                Error::invalid("initial-cluster", "must name this member and at least one other")
            })?;
            super::chainfire::rejoin(global, &args.name, &peering).await
        }
        ChainfireCommand::Recover { name, peer_url } => {
            super::chainfire::recover(global, name, peer_url).await
        }
        ChainfireCommand::Snapshot(c) => super::chainfire::snapshot(global, c).await,
        ChainfireCommand::Import(args) => super::import::run(global, *args).await,
    }
}

/// Runs ChainFire until a signal.
async fn serve(global: &Global, args: ServeArgs) -> Result<()> {
    let (clients, members) = (args.certificates.for_clients()?, args.certificates.for_members()?);
    if args.tls.is_none() && clients.is_none() {
        return Err(Error::invalid("tls", "ChainFire alone needs certificates, or --tls off")
            .hint("--cert-file F --key-file F --trusted-ca-file F; or --tls off on loopback; or photon up"));
    }
    let addrs = addresses("listen-client-urls", &args.listen_client_urls, clients.is_some())?;
    let metrics = args.listen_metrics_urls.as_deref().unwrap_or_default();
    let metrics = match metrics {
        "" => Vec::new(),
        urls => addresses("listen-metrics-urls", urls, false)?,
    };
    let peering = args.peering(members.as_ref())?;
    let tls = |files: &Option<Files>, alpn: &[&str]| {
        files.as_ref().map(|f| mutual_config(LiveCertificate::new(&f.pair)?, &f.ca, alpn)).transpose()
    };
    let (client_tls, peer_tls) = (tls(&clients, &["h2", "http/1.1"])?, tls(&members, &[])?);
    photon_serve::logging::start(&args.log_level, false);
    let mut config = ChainFireConfig::new(global.data_dir());
    config.name = args.name.clone();
    let advertised = args.advertise_client_urls.as_ref().unwrap_or(&args.listen_client_urls);
    config.client_urls = advertised.split(',').map(|u| u.trim().to_string()).collect();
    config.progress_interval = args.watch_progress_notify_interval;
    config.election = Duration::from_millis(args.election_timeout);
    config.corrupt_check = args.corrupt_check_time;
    config.retention = super::etcd::retention(&args.auto_compaction_mode, &args.auto_compaction_retention)?;
    config.reserve = args.disk_reserve;
    // All ports before anything else: a port that is taken should change nothing.
    let (sockets, pages) = (bind(&addrs).await?, bind(&metrics).await?);
    let peers = match &peering {
        Some((addrs, p)) => {
            config.peer_urls =
                p.initial.iter().filter(|f| f.name == args.name).map(|f| f.peer_url.clone()).collect();
            config.peering = Some(p.clone());
            bind(addrs).await?
        }
        None => Vec::new(),
    };
    let store = ChainFire::open(config).await?;
    for socket in peers {
        store.serve_peers(socket, peer_tls.clone())?;
    }
    let tasks = Tasks::new();
    let router = store
        .router()
        .layer(axum::Extension(Scope::Operator))
        // Nobody has proven anything: with etcd's authentication enabled, callers log in.
        .layer(axum::Extension(chainfire::Anonymous));
    // The same for gRPC, without the router.
    let direct = store.direct(|_| Some((Scope::Operator, false)));
    let listen = |socket, tls, router, direct| {
        Listener { name: "chainfire", socket, tls, tokens: None, router, direct, lenient_authority: true }
            .start(&tasks);
    };
    sockets.into_iter().for_each(|s| listen(s, client_tls.clone(), router.clone(), Some(direct.clone())));
    let status = store.status_pages().layer(axum::Extension(Scope::Operator));
    pages.into_iter().for_each(|s| listen(s, None, status.clone(), None));
    output::line(&format!("ready to serve client requests on {}", args.listen_client_urls));
    let failed = |e: std::io::Error| Error::internal("cannot listen for signals").why(e);
    let mut term = signal(SignalKind::terminate()).map_err(failed)?;
    let mut int = signal(SignalKind::interrupt()).map_err(failed)?;
    let ended = tokio::select! {
        _ = term.recv() => None,
        _ = int.recv() => None,
        why = store.failed() => Some(why),
    };
    tasks.shutdown().await;
    store.shutdown().await;
    match ended {
        None => Ok(()),
        Some(why) => Err(why),
    }
}

async fn bind(addrs: &[SocketAddr]) -> Result<Vec<TcpListener>> {
    let mut sockets = Vec::new();
    for addr in addrs {
        sockets.push(photon_rt::net::listen(*addr).await?);
    }
    Ok(sockets)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: ServeArgs,
    }

    fn peering(line: &str) -> Result<Option<(Vec<SocketAddr>, Peering)>> {
        let words = ["x", "--tls", "off"].into_iter().chain(line.split_whitespace());
        Line::try_parse_from(words).map_err(|e| Error::invalid("line", e.to_string()))?.args.peering(None)
    }

    #[test]
    fn members_are_named_as_for_etcd_and_stay_on_loopback() {
        assert!(peering("").expect("alone").is_none());
        let (addr, one) = peering("--listen-peer-urls http://127.0.0.1:2380").expect("valid").expect("peers");
        assert_eq!((addr[0].port(), one.initial.len(), one.existing), (2380, 1, false));
        let three =
            "--name b --initial-cluster a=http://127.0.0.1:1,b=http://127.0.0.1:2/,c=http://127.0.0.1:3";
        let (addr, p) = peering(three).expect("valid").expect("peers");
        assert_eq!((addr[0].port(), p.initial.len()), (2, 3));
        for wrong in [
            "--initial-cluster a=http://127.0.0.1:1",
            "--name a --initial-cluster a",
            "--name a --initial-cluster a=http://10.0.0.1:1",
            "--name a --initial-cluster a=http://127.0.0.1:1,b=http://10.0.0.1:1",
            "--name a --initial-cluster a=https://127.0.0.1:1",
            "--name a --listen-peer-urls http://127.0.0.1:9 --initial-cluster a=http://127.0.0.1:1",
            "--initial-cluster-state old",
        ] {
            assert!(peering(wrong).is_err(), "{wrong}");
        }
    }
}
