//! From what discovery finds to what is scraped: labels, rules, address (Prometheus' `PopulateLabels`). Pure.

use super::{
    config::{Group, Job},
    http::Url,
    relabel::{Building, apply, labels},
};
use crate::labels::Labels;

/// A target, complete.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// Where it is asked.
    pub url: Url,
    /// How often and how long, milliseconds.
    pub interval_ms: u64,
    /// At most the interval.
    pub timeout_ms: u64,
    /// What its series get.
    pub labels: Labels,
    /// What was known before the rules.
    pub discovered: Labels,
}

/// What became of one.
#[derive(Clone, Debug, PartialEq)]
pub enum Found {
    /// It is scraped.
    Active(Box<Target>),
    /// A rule drops it.
    Dropped(Labels),
    /// It can't be.
    Wrong(String),
}

/// Every target of a group.
pub fn populate(job: &Job, group: &Group) -> Vec<Found> {
    group
        .targets
        .iter()
        .map(|address| {
            let mut all: Building = group.labels.clone().into_iter().collect();
            all.insert("__address__".into(), address.clone());
            one(job, all).unwrap_or_else(Found::Wrong)
        })
        .collect()
}

fn duration(all: &Building, name: &str) -> Result<u64, String> {
    let text = all.get(name).map_or("", String::as_str);
    match crate::promql::duration::parse(text) {
        Ok(ms) if ms > 0 => Ok(ms.unsigned_abs()),
        _ => Err(format!("error parsing {}: {text:?}", name.trim_matches('_'))),
    }
}

fn one(job: &Job, mut all: Building) -> Result<Found, String> {
    all.retain(|_, v| !v.is_empty());
    let mut default = |name: &str, value: String| {
        if !value.is_empty() {
            all.entry(name.into()).or_insert(value);
        }
    };
    default("job", job.name.clone());
    default("__scrape_interval__", crate::promql::duration::print(job.interval_ms as i64));
    default("__scrape_timeout__", crate::promql::duration::print(job.timeout_ms as i64));
    default("__metrics_path__", job.path.clone());
    default("__scheme__", job.scheme.clone());
    for (name, values) in &job.params {
        default(&format!("__param_{name}"), values.first().cloned().unwrap_or_default());
    }
    let discovered = labels(&all);
    if !apply(&job.relabel, &mut all) {
        return Ok(Found::Dropped(discovered));
    }
    let address = all.get("__address__").cloned().ok_or("no address")?;
    if address.contains('/') {
        return Err(format!("{address:?} is not a valid hostname"));
    }
    let (interval_ms, timeout_ms) =
        (duration(&all, "__scrape_interval__")?, duration(&all, "__scrape_timeout__")?);
    if timeout_ms > interval_ms {
        let [t, i] = [timeout_ms, interval_ms].map(|ms| crate::promql::duration::print(ms as i64));
        return Err(format!("scrape timeout cannot be greater than scrape interval ({t:?} > {i:?})"));
    }
    let url = Url::parse(&url(job, &all, &address))?;
    all.retain(|n, _| !n.starts_with("__meta_") && !n.starts_with("__tmp"));
    all.entry("instance".into()).or_insert(address);
    let target = Target { url, interval_ms, timeout_ms, labels: labels(&all), discovered };
    Ok(Found::Active(Box::new(Target { labels: target.labels.filter(|n| !n.starts_with("__")), ..target })))
}

fn url(job: &Job, all: &Building, address: &str) -> String {
    let scheme = all.get("__scheme__").map_or("", String::as_str);
    let path = all.get("__metrics_path__").map_or("", String::as_str);
    let slash = if path.starts_with('/') { "" } else { "/" };
    let mut query = Vec::new();
    let mut params = job.params.clone();
    for (name, value) in all {
        if let Some(name) = name.strip_prefix("__param_") {
            let values = params.entry(name.to_string()).or_default();
            match values.first_mut() {
                Some(first) => first.clone_from(value),
                None => values.push(value.clone()),
            }
        }
    }
    for (name, values) in &params {
        query.extend(values.iter().map(|v| format!("{}={}", percent(name), percent(v))));
    }
    let mark = if query.is_empty() { "" } else { "?" };
    format!("{scheme}://{address}{slash}{path}{mark}{}", query.join("&"))
}

/// URL-encoded, as a form is.
pub fn percent(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for b in text.bytes() {
        match b {
            b'-' | b'.' | b'_' | b'~' => out.push(b as char),
            b if b.is_ascii_alphanumeric() => out.push(b as char),
            b' ' => out.push('+'),
            b => out.push_str(&format!("%{b:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(job: &str, group: &str) -> Vec<Found> {
        let text = format!("scrape_configs: [{{job_name: j, {job}}}]");
        let c = super::super::config::Config::parse(&text, std::path::Path::new("/")).expect("valid");
        populate(&c.jobs[0], &serde_yaml_ng::from_str(group).expect("group"))
    }

    #[test]
    fn a_target_is_made_of_its_group_its_job_and_rules() {
        let all = found(
            "params: {module: [a, b]}, scheme: https, relabel_configs: [{source_labels: [__address__], regex: 'drop.*', action: drop}, \
             {source_labels: [__meta_x], target_label: x}, {source_labels: [__meta_x], target_label: __param_module}]",
            "{targets: ['h:1', 'drop:1', 'a/b:1'], labels: {__meta_x: 'm &', l: v}}",
        );
        let Found::Active(t) = &all[0] else { panic!("{all:?}") };
        assert_eq!(t.url.to_string(), "https://h:1/metrics?module=m+%26&module=b");
        assert_eq!(t.labels.to_string(), r#"{instance="h:1", job="j", l="v", x="m &"}"#);
        assert_eq!(t.discovered.get("__scrape_interval__"), "1m");
        assert!(matches!(&all[1], Found::Dropped(l) if l.get("__address__") == "drop:1"));
        assert!(matches!(&all[2], Found::Wrong(e) if e.contains("not a valid hostname")));
    }

    #[test]
    fn a_target_may_have_its_own_pace() {
        let all = found("", "{targets: ['h:1'], labels: {__scrape_interval__: 7s, __scrape_timeout__: 8s}}");
        assert!(matches!(&all[0], Found::Wrong(e) if e.contains("cannot be greater")), "{all:?}");
        let all = found(
            "",
            "{targets: ['h:1'], labels: {__scrape_interval__: 7s, __scrape_timeout__: 1500ms, job: mine}}",
        );
        let Found::Active(t) = &all[0] else { panic!("{all:?}") };
        assert_eq!((t.interval_ms, t.timeout_ms, t.labels.get("job")), (7000, 1500, "mine"));
    }
}
