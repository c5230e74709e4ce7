//! Requests that only another node can answer, as the console of a VM that runs there: they are passed on to its
//! front door, and what follows (a WebSocket) is joined.

use axum::{body::Body, extract::Request, response::Response};
use http::{HeaderName, HeaderValue, StatusCode, header};
use hyper_util::rt::TokioIo;
use photon_api::NodeSpec;
use photon_auth::{Caller, Kind, TokenKey, client_config};
use photon_base::{Code, Error, Name, Result};
use photon_reconcile::View;
use photon_rt::{
    net::TcpStream,
    task::Tasks,
    time::{Duration, timeout, wall},
};
use rustls_pki_types::ServerName;
use std::{net::SocketAddr, sync::Arc};
use tokio_rustls::TlsConnector;

/// Says that a request was passed on already: it is not passed on again.
const PASSED_ON: HeaderName = HeaderName::from_static("photon-passed-on");

/// Time for the other node to answer.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(10);
/// How long the caller's name is good on the other node: it is checked when the request arrives.
const TOKEN_TTL: Duration = Duration::from_secs(60);

/// Passes requests on to other nodes.
pub struct Forward {
    pub view: View,
    pub tokens: Arc<TokenKey>,
    pub authority: String,
    pub tasks: Tasks,
}

#[async_trait::async_trait]
impl plasmavmc::agent::PassOn for Forward {
    async fn pass_on(&self, node: &Name, caller: &Caller, request: Request) -> Result<Response> {
        let away =
            |why: &dyn std::fmt::Display| Error::unavailable(format!("node {node} does not answer")).why(why);
        if request.headers().contains_key(PASSED_ON) {
            return Err(away(&"it moved while it was asked for"));
        }
        if caller.identity.kind != Kind::User {
            return Err(Error::new(Code::Unsupported, format!("only users are passed on to node {node}"))
                .hint("ask that node itself: photon node list shows its endpoint"));
        }
        let known = self.view.one::<NodeSpec>(None, node).ok_or_else(|| away(&"there is no such node"))?;
        let endpoint = known.status.endpoint;
        let addr: SocketAddr = endpoint
            .strip_prefix("https://")
            .and_then(|a| a.parse().ok())
            .ok_or_else(|| away(&"its endpoint is not known"))?;
        let (token, _) = self.tokens.sign(&caller.identity, wall(), TOKEN_TTL)?;
        let connect = async {
            let tcp = TcpStream::connect(addr).await?;
            tcp.set_nodelay(true)?;
            let tls = client_config(&self.authority, None, &["http/1.1"])
                .map_err(|e| std::io::Error::other(e.to_string()))?;
            TlsConnector::from(tls).connect(ServerName::from(addr.ip()), tcp).await
        };
        let io = timeout(ANSWER_TIME_MAX, "the other node", connect).await?.map_err(|e| away(&e))?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(io)).await.map_err(|e| away(&e))?;
        let name = node.clone();
        self.tasks.spawn("forward", async move {
            if let Err(e) = connection.with_upgrades().await {
                tracing::debug!(error = %e, node = %name, "a request that was passed on ended");
            }
        });
        let (outgoing, upgrade) = rewritten(request, &endpoint, &token)?;
        let sent = sender.send_request(outgoing);
        let mut answer = timeout(ANSWER_TIME_MAX, "the other node", sent).await?.map_err(|e| away(&e))?;
        if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
            let theirs = hyper::upgrade::on(&mut answer);
            self.tasks.spawn("forward-stream", async move {
                let (Ok(ours), Ok(theirs)) = tokio::join!(upgrade, theirs) else { return };
                let (mut ours, mut theirs) = (TokioIo::new(ours), TokioIo::new(theirs));
                // Either side may hang up at any time.
                let _ = tokio::io::copy_bidirectional(&mut ours, &mut theirs).await;
            });
        }
        Ok(answer.map(Body::new))
    }
}

/// The request as it goes out, and what becomes of the caller's connection.
fn rewritten(request: Request, endpoint: &str, token: &str) -> Result<(Request, hyper::upgrade::OnUpgrade)> {
    let (mut parts, body) = request.into_parts();
    let bad = |e: &dyn std::fmt::Display| Error::internal("a request can't be passed on").why(e);
    let upgrade = parts.extensions.remove::<hyper::upgrade::OnUpgrade>();
    let upgrade = upgrade.ok_or_else(|| Error::new(Code::Invalid, "this call is a WebSocket"))?;
    let authority = endpoint.trim_start_matches("https://");
    let path = parts.uri.path_and_query().map_or("/", |p| p.as_str()).to_string();
    parts.uri = path.parse().map_err(|e| bad(&e))?;
    let mut bearer = HeaderValue::from_str(&format!("Bearer {token}")).map_err(|e| bad(&e))?;
    bearer.set_sensitive(true);
    parts.headers.insert(header::AUTHORIZATION, bearer);
    parts.headers.insert(header::HOST, HeaderValue::from_str(authority).map_err(|e| bad(&e))?);
    parts.headers.insert(PASSED_ON, HeaderValue::from_static("1"));
    parts.extensions.clear();
    Ok((Request::from_parts(parts, body), upgrade))
}
