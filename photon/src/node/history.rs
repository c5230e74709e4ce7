//! How long the store keeps history: a day. Watchers and paged lists need minutes; the rest would only grow, since
//! the cloud itself writes (hosts report every ten seconds). What time a revision had is noted once an hour in a
//! small file, so that a node that is restarted every day still forgets.

use super::coordinator::Coordinator;
use photon_base::{Result, Timestamp};
use photon_rt::{
    fs,
    task::Tasks,
    time::{Duration, sleep, wall},
};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

const KEPT: Duration = Duration::from_secs(24 * 3600);
const NOTED_EVERY: Duration = Duration::from_secs(3600);

/// Notes, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Notes(Vec<(Timestamp, i64)>);

impl Notes {
    fn load(path: &Path) -> Notes {
        // A damaged or missing file costs a day of history kept longer.
        fs::read_text(path, 1 << 20).ok().and_then(|t| serde_json::from_str(&t).ok()).unwrap_or_default()
    }

    /// Adds a note, drops what is too old to matter, and says which revision nobody needs history before.
    fn note(&mut self, now: Timestamp, revision: i64) -> Option<i64> {
        self.0.retain(|(t, r)| *t <= now && *r <= revision); // a clock set back, a store restored
        self.0.push((now, revision));
        let old = self.0.iter().rposition(|(t, _)| now.since(*t) >= KEPT)?;
        self.0.drain(..old);
        self.0.first().map(|(_, r)| *r)
    }
}

/// Forgets for ever.
pub fn start(store: Coordinator, path: PathBuf, tasks: &Tasks) {
    tasks.spawn("history", async move {
        let mut notes = Notes::load(&path);
        loop {
            if let Err(e) = turn(&store, &mut notes, &path).await {
                tracing::warn!(error = %e, "history is kept longer");
            }
            sleep(NOTED_EVERY).await;
        }
    });
}

async fn turn(store: &Coordinator, notes: &mut Notes, path: &Path) -> Result<()> {
    let old = notes.note(wall(), store.revision().await?);
    let text = serde_json::to_string(notes).unwrap_or_default();
    fs::write_atomic(path, text.as_bytes(), 0o600)?;
    match old {
        Some(revision) => store.forget_before(revision).await,
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_is_kept_and_no_more() {
        let hour = |h: u64| Timestamp(h * 3_600_000);
        let mut n = Notes::default();
        for h in 100..124 {
            assert_eq!(n.note(hour(h), h as i64 * 10), None, "hour {h}");
        }
        assert_eq!(n.note(hour(124), 1240), Some(1000));
        assert_eq!(n.note(hour(130), 1300), Some(1060));
        assert!(n.0.len() <= 26);
        // A node that was off for a week; a clock that was set back.
        assert_eq!(n.note(hour(400), 1301), Some(1300));
        assert_eq!(n.note(hour(50), 1302), None);
    }
}
