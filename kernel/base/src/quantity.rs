//! Quantities with units.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// A size in bytes, written `128MiB`, `10GiB`, `1500MB` or a plain number of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Bytes(pub u64);

const UNITS: [(&str, u64); 11] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("PiB", 1 << 50),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("PB", 1_000_000_000_000_000),
    ("B", 1),
];

impl Bytes {
    /// `n` mebibytes.
    pub const fn mib(n: u64) -> Self {
        Bytes(n << 20)
    }

    /// `n` gibibytes.
    pub const fn gib(n: u64) -> Self {
        Bytes(n << 30)
    }
}

impl FromStr for Bytes {
    type Err = Error;
    fn from_str(s: &str) -> Result<Self> {
        let bad = |why: &str| {
            let shown: String = s.chars().take(40).collect();
            Error::invalid("", format!("{shown:?} is not a size")).why(why).hint("write 128MiB or 10GiB")
        };
        let digits = s.len() - s.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, unit) = s.split_at(digits);
        let n: u64 = number.parse().map_err(|_| bad("it does not start with a whole number below 2^64"))?;
        let scale =
            match unit.trim_start() {
                "" => 1,
                u => UNITS.iter().find(|(name, _)| *name == u).map(|(_, v)| *v).ok_or_else(|| {
                    bad("the unit is none of B, kB, MB, GB, TB, PB, KiB, MiB, GiB, TiB, PiB")
                })?,
            };
        n.checked_mul(scale).map(Bytes).ok_or_else(|| bad("it is above 2^64 bytes"))
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, scale) in UNITS[..5].iter().rev() {
            if self.0 >= *scale && self.0.is_multiple_of(*scale) {
                return write!(f, "{}{name}", self.0 / scale);
            }
        }
        write!(f, "{}B", self.0)
    }
}

impl TryFrom<String> for Bytes {
    type Error = Error;
    fn try_from(s: String) -> Result<Self> {
        s.parse()
    }
}

impl From<Bytes> for String {
    fn from(b: Bytes) -> String {
        b.to_string()
    }
}

impl schemars::JsonSchema for Bytes {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Bytes".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({"type": "string", "pattern": "^[0-9]+ ?([KMGTP]iB|[kMGTP]?B)?$"})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips_and_refuses() {
        for (text, bytes, printed) in [
            ("128MiB", 128 << 20, "128MiB"),
            ("1500MB", 1_500_000_000, "1500000000B"),
            ("0", 0, "0B"),
            ("1024", 1024, "1KiB"),
        ] {
            let b: Bytes = text.parse().expect("valid size");
            assert_eq!(b.0, bytes);
            assert_eq!(b.to_string(), printed);
            assert_eq!(printed.parse::<Bytes>(), Ok(b));
        }
        for bad in ["", "MiB", "-1", "1.5GiB", "1XB", "99999999999999999999", "18446744073709551615PiB"] {
            assert!(bad.parse::<Bytes>().is_err(), "{bad}");
        }
    }
}
