//! Telling alerts to Alertmanagers (API v2): which there are, and one task with a bounded queue for each of them. What
//! one does not take is not tried again: an alert that goes on is told anew every minute.

use super::group::Told;
use crate::{
    expose::write::Families,
    labels::Labels,
    scrape::{
        config::{self, Config, Job},
        discover::Sources,
        http::{Ask, Link, Url},
        lock,
        relabel::{Rule, apply, building, labels},
    },
};
use photon_base::Timestamp;
use photon_rt::{
    task::Tasks,
    time::{Duration, sleep_until, timeout},
};
use serde_json::json;
use serde_yaml_ng::{Mapping, Value};
use std::{
    collections::{BTreeMap, VecDeque},
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::sync::{Notify, oneshot};

/// Most alerts that wait for one Alertmanager; of more the oldest are dropped.
const QUEUE_MAX: usize = 10_000;
/// Most alerts of one request.
const BATCH_MAX: usize = 256;
/// Largest answer, bytes.
const ANSWER_MAX: u64 = 1 << 20;
/// Most Alertmanagers of one configuration.
const MANAGERS_MAX: usize = 1000;

/// `alerting`
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Alerting {
    relabel: Vec<Rule>,
    managers: Vec<Arc<Manager>>,
}

/// Alertmanagers that are found and spoken to in one way.
#[derive(Debug, PartialEq)]
struct Manager {
    /// How they are found, and how they are spoken to.
    job: Job,
    path: String,
    relabel: Vec<Rule>,
}

const FOUND_BY: [&str; 5] =
    ["static_configs", "file_sd_configs", "http_sd_configs", "dns_sd_configs", "relabel_configs"];

fn text(all: &mut Mapping, key: &str) -> Option<String> {
    all.shift_remove(key).and_then(|v| v.as_str().map(str::to_string))
}

impl Alerting {
    /// Reads `alerting`; paths in it are relative to `dir`.
    pub fn parse(written: Value, dir: &Path) -> Result<Self, String> {
        let Value::Mapping(mut all) = written else { return Ok(Self::default()) };
        let rules = |all: &mut Mapping, key: &str| -> Result<Vec<Rule>, String> {
            let v = all.shift_remove(key);
            v.map_or(Ok(Vec::new()), |v| serde_yaml_ng::from_value(v).map_err(|e| format!("{key}: {e}")))
        };
        let relabel = rules(&mut all, "alert_relabel_configs")?;
        let list = match all.shift_remove("alertmanagers") {
            Some(Value::Sequence(list)) => list,
            None | Some(Value::Null) => Vec::new(),
            Some(_) => return Err("alertmanagers: expected a list".into()),
        };
        if let Some((key, _)) = all.iter().next() {
            return Err(format!("unknown field {:?}", key.as_str().unwrap_or_default()));
        }
        let mut managers = Vec::new();
        for (i, one) in list.into_iter().enumerate() {
            let Value::Mapping(mut m) = one else {
                return Err(format!("alertmanagers[{i}]: expected keys and values"));
            };
            let here = |e: String| format!("alertmanagers[{i}]: {e}");
            let prefix = text(&mut m, "path_prefix").unwrap_or_default();
            let limit = text(&mut m, "timeout").unwrap_or_else(|| "10s".into());
            match text(&mut m, "api_version").as_deref() {
                None | Some("v2") => {}
                Some(other) => {
                    return Err(here(format!(
                        "expected Alertmanager api version to be one of [v2] but got {other}"
                    )));
                }
            }
            let relabel = rules(&mut m, "alert_relabel_configs").map_err(here)?;
            let known = |k: &str| k == "scheme" || FOUND_BY.contains(&k) || config::CLIENT_KEYS.contains(&k);
            if let Some(key) = m.keys().filter_map(Value::as_str).find(|k| !known(k)) {
                return Err(here(format!("unknown field {key:?}")));
            }
            m.insert("job_name".into(), format!("config-{i}").into());
            m.insert("scrape_interval".into(), limit.clone().into());
            m.insert("scrape_timeout".into(), limit.into());
            let job = config::job(Value::Mapping(m), &config::Global::default(), dir).map_err(here)?;
            let path = format!("/{}/api/v2/alerts", prefix.trim_matches('/')).replace("//", "/");
            managers.push(Arc::new(Manager { job, path, relabel }));
        }
        Ok(Alerting { relabel, managers })
    }
}

impl Manager {
    /// Where those of a list are, and how many rules drop.
    fn urls(&self, groups: &[config::Group]) -> (Vec<Url>, usize) {
        let (mut out, mut dropped) = (Vec::new(), 0);
        for (g, address) in groups.iter().flat_map(|g| g.targets.iter().map(move |t| (g, t))) {
            let mut all: BTreeMap<String, String> = g.labels.clone();
            all.insert("__address__".into(), address.clone());
            all.entry("__scheme__".into()).or_insert_with(|| self.job.scheme.clone());
            all.entry("__alerts_path__".into()).or_insert_with(|| self.path.clone());
            if !apply(&self.job.relabel, &mut all) {
                dropped += 1;
                continue;
            }
            let get = |n: &str| all.get(n).map_or("", String::as_str);
            match Url::parse(&format!(
                "{}://{}{}",
                get("__scheme__"),
                get("__address__"),
                get("__alerts_path__")
            )) {
                Ok(url) if out.len() < MANAGERS_MAX && !out.contains(&url) => out.push(url),
                Ok(_) => {}
                Err(e) => tracing::warn!(error = e, "an Alertmanager can't be used"),
            }
        }
        (out, dropped)
    }
}

/// One Alertmanager.
struct Door {
    url: Url,
    manager: Arc<Manager>,
    queue: Mutex<VecDeque<Arc<Outgoing>>>,
    wake: Notify,
    sent: AtomicU64,
    errors: AtomicU64,
    dropped: AtomicU64,
}

/// An alert on its way, after the rules for all of them.
struct Outgoing {
    labels: Labels,
    annotations: Labels,
    starts_ms: i64,
    ends_ms: i64,
    link: String,
}

/// Those that are there, each with what ends its task.
type Doors = Arc<Mutex<Vec<(Arc<Door>, oneshot::Sender<()>)>>>;

struct Finding {
    manager: Arc<Manager>,
    doors: Doors,
    dropped: Arc<AtomicU64>,
    _stop: oneshot::Sender<()>,
}

/// Tells alerts. Shared freely.
#[derive(Clone)]
pub struct Notifier(Arc<Inner>);

struct Inner {
    tasks: Tasks,
    relabel: Mutex<Vec<Rule>>,
    finding: Mutex<Vec<Finding>>,
}

impl Notifier {
    pub(super) fn new(tasks: &Tasks) -> Self {
        let (relabel, finding) = (Mutex::default(), Mutex::default());
        Notifier(Arc::new(Inner { tasks: tasks.clone(), relabel, finding }))
    }

    /// Goes over to a configuration.
    pub(super) fn apply(&self, c: &Config) {
        *lock(&self.0.relabel) = c.alerting.relabel.clone();
        let mut finding = lock(&self.0.finding);
        // Those that are no more lose their sender, which ends their tasks.
        finding.retain(|f| c.alerting.managers.contains(&f.manager));
        for m in &c.alerting.managers {
            if finding.iter().any(|f| f.manager == *m) {
                continue;
            }
            let (stop, stopped) = oneshot::channel();
            let (doors, dropped) = (Arc::new(Mutex::default()), Arc::new(AtomicU64::new(0)));
            let work = find(m.clone(), doors.clone(), dropped.clone(), self.0.tasks.clone(), stopped);
            self.0.tasks.spawn("alertmanagers", work);
            finding.push(Finding { manager: m.clone(), doors, dropped, _stop: stop });
        }
    }

    fn doors(&self) -> Vec<Arc<Door>> {
        let finding = lock(&self.0.finding);
        finding.iter().flat_map(|f| lock(&f.doors).iter().map(|d| d.0.clone()).collect::<Vec<_>>()).collect()
    }

    /// Where alerts go, and how many places rules have dropped.
    pub fn managers(&self) -> (Vec<String>, u64) {
        let dropped = lock(&self.0.finding).iter().map(|f| f.dropped.load(Ordering::Relaxed)).sum();
        (self.doors().iter().map(|d| d.url.to_string()).collect(), dropped)
    }

    /// Puts alerts into every queue.
    pub(super) fn tell(&self, told: Vec<Told>, external: &Labels, external_url: &str) {
        let rules = lock(&self.0.relabel).clone();
        let doors = self.doors();
        for t in told {
            let mut all = building(&t.alert.labels);
            for (n, v) in external.iter() {
                all.entry(n.to_string()).or_insert_with(|| v.to_string());
            }
            if !apply(&rules, &mut all) {
                continue;
            }
            let a = t.alert;
            let out = Arc::new(Outgoing {
                labels: labels(&all),
                annotations: a.annotations,
                starts_ms: a.fired_ms.unwrap_or(a.active_ms),
                ends_ms: a.resolved_ms.unwrap_or(a.valid_ms),
                link: format!("{external_url}{}", super::template::link(&t.query, 1)),
            });
            for d in &doors {
                let mut queue = lock(&d.queue);
                if queue.len() >= QUEUE_MAX {
                    queue.pop_front();
                    d.dropped.fetch_add(1, Ordering::Relaxed);
                }
                queue.push_back(out.clone());
            }
        }
        doors.iter().for_each(|d| d.wake.notify_one());
    }

    pub(super) fn metrics(&self, out: &mut Families) {
        let doors = self.doors();
        out.add("prometheus_notifications_alertmanagers_discovered", "gauge", &[], doors.len() as f64);
        for d in doors {
            let url = d.url.to_string();
            let of = [("alertmanager", url.as_str())];
            for (name, n) in [
                ("prometheus_notifications_sent_total", &d.sent),
                ("prometheus_notifications_errors_total", &d.errors),
                ("prometheus_notifications_dropped_total", &d.dropped),
            ] {
                out.add(name, "counter", &of, n.load(Ordering::Relaxed) as f64);
            }
            out.add("prometheus_notifications_queue_length", "gauge", &of, lock(&d.queue).len() as f64);
            out.add("prometheus_notifications_queue_capacity", "gauge", &of, QUEUE_MAX as f64);
        }
    }
}

/// Finds Alertmanagers, again and again; each has a task.
async fn find(
    manager: Arc<Manager>,
    doors: Doors,
    dropped: Arc<AtomicU64>,
    tasks: Tasks,
    mut stopped: oneshot::Receiver<()>,
) {
    let mut sources = Sources::new(&manager.job);
    loop {
        let (urls, gone) = manager.urls(&sources.refresh(&tasks).await);
        dropped.store(gone as u64, Ordering::Relaxed);
        {
            let mut doors = lock(&doors);
            doors.retain(|(d, _)| urls.contains(&d.url));
            for url in urls {
                if doors.iter().any(|(d, _)| d.url == url) {
                    continue;
                }
                let door = Arc::new(Door {
                    url,
                    manager: manager.clone(),
                    queue: Mutex::default(),
                    wake: Notify::new(),
                    sent: AtomicU64::new(0),
                    errors: AtomicU64::new(0),
                    dropped: AtomicU64::new(0),
                });
                let (stop, stopped) = oneshot::channel();
                tasks.spawn("alertmanager", send(door.clone(), tasks.clone(), stopped));
                doors.push((door, stop));
            }
        }
        tokio::select! {
            _ = &mut stopped => {
                lock(&doors).clear();
                return;
            }
            () = sleep_until(sources.due()) => {}
        }
    }
}

/// Empties one queue until its Alertmanager is no more.
async fn send(door: Arc<Door>, tasks: Tasks, mut stopped: oneshot::Receiver<()>) {
    let mut link = Link::default();
    loop {
        let batch: Vec<Arc<Outgoing>> = {
            let mut queue = lock(&door.queue);
            let n = queue.len().min(BATCH_MAX);
            queue.drain(..n).collect()
        };
        if batch.is_empty() {
            tokio::select! {
                _ = &mut stopped => return,
                () = door.wake.notified() => continue,
            }
        }
        let all: Vec<_> = batch.iter().filter_map(|a| shown(a, &door.manager.relabel)).collect();
        if all.is_empty() {
            continue;
        }
        let (n, job) = (all.len() as u64, &door.manager.job);
        let ask = Ask {
            accept: "application/json",
            timeout_s: job.timeout_ms as f64 / 1000.0,
            body_max: ANSWER_MAX,
            compression: false,
            post: Some(serde_json::Value::Array(all).to_string().into()),
        };
        let limit = Duration::from_millis(job.timeout_ms);
        let done =
            timeout(limit, "the Alertmanager", job.client.get(&door.url, &ask, &mut link, &tasks)).await;
        match done.map_err(|e| e.to_string()).and_then(|d| d.map(|_| ())) {
            Ok(()) => door.sent.fetch_add(n, Ordering::Relaxed),
            Err(e) => {
                link = Link::default();
                tracing::error!(alertmanager = %door.url, alerts = n, error = e, "alerts were not taken");
                door.errors.fetch_add(n, Ordering::Relaxed)
            }
        };
    }
}

/// In the API's form; nothing if rules drop it.
fn shown(a: &Outgoing, rules: &[Rule]) -> Option<serde_json::Value> {
    let mut all = building(&a.labels);
    if !apply(rules, &mut all) {
        return None;
    }
    let instant = |ms: i64| Timestamp(u64::try_from(ms).unwrap_or(0)).to_string();
    let annotations: BTreeMap<String, String> = building(&a.annotations);
    Some(json!({
        "labels": all,
        "annotations": annotations,
        "startsAt": instant(a.starts_ms),
        "endsAt": instant(a.ends_ms),
        "generatorURL": a.link,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Alerting, String> {
        Alerting::parse(serde_yaml_ng::from_str(text).expect("yaml"), Path::new("/etc/x"))
    }

    #[test]
    fn managers_are_read_and_found() {
        let a = parse(
            "{alert_relabel_configs: [{regex: r, action: labeldrop}], alertmanagers: [{scheme: https, path_prefix: /am/, timeout: 5s, \
             static_configs: [{targets: ['a:1', 'drop:1', 'a:1']}], basic_auth: {username: u, password: p}, \
             relabel_configs: [{source_labels: [__address__], regex: 'drop.*', action: drop}]}]}",
        )
        .expect("valid");
        let m = &a.managers[0];
        let group = config::Group {
            targets: ["a:1", "drop:1", "a:1"].map(String::from).to_vec(),
            ..Default::default()
        };
        let (urls, dropped) = m.urls(&[group]);
        let urls: Vec<String> = urls.iter().map(ToString::to_string).collect();
        assert_eq!(
            (urls, dropped, m.job.timeout_ms),
            (vec!["https://a:1/am/api/v2/alerts".to_string()], 1, 5000)
        );
        assert_eq!(parse("{}"), Ok(Alerting::default()));
    }

    #[test]
    fn mistakes_are_named() {
        for (text, why) in [
            ("{alertmanager: []}", "unknown field \"alertmanager\""),
            ("{alertmanagers: [{api_version: v1}]}", "one of [v2] but got v1"),
            ("{alertmanagers: [{scrape_interval: 5s}]}", "unknown field \"scrape_interval\""),
            ("{alertmanagers: [{kubernetes_sd_configs: []}]}", "kubernetes_sd_configs"),
            ("{alertmanagers: [{timeout: soon}]}", "not a valid duration"),
            ("{alert_relabel_configs: [{action: hashmod, target_label: x}]}", "non-zero modulus"),
        ] {
            let e = parse(text).expect_err(text);
            assert!(e.contains(why), "{text}: {e}");
        }
    }
}
