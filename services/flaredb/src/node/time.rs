//! Where a node has timestamps from: alone, from windows that are durable in its engine; among several, from
//! whoever is the oracle ([`crate::oracle`]), which may be itself.

use super::{Cluster, Node, Others, PATIENCE, broken, cluster, lock, now_ms};
use crate::{
    Refusal,
    model::layout::META,
    oracle::{Clock, Outside, Record, Swap},
    refusal::Outcome,
    time::{self, Oracle, Ts},
};
use bytes::Bytes;
use photon_kv::{
    Check, Kv, ReadAt, Write,
    engine::{Batch, Engine},
};
use photon_raft::NodeId;
use photon_rt::time::{Duration, timeout};
use std::{
    future::Future,
    sync::{Arc, Mutex},
};

/// Key of the end of the last window of timestamps.
const WINDOW: &[u8] = b"oracle";

/// Where timestamps come from.
pub(super) enum Source {
    Own {
        oracle: Mutex<Oracle>,
        /// Held while a window is made durable.
        extending: tokio::sync::Mutex<()>,
    },
    Shared(Arc<Clock<Network>>),
}

impl Source {
    /// Of a node alone.
    pub(super) fn own(engine: &dyn Engine) -> Outcome<Source> {
        let durable = match engine.view().get(META, WINDOW)? {
            Some(b) => b[..].try_into().map(u64::from_be_bytes).map_err(broken)?,
            None => 0,
        };
        Ok(Source::Own { oracle: Mutex::new(Oracle::new(durable)), extending: tokio::sync::Mutex::default() })
    }

    /// Of one of several.
    pub(super) fn shared(c: &Cluster) -> Source {
        let network = Network { kv: c.kv.clone(), key: c.oracle.clone(), others: c.others.clone() };
        Source::Shared(Arc::new(Clock::new(c.me.0, network)))
    }

    /// What renews its lease, for as long as the node is there.
    pub(super) fn renewing(&self) -> Option<impl Future<Output = ()> + Send + 'static> {
        let Source::Shared(clock) = self else { return None };
        let clock = clock.clone();
        Some(async move {
            loop {
                clock.renew().await;
            }
        })
    }
}

/// The record in the kernel's store, and the other nodes.
pub(super) struct Network {
    kv: Arc<dyn Kv>,
    key: Bytes,
    others: Arc<dyn Others>,
}

impl Outside for Network {
    fn now(&self) -> Duration {
        photon_rt::time::since_boot()
    }

    fn wall_ms(&self) -> u64 {
        now_ms()
    }

    async fn read(&self) -> Outcome<Option<(Record, u64)>> {
        let found = cluster::kv(self.kv.get(&self.key, ReadAt::Latest)).await?;
        found.map(|v| Ok((Record::parse(&v.value)?, v.modified))).transpose()
    }

    async fn swap(&self, swap: &Swap) -> Outcome<u64> {
        let check = match swap.expected {
            Some(revision) => Check::Modified(self.key.clone(), revision),
            None => Check::absent(self.key.clone()),
        };
        let put = Write::Put(self.key.clone(), swap.record.to_string().into());
        cluster::kv(self.kv.commit(vec![check], vec![put])).await.map(|c| c.revision)
    }

    async fn ask(&self, holder: u64, n: u32) -> Outcome<Ts> {
        cluster::bounded(self.others.timestamps(NodeId(holder), n)).await
    }

    fn sleep(&self, d: Duration) -> impl Future<Output = ()> + Send {
        photon_rt::time::sleep(d)
    }
}

impl Node {
    /// `n` fresh timestamps, two apart: the first.
    pub async fn timestamps(&self, n: u32) -> Outcome<Ts> {
        match &self.0.time {
            Source::Own { oracle, extending } => self.own_timestamps(oracle, extending, n).await,
            Source::Shared(clock) => in_time(clock.timestamps(n)).await,
        }
    }

    /// The same if this node gives them itself, for another one that takes it for the oracle.
    pub async fn timestamps_here(&self, n: u32) -> Outcome<Ts> {
        match &self.0.time {
            Source::Own { .. } => self.timestamps(n).await,
            Source::Shared(clock) => in_time(clock.for_other(n)).await,
        }
    }

    async fn own_timestamps(
        &self,
        oracle: &Mutex<Oracle>,
        extending: &tokio::sync::Mutex<()>,
        n: u32,
    ) -> Outcome<Ts> {
        let take = || lock(oracle).take(now_ms(), n);
        if let Some(r) = take() {
            return Ok(r.start);
        }
        let _alone = extending.lock().await;
        if let Some(r) = take() {
            return Ok(r.start);
        }
        let end = lock(oracle).wanted(now_ms());
        let engine = self.0.shared.engine.clone();
        let write = move || {
            let mut b = Batch::default();
            b.put(META, WINDOW, end.to_be_bytes().to_vec());
            engine.write(b)?;
            engine.persist()
        };
        photon_rt::task::blocking(write).await?;
        let mut oracle = lock(oracle);
        oracle.extend(end);
        oracle.take(now_ms().min(time::ms(end) - 1), n).map(|r| r.start).ok_or(Refusal::Overloaded)
    }

    /// A timestamp that was not given yet would break promises to others: who read there, commits above what
    /// the oracle gives next.
    pub(super) async fn admit_time(&self, ts: Ts) -> Outcome<()> {
        let newest = match &self.0.time {
            Source::Own { oracle, .. } => lock(oracle).newest(),
            Source::Shared(clock) => match in_time(clock.admit(ts)).await? {
                Ok(()) => return Ok(()),
                Err(newest) => newest,
            },
        };
        if ts > newest { Err(Refusal::FromTheFuture { ts, newest }) } else { Ok(()) }
    }
}

async fn in_time<T>(f: impl Future<Output = Outcome<T>>) -> Outcome<T> {
    let late = |_| Refusal::Unreachable("nobody gives timestamps".into());
    timeout(PATIENCE, "a timestamp", f).await.map_err(late)?
}
