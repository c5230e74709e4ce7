//! One connection to one endpoint.

use crate::config::Target;
use hyper_util::rt::TokioIo;
use photon_rt::{
    net::TcpStream,
    task::Tasks,
    time::{Duration, timeout},
};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use std::{future::Future, io, pin::Pin, sync::Arc};
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};

/// Time for TCP and TLS.
const CONNECT_MAX: Duration = Duration::from_secs(3);
/// A server that answers no ping for this long is gone. etcd ends connections that ping more often than every 5 s.
const PING_EVERY: Duration = Duration::from_secs(10);
const PING_MAX: Duration = Duration::from_secs(10);
/// Bytes under way: of one stream, of all. What a slow watcher leaves unread must not stop the others.
const STREAM_WINDOW: u32 = 1 << 20;
const WINDOW: u32 = 64 << 20;

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// What every request carries: who asks, and that a member without a leader shall refuse.
#[derive(Clone)]
pub struct Stamp {
    pub(crate) token: Option<MetadataValue<Ascii>>,
}

impl Interceptor for Stamp {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let m = request.metadata_mut();
        m.insert("hasleader", MetadataValue::from_static("true"));
        if let Some(t) = &self.token {
            m.insert("token", t.clone());
        }
        Ok(request)
    }
}

/// A connection with its stamp.
pub type Wire = InterceptedService<Channel, Stamp>;

/// The connection's tasks end with their owner.
#[derive(Clone)]
struct Owned(Tasks);

impl hyper::rt::Executor<Pin<Box<dyn Future<Output = ()> + Send>>> for Owned {
    fn execute(&self, f: Pin<Box<dyn Future<Output = ()> + Send>>) {
        self.0.spawn("etcd-connection", f);
    }
}

async fn dial(target: Target, tls: Option<Arc<ClientConfig>>) -> io::Result<TokioIo<Box<dyn Io>>> {
    let tcp = TcpStream::connect((target.host.as_str(), target.port)).await?;
    tcp.set_nodelay(true)?;
    let io: Box<dyn Io> = match tls {
        None => Box::new(tcp),
        Some(config) => {
            let name = ServerName::try_from(target.host)
                .map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))?;
            Box::new(tokio_rustls::TlsConnector::from(config).connect(name, tcp).await?)
        }
    };
    Ok(TokioIo::new(io))
}

/// Connects; an error says why in words for people.
pub async fn connect(
    target: &Target,
    tls: Option<&Arc<ClientConfig>>,
    tasks: &Tasks,
) -> Result<Channel, String> {
    let endpoint = endpoint(target, tasks)?;
    endpoint.connect_with_connector(dialler(target, tls)).await.map_err(|e| say(target, &e))
}

/// Connects when it is first used, and again whenever that is needed. An error is of the target.
pub fn connect_lazy(
    target: &Target,
    tls: Option<&Arc<ClientConfig>>,
    tasks: &Tasks,
) -> Result<Channel, String> {
    Ok(endpoint(target, tasks)?.connect_with_connector_lazy(dialler(target, tls)))
}

fn say(target: &Target, e: &dyn std::error::Error) -> String {
    let mut text = e.to_string();
    let mut source = e.source();
    while let Some(s) = source {
        text = s.to_string(); // the innermost says it best
        source = s.source();
    }
    format!("{}: {text}", target.url)
}

fn endpoint(target: &Target, tasks: &Tasks) -> Result<Endpoint, String> {
    // What lies below is plain to tonic; TLS is ours.
    let host = if target.host.contains(':') { format!("[{}]", target.host) } else { target.host.clone() };
    let endpoint = Endpoint::from_shared(format!("http://{host}:{}", target.port))
        .map_err(|e| say(target, &e))?
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(WINDOW)
        .http2_keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_MAX)
        .executor(Owned(tasks.clone()));
    Ok(endpoint)
}

type Dialled = Pin<Box<dyn Future<Output = io::Result<TokioIo<Box<dyn Io>>>> + Send>>;

fn dialler(
    target: &Target,
    tls: Option<&Arc<ClientConfig>>,
) -> impl tower::Service<http::Uri, Response = TokioIo<Box<dyn Io>>, Error = io::Error, Future = Dialled>
+ Send
+ 'static {
    let (to, tls) = (target.clone(), tls.cloned());
    tower::service_fn(move |_: http::Uri| -> Dialled {
        let f = dial(to.clone(), tls.clone());
        Box::pin(async move {
            match timeout(CONNECT_MAX, "connecting", f).await {
                Ok(r) => r,
                Err(e) => Err(io::Error::new(io::ErrorKind::TimedOut, e.what)),
            }
        })
    })
}
