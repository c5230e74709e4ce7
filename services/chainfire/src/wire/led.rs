//! Requests that want a leader (`hasleader: true`, etcd's `WithRequireLeader`; Kubernetes asks so for its
//! watches): refused by a member that knows none, and streams end when there was none for three election
//! timeouts, so that a client whose member is cut off goes to another one instead of hearing nothing.

use super::Api;
use crate::EtcdError;
use axum::body::{Body, Bytes, HttpBody};
use http::{Request, Response};
use hyper::body::{Frame, SizeHint};
use photon_rt::time::timeout;
use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tonic::Status;

/// Calls that go on for as long as the client likes.
const STREAMS: [&str; 3] =
    ["/etcdserverpb.Watch/Watch", "/etcdserverpb.Lease/LeaseKeepAlive", "/v3electionpb.Election/Observe"];

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    /// Any member will do.
    Any,
    /// A leader now.
    Led,
    /// A leader as long as it lasts.
    StayLed,
}

/// What `request` asks for.
pub(super) fn wish(request: &Request<Body>) -> Wish {
    let asked = request.headers().get("hasleader").is_some_and(|v| v == "true");
    match asked {
        false => Wish::Any,
        true if STREAMS.contains(&request.uri().path()) => Wish::StayLed,
        true => Wish::Led,
    }
}

fn no_leader() -> Status {
    EtcdError::NoLeader.into()
}

impl Api {
    /// The refusal of a member that knows no leader.
    pub(super) fn leaderless(&self) -> Option<Response<Body>> {
        self.0.raft().leader.is_none().then(|| no_leader().into_http())
    }

    /// An answer that ends once there was no leader for three election timeouts, as etcd's do.
    pub(super) fn while_led(&self, answer: Response<Body>) -> Response<Body> {
        let limit = 3 * self.0.inner.config.election;
        let mut status = self.0.inner.group.watch_leadership();
        let lost = async move {
            while status.wait_for(|s| s.leader.is_none()).await.is_ok() {
                if timeout(limit, "a leader", status.wait_for(|s| s.leader.is_some())).await.is_err() {
                    return;
                }
            }
        };
        answer.map(|body| Body::new(Led { body: Some(body), lost: Box::pin(lost) }))
    }
}

/// A body that ends early with [`EtcdError::NoLeader`].
struct Led {
    /// None when it has ended so.
    body: Option<Body>,
    lost: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl HttpBody for Led {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        if let Poll::Ready(frame) = Pin::new(body).poll_frame(cx) {
            return Poll::Ready(frame);
        }
        ready!(self.lost.as_mut().poll(cx));
        self.body = None;
        let trailers = no_leader().into_http::<Body>().into_parts().0.headers;
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}
