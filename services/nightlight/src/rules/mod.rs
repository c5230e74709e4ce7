//! Rules: what is recorded and what is told ([`file`](mod@file)), evaluated in groups ([`group`]), with texts that are
//! made from templates ([`template`]), told to Alertmanagers ([`notify`]), and tried without a server ([`unit`]). This
//! file runs them: one task for each group.
//!
//! Invariants: rules of a group are evaluated one after the other, at even distances, each seeing what the ones before
//! it wrote; what vanishes gets a stale marker; a configuration whose files are wrong changes nothing; queries are
//! bounded in time and end with their task.

pub mod file;
pub mod group;
pub mod notify;
pub mod template;
pub mod unit;

use crate::{
    engine::{self, Cancel, Query, Storage, Value, run},
    labels::{Labels, MatchOp, Matcher, NAME},
    promql::Expr,
    scrape::{config::Config, lock},
    store::{Entry, Store},
};
use group::{FOR_STATE, Group, OUTAGE_MS, World};
use notify::Notifier;
use photon_rt::{
    task::{Tasks, blocking},
    time::{Duration, now, sleep, wall},
};
use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex},
};
use template::Found;
use tokio::sync::oneshot;

/// Most rule files.
const FILES_MAX: usize = 10_000;
/// Longest time of one evaluation of a group.
const EVALUATION_TIME_MAX: Duration = Duration::from_secs(120);
/// Between two tellings of one alert.
const RESEND_MS: i64 = 60_000;

/// What ends a group's task: it is no more (nothing), or another goes on in its place.
type Stop = Option<oneshot::Sender<Box<Group>>>;

struct Running {
    spec: Arc<file::Group>,
    shown: Arc<Mutex<Arc<Group>>>,
    stop: oneshot::Sender<Stop>,
}

/// Evaluates rules until its `Tasks` end. Shared freely.
#[derive(Clone)]
pub struct Rules(Arc<Inner>);

struct Inner {
    store: Arc<Store>,
    tasks: Tasks,
    running: Mutex<BTreeMap<(String, String), Running>>,
    /// The first configuration was applied: alerts of later groups have nothing to be restored.
    begun: Mutex<bool>,
    around: Mutex<Arc<Around>>,
    notifier: Notifier,
    external_url: String,
}

/// What groups take from the configuration.
#[derive(Default)]
struct Around {
    external: Labels,
}

/// The files that patterns mean; one without `*` has to be there.
fn files(patterns: &[PathBuf]) -> Result<Vec<PathBuf>, String> {
    let mut out: Vec<PathBuf> = Vec::new();
    for p in patterns {
        for path in crate::scrape::matching(p) {
            if !out.contains(&path) {
                out.push(path);
            }
        }
    }
    if out.len() > FILES_MAX {
        return Err(format!("{} rule files: at most {FILES_MAX} are read", out.len()));
    }
    Ok(out)
}

/// Reads the rule files of a configuration. Blocking.
pub fn load(c: &Config) -> Result<Vec<file::Group>, String> {
    let defaults =
        file::Defaults { interval_ms: c.evaluation_ms as i64, query_offset_ms: c.rule_query_offset_ms };
    let (mut out, mut wrong) = (Vec::new(), Vec::new());
    for path in files(&c.rule_files)? {
        match file::load(&path, defaults) {
            Ok(groups) => out.extend(groups),
            Err(all) => wrong.extend(all),
        }
    }
    if wrong.is_empty() { Ok(out) } else { Err(wrong.join("\n")) }
}

impl Rules {
    /// No rules yet. `external_url`: where people find this NightLight.
    pub fn new(store: Arc<Store>, external_url: String, tasks: &Tasks) -> Self {
        let notifier = Notifier::new(tasks);
        Rules(Arc::new(Inner {
            store,
            tasks: tasks.clone(),
            running: Mutex::default(),
            begun: Mutex::default(),
            around: Mutex::default(),
            notifier,
            external_url,
        }))
    }

    /// Who tells alerts.
    pub fn notifier(&self) -> &Notifier {
        &self.0.notifier
    }

    /// Every group as it was after its last evaluation, by file and name.
    pub fn groups(&self) -> Vec<Arc<Group>> {
        lock(&self.0.running).values().map(|r| lock(&r.shown).clone()).collect()
    }

    /// Goes over to `groups`: those that are the same go on undisturbed, changed ones keep their alerts.
    pub fn apply(&self, groups: Vec<file::Group>, config: &Config) {
        *lock(&self.0.around) = Arc::new(Around { external: config.external.clone() });
        self.0.notifier.apply(config);
        let restores = !std::mem::replace(&mut *lock(&self.0.begun), true);
        let mut running = lock(&self.0.running);
        let mut old = std::mem::take(&mut *running);
        for spec in groups {
            let key = (spec.file.clone(), spec.name.clone());
            let before = old.remove(&key);
            let same = before.as_ref().is_some_and(|b| *b.spec == spec);
            let r = match before {
                Some(b) if same => b,
                before => self.start(Arc::new(spec), before, restores),
            };
            running.insert(key, r);
        }
        for (_, gone) in old {
            let _ = gone.stop.send(None); // its task may have ended with everything else
        }
    }

    fn start(&self, spec: Arc<file::Group>, before: Option<Running>, restores: bool) -> Running {
        let (stop, stopped) = oneshot::channel();
        let (hand, handed) = oneshot::channel();
        let mut first = Group::new(spec.clone(), !restores);
        let from = before.map(|b| {
            first.take_over((**lock(&b.shown)).clone());
            let _ = b.stop.send(Some(hand)); // as above
            handed
        });
        let shown = Arc::new(Mutex::new(Arc::new(first)));
        let work = follow(self.0.clone(), spec.clone(), shown.clone(), stopped, from, restores);
        self.0.tasks.spawn("rule-group", work);
        Running { spec, shown, stop }
    }

    /// Counters of groups and of telling, under Prometheus' names.
    pub fn metrics(&self) -> String {
        let mut out = crate::expose::write::Families::default();
        for g in self.groups() {
            let key = format!("{};{}", g.spec.file, g.spec.name);
            let of = [("rule_group", key.as_str())];
            let interval = g.spec.interval_ms as f64 / 1000.0;
            for (name, kind, v) in [
                ("prometheus_rule_evaluations_total", "counter", g.evaluations as f64),
                ("prometheus_rule_evaluation_failures_total", "counter", g.failures as f64),
                ("prometheus_rule_group_iterations_total", "counter", g.iterations as f64),
                ("prometheus_rule_group_iterations_missed_total", "counter", g.missed as f64),
                ("prometheus_rule_group_interval_seconds", "gauge", interval),
                ("prometheus_rule_group_last_duration_seconds", "gauge", g.took_s),
                ("prometheus_rule_group_last_evaluation_samples", "gauge", g.samples as f64),
                ("prometheus_rule_group_last_evaluation_timestamp_seconds", "gauge", g.at_ms as f64 / 1000.0),
                ("prometheus_rule_group_rules", "gauge", g.rules.len() as f64),
            ] {
                out.add(name, kind, &of, v);
            }
        }
        self.0.notifier.metrics(&mut out);
        out.text()
    }
}

/// Ends the queries of an evaluation when nobody waits for it any more.
struct Ending(Cancel);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

fn nanos() -> i64 {
    wall().0 as i64 * 1_000_000
}

/// One group, from its first slot to its end.
async fn follow(
    inner: Arc<Inner>,
    spec: Arc<file::Group>,
    shown: Arc<Mutex<Arc<Group>>>,
    mut stopped: oneshot::Receiver<Stop>,
    from: Option<oneshot::Receiver<Box<Group>>>,
    restores: bool,
) {
    let mut group = Group::new(spec.clone(), !restores);
    if let Some(from) = from
        && let Ok(old) = from.await
    {
        group.take_over(*old);
    }
    let interval = spec.interval_ms.max(1) * 1_000_000;
    let mut at = Group::slot_ns(&spec, nanos()).saturating_add(interval);
    let mut evaluated = 0;
    let word = loop {
        let wait = u64::try_from(at - nanos()).unwrap_or(0);
        tokio::select! {
            word = &mut stopped => break word,
            () = sleep(Duration::from_nanos(wait)) => {}
        }
        evaluated += 1;
        group = turn(&inner, group, at / 1_000_000, restores && evaluated == 2).await;
        *lock(&shown) = Arc::new(group.clone());
        // Slots that have passed meanwhile are missed, but for the newest.
        let passed = ((nanos() - at) / interval).max(1);
        at += passed * interval;
        group.missed += passed as u64 - 1;
        group.iterations += passed as u64 - 1;
    };
    match word {
        Ok(Some(next)) => drop(next.send(Box::new(group))), // it may have ended too
        Ok(None) => {
            let at_ms = wall().0 as i64;
            group.end();
            // One that was renamed goes on writing the same series: it has two intervals to begin.
            sleep(Duration::from_millis(2 * spec.interval_ms as u64)).await;
            let _ = with_world(&inner, group, move |g, w| {
                if let Err(e) = g.write_stale(at_ms, w) {
                    tracing::warn!(group = g.spec.name, error = e, "ends of series were not written");
                }
                Vec::new()
            })
            .await;
        }
        Err(_) => {}
    }
}

/// One evaluation, and after the second one alerts go on from before a restart.
async fn turn(inner: &Arc<Inner>, group: Group, at_ms: i64, restores: bool) -> Group {
    let store = inner.store.clone();
    with_world(inner, group, move |g, w| {
        let told = g.evaluate(at_ms, w);
        if restores {
            let now_ms = wall().0 as i64;
            g.restore(now_ms, &|alert| newest(&store, alert, now_ms));
        }
        told
    })
    .await
}

async fn with_world(
    inner: &Arc<Inner>,
    mut group: Group,
    f: impl FnOnce(&mut Group, &World<'_>) -> Vec<group::Told> + Send + 'static,
) -> Group {
    let cancel = Cancel::default();
    let ending = Ending(cancel.clone());
    let (store, around) = (inner.store.clone(), lock(&inner.around).clone());
    let (external, url) = (around.external.clone(), inner.external_url.clone());
    let work = blocking(move || {
        let begun = now();
        let query = |e: &Expr, text: &str, at_ms: i64| query(&*store, e, text, at_ms, &cancel);
        let write = |batch: Vec<Entry>| write(&store, batch);
        let clock = || (now() - begun).as_secs_f64();
        let w = World {
            query: &query,
            write: &write,
            clock: &clock,
            external: &external,
            external_url: &url,
            resend_ms: RESEND_MS,
        };
        let told = f(&mut group, &w);
        (group, told)
    });
    tokio::pin!(work);
    let (group, told) = tokio::select! {
        done = &mut work => done,
        () = sleep(EVALUATION_TIME_MAX) => {
            ending.0.cancel();
            work.await
        }
    };
    if !told.is_empty() {
        inner.notifier.tell(told, &around.external, &inner.external_url);
    }
    group
}

/// An expression at an instant: a sample for each series.
pub(crate) fn query(
    storage: &dyn Storage,
    e: &Expr,
    text: &str,
    at_ms: i64,
    cancel: &Cancel,
) -> Result<Found, String> {
    match run(storage, text, e, Query::instant(at_ms), cancel).map_err(|e| e.to_string())?.value {
        Value::Vector(all) => Ok(all.into_iter().map(|(l, _, p)| (l, p)).collect()),
        Value::Scalar(_, v) => Ok(vec![(Labels::default(), engine::Point::Number(v))]),
        _ => Err("rule result is not a vector or scalar".into()),
    }
}

fn write(store: &Store, batch: Vec<Entry>) -> Result<(), String> {
    let o = store.append_all(batch).map_err(|e| e.to_string())?;
    match o.too_old + o.conflicting + o.over_limit {
        0 => Ok(()),
        n => Err(format!(
            "{n} samples were not taken: {} too old, {} conflicting, {} beyond the limit of series",
            o.too_old, o.conflicting, o.over_limit
        )),
    }
}

/// The last sample of each series that says since when an alert is active.
fn newest(store: &Store, alert: &str, now_ms: i64) -> Result<group::Newest, String> {
    let is = |name, value| Matcher::new(name, MatchOp::Equal, value);
    let matchers = [is(NAME, FOR_STATE)?, is(group::ALERT_NAME, alert)?];
    let mut out = Vec::new();
    let found = store.select(&matchers, now_ms - OUTAGE_MS, now_ms, &mut |labels, s| {
        if let (Some(t), Some(v)) = (s.t.last(), s.v.last()) {
            out.push((labels.clone(), *t, *v));
        }
        Ok(())
    });
    found.map_err(|e| e.to_string())?;
    Ok(out)
}
