//! All gRPC services as one. A match on the path, because it is on the way of every request: a router
//! with patterns takes several allocations for each.

use super::{
    Api, MAX_MESSAGE,
    etcdserverpb::*,
    led::{Wish, wish},
    v3electionpb::election_server::ElectionServer,
    v3lockpb::lock_server::LockServer,
};
use axum::body::Body;
use http::{HeaderValue, Request, Response};
use photon_serve::listen::Answer;
use std::{
    convert::Infallible,
    task::{Context, Poll},
};
use tonic::Status;
use tower::Service;

/// The services.
#[derive(Clone)]
pub struct Grpc {
    kv: kv_server::KvServer<Api>,
    watch: watch_server::WatchServer<Api>,
    lease: lease_server::LeaseServer<Api>,
    cluster: cluster_server::ClusterServer<Api>,
    maintenance: maintenance_server::MaintenanceServer<Api>,
    api: Api,
    auth: auth_server::AuthServer<Api>,
    lock: LockServer<Api>,
    election: ElectionServer<Api>,
}

impl Grpc {
    /// Of one ChainFire.
    pub(super) fn new(api: Api) -> Grpc {
        Grpc {
            kv: kv_server::KvServer::new(api.clone()).max_decoding_message_size(MAX_MESSAGE),
            watch: watch_server::WatchServer::new(api.clone()).max_decoding_message_size(MAX_MESSAGE),
            lease: lease_server::LeaseServer::new(api.clone()).max_decoding_message_size(MAX_MESSAGE),
            cluster: cluster_server::ClusterServer::new(api.clone()).max_decoding_message_size(MAX_MESSAGE),
            maintenance: maintenance_server::MaintenanceServer::new(api.clone())
                .max_decoding_message_size(MAX_MESSAGE),
            lock: LockServer::new(api.clone()).max_decoding_message_size(MAX_MESSAGE),
            election: ElectionServer::new(api.clone()).max_decoding_message_size(MAX_MESSAGE),
            auth: auth_server::AuthServer::new(api.clone()).max_decoding_message_size(MAX_MESSAGE),
            api,
        }
    }
}

impl Service<Request<Body>> for Grpc {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        self.answer(request)
    }
}

impl Grpc {
    /// Answers a request. (Only the service that it is for is cloned.)
    pub(super) fn answer(&self, request: Request<Body>) -> Answer {
        let service = request.uri().path().strip_prefix('/').and_then(|p| p.split_once('/'));
        if request.uri().path() == "/etcdserverpb.Maintenance/Downgrade" {
            let api = self.api.clone();
            return Box::pin(async move { Ok(api.downgrade(request).await.into_http()) });
        }
        let wish = wish(&request);
        if wish != Wish::Any
            && let Some(refused) = self.api.leaderless()
        {
            return Box::pin(std::future::ready(Ok(refused)));
        }
        let answer = match service.and_then(|(name, _)| name.split_once('.')) {
            Some(("etcdserverpb", "KV")) => self.kv.clone().call(request),
            Some(("etcdserverpb", "Watch")) => self.watch.clone().call(request),
            Some(("etcdserverpb", "Lease")) => self.lease.clone().call(request),
            Some(("etcdserverpb", "Cluster")) => self.cluster.clone().call(request),
            Some(("etcdserverpb", "Maintenance")) => self.maintenance.clone().call(request),
            Some(("etcdserverpb", "Auth")) => self.auth.clone().call(request),
            Some(("v3lockpb", "Lock")) => self.lock.clone().call(request),
            Some(("v3electionpb", "Election")) => self.election.clone().call(request),
            _ => return Box::pin(std::future::ready(Ok(unknown(&request)))),
        };
        if wish == Wish::StayLed {
            let api = self.api.clone();
            return Box::pin(async move { Ok(api.while_led(in_etcds_words(answer.await?).map(Body::new))) });
        }
        Box::pin(async move { Ok(in_etcds_words(answer.await?).map(Body::new)) })
    }
}

/// True for what asks in gRPC.
pub(super) fn is_grpc(request: &Request<Body>) -> bool {
    let kind = request.headers().get(http::header::CONTENT_TYPE);
    kind.is_some_and(|t| t.as_bytes().starts_with(b"application/grpc"))
}

/// Another service of etcd's, or no gRPC at all.
fn unknown(request: &Request<Body>) -> Response<Body> {
    if is_grpc(request) {
        return Status::unimplemented("unknown service").into_http();
    }
    let mut r = Response::new(Body::from("404 page not found\n"));
    *r.status_mut() = http::StatusCode::NOT_FOUND;
    r
}

/// tonic's refusal of a message that is too large, in the words of the library that etcd uses. Such
/// an answer consists of headers only.
fn in_etcds_words<B>(mut response: Response<B>) -> Response<B> {
    let headers = response.headers_mut();
    let too_large = headers.get("grpc-status").is_some_and(|s| s == "11")
        && headers
            .get("grpc-message")
            .is_some_and(|m| m.as_bytes().starts_with(b"Error,%20decoded%20message%20length"));
    if too_large {
        headers.insert("grpc-status", HeaderValue::from_static("8"));
        headers.insert("grpc-message", HeaderValue::from_static("grpc: received message larger than max"));
    }
    response
}
