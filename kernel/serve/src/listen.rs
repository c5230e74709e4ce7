//! Listeners: TCP, TLS, HTTP/1.1 and HTTP/2 on one port, and who is calling.

use crate::{authority::Tolerant, metrics::Counter, unread};
use axum::{Router, body::Body};
use http::{Request, Response, header};
use hyper::{body::Incoming, service::Service};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use photon_auth::{Caller, CommonName, Proof, TokenKey, common_name, identity_of};
use photon_base::{Code, Error, Result};
use photon_rt::{
    net::{TcpListener, TcpStream},
    task::Tasks,
    time::{Duration, timeout},
};
use rustls::ServerConfig;
use std::{
    convert::Infallible,
    future::Future,
    net::IpAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio::{io::AsyncWriteExt, sync::Semaphore};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;

/// Most connections of one listener at a time.
const CONNECTIONS_MAX: usize = 8192;
/// Time for a TLS handshake, and for an HTTP/1.1 request head.
const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(10);
const HEAD_TIME_MAX: Duration = Duration::from_secs(30);
/// Time for a connection to show an identity. Strangers may ask for health and log in, but not stay: they
/// would keep others out.
const UNPROVEN_TIME_MAX: Duration = Duration::from_secs(60);
/// Time for running requests at shutdown.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(1);
/// Largest request head, in bytes.
const HEAD_BYTES_MAX: u32 = 64 << 10;

/// A port that answers.
pub struct Listener {
    /// For logs and metrics.
    pub name: &'static str,
    /// The bound socket.
    pub socket: TcpListener,
    /// TLS; none only for loopback drop-ins.
    pub tls: Option<Arc<ServerConfig>>,
    /// Verifies bearer tokens; none refuses them.
    pub tokens: Option<Arc<TokenKey>>,
    /// What answers.
    pub router: Router,
    /// What is asked first.
    pub direct: Option<Direct>,
    /// Takes HTTP/2 requests whose `:authority` is a URL, as etcdctl 3.4 sends them.
    pub lenient_authority: bool,
}

/// The address that a request comes from, among its extensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer(pub IpAddr);

/// An answer on its way.
pub type Answer = Pin<Box<dyn Future<Output = std::result::Result<Response<Body>, Infallible>> + Send>>;

/// Answers some requests before the router sees them: takes those, and leaves the others. For protocols of many
/// small requests: matching patterns and passing through layers takes several allocations for each. It gets who
/// is calling; of what is usually in the extensions there is only the [`CommonName`].
pub type Direct = Arc<dyn Fn(&mut Request<Body>, Option<&Caller>) -> Option<Answer> + Send + Sync>;

struct Shared {
    name: &'static str,
    tls: Option<TlsAcceptor>,
    tokens: Option<Arc<TokenKey>>,
    router: Router,
    direct: Option<Direct>,
    tasks: Tasks,
    requests: Counter,
    unproven_time_max: Duration,
    lenient_authority: bool,
}

impl Listener {
    /// Accepts until `tasks` end.
    pub fn start(self, tasks: &Tasks) {
        self.start_within(tasks, UNPROVEN_TIME_MAX);
    }

    fn start_within(self, tasks: &Tasks, unproven_time_max: Duration) {
        let shared = Arc::new(Shared {
            name: self.name,
            tls: self.tls.map(TlsAcceptor::from),
            tokens: self.tokens,
            router: self.router,
            direct: self.direct,
            tasks: tasks.clone(),
            unproven_time_max,
            lenient_authority: self.lenient_authority,
            requests: crate::metrics::counter(
                "photon_http_requests_total",
                "HTTP requests answered, by listener.",
                &[("listener", self.name)],
            ),
        });
        let socket = self.socket;
        tasks.spawn("accept", async move {
            let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
            loop {
                let Ok(slot) = slots.clone().acquire_owned().await else { return };
                match socket.accept().await {
                    Ok((stream, from)) => {
                        let shared = shared.clone();
                        let owner = shared.tasks.clone();
                        owner.spawn_graceful("connection", async move {
                            if let Err(e) = connection(shared, stream, Peer(from.ip())).await {
                                tracing::debug!(error = %e, "connection ended");
                            }
                            drop(slot);
                        });
                    }
                    Err(e) => {
                        // Out of file descriptors, most likely: give others time to close theirs.
                        tracing::warn!(error = %e, "cannot accept a connection");
                        photon_rt::time::sleep(Duration::from_millis(50)).await;
                    }
                }
            }
        });
    }
}

async fn connection(shared: Arc<Shared>, stream: TcpStream, from: Peer) -> Result<()> {
    let _ = stream.set_nodelay(true); // only latency is lost without it
    let Some(acceptor) = shared.tls.clone() else {
        // A port without TLS knows no identities; see `Listener::tls`.
        return maybe_lenient(shared, stream, Shown { from, peer: None, subject: None, proven: true }).await;
    };
    let mut first = [0u8; 1];
    let n = timeout(HANDSHAKE_TIME_MAX, "the first byte", stream.peek(&mut first))
        .await?
        .map_err(|e| Error::unavailable("the connection broke").why(e))?;
    if n == 1 && first[0].is_ascii_uppercase() {
        return refuse_plain(stream).await;
    }
    let tls = timeout(HANDSHAKE_TIME_MAX, "the TLS handshake", acceptor.accept(stream))
        .await?
        .map_err(|e| Error::new(Code::Unauthenticated, "the TLS handshake failed").why(e))?;
    // rustls has verified the chain: what it shows is of our authority.
    let shown = tls.get_ref().1.peer_certificates().and_then(|c| c.first());
    let shown = Shown {
        from,
        // A foreign authority's certificate names no identity, and proves one.
        proven: shown.is_some(),
        subject: shown.and_then(common_name),
        peer: shown.and_then(identity_of).map(|identity| Caller { identity, proof: Proof::Certificate }),
    };
    maybe_lenient(shared, tls, shown).await
}

/// What a connection itself says of who is at its other end.
struct Shown {
    from: Peer,
    /// Who its certificate names, if that is ours.
    peer: Option<Caller>,
    /// The common name of its certificate, whoever signed it.
    subject: Option<CommonName>,
    /// It need not prove anything more to stay.
    proven: bool,
}

async fn maybe_lenient<I>(shared: Arc<Shared>, io: I, shown: Shown) -> Result<()>
where
    I: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    if shared.lenient_authority {
        http(shared, TokioIo::new(Tolerant::new(io)), shown).await
    } else {
        http(shared, TokioIo::new(io), shown).await
    }
}

/// Somebody speaks plain HTTP to a TLS port: say so in their language.
async fn refuse_plain(mut stream: TcpStream) -> Result<()> {
    let body = "this port speaks TLS: use https:// (and the CA of `photon env`)\n";
    let text = format!(
        "HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    let _ = stream.write_all(text.as_bytes()).await; // whether they hear it is their business
    let _ = stream.shutdown().await;
    Ok(())
}

async fn http<I>(shared: Arc<Shared>, io: TokioIo<I>, shown: Shown) -> Result<()>
where
    I: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let token = shared.tasks.token();
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME_MAX)
        .max_buf_size(HEAD_BYTES_MAX as usize);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(1024)
        .max_header_list_size(HEAD_BYTES_MAX)
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20)
        .keep_alive_interval(Some(Duration::from_secs(30)))
        .keep_alive_timeout(Duration::from_secs(20));
    let Shown { from, peer, subject, proven } = shown;
    let proven = Arc::new(AtomicBool::new(proven));
    let unproven_time_max = shared.unproven_time_max;
    let service = Answers { shared, from, peer, subject, proven: proven.clone() };
    let conn = builder.serve_connection_with_upgrades(io, service);
    tokio::pin!(conn);
    let broke =
        |e: Box<dyn std::error::Error + Send + Sync>| Error::unavailable("the connection broke").why(e);
    let overdue = async {
        loop {
            photon_rt::time::sleep(unproven_time_max).await;
            if !proven.load(Ordering::Relaxed) {
                return;
            }
        }
    };
    tokio::select! {
        r = conn.as_mut() => r.map_err(broke),
        () = overdue => {
            conn.as_mut().graceful_shutdown();
            timeout(UNPROVEN_TIME_MAX, "the last request", conn).await?.map_err(broke)
        }
        () = token.cancelled() => {
            conn.as_mut().graceful_shutdown();
            timeout(DRAIN_TIME_MAX, "the last request", conn).await?.map_err(broke)
        }
    }
}

/// What answers the requests of one connection.
struct Answers {
    shared: Arc<Shared>,
    from: Peer,
    /// Who the connection's certificate names.
    peer: Option<Caller>,
    subject: Option<CommonName>,
    proven: Arc<AtomicBool>,
}

impl Service<Request<Incoming>> for Answers {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn call(&self, request: Request<Incoming>) -> Answer {
        let shared = &self.shared;
        shared.requests.inc();
        // Who is asked first does not pay for it.
        let (mut request, rest) = match &shared.direct {
            Some(_) => (request.map(Body::new), unread::Rest::default()),
            None => unread::lend(request),
        };
        let shown = match self.shown(&request) {
            Ok(shown) => shown,
            Err(e) => {
                drop(request);
                return Box::pin(async move {
                    rest.drain().await;
                    Ok(refusal(&e))
                });
            }
        };
        let caller = shown.as_ref().or(self.peer.as_ref());
        if caller.is_some() {
            self.proven.store(true, Ordering::Relaxed);
        }
        if let Some(subject) = &self.subject {
            request.extensions_mut().insert(subject.clone());
        }
        tracing::trace!(listener = shared.name, method = %request.method(), path = request.uri().path(), "request");
        if let Some(answer) = shared.direct.as_ref().and_then(|d| d(&mut request, caller)) {
            return answer;
        }
        let caller = caller.cloned();
        request.extensions_mut().insert(self.from);
        if let Some(caller) = caller {
            request.extensions_mut().insert(caller);
        }
        let answer = shared.router.clone().oneshot(request);
        Box::pin(async move {
            let answer = answer.await;
            rest.drain().await;
            answer
        })
    }
}

impl Answers {
    /// Who is calling by the token that is sent. It counts more than the certificate.
    fn shown(&self, request: &Request<Body>) -> Result<Option<Caller>> {
        let Some(value) = request.headers().get(header::AUTHORIZATION) else { return Ok(None) };
        let refuse = |what: &str| Error::new(Code::Unauthenticated, what).hint("photon login");
        let Some(keys) = &self.shared.tokens else {
            // A drop-in's clients send what they would send to the original; etcd's tokens come without a scheme.
            if self.shared.tls.is_none() || !value.as_bytes().starts_with(b"Bearer ") {
                return Ok(None);
            }
            return Err(refuse("this port takes no tokens"));
        };
        let token = value
            .to_str()
            .ok()
            .and_then(|v| v.strip_prefix("Bearer "))
            .ok_or_else(|| refuse("the Authorization header is no bearer token"))?;
        let claims = keys.verify(token, photon_rt::time::wall())?;
        Ok(Some(Caller { identity: claims.sub, proof: Proof::Token(claims.jti) }))
    }
}

fn refusal(e: &Error) -> Response<Body> {
    // The resource kernel has the full form; this room stands below it and needs just this one.
    let text = |s: &str| s.replace(['"', '\\', '\n', '\r'], "'");
    let body = format!(
        r#"{{"title":"{}","status":{},"detail":"{}","code":"unauthenticated","number":"PH{}","hint":"{}"}}"#,
        text(&e.what),
        e.code.http_status(),
        text(&e.why),
        e.code.number(),
        text(e.hint.as_deref().unwrap_or_default())
    );
    let mut r = Response::new(Body::from(body));
    *r.status_mut() = http::StatusCode::UNAUTHORIZED;
    let h = r.headers_mut();
    h.insert(header::CONTENT_TYPE, http::HeaderValue::from_static("application/problem+json"));
    h.insert(header::WWW_AUTHENTICATE, http::HeaderValue::from_static("Bearer"));
    r
}

#[cfg(test)]
mod tests {
    use super::*;
    use photon_auth::{Authority, CertPair, Leaf, LiveCertificate, client_config, server_config};
    use tokio::io::AsyncReadExt;

    fn leaf(ca: &Authority, identity: &str) -> CertPair {
        let leaf = Leaf {
            identity: identity.parse().expect("identity"),
            dns: vec!["localhost".into()],
            addresses: vec![],
            valid: Duration::from_secs(3600),
        };
        ca.issue(&leaf, photon_rt::time::wall()).expect("issue")
    }

    /// What is asked first gets who is calling, and leaves to the router what it does not take.
    #[tokio::test]
    async fn some_requests_never_reach_the_router() {
        let dir = std::env::temp_dir().join(format!("photon-direct-{:x}", photon_rt::entropy::u64()));
        let ca = Authority::open(&dir, "c", photon_rt::time::wall()).expect("ca");
        let live = LiveCertificate::new(&leaf(&ca, "host/n1")).expect("certificate");
        let router = Router::new().fallback(|| async { "router" });
        let direct: Direct = Arc::new(|request, caller| {
            let who = caller?.identity.to_string();
            let taken = (request.uri().path() == "/direct").then(|| std::mem::take(request))?;
            Some(Box::pin(async move { Ok(Response::new(Body::from(format!("{who} {}", taken.uri())))) }))
        });
        let socket = photon_rt::net::listen("127.0.0.1:0".parse().expect("address")).await.expect("listen");
        let addr = socket.local_addr().expect("address");
        let tls = Some(server_config(live, ca.cert_pem()).expect("tls"));
        let tasks = Tasks::new();
        let direct = Some(direct);
        Listener { name: "test", socket, tls, tokens: None, router, direct, lenient_authority: false }
            .start(&tasks);
        let alice = leaf(&ca, "user/alice");
        for (who, path, answer) in [
            (Some(&alice), "/direct", "user/alice /direct"),
            (Some(&alice), "/other", "router"),
            (None, "/direct", "router"),
        ] {
            let config = client_config(ca.cert_pem(), who, &["http/1.1"]).expect("client");
            let name = rustls::pki_types::ServerName::try_from("localhost").expect("name");
            let tcp = TcpStream::connect(addr).await.expect("connect");
            let mut io = tokio_rustls::TlsConnector::from(config).connect(name, tcp).await.expect("tls");
            let ask = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
            io.write_all(ask.as_bytes()).await.expect("write");
            let mut text = String::new();
            let _ = io.read_to_string(&mut text).await; // the other end may close without a word of TLS
            assert!(text.ends_with(&format!("\r\n\r\n{answer}")), "{path}: {text}");
        }
        tasks.shutdown().await;
        photon_rt::fs::remove_dir_all(&dir).expect("clean");
    }

    #[tokio::test]
    async fn strangers_do_not_stay_and_whoever_shows_an_identity_does() {
        let dir = std::env::temp_dir().join(format!("photon-listen-{:x}", photon_rt::entropy::u64()));
        let ca = Authority::open(&dir, "c", photon_rt::time::wall()).expect("ca");
        let live = LiveCertificate::new(&leaf(&ca, "host/n1")).expect("certificate");
        let router = Router::new().route("/", axum::routing::get(async || "hello"));
        let socket = photon_rt::net::listen("127.0.0.1:0".parse().expect("address")).await.expect("listen");
        let addr = socket.local_addr().expect("address");
        let tls = Some(server_config(live, ca.cert_pem()).expect("tls"));
        let tasks = Tasks::new();
        let listener = Listener {
            name: "test",
            socket,
            tls,
            tokens: None,
            router,
            direct: None,
            lenient_authority: false,
        };
        listener.start_within(&tasks, Duration::from_millis(300));
        let alice = leaf(&ca, "user/alice");
        for (who, speaks, stays) in [(None, true, false), (None, false, false), (Some(&alice), true, true)] {
            let config = client_config(ca.cert_pem(), who, &["http/1.1"]).expect("client");
            let name = rustls::pki_types::ServerName::try_from("localhost").expect("name");
            let tcp = TcpStream::connect(addr).await.expect("connect");
            let mut io = tokio_rustls::TlsConnector::from(config).connect(name, tcp).await.expect("tls");
            let mut text = [0u8; 4096];
            if speaks {
                io.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").await.expect("write");
                let n = io.read(&mut text).await.expect("answer");
                assert!(text[..n].starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&text[..n]));
            }
            let end = timeout(Duration::from_secs(2), "the end", io.read(&mut text)).await;
            assert_eq!(end.is_err(), stays, "{who:?} {speaks}");
        }
        tasks.shutdown().await;
        photon_rt::fs::remove_dir_all(&dir).expect("clean");
    }
}
