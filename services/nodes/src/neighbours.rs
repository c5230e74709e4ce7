//! What gossip tells about nodes, and what their records tell gossip: whoever is known by record is looked for, and
//! whoever was removed is forgotten. Gossip says who answers and where; who belongs is for the records alone.

use crate::{Look, Sight};
use async_trait::async_trait;
use photon_api::NodeSpec;
use photon_base::{Name, Result};
use photon_gossip::{Gossip, Liveness};
use photon_reconcile::{Context, Next, Reconcile};
use photon_resource::Key;
use std::sync::Arc;

/// The fact that says where a node's store is reached by the others.
pub const PEER_FACT: &str = "peer";
/// The fact that says where its front door is.
pub const API_FACT: &str = "api";

/// The fact that says that a node has started and serves.
pub const SERVES_FACT: &str = "serves";

/// Looks for nodes as `me` sees them.
pub fn look(gossip: &Gossip, me: Name) -> Look {
    let peers = gossip.peers();
    Arc::new(move |name| {
        let peers = peers.borrow();
        let seen = peers.get(name);
        let serves = seen.is_some_and(|s| s.current && s.peer.facts.contains_key(SERVES_FACT));
        match seen.map(|s| s.state) {
            _ if *name == me => Sight::Alive,
            Some(Liveness::Alive) if serves => Sight::Alive,
            Some(Liveness::Alive) => Sight::Starting,
            Some(Liveness::Suspect) => Sight::Suspect,
            Some(Liveness::Down | Liveness::Left) => Sight::Down,
            None => Sight::Unknown,
        }
    })
}

/// Where a node that answers has its store.
pub fn peer_url(gossip: &Gossip) -> impl Fn(&str) -> Option<String> + Send + Sync + use<> {
    let peers = gossip.peers();
    move |name| {
        let name: Name = name.parse().ok()?;
        let peers = peers.borrow();
        let seen = peers.get(&name).filter(|s| s.state.is_up())?;
        seen.peer.facts.get(PEER_FACT).cloned()
    }
}

/// Keeps gossip's idea of who there is in step with the records; on every node.
pub struct Neighbours(pub Gossip);

#[async_trait]
impl Reconcile for Neighbours {
    type Kind = NodeSpec;

    fn name(&self) -> &'static str {
        "nodes-neighbours"
    }

    async fn reconcile(&self, cx: &Context, key: &Key) -> Result<Next> {
        match cx.get::<NodeSpec>(None, &key.name)? {
            Some(n) => self.0.add_seeds(n.status.gossip.parse().ok()),
            None => self.0.forget(key.name.clone())?,
        }
        Ok(Next::Done)
    }
}
