//! Histograms as people and JSON see them.

use super::Histogram;
use std::fmt::{self, Display, Formatter, Write};

/// A number as Go's `%g` writes it.
pub fn go_float(v: f64) -> String {
    if v.is_nan() {
        return "NaN".into();
    }
    if v.is_infinite() {
        return if v > 0.0 { "+Inf".into() } else { "-Inf".into() };
    }
    let short = format!("{v:e}");
    let power: i32 = short.split_once('e').and_then(|(_, e)| e.parse().ok()).unwrap_or(0);
    if (-4..6).contains(&power) {
        return format!("{v}");
    }
    exponent(v)
}

fn exponent(v: f64) -> String {
    let text = format!("{v:e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |e| ('-', e));
    format!("{digits}e{sign}{exponent:0>2}")
}

/// `{count:3, sum:4.5, (0.5,1]:3}`
impl Display for Histogram {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{{count:{}, sum:{}", go_float(self.count), go_float(self.sum))?;
        for b in self.buckets() {
            let (open, close) = (if b.lower_in { '[' } else { '(' }, if b.upper_in { ']' } else { ')' });
            let (lower, upper) = (go_float(b.lower), go_float(b.upper));
            write!(f, ", {open}{lower},{upper}{close}:{}", go_float(b.count))?;
        }
        f.write_char('}')
    }
}

impl Histogram {
    /// As the HTTP API writes it: `{"count":"3","sum":"4.5","buckets":[[0,"0.5","1","3"]]}`. A bucket begins with
    /// which of its bounds belong to it: 0 the upper, 1 the lower, 2 none, 3 both. `number` writes numbers.
    pub fn json(&self, number: &dyn Fn(f64) -> String) -> String {
        let mut out = format!("{{\"count\":\"{}\",\"sum\":\"{}\"", number(self.count), number(self.sum));
        for (i, b) in self.buckets().into_iter().enumerate() {
            out.push_str(if i == 0 { ",\"buckets\":[" } else { "," });
            let kind = match (b.lower_in, b.upper_in) {
                (false, true) => 0,
                (true, false) => 1,
                (false, false) => 2,
                (true, true) => 3,
            };
            let (lower, upper, count) = (number(b.lower), number(b.upper), number(b.count));
            let _ = write!(out, "[{kind},\"{lower}\",\"{upper}\",\"{count}\"]"); // a String takes all
        }
        out.push_str(if out.contains('[') { "]}" } else { "}" });
        out
    }
}
