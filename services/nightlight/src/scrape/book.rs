//! What one target showed last, and what follows from what it shows now. Pure.
//!
//! Series are found by the bytes that name them: what they are called here, after labels of the target were joined
//! and rules applied, is worked out once. A series that was there and is not any more gets a stale marker.

use super::{
    config::Job,
    relabel::{apply, building, labels},
};
use crate::{
    engine::STALE_BITS,
    expose::{self, Format, Item, Kind, ParseError, Point},
    labels::{Labels, NAME, is_label, is_metric},
    store::{Arrival, Exemplar, LABEL_BYTES_MAX, LABELS_MAX},
};
use std::collections::{BTreeMap, HashMap, HashSet};

/// Most families whose words are kept for one target, and the longest of those words, bytes.
const FAMILIES_MAX: usize = 10_000;
const HELP_MAX: usize = 1024;

/// What a family is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct About {
    /// What it measures.
    pub kind: Kind,
    /// What it is for.
    pub help: String,
    /// What it is measured in.
    pub unit: String,
}

struct Entry {
    /// Nothing: a rule drops it.
    labels: Option<Labels>,
    /// The scrape that showed it first, and last.
    first: u64,
    seen: u64,
    /// Missing it makes it stale: those that bring their own instants may come and go.
    tracked: bool,
}

/// One target's series.
#[derive(Default)]
pub struct Book {
    entries: HashMap<Box<str>, Entry>,
    scrape: u64,
    /// Series as they were called before the rules changed.
    orphans: Vec<Labels>,
    /// What its families are.
    pub about: BTreeMap<String, About>,
}

/// What follows from one page.
#[derive(Debug, Default, PartialEq)]
pub struct Scraped {
    /// To be stored, stale markers among them.
    pub arrivals: Vec<Arrival>,
    /// To be remembered.
    pub exemplars: Vec<(Labels, Exemplar)>,
    /// Samples on the page.
    pub samples: usize,
    /// Of those, how many rules have left.
    pub kept: usize,
    /// Series that were not there before.
    pub added: usize,
}

fn arrival(labels: Labels, at_ms: i64, value: f64) -> Arrival {
    Arrival { labels, samples: vec![(at_ms, value)] }
}

impl Book {
    /// The rules have changed: what series are called has to be worked out again.
    pub fn forget_names(&mut self) {
        let old = std::mem::take(&mut self.entries).into_values();
        self.orphans.extend(old.filter(|e| e.tracked).filter_map(|e| e.labels));
    }

    /// A page was read at `at_ms`. An error takes nothing of it.
    pub fn page(
        &mut self,
        job: &Job,
        target: &Labels,
        format: Format,
        page: &[u8],
        at_ms: i64,
    ) -> Result<Scraped, ParseError> {
        self.scrape += 1;
        let mut out = Scraped::default();
        let read = expose::parse::<ParseError>(format, page, &mut |item| {
            match item {
                Item::Point(p) => self.point(job, target, &p, at_ms, &mut out)?,
                Item::Type(family, kind) => self.tell(family, |a| a.kind = kind),
                Item::Help(family, text) => self.tell(family, |a| keep(&mut a.help, text)),
                Item::Unit(family, text) => self.tell(family, |a| keep(&mut a.unit, text)),
            }
            Ok(())
        });
        if let Err(e) = read {
            // As if nobody had looked: what was there before becomes stale by `gone`.
            self.entries.retain(|_, entry| entry.first < self.scrape);
            return Err(e);
        }
        let mut missed = self.missed(|e, now| e.seen < now);
        missed.append(&mut self.orphans);
        if !missed.is_empty() {
            let here: HashSet<&Labels> = out.arrivals.iter().map(|a| &a.labels).collect();
            let stale: Vec<Labels> = missed.into_iter().filter(|l| !here.contains(l)).collect();
            out.arrivals.extend(stale.into_iter().map(|l| arrival(l, at_ms, f64::from_bits(STALE_BITS))));
        }
        let now = self.scrape;
        self.entries.retain(|_, e| e.seen == now);
        Ok(out)
    }

    fn missed(&self, missed: impl Fn(&Entry, u64) -> bool) -> Vec<Labels> {
        let entries = self.entries.values().filter(|e| e.tracked && missed(e, self.scrape));
        entries.filter_map(|e| e.labels.clone()).collect()
    }

    /// The target did not answer, or is no more: everything that it showed is stale.
    pub fn gone(&mut self, at_ms: i64) -> Vec<Arrival> {
        let mut all = self.missed(|_, _| true);
        all.append(&mut self.orphans);
        self.entries.clear();
        all.into_iter().map(|l| arrival(l, at_ms, f64::from_bits(STALE_BITS))).collect()
    }

    fn tell(&mut self, family: &str, change: impl FnOnce(&mut About)) {
        if self.about.len() >= FAMILIES_MAX && !self.about.contains_key(family) {
            return;
        }
        if let Some(about) = self.about.get_mut(family) {
            change(about);
        } else {
            change(self.about.entry(family.into()).or_default());
        }
    }

    fn point(
        &mut self,
        job: &Job,
        target: &Labels,
        p: &Point<'_>,
        at_ms: i64,
        out: &mut Scraped,
    ) -> Result<(), ParseError> {
        out.samples += 1;
        let own = p.at_ms.filter(|_| job.honor_timestamps);
        let tracked = own.is_none() || job.track_timestamps_staleness;
        let entry = match self.entries.get_mut(p.series) {
            Some(entry) => entry,
            None => {
                let labels = named(job, target, p)?;
                out.added += usize::from(labels.is_some());
                let first = self.scrape;
                self.entries.entry(p.series.into()).or_insert(Entry { labels, first, seen: first, tracked })
            }
        };
        (entry.seen, entry.tracked) = (self.scrape, tracked);
        let Some(labels) = &entry.labels else { return Ok(()) };
        out.kept += 1;
        if job.sample_limit > 0 && out.kept as u64 > job.sample_limit {
            return Err(ParseError("sample limit exceeded".into()));
        }
        let t = own.unwrap_or(at_ms);
        if let Some(e) = &p.exemplar {
            let pairs = e.labels.iter().map(|(n, v)| (n.as_str().into(), v.as_str().into()));
            let e = Exemplar { labels: Labels::new(pairs), value: e.value, t: e.at_ms.unwrap_or(t) };
            out.exemplars.push((labels.clone(), e));
        }
        out.arrivals.push(arrival(labels.clone(), t, p.value));
        Ok(())
    }
}

fn keep(slot: &mut String, text: &str) {
    if slot != text {
        let end = (0..=HELP_MAX.min(text.len())).rev().find(|i| text.is_char_boundary(*i));
        *slot = text[..end.unwrap_or(0)].to_string();
    }
}

/// What a series is called here; nothing if rules drop it.
fn named(job: &Job, target: &Labels, p: &Point<'_>) -> Result<Option<Labels>, ParseError> {
    let found = expose::labels_of(p.series, p.numeric)?;
    let mut all = building(&found);
    let own = target.iter().filter(|(n, _)| !n.starts_with("__"));
    if job.honor_labels {
        for (name, value) in own {
            // An empty value that is written counts as written: it keeps the target's away.
            all.entry(name.to_string()).or_insert_with(|| value.to_string());
        }
    } else {
        let mut moved = Vec::new();
        for (name, value) in own {
            if let Some(theirs) = all.insert(name.to_string(), value.to_string()) {
                moved.push((name.to_string(), theirs));
            }
        }
        for (name, theirs) in moved {
            let mut name = format!("exported_{name}");
            while all.contains_key(&name) {
                name = format!("exported_{name}");
            }
            all.insert(name, theirs);
        }
    }
    if !apply(&job.metric_relabel, &mut all) {
        return Ok(None);
    }
    let labels = labels(&all);
    if labels.name().is_empty() {
        return Err(ParseError("metric name is missing: invalid sample".into()));
    }
    let old_alphabet = || is_metric(labels.name()) && labels.iter().all(|(n, _)| &**n == NAME || is_label(n));
    if !(job.utf8 || old_alphabet()) {
        return Err(ParseError(format!("invalid metric name or label names: {labels}")));
    }
    limits(job, &labels)?;
    Ok(Some(labels))
}

fn limits(job: &Job, labels: &Labels) -> Result<(), ParseError> {
    let metric: String = labels.name().chars().take(50).collect();
    // The store would refuse everything that comes with it.
    let (n, bytes) = (labels.len(), labels.iter().map(|(n, v)| n.len() + v.len()).sum::<usize>());
    if n > LABELS_MAX || bytes > LABEL_BYTES_MAX {
        return Err(ParseError(format!(
            "too large a series (metric: {metric}, labels: {n} of {bytes} bytes, at most {LABELS_MAX} of {LABEL_BYTES_MAX})"
        )));
    }
    if job.label_limit > 0 && labels.len() as u64 > job.label_limit {
        let (n, limit) = (labels.len(), job.label_limit);
        return Err(ParseError(format!(
            "label_limit exceeded (metric: {metric}, number of labels: {n}, limit: {limit})"
        )));
    }
    for (name, value) in labels.iter() {
        let limit = job.label_name_length_limit;
        let short: String = name.chars().take(50).collect();
        if limit > 0 && name.len() as u64 > limit {
            let n = name.len();
            return Err(ParseError(format!(
                "label_name_length_limit exceeded (metric: {metric}, label name: {short}, length: {n}, limit: {limit})"
            )));
        }
        let limit = job.label_value_length_limit;
        if limit > 0 && value.len() as u64 > limit {
            let n = value.len();
            return Err(ParseError(format!(
                "label_value_length_limit exceeded (metric: {metric}, label name: {short}, length: {n}, limit: {limit})"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::is_stale;

    fn job(more: &str) -> Job {
        let text = format!("scrape_configs: [{{job_name: j, {more}}}]");
        let c = super::super::config::Config::parse(&text, std::path::Path::new("/")).expect("valid");
        (*c.jobs[0]).clone()
    }

    fn shown(s: &[Arrival]) -> Vec<String> {
        let mut all: Vec<String> = s
            .iter()
            .map(|a| {
                let (t, v) = a.samples[0];
                if is_stale(v) { format!("{} {t} stale", a.labels) } else { format!("{} {t} {v}", a.labels) }
            })
            .collect();
        all.sort();
        all
    }

    #[test]
    fn what_vanishes_becomes_stale_once() {
        let (job, target, mut b) = (job(""), Labels::of(&[("job", "j")]), Book::default());
        let mut page = |text: &str, at| {
            let s = b.page(&job, &target, Format::Text, text.as_bytes(), at).expect("page");
            (shown(&s.arrivals), s.samples, s.kept, s.added)
        };
        let (a, b1) = (r#"a{job="j"} 1 1"#, r#"b{job="j"} 1 2"#);
        assert_eq!(page("a 1\nb 2\n", 1), (vec![a.into(), b1.into()], 2, 2, 2));
        assert_eq!(page("a 1\n", 2).0, [r#"a{job="j"} 2 1"#, r#"b{job="j"} 2 stale"#]);
        assert_eq!(page("a 1\n", 3), (vec![r#"a{job="j"} 3 1"#.into()], 1, 1, 0));
        // One with its own instants may stay away.
        assert_eq!(page("a 1\nc 1 7\n", 4).0, [r#"a{job="j"} 4 1"#, r#"c{job="j"} 7 1"#]);
        assert_eq!(page("a 1\n", 5).0, [r#"a{job="j"} 5 1"#]);
        assert_eq!(shown(&b.gone(6)), [r#"a{job="j"} 6 stale"#]);
        assert!(b.gone(7).is_empty());
    }

    #[test]
    fn a_broken_page_is_not_taken_and_makes_the_last_one_stale() {
        let (job, target, mut b) = (job("sample_limit: 2"), Labels::default(), Book::default());
        b.page(&job, &target, Format::Text, b"a 1\nb 1\n", 1).expect("page");
        for broken in ["a 1\nnew 1\nb{ 2\n", "a 1\nb 1\nc 1\n"] {
            assert!(b.page(&job, &target, Format::Text, broken.as_bytes(), 2).is_err());
        }
        assert!(shown(&b.gone(3)).iter().all(|s| !s.contains("new") && !s.contains('c')));
    }

    #[test]
    fn two_names_of_one_series_are_not_stale_while_one_is_there() {
        let job = job("metric_relabel_configs: [{action: labeldrop, regex: x}]");
        let (target, mut b) = (Labels::default(), Book::default());
        b.page(&job, &target, Format::Text, b"a{x=\"1\"} 1\n", 1).expect("page");
        let s = b.page(&job, &target, Format::Text, b"a{x=\"2\"} 1\n", 2).expect("page");
        assert_eq!(shown(&s.arrivals), ["a 2 1"]);
    }

    #[test]
    fn labels_of_target_and_series_are_joined_as_prometheus_does() {
        let target = Labels::of(&[("job", "j"), ("instance", "i"), ("__address__", "h")]);
        let page = b"a{job=\"x\",exported_job=\"y\"} 1\n";
        for (more, want) in [
            ("", r#"a{exported_exported_job="x", exported_job="y", instance="i", job="j"} 1 1"#),
            ("honor_labels: true", r#"a{exported_job="y", instance="i", job="x"} 1 1"#),
        ] {
            let s = Book::default().page(&job(more), &target, Format::Text, page, 1).expect("page");
            assert_eq!(shown(&s.arrivals), [want]);
        }
    }

    #[test]
    fn limits_have_prometheus_words() {
        let target = Labels::default();
        for (more, page, why) in [
            (
                "label_limit: 2",
                "abc{a=\"1\",b=\"2\"} 1\n",
                "label_limit exceeded (metric: abc, number of labels: 3, limit: 2)",
            ),
            ("label_name_length_limit: 8", "a{long_name=\"1\"} 1\n", "label_name_length_limit exceeded"),
            ("label_value_length_limit: 3", "a{b=\"1234\"} 1\n", "label_value_length_limit exceeded"),
            ("sample_limit: 1", "a 1\nb 1\n", "sample limit exceeded"),
            ("metric_name_validation_scheme: legacy", "{\"a.b\"} 1\n", "invalid metric name"),
        ] {
            let e =
                Book::default().page(&job(more), &target, Format::Text, page.as_bytes(), 1).expect_err(why);
            assert!(e.0.contains(why), "{e}");
        }
    }
}
