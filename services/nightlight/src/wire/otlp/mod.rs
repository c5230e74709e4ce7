//! OpenTelemetry's senders: OTLP over HTTP (protobuf and JSON) and over gRPC, bodies packed with gzip or not.
//!
//! gRPC is one unary call here, so it is framed by hand (gRPC over HTTP/2, "Length-Prefixed-Message"): tonic would need
//! generated code and its own reading of gzip for that.

mod convert;
mod message;
mod names;

use super::NightLight;
use crate::{scrape::http::inflate, store::StoreError};
use axum::{
    Router,
    body::{Body, Bytes, to_bytes},
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::post,
};
use http_body_util::{BodyExt, Full};
use message::{Answer, Export, Partial};
use photon_rt::task::blocking;
use prost::Message;

/// Largest body, packed and unpacked, bytes.
const PACKED_MAX: usize = 32 << 20;
const UNPACKED_MAX: u64 = 64 << 20;

/// Why a message is not taken.
enum Refused {
    /// The sender must not send it again.
    Bad(String),
    /// Nor something of its kind.
    Unsupported(String),
    TooLarge,
    /// Later, perhaps.
    Busy(String),
    Broken(String),
}

impl Refused {
    fn words(&self) -> String {
        match self {
            Refused::Bad(w) | Refused::Unsupported(w) | Refused::Busy(w) | Refused::Broken(w) => w.clone(),
            Refused::TooLarge => format!("a message has at most {UNPACKED_MAX} bytes, {PACKED_MAX} packed"),
        }
    }

    fn http(&self) -> StatusCode {
        match self {
            Refused::Bad(_) => StatusCode::BAD_REQUEST,
            Refused::Unsupported(_) => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Refused::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Refused::Busy(_) => StatusCode::TOO_MANY_REQUESTS,
            Refused::Broken(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// Status codes of gRPC.
    fn grpc(&self) -> u8 {
        match self {
            Refused::Bad(_) => 3,
            Refused::Unsupported(_) => 12,
            Refused::TooLarge | Refused::Busy(_) => 8,
            Refused::Broken(_) => 14,
        }
    }
}

fn unpacked(body: Bytes, encoding: Option<&str>) -> Result<Bytes, Refused> {
    match encoding {
        None | Some("" | "identity") => Ok(body),
        Some("gzip") => match inflate(&body, UNPACKED_MAX) {
            Ok(bytes) => Ok(bytes.into()),
            Err(e) if e.contains("limit") => Err(Refused::TooLarge),
            Err(e) => Err(Refused::Bad(e)),
        },
        Some(other) => Err(Refused::Unsupported(format!("encoding {other:?} is not supported: send gzip"))),
    }
}

/// Stores a message; what of it could not be taken.
fn take(this: &NightLight, message: &Export) -> Result<Option<Partial>, Refused> {
    let done = convert::convert(message);
    let (mut refused, mut why) = (done.refused, done.why);
    if !done.arrivals.is_empty() {
        let stored = this.store.append(done.arrivals).map_err(|e| match e {
            StoreError::TooLarge(w) => Refused::Bad(w),
            e => Refused::Broken(e.to_string()),
        })?;
        if stored.over_limit > 0 && stored.stored == 0 {
            return Err(Refused::Busy(format!(
                "{} samples of new series: too many series",
                stored.over_limit
            )));
        }
        let lost = stored.too_old + stored.conflicting + stored.over_limit;
        if lost > 0 {
            refused += lost as i64;
            if why.is_empty() {
                why = format!(
                    "{} samples too old, {} with another value for their instant, {} of too many series",
                    stored.too_old, stored.conflicting, stored.over_limit
                );
            }
        }
    }
    Ok((refused > 0).then_some(Partial { rejected_data_points: refused, error_message: why }))
}

fn text(headers: &HeaderMap, name: impl header::AsHeaderName) -> Option<String> {
    headers.get(name).map(|v| v.to_str().unwrap_or("?").to_string())
}

/// `POST /v1/metrics`
pub(super) async fn http(State(this): State<NightLight>, request: Request) -> Response {
    let kind = text(request.headers(), header::CONTENT_TYPE).unwrap_or_default();
    let json = kind.starts_with("application/json");
    let done = async {
        if !json && !kind.starts_with("application/x-protobuf") {
            return Err(Refused::Unsupported("expected application/x-protobuf or application/json".into()));
        }
        let encoding = text(request.headers(), header::CONTENT_ENCODING);
        let body = to_bytes(request.into_body(), PACKED_MAX).await.map_err(|_| Refused::TooLarge)?;
        blocking(move || {
            let body = unpacked(body, encoding.as_deref())?;
            let message = if json {
                serde_json::from_slice::<Export>(&body).map_err(|e| Refused::Bad(e.to_string()))?
            } else {
                Export::decode(body).map_err(|e| Refused::Bad(e.to_string()))?
            };
            take(&this, &message)
        })
        .await
    };
    let (status, partial, words) = match done.await {
        Ok(partial) => (StatusCode::OK, partial, None),
        Err(r) => (r.http(), None, Some((r.grpc(), r.words()))),
    };
    if json {
        let body = match (&words, &partial) {
            (Some((code, w)), _) => serde_json::json!({ "code": code, "message": w }),
            (None, None) => serde_json::json!({ "partialSuccess": {} }),
            (None, Some(p)) => serde_json::json!({ "partialSuccess": {
                "rejectedDataPoints": p.rejected_data_points.to_string(), "errorMessage": p.error_message } }),
        };
        return (status, [(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response();
    }
    let body = match words {
        Some((code, message)) => Status { code: i32::from(code), message }.encode_to_vec(),
        None => Answer { partial_success: partial }.encode_to_vec(),
    };
    (status, [(header::CONTENT_TYPE, "application/x-protobuf")], body).into_response()
}

/// `google.rpc.Status`
#[derive(Clone, PartialEq, Message)]
struct Status {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
}

/// The one message of a unary call.
fn frame(body: Bytes, encoding: Option<&str>) -> Result<Bytes, Refused> {
    let wrong = || Refused::Bad("a call has one message with its length before it".into());
    let head: [u8; 5] = body.get(..5).and_then(|h| h.try_into().ok()).ok_or_else(wrong)?;
    let n = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
    if body.len() != n.saturating_add(5) {
        return Err(wrong());
    }
    match head[0] {
        0 => Ok(body.slice(5..)),
        1 => unpacked(body.slice(5..), encoding),
        _ => Err(wrong()),
    }
}

/// `opentelemetry.proto.collector.metrics.v1.MetricsService/Export`
async fn grpc(State(this): State<NightLight>, request: Request) -> Response {
    let encoding = text(request.headers(), "grpc-encoding");
    let proper =
        text(request.headers(), header::CONTENT_TYPE).is_some_and(|t| t.starts_with("application/grpc"));
    if !proper {
        return StatusCode::UNSUPPORTED_MEDIA_TYPE.into_response();
    }
    let done = async {
        let body = to_bytes(request.into_body(), PACKED_MAX).await.map_err(|_| Refused::TooLarge)?;
        blocking(move || {
            let message = Export::decode(frame(body, encoding.as_deref())?);
            take(&this, &message.map_err(|e| Refused::Bad(e.to_string()))?)
        })
        .await
    };
    let done = done.await;
    let mut trailers = HeaderMap::new();
    let code = done.as_ref().err().map_or(0, Refused::grpc);
    trailers.insert("grpc-status", HeaderValue::from(u16::from(code)));
    let body = match done {
        Ok(partial) => {
            let message = Answer { partial_success: partial }.encode_to_vec();
            let mut framed = vec![0];
            framed.extend_from_slice(&(message.len() as u32).to_be_bytes());
            framed.extend_from_slice(&message);
            framed
        }
        Err(r) => {
            let words = crate::scrape::target::percent(&r.words()).replace('+', "%20");
            trailers.extend(
                HeaderValue::from_str(&words)
                    .ok()
                    .map(|w| (header::HeaderName::from_static("grpc-message"), w)),
            );
            Vec::new()
        }
    };
    let body = Full::new(Bytes::from(body)).with_trailers(std::future::ready(Some(Ok(trailers))));
    // Mapped so that nobody knows its length: clients (curl) that are told it don't wait for the trailers.
    let body = body.map_frame(|frame| frame);
    ([(header::CONTENT_TYPE, "application/grpc")], Body::new(body)).into_response()
}

/// What OpenTelemetry's own ports answer: 4318 (HTTP) and 4317 (gRPC); both on each.
pub(super) fn routes() -> Router<NightLight> {
    Router::new()
        .route("/v1/metrics", post(http))
        .route("/opentelemetry.proto.collector.metrics.v1.MetricsService/Export", post(grpc))
}
