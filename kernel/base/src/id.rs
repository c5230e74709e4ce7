//! Identities of records.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// 128 bits that name one record for ever, also after a record of the same name was deleted and
/// made again. Printed as 32 hexadecimal digits. Drawn by `photon_rt::entropy`, or derived from a
/// parent and a role ([`Uid::derive`]) so that a repeated step finds the same child.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Uid(pub u128);

impl Uid {
    /// The child of `self` in `role`: the same parent and role give the same identity. Not a
    /// secret and not collision-proof against an adversary; both inputs are ours.
    pub fn derive(self, role: &str) -> Uid {
        // FNV-1a, 128 bit: tiny, stable for ever, no dependency.
        const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
        let mut h: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
        for b in self.0.to_be_bytes().iter().chain(role.as_bytes()) {
            h = (h ^ u128::from(*b)).wrapping_mul(PRIME);
        }
        Uid(h)
    }

    /// The first `n` hexadecimal digits of a well-mixed form, for device and directory names.
    pub fn short(self, n: usize) -> String {
        let mixed = self.derive("short").0;
        format!("{mixed:032x}").chars().take(n).collect()
    }
}

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Uid {
    type Err = Error;
    fn from_str(s: &str) -> Result<Self> {
        let bad = || Error::invalid("", "not an identity of 32 hexadecimal digits");
        if s.len() != 32 || !s.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(bad());
        }
        u128::from_str_radix(s, 16).map(Uid).map_err(|_| bad())
    }
}

impl TryFrom<String> for Uid {
    type Error = Error;
    fn try_from(s: String) -> Result<Self> {
        s.parse()
    }
}

impl From<Uid> for String {
    fn from(u: Uid) -> String {
        u.to_string()
    }
}

impl schemars::JsonSchema for Uid {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Uid".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({"type": "string", "pattern": "^[0-9a-f]{32}$"})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_what_it_parses_and_derives_steadily() {
        let u = Uid(0x1234);
        assert_eq!(u.to_string().parse::<Uid>(), Ok(u));
        assert_eq!(u.derive("port"), u.derive("port"));
        assert_ne!(u.derive("port"), u.derive("disk"));
        assert!("zz".parse::<Uid>().is_err());
    }
}
