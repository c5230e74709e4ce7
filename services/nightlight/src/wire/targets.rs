//! HTTP API v1: what is scraped, what it is called, and how it is.

use super::{
    NightLight,
    api::{Reply, object, success},
    params::{Params, Refusal},
};
use crate::{
    engine::Notes,
    expose::Kind,
    labels::{Labels, Matcher},
    promql::parse_selector,
    scrape::{Health, Live, Pool, book::About, lock},
};
use axum::{
    extract::{Request, State},
    response::Response,
};
use photon_base::Timestamp;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
};

type Pools = Vec<(String, Arc<Mutex<Pool>>)>;

fn pools(this: &NightLight, only: Option<&str>) -> Pools {
    this.scraper.pools().into_iter().filter(|(name, _)| only.is_none_or(|o| o == name)).collect()
}

/// RFC 3339; Go's zero for never.
pub(super) fn instant(ms: i64) -> String {
    match u64::try_from(ms) {
        Ok(ms) if ms > 0 => Timestamp(ms).to_string(),
        _ => "0001-01-01T00:00:00Z".into(),
    }
}

fn active(pool: &str, live: &Live) -> Value {
    let (t, Health { up, error, at_ms, took_s }) = (&live.target, live.health());
    json!({
        "discoveredLabels": object(&t.discovered),
        "labels": object(&t.labels),
        "scrapePool": pool,
        "scrapeUrl": t.url.to_string(),
        "globalUrl": t.url.to_string(),
        "lastError": error,
        "lastScrape": instant(at_ms),
        "lastScrapeDuration": took_s,
        "health": match up { None => "unknown", Some(true) => "up", Some(false) => "down" },
        "scrapeInterval": crate::promql::duration::print(t.interval_ms as i64),
        "scrapeTimeout": crate::promql::duration::print(t.timeout_ms as i64),
    })
}

pub(super) async fn targets(State(this): State<NightLight>, request: Request) -> Reply {
    let p = Params::of(request).await?;
    let state = p.get("state").unwrap_or("any").to_ascii_lowercase();
    let (mut on, mut off, mut counts) = (Vec::new(), Vec::new(), BTreeMap::new());
    for (name, pool) in pools(&this, p.get("scrapePool")) {
        let pool = lock(&pool);
        if state != "dropped" {
            on.extend(pool.active.iter().map(|l| active(&name, l)));
        }
        if state != "active" {
            let shown = |l: &Labels| json!({ "discoveredLabels": object(l), "scrapePool": name });
            off.extend(pool.dropped.iter().map(shown));
        }
        counts.insert(name.clone(), pool.dropped_count);
    }
    let data = json!({ "activeTargets": on, "droppedTargets": off, "droppedTargetCounts": counts });
    Ok(success(&data.to_string(), &Notes::default()))
}

pub(super) async fn scrape_pools(State(this): State<NightLight>) -> Response {
    let names: Vec<String> = pools(&this, None).into_iter().map(|(n, _)| n).collect();
    success(&json!({ "scrapePools": names }).to_string(), &Notes::default())
}

fn about(a: &About) -> Value {
    json!({ "type": a.kind.as_str(), "help": a.help, "unit": a.unit })
}

pub(super) async fn metadata(State(this): State<NightLight>, request: Request) -> Reply {
    let p = Params::of(request).await?;
    let whole = |name: &str| -> Result<usize, Refusal> {
        let text = p.get(name).map(str::parse::<i64>).transpose();
        let n = text.map_err(|_| Refusal::bad(format!("{name} must be a number")))?;
        Ok(n.and_then(|n| usize::try_from(n).ok()).unwrap_or(usize::MAX))
    };
    let (limit, each) = (whole("limit")?, whole("limit_per_metric")?);
    let each = if each == 0 { usize::MAX } else { each };
    let mut all: BTreeMap<String, BTreeSet<About>> = BTreeMap::new();
    for (_, pool) in pools(&this, None) {
        for live in &lock(&pool).active {
            for (family, a) in live.about().iter().filter(|(f, _)| p.get("metric").is_none_or(|m| m == *f)) {
                all.entry(family.clone()).or_default().insert(a.clone());
            }
        }
    }
    for (family, m) in this.store.beside.metadata(p.get("metric")) {
        let about = About { kind: Kind::of(&m.kind), help: m.help.to_string(), unit: m.unit.to_string() };
        all.entry(family.to_string()).or_default().insert(about);
    }
    let shown: serde_json::Map<String, Value> = all
        .into_iter()
        .take(limit)
        .map(|(family, set)| (family, set.iter().take(each).map(about).collect::<Vec<_>>().into()))
        .collect();
    Ok(success(&Value::Object(shown).to_string(), &Notes::default()))
}

pub(super) async fn target_metadata(State(this): State<NightLight>, request: Request) -> Reply {
    let p = Params::of(request).await?;
    let matchers: Vec<Matcher> = match p.get("match_target") {
        Some(text) => parse_selector(text).map_err(|e| Refusal::parameter("match_target", e))?,
        None => Vec::new(),
    };
    let limit = p.limit()?;
    let mut out = Vec::new();
    for (_, pool) in pools(&this, None) {
        for live in &lock(&pool).active {
            let labels = &live.target.labels;
            if !matchers.iter().all(|m| m.matches(labels.get(&m.name))) {
                continue;
            }
            for (family, a) in live.about().iter().filter(|(f, _)| p.get("metric").is_none_or(|m| m == *f)) {
                if out.len() >= limit {
                    break;
                }
                let mut one = about(a);
                one["target"] = object(labels);
                if p.get("metric").is_none() {
                    one["metric"] = family.as_str().into();
                }
                out.push(one);
            }
        }
    }
    Ok(success(&Value::Array(out).to_string(), &Notes::default()))
}
