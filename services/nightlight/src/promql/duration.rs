//! Durations as Prometheus writes them (`1h30m`), and arithmetic over them.

use super::ast::{Duration, Op};

const UNITS: [(&str, i64); 7] = [
    ("y", 365 * 86_400_000),
    ("w", 7 * 86_400_000),
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1000),
    ("ms", 1),
];

/// Longest duration, in milliseconds: Go's nanoseconds in an `i64` end here.
pub const MS_MAX: i64 = i64::MAX / 1_000_000;

/// Milliseconds of a text such as `1h30m`. Units come in order, each once.
pub fn parse(text: &str) -> Result<i64, String> {
    if text == "0" {
        return Ok(0);
    }
    let wrong = || format!("not a valid duration string: {}", crate::labels::quote(text));
    let (mut rest, mut total, mut from) = (text, 0i64, 0);
    if rest.is_empty() {
        return Err("empty duration string".into());
    }
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let letters = rest[digits..].bytes().take_while(u8::is_ascii_alphabetic).count();
        let (number, unit) = (&rest[..digits], &rest[digits..digits + letters]);
        let at = UNITS[from..].iter().position(|(u, _)| *u == unit).ok_or_else(wrong)? + from;
        let number: i64 = number
            .parse()
            .map_err(|_| if number.is_empty() { wrong() } else { "duration out of range".to_string() })?;
        total = number
            .checked_mul(UNITS[at].1)
            .and_then(|ms| total.checked_add(ms))
            .filter(|ms| *ms <= MS_MAX)
            .ok_or("duration out of range")?;
        from = at + 1;
        rest = &rest[digits + letters..];
    }
    Ok(total)
}

/// The text of a duration, as Prometheus prints it: years and weeks only where nothing is left over.
pub fn print(ms: i64) -> String {
    if ms == 0 {
        return "0s".into();
    }
    let mut out = String::new();
    if ms < 0 {
        out.push('-');
    }
    let mut left = ms.unsigned_abs();
    for (unit, size) in UNITS {
        let size = size as u64;
        let exact = matches!(unit, "y" | "w");
        if left >= size && (!exact || left.is_multiple_of(size)) {
            out.push_str(&format!("{}{unit}", left / size));
            left %= size;
        }
    }
    out
}

/// What a duration expression comes to, in milliseconds, in a query of this step and range.
pub fn resolve(d: &Duration, step_ms: i64, range_ms: i64) -> Result<i64, String> {
    let seconds = seconds(d, step_ms as f64 / 1000.0, range_ms as f64 / 1000.0)?;
    let ms = (seconds * 1000.0).round();
    if !ms.is_finite() || ms.abs() > MS_MAX as f64 {
        return Err("duration is out of range".into());
    }
    Ok(ms as i64)
}

fn seconds(d: &Duration, step: f64, range: f64) -> Result<f64, String> {
    let of = |d: &Duration| seconds(d, step, range);
    Ok(match d {
        Duration::Ms(ms) => *ms as f64 / 1000.0,
        Duration::Step => step,
        Duration::Range => range,
        Duration::Sign(negative, d) => of(d)? * if *negative { -1.0 } else { 1.0 },
        Duration::Paren(d) => of(d)?,
        Duration::Min(a, b) => of(a)?.min(of(b)?),
        Duration::Max(a, b) => of(a)?.max(of(b)?),
        Duration::Binary(op, a, b) => {
            let (a, b) = (of(a)?, of(b)?);
            match op {
                Op::Add => a + b,
                Op::Sub => a - b,
                Op::Mul => a * b,
                Op::Div if b == 0.0 => return Err("division by zero".into()),
                Op::Div => a / b,
                Op::Mod if b == 0.0 => return Err("modulo by zero".into()),
                Op::Mod => a % b,
                Op::Pow => a.powf(b),
                _ => return Err(format!("unexpected binary expression operator {:?}", op.as_str())),
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_and_printed() {
        for (text, ms, printed) in [
            ("5m", 300_000, "5m"),
            ("1h30m", 5_400_000, "1h30m"),
            ("90s", 90_000, "1m30s"),
            ("1y", 31_536_000_000, "1y"),
            ("8d", 691_200_000, "8d"),
            ("14d", 1_209_600_000, "2w"),
            ("1ms", 1, "1ms"),
            ("0s", 0, "0s"),
        ] {
            assert_eq!(parse(text), Ok(ms), "{text}");
            assert_eq!(print(ms), printed);
            assert_eq!(parse(printed), Ok(ms));
        }
        for text in ["", "5", "m", "1m1h", "1m1m", "-1m", "1.5h", "5M", "99999999999999999999s", "300y"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
