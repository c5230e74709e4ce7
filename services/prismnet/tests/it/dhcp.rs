//! A DHCP conversation over a real TAP device and bridge.

use crate::{
    guest::{BROADCAST, IPV4, has, ipv4, udp},
    plane::{TURN, guest, network, plane, port},
};
use photon_base::Uid;
use photon_rt::task::Tasks;
use prismnet::{
    dhcp::{Lease, Leases, Server},
    engine::{BRIDGE, DataPlane},
};
use std::{collections::HashMap, net::Ipv4Addr};

fn request(mac: [u8; 6], kind: u8, options: &[u8]) -> Vec<u8> {
    let mut p = vec![0; 236];
    p[..3].copy_from_slice(&[1, 1, 6]);
    p[28..34].copy_from_slice(&mac);
    p.extend_from_slice(&[99, 130, 83, 99, 53, 1, kind]);
    p.extend_from_slice(options);
    p.push(255);
    ipv4(Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST, 17, &udp(68, 67, &p))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_gets_its_own_address() {
    let _turn = TURN.lock().await;
    let (plane, tasks) = (plane(), Tasks::new());
    plane.ensure_network(&network(1)).await.expect("network");
    let p = port(10, 1, 5);
    plane.ensure_port(&p).await.expect("port");
    let lease = |name: &str| Leases {
        server: network(1).gateway,
        prefix: 24,
        router: Some(network(1).gateway),
        dns: vec![network(1).gateway],
        mtu: 1500,
        seconds: 3600,
        by_mac: HashMap::from([(
            p.mac,
            Lease {
                address: p.address,
                hostname: name.into(),
                domain: "demo.photon.internal".into(),
                search: vec![],
            },
        )]),
    };
    let netns = plane.netns(Uid(1)).expect("namespace");
    let server = Server::start(&netns, BRIDGE, lease("first-name"), &tasks).await.expect("server");
    let mut a = guest(&plane, &p);
    a.send(BROADCAST, IPV4, &request(p.mac, 1, &[]));
    a.until("an offer", |f| has(f, &[53, 1, 2]) && has(f, b"first-name") && has(f, &p.address.octets()));
    server.set(lease("second-name"));
    let wish = [&[50, 4][..], &p.address.octets()].concat();
    a.send(BROADCAST, IPV4, &request(p.mac, 3, &wish));
    a.until("an ack", |f| has(f, &[53, 1, 5]) && has(f, b"second-name"));
    drop(server);
    // The port is free again for the next server.
    tasks.shutdown().await;
    let tasks = Tasks::new();
    Server::start(&netns, BRIDGE, lease("x"), &tasks).await.expect("again");
    drop(a);
    plane.remove_network(Uid(1)).await.expect("removed");
}
