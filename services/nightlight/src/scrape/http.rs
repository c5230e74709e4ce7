//! A client for targets and lists of targets: HTTP/1.1 over one connection that is kept, answers bounded in bytes
//! before and after inflation, secrets read from their files each time they are needed.

use super::config::HttpClient;
use flate2::read::MultiGzDecoder;
use http::{HeaderValue, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    body::Bytes,
    client::conn::http1::{self, SendRequest},
};
use hyper_util::rt::TokioIo;
use photon_auth::{CertPair, client_config};
use photon_rt::{fs, net::TcpStream, task::Tasks};
use std::{io::Read, path::PathBuf};

/// Largest answer if nobody says otherwise, bytes.
const BODY_MAX: u64 = 256 << 20;
/// Largest file with a secret or a certificate.
const FILE_MAX: u64 = 1 << 20;
/// Most redirections of one request.
const REDIRECTS_MAX: usize = 10;
/// Authorities that this machine trusts.
const SYSTEM_CA: &str = "/etc/ssl/certs/ca-certificates.crt";

/// A URL of a target.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Url {
    pub(super) tls: bool,
    pub(super) host: String,
    pub(super) port: u16,
    /// Path and query.
    pub(super) path: String,
}

impl Url {
    /// `http` or `https`, with a host.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = |why: String| format!("{text:?} is not a URL: {why}");
        let uri: http::Uri = text.parse().map_err(|e: http::uri::InvalidUri| wrong(e.to_string()))?;
        let tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(wrong("it begins with neither http:// nor https://".into())),
        };
        let host = uri.host().filter(|h| !h.is_empty()).ok_or_else(|| wrong("it names no host".into()))?;
        Ok(Url {
            tls,
            host: host.trim_matches(['[', ']']).to_string(),
            port: uri.port_u16().unwrap_or(if tls { 443 } else { 80 }),
            path: uri.path_and_query().map_or("/", |p| p.as_str()).to_string(),
        })
    }

    /// `HOST:PORT`, the port only where it is not the scheme's own.
    fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        match (self.tls, self.port) {
            (false, 80) | (true, 443) => host,
            (_, port) => format!("{host}:{port}"),
        }
    }
}

impl std::fmt::Display for Url {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority(), self.path)
    }
}

/// An answer.
pub struct Page {
    /// `Content-Type`
    pub content_type: Option<String>,
    /// Inflated.
    pub body: Vec<u8>,
}

/// How one request is made.
pub struct Ask<'a> {
    /// `Accept`
    pub accept: &'a str,
    /// What the target may take, seconds; told to it.
    pub timeout_s: f64,
    /// Largest answer, bytes; 0: a default.
    pub body_max: u64,
    /// Asks for gzip.
    pub compression: bool,
    /// JSON that is sent, by POST; the answer is whatever it is.
    pub post: Option<Bytes>,
}

/// A connection that is kept from request to request.
#[derive(Default)]
pub struct Link(Option<(Url, SendRequest<Full<Bytes>>)>);

fn secret(text: &str, file: &Option<PathBuf>) -> Result<String, String> {
    match file {
        None => Ok(text.to_string()),
        Some(f) => fs::read_text(f, FILE_MAX).map(|t| t.trim().to_string()).map_err(|e| e.to_string()),
    }
}

fn pem(text: &Option<String>, file: &Option<PathBuf>) -> Result<Option<String>, String> {
    match (text, file) {
        (Some(t), _) => Ok(Some(t.clone())),
        (None, Some(f)) => fs::read_text(f, FILE_MAX).map(Some).map_err(|e| e.to_string()),
        (None, None) => Ok(None),
    }
}

impl HttpClient {
    fn authorization(&self) -> Result<Option<HeaderValue>, String> {
        use base64::{Engine as _, engine::general_purpose::STANDARD};
        let text = if let Some(b) = &self.basic_auth {
            let (user, password) =
                (secret(&b.username, &b.username_file)?, secret(&b.password, &b.password_file)?);
            format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
        } else if let Some(a) = &self.authorization {
            let credentials = secret(&a.credentials, &a.credentials_file)?;
            format!("{} {credentials}", a.kind.as_deref().unwrap_or("Bearer"))
        } else {
            return Ok(None);
        };
        let mut v = HeaderValue::from_str(&text).map_err(|_| "the credentials are not one line of text")?;
        v.set_sensitive(true);
        Ok(Some(v))
    }

    fn tls(&self) -> Result<std::sync::Arc<rustls::ClientConfig>, String> {
        if let Some(made) = &self.trust.0 {
            return Ok(made.clone());
        }
        let t = &self.tls_config;
        let ca = match pem(&t.ca, &t.ca_file)? {
            Some(ca) => ca,
            None => fs::read_text(SYSTEM_CA.as_ref(), 16 << 20).map_err(|e| e.to_string())?,
        };
        let identity = match (pem(&t.cert, &t.cert_file)?, pem(&t.key, &t.key_file)?) {
            (Some(cert_pem), Some(key_pem)) => Some(CertPair { cert_pem, key_pem }),
            (None, None) => None,
            _ => return Err("tls_config: a certificate and its key come together".into()),
        };
        client_config(&ca, identity.as_ref(), &["http/1.1"]).map_err(|e| e.to_string())
    }

    async fn connect(&self, url: &Url, tasks: &Tasks) -> Result<SendRequest<Full<Bytes>>, String> {
        let tcp = TcpStream::connect((url.host.as_str(), url.port)).await;
        let tcp = tcp.map_err(|e| format!("dial tcp {}:{}: {e}", url.host, url.port))?;
        let _ = tcp.set_nodelay(true); // only latency is lost without it
        if !url.tls {
            return handshake(TokioIo::new(tcp), tasks).await;
        }
        let name = self.tls_config.server_name.clone().unwrap_or_else(|| url.host.clone());
        let name = rustls_pki_types::ServerName::try_from(name).map_err(|e| format!("tls: {e}"))?;
        let tls = tokio_rustls::TlsConnector::from(self.tls()?).connect(name, tcp).await;
        handshake(TokioIo::new(tls.map_err(|e| format!("tls: {e}"))?), tasks).await
    }

    /// Gets a page. The caller bounds the time.
    pub async fn get(
        &self,
        url: &Url,
        ask: &Ask<'_>,
        link: &mut Link,
        tasks: &Tasks,
    ) -> Result<Page, String> {
        let mut at = url.clone();
        for _ in 0..=REDIRECTS_MAX {
            let answer = self.once(&at, ask, link, tasks, at.host == url.host).await?;
            let (head, body) = answer.into_parts();
            if head.status.is_redirection() && ask.post.is_none() && self.follow_redirects != Some(false) {
                *link = Link::default();
                let to = head.headers.get(header::LOCATION).and_then(|l| l.to_str().ok()).unwrap_or_default();
                at = if to.starts_with('/') { Url { path: to.into(), ..at } } else { Url::parse(to)? };
                continue;
            }
            let good = head.status == StatusCode::OK || (ask.post.is_some() && head.status.is_success());
            if !good {
                *link = Link::default();
                return Err(format!("server returned HTTP status {}", head.status));
            }
            let text = |name| head.headers.get(name).and_then(|v| v.to_str().ok()).map(str::to_string);
            let max = if ask.body_max == 0 { BODY_MAX } else { ask.body_max };
            let limited = Limited::new(body, usize::try_from(max).unwrap_or(usize::MAX)).collect().await;
            let bytes = limited.map_err(|e| {
                if e.is::<http_body_util::LengthLimitError>() {
                    "body size limit exceeded".to_string()
                } else {
                    format!("reading the answer: {e}")
                }
            })?;
            let body = match text(header::CONTENT_ENCODING).as_deref() {
                None | Some("" | "identity") => bytes.to_bytes().to_vec(),
                Some("gzip") => inflate(&bytes.to_bytes(), max)?,
                Some(other) => return Err(format!("the answer's encoding {other:?} was not asked for")),
            };
            return Ok(Page { content_type: text(header::CONTENT_TYPE), body });
        }
        Err(format!("stopped after {REDIRECTS_MAX} redirects"))
    }

    async fn once(
        &self,
        url: &Url,
        ask: &Ask<'_>,
        link: &mut Link,
        tasks: &Tasks,
        trusted: bool,
    ) -> Result<http::Response<hyper::body::Incoming>, String> {
        // One that was kept may have been closed meanwhile by the other side: then a new one, once.
        let mut kept = match link.0.take() {
            Some((to, sender)) if same_door(&to, url) => Some(sender),
            _ => None,
        };
        loop {
            let was_kept = kept.is_some();
            let mut sender = match kept.take() {
                Some(sender) => sender,
                None => self.connect(url, tasks).await?,
            };
            let sent = match sender.ready().await {
                Ok(()) => sender.send_request(self.request(url, ask, trusted)?).await,
                Err(e) => Err(e),
            };
            match sent {
                Ok(answer) => {
                    link.0 = Some((url.clone(), sender));
                    return Ok(answer);
                }
                Err(_) if was_kept => {}
                Err(e) => {
                    let verb = if ask.post.is_some() { "Post" } else { "Get" };
                    return Err(format!("{verb} {:?}: {e}", url.to_string()));
                }
            }
        }
    }

    fn request(&self, url: &Url, ask: &Ask<'_>, trusted: bool) -> Result<Request<Full<Bytes>>, String> {
        let mut b = match ask.post {
            None => Request::get(&url.path)
                .header("x-prometheus-scrape-timeout-seconds", ask.timeout_s.to_string()),
            Some(_) => Request::post(&url.path).header(header::CONTENT_TYPE, "application/json"),
        };
        b = b
            .header(header::HOST, url.authority())
            .header(header::ACCEPT, ask.accept)
            .header(header::USER_AGENT, concat!("NightLight/", env!("CARGO_PKG_VERSION")));
        if ask.compression {
            b = b.header(header::ACCEPT_ENCODING, "gzip");
        }
        // A redirection to somebody else does not get our credentials.
        if let Some(v) = self.authorization()?.filter(|_| trusted) {
            b = b.header(header::AUTHORIZATION, v);
        }
        b.body(Full::new(ask.post.clone().unwrap_or_default())).map_err(|e| e.to_string())
    }
}

fn same_door(a: &Url, b: &Url) -> bool {
    (a.tls, &a.host, a.port) == (b.tls, &b.host, b.port)
}

async fn handshake<I>(io: TokioIo<I>, tasks: &Tasks) -> Result<SendRequest<Full<Bytes>>, String>
where
    I: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http1::handshake(io).await.map_err(|e| e.to_string())?;
    tasks.spawn("scrape-connection", async move {
        let _ = connection.await; // its requests say what went wrong
    });
    Ok(sender)
}

/// At most `max` bytes, however small they came.
pub fn inflate(packed: &[u8], max: u64) -> Result<Vec<u8>, String> {
    let mut out = Vec::new();
    let read = MultiGzDecoder::new(packed).take(max.saturating_add(1)).read_to_end(&mut out);
    read.map_err(|e| format!("gzip: {e}"))?;
    if out.len() as u64 > max {
        return Err("body size limit exceeded".into());
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn urls_name_hosts_and_ports() {
        for (text, shown) in [
            ("http://a", "http://a/"),
            ("http://a:80/x?y=z", "http://a/x?y=z"),
            ("https://[::1]:9/m", "https://[::1]:9/m"),
            ("https://a:443/", "https://a/"),
        ] {
            assert_eq!(Url::parse(text).expect(text).to_string(), shown);
        }
        for wrong in ["a:1", "ftp://a", "http://", "http://a b/"] {
            assert!(Url::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_bomb_does_not_inflate() {
        let mut e = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        e.write_all(&vec![0; 10 << 20]).expect("memory");
        let packed = e.finish().expect("memory");
        assert!(packed.len() < 64 << 10);
        assert_eq!(inflate(&packed, 1 << 20).expect_err("bomb"), "body size limit exceeded");
        assert_eq!(inflate(&packed, 10 << 20).expect("fits").len(), 10 << 20);
        assert!(inflate(&packed[..100], 10 << 20).is_err());
    }
}
