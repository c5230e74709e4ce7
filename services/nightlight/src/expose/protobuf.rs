//! `io.prometheus.client.MetricFamily`, each after its length as a varint.
//!
//! A histogram gives its classic series (`_bucket`, `_sum`, `_count`). Its native form, which stands in the same
//! message, is not read yet: [`histogram`] is the one place where it will be.

use super::{Exemplar, Item, Kind, ParseError, Point, Sink, line::normal, write};
use prost::{Message, bytes::Buf};

/// Largest message, bytes.
const MESSAGE_MAX: usize = 64 << 20;

/// One metric family.
#[derive(Clone, PartialEq, Message)]
struct Family {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    help: String,
    #[prost(int32, tag = "3")]
    kind: i32,
    #[prost(message, repeated, tag = "4")]
    metrics: Vec<Metric>,
    #[prost(string, tag = "5")]
    unit: String,
}

#[derive(Clone, PartialEq, Message)]
struct Metric {
    #[prost(message, repeated, tag = "1")]
    labels: Vec<Pair>,
    #[prost(message, optional, tag = "2")]
    gauge: Option<Number>,
    #[prost(message, optional, tag = "3")]
    counter: Option<Number>,
    #[prost(message, optional, tag = "4")]
    summary: Option<Summary>,
    #[prost(message, optional, tag = "5")]
    untyped: Option<Number>,
    #[prost(message, optional, tag = "7")]
    histogram: Option<Histogram>,
    #[prost(int64, optional, tag = "6")]
    at_ms: Option<i64>,
}

#[derive(Clone, PartialEq, Message)]
struct Pair {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    value: String,
}

/// Gauge, counter and untyped: the value is field 1 in all, the counter has an exemplar.
#[derive(Clone, PartialEq, Message)]
struct Number {
    #[prost(double, tag = "1")]
    value: f64,
    #[prost(message, optional, tag = "2")]
    exemplar: Option<Example>,
}

#[derive(Clone, PartialEq, Message)]
struct Example {
    #[prost(message, repeated, tag = "1")]
    labels: Vec<Pair>,
    #[prost(double, tag = "2")]
    value: f64,
    #[prost(message, optional, tag = "3")]
    at: Option<Instant>,
}

/// `google.protobuf.Timestamp`
#[derive(Clone, PartialEq, Message)]
struct Instant {
    #[prost(int64, tag = "1")]
    seconds: i64,
    #[prost(int32, tag = "2")]
    nanos: i32,
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(uint64, tag = "1")]
    count: u64,
    #[prost(double, tag = "2")]
    sum: f64,
    #[prost(message, repeated, tag = "3")]
    quantiles: Vec<Quantile>,
}

#[derive(Clone, PartialEq, Message)]
struct Quantile {
    #[prost(double, tag = "1")]
    quantile: f64,
    #[prost(double, tag = "2")]
    value: f64,
}

#[derive(Clone, PartialEq, Message)]
struct Histogram {
    #[prost(uint64, tag = "1")]
    count: u64,
    #[prost(double, tag = "2")]
    sum: f64,
    #[prost(message, repeated, tag = "3")]
    buckets: Vec<Bucket>,
    #[prost(double, tag = "4")]
    count_float: f64,
}

#[derive(Clone, PartialEq, Message)]
struct Bucket {
    #[prost(uint64, tag = "1")]
    count: u64,
    #[prost(double, tag = "2")]
    upper: f64,
    #[prost(message, optional, tag = "3")]
    exemplar: Option<Example>,
    #[prost(double, tag = "4")]
    count_float: f64,
}

/// Reads a page.
pub fn parse<E: From<ParseError>>(page: &[u8], sink: Sink<'_, E>) -> Result<(), E> {
    let mut rest = page;
    while rest.has_remaining() {
        let bad = |e: prost::DecodeError| ParseError(e.to_string());
        let n = prost::decode_length_delimiter(&mut rest).map_err(bad)?;
        if n > MESSAGE_MAX || n > rest.len() {
            let left = rest.len();
            return Err(
                ParseError(format!("a message of {n} bytes begins {left} bytes before the end")).into()
            );
        }
        let (message, after) = rest.split_at(n);
        family(&Family::decode(message).map_err(bad)?, sink)?;
        rest = after;
    }
    Ok(())
}

/// Writes the text of a family's series again and again into one place.
struct Out<'s, 'k, E> {
    sink: Sink<'s, E>,
    name: &'k str,
    text: String,
}

impl<E> Out<'_, '_, E> {
    fn point(
        &mut self,
        m: &Metric,
        suffix: &str,
        more: Option<(&str, f64)>,
        value: f64,
        exemplar: Option<&Example>,
    ) -> Result<(), E> {
        self.text.clear();
        let number = more.and_then(|(_, v)| normal(&v.to_string()));
        let labels = m.labels.iter().map(|l| (l.name.as_str(), l.value.as_str()));
        let more = more.zip(number.as_deref()).map(|((n, _), v)| (n, v));
        write::series(&mut self.text, &format!("{}{suffix}", self.name), labels.chain(more));
        let exemplar = exemplar.map(|e| Exemplar {
            labels: e.labels.iter().map(|l| (l.name.clone(), l.value.clone())).collect(),
            value: e.value,
            at_ms: e
                .at
                .as_ref()
                .map(|t| t.seconds.saturating_mul(1000).saturating_add(i64::from(t.nanos / 1_000_000))),
        });
        let (series, at_ms) = (self.text.as_str(), m.at_ms);
        (self.sink)(Item::Point(Point { series, numeric: None, value, at_ms, exemplar }))
    }
}

fn family<E: From<ParseError>>(f: &Family, sink: Sink<'_, E>) -> Result<(), E> {
    let kind = match f.kind {
        0 => Kind::Counter,
        1 => Kind::Gauge,
        2 => Kind::Summary,
        3 => Kind::Unknown,
        4 => Kind::Histogram,
        5 => Kind::GaugeHistogram,
        other => return Err(ParseError(format!("unknown metric type {other} of {}", f.name)).into()),
    };
    if f.name.is_empty() {
        return Err(ParseError("a metric family has no name".into()).into());
    }
    sink(Item::Type(&f.name, kind))?;
    sink(Item::Help(&f.name, &f.help))?;
    if !f.unit.is_empty() {
        sink(Item::Unit(&f.name, &f.unit))?;
    }
    let mut out = Out { sink, name: &f.name, text: String::new() };
    for m in &f.metrics {
        let lacks = || ParseError(format!("a metric of {} is no {}", f.name, kind.as_str()));
        match kind {
            Kind::Summary => summary(m, m.summary.as_ref().ok_or_else(lacks)?, &mut out)?,
            Kind::Histogram | Kind::GaugeHistogram => {
                histogram(m, m.histogram.as_ref().ok_or_else(lacks)?, &mut out)?;
            }
            _ => {
                let n = match kind {
                    Kind::Counter => &m.counter,
                    Kind::Gauge => &m.gauge,
                    _ => &m.untyped,
                };
                let n = n.as_ref().ok_or_else(lacks)?;
                out.point(m, "", None, n.value, n.exemplar.as_ref())?;
            }
        }
    }
    Ok(())
}

fn summary<E>(m: &Metric, s: &Summary, out: &mut Out<'_, '_, E>) -> Result<(), E> {
    out.point(m, "_count", None, s.count as f64, None)?;
    out.point(m, "_sum", None, s.sum, None)?;
    for q in &s.quantiles {
        out.point(m, "", Some(("quantile", q.quantile)), q.value, None)?;
    }
    Ok(())
}

/// The classic series. A bucket without an end is always there, written or not.
fn histogram<E>(m: &Metric, h: &Histogram, out: &mut Out<'_, '_, E>) -> Result<(), E> {
    let one_of = |whole: u64, float: f64| if float > 0.0 { float } else { whole as f64 };
    let count = one_of(h.count, h.count_float);
    out.point(m, "_count", None, count, None)?;
    out.point(m, "_sum", None, h.sum, None)?;
    for b in &h.buckets {
        let n = one_of(b.count, b.count_float);
        out.point(m, "_bucket", Some(("le", b.upper)), n, b.exemplar.as_ref())?;
    }
    if !h.buckets.iter().any(|b| b.upper == f64::INFINITY) {
        out.point(m, "_bucket", Some(("le", f64::INFINITY)), count, None)?;
    }
    Ok(())
}
