//! What clients ask of leases, and what time does to them.
//!
//! Only the leader's timers count. A member that does not lead asks it: signs of life travel over one
//! stream, many at a time, and none of them is an entry of the log; a lease's time to live is asked for
//! when a client asks. Which leases there are, and their keys, every member knows by itself.
//!
//! What is promised: a lease never ends early; with each change of the leader it may live longer, by less
//! than the five minutes between two records (`lessor`) and the time without a leader.

use crate::{
    ChainFire, EtcdError, EtcdResult,
    command::{Checkpoint, Grant, Left, Op, Revoke},
    lessor::Remaining,
    model::{Answer, apply::attached, check},
    store::{Inner, mismatch},
    who::Who,
    wire::etcdserverpb::{LeaseKeepAliveRequest, LeaseTimeToLiveRequest, lease_client::LeaseClient},
};
use bytes::Bytes;
use photon_raft::{NodeId, Role};
use photon_rt::time::{Duration, now, sleep, timeout};
use std::{
    collections::VecDeque,
    sync::{Weak, atomic::Ordering},
};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;

/// Leases ended in one turn of the expiry worker: 1,000 a second, as in etcd.
const EXPIRE_BATCH: usize = 200;

/// Leases recorded in one of its turns.
const RECORD_BATCH: usize = 1_000;

/// Pause between two of its turns.
const EXPIRE_EVERY: Duration = Duration::from_millis(200);

/// Signs of life that may be on their way to the leader.
pub(crate) const BEATS_MAX: usize = 4_096;

/// Time for the leader to answer one.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// Time for a client's request while leaders change (etcd's).
const REQUEST_MAX: Duration = Duration::from_secs(7);

/// A sign of life of a lease, and who waits for the time to live.
pub(crate) struct Beat {
    id: i64,
    answer: oneshot::Sender<EtcdResult<i64>>,
}

impl ChainFire {
    /// Makes a lease; answers revision, id and time to live.
    pub(crate) async fn lease_grant(&self, who: &Who, id: i64, ttl: i64) -> EtcdResult<(i64, i64, i64)> {
        check::lease_ttl(ttl)?;
        let id = if id == 0 { (photon_rt::entropy::u64() >> 1).max(1) as i64 } else { id };
        match self.propose(who, Op::LeaseGrant(Grant { id, ttl })).await? {
            Answer::LeaseGrant { revision, ttl } => Ok((revision, id, ttl)),
            _ => Err(mismatch()),
        }
    }

    fn leads(&self) -> bool {
        self.raft().role == Role::Leader
    }

    /// Keeps a lease alive; answers its time to live. A member asks with `relayed`: then nobody else is
    /// asked.
    pub(crate) async fn lease_renew(&self, who: &Who, id: i64, relayed: bool) -> EtcdResult<i64> {
        let rules = self.published().rules.clone();
        rules.auth.known(&who.at(rules.auth.revision()).login)?;
        let give_up = now() + REQUEST_MAX;
        loop {
            let done = if self.leads() {
                self.renew_as_leader(who, id).await
            } else if relayed {
                return Err(EtcdError::NotLeader);
            } else {
                self.see_lease(who, id).await?;
                let (answer, beat) = oneshot::channel();
                // When the queue is full the client waits, as its next sign of life would.
                self.inner.beats.send(Beat { id, answer }).await.map_err(|_| EtcdError::Stopped)?;
                beat.await.unwrap_or(Err(EtcdError::Stopped))
            };
            match done {
                Ok(ttl) => return Ok(ttl),
                Err(e @ (EtcdError::LeaseNotFound | EtcdError::Stopped)) => return Err(e),
                Err(_) if now() > give_up => return Err(EtcdError::Timeout),
                Err(_) => sleep(Duration::from_millis(50)).await,
            }
        }
    }

    /// A leader that was cut off does not know at once that others have another one, whose timers count: what
    /// it promises holds only if it led after it counted. (Found by the lab: a lease that its holder had just
    /// been told was alive ended early.)
    async fn renew_as_leader(&self, who: &Who, id: i64) -> EtcdResult<i64> {
        let term = self.raft().term;
        let ttl = self.renew_here(who, id).await?;
        self.linearizable().await?;
        let now = self.raft();
        if (now.role, now.term) == (Role::Leader, term) { Ok(ttl) } else { Err(EtcdError::NotLeader) }
    }

    async fn renew_here(&self, who: &Who, id: i64) -> EtcdResult<i64> {
        for _ in 0..3 {
            if let Some(ttl) = self.inner.shared.lessor.renew(who.scope, id)? {
                return Ok(ttl);
            }
            let whole = Checkpoint { leases: vec![Left { id, ..Default::default() }] };
            self.propose_revision(&Who::cloud(), Op::LeaseCheckpoint(whole)).await?;
        }
        Err(EtcdError::Timeout)
    }

    /// Refuses a lease that the caller does not see. Another member may just have made it.
    async fn see_lease(&self, who: &Who, id: i64) -> EtcdResult<Remaining> {
        match self.inner.shared.lessor.remaining(who.scope, id) {
            Ok(r) => Ok(r),
            Err(_) => {
                self.linearizable().await?;
                self.inner.shared.lessor.remaining(who.scope, id)
            }
        }
    }

    /// How long a lease has left, by the leader's timers.
    pub(crate) async fn lease_remaining(&self, who: &Who, id: i64, relayed: bool) -> EtcdResult<Remaining> {
        let give_up = now() + REQUEST_MAX;
        loop {
            self.linearizable().await?.rules.auth.known(&who.login)?;
            let here = self.inner.shared.lessor.remaining(who.scope, id)?;
            if self.leads() {
                return Ok(here);
            }
            if relayed {
                return Err(EtcdError::NotLeader);
            }
            match self.ask_remaining(id).await {
                Ok(r) => return Ok(r),
                Err(e @ EtcdError::LeaseNotFound) => return Err(e),
                Err(_) if now() > give_up => return Err(EtcdError::Timeout),
                Err(_) => sleep(Duration::from_millis(50)).await,
            }
        }
    }

    async fn ask_remaining(&self, id: i64) -> EtcdResult<Remaining> {
        let leader = self.raft().leader.ok_or(EtcdError::NoLeader)?;
        let asks = self.inner.asks.as_ref().ok_or(EtcdError::NoLeader)?;
        let mut client = LeaseClient::new(asks.channel(leader));
        let asked = client.lease_time_to_live(LeaseTimeToLiveRequest { id, keys: false });
        match timeout(ANSWER_MAX, "a lease's time to live", asked).await {
            Ok(Ok(r)) => {
                let r = r.into_inner();
                let known = Remaining { granted: r.granted_ttl, left: r.ttl };
                if r.ttl < 0 { Err(EtcdError::LeaseNotFound) } else { Ok(known) }
            }
            _ => Err(EtcdError::Timeout),
        }
    }

    pub(crate) async fn lease_revoke(&self, who: &Who, id: i64) -> EtcdResult<i64> {
        self.propose_revision(who, Op::LeaseRevoke(Revoke { id, unless_renewed: 0 })).await
    }

    /// Keys attached to a lease that the caller sees.
    pub(crate) async fn lease_keys(&self, who: &Who, id: i64) -> EtcdResult<Vec<Bytes>> {
        let state = self.published();
        let rules = state.rules.clone();
        let keys = photon_rt::task::blocking(move || attached(&*state.view, id)).await?;
        keys.iter().try_for_each(|k| rules.auth.range(&who.login, k, &Bytes::new()))?;
        Ok(keys.into_iter().filter(|k| who.scope.may_name(k)).collect())
    }
}

/// Takes signs of life to whoever leads.
pub(crate) async fn relay(inner: Weak<Inner>, mut beats: mpsc::Receiver<Beat>) {
    while let Some(first) = beats.recv().await {
        let Some(inner) = inner.upgrade() else { return };
        let leader = inner.group.status().leader.filter(|l| *l != inner.node);
        match (leader, &inner.asks) {
            (Some(leader), Some(asks)) => {
                let (channel, status) = (asks.channel(leader), inner.group.watch_leadership());
                drop(inner);
                stream_to(leader, channel, status, first, &mut beats).await;
            }
            _ => drop(first.answer.send(Err(EtcdError::NoLeader))),
        }
    }
}

/// One stream, until it breaks or somebody else leads. Whoever then still waits is told, and asks again.
async fn stream_to(
    leader: NodeId,
    channel: tonic::transport::Channel,
    mut status: tokio::sync::watch::Receiver<photon_raft::Leadership>,
    first: Beat,
    beats: &mut mpsc::Receiver<Beat>,
) {
    // Answers come in the order of the questions. The queue never fills: no more wait than fit into it.
    let mut waiting: VecDeque<oneshot::Sender<EtcdResult<i64>>> = VecDeque::new();
    let (out, questions) = mpsc::channel(BEATS_MAX);
    let ask = |beat: Beat, waiting: &mut VecDeque<_>| {
        waiting.push_back(beat.answer);
        out.try_send(LeaseKeepAliveRequest { id: beat.id }).is_ok()
    };
    ask(first, &mut waiting);
    let mut client = LeaseClient::new(channel);
    let opened = client.lease_keep_alive(ReceiverStream::new(questions));
    let Ok(Ok(answers)) = timeout(ANSWER_MAX, "a stream to the leader", opened).await else { return };
    let mut answers = answers.into_inner();
    loop {
        let idle = waiting.is_empty();
        tokio::select! {
            beat = beats.recv(), if waiting.len() < BEATS_MAX => match beat {
                Some(beat) => if !ask(beat, &mut waiting) { return },
                None => return,
            },
            answer = timeout(ANSWER_MAX, "the leader", answers.message()), if !idle => {
                let (Ok(Ok(Some(r))), Some(to)) = (answer, waiting.pop_front()) else { return };
                // The client may have gone.
                let _ = to.send(if r.ttl > 0 { Ok(r.ttl) } else { Err(EtcdError::LeaseNotFound) });
            },
            moved = status.wait_for(|s| s.leader != Some(leader)) => {
                drop(moved);
                return;
            }
        }
    }
}

/// Records what long leases have left, and proposes the end of those whose time is over.
pub(crate) async fn expire(inner: Weak<Inner>) {
    let mut led = None;
    loop {
        sleep(EXPIRE_EVERY).await;
        let Some(inner) = inner.upgrade() else { return };
        let me = ChainFire { inner };
        let raft = me.raft();
        if raft.role != Role::Leader {
            continue;
        }
        if led.replace(raft.term) != Some(raft.term) {
            // What the leaders before wanted is in the log, and must be applied before it is counted.
            if me.inner.group.read_index().await.is_err() {
                led = None;
                continue;
            }
            me.inner.shared.lessor.restart();
        }
        let leases = me.inner.shared.lessor.due(RECORD_BATCH);
        if !leases.is_empty()
            && let Err(e) =
                me.propose_revision(&Who::cloud(), Op::LeaseCheckpoint(Checkpoint { leases })).await
        {
            tracing::warn!(error = %e, "what leases have left could not be recorded; done again later");
        }
        let ids = me.inner.shared.lessor.expired(EXPIRE_BATCH);
        let ends = ids.into_iter().map(|(id, renewals)| {
            let me = me.clone();
            async move {
                let end = Revoke { id, unless_renewed: renewals + 1 };
                match me.propose_revision(&Who::cloud(), Op::LeaseRevoke(end)).await {
                    Ok(_) => me.inner.counters.leases_expired.fetch_add(1, Ordering::Relaxed),
                    Err(EtcdError::LeaseNotFound) => 0, // somebody was faster
                    Err(e) => {
                        tracing::warn!(lease = id, error = %e, "a lease could not be ended; tried again soon");
                        0
                    }
                };
            }
        });
        futures::future::join_all(ends).await;
    }
}
