//! Bodies that come packed with gzip, and answers that go so.

use axum::{
    body::{Body, HttpBody, to_bytes},
    extract::Request,
    http::{HeaderValue, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use flate2::{Compression, write::GzEncoder};
use photon_rt::task::blocking;
use std::io::Write;

/// Smaller answers go as they are, bytes.
const PACK_MIN: u64 = 1024;

/// Packs answers whose length is known for those who ask for it.
pub(super) async fn answers(request: Request, next: Next) -> Response {
    let wanted = request.headers().get(header::ACCEPT_ENCODING).and_then(|v| v.to_str().ok());
    let wanted = wanted.is_some_and(|v| v.split(',').any(accepts_gzip));
    let mut response = next.run(request).await;
    response.headers_mut().append(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    let size = response.body().size_hint().exact().unwrap_or(0);
    if !wanted || size < PACK_MIN || response.headers().contains_key(header::CONTENT_ENCODING) {
        return response;
    }
    let (mut head, body) = response.into_parts();
    let Ok(bytes) = to_bytes(body, usize::try_from(size).unwrap_or(usize::MAX)).await else {
        return axum::http::StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    let packed = blocking(move || {
        let mut e = GzEncoder::new(Vec::with_capacity(bytes.len() / 4), Compression::fast());
        match e.write_all(&bytes).and_then(|()| e.finish()) {
            Ok(packed) => (packed, true),
            Err(_) => (bytes.to_vec(), false), // memory does not fail; as it came then
        }
    });
    let (bytes, packed) = packed.await;
    if packed {
        head.headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    head.headers.remove(header::CONTENT_LENGTH);
    Response::from_parts(head, Body::from(bytes))
}

/// `gzip`, or `gzip;q=0.5`, not `gzip;q=0`.
fn accepts_gzip(one: &str) -> bool {
    let mut parts = one.split(';').map(str::trim);
    let named = matches!(parts.next(), Some("gzip" | "*"));
    let refused = parts.any(|p| p.strip_prefix("q=").is_some_and(|q| q.parse() == Ok(0.0)));
    named && !refused
}

#[cfg(test)]
mod tests {
    use super::accepts_gzip;

    #[test]
    fn a_weight_of_zero_refuses() {
        for (one, want) in
            [("gzip", true), (" gzip;q=0.5", true), ("gzip; q=0", false), ("*", true), ("br", false)]
        {
            assert_eq!(accepts_gzip(one.trim()), want, "{one}");
        }
    }
}
