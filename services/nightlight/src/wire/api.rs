//! HTTP API v1: questions.

use super::{
    NightLight,
    params::{Params, Refusal, percent},
};
use crate::{
    engine::{self, Answer, Cancel, Notes, Point, Query, Samples, Value, run},
    histogram::Histogram,
    labels::{Labels, Matcher, quote},
    promql::{Expr, parse, parse_selector},
    store::Store,
};
use axum::{
    extract::{Request, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use photon_rt::{
    task::blocking,
    time::{Duration, timeout, wall},
};
use std::{collections::BTreeSet, fmt::Write, sync::Arc};

/// Longest time for a query, milliseconds.
const TIME_MAX_MS: i64 = 120_000;

pub(super) type Reply = Result<Response, Refusal>;

fn json(body: String) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}

/// `{"status":"success","data":…}` with remarks.
pub(super) fn success(data: &str, notes: &Notes) -> Response {
    let mut body = format!("{{\"status\":\"success\",\"data\":{data}");
    for (name, all) in [("warnings", &notes.warnings), ("infos", &notes.infos)] {
        if !all.is_empty() {
            let _ = write!(body, ",\"{name}\":{}", serde_json::json!(all)); // a String takes all
        }
    }
    body.push('}');
    json(body)
}

pub(super) fn refusal(e: engine::Error) -> Refusal {
    let (status, kind) = match &e {
        engine::Error::Execution(_) | engine::Error::Limit(_) => {
            (StatusCode::UNPROCESSABLE_ENTITY, "execution")
        }
        engine::Error::Cancelled => (StatusCode::SERVICE_UNAVAILABLE, "canceled"),
        engine::Error::Storage(_) => (StatusCode::INTERNAL_SERVER_ERROR, "internal"),
    };
    Refusal { status, kind, message: e.to_string() }
}

/// Ends the query when nobody waits for it any more.
struct EndWithCaller(Cancel);

impl Drop for EndWithCaller {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// Does work that ends when its time is up or nobody waits for it any more.
pub(super) async fn timed<T: Send + 'static>(
    p: &Params,
    work: impl FnOnce(&Cancel) -> Result<T, engine::Error> + Send + 'static,
) -> Result<T, Refusal> {
    let limit = p.duration("timeout")?.unwrap_or(TIME_MAX_MS).min(TIME_MAX_MS);
    let cancel = Cancel::default();
    let guard = EndWithCaller(cancel.clone());
    let work = blocking(move || work(&cancel));
    let done = timeout(Duration::from_millis(limit as u64), "query", work).await;
    drop(guard);
    match done {
        Ok(answer) => answer.map_err(refusal),
        Err(_) => Err(Refusal {
            status: StatusCode::SERVICE_UNAVAILABLE,
            kind: "timeout",
            message: "query timed out in query execution".into(),
        }),
    }
}

async fn evaluate(
    this: &NightLight,
    p: &Params,
    text: String,
    expr: Expr,
    query: Query,
) -> Result<Answer, Refusal> {
    let store = this.store.clone();
    timed(p, move |cancel| run(&*store, &text, &expr, query, cancel)).await
}

pub(super) fn parsed(p: &Params) -> Result<(String, Expr), Refusal> {
    let text = p.get("query").unwrap_or_default().to_string();
    let expr = parse(&text).map_err(|e| Refusal::parameter("query", e))?;
    Ok((text, expr))
}

fn with_options(p: &Params, query: Query) -> Result<Query, Refusal> {
    let lookback_ms = p.duration("lookback_delta")?.unwrap_or(query.lookback_ms);
    Ok(Query { lookback_ms, ..query })
}

pub(super) async fn query(State(this): State<NightLight>, request: Request) -> Reply {
    let p = Params::of(request).await?;
    let query = instant(&p)?;
    let (text, expr) = parsed(&p)?;
    let answer = evaluate(&this, &p, text, expr, query).await?;
    Ok(success(&result(&answer.value, p.limit()?), &answer.notes))
}

/// Start, end and step of a query over a range.
pub(super) fn range(p: &Params) -> Result<Query, Refusal> {
    let needed = |name: &str, v: Option<i64>| {
        let why = format!(
            "cannot parse {} to a valid {}",
            quote(""),
            if name == "step" { "duration" } else { "timestamp" }
        );
        v.ok_or_else(|| Refusal::parameter(name, why))
    };
    let start = needed("start", p.time("start")?)?;
    let end = needed("end", p.time("end")?)?;
    if end < start {
        return Err(Refusal::parameter("end", "end timestamp must not be before start time"));
    }
    let step = needed("step", p.duration("step")?)?;
    if (end - start) / step >= engine::STEPS_MAX {
        return Err(Refusal::bad(
            "exceeded maximum resolution of 11,000 points per timeseries. Try decreasing the query resolution (?step=XX)",
        ));
    }
    with_options(p, Query::range(start, end, step))
}

/// When an instant query asks.
pub(super) fn instant(p: &Params) -> Result<Query, Refusal> {
    with_options(p, Query::instant(p.time("time")?.unwrap_or_else(|| wall().0 as i64)))
}

pub(super) async fn query_range(State(this): State<NightLight>, request: Request) -> Reply {
    let p = Params::of(request).await?;
    let query = range(&p)?;
    let (text, expr) = parsed(&p)?;
    let answer = evaluate(&this, &p, text, expr, query).await?;
    Ok(success(&result(&answer.value, p.limit()?), &answer.notes))
}

/// `{"resultType":…,"result":…}`
fn result(v: &Value, limit: usize) -> String {
    let mut out = String::new();
    match v {
        Value::Scalar(t, v) => {
            out.push_str("{\"resultType\":\"scalar\",\"result\":");
            point(&mut out, *t, *v);
        }
        Value::String(t, s) => {
            let s = serde_json::json!(s);
            let _ = write!(out, "{{\"resultType\":\"string\",\"result\":[{},{s}]", seconds(*t));
        }
        Value::Vector(all) => {
            out.push_str("{\"resultType\":\"vector\",\"result\":[");
            for (i, (labels, t, v)) in all.iter().take(limit).enumerate() {
                out.push_str(if i > 0 { ",{\"metric\":" } else { "{\"metric\":" });
                out.push_str(&object(labels).to_string());
                match v {
                    Point::Number(v) => {
                        out.push_str(",\"value\":");
                        point(&mut out, *t, *v);
                    }
                    Point::Histogram(h) => {
                        out.push_str(",\"histogram\":");
                        histogram(&mut out, *t, h);
                    }
                }
                out.push('}');
            }
            out.push(']');
        }
        Value::Matrix(all) => {
            out.push_str("{\"resultType\":\"matrix\",\"result\":[");
            for (i, (labels, s)) in all.iter().take(limit).enumerate() {
                out.push_str(if i > 0 { ",{\"metric\":" } else { "{\"metric\":" });
                out.push_str(&object(labels).to_string());
                samples(&mut out, s);
                out.push('}');
            }
            out.push(']');
        }
    }
    out.push('}');
    out
}

/// `,"values":[…],"histograms":[…]`, each where there are any.
fn samples(out: &mut String, s: &Samples) {
    for native in [false, true] {
        let mut first = true;
        for i in (0..s.len()).filter(|i| s.histogram(*i).is_some() == native) {
            let name = if native { ",\"histograms\":[" } else { ",\"values\":[" };
            out.push_str(if first { name } else { "," });
            first = false;
            match s.histogram(i) {
                Some(h) => histogram(out, s.t[i], h),
                None => point(out, s.t[i], s.v[i]),
            }
        }
        if !first {
            out.push(']');
        }
    }
}

fn histogram(out: &mut String, t: i64, h: &Histogram) {
    let _ = write!(out, "[{},{}]", seconds(t), h.json(&number)); // a String takes all
}

pub(super) fn object(labels: &Labels) -> serde_json::Value {
    serde_json::Value::Object(labels.iter().map(|(n, v)| (n.to_string(), v.to_string().into())).collect())
}

fn seconds(ms: i64) -> String {
    let (sign, ms) = (if ms < 0 { "-" } else { "" }, ms.unsigned_abs());
    match ms % 1000 {
        0 => format!("{sign}{}", ms / 1000),
        rest => format!("{sign}{}.{rest:03}", ms / 1000),
    }
}

fn point(out: &mut String, t: i64, v: f64) {
    let _ = write!(out, "[{},\"{}\"]", seconds(t), number(v)); // a String takes all
}

/// As Prometheus writes values in JSON: very great and very small ones with an exponent of two digits or more.
pub(super) fn number(v: f64) -> String {
    if !v.is_finite() || v == 0.0 || (1e-6..1e21).contains(&v.abs()) {
        return crate::promql::number(v);
    }
    let text = format!("{v:e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |e| ('-', e));
    format!("{digits}e{sign}{exponent:0>2}")
}

/// `match[]`, each one a way to be chosen, and the time.
struct Wanted {
    selectors: Vec<Vec<Matcher>>,
    from: i64,
    to: i64,
}

fn wanted(p: &Params, needed: bool) -> Result<Wanted, Refusal> {
    let mut selectors = Vec::new();
    for text in p.all("match[]") {
        selectors.push(parse_selector(text).map_err(|e| Refusal::parameter("match[]", e))?);
    }
    if needed && selectors.is_empty() {
        return Err(Refusal::bad("no match[] parameter provided"));
    }
    if selectors.is_empty() {
        selectors.push(Vec::new());
    }
    let (from, to) = (p.time("start")?.unwrap_or(i64::MIN), p.time("end")?.unwrap_or(i64::MAX));
    Ok(Wanted { selectors, from, to })
}

async fn chosen(store: &Arc<Store>, w: Wanted) -> BTreeSet<Labels> {
    let store = store.clone();
    blocking(move || w.selectors.iter().flat_map(|m| store.series(m, w.from, w.to)).collect()).await
}

/// The first `limit`, and a remark if there were more.
fn limited<T>(
    all: impl IntoIterator<Item = T>,
    limit: usize,
    show: impl Fn(T) -> serde_json::Value,
) -> Response {
    let mut notes = Notes::default();
    let mut out = Vec::new();
    for item in all {
        if out.len() >= limit {
            notes.warnings.insert("results truncated due to limit".into());
            break;
        }
        out.push(show(item));
    }
    success(&serde_json::Value::Array(out).to_string(), &notes)
}

pub(super) async fn series(State(this): State<NightLight>, request: Request) -> Reply {
    let p = Params::of(request).await?;
    let all = chosen(&this.store, wanted(&p, true)?).await;
    Ok(limited(all, p.limit()?, |l| object(&l)))
}

pub(super) async fn labels(State(this): State<NightLight>, request: Request) -> Reply {
    let p = Params::of(request).await?;
    let all = chosen(&this.store, wanted(&p, false)?).await;
    let names: BTreeSet<String> = all.iter().flat_map(|l| l.iter().map(|(n, _)| n.to_string())).collect();
    Ok(limited(names, p.limit()?, Into::into))
}

pub(super) async fn label_values(State(this): State<NightLight>, request: Request) -> Reply {
    let name = request.uri().path().split('/').nth(4).unwrap_or_default();
    let name = percent(name)?;
    if name.is_empty() {
        return Err(Refusal::bad("invalid label name: \"\""));
    }
    let p = Params::of(request).await?;
    let all = chosen(&this.store, wanted(&p, false)?).await;
    let values: BTreeSet<String> =
        all.iter().map(|l| l.get(&name).to_string()).filter(|v| !v.is_empty()).collect();
    Ok(limited(values, p.limit()?, Into::into))
}

pub(super) async fn format_query(request: Request) -> Reply {
    let p = Params::of(request).await?;
    let (_, expr) = parsed(&p)?;
    Ok(success(&serde_json::json!(expr.to_string()).to_string(), &Notes::default()))
}

pub(super) async fn parse_query(request: Request) -> Reply {
    let p = Params::of(request).await?;
    let (_, expr) = parsed(&p)?;
    Ok(success(&super::tree::tree(&expr).to_string(), &Notes::default()))
}

pub(super) async fn buildinfo() -> Response {
    let data = serde_json::json!({
        // The Prometheus whose language and API this is: clients choose by it what they ask.
        "version": "3.0.0",
        "revision": env!("CARGO_PKG_VERSION"),
        "branch": "nightlight",
        "buildUser": "",
        "buildDate": "",
        "goVersion": "",
    });
    success(&data.to_string(), &Notes::default())
}

pub(super) async fn tsdb(State(this): State<NightLight>) -> Response {
    let (series, samples, blocks, bytes) = this.store.size();
    let data = serde_json::json!({
        "headStats": { "numSeries": series, "numSamples": samples },
        "blocks": { "count": blocks, "bytes": bytes },
    });
    success(&data.to_string(), &Notes::default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_prometheus_does() {
        for (v, text) in [
            (1.0, "1"),
            (-0.0, "-0"),
            (0.1, "0.1"),
            (1e20, "100000000000000000000"),
            (1e21, "1e+21"),
            (1.5e-7, "1.5e-07"),
            (-2e300, "-2e+300"),
            (1e-6, "0.000001"),
            (f64::NAN, "NaN"),
            (f64::NEG_INFINITY, "-Inf"),
        ] {
            assert_eq!(number(v), text);
        }
        assert_eq!(
            (seconds(1_435_781_451_781).as_str(), seconds(-1500).as_str()),
            ("1435781451.781", "-1.500")
        );
    }
}
