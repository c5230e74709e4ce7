//! A store in memory: the model that real stores are compared with, and the double in tests.

use crate::api::*;
use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use std::{
    collections::{BTreeMap, VecDeque},
    ops::Bound,
    sync::{Arc, Mutex, MutexGuard},
};
use tokio::sync::watch;

/// Keeps the whole history until [`MemKv::compact`].
#[derive(Clone)]
pub struct MemKv {
    state: Arc<Mutex<State>>,
    revision: watch::Sender<Revision>,
}

struct State {
    revision: Revision,
    compacted: Revision,
    /// Versions of each key, oldest first; `None` is a deletion.
    keys: BTreeMap<Bytes, Vec<(Revision, Option<Versioned>)>>,
    log: VecDeque<Events>,
}

impl Default for MemKv {
    fn default() -> Self {
        Self::new()
    }
}

impl MemKv {
    /// An empty store at revision 1, as etcd starts.
    pub fn new() -> Self {
        let state = State { revision: 1, compacted: 0, keys: BTreeMap::new(), log: VecDeque::new() };
        MemKv { state: Arc::new(Mutex::new(state)), revision: watch::Sender::new(1) }
    }

    /// Forgets history before `revision`.
    pub fn compact(&self, revision: Revision) {
        let mut s = self.lock();
        s.compacted = s.compacted.max(revision.min(s.revision));
        let floor = s.compacted;
        s.keys.retain(|_, versions| {
            let keep = versions.iter().rposition(|(r, _)| *r <= floor).unwrap_or(0);
            versions.drain(..keep);
            !(versions.len() == 1 && versions[0].0 <= floor && versions[0].1.is_none())
        });
        s.log.retain(|e| e.revision >= floor);
    }

    /// Every live key, for comparisons in tests.
    pub fn dump(&self) -> Vec<Versioned> {
        let s = self.lock();
        s.keys.values().filter_map(|v| v.last().and_then(|(_, x)| x.clone())).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl State {
    fn resolve(&self, at: ReadAt) -> KvResult<Revision> {
        match at {
            ReadAt::Latest | ReadAt::Local => Ok(self.revision),
            ReadAt::Revision(r) if r > self.revision => Err(KvError::Future(self.revision)),
            ReadAt::Revision(r) if r < self.compacted => Err(KvError::Compacted(self.compacted)),
            ReadAt::Revision(r) => Ok(r),
        }
    }

    fn at(versions: &[(Revision, Option<Versioned>)], revision: Revision) -> Option<&Versioned> {
        versions.iter().rev().find(|(r, _)| *r <= revision).and_then(|(_, v)| v.as_ref())
    }

    fn in_range(&self, range: &Range, revision: Revision) -> impl DoubleEndedIterator<Item = &Versioned> {
        let end = if range.end.is_empty() { Bound::Unbounded } else { Bound::Excluded(range.end.clone()) };
        let empty = !range.end.is_empty() && range.end <= range.start;
        let bounds = if empty {
            (Bound::Included(range.start.clone()), Bound::Excluded(range.start.clone()))
        } else {
            (Bound::Included(range.start.clone()), end)
        };
        self.keys.range::<Bytes, _>(bounds).filter_map(move |(_, v)| Self::at(v, revision))
    }

    fn holds(&self, check: &Check) -> bool {
        let live = |k: &Bytes| self.keys.get(k).and_then(|v| Self::at(v, self.revision));
        match check {
            Check::Modified(k, r) => live(k).is_some_and(|v| v.modified == *r),
            Check::Present(k) => live(k).is_some(),
            Check::Absent(range) => self.in_range(range, self.revision).next().is_none(),
        }
    }
}

#[async_trait]
impl Kv for MemKv {
    async fn get(&self, key: &[u8], at: ReadAt) -> KvResult<Option<Versioned>> {
        let s = self.lock();
        let r = s.resolve(at)?;
        Ok(s.keys.get(key).and_then(|v| State::at(v, r)).cloned())
    }

    async fn scan(&self, range: Range, at: ReadAt, limit: u32, direction: Direction) -> KvResult<Page> {
        let s = self.lock();
        let revision = s.resolve(at)?;
        let found = s.in_range(&range, revision);
        let want = limit as usize + 1;
        let mut items: Vec<Versioned> = match direction {
            Direction::Forward => found.take(want).cloned().collect(),
            Direction::Backward => found.rev().take(want).cloned().collect(),
        };
        let more = items.len() == want;
        items.truncate(limit as usize);
        Ok(Page { items, more, revision })
    }

    async fn commit(&self, checks: Vec<Check>, writes: Vec<Write>) -> KvResult<Committed> {
        let mut s = self.lock();
        if let Some(i) = checks.iter().position(|c| !s.holds(c)) {
            return Err(KvError::CheckFailed(i));
        }
        let mut keys: Vec<&Bytes> = writes.iter().map(Write::key).collect();
        keys.sort();
        if keys.windows(2).any(|w| w[0] == w[1]) {
            return Err(KvError::Invalid("a key is written twice".into()));
        }
        let revision = s.revision + 1;
        let mut changes = Vec::new();
        for w in writes {
            let old = s.keys.get(w.key()).and_then(|v| v.last()).and_then(|(_, v)| v.clone());
            let (new, change) = match &w {
                Write::Put(key, value) => {
                    let created = old.map_or(revision, |o| o.created);
                    let v = Versioned { key: key.clone(), value: value.clone(), created, modified: revision };
                    (Some(v.clone()), Change::Put(v))
                }
                Write::Delete(_) if old.is_none() => continue,
                Write::Delete(key) => (None, Change::Delete { key: key.clone(), revision }),
            };
            s.keys.entry(w.key().clone()).or_default().push((revision, new));
            changes.push(change);
        }
        if changes.is_empty() {
            return Ok(Committed { revision: s.revision });
        }
        s.revision = revision;
        s.log.push_back(Events { revision, changes });
        self.revision.send_replace(revision);
        Ok(Committed { revision })
    }

    fn watch(&self, range: Range, from: Revision) -> Watch {
        let mut news = self.revision.subscribe();
        let mut next = if from == 0 { self.lock().revision + 1 } else { from };
        let me = self.clone();
        Box::pin(async_stream(move |mut yield_| async move {
            loop {
                let ready: Vec<KvResult<Events>> = {
                    let s = me.lock();
                    if next < s.compacted {
                        vec![Err(KvError::Compacted(s.compacted))]
                    } else {
                        let mut out = Vec::new();
                        for e in s.log.iter().filter(|e| e.revision >= next) {
                            let changes: Vec<Change> =
                                e.changes.iter().filter(|c| range.contains(c.key())).cloned().collect();
                            if !changes.is_empty() {
                                out.push(Ok(Events { revision: e.revision, changes }));
                            }
                        }
                        next = next.max(s.revision + 1);
                        out
                    }
                };
                for item in ready {
                    let last = item.is_err();
                    if !yield_.send(item).await || last {
                        return;
                    }
                }
                if news.changed().await.is_err() {
                    return;
                }
            }
        }))
    }
}

/// The sending half of [`async_stream`].
struct Yield(tokio::sync::mpsc::Sender<KvResult<Events>>);

impl Yield {
    async fn send(&mut self, item: KvResult<Events>) -> bool {
        self.0.send(item).await.is_ok()
    }
}

/// A stream fed by a future that lives inside it: polled only when the stream is, dropped with it.
fn async_stream<F: Future<Output = ()> + Send + 'static>(
    f: impl FnOnce(Yield) -> F,
) -> impl futures::Stream<Item = KvResult<Events>> + Send {
    let (tx, mut rx) = tokio::sync::mpsc::channel(1);
    let mut feed = Some(Box::pin(f(Yield(tx))));
    futures::stream::poll_fn(move |cx| {
        if let Some(f) = &mut feed
            && f.as_mut().poll(cx).is_ready()
        {
            feed = None;
        }
        rx.poll_recv(cx)
    })
    .fuse()
}
