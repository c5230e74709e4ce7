//! Parameters of requests: the query string and a form body, and what instants and durations look like in them.

use axum::{
    body::to_bytes,
    extract::Request,
    http::{Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use photon_base::Timestamp;

/// Largest form, bytes.
const FORM_MAX: usize = 1 << 20;

/// An error in the API's form.
pub(super) struct Refusal {
    pub status: StatusCode,
    pub kind: &'static str,
    pub message: String,
}

impl Refusal {
    pub fn bad(message: impl Into<String>) -> Self {
        Refusal { status: StatusCode::BAD_REQUEST, kind: "bad_data", message: message.into() }
    }

    pub fn parameter(name: &str, why: impl std::fmt::Display) -> Self {
        Refusal::bad(format!("invalid parameter {}: {why}", crate::labels::quote(name)))
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let body = serde_json::json!({ "status": "error", "errorType": self.kind, "error": self.message });
        (self.status, [(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
    }
}

/// Names and values, those of the body first.
pub(super) struct Params(Vec<(String, String)>);

impl Params {
    pub async fn of(request: Request) -> Result<Self, Refusal> {
        let (head, body) = request.into_parts();
        let mut all = Vec::new();
        if head.method == Method::POST {
            let bytes = to_bytes(body, FORM_MAX).await;
            let bytes = bytes.map_err(|_| Refusal::bad(format!("a form has at most {FORM_MAX} bytes")))?;
            let text = std::str::from_utf8(&bytes).map_err(|_| Refusal::bad("the form is not UTF-8"))?;
            decode(text, &mut all)?;
        }
        decode(head.uri.query().unwrap_or_default(), &mut all)?;
        Ok(Params(all))
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str()).filter(|v| !v.is_empty())
    }

    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// An instant, milliseconds.
    pub fn time(&self, name: &str) -> Result<Option<i64>, Refusal> {
        self.get(name).map(|text| time(text).map_err(|e| Refusal::parameter(name, e))).transpose()
    }

    /// A length of time, milliseconds; greater than 0.
    pub fn duration(&self, name: &str) -> Result<Option<i64>, Refusal> {
        self.get(name).map(|text| duration(text).map_err(|e| Refusal::parameter(name, e))).transpose()
    }

    /// How many results are wanted; none: all.
    pub fn limit(&self) -> Result<usize, Refusal> {
        match self.get("limit").map(str::parse::<usize>) {
            None | Some(Ok(0)) => Ok(usize::MAX),
            Some(Ok(n)) => Ok(n),
            Some(Err(_)) => Err(Refusal::parameter("limit", "limit must be a whole number")),
        }
    }
}

/// `application/x-www-form-urlencoded`
fn decode(text: &str, out: &mut Vec<(String, String)>) -> Result<(), Refusal> {
    for pair in text.split('&').filter(|p| !p.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        out.push((percent(name)?, percent(value)?));
    }
    Ok(())
}

pub(super) fn percent(text: &str) -> Result<String, Refusal> {
    let wrong = || Refusal::bad("a parameter is not URL-encoded UTF-8");
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(b) = bytes.next() {
        out.push(match b {
            b'+' => b' ',
            b'%' => {
                let mut digit = || bytes.next().and_then(|b| (b as char).to_digit(16)).ok_or_else(wrong);
                (digit()? * 16 + digit()?) as u8
            }
            b => b,
        });
    }
    String::from_utf8(out).map_err(|_| wrong())
}

/// Seconds since 1970, or RFC 3339.
fn time(text: &str) -> Result<i64, String> {
    let wrong = || format!("cannot parse {} to a valid timestamp", crate::labels::quote(text));
    if let Ok(seconds) = text.parse::<f64>() {
        let ms = (seconds * 1000.0).round();
        return if ms.abs() < 9e15 { Ok(ms as i64) } else { Err(wrong()) };
    }
    text.parse::<Timestamp>().map(|t| t.0 as i64).map_err(|_| wrong())
}

fn duration(text: &str) -> Result<i64, String> {
    let wrong = || format!("cannot parse {} to a valid duration", crate::labels::quote(text));
    let ms = match text.parse::<f64>() {
        Ok(seconds) => (seconds * 1000.0).round(),
        Err(_) => crate::promql::duration::parse(text).map_err(|_| wrong())? as f64,
    };
    match ms {
        ms if !ms.is_finite() || ms.abs() > 9e15 => Err(wrong()),
        ms if ms <= 0.0 => {
            Err("zero or negative query resolution step widths are not accepted. Try a positive integer"
                .into())
        }
        ms => Ok(ms as i64),
    }
}
