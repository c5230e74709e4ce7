//! What the nodes of one store ask each other: over gRPC at the port of clients, marked as asked by a node, so that
//! nobody asks on. And their connections for the logs, on a port of their own.
//!
//! In plain text and on loopback only so far: whoever reaches the ports may say anything.

use super::{
    MESSAGE_MAX, answer, of_request,
    proto::{self as pb, flare_db_client::FlareDbClient},
    refusal,
};
use crate::{
    Refusal,
    client::{Request, Response},
    model::{Descriptor, RegionState},
    node::Others,
    refusal::Outcome,
    time::Ts,
};
use futures::future::BoxFuture;
use photon_base::{Error, Result};
use photon_etcd::{config::Target, link};
use photon_raft::{
    NodeId,
    peers::{Dial, Dialing, Peers, Stream},
};
use photon_rt::{
    net::{TcpListener, TcpStream},
    task::Tasks,
    time::{Duration, sleep},
};
use prost::Message;
use std::{collections::BTreeMap, io, net::SocketAddr, sync::Arc};
use tokio::sync::{Mutex, Semaphore};
use tonic::transport::Channel;

/// Connections to the other nodes, each made when it is first needed; they mend themselves.
pub struct Network {
    nodes: BTreeMap<u64, (Target, Mutex<Option<Channel>>)>,
    tasks: Tasks,
}

impl Network {
    /// To the nodes at these URLs, by number.
    pub fn new(urls: &BTreeMap<u64, String>, tasks: &Tasks) -> Result<Network> {
        let node = |(id, url): (&u64, &String)| {
            let target = Target::parse(url)?;
            if target.tls {
                let why = format!("{url}: nodes of a store speak plain text to each other so far");
                return Err(Error::invalid("node", why).hint("http://127.0.0.1:PORT"));
            }
            Ok((*id, (target, Mutex::new(None))))
        };
        Ok(Network { nodes: urls.iter().map(node).collect::<Result<_>>()?, tasks: tasks.clone() })
    }

    async fn client(&self, to: NodeId) -> Outcome<FlareDbClient<Channel>> {
        let unknown = || Refusal::Unreachable(format!("nobody knows where {to} is"));
        let (target, slot) = self.nodes.get(&to.0).ok_or_else(unknown)?;
        let mut slot = slot.lock().await;
        let channel = match &*slot {
            Some(c) => c.clone(),
            None => {
                let made = link::connect(target, None, &self.tasks).await.map_err(Refusal::Unreachable)?;
                slot.insert(made).clone()
            }
        };
        Ok(FlareDbClient::new(channel)
            .max_decoding_message_size(MESSAGE_MAX)
            .max_encoding_message_size(MESSAGE_MAX))
    }
}

/// Whatever a status says, what became of the request is not known.
fn lost(s: tonic::Status) -> Refusal {
    Refusal::Unknown(format!("another node: {}", s.message()))
}

const ALL: &str = "all";

impl Others for Network {
    fn timestamps(&self, node: NodeId, n: u32) -> BoxFuture<'_, Outcome<Ts>> {
        Box::pin(async move {
            let ask = pb::TimestampsRequest { keyspace: ALL.into(), count: n, here: true };
            let r = self.client(node).await?.timestamps(ask).await.map_err(lost)?.into_inner();
            r.refusal.map_or(Ok(r.first), |e| Err(refusal(e)))
        })
    }

    fn region(&self, node: NodeId, id: u64) -> BoxFuture<'_, Outcome<RegionState>> {
        Box::pin(async move {
            let ask = pb::ReplicaRequest { region: id };
            let r = self.client(node).await?.replica(ask).await.map_err(lost)?.into_inner();
            match r.refusal {
                Some(e) => Err(refusal(e)),
                None => RegionState::decode(r.state).map_err(|e| Refusal::Unknown(e.to_string())),
            }
        })
    }

    fn ask(&self, node: NodeId, region: &Descriptor, request: Request) -> BoxFuture<'_, Outcome<Response>> {
        let (id, version) = (region.id, region.version);
        Box::pin(async move {
            let what = Some(of_request(request)?);
            let ask = pb::AskRequest { keyspace: ALL.into(), region: id, version, what, here: true };
            answer(self.client(node).await?.ask(ask).await.map_err(lost)?.into_inner())
        })
    }
}

/// Connections for the logs, in plain text.
pub struct Plain(pub BTreeMap<u64, SocketAddr>);

impl Dial for Plain {
    fn dial(&self, to: NodeId) -> Dialing {
        let addr = self.0.get(&to.0).copied();
        Box::pin(async move {
            let stream = TcpStream::connect(addr.ok_or(io::ErrorKind::NotFound)?).await?;
            stream.set_nodelay(true)?;
            Ok(Box::new(stream) as Box<dyn Stream>)
        })
    }
}

/// Most connections of other nodes at a time.
const CONNECTIONS_MAX: usize = 64;

/// Takes the others' connections for the logs, in plain text: for loopback alone.
pub fn serve(peers: Peers, members: Vec<u64>, socket: TcpListener, tasks: &Tasks) {
    let owner = tasks.clone();
    tasks.spawn("flaredb-peers", async move {
        let (slots, members) = (Arc::new(Semaphore::new(CONNECTIONS_MAX)), Arc::new(members));
        while let Ok(slot) = slots.clone().acquire_owned().await {
            let Ok((stream, _)) = socket.accept().await else {
                sleep(Duration::from_millis(50)).await; // out of file descriptors, most likely
                continue;
            };
            let (peers, members) = (peers.clone(), members.clone());
            owner.spawn("flaredb-peer", async move {
                let _ = stream.set_nodelay(true); // only latency is lost without it
                if let Err(e) = peers.serve(stream, |n| members.contains(&n.0)).await {
                    tracing::debug!(error = %e, "another node's connection ended");
                }
                drop(slot);
            });
        }
    });
}
