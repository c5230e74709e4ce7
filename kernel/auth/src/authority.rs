//! The cluster's certificate authority.

use crate::Identity;
use photon_base::{Code, Error, Result, Timestamp};
use photon_rt::fs;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use std::{net::IpAddr, path::Path, time::Duration};

/// A certificate with its private key, PEM both.
#[derive(Clone)]
pub struct CertPair {
    /// Certificate.
    pub cert_pem: String,
    /// PKCS#8 key. Secret.
    pub key_pem: String,
}

impl std::fmt::Debug for CertPair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CertPair(…)")
    }
}

/// What a leaf certificate says.
#[derive(Clone, Debug)]
pub struct Leaf {
    /// Whom it names.
    pub identity: Identity,
    /// DNS names it is good for as a server.
    pub dns: Vec<String>,
    /// Addresses it is good for as a server.
    pub addresses: Vec<IpAddr>,
    /// How long from now.
    pub valid: Duration,
}

/// Root key and certificate, ECDSA P-256, kept in one folder: `ca.key` (0600) and `ca.crt`.
pub struct Authority {
    cert_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

const ROOT_VALID: Duration = Duration::from_secs(10 * 365 * 86400);
/// Certificates start to be valid this much before now, for peers whose clock is behind.
const BACKDATE: Duration = Duration::from_secs(300);

fn failed(what: &str, e: impl std::fmt::Display) -> Error {
    Error::internal(format!("cannot {what}")).why(e)
}

fn odt(t: Timestamp) -> time::OffsetDateTime {
    time::OffsetDateTime::from_unix_timestamp(t.seconds() as i64).unwrap_or(time::OffsetDateTime::UNIX_EPOCH)
}

fn root_params(cluster: &str) -> CertificateParams {
    let mut p = CertificateParams::default();
    p.distinguished_name.push(DnType::CommonName, format!("PhotonCloud {cluster}"));
    p.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    p.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    p
}

impl Authority {
    /// Loads the authority of `cluster` from `dir`, or makes it there at first start. A folder that
    /// holds only half of it is an error: a second authority must never replace a first by accident.
    pub fn open(dir: &Path, cluster: &str, now: Timestamp) -> Result<Authority> {
        let (key_path, cert_path) = (dir.join("ca.key"), dir.join("ca.crt"));
        let params = root_params(cluster);
        if cert_path.exists() {
            let cert_pem = fs::read_text(&cert_path, 64 << 10)?;
            let key = KeyPair::from_pem(&fs::read_text(&key_path, 64 << 10)?)
                .map_err(|e| failed("read the authority's key", e))?;
            return Ok(Authority { cert_pem, issuer: Issuer::new(params, key) });
        }
        fs::private_dir(dir)?;
        // The certificate is written last: it marks completion. A key alone is left of a crash within
        // first start, when nobody can have seen it yet.
        let key = KeyPair::generate().map_err(|e| failed("make the authority's key", e))?;
        let mut signed = root_params(cluster);
        signed.not_before = odt(Timestamp(now.0.saturating_sub(BACKDATE.as_millis() as u64)));
        signed.not_after = odt(now.plus(ROOT_VALID));
        let cert = signed.self_signed(&key).map_err(|e| failed("sign the authority", e))?;
        fs::write_atomic(&key_path, key.serialize_pem().as_bytes(), 0o600)?;
        fs::write_atomic(&cert_path, cert.pem().as_bytes(), 0o644)?;
        Ok(Authority { cert_pem: cert.pem(), issuer: Issuer::new(params, key) })
    }

    /// Puts another node's authority into `dir`, which must not hold one.
    pub fn adopt(dir: &Path, root: &CertPair) -> Result<()> {
        let (key_path, cert_path) = (dir.join("ca.key"), dir.join("ca.crt"));
        if cert_path.exists() {
            return Err(Error::new(Code::Exists, format!("{} exists", cert_path.display())));
        }
        fs::private_dir(dir)?;
        fs::write_atomic(&key_path, root.key_pem.as_bytes(), 0o600)?;
        fs::write_atomic(&cert_path, root.cert_pem.as_bytes(), 0o644)
    }

    /// Certificate and key, for a node that becomes one of those who sign.
    pub fn root(&self) -> CertPair {
        CertPair { cert_pem: self.cert_pem.clone(), key_pem: self.issuer.key().serialize_pem() }
    }

    /// The root certificate that clients trust.
    pub fn cert_pem(&self) -> &str {
        &self.cert_pem
    }

    /// Signs a new key pair for `leaf`. It serves and it calls: one certificate an identity.
    pub fn issue(&self, leaf: &Leaf, now: Timestamp) -> Result<CertPair> {
        let mut p = CertificateParams::default();
        p.distinguished_name.push(DnType::CommonName, leaf.identity.to_string());
        let ia5 = |s: &str| {
            s.try_into()
                .map_err(|_| Error::new(Code::Invalid, format!("{s:?} cannot stand in a certificate")))
        };
        p.subject_alt_names.push(SanType::URI(ia5(&leaf.identity.uri())?));
        for d in &leaf.dns {
            p.subject_alt_names.push(SanType::DnsName(ia5(d)?));
        }
        p.subject_alt_names.extend(leaf.addresses.iter().map(|a| SanType::IpAddress(*a)));
        p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if !leaf.dns.is_empty() || !leaf.addresses.is_empty() {
            p.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        p.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        p.use_authority_key_identifier_extension = true;
        p.not_before = odt(Timestamp(now.0.saturating_sub(BACKDATE.as_millis() as u64)));
        p.not_after = odt(now.plus(leaf.valid));
        let key = KeyPair::generate().map_err(|e| failed("make a key", e))?;
        let cert = p.signed_by(&key, &self.issuer).map_err(|e| failed("sign a certificate", e))?;
        Ok(CertPair { cert_pem: cert.pem(), key_pem: key.serialize_pem() })
    }
}
