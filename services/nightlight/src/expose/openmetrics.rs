//! OpenMetrics 1.0 (and 0.0.1, which reads the same). Series that say when a counter was made (`_created`) are series
//! like others, as Prometheus takes them by default.

use super::{
    Exemplar, Item, Kind, ParseError, Point, Sink,
    line::{Cursor, number, unescape},
    text::numeric,
};
use crate::labels::{Str, quote};

/// Most characters of names and values of an exemplar (OpenMetrics 1.0, "Exemplars").
const EXEMPLAR_CHARS_MAX: usize = 128;

/// Reads a page.
pub fn parse<E: From<ParseError>>(page: &str, sink: Sink<'_, E>) -> Result<(), E> {
    let mut c = Cursor::new(page, true);
    let mut kind = (String::new(), Kind::Unknown);
    loop {
        c.entry = c.at;
        match c.byte() {
            None => return Err(ParseError("data does not end with # EOF".into()).into()),
            Some(b'#') => {
                if meta(&mut c, &mut kind, sink)? {
                    return match &c.text[c.at..] {
                        "" | "\n" => Ok(()),
                        _ => Err(ParseError("unexpected data after # EOF".into()).into()),
                    };
                }
            }
            Some(_) => point(&mut c, &kind, sink)?,
        }
    }
}

/// A line that tells of a family; true for the last line of all.
fn meta<E: From<ParseError>>(
    c: &mut Cursor<'_>,
    kind: &mut (String, Kind),
    sink: Sink<'_, E>,
) -> Result<bool, E> {
    let rest = &c.text[c.at..];
    if rest == "# EOF" || rest.starts_with("# EOF\n") {
        c.at += "# EOF".len();
        return Ok(true);
    }
    let word = ["HELP", "TYPE", "UNIT"].into_iter().find(|w| {
        rest.strip_prefix("# ").and_then(|r| r.strip_prefix(w)).is_some_and(|r| r.starts_with(' '))
    });
    let Some(word) = word else { return Err(c.unexpected("expected a valid start token").into()) };
    c.at += "# TYPE ".len();
    let family = c.family().ok_or_else(|| c.unexpected(&format!("expected metric name after {word}")))?;
    if c.byte() != Some(b' ') {
        // A family may have no words about it; a type is not left out.
        if word == "TYPE" || c.byte() != Some(b'\n') {
            return Err(c.unexpected(&format!("expected text in {word}")).into());
        }
    } else {
        c.at += 1;
    }
    let text = c.until(|b| b == b'\n');
    if c.byte().is_none() {
        return Err(ParseError("data does not end with # EOF".into()).into());
    }
    c.at += 1;
    match word {
        "HELP" => sink(Item::Help(&family, &unescape(text)))?,
        "UNIT" => {
            let fits = family.strip_suffix(text).is_some_and(|f| f.ends_with('_')) || text.is_empty();
            if !fits {
                let (unit, family) = (quote(text), quote(&family));
                return Err(ParseError(format!("unit {unit} not a suffix of metric {family}")).into());
            }
            sink(Item::Unit(&family, text))?;
        }
        _ => {
            let found = match text {
                "counter" => Kind::Counter,
                "gauge" => Kind::Gauge,
                "histogram" => Kind::Histogram,
                "gaugehistogram" => Kind::GaugeHistogram,
                "summary" => Kind::Summary,
                "info" => Kind::Info,
                "stateset" => Kind::StateSet,
                "unknown" => Kind::Unknown,
                other => return Err(ParseError(format!("invalid metric type {}", quote(other))).into()),
            };
            *kind = (family.to_string(), found);
            sink(Item::Type(&family, found))?;
        }
    }
    Ok(false)
}

/// ` 1.5`: one blank, then a token.
fn token<'a>(c: &mut Cursor<'a>) -> Option<&'a str> {
    let mut ahead = *c;
    ahead.at += usize::from(ahead.byte() == Some(b' '));
    let token = ahead.until(|b| matches!(b, b' ' | b'\n'));
    if ahead.at == c.at || token.is_empty() || token.starts_with('#') {
        return None;
    }
    *c = ahead;
    Some(token)
}

/// Seconds, to milliseconds.
fn instant(c: &Cursor<'_>, token: &str) -> Result<i64, ParseError> {
    let seconds = number(token).map_err(|e| c.wrong(e))?;
    let ms = (seconds * 1000.0).round();
    if !ms.is_finite() || ms.abs() > 9e15 {
        return Err(c.wrong(format!("invalid timestamp {seconds}")));
    }
    Ok(ms as i64)
}

fn point<E: From<ParseError>>(c: &mut Cursor<'_>, kind: &(String, Kind), sink: Sink<'_, E>) -> Result<(), E> {
    let series = c.series(&mut |_, _| ())?;
    let value = token(c).ok_or_else(|| c.unexpected("expected value after metric"))?;
    let value = number(value).map_err(|e| c.wrong(e))?;
    let at_ms = token(c).map(|t| instant(c, t)).transpose()?;
    let exemplar = exemplar(c)?;
    if c.byte() != Some(b'\n') {
        let what = if at_ms.is_some() || exemplar.is_some() {
            "expected next entry after timestamp"
        } else {
            "expected timestamp or new record"
        };
        return Err(match c.byte() {
            None => ParseError("data does not end with # EOF".into()),
            Some(_) => c.unexpected(what),
        }
        .into());
    }
    c.at += 1;
    let numeric = numeric(series, kind);
    sink(Item::Point(Point { series, numeric, value, at_ms, exemplar }))
}

/// ` # {a="b"} 1 2.5`
fn exemplar(c: &mut Cursor<'_>) -> Result<Option<Exemplar>, ParseError> {
    if !c.text[c.at..].starts_with(" # {") {
        return Ok(None);
    }
    c.at += " # ".len();
    let mut labels: Vec<(String, String)> = Vec::new();
    let mut chars = 0;
    // "named" already: what stands in quotes alone would be a metric's name, which has no place here.
    c.labels(true, &mut |name, value| {
        chars += name.chars().count() + value.chars().count();
        labels.push((unescape(name).into_owned(), value.into_owned()));
    })?;
    if chars > EXEMPLAR_CHARS_MAX {
        return Err(c.wrong(format!("exemplar labels have {chars} characters, at most {EXEMPLAR_CHARS_MAX}")));
    }
    let value = token(c).ok_or_else(|| c.unexpected("expected value after exemplar labels"))?;
    let value = number(value).map_err(|e| c.wrong(e))?;
    let at_ms = token(c).map(|t| instant(c, t)).transpose()?;
    Ok(Some(Exemplar { labels, value, at_ms }))
}

/// An exemplar's labels, shared.
impl Exemplar {
    /// As a set.
    pub fn label_set(&self) -> crate::labels::Labels {
        crate::labels::Labels::new(
            self.labels.iter().map(|(n, v)| (Str::from(n.as_str()), Str::from(v.as_str()))),
        )
    }
}
