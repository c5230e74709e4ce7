//! Collecting history: first the safe point is raised everywhere, which settles all locks from before it;
//! only then is anything removed.

use super::{Request, Response, World, resolve, route};
use crate::{
    Refusal,
    model::{Answer, Op, command::Gc},
    refusal::Outcome,
    time::Ts,
};
use bytes::Bytes;
use std::collections::BTreeMap;

/// How often a region may change or be locked before this gives up; the next collection goes on.
const PATIENCE: u32 = 30;

/// One walk over all regions, at least one request to each. Returns their versions by number, as they were.
async fn walk<W: World>(world: &W, safe_point: Ts, limit: u32) -> Outcome<BTreeMap<u64, u64>> {
    let mut seen = BTreeMap::new();
    // The smallest key of all: a region is asked for by a key.
    let mut key = Bytes::from_static(&[0]);
    let mut from = Bytes::new();
    let mut attempts = 0;
    loop {
        let region = world.locate(&key).await?;
        let op = Op::Gc(Gc { safe_point, from: from.clone(), limit });
        attempts += 1;
        if attempts > PATIENCE {
            return Err(Refusal::Overloaded);
        }
        match world.ask(&region, Request::Do(op)).await {
            Ok(Response::Done(Answer::Collected { next: Some(next) })) => (from, attempts) = (next, 0),
            Ok(_) => {
                seen.insert(region.id, region.version);
                if region.end.is_empty() {
                    return Ok(seen);
                }
                (key, from, attempts) = (region.end, Bytes::new(), 0);
            }
            Err(Refusal::Locked(locks)) => {
                if resolve::clear(world, locks, 0).await?.wait.is_some() {
                    route::back_off(world, attempts).await;
                }
            }
            Err(e) if e.is_about_routing() => {
                world.forget(&region);
                route::back_off(world, attempts).await;
            }
            Err(e) => return Err(e),
        }
    }
}

/// Removes what no read at or behind `safe_point` can see. `limit` records at a time.
pub async fn collect<W: World>(world: &W, safe_point: Ts, limit: u32) -> Outcome<()> {
    let safe_point = safe_point & !1;
    let mut before = walk(world, safe_point, 0).await?;
    for _ in 0..PATIENCE {
        // A region that took another one in while this walked may have taken locks in, too.
        let after = walk(world, safe_point, 0).await?;
        if after == before {
            walk(world, safe_point, limit.max(1)).await?;
            return Ok(());
        }
        before = after;
    }
    Err(Refusal::Overloaded)
}
