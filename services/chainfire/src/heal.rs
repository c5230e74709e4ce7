//! Damage of the state: found when it is opened or read, never served, and made good from the others.
//!
//! A member of a cluster that finds its state damaged throws it away and takes the leader's (why that is safe
//! says `photon_raft`'s `core::rebuild`); until it has it, it refuses its clients. One that is alone keeps
//! what there is and does not start. A damaged *log* is another matter: it held what this member promised.
//! Then it does not start, and gets a new place in its cluster by `cluster::rejoin`.
//!
//! | file | says |
//! |---|---|
//! | `state.suspect` | the state failed while it ran: the next start reads it whole |
//! | `state.damaged` | the state is not what the others have: the next start throws it away |

use crate::{
    ChainFire,
    cluster::REJOIN,
    model::layout::SPACES,
    store::{DAMAGED, GROUP, Inner, SUSPECT},
};
use photon_base::{Error, Result};
use photon_kv::{
    Direction,
    engine::{Engine, EngineError, FjallEngine, FjallOptions, KeyRange, Space},
};
use photon_raft::{
    StoreError,
    log::{Log, LogConfig},
};
use photon_rt::{
    disk::RealDisk,
    time::{Duration, sleep},
};
use std::{path::Path, sync::Weak};

/// Opens the state of the member in `dir`. Blocks.
pub(crate) fn open_state(dir: &Path, options: FjallOptions) -> Result<FjallEngine> {
    let state = dir.join("state");
    let failed = |e: EngineError| Error::internal("ChainFire's state does not open").why(e);
    let mark = |name: &str| photon_rt::fs::read_text(&dir.join(name), 64 << 10).ok();
    let why = match mark(DAMAGED) {
        Some(why) => why,
        None => match FjallEngine::open(&state, &SPACES, options).and_then(|e| examined(e, mark(SUSPECT))) {
            Ok(engine) => {
                unmark(dir)?;
                return Ok(engine);
            }
            Err(EngineError::Damaged(why)) => why,
            Err(e) => return Err(failed(e)),
        },
    };
    tracing::error!(why, "the state is damaged");
    if !replaceable(dir)? {
        return Err(Error::internal(
            "ChainFire's state is damaged, and there is no other member to take it from",
        )
        .why(why)
        .hint("photon chainfire snapshot restore FILE --to DIR makes a new store out of the last snapshot"));
    }
    photon_rt::fs::remove_dir_all(&state)
        .map_err(|e| Error::internal("the damaged state cannot be removed").why(e))?;
    let engine = FjallEngine::open(&state, &SPACES, options).map_err(failed)?;
    unmark(dir)?;
    tracing::warn!("the damaged state was thrown away; it comes back from the log or from another member");
    Ok(engine)
}

/// Reads a state whole that failed before.
fn examined(engine: FjallEngine, suspect: Option<String>) -> std::result::Result<FjallEngine, EngineError> {
    let Some(why) = suspect else { return Ok(engine) };
    tracing::warn!(why, "the state failed when it last ran; it is read whole");
    let view = engine.view();
    for i in 0..SPACES.len() {
        view.scan(Space(i), KeyRange::all(), Direction::Forward).try_for_each(|item| item.map(drop))?;
    }
    drop(view);
    Ok(engine)
}

fn unmark(dir: &Path) -> Result<()> {
    for name in [SUSPECT, DAMAGED] {
        match photon_rt::fs::remove_file(dir.join(name)) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::internal(format!("{name} cannot be removed")).why(e));
            }
            _ => {}
        }
    }
    Ok(())
}

/// What a log says of the state that belongs to it: it begins where an empty state can go on; there are others.
fn looked_up(dir: &Path) -> Result<(bool, bool)> {
    let log = RealDisk::open(&dir.join("log"))
        .map_err(|e| StoreError::Invalid(e.to_string()))
        .and_then(|disk| Log::open(std::sync::Arc::new(disk), LogConfig::default()))
        .map_err(|e| damaged_log(&e))?;
    if !log.has(GROUP) {
        return Ok((true, false));
    }
    let floor = log.floor(GROUP).map_err(|e| damaged_log(&e))?;
    let (_, conf) = log.state(GROUP).map_err(|e| damaged_log(&e))?;
    Ok((floor == 0, conf.voters.len() + conf.learners.len() > 1))
}

/// True when an empty state comes whole again: from the log, or from other members.
fn replaceable(dir: &Path) -> Result<bool> {
    looked_up(dir).map(|(whole, others)| whole || others)
}

/// True when an empty state in `dir` is not the beginning, but what is left of one.
pub(crate) fn is_remnant(dir: &Path) -> Result<bool> {
    Ok(dir.join("log").exists() && !looked_up(dir)?.0)
}

/// Why a log does not open, in words for people.
pub(crate) fn damaged_log(e: &StoreError) -> Error {
    match e {
        StoreError::Damaged(why) => Error::internal("ChainFire's log is damaged")
            .why(format!(
                "{why}; what this member voted and acknowledged is no longer known, so it must not go on"
            ))
            .hint(format!(
                "{REJOIN}; without other members, photon chainfire recover keeps what the state holds"
            )),
        e => Error::internal("ChainFire does not start").why(e),
    }
}

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Ends the member when damage shows, and lets the next start know.
pub(crate) async fn watch(inner: Weak<Inner>) {
    loop {
        sleep(LOOK_EVERY).await;
        let Some(inner) = inner.upgrade() else { return };
        if let Some(why) = inner.shared.engine.damage() {
            inner.shared.fail(&format!("the state is damaged: {why}"));
        }
        // Also what the machine itself did not see coming, such as a panic in it.
        if let Some(why) = inner.group.stopped()
            && inner.log.stopped().is_none()
        {
            inner.shared.fail(&why);
        }
        let Some(why) = inner.shared.failed.borrow().clone() else { continue };
        tracing::error!(why, "the state failed; this member ends");
        (ChainFire { inner }).mark(SUSPECT, &why).await;
        return;
    }
}

impl ChainFire {
    pub(crate) async fn mark(&self, name: &'static str, why: &str) {
        let Some(dir) = self.inner.data_dir.clone() else { return };
        let why = why.to_string();
        let marked = photon_rt::task::blocking(move || {
            photon_rt::fs::write_atomic(&dir.join(name), why.as_bytes(), 0o600)
        });
        if let Err(e) = marked.await {
            tracing::warn!(error = %e, "the next start will not know of it");
        }
    }
}
