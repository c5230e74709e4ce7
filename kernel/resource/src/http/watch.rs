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
use photon_base::{Code, Error, Result};
use photon_kv::{Change, Events, KvResult};
use serde_json::json;
use std::{convert::Infallible, time::Duration};

/// Starts a watch: `{"type":"put","object":…}`, `{"type":"delete","project":…,"name":…}`, and
/// `{"type":"bookmark"}` when everything up to a revision has been sent. Objects that stop to match the
/// selector are sent as deleted. An `error` event with a problem ends the stream.
pub async fn serve(api: &Api, route: &Route) -> Result<Response> {
    let permit = api.watches.clone().try_acquire_owned().map_err(|_| {
        Error::new(Code::Exhausted, "too many watches are open")
            .hint("close some, or watch through one connection")
    })?;
    let range = keys::kind_range(route.kind.kind, route.project.as_ref(), route.kind.scope);
    let from = if route.seen == 0 { 0 } else { route.seen + 1 };
    let (kind, selector) = (route.kind.kind, route.list.selector.clone());
    let events = api.store.kv().watch(range, from).flat_map(move |item| {
        let _held_while_the_stream_lives = &permit;
        stream::iter(encode(kind, &selector, item))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(Duration::from_secs(15))).into_response())
}

fn encode(kind: &str, selector: &crate::Selector, item: KvResult<Events>) -> Vec<Result<Event, Infallible>> {
    let batch = match item {
        Ok(b) => b,
        Err(e) => {
            let e = Error::from(e);
            let data = json!({ "code": e.code, "title": e.what, "detail": e.why, "hint": e.hint });
            return vec![Ok(Event::default().event("error").data(data.to_string()))];
        }
    };
    let revision = batch.revision;
    let mut out: Vec<serde_json::Value> = Vec::new();
    for change in &batch.changes {
        let gone = |key: &[u8]| {
            parse_key(key).map(|(_, project, name)| {
                json!({ "type": "delete", "revision": revision, "project": project, "name": name })
            })
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
