//! Datagrams.

use super::Shared;
use crate::model::{Transport, Verdict};
use photon_rt::{
    net::UdpSocket,
    task::Tasks,
    time::{Duration, sleep},
};
use std::sync::Arc;
use tokio::sync::watch;

/// Answers what comes. Our own names at once, in this task; others in tasks that the view bounds.
pub async fn serve(socket: UdpSocket, shared: Arc<Shared>, tasks: Tasks, _over: watch::Receiver<bool>) {
    let socket = Arc::new(socket);
    // A query is far below 512 bytes; what is longer than this buffer is cut and refused.
    let mut packet = [0; 4096];
    loop {
        let (len, peer) = match socket.recv_from(&mut packet).await {
            Ok(got) => got,
            Err(error) => {
                // An ICMP error that an earlier answer met, or no memory; never spin.
                tracing::debug!(%error, "DNS socket");
                sleep(Duration::from_millis(10)).await;
                continue;
            }
        };
        if peer.port() == 0 {
            continue;
        }
        match shared.decide(&packet[..len], Transport::Udp) {
            Verdict::Silence => {}
            // A full socket buffer loses the answer, as the network might; the client asks again.
            Verdict::Reply(reply) => drop(socket.send_to(&reply, peer).await),
            Verdict::Forward(query) => {
                if shared.room.available_permits() == 0 {
                    let reply = super::forward::failed(&query, Transport::Udp);
                    let _ = socket.send_to(&reply, peer).await;
                    continue;
                }
                let (socket, shared) = (socket.clone(), shared.clone());
                tasks.spawn("dns-forward", async move {
                    let reply = shared.ask(&query, Transport::Udp).await;
                    let _ = socket.send_to(&reply, peer).await;
                });
            }
        }
    }
}
