//! One group while it runs: what its rules gave last, which alerts there are, and what follows from another evaluation.
//! Pure: queries and writing are handed in, and so is the time.

use super::{
    file::{self, Alerting},
    template::{self, Context, Data, Found},
};
use crate::{
    engine::{Point, STALE_BITS},
    labels::{Labels, NAME},
    promql::Expr,
    store::Entry,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// The label with an alert's name.
pub const ALERT_NAME: &str = "alertname";
/// How long an alert that ended is still told to those who get alerts, milliseconds.
const RESOLVED_KEPT_MS: i64 = 15 * 60_000;
/// No restored alert fires sooner after a restart, milliseconds.
const GRACE_MS: i64 = 10 * 60_000;
/// After a longer time without us nothing is restored, milliseconds.
pub const OUTAGE_MS: i64 = 3_600_000;

/// How an alert is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// It has ended.
    Inactive,
    /// It is so, not for long enough.
    Pending,
    /// It is told.
    Firing,
}

impl State {
    /// As Prometheus writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Inactive => "inactive",
            State::Pending => "pending",
            State::Firing => "firing",
        }
    }
}

/// One alert. Instants are milliseconds.
#[derive(Clone, Debug, PartialEq)]
pub struct Alert {
    /// Who it is.
    pub labels: Labels,
    /// Texts for people.
    pub annotations: Labels,
    /// How it is.
    pub state: State,
    /// What the expression gave last.
    pub value: Point,
    /// Since when it is so.
    pub active_ms: i64,
    /// Since when it fires.
    pub fired_ms: Option<i64>,
    /// Since when it is no more.
    pub resolved_ms: Option<i64>,
    /// Since when it fires only because it is kept.
    pub kept_ms: Option<i64>,
    /// When it was told last.
    pub sent_ms: Option<i64>,
    /// Until when it holds if nobody tells it again.
    pub valid_ms: i64,
}

/// Whether a rule could be evaluated.
#[derive(Clone, Debug, PartialEq, Default)]
pub enum Health {
    /// It was not yet.
    #[default]
    Unknown,
    /// It could.
    Good,
    /// It could not, and why.
    Bad(String),
}

/// One rule while it runs.
#[derive(Clone, Debug)]
pub struct Rule {
    /// As it is written.
    pub spec: file::Rule,
    /// How it went.
    pub health: Health,
    /// When, milliseconds, and how long it took, seconds.
    pub at_ms: i64,
    /// See above.
    pub took_s: f64,
    /// By their labels.
    pub alerts: BTreeMap<Labels, Alert>,
    /// Alerts write their series: not before their state was restored.
    pub restored: bool,
    previous: BTreeSet<Labels>,
}

/// A group while it runs.
#[derive(Clone, Debug)]
pub struct Group {
    /// As it is written.
    pub spec: Arc<file::Group>,
    /// In their order.
    pub rules: Vec<Rule>,
    /// When it was evaluated last, milliseconds, and how long that took, seconds.
    pub at_ms: i64,
    /// See above.
    pub took_s: f64,
    /// Samples of the last evaluation.
    pub samples: usize,
    /// Evaluations of rules, and how many failed.
    pub evaluations: u64,
    /// See above.
    pub failures: u64,
    /// Evaluations of the group, those that were missed among them.
    pub iterations: u64,
    /// Evaluations whose time had passed.
    pub missed: u64,
    /// Series of rules that are no more.
    stale: BTreeSet<Labels>,
}

/// The world as a group sees it.
pub struct World<'a> {
    /// Evaluates an expression (with its text) at an instant. A scalar is one sample without labels.
    pub query: &'a dyn Fn(&Expr, &str, i64) -> Result<Found, String>,
    /// Stores samples.
    pub write: &'a dyn Fn(Vec<Entry>) -> Result<(), String>,
    /// Seconds since some instant, to tell how long things took.
    pub clock: &'a dyn Fn() -> f64,
    /// Labels that others see on everything from here.
    pub external: &'a Labels,
    /// Where people find this NightLight.
    pub external_url: &'a str,
    /// Between two tellings of one alert, milliseconds.
    pub resend_ms: i64,
}

/// An alert to be told, of the rule with this query.
#[derive(Clone, Debug, PartialEq)]
pub struct Told {
    /// As it is now.
    pub alert: Alert,
    /// What it was made from.
    pub query: String,
}

fn entry(labels: Labels, at_ms: i64, p: Point) -> Entry {
    match p {
        Point::Number(v) => Entry { labels, samples: vec![(at_ms, v)], histograms: Vec::new() },
        Point::Histogram(h) => Entry { labels, samples: Vec::new(), histograms: vec![(at_ms, h)] },
    }
}

impl Rule {
    fn new(spec: &file::Rule, restored: bool) -> Self {
        Rule {
            spec: spec.clone(),
            health: Health::Unknown,
            at_ms: 0,
            took_s: 0.0,
            alerts: BTreeMap::new(),
            restored,
            previous: BTreeSet::new(),
        }
    }

    /// The gravest of its alerts.
    pub fn state(&self) -> State {
        self.alerts.values().map(|a| a.state).max().unwrap_or(State::Inactive)
    }

    /// Alerts that have not ended.
    pub fn active(&self) -> impl Iterator<Item = &Alert> {
        self.alerts.values().filter(|a| a.resolved_ms.is_none())
    }

    /// What a recording rule writes.
    fn record(&self, found: Found, limit: usize, at_ms: i64) -> Result<Vec<Entry>, String> {
        let mut seen = BTreeSet::new();
        let mut out = Vec::with_capacity(found.len());
        for (labels, p) in found {
            let mut labels = labels.with(NAME, &self.spec.name);
            for (n, v) in self.spec.labels.iter() {
                labels = labels.with(n, v);
            }
            if !seen.insert(labels.clone()) {
                return Err(
                    "vector contains metrics with the same labelset after applying rule labels".into()
                );
            }
            out.push(entry(labels, at_ms, p));
        }
        if limit > 0 && out.len() > limit {
            return Err(format!("exceeded limit of {limit} with {} series", out.len()));
        }
        Ok(out)
    }

    /// What follows for the alerts of a rule; their series.
    fn alert(
        &mut self,
        how: &Alerting,
        found: Found,
        limit: usize,
        at_ms: i64,
        offset_ms: i64,
        w: &World<'_>,
    ) -> Result<Vec<Entry>, String> {
        let query = |text: &str| -> Result<Found, String> {
            let e = crate::promql::parse(text).map_err(|e| e.to_string())?;
            (w.query)(&e, text, at_ms)
        };
        let cx = Context { query: &query, at_ms, external_url: w.external_url };
        let mut now = BTreeMap::new();
        for (series, value) in found {
            let data = Data { labels: &series, external: w.external, value: &value };
            let expand = |text: &str| template::expand(&self.spec.name, text, &data, &cx);
            let mut labels = series.nameless();
            for (n, v) in self.spec.labels.iter() {
                labels = labels.with(n, &expand(v));
            }
            labels = labels.with(ALERT_NAME, &self.spec.name);
            let annotations = Labels::new(how.annotations.iter().map(|(n, v)| (n.clone(), expand(v).into())));
            let alert = Alert {
                labels: labels.clone(),
                annotations,
                state: State::Pending,
                value: value.clone(),
                active_ms: at_ms,
                fired_ms: None,
                resolved_ms: None,
                kept_ms: None,
                sent_ms: None,
                valid_ms: 0,
            };
            if now.insert(labels, alert).is_some() {
                return Err(
                    "vector contains metrics with the same labelset after applying alert labels".into()
                );
            }
        }
        let present: BTreeSet<Labels> = now.keys().cloned().collect();
        for (labels, fresh) in now {
            match self.alerts.get_mut(&labels).filter(|a| a.state != State::Inactive) {
                Some(known) => (known.value, known.annotations) = (fresh.value, fresh.annotations),
                None => drop(self.alerts.insert(labels, fresh)),
            }
        }
        let (mut out, mut count) = (Vec::new(), 0);
        let (restored, name, shown_ms) = (self.restored, self.spec.name.clone(), at_ms - offset_ms);
        self.alerts.retain(|labels, a| {
            let mut keep = true;
            if present.contains(labels) {
                a.kept_ms = None;
            } else {
                let held = a.state == State::Firing
                    && how.keep_ms > 0
                    && at_ms - *a.kept_ms.get_or_insert(at_ms) < how.keep_ms;
                let forgotten = a.resolved_ms.is_some_and(|r| at_ms - r > RESOLVED_KEPT_MS);
                keep = a.state != State::Pending && !forgotten;
                if a.state != State::Inactive && !held {
                    (a.state, a.resolved_ms) = (State::Inactive, Some(at_ms));
                }
                if !held {
                    return keep;
                }
            }
            count += 1;
            if a.state == State::Pending && at_ms - a.active_ms >= how.wait_ms {
                (a.state, a.fired_ms) = (State::Firing, Some(at_ms));
            }
            if restored {
                let own = a.labels.with(ALERT_NAME, &name);
                let shown = own.with(NAME, "ALERTS").with("alertstate", a.state.as_str());
                out.push(entry(shown, shown_ms, Point::Number(1.0)));
                let since = a.active_ms.div_euclid(1000) as f64;
                out.push(entry(own.with(NAME, FOR_STATE), shown_ms, Point::Number(since)));
            }
            keep
        });
        if limit > 0 && count > limit {
            self.alerts.clear();
            return Err(format!("exceeded limit of {limit} with {count} alerts"));
        }
        Ok(out)
    }

    /// Alerts whose time to be told has come.
    fn told(&mut self, at_ms: i64, interval_ms: i64, resend_ms: i64) -> Vec<Told> {
        let mut out = Vec::new();
        for a in self.alerts.values_mut().filter(|a| a.state != State::Pending) {
            let ended = match (a.resolved_ms, a.sent_ms) {
                (Some(r), Some(s)) => r > s,
                (ended, None) => ended.is_some(),
                _ => false,
            };
            if !ended && a.sent_ms.is_some_and(|s| s + resend_ms >= at_ms) {
                continue;
            }
            a.sent_ms = Some(at_ms);
            // Two tellings may be lost before it ends by itself.
            a.valid_ms = at_ms + 4 * resend_ms.max(interval_ms);
            out.push(Told { alert: a.clone(), query: self.spec.query.clone() });
        }
        out
    }
}

/// Newest samples: of which series, when, and what.
pub type Newest = Vec<(Labels, i64, f64)>;

/// The series that says since when an alert is active, seconds.
pub const FOR_STATE: &str = "ALERTS_FOR_STATE";

impl Group {
    /// Not evaluated yet. `restored`: alerts write their series at once.
    pub fn new(spec: Arc<file::Group>, restored: bool) -> Self {
        let rules = spec.rules.iter().map(|r| Rule::new(r, restored)).collect();
        Group {
            spec,
            rules,
            at_ms: 0,
            took_s: 0.0,
            samples: 0,
            evaluations: 0,
            failures: 0,
            iterations: 0,
            missed: 0,
            stale: BTreeSet::new(),
        }
    }

    /// Goes on where `old`, of the same file and name, ended: rules of the same name and labels keep their alerts.
    pub fn take_over(&mut self, old: Group) {
        let mut before: Vec<Option<Rule>> = old.rules.into_iter().map(Some).collect();
        for r in &mut self.rules {
            let same = |b: &Rule| {
                b.spec.name == r.spec.name
                    && b.spec.labels == r.spec.labels
                    && b.spec.alert.is_some() == r.spec.alert.is_some()
            };
            if let Some(b) = before.iter_mut().find(|b| b.as_ref().is_some_and(same)).and_then(Option::take) {
                (r.alerts, r.previous, r.restored) = (b.alerts, b.previous, b.restored);
                (r.health, r.at_ms, r.took_s) = (b.health, b.at_ms, b.took_s);
            }
        }
        self.stale.extend(old.stale);
        self.stale.extend(before.into_iter().flatten().flat_map(|b| b.previous));
        (self.at_ms, self.took_s) = (old.at_ms, old.took_s);
        (self.evaluations, self.failures) = (old.evaluations, old.failures);
        (self.iterations, self.missed) = (old.iterations, old.missed);
    }

    /// The group is no more: everything it wrote ends.
    pub fn end(&mut self) {
        for r in &mut self.rules {
            self.stale.extend(std::mem::take(&mut r.previous));
        }
    }

    /// Writes the end of series that nobody writes any more.
    pub fn write_stale(&mut self, at_ms: i64, w: &World<'_>) -> Result<(), String> {
        let stale = std::mem::take(&mut self.stale);
        if stale.is_empty() {
            return Ok(());
        }
        let at_ms = at_ms - self.spec.query_offset_ms;
        (w.write)(stale.into_iter().map(|l| entry(l, at_ms, ended())).collect())
    }

    /// Evaluates every rule at `at_ms`, in their order, each seeing what those before it wrote.
    pub fn evaluate(&mut self, at_ms: i64, w: &World<'_>) -> Vec<Told> {
        let begun = (w.clock)();
        let (spec, mut told) = (self.spec.clone(), Vec::new());
        let shown_ms = at_ms - spec.query_offset_ms;
        self.samples = 0;
        for r in &mut self.rules {
            let since = (w.clock)();
            self.evaluations += 1;
            let how = r.spec.alert.clone();
            let made = (w.query)(&r.spec.expr, &r.spec.query, shown_ms).and_then(|found| match &how {
                Some(how) => r.alert(how, found, spec.limit, at_ms, spec.query_offset_ms, w),
                None => r.record(found, spec.limit, shown_ms),
            });
            r.health = match made {
                Ok(entries) => {
                    self.samples += entries.len();
                    told.extend(r.told(at_ms, spec.interval_ms, w.resend_ms));
                    let now: BTreeSet<Labels> = entries.iter().map(|e| e.labels.clone()).collect();
                    let gone = r.previous.difference(&now).map(|l| entry(l.clone(), shown_ms, ended()));
                    let batch: Vec<Entry> = gone.chain(entries).collect();
                    let written = if batch.is_empty() { Ok(()) } else { (w.write)(batch) };
                    r.previous = now;
                    written.map_or_else(Health::Bad, |()| Health::Good)
                }
                Err(e) => {
                    self.failures += 1;
                    Health::Bad(e)
                }
            };
            (r.at_ms, r.took_s) = (at_ms, (w.clock)() - since);
        }
        if let Err(e) = self.write_stale(at_ms, w) {
            tracing::warn!(group = spec.name, error = e, "ends of series were not written");
        }
        self.iterations += 1;
        (self.at_ms, self.took_s) = (at_ms, (w.clock)() - begun);
        told
    }

    /// Lets alerts go on from what was written before a restart. `newest` gives the last sample of each series of an
    /// alert's name in [`FOR_STATE`]: labels, instant, value.
    pub fn restore(&mut self, now_ms: i64, newest: &dyn Fn(&str) -> Result<Newest, String>) {
        for r in &mut self.rules {
            let Some(how) = &r.spec.alert else { continue };
            // Those that wait a shorter time just wait it anew.
            if how.wait_ms >= GRACE_MS {
                let known = match newest(&r.spec.name) {
                    Ok(known) => known,
                    Err(e) => {
                        tracing::warn!(
                            alert = r.spec.name,
                            error = e,
                            "since when it is active is not known"
                        );
                        Vec::new()
                    }
                };
                for a in r.alerts.values_mut() {
                    let Some((_, down_ms, since)) = known.iter().find(|(l, ..)| l.nameless() == a.labels)
                    else {
                        continue;
                    };
                    if crate::engine::is_stale(*since) {
                        continue;
                    }
                    // Anybody may have written it: no instant that was not yet.
                    let since_ms = ((*since * 1000.0) as i64).clamp(0, (*down_ms).max(0));
                    let left_ms = how.wait_ms - (down_ms - since_ms);
                    a.active_ms = match left_ms {
                        ..=0 => since_ms,
                        ms if ms < GRACE_MS => now_ms + GRACE_MS - how.wait_ms,
                        _ => since_ms + (now_ms - down_ms),
                    };
                }
            }
            r.restored = true;
        }
    }

    /// How far its evaluations are from whole intervals, nanoseconds: what Prometheus has for the same file and name.
    pub fn offset_ns(spec: &file::Group) -> u64 {
        let mut bytes = Vec::new();
        for part in ["file", &spec.file, "name", &spec.name] {
            bytes.extend_from_slice(part.as_bytes());
            bytes.push(0xff);
        }
        xxhash_rust::xxh64::xxh64(&bytes, 0) % (spec.interval_ms.max(1) as u64 * 1_000_000)
    }

    /// The newest instant of evaluation that has come, nanoseconds.
    pub fn slot_ns(spec: &file::Group, now_ns: i64) -> i64 {
        let (offset, interval) = (Self::offset_ns(spec) as i64, spec.interval_ms.max(1) * 1_000_000);
        let shifted = now_ns - offset;
        shifted - shifted.rem_euclid(interval) + offset
    }
}

fn ended() -> Point {
    Point::Number(f64::from_bits(STALE_BITS))
}

#[cfg(test)]
mod tests;
