//! Remote write 1.0 and 2.0: a protobuf message, packed with Snappy. 2.0 names every text once (symbols), carries
//! metadata with its series, and is told how much was stored.

use super::NightLight;
use crate::{
    histogram::{Counts, Hint, Histogram, Parts, Span},
    labels::{Labels, NAME, Str},
    store::{Entry, Exemplar, Metadata, Outcome, Store, StoreError},
};
use axum::{
    body::to_bytes,
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header},
    response::{AppendHeaders, IntoResponse, Response},
};
use photon_rt::task::blocking;
use prost::Message;
use std::{collections::HashSet, sync::Arc};

/// Largest body, packed and unpacked, bytes.
const PACKED_MAX: usize = 32 << 20;
const UNPACKED_MAX: usize = 64 << 20;

/// `prometheus.WriteRequest`
#[derive(Clone, PartialEq, Message)]
pub(super) struct WriteRequest {
    #[prost(message, repeated, tag = "1")]
    pub timeseries: Vec<TimeSeries>,
    #[prost(message, repeated, tag = "3")]
    pub metadata: Vec<MetricMetadata>,
}

/// `prometheus.TimeSeries`
#[derive(Clone, PartialEq, Message)]
pub(super) struct TimeSeries {
    #[prost(message, repeated, tag = "1")]
    pub labels: Vec<Label>,
    #[prost(message, repeated, tag = "2")]
    pub samples: Vec<Sample>,
    #[prost(message, repeated, tag = "3")]
    pub exemplars: Vec<ExemplarOf1>,
    #[prost(message, repeated, tag = "4")]
    pub histograms: Vec<NativeHistogram>,
}

/// `prometheus.Label`
#[derive(Clone, PartialEq, Message)]
pub(super) struct Label {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub value: String,
}

/// `prometheus.Sample`; the same in both versions.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Sample {
    #[prost(double, tag = "1")]
    pub value: f64,
    #[prost(int64, tag = "2")]
    pub timestamp: i64,
}

/// `prometheus.Exemplar`
#[derive(Clone, PartialEq, Message)]
pub(super) struct ExemplarOf1 {
    #[prost(message, repeated, tag = "1")]
    pub labels: Vec<Label>,
    #[prost(double, tag = "2")]
    pub value: f64,
    #[prost(int64, tag = "3")]
    pub timestamp: i64,
}

/// `prometheus.MetricMetadata`
#[derive(Clone, PartialEq, Message)]
pub(super) struct MetricMetadata {
    #[prost(int32, tag = "1")]
    pub kind: i32,
    #[prost(string, tag = "2")]
    pub metric: String,
    #[prost(string, tag = "4")]
    pub help: String,
    #[prost(string, tag = "5")]
    pub unit: String,
}

/// `prometheus.Histogram`; the same in both versions.
#[derive(Clone, PartialEq, Message)]
pub(super) struct NativeHistogram {
    #[prost(uint64, optional, tag = "1")]
    pub count_int: Option<u64>,
    #[prost(double, optional, tag = "2")]
    pub count_float: Option<f64>,
    #[prost(double, tag = "3")]
    pub sum: f64,
    #[prost(sint32, tag = "4")]
    pub schema: i32,
    #[prost(double, tag = "5")]
    pub zero_threshold: f64,
    #[prost(uint64, optional, tag = "6")]
    pub zero_count_int: Option<u64>,
    #[prost(double, optional, tag = "7")]
    pub zero_count_float: Option<f64>,
    #[prost(message, repeated, tag = "8")]
    pub negative_spans: Vec<BucketSpan>,
    #[prost(sint64, repeated, tag = "9")]
    pub negative_deltas: Vec<i64>,
    #[prost(double, repeated, tag = "10")]
    pub negative_counts: Vec<f64>,
    #[prost(message, repeated, tag = "11")]
    pub positive_spans: Vec<BucketSpan>,
    #[prost(sint64, repeated, tag = "12")]
    pub positive_deltas: Vec<i64>,
    #[prost(double, repeated, tag = "13")]
    pub positive_counts: Vec<f64>,
    #[prost(int32, tag = "14")]
    pub reset_hint: i32,
    #[prost(int64, tag = "15")]
    pub timestamp: i64,
    #[prost(double, repeated, tag = "16")]
    pub custom_values: Vec<f64>,
}

/// `prometheus.BucketSpan`
#[derive(Clone, PartialEq, Message)]
pub(super) struct BucketSpan {
    #[prost(sint32, tag = "1")]
    pub offset: i32,
    #[prost(uint32, tag = "2")]
    pub length: u32,
}

/// `io.prometheus.write.v2.Request`
#[derive(Clone, PartialEq, Message)]
pub(super) struct Request2 {
    #[prost(string, repeated, tag = "4")]
    pub symbols: Vec<String>,
    #[prost(message, repeated, tag = "5")]
    pub timeseries: Vec<TimeSeries2>,
}

/// `io.prometheus.write.v2.TimeSeries`
#[derive(Clone, PartialEq, Message)]
pub(super) struct TimeSeries2 {
    #[prost(uint32, repeated, tag = "1")]
    pub labels_refs: Vec<u32>,
    #[prost(message, repeated, tag = "2")]
    pub samples: Vec<Sample>,
    #[prost(message, repeated, tag = "3")]
    pub histograms: Vec<NativeHistogram>,
    #[prost(message, repeated, tag = "4")]
    pub exemplars: Vec<ExemplarOf2>,
    #[prost(message, optional, tag = "5")]
    pub metadata: Option<Metadata2>,
}

/// `io.prometheus.write.v2.Exemplar`
#[derive(Clone, PartialEq, Message)]
pub(super) struct ExemplarOf2 {
    #[prost(uint32, repeated, tag = "1")]
    pub labels_refs: Vec<u32>,
    #[prost(double, tag = "2")]
    pub value: f64,
    #[prost(int64, tag = "3")]
    pub timestamp: i64,
}

/// `io.prometheus.write.v2.Metadata`
#[derive(Clone, PartialEq, Message)]
pub(super) struct Metadata2 {
    #[prost(int32, tag = "1")]
    pub kind: i32,
    #[prost(uint32, tag = "3")]
    pub help_ref: u32,
    #[prost(uint32, tag = "4")]
    pub unit_ref: u32,
}

type Refused = (StatusCode, String);

fn refuse(status: StatusCode, message: impl Into<String>) -> Refused {
    (status, message.into() + "\n")
}

/// What a message holds, and what of it can't be taken.
#[derive(Default)]
struct Unpacked {
    batch: Vec<Entry>,
    exemplars: Vec<(Labels, Exemplar)>,
    metadata: Vec<(Str, Metadata)>,
    odd: Odd,
}

/// What was refused of a message: how much, and why the first was.
#[derive(Default)]
struct Odd {
    n: usize,
    first: Option<String>,
}

/// Most bytes of a reason: it may name a series that is as large as a message.
const REASON_MAX: usize = 1000;

impl Odd {
    fn push(&mut self, why: impl FnOnce() -> String) {
        self.n += 1;
        self.first.get_or_insert_with(|| {
            let mut why = why();
            why.truncate(why.floor_char_boundary(REASON_MAX));
            why
        });
    }
}

/// 204: all is stored. 400: the sender must not send this again. 500: it should, later.
pub(super) async fn write(State(this): State<NightLight>, request: Request) -> Response {
    let second = match check_headers(request.headers()) {
        Ok(second) => second,
        Err(refused) => return refused.into_response(),
    };
    let Ok(packed) = to_bytes(request.into_body(), PACKED_MAX).await else {
        let text = format!("a body has at most {PACKED_MAX} bytes");
        return refuse(StatusCode::PAYLOAD_TOO_LARGE, text).into_response();
    };
    blocking(move || {
        let (reply, stored) = match unpack(&packed, second) {
            Ok(all) => take(&this.store, all),
            Err(refused) => (refused, Stored::default()),
        };
        let count = |name: &'static str, n: u64| (name, n.to_string());
        // A sender of 2.0 takes a reply without them for one of a receiver that stored nothing.
        let counts = AppendHeaders([
            count("x-prometheus-remote-write-samples-written", stored.samples),
            count("x-prometheus-remote-write-histograms-written", stored.histograms),
            count("x-prometheus-remote-write-exemplars-written", stored.exemplars),
        ]);
        if second { (reply.0, counts, reply.1).into_response() } else { reply.into_response() }
    })
    .await
}

/// Whether the message is of 2.0.
fn check_headers(headers: &HeaderMap) -> Result<bool, Refused> {
    let unsupported = |message: String| Err(refuse(StatusCode::UNSUPPORTED_MEDIA_TYPE, message));
    let text = |name| headers.get(name).map(|v| v.to_str().unwrap_or("?"));
    let mut second = false;
    if let Some(t) = text(header::CONTENT_TYPE) {
        let mut parts = t.split(';').map(str::trim);
        if parts.next() != Some("application/x-protobuf") {
            return unsupported(format!(
                "expected application/x-protobuf as the first (media) part, got {t} content-type"
            ));
        }
        match parts.find_map(|p| p.strip_prefix("proto=")) {
            None | Some("prometheus.WriteRequest") => {}
            Some("io.prometheus.write.v2.Request") => second = true,
            Some(other) => {
                return unsupported(format!(
                    "got {other} content-type; expected one of prometheus.WriteRequest, io.prometheus.write.v2.Request"
                ));
            }
        }
    }
    match text(header::CONTENT_ENCODING) {
        None | Some("snappy") => Ok(second),
        Some(e) => unsupported(format!(
            "{e} encoding (compression) is not accepted by this server; only snappy is acceptable"
        )),
    }
}

fn unpack(packed: &[u8], second: bool) -> Result<Unpacked, Refused> {
    let bad = |message: String| refuse(StatusCode::BAD_REQUEST, message);
    let size = snap::raw::decompress_len(packed).map_err(|e| bad(e.to_string()))?;
    if size > UNPACKED_MAX {
        return Err(refuse(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("{size} bytes unpacked, at most {UNPACKED_MAX} are taken"),
        ));
    }
    let bytes = snap::raw::Decoder::new().decompress_vec(packed).map_err(|e| bad(e.to_string()))?;
    if second {
        let message = Request2::decode(bytes.as_slice()).map_err(|e| bad(e.to_string()))?;
        unpack2(message).map_err(bad)
    } else {
        let message = WriteRequest::decode(bytes.as_slice()).map_err(|e| bad(e.to_string()))?;
        Ok(unpack1(message))
    }
}

/// Labels that may identify a series.
fn identity(pairs: Vec<(Str, Str)>) -> Result<Labels, String> {
    let names = pairs.len();
    let distinct: HashSet<&Str> = pairs.iter().map(|p| &p.0).collect();
    let twice = distinct.len() < names;
    let labels = Labels::new(pairs);
    if labels.name().is_empty() || labels.iter().any(|(n, _)| n.is_empty()) {
        return Err(format!("series {labels} has no {NAME} or a label without a name"));
    }
    if twice {
        return Err(format!("series {labels} has a label twice"));
    }
    Ok(labels)
}

fn unpack1(message: WriteRequest) -> Unpacked {
    let mut out = Unpacked::default();
    let mut known: HashSet<Str> = HashSet::new();
    let mut shared = |text: String| match known.get(text.as_str()) {
        Some(s) => s.clone(),
        None => {
            let s = Str::from(text);
            known.insert(s.clone());
            s
        }
    };
    for m in message.metadata {
        let m_ = Metadata { kind: kind(m.kind), help: m.help.into(), unit: m.unit.into() };
        out.metadata.push((m.metric.into(), m_));
    }
    for series in message.timeseries {
        let pairs = series.labels.into_iter().map(|l| (shared(l.name), shared(l.value))).collect();
        let labels = match identity(pairs) {
            Ok(l) => l,
            Err(e) => {
                out.odd.push(|| e);
                continue;
            }
        };
        for e in series.exemplars {
            let pairs = e.labels.into_iter().map(|l| (shared(l.name), shared(l.value)));
            let e = Exemplar { labels: Labels::new(pairs), value: e.value, t: e.timestamp };
            out.exemplars.push((labels.clone(), e));
        }
        out.entry(labels, series.samples, series.histograms);
    }
    out
}

fn unpack2(message: Request2) -> Result<Unpacked, String> {
    let symbols: Vec<Str> = message.symbols.into_iter().map(Str::from).collect();
    if symbols.first().is_some_and(|s| !s.is_empty()) {
        return Err("the first symbol must be the empty string".into());
    }
    let n = symbols.len();
    let symbol = |i: u32| {
        let missing = || format!("symbol {i} does not exist: there are {n}");
        symbols.get(i as usize).cloned().ok_or_else(missing)
    };
    let pairs = |refs: &[u32]| -> Result<Vec<(Str, Str)>, String> {
        if !refs.len().is_multiple_of(2) {
            return Err(format!("invalid labelRefs length {}", refs.len()));
        }
        refs.chunks_exact(2).map(|p| Ok((symbol(p[0])?, symbol(p[1])?))).collect()
    };
    let mut out = Unpacked::default();
    for series in message.timeseries {
        let labels = match pairs(&series.labels_refs).and_then(identity) {
            Ok(l) => l,
            Err(e) => {
                out.odd.push(|| e);
                continue;
            }
        };
        if series.samples.is_empty() && series.histograms.is_empty() {
            let why =
                || format!("TimeSeries must contain at least one sample or histogram for series {labels}");
            out.odd.push(why);
            continue;
        }
        if let Some(m) = series.metadata {
            let m = Metadata { kind: kind(m.kind), help: symbol(m.help_ref)?, unit: symbol(m.unit_ref)? };
            out.metadata.push((labels.name().into(), m));
        }
        for e in series.exemplars {
            let found = Labels::new(pairs(&e.labels_refs)?);
            out.exemplars.push((labels.clone(), Exemplar { labels: found, value: e.value, t: e.timestamp }));
        }
        out.entry(labels, series.samples, series.histograms);
    }
    Ok(out)
}

impl Unpacked {
    fn entry(&mut self, labels: Labels, samples: Vec<Sample>, histograms: Vec<NativeHistogram>) {
        let mut entry = Entry {
            samples: samples.into_iter().map(|s| (s.timestamp, s.value)).collect(),
            histograms: Vec::with_capacity(histograms.len()),
            labels,
        };
        for h in histograms {
            let t = h.timestamp;
            match native(h) {
                Ok(h) => entry.histograms.push((t, Arc::new(h))),
                Err(e) => self.odd.push(|| format!("{e} for series {}", entry.labels)),
            }
        }
        self.batch.push(entry);
    }
}

fn kind(n: i32) -> Str {
    let all = ["unknown", "counter", "gauge", "histogram", "gaugehistogram", "summary", "info", "stateset"];
    usize::try_from(n).ok().and_then(|i| all.get(i)).copied().unwrap_or("unknown").into()
}

fn native(h: NativeHistogram) -> Result<Histogram, String> {
    let spans =
        |all: Vec<BucketSpan>| all.iter().map(|s| Span { offset: s.offset, length: s.length }).collect();
    let integer = h.count_int.is_some();
    let counts = |deltas: Vec<i64>, counts: Vec<f64>| {
        if integer { Counts::Deltas(deltas) } else { Counts::Absolute(counts) }
    };
    let exact =
        |n: u64| if n <= 1 << 53 { Ok(n as f64) } else { Err(format!("a count of {n} is beyond 2^53")) };
    let count = match h.count_int {
        Some(n) => exact(n)?,
        None => h.count_float.unwrap_or(0.0),
    };
    let zero_count = match h.zero_count_int {
        Some(n) => exact(n)?,
        None => h.zero_count_float.unwrap_or(0.0),
    };
    Histogram::from_parts(Parts {
        schema: h.schema,
        hint: Hint::of(h.reset_hint),
        zero_threshold: h.zero_threshold,
        zero_count,
        count,
        sum: h.sum,
        positive: (spans(h.positive_spans), counts(h.positive_deltas, h.positive_counts)),
        negative: (spans(h.negative_spans), counts(h.negative_deltas, h.negative_counts)),
        bounds: h.custom_values,
    })
}

#[derive(Clone, Copy, Default)]
struct Stored {
    samples: u64,
    histograms: u64,
    exemplars: u64,
}

fn take(store: &Store, all: Unpacked) -> (Refused, Stored) {
    let outcome = store.append_all(all.batch);
    let mut stored = Stored::default();
    if let Ok(o) = &outcome {
        stored.samples = o.stored - o.histograms;
        stored.histograms = o.histograms;
        // One that came before, or late, is no reason to refuse a message: senders can't do better.
        stored.exemplars =
            all.exemplars.into_iter().filter(|(l, e)| store.beside.exemplar(l, e.clone())).count() as u64;
        all.metadata.into_iter().for_each(|(name, m)| store.beside.describe(&name, m));
    }
    (answer(outcome, &all.odd), stored)
}

fn answer(stored: Result<Outcome, StoreError>, odd: &Odd) -> Refused {
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
        Ok(o) => match &odd.first {
            Some(first) => refuse(
                StatusCode::BAD_REQUEST,
                format!("{first} ({} refused, {} samples stored)", odd.n, o.stored),
            ),
            None => (StatusCode::NO_CONTENT, String::new()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use photon_rt::disk::SimDisk;

    fn packed(m: &impl Message) -> Vec<u8> {
        snap::raw::Encoder::new().compress_vec(&m.encode_to_vec()).expect("packed")
    }

    fn histogram(t: i64) -> NativeHistogram {
        NativeHistogram {
            count_int: Some(3),
            sum: 2.5,
            positive_spans: vec![BucketSpan { offset: 0, length: 2 }],
            positive_deltas: vec![1, 1],
            timestamp: t,
            ..NativeHistogram::default()
        }
    }

    fn message() -> Request2 {
        let symbols = ["", NAME, "m", "job", "a", "trace_id", "x", "Help.", "seconds"];
        let series = TimeSeries2 {
            labels_refs: vec![1, 2, 3, 4],
            samples: vec![Sample { value: 1.5, timestamp: 10 }],
            histograms: vec![histogram(20), histogram(30)],
            exemplars: vec![ExemplarOf2 { labels_refs: vec![5, 6], value: 0.5, timestamp: 20 }],
            metadata: Some(Metadata2 { kind: 3, help_ref: 7, unit_ref: 8 }),
        };
        Request2 { symbols: symbols.map(String::from).to_vec(), timeseries: vec![series] }
    }

    #[test]
    fn version_2_stores_everything_and_counts_it() {
        let store = Store::open(Arc::new(SimDisk::new(1)), crate::store::Options::default()).expect("open");
        let unpacked = unpack(&packed(&message()), true).expect("unpacked");
        let (reply, stored) = take(&store, unpacked);
        assert_eq!(reply, (StatusCode::NO_CONTENT, String::new()));
        assert_eq!((stored.samples, stored.histograms, stored.exemplars), (1, 2, 1));
        assert_eq!(store.beside.metadata(Some("m"))[0].1.kind, "histogram".into());
        assert_eq!(store.beside.exemplars(&[Vec::new()], 0, 100)[0].1[0].t, 20);
        let mut seen = Vec::new();
        crate::engine::Storage::select(&store, &[], 0, 100, &mut |l, s| {
            seen.extend(
                (0..s.len()).map(|i| format!("{l} {} {:?}", s.t[i], s.histogram(i).map(|h| h.to_string()))),
            );
            Ok(())
        })
        .expect("read");
        let h = "{count:3, sum:2.5, (0.5,1]:1, (1,2]:2}";
        assert_eq!(
            seen,
            [
                r#"m{job="a"} 10 None"#.to_string(),
                format!(r#"m{{job="a"}} 20 Some("{h}")"#),
                format!(r#"m{{job="a"}} 30 Some("{h}")"#)
            ]
        );
        // What is wrong with one series does not keep the others out.
        let mut m = message();
        m.timeseries[0].histograms[0].count_int = Some(4);
        m.timeseries[0].samples.clear();
        m.timeseries[0].labels_refs[3] = 6;
        m.timeseries.push(TimeSeries2 { labels_refs: vec![1], ..TimeSeries2::default() });
        let (reply, stored) = take(&store, unpack(&packed(&m), true).expect("unpacked"));
        assert_eq!(reply.0, StatusCode::BAD_REQUEST);
        assert!(reply.1.contains("3 observations found in buckets, but the Count field is 4"), "{}", reply.1);
        assert_eq!((stored.samples, stored.histograms), (0, 1));
        let mut m = message();
        m.timeseries[0].exemplars[0].labels_refs = vec![77, 78];
        assert!(unpack(&packed(&m), true).is_err_and(|e| e.0 == StatusCode::BAD_REQUEST));
        // Version 1 has the same histograms.
        let label = |n: &str, v: &str| Label { name: n.into(), value: v.into() };
        let series = TimeSeries {
            labels: vec![label(NAME, "n")],
            histograms: vec![histogram(5)],
            ..TimeSeries::default()
        };
        let m = WriteRequest { timeseries: vec![series], metadata: Vec::new() };
        let (reply, stored) = take(&store, unpack(&packed(&m), false).expect("unpacked"));
        assert_eq!((reply.0, stored.histograms), (StatusCode::NO_CONTENT, 1));
    }

    #[test]
    fn types_of_content_are_told_apart() {
        let check = |content: &str, encoding: &str| {
            let mut h = HeaderMap::new();
            h.insert(header::CONTENT_TYPE, content.parse().expect("header"));
            h.insert(header::CONTENT_ENCODING, encoding.parse().expect("header"));
            check_headers(&h).map_err(|e| e.0.as_u16())
        };
        assert_eq!(check("application/x-protobuf", "snappy"), Ok(false));
        assert_eq!(check("application/x-protobuf;proto=prometheus.WriteRequest", "snappy"), Ok(false));
        assert_eq!(check("application/x-protobuf; proto=io.prometheus.write.v2.Request", "snappy"), Ok(true));
        assert_eq!(check("application/x-protobuf;proto=other", "snappy"), Err(415));
        assert_eq!(check("text/plain", "snappy"), Err(415));
        assert_eq!(check("application/x-protobuf", "gzip"), Err(415));
    }
}
