//! `/federate`: the newest samples of chosen series, for another Prometheus.

use super::{
    NightLight,
    api::refusal,
    params::{Params, Refusal},
};
use crate::{
    engine::{Storage, is_stale},
    expose::{Format, negotiate::wanted, write},
    labels::{Labels, Matcher},
    promql::parse_selector,
};
use axum::{
    extract::{Request, State},
    http::header,
    response::{IntoResponse, Response},
};
use photon_rt::{task::blocking, time::wall};
use std::collections::BTreeMap;

/// How old a newest sample may be, milliseconds.
const LOOKBACK_MS: i64 = 300_000;
/// Most samples of an answer.
const SAMPLES_MAX: usize = 5_000_000;

pub(super) async fn federate(State(this): State<NightLight>, request: Request) -> Result<Response, Refusal> {
    let accept = request.headers().get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let (format, scheme) = wanted(accept);
    let p = Params::of(request).await?;
    let mut selectors: Vec<Vec<Matcher>> = Vec::new();
    for text in p.all("match[]") {
        selectors.push(parse_selector(text).map_err(|e| Refusal::bad(e.to_string()))?);
    }
    let external = this.scraper.config().external.clone();
    let text = blocking(move || {
        let now = wall().0 as i64;
        let mut found: BTreeMap<(String, Labels), (i64, f64)> = BTreeMap::new();
        for matchers in &selectors {
            this.store.select(matchers, now - LOOKBACK_MS, now, &mut |labels, samples| {
                let (Some(t), Some(v)) = (samples.t.last(), samples.v.last()) else { return Ok(()) };
                // A native histogram's number is its sum, which is not the series.
                if is_stale(*v) || samples.histogram(samples.t.len() - 1).is_some() {
                    return Ok(());
                }
                if found.len() >= SAMPLES_MAX {
                    let why = format!("more than {SAMPLES_MAX} series match");
                    return Err(crate::engine::Error::Limit(why));
                }
                let mut shown = labels.clone();
                for (n, v) in external.iter().filter(|(n, _)| labels.get(n).is_empty()) {
                    shown = shown.with(n, v);
                }
                found.insert((labels.name().to_string(), shown), (*t, *v));
                Ok(())
            })?;
        }
        let all: Vec<(Labels, i64, f64)> =
            found.into_iter().map(|((_, labels), (t, v))| (labels, t, v)).collect();
        Ok(write::page(format, scheme, &all))
    });
    let text = text.await.map_err(refusal)?;
    let kind = match format {
        Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        _ => "text/plain; version=0.0.4; charset=utf-8",
    };
    Ok(([(header::CONTENT_TYPE, kind)], text).into_response())
}
