//! Leases: one holder per name in the whole cluster, by records in the store alone.
//!
//! A lease is two records. `holder` says who holds it in which epoch and changes only when it changes
//! hands; `beat` is rewritten by the holder, as a sign of life. Whoever sees no new beat for [`TTL`]
//! on its own clock may take the lease, with the next epoch; the holder counts the same time from *before*
//! each beat that it made, so that with clocks of one speed there is never more than one (Gray and
//! Cheriton 1989). No wall clock is compared.
//!
//! Clocks lie, processes pause: therefore every commit made under a lease carries [`Held::fence`], a check
//! that the lease record is still the one that was taken. A holder that was deposed and does not know it
//! changes nothing. What happens outside the store carries the epoch instead.

use bytes::Bytes;
use photon_base::{Name, Result};
use photon_kv::{Check, Direction, Kv, KvError, Range, ReadAt, Revision, Versioned, Write};
use photon_resource::ROOT;
use photon_rt::{
    task::Tasks,
    time::{Duration, Instant, now, sleep, timeout},
};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use tokio::sync::watch;

/// How long a lease outlives its holder's last sign of life.
pub const TTL: Duration = Duration::from_secs(6);
/// Pause between two signs of life, and between two looks of those who wait.
const BEAT: Duration = Duration::from_secs(2);

/// A lease that is ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Rises with every change of hands; what is done outside the store carries it.
    pub epoch: u64,
    key: Bytes,
    taken: Revision,
    until: Instant,
}

impl Held {
    /// Holds as long as nobody else took the lease.
    pub fn fence(&self) -> Check {
        Check::Modified(self.key.clone(), self.taken)
    }
}

/// One process's part in a lease: holds it or waits for it until its tasks end.
#[derive(Clone, Debug)]
pub struct Lease(watch::Receiver<Option<Held>>);

impl Lease {
    /// Takes part in the lease `name` as `holder`, a name that no other living process uses: whoever finds
    /// itself in the record is its own successor and need not wait. Given up when `tasks` ends.
    pub fn start(kv: Arc<dyn Kv>, name: &str, holder: Name, tasks: &Tasks) -> Lease {
        Self::run(kv, Contender::new(name, holder), tasks)
    }

    fn run(kv: Arc<dyn Kv>, mut contender: Contender, tasks: &Tasks) -> Lease {
        let (tx, rx) = watch::channel(None);
        let token = tasks.token();
        tasks.spawn_graceful("lease", async move {
            loop {
                let pause = contender.turn(&*kv, &tx);
                if token.run_until_cancelled(async { sleep(pause.await).await }).await.is_none() {
                    break;
                }
            }
            contender.give_up(&*kv, &tx).await;
        });
        Lease(rx)
    }

    /// The lease, while it is ours.
    pub fn held(&self) -> Option<Held> {
        self.0.borrow().clone().filter(|h| now() < h.until)
    }

    /// Resolves when the lease was taken, renewed or lost after the last call.
    pub async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await; // its tasks have ended, and the caller's with them
        }
    }
}

/// What `holder` says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    /// None when it was given up.
    holder: Option<Name>,
    epoch: u64,
}

/// The two records as last read.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    record: Record,
    taken: Revision,
    beat: Revision,
}

/// What to do now.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    /// Somebody else holds it; look again.
    Wait,
    /// Take it with this epoch.
    Take(u64),
}

struct Contender {
    lease: Bytes,
    beat: Bytes,
    me: Name,
    /// The last new beat of the holder, and when it was first seen.
    alive: Option<(Revision, Instant)>,
    /// Planted by the tests, to show that they would notice it.
    bug: Option<Bug>,
}

/// Mistakes that this design invites.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(test), allow(dead_code, reason = "only tests plant them"))]
enum Bug {
    /// The holder counts from the answer to its beat instead of from before the question.
    CountsFromTheAnswer,
    /// Whoever takes the lease does not check that the beat is the one it saw.
    MissesTheBeat,
    /// Half the time is enough.
    Impatient,
    /// A commit that did not go through counts as a sign of life.
    TrustsSilence,
}

impl Contender {
    fn new(name: &str, me: Name) -> Contender {
        let key = |part| Bytes::from(format!("{ROOT}lease/{name}/{part}"));
        Contender { lease: key("holder"), beat: key("beat"), me, alive: None, bug: None }
    }

    fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    /// How long a sign of life that was begun at `begun` counts.
    fn until(&self, begun: Instant) -> Instant {
        if self.has(Bug::CountsFromTheAnswer) { now() + TTL } else { begun + TTL }
    }

    /// Pure: whether what was seen at `now` may be taken.
    fn decide(&mut self, seen: Option<&Seen>, now: Instant) -> Step {
        let Some(seen) = seen else { return Step::Take(1) };
        let next = Step::Take(seen.record.epoch + 1);
        let (beat, since) = *self.alive.insert(match self.alive {
            Some((beat, since)) if beat == seen.beat => (beat, since),
            _ => (seen.beat, now),
        });
        debug_assert_eq!(beat, seen.beat);
        match &seen.record.holder {
            None => next,
            Some(h) if *h == self.me => next,
            Some(_) if now >= since + if self.has(Bug::Impatient) { TTL / 2 } else { TTL } => next,
            Some(_) => Step::Wait,
        }
    }

    /// One look or one sign of life. Returns how long to wait for the next.
    async fn turn(&mut self, kv: &dyn Kv, held: &watch::Sender<Option<Held>>) -> Duration {
        let mine = held.borrow().clone();
        let begun = now();
        // An answer that comes after the lease ran out is worth nothing: the limit ends the wait.
        let done = timeout(TTL, "the lease", async {
            match mine {
                Some(h) => self.renew(kv, h, begun).await,
                None => self.look(kv, begun).await,
            }
        })
        .await;
        match done {
            Ok(Ok(after)) => {
                held.send_replace(after);
            }
            // Not known whether the record was written: keep what is held until it runs out, then look.
            Ok(Err(_)) | Err(_) => {
                held.send_if_modified(|h| h.take_if(|h| h.until <= now()).is_some());
            }
        }
        BEAT
    }

    async fn renew(&self, kv: &dyn Kv, mine: Held, begun: Instant) -> Result<Option<Held>, KvError> {
        let beat = Write::Put(self.beat.clone(), Bytes::new());
        match kv.commit(vec![mine.fence()], vec![beat]).await {
            Ok(_) => Ok(Some(Held { until: self.until(begun), ..mine })),
            Err(KvError::Unavailable(_)) if self.has(Bug::TrustsSilence) => {
                Ok(Some(Held { until: self.until(begun), ..mine }))
            }
            Err(KvError::CheckFailed(_)) => Ok(None),
            Err(e) => Err(e),
        }
    }

    async fn look(&mut self, kv: &dyn Kv, begun: Instant) -> Result<Option<Held>, KvError> {
        let seen = self.read(kv).await?;
        let Step::Take(epoch) = self.decide(seen.as_ref(), now()) else { return Ok(None) };
        // The beat is checked, too: a sign of life that this read missed saves the holder.
        let mut checks = match &seen {
            None => vec![Check::absent(self.lease.clone())],
            Some(s) => {
                vec![Check::Modified(self.lease.clone(), s.taken), Check::Modified(self.beat.clone(), s.beat)]
            }
        };
        if self.has(Bug::MissesTheBeat) {
            checks.truncate(1);
        }
        let record = Record { holder: Some(self.me.clone()), epoch };
        let writes = vec![
            Write::Put(self.lease.clone(), encode(&record)),
            Write::Put(self.beat.clone(), Bytes::new()),
        ];
        match kv.commit(checks, writes).await {
            Ok(c) => {
                let (key, until) = (self.lease.clone(), self.until(begun));
                Ok(Some(Held { epoch, key, taken: c.revision, until }))
            }
            Err(KvError::CheckFailed(_)) => Ok(None),
            Err(e) => Err(e),
        }
    }

    async fn read(&self, kv: &dyn Kv) -> Result<Option<Seen>, KvError> {
        let prefix = self.lease.slice(..self.lease.len() - "holder".len());
        let page = kv.scan(Range::prefix(prefix), ReadAt::Latest, 2, Direction::Forward).await?;
        let find = |key: &Bytes| page.items.iter().find(|v| v.key == key);
        let (Some(lease), Some(beat)) = (find(&self.lease), find(&self.beat)) else { return Ok(None) };
        Ok(Some(Seen { record: decode(lease)?, taken: lease.modified, beat: beat.modified }))
    }

    /// The next one need not wait.
    async fn give_up(&mut self, kv: &dyn Kv, held: &watch::Sender<Option<Held>>) {
        let Some(mine) = held.send_replace(None) else { return };
        let record = Record { holder: None, epoch: mine.epoch };
        let write = Write::Put(self.lease.clone(), encode(&record));
        // If it fails, the lease runs out by itself.
        let _ = timeout(BEAT, "giving up the lease", kv.commit(vec![mine.fence()], vec![write])).await;
    }
}

fn encode(record: &Record) -> Bytes {
    serde_json::to_vec(record).expect("a name and a number are always JSON").into()
}

fn decode(v: &Versioned) -> Result<Record, KvError> {
    serde_json::from_slice(&v.value).map_err(|e| {
        KvError::Invalid(format!("the record {} is damaged: {e}", String::from_utf8_lossy(&v.key)))
    })
}

#[cfg(test)]
mod tests;
