//! NightLight run alone, as a drop-in for Prometheus.

use super::{Global, output};
use nightlight::wire::{Config, NightLight};
use photon_base::{Code, Error, Result};
use photon_rt::{task::Tasks, time::Duration};
use photon_serve::listen::Listener;
use std::net::SocketAddr;
use tokio::signal::unix::{SignalKind, signal};

/// `photon nightlight …`.
#[derive(clap::Subcommand)]
pub enum NightlightCommand {
    /// Run a Prometheus-compatible store of metrics alone: queries and remote write, in plain text on loopback.
    ///
    /// Example: photon nightlight serve --tls off --data-dir /tmp/nl --listen 127.0.0.1:9095
    #[command(verbatim_doc_comment)]
    Serve(ServeArgs),
}

/// How it is run.
#[derive(clap::Args)]
pub struct ServeArgs {
    /// `off`: plain text, on loopback only.
    #[arg(long, value_parser = ["off"], required = true)]
    tls: String,
    /// Where clients connect.
    #[arg(long, default_value = "127.0.0.1:9095", value_name = "ADDRESS:PORT")]
    listen: SocketAddr,
    /// How long samples are kept, as in 15d or 12h.
    #[arg(long, default_value = "15d", value_parser = time, value_name = "TIME")]
    retention: Duration,
    /// debug, info, warn or error.
    #[arg(long, default_value = "info", value_name = "LEVEL")]
    log_level: String,
}

fn time(text: &str) -> Result<Duration, String> {
    match nightlight::promql::duration::parse(text)? {
        0 => Err("must be greater than 0".into()),
        ms => Ok(Duration::from_millis(ms.unsigned_abs())),
    }
}

/// Runs `photon nightlight …` until a signal.
pub async fn nightlight(global: &Global, command: NightlightCommand) -> Result<()> {
    let NightlightCommand::Serve(args) = command;
    if !args.listen.ip().is_loopback() {
        return Err(Error::new(Code::Denied, format!("{} is not loopback", args.listen))
            .why("without TLS and identities everybody who reaches the port could read and write everything")
            .hint("use 127.0.0.1"));
    }
    photon_serve::logging::start(&args.log_level, false);
    // The port first: one that is taken should change nothing.
    let socket = photon_rt::net::listen(args.listen).await?;
    let tasks = Tasks::new();
    let config = Config { retention: args.retention, ..Config::default() };
    let night = NightLight::open(&global.data_dir(), config, &tasks).await?;
    let router = night.router();
    Listener {
        name: "nightlight",
        socket,
        tls: None,
        tokens: None,
        router,
        direct: None,
        lenient_authority: false,
    }
    .start(&tasks);
    output::line(&format!("ready to serve requests on http://{}", args.listen));
    let failed = |e: std::io::Error| Error::internal("cannot listen for signals").why(e);
    let mut term = signal(SignalKind::terminate()).map_err(failed)?;
    let mut int = signal(SignalKind::interrupt()).map_err(failed)?;
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    tasks.shutdown().await;
    Ok(())
}
