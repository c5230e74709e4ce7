//! Compaction's slow half: removes versions that no permitted read can see, in small batches, while
//! everything goes on. What it removes follows from the compaction watermark alone, so a crash costs
//! nothing but doing a batch again.

use crate::{
    EtcdError, EtcdResult,
    machine::Shared,
    model::{layout::*, read::all_versions},
};
use bytes::{Buf, Bytes};
use photon_kv::{
    Direction,
    engine::{Batch, KeyRange, View},
};
use std::{ops::Bound, sync::PoisonError};

/// Events looked at in one batch.
const BATCH: usize = 500;

/// Versions removed in one batch.
const VERSIONS: usize = if cfg!(test) { 3 } else { 10_000 };

/// Removes one batch; true when there is more to do. Blocks on the disk.
pub fn step(shared: &Shared) -> EtcdResult<bool> {
    let _alone = shared.sweeping.lock().unwrap_or_else(PoisonError::into_inner);
    let limit = shared.published().compacted;
    // Not the published view: that one does not see what the step before this one removed.
    let view = shared.engine.view();
    let swept = match view.get(META, SWEPT)? {
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
    for (seen, item) in view.scan(EVENTS, range, Direction::Forward).enumerate() {
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
    let mut versions = Batch::default();
    for key in keys {
        if !dead(&*view, &key, limit, &mut versions)? {
            // Too many for one batch: the events stay, and lead here again.
            shared.engine.write(versions)?;
            return Ok(true);
        }
    }
    batch.writes.append(&mut versions.writes);
    batch.put(META, SWEPT, Bytes::copy_from_slice(&reached.to_be_bytes()));
    shared.engine.write(batch)?;
    Ok(more)
}

/// Versions of a key below `limit` that have a newer one at or below it, or are deletions. Those at
/// `limit` itself stay, so that a watch from there finds them. False when there are more than fit.
///
/// Oldest first: were a deletion removed in one batch and what it deleted in the next, the key would
/// live again between the two.
fn dead(view: &dyn View, key: &[u8], limit: i64, batch: &mut Batch) -> EtcdResult<bool> {
    let bad = || EtcdError::Internal("a version cannot be read".into());
    let newest = KeyRange {
        start: Bound::Included(data_key(key, Stamp { main: limit, sub: u32::MAX })),
        ..all_versions(key)
    };
    let Some((top, value)) = view.scan(DATA, newest, Direction::Forward).next().transpose()? else {
        return Ok(true);
    };
    let top_goes = value.is_empty() && split_data_key(&top).ok_or_else(bad)?.1.main < limit;
    for item in view.scan(DATA, all_versions(key), Direction::Backward) {
        let (k, _) = item?;
        let at = split_data_key(&k).ok_or_else(bad)?.1;
        if k < top || (k == top && !top_goes) || at.main >= limit {
            break;
        }
        if batch.writes.len() >= VERSIONS {
            return Ok(false);
        }
        batch.remove(DATA, k);
    }
    Ok(true)
}
