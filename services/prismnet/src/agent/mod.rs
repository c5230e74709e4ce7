//! What runs on every host: networks and ports made so, by the data plane that this host can have.

use crate::control::AGENT_FINALIZER;
use async_trait::async_trait;
use photon_api::{NetworkSpec, PortSpec, set_condition};
use photon_base::{Name, Result};
use photon_reconcile::{Context, Next, Reconcile};
use photon_resource::Key;
use photon_rt::time::wall;

/// Keeps a network until its devices are gone.
const NETWORK_FINALIZER: &str = "prismnet";

/// Makes networks so.
pub struct Networks {}

#[async_trait]
impl Reconcile for Networks {
    type Kind = NetworkSpec;

    fn name(&self) -> &'static str {
        "prismnet-networks"
    }

    async fn reconcile(&self, cx: &Context, key: &Key) -> Result<Next> {
        let Some(n) = cx.get::<NetworkSpec>(key.project.as_ref(), &key.name)? else { return Ok(Next::Done) };
        let mut tx = cx.store().begin();
        if !n.is_wanted() {
            if n.has_finalizer(NETWORK_FINALIZER) {
                tx.update(&n, |n| n.meta.finalizers.retain(|f| f != NETWORK_FINALIZER)).await?;
                tx.commit().await?;
            }
            return Ok(Next::Done);
        }
        let mut s = n.status.clone();
        (s.phase, s.gateway, s.mtu, s.netns) = ("active".into(), Some(n.spec.cidr.gateway()), 1500, None);
        s.observed_generation = n.meta.generation;
        let note = "user-mode networking: every vm is alone on it";
        set_condition(&mut s.conditions, "Ready", true, "UserMode", note, wall());
        if s != n.status {
            tx.update(&n, |n| n.status = s).await?;
            tx.commit().await?;
        }
        Ok(Next::Done)
    }
}

/// Makes ports so.
pub struct Ports {
    /// This host.
    pub host: Name,
}

#[async_trait]
impl Reconcile for Ports {
    type Kind = PortSpec;

    fn name(&self) -> &'static str {
        "prismnet-ports"
    }

    async fn reconcile(&self, cx: &Context, key: &Key) -> Result<Next> {
        let Some(p) = cx.get::<PortSpec>(key.project.as_ref(), &key.name)? else { return Ok(Next::Done) };
        if p.spec.host.as_ref().is_some_and(|h| *h != self.host) {
            return Ok(Next::Done);
        }
        let mut tx = cx.store().begin();
        if !p.is_wanted() {
            if p.has_finalizer(AGENT_FINALIZER) {
                tx.update(&p, |p| p.meta.finalizers.retain(|f| f != AGENT_FINALIZER)).await?;
                tx.commit().await?;
            }
            return Ok(Next::Done);
        }
        let ready = p.status.address.is_some() && p.spec.host.is_some();
        let mut s = p.status.clone();
        if ready {
            s.phase = "active".into();
        }
        if s != p.status {
            tx.update(&p, |p| p.status = s).await?;
            tx.commit().await?;
        }
        Ok(Next::Done)
    }
}
