//! What makes a node one of several.
//!
//! The nodes of a store are named when it is founded, and every region has a replica on each. A folder belongs to
//! one node of one such set for ever: under another number it would vote twice.
//!
//! **Replicas that are missing.** A replica comes with the split that makes its region. A node that took a snapshot
//! of the left half instead of that entry has nothing where the right half is, and hears of a region that does
//! not run here. It asks the sender where that lies. As long as another region here covers the place, the split is
//! still to come, and this replica with it; else it begins without anything and waits for a snapshot. It is never
//! begun twice: its log, with what it voted, stays.

use super::{Inner, Node, broken, known, lock};
use crate::{
    Refusal,
    client::{Request, Response},
    machine::RegionMachine,
    model::{
        Descriptor, RegionState,
        layout::{META, meta_key},
    },
    refusal::Outcome,
    time::Ts,
};
use bytes::Bytes;
use futures::future::BoxFuture;
use photon_kv::{
    Check, Kv, KvError, ReadAt, Write,
    engine::{Batch, Engine},
};
use photon_raft::{GroupId, NodeId, peers::Peers};
use photon_rt::time::{Duration, timeout};
use prost::Message;
use std::{
    future::Future,
    sync::{Arc, Weak},
};
use tokio::sync::mpsc;

/// Key of the number of the node whose folder it is.
const NODE: &[u8] = b"node";

/// Most nodes of a store: replicas of a region.
pub const NODES_MAX: usize = 7;

/// How long another node may take for an answer.
const ANSWER_MAX: Duration = Duration::from_secs(3);

/// Who this node is, and how it reaches the others.
#[derive(Clone)]
pub struct Cluster {
    /// This node.
    pub me: NodeId,
    /// All nodes, this one among them.
    pub members: Vec<NodeId>,
    /// Connections for the logs.
    pub peers: Peers,
    /// For everything else.
    pub others: Arc<dyn Others>,
    /// Where it is agreed who gives timestamps: a store of its own, not this one.
    pub kv: Arc<dyn Kv>,
    /// Key of that record. Notes on the nodes lie below it.
    pub oracle: Bytes,
    /// Time without a sign of life after which a replica stands for election.
    pub election: Duration,
    /// Entries of a log that are kept for a node that was away, or a few more; who lacks more gets a snapshot.
    pub retain: u64,
}

/// Usual value of [`Cluster::retain`].
pub const RETAIN: u64 = 10_000;

impl Cluster {
    /// The numbers of all nodes in rising order.
    pub(super) fn numbers(&self) -> Outcome<Vec<u64>> {
        let mut all: Vec<u64> = self.members.iter().map(|m| m.0).collect();
        all.sort_unstable();
        all.dedup();
        if all.len() != self.members.len() || all.len() > NODES_MAX || all.first() == Some(&0) {
            return Err(Refusal::Malformed(format!(
                "a store has 1 to {NODES_MAX} nodes, each its own number"
            )));
        }
        if !all.contains(&self.me.0) {
            return Err(Refusal::Malformed(format!("{} is not among the nodes of the store", self.me)));
        }
        Ok(all)
    }
}

impl Cluster {
    /// Key of the note that this node has begun.
    fn note(&self) -> Bytes {
        [&self.oracle[..], b"/node/", self.me.0.to_string().as_bytes()].concat().into()
    }

    /// A node that lost its data must not begin anew: it has forgotten what it voted.
    async fn never_began(&self) -> Outcome<()> {
        match kv(self.kv.get(&self.note(), ReadAt::Latest)).await? {
            None => Ok(()),
            Some(_) => Err(Refusal::Malformed(format!(
                "{} has begun before, and its folder is empty: put its data back; it has forgotten what it voted",
                self.me
            ))),
        }
    }

    /// Notes that it has. Without an answer, it is noted at a later start, unless this is the first.
    async fn has_begun(&self, first: bool) -> Outcome<()> {
        let (check, put) =
            (Check::absent(self.note()), Write::Put(self.note(), Bytes::from_static(b"begun")));
        match kv(self.kv.commit(vec![check], vec![put])).await {
            Err(e) if first => Err(e),
            _ => Ok(()),
        }
    }
}

/// The kernel's store answers, or is away.
pub(super) async fn kv<T>(answer: impl Future<Output = Result<T, KvError>>) -> Outcome<T> {
    let away = |why: String| Refusal::Unreachable(format!("the store of agreements: {why}"));
    let answer = timeout(ANSWER_MAX, "the kernel's store", answer).await;
    answer.map_err(|e| away(e.to_string()))?.map_err(|e| away(e.to_string()))
}

/// What nodes ask each other beside the logs. Whoever answers does so for itself and asks nobody else.
pub trait Others: Send + Sync + 'static {
    /// Fresh timestamps, if that node gives them: [`Node::timestamps_here`].
    fn timestamps(&self, node: NodeId, n: u32) -> BoxFuture<'_, Outcome<Ts>>;
    /// A region's state on that node, durable: [`Node::region_state`].
    fn region(&self, node: NodeId, id: u64) -> BoxFuture<'_, Outcome<RegionState>>;
    /// Asks the replica there: [`Node::ask_here`].
    fn ask(&self, node: NodeId, region: &Descriptor, request: Request) -> BoxFuture<'_, Outcome<Response>>;
}

/// No node is waited for longer than this.
pub(super) async fn bounded<T>(answer: impl Future<Output = Outcome<T>>) -> Outcome<T> {
    let late = |_| Refusal::Unknown("another node does not answer".into());
    timeout(ANSWER_MAX, "another node", answer).await.map_err(late)?
}

/// Makes an engine that of this node, or finds that it is. Without members it is alone.
pub(super) async fn claim(
    engine: &Arc<dyn Engine>,
    cluster: &Option<Cluster>,
    me: NodeId,
    members: &[u64],
) -> Outcome<()> {
    let view = engine.view();
    let owner = match view.get(META, NODE)? {
        Some(b) => b[..].try_into().map(u64::from_be_bytes).map_err(broken)?,
        None => 1,
    };
    let regions = known(&*view)?;
    if regions.is_empty() {
        if let Some(c) = cluster {
            c.never_began().await?;
        }
        let mut first = Batch::default();
        first.put(META, NODE, me.0.to_be_bytes().to_vec());
        first.put(META, meta_key(1), RegionState::first(1, members).encode_to_vec());
        engine.write(first)?;
        engine.persist()?;
    } else if owner != me.0 {
        return Err(Refusal::Malformed(format!("the folder is node {owner}'s, not {me}'s")));
    } else if let Some(s) = regions.iter().find(|s| s.region.members != members) {
        return Err(Refusal::Malformed(match s.region.members.is_empty() {
            true => "the folder is that of a store of one node, which cannot become several yet".into(),
            false => {
                let founders = &s.region.members;
                format!("the store was founded by nodes {founders:?}; that cannot be changed yet")
            }
        }));
    }
    match cluster {
        // It has promised nothing so far: from here on it may, and its data may not get lost unnoticed.
        Some(c) => c.has_begun(regions.is_empty()).await,
        None => Ok(()),
    }
}

/// Begins replicas that others speak to and that are missing here.
pub(super) async fn adopt(node: Weak<Inner>, mut strangers: mpsc::Receiver<(NodeId, GroupId)>) {
    while let Some((from, group)) = strangers.recv().await {
        let Some(inner) = node.upgrade() else { return };
        if let Err(e) = Node(inner).consider(from, group.0).await {
            tracing::debug!(region = group.0, error = %e, "perhaps a replica is missing; looked at again");
        }
    }
}

impl Node {
    async fn consider(&self, from: NodeId, id: u64) -> Outcome<()> {
        let (inner, engine) = (&*self.0, &self.0.shared.engine);
        let there = || lock(&inner.replicas).contains_key(&id);
        // One that is gone is not begun again, whoever lags behind.
        if there() || RegionState::load(&*engine.view(), id)?.is_some() || !inner.members.contains(&from.0) {
            return Ok(());
        }
        let Some(others) = &inner.others else { return Ok(()) };
        let state = bounded(others.region(from, id)).await?;
        let region = &state.region;
        if state.gone || region.id != id || !region.members.contains(&inner.me.0) {
            return Ok(());
        }
        if inner.shared.routes.all().iter().any(|r| r.span().overlaps(&region.span())) || there() {
            return Ok(());
        }
        tracing::info!(region = id, "a replica is missing here; it waits for a snapshot");
        self.run(id, &[], RegionMachine::waiting(inner.shared.clone(), id)).await
    }
}
