//! What members ask one another: a few of etcd's own calls, as gRPC on the port on which they also speak
//! Raft. The first bytes of a connection tell which of the two it is. Whoever is let in there is a member
//! (the listener's TLS sees to it), so that a call counts as an operator's; but only those below are served.

use super::{
    compare,
    connect::{AddressBook, Connect},
};
use crate::store::Inner;
use axum::body::Body;
use http::{Request, Response, StatusCode};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use photon_raft::{
    NodeId,
    peers::{Dial, Dialing},
};
use photon_rt::time::Duration;
use std::{
    collections::HashMap,
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError, Weak},
};
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::transport::{Channel, Endpoint};
use tower::ServiceExt;

/// How a connection for calls begins: with HTTP/2's preface.
pub(super) const PREFACE: &[u8; 4] = b"PRI ";

/// What members may call.
const SERVED: [&str; 6] = [
    "/etcdserverpb.Lease/LeaseKeepAlive",
    "/etcdserverpb.Lease/LeaseTimeToLive",
    "/etcdserverpb.Cluster/MemberList",
    "/etcdserverpb.Cluster/MemberAdd",
    "/etcdserverpb.Cluster/MemberRemove",
    "/etcdserverpb.Maintenance/HashKV",
];

/// Among a request's extensions: a member asks for itself, so that it is not to be passed on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FromMember;

/// How long a silent connection is kept before it is tried.
const ALIVE_EVERY: Duration = Duration::from_secs(2);
const ALIVE_MAX: Duration = Duration::from_secs(3);

/// Connections for calls to other members.
pub(crate) struct Asks {
    book: Arc<AddressBook>,
    channels: Mutex<HashMap<NodeId, Channel>>,
}

impl Asks {
    pub(crate) fn new(book: Arc<AddressBook>) -> Asks {
        Asks { book, channels: Mutex::default() }
    }

    /// Calls to a member. Connects when it is used, anew when the connection broke.
    pub(crate) fn channel(&self, to: NodeId) -> Channel {
        let mut all = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() > 256 {
            all.clear(); // far more than there can be members: most have gone
        }
        let book = &self.book;
        all.entry(to).or_insert_with(|| channel(book.clone(), to)).clone()
    }
}

fn channel(book: Arc<AddressBook>, to: NodeId) -> Channel {
    over(move || book.dial(to))
}

/// Calls to whoever is at a peer URL, by one that is no member yet.
pub(super) fn channel_to(connect: Arc<dyn Connect>, url: String) -> Channel {
    over(move || connect.connect(&url))
}

fn over(dial: impl Fn() -> Dialing + Send + 'static) -> Channel {
    let connect = tower::service_fn(move |_: http::Uri| {
        let dialing = dial();
        async move { dialing.await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://member")
        .http2_keep_alive_interval(ALIVE_EVERY)
        .keep_alive_timeout(ALIVE_MAX)
        .keep_alive_while_idle(false)
        .connect_with_connector_lazy(connect)
}

/// Serves one connection of a member to its end.
pub(super) async fn serve(
    inner: Weak<Inner>,
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> Result<(), String> {
    let service = service_fn(move |r: Request<Incoming>| answer(inner.upgrade(), r));
    hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(1024)
        .max_header_list_size(64 << 10)
        .keep_alive_interval(Some(Duration::from_secs(30)))
        .serve_connection(TokioIo::new(io), service)
        .await
        .map_err(|e| e.to_string())
}

async fn answer(inner: Option<Arc<Inner>>, r: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let status = |code: StatusCode| {
        let mut r = Response::new(Body::empty());
        *r.status_mut() = code;
        Ok(r)
    };
    let Some(inner) = inner else { return status(StatusCode::SERVICE_UNAVAILABLE) };
    if r.uri().path() == compare::DIFFERS {
        let Some((at, hash)) = r.uri().query().and_then(compare::parse) else {
            return status(StatusCode::BAD_REQUEST);
        };
        return status(match (crate::ChainFire { inner }).differs(at, hash).await {
            Ok(()) => StatusCode::OK,
            Err(_) => StatusCode::SERVICE_UNAVAILABLE,
        });
    }
    if !SERVED.contains(&r.uri().path()) {
        return status(StatusCode::NOT_FOUND);
    }
    let mut r = r.map(Body::new);
    r.extensions_mut().insert(crate::Scope::Operator);
    r.extensions_mut().insert(FromMember);
    crate::wire::services(&crate::ChainFire { inner }).oneshot(r).await
}
