//! `GET /v1/projects/{project}/vms/{name}/console`: a WebSocket joined to the guest's serial line. What
//! the guest said before comes first.

use super::HostAgent;
use crate::engine::{BACKLOG, Console};
use async_trait::async_trait;
use axum::{
    extract::{
        FromRequest, Request,
        ws::{Message, WebSocket, WebSocketUpgrade},
    },
    response::Response,
};
use photon_api::IncarnationSpec;
use photon_auth::{Authorized, Caller};
use photon_base::{Code, Error, Name, Result};
use photon_resource::{Store, http::Connect};
use photon_rt::time::Duration;
use std::sync::Arc;
use tokio::sync::Semaphore;

/// Most consoles open at a time.
const OPEN_MAX: usize = 256;
/// Longest message taken from a viewer.
const INPUT_BYTES_MAX: usize = 64 << 10;
/// Between two questions whether the viewer may still be here.
const RIGHTS_LOOK: Duration = Duration::from_secs(2);
/// A viewer that takes nothing for this long is dropped.
const SEND_TIME_MAX: Duration = Duration::from_secs(30);

/// Passes a request on to another node.
#[async_trait]
pub trait PassOn: Send + Sync + 'static {
    /// The answer of `node` to `request`, made by `caller`.
    async fn pass_on(&self, node: &Name, caller: &Caller, request: Request) -> Result<Response>;
}

/// Serves consoles.
pub struct ConsoleRoute {
    agent: HostAgent,
    store: Store,
    others: Box<dyn PassOn>,
    open: Arc<Semaphore>,
}

impl ConsoleRoute {
    /// Consoles of `agent`'s VMs; those of other hosts are theirs to show.
    pub fn new(agent: HostAgent, store: Store, others: impl PassOn) -> ConsoleRoute {
        let others = Box::new(others);
        ConsoleRoute { agent, store, others, open: Arc::new(Semaphore::new(OPEN_MAX)) }
    }
}

#[async_trait]
impl Connect for ConsoleRoute {
    async fn connect(&self, who: Authorized, request: Request) -> Result<Response> {
        let t = who.target();
        let name = t.name.clone().ok_or_else(|| Error::internal("a console without a vm"))?;
        let off = || {
            Error::new(Code::Conflict, format!("vm {name} is not running"))
                .hint(format!("photon vm start {name}"))
        };
        let i = self.store.get::<IncarnationSpec>(t.project.as_ref(), &name).await?.ok_or_else(off)?;
        if i.spec.host != *self.agent.host() {
            return self.others.pass_on(&i.spec.host, who.caller(), request).await;
        }
        let console = self.agent.hypervisor().console(i.meta.id).map_err(|_| off())?;
        let busy = || Error::new(Code::Exhausted, "too many consoles are open").hint("close one");
        let slot = self.open.clone().try_acquire_owned().map_err(|_| busy())?;
        let upgrade = WebSocketUpgrade::from_request(request, &())
            .await
            .map_err(|e| Error::new(Code::Invalid, "a console is a WebSocket").why(e))?;
        tracing::info!(caller = %who.caller().identity, vm = %name, "console opened");
        Ok(upgrade.max_message_size(INPUT_BYTES_MAX).on_upgrade(async move |socket| {
            join(socket, console, &who).await;
            drop(slot);
        }))
    }
}

async fn join(mut socket: WebSocket, console: Console, who: &Authorized) {
    let mut viewer = console.view(BACKLOG);
    let mut look = photon_rt::time::interval(RIGHTS_LOOK);
    loop {
        tokio::select! {
            _ = look.tick() => if let Err(e) = who.still().await {
                tracing::info!(caller = %who.caller().identity, error = %e, "console closed");
                break;
            },
            piece = viewer.next() => {
                let Some(piece) = piece else { break };
                if piece.missed > 0 {
                    let note = format!("\r\n[{} bytes were too fast for this console]\r\n", piece.missed);
                    if !send(&mut socket, Message::Binary(note.into())).await { break }
                }
                if !send(&mut socket, Message::Binary(piece.data)).await { break }
            }
            message = socket.recv() => match message {
                Some(Ok(Message::Binary(b))) => if console.write(b).await.is_err() { break },
                Some(Ok(Message::Text(t))) => if console.write(t.as_bytes().to_vec().into()).await.is_err() { break },
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(Message::Close(_)) | Err(_)) | None => break,
            },
        }
    }
    let _ = socket.send(Message::Close(None)).await; // it may be gone already
}

async fn send(socket: &mut WebSocket, m: Message) -> bool {
    matches!(photon_rt::time::timeout(SEND_TIME_MAX, "the viewer", socket.send(m)).await, Ok(Ok(())))
}
