//! HTTP API v1: rules, their alerts, and who is told of them.

use super::{
    NightLight,
    api::{Reply, object, success},
    params::{Params, Refusal},
    targets::instant,
};
use crate::{
    engine::{Notes, Point},
    labels::{Labels, Matcher, quote},
    promql::parse_selector,
    rules::group::{Alert, Group, Health, Rule},
};
use axum::{
    extract::{Request, State},
    response::Response,
};
use serde_json::{Value, json};
use std::{collections::BTreeSet, sync::Arc};
use xxhash_rust::xxh3::xxh3_64;

/// As Go's `FormatFloat(v, 'e', -1, 64)`.
fn value(p: &Point) -> String {
    match p {
        Point::Number(v) if v.is_finite() => {
            let text = format!("{v:e}");
            let (digits, power) = text.split_once('e').unwrap_or((&text, "0"));
            let (sign, power) = power.strip_prefix('-').map_or(('+', power), |p| ('-', p));
            format!("{digits}e{sign}{power:0>2}")
        }
        Point::Number(v) => crate::promql::number(*v),
        Point::Histogram(h) => h.to_string(),
    }
}

fn alert(a: &Alert) -> Value {
    let mut shown = json!({
        "labels": object(&a.labels),
        "annotations": object(&a.annotations),
        "state": a.state.as_str(),
        "activeAt": instant(a.active_ms),
        "value": value(&a.value),
    });
    if let Some(since) = a.kept_ms {
        shown["keepFiringSince"] = instant(since).into();
    }
    shown
}

/// Whole numbers without a point, as Go writes them.
fn seconds(ms: i64) -> Value {
    if ms % 1000 == 0 { (ms / 1000).into() } else { (ms as f64 / 1000.0).into() }
}

fn rule(r: &Rule, with_alerts: bool) -> Value {
    let mut shown = json!({
        "name": r.spec.name,
        "query": r.spec.query,
        "evaluationTime": r.took_s,
        "lastEvaluation": instant(r.at_ms),
        "health": match r.health { Health::Unknown => "unknown", Health::Good => "ok", Health::Bad(_) => "err" },
        "type": if r.spec.alert.is_some() { "alerting" } else { "recording" },
    });
    if let Health::Bad(why) = &r.health {
        shown["lastError"] = why.as_str().into();
    }
    match &r.spec.alert {
        None if r.spec.labels.is_empty() => {}
        None => shown["labels"] = object(&r.spec.labels),
        Some(how) => {
            shown["state"] = if r.at_ms == 0 { "unknown" } else { r.state().as_str() }.into();
            shown["duration"] = seconds(how.wait_ms);
            shown["keepFiringFor"] = seconds(how.keep_ms);
            shown["labels"] = object(&r.spec.labels);
            shown["annotations"] = object(&how.annotations);
            let all: Vec<Value> = if with_alerts { r.active().map(alert).collect() } else { Vec::new() };
            shown["alerts"] = all.into();
        }
    }
    shown
}

/// What of the rules is wanted.
struct Wanted {
    alerting: bool,
    recording: bool,
    names: BTreeSet<String>,
    groups: BTreeSet<String>,
    files: BTreeSet<String>,
    selectors: Vec<Vec<Matcher>>,
}

impl Wanted {
    fn of(p: &Params) -> Result<Self, Refusal> {
        let kind = p.get("type").unwrap_or_default().to_ascii_lowercase();
        if !matches!(kind.as_str(), "" | "alert" | "record") {
            return Err(Refusal::parameter("type", format!("not supported value {}", quote(&kind))));
        }
        let set = |name| p.all(name).map(str::to_string).collect();
        let mut selectors = Vec::new();
        for text in p.all("match[]") {
            selectors.push(parse_selector(text).map_err(|e| Refusal::parameter("match[]", e))?);
        }
        Ok(Wanted {
            alerting: kind != "record",
            recording: kind != "alert",
            names: set("rule_name[]"),
            groups: set("rule_group[]"),
            files: set("file[]"),
            selectors,
        })
    }

    fn group(&self, g: &Group) -> bool {
        (self.groups.is_empty() || self.groups.contains(&g.spec.name))
            && (self.files.is_empty() || self.files.contains(&g.spec.file))
    }

    fn rule(&self, r: &Rule) -> bool {
        let kind = if r.spec.alert.is_some() { self.alerting } else { self.recording };
        // A label that is a template is none to be asked for.
        let labels = &r.spec.labels;
        let fits = |l: &Labels, all: &[Matcher]| {
            all.iter().all(|m| !l.get(&m.name).contains("{{") && m.matches(l.get(&m.name)))
        };
        kind && (self.names.is_empty() || self.names.contains(&r.spec.name))
            && (self.selectors.is_empty() || self.selectors.iter().any(|s| fits(labels, s)))
    }
}

fn token(g: &Group) -> String {
    format!("{:016x}", xxh3_64(format!("{};{}", g.spec.file, g.spec.name).as_bytes()))
}

pub(super) async fn rules(State(this): State<NightLight>, request: Request) -> Reply {
    let p = Params::of(request).await?;
    let wanted = Wanted::of(&p)?;
    let with_alerts = match p.get("exclude_alerts") {
        None | Some("false") => true,
        Some("true") => false,
        Some(other) => {
            return Err(Refusal::parameter(
                "exclude_alerts",
                format!("{} is neither true nor false", quote(other)),
            ));
        }
    };
    let most = match p.get("group_limit").map(str::parse::<i64>) {
        None => None,
        Some(Ok(n)) if n > 0 => Some(n as usize),
        Some(Ok(_)) => {
            return Err(Refusal::parameter("group_limit", "group_limit needs to be greater than 0"));
        }
        Some(Err(_)) => {
            return Err(Refusal::parameter("group_limit", "group_limit needs to be a valid number"));
        }
    };
    let all: Vec<Arc<Group>> = this.rules.groups();
    let mut from = 0;
    if let Some(next) = p.get("group_next_token") {
        if most.is_none() {
            return Err(Refusal::parameter(
                "group_limit",
                "group_limit needs to be set in order to paginate over the groups",
            ));
        }
        from = all.iter().position(|g| token(g) == next).ok_or_else(|| {
            let why = format!("invalid group_next_token '{next}'. were rule groups changed?");
            Refusal::parameter("group_next_token", why)
        })?;
    }
    let (mut shown, mut next) = (Vec::new(), None);
    for g in all[from..].iter().filter(|g| wanted.group(g)) {
        let of: Vec<Value> =
            g.rules.iter().filter(|r| wanted.rule(r)).map(|r| rule(r, with_alerts)).collect();
        let narrowed = !(wanted.names.is_empty() && wanted.selectors.is_empty());
        if of.is_empty() && (narrowed || (!g.rules.is_empty() && wanted.alerting != wanted.recording)) {
            continue;
        }
        if most.is_some_and(|m| shown.len() >= m) {
            next = Some(token(g));
            break;
        }
        shown.push(json!({
            "name": g.spec.name,
            "file": g.spec.file,
            "rules": of,
            "interval": seconds(g.spec.interval_ms),
            "limit": g.spec.limit,
            "evaluationTime": g.took_s,
            "lastEvaluation": instant(g.at_ms),
        }));
    }
    let mut data = json!({ "groups": shown });
    if let Some(next) = next {
        data["groupNextToken"] = next.into();
    }
    Ok(success(&data.to_string(), &Notes::default()))
}

pub(super) async fn alerts(State(this): State<NightLight>) -> Response {
    let groups = this.rules.groups();
    let all: Vec<Value> = groups.iter().flat_map(|g| &g.rules).flat_map(|r| r.active().map(alert)).collect();
    success(&json!({ "alerts": all }).to_string(), &Notes::default())
}

pub(super) async fn alertmanagers(State(this): State<NightLight>) -> Response {
    let (urls, _) = this.rules.notifier().managers();
    let all: Vec<Value> = urls.into_iter().map(|u| json!({ "url": u })).collect();
    let data = json!({ "activeAlertmanagers": all, "droppedAlertmanagers": [] });
    success(&data.to_string(), &Notes::default())
}
