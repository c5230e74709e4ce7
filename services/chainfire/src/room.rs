//! Room on the disk. Below a reserve the member raises etcd's NOSPACE alarm for itself: whatever grows is
//! then refused by the whole cluster, deletions, compactions and reads go on. With room again it takes the
//! alarm back (etcd waits for an operator).
//!
//! The reserve is what goes on needing room meanwhile: a segment of the log is allocated ahead (64 MiB),
//! commands under way are bounded by as much, and the engine writes what it holds in memory. Should the
//! disk be full all the same, the log or the engine fails, and the member ends before it acknowledges
//! anything: the next start recovers from what was synced.

use crate::{
    ChainFire, EtcdError, EtcdResult,
    command::Op,
    store::Inner,
    who::Who,
    wire::etcdserverpb::{AlarmMember, AlarmRequest, AlarmType, alarm_request::AlarmAction},
};
use photon_rt::{
    fs::Space,
    time::{Duration, sleep},
};
use std::sync::{Weak, atomic::Ordering};

const LEAST: u64 = 192 << 20;
const MOST: u64 = 2 << 30;

/// Room to keep on a file system of this size.
fn reserve(total: u64) -> u64 {
    (total / 50).clamp(LEAST, MOST).min(total / 4)
}

/// A file whose presence says that the alarm is the member's own.
const MARK: &str = "disk.full";

/// Between two looks, with much room and with little.
const CALM: Duration = Duration::from_secs(1);
const CLOSE: Duration = Duration::from_millis(100);

/// What a look at the disk says; pure.
fn short(space: Space, reserve: u64, was: bool) -> bool {
    // Back only with some more room, or the alarm would come and go.
    if was { space.free < reserve + reserve / 4 } else { space.free < reserve }
}

impl ChainFire {
    /// Refuses what grows while there is no room, before it is in the log.
    pub(crate) async fn has_room(&self, op: &Op) -> EtcdResult<()> {
        if self.inner.short_of_room.load(Ordering::Relaxed) && crate::model::rules::grows(op) {
            return Err(EtcdError::NoSpace);
        }
        if self.published().rules.permit(op) == Err(EtcdError::NoSpace) {
            // Perhaps the alarm was just taken back through another member.
            return self.linearizable().await?.rules.permit(op);
        }
        Ok(())
    }
}

/// Watches the room for ever.
pub(crate) async fn watch(inner: Weak<Inner>) {
    let mut ours = None;
    let mut pause = Duration::ZERO;
    loop {
        sleep(pause).await;
        let Some(inner) = inner.upgrade() else { return };
        let (Some(dir), wanted) = (inner.data_dir.clone(), inner.config.reserve) else { return };
        if wanted == Some(0) {
            return;
        }
        pause = CALM;
        let space = match photon_rt::task::blocking(move || photon_rt::fs::space(dir)).await {
            Ok(s) => s,
            Err(e) => {
                tracing::warn!(error = %e, "cannot see how much room the disk has");
                continue;
            }
        };
        let reserve = wanted.unwrap_or_else(|| reserve(space.total));
        let was = inner.short_of_room.load(Ordering::Relaxed);
        let now = short(space, reserve, was);
        inner.short_of_room.store(now, Ordering::Relaxed);
        if space.free / 8 < reserve {
            pause = CLOSE;
        }
        let me = ChainFire { inner };
        if was != now {
            let (free, keep) = (space.free >> 20, reserve >> 20);
            if now {
                tracing::error!(
                    free_mib = free,
                    reserve_mib = keep,
                    "the disk is nearly full: writes are refused until there is room"
                );
            } else {
                tracing::info!(free_mib = free, reserve_mib = keep, "the disk has room again");
            }
        }
        let alarm = AlarmMember { member_id: me.inner.member_id, alarm: AlarmType::Nospace as i32 };
        let raised = me.published().rules.alarms.contains(&alarm);
        // An operator's own stays, also when this member starts again: a file says which are its own.
        let mark = me.inner.data_dir.as_ref().map(|d| d.join(MARK)).unwrap_or_default();
        let ours = ours.get_or_insert_with(|| raised && mark.exists());
        let action = match (now, raised) {
            (true, false) => AlarmAction::Activate,
            (false, true) if *ours => AlarmAction::Deactivate,
            _ => continue,
        };
        let r = AlarmRequest { action: action as i32, member_id: alarm.member_id, alarm: alarm.alarm };
        if now && let Err(e) = photon_rt::fs::write_atomic(&mark, b"", 0o600) {
            tracing::warn!(error = %e, "after a restart, an operator has to take the alarm back");
        }
        match me.propose(&Who::cloud(), Op::Alarm(r)).await {
            Ok(_) => {
                *ours = now;
                if !now {
                    let _ = photon_rt::fs::remove_file(&mark); // one too many does no harm while there is no alarm
                }
            }
            Err(e) => tracing::debug!(error = %e, "the alarm is changed later"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_alarm_does_not_flutter_and_small_disks_are_usable() {
        assert_eq!(reserve(100 << 30), 2 << 30);
        assert_eq!(reserve(20 << 30), (20 << 30) / 50);
        assert_eq!(reserve(1 << 30), LEAST);
        assert_eq!(reserve(200 << 20), 50 << 20, "never most of a small disk");
        let at = |free: u64| Space { free, total: 1000 };
        assert!(short(at(99), 100, false) && !short(at(100), 100, false));
        assert!(short(at(124), 100, true) && !short(at(125), 100, true));
    }
}
