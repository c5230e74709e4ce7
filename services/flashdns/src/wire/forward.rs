//! Asking other resolvers. An answer is believed only when it comes from the server asked, on a port and
//! with an id that were drawn for this one query, and repeats the question (RFC 5452).

use crate::model::{EDNS_SIZE, Query, Rcode, Reply, Transport};
use photon_base::{Error, Result};
use photon_rt::{
    net::{TcpStream, UdpSocket},
    time::{Duration, timeout},
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Most resolvers asked in turn.
pub const RESOLVERS_MAX: usize = 3;
/// How long one resolver may take; three of them stay below a stub resolver's usual 5 s.
const LIMIT: Duration = Duration::from_millis(1500);
/// Most forged or late packets that are looked at while waiting for one answer.
const STRANGERS_MAX: usize = 64;

/// Asks the host's resolvers.
pub struct Forwarder {
    resolvers: Vec<SocketAddr>,
}

/// The `nameserver` lines of a resolv.conf (resolv.conf(5)).
pub fn resolvers_of(resolv_conf: &str) -> Vec<SocketAddr> {
    let servers = resolv_conf.lines().filter_map(|l| {
        let mut words = l.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next()).flatten()
    });
    // A scoped address (fe80::1%eth0) is of no use without its scope.
    servers.filter_map(|s| s.parse::<IpAddr>().ok()).take(RESOLVERS_MAX).map(|ip| (ip, 53).into()).collect()
}

/// The answer when nobody could be asked.
pub fn failed(query: &Query, transport: Transport) -> Vec<u8> {
    Reply::new(query, Rcode::ServFail, false, true).finish(transport.limit(query))
}

impl Forwarder {
    pub fn new(mut resolvers: Vec<SocketAddr>) -> Forwarder {
        resolvers.truncate(RESOLVERS_MAX);
        Forwarder { resolvers }
    }

    /// Asks one resolver after the other. Always returns an answer: SERVFAIL at worst.
    pub async fn ask(&self, query: &Query, transport: Transport) -> Vec<u8> {
        for resolver in &self.resolvers {
            match timeout(LIMIT, "a resolver", self.exchange(query, transport, *resolver)).await {
                Ok(Ok(answer)) => return answer,
                Ok(Err(error)) | Err(error) => tracing::debug!(%resolver, %error, "a query was not answered"),
            }
        }
        failed(query, transport)
    }

    async fn exchange(&self, query: &Query, transport: Transport, resolver: SocketAddr) -> Result<Vec<u8>> {
        let id = photon_rt::entropy::u64() as u16;
        let question = query.forwarded(id);
        let mut answer = by_udp(query, &question, id, resolver).await?;
        let cut = answer[2] & 2 != 0;
        if cut && transport == Transport::Tcp {
            answer = by_tcp(query, &question, id, resolver).await?;
        }
        if answer.len() > transport.limit(query) {
            // More than this client takes: it shall come back over TCP.
            answer = Reply::new(query, Rcode::NoError, false, true).finish(0);
        }
        answer[..2].copy_from_slice(&query.id.to_be_bytes());
        answer[2] = answer[2] & !5 | u8::from(query.recursion); // we are no authority for it
        Ok(answer)
    }
}

fn trouble(e: std::io::Error) -> Error {
    Error::unavailable("the resolver cannot be reached").why(e)
}

async fn by_udp(query: &Query, question: &[u8], id: u16, resolver: SocketAddr) -> Result<Vec<u8>> {
    let any: IpAddr =
        if resolver.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    // A socket of its own: the kernel draws its port, and only takes what the resolver sends.
    let socket: UdpSocket = photon_rt::net::udp((any, 0).into()).await?;
    socket.connect(resolver).await.map_err(trouble)?;
    socket.send(question).await.map_err(trouble)?;
    let mut packet = vec![0; usize::from(EDNS_SIZE)];
    for _ in 0..STRANGERS_MAX {
        let len = socket.recv(&mut packet).await.map_err(trouble)?;
        if query.is_answered_by(&packet[..len], id) {
            packet.truncate(len);
            return Ok(packet);
        }
    }
    Err(Error::unavailable("the resolver's answers are not to the question"))
}

async fn by_tcp(query: &Query, question: &[u8], id: u16, resolver: SocketAddr) -> Result<Vec<u8>> {
    let mut stream = TcpStream::connect(resolver).await.map_err(trouble)?;
    let mut framed = (question.len() as u16).to_be_bytes().to_vec();
    framed.extend_from_slice(question);
    stream.write_all(&framed).await.map_err(trouble)?;
    let len = stream.read_u16().await.map_err(trouble)?;
    let mut packet = vec![0; usize::from(len)];
    stream.read_exact(&mut packet).await.map_err(trouble)?;
    if query.is_answered_by(&packet, id) {
        Ok(packet)
    } else {
        Err(Error::unavailable("the resolver's answer is not to the question"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolvers_are_read_from_resolv_conf() {
        let text = "# c\nsearch x\nnameserver 10.0.0.2\n nameserver ::1 # y\nnameserver fe80::1%eth0\nnameserver bad\nnameserver\noptions a";
        assert_eq!(resolvers_of(text), ["10.0.0.2:53".parse().expect("a"), "[::1]:53".parse().expect("b")]);
    }
}
