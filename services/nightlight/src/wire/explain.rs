//! `/api/v1/explain`: what every node of a query took. Ours; Prometheus has no such endpoint. Takes the parameters of
//! `query_range` when there is a `step`, else those of `query`.

use super::{
    NightLight,
    api::{Reply, instant, parsed, range, success, timed},
    params::Params,
};
use crate::engine::{self, Node};
use axum::extract::{Request, State};
use photon_rt::time::since_boot;

pub(super) async fn explain(State(this): State<NightLight>, request: Request) -> Reply {
    let p = Params::of(request).await?;
    let query = if p.get("step").is_some() { range(&p)? } else { instant(&p)? };
    let (text, expr) = parsed(&p)?;
    let store = this.store.clone();
    let clock = || since_boot().as_micros() as u64;
    let (answer, node) =
        timed(&p, move |cancel| engine::explain(&*store, &text, &expr, query, cancel, &clock)).await?;
    Ok(success(&json(&node).to_string(), &answer.notes))
}

/// As the API writes it; times in microseconds.
fn json(n: &Node) -> serde_json::Value {
    serde_json::json!({
        "expr": n.text,
        "position": [n.span.0, n.span.1],
        "series": n.series,
        "samples": n.samples,
        "bytes": n.bytes,
        "microseconds": n.time,
        "shared": n.shared,
        "children": n.children.iter().map(json).collect::<Vec<_>>(),
    })
}
