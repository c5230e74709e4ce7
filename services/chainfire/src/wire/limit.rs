//! tonic's refusal of a message that is too large, in the words of the library that etcd uses.

use http::{HeaderMap, HeaderValue};

/// Rewrites only answers that consist of such a refusal; they are headers without a body.
pub async fn in_etcds_words<B>(mut response: http::Response<B>) -> http::Response<B> {
    let headers: &mut HeaderMap = response.headers_mut();
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
