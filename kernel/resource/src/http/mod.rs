//! The API of every kind over HTTP. One dispatcher: parse the route, ask the gate, act on the store,
//! answer with JSON or a problem document (RFC 9457).
//!
//! ```text
//! GET    /v1                                   the kinds
//! GET    /v1/{plural}                          list (of every project, for kinds that live in projects)
//! GET    /v1/projects/{project}/{plural}       list; ?limit= ?cursor= ?labels= ?fields= ?watch=true&revision=
//! POST   …/{plural}                            create {meta:{name,labels},spec}; ?dryRun=true; Idempotency-Key
//! GET    …/{plural}/{name}                     read; ETag is the revision
//! PUT    …/{plural}/{name}                     replace labels and spec; If-Match
//! PATCH  …/{plural}/{name}                     merge patch (RFC 7396) of meta.labels and spec; If-Match
//! DELETE …/{plural}/{name}                     remove; If-Match
//! GET    …/{plural}/{name}/{sub}               a subresource that a service serves itself (console)
//! ```

mod act;
mod problem;
mod route;
mod slots;
#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) mod tests_support;
mod watch;

pub use problem::problem;
pub use route::{Route, parse_route};

use crate::Store;
use async_trait::async_trait;
use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    response::{IntoResponse, Response},
    routing::any,
};
use photon_auth::{Action, Authorized, Caller, Gate, Verb};
use photon_base::{Code, Error, Result};
use slots::Slots;
use std::{collections::HashMap, sync::Arc};

/// Largest request body and stored object, in bytes.
pub const BODY_BYTES_MAX: usize = 1 << 20;
/// Most watches at a time, and of one caller.
const WATCHES_MAX: usize = 1024;
const WATCHES_OF_ONE_MAX: usize = 256;
/// Most bodies read at a time, and of one caller: a body takes up to 1 MiB while it arrives.
const BODIES_MAX: usize = 256;
const BODIES_OF_ONE_MAX: usize = 64;

/// A subresource that its service serves itself.
#[async_trait]
pub trait Connect: Send + Sync + 'static {
    /// Answers the request; permission was checked.
    async fn connect(&self, who: Authorized, request: Request) -> Result<Response>;
}

/// Subresources by kind and name.
type Connects = HashMap<(&'static str, &'static str), (Verb, Arc<dyn Connect>)>;

/// The API of a store's kinds.
#[derive(Clone)]
pub struct Api {
    store: Store,
    gate: Gate,
    connects: Arc<Connects>,
    watches: Slots,
    bodies: Slots,
    only: Option<&'static str>,
}

impl Api {
    /// Serves `store` to those whom `gate` lets through.
    pub fn new(store: Store, gate: Gate) -> Api {
        Api {
            store,
            gate,
            connects: Arc::default(),
            watches: Slots::new("watches", WATCHES_MAX, WATCHES_OF_ONE_MAX),
            bodies: Slots::new("requests", BODIES_MAX, BODIES_OF_ONE_MAX),
            only: None,
        }
    }

    /// Adds a subresource of `kind`, guarded by `verb`.
    pub fn connect(mut self, kind: &'static str, sub: &'static str, verb: Verb, c: Arc<dyn Connect>) -> Api {
        let mut map = (*self.connects).clone();
        map.insert((kind, sub), (verb, c));
        self.connects = Arc::new(map);
        self
    }

    /// The same API with the kinds of one service only, for that service's own port.
    pub fn only(mut self, service: &'static str) -> Api {
        self.only = Some(service);
        self
    }

    /// The routes, to be merged into a listener's.
    pub fn router(self) -> Router {
        let openapi = crate::openapi::document(self.store.registry());
        let kinds = crate::openapi::kinds(self.store.registry());
        Router::new()
            .route("/openapi.json", describe(openapi))
            .route("/v1", describe(kinds))
            .route("/v1/{*path}", any(dispatch))
            .with_state(self)
    }
}

/// A document for everybody who has an identity.
fn describe(document: serde_json::Value) -> axum::routing::MethodRouter<Api> {
    axum::routing::get(move |request: Request| async move {
        match identified(&request) {
            Ok(()) => axum::Json(document).into_response(),
            Err(e) => problem(&e),
        }
    })
}

fn identified(request: &Request) -> Result<()> {
    request.extensions().get::<Caller>().map(|_| ()).ok_or_else(nobody)
}

fn nobody() -> Error {
    Error::new(Code::Unauthenticated, "this call needs an identity")
        .hint("photon login; or send Authorization: Bearer TOKEN, or use a client certificate")
}

async fn dispatch(State(api): State<Api>, request: Request) -> Response {
    match handle(&api, request).await {
        Ok(r) => r,
        Err(e) => problem(&e),
    }
}

async fn handle(api: &Api, mut request: Request) -> Result<Response> {
    let caller = request.extensions_mut().remove::<Caller>().ok_or_else(nobody)?;
    let query = request.uri().query().unwrap_or_default();
    let route = parse_route(api.store.registry(), request.method(), request.uri().path(), query)?;
    if api.only.is_some_and(|s| s != route.kind.service) {
        return Err(Error::new(Code::NotFound, format!("{} are not served on this port", route.kind.plural))
            .hint("use the front door (8443)"));
    }
    let (verb, connect) = match &route.sub {
        None => (route.verb, None),
        Some(sub) => {
            let found = api.connects.iter().find(|((k, s), _)| *k == route.kind.kind && s == sub);
            let (_, (verb, c)) =
                found.ok_or_else(|| Error::not_found(format!("{} of {}", sub, route.kind.plural)))?;
            (*verb, Some(c.clone()))
        }
    };
    if route.kind.system && !verb.reads() && caller.identity.kind != photon_auth::Kind::Service {
        return Err(Error::new(Code::Denied, format!("only the cloud itself writes {}", route.kind.plural))
            .hint(format!("they follow from other objects; see: photon explain {}", route.kind.kind)));
    }
    let action = Action { kind: route.kind.kind, verb };
    let who = api.gate.check(&caller, action, route.target()).await?;
    if let Some(c) = connect {
        return c.connect(who, request).await;
    }
    match verb {
        Verb::Watch => watch::serve(api, who, &route).await,
        _ => act::serve(api, &who, &route, request).await,
    }
}

/// JSON with a status and the revision as ETag.
fn reply(status: u16, body: &serde_json::Value, revision: Option<u64>) -> Response {
    let mut r = Response::new(Body::from(body.to_string()));
    *r.status_mut() = http::StatusCode::from_u16(status).unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR);
    let h = r.headers_mut();
    h.insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    if let Some(rev) = revision
        && let Ok(v) = http::HeaderValue::from_str(&format!("\"{rev}\""))
    {
        h.insert(http::header::ETAG, v);
    }
    r.into_response()
}
