//! Locks of others.

use super::{World, route};
use crate::{
    LockInfo, Refusal,
    bug::{self, Bug},
    model::{Answer, Op, Secondaries, Status, command::*},
    refusal::Outcome,
    time::{self, Ts},
};
use bytes::Bytes;

/// What can be done about locks.
#[derive(Debug, Default)]
pub(crate) struct Way {
    /// Transactions that commit behind the reader, or not at all: it may pass.
    pub pass: Vec<Ts>,
    /// One that lives and has to be waited for.
    pub wait: Option<Ts>,
}

/// Looks at each lock's transaction. `reader` is the timestamp of the read that met them; 0 for a writer.
pub(crate) async fn clear<W: World>(world: &W, locks: Vec<LockInfo>, reader: Ts) -> Outcome<Way> {
    let mut way = Way::default();
    for lock in locks {
        if way.pass.contains(&lock.start) {
            continue;
        }
        match fate(world, &lock, reader).await? {
            Fate::Open if bug::on(Bug::ResolvedTooEarly) => settle(world, &lock, 0).await?,
            Fate::Open => way.wait = Some(lock.start),
            Fate::Behind => way.pass.push(lock.start),
            Fate::Ended(at) => settle(world, &lock, at).await?,
        }
    }
    Ok(way)
}

enum Fate {
    /// Alive, and in the way.
    Open,
    /// Alive, but it will commit behind the reader.
    Behind,
    /// Committed; 0 for rolled back.
    Ended(Ts),
}

async fn fate<W: World>(world: &W, lock: &LockInfo, reader: Ts) -> Outcome<Fate> {
    let mut force_sync = false;
    loop {
        let now = world.timestamp().await?;
        let is_over = time::ms(lock.start) + lock.ttl_ms < time::ms(now);
        let ask = CheckStatus {
            primary: lock.primary.clone(),
            start: lock.start,
            reader,
            now,
            rollback_missing: is_over,
            force_sync,
        };
        let Answer::Status(status) = route::act(world, &lock.primary, Op::Status(ask)).await? else {
            return Err(Refusal::Malformed("an answer to another question".into()));
        };
        return Ok(match status {
            Status::Committed(at) => Fate::Ended(at),
            Status::RolledBack => Fate::Ended(0),
            Status::Alive { min_commit, .. } if reader != 0 && min_commit > reader => Fate::Behind,
            Status::Alive { .. } | Status::Missing => Fate::Open,
            Status::Silent { min_commit, secondaries } => {
                match silent(world, lock, min_commit, secondaries).await? {
                    Some(at) => Fate::Ended(at),
                    None if force_sync => {
                        return Err(Refusal::Malformed("it is asynchronous, yet not".into()));
                    }
                    None => {
                        force_sync = true;
                        continue;
                    }
                }
            }
        });
    }
}

/// Ends an asynchronous transaction whose coordinator is silent, as its locks say. `None` when it turned out
/// not to be asynchronous.
async fn silent<W: World>(
    world: &W,
    lock: &LockInfo,
    min_commit: Ts,
    secondaries: Vec<Bytes>,
) -> Outcome<Option<Ts>> {
    let start = lock.start;
    let mut at = min_commit;
    let keys: Vec<(Bytes, ())> = secondaries.into_iter().map(|k| (k, ())).collect();
    let ask = |items: Vec<(Bytes, ())>| {
        Op::Secondaries(CheckSecondaries { start, keys: items.into_iter().map(|(k, ())| k).collect() })
    };
    let answers = if bug::on(Bug::AsyncByPrimaryAlone) {
        Vec::new()
    } else {
        route::spread(world, keys.clone(), ask).await?
    };
    let mut rolled_back = false;
    for a in answers {
        match a {
            Answer::Secondaries(Secondaries::Locked { min_commit }) => at = at.max(min_commit),
            Answer::Secondaries(Secondaries::Committed(ts)) => return end(world, lock, ts).await.map(Some),
            Answer::Secondaries(Secondaries::Missing) => rolled_back = true,
            _ => return Ok(None),
        }
    }
    let at = end(world, lock, if rolled_back { 0 } else { at }).await?;
    // What it locked elsewhere would hold up others, and each would have to ask all keys again.
    let task = world.clone();
    world.background(Box::pin(async move {
        let _ = settle_keys(&task, start, at, keys).await; // whoever meets a lock tries again
    }));
    Ok(Some(at))
}

/// Commits or rolls back the primary; what it then says is what counts.
async fn end<W: World>(world: &W, lock: &LockInfo, at: Ts) -> Outcome<Ts> {
    let (start, keys) = (lock.start, vec![lock.primary.clone()]);
    let op = match at {
        0 => Op::Rollback(Rollback { start, keys }),
        commit => Op::Commit(Commit { start, commit, keys }),
    };
    match route::act(world, &lock.primary, op).await {
        Ok(_) => Ok(at),
        Err(Refusal::Committed(at)) => Ok(at),
        Err(Refusal::RolledBack(_)) => Ok(0),
        Err(e) => Err(e),
    }
}

async fn settle<W: World>(world: &W, lock: &LockInfo, at: Ts) -> Outcome<()> {
    settle_keys(world, lock.start, at, vec![(lock.key.clone(), ())]).await
}

async fn settle_keys<W: World>(world: &W, start: Ts, commit: Ts, keys: Vec<(Bytes, ())>) -> Outcome<()> {
    let op = |items: Vec<(Bytes, ())>| {
        Op::Resolve(Resolve { start, commit, keys: items.into_iter().map(|(k, ())| k).collect() })
    };
    route::spread(world, keys, op).await.map(|_| ())
}
