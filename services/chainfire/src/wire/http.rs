//! `/health`, `/livez`, `/readyz`, `/version` and `/metrics`.

use super::{ETCD_VERSION, etcdserverpb::AlarmType};
use crate::{ChainFire, Scope};
use axum::{
    Extension, Json, Router,
    extract::{Query, State},
    http::StatusCode,
    response::IntoResponse,
    routing::get,
};
use std::{fmt::Write, sync::atomic::Ordering::Relaxed};

/// The pages.
pub fn pages(c: &ChainFire) -> Router {
    Router::new()
        .route("/health", get(health))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/version", get(version))
        .route("/metrics", get(metrics))
        .with_state(c.clone())
}

/// Parameters of the health pages, as etcd's.
#[derive(serde::Deserialize)]
struct Asked {
    /// Ask this member only.
    serializable: Option<String>,
    /// An alarm to overlook.
    exclude: Option<String>,
    /// List the checks.
    verbose: Option<String>,
}

/// What ails the store, or nothing: a raised alarm, or a linearizable read that fails.
async fn ailment(c: &ChainFire, asked: &Asked) -> Option<String> {
    let state = c.published();
    let overlooked = |name: &str| asked.exclude.as_deref() == Some(name);
    for a in &state.rules.alarms {
        let name = AlarmType::try_from(a.alarm).map_or("UNKNOWN", |k| k.as_str_name());
        if !overlooked(name) {
            return Some(format!("ALARM {name}"));
        }
    }
    if asked.serializable.as_deref() == Some("true") {
        return None;
    }
    c.linearizable().await.err().map(|e| format!("RANGE ERROR:{e}"))
}

/// etcd's fields, and this cloud's own.
async fn health(State(c): State<ChainFire>, Query(asked): Query<Asked>) -> impl IntoResponse {
    let reason = ailment(&c, &asked).await;
    let ok = reason.is_none();
    let body = serde_json::json!({
        "status": if ok { "healthy" } else { "unhealthy" },
        "raft": c.raft_role(),
        "cluster_size": c.members().len(),
        "health": if ok { "true" } else { "false" },
        "reason": reason.unwrap_or_default(),
    });
    (if ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, Json(body))
}

/// The process is alive: what it has can be read.
async fn livez(Query(asked): Query<Asked>) -> impl IntoResponse {
    checks("livez", &asked, &[("serializable_read", None)])
}

/// Requests can be served.
async fn readyz(State(c): State<ChainFire>, Query(asked): Query<Asked>) -> impl IntoResponse {
    let corrupt = c.published().rules.alarms.iter().any(|a| a.alarm == AlarmType::Corrupt as i32);
    let corrupt = corrupt.then(|| "alarm activated: CORRUPT".to_string());
    let linearizable = c.linearizable().await.err().map(|e| e.to_string());
    let checked =
        [("data_corruption", corrupt), ("serializable_read", None), ("linearizable_read", linearizable)];
    checks("readyz", &asked, &checked)
}

/// The checks as text, listed when one failed or when asked for.
fn checks(name: &str, asked: &Asked, checked: &[(&str, Option<String>)]) -> (StatusCode, String) {
    let mut out = String::new();
    for (check, failed) in checked {
        // Writing to a String cannot fail.
        let _ = match failed {
            None => writeln!(out, "[+]{check} ok"),
            Some(why) => writeln!(out, "[-]{check} failed: {why}"),
        };
    }
    if checked.iter().any(|(_, failed)| failed.is_some()) {
        return (StatusCode::SERVICE_UNAVAILABLE, format!("{out}{name} check failed\n"));
    }
    (
        StatusCode::OK,
        if asked.verbose.is_some() { format!("{out}{name} check passed\n") } else { "ok\n".into() },
    )
}

async fn version() -> impl IntoResponse {
    Json(serde_json::json!({ "etcdserver": ETCD_VERSION, "etcdcluster": "3.5.0" }))
}

/// Prometheus text; etcd's names where they mean the same.
async fn metrics(State(c): State<ChainFire>, who: Option<Extension<Scope>>) -> Result<String, StatusCode> {
    if who.is_none() {
        return Err(StatusCode::UNAUTHORIZED);
    }
    let (i, state) = (&c.inner, c.published());
    let n = &i.counters;
    let raft = c.raft();
    let leader = u64::from(c.raft_role() == "leader");
    let mut out = String::new();
    let mut put = |kind: &str, name: &str, help: &str, value: u64| {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
    };
    let led = u64::from(raft.leader.is_some());
    put("gauge", "etcd_server_has_leader", "Whether this member knows a leader.", led);
    put("gauge", "etcd_server_is_leader", "Whether this member leads.", leader);
    put("gauge", "etcd_server_proposals_applied_total", "Place in the log that is applied.", raft.applied);
    put("gauge", "etcd_server_proposals_committed_total", "Place in the log that is committed.", raft.commit);
    put(
        "gauge",
        "etcd_server_proposals_pending",
        "Commands on their way.",
        n.proposals_pending.load(Relaxed),
    );
    put(
        "counter",
        "etcd_server_proposals_failed_total",
        "Commands without an answer.",
        n.proposals_failed.load(Relaxed),
    );
    put("counter", "etcd_server_lease_expired_total", "Leases that ran out.", n.leases_expired.load(Relaxed));
    put("gauge", "etcd_mvcc_db_total_size_in_bytes", "Bytes on disk.", i.shared.engine.disk_bytes());
    put("gauge", "etcd_debugging_mvcc_current_revision", "Revision.", state.revision.max(0) as u64);
    put("gauge", "etcd_debugging_mvcc_compact_revision", "Compacted up to.", state.compacted.max(0) as u64);
    put("counter", "etcd_mvcc_put_total", "Puts.", n.puts.load(Relaxed));
    put("counter", "etcd_mvcc_delete_total", "Deletions.", n.deletes.load(Relaxed));
    put("counter", "etcd_mvcc_txn_total", "Transactions.", n.txns.load(Relaxed));
    put("counter", "etcd_mvcc_range_total", "Reads of ranges.", n.ranges.load(Relaxed));
    put("gauge", "etcd_debugging_mvcc_watcher_total", "Watches.", n.watchers.load(Relaxed));
    put(
        "gauge",
        "etcd_debugging_mvcc_watch_stream_total",
        "Streams of watches.",
        n.watch_streams.load(Relaxed),
    );
    put("counter", "etcd_debugging_mvcc_events_total", "Events sent to watches.", n.events.load(Relaxed));
    let rebuilds = u64::from(!i.shared.whole.load(std::sync::atomic::Ordering::Acquire));
    put(
        "gauge",
        "chainfire_state_rebuilding",
        "The state was damaged and comes from another member.",
        rebuilds,
    );
    put("gauge", "chainfire_leases", "Leases.", i.shared.lessor.count() as u64);
    Ok(out)
}
