//! A server on a free port of the loopback interface.

use flashdns::{model::Zone, wire::Server};
use photon_base::Uid;
use photon_rt::{
    process::run,
    task::Tasks,
    time::{Duration, timeout},
};
use std::{net::SocketAddr, sync::Arc};
use tokio::net::{TcpListener, UdpSocket};

pub const VIEW: Uid = Uid(1);

pub struct Dns {
    pub server: Server,
    pub address: SocketAddr,
    pub tasks: Tasks,
}

/// UDP and TCP on one free port.
#[expect(clippy::disallowed_methods, reason = "a free port, as tests want it")]
pub async fn pair() -> (UdpSocket, TcpListener, SocketAddr) {
    loop {
        let udp = UdpSocket::bind("127.0.0.1:0").await.expect("UDP");
        let address = udp.local_addr().expect("address");
        if let Ok(tcp) = TcpListener::bind(address).await {
            return (udp, tcp, address);
        }
    }
}

pub fn zone(serial: u32) -> Zone {
    let mut z = Zone::new("photon.internal", serial, &["127.0.0.1".parse().expect("ip")]).expect("zone");
    z.insert("a.demo.photon.internal", "10.20.0.5".parse().expect("ip")).expect("a");
    z.insert("a.demo.photon.internal", "fd00::5".parse().expect("ip")).expect("a");
    for i in 0..60 {
        z.insert("many.demo.photon.internal", [10, 30, 0, i].into()).expect("many");
    }
    z.own_reverse([10, 20, 0, 0].into(), 24);
    z
}

pub async fn dns(resolvers: Vec<SocketAddr>, forward: bool) -> Dns {
    let tasks = Tasks::new();
    let server = Server::new(tasks.clone(), resolvers);
    let (udp, tcp, address) = pair().await;
    server.set_zone(VIEW, Arc::new(zone(1)), forward);
    server.listen_udp(udp, VIEW).expect("UDP");
    server.listen_tcp(tcp, VIEW).expect("TCP");
    Dns { server, address, tasks }
}

impl Dns {
    /// What dig prints.
    pub async fn dig(&self, args: &str) -> String {
        let port = self.address.port().to_string();
        let mut all = vec!["@127.0.0.1", "-p", &port, "+tries=1", "+time=5", "+nocookie"];
        all.extend(args.split_whitespace());
        String::from_utf8(run("dig", &all, None, Duration::from_secs(20)).await.expect("dig")).expect("text")
    }

    pub async fn short(&self, args: &str) -> String {
        self.dig(&format!("+short {args}")).await.trim().to_string()
    }

    /// One datagram and its answer.
    #[expect(clippy::disallowed_methods, reason = "a plain client")]
    pub async fn datagram(&self, packet: &[u8]) -> Option<Vec<u8>> {
        let s = UdpSocket::bind("127.0.0.1:0").await.expect("socket");
        s.send_to(packet, self.address).await.expect("sent");
        let mut b = vec![0; 65536];
        let n =
            timeout(Duration::from_millis(700), "an answer", s.recv(&mut b)).await.ok()?.expect("received");
        b.truncate(n);
        Some(b)
    }
}

pub fn query(name: &str, qtype: u16, id: u16) -> Vec<u8> {
    let mut p = id.to_be_bytes().to_vec();
    p.extend_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        p.push(label.len() as u8);
        p.extend_from_slice(label.as_bytes());
    }
    p.push(0);
    p.extend_from_slice(&qtype.to_be_bytes());
    p.extend_from_slice(&[0, 1]);
    p
}
