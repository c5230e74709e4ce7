//! Certificates for both sides: one authority, one leaf that servers and clients show.

use super::folder;
use hyper_util::rt::TokioIo;
use photon_auth::{Authority, Leaf, client_config};
use photon_base::{Error, Result};
use photon_rt::{
    net::TcpStream,
    time::{Duration, wall},
};
use rustls::{ClientConfig, pki_types::ServerName};
use std::{io, path::PathBuf, sync::Arc};
use tonic::transport::{Channel, Endpoint};

/// Files for the servers, and what clients use.
pub struct Tls {
    dir: tempfile::TempDir,
    config: Arc<ClientConfig>,
}

impl Tls {
    pub fn new() -> Result<Tls> {
        let dir = folder(".bench-tls")?;
        let ca = Authority::open(&dir.path().join("ca"), "bench", wall())?;
        let leaf = Leaf {
            identity: "host/bench".parse()?,
            dns: vec!["localhost".into()],
            addresses: vec![std::net::Ipv4Addr::LOCALHOST.into()],
            valid: Duration::from_secs(24 * 3600),
        };
        let pair = ca.issue(&leaf, wall())?;
        let write = |name: &str, text: &str| {
            photon_rt::fs::write_atomic(&dir.path().join(name), text.as_bytes(), 0o600)
        };
        write("ca.pem", ca.cert_pem())?;
        write("cert.pem", &pair.cert_pem)?;
        write("key.pem", &pair.key_pem)?;
        let config = client_config(ca.cert_pem(), Some(&pair), &["h2"])?;
        Ok(Tls { dir, config })
    }

    /// Both sides take the same flags, and ask clients for a certificate.
    pub fn flags(&self) -> Vec<String> {
        let file = |name: &str| -> PathBuf { self.dir.path().join(name) };
        let mut out = Vec::new();
        for (prefix, auth) in [("", "--client-cert-auth"), ("peer-", "--peer-client-cert-auth")] {
            for (flag, name) in [("cert", "cert.pem"), ("key", "key.pem"), ("trusted-ca", "ca.pem")] {
                out.extend([format!("--{prefix}{flag}-file"), file(name).display().to_string()]);
            }
            out.push(auth.to_string());
        }
        out
    }

    /// A connection to a port of this machine.
    pub async fn connect(&self, port: u16) -> Result<Channel> {
        let config = self.config.clone();
        let dial = tower::service_fn(move |_: http::Uri| {
            let config = config.clone();
            async move {
                let tcp = TcpStream::connect(("127.0.0.1", port)).await?;
                tcp.set_nodelay(true)?;
                let name = ServerName::try_from("localhost").map_err(io::Error::other)?;
                let io = tokio_rustls::TlsConnector::from(config).connect(name, tcp).await?;
                Ok::<_, io::Error>(TokioIo::new(io))
            }
        });
        // The scheme is the connector's business.
        let endpoint = Endpoint::from_static("http://localhost");
        endpoint
            .connect_with_connector(dial)
            .await
            .map_err(|e| Error::unavailable("cannot connect by TLS").why(e))
    }
}
