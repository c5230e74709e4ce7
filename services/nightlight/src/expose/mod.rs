//! What processes tell of themselves: Prometheus' text 0.0.4 and 1.0.0 ([`text`]), OpenMetrics 1.0 ([`openmetrics`]) and
//! the delimited protobuf form ([`protobuf`]), read; which of them is spoken ([`negotiate`]); names for readers that know
//! only the old alphabet ([`escape`]); and text written, for federation ([`write`]).
//!
//! Readers are pure: bytes in, [`Item`]s out, in their order. They hold nothing but the line they are at. A series comes
//! as the text that names it (`name{a="b"}`), so that whoever reads the same page again and again finds it by these
//! bytes; [`labels_of`] looks into it. Errors have Prometheus' words wherever we know them.

pub mod escape;
mod line;
pub mod negotiate;
pub mod openmetrics;
pub mod protobuf;
#[cfg(test)]
mod tests;
pub mod text;
pub mod write;

pub use line::labels_of;
pub use negotiate::Format;

/// Why a page can't be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ParseError(pub String);

/// What a family measures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs, reason = "they are what OpenMetrics calls them")]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
    GaugeHistogram,
    Summary,
    Info,
    StateSet,
    #[default]
    Unknown,
}

impl Kind {
    /// As Prometheus' API names it.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
            Kind::GaugeHistogram => "gaugehistogram",
            Kind::Summary => "summary",
            Kind::Info => "info",
            Kind::StateSet => "stateset",
            Kind::Unknown => "unknown",
        }
    }

    /// The kind of this name.
    pub fn of(name: &str) -> Kind {
        use Kind::*;
        let all = [Counter, Gauge, Histogram, GaugeHistogram, Summary, Info, StateSet];
        all.into_iter().find(|k| k.as_str() == name).unwrap_or_default()
    }

    /// The label whose value is a number, if there is one.
    fn numeric(self) -> Option<&'static str> {
        match self {
            Kind::Histogram | Kind::GaugeHistogram => Some("le"),
            Kind::Summary => Some("quantile"),
            _ => None,
        }
    }
}

/// A sample that tells of one event among those counted.
#[derive(Clone, Debug, PartialEq)]
pub struct Exemplar {
    /// What it is called, a trace's identity most often.
    pub labels: Vec<(String, String)>,
    /// What was measured.
    pub value: f64,
    /// When, milliseconds.
    pub at_ms: Option<i64>,
}

/// One sample.
#[derive(Clone, Debug, PartialEq)]
pub struct Point<'a> {
    /// The series as it is written; see [`labels_of`].
    pub series: &'a str,
    /// Label whose value has to be written as a number of OpenMetrics (`1.0`, not `1`), so that all exporters mean
    /// the same series. Prometheus 3 does so too.
    pub numeric: Option<&'static str>,
    /// Value.
    pub value: f64,
    /// When, milliseconds, if the process says so.
    pub at_ms: Option<i64>,
    /// Example.
    pub exemplar: Option<Exemplar>,
}

/// A piece of a page.
#[derive(Clone, Debug, PartialEq)]
pub enum Item<'a> {
    /// A sample.
    Point(Point<'a>),
    /// What the family of this name is.
    Type(&'a str, Kind),
    /// What it is for.
    Help(&'a str, &'a str),
    /// What it is measured in.
    Unit(&'a str, &'a str),
}

/// Takes pieces; its error ends the reading.
pub type Sink<'s, E> = &'s mut dyn FnMut(Item<'_>) -> Result<(), E>;

/// Reads a page. What `sink` refuses ends it.
pub fn parse<E: From<ParseError>>(format: Format, page: &[u8], sink: Sink<'_, E>) -> Result<(), E> {
    match format {
        Format::Protobuf => protobuf::parse(page, sink),
        Format::OpenMetrics => openmetrics::parse(utf8(page)?, sink),
        Format::Text => text::parse(utf8(page)?, sink),
    }
}

fn utf8(page: &[u8]) -> Result<&str, ParseError> {
    std::str::from_utf8(page).map_err(|e| {
        let line = page[..e.valid_up_to()].iter().filter(|b| **b == b'\n').count() + 1;
        ParseError(format!("invalid UTF-8 in line {line}"))
    })
}
