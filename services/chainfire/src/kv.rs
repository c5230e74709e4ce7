//! ChainFire as a `photon_kv::Kv`: how the kernel stores the cloud's records in it.

use crate::{
    ChainFire, EtcdError, Scope, Span,
    command::{self, Commit, Op},
    follow::{Follower, Found, Gone, Interest},
    machine::Published,
    model::{Change, Changes, layout},
};
use async_trait::async_trait;
use photon_etcd::versioned;
use photon_kv as kv;
use photon_kv::{
    Check, Committed, Direction, Events, Kv, KvError, KvResult, Page, Range, ReadAt, Revision, Versioned,
    Watch, Write,
};
use std::{collections::VecDeque, sync::Arc};

/// The store with an operator's eyes.
#[derive(Clone)]
struct Handle(ChainFire);

impl ChainFire {
    /// This store as the kernel uses it; sees everything.
    pub fn kv(&self) -> Arc<dyn Kv> {
        Arc::new(Handle(self.clone()))
    }
}

fn unavailable(e: EtcdError) -> KvError {
    match e {
        EtcdError::CheckFailed(i) => KvError::CheckFailed(i),
        EtcdError::Unsupported(m) => KvError::Invalid(m),
        EtcdError::RequestTooLarge => KvError::Invalid("the commit is too large".into()),
        e => KvError::Unavailable(e.to_string()),
    }
}

fn change(c: Change) -> kv::Change {
    if c.put {
        kv::Change::Put(versioned(c.kv))
    } else {
        kv::Change::Delete { key: c.kv.key, revision: c.kv.mod_revision as u64 }
    }
}

fn events(c: Changes) -> Events {
    Events { revision: c.revision as u64, changes: c.changes.into_iter().map(change).collect() }
}

impl Handle {
    async fn at(&self, at: ReadAt) -> KvResult<(Arc<Published>, i64)> {
        let state = match at {
            ReadAt::Local => self.0.published(),
            ReadAt::Latest | ReadAt::Revision(_) => self.0.linearizable().await.map_err(unavailable)?,
        };
        let revision = match at {
            ReadAt::Revision(r) if r > state.revision as u64 => {
                return Err(KvError::Future(state.revision as u64));
            }
            // No revision 0 was ever compacted before the first compaction, whose watermark is -1.
            ReadAt::Revision(r) if (r as i64) < state.compacted => {
                return Err(KvError::Compacted(state.compacted as u64));
            }
            ReadAt::Revision(r) => r as i64,
            ReadAt::Latest | ReadAt::Local => state.revision,
        };
        Ok((state, revision))
    }
}

#[async_trait]
impl Kv for Handle {
    async fn get(&self, key: &[u8], at: ReadAt) -> KvResult<Option<Versioned>> {
        let (state, revision) = self.at(at).await?;
        let reader = state.reader();
        let found = if revision == state.revision { reader.latest(key) } else { reader.at(key, revision) };
        Ok(found.map_err(unavailable)?.map(versioned))
    }

    async fn scan(&self, range: Range, at: ReadAt, limit: u32, direction: Direction) -> KvResult<Page> {
        let (state, revision) = self.at(at).await?;
        photon_rt::task::blocking(move || {
            let mut items = Vec::new();
            let mut more = false;
            for item in state.reader().scan(Span::from(range), revision, direction) {
                let item = item.map_err(unavailable)?;
                if items.len() as u64 == u64::from(limit) {
                    more = true;
                    break;
                }
                items.push(versioned(layout::decode(item).map_err(unavailable)?));
            }
            Ok(Page { items, more, revision: revision as u64 })
        })
        .await
    }

    async fn commit(&self, checks: Vec<Check>, writes: Vec<Write>) -> KvResult<Committed> {
        let writes = writes.into_iter().map(|w| match w {
            Write::Put(key, value) => command::Write { key, value: Some(value) },
            Write::Delete(key) => command::Write { key, value: None },
        });
        let commit =
            Commit { checks: checks.iter().map(command::Check::from).collect(), writes: writes.collect() };
        let revision = self
            .0
            .propose_revision(&crate::who::Who::cloud(), Op::Commit(commit))
            .await
            .map_err(unavailable)?;
        Ok(Committed { revision: revision as u64 })
    }

    fn watch(&self, range: Range, from: Revision) -> Watch {
        let shared = self.0.inner.shared.clone();
        let span = Span::from(range);
        let interest =
            Interest { scope: Scope::Operator, span, no_put: false, no_delete: false, prev_kv: false };
        let start =
            if from == 0 { shared.published().revision + 1 } else { from.min(i64::MAX as u64) as i64 };
        let state = shared.published();
        let follower = Follower::of(shared, interest, start);
        let mut feed = Feed { follower, ready: VecDeque::new(), done: false };
        if from > 0 && start < state.compacted {
            feed.ready.push_back(Err(KvError::Compacted(state.compacted as u64)));
            feed.done = true;
        }
        Box::pin(futures::stream::unfold(feed, |mut f| async move { f.next().await.map(|item| (item, f)) }))
    }
}

/// A watch of the kernel.
struct Feed {
    follower: Follower,
    ready: VecDeque<KvResult<Events>>,
    done: bool,
}

impl Feed {
    async fn next(&mut self) -> Option<KvResult<Events>> {
        loop {
            if let Some(item) = self.ready.pop_front() {
                return Some(item);
            }
            if self.done {
                return None;
            }
            let mut found = Vec::new();
            let busy = self.follower.step(&mut found).await;
            match found.pop() {
                Some((_, Found::Changes(list, _))) => {
                    self.ready.extend(list.into_iter().map(|c| Ok(events(c))));
                }
                Some((_, Found::Gone(Gone(r)))) => {
                    self.ready.push_back(Err(KvError::Compacted(r as u64)));
                    self.done = true;
                }
                Some((_, Found::Failed(e))) => {
                    self.ready.push_back(Err(unavailable(e)));
                    self.done = true;
                }
                None if busy => {}
                None => self.follower.news().await,
            }
        }
    }
}
