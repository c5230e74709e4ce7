//! Messages between nodes, over streams that somebody else makes (TCP, TLS) and authenticates.
//!
//! To each other node there are up to two connections: one for everything small, and one for the snapshot
//! that is on its way (`snapshots`), so that a heartbeat never waits behind a gigabyte. The first goes one way,
//! from the sender. A sender's queue is bounded by number and bytes; what does not fit, or is on its way when a
//! connection breaks, is lost, which Raft survives: it asks again. Nothing is sent twice.
//!
//! Considered: HTTP/2 streams of the listeners we have. Raft wants neither flow control by stream nor
//! answers; a frame is a length and a message.

mod frame;
mod outgoing;
mod snapshots;
#[cfg(test)]
mod tests;

use crate::{GroupId, NodeId, Store, Transport, codec, snapshot};
use bytes::Bytes;
use frame::{Hello, Lane, Refusal};
use outgoing::Outgoing;
use photon_rt::{
    task::Tasks,
    time::{Duration, timeout},
};
use snapshots::Carrier;
use std::{
    collections::HashMap,
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    sync::mpsc,
};

/// A connection, as good as the network makes it.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> Stream for T {}

/// A connection that is being made.
pub type Dialing = Pin<Box<dyn Future<Output = io::Result<Box<dyn Stream>>> + Send>>;

/// Makes connections to other nodes. It must make sure that who answers is that node.
pub trait Dial: Send + Sync + 'static {
    /// A new connection to `to`; an error when its address is not known.
    fn dial(&self, to: NodeId) -> Dialing;
}

/// Time for a connection to be made and greeted.
const GREETING_MAX: Duration = Duration::from_secs(5);

/// This node's connections to the others. Clones are handles on the same ones.
#[derive(Clone)]
pub struct Peers {
    inner: Arc<Inner>,
}

struct Inner {
    me: NodeId,
    /// 0 until a peer has told: then greetings of any cluster are welcome, once.
    cluster: AtomicU64,
    dial: Arc<dyn Dial>,
    tasks: Tasks,
    runtime: tokio::runtime::Handle,
    store: OnceLock<Weak<Store>>,
    outgoing: Mutex<HashMap<NodeId, Lines>>,
    /// Ways back on connections that came in, for notices to whom this node does not know how to reach.
    back: Mutex<HashMap<NodeId, Back>>,
}

type Back = mpsc::Sender<(GroupId, Bytes)>;

/// Most notices that wait on a way back.
const BACK: usize = 16;

/// What goes to one node.
#[derive(Default)]
struct Lines {
    quick: Option<Outgoing>,
    snapshots: Option<Carrier>,
}

/// Why a peer's connection was not served.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// The connection broke or was silent.
    #[error("connection of a peer: {0}")]
    Io(#[from] io::Error),
    /// It is not for us.
    #[error("a peer was refused: {0}")]
    Refused(&'static str),
    /// It sent what no peer of ours sends.
    #[error("a peer's message was refused: {0}")]
    Codec(#[from] codec::CodecError),
    /// Its snapshot was not taken.
    #[error("a peer's snapshot was refused: {0}")]
    Snapshot(#[from] snapshot::Refusal),
}

impl Peers {
    /// Connections of `me` in `cluster` (0: the first that greets it), made by `dial`, ended with `tasks`. Call within a runtime.
    pub fn new(me: NodeId, cluster: u64, dial: Arc<dyn Dial>, tasks: &Tasks) -> Peers {
        let inner = Inner {
            me,
            cluster: AtomicU64::new(cluster),
            dial,
            tasks: tasks.clone(),
            runtime: tokio::runtime::Handle::current(),
            store: OnceLock::new(),
            outgoing: Mutex::default(),
            back: Mutex::default(),
        };
        Peers { inner: Arc::new(inner) }
    }

    /// The cluster, 0 while it is not known.
    pub fn cluster(&self) -> u64 {
        self.inner.cluster.load(Ordering::Relaxed)
    }

    /// What [`Store::open`] sends by.
    pub fn transport(&self) -> impl Transport {
        Sender(self.clone())
    }

    /// Where messages go that come in.
    pub fn attach(&self, store: &Arc<Store>) {
        let _ = self.inner.store.set(Arc::downgrade(store)); // a second store changes nothing
    }

    fn store(&self) -> Option<Arc<Store>> {
        self.inner.store.get().and_then(Weak::upgrade)
    }

    fn outgoing(&self) -> MutexGuard<'_, HashMap<NodeId, Lines>> {
        self.inner.outgoing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes connections to a node that is no member any more.
    pub fn forget(&self, node: NodeId) {
        self.outgoing().remove(&node);
    }

    /// True if this node is of the cluster, or of none so far and therefore of this one from now on.
    fn is_cluster(&self, cluster: u64) -> bool {
        let known = self.inner.cluster.compare_exchange(0, cluster, Ordering::Relaxed, Ordering::Relaxed);
        known.map_or_else(|known| known == cluster, |_| true)
    }

    async fn connect(&self, to: NodeId, lane: Lane) -> io::Result<Box<dyn Stream>> {
        let inner = &self.inner;
        let hello = Hello { lane, cluster: self.cluster(), from: inner.me, to };
        let dial = async {
            let mut stream = inner.dial.dial(to).await?;
            hello.greet(&mut stream).await?;
            Ok(stream)
        };
        within(GREETING_MAX, "connecting to a peer", dial).await
    }

    fn back(&self) -> MutexGuard<'_, HashMap<NodeId, Back>> {
        self.inner.back.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes messages of `from`, and sends what goes back.
    async fn take(
        &self,
        from: NodeId,
        stream: impl Stream,
        mut back: mpsc::Receiver<(GroupId, Bytes)>,
    ) -> Result<(), PeerError> {
        let (reader, mut writer) = tokio::io::split(stream);
        let mut reader = frame::Reader::new(reader);
        loop {
            tokio::select! {
                frame = reader.next() => {
                    let Some((group, message)) = frame? else { return Ok(()) };
                    let Some(store) = self.store() else { return Ok(()) };
                    store.deliver(from, group, message)?;
                }
                Some((group, message)) = back.recv() => {
                    within(GREETING_MAX, "answering a peer", async {
                        writer.write_all(&frame::head(group, &message)).await?;
                        writer.write_all(&message).await?;
                        writer.flush().await
                    })
                    .await?;
                }
            }
        }
    }

    /// Serves one connection of a peer to its end. `proven` says whether the other side of this stream may
    /// speak for a node (its certificate, or that there is none).
    pub async fn serve(
        &self,
        mut stream: impl Stream,
        proven: impl FnOnce(NodeId) -> bool,
    ) -> Result<(), PeerError> {
        let hello = within(GREETING_MAX, "a peer's greeting", Hello::read(&mut stream)).await?;
        let me = self.inner.me;
        let refusal = match () {
            () if hello.to != me => Some(Refusal::Node),
            () if hello.from == me || hello.from.0 == 0 || !proven(hello.from) => Some(Refusal::Identity),
            () if hello.cluster == 0 || !self.is_cluster(hello.cluster) => Some(Refusal::Cluster),
            () => None,
        };
        Hello::answer(&mut stream, refusal).await?;
        if let Some(r) = refusal {
            return Err(PeerError::Refused(r.text()));
        }
        if hello.lane == Lane::Snapshots {
            return snapshots::serve(self, hello.from, stream).await;
        }
        let (tx, rx) = mpsc::channel(BACK);
        self.back().insert(hello.from, tx.clone());
        let served = self.take(hello.from, stream, rx).await;
        let mut back = self.back();
        // Unless it has connected anew meanwhile.
        if back.get(&hello.from).is_some_and(|b| b.same_channel(&tx)) {
            back.remove(&hello.from);
        }
        served
    }
}

async fn within<T>(limit: Duration, what: &str, f: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(limit, what, f).await.map_err(|e| io::Error::new(io::ErrorKind::TimedOut, e.to_string()))?
}

struct Sender(Peers);

impl Transport for Sender {
    fn send(&mut self, to: NodeId, group: GroupId, message: Bytes) {
        if codec::is_notice(&message)
            && let Some(back) = self.0.back().get(&to)
            && back.try_send((group, message.clone())).is_ok()
        {
            return;
        }
        let mut outgoing = self.0.outgoing();
        let lines = outgoing.entry(to).or_default();
        let out = lines.quick.get_or_insert_with(|| Outgoing::start(&self.0, to));
        if !out.push(group, message) {
            drop(outgoing);
            if let Some(store) = self.0.store() {
                store.unreachable(to, group);
            }
        }
    }

    fn send_snapshot(&mut self, shipment: snapshot::Shipment) {
        let mut outgoing = self.0.outgoing();
        let lines = outgoing.entry(shipment.to).or_default();
        lines.snapshots.get_or_insert_with(|| Carrier::start(&self.0, shipment.to)).push(shipment);
    }
}
