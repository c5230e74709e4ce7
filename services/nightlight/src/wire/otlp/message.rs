//! OpenTelemetry's metrics (opentelemetry-proto 1.x, `ExportMetricsServiceRequest`), as protobuf and as JSON.
//!
//! Written by hand for the fields that have a meaning here: generated code (opentelemetry-proto) brings 76 packages. A
//! `oneof` is read as optional fields, which is the same on the wire.

use prost::Message;
use serde::{Deserialize, Deserializer, de::Error as _};

/// A whole number, which JSON may write in quotes.
fn whole<'de, D: Deserializer<'de>, T: std::str::FromStr>(d: D) -> Result<T, D::Error> {
    let text = match serde_json::Value::deserialize(d)? {
        serde_json::Value::String(s) => s,
        serde_json::Value::Number(n) => n.to_string(),
        other => return Err(D::Error::custom(format!("{other} is no number"))),
    };
    text.parse().map_err(|_| D::Error::custom(format!("{text:?} is no whole number")))
}

fn maybe<'de, D: Deserializer<'de>, T: std::str::FromStr>(d: D) -> Result<Option<T>, D::Error> {
    whole(d).map(Some)
}

#[derive(Deserialize)]
struct Number(#[serde(deserialize_with = "whole")] u64);

fn wholes<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<u64>, D::Error> {
    Ok(Vec::<Number>::deserialize(d)?.into_iter().map(|n| n.0).collect())
}

/// A number that may be `"NaN"` or `"Infinity"`.
fn real<'de, D: Deserializer<'de>>(d: D) -> Result<f64, D::Error> {
    match serde_json::Value::deserialize(d)? {
        serde_json::Value::Number(n) => n.as_f64().ok_or_else(|| D::Error::custom("no number")),
        serde_json::Value::String(s) => match s.as_str() {
            "Infinity" => Ok(f64::INFINITY),
            "-Infinity" => Ok(f64::NEG_INFINITY),
            text => text.parse().map_err(|_| D::Error::custom(format!("{text:?} is no number"))),
        },
        other => Err(D::Error::custom(format!("{other} is no number"))),
    }
}

fn maybe_real<'de, D: Deserializer<'de>>(d: D) -> Result<Option<f64>, D::Error> {
    real(d).map(Some)
}

/// Its number, or its name.
fn temporality<'de, D: Deserializer<'de>>(d: D) -> Result<i32, D::Error> {
    match serde_json::Value::deserialize(d)? {
        serde_json::Value::String(s) if s.ends_with("CUMULATIVE") => Ok(CUMULATIVE),
        serde_json::Value::String(s) if s.ends_with("DELTA") => Ok(1),
        serde_json::Value::Number(n) => Ok(n.as_i64().and_then(|n| i32::try_from(n).ok()).unwrap_or(0)),
        _ => Ok(0),
    }
}

/// `AGGREGATION_TEMPORALITY_CUMULATIVE`
pub const CUMULATIVE: i32 = 2;

/// Structures that are read from both forms: fields that are absent have their defaults.
macro_rules! messages {
    ($($(#[$about:meta])* pub struct $name:ident { $($fields:tt)* })*) => {$(
        $(#[$about])*
        #[derive(Clone, PartialEq, Message, Deserialize)]
        #[serde(default, rename_all = "camelCase")]
        pub struct $name { $($fields)* }
    )*};
}

messages! {
    pub struct Export {
        #[prost(message, repeated, tag = "1")]
        pub resource_metrics: Vec<ResourceMetrics>,
    }

    pub struct ResourceMetrics {
        #[prost(message, optional, tag = "1")]
        pub resource: Option<Resource>,
        #[prost(message, repeated, tag = "2")]
        pub scope_metrics: Vec<ScopeMetrics>,
    }

    pub struct Resource {
        #[prost(message, repeated, tag = "1")]
        pub attributes: Vec<KeyValue>,
    }

    pub struct ScopeMetrics {
        #[prost(message, repeated, tag = "2")]
        pub metrics: Vec<Metric>,
    }

    pub struct Metric {
        #[prost(string, tag = "1")]
        pub name: String,
        #[prost(string, tag = "3")]
        pub unit: String,
        #[prost(message, optional, tag = "5")]
        pub gauge: Option<Sum>,
        #[prost(message, optional, tag = "7")]
        pub sum: Option<Sum>,
        #[prost(message, optional, tag = "9")]
        pub histogram: Option<Histogram>,
        #[prost(message, optional, tag = "10")]
        pub exponential_histogram: Option<Exponential>,
        #[prost(message, optional, tag = "11")]
        pub summary: Option<Summary>,
    }

    /// A sum; and a gauge, which has only points.
    pub struct Sum {
        #[prost(message, repeated, tag = "1")]
        pub data_points: Vec<NumberPoint>,
        #[prost(int32, tag = "2")]
        #[serde(deserialize_with = "temporality")]
        pub aggregation_temporality: i32,
        #[prost(bool, tag = "3")]
        pub is_monotonic: bool,
    }

    pub struct NumberPoint {
        #[prost(message, repeated, tag = "7")]
        pub attributes: Vec<KeyValue>,
        #[prost(fixed64, tag = "3")]
        #[serde(deserialize_with = "whole")]
        pub time_unix_nano: u64,
        #[prost(double, optional, tag = "4")]
        #[serde(deserialize_with = "maybe_real")]
        pub as_double: Option<f64>,
        #[prost(sfixed64, optional, tag = "6")]
        #[serde(deserialize_with = "maybe")]
        pub as_int: Option<i64>,
        #[prost(uint32, tag = "8")]
        pub flags: u32,
    }

    pub struct Histogram {
        #[prost(message, repeated, tag = "1")]
        pub data_points: Vec<HistogramPoint>,
        #[prost(int32, tag = "2")]
        #[serde(deserialize_with = "temporality")]
        pub aggregation_temporality: i32,
    }

    pub struct HistogramPoint {
        #[prost(message, repeated, tag = "9")]
        pub attributes: Vec<KeyValue>,
        #[prost(fixed64, tag = "3")]
        #[serde(deserialize_with = "whole")]
        pub time_unix_nano: u64,
        #[prost(fixed64, tag = "4")]
        #[serde(deserialize_with = "whole")]
        pub count: u64,
        #[prost(double, optional, tag = "5")]
        #[serde(deserialize_with = "maybe_real")]
        pub sum: Option<f64>,
        #[prost(fixed64, repeated, tag = "6")]
        #[serde(deserialize_with = "wholes")]
        pub bucket_counts: Vec<u64>,
        #[prost(double, repeated, tag = "7")]
        pub explicit_bounds: Vec<f64>,
        #[prost(uint32, tag = "10")]
        pub flags: u32,
    }

    /// Only counted, to say how many are refused.
    pub struct Exponential {
        #[prost(message, repeated, tag = "1")]
        pub data_points: Vec<Nothing>,
    }

    pub struct Nothing {}

    pub struct Summary {
        #[prost(message, repeated, tag = "1")]
        pub data_points: Vec<SummaryPoint>,
    }

    pub struct SummaryPoint {
        #[prost(message, repeated, tag = "7")]
        pub attributes: Vec<KeyValue>,
        #[prost(fixed64, tag = "3")]
        #[serde(deserialize_with = "whole")]
        pub time_unix_nano: u64,
        #[prost(fixed64, tag = "4")]
        #[serde(deserialize_with = "whole")]
        pub count: u64,
        #[prost(double, tag = "5")]
        #[serde(deserialize_with = "real")]
        pub sum: f64,
        #[prost(message, repeated, tag = "6")]
        pub quantile_values: Vec<Quantile>,
        #[prost(uint32, tag = "8")]
        pub flags: u32,
    }

    pub struct Quantile {
        #[prost(double, tag = "1")]
        #[serde(deserialize_with = "real")]
        pub quantile: f64,
        #[prost(double, tag = "2")]
        #[serde(deserialize_with = "real")]
        pub value: f64,
    }

    pub struct KeyValue {
        #[prost(string, tag = "1")]
        pub key: String,
        #[prost(message, optional, tag = "2")]
        pub value: Option<AnyValue>,
    }

    pub struct AnyValue {
        #[prost(string, optional, tag = "1")]
        pub string_value: Option<String>,
        #[prost(bool, optional, tag = "2")]
        pub bool_value: Option<bool>,
        #[prost(int64, optional, tag = "3")]
        #[serde(deserialize_with = "maybe")]
        pub int_value: Option<i64>,
        #[prost(double, optional, tag = "4")]
        #[serde(deserialize_with = "maybe_real")]
        pub double_value: Option<f64>,
        #[prost(message, optional, tag = "5")]
        pub array_value: Option<Values>,
        #[prost(message, optional, tag = "6")]
        pub kvlist_value: Option<Pairs>,
    }

    pub struct Values {
        #[prost(message, repeated, tag = "1")]
        pub values: Vec<AnyValue>,
    }

    pub struct Pairs {
        #[prost(message, repeated, tag = "1")]
        pub values: Vec<KeyValue>,
    }
}

/// `ExportMetricsServiceResponse`
#[derive(Clone, PartialEq, Message)]
pub struct Answer {
    #[prost(message, optional, tag = "1")]
    pub partial_success: Option<Partial>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Partial {
    #[prost(int64, tag = "1")]
    pub rejected_data_points: i64,
    #[prost(string, tag = "2")]
    pub error_message: String,
}

impl AnyValue {
    /// As a label's value.
    pub fn text(&self) -> String {
        match self {
            AnyValue { string_value: Some(s), .. } => s.clone(),
            AnyValue { bool_value: Some(b), .. } => b.to_string(),
            AnyValue { int_value: Some(n), .. } => n.to_string(),
            AnyValue { double_value: Some(v), .. } => crate::promql::number(*v),
            AnyValue { array_value: None, kvlist_value: None, .. } => String::new(),
            _ => self.json().to_string(),
        }
    }

    fn json(&self) -> serde_json::Value {
        let pair =
            |kv: &KeyValue| (kv.key.clone(), kv.value.as_ref().map_or(serde_json::Value::Null, Self::json));
        match self {
            AnyValue { array_value: Some(a), .. } => a.values.iter().map(Self::json).collect(),
            AnyValue { kvlist_value: Some(m), .. } => m.values.iter().map(pair).collect(),
            AnyValue { bool_value: Some(b), .. } => (*b).into(),
            AnyValue { int_value: Some(n), .. } => (*n).into(),
            AnyValue { double_value: Some(v), .. } => (*v).into(),
            _ => self.text().into(),
        }
    }
}
