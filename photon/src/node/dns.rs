//! The host's own DNS port.

use crate::config::{Config, is_root};
use flashdns::{
    agent::{HOST_VIEW, empty_zone},
    wire::{Server, resolvers_of},
};
use photon_base::Result;
use photon_rt::{fs, net, task::Tasks};
use std::{net::SocketAddr, sync::Arc};

/// Where DNS answers for somebody who may not have port 53.
const UNPRIVILEGED_PORT: u16 = 10053;

/// Starts to answer on the host. Returns what to know when the port is not the usual one.
pub async fn start(config: &Config, tasks: &Tasks) -> Result<(Arc<Server>, Option<String>)> {
    let resolvers = resolvers_of(&fs::read_to_string("/etc/resolv.conf").unwrap_or_default());
    let server = Arc::new(Server::new(tasks.clone(), resolvers));
    server.set_zone(HOST_VIEW, Arc::new(empty_zone()?), false);
    let mut port = config.port(53)?;
    let mut note = None;
    if port < 1024 && !is_root() {
        port = UNPRIVILEGED_PORT;
        note = Some(format!("DNS answers on port {port}: port 53 needs root"));
    }
    let addr = SocketAddr::new(config.listen, port);
    server.listen_udp(net::udp(addr).await?, HOST_VIEW)?;
    server.listen_tcp(net::listen(addr).await?, HOST_VIEW)?;
    Ok((server, note))
}
