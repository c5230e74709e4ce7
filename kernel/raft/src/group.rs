//! The handle to a group.

use crate::{
    Change, GroupId, Machine, Members, NodeId, ProposeError, codec,
    core::{GroupStatus, Input, Leadership, Role},
    lease::{Lease, Read},
    store::{Ask, Inner},
};
use bytes::Bytes;
use photon_rt::time::Duration;
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};
use tokio::sync::{oneshot, watch};

/// How the threads talk to a group's handles, whatever its machine.
pub(crate) trait Member: Send + Sync {
    fn failed(&self, number: u64, error: ProposeError);
    fn status(&self, status: GroupStatus);
    fn members(&self, members: Members);
    fn lease(&self, until: Duration, commit: u64);
    fn now(&self) -> GroupStatus;
    fn stopped(&self, why: &str);
}

enum Waiter<R> {
    Proposal(oneshot::Sender<Result<R, ProposeError>>, usize),
    Read(oneshot::Sender<Result<(), ProposeError>>),
}

struct Waiters<R> {
    by_number: HashMap<u64, Waiter<R>>,
    stopped: Option<String>,
}

/// Most reads that may wait at once.
const MAX_READS: usize = 1 << 16;

pub(crate) struct Shared<M: Machine> {
    id: GroupId,
    inner: Arc<Inner>,
    next: AtomicU64,
    waiters: Mutex<Waiters<M::Reply>>,
    inflight: AtomicUsize,
    inflight_limit: usize,
    status: Mutex<GroupStatus>,
    leadership: watch::Sender<Leadership>,
    members: watch::Sender<Members>,
    lease: Lease,
}

impl<M: Machine> Shared<M> {
    pub(crate) fn new(id: GroupId, inner: Arc<Inner>, inflight_limit: usize) -> Self {
        Shared {
            id,
            inner,
            next: AtomicU64::new(1),
            waiters: Mutex::new(Waiters { by_number: HashMap::new(), stopped: None }),
            inflight: AtomicUsize::new(0),
            inflight_limit,
            status: Mutex::default(),
            leadership: watch::Sender::default(),
            members: watch::Sender::new(Members::default()),
            lease: Lease::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiters<M::Reply>> {
        self.waiters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait(&self, waiter: Waiter<M::Reply>) -> Result<u64, ProposeError> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let mut w = self.lock();
        match &w.stopped {
            Some(why) => Err(ProposeError::Stopped(why.clone())),
            None if w.by_number.len() >= MAX_READS && matches!(waiter, Waiter::Read(_)) => {
                Err(ProposeError::Overloaded)
            }
            None => {
                w.by_number.insert(number, waiter);
                Ok(number)
            }
        }
    }

    fn take(&self, number: u64) -> Option<Waiter<M::Reply>> {
        let waiter = self.lock().by_number.remove(&number)?;
        if let Waiter::Proposal(_, bytes) = &waiter {
            self.inflight.fetch_sub(*bytes, Ordering::Relaxed);
        }
        Some(waiter)
    }

    pub(crate) fn reply(&self, number: u64, reply: M::Reply) {
        if let Some(Waiter::Proposal(to, _)) = self.take(number) {
            let _ = to.send(Ok(reply)); // the caller may have gone
        }
    }

    pub(crate) fn read_ready(&self, number: u64) {
        if let Some(Waiter::Read(to)) = self.take(number) {
            let _ = to.send(Ok(()));
        }
    }

    pub(crate) fn fail(&self, number: u64, error: ProposeError) {
        match self.take(number) {
            Some(Waiter::Proposal(to, _)) => drop(to.send(Err(error))),
            Some(Waiter::Read(to)) => drop(to.send(Err(error))),
            None => {}
        }
    }

    pub(crate) fn set_lease(&self, until: Duration, commit: u64) {
        self.lease.set(until, commit);
    }

    /// The machine reflects everything up to `index`.
    pub(crate) fn applied(&self, index: u64) {
        self.lease.applied(index);
    }

    pub(crate) fn set_members(&self, members: Members) {
        self.members.send_replace(members);
    }

    pub(crate) fn status_now(&self) -> GroupStatus {
        *self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A stopped group leads no more, whatever the log's thread still has to tell.
    pub(crate) fn set_status(&self, status: GroupStatus) {
        let waiters = self.lock();
        if waiters.stopped.is_none() {
            self.show(status);
        }
    }

    fn show(&self, status: GroupStatus) {
        *self.status.lock().unwrap_or_else(PoisonError::into_inner) = status;
        let now = Leadership { role: status.role, term: status.term, leader: status.leader };
        // Most news is of entries: nobody who waits for a leader is woken by that.
        self.leadership.send_if_modified(|l| std::mem::replace(l, now) != now);
    }

    pub(crate) fn stop(&self, why: &str) {
        let numbers: Vec<u64> = {
            let mut w = self.lock();
            w.stopped.get_or_insert_with(|| why.to_string());
            // It leads no more: whoever waits for that must not wait for ever.
            self.show(GroupStatus { role: Role::Follower, leader: None, ..self.status_now() });
            w.by_number.keys().copied().collect()
        };
        self.lease.end();
        for number in numbers {
            self.fail(number, ProposeError::Stopped(why.to_string()));
        }
    }

    fn send(&self, number: u64, input: Input) {
        if self.inner.inbox.push(Ask::Input(input)).is_err() {
            self.fail(number, ProposeError::Stopped(self.inner.reason()));
        }
    }
}

/// A handle to a group of this node. Clones are the same group.
pub struct Group<M: Machine> {
    pub(crate) shared: Arc<Shared<M>>,
}

impl<M: Machine> Clone for Group<M> {
    fn clone(&self) -> Self {
        Group { shared: self.shared.clone() }
    }
}

impl<M: Machine> Group<M> {
    /// Which group this is.
    pub fn id(&self) -> GroupId {
        self.shared.id
    }

    /// Replicates `command` and answers with what the machine replied to it, here, after it was
    /// committed and durable. A caller that gives up waiting takes nothing back.
    pub async fn propose(&self, command: Bytes) -> Result<M::Reply, ProposeError> {
        let s = &*self.shared;
        if command.len() > codec::MAX_ENTRY_BYTES {
            return Err(ProposeError::TooLarge { bytes: command.len(), limit: codec::MAX_ENTRY_BYTES });
        }
        // A fixed part for each, so that many empty commands are bounded too.
        let bytes = command.len() + 64;
        if s.inflight.fetch_add(bytes, Ordering::Relaxed) + bytes > s.inflight_limit {
            s.inflight.fetch_sub(bytes, Ordering::Relaxed);
            return Err(ProposeError::Overloaded);
        }
        let (to, answer) = oneshot::channel();
        let proposal = s.wait(Waiter::Proposal(to, bytes)).inspect_err(|_| {
            s.inflight.fetch_sub(bytes, Ordering::Relaxed);
        })?;
        s.send(proposal, Input::Propose { group: s.id, proposal, data: command });
        answer.await.unwrap_or_else(|_| Err(ProposeError::Stopped(s.inner.reason())))
    }

    /// Returns when the state machine here reflects everything that was committed anywhere before the
    /// call: a read of it is then linearizable. Works on followers too; on a leader that holds a lease it
    /// costs next to nothing.
    pub async fn read_index(&self) -> Result<(), ProposeError> {
        let s = &*self.shared;
        match s.lease.read(photon_rt::time::since_boot) {
            Read::Now => {
                // Nothing was waited for: a task that only reads would keep its thread.
                tokio::task::consume_budget().await;
                return Ok(());
            }
            // Dropped unanswered when the group stops.
            Read::After(applied) => {
                return applied.await.map_err(|_| ProposeError::Stopped(s.inner.reason()));
            }
            Read::Ask => {}
        }
        let (to, answer) = oneshot::channel();
        let read = s.wait(Waiter::Read(to))?;
        s.send(read, Input::Read { group: s.id, read });
        answer.await.unwrap_or_else(|_| Err(ProposeError::Stopped(s.inner.reason())))
    }

    /// State of the group on this node, as of the last turn.
    pub fn status(&self) -> GroupStatus {
        self.shared.status_now()
    }

    /// Changes of who leads.
    pub fn watch_leadership(&self) -> watch::Receiver<Leadership> {
        self.shared.leadership.subscribe()
    }

    /// Changes the members, all of `changes` at once, if this node leads and no other change is under
    /// way. Returns when the change is in force here; a joint state that it passes through is left soon
    /// after by itself.
    pub async fn change(&self, changes: Vec<Change>) -> Result<(), ProposeError> {
        let s = &*self.shared;
        let (to, answer) = oneshot::channel();
        let proposal = s.wait(Waiter::Read(to))?;
        s.send(proposal, Input::Change { group: s.id, proposal, changes });
        answer.await.unwrap_or_else(|_| Err(ProposeError::Stopped(s.inner.reason())))
    }

    /// Why the group stopped on this node, for example because its machine failed; none while it runs.
    pub fn stopped(&self) -> Option<String> {
        self.shared.lock().stopped.clone()
    }

    /// The members as of the last change in force here.
    pub fn members(&self) -> Members {
        self.shared.members.borrow().clone()
    }

    /// Changes of [`Group::members`].
    pub fn watch_members(&self) -> watch::Receiver<Members> {
        self.shared.members.subscribe()
    }

    /// Asks this node, if it leads, to hand leadership to `to`.
    pub fn transfer(&self, to: NodeId) {
        let _ = self.shared.inner.inbox.push(Ask::Input(Input::Transfer { group: self.shared.id, to }));
    }
}
