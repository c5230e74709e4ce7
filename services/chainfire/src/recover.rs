//! A new cluster out of what one member had on disk, when the old one has lost its quorum for good.
//!
//! Everything that the disk holds is kept, committed or not: nobody can tell any more. The result has a new
//! cluster number and a new member number, so that members of the old cluster, should they come back, are
//! refused at the first greeting and cannot mix their log with this one's.

use crate::{
    cluster::{By, Seat, keep, new_id},
    machine::StateMachine,
    model::{Rules, layout::*, members::MemberRecord},
    store::GROUP,
};
use photon_base::{Code, Error, Result};
use photon_kv::engine::{Batch, Engine, FjallEngine, FjallOptions, KeyRange};
use photon_raft::{
    Machine, StoreError,
    log::{Log, LogConfig},
    salvage,
};
use photon_rt::disk::RealDisk;
use prost::Message;
use std::{path::Path, sync::Arc};

/// What was kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// Revision.
    pub revision: i64,
    /// Keys that there are.
    pub keys: u64,
    /// Number of the new cluster.
    pub cluster: u64,
    /// Number of its one member.
    pub member: u64,
    /// Entries of the log that the state had not applied yet, and now has.
    pub applied: u64,
    /// Why the log could not be used, if so: then the newest writes may be missing.
    pub log: Option<String>,
}

/// Makes the folder of a stopped member that of the one member of a new cluster. Blocks. Can be repeated when
/// it was interrupted.
pub fn recover(dir: &Path, name: &str, peer_url: &str) -> Result<Recovered> {
    let (state_dir, log_dir, used) = (dir.join("state"), dir.join("log"), dir.join("log.used"));
    if !state_dir.exists() {
        return Err(Error::new(Code::NotFound, format!("{} holds no member", dir.display()))
            .hint("--data-dir is the folder of a member, with `state` and `log` in it"));
    }
    let failed = |e: &dyn std::fmt::Display| Error::internal("the member cannot be recovered").why(e);
    let engine = FjallEngine::open(&state_dir, &SPACES, FjallOptions::default()).map_err(|e| {
        if e.is_locked() {
            return Error::new(Code::Conflict, "this member runs").hint("stop it first");
        }
        failed(&e).hint("use another member's disk, or photon chainfire snapshot restore")
    })?;
    let engine: Arc<dyn Engine> = Arc::new(engine);
    let (mut machine, shared) = StateMachine::open(engine.clone(), 1 << 20).map_err(|e| failed(&e))?;
    let before = machine.applied().index;
    let mut unusable = None;
    if log_dir.exists() {
        let disk = RealDisk::open(&log_dir)?;
        let applied = Log::open(Arc::new(disk), LogConfig::default()).and_then(|log| {
            if log.has(GROUP) { salvage(&log, GROUP, &mut machine).map(drop) } else { Ok(()) }
        });
        match applied {
            Ok(()) => {}
            Err(StoreError::Damaged(why)) if machine.applied().index > 0 => unusable = Some(why),
            Err(e) => return Err(failed(&e).hint("use another member's disk, or a snapshot")),
        }
        machine.checkpoint().map_err(|e| failed(&e))?;
        let moved = photon_rt::fs::rename(&log_dir, &used);
        moved.map_err(|e| failed(&e))?;
    }
    let applied = machine.applied().index.saturating_sub(before);
    let published = shared.published();
    let seat = Seat { member: new_id(), cluster: new_id(), by: By::Recovery, others: Vec::new() };
    let me = MemberRecord {
        id: seat.member,
        name: name.to_string(),
        peer_urls: vec![peer_url.to_string()],
        ..Default::default()
    };
    begin_anew(&*engine, vec![me])
        .and_then(|()| keep(&seat, Some(dir)))
        .and_then(|()| gone(&used))
        .and_then(|()| gone(&dir.join(crate::store::SUSPECT)))?;
    let keys = published.view.count(LATEST, KeyRange::all()).map_err(|e| failed(&e))?;
    let (cluster, member) = (seat.cluster, seat.member);
    Ok(Recovered { revision: published.revision, keys, cluster, member, applied, log: unusable })
}

/// Makes a state the beginning of a new log with these members, or with those that found it.
pub(crate) fn begin_anew(engine: &dyn Engine, members: Vec<MemberRecord>) -> Result<()> {
    let failed = |e: &dyn std::fmt::Display| Error::internal("the state cannot be changed").why(e);
    let view = engine.view();
    let stored = view.get(META, STATE).map_err(|e| failed(&e))?;
    let mut state = State::decode(stored.unwrap_or_default()).map_err(|e| failed(&e))?;
    (state.applied_index, state.applied_term) = (0, 0);
    let mut rules = Rules::load(&*view).map_err(|e| failed(&e))?;
    // Alarms were raised by members that there are no more.
    (rules.members, rules.alarms) = (members, Vec::new());
    let mut batch = Batch::default();
    batch.put(META, STATE, state.encode_to_vec());
    batch.put(META, RULES, rules.encode_to_vec());
    engine.write(batch).and_then(|()| engine.persist()).map_err(|e| failed(&e))
}

fn gone(path: &Path) -> Result<()> {
    let done =
        if path.is_dir() { photon_rt::fs::remove_dir_all(path) } else { photon_rt::fs::remove_file(path) };
    match done {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::internal(format!("{} cannot be removed", path.display())).why(e))
        }
        _ => Ok(()),
    }
}
