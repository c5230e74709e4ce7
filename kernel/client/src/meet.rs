//! Meeting a cloud of which only a fingerprint is known.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use photon_auth::pinned_config;
use photon_base::{Code, Error, Result};
use photon_rt::{
    net::TcpStream,
    time::{Duration, timeout},
};
use rustls_pki_types::ServerName;
use sha2::{Digest, Sha256};
use std::net::IpAddr;
use tokio_rustls::TlsConnector;

/// Time to connect and to shake hands.
const TIME_MAX: Duration = Duration::from_secs(10);

/// A cloud that showed the authority it was known by.
#[derive(Clone, Debug)]
pub struct Met {
    /// Certificate of the authority, PEM.
    pub authority: String,
    /// The address that this machine has on the way there.
    pub local: IpAddr,
}

/// Makes a connection to `endpoint` (`https://HOST:PORT`), whose authority's certificate has this SHA-256.
pub async fn meet(endpoint: &str, fingerprint: [u8; 32]) -> Result<Met> {
    let bad = |e: &dyn std::fmt::Display| {
        Error::invalid("endpoint", "is not a URL").why(e).hint("https://HOST:8443")
    };
    let uri: http::Uri = endpoint.parse().map_err(|e| bad(&e))?;
    let host = uri.host().filter(|_| uri.scheme_str() == Some("https")).ok_or_else(|| bad(&"no https://"))?;
    let host = host.trim_matches(['[', ']']).to_string();
    let away = |e: &dyn std::fmt::Display| {
        Error::unavailable(format!("cannot reach the cloud at {endpoint}"))
            .why(e)
            .hint("does it listen there? photon up --listen ADDRESS, on a node of the cloud")
    };
    let connect = TcpStream::connect((host.as_str(), uri.port_u16().unwrap_or(8443)));
    let tcp = timeout(TIME_MAX, "connecting", connect).await?.map_err(|e| away(&e))?;
    let local = tcp.local_addr().map_err(|e| away(&e))?.ip();
    let name = ServerName::try_from(host).map_err(|e| bad(&e))?;
    let shake = TlsConnector::from(pinned_config(fingerprint, &["h2"])?).connect(name, tcp);
    let tls = timeout(TIME_MAX, "the TLS handshake", shake).await?.map_err(|e| {
        Error::new(Code::Unauthenticated, format!("{endpoint} is not the cloud of this token"))
            .why(e)
            .hint("make a token on a node of that cloud: photon node token")
    })?;
    let chain = tls.get_ref().1.peer_certificates().unwrap_or_default();
    let root = chain.iter().find(|c| Sha256::digest(c)[..] == fingerprint);
    let root = root.ok_or_else(|| Error::internal("the authority was shown and is not there"))?;
    Ok(Met { authority: pem(root), local })
}

/// RFC 7468, section 5.
fn pem(der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut out = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in text.as_bytes().chunks(64) {
        out.push_str(&String::from_utf8_lossy(line));
        out.push('\n');
    }
    out + "-----END CERTIFICATE-----\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use photon_auth::{Authority, fingerprint};

    #[test]
    fn a_certificate_in_text_is_the_same_certificate() {
        let dir = std::env::temp_dir().join(format!("photon-meet-{:x}", photon_rt::entropy::u64()));
        let ca = Authority::open(&dir, "c", photon_rt::time::wall()).expect("authority");
        use rustls_pki_types::{CertificateDer, pem::PemObject};
        let der = CertificateDer::from_pem_slice(ca.cert_pem().as_bytes()).expect("certificate");
        assert_eq!(fingerprint(&pem(&der)).expect("ours"), fingerprint(ca.cert_pem()).expect("its own"));
        photon_rt::fs::remove_dir_all(&dir).expect("clean");
    }
}
