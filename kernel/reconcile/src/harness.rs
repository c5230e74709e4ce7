//! Proves that reconcilers may be cut off anywhere: runs them on the model store to the end, then again
//! with a crash before and after every single commit, and compares what is left.

use crate::{Context, Feed, Next, Reconcile, View, manager::Erased, manager::key_of};
use async_trait::async_trait;
use photon_base::{Code, Error, Result};
use photon_kv::{
    Check, Committed, Direction, Kv, KvError, KvResult, MemKv, Page, Range, ReadAt, Revision, Versioned,
    Watch, Write,
};
use photon_resource::{AUDIT_PREFIX, RESOURCE_PREFIX, Registry, Store};
use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// A store that dies at one commit.
struct CrashKv {
    inner: MemKv,
    commits: AtomicU64,
    /// Commit at which it dies, counted from 1; 0 never.
    at: u64,
    /// Whether the fatal commit still takes place.
    after: bool,
}

#[async_trait]
impl Kv for CrashKv {
    async fn get(&self, key: &[u8], at: ReadAt) -> KvResult<Option<Versioned>> {
        self.inner.get(key, at).await
    }
    async fn scan(&self, range: Range, at: ReadAt, limit: u32, d: Direction) -> KvResult<Page> {
        self.inner.scan(range, at, limit, d).await
    }
    async fn commit(&self, checks: Vec<Check>, writes: Vec<Write>) -> KvResult<Committed> {
        let n = self.commits.fetch_add(1, Ordering::SeqCst) + 1;
        let dead = || KvError::Unavailable("crash of the harness".into());
        match self.at {
            0 => self.inner.commit(checks, writes).await,
            at if n < at => self.inner.commit(checks, writes).await,
            at if n == at && self.after => {
                self.inner.commit(checks, writes).await?;
                Err(dead())
            }
            _ => Err(dead()),
        }
    }
    fn watch(&self, range: Range, from: Revision) -> Watch {
        self.inner.watch(range, from)
    }
}

/// Reconcilers under test, made anew after each crash as a restarted process would.
pub struct Harness {
    registry: Arc<Registry>,
    make: Box<dyn Fn() -> Vec<Arc<dyn Erased>> + Send + Sync>,
}

/// Fills a store with what a test starts from.
pub type Setup = dyn Fn(Store) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync;

/// Rounds after which a system that still changes counts as one that never comes to rest.
const ROUNDS_MAX: usize = 200;

impl Harness {
    /// For kinds of `registry`.
    pub fn new(registry: Registry) -> Harness {
        Harness { registry: Arc::new(registry), make: Box::new(Vec::new) }
    }

    /// Adds a reconciler, made by `make` at each start.
    pub fn with<R: Reconcile>(self, make: impl Fn() -> R + Send + Sync + 'static) -> Harness {
        let before = self.make;
        Harness {
            registry: self.registry,
            make: Box::new(move || {
                let mut all = before();
                all.push(Arc::new(make()));
                all
            }),
        }
    }

    /// Runs everything until a whole round changes nothing. Returns the commits made.
    async fn settle(&self, kv: Arc<CrashKv>) -> Result<u64> {
        let store = Store::new(kv.clone(), self.registry.clone());
        let reconcilers = (self.make)();
        let mut pending: Option<Error> = None;
        for _ in 0..ROUNDS_MAX {
            let before = kv.inner.dump();
            pending = None;
            for r in &reconcilers {
                let view = View::default();
                let (tx, _rx) = tokio::sync::mpsc::unbounded_channel();
                Feed::new(store.clone(), view.clone(), tx).fill().await?;
                for (storage, _) in view.list(&format!("{RESOURCE_PREFIX}{}/", r.kind())) {
                    let Some(key) = key_of(r.kind(), &storage) else { continue };
                    let fresh = View::default();
                    let (tx, _rx) = tokio::sync::mpsc::unbounded_channel();
                    Feed::new(store.clone(), fresh.clone(), tx).fill().await?;
                    let cx = Context::new(fresh, store.acting_as(r.name()));
                    match r.reconcile(&cx, &key).await {
                        Ok(Next::Done | Next::After(_)) => {}
                        Err(e) if e.code == Code::Unavailable => return Err(e),
                        Err(e) => pending = Some(e),
                    }
                }
            }
            if kv.inner.dump() == before {
                return match pending {
                    Some(e) => Err(e),
                    None => Ok(kv.commits.load(Ordering::SeqCst)),
                };
            }
        }
        Err(pending.unwrap_or_else(|| Error::internal("the reconcilers never come to rest")))
    }

    /// A store as `setup` leaves it, with the same identities each time.
    async fn start(&self, setup: &Setup) -> MemKv {
        let kv = MemKv::new();
        photon_rt::entropy::seed(Some(1));
        setup(Store::new(Arc::new(kv.clone()), self.registry.clone())).await;
        photon_rt::entropy::seed(None);
        kv
    }

    /// Runs to rest from `setup` and returns the store.
    pub async fn run(&self, setup: &Setup) -> Result<Store> {
        let kv = self.start(setup).await;
        let crash = CrashKv { inner: kv.clone(), commits: AtomicU64::new(0), at: 0, after: false };
        self.settle(Arc::new(crash)).await?;
        Ok(Store::new(Arc::new(kv), self.registry.clone()))
    }

    /// Crashes before and after every commit of the run from `setup`; each time restarts, runs to rest,
    /// and fails unless the end state is that of the run without a crash. Returns the number of crashes.
    pub async fn crash_everywhere(&self, setup: &Setup) -> Result<usize> {
        let clean = self.start(setup).await;
        let none = CrashKv { inner: clean.clone(), commits: AtomicU64::new(0), at: 0, after: false };
        let commits = self.settle(Arc::new(none)).await?;
        let expected = portrait(&clean);
        let mut crashes = 0;
        for at in 1..=commits {
            for after in [false, true] {
                let kv = self.start(setup).await;
                let dying = CrashKv { inner: kv.clone(), commits: AtomicU64::new(0), at, after };
                let _ = self.settle(Arc::new(dying)).await; // dies, or settles before it gets there
                let restarted = CrashKv { inner: kv.clone(), commits: AtomicU64::new(0), at: 0, after };
                self.settle(Arc::new(restarted)).await?;
                crashes += 1;
                let found = portrait(&kv);
                if found != expected {
                    let side = if after { "after" } else { "before" };
                    let missing: Vec<_> = expected.iter().filter(|e| !found.contains(e)).collect();
                    let extra: Vec<_> = found.iter().filter(|e| !expected.contains(e)).collect();
                    return Err(Error::internal(format!("a crash {side} commit {at} leaves another state"))
                        .why(format!("missing {missing:#?}, instead {extra:#?}")));
                }
            }
        }
        Ok(crashes)
    }
}

/// The state without what may differ between runs: drawn identities and times.
fn portrait(kv: &MemKv) -> Vec<(String, String)> {
    let scrub = |v: &Versioned| {
        let text = String::from_utf8_lossy(&v.value).into_owned();
        let Ok(mut json) = serde_json::from_str::<serde_json::Value>(&text) else {
            // Claims hold an identity, which differs from run to run unless it is derived.
            return if text.len() == 32 { "(id)".into() } else { text };
        };
        scrub_json(&mut json);
        json.to_string()
    };
    let mut all: Vec<_> =
        kv.dump().iter().map(|v| (String::from_utf8_lossy(&v.key).into_owned(), scrub(v))).collect();
    // The audit trail must tell the same, each change once, whatever the times and draws in its keys.
    for (key, record) in all.iter_mut().filter(|(key, _)| key.starts_with(AUDIT_PREFIX)) {
        let v: serde_json::Value = serde_json::from_str(record).unwrap_or_default();
        *record = format!("{} {} {} {}", v["who"], v["action"], v["target"], v["because"]);
        *key = AUDIT_PREFIX.into();
    }
    all.sort_unstable();
    all
}

fn scrub_json(v: &mut serde_json::Value) {
    match v {
        serde_json::Value::Object(m) => {
            for (k, v) in m.iter_mut() {
                match k.as_str() {
                    "id" | "created" | "deleting" | "revision" | "since" | "mac" => *v = "(varies)".into(),
                    _ => scrub_json(v),
                }
            }
        }
        serde_json::Value::Array(a) => a.iter_mut().for_each(scrub_json),
        _ => {}
    }
}
