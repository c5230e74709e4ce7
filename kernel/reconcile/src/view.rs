//! An in-memory copy of all objects.

use futures::StreamExt;
use photon_base::{Error, Result};
use photon_kv::{Change, Direction, KvError, Range, ReadAt};
use photon_resource::{RESOURCE_PREFIX, Raw, Store};
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    sync::{Arc, PoisonError, RwLock},
};
use tokio::sync::{mpsc, watch};

/// Objects by storage key. Reads never block on the store, and may be a moment old.
#[derive(Clone)]
pub struct View {
    inner: Arc<RwLock<BTreeMap<String, Arc<Raw>>>>,
    revision: watch::Sender<u64>,
}

impl Default for View {
    fn default() -> Self {
        View { inner: Arc::default(), revision: watch::Sender::new(0) }
    }
}

impl View {
    /// The object at a storage key.
    pub fn get(&self, key: &str) -> Option<Arc<Raw>> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    /// The objects below a prefix of storage keys, in order.
    pub fn list(&self, prefix: &str) -> Vec<(String, Arc<Raw>)> {
        let map = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        map.range::<str, _>((Bound::Included(prefix), Bound::Unbounded))
            .take_while(|(k, _)| k.starts_with(prefix))
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect()
    }

    /// The typed objects of a kind, in one project or everywhere; unreadable ones are logged and left out.
    pub fn all<R: photon_resource::Resource>(
        &self,
        project: Option<&photon_base::Name>,
    ) -> Vec<photon_resource::Object<R>> {
        let range = photon_resource::kind_range(R::KIND, project, R::SCOPE);
        let typed = |(k, o): (String, Arc<Raw>)| {
            o.typed()
                .inspect_err(|e| tracing::error!(key = k, error = %e, "skipped an unreadable object"))
                .ok()
        };
        self.list(&String::from_utf8_lossy(&range.start)).into_iter().filter_map(typed).collect()
    }

    /// The typed object of this name.
    pub fn one<R: photon_resource::Resource>(
        &self,
        project: Option<&photon_base::Name>,
        name: &photon_base::Name,
    ) -> Option<photon_resource::Object<R>> {
        let key = photon_resource::Key::new(R::KIND, project.cloned(), name.clone());
        self.get(&String::from_utf8_lossy(&key.storage()))?.typed().ok()
    }

    /// The revision that the view shows; 0 until the first read has ended.
    pub fn revision(&self) -> u64 {
        *self.revision.borrow()
    }

    /// Waits until the view shows `revision` or later.
    pub async fn reached(&self, revision: u64) {
        let mut r = self.revision.subscribe();
        // The sender lives in `self`, so waiting can't fail while we wait.
        let _ = r.wait_for(|now| *now >= revision && *now > 0).await;
    }

    /// Told of each revision as it arrives; for those who rebuild something from the whole view.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    fn put(&self, key: String, value: Raw) {
        self.inner.write().unwrap_or_else(PoisonError::into_inner).insert(key, Arc::new(value));
    }

    fn remove(&self, key: &str) {
        self.inner.write().unwrap_or_else(PoisonError::into_inner).remove(key);
    }

    fn change(&self, changes: Vec<(String, Option<Raw>)>) {
        let mut map = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        for (key, object) in changes {
            match object {
                Some(o) => drop(map.insert(key, Arc::new(o))),
                None => drop(map.remove(&key)),
            }
        }
    }

    fn keys(&self) -> BTreeSet<String> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }
}

/// Keeps a [`View`] up to date and tells which keys changed.
pub struct Feed {
    store: Store,
    view: View,
    changed: mpsc::UnboundedSender<String>,
}

/// Objects read at a time.
const PAGE: u32 = 1000;

impl Feed {
    /// A feed of `store` into `view`; changed keys go to `changed`, whose reader must keep up (it only
    /// puts them into sets).
    pub fn new(store: Store, view: View, changed: mpsc::UnboundedSender<String>) -> Feed {
        Feed { store, view, changed }
    }

    fn decode(key: &[u8], value: &[u8], modified: u64) -> Option<(String, Raw)> {
        let key = String::from_utf8_lossy(key).into_owned();
        match serde_json::from_slice::<Raw>(value) {
            Ok(mut o) => {
                o.meta.revision = modified;
                Some((key, o))
            }
            Err(e) => {
                tracing::error!(key, error = %e, "a record is damaged and left out");
                None
            }
        }
    }

    /// Reads everything. Returns the revision read.
    pub async fn fill(&self) -> Result<u64> {
        let mut range = Range::prefix(RESOURCE_PREFIX);
        let mut at = ReadAt::Latest;
        let mut gone = self.view.keys();
        loop {
            let page = self
                .store
                .kv()
                .scan(range.clone(), at, PAGE, Direction::Forward)
                .await
                .map_err(Error::from)?;
            at = ReadAt::Revision(page.revision);
            for v in &page.items {
                let Some((key, o)) = Self::decode(&v.key, &v.value, v.modified) else { continue };
                gone.remove(&key);
                let same = self.view.get(&key).is_some_and(|old| old.meta.revision == o.meta.revision);
                if !same {
                    self.view.put(key.clone(), o);
                    let _ = self.changed.send(key); // nobody listens only at shutdown
                }
            }
            match page.items.last() {
                Some(last) if page.more => range = range.behind(&last.key),
                _ => {
                    for key in gone {
                        self.view.remove(&key);
                        let _ = self.changed.send(key);
                    }
                    self.view.revision.send_replace(page.revision);
                    return Ok(page.revision);
                }
            }
        }
    }

    /// Reads everything, then follows, for ever. After a lost history it reads again.
    pub async fn run(self) {
        let mut pause = std::time::Duration::from_millis(50);
        loop {
            let seen = match self.fill().await {
                Ok(r) => r,
                Err(e) => {
                    tracing::warn!(error = %e, "cannot read the objects; trying again");
                    photon_rt::time::sleep(pause).await;
                    pause = (pause * 2).min(std::time::Duration::from_secs(5));
                    continue;
                }
            };
            pause = std::time::Duration::from_millis(50);
            let mut watch = self.store.kv().watch(Range::prefix(RESOURCE_PREFIX), seen + 1);
            while let Some(item) = watch.next().await {
                match item {
                    Ok(events) => self.apply(&events),
                    Err(KvError::Compacted(_)) => break,
                    Err(e) => {
                        tracing::warn!(error = %e, "the watch broke; reading again");
                        break;
                    }
                }
            }
            photon_rt::time::sleep(pause).await;
        }
    }

    /// One commit becomes visible as one: whoever lists sees all of it, or nothing.
    fn apply(&self, events: &photon_kv::Events) {
        let mut changes = Vec::new();
        for c in &events.changes {
            match c {
                Change::Put(v) => {
                    changes.extend(Self::decode(&v.key, &v.value, v.modified).map(|(k, o)| (k, Some(o))));
                }
                Change::Delete { key, .. } => changes.push((String::from_utf8_lossy(key).into_owned(), None)),
            }
        }
        let keys: Vec<String> = changes.iter().map(|(k, _)| k.clone()).collect();
        self.view.change(changes);
        self.view.revision.send_replace(events.revision);
        for k in keys {
            let _ = self.changed.send(k);
        }
    }
}
