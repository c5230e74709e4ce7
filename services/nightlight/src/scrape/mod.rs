//! Asking targets: what is asked ([`config`], [`discover`](self)), under which labels ([`relabel`], [`target`]), how
//! ([`http`]), and what follows from the answers ([`book`]). This file runs it: one task for each job, which finds
//! targets, and one for each target, which asks it.
//!
//! Invariants: a page is stored whole or not at all; a series that vanishes, with its target or without, gets a stale
//! marker (not when the process ends: then nobody knows); every target's tasks end with their job, every job's with the
//! configuration, all with the `Tasks` they were given; answers, lists, names and waits are bounded.

pub mod book;
pub mod config;
pub(crate) mod discover;
mod dns;
pub mod http;
mod live;
pub mod relabel;
pub mod target;

pub(crate) use discover::matching;
pub use live::{Health, Live};

use crate::{labels::Labels, store::Store};
use config::{Config, Job};
use discover::Sources;
use photon_rt::{task::Tasks, time::sleep_until};
use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use target::{Found, populate};
use tokio::sync::{oneshot, watch};

pub(crate) fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a job has found.
#[derive(Default)]
pub struct Pool {
    /// Those that are asked.
    pub active: Vec<Arc<Live>>,
    /// Those that rules dropped, at most as many as the job keeps.
    pub dropped: Vec<Labels>,
    /// All of them.
    pub dropped_count: usize,
    /// Why nobody is asked.
    pub refused: Option<String>,
}

struct Running {
    job: watch::Sender<Arc<Job>>,
    pool: Arc<Mutex<Pool>>,
}

/// Asks targets until its `Tasks` end. Shared freely.
#[derive(Clone)]
pub struct Scraper(Arc<Inner>);

/// Where samples go, and why the last ones did not get there.
pub(crate) struct Keeper {
    pub store: Arc<Store>,
    pub failed: Mutex<Option<String>>,
}

struct Inner {
    store: Arc<Keeper>,
    tasks: Tasks,
    running: Mutex<BTreeMap<String, Running>>,
    config: Mutex<Arc<Config>>,
}

impl Scraper {
    /// Asks nobody yet.
    pub fn new(store: Arc<Store>, tasks: &Tasks) -> Self {
        let (running, config) = (Mutex::default(), Mutex::default());
        let store = Arc::new(Keeper { store, failed: Mutex::default() });
        Scraper(Arc::new(Inner { store, tasks: tasks.clone(), running, config }))
    }

    /// Goes over to `config`: jobs that are the same go on undisturbed, and so do targets of changed ones.
    pub fn apply(&self, config: Config) {
        let config = Arc::new(config);
        let mut running = lock(&self.0.running);
        // A job that is no more loses its sender, which ends it.
        running.retain(|name, _| config.jobs.iter().any(|j| j.name == *name));
        for job in &config.jobs {
            match running.get(&job.name) {
                Some(r) => {
                    r.job.send_if_modified(|old| {
                        let changed = **old != **job;
                        if changed {
                            *old = job.clone();
                        }
                        changed
                    });
                }
                None => {
                    let (sender, jobs) = watch::channel(job.clone());
                    let pool = Arc::new(Mutex::new(Pool::default()));
                    let (store, tasks) = (self.0.store.clone(), self.0.tasks.clone());
                    let work = follow(store, tasks, jobs, pool.clone());
                    self.0.tasks.spawn("scrape-job", work);
                    running.insert(job.name.clone(), Running { job: sender, pool });
                }
            }
        }
        drop(running);
        *lock(&self.0.config) = config;
    }

    /// What is in force.
    pub fn config(&self) -> Arc<Config> {
        lock(&self.0.config).clone()
    }

    /// Why the samples of the last answer were not stored, if they were not.
    pub fn failed(&self) -> Option<String> {
        lock(&self.0.store.failed).clone()
    }

    /// How many targets are asked.
    pub fn targets(&self) -> usize {
        lock(&self.0.running).values().map(|r| lock(&r.pool).active.len()).sum()
    }

    /// Every job's name and what it has found.
    pub fn pools(&self) -> Vec<(String, Arc<Mutex<Pool>>)> {
        lock(&self.0.running).iter().map(|(n, r)| (n.clone(), r.pool.clone())).collect()
    }
}

/// Finds the targets of one job, again and again.
async fn follow(
    store: Arc<Keeper>,
    tasks: Tasks,
    mut jobs: watch::Receiver<Arc<Job>>,
    pool: Arc<Mutex<Pool>>,
) {
    let mut asked: HashMap<String, (Arc<Live>, oneshot::Sender<()>)> = HashMap::new();
    let mut known = None;
    loop {
        let job = jobs.borrow_and_update().clone();
        let mut sources = Sources::new(&job).after(known.take());
        loop {
            let found = sources.refresh(&tasks).await;
            let mut all = HashMap::new();
            let (mut dropped, mut dropped_count, mut wrong) = (Vec::new(), 0, 0usize);
            for f in found.iter().flat_map(|g| populate(&job, g)) {
                match f {
                    Found::Active(t) => {
                        // The same target from two sources is asked once.
                        all.insert(format!("{} {} {} {}", t.url, t.labels, t.interval_ms, t.timeout_ms), *t);
                    }
                    Found::Dropped(labels) => {
                        dropped_count += 1;
                        if job.keep_dropped_targets == 0 || dropped.len() < job.keep_dropped_targets as usize
                        {
                            dropped.push(labels);
                        }
                    }
                    Found::Wrong(e) => {
                        wrong += 1;
                        if wrong == 1 {
                            tracing::warn!(job = job.name, error = e, "a target can't be used");
                        }
                    }
                }
            }
            // Those that are no more; told apart from the end of all by a word.
            let gone: Vec<String> = asked.keys().filter(|k| !all.contains_key(*k)).cloned().collect();
            for (_, stop) in gone.iter().filter_map(|k| asked.remove(k)) {
                let _ = stop.send(()); // its task may have ended with everything else
            }
            for (key, t) in all {
                asked.entry(key).or_insert_with(|| {
                    let live = Arc::new(Live::new(t));
                    let (stop, stopped) = oneshot::channel();
                    let work = live::ask(
                        store.clone(),
                        tasks.clone(),
                        live.clone(),
                        jobs.clone(),
                        pool.clone(),
                        stopped,
                    );
                    tasks.spawn("scrape", work);
                    (live, stop)
                });
            }
            {
                let mut p = lock(&pool);
                p.active = asked.values().map(|(l, _)| l.clone()).collect();
                p.active.sort_by(|a, b| a.target.labels.cmp(&b.target.labels));
                (p.dropped, p.dropped_count) = (dropped, dropped_count);
                let (n, limit) = (asked.len(), job.target_limit);
                p.refused = (limit > 0 && n as u64 > limit)
                    .then(|| format!("target_limit exceeded (number of targets: {n}, limit: {limit})"));
            }
            tokio::select! {
                changed = jobs.changed() => match changed {
                    Ok(()) => break,
                    Err(_) => {
                        for (_, (_, stop)) in asked {
                            let _ = stop.send(()); // as above
                        }
                        return;
                    }
                },
                () = sleep_until(sources.due()) => {}
            }
        }
    }
}
