//! The door: Prometheus' HTTP API v1 (`api`, `targets`, `rules`, `status`), federation, remote write (`write`), OTLP (`otlp`), and upkeep of the
//! store behind it.
//!
//! Invariants: every body, answer and query is bounded; work on the store and in the engine happens off the runtime's
//! threads; a query whose caller's time is up is ended, not forgotten.

mod api;
mod exemplars;
mod explain;
mod federate;
mod otlp;
mod pack;
mod params;
mod rules;
mod status;
mod targets;
mod tree;
mod write;

use crate::{
    rules::Rules,
    scrape::{Scraper, config as scraping},
    store::{Keep, Options, Store, StoreError},
};
use axum::{
    Router,
    extract::Request,
    http::{StatusCode, header},
    middleware::{Next, from_fn},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use photon_base::{Code, Error, Result};
use photon_rt::{
    disk::RealDisk,
    task::{Tasks, blocking},
    time::{Duration, sleep, wall},
};
use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

/// How often the store is looked after.
const UPKEEP: Duration = Duration::from_secs(30);

/// How a NightLight behaves.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Blocks that hold nothing newer are forgotten.
    pub retention: Duration,
    /// Beyond this the oldest blocks are forgotten.
    pub retention_bytes: Option<u64>,
    /// How the store behaves.
    pub store: Options,
}

/// How a process was started, for those who ask.
pub struct About {
    /// Names and values.
    pub flags: Vec<(String, String)>,
    /// What is scraped, as a file in Prometheus' form.
    pub file: Option<PathBuf>,
    /// Where people find it, for links in alerts.
    pub external_url: String,
    /// When, milliseconds; and when the file was read last, and whether it could be.
    pub(crate) started_ms: u64,
    pub(crate) reload: Mutex<(u64, bool)>,
}

impl About {
    /// Started now, with these flags and this file.
    pub fn new(flags: Vec<(String, String)>, file: Option<PathBuf>) -> Self {
        let now = wall().0;
        About { flags, file, external_url: String::new(), started_ms: now, reload: Mutex::new((now, true)) }
    }
}

impl Default for Config {
    fn default() -> Self {
        Config {
            retention: Duration::from_secs(15 * 86_400),
            retention_bytes: None,
            store: Options::default(),
        }
    }
}

/// A store with its doors.
#[derive(Clone)]
pub struct NightLight {
    store: Arc<Store>,
    config: Config,
    scraper: Scraper,
    rules: Rules,
    about: Arc<About>,
}

fn failed(e: &StoreError) -> Error {
    let code = match e {
        StoreError::TooLarge(_) => Code::Invalid,
        _ => Code::Internal,
    };
    Error::new(code, "the store of samples did not open").why(e)
}

impl NightLight {
    /// Opens the store in `dir` and looks after it until `tasks` end. Nothing is scraped yet.
    pub async fn open(dir: &Path, config: Config, tasks: &Tasks) -> Result<Self> {
        Self::open_as(dir, config, About::new(Vec::new(), None), tasks).await
    }

    /// [`NightLight::open`] by a process that was started so.
    pub async fn open_as(dir: &Path, config: Config, about: About, tasks: &Tasks) -> Result<Self> {
        let disk = RealDisk::open(dir)?;
        let store =
            blocking(move || Store::open(Arc::new(disk), config.store)).await.map_err(|e| failed(&e))?;
        let store = Arc::new(store);
        let scraper = Scraper::new(store.clone(), tasks);
        let about = Arc::new(about);
        let rules = Rules::new(store.clone(), about.external_url.trim_end_matches('/').to_string(), tasks);
        let this = NightLight { store, config, scraper, rules, about };
        let upkeep = this.clone();
        tasks.spawn("upkeep", async move {
            loop {
                sleep(UPKEEP).await;
                upkeep.look_after().await;
            }
        });
        Ok(this)
    }

    /// Who asks targets.
    pub fn scraper(&self) -> &Scraper {
        &self.scraper
    }

    /// Reads the configuration file again; one that is wrong changes nothing.
    pub async fn reload(&self) -> Result<()> {
        let Some(file) = self.about.file.clone() else {
            return Err(Error::new(Code::Denied, "there is no configuration file to be read again"));
        };
        let read = blocking(move || {
            let config = scraping::Config::load(&file)?;
            let groups = crate::rules::load(&config)?;
            Ok::<_, String>((config, groups))
        });
        let read = read.await;
        *crate::scrape::lock(&self.about.reload) = (wall().0, read.is_ok());
        let (config, groups) = read.map_err(|e| Error::invalid("config.file", "cannot be used").why(e))?;
        self.rules.apply(groups, &config);
        self.scraper.apply(config);
        Ok(())
    }

    /// Who evaluates rules.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// Cuts when the log is long, forgets what is too old or too much, merges blocks.
    async fn look_after(&self) {
        let (store, retention) = (self.store.clone(), self.config.retention.as_millis() as i64);
        // Blocks that are forgotten a tenth too late at the most.
        let keep = Keep {
            since_ms: Some(wall().0 as i64 - retention),
            bytes: self.config.retention_bytes,
            span_ms: Some(retention / 10),
        };
        let done = blocking(move || store.look_after(keep));
        if let Err(e) = done.await {
            tracing::error!(error = %e, "upkeep of the store failed");
        }
    }

    /// Everything on one port.
    pub fn router(&self) -> Router {
        Router::new()
            .route("/api/v1/query", get(api::query).post(api::query))
            .route("/api/v1/query_range", get(api::query_range).post(api::query_range))
            .route("/api/v1/query_exemplars", get(exemplars::exemplars).post(exemplars::exemplars))
            .route("/api/v1/explain", get(explain::explain).post(explain::explain))
            .route("/api/v1/series", get(api::series).post(api::series))
            .route("/api/v1/labels", get(api::labels).post(api::labels))
            .route("/api/v1/label/{name}/values", get(api::label_values))
            .route("/api/v1/format_query", get(api::format_query).post(api::format_query))
            .route("/api/v1/parse_query", get(api::parse_query).post(api::parse_query))
            .route("/api/v1/metadata", get(targets::metadata))
            .route("/api/v1/targets", get(targets::targets))
            .route("/api/v1/targets/metadata", get(targets::target_metadata))
            .route("/api/v1/scrape_pools", get(targets::scrape_pools))
            .route("/api/v1/rules", get(rules::rules))
            .route("/api/v1/alerts", get(rules::alerts))
            .route("/api/v1/alertmanagers", get(rules::alertmanagers))
            .route("/api/v1/status/config", get(status::config))
            .route("/api/v1/status/flags", get(status::flags))
            .route("/api/v1/status/runtimeinfo", get(status::runtimeinfo))
            .route("/api/v1/status/buildinfo", get(api::buildinfo))
            .route("/api/v1/status/tsdb", get(api::tsdb))
            .route("/api/v1/write", post(write::write))
            .route("/api/v1/otlp/v1/metrics", post(otlp::http))
            .merge(otlp::routes())
            .route("/federate", get(federate::federate))
            .route("/-/reload", post(status::reload).put(status::reload))
            .route("/-/healthy", get(|| async { "NightLight is Healthy.\n" }))
            .route("/-/ready", get(|| async { "NightLight is Ready.\n" }))
            .layer(from_fn(one_tenant))
            .layer(from_fn(pack::answers))
            .with_state(self.clone())
    }
}

/// There is one tenant yet: whoever names another would read and write somebody else's samples.
async fn one_tenant(request: Request, next: Next) -> Response {
    match request.headers().get("x-scope-orgid") {
        Some(tenant) if tenant != "anonymous" => {
            let text = "tenants are not supported by this version: send no X-Scope-OrgID, or \"anonymous\"\n";
            (StatusCode::BAD_REQUEST, [(header::CONTENT_TYPE, "text/plain; charset=utf-8")], text)
                .into_response()
        }
        _ => next.run(request).await,
    }
}
