//! Compaction's slow half: removes versions that no permitted read can see, in small batches, while
//! everything goes on. What it removes follows from the compaction watermark alone, so a crash costs
//! nothing but doing a batch again.

use crate::{
    EtcdError, EtcdResult,
    machine::{Published, Shared},
    model::{layout::*, read::all_versions},
};
use bytes::{Buf, Bytes};
use photon_kv::{
    Direction,
    engine::{Batch, KeyRange},
};
use std::sync::{Arc, PoisonError};

/// Events looked at in one batch.
const BATCH: usize = 500;

/// Removes one batch; true when there is more to do. Blocks on the disk.
pub fn step(shared: &Shared) -> EtcdResult<bool> {
    let _alone = shared.sweeping.lock().unwrap_or_else(PoisonError::into_inner);
    let state: Arc<Published> = shared.published();
    let limit = state.compacted;
    let swept = match state.view.get(META, SWEPT)? {
        Some(mut b) if b.len() == 8 => b.get_i64(),
        _ => 0,
    };
    if limit <= swept {
        return Ok(false);
    }
    // Every version that died since was followed by an event above `swept`, or is a deletion at `swept`.
    let range = KeyRange::half_open(
        event_key(Stamp { main: swept, sub: 0 }),
        event_key(Stamp { main: limit + 1, sub: 0 }),
    );
    let mut batch = Batch::default();
    let mut keys = std::collections::BTreeSet::new();
    let (mut reached, mut more, mut last) = (limit, false, swept);
    for (seen, item) in state.view.scan(EVENTS, range, Direction::Forward).enumerate() {
        let (k, key) = item?;
        let at = split_event_key(&k).ok_or_else(|| EtcdError::Internal("an event cannot be read".into()))?;
        if seen >= BATCH && at.main > last && last > swept {
            // Stops between two revisions, and goes on from there next time.
            (reached, more) = (last, true);
            break;
        }
        last = at.main;
        if at.main < limit {
            batch.remove(EVENTS, k);
        }
        keys.insert(key);
    }
    for key in keys {
        dead(&state, &key, limit, &mut batch)?;
    }
    batch.put(META, SWEPT, Bytes::copy_from_slice(&reached.to_be_bytes()));
    shared.engine.write(batch)?;
    Ok(more)
}

/// Versions of a key below `limit` that have a newer one at or below it, or are deletions. Those at
/// `limit` itself stay, so that a watch from there finds them.
fn dead(state: &Published, key: &[u8], limit: i64, batch: &mut Batch) -> EtcdResult<()> {
    let mut newer = false;
    for item in state.view.scan(DATA, all_versions(key), Direction::Forward) {
        let (k, v) = item?;
        let (_, at) =
            split_data_key(&k).ok_or_else(|| EtcdError::Internal("a version cannot be read".into()))?;
        if at.main > limit {
            continue;
        }
        if at.main < limit && (newer || v.is_empty()) {
            batch.remove(DATA, k);
        }
        newer = true;
    }
    Ok(())
}
