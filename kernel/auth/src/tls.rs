//! TLS by rustls on one provider (aws-lc-rs): who may connect, and whom a certificate names.

use crate::{CertPair, Identity};
use photon_base::{Error, Result};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::aws_lc_rs,
    server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
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

/// A server certificate that can be exchanged while connections go on.
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
pub fn mutual_config(pair: &CertPair, ca_pem: &str, alpn: &[&str]) -> Result<Arc<ServerConfig>> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(ca_pem)?, provider.clone())
        .build()
        .map_err(|e| bad("the client verifier", e))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| bad("TLS", e))?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(LiveCertificate::new(pair)?);
    config.alpn_protocols = alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
    Ok(Arc::new(config))
}

/// TLS for a client that trusts only our authority, and shows `identity` if given.
pub fn client_config(ca_pem: &str, identity: Option<&CertPair>, alpn: &[&str]) -> Result<Arc<ClientConfig>> {
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| bad("TLS", e))?
        .with_root_certificates(roots(ca_pem)?);
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some(pair) => {
            let chain = CertificateDer::pem_slice_iter(pair.cert_pem.as_bytes())
                .collect::<Result<_, _>>()
                .map_err(|e| bad("the client certificate", e))?;
            let key = PrivateKeyDer::from_pem_slice(pair.key_pem.as_bytes())
                .map_err(|e| bad("the client key", e))?;
            builder.with_client_auth_cert(chain, key).map_err(|e| bad("the client certificate", e))?
        }
    };
    config.alpn_protocols = alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
    Ok(Arc::new(config))
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
}
