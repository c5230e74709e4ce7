//! Remote write 1.0: a protobuf message, packed with Snappy.

use super::NightLight;
use crate::{
    labels::{Labels, NAME, Str},
    store::{Arrival, Outcome, StoreError},
};
use axum::{
    body::to_bytes,
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header},
};
use photon_rt::task::blocking;
use prost::Message;

/// Largest body, packed and unpacked, bytes.
const PACKED_MAX: usize = 32 << 20;
const UNPACKED_MAX: usize = 64 << 20;

/// `prometheus.WriteRequest`
#[derive(Clone, PartialEq, Message)]
pub(super) struct WriteRequest {
    #[prost(message, repeated, tag = "1")]
    pub timeseries: Vec<TimeSeries>,
}

/// `prometheus.TimeSeries`
#[derive(Clone, PartialEq, Message)]
pub(super) struct TimeSeries {
    #[prost(message, repeated, tag = "1")]
    pub labels: Vec<Label>,
    #[prost(message, repeated, tag = "2")]
    pub samples: Vec<Sample>,
    /// Native histograms, not looked into.
    #[prost(bytes = "vec", repeated, tag = "4")]
    pub histograms: Vec<Vec<u8>>,
}

/// `prometheus.Label`
#[derive(Clone, PartialEq, Message)]
pub(super) struct Label {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub value: String,
}

/// `prometheus.Sample`
#[derive(Clone, PartialEq, Message)]
pub(super) struct Sample {
    #[prost(double, tag = "1")]
    pub value: f64,
    #[prost(int64, tag = "2")]
    pub timestamp: i64,
}

type Reply = (StatusCode, String);

fn refuse(status: StatusCode, message: impl Into<String>) -> Reply {
    (status, message.into() + "\n")
}

/// 204: all is stored. 400: the sender must not send this again. 500: it should, later.
pub(super) async fn write(State(this): State<NightLight>, request: Request) -> Reply {
    if let Err(refused) = check_headers(request.headers()) {
        return refused;
    }
    let Ok(packed) = to_bytes(request.into_body(), PACKED_MAX).await else {
        return refuse(StatusCode::PAYLOAD_TOO_LARGE, format!("a body has at most {PACKED_MAX} bytes"));
    };
    blocking(move || match unpack(&packed) {
        Ok((batch, odd)) => answer(this.store.append(batch), &odd),
        Err(refused) => refused,
    })
    .await
}

fn check_headers(headers: &HeaderMap) -> Result<(), Reply> {
    let unsupported = |message: &str| Err(refuse(StatusCode::UNSUPPORTED_MEDIA_TYPE, message));
    let text = |name| headers.get(name).map(|v| v.to_str().unwrap_or("?"));
    match text(header::CONTENT_TYPE) {
        None => {}
        Some(t) if t.contains("io.prometheus.write.v2") => {
            return unsupported("remote write 2.0 is not supported by this version: send 1.0");
        }
        Some(t) if t.starts_with("application/x-protobuf") => {}
        Some(_) => return unsupported("expected application/x-protobuf as media (content) type"),
    }
    match text(header::CONTENT_ENCODING) {
        None | Some("snappy") => Ok(()),
        Some(_) => unsupported("expected snappy as content encoding"),
    }
}

/// The series of a message, and what of it can't be taken.
fn unpack(packed: &[u8]) -> Result<(Vec<Arrival>, Vec<String>), Reply> {
    let bad = |message: String| refuse(StatusCode::BAD_REQUEST, message);
    let size = snap::raw::decompress_len(packed).map_err(|e| bad(e.to_string()))?;
    if size > UNPACKED_MAX {
        return Err(refuse(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("{size} bytes unpacked, at most {UNPACKED_MAX} are taken"),
        ));
    }
    let bytes = snap::raw::Decoder::new().decompress_vec(packed).map_err(|e| bad(e.to_string()))?;
    let message = WriteRequest::decode(bytes.as_slice()).map_err(|e| bad(e.to_string()))?;
    let (mut batch, mut odd) = (Vec::new(), Vec::new());
    let mut known: std::collections::HashSet<Str> = std::collections::HashSet::new();
    for series in message.timeseries {
        let mut shared = |text: String| match known.get(text.as_str()) {
            Some(s) => s.clone(),
            None => {
                let s = Str::from(text);
                known.insert(s.clone());
                s
            }
        };
        let names = series.labels.len();
        let labels = Labels::new(series.labels.into_iter().map(|l| (shared(l.name), shared(l.value))));
        if labels.name().is_empty() || labels.iter().any(|(n, _)| n.is_empty()) {
            odd.push(format!("series {labels} has no {NAME} or a label without a name"));
            continue;
        }
        if labels.len() > names {
            odd.push(format!("series {labels} has a label twice"));
            continue;
        }
        if !series.histograms.is_empty() {
            odd.push(format!("native histograms are not supported by this version: {labels}"));
        }
        let samples = series.samples.into_iter().map(|s| (s.timestamp, s.value)).collect();
        batch.push(Arrival { labels, samples });
    }
    Ok((batch, odd))
}

fn answer(stored: Result<Outcome, StoreError>, odd: &[String]) -> Reply {
    match stored {
        Err(e @ StoreError::TooLarge(_)) => refuse(StatusCode::BAD_REQUEST, e.to_string()),
        Err(e) => refuse(StatusCode::INTERNAL_SERVER_ERROR, e.to_string()),
        Ok(o) if o.over_limit > 0 => refuse(
            StatusCode::TOO_MANY_REQUESTS,
            format!("{} samples of new series: too many series", o.over_limit),
        ),
        Ok(o) if o.too_old > 0 => refuse(
            StatusCode::BAD_REQUEST,
            format!("out of order sample: {} too old, {} stored", o.too_old, o.stored),
        ),
        Ok(o) if o.conflicting > 0 => refuse(
            StatusCode::BAD_REQUEST,
            format!(
                "duplicate sample for timestamp: {} with another value, {} stored",
                o.conflicting, o.stored
            ),
        ),
        Ok(o) => match odd.first() {
            Some(first) => refuse(
                StatusCode::BAD_REQUEST,
                format!("{first} ({} series refused, {} samples stored)", odd.len(), o.stored),
            ),
            None => (StatusCode::NO_CONTENT, String::new()),
        },
    }
}
