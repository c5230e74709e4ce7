//! The socket of a DHCP server: bound to the bridge inside the network's namespace.

use super::decide::{Leases, answer};
use photon_base::{Error, Result};
use photon_rt::{net::UdpSocket, task::Tasks};
use std::{net::Ipv4Addr, path::Path, sync::Arc};
use tokio::{sync::watch, task::JoinHandle};

const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;

/// A running server. It ends with this value.
#[derive(Debug)]
pub struct Server {
    leases: watch::Sender<Arc<Leases>>,
    task: JoinHandle<Option<()>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A UDP socket on `device` in the namespace at `netns`, able to broadcast.
fn open(netns: &Path, device: &str) -> std::io::Result<std::net::UdpSocket> {
    let name = device.to_string();
    photon_rt::net::in_netns(netns, move || {
        use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, flags, None)?;
        sockopt::set_socket_reuseaddr(&socket, true)?;
        sockopt::set_socket_broadcast(&socket, true)?;
        // The name is only looked up to fail early; tokio binds the socket to the device.
        rustix::net::netdevice::name_to_index(&socket, &name)?;
        let any = std::net::SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, SERVER_PORT);
        rustix::net::bind(&socket, &any)?;
        Ok(std::net::UdpSocket::from(socket))
    })
}

impl Server {
    /// Starts to answer on `device` (the network's bridge) in the namespace at `netns`.
    pub async fn start(netns: &Path, device: &str, leases: Leases, tasks: &Tasks) -> Result<Server> {
        let (path, name) = (netns.to_path_buf(), device.to_string());
        let failed =
            |e: std::io::Error| Error::unavailable(format!("no DHCP server in {}", netns.display())).why(e);
        let socket = photon_rt::task::blocking(move || open(&path, &name)).await.map_err(failed)?;
        let socket = UdpSocket::from_std(socket).map_err(failed)?;
        // SO_BINDTODEVICE: broadcasts leave through the bridge although there is no route for them.
        socket.bind_device(Some(device.as_bytes())).map_err(failed)?;
        let (leases, known) = watch::channel(Arc::new(leases));
        let task = tasks.spawn("dhcp", serve(socket, known));
        Ok(Server { leases, task })
    }

    /// What is answered from now on.
    pub fn set(&self, leases: Leases) {
        self.leases.send_replace(Arc::new(leases));
    }
}

async fn serve(socket: UdpSocket, leases: watch::Receiver<Arc<Leases>>) {
    let mut packet = [0; 2048];
    loop {
        let len = match socket.recv_from(&mut packet).await {
            Ok((len, _)) => len,
            Err(error) => {
                // An ICMP error of an earlier answer, or the device is gone; never spin.
                tracing::debug!(%error, "DHCP socket");
                photon_rt::time::sleep(photon_rt::time::Duration::from_millis(100)).await;
                continue;
            }
        };
        let known = leases.borrow().clone();
        if let Some(a) = answer(&packet[..len], &known)
            && let Err(error) = socket.send_to(&a.packet, (a.to, CLIENT_PORT)).await
        {
            tracing::debug!(%error, to = %a.to, "a DHCP answer was not sent");
        }
    }
}
