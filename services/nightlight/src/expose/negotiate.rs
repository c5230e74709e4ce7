//! Which form is spoken: what a scraper says that it reads, and what an answer says that it is.

use super::escape::Scheme;

/// How a page is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Prometheus' text.
    Text,
    /// OpenMetrics' text.
    OpenMetrics,
    /// `io.prometheus.client.MetricFamily`, each after its length.
    Protobuf,
}

/// A form with its version, as `scrape_protocols` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[allow(missing_docs, reason = "they are Prometheus' names")]
pub enum Protocol {
    PrometheusProto,
    #[serde(rename = "OpenMetricsText0.0.1")]
    OpenMetricsText0_0_1,
    #[serde(rename = "OpenMetricsText1.0.0")]
    OpenMetricsText1_0_0,
    #[serde(rename = "PrometheusText0.0.4")]
    PrometheusText0_0_4,
    #[serde(rename = "PrometheusText1.0.0")]
    PrometheusText1_0_0,
}

impl Protocol {
    /// What Prometheus 3 asks for if nobody says anything.
    pub const DEFAULT: [Protocol; 4] = [
        Protocol::OpenMetricsText1_0_0,
        Protocol::OpenMetricsText0_0_1,
        Protocol::PrometheusText1_0_0,
        Protocol::PrometheusText0_0_4,
    ];

    fn media(self) -> (&'static str, bool) {
        match self {
            Protocol::PrometheusProto => (
                "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited",
                false,
            ),
            Protocol::OpenMetricsText0_0_1 => ("application/openmetrics-text;version=0.0.1", false),
            Protocol::OpenMetricsText1_0_0 => ("application/openmetrics-text;version=1.0.0", true),
            Protocol::PrometheusText0_0_4 => ("text/plain;version=0.0.4", false),
            Protocol::PrometheusText1_0_0 => ("text/plain;version=1.0.0", true),
        }
    }

    /// How its pages are read.
    pub fn format(self) -> Format {
        match self {
            Protocol::PrometheusProto => Format::Protobuf,
            Protocol::OpenMetricsText0_0_1 | Protocol::OpenMetricsText1_0_0 => Format::OpenMetrics,
            Protocol::PrometheusText0_0_4 | Protocol::PrometheusText1_0_0 => Format::Text,
        }
    }
}

/// The header `Accept` of a scrape, the preferred form first. `utf8`: names of any alphabet are taken.
pub fn accept(protocols: &[Protocol], utf8: bool) -> String {
    let mut weight = protocols.len() + 2;
    let mut all = Vec::new();
    for p in protocols {
        let (media, escapes) = p.media();
        let escaping = match (escapes, utf8) {
            (true, true) => ";escaping=allow-utf-8",
            (true, false) => ";escaping=underscores",
            (false, _) => "",
        };
        weight -= 1;
        all.push(format!("{media}{escaping};q=0.{weight}"));
    }
    weight -= 1;
    all.push(format!("*/*;q=0.{weight}"));
    all.join(",")
}

/// How an answer with this `Content-Type` is written. One that does not say is read as `fallback`, if there is one.
pub fn format_of(content_type: Option<&str>, fallback: Option<Protocol>) -> Result<Format, String> {
    let fallback = fallback.map(Protocol::format);
    let Some(text) = content_type.filter(|t| !t.is_empty()) else {
        return fallback.ok_or_else(|| {
            "non-compliant scrape target sending blank Content-Type and no fallback_scrape_protocol specified for target"
                .into()
        });
    };
    let mut parts = text.split(';').map(|p| p.trim().to_ascii_lowercase());
    match parts.next().unwrap_or_default().as_str() {
        "application/openmetrics-text" => Ok(Format::OpenMetrics),
        "text/plain" => Ok(Format::Text),
        "application/vnd.google.protobuf" => {
            let ours = |p: String| match p.split_once('=') {
                Some(("proto", v)) => v.trim_matches('"') == "io.prometheus.client.metricfamily",
                Some(("encoding", v)) => v.trim_matches('"') == "delimited",
                _ => true,
            };
            if parts.all(ours) {
                return Ok(Format::Protobuf);
            }
            fallback.ok_or_else(|| unsupported(text))
        }
        _ => fallback.ok_or_else(|| unsupported(text)),
    }
}

fn unsupported(text: &str) -> String {
    let text: String = text.chars().take(100).collect();
    let text = crate::labels::quote(&text);
    format!("received unsupported Content-Type {text} and no fallback_scrape_protocol specified for target")
}

/// How a page is written for whoever sends this `Accept`: OpenMetrics if it is named, and names as it can read them.
pub fn wanted(accept: &str) -> (Format, Scheme) {
    for media in accept.split(',') {
        let mut parts = media.split(';').map(str::trim);
        let format = match parts.next() {
            Some("application/openmetrics-text") => Format::OpenMetrics,
            Some("text/plain") => Format::Text,
            _ => continue,
        };
        let scheme = parts.filter_map(|p| p.strip_prefix("escaping=")).find_map(Scheme::of);
        return (format, scheme.unwrap_or(Scheme::Underscores));
    }
    (Format::Text, Scheme::Underscores)
}
