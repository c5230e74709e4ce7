//! Makes the members of the store follow the nodes, and says what is seen of each. Decided by one node at a time.

use crate::{Look, Member, Members, Sight, VOTERS_MAX, admit};
use async_trait::async_trait;
use photon_api::{HostSpec, IncarnationSpec, NodeSpec, NodeStatus, set_condition};
use photon_base::{Error, Result};
use photon_reconcile::{Context, Next, Reconcile};
use photon_resource::{Key, Object};
use photon_rt::time::{Duration, wall};
use std::sync::Arc;

/// Keeps a node's record until its member is gone.
const FINALIZER: &str = "nodes-member";
/// Between two looks at what no record tells: members and sight.
const LOOK: Duration = Duration::from_secs(1);

/// Brings nodes in and lets them go.
pub struct NodeController {
    /// The members of the store.
    pub members: Arc<dyn Members>,
    /// Looks for nodes.
    pub look: Look,
}

#[async_trait]
impl Reconcile for NodeController {
    type Kind = NodeSpec;

    fn name(&self) -> &'static str {
        "nodes"
    }

    fn once_per_cluster(&self) -> bool {
        true
    }

    async fn reconcile(&self, cx: &Context, key: &Key) -> Result<Next> {
        let Some(node) = cx.get::<NodeSpec>(None, &key.name)? else { return Ok(Next::Done) };
        let Some(id) = node.status.number() else {
            return if node.is_wanted() { Ok(Next::Done) } else { self.let_go(cx, &node).await };
        };
        if node.is_wanted() { self.keep(cx, &node, id).await } else { self.remove(cx, &node, id).await }
    }
}

impl NodeController {
    async fn keep(&self, cx: &Context, node: &Object<NodeSpec>, id: u64) -> Result<Next> {
        let all = self.members.all();
        let member = all.iter().find(|m| m.id == id);
        if member.is_none() && !node.status.peer_url.is_empty() {
            admit(&*self.members, id, &node.meta.name, &node.status.peer_url).await?;
        }
        self.cordon(cx, node).await?;
        // Looked for only when it matters: this runs every second for every node.
        let busy = if node.spec.drain { self.busy(cx, node)? } else { 0 };
        let status = seen(node, member, (self.look)(&node.meta.name), busy);
        if status != node.status {
            let mut tx = cx.begin();
            tx.update(node, |n| n.status = status).await?;
            tx.commit().await?;
        }
        Ok(Next::After(LOOK))
    }

    /// VMs that run on the node, or are about to.
    fn busy(&self, cx: &Context, node: &Object<NodeSpec>) -> Result<usize> {
        let all = cx.list::<IncarnationSpec>(None)?;
        Ok(all.iter().filter(|i| i.spec.host == node.meta.name && !i.status.ended).count())
    }

    /// The host's record follows when the wish to drain changes, and only then: people may cordon it for
    /// reasons of their own.
    async fn cordon(&self, cx: &Context, node: &Object<NodeSpec>) -> Result<()> {
        let drained = ["draining", "drained"].contains(&node.status.phase.as_str());
        if node.spec.drain == drained {
            return Ok(());
        }
        let Some(host) = cx.get::<HostSpec>(None, &node.meta.name)? else { return Ok(()) };
        if host.spec.cordoned != node.spec.drain {
            let mut tx = cx.begin();
            tx.because(&format!(
                "node {} is {}drained",
                node.meta.name,
                if node.spec.drain { "" } else { "no longer " }
            ));
            tx.update(&host, |h| h.spec.cordoned = node.spec.drain).await?;
            tx.commit().await?;
        }
        Ok(())
    }

    async fn remove(&self, cx: &Context, node: &Object<NodeSpec>, id: u64) -> Result<Next> {
        let (all, sight) = (self.members.all(), (self.look)(&node.meta.name));
        let voters = all.iter().filter(|m| m.votes && m.id != id).count();
        let busy = self.busy(cx, node)?;
        let refusal = if voters == 0 {
            Some((
                "LastVoter",
                "it is the last node that has a vote: nobody could decide anything without it".to_string(),
            ))
        } else if busy > 0 && sight != Sight::Down {
            Some(("VmsRun", format!("{busy} VMs run there; stop or delete them first")))
        } else {
            None
        };
        let mut status = node.status.clone();
        status.phase = "leaving".into();
        status.observed_generation = node.meta.generation;
        let gone = match refusal {
            Some((reason, message)) => {
                set_condition(&mut status.conditions, "Leaving", false, reason, message, wall());
                false
            }
            None => {
                set_condition(
                    &mut status.conditions,
                    "Leaving",
                    true,
                    "Leaving",
                    "its vote is being taken",
                    wall(),
                );
                // A learner takes the place of the voter that goes.
                let heir = all.iter().find(|m| !m.votes && m.id != id);
                if let Some(h) =
                    heir.filter(|_| voters < VOTERS_MAX && all.iter().any(|m| m.votes && m.id == id))
                {
                    // It may be on its way to a vote already; then there is nothing to do.
                    if let Err(e) = self.members.enfranchise(h.id).await {
                        tracing::debug!(error = %e, member = h.name, "is not promoted");
                    }
                }
                self.members.dismiss(id).await?
            }
        };
        if gone {
            return self.let_go(cx, node).await;
        }
        if status != node.status {
            let mut tx = cx.begin();
            tx.update(node, |n| n.status = status).await?;
            tx.commit().await?;
        }
        Ok(Next::After(LOOK))
    }

    /// The last step: the host's record goes with the node's.
    async fn let_go(&self, cx: &Context, node: &Object<NodeSpec>) -> Result<Next> {
        let mut tx = cx.begin();
        tx.because(&format!("node {} was removed", node.meta.name));
        if let Some(host) = cx.get::<HostSpec>(None, &node.meta.name)?.filter(Object::is_wanted) {
            tx.update(&host, |h| h.meta.deleting = Some(wall())).await?;
        }
        tx.update(node, |n| n.meta.finalizers.retain(|f| f != FINALIZER)).await?;
        tx.commit().await.map(|_| Next::Done).map_err(|e: Error| e)
    }
}

/// The status that follows from what is seen; pure.
fn seen(node: &Object<NodeSpec>, member: Option<&Member>, sight: Sight, busy: usize) -> NodeStatus {
    let mut s = node.status.clone();
    s.observed_generation = node.meta.generation;
    s.role = match member {
        Some(m) if m.leads => "leader",
        Some(m) if m.votes => "voter",
        Some(_) => "learner",
        None => "",
    }
    .into();
    if member.is_some_and(|m| m.votes) {
        s.behind = None;
    }
    s.phase = match (sight, node.spec.drain) {
        (Sight::Down, _) => "down",
        (Sight::Suspect, _) => "suspect",
        (Sight::Starting, _) => "joining",
        // Whoever is not heard of yet may be about to start.
        (Sight::Unknown, _) if s.phase == "joining" => "joining",
        (_, true) if busy > 0 || s.role == "leader" => "draining",
        (_, true) => "drained",
        (_, false) => "ready",
    }
    .into();
    let empty = if busy > 0 { format!("{busy} VMs run there") } else { String::new() };
    if node.spec.drain {
        set_condition(
            &mut s.conditions,
            "Drained",
            s.phase == "drained",
            if busy > 0 { "VmsRun" } else { "Empty" },
            empty,
            wall(),
        );
    } else {
        s.conditions.retain(|c| c.kind != "Drained");
    }
    s
}

#[cfg(test)]
mod tests;
