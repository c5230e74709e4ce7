//! Where an etcd cluster is and how we prove who we are there.

use bytes::Bytes;
use photon_auth::{CertPair, client_config};
use photon_base::{Code, Error, Result};
use photon_rt::{fs, time::Duration};
use rustls::ClientConfig;
use std::{net::IpAddr, path::Path, sync::Arc};

/// Most endpoints of a cluster.
const ENDPOINTS_MAX: usize = 32;
/// Greatest file of credentials.
const FILE_MAX: u64 = 1 << 20;

/// A key that who runs a cloud may read.
const HOME: &[u8] = b"/photon.internal/";

/// A user of etcd's own authentication.
#[derive(Clone)]
pub struct Login {
    /// User.
    pub user: String,
    /// Password.
    pub password: String,
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Login").field("user", &self.user).finish_non_exhaustive()
    }
}

impl Login {
    /// `USER:PASSWORD` in the first line of a file.
    pub fn read(path: &Path) -> Result<Login> {
        let text = fs::read_text(path, FILE_MAX)?;
        let line = text.lines().next().unwrap_or_default();
        match line.split_once(':') {
            Some((user, password)) if !user.is_empty() => {
                Ok(Login { user: user.to_string(), password: password.to_string() })
            }
            _ => Err(Error::invalid(path.display().to_string(), "holds no USER:PASSWORD in its first line")),
        }
    }
}

/// One endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// As given, without a trailing slash.
    pub url: String,
    /// Host name or address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// `https`.
    pub tls: bool,
}

impl Target {
    /// Reads `https://HOST:PORT`, or on loopback `http://`.
    pub fn parse(url: &str) -> Result<Target> {
        let url = url.trim().trim_end_matches('/');
        let wrong =
            || Error::invalid("endpoint", format!("{url:?} is not https://HOST:PORT or http://HOST:PORT"));
        let uri: http::Uri = url.parse().map_err(|_| wrong())?;
        let tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(wrong()),
        };
        if !uri.path().trim_matches('/').is_empty() || uri.query().is_some() {
            return Err(wrong());
        }
        let host = uri.host().filter(|h| !h.is_empty()).ok_or_else(wrong)?;
        let host = host.trim_matches(['[', ']']).to_string();
        let loopback = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|a| a.is_loopback());
        if !tls && !loopback {
            return Err(Error::new(Code::Denied, format!("{url} is plain text, and not on loopback"))
                .why("everybody on the way could read and change what is sent")
                .hint("use https://, or a tunnel that ends on 127.0.0.1"));
        }
        Ok(Target { url: url.to_string(), host, port: uri.port_u16().unwrap_or(2379), tls })
    }
}

/// How to reach a cluster.
#[derive(Clone)]
pub struct Config {
    pub(crate) targets: Vec<Target>,
    pub(crate) tls: Option<Arc<ClientConfig>>,
    pub(crate) login: Option<Login>,
    pub(crate) patience: Duration,
    pub(crate) home: Bytes,
}

impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config").field("targets", &self.targets).finish_non_exhaustive()
    }
}

/// Files with what proves both sides to each other.
#[derive(Clone, Debug, Default)]
pub struct Files<'a> {
    /// The authority of the servers (PEM).
    pub ca: Option<&'a Path>,
    /// A certificate to show.
    pub cert: Option<&'a Path>,
    /// Its key.
    pub key: Option<&'a Path>,
    /// `USER:PASSWORD`.
    pub login: Option<&'a Path>,
}

impl Config {
    /// `endpoints`: URLs, separated by commas.
    pub fn new(endpoints: &str) -> Result<Config> {
        let targets: Vec<Target> = endpoints
            .split(',')
            .filter(|e| !e.trim().is_empty())
            .take(ENDPOINTS_MAX)
            .map(Target::parse)
            .collect::<Result<_>>()?;
        if targets.is_empty() {
            return Err(Error::invalid("endpoint", "none is given").hint("https://HOST:2379,…"));
        }
        if targets.iter().any(|t| t.tls != targets[0].tls) {
            return Err(Error::invalid("endpoint", "some are https and some http"));
        }
        Ok(Config { targets, tls: None, login: None, patience: Duration::from_secs(10), home: HOME.into() })
    }

    /// With the authority that the servers' certificates are of (PEM), and a certificate to show them.
    pub fn with_tls(mut self, ca: &str, pair: Option<&CertPair>) -> Result<Config> {
        self.tls = Some(client_config(ca, pair, &["h2"])?);
        Ok(self)
    }

    /// Logs in as this user.
    pub fn with_login(mut self, login: Login) -> Config {
        self.login = Some(login);
        self
    }

    /// How long a call tries to find somebody who answers.
    pub fn with_patience(mut self, patience: Duration) -> Config {
        self.patience = patience;
        self
    }

    /// Asks for this key where only the answer's revision matters, instead of a cloud's `/photon.internal/`: one that
    /// the caller may read.
    pub fn with_home(mut self, key: impl Into<Bytes>) -> Config {
        self.home = key.into();
        self
    }

    /// [`Config::new`] with what the files say.
    pub fn with_files(endpoints: &str, files: &Files<'_>) -> Result<Config> {
        let mut config = Config::new(endpoints)?;
        let text = |p: &Path| fs::read_text(p, FILE_MAX);
        if config.targets[0].tls {
            let ca = files.ca.ok_or_else(|| {
                Error::invalid(
                    "ca",
                    "is missing: which authority may have signed the certificates of https endpoints",
                )
                .hint("give the file with the etcd servers' CA certificate")
            })?;
            let pair = match (files.cert, files.key) {
                (Some(c), Some(k)) => Some(CertPair { cert_pem: text(c)?, key_pem: text(k)? }),
                (None, None) => None,
                _ => return Err(Error::invalid("cert", "certificate and key go together")),
            };
            config = config.with_tls(&text(ca)?, pair.as_ref())?;
        } else if files.ca.is_some() || files.cert.is_some() || files.key.is_some() {
            return Err(Error::invalid("ca", "certificates are of no use with http:// endpoints")
                .hint("use https://HOST:PORT"));
        }
        if let Some(login) = files.login {
            config.login = Some(Login::read(login)?);
        }
        Ok(config)
    }

    /// The endpoints, for people.
    pub fn endpoints(&self) -> String {
        self.targets.iter().map(|t| t.url.as_str()).collect::<Vec<_>>().join(",")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_urls_and_plain_text_stays_on_loopback() {
        let c = Config::new("http://127.0.0.1:1, http://localhost/,http://[::1]:3").expect("valid");
        let ports: Vec<(&str, u16)> = c.targets.iter().map(|t| (t.host.as_str(), t.port)).collect();
        assert_eq!(ports, [("127.0.0.1", 1), ("localhost", 2379), ("::1", 3)]);
        for wrong in [
            "",
            ",",
            "127.0.0.1:2379",
            "ftp://a:1",
            "http://10.0.0.1:2379",
            "https://a:1/x",
            "https://a,http://[::1]:1",
        ] {
            assert!(Config::new(wrong).is_err(), "{wrong:?}");
        }
        assert!(Config::with_files("https://etcd:2379", &Files::default()).is_err(), "no authority");
        let files = Files { ca: Some(Path::new("/nonexistent")), ..Files::default() };
        assert!(Config::with_files("http://localhost:2379", &files).is_err(), "useless certificates");
    }
}
