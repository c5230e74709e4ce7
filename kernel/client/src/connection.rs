//! Requests over one HTTP/2 connection, made again when it breaks: to the same front door, or to the next that answers.

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, header};
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::{body::Incoming, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use photon_auth::{CertPair, client_config};
use photon_base::{Code, Error, Result};
use photon_rt::{
    net::TcpStream,
    task::Tasks,
    time::{Duration, now, sleep, timeout},
};
use rustls_pki_types::ServerName;
use serde_json::{Value, json};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use tokio::sync::Mutex;
use tokio_rustls::{TlsConnector, client::TlsStream};

/// How the caller proves itself.
pub enum Credentials {
    /// Logs in when needed.
    Password {
        /// User.
        user: String,
        /// Password.
        password: String,
    },
    /// A token made elsewhere.
    Token(String),
    /// A client certificate.
    Certificate(CertPair),
    /// Not at all.
    Anonymous,
}

/// A request body, whole or streamed.
pub type Body = BoxBody<Bytes, std::io::Error>;

/// A WebSocket to a console.
pub type WebSocket = tokio_tungstenite::WebSocketStream<TlsStream<TcpStream>>;

/// Time to connect, and to an answer's head.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(10);
const NEXT_TIME_MAX: Duration = Duration::from_secs(3);
const ANSWER_TIME_MAX: Duration = Duration::from_secs(60);
/// Time to an upload's answer: it comes when all was sent and checked.
const UPLOAD_TIME_MAX: Duration = Duration::from_secs(6 * 3600);
/// A server that answers no ping for this long is gone, and its connection with it.
const PING_MAX: Duration = Duration::from_secs(15);
/// Largest answer read whole.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// Tries of a request that is safe to repeat, and how long after its beginning the last may begin.
const TRIES: u32 = 5;
const TRYING_MAX: Duration = Duration::from_secs(5);

/// A connection, and the door it goes to.
#[derive(Clone)]
struct Link {
    at: usize,
    sender: http2::SendRequest<Body>,
}

/// Most front doors of a cloud.
const DOORS_MAX: usize = 32;

/// One front door.
struct Door {
    url: String,
    host: String,
    port: u16,
}

impl Door {
    fn parse(url: &str) -> Result<Door> {
        let uri: http::Uri = url
            .parse()
            .map_err(|e| Error::invalid("endpoint", "is not a URL").why(e).hint("https://HOST:8443"))?;
        if uri.scheme_str() != Some("https") {
            return Err(Error::invalid("endpoint", "does not start with https://"));
        }
        Ok(Door {
            url: url.trim_end_matches('/').to_string(),
            host: uri.host().unwrap_or_default().trim_matches(['[', ']']).to_string(),
            port: uri.port_u16().unwrap_or(8443),
        })
    }
}

/// A client of one cloud. Shared freely; requests run side by side.
pub struct Client {
    doors: Vec<Door>,
    /// The door in use, counted without end.
    current: AtomicUsize,
    ca: String,
    certificate: Option<CertPair>,
    login: Option<(String, String)>,
    token: Mutex<Option<String>>,
    link: Mutex<Option<Link>>,
    tasks: Tasks,
}

fn full(body: impl Into<Bytes>) -> Body {
    Full::new(body.into()).map_err(|never| match never {}).boxed()
}

impl Client {
    /// A client of the cloud at `endpoint` (`https://HOST:PORT`, or several with commas between: the first that
    /// answers is used until it does not), whose authority is `ca` (PEM).
    pub fn new(endpoint: &str, ca: &str, credentials: Credentials) -> Result<Client> {
        let urls = endpoint.split(',').map(str::trim).filter(|u| !u.is_empty()).take(DOORS_MAX);
        let doors: Vec<Door> = urls.map(Door::parse).collect::<Result<_>>()?;
        if doors.is_empty() {
            return Err(Error::invalid("endpoint", "is empty").hint("https://HOST:8443"));
        }
        let (mut login, mut token, mut certificate) = (None, None, None);
        match credentials {
            Credentials::Password { user, password } => login = Some((user, password)),
            Credentials::Token(t) => token = Some(t),
            Credentials::Certificate(pair) => certificate = Some(pair),
            Credentials::Anonymous => {}
        }
        Ok(Client {
            doors,
            current: AtomicUsize::new(0),
            ca: ca.to_string(),
            certificate,
            login,
            token: Mutex::new(token),
            link: Mutex::new(None),
            tasks: Tasks::new(),
        })
    }

    fn door(&self, at: usize) -> &Door {
        &self.doors[at % self.doors.len()]
    }

    /// The front door that requests go to.
    pub fn endpoint(&self) -> &str {
        &self.door(self.current.load(Relaxed)).url
    }

    /// Goes on to the next door, unless somebody has gone on from `at` already.
    pub(crate) fn leave(&self, at: usize) {
        if self.doors.len() > 1 {
            let _ = self.current.compare_exchange(at, at.wrapping_add(1), Relaxed, Relaxed); // see above
        }
    }

    /// Goes on after an error that another door may not give. A lost race is no reason.
    pub(crate) fn leave_for(&self, at: usize, e: &Error) {
        if matches!(e.code, Code::Unavailable | Code::Timeout) {
            self.leave(at);
        }
    }

    /// The door in use, to be left if it fails.
    pub(crate) fn at(&self) -> usize {
        self.current.load(Relaxed)
    }

    /// The token in use, so that a caller may keep it for the next time.
    pub async fn current_token(&self) -> Option<String> {
        self.token.lock().await.clone()
    }

    /// Starts with a token kept from before; when it no longer holds, the client logs in again.
    pub async fn use_token(&self, token: String) {
        *self.token.lock().await = Some(token);
    }

    /// Connects to the door in use, or to the next that answers.
    async fn tls(&self, alpn: &str) -> Result<(usize, TlsStream<TcpStream>)> {
        let mut tries = self.doors.len();
        loop {
            let at = self.at();
            tries -= 1;
            match self.knock(self.door(at), alpn).await {
                Ok(io) => return Ok((at, io)),
                Err(e) if tries > 0 && e.is_retryable() => {
                    tracing::debug!(error = %e, "trying the next door");
                    self.leave(at);
                }
                Err(e) => {
                    self.leave(at);
                    return Err(e);
                }
            }
        }
    }

    async fn knock(&self, door: &Door, alpn: &str) -> Result<TlsStream<TcpStream>> {
        let away = |e: &dyn std::fmt::Display| {
            Error::unavailable(format!("cannot reach the cloud at {}", door.url))
                .why(e)
                .hint("is it running? photon status; start it: photon up")
        };
        // With others to turn to, patience is short.
        let limit = if self.doors.len() > 1 { NEXT_TIME_MAX } else { CONNECT_TIME_MAX };
        let tcp = timeout(limit, "connecting", TcpStream::connect((door.host.as_str(), door.port)))
            .await?
            .map_err(|e| away(&e))?;
        let _ = tcp.set_nodelay(true); // only latency is lost without it
        let config = client_config(&self.ca, self.certificate.as_ref(), &[alpn])?;
        let name = ServerName::try_from(door.host.clone())
            .map_err(|e| Error::invalid("endpoint", "has no usable host name").why(e))?;
        let shake = TlsConnector::from(config).connect(name, tcp);
        timeout(limit, "the TLS handshake", shake).await?.map_err(|e| match e.kind() {
            // What rustls refuses comes as invalid data; all else is the connection's fault.
            std::io::ErrorKind::InvalidData => Error::new(
                Code::Unauthenticated,
                format!("{} is not the cloud that this client knows", door.url),
            )
            .why(e)
            .hint("the CA may be another cloud's: check --data-dir, or photon login"),
            _ => away(&e),
        })
    }

    async fn link(&self) -> Result<Link> {
        let mut link = self.link.lock().await;
        if let Some(l) = link.as_ref().filter(|l| !l.sender.is_closed() && l.at == self.at()) {
            return Ok(l.clone());
        }
        let (at, io) = self.tls("h2").await?;
        let ping = if self.doors.len() > 1 { NEXT_TIME_MAX } else { PING_MAX };
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(4 << 20)
            .initial_connection_window_size(8 << 20)
            .keep_alive_interval(Some(ping))
            .keep_alive_timeout(ping)
            .keep_alive_while_idle(true)
            .handshake(TokioIo::new(io))
            .await
            .map_err(|e| {
                self.leave(at);
                Error::unavailable("the server does not speak HTTP/2").why(e)
            })?;
        self.tasks.spawn("client-connection", async move {
            if let Err(e) = connection.await {
                tracing::debug!(error = %e, "connection ended");
            }
        });
        Ok(link.insert(Link { at, sender }).clone())
    }

    async fn bearer(&self) -> Result<Option<String>> {
        let mut token = self.token.lock().await;
        if let (None, Some((user, password))) = (token.as_ref(), &self.login) {
            let body = json!({ "user": user, "password": password }).to_string();
            let r = self.send_once(Method::POST, "/v1/login", &[], full(body), None, ANSWER_TIME_MAX).await?;
            let answer = read(r).await?;
            let text = answer["token"].as_str();
            *token = Some(text.ok_or_else(|| Error::internal("login gave no token"))?.to_string());
        }
        Ok(token.clone())
    }

    async fn send_once(
        &self,
        method: Method,
        path: &str,
        headers: &[(&'static str, &str)],
        body: Body,
        token: Option<&str>,
        limit: Duration,
    ) -> Result<Response<Incoming>> {
        let Link { at, sender: mut link } = self.link().await?;
        let url = &self.door(at).url;
        let mut b = Request::builder().method(method).uri(format!("{url}{path}"));
        b = b.header(header::CONTENT_TYPE, "application/json");
        for (k, v) in headers {
            b = b.header(*k, *v);
        }
        if let Some(t) = token {
            let mut v = HeaderValue::from_str(&format!("Bearer {t}")).map_err(|_| {
                Error::new(Code::Unauthenticated, "the token has a wrong form").hint("photon login")
            })?;
            v.set_sensitive(true);
            b = b.header(header::AUTHORIZATION, v);
        }
        let request = b.body(body).map_err(|e| Error::internal("a request can't be made").why(e))?;
        let broke = |e: hyper::Error| Error::unavailable(format!("{url} does not answer")).why(e);
        link.ready().await.map_err(broke)?;
        timeout(limit, "the answer", link.send_request(request)).await?.map_err(broke)
    }

    /// One request with identity; logs in again once when the token no longer holds.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&'static str, &str)],
        body: &[u8],
    ) -> Result<Response<Incoming>> {
        let token = self.bearer().await?;
        let once = async |token: Option<String>| {
            let body = full(body.to_vec());
            self.send_once(method.clone(), path, headers, body, token.as_deref(), ANSWER_TIME_MAX).await
        };
        let r = once(token.clone()).await?;
        if r.status() != http::StatusCode::UNAUTHORIZED || self.login.is_none() {
            return Ok(r);
        }
        // Somebody beside us may have logged in already.
        self.token.lock().await.take_if(|now| Some(&*now) == token.as_ref());
        once(self.bearer().await?).await
    }

    /// A request with a JSON answer. Repeats it when that is safe: always, since changes carry an
    /// idempotency key.
    pub async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value> {
        self.call_with(method, path, &[], body).await
    }

    /// [`Client::call`] with more headers.
    pub async fn call_with(
        &self,
        method: Method,
        path: &str,
        more: &[(&'static str, &str)],
        body: Option<&Value>,
    ) -> Result<Value> {
        let key = photon_rt::entropy::uid().to_string();
        let mut headers = more.to_vec();
        if method != Method::GET {
            headers.push(("idempotency-key", &key));
        }
        let bytes = body.map(|b| b.to_string().into_bytes()).unwrap_or_default();
        let mut pause = Duration::from_millis(50);
        let begun = now();
        let tries = TRIES + self.doors.len() as u32 - 1;
        for tried in 1.. {
            // Every door is tried, however long another took.
            let goes_on = || tried < tries && (now() - begun < TRYING_MAX || tried < self.doors.len() as u32);
            let at = self.at();
            let outcome = match self.send(method.clone(), path, &headers, &bytes).await {
                Ok(r) => read(r).await,
                Err(e) => Err(e),
            };
            match outcome {
                Err(e) if e.is_retryable() && goes_on() => {
                    self.leave_for(at, &e);
                    tracing::debug!(error = %e, tried, "trying again");
                    let jitter = photon_rt::entropy::u64() % (pause.as_millis() as u64 / 2 + 1);
                    sleep(pause + Duration::from_millis(jitter)).await;
                    pause *= 2;
                }
                other => return other,
            }
        }
        Err(Error::internal("unreachable: the loop returns"))
    }

    /// Reads.
    pub async fn get(&self, path: &str) -> Result<Value> {
        self.call(Method::GET, path, None).await
    }

    /// Sends a stream; not repeated, and not with a token that has expired meanwhile.
    pub async fn upload(&self, path: &str, size: u64, body: Body) -> Result<Value> {
        // A cheap call finds out whether the token still holds, and logs in again if not.
        self.get("/v1").await?;
        let token = self.bearer().await?;
        let size = size.to_string();
        let headers = [("content-length", size.as_str())];
        read(self.send_once(Method::PUT, path, &headers, body, token.as_deref(), UPLOAD_TIME_MAX).await?)
            .await
    }

    /// Opens a WebSocket.
    pub async fn websocket(&self, path: &str) -> Result<WebSocket> {
        let token = self.bearer().await?;
        let (at, io) = self.tls("http/1.1").await?;
        let Door { host, port, .. } = self.door(at);
        let key = tokio_tungstenite::tungstenite::handshake::client::generate_key();
        let mut b = Request::builder()
            .uri(format!("wss://{host}:{port}{path}"))
            .header(header::HOST, format!("{host}:{port}"))
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, "websocket")
            .header(header::SEC_WEBSOCKET_VERSION, "13")
            .header(header::SEC_WEBSOCKET_KEY, key);
        if let Some(t) = token {
            b = b.header(header::AUTHORIZATION, format!("Bearer {t}"));
        }
        let request = b.body(()).map_err(|e| Error::internal("a request can't be made").why(e))?;
        let open = Box::pin(tokio_tungstenite::client_async(request, io));
        match timeout(ANSWER_TIME_MAX, "the console", open).await? {
            Ok((ws, _)) => Ok(ws),
            Err(tokio_tungstenite::tungstenite::Error::Http(r)) => {
                Err(from_problem(r.status().as_u16(), r.body().as_deref().unwrap_or_default()))
            }
            Err(e) => Err(Error::unavailable("the console does not open").why(e)),
        }
    }
}

/// The JSON of an answer, or the error it carries.
async fn read(r: Response<Incoming>) -> Result<Value> {
    let status = r.status();
    let broke = |e: &dyn std::fmt::Display| Error::unavailable("the answer broke off").why(e);
    let body = http_body_util::Limited::new(r.into_body(), ANSWER_BYTES_MAX)
        .collect()
        .await
        .map_err(|e| broke(&e))?
        .to_bytes();
    if !status.is_success() {
        return Err(from_problem(status.as_u16(), &body));
    }
    if body.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_slice(&body).map_err(|e| Error::internal("the answer is not JSON").why(e))
}

/// The error that a problem document (RFC 9457) carries.
pub(crate) fn from_problem(status: u16, body: &[u8]) -> Error {
    let v: Value = serde_json::from_slice(body).unwrap_or(Value::Null);
    let text = |k: &str| v[k].as_str().map(ToString::to_string);
    let by_status = || {
        Code::ALL.into_iter().find(|c| c.http_status() == status).unwrap_or(match status {
            502..=504 => Code::Unavailable,
            400..=499 => Code::Invalid,
            _ => Code::Internal,
        })
    };
    let code = serde_json::from_value(v["code"].clone()).unwrap_or_else(|_| by_status());
    let mut e = Error::new(code, text("title").unwrap_or_else(|| format!("the server answered {status}")));
    e.why = text("detail").unwrap_or_default();
    e.field = text("field");
    e.hint = text("hint");
    e.raced = v["raced"] == true;
    e
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_that_says_so_is_a_lost_race() {
        let body = |raced: &str| format!(r#"{{"title":"x","code":"conflict","status":409{raced}}}"#);
        assert!(from_problem(409, body(r#","raced":true"#).as_bytes()).is_retryable());
        assert!(!from_problem(409, body("").as_bytes()).is_retryable(), "an older server's");
    }
}
