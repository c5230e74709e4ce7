//! One service run alone, as a drop-in.

use super::{Global, output};
use chainfire::{
    ChainFire, ChainFireConfig, Scope,
    cluster::{Connect, Founder, Peering, PlainTcp, TlsTcp},
};
use photon_auth::{CertPair, LiveCertificate, mutual_config};
use photon_base::{Code, Error, Result};
use photon_rt::task::Tasks;
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
        value_name = "URL"
    )]
    listen_client_urls: String,
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

/// The address of a URL. In plain text only loopback's: anything else would serve everybody, as there are no
/// identities.
fn address(flag: &str, url: &str, tls: bool) -> Result<SocketAddr> {
    let scheme = if tls { "https://" } else { "http://" };
    let addr: SocketAddr = url
        .strip_prefix(scheme)
        .and_then(|a| a.trim_end_matches('/').parse().ok())
        .ok_or_else(|| Error::invalid(flag, format!("{url:?} is not {scheme}ADDRESS:PORT")))?;
    if !tls && !addr.ip().is_loopback() {
        return Err(Error::new(Code::Denied, format!("{addr} is not loopback"))
            .why("without TLS and identities everybody who reaches the port could read and write everything")
            .hint("use 127.0.0.1, or --cert-file, --key-file, --trusted-ca-file"));
    }
    Ok(addr)
}

impl ServeArgs {
    /// Where members connect to this one, and how it finds the others.
    fn peering(&self, files: Option<&Files>) -> Result<Option<(SocketAddr, Peering)>> {
        let address = |flag: &str, url: &str| address(flag, url, files.is_some());
        let advertised = self.initial_advertise_peer_urls.as_ref().or(self.listen_peer_urls.as_ref());
        let initial = match (&self.initial_cluster, advertised) {
            (None, None) => return Ok(None),
            (Some(text), _) => founders(text)?,
            (None, Some(url)) => vec![Founder::new(&self.name, url)],
        };
        let me = initial.iter().find(|f| f.name == self.name).ok_or_else(|| {
            Error::invalid("initial-cluster", format!("does not name this member, {:?}", self.name))
                .hint("--name must be one of the names in --initial-cluster")
        })?;
        if advertised.is_some_and(|a| a.trim_end_matches('/') != me.peer_url.trim_end_matches('/')) {
            return Err(Error::invalid("initial-cluster", "names another URL for this member than its own")
                .hint("--initial-advertise-peer-urls (or --listen-peer-urls) must agree with it"));
        }
        let listen = address("listen-peer-urls", self.listen_peer_urls.as_deref().unwrap_or(&me.peer_url))?;
        for f in &initial {
            address("initial-cluster", &f.peer_url)?;
        }
        let connect: Arc<dyn Connect> = match files {
            Some(f) => Arc::new(TlsTcp::new(LiveCertificate::new(&f.pair)?, &f.ca)?),
            None => Arc::new(PlainTcp),
        };
        let existing = self.initial_cluster_state == "existing";
        let token = self.initial_cluster_token.clone();
        Ok(Some((listen, Peering { existing, token, ..Peering::new(initial, connect) })))
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

/// Runs ChainFire until a signal.
pub async fn chainfire(global: &Global, command: ChainfireCommand) -> Result<()> {
    let args = match command {
        ChainfireCommand::Serve(args) => args,
        ChainfireCommand::Snapshot(c) => return super::chainfire::snapshot(global, c).await,
        ChainfireCommand::Import(args) => return super::import::run(global, *args).await,
    };
    let (clients, members) = (args.certificates.for_clients()?, args.certificates.for_members()?);
    if args.tls.is_none() && clients.is_none() {
        return Err(Error::invalid("tls", "ChainFire alone needs certificates, or --tls off")
            .hint("--cert-file F --key-file F --trusted-ca-file F; or --tls off on loopback; or photon up"));
    }
    let addr = address("listen-client-urls", &args.listen_client_urls, clients.is_some())?;
    let peering = args.peering(members.as_ref())?;
    let tls = |files: &Option<Files>, alpn: &[&str]| {
        files.as_ref().map(|f| mutual_config(LiveCertificate::new(&f.pair)?, &f.ca, alpn)).transpose()
    };
    let (client_tls, peer_tls) = (tls(&clients, &["h2", "http/1.1"])?, tls(&members, &[])?);
    photon_serve::logging::start("info", false);
    let mut config = ChainFireConfig::new(global.data_dir());
    config.name = args.name.clone();
    config.client_urls =
        vec![args.advertise_client_urls.clone().unwrap_or_else(|| args.listen_client_urls.clone())];
    // Both ports before anything else: a port that is taken should change nothing.
    let socket = photon_rt::net::listen(addr).await?;
    let peers = match &peering {
        Some((addr, p)) => {
            config.peer_urls =
                p.initial.iter().filter(|f| f.name == args.name).map(|f| f.peer_url.clone()).collect();
            config.peering = Some(p.clone());
            Some(photon_rt::net::listen(*addr).await?)
        }
        None => None,
    };
    let store = ChainFire::open(config).await?;
    if let Some(socket) = peers {
        store.serve_peers(socket, peer_tls)?;
    }
    let tasks = Tasks::new();
    let router = store
        .router()
        .layer(axum::Extension(Scope::Operator))
        // Nobody has proven anything: with etcd's authentication enabled, callers log in.
        .layer(axum::Extension(chainfire::Anonymous));
    Listener { name: "chainfire", socket, tls: client_tls, tokens: None, router, lenient_authority: true }
        .start(&tasks);
    output::line(&format!("ready to serve client requests on {}", args.listen_client_urls));
    let failed = |e: std::io::Error| Error::internal("cannot listen for signals").why(e);
    let mut term = signal(SignalKind::terminate()).map_err(failed)?;
    let mut int = signal(SignalKind::interrupt()).map_err(failed)?;
    let ended = tokio::select! {
        _ = term.recv() => None,
        _ = int.recv() => None,
        why = store.ended() => Some(why),
    };
    tasks.shutdown().await;
    store.shutdown().await;
    match ended {
        None => Ok(()),
        Some(why) => Err(Error::internal("the store stopped")
            .why(why)
            .hint("nothing acknowledged is lost; see to the disk and start it again")),
    }
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

    fn peering(line: &str) -> Result<Option<(SocketAddr, Peering)>> {
        let words = ["x", "--tls", "off"].into_iter().chain(line.split_whitespace());
        Line::try_parse_from(words).map_err(|e| Error::invalid("line", e.to_string()))?.args.peering(None)
    }

    #[test]
    fn members_are_named_as_for_etcd_and_stay_on_loopback() {
        assert!(peering("").expect("alone").is_none());
        let (addr, one) = peering("--listen-peer-urls http://127.0.0.1:2380").expect("valid").expect("peers");
        assert_eq!((addr.port(), one.initial.len(), one.existing), (2380, 1, false));
        let three =
            "--name b --initial-cluster a=http://127.0.0.1:1,b=http://127.0.0.1:2/,c=http://127.0.0.1:3";
        let (addr, p) = peering(three).expect("valid").expect("peers");
        assert_eq!((addr.port(), p.initial.len()), (2, 3));
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
