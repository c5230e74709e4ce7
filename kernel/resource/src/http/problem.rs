//! Errors as problem documents (RFC 9457).

use axum::{body::Body, response::Response};
use photon_base::Error;
use serde_json::json;

/// The answer that says what went wrong: `type`, `title`, `status`, `detail`, and ours: `code`, `number`,
/// `field`, `hint`, `raced`.
pub fn problem(e: &Error) -> Response {
    let number = format!("PH{}", e.code.number());
    let body = json!({
        "type": format!("urn:photon:error:{number}"),
        "title": e.what,
        "status": e.code.http_status(),
        "detail": e.why,
        "code": e.code,
        "number": number,
        "field": e.field,
        "hint": e.hint,
        "raced": e.raced,
    });
    let mut r = Response::new(Body::from(body.to_string()));
    *r.status_mut() =
        http::StatusCode::from_u16(e.code.http_status()).unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR);
    r.headers_mut()
        .insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/problem+json"));
    r
}
