//! What this process is and how it was started: `/api/v1/status`, `/-/healthy`, `/-/ready`, `/-/reload`.

use super::{NightLight, api::success};
use crate::engine::Notes;
use axum::{extract::State, http::StatusCode, response::Response};
use photon_base::Timestamp;
use serde_json::json;

pub(super) async fn config(State(this): State<NightLight>) -> Response {
    let yaml = this.scraper.config().shown.clone();
    success(&json!({ "yaml": yaml }).to_string(), &Notes::default())
}

pub(super) async fn flags(State(this): State<NightLight>) -> Response {
    let flags: serde_json::Map<String, serde_json::Value> =
        this.about.flags.iter().map(|(n, v)| (n.clone(), v.as_str().into())).collect();
    success(&serde_json::Value::Object(flags).to_string(), &Notes::default())
}

pub(super) async fn runtimeinfo(State(this): State<NightLight>) -> Response {
    let reload = *crate::scrape::lock(&this.about.reload);
    let instant = |t: u64| Timestamp(t).to_string();
    let data = json!({
        "startTime": instant(this.about.started_ms),
        "CWD": std::env::current_dir().map(|d| d.display().to_string()).unwrap_or_default(),
        "hostname": "",
        "serverTime": instant(photon_rt::time::wall().0),
        "reloadConfigSuccess": reload.1,
        "lastConfigTime": instant(reload.0),
        "corruptionCount": 0,
        "goroutineCount": 0,
        "GOMAXPROCS": std::thread::available_parallelism().map_or(1, usize::from),
        "GOMEMLIMIT": 0,
        "GOGC": "",
        "GODEBUG": "",
        "storageRetention": crate::promql::duration::print(this.config.retention.as_millis() as i64),
    });
    success(&data.to_string(), &Notes::default())
}

/// Reads the configuration again. One that is wrong changes nothing.
pub(super) async fn reload(State(this): State<NightLight>) -> (StatusCode, String) {
    match this.reload().await {
        Ok(()) => (StatusCode::OK, String::new()),
        Err(e) if this.about.file.is_none() => (StatusCode::FORBIDDEN, format!("{e}\n")),
        Err(e) => (StatusCode::INTERNAL_SERVER_ERROR, format!("failed to reload config: {e}\n")),
    }
}
