//! One service run alone, as a drop-in.

use super::{Global, output};
use chainfire::{ChainFire, ChainFireConfig, Scope};
use photon_base::{Code, Error, Result};
use photon_rt::task::Tasks;
use photon_serve::listen::Listener;
use std::{net::SocketAddr, path::PathBuf};
use tokio::signal::unix::{SignalKind, signal};

/// `photon chainfire …`.
#[derive(clap::Subcommand)]
pub enum ChainfireCommand {
    /// Run an etcd-compatible store alone, in plain text, on loopback only.
    ///
    /// Example: photon chainfire serve --tls off --data-dir /tmp/cf --listen-client-urls http://127.0.0.1:2379
    Serve {
        /// Must be `off`: with TLS and identities ChainFire runs inside `photon up`.
        #[arg(long)]
        tls: String,
        /// Where clients connect.
        #[arg(long, default_value = "http://127.0.0.1:2379", value_name = "URL")]
        listen_client_urls: String,
        /// Name of this member.
        #[arg(long, default_value = "default")]
        name: String,
    },
    /// Save the store to a file, look at such a file, restore it.
    #[command(subcommand)]
    Snapshot(super::chainfire::SnapshotCommand),
}

/// Runs ChainFire until a signal.
pub async fn chainfire(global: &Global, command: ChainfireCommand) -> Result<()> {
    let (tls, listen_client_urls, name) = match command {
        ChainfireCommand::Serve { tls, listen_client_urls, name } => (tls, listen_client_urls, name),
        ChainfireCommand::Snapshot(c) => return super::chainfire::snapshot(global, c).await,
    };
    if tls != "off" {
        return Err(Error::new(Code::Unsupported, "ChainFire alone serves plain text only")
            .why("TLS needs the cluster's authority, which `photon up` makes")
            .hint("photon up; or --tls off on a loopback address"));
    }
    let addr: SocketAddr = listen_client_urls
        .strip_prefix("http://")
        .and_then(|a| a.trim_end_matches('/').parse().ok())
        .ok_or_else(|| Error::invalid("listen-client-urls", "is not http://ADDRESS:PORT"))?;
    if !addr.ip().is_loopback() {
        return Err(Error::new(Code::Denied, format!("{addr} is not loopback"))
            .why("without TLS and identities everybody who reaches the port could read and write everything")
            .hint("use 127.0.0.1, or `photon up` for TLS"));
    }
    photon_serve::logging::start("info", false);
    let dir: PathBuf = global.data_dir();
    let mut config = ChainFireConfig::new(dir);
    config.name = name;
    config.client_urls = vec![listen_client_urls.clone()];
    let store = ChainFire::open(config).await?;
    let tasks = Tasks::new();
    let socket = photon_rt::net::listen(addr).await?;
    let router = store.router().layer(axum::Extension(Scope::Operator));
    Listener { name: "chainfire", socket, tls: None, tokens: None, router, lenient_authority: true }
        .start(&tasks);
    output::line(&format!("ready to serve client requests on {listen_client_urls}"));
    let failed = |e: std::io::Error| Error::internal("cannot listen for signals").why(e);
    let mut term = signal(SignalKind::terminate()).map_err(failed)?;
    let mut int = signal(SignalKind::interrupt()).map_err(failed)?;
    tokio::select! { _ = term.recv() => {} _ = int.recv() => {} }
    tasks.shutdown().await;
    store.shutdown().await;
    Ok(())
}
