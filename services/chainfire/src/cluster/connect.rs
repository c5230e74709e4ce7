//! Connections between members: how they are made and served, and where members are.

use super::seat::{Peering, member_id};
use crate::machine::Shared;
use photon_auth::{CertPair, client_config};
use photon_base::Result;
use photon_raft::{
    NodeId,
    peers::{Dial, Dialing, Peers, Stream},
};
use photon_rt::{
    net::{TcpListener, TcpStream},
    task::Tasks,
    time::{Duration, sleep, timeout},
};
use rustls::pki_types::ServerName;
use std::{collections::BTreeMap, io, sync::Arc};
use tokio::sync::Semaphore;
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// Makes a connection to a peer URL. It must make sure that a member of the cluster answers.
pub trait Connect: Send + Sync + 'static {
    /// A new connection.
    fn connect(&self, url: &str) -> Dialing;
}

/// Plain TCP, for drop-ins on loopback.
#[derive(Clone, Copy, Debug)]
pub struct PlainTcp;

impl Connect for PlainTcp {
    fn connect(&self, url: &str) -> Dialing {
        let addr = url.strip_prefix("http://").map(|a| a.trim_end_matches('/').to_string());
        Box::pin(async move {
            let wrong = || io::Error::new(io::ErrorKind::InvalidInput, "not http://HOST:PORT");
            let stream = TcpStream::connect(addr.ok_or_else(wrong)?).await?;
            stream.set_nodelay(true)?;
            Ok(Box::new(stream) as Box<dyn Stream>)
        })
    }
}

/// TLS, with a certificate on both sides.
pub struct TlsTcp(TlsConnector);

impl TlsTcp {
    /// Shows `identity` and trusts `ca` alone (PEM).
    pub fn new(identity: &CertPair, ca: &str) -> Result<TlsTcp> {
        Ok(TlsTcp(client_config(ca, Some(identity), &[])?.into()))
    }
}

impl Connect for TlsTcp {
    fn connect(&self, url: &str) -> Dialing {
        let authority = url.strip_prefix("https://").map(|a| a.trim_end_matches('/').to_string());
        let tls = self.0.clone();
        Box::pin(async move {
            let wrong = || io::Error::new(io::ErrorKind::InvalidInput, "not https://HOST:PORT");
            let authority = authority.ok_or_else(wrong)?;
            let (host, _) = authority.rsplit_once(':').ok_or_else(wrong)?;
            let host = host.trim_start_matches('[').trim_end_matches(']').to_string();
            let name = ServerName::try_from(host).map_err(|_| wrong())?;
            let stream = TcpStream::connect(&authority).await?;
            stream.set_nodelay(true)?;
            Ok(Box::new(tls.connect(name, stream).await?) as Box<dyn Stream>)
        })
    }
}

/// Where members are: what the log says, else what this member was told at its start.
pub(crate) struct AddressBook {
    shared: Arc<Shared>,
    told: BTreeMap<NodeId, String>,
    connect: Arc<dyn Connect>,
}

impl AddressBook {
    pub(crate) fn new(peering: &Peering, shared: Arc<Shared>) -> AddressBook {
        let told = peering.initial.iter().map(|f| (NodeId(member_id(&f.peer_url)), f.peer_url.clone()));
        AddressBook { shared, told: told.collect(), connect: peering.connect.clone() }
    }
}

impl Dial for AddressBook {
    fn dial(&self, to: NodeId) -> Dialing {
        let known = self.shared.published().rules.member(to.0).and_then(|m| m.peer_urls.first().cloned());
        match known.or_else(|| self.told.get(&to).cloned()) {
            Some(url) => self.connect.connect(&url),
            None => Box::pin(async move {
                Err(io::Error::new(io::ErrorKind::NotFound, format!("no URL of {to} is known")))
            }),
        }
    }
}

/// Most connections of peers at a time.
const CONNECTIONS_MAX: usize = 256;

/// Time for a TLS handshake.
const HANDSHAKE_MAX: Duration = Duration::from_secs(5);

/// Serves members that connect: by TLS whose verifier lets only members in, or in plain text on loopback.
pub(super) fn serve(peers: Peers, socket: TcpListener, tls: Option<TlsAcceptor>, tasks: &Tasks) {
    let owner = tasks.clone();
    tasks.spawn("chainfire-peers", async move {
        let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        while let Ok(slot) = slots.clone().acquire_owned().await {
            let Ok((stream, _)) = socket.accept().await else {
                sleep(Duration::from_millis(50)).await; // out of file descriptors, most likely
                continue;
            };
            let (peers, tls) = (peers.clone(), tls.clone());
            owner.spawn("chainfire-peer", async move {
                let _ = stream.set_nodelay(true); // only latency is lost without it
                let served = match tls {
                    None => peers.serve(stream, |_| true).await.map_err(|e| e.to_string()),
                    Some(tls) => match timeout(HANDSHAKE_MAX, "a peer's handshake", tls.accept(stream)).await
                    {
                        Ok(Ok(stream)) => peers.serve(stream, |_| true).await.map_err(|e| e.to_string()),
                        Ok(Err(e)) => Err(e.to_string()),
                        Err(e) => Err(e.to_string()),
                    },
                };
                if let Err(e) = served {
                    tracing::debug!(error = e, "a peer's connection ended");
                }
                drop(slot);
            });
        }
    });
}
