//! DNS over UDP and TCP (RFC 1035, 7766), and asking the host's resolvers for what is not ours.
//!
//! Invariants: zones are swapped whole and an answer uses one snapshot; a listener answers from one
//! view; connections, queries under way and bytes are bounded per view, so that one tenant's flood
//! cannot starve another's; nothing a client sends ends a listener.

mod forward;
mod tcp;
mod udp;

pub use forward::{RESOLVERS_MAX, resolvers_of};

use crate::model::{Query, Transport, Verdict, View, Zone, answer};
use forward::Forwarder;
use photon_base::{Error, Result, Uid};
use photon_rt::{
    net::{TcpListener, UdpSocket},
    task::Tasks,
};
use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, PoisonError, RwLock},
};
use tokio::{
    sync::{Semaphore, watch},
    task::JoinHandle,
};

/// Most forwarded queries under way per view.
const FORWARDED_MAX: usize = 128;
/// Most TCP connections per listener.
const CONNECTIONS_MAX: usize = 128;

/// What a view's listeners share.
struct Shared {
    view: RwLock<View>,
    forwarder: Arc<Forwarder>,
    room: Arc<Semaphore>,
    connections: Arc<Semaphore>,
}

impl Shared {
    fn view(&self) -> View {
        self.view.read().unwrap_or_else(PoisonError::into_inner).clone() // two words: never half set
    }

    /// Decides at once, or hands back what has to be asked elsewhere.
    fn decide(&self, packet: &[u8], transport: Transport) -> Verdict {
        answer(packet, &self.view(), transport)
    }

    /// Asks elsewhere, within this view's bounds.
    async fn ask(&self, query: &Query, transport: Transport) -> Vec<u8> {
        match self.room.try_acquire() {
            Ok(_room) => self.forwarder.ask(query, transport).await,
            Err(_) => forward::failed(query, transport),
        }
    }
}

struct Entry {
    shared: Arc<Shared>,
    listeners: Vec<JoinHandle<Option<()>>>,
    over: watch::Sender<bool>,
}

/// A DNS server with any number of views.
pub struct Server {
    tasks: Tasks,
    forwarder: Arc<Forwarder>,
    views: RwLock<HashMap<Uid, Entry>>,
}

impl Server {
    /// A server that asks `resolvers` (at most [`RESOLVERS_MAX`], in order) for names that are not ours.
    pub fn new(tasks: Tasks, resolvers: Vec<SocketAddr>) -> Server {
        Server { tasks, forwarder: Arc::new(Forwarder::new(resolvers)), views: RwLock::default() }
    }

    fn views(&self) -> std::sync::RwLockWriteGuard<'_, HashMap<Uid, Entry>> {
        self.views.write().unwrap_or_else(PoisonError::into_inner) // single inserts and removes
    }

    /// Gives `view` (a network's identity, or any other the caller keeps to) its names; makes the view
    /// at the first call. `forward`: other names are looked up elsewhere, not refused.
    pub fn set_zone(&self, view: Uid, zone: Arc<Zone>, forward: bool) {
        let now = View { zone, forward };
        let mut views = self.views();
        if let Some(entry) = views.get(&view) {
            *entry.shared.view.write().unwrap_or_else(PoisonError::into_inner) = now;
            return;
        }
        let shared = Shared {
            view: RwLock::new(now),
            forwarder: self.forwarder.clone(),
            room: Arc::new(Semaphore::new(FORWARDED_MAX)),
            connections: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
        };
        let entry =
            Entry { shared: Arc::new(shared), listeners: Vec::new(), over: watch::Sender::new(false) };
        views.insert(view, entry);
    }

    /// Ends a view, its listeners and its connections. Safe when there is none.
    pub fn remove_view(&self, view: Uid) {
        if let Some(entry) = self.views().remove(&view) {
            entry.over.send_replace(true);
            for listener in entry.listeners {
                listener.abort();
            }
        }
    }

    /// The views that exist.
    pub fn list(&self) -> Vec<Uid> {
        self.views().keys().copied().collect()
    }

    fn listen(
        &self,
        view: Uid,
        start: impl FnOnce(&Tasks, Arc<Shared>, watch::Receiver<bool>) -> JoinHandle<Option<()>>,
    ) -> Result<()> {
        let mut views = self.views();
        let entry = views
            .get_mut(&view)
            .ok_or_else(|| Error::internal(format!("view {view} has no zone yet and cannot listen")))?;
        entry.listeners.push(start(&self.tasks, entry.shared.clone(), entry.over.subscribe()));
        Ok(())
    }

    /// Answers datagrams on `socket` (made in the namespace where it shall answer) from `view`.
    pub fn listen_udp(&self, socket: UdpSocket, view: Uid) -> Result<()> {
        self.listen(view, |tasks, shared, over| {
            tasks.spawn("dns-udp", udp::serve(socket, shared, tasks.clone(), over))
        })
    }

    /// Answers connections to `listener` from `view`.
    pub fn listen_tcp(&self, listener: TcpListener, view: Uid) -> Result<()> {
        self.listen(view, |tasks, shared, over| {
            tasks.spawn("dns-tcp", tcp::serve(listener, shared, tasks.clone(), over))
        })
    }
}

/// Sockets for a view inside a network namespace, UDP and TCP, on `address`.
pub async fn sockets_in(netns: &std::path::Path, address: SocketAddr) -> Result<(UdpSocket, TcpListener)> {
    let path = netns.to_path_buf();
    let made = photon_rt::task::blocking(move || {
        photon_rt::net::in_netns(&path, move || {
            use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
            let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let udp = rustix::net::socket_with(family, SocketType::DGRAM, flags, None)?;
            rustix::net::bind(&udp, &address)?;
            let tcp = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
            sockopt::set_socket_reuseaddr(&tcp, true)?;
            rustix::net::bind(&tcp, &address)?;
            rustix::net::listen(&tcp, 128)?;
            Ok((std::net::UdpSocket::from(udp), std::net::TcpListener::from(tcp)))
        })
    })
    .await;
    let pair = made.and_then(|(u, t)| Ok((UdpSocket::from_std(u)?, TcpListener::from_std(t)?)));
    pair.map_err(|e| Error::unavailable(format!("no DNS on {address} in {}", netns.display())).why(e))
}
