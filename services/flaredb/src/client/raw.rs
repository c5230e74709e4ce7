//! Raw keys: one version each, conditions and writes within a region.

use super::{
    Request, Response, World,
    route::{self, Place},
};
use crate::{
    Refusal,
    key::{self, Mode},
    model::{
        Answer, Op,
        command::{RawCheck, RawCommit, RawWrite, Want},
        limits::MAX_ROWS,
        read::{Project, Query, Row},
    },
    refusal::Outcome,
};
use bytes::Bytes;

/// How often a write is sent that surely was not done.
const ATTEMPTS: u32 = 30;

/// The newest value of a key, and its version.
pub async fn get<W: World>(world: &W, key: &Bytes) -> Outcome<Option<(Bytes, u64)>> {
    key::check(Mode::Raw, key)?;
    match route::ask(world, Place::Of(key), |_| Request::RawGet(key.clone())).await? {
        Response::Value(v) => Ok(v),
        _ => Err(Refusal::Malformed("an answer to another question".into())),
    }
}

/// Writes all or nothing, if all conditions hold; all keys must lie in one region, as those of a row group do. The
/// version of what was written. [`Refusal::Unknown`] when the answer was lost: it is not sent again then, since
/// somebody may have written after it.
pub async fn commit<W: World>(world: &W, checks: Vec<RawCheck>, writes: Vec<RawWrite>) -> Outcome<u64> {
    let first = checks.iter().map(|c| &c.key).chain(writes.iter().map(|w| &w.key)).next();
    let first = first.ok_or_else(|| Refusal::Malformed("nothing to do".into()))?.clone();
    key::check(Mode::Raw, &first)?;
    let mut last = Refusal::Overloaded;
    for attempt in 0..ATTEMPTS {
        if attempt > 0 {
            route::back_off(world, attempt).await;
        }
        let sent = async {
            let region = world.locate(&first).await.map_err(|e| (None, e))?;
            let span = region.span();
            let keys = checks.iter().map(|c| &c.key).chain(writes.iter().map(|w| &w.key));
            if keys.into_iter().any(|k| !span.contains(k)) {
                // Nothing was sent; and what holds the keys together, a row group, would not be cut.
                return Err((Some(region.clone()), Refusal::OutOfRange(region.id)));
            }
            let op = Op::Raw(RawCommit { checks: checks.clone(), writes: writes.clone() });
            world.ask(&region, Request::Do(op)).await.map_err(|e| (Some(region), e))
        };
        match sent.await {
            Ok(Response::Done(Answer::Written(version))) => return Ok(version),
            Ok(_) => return Err(Refusal::Malformed("an answer to another question".into())),
            Err((Some(_), e @ Refusal::Unknown(_))) => return Err(e),
            Err((region, e)) if e.is_about_routing() => {
                region.iter().for_each(|r| world.forget(r));
                last = e;
            }
            Err((_, e)) => return Err(e),
        }
    }
    Err(last)
}

/// Sets a key.
pub async fn put<W: World>(world: &W, key: Bytes, value: Bytes) -> Outcome<u64> {
    commit(world, Vec::new(), vec![RawWrite { key, value: Some(value) }]).await
}

/// Removes a key. `None` when there was none.
pub async fn delete<W: World>(world: &W, key: Bytes) -> Outcome<Option<u64>> {
    let there = RawCheck { key: key.clone(), want: Some(Want::Present(true)) };
    match commit(world, vec![there], vec![RawWrite { key, value: None }]).await {
        Ok(version) => Ok(Some(version)),
        Err(Refusal::CheckFailed { .. }) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Sets a key, or removes it if there is no value, when it is as wanted: [`Refusal::CheckFailed`] says how it is.
pub async fn cas<W: World>(world: &W, key: Bytes, want: Want, value: Option<Bytes>) -> Outcome<u64> {
    let check = RawCheck { key: key.clone(), want: Some(want) };
    commit(world, vec![check], vec![RawWrite { key, value }]).await
}

/// Up to `query.limit` rows over as many regions as it takes: pages are not of one moment. Filters and columns
/// are applied where the data is. Not for counts.
pub async fn scan<W: World>(world: &W, query: &Query) -> Outcome<Vec<Row>> {
    if query.span.is_empty() {
        return Err(Refusal::InvertedRange);
    }
    if query.project == Project::Count || query.limit == 0 || query.limit > MAX_ROWS {
        return Err(Refusal::TooMany { what: "rows", n: query.limit, limit: MAX_ROWS });
    }
    let backward = query.direction == photon_kv::Direction::Backward;
    let mut left = query.span.clone();
    let mut rows = Vec::new();
    while rows.len() < query.limit && !left.is_empty() {
        let clip = std::sync::Mutex::new(left.clone());
        let place = if backward { Place::Below(&left.end) } else { Place::Of(&left.start) };
        let answer = route::ask(world, place, |region| {
            *clip.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = region.span();
            let span = left.within(&region.span());
            Request::RawScan(Query { span, limit: query.limit - rows.len(), ..query.clone() })
        });
        let Response::Page(page) = answer.await? else {
            return Err(Refusal::Malformed("an answer to another question".into()));
        };
        let clip = clip.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        rows.extend(page.rows);
        match (backward, page.rest) {
            (false, Some(rest)) => left.start = rest.start,
            (true, Some(rest)) => left.end = rest.end,
            (false, None) if clip.end.is_empty() => break,
            (false, None) => left.start = clip.end,
            (true, None) if clip.start <= left.start => break,
            (true, None) => left.end = clip.start,
        }
    }
    Ok(rows)
}
