//! TLS by rustls on one provider (aws-lc-rs): who may connect, and whom a certificate names.

use crate::{CertPair, Identity};
use photon_base::{Error, Result};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme,
    client::{
        ResolvesClientCert, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::aws_lc_rs,
    server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject};
use sha2::{Digest, Sha256};
use std::sync::{Arc, PoisonError, RwLock};

fn bad(what: &str, e: impl std::fmt::Display) -> Error {
    Error::internal(format!("{what} cannot be used")).why(e)
}

fn roots(ca_pem: &str) -> Result<Arc<RootCertStore>> {
    let mut store = RootCertStore::empty();
    for cert in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
        let cert = cert.map_err(|e| bad("the authority's certificate", e))?;
        store.add(cert).map_err(|e| bad("the authority's certificate", e))?;
    }
    Ok(Arc::new(store))
}

fn certified(pair: &CertPair) -> Result<CertifiedKey> {
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(pair.cert_pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|e| bad("the certificate", e))?;
    let key =
        PrivateKeyDer::from_pem_slice(pair.key_pem.as_bytes()).map_err(|e| bad("the private key", e))?;
    let key = aws_lc_rs::sign::any_supported_type(&key).map_err(|e| bad("the private key", e))?;
    Ok(CertifiedKey::new(chain, key))
}

/// A certificate that can be exchanged while connections go on; shown by a server, or by a client.
#[derive(Debug)]
pub struct LiveCertificate(RwLock<Arc<CertifiedKey>>);

impl LiveCertificate {
    /// Starts with `pair`.
    pub fn new(pair: &CertPair) -> Result<Arc<Self>> {
        Ok(Arc::new(LiveCertificate(RwLock::new(Arc::new(certified(pair)?)))))
    }

    /// New connections get `pair` from now on.
    pub fn replace(&self, pair: &CertPair) -> Result<()> {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(certified(pair)?);
        Ok(())
    }
}

impl ResolvesServerCert for LiveCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

impl ResolvesClientCert for LiveCertificate {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().unwrap_or_else(PoisonError::into_inner).clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// TLS for a listener. A client certificate is optional (a token may prove the caller instead), but
/// one that is shown must be of our authority. Protocols: HTTP/2 and HTTP/1.1.
pub fn server_config(cert: Arc<LiveCertificate>, ca_pem: &str) -> Result<Arc<ServerConfig>> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(ca_pem)?, provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(|e| bad("the client verifier", e))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| bad("TLS", e))?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(cert);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// TLS for a listener that speaks only to who shows a certificate of this authority, which need not be ours:
/// peers, and the clients of a drop-in.
pub fn mutual_config(cert: Arc<LiveCertificate>, ca_pem: &str, alpn: &[&str]) -> Result<Arc<ServerConfig>> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(ca_pem)?, provider.clone())
        .build()
        .map_err(|e| bad("the client verifier", e))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| bad("TLS", e))?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(cert);
    config.alpn_protocols = alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
    Ok(Arc::new(config))
}

/// TLS for a client that trusts only our authority, and shows `identity` if given.
pub fn client_config(ca_pem: &str, identity: Option<&CertPair>, alpn: &[&str]) -> Result<Arc<ClientConfig>> {
    live_client_config(ca_pem, identity.map(LiveCertificate::new).transpose()?, alpn)
}

/// [`client_config`] with an identity that is renewed.
pub fn live_client_config(
    ca_pem: &str,
    identity: Option<Arc<LiveCertificate>>,
    alpn: &[&str],
) -> Result<Arc<ClientConfig>> {
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| bad("TLS", e))?
        .with_root_certificates(roots(ca_pem)?);
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some(live) => builder.with_client_cert_resolver(live),
    };
    config.alpn_protocols = alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
    Ok(Arc::new(config))
}

/// SHA-256 of an authority's certificate: enough to know it again.
pub fn fingerprint(ca_pem: &str) -> Result<[u8; 32]> {
    let der = CertificateDer::from_pem_slice(ca_pem.as_bytes())
        .map_err(|e| bad("the authority's certificate", e))?;
    Ok(Sha256::digest(&der).into())
}

/// TLS for a client that knows an authority by its [`fingerprint`] alone: the server has to show the
/// authority's certificate as the last of its chain, and one of its own that the authority signed.
pub fn pinned_config(authority: [u8; 32], alpn: &[&str]) -> Result<Arc<ClientConfig>> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| bad("TLS", e))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Pinned { authority, provider }))
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
    Ok(Arc::new(config))
}

/// Finds the authority in the chain by its fingerprint, then verifies as ever.
#[derive(Debug)]
struct Pinned {
    authority: [u8; 32],
    provider: Arc<rustls::crypto::CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let unknown = rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let pinned = chain.iter().find(|c| Sha256::digest(c)[..] == self.authority).ok_or(unknown)?;
        let mut roots = RootCertStore::empty();
        roots.add(pinned.clone().into_owned())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
            .build()
            .map_err(|e| rustls::Error::General(e.to_string()))?;
        verifier.verify_server_cert(leaf, &[], name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// The identity that a verified certificate names, if it is one of ours: exactly one `photon://` URI.
pub fn identity_of(cert: &CertificateDer<'_>) -> Option<Identity> {
    let cert = webpki::EndEntityCert::try_from(cert).ok()?;
    let mut ours = cert.valid_uri_names().filter_map(Identity::from_uri);
    let first = ours.next()?;
    ours.next().is_none().then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Authority, Leaf};
    use photon_base::Timestamp;
    use std::time::Duration;

    #[test]
    fn a_certificate_names_its_identity_and_reopening_keeps_the_authority() {
        let dir = std::env::temp_dir().join(format!("photon-ca-{:x}", photon_rt::entropy::u64()));
        let now = Timestamp(1_800_000_000_000);
        let ca = Authority::open(&dir, "c1", now).expect("make");
        let leaf = Leaf {
            identity: Identity::user("alice".parse().expect("name")),
            dns: vec![],
            addresses: vec![],
            valid: Duration::from_secs(60),
        };
        let again = Authority::open(&dir, "c1", now).expect("load");
        assert_eq!(ca.cert_pem(), again.cert_pem());
        let pair = again.issue(&leaf, now).expect("issue");
        let der = CertificateDer::from_pem_slice(pair.cert_pem.as_bytes()).expect("pem");
        assert_eq!(identity_of(&der), Some(leaf.identity));
        assert!(client_config(ca.cert_pem(), Some(&pair), &["h2"]).is_ok());
        let root = CertificateDer::from_pem_slice(ca.cert_pem().as_bytes()).expect("pem");
        assert_eq!(identity_of(&root), None);
        photon_rt::fs::remove_dir_all(&dir).expect("clean");
    }

    /// A handshake with a server that shows `pair`, over an in-memory pipe.
    fn shake(client: Arc<ClientConfig>, pair: &CertPair, host: &'static str) -> Result<(), rustls::Error> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let server = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_cert_resolver(LiveCertificate::new(pair).expect("certificate"));
        let mut server = rustls::ServerConnection::new(Arc::new(server)).expect("server");
        let name = ServerName::try_from(host).expect("name");
        let mut client = rustls::ClientConnection::new(client, name).expect("client");
        let mut pipe = Vec::new();
        while client.is_handshaking() || server.is_handshaking() {
            client.write_tls(&mut pipe).expect("memory");
            server.read_tls(&mut &*pipe).expect("memory");
            pipe.clear();
            server.process_new_packets()?;
            server.write_tls(&mut pipe).expect("memory");
            client.read_tls(&mut &*pipe).expect("memory");
            pipe.clear();
            client.process_new_packets()?;
        }
        Ok(())
    }

    #[test]
    fn an_authority_is_known_by_its_fingerprint() {
        let dir = std::env::temp_dir().join(format!("photon-pin-{:x}", photon_rt::entropy::u64()));
        let now = photon_rt::time::wall();
        let make = |name: &str| Authority::open(&dir.join(name), name, now).expect("make");
        let (ours, other) = (make("ours"), make("other"));
        let leaf = Leaf {
            identity: "host/a".parse().expect("identity"),
            dns: vec!["a".into()],
            addresses: vec![],
            valid: Duration::from_secs(60),
        };
        let shown = |by: &Authority, chain: &Authority| {
            let pair = by.issue(&leaf, now).expect("issue");
            CertPair { cert_pem: format!("{}{}", pair.cert_pem, chain.cert_pem()), ..pair }
        };
        let client =
            || pinned_config(fingerprint(ours.cert_pem()).expect("fingerprint"), &[]).expect("config");
        assert!(shake(client(), &shown(&ours, &ours), "a").is_ok());
        assert!(shake(client(), &shown(&ours, &ours), "b").is_err(), "another name");
        assert!(shake(client(), &shown(&other, &other), "a").is_err(), "another authority");
        assert!(shake(client(), &shown(&other, &ours), "a").is_err(), "the authority shown did not sign");
        assert!(shake(client(), &ours.issue(&leaf, now).expect("issue"), "a").is_err(), "not shown");
        photon_rt::fs::remove_dir_all(&dir).expect("clean");
    }
}
