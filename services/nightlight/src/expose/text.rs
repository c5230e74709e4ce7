//! Prometheus' text form, 0.0.4 and 1.0.0 (they differ by names in quotes, which are read in both).

use super::{
    Item, Kind, ParseError, Point, Sink,
    line::{Cursor, number, unescape},
};
use crate::labels::quote;

/// Reads a page.
pub fn parse<E: From<ParseError>>(page: &str, sink: Sink<'_, E>) -> Result<(), E> {
    let mut c = Cursor::new(page, false);
    let mut kind = (String::new(), Kind::Unknown);
    loop {
        c.blanks();
        c.entry = c.at;
        match c.byte() {
            None => return Ok(()),
            Some(b'\n' | b'\r') => c.at += 1,
            Some(b'#') => comment(&mut c, &mut kind, sink)?,
            Some(_) => point(&mut c, &kind, sink)?,
        }
    }
}

/// `# HELP`, `# TYPE`, or nothing of interest.
fn comment<E: From<ParseError>>(
    c: &mut Cursor<'_>,
    kind: &mut (String, Kind),
    sink: Sink<'_, E>,
) -> Result<(), E> {
    c.at += 1;
    c.blanks();
    let begun = c.at;
    let word = c.until(|b| matches!(b, b' ' | b'\t' | b'\n'));
    if !matches!(word, "HELP" | "TYPE") || !matches!(c.byte(), Some(b' ' | b'\t')) {
        c.at = begun;
        c.until(|b| b == b'\n');
        return Ok(());
    }
    c.blanks();
    let family = c.family().ok_or_else(|| c.unexpected(&format!("expected metric name after {word}")))?;
    c.blanks();
    let rest = c.until(|b| b == b'\n');
    let rest = rest.strip_suffix('\r').unwrap_or(rest);
    if word == "HELP" {
        return sink(Item::Help(&family, &unescape(rest)));
    }
    let found = match rest.trim_end_matches([' ', '\t']) {
        "counter" => Kind::Counter,
        "gauge" => Kind::Gauge,
        "histogram" => Kind::Histogram,
        "summary" => Kind::Summary,
        "untyped" => Kind::Unknown,
        other => return Err(ParseError(format!("invalid metric type {}", quote(other))).into()),
    };
    *kind = (family.to_string(), found);
    sink(Item::Type(&family, found))
}

/// The label of a series whose value is a number: a family's kind holds for its own series only.
pub(super) fn numeric(series: &str, (family, kind): &(String, Kind)) -> Option<&'static str> {
    kind.numeric().filter(|_| {
        let name = series.strip_prefix("{\"").unwrap_or(series);
        name.starts_with(family.as_str())
    })
}

/// A sample.
fn point<E: From<ParseError>>(c: &mut Cursor<'_>, kind: &(String, Kind), sink: Sink<'_, E>) -> Result<(), E> {
    let series = c.series(&mut |_, _| ())?;
    c.blanks();
    let token = c.until(|b| matches!(b, b' ' | b'\t' | b'\n' | b'{' | b'}'));
    let token = token.strip_suffix('\r').unwrap_or(token);
    if token.is_empty() {
        return Err(c.unexpected("expected value after metric").into());
    }
    let value = number(token).map_err(|e| c.wrong(e))?;
    c.blanks();
    let mut at_ms = None;
    if c.byte().is_some_and(|b| b == b'-' || b.is_ascii_digit()) {
        let start = c.at;
        c.at += 1;
        c.until(|b| !b.is_ascii_digit());
        let token = &c.text[start..c.at];
        at_ms = Some(token.parse::<i64>().map_err(|_| {
            c.wrong(format!("strconv.ParseInt: parsing {}: value out of range", quote(token)))
        })?);
        c.blanks();
    }
    match c.byte() {
        None | Some(b'\n' | b'\r') => {}
        Some(_) => return Err(c.unexpected("expected next entry after timestamp").into()),
    }
    let numeric = numeric(series, kind);
    sink(Item::Point(Point { series, numeric, value, at_ms, exemplar: None }))
}
