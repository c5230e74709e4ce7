//! From OpenTelemetry's metrics to series. Pure.

use super::{
    message::{CUMULATIVE, Export, KeyValue, Metric, Resource},
    names::{Sort, label, metric},
};
use crate::{
    engine::STALE_BITS,
    labels::{Labels, NAME},
    promql::number,
    store::{Arrival, LABEL_BYTES_MAX, LABELS_MAX},
};
use std::collections::{BTreeMap, HashMap};

/// What a message gives.
#[derive(Debug, Default)]
pub struct Converted {
    /// Series with their samples.
    pub arrivals: Vec<Arrival>,
    /// Points that can't be taken, and why the first of them.
    pub refused: i64,
    pub why: String,
}

struct Builder {
    /// `job` and `instance`.
    own: Vec<(String, String)>,
    all: HashMap<Labels, Vec<(i64, f64)>>,
    newest_ms: i64,
}

const NOT_RECORDED: u32 = 1;

fn ms(nanos: u64) -> i64 {
    (nanos / 1_000_000) as i64
}

/// Attributes as labels: two whose names become the same share one, with both values.
fn attributes<'a>(all: impl Iterator<Item = &'a KeyValue>) -> BTreeMap<String, String> {
    let mut sorted: Vec<&KeyValue> = all.collect();
    sorted.sort_by(|a, b| a.key.cmp(&b.key));
    let mut out: BTreeMap<String, String> = BTreeMap::new();
    for kv in sorted {
        let value = kv.value.as_ref().map(super::message::AnyValue::text).unwrap_or_default();
        out.entry(label(&kv.key))
            .and_modify(|v| {
                v.push(';');
                v.push_str(&value);
            })
            .or_insert(value);
    }
    out
}

impl Builder {
    /// The labels that all series of a point share.
    fn of_point(&self, of: &[KeyValue]) -> Result<Labels, (usize, String)> {
        let mut labels = attributes(of.iter());
        labels.extend(self.own.iter().cloned());
        let (n, bytes) = (labels.len(), labels.iter().map(|(n, v)| n.len() + v.len()).sum::<usize>());
        if n > LABELS_MAX || bytes > LABEL_BYTES_MAX {
            return Err((
                1,
                format!(
                    "a point has {n} attributes of {bytes} bytes: at most {LABELS_MAX} of {LABEL_BYTES_MAX} are taken"
                ),
            ));
        }
        Ok(Labels::new(labels.iter().map(|(n, v)| (n.as_str().into(), v.as_str().into()))))
    }

    fn put(&mut self, name: &str, of: &Labels, more: Option<(&str, String)>, at_ms: i64, v: f64, flags: u32) {
        let mut labels = of.with(NAME, name);
        if let Some((n, v)) = more {
            labels = labels.with(n, &v);
        }
        let v = if flags & NOT_RECORDED != 0 { f64::from_bits(STALE_BITS) } else { v };
        self.newest_ms = self.newest_ms.max(at_ms);
        self.all.entry(labels).or_default().push((at_ms, v));
    }
}

/// Everything of a message.
pub fn convert(message: &Export) -> Converted {
    let mut out = Converted::default();
    for r in &message.resource_metrics {
        let none = Resource::default();
        let resource = r.resource.as_ref().unwrap_or(&none);
        let get = |key: &str| {
            let found = resource.attributes.iter().find(|a| a.key == key)?;
            found.value.as_ref().map(super::message::AnyValue::text).filter(|v| !v.is_empty())
        };
        let job = match (get("service.namespace"), get("service.name")) {
            (Some(space), Some(name)) => Some(format!("{space}/{name}")),
            (None, name) => name,
            (Some(_), None) => None,
        };
        let mut own = Vec::new();
        own.extend(job.map(|j| ("job".to_string(), j)));
        own.extend(get("service.instance.id").map(|i| ("instance".to_string(), i)));
        let mut b = Builder { own, all: HashMap::new(), newest_ms: i64::MIN };
        for m in r.scope_metrics.iter().flat_map(|s| &s.metrics) {
            let refused = one(&mut b, m);
            if let Err((n, why)) = refused {
                out.refused += n as i64;
                if out.why.is_empty() {
                    out.why = why;
                }
            }
        }
        let known = ["service.namespace", "service.name", "service.instance.id"];
        let rest: Vec<KeyValue> =
            resource.attributes.iter().filter(|a| !known.contains(&a.key.as_str())).cloned().collect();
        if !rest.is_empty() && !b.own.is_empty() && b.newest_ms > i64::MIN {
            let at_ms = b.newest_ms;
            match b.of_point(&rest) {
                Ok(labels) => b.put("target_info", &labels, None, at_ms, 1.0, 0),
                Err((_, why)) => tracing::warn!(why, "a resource is not described"),
            }
        }
        out.arrivals.extend(b.all.into_iter().map(|(labels, mut samples)| {
            samples.sort_by_key(|s| s.0);
            Arrival { labels, samples }
        }));
    }
    out
}

fn one(b: &mut Builder, m: &Metric) -> Result<(), (usize, String)> {
    let wrong = |n: usize| {
        let why = format!(
            "invalid temporality and type combination for metric {:?}: only cumulative ones are taken",
            m.name
        );
        Err((n, why))
    };
    let mut refused: Option<(usize, String)> = None;
    // Each point with what its series share.
    let mut points =
        |b: &mut Builder, of: &[KeyValue], put: &mut dyn FnMut(&mut Builder, &Labels)| match b.of_point(of) {
            Ok(labels) => put(b, &labels),
            Err((n, why)) => refused.get_or_insert((0, why)).0 += n,
        };
    if let Some(g) = &m.gauge {
        let name = metric(&m.name, &m.unit, Sort::Gauge);
        for p in &g.data_points {
            let v = p.as_double.or(p.as_int.map(|n| n as f64)).unwrap_or(0.0);
            points(b, &p.attributes, &mut |b, l| b.put(&name, l, None, ms(p.time_unix_nano), v, p.flags));
        }
    } else if let Some(s) = &m.sum {
        if s.aggregation_temporality != CUMULATIVE {
            return wrong(s.data_points.len());
        }
        let name = metric(&m.name, &m.unit, if s.is_monotonic { Sort::Counter } else { Sort::Other });
        for p in &s.data_points {
            let v = p.as_double.or(p.as_int.map(|n| n as f64)).unwrap_or(0.0);
            points(b, &p.attributes, &mut |b, l| b.put(&name, l, None, ms(p.time_unix_nano), v, p.flags));
        }
    } else if let Some(h) = &m.histogram {
        if h.aggregation_temporality != CUMULATIVE {
            return wrong(h.data_points.len());
        }
        let name = metric(&m.name, &m.unit, Sort::Other);
        let [count, sum, bucket] = ["count", "sum", "bucket"].map(|s| format!("{name}_{s}"));
        for p in &h.data_points {
            let at = ms(p.time_unix_nano);
            points(b, &p.attributes, &mut |b, l| {
                if let Some(v) = p.sum {
                    b.put(&sum, l, None, at, v, p.flags);
                }
                b.put(&count, l, None, at, p.count as f64, p.flags);
                let mut below = 0u64;
                for (bound, n) in p.explicit_bounds.iter().zip(&p.bucket_counts) {
                    below = below.saturating_add(*n);
                    b.put(&bucket, l, Some(("le", number(*bound))), at, below as f64, p.flags);
                }
                b.put(&bucket, l, Some(("le", "+Inf".into())), at, p.count as f64, p.flags);
            });
        }
    } else if let Some(s) = &m.summary {
        let name = metric(&m.name, &m.unit, Sort::Other);
        let [count, sum] = ["count", "sum"].map(|s| format!("{name}_{s}"));
        for p in &s.data_points {
            let at = ms(p.time_unix_nano);
            points(b, &p.attributes, &mut |b, l| {
                b.put(&sum, l, None, at, p.sum, p.flags);
                b.put(&count, l, None, at, p.count as f64, p.flags);
                for q in &p.quantile_values {
                    b.put(&name, l, Some(("quantile", number(q.quantile))), at, q.value, p.flags);
                }
            });
        }
    } else if let Some(e) = &m.exponential_histogram {
        let why = format!("exponential histograms are not supported by this version: {:?}", m.name);
        return Err((e.data_points.len(), why));
    }
    refused.map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    const JSON: &str = r#"{"resourceMetrics":[{"resource":{"attributes":[
        {"key":"service.name","value":{"stringValue":"shop"}},{"key":"service.namespace","value":{"stringValue":"eu"}},
        {"key":"service.instance.id","value":{"stringValue":"i1"}},{"key":"host.name","value":{"stringValue":"h"}}]},
      "scopeMetrics":[{"scope":{"name":"x"},"metrics":[
        {"name":"requests","unit":"1","sum":{"aggregationTemporality":2,"isMonotonic":true,"dataPoints":[
          {"attributes":[{"key":"a.b","value":{"intValue":"5"}},{"key":"a-b","value":{"boolValue":true}}],"timeUnixNano":"1500000000","asInt":"7"}]}},
        {"name":"temp","unit":"Cel","gauge":{"dataPoints":[{"timeUnixNano":2000000000,"asDouble":1.5},{"timeUnixNano":3000000000,"flags":1}]}},
        {"name":"lat","unit":"s","histogram":{"aggregationTemporality":"AGGREGATION_TEMPORALITY_CUMULATIVE","dataPoints":[
          {"timeUnixNano":"2000000000","count":"6","sum":3.5,"bucketCounts":["1","2","3"],"explicitBounds":[0.5,1]}]}},
        {"name":"q","summary":{"dataPoints":[{"timeUnixNano":"2000000000","count":"2","sum":1,"quantileValues":[{"quantile":0.5,"value":9}]}]}},
        {"name":"d","sum":{"aggregationTemporality":1,"dataPoints":[{"timeUnixNano":"1","asInt":"1"},{"timeUnixNano":"2","asInt":"1"}]}},
        {"name":"e","exponentialHistogram":{"dataPoints":[{"scale":1}]}}
      ]}]}]}"#;

    #[test]
    fn metrics_become_the_series_that_prometheus_makes() {
        let message: Export = serde_json::from_str(JSON).expect("json");
        let done = convert(&message);
        let mut shown: Vec<String> = done
            .arrivals
            .iter()
            .flat_map(|a| {
                a.samples.iter().map(|(t, v)| {
                    format!("{} {t} {}", a.labels, if v.is_nan() { "stale".into() } else { v.to_string() })
                })
            })
            .collect();
        shown.sort();
        let own = r#"instance="i1", job="eu/shop""#;
        assert_eq!(
            shown,
            [
                format!("lat_seconds_bucket{{{own}, le=\"+Inf\"}} 2000 6"),
                format!("lat_seconds_bucket{{{own}, le=\"0.5\"}} 2000 1"),
                format!("lat_seconds_bucket{{{own}, le=\"1\"}} 2000 3"),
                format!("lat_seconds_count{{{own}}} 2000 6"),
                format!("lat_seconds_sum{{{own}}} 2000 3.5"),
                format!("q_count{{{own}}} 2000 2"),
                format!("q_sum{{{own}}} 2000 1"),
                format!("q{{{own}, quantile=\"0.5\"}} 2000 9"),
                format!("requests_total{{a_b=\"true;5\", {own}}} 1500 7"),
                format!("target_info{{host_name=\"h\", {own}}} 3000 1"),
                format!("temp_celsius{{{own}}} 2000 1.5"),
                format!("temp_celsius{{{own}}} 3000 stale"),
            ]
        );
        assert_eq!(done.refused, 3);
        assert!(
            done.why.contains("invalid temporality and type combination for metric \"d\""),
            "{}",
            done.why
        );
    }

    /// The same message by both ways is the same series.
    #[test]
    fn protobuf_and_json_say_the_same() {
        use prost::Message;
        let message: Export = serde_json::from_str(JSON).expect("json");
        let again = Export::decode(message.encode_to_vec().as_slice()).expect("protobuf");
        assert_eq!(message, again);
        assert!(serde_json::from_str::<Export>(r#"{"resourceMetrics":[{"scopeMetrics":[{"metrics":[{"gauge":{"dataPoints":[{"asInt":"x"}]}}]}]}]}"#).is_err());
    }

    /// A million buckets of a point share what it says of itself; what is larger than any series may be is refused first.
    #[test]
    fn a_point_with_huge_attributes_is_refused_alone() {
        let point = |len: usize| {
            format!(
                r#"{{"attributes":[{{"key":"a","value":{{"stringValue":"{}"}}}}],"asDouble":1}}"#,
                "x".repeat(len)
            )
        };
        let text = format!(
            r#"{{"resourceMetrics":[{{"scopeMetrics":[{{"metrics":[{{"name":"g","gauge":{{"dataPoints":[{},{}]}}}}]}}]}}]}}"#,
            point(LABEL_BYTES_MAX),
            point(10)
        );
        let done = convert(&serde_json::from_str(&text).expect("json"));
        assert_eq!((done.refused, done.arrivals.len()), (1, 1));
        assert!(done.why.contains("attributes"), "{}", done.why);
    }
}
