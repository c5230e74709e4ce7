//! Zones from ports: each network has a view of its project's names inside its namespace; the host has a
//! view of all. Zones are built whole and swapped; the answer path never waits for a change.

use crate::{
    model::Zone,
    wire::{Server, sockets_in},
};
use async_trait::async_trait;
use photon_api::{NetworkSpec, OrganizationSpec, PortSpec};
use photon_base::{Result, Uid};
use photon_reconcile::{Context, Next, Reconcile};
use photon_resource::{Key, Object};
use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Domain of the cloud's own names.
pub const DOMAIN: &str = "photon.internal";
/// The view of the host itself.
pub const HOST_VIEW: Uid = Uid(0);
/// Port inside networks.
const PORT: u16 = 53;

/// The names of ports, and which prefixes are ours to answer in reverse.
fn zone<'a>(
    serial: u64,
    server: IpAddr,
    ports: impl Iterator<Item = &'a Object<PortSpec>>,
    networks: impl Iterator<Item = &'a Object<NetworkSpec>>,
) -> Result<Zone> {
    // RFC 1982 arithmetic: the low 32 bits of a revision rise and wrap as a serial does.
    let mut zone = Zone::new(DOMAIN, serial as u32, &[server])?;
    for p in ports.filter(|p| p.is_wanted()) {
        let (Some(host), Some(project), Some(address)) =
            (&p.spec.hostname, &p.meta.project, p.status.address)
        else {
            continue;
        };
        if let Err(e) = zone.insert(&format!("{host}.{project}.{DOMAIN}"), IpAddr::V4(address)) {
            tracing::warn!(port = %p.meta.name, %project, error = %e, "a name is left out");
        }
    }
    for n in networks {
        zone.own_reverse(n.spec.cidr.base, n.spec.cidr.len);
    }
    Ok(zone)
}

/// Keeps the view of each network.
pub struct NetworkViews {
    server: Arc<Server>,
    /// Networks that have listeners, by name, so that a network that is gone can be found.
    open: Mutex<HashMap<Key, Uid>>,
}

impl NetworkViews {
    /// Views on `server`.
    pub fn new(server: Arc<Server>) -> NetworkViews {
        NetworkViews { server, open: Mutex::default() }
    }

    fn open(&self) -> MutexGuard<'_, HashMap<Key, Uid>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self, key: &Key) {
        if let Some(id) = self.open().remove(key) {
            self.server.remove_view(id);
        }
    }
}

#[async_trait]
impl Reconcile for NetworkViews {
    type Kind = NetworkSpec;

    fn name(&self) -> &'static str {
        "flashdns-networks"
    }

    async fn reconcile(&self, cx: &Context, key: &Key) -> Result<Next> {
        let project = key.project.as_ref();
        let network = cx.get::<NetworkSpec>(project, &key.name)?.filter(|n| n.is_wanted());
        let netns = network.as_ref().and_then(|n| n.status.netns.clone());
        let (Some(n), Some(netns)) = (network, netns) else {
            self.close(key); // open sockets would keep the namespace alive
            return Ok(Next::Done);
        };
        let known = self.open().get(key).copied();
        if known.is_some_and(|id| id != n.meta.id) {
            self.close(key);
        }
        let gateway = n.spec.cidr.gateway();
        let ports = cx.list::<PortSpec>(project)?;
        let all = cx.list::<NetworkSpec>(project)?;
        let zone = zone(cx.revision(), IpAddr::V4(gateway), ports.iter(), all.iter())?;
        self.server.set_zone(n.meta.id, Arc::new(zone), n.spec.nat);
        if known != Some(n.meta.id) {
            let path = PathBuf::from("/run/netns").join(netns);
            let (udp, tcp) = sockets_in(&path, SocketAddr::new(IpAddr::V4(gateway), PORT)).await?;
            self.server.listen_udp(udp, n.meta.id)?;
            self.server.listen_tcp(tcp, n.meta.id)?;
            self.open().insert(key.clone(), n.meta.id);
        }
        Ok(Next::Done)
    }
}

/// Keeps the host's view. It is a function of everything, so one object stands for it: the organisation.
pub struct HostView(pub Arc<Server>);

/// The host's view without a single name, to listen before the first names are known.
pub fn empty_zone() -> Result<Zone> {
    zone(1, IpAddr::V4(Ipv4Addr::LOCALHOST), std::iter::empty(), std::iter::empty())
}

#[async_trait]
impl Reconcile for HostView {
    type Kind = OrganizationSpec;

    fn name(&self) -> &'static str {
        "flashdns-host"
    }

    async fn reconcile(&self, cx: &Context, _: &Key) -> Result<Next> {
        let ports = cx.list::<PortSpec>(None)?;
        let networks = cx.list::<NetworkSpec>(None)?;
        let zone = zone(cx.revision(), IpAddr::V4(Ipv4Addr::LOCALHOST), ports.iter(), networks.iter())?;
        self.0.set_zone(HOST_VIEW, Arc::new(zone), false);
        Ok(Next::Done)
    }
}
