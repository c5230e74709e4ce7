//! NightLight run alone, as a drop-in for Prometheus.

use super::{Global, output};
use nightlight::wire::{About, Config, NightLight};
use photon_base::{Code, Error, Result};
use photon_rt::{task::Tasks, time::Duration};
use photon_serve::listen::Listener;
use std::{net::SocketAddr, path::PathBuf};
use tokio::signal::unix::{SignalKind, signal};

/// `photon nightlight …`.
#[derive(clap::Subcommand)]
pub enum NightlightCommand {
    /// Run a Prometheus alone, in plain text on loopback: it scrapes, takes remote write, and answers queries.
    ///
    /// Examples:
    ///   photon nightlight serve --tls off --data-dir /tmp/nl --listen 127.0.0.1:9095
    ///   photon nightlight serve --tls off --config.file prometheus.yml --storage.tsdb.path data
    ///
    /// SIGHUP or POST /-/reload reads the configuration, and the rule files that it names, again.
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
    #[arg(
        long,
        visible_alias = "web.listen-address",
        default_value = "127.0.0.1:9095",
        value_name = "ADDRESS:PORT"
    )]
    listen: SocketAddr,
    /// What to scrape: Prometheus' configuration file. Without it nothing is scraped.
    #[arg(long = "config.file", visible_alias = "config-file", value_name = "FILE")]
    config_file: Option<PathBuf>,
    /// Folder of the samples, instead of --data-dir.
    #[arg(long = "storage.tsdb.path", value_name = "DIR")]
    path: Option<PathBuf>,
    /// How long samples are kept, as in 15d or 12h.
    #[arg(long, visible_alias = "storage.tsdb.retention.time", default_value = "15d", value_parser = time, value_name = "TIME")]
    retention: Duration,
    /// Where people find it, for links in alerts; else where it listens.
    #[arg(long = "web.external-url", value_name = "URL")]
    external_url: Option<String>,
    /// debug, info, warn or error.
    #[arg(long, default_value = "info", value_name = "LEVEL")]
    log_level: String,
}

impl ServeArgs {
    /// By the names that Prometheus' users know.
    fn flags(&self, dir: &std::path::Path) -> Vec<(String, String)> {
        let file = self.config_file.as_deref().unwrap_or(std::path::Path::new(""));
        let retention = nightlight::promql::duration::print(self.retention.as_millis() as i64);
        [
            ("config.file", file.display().to_string()),
            ("storage.tsdb.path", dir.display().to_string()),
            ("storage.tsdb.retention.time", retention),
            ("web.listen-address", self.listen.to_string()),
            ("log.level", self.log_level.clone()),
        ]
        .map(|(n, v)| (n.to_string(), v))
        .to_vec()
    }
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
    let dir = args.path.clone().unwrap_or_else(|| global.data_dir());
    let mut about = About::new(args.flags(&dir), args.config_file.clone());
    about.external_url = args.external_url.clone().unwrap_or_else(|| format!("http://{}", args.listen));
    let night = NightLight::open_as(&dir, config, about, &tasks).await?;
    if args.config_file.is_some() {
        night.reload().await?;
    }
    let rules = night.rules().clone();
    let page = move || async move {
        ([("content-type", "text/plain; version=0.0.4")], photon_serve::metrics::text() + &rules.metrics())
    };
    let router = night.router().route("/metrics", axum::routing::get(page));
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
    let mut hup = signal(SignalKind::hangup()).map_err(failed)?;
    loop {
        tokio::select! {
            _ = term.recv() => break,
            _ = int.recv() => break,
            _ = hup.recv() => match night.reload().await {
                Ok(()) => tracing::info!("the configuration was read again"),
                Err(e) => tracing::error!(error = %e, "the configuration stays as it was"),
            },
        }
    }
    tasks.shutdown().await;
    Ok(())
}
