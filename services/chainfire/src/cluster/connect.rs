//! Connections between members: how they are made and served, and where members are.

use super::{
    ask,
    seat::{Founder, Peering, Seat},
};
use crate::{machine::Shared, store::Inner};
use photon_auth::{Identity, Kind, LiveCertificate, identity_of, live_client_config};
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
use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Weak},
};
use tokio::{io::AsyncReadExt, sync::Semaphore};
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
    pub fn new(identity: Arc<LiveCertificate>, ca: &str) -> photon_base::Result<TlsTcp> {
        Ok(TlsTcp(live_client_config(ca, Some(identity), &[])?.into()))
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

/// Where members are: what those who see them say, else what the log says, else what this member was told at
/// its start. A cluster whose members have all moved has no log to agree in.
pub(crate) struct AddressBook {
    shared: Arc<Shared>,
    told: BTreeMap<NodeId, Founder>,
    connect: Arc<dyn Connect>,
    sighted: Option<Sighted>,
}

/// Where a member of this name was seen lately, if anybody knows.
pub type Sighted = Arc<dyn Fn(&str) -> Option<String> + Send + Sync>;

/// Who may speak for a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admit {
    /// Whoever shows a certificate that the listener accepts, or reaches it where there are none.
    Anybody,
    /// The host of the cloud that has the member's name.
    Hosts,
}

impl AddressBook {
    pub(crate) fn new(peering: &Peering, seat: &Seat, shared: Arc<Shared>) -> AddressBook {
        let initial = peering.initial.iter().map(|f| (NodeId(f.id()), f.clone()));
        let others = seat.others.iter().map(|(id, url)| (NodeId(*id), Founder::new("", url)));
        let (connect, sighted) = (peering.connect.clone(), peering.sighted.clone());
        AddressBook { shared, told: initial.chain(others).collect(), connect, sighted }
    }

    fn name(&self, node: NodeId) -> Option<String> {
        let rules = &self.shared.published().rules;
        let known = rules.member(node.0).map(|m| m.name.clone());
        let told = || self.told.get(&node).map(|f| f.name.clone());
        known.filter(|n| !n.is_empty()).or_else(told).filter(|n| !n.is_empty())
    }

    /// Whether this host may speak for `node`. One that nobody knows by name yet may be any host: this member
    /// may lag behind, and every host is trusted with the log.
    fn is_host_of(&self, node: NodeId, who: Option<&Identity>) -> bool {
        let Some(who) = who.filter(|w| w.kind == Kind::Host) else { return false };
        self.name(node).is_none_or(|n| n == who.name.as_str())
    }
}

impl Dial for AddressBook {
    fn dial(&self, to: NodeId) -> Dialing {
        let known = self.shared.published().rules.member(to.0).and_then(|m| m.peer_urls.first().cloned());
        let seen = self.sighted.as_ref().and_then(|s| s(&self.name(to)?));
        match seen.or(known).or_else(|| self.told.get(&to).map(|f| f.peer_url.clone())) {
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

/// How connections of members are let in.
#[derive(Clone)]
pub(super) struct Gatekeeper {
    /// TLS whose verifier lets only members in; without it, for loopback alone.
    pub tls: Option<TlsAcceptor>,
    pub admit: Admit,
    pub book: Arc<AddressBook>,
    /// Who answers calls.
    pub me: Weak<Inner>,
}

/// Serves members that connect.
pub(super) fn serve(peers: Peers, socket: TcpListener, gate: Gatekeeper, tasks: &Tasks) {
    let owner = tasks.clone();
    tasks.spawn("chainfire-peers", async move {
        let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        while let Ok(slot) = slots.clone().acquire_owned().await {
            let Ok((stream, _)) = socket.accept().await else {
                sleep(Duration::from_millis(50)).await; // out of file descriptors, most likely
                continue;
            };
            let (peers, gate) = (peers.clone(), gate.clone());
            owner.spawn("chainfire-peer", async move {
                let _ = stream.set_nodelay(true); // only latency is lost without it
                let served = match &gate.tls {
                    None => gate.converse(peers, stream, None).await,
                    Some(tls) => match timeout(HANDSHAKE_MAX, "a peer's handshake", tls.accept(stream)).await
                    {
                        Ok(Ok(stream)) => {
                            let shown = stream.get_ref().1.peer_certificates().and_then(|c| c.first());
                            let who = shown.and_then(identity_of);
                            gate.converse(peers, stream, who).await
                        }
                        Ok(Err(e)) => Err(said(e)),
                        Err(e) => Err(said(e)),
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

impl Gatekeeper {
    /// Raft or calls: the first bytes tell.
    async fn converse(&self, peers: Peers, stream: impl Stream, who: Option<Identity>) -> Result<(), String> {
        let (mut from, to) = tokio::io::split(stream);
        let mut first = [0; 4];
        let read = timeout(HANDSHAKE_MAX, "a peer's first bytes", from.read_exact(&mut first)).await;
        read.map_err(said)?.map_err(said)?;
        let stream = tokio::io::join(std::io::Cursor::new(first).chain(from), to);
        let host = who.as_ref().is_some_and(|w| w.kind == Kind::Host);
        if first == *ask::PREFACE {
            // A host that is no member yet asks too; every host is trusted with the log.
            return match self.admit == Admit::Anybody || host {
                true => ask::serve(self.me.clone(), stream).await,
                false => Err("only hosts may ask".into()),
            };
        }
        let may = |node| match self.admit {
            Admit::Anybody => true,
            Admit::Hosts => self.book.is_host_of(node, who.as_ref()),
        };
        peers.serve(stream, may).await.map_err(said)
    }
}

fn said(e: impl std::fmt::Display) -> String {
    e.to_string()
}
