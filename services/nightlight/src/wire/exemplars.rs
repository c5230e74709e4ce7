//! `/api/v1/query_exemplars`: exemplars of the series that an expression reads.

use super::{
    NightLight,
    api::{Reply, number, object, success},
    params::{Params, Refusal},
};
use crate::{
    engine::Notes,
    labels::Matcher,
    promql::{
        ast::{Expr, Kind},
        parse,
    },
    store::Exemplar,
};
use axum::{
    extract::{Request, State},
    http::StatusCode,
    response::IntoResponse,
};
use serde_json::{Value, json};

/// The series of every selector.
fn selectors(e: &Expr, out: &mut Vec<Vec<Matcher>>) {
    match &e.kind {
        Kind::Selector(s) | Kind::Range { selector: s, .. } => out.push(s.matchers.clone()),
        _ => e.children().into_iter().for_each(|e| selectors(e, out)),
    }
}

pub(super) async fn exemplars(State(this): State<NightLight>, request: Request) -> Reply {
    let p = Params::of(request).await?;
    let (from, to) = (p.time("start")?.unwrap_or(i64::MIN), p.time("end")?.unwrap_or(i64::MAX));
    if to < from {
        return Err(Refusal::bad("end timestamp must not be before start timestamp"));
    }
    let expr = parse(p.get("query").unwrap_or_default()).map_err(|e| Refusal::bad(e.to_string()))?;
    let mut any = Vec::new();
    selectors(&expr, &mut any);
    if any.is_empty() {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let found = this.store.beside.exemplars(&any, from, to);
    let one = |e: &Exemplar| {
        let at = if e.t % 1000 == 0 { json!(e.t / 1000) } else { json!(e.t as f64 / 1000.0) };
        json!({ "labels": object(&e.labels), "value": number(e.value), "timestamp": at })
    };
    let shown = found.iter().map(
        |(l, all)| json!({ "seriesLabels": object(l), "exemplars": all.iter().map(one).collect::<Vec<_>>() }),
    );
    Ok(success(&Value::Array(shown.collect()).to_string(), &Notes::default()))
}
