//! Bodies that are refused unread. Over HTTP/2 a server that answers before a request has ended says so by
//! RST_STREAM after the answer (RFC 9113, section 8.1), and clients forget the answer over it (curl 7.88 shows an
//! error 92 instead of the 403). So what is little is read to its end first, and thrown away.

use axum::body::{Body, Bytes, HttpBody};
use http::{Request, Version};
use hyper::body::{Frame, Incoming, SizeHint};
use photon_rt::time::{Duration, timeout};
use std::{
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll},
};
use tokio::sync::oneshot;

/// Most bytes that are read for nothing, and longest time.
const BYTES_MAX: usize = 256 << 10;
const TIME_MAX: Duration = Duration::from_secs(1);

/// A body that comes back when it is dropped before its end.
struct Lent {
    body: Option<Incoming>,
    back: Option<oneshot::Sender<Incoming>>,
}

impl HttpBody for Lent {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut self.body {
            Some(body) => Pin::new(body).poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map(HttpBody::size_hint).unwrap_or_default()
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let (Some(body), Some(back)) = (self.body.take(), self.back.take())
            && !body.is_end_stream()
        {
            let _ = back.send(body); // nobody waits for it any more: the connection is gone
        }
    }
}

/// The rest of a body, should it come back.
#[derive(Default)]
pub(crate) struct Rest(Option<oneshot::Receiver<Incoming>>);

/// Lends the body of `request` to whoever answers it.
pub(crate) fn lend(request: Request<Incoming>) -> (Request<Body>, Rest) {
    if request.version() != Version::HTTP_2 || request.body().is_end_stream() {
        return (request.map(Body::new), Rest(None));
    }
    let (back, rest) = oneshot::channel();
    let lent = request.map(|body| Body::new(Lent { body: Some(body), back: Some(back) }));
    (lent, Rest(Some(rest)))
}

impl Rest {
    /// Reads what nobody has read, if it is little and comes soon.
    pub(crate) async fn drain(self) {
        let Some(mut body) = self.0.and_then(|mut rest| rest.try_recv().ok()) else { return };
        let drain = async {
            let mut left = BYTES_MAX;
            while let Some(Ok(frame)) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
                match left.checked_sub(frame.data_ref().map_or(0, Bytes::len)) {
                    Some(less) => left = less,
                    None => return,
                }
            }
        };
        let _ = timeout(TIME_MAX, "the rest of a request", drain).await; // then the client hears it the hard way
    }
}
