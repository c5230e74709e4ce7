//! One target that is asked: when, what is stored, and how it is.

use super::{
    Keeper, Pool,
    book::{About, Book, Scraped},
    config::Job,
    http::{Ask, Link},
    lock,
    target::Target,
};
use crate::{
    engine::STALE_BITS,
    expose::negotiate::{accept, format_of},
    labels::{Labels, NAME},
    store::Arrival,
};
use photon_rt::{
    task::{Tasks, blocking},
    time::{Duration, now, sleep, timeout, wall},
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};
use tokio::sync::{oneshot, watch};
use xxhash_rust::xxh3::xxh3_64;

/// A sample's instant is that of its slot if it came this soon after, milliseconds: samples at even distances take
/// a tenth of the room.
const SLOT_MS: i64 = 10;
/// The first answer comes within this, so that a new target shows at once.
const FIRST_MS: u64 = 1_000;
/// Most series stored in one batch.
const BATCH_MAX: usize = 20_000;

/// How a target is.
#[derive(Clone, Debug, Default)]
pub struct Health {
    /// Whether it answered; nothing before it was asked.
    pub up: Option<bool>,
    /// Why not.
    pub error: String,
    /// When it was asked last, milliseconds.
    pub at_ms: i64,
    /// How long it took, seconds.
    pub took_s: f64,
}

/// A target that is asked.
pub struct Live {
    /// Who.
    pub target: Target,
    health: Mutex<Health>,
    about: Mutex<Arc<BTreeMap<String, About>>>,
    reports: [Labels; 5],
}

const REPORTS: [&str; 5] = [
    "up",
    "scrape_duration_seconds",
    "scrape_samples_scraped",
    "scrape_samples_post_metric_relabeling",
    "scrape_series_added",
];

impl Live {
    pub(super) fn new(target: Target) -> Self {
        let reports = REPORTS.map(|name| target.labels.with(NAME, name));
        Live { target, health: Mutex::default(), about: Mutex::default(), reports }
    }

    /// How it is.
    pub fn health(&self) -> Health {
        lock(&self.health).clone()
    }

    /// What its families are.
    pub fn about(&self) -> Arc<BTreeMap<String, About>> {
        lock(&self.about).clone()
    }

    fn report(&self, values: [f64; 5], at_ms: i64, into: &mut Vec<Arrival>) {
        let all = self.reports.iter().zip(values);
        into.extend(all.map(|(l, v)| Arrival { labels: l.clone(), samples: vec![(at_ms, v)] }));
    }

    /// When its slots are, milliseconds into every interval: spread by what it is.
    fn offset_ms(&self) -> u64 {
        let t = &self.target;
        xxh3_64(format!("{} {}", t.url, t.labels).as_bytes()) % t.interval_ms.max(1)
    }
}

/// The slot after `now_ms`.
fn next_slot(now_ms: i64, offset_ms: u64, interval_ms: u64) -> i64 {
    let (interval, offset) = (interval_ms.max(1) as i64, offset_ms as i64);
    now_ms + interval - (now_ms - offset).rem_euclid(interval)
}

/// Asks until told to stop; a word from `stopped` means that the target is no more.
pub(super) async fn ask(
    store: Arc<Keeper>,
    tasks: Tasks,
    live: Arc<Live>,
    mut jobs: watch::Receiver<Arc<Job>>,
    pool: Arc<Mutex<Pool>>,
    mut stopped: oneshot::Receiver<()>,
) {
    let (mut book, mut link) = (Book::default(), Link::default());
    let (offset, interval) = (live.offset_ms(), live.target.interval_ms);
    let mut slot = wall().0 as i64 + (offset % FIRST_MS.min(interval)) as i64;
    let mut job = jobs.borrow_and_update().clone();
    loop {
        let wait = u64::try_from(slot - wall().0 as i64).unwrap_or(0);
        let turn = async {
            sleep(Duration::from_millis(wait)).await;
            if jobs.has_changed().unwrap_or(false) {
                job = jobs.borrow_and_update().clone();
                book.forget_names();
            }
            let late = wall().0 as i64 - slot;
            let tolerance = SLOT_MS.min(interval as i64 / 100);
            let at_ms = if (0..=tolerance).contains(&late) { slot } else { wall().0 as i64 };
            let refused = lock(&pool).refused.clone();
            once(&store, &tasks, &live, &job, refused, &mut book, &mut link, at_ms).await;
        };
        let ended = tokio::select! {
            word = &mut stopped => Some(word.is_ok()),
            () = turn => None,
        };
        match ended {
            None => {}
            Some(false) => return,
            Some(true) => {
                let at_ms = wall().0 as i64;
                let mut batch = book.gone(at_ms);
                live.report([f64::from_bits(STALE_BITS); 5], at_ms, &mut batch);
                keep(&store, batch).await;
                return;
            }
        }
        slot = next_slot(wall().0 as i64, offset, interval);
    }
}

/// Asks once, and stores what follows.
#[allow(clippy::too_many_arguments, reason = "one turn of the loop above, with all that it owns")]
async fn once(
    store: &Arc<Keeper>,
    tasks: &Tasks,
    live: &Live,
    job: &Job,
    refused: Option<String>,
    book: &mut Book,
    link: &mut Link,
    at_ms: i64,
) {
    let begun = now();
    let read = match refused {
        Some(why) => Err(why),
        None => page(live, job, book, link, tasks, at_ms).await,
    };
    let took_s = (now() - begun).as_secs_f64();
    let (mut batch, values, error) = match read {
        Ok(s) => {
            let values = [1.0, took_s, s.samples as f64, s.kept as f64, s.added as f64];
            for (of, e) in s.exemplars {
                store.store.beside.exemplar(&of, e); // the same as in the last page, most often
            }
            (s.arrivals, values, String::new())
        }
        Err(why) => {
            *link = Link::default();
            (book.gone(at_ms), [0.0, took_s, 0.0, 0.0, 0.0], why)
        }
    };
    live.report(values, at_ms, &mut batch);
    keep(store, batch).await;
    let known = live.about();
    if *known != book.about {
        *lock(&live.about) = Arc::new(book.about.clone());
    }
    if !error.is_empty() {
        tracing::debug!(target = %live.target.url, error, "a scrape failed");
    }
    *lock(&live.health) = Health { up: Some(error.is_empty()), error, at_ms, took_s };
}

async fn page(
    live: &Live,
    job: &Job,
    book: &mut Book,
    link: &mut Link,
    tasks: &Tasks,
    at_ms: i64,
) -> Result<Scraped, String> {
    let t = &live.target;
    let accept = accept(&job.protocols, job.utf8);
    let ask = Ask {
        accept: &accept,
        timeout_s: t.timeout_ms as f64 / 1000.0,
        body_max: job.body_size_limit,
        compression: job.compression,
        post: None,
    };
    let limit = Duration::from_millis(t.timeout_ms);
    let got = timeout(limit, "the scrape", job.client.get(&t.url, &ask, link, tasks)).await;
    let got = got.map_err(|_| format!("Get {:?}: context deadline exceeded", t.url.to_string()))??;
    let format = format_of(got.content_type.as_deref(), job.fallback)?;
    book.page(job, &t.labels, format, &got.body, at_ms).map_err(|e| e.0)
}

/// Stores; what can't be is told in the log: the next page comes soon.
async fn keep(store: &Arc<Keeper>, mut batch: Vec<Arrival>) {
    while !batch.is_empty() {
        let rest = batch.split_off(batch.len().min(BATCH_MAX));
        let some = std::mem::replace(&mut batch, rest);
        let inner = store.store.clone();
        let stored = blocking(move || inner.append(some)).await;
        *lock(&store.failed) = stored.as_ref().err().map(ToString::to_string);
        match stored {
            Ok(o) if o.too_old + o.conflicting + o.over_limit > 0 => {
                tracing::warn!(o.too_old, o.conflicting, o.over_limit, "samples of a scrape were not taken");
            }
            Ok(_) => {}
            Err(e) => tracing::error!(error = %e, "samples of a scrape are lost"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_even_whenever_one_looks() {
        for now_ms in [0, 1, 6_999, 7_000, 7_001, 14_999, 1_700_000_000_123] {
            let slot = next_slot(now_ms, 7_000, 15_000);
            assert!(slot > now_ms && slot - now_ms <= 15_000, "{now_ms} {slot}");
            assert_eq!(slot.rem_euclid(15_000), 7_000);
        }
    }
}
