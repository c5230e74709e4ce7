//! Everything but watches: read, list, create, update, delete.

use super::{Api, BODY_BYTES_MAX, reply, route::Route};
use crate::{Draft, Key, ListPage, Raw, keys};
use axum::{extract::Request, response::Response};
use bytes::Bytes;
use http::{HeaderMap, Method};
use photon_auth::{Authorized, Verb};
use photon_base::{Code, Error, Name, Result, Uid};
use photon_kv::{Check, ReadAt};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Tries of a change, when others change the same object meanwhile.
const TRIES: u32 = 8;
/// Time for a body to arrive.
const BODY_TIME_MAX: photon_rt::time::Duration = photon_rt::time::Duration::from_secs(30);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    #[serde(default)]
    kind: Option<String>,
    meta: BodyMeta,
    #[serde(default)]
    spec: Value,
    /// Accepted because people send back what they read; never used.
    #[serde(default)]
    #[allow(dead_code, reason = "named so that it is a known field")]
    status: Value,
}

/// What a caller may say in `meta`; the rest of it is accepted when it was read before, and ignored.
#[derive(Deserialize)]
struct BodyMeta {
    name: Name,
    #[serde(default)]
    project: Option<Name>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    revision: u64,
    #[serde(default)]
    id: Option<Uid>,
}

#[derive(Serialize, Deserialize)]
struct Remembered {
    at: photon_base::Timestamp,
    request: Uid,
    status: u16,
    body: Value,
}

/// Serves a request that the gate has let through.
pub async fn serve(api: &Api, who: &Authorized, route: &Route, request: Request) -> Result<Response> {
    match route.verb {
        Verb::List => list(api, route).await,
        Verb::Get => {
            let o = existing(api, route).await?;
            Ok(reply(200, &o.to_value(route.kind.kind), Some(o.meta.revision)))
        }
        _ => change(api, who, route, request).await,
    }
}

async fn list(api: &Api, route: &Route) -> Result<Response> {
    let ListPage { items, revision, next } = api.store.list(&route.kind, &route.list).await?;
    let items: Vec<Value> = items.iter().map(|o| o.to_value(route.kind.kind)).collect();
    let body = json!({ "kind": format!("{}-list", route.kind.kind), "revision": revision,
                       "cursor": next.map(|c| c.encode()), "items": items });
    Ok(reply(200, &body, Some(revision)))
}

fn key_of(route: &Route) -> Result<Key> {
    let name = route.name.clone().ok_or_else(|| Error::internal("a route without a name"))?;
    Ok(Key::new(route.kind.kind, route.project.clone(), name))
}

async fn existing(api: &Api, route: &Route) -> Result<Raw> {
    let key = key_of(route)?;
    let hint = match &route.project {
        Some(p) => format!("photon {} list --project {p}", key.kind),
        None => format!("photon {} list", key.kind),
    };
    api.store.get_raw(&key).await?.ok_or_else(|| Error::not_found(&key).hint(hint))
}

fn header<'h>(headers: &'h HeaderMap, name: &str) -> Result<Option<&'h str>> {
    headers.get(name).map(|v| v.to_str().map_err(|_| Error::invalid(name, "is not text"))).transpose()
}

fn if_match(headers: &HeaderMap) -> Result<Option<u64>> {
    match header(headers, "if-match")? {
        None | Some("*") => Ok(None),
        Some(v) => v.trim_matches('"').parse().map(Some).map_err(|_| {
            Error::invalid("If-Match", "is not a revision").hint("send the ETag of the object as it was read")
        }),
    }
}

async fn change(api: &Api, who: &Authorized, route: &Route, request: Request) -> Result<Response> {
    let (parts, body) = request.into_parts();
    let body = {
        let _slot = api.bodies.take(&who.caller().identity)?;
        let read = axum::body::to_bytes(body, BODY_BYTES_MAX);
        photon_rt::time::timeout(BODY_TIME_MAX, "the request's body", read).await?.map_err(|_| {
            Error::new(Code::Invalid, "the body is incomplete or too large").why("at most 1 MiB is read")
        })?
    };
    let expected = if_match(&parts.headers)?;
    let memory = match header(&parts.headers, "idempotency-key")? {
        None => None,
        Some(k) if (1..=128).contains(&k.len()) && k.bytes().all(|b| b.is_ascii_graphic() && b != b'/') => {
            // Not the whole URI: of HTTP/2 it has the door's name, and the repetition may come through another.
            let path = parts.uri.path_and_query().map_or("", |p| p.as_str());
            let request = Uid(0).derive(&format!("{} {path} {expected:?} {body:?}", parts.method));
            Some((keys::idempotency_key(&who.caller().identity, k), request))
        }
        Some(_) => {
            return Err(Error::invalid(
                "Idempotency-Key",
                "must have 1 to 128 printable characters without '/'",
            ));
        }
    };
    let mut tries = 0;
    loop {
        if let Some((key, request)) = &memory
            && let Some(r) = recall(api, key, *request).await?
        {
            return Ok(r);
        }
        let attempt = attempt(api, who, route, &parts.method, &body, expected, memory.as_ref()).await;
        tries += 1;
        match attempt {
            // Somebody else changed the object (or remembered the same key) between our read and the
            // commit. If the request names a revision, the next try says that it is another now.
            Err(e) if e.raced && tries < TRIES => {}
            // The same request, sent before and given up by its caller, may have been done just now.
            Err(e) if matches!(e.code, Code::Conflict | Code::Exists | Code::NotFound) => {
                if let Some((key, request)) = &memory
                    && let Some(r) = recall(api, key, *request).await?
                {
                    return Ok(r);
                }
                return Err(e);
            }
            other => return other,
        }
    }
}

async fn recall(api: &Api, key: &Bytes, request: Uid) -> Result<Option<Response>> {
    let Some(v) = api.store.kv().get(key, ReadAt::Latest).await? else { return Ok(None) };
    let r: Remembered = serde_json::from_slice(&v.value)
        .map_err(|e| Error::internal("an idempotency record is damaged").why(e))?;
    if r.request != request {
        return Err(Error::new(Code::Conflict, "this Idempotency-Key was used for another request")
            .hint("use a new key"));
    }
    // The record was written by the very commit that it remembers.
    let mut body = r.body;
    body["meta"]["revision"] = v.modified.into();
    Ok(Some(reply(r.status, &body, Some(v.modified))))
}

fn parse_body(body: &[u8]) -> Result<Value> {
    serde_json::from_slice(body).map_err(|e| Error::invalid("", "the body is not JSON").why(e))
}

fn object_body(route: &Route, value: Value) -> Result<Body> {
    let b: Body = serde_path_to_error::deserialize(value)
        .map_err(|e| Error::invalid(e.path().to_string(), e.inner().to_string()))?;
    if b.kind.as_deref().is_some_and(|k| k != route.kind.kind) {
        return Err(Error::invalid("kind", format!("is not {:?}", route.kind.kind)));
    }
    if b.meta.project.is_some() && b.meta.project != route.project {
        return Err(Error::invalid("meta.project", "differs from the path's"));
    }
    if route.name.as_ref().is_some_and(|n| *n != b.meta.name) {
        return Err(Error::invalid("meta.name", "differs from the path's").why("objects can't be renamed"));
    }
    Ok(b)
}

async fn attempt(
    api: &Api,
    who: &Authorized,
    route: &Route,
    method: &Method,
    body: &[u8],
    expected: Option<u64>,
    memory: Option<&(Bytes, Uid)>,
) -> Result<Response> {
    let mut tx = api.store.begin_for(who);
    let (status, before, after) = match route.verb {
        Verb::Create => {
            let b = object_body(route, parse_body(body)?)?;
            let spec = if b.spec.is_null() { json!({}) } else { b.spec };
            let draft = Draft::new(b.meta.name, &spec).project(route.project.clone()).labels(b.meta.labels);
            let made = tx.create(&route.kind, draft).await?;
            (202, None, Some(made))
        }
        Verb::Update => {
            let old = existing(api, route).await?;
            let mut new = old.clone();
            if *method == Method::PUT {
                let b = object_body(route, parse_body(body)?)?;
                if b.meta.id.is_some_and(|id| id != old.meta.id) {
                    return Err(
                        Error::new(Code::Conflict, "another object has this name now").hint("read it again")
                    );
                }
                guard(&old, expected.or((b.meta.revision != 0).then_some(b.meta.revision)))?;
                (new.meta.labels, new.spec) = (b.meta.labels, b.spec);
            } else {
                guard(&old, expected)?;
                merge_patch(&mut new, &parse_body(body)?)?;
            }
            let replaced = tx.replace(&route.kind, &old, new).await?;
            (200, Some(old), replaced)
        }
        Verb::Delete => {
            let old = existing(api, route).await?;
            guard(&old, expected)?;
            let left = tx.delete(&route.kind, &old).await?;
            (202, Some(old), left)
        }
        v => return Err(Error::internal(format!("no handler for {}", v.as_str()))),
    };
    let changes = tx.changes();
    let object =
        after.as_ref().or(before.as_ref()).ok_or_else(|| Error::internal("a change without an object"))?;
    if route.dry_run {
        let shown = json!({ "dryRun": true, "changes": changes, "object": object.to_value(route.kind.kind) });
        tx.verify().await?;
        return Ok(reply(200, &shown, None));
    }
    if changes.is_empty() && route.verb == Verb::Update {
        let revision = before.as_ref().map_or(0, |o| o.meta.revision);
        let mut shown = object.to_value(route.kind.kind);
        shown["meta"]["revision"] = revision.into();
        return Ok(reply(200, &shown, Some(revision)));
    }
    let mut shown = object.to_value(route.kind.kind);
    if let Some((memory_key, request)) = memory {
        tx.check(
            Check::absent(memory_key.clone()),
            Error { raced: true, ..Error::new(Code::Conflict, "the same request is under way") },
        );
        let record =
            Remembered { at: photon_rt::time::wall(), request: *request, status, body: shown.clone() };
        let bytes =
            serde_json::to_vec(&record).map_err(|e| Error::internal("an answer can't be kept").why(e))?;
        tx.put(memory_key.clone(), bytes.into())?;
    }
    let revision = tx.commit().await?;
    shown["meta"]["revision"] = revision.into();
    Ok(reply(status, &shown, Some(revision)))
}

fn guard(old: &Raw, expected: Option<u64>) -> Result<()> {
    match expected {
        Some(r) if r != old.meta.revision => {
            Err(Error::new(Code::Conflict, "the object changed since it was read")
                .why(format!("it is at revision {}, the request expects {r}", old.meta.revision))
                .hint("read it again, then change it"))
        }
        _ => Ok(()),
    }
}

/// RFC 7396 on `meta.labels` and `spec`; other fields are refused.
fn merge_patch(object: &mut Raw, patch: &Value) -> Result<()> {
    let fields = patch.as_object().ok_or_else(|| Error::invalid("", "a merge patch is a JSON object"))?;
    for (k, v) in fields {
        match (k.as_str(), v) {
            ("spec", v) => merge(&mut object.spec, v),
            ("meta", Value::Object(m)) => {
                for (k, v) in m {
                    if k != "labels" {
                        return Err(Error::invalid(format!("meta.{k}"), "can't be changed"));
                    }
                    let mut labels = serde_json::to_value(&object.meta.labels).unwrap_or_default();
                    merge(&mut labels, v);
                    object.meta.labels = serde_json::from_value(labels)
                        .map_err(|e| Error::invalid("meta.labels", "are not a map of text to text").why(e))?;
                }
            }
            _ => {
                let shown: String = k.chars().take(40).collect();
                return Err(Error::invalid(shown, "can't be changed").hint("change spec or meta.labels"));
            }
        }
    }
    Ok(())
}

fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(p) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    if let Value::Object(t) = target {
        for (k, v) in p {
            if v.is_null() {
                t.shift_remove(k);
            } else {
                merge(t.entry(k.clone()).or_insert(Value::Null), v);
            }
        }
    }
}
