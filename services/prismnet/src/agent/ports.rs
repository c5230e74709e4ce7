//! Ports on this host.

use super::HostNet;
use crate::{control::AGENT_FINALIZER, engine::PortPlan};
use async_trait::async_trait;
use photon_api::{NetworkSpec, PortSpec, set_condition};
use photon_base::{Error, Result};
use photon_reconcile::{Context, Next, Reconcile};
use photon_resource::{Key, Object};
use photon_rt::time::wall;

/// Makes ports so.
pub struct Ports(pub HostNet);

/// Six bytes in hexadecimal, joined by colons.
pub(super) fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut out = [0; 6];
    let mut parts = text.split(':');
    for b in &mut out {
        *b = u8::from_str_radix(parts.next()?, 16).ok()?;
    }
    parts.next().is_none().then_some(out)
}

#[async_trait]
impl Reconcile for Ports {
    type Kind = PortSpec;

    fn name(&self) -> &'static str {
        "prismnet-ports"
    }

    async fn reconcile(&self, cx: &Context, key: &Key) -> Result<Next> {
        let Some(p) = cx.get::<PortSpec>(key.project.as_ref(), &key.name)? else { return Ok(Next::Done) };
        if p.spec.host.as_ref().is_some_and(|h| *h != self.0.0.host) {
            return Ok(Next::Done);
        }
        let network = cx.get::<NetworkSpec>(key.project.as_ref(), &p.spec.network)?;
        if !p.is_wanted() {
            return self.remove(cx, &p, network.as_ref()).await;
        }
        let (Some(network), Some(address), Some(mac)) = (network, p.status.address, &p.status.mac) else {
            return Ok(Next::Done); // its address comes first
        };
        if p.spec.host.is_none() || network.status.phase != "active" {
            return Ok(Next::Done);
        }
        let mac =
            parse_mac(mac).ok_or_else(|| Error::internal(format!("{key} has no usable MAC address")))?;
        let mtu = u16::try_from(network.status.mtu).unwrap_or(1500);
        let plan = PortPlan { id: p.meta.id, network: network.meta.id, mac, address, mtu };
        let made = self.ensure(&plan).await;
        let mut s = p.status.clone();
        s.observed_generation = p.meta.generation;
        match &made {
            Ok(()) => {
                s.phase = "active".into();
                s.device = self.0.0.plane.tap(p.meta.id);
                s.netns = network.status.netns.clone();
                set_condition(&mut s.conditions, "Active", true, "Active", "", wall());
            }
            Err(e) => {
                s.phase = "failed".into();
                set_condition(&mut s.conditions, "Active", false, "HostCannotMakeIt", e.to_string(), wall());
            }
        }
        if s != p.status {
            let mut tx = cx.begin();
            tx.update(&p, |p| p.status = s).await?;
            tx.commit().await?;
        }
        made.map(|()| Next::Done)
    }
}

impl Ports {
    async fn ensure(&self, plan: &PortPlan) -> Result<()> {
        let agent = &self.0.0;
        let _busy = agent.quiet.read().await;
        if self.0.done().ports.get(&plan.id) == Some(plan) {
            return Ok(());
        }
        agent.plane.ensure_port(plan).await?;
        self.0.done().ports.insert(plan.id, plan.clone());
        Ok(())
    }

    async fn remove(
        &self,
        cx: &Context,
        p: &Object<PortSpec>,
        network: Option<&Object<NetworkSpec>>,
    ) -> Result<Next> {
        if !p.has_finalizer(AGENT_FINALIZER) {
            return Ok(Next::Done);
        }
        self.0.done().ports.remove(&p.meta.id);
        if let Some(n) = network {
            self.0.0.plane.remove_port(n.meta.id, p.meta.id).await?;
        }
        let mut tx = cx.begin();
        tx.update(p, |p| p.meta.finalizers.retain(|f| f != AGENT_FINALIZER)).await?;
        tx.commit().await?;
        Ok(Next::Done)
    }
}
