//! The audit trail: shown to admins, newest first, and kept to a bounded length.

use axum::{
    Json, Router,
    extract::{Query, Request, State},
    response::{IntoResponse, Response},
    routing::get,
};
use photon_auth::{Action, Caller, Gate, Target, Verb};
use photon_base::{Code, Error, Result, Timestamp};
use photon_kv::{Direction, Kv, Range, ReadAt, Versioned, Write};
use photon_resource::{AUDIT_PREFIX, AuditRecord, ROOT, Store, http::problem};
use photon_rt::{task::Tasks, time::Duration};
use serde::Deserialize;

/// Records kept: of callers, and of the cloud's own parts.
const CALLERS_MAX: usize = 100_000;
const CLOUD_MAX: usize = 50_000;
/// Records read at a time, and removed at a time.
const PAGE: u32 = 1000;
const CHUNK: usize = 100;
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

/// The part of an audit record that says whether the cloud itself acted.
#[derive(Deserialize)]
struct ProofOf {
    proof: String,
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
    trim_trail(&**store.kv(), CALLERS_MAX, CLOUD_MAX).await?;
    forget_answers(&**store.kv()).await
}

/// Keeps the newest records of callers and, counted apart, of the cloud's own parts: a VM that restarts
/// all day must not push out who gave whom which role.
async fn trim_trail(kv: &dyn Kv, callers_max: usize, cloud_max: usize) -> Result<()> {
    // Keys sort by time, so what comes last in this order is the oldest.
    let (mut callers, mut cloud) = (0, 0);
    let mut range = records();
    loop {
        let page = kv.scan(range.clone(), ReadAt::Latest, PAGE, Direction::Backward).await?;
        let mut gone = Vec::new();
        for v in &page.items {
            let own = serde_json::from_slice::<ProofOf>(&v.value).is_ok_and(|r| r.proof == "internal");
            let (count, max) = if own { (&mut cloud, cloud_max) } else { (&mut callers, callers_max) };
            *count += 1;
            if *count > max {
                gone.push(Write::Delete(v.key.clone()));
            }
        }
        for chunk in gone.chunks(CHUNK) {
            kv.commit(Vec::new(), chunk.to_vec()).await?;
        }
        match page.items.last() {
            Some(last) if page.more => range.end = last.key.clone(),
            _ => return Ok(()),
        }
    }
}

/// Removes answers that nobody will ask for again.
async fn forget_answers(kv: &dyn Kv) -> Result<()> {
    let yesterday = Timestamp(photon_rt::time::wall().0.saturating_sub(MEMORY.as_millis() as u64));
    let mut range = Range::prefix(format!("{ROOT}idem/"));
    loop {
        let page = kv.scan(range.clone(), ReadAt::Latest, CHUNK as u32, Direction::Forward).await?;
        let old = |v: &&Versioned| serde_json::from_slice::<At>(&v.value).map_or(true, |r| r.at < yesterday);
        let gone: Vec<Write> = page.items.iter().filter(old).map(|v| Write::Delete(v.key.clone())).collect();
        if !gone.is_empty() {
            kv.commit(Vec::new(), gone).await?;
        }
        match page.items.last() {
            Some(last) if page.more => range = range.behind(&last.key),
            _ => return Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use photon_kv::MemKv;

    #[tokio::test]
    async fn the_newest_records_stay_and_the_cloud_s_own_do_not_push_out_those_of_people() {
        let kv = MemKv::new();
        for i in 0..2500 {
            // Each tenth by a person.
            let proof = if i % 10 == 0 { "token:t" } else { "internal" };
            let record = AuditRecord {
                at: Timestamp(i),
                who: "user/a".into(),
                proof: proof.into(),
                action: "vm.create".into(),
                target: "vm".into(),
                object: photon_base::Uid(0),
                because: String::new(),
                changes: Vec::new(),
            };
            let bytes = serde_json::to_vec(&record).expect("json");
            let put = Write::Put(format!("{AUDIT_PREFIX}{i:015}-x").into(), bytes.into());
            kv.commit(Vec::new(), vec![put]).await.expect("commit");
        }
        for (callers_max, cloud_max) in [(10_000, 10_000), (200, 50), (200, 50), (3, 0)] {
            trim_trail(&kv, callers_max, cloud_max).await.expect("trim");
            let left: Vec<AuditRecord> =
                kv.dump().iter().map(|v| serde_json::from_slice(&v.value).expect("record")).collect();
            let oldest = |own: bool| left.iter().find(|r| (r.proof == "internal") == own).map(|r| r.at.0);
            let count = |own: bool| left.iter().filter(|r| (r.proof == "internal") == own).count();
            let (callers, cloud) = (callers_max.min(250), cloud_max.min(2250));
            assert_eq!((count(false), count(true)), (callers, cloud));
            assert_eq!(oldest(false), Some((250 - callers as u64) * 10), "the newest stay");
            assert_eq!(
                oldest(true),
                [None, Some(2445), Some(1)][(cloud > 0) as usize + (cloud > 50) as usize]
            );
        }
    }
}
