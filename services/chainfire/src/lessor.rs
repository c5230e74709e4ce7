//! Lease timers. Which leases exist is the machine's business; how long each has left lives here, in
//! memory. Of leases that live long it is recorded through the log from time to time (etcd's
//! checkpoints), so that a restart or a new leader does not begin anew: a lease may live longer than
//! granted, by less than [`RECORD_EVERY`] and the time without a leader, never shorter. A lease that is
//! kept alive has its record taken back before the answer, or a crash would shorten it.

use crate::{
    EtcdError, EtcdResult, Scope,
    command::Left,
    model::LeaseEffect,
    plant::{Plant, planted},
};
use photon_rt::time::{Duration, Instant};
use std::{
    collections::{BTreeSet, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Leases that live longer have what they have left recorded this often (etcd's interval).
const RECORD_EVERY: Duration = Duration::from_secs(300);

/// All timers.
#[derive(Default)]
pub struct Lessor {
    state: Mutex<Timers>,
}

#[derive(Default)]
struct Timers {
    leases: HashMap<i64, Timer>,
    deadlines: BTreeSet<(Instant, i64)>,
    /// When to record the next, of leases that live long.
    records: BTreeSet<(Instant, i64)>,
}

#[derive(Clone, Copy)]
struct Timer {
    ttl: i64,
    system: bool,
    deadline: Instant,
    /// Seconds that it had left when that was last recorded; 0 is all.
    left: i64,
    /// Its end was proposed: too late to keep it alive.
    ending: bool,
    /// Less than all its time is recorded.
    recorded: bool,
    /// How often that was taken back.
    renewals: u64,
    /// When to record it, if it lives long.
    record: Option<Instant>,
}

/// A lease and its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remaining {
    /// Granted time to live, seconds.
    pub granted: i64,
    /// Whole seconds left.
    pub left: i64,
}

fn after(ttl: i64) -> Instant {
    photon_rt::time::now() + Duration::from_secs(ttl.clamp(0, crate::model::check::MAX_LEASE_TTL) as u64)
}

impl Lessor {
    fn lock(&self) -> MutexGuard<'_, Timers> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Follows the machine.
    pub fn apply(&self, effects: &[LeaseEffect]) {
        if effects.is_empty() {
            return;
        }
        let mut t = self.lock();
        for e in effects {
            match *e {
                LeaseEffect::Granted { id, ttl, left, renewals, system } => {
                    let deadline = after(if left > 0 { left } else { ttl });
                    let long = Duration::from_secs(ttl.max(0) as u64) > RECORD_EVERY;
                    let record = long.then(|| photon_rt::time::now() + RECORD_EVERY);
                    t.remove(id);
                    let recorded = left > 0;
                    t.leases.insert(
                        id,
                        Timer { ttl, system, deadline, left, ending: false, recorded, renewals, record },
                    );
                    t.deadlines.insert((deadline, id));
                    t.records.extend(record.map(|at| (at, id)));
                }
                LeaseEffect::Recorded { id, left, renewals } => {
                    let Some(mut timer) = t.leases.get(&id).copied() else { continue };
                    (timer.recorded, timer.left, timer.renewals) = (left > 0, left, renewals);
                    if left == 0 {
                        // It was renewed, perhaps through another member, which waits for this.
                        timer.ending = false;
                        let whole = after(timer.ttl);
                        t.move_deadline(id, &mut timer, whole);
                    }
                    t.leases.insert(id, timer);
                }
                LeaseEffect::Revoked { .. } if planted(Plant::LeaseResurrected) => {}
                LeaseEffect::Revoked { id } => t.remove(id),
            }
        }
    }

    /// Forgets all and starts with these.
    pub fn replace(&self, leases: &[LeaseEffect]) {
        *self.lock() = Timers::default();
        self.apply(leases);
    }

    /// Keeps a lease alive; answers its time to live, or nothing when its record must be taken back
    /// before.
    pub fn renew(&self, scope: Scope, id: i64) -> EtcdResult<Option<i64>> {
        let mut t = self.lock();
        let mut timer = t.visible(scope, id)?;
        if timer.ending {
            return Err(EtcdError::LeaseNotFound);
        }
        if timer.recorded {
            return Ok(None);
        }
        let whole = after(timer.ttl);
        t.move_deadline(id, &mut timer, whole);
        t.leases.insert(id, timer);
        Ok(Some(timer.ttl))
    }

    /// This member begins to lead: the leader before it knew of renewals that it does not, so that every
    /// lease has what was last recorded, from now on.
    pub fn restart(&self) {
        let mut t = self.lock();
        let ids: Vec<i64> = t.leases.keys().copied().collect();
        for id in ids {
            let Some(mut timer) = t.leases.get(&id).copied() else { continue };
            timer.ending = false;
            let left = if timer.left > 0 { timer.left } else { timer.ttl };
            let deadline = after(if planted(Plant::LeaseShort) { 1 } else { left });
            t.move_deadline(id, &mut timer, deadline);
            t.leases.insert(id, timer);
        }
    }

    /// At most `limit` leases that are due to be recorded, with the whole seconds that each has left.
    pub fn due(&self, limit: usize) -> Vec<Left> {
        let now = photon_rt::time::now();
        let mut t = self.lock();
        let due: Vec<(Instant, i64)> =
            t.records.iter().take_while(|(at, _)| *at <= now).take(limit).copied().collect();
        let mut out = Vec::new();
        for (at, id) in due {
            let again = now + RECORD_EVERY;
            t.records.remove(&(at, id));
            t.records.insert((again, id));
            if let Some(timer) = t.leases.get_mut(&id) {
                timer.record = Some(again);
                let left = timer.deadline.saturating_duration_since(now).as_secs() as i64;
                if !timer.ending && left > 0 {
                    // From now on a renewal waits for the record to be taken back: it is on its way.
                    timer.recorded = true;
                    out.push(Left { id, seconds: left, renewals: timer.renewals });
                }
            }
        }
        out
    }

    /// How long a lease has left.
    pub fn remaining(&self, scope: Scope, id: i64) -> EtcdResult<Remaining> {
        let t = self.lock().visible(scope, id)?;
        let left = t.deadline.saturating_duration_since(photon_rt::time::now());
        Ok(Remaining { granted: t.ttl, left: left.as_secs() as i64 })
    }

    /// Ids of all leases that the caller sees, the one that ends first first.
    pub fn list(&self, scope: Scope) -> Vec<i64> {
        let t = self.lock();
        t.deadlines.iter().map(|(_, id)| *id).filter(|id| t.visible(scope, *id).is_ok()).collect()
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.lock().leases.len()
    }

    /// At most `limit` leases whose time is over, marked as ending, with the count of their renewals.
    pub fn expired(&self, limit: usize) -> Vec<(i64, u64)> {
        let now = photon_rt::time::now();
        let mut t = self.lock();
        let ids: Vec<(Instant, i64)> =
            t.deadlines.iter().take_while(|(d, _)| *d <= now).take(limit).copied().collect();
        let mut out = Vec::new();
        for (_, id) in ids {
            let Some(mut timer) = t.leases.get(&id).copied() else { continue };
            timer.ending = true;
            // Asked for again if the proposal fails meanwhile.
            t.move_deadline(id, &mut timer, now + Duration::from_secs(3));
            t.leases.insert(id, timer);
            out.push((id, timer.renewals));
        }
        out
    }
}

impl Timers {
    fn visible(&self, scope: Scope, id: i64) -> EtcdResult<Timer> {
        match self.leases.get(&id) {
            Some(t) if scope == Scope::Operator || !t.system => Ok(*t),
            _ => Err(EtcdError::LeaseNotFound),
        }
    }

    fn move_deadline(&mut self, id: i64, timer: &mut Timer, to: Instant) {
        self.deadlines.remove(&(timer.deadline, id));
        timer.deadline = to;
        self.deadlines.insert((to, id));
    }

    fn remove(&mut self, id: i64) {
        if let Some(t) = self.leases.remove(&id) {
            self.deadlines.remove(&(t.deadline, id));
            if let Some(at) = t.record {
                self.records.remove(&(at, id));
            }
        }
    }
}
