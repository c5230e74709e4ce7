//! Watches as server-sent events. Each event carries its revision, and `last` when it is the last of
//! that revision: a client that reconnects with `?revision=` of its last complete revision misses nothing and
//! sees nothing twice.

use super::{Api, route::Route};
use crate::{keys, parse_key, store::decode};
use axum::response::{
    IntoResponse, Response,
    sse::{Event, KeepAlive, Sse},
};
use futures::{StreamExt, stream};
use photon_auth::Authorized;
use photon_base::{Error, Result};
use photon_kv::{Change, Direction, Events, KvResult, ReadAt};
use serde_json::json;
use std::{convert::Infallible, time::Duration};

/// Starts a watch: `{"type":"put","object":…}`, `{"type":"delete","project":…,"name":…}`, and
/// `{"type":"bookmark"}` when everything up to a revision has been sent. Objects that stop to match the
/// selector are sent as deleted. An `error` event with a problem ends the stream.
///
/// Permission is asked for again before anything is sent: whoever loses it sees nothing more. A watch
/// from now begins with a bookmark, so that it can be resumed before anything has happened.
pub async fn serve(api: &Api, who: Authorized, route: &Route) -> Result<Response> {
    let slot = api.watches.take(&who.caller().identity)?;
    let range = keys::kind_range(route.kind.kind, route.project.as_ref(), route.kind.scope);
    let (seen, begin) = match route.seen {
        0 => {
            let now = api.store.kv().scan(range.clone(), ReadAt::Latest, 0, Direction::Forward).await?;
            (now.revision, Some(Ok(Events { revision: now.revision, changes: Vec::new() })))
        }
        seen => (seen, None),
    };
    let from = seen
        .checked_add(1)
        .filter(|r| i64::try_from(*r).is_ok())
        .ok_or_else(|| Error::invalid("revision", "is no revision of this store"))?;
    let (kind, selector) = (route.kind.kind, route.list.selector.clone());
    let all = stream::iter(begin).chain(api.store.kv().watch(range, from));
    let events = stream::unfold(Some((all.boxed(), who, slot)), move |state| {
        let selector = selector.clone();
        async move {
            let (mut all, who, slot) = state?;
            let item = all.next().await?;
            if let Err(e) = who.still().await {
                return Some((vec![failure(&e)], None));
            }
            Some((encode(kind, &selector, item), Some((all, who, slot))))
        }
    });
    let events = events.flat_map(stream::iter);
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(Duration::from_secs(15))).into_response())
}

fn failure(e: &Error) -> Result<Event, Infallible> {
    let data = json!({ "code": e.code, "title": e.what, "detail": e.why, "hint": e.hint });
    Ok(Event::default().event("error").data(data.to_string()))
}

fn encode(kind: &str, selector: &crate::Selector, item: KvResult<Events>) -> Vec<Result<Event, Infallible>> {
    let batch = match item {
        Ok(b) => b,
        Err(e) => return vec![failure(&Error::from(e))],
    };
    let revision = batch.revision;
    let mut out: Vec<serde_json::Value> = Vec::new();
    for change in &batch.changes {
        // What the selector rules out by its name alone was never shown.
        let gone = |key: &[u8]| {
            let (_, project, name) = parse_key(key)?;
            selector
                .may_match(project.as_ref(), &name)
                .then(|| json!({ "type": "delete", "revision": revision, "project": project, "name": name }))
        };
        match change {
            Change::Put(v) => match decode(v) {
                Ok(o) if selector.matches(&o) => {
                    out.push(json!({ "type": "put", "revision": revision, "object": o.to_value(kind) }));
                }
                Ok(_) => out.extend(gone(&v.key)),
                Err(e) => tracing::error!(error = %e, "a watched record is damaged"),
            },
            Change::Delete { key, .. } => out.extend(gone(key)),
        }
    }
    if out.is_empty() {
        out.push(json!({ "type": "bookmark", "revision": revision }));
    }
    let end = out.len() - 1;
    // `last` marks the end of a revision: whoever resumes from it has seen all of it.
    let event = |(i, mut v): (usize, serde_json::Value)| {
        v["last"] = (i == end).into();
        Ok(Event::default().data(v.to_string()))
    };
    out.into_iter().enumerate().map(event).collect()
}
