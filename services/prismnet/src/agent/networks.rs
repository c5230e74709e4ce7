//! Networks on this host, with their DHCP servers.

use super::HostNet;
use crate::{
    dhcp::{Lease, Leases, Server},
    engine::{BRIDGE, NetworkPlan},
};
use async_trait::async_trait;
use photon_api::{NetworkSpec, PortSpec, set_condition};
use photon_base::Result;
use photon_reconcile::{Context, Next, Reconcile};
use photon_resource::{Key, Object};
use photon_rt::time::wall;
use std::collections::{BTreeMap, HashMap};

/// Keeps a network until its devices are gone.
const FINALIZER: &str = "prismnet";
/// Largest packet of tenant networks on one host.
const MTU: u16 = 1500;
/// Seconds until a guest asks again.
const LEASE_SECONDS: u32 = 3600;

/// Makes networks so.
pub struct Networks(pub HostNet);

fn plan(n: &Object<NetworkSpec>) -> NetworkPlan {
    let cidr = n.spec.cidr;
    NetworkPlan { id: n.meta.id, gateway: cidr.gateway(), prefix: cidr.len, mtu: MTU, nat: n.spec.nat }
}

fn leases(n: &Object<NetworkSpec>, ports: &[Object<PortSpec>]) -> Leases {
    let gateway = n.spec.cidr.gateway();
    let domain = n.meta.project.as_ref().map(|p| format!("{p}.photon.internal")).unwrap_or_default();
    let mut by_mac = HashMap::new();
    for p in ports.iter().filter(|p| p.spec.network == n.meta.name && p.is_wanted()) {
        let (Some(address), Some(mac)) =
            (p.status.address, p.status.mac.as_deref().and_then(super::ports::parse_mac))
        else {
            continue;
        };
        let hostname = p.spec.hostname.as_ref().unwrap_or(&p.meta.name).to_string();
        by_mac.insert(mac, Lease { address, hostname, domain: domain.clone(), search: Vec::new() });
    }
    Leases {
        server: gateway,
        prefix: n.spec.cidr.len,
        router: n.spec.nat.then_some(gateway),
        dns: vec![gateway],
        mtu: MTU,
        seconds: LEASE_SECONDS,
        by_mac,
    }
}

#[async_trait]
impl Reconcile for Networks {
    type Kind = NetworkSpec;

    fn name(&self) -> &'static str {
        "prismnet-networks"
    }

    async fn reconcile(&self, cx: &Context, key: &Key) -> Result<Next> {
        let Some(n) = cx.get::<NetworkSpec>(key.project.as_ref(), &key.name)? else { return Ok(Next::Done) };
        if !n.is_wanted() {
            return self.remove(cx, &n).await;
        }
        let ports = cx.list::<PortSpec>(key.project.as_ref())?;
        let made = self.ensure(&n, &ports).await;
        let mut s = n.status.clone();
        s.observed_generation = n.meta.generation;
        match &made {
            Ok(()) => {
                let netns = self.0.0.plane.netns(n.meta.id);
                (s.phase, s.gateway, s.mtu) = ("active".into(), Some(n.spec.cidr.gateway()), u32::from(MTU));
                let note = if netns.is_some() { "" } else { "user-mode networking: every vm is alone on it" };
                s.netns = netns.and_then(|p| p.file_name().map(|f| f.to_string_lossy().into_owned()));
                set_condition(&mut s.conditions, "Ready", true, "Active", note, wall());
            }
            Err(e) => {
                s.phase = "failed".into();
                set_condition(&mut s.conditions, "Ready", false, "HostCannotMakeIt", e.to_string(), wall());
            }
        }
        if s != n.status {
            let mut tx = cx.begin();
            tx.update(&n, |n| n.status = s).await?;
            tx.commit().await?;
        }
        made.map(|()| Next::Done)
    }

    async fn sweep(&self, cx: &Context) -> Result<()> {
        let agent = &self.0.0;
        let _alone = agent.quiet.write().await;
        let mut keep: BTreeMap<_, Vec<_>> = BTreeMap::new();
        let mut by_name = HashMap::new();
        for n in cx.list::<NetworkSpec>(None)? {
            by_name.insert((n.meta.project.clone(), n.meta.name.clone()), n.meta.id);
            keep.insert(n.meta.id, Vec::new());
        }
        for p in cx.list::<PortSpec>(None)?.iter().filter(|p| p.spec.host.as_ref() == Some(&agent.host)) {
            if let Some(ports) =
                by_name.get(&(p.meta.project.clone(), p.spec.network.clone())).and_then(|id| keep.get_mut(id))
            {
                ports.push(p.meta.id);
            }
        }
        agent.plane.sweep(&keep).await
    }
}

impl Networks {
    async fn ensure(&self, n: &Object<NetworkSpec>, ports: &[Object<PortSpec>]) -> Result<()> {
        let agent = &self.0.0;
        let plan = plan(n);
        let _busy = agent.quiet.read().await;
        if self.0.done().networks.get(&n.meta.id) != Some(&plan) {
            agent.plane.ensure_network(&plan).await?;
            self.0.done().networks.insert(n.meta.id, plan);
        }
        let Some(netns) = agent.plane.netns(n.meta.id) else { return Ok(()) };
        let leases = leases(n, ports);
        if let Some(server) = self.0.done().dhcp.get(&n.meta.id) {
            server.set(leases);
            return Ok(());
        }
        let server = Server::start(&netns, BRIDGE, leases, &agent.tasks).await?;
        self.0.done().dhcp.insert(n.meta.id, server);
        Ok(())
    }

    async fn remove(&self, cx: &Context, n: &Object<NetworkSpec>) -> Result<Next> {
        if !n.has_finalizer(FINALIZER) {
            return Ok(Next::Done);
        }
        {
            let mut done = self.0.done();
            done.dhcp.remove(&n.meta.id);
            done.networks.remove(&n.meta.id);
        }
        self.0.0.plane.remove_network(n.meta.id).await?;
        let mut tx = cx.begin();
        tx.update(n, |n| n.meta.finalizers.retain(|f| f != FINALIZER)).await?;
        tx.commit().await?;
        Ok(Next::Done)
    }
}
