//! The audit trail: shown to admins, newest first, and kept to a bounded length.

use axum::{
    Json, Router,
    extract::{Query, Request, State},
    response::{IntoResponse, Response},
    routing::get,
};
use photon_auth::{Action, Caller, Gate, Target, Verb};
use photon_base::{Code, Error, Result, Timestamp};
use photon_kv::{Direction, Range, ReadAt, Versioned, Write};
use photon_resource::{AUDIT_PREFIX, AuditRecord, ROOT, Store, http::problem};
use photon_rt::{task::Tasks, time::Duration};
use serde::Deserialize;

/// Records kept.
const KEPT_MAX: usize = 100_000;
/// How long answers to repeatable requests are kept.
const MEMORY: Duration = Duration::from_secs(24 * 3600);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Params {
    #[serde(default)]
    limit: Option<u32>,
}

/// The part of a remembered answer that matters here.
#[derive(Deserialize)]
struct At {
    at: Timestamp,
}

fn records() -> Range {
    Range::prefix(AUDIT_PREFIX)
}

/// `GET /v1/audit?limit=`: the newest records.
pub fn routes(store: Store, gate: Gate) -> Router {
    let handler = async |State((store, gate)): State<(Store, Gate)>,
                         q: Query<Params>,
                         request: Request|
           -> Response {
        let caller = request.extensions().get::<Caller>().cloned();
        match list(&store, &gate, caller, q.limit.unwrap_or(50)).await {
            Ok(items) => Json(serde_json::json!({ "kind": "audit-list", "items": items })).into_response(),
            Err(e) => problem(&e),
        }
    };
    Router::new().route("/v1/audit", get(handler)).with_state((store, gate))
}

async fn list(store: &Store, gate: &Gate, caller: Option<Caller>, limit: u32) -> Result<Vec<AuditRecord>> {
    let caller = caller.ok_or_else(|| {
        Error::new(Code::Unauthenticated, "this call needs an identity").hint("photon login")
    })?;
    gate.check(&caller, Action { kind: "audit", verb: Verb::List }, Target { project: None, name: None })
        .await?;
    let page = store.kv().scan(records(), ReadAt::Latest, limit.clamp(1, 1000), Direction::Backward).await?;
    Ok(page.items.iter().filter_map(|v| serde_json::from_slice(&v.value).ok()).collect())
}

/// Removes what is beyond the bounds, once an hour, for ever.
pub fn trim(store: Store, tasks: &Tasks) {
    tasks.spawn("audit-trim", async move {
        let mut tick = photon_rt::time::interval(Duration::from_secs(3600));
        loop {
            tick.tick().await;
            if let Err(e) = trim_once(&store).await {
                tracing::warn!(error = %e, "cannot trim the audit trail");
            }
        }
    });
}

async fn trim_once(store: &Store) -> Result<()> {
    let kv = store.kv();
    // Keys sort by time: whatever lies before the KEPT_MAXth newest goes.
    let mut end = records().end;
    let mut kept = 0;
    loop {
        let range = Range { start: records().start, end: end.clone() };
        let page = kv.scan(range, ReadAt::Latest, 1000, Direction::Backward).await?;
        let Some(last) = page.items.last() else { break };
        end = last.key.clone();
        if kept >= KEPT_MAX {
            for chunk in page.items.chunks(100) {
                kv.commit(Vec::new(), chunk.iter().map(|v| Write::Delete(v.key.clone())).collect()).await?;
            }
        }
        kept += page.items.len();
    }
    let yesterday = Timestamp(photon_rt::time::wall().0.saturating_sub(MEMORY.as_millis() as u64));
    let mut range = Range::prefix(format!("{ROOT}idem/"));
    loop {
        let page = kv.scan(range.clone(), ReadAt::Latest, 100, Direction::Forward).await?;
        let old = |v: &&Versioned| serde_json::from_slice::<At>(&v.value).map_or(true, |r| r.at < yesterday);
        let gone: Vec<Write> = page.items.iter().filter(old).map(|v| Write::Delete(v.key.clone())).collect();
        if !gone.is_empty() {
            kv.commit(Vec::new(), gone).await?;
        }
        match page.items.last() {
            Some(last) if page.more => range.start = [&last.key[..], &[0]].concat().into(),
            _ => return Ok(()),
        }
    }
}
