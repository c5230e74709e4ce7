//! The common name in a certificate's subject: who a foreign authority says that somebody is. Our own
//! certificates name identities by URI ([`crate::identity_of`]) and are never asked this way.

use rustls::pki_types::CertificateDer;
use std::sync::Arc;

/// The common name of a verified certificate, as a request carries it among its extensions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommonName(pub Arc<str>);

/// `id-at-commonName`, 2.5.4.3 (X.520).
const COMMON_NAME: [u8; 3] = [0x55, 0x04, 0x03];
const OID: u8 = 0x06;
const UTF8: u8 = 0x0c;
const PRINTABLE: u8 = 0x13;
const IA5: u8 = 0x16;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;

/// The common name of a verified certificate; the last one if there are several, as Go's library reads it, and
/// so etcd. None without one, or when it is empty or written in an alphabet of old (T.61, BMP).
pub fn common_name(cert: &CertificateDer<'_>) -> Option<CommonName> {
    let cert = webpki::EndEntityCert::try_from(cert).ok()?;
    of_subject(cert.subject()).filter(|n| !n.is_empty()).map(|n| CommonName(n.into()))
}

/// RFC 5280, section 4.1.2.4: a sequence of sets of (type, value).
fn of_subject(mut names: &[u8]) -> Option<&str> {
    let mut found = None;
    while !names.is_empty() {
        let mut set = element(&mut names, SET)?;
        while !set.is_empty() {
            let mut pair = element(&mut set, SEQUENCE)?;
            if element(&mut pair, OID)? == COMMON_NAME {
                let kind = *pair.first()?;
                let text = element(&mut pair, kind)?;
                found = match kind {
                    UTF8 | PRINTABLE | IA5 => Some(std::str::from_utf8(text).ok()?),
                    _ => return None,
                };
            }
        }
    }
    found
}

/// Takes one DER element of the wanted type off the front.
fn element<'a>(input: &mut &'a [u8], kind: u8) -> Option<&'a [u8]> {
    let (head, rest) = input.split_first_chunk::<2>()?;
    if head[0] != kind {
        return None;
    }
    let (length, rest) = match head[1] {
        n @ 0..=0x7f => (usize::from(n), rest),
        0x81 => (usize::from(*rest.first()?), &rest[1..]),
        0x82 => (usize::from(u16::from_be_bytes(*rest.first_chunk()?)), &rest[2..]),
        _ => return None, // no name is longer
    };
    let (body, rest) = rest.split_at_checked(length)?;
    *input = rest;
    Some(body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DnType, KeyPair};

    fn made(names: &[(DnType, &str)]) -> CertificateDer<'static> {
        let mut params = CertificateParams::new(vec![]).expect("params");
        params.distinguished_name = rcgen::DistinguishedName::new();
        for (kind, text) in names {
            params.distinguished_name.push(kind.clone(), *text);
        }
        let key = KeyPair::generate().expect("key");
        params.self_signed(&key).expect("certificate").der().clone()
    }

    #[test]
    fn names_are_read_from_certificates() {
        let name = |names: &[(DnType, &str)]| common_name(&made(names)).map(|n| n.0.to_string());
        assert_eq!(name(&[]), None);
        assert_eq!(name(&[(DnType::OrganizationName, "o")]), None);
        assert_eq!(name(&[(DnType::CommonName, "")]), None);
        let both = [(DnType::OrganizationName, "system:masters"), (DnType::CommonName, "kube-apiserver")];
        assert_eq!(name(&both), Some("kube-apiserver".into()));
        let long = "é".repeat(100);
        assert_eq!(name(&[(DnType::CommonName, &long)]), Some(long.clone()));
    }

    #[test]
    fn the_last_one_counts_and_bytes_that_are_no_name_are_none() {
        let name = |text: &[u8]| {
            let oid = [&[OID, 3][..], &COMMON_NAME].concat();
            let pair = [oid, [&[UTF8, text.len() as u8][..], text].concat()].concat();
            let pair = [&[SEQUENCE, pair.len() as u8][..], &pair].concat();
            [&[SET, pair.len() as u8][..], &pair].concat()
        };
        let first = name(b"first");
        let two = [&first[..], &name(b"second")].concat();
        assert_eq!(of_subject(&two), Some("second"));
        assert_eq!(of_subject(&name(&[0xff])), None, "no text");
        for end in 0..two.len() {
            let half = of_subject(&two[..end]);
            assert_eq!(half, (end == first.len()).then_some("first"), "{end}");
        }
        for i in 0..two.len() {
            for bit in 0..8 {
                let mut bent = two.clone();
                bent[i] ^= 1 << bit;
                let _ = of_subject(&bent); // no panic
            }
        }
    }
}
