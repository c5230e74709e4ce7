//! Sockets, also inside a network namespace: a socket stays in the namespace it was made in.

use photon_base::{Code, Error, Result};
use std::{net::SocketAddr, os::fd::AsFd, path::Path};
pub use tokio::net::{TcpListener, TcpStream, UdpSocket, UnixListener, UnixStream};

fn bind_error(kind: &str, addr: SocketAddr, e: &std::io::Error) -> Error {
    let err = Error::new(Code::Unavailable, format!("{kind} address {addr} cannot be used")).why(e);
    match e.kind() {
        std::io::ErrorKind::AddrInUse => err.hint(format!(
            "see who has it: ss -lnp 'sport = :{}'; or move all ports: --port-offset 1000",
            addr.port()
        )),
        std::io::ErrorKind::PermissionDenied => {
            err.hint("ports below 1024 need root; or move all ports: --port-offset 10000")
        }
        _ => err,
    }
}

/// A listening TCP socket. The error names the address and the way out.
pub async fn listen(addr: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(addr).await.map_err(|e| bind_error("TCP", addr, &e))
}

/// A UDP socket.
pub async fn udp(addr: SocketAddr) -> Result<UdpSocket> {
    UdpSocket::bind(addr).await.map_err(|e| bind_error("UDP", addr, &e))
}

/// Runs `make` on a thread of its own that has entered the network namespace at `netns` (a path such
/// as `/run/netns/NAME`). What it makes (sockets, TAP devices) stays there; the thread ends, so no
/// other code ever runs in that namespace by accident.
pub fn in_netns<T: Send + 'static>(
    netns: &Path,
    make: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> std::io::Result<T> {
    let ns = std::fs::File::open(netns)?;
    std::thread::Builder::new()
        .name("netns".into())
        .spawn(move || {
            rustix::thread::move_into_link_name_space(
                ns.as_fd(),
                Some(rustix::thread::LinkNameSpaceType::Network),
            )?;
            make()
        })?
        .join()
        .map_err(|_| std::io::Error::other("the namespace thread panicked"))?
}
