//! What each node does for its own record: it says where it is, and while it leads, how far the others are.

use crate::Members;
use async_trait::async_trait;
use photon_api::{NodeSpec, NodeStatus};
use photon_base::{Code, Name, Result};
use photon_reconcile::{Context, Next, Reconcile};
use photon_resource::{Draft, Key, Store};
use photon_rt::{
    task::Tasks,
    time::{Duration, sleep, wall},
};
use std::sync::Arc;

/// What a node says of itself.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Its name.
    pub name: Name,
    /// Its front door.
    pub endpoint: String,
    /// Where the other nodes reach its store.
    pub peer_url: String,
    /// Where it gossips.
    pub gossip: String,
    /// Its version.
    pub version: String,
}

impl Facts {
    fn put(&self, s: &mut NodeStatus, member: u64) {
        s.endpoint.clone_from(&self.endpoint);
        s.peer_url.clone_from(&self.peer_url);
        s.gossip.clone_from(&self.gossip);
        s.version.clone_from(&self.version);
        s.member = format!("{member:x}");
        s.joined.get_or_insert_with(wall);
    }
}

/// Makes this node's record, or brings what it says up to date. False when the record is another machine's, or
/// this machine was removed.
pub async fn report(store: &Store, facts: &Facts, members: &dyn Members) -> Result<bool> {
    let store = store.acting_as("nodes");
    let me = members.me();
    loop {
        let mut tx = store.begin();
        match store.get::<NodeSpec>(None, &facts.name).await? {
            Some(n) if n.status.number() != Some(me) => return Ok(false),
            Some(n) => {
                let mut status = n.status.clone();
                facts.put(&mut status, me);
                if status == n.status {
                    return Ok(true);
                }
                tx.update(&n, |n| n.status = status).await?;
            }
            // Only the first node makes its record itself: the others' is made with their admission.
            None if members.all().iter().any(|m| m.id != me) => return Ok(false),
            None => {
                let mut status = NodeStatus { phase: "ready".into(), ..NodeStatus::default() };
                facts.put(&mut status, me);
                let draft = Draft::new(facts.name.clone(), &NodeSpec::default()).status(&status);
                tx.create(store.kind_of::<NodeSpec>()?, draft).await?;
            }
        }
        match tx.commit().await {
            Ok(_) => return Ok(true),
            Err(e) if e.is_retryable() || e.code == Code::Exists => {}
            Err(e) => return Err(e),
        }
    }
}

/// Between two tries to give leadership away. Each keeps writes waiting for up to an election, and the heir may be
/// down: those that get through in between tell who is not.
const HAND_OVER_EVERY: Duration = Duration::from_secs(10);

/// A node that is drained does not lead, neither the store nor the cloud's decisions.
pub struct Drain {
    /// This node.
    pub name: Name,
    /// The members of its store.
    pub members: Arc<dyn Members>,
}

#[async_trait]
impl Reconcile for Drain {
    type Kind = NodeSpec;

    fn name(&self) -> &'static str {
        "nodes-drain"
    }

    async fn reconcile(&self, cx: &Context, key: &Key) -> Result<Next> {
        let Some(node) = cx.get::<NodeSpec>(None, &key.name)?.filter(|n| n.meta.name == self.name) else {
            return Ok(Next::Done);
        };
        // What forbids its removal is found first: nothing moves for one that is refused.
        let leaves =
            !node.is_wanted() && node.status.conditions.iter().any(|c| c.kind == "Leaving" && c.status);
        if node.spec.drain || leaves {
            // It may be asked to lead again, if the others fail it: that is better than nobody.
            self.members.hand_over();
            return Ok(Next::After(HAND_OVER_EVERY));
        }
        Ok(Next::Done)
    }
}

/// Between two looks at how far learners are.
const LOOK: Duration = Duration::from_millis(500);

/// Progress is told in steps of so many entries.
const ROUGHLY: u64 = 1_000;

/// While this node leads: says how far those are that do not vote yet. For ever.
pub fn follow_learners(store: Store, members: Arc<dyn Members>, tasks: &Tasks) {
    let store = store.acting_as("nodes");
    tasks.spawn("node-progress", async move {
        loop {
            sleep(LOOK).await;
            if let Err(e) = note_progress(&store, &*members).await {
                tracing::debug!(error = %e, "progress is told later");
            }
        }
    });
}

async fn note_progress(store: &Store, members: &dyn Members) -> Result<()> {
    for m in members.all() {
        let (Ok(name), Some(behind)) = (m.name.parse::<Name>(), m.behind) else { continue };
        // In thousands: this record is an entry too, and must not make the next one.
        let behind = behind / ROUGHLY * ROUGHLY;
        if m.votes {
            continue; // the controller takes the number away
        }
        let Some(node) = store.get::<NodeSpec>(None, &name).await? else { continue };
        if node.status.number() != Some(m.id) || node.status.behind == Some(behind) {
            continue;
        }
        let mut tx = store.begin();
        tx.update(&node, |n| n.status.behind = Some(behind)).await?;
        tx.commit().await?;
    }
    Ok(())
}
