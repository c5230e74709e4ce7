//! Domain names in wire form (RFC 1035 section 3.1), compared without regard to case (RFC 4343).

use photon_base::{Error, Result};
use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// Longest name in bytes, the root label included.
pub const LEN_MAX: usize = 255;

/// A name: length-prefixed labels in lower case, ending with the empty label.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(Vec<u8>);

impl Name {
    /// Reads `a.demo.photon.internal`, with or without a final dot. Labels of 1–63 visible ASCII
    /// characters; no escapes.
    pub fn from_text(text: &str) -> Result<Name> {
        let bad = || {
            let shown: String = text.chars().take(80).collect();
            Error::invalid("", format!("{shown:?} is not a domain name"))
        };
        let text = text.strip_suffix('.').unwrap_or(text);
        let mut wire = Vec::with_capacity(text.len() + 2);
        for label in text.split('.').filter(|_| !text.is_empty()) {
            if !(1..=63).contains(&label.len()) || !label.bytes().all(|b| b.is_ascii_graphic() && b != b'\\')
            {
                return Err(bad());
            }
            wire.push(label.len() as u8);
            wire.extend(label.bytes().map(|b| b.to_ascii_lowercase()));
        }
        wire.push(0);
        if wire.len() > LEN_MAX { Err(bad()) } else { Ok(Name(wire)) }
    }

    /// Reads a name at `at` of `message` and says where the next field starts. Compression pointers
    /// must point backwards, each further than the one before: so there are no loops.
    pub fn parse(message: &[u8], at: usize) -> Option<(Name, usize)> {
        let mut wire = Vec::new();
        let (mut pos, mut end, mut limit) = (at, None, at);
        loop {
            let len = *message.get(pos)?;
            match len {
                0 => {
                    wire.push(0);
                    return Some((Name(wire), end.unwrap_or(pos + 1)));
                }
                1..=63 => {
                    let label = message.get(pos + 1..pos + 1 + usize::from(len))?;
                    wire.push(len);
                    wire.extend(label.iter().map(u8::to_ascii_lowercase));
                    if wire.len() >= LEN_MAX {
                        return None;
                    }
                    pos += 1 + label.len();
                }
                0xc0.. => {
                    let target = usize::from(len & 0x3f) << 8 | usize::from(*message.get(pos + 1)?);
                    if target >= limit {
                        return None;
                    }
                    end = end.or(Some(pos + 2));
                    (pos, limit) = (target, target);
                }
                _ => return None, // the two reserved label types
            }
        }
    }

    /// The wire form.
    pub fn wire(&self) -> &[u8] {
        &self.0
    }

    /// The name without its first label; None for the root.
    pub fn parent(&self) -> Option<Name> {
        let skip = usize::from(*self.0.first()?) + 1;
        if self.0.len() == 1 { None } else { Some(Name(self.0[skip..].to_vec())) }
    }

    /// Its labels.
    pub fn labels(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = &self.0[..];
        std::iter::from_fn(move || {
            let (len, tail) = rest.split_first()?;
            let (label, tail) = tail.split_at_checked(usize::from(*len)).filter(|_| *len > 0)?;
            rest = tail;
            Some(label)
        })
    }

    /// True when it is `apex` or below.
    pub fn is_within(&self, apex: &Name) -> bool {
        let (mut rest, want) = (&self.0[..], &apex.0[..]);
        while rest.len() > want.len() {
            rest = &rest[1 + usize::from(rest[0])..];
        }
        rest == want
    }

    /// The name that reverse lookups ask for (RFC 1035 section 3.5, RFC 3596 section 2.5).
    pub fn reverse(of: IpAddr) -> Name {
        let text = match of {
            IpAddr::V4(a) => {
                let [a, b, c, d] = a.octets();
                format!("{d}.{c}.{b}.{a}.in-addr.arpa")
            }
            IpAddr::V6(a) => {
                let digits: Vec<String> =
                    (0..32).map(|i| format!("{:x}", a.to_bits() >> (4 * i) & 0xf)).collect();
                format!("{}.ip6.arpa", digits.join("."))
            }
        };
        Name::from_text(&text).unwrap_or(Name(vec![0]))
    }

    /// The address whose reverse name this is.
    pub fn reversed(&self) -> Option<IpAddr> {
        let labels: Vec<&str> = self.labels().map(std::str::from_utf8).collect::<Result<_, _>>().ok()?;
        match labels[..] {
            [d, c, b, a, "in-addr", "arpa"] => {
                let octet = |t: &str| t.parse::<u8>().ok().filter(|n| n.to_string() == t);
                Some(IpAddr::V4(Ipv4Addr::new(octet(a)?, octet(b)?, octet(c)?, octet(d)?)))
            }
            [ref digits @ .., "ip6", "arpa"] if digits.len() == 32 => {
                let mut bits = 0u128;
                for d in digits.iter().rev() {
                    let one = (d.len() == 1).then(|| u128::from_str_radix(d, 16).ok()).flatten()?;
                    bits = bits << 4 | one;
                }
                Some(IpAddr::V6(Ipv6Addr::from_bits(bits)))
            }
            _ => None,
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for label in self.labels() {
            write!(f, "{}.", label.escape_ascii())?;
        }
        if self.0.len() == 1 { f.write_str(".") } else { Ok(()) }
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn n(t: &str) -> Name {
        Name::from_text(t).expect("a name")
    }

    #[test]
    fn names_compare_without_case_and_know_their_parents() {
        assert_eq!(n("A.Demo.photon.internal."), n("a.demo.photon.internal"));
        assert_eq!(n("a.b").parent().expect("b").to_string(), "b.");
        assert_eq!(n(".").parent(), None);
        assert!(
            n("x.a.b").is_within(&n("a.b")) && n("a.b").is_within(&n("a.b")) && n("q").is_within(&n("."))
        );
        assert!(!n("xa.b").is_within(&n("a.b")) && !n("b").is_within(&n("a.b")));
        for bad in ["a..b", ".a", &"x".repeat(64), &"x.".repeat(128), "a b", "é"] {
            assert!(Name::from_text(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn reverse_names_go_there_and_back() {
        for a in ["10.20.0.5", "0.0.0.0", "fd00::1:2"] {
            let a: IpAddr = a.parse().expect("an address");
            assert_eq!(Name::reverse(a).reversed(), Some(a));
        }
        assert_eq!(Name::reverse("10.20.0.5".parse().expect("ip")).to_string(), "5.0.20.10.in-addr.arpa.");
        for bad in ["05.0.20.10.in-addr.arpa", "0.20.10.in-addr.arpa", "256.1.1.1.in-addr.arpa", "x.ip6.arpa"]
        {
            assert_eq!(n(bad).reversed(), None, "{bad}");
        }
    }

    #[test]
    fn pointers_only_go_back() {
        //                 0: "a" 0        3: "b" -> 0
        let message = b"\x01a\x00\x01b\xc0\x00\xc0\x07\xc0\x09";
        let (name, end) = Name::parse(message, 3).expect("b.a");
        assert_eq!((name, end), (n("b.a"), 7));
        assert_eq!(Name::parse(message, 7), None, "itself");
        assert_eq!(Name::parse(message, 9), None, "itself");
        assert_eq!(Name::parse(b"\xc0", 0), None);
        assert_eq!(Name::parse(b"\x41a\x00", 0), None, "a reserved label type");
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..600), at in 0usize..700) {
            if let Some((name, end)) = Name::parse(&bytes, at) {
                prop_assert!(name.wire().len() <= LEN_MAX && end <= bytes.len());
                prop_assert_eq!(Name::parse(name.wire(), 0).expect("its own form").0, name);
            }
        }
    }
}
