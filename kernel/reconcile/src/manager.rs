//! Runs reconcilers.

use crate::{
    Context, Feed, Lease, View,
    queue::{Item, Outcome, Queue},
};
use async_trait::async_trait;
use futures::FutureExt;
use photon_base::{Code, Result};
use photon_resource::{Key, RESOURCE_PREFIX, Resource, Store, parse_key};
use photon_rt::{
    task::Tasks,
    time::{Duration, now, sleep_until},
};
use std::{panic::AssertUnwindSafe, sync::Arc};
use tokio::sync::mpsc;

/// What a reconciler wants next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing until something it read changes.
    Done,
    /// Another run after this long (a poll of something outside the store).
    After(Duration),
}

/// Makes objects of one kind so.
#[async_trait]
pub trait Reconcile: Send + Sync + 'static {
    /// Kind whose keys it gets.
    type Kind: Resource;

    /// Name for logs and metrics.
    fn name(&self) -> &'static str;

    /// Brings the world nearer to what the object at `key` wants. The object may be gone. Every step is
    /// an "ensure": the call may have been cut off anywhere the last time.
    async fn reconcile(&self, cx: &Context, key: &Key) -> Result<Next>;

    /// True when it decides for the whole cluster: then it runs on one node at a time, the one that holds
    /// the manager's lease, and what it commits is refused once another node has taken that.
    fn once_per_cluster(&self) -> bool {
        false
    }

    /// Removes what exists outside the store and belongs to no object; called at start and then once a
    /// minute.
    async fn sweep(&self, _cx: &Context) -> Result<()> {
        Ok(())
    }
}

/// A reconciler with its kind erased.
#[async_trait]
pub(crate) trait Erased: Send + Sync + 'static {
    fn name(&self) -> &'static str;
    fn kind(&self) -> &'static str;
    fn once_per_cluster(&self) -> bool;
    async fn reconcile(&self, cx: &Context, key: &Key) -> Result<Next>;
    async fn sweep(&self, cx: &Context) -> Result<()>;
}

#[async_trait]
impl<T: Reconcile> Erased for T {
    fn name(&self) -> &'static str {
        Reconcile::name(self)
    }
    fn kind(&self) -> &'static str {
        T::Kind::KIND
    }
    fn once_per_cluster(&self) -> bool {
        Reconcile::once_per_cluster(self)
    }
    async fn reconcile(&self, cx: &Context, key: &Key) -> Result<Next> {
        Reconcile::reconcile(self, cx, key).await
    }
    async fn sweep(&self, cx: &Context) -> Result<()> {
        Reconcile::sweep(self, cx).await
    }
}

pub(crate) fn key_of(kind: &'static str, storage: &str) -> Option<Key> {
    let (_, project, name) = parse_key(storage.as_bytes())?;
    Some(Key::new(kind, project, name))
}

/// All reconcilers of a process on one view.
pub struct Manager {
    store: Store,
    lease: Lease,
    view: View,
    reconcilers: Vec<Arc<dyn Erased>>,
    poke: Poke,
    changed: mpsc::UnboundedReceiver<String>,
}

/// Tells the manager that something outside the store happened to an object: its reconcilers run. The
/// channel holds keys that go straight into a set, so it stays as short as the manager is quick.
#[derive(Clone)]
pub struct Poke(mpsc::UnboundedSender<String>);

impl Poke {
    /// Makes the reconcilers of `key` run.
    pub fn poke(&self, key: &Key) {
        let _ = self.0.send(String::from_utf8_lossy(&key.storage()).into_owned()); // nobody listens at shutdown
    }
}

/// Every key runs at least this often.
const RESYNC: Duration = Duration::from_secs(60);
/// Runs at a time of one reconciler. Each has its own: a hundred guests that take their time to stop must
/// not keep addresses from being given.
const RUNS_MAX: usize = 32;
/// Longest run; then it counts as failed and is dropped.
const RUN_TIME_MAX: Duration = Duration::from_secs(300);

impl Manager {
    /// A manager without reconcilers; its view can be shared at once. Those of its reconcilers that decide
    /// for the whole cluster run while `lease` is held.
    pub fn new(store: Store, lease: Lease) -> Manager {
        let (tx, changed) = mpsc::unbounded_channel();
        Manager { store, lease, view: View::default(), reconcilers: Vec::new(), poke: Poke(tx), changed }
    }

    /// For those who notice what happens outside the store.
    pub fn poke(&self) -> Poke {
        self.poke.clone()
    }

    /// The view that all reconcilers share.
    pub fn view(&self) -> View {
        self.view.clone()
    }

    /// Adds a reconciler.
    pub fn add(&mut self, r: impl Reconcile) {
        self.reconcilers.push(Arc::new(r));
    }

    /// Starts the feed and the runs; they end with `tasks`.
    pub fn start(self, tasks: &Tasks) {
        tasks.spawn("view", Feed::new(self.store.clone(), self.view.clone(), self.poke.0.clone()).run());
        let owned = tasks.clone();
        tasks.spawn("reconcile", self.run(owned));
    }

    /// The context of a run of `r`; none while it is another node's to run it.
    fn context(&self, r: &dyn Erased) -> Option<Context> {
        let cx = Context::new(self.view.clone(), self.store.acting_as(r.name()));
        if !r.once_per_cluster() {
            return Some(cx);
        }
        let held = self.lease.held()?;
        Some(cx.under(Some(held)))
    }

    async fn run(mut self, tasks: Tasks) {
        self.view.reached(1).await;
        let (done_tx, mut done) = mpsc::channel::<(Item, crate::context::Reads, Outcome)>(RUNS_MAX);
        let mut queues: Vec<(Queue, usize)> = self.reconcilers.iter().map(|_| Default::default()).collect();
        let mut resync = photon_rt::time::interval(RESYNC);
        loop {
            for (r, (queue, running)) in self.reconcilers.iter().zip(&mut queues) {
                while *running < RUNS_MAX
                    && let Some(cx) = self.context(&**r)
                    && let Some(item) = queue.pop(now())
                {
                    *running += 1;
                    let (r, tx) = (r.clone(), done_tx.clone());
                    tasks.spawn("reconcile-run", async move {
                        let (reads, outcome) = run_once(&*r, cx, &item.1).await;
                        let _ = tx.send((item, reads, outcome)).await; // the manager goes only with its tasks
                    });
                }
            }
            // What waits for a free run or for the lease is woken by these.
            let free = self.reconcilers.iter().zip(&queues).filter(|(r, (_, running))| {
                *running < RUNS_MAX && (!r.once_per_cluster() || self.lease.held().is_some())
            });
            let due = free.filter_map(|(_, (queue, _))| queue.next_at()).min();
            tokio::select! {
                Some((item, reads, outcome)) = done.recv() => {
                    let (queue, running) = &mut queues[item.0];
                    *running -= 1;
                    queue.done(item, reads, outcome, now());
                }
                Some(key) = self.changed.recv() => {
                    for (i, (queue, _)) in queues.iter_mut().enumerate() {
                        queue.touched(&key, now());
                        if key[RESOURCE_PREFIX.len()..].split('/').next() == Some(self.reconcilers[i].kind()) {
                            queue.add((i, key.clone()), now());
                        }
                    }
                }
                () = self.lease.changed() => {}
                _ = resync.tick() => self.resync(&tasks, &mut queues),
                () = async { match due { Some(t) => sleep_until(t).await, None => std::future::pending().await } } => {}
            }
        }
    }

    fn resync(&self, tasks: &Tasks, queues: &mut [(Queue, usize)]) {
        for (i, r) in self.reconcilers.iter().enumerate() {
            let listed = self.view.list(&format!("{RESOURCE_PREFIX}{}/", r.kind()));
            for (key, _) in listed {
                // Spread over a tenth of the period, so that a large view is no burst.
                let jitter = photon_rt::entropy::u64() % (RESYNC.as_millis() as u64 / 10);
                queues[i].0.add((i, key), now() + Duration::from_millis(jitter));
            }
            let (Some(cx), r) = (self.context(&**r), r.clone()) else { continue };
            tasks.spawn("sweep", async move {
                if let Err(e) = r.sweep(&cx).await {
                    tracing::warn!(reconciler = r.name(), error = %e, "sweep failed");
                }
            });
        }
    }
}

async fn run_once(r: &dyn Erased, cx: Context, storage: &str) -> (crate::context::Reads, Outcome) {
    let Some(key) = key_of(r.kind(), storage) else {
        return (crate::context::Reads::default(), Outcome::Done(None));
    };
    let run = AssertUnwindSafe(photon_rt::time::timeout(RUN_TIME_MAX, r.name(), r.reconcile(&cx, &key)))
        .catch_unwind();
    let outcome = match run.await {
        Ok(Ok(Ok(Next::Done))) => Outcome::Done(None),
        Ok(Ok(Ok(Next::After(d)))) => Outcome::Done(Some(d)),
        Ok(Ok(Err(e))) if matches!(e.code, Code::Conflict | Code::Exists) => {
            tracing::debug!(reconciler = r.name(), %key, error = %e, "raced");
            Outcome::Raced
        }
        Ok(Ok(Err(e)) | Err(e)) => {
            tracing::warn!(reconciler = r.name(), %key, error = %e, "failed; trying again");
            Outcome::Failed
        }
        Err(_) => {
            tracing::error!(reconciler = r.name(), %key, "panicked; trying again");
            Outcome::Failed
        }
    };
    // An object that is gone has no next run to prepare for.
    let gone = outcome == Outcome::Done(None) && cx.view().get(storage).is_none();
    (if gone { crate::context::Reads::default() } else { cx.reads() }, outcome)
}

#[cfg(test)]
mod tests {
    use super::*;
    use photon_kv::MemKv;
    use photon_resource::{Registry, Scope};
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[derive(Clone, Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
    struct Thing<const SLOW: bool> {}

    impl<const SLOW: bool> Resource for Thing<SLOW> {
        type Status = Thing<SLOW>;
        const KIND: &'static str = if SLOW { "slow" } else { "quick" };
        const PLURAL: &'static str = if SLOW { "slows" } else { "quicks" };
        const SCOPE: Scope = Scope::Cluster;
        const SERVICE: &'static str = "test";
    }

    /// Never ends, or counts.
    struct Work<const SLOW: bool>(Arc<AtomicUsize>);

    #[async_trait]
    impl<const SLOW: bool> Reconcile for Work<SLOW> {
        type Kind = Thing<SLOW>;
        fn name(&self) -> &'static str {
            "work"
        }
        async fn reconcile(&self, _: &Context, _: &Key) -> Result<Next> {
            if SLOW {
                std::future::pending::<()>().await;
            }
            self.0.fetch_add(1, Ordering::SeqCst);
            Ok(Next::Done)
        }
    }

    #[tokio::test]
    async fn slow_runs_of_one_reconciler_do_not_hold_up_another() {
        let registry = Registry::new().with::<Thing<true>>().with::<Thing<false>>();
        let store = Store::new(Arc::new(MemKv::new()), Arc::new(registry));
        for i in 0..200 {
            for kind in ["slow", "quick"] {
                store.make(kind, &format!("n{i}"), &serde_json::json!({})).await.expect("made");
            }
        }
        let ran = Arc::new(AtomicUsize::new(0));
        let tasks = Tasks::new();
        let lease = Lease::start(store.kv().clone(), "test", "n".parse().expect("name"), &tasks);
        let mut manager = Manager::new(store, lease);
        manager.add(Work::<true>(ran.clone()));
        manager.add(Work::<false>(ran.clone()));
        manager.start(&tasks);
        let done = async {
            while ran.load(Ordering::SeqCst) < 200 {
                photon_rt::time::sleep(Duration::from_millis(5)).await;
            }
        };
        photon_rt::time::timeout(Duration::from_secs(20), "the quick ones", done).await.expect("all ran");
        tasks.shutdown().await;
    }

    /// Counts under the lease only, and writes.
    struct Elected(Arc<AtomicUsize>);

    #[async_trait]
    impl Reconcile for Elected {
        type Kind = Thing<false>;
        fn name(&self) -> &'static str {
            "elected"
        }
        fn once_per_cluster(&self) -> bool {
            true
        }
        async fn reconcile(&self, cx: &Context, key: &Key) -> Result<Next> {
            let mut tx = cx.begin();
            tx.put(format!("seen/{}", key.name).into(), Default::default())?;
            tx.commit().await?;
            self.0.fetch_add(1, Ordering::SeqCst);
            Ok(Next::Done)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_cluster_wide_reconciler_runs_where_the_lease_is_and_nowhere_else() {
        let registry = Arc::new(Registry::new().with::<Thing<false>>());
        let kv = Arc::new(MemKv::new());
        let store = Store::new(kv.clone(), registry);
        store.make("quick", "x", &serde_json::json!({})).await.expect("made");
        let node = |name: &str| {
            let (ran, tasks) = (Arc::new(AtomicUsize::new(0)), Tasks::new());
            let lease = Lease::start(kv.clone(), "test", name.parse().expect("name"), &tasks);
            let mut manager = Manager::new(store.clone(), lease);
            manager.add(Elected(ran.clone()));
            manager.start(&tasks);
            (ran, tasks)
        };
        let ran = async |n: &Arc<AtomicUsize>| {
            while n.load(Ordering::SeqCst) == 0 {
                photon_rt::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let (a_ran, a) = node("a");
        ran(&a_ran).await;
        let (b_ran, b) = node("b");
        photon_rt::time::sleep(Duration::from_secs(300)).await;
        assert!(a_ran.load(Ordering::SeqCst) > 1, "once a minute");
        assert_eq!(b_ran.load(Ordering::SeqCst), 0);
        a.shutdown().await;
        ran(&b_ran).await;
        b.shutdown().await;
    }
}
