//! What a network lets through and what not; repetition, healing, removal.

use crate::guest::{ARP, BROADCAST, Guest, IPV4, arp, echo_request, has, ipv4, udp};
use photon_base::Uid;
use photon_rt::{process::run, time::Duration};
use prismnet::engine::{DataPlane, LinuxPlane, NetworkPlan, PortPlan};
use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, UdpSocket},
    path::Path,
};
use tokio::sync::Mutex;

/// Tests share the host's name space, so they take turns.
pub static TURN: Mutex<()> = Mutex::const_new(());

const LIMIT: Duration = Duration::from_secs(20);

pub fn network(id: u128) -> NetworkPlan {
    NetworkPlan { id: Uid(id), gateway: Ipv4Addr::new(10, 20, 0, 1), prefix: 24, mtu: 1500, nat: true }
}

pub fn port(id: u128, network: u128, host: u8) -> PortPlan {
    PortPlan {
        id: Uid(id),
        network: Uid(network),
        mac: [2, 0, 0, 0, 0, host],
        address: Ipv4Addr::new(10, 20, 0, host),
        mtu: 1500,
    }
}

/// A data plane of its own instance. A failed test leaves nothing behind.
pub struct Plane(LinuxPlane);

impl std::ops::Deref for Plane {
    type Target = LinuxPlane;
    fn deref(&self) -> &LinuxPlane {
        &self.0
    }
}

impl Drop for Plane {
    fn drop(&mut self) {
        let own = name(self, 0);
        let own = &own[..own.len() - 8];
        let all = photon_rt::fs::read_dir("/run/netns").into_iter().flatten().flatten();
        for ns in all.filter_map(|e| e.file_name().into_string().ok()).filter(|n| n.starts_with(own)) {
            forget(&ns);
        }
    }
}

/// Removes a namespace, at once and without a runtime.
fn forget(ns: &str) {
    #[expect(clippy::disallowed_methods, reason = "Drop cannot wait")]
    let _ = std::process::Command::new("ip").args(["netns", "del", ns]).status();
}

pub fn plane() -> Plane {
    assert!(rustix::process::geteuid().is_root(), "the data plane's tests need root");
    Plane(LinuxPlane::new(&format!("test-{:x}", photon_rt::entropy::u64())))
}

pub fn guest(plane: &LinuxPlane, p: &PortPlan) -> Guest {
    let netns = plane.netns(p.network).expect("a namespace");
    let mut guest = Guest::open(&netns, &plane.tap(p.id).expect("a TAP"), p.mac, p.address);
    guest.resolve(network(p.network.0).gateway); // its port forwards from here on
    guest
}

async fn tool(program: &str, args: &[&str]) -> String {
    String::from_utf8(run(program, args, None, LIMIT).await.expect("tool")).expect("text")
}

/// A namespace's devices, addresses, routes and rules, without what changes by itself.
async fn snapshot(name: &str) -> String {
    let links = tool("ip", &["-n", name, "-d", "addr", "show"]).await;
    let routes = tool("ip", &["-n", name, "route", "show"]).await;
    let mut rules = String::new();
    for family in ["bridge", "inet"] {
        rules += &tool("ip", &["netns", "exec", name, "nft", "list", "table", family, "photon"]).await;
    }
    let steady = |l: &&str| {
        !["qdisc", "timer", "valid_lft", "bridge forward_delay", "tun type"].iter().any(|w| l.contains(w))
    };
    let mut lines: Vec<&str> = links.lines().filter(steady).collect();
    lines.sort_unstable(); // a device made again comes later
    // A guest that has just gone leaves its carrier for a moment.
    format!("{}\n{}\n{rules}", lines.join("\n"), routes.replace(" linkdown", ""))
}

/// What the host has of this plane: other clouds on this machine come and go.
async fn host(plane: &Plane) -> String {
    let ns = name(plane, 0);
    let instance = &ns["photon-".len()..ns.len() - 9];
    let links = tool("ip", &["-o", "addr", "show"]).await;
    let own: Vec<&str> = links.lines().filter(|l| l.contains(&format!(" ph{instance}"))).collect();
    let spaces: Vec<String> = photon_rt::fs::read_dir("/run/netns")
        .map(|d| d.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect())
        .unwrap_or_default();
    let spaces: Vec<&String> = spaces.iter().filter(|n| n.contains(&format!("-{instance}-"))).collect();
    let table = tool("nft", &["list", "tables"]).await.contains("inet photon");
    let any = links.contains(": ph");
    assert!(table || !any, "links without a filter");
    format!("{own:?} {spaces:?}")
}

/// Nothing is left: no device, no namespace, and the host's filter only while somebody has networks.
async fn assert_clean(plane: &Plane, before: &str) {
    assert_eq!(host(plane).await, before);
    let tables = tool("nft", &["list", "tables"]).await;
    let links = tool("ip", &["-o", "link", "show"]).await;
    assert!(!tables.contains("inet photon") || links.contains(": ph"), "a filter without links");
}

fn name(plane: &LinuxPlane, id: u128) -> String {
    plane.netns(Uid(id)).expect("a namespace").file_name().expect("a name").to_string_lossy().into_owned()
}

#[tokio::test]
async fn guests_meet_and_spoofed_frames_do_not_pass() {
    let _turn = TURN.lock().await;
    let plane = plane();
    let before = host(&plane).await;
    plane.ensure_network(&network(1)).await.expect("network");
    let (pa, pb) = (port(11, 1, 5), port(12, 1, 6));
    for p in [&pa, &pb] {
        plane.ensure_port(p).await.expect("port");
    }
    let (mut a, mut b) = (guest(&plane, &pa), guest(&plane, &pb));

    // The gateway answers ARP and echo.
    let gateway = network(1).gateway;
    let gateway_mac = a.resolve(gateway);
    a.send(gateway_mac, IPV4, &ipv4(a.ip, gateway, 1, &echo_request(b"hello gateway")));
    a.until("an echo", |f| has(f, b"hello gateway"));

    // Between guests, what is honest passes and the rest does not.
    let other: Ipv4Addr = Ipv4Addr::new(10, 20, 0, 77);
    let forged_mac = [2, 0, 0, 0, 0, 0x77];
    a.send_as(forged_mac, b.mac, IPV4, &ipv4(a.ip, b.ip, 17, &udp(1, 2, b"SPOOF mac")));
    a.send(b.mac, IPV4, &ipv4(other, b.ip, 17, &udp(1, 2, b"SPOOF ip")));
    a.send(b.mac, IPV4, &ipv4(gateway, b.ip, 17, &udp(1, 2, b"SPOOF gateway")));
    a.send(BROADCAST, ARP, &[&arp(2, a.mac, gateway, b.mac, b.ip)[..], b"SPOOF arp ip"].concat());
    a.send(BROADCAST, ARP, &[&arp(2, forged_mac, a.ip, b.mac, b.ip)[..], b"SPOOF arp mac"].concat());
    a.send(BROADCAST, IPV4, &ipv4(a.ip, Ipv4Addr::BROADCAST, 17, &udp(67, 68, b"SPOOF dhcp server")));
    a.send(b.mac, IPV4, &ipv4(Ipv4Addr::UNSPECIFIED, b.ip, 17, &udp(68, 67, b"SPOOF unicast from zero")));
    a.send(b.mac, 0x86dd, &[&[0x60, 0, 0, 0][..], b"SPOOF ipv6"].concat());
    a.send(b.mac, 0x8100, &[&[0, 5, 8, 0][..], &ipv4(other, b.ip, 17, &udp(1, 2, b"SPOOF vlan"))].concat());
    a.send([1, 0x80, 0xc2, 0, 0, 0], 0x26, b"SPOOF stp");
    a.send(b.mac, IPV4, &ipv4(a.ip, b.ip, 17, &udp(1, 2, b"honest word")));
    let seen = b.until("the honest word", |f| has(f, b"honest word"));
    assert!(!seen.iter().any(|f| has(f, b"SPOOF")), "{seen:02x?}");

    plane.remove_port(Uid(1), Uid(11)).await.expect("removed");
    plane.remove_port(Uid(1), Uid(11)).await.expect("twice");
    assert_eq!(plane.list().await.expect("list")[&name(&plane, 1)], [plane.tap(Uid(12)).expect("tap")]);
    plane.remove_network(Uid(1)).await.expect("removed");
    plane.remove_network(Uid(1)).await.expect("twice");
    plane.remove_port(Uid(1), Uid(12)).await.expect("of a network that is gone");
    assert_clean(&plane, &before).await;
}

/// An outside: a namespace with a socket, linked to the host.
struct Outside(String);

impl Drop for Outside {
    fn drop(&mut self) {
        forget(&self.0);
    }
}

impl Outside {
    async fn new() -> Outside {
        let name = format!("out-{:x}", photon_rt::entropy::u64() & 0xffff);
        tool("ip", &["netns", "add", &name]).await;
        let script = format!(
            "link add {name} type veth peer name eth0 netns {name}\naddr add 198.51.100.1/24 dev {name}\nlink set {name} up\n"
        );
        run("ip", &["-batch", "-"], Some(script.as_bytes()), LIMIT).await.expect("host end");
        let script = "addr add 198.51.100.2/24 dev eth0\nlink set eth0 up\nlink set lo up\nroute add default via 198.51.100.1\n";
        run("ip", &["-n", &name, "-batch", "-"], Some(script.as_bytes()), LIMIT).await.expect("other end");
        Outside(name)
    }

    fn socket(&self, address: &'static str) -> UdpSocket {
        let path = Path::new("/run/netns").join(&self.0);
        #[expect(clippy::disallowed_methods, reason = "a plain peer")]
        photon_rt::net::in_netns(&path, move || UdpSocket::bind(address)).expect("socket")
    }
}

fn heard(socket: &UdpSocket) -> Vec<Vec<u8>> {
    socket.set_nonblocking(true).expect("mode");
    let mut all = Vec::new();
    let mut b = [0; 2000];
    while let Ok((n, _)) = socket.recv_from(&mut b) {
        all.push(b[..n].to_vec());
    }
    all
}

#[tokio::test]
async fn the_outside_is_reached_and_host_and_neighbours_are_not() {
    let _turn = TURN.lock().await;
    let plane = plane();
    let before = host(&plane).await;
    let outside = Outside::new().await;
    // Two tenants with the same prefix, addresses and hardware addresses.
    for n in [1, 2] {
        plane.ensure_network(&network(n)).await.expect("network");
        plane.ensure_port(&port(n * 10, n, 5)).await.expect("port");
    }
    plane.ensure_port(&port(11, 1, 6)).await.expect("port");
    let mut a = guest(&plane, &port(10, 1, 5));
    let mut same = guest(&plane, &port(20, 2, 5));
    let mut b = guest(&plane, &port(11, 1, 6));

    #[expect(clippy::disallowed_methods, reason = "a plain listener on the host")]
    let on_host = UdpSocket::bind("0.0.0.0:5353").expect("socket");
    let peer = outside.socket("198.51.100.2:5353");
    let in_other = photon_rt::net::in_netns(&plane.netns(Uid(2)).expect("ns"), || {
        #[expect(clippy::disallowed_methods, reason = "a plain listener")]
        UdpSocket::bind("0.0.0.0:53")
    })
    .expect("socket");

    let gateway = a.resolve(network(1).gateway);
    let mut to = |ip: Ipv4Addr, port: u16, word: &[u8]| {
        let packet = ipv4(a.ip, ip, 17, &udp(5353, port, word));
        a.send(gateway, IPV4, &packet);
    };
    // Everything of the host: its ends of the links, its other addresses, other networks' links.
    let addresses: serde_json::Value =
        serde_json::from_str(&tool("ip", &["-4", "-j", "addr", "show"]).await).expect("JSON");
    let mut count = 0;
    for a in
        addresses.as_array().expect("links").iter().flat_map(|l| l["addr_info"].as_array().expect("list"))
    {
        let ip: Ipv4Addr = a["local"].as_str().expect("an address").parse().expect("an address");
        count += 1;
        to(ip, 5353, b"to the host");
        if a["prefixlen"] == 31 {
            to(Ipv4Addr::from_bits(ip.to_bits() | 1), 53, b"to a neighbour");
            to(Ipv4Addr::from_bits(ip.to_bits() & !1), 5353, b"to the host");
        }
    }
    assert!(count >= 4, "loopback, the outside's link and two networks' links: {addresses}");
    to("169.254.169.254".parse().expect("ip"), 80, b"to the host's own metadata");
    to("198.51.100.2".parse().expect("ip"), 5353, b"to the outside");

    // The outside heard the last packet, after which the others would have come; and its answer returns.
    peer.set_read_timeout(Some(Duration::from_secs(5))).expect("limit");
    let mut buf = [0; 100];
    let (n, from) = peer.recv_from(&mut buf).expect("heard outside");
    assert_eq!((&buf[..n], from.ip().to_string().as_str()), (&b"to the outside"[..], "198.51.100.1"));
    assert_eq!(heard(&on_host), Vec::<Vec<u8>>::new());
    assert_eq!(heard(&in_other), Vec::<Vec<u8>>::new());
    peer.send_to(b"back inside", from).expect("answered");
    a.until("the answer", |f| has(f, b"back inside"));
    // A stranger outside reaches nobody: not by the host's address and not by routing to the link.
    let link = tool("ip", &["-n", &name(&plane, 1), "-4", "-j", "addr", "show", "up0"]).await;
    let link: serde_json::Value = serde_json::from_str(&link).expect("JSON");
    let link: Ipv4Addr = link[0]["addr_info"][0]["local"].as_str().expect("ip").parse().expect("ip");
    let in_own = photon_rt::net::in_netns(&plane.netns(Uid(1)).expect("ns"), || {
        #[expect(clippy::disallowed_methods, reason = "a plain listener")]
        UdpSocket::bind("0.0.0.0:53")
    })
    .expect("socket");
    let stranger = outside.socket("198.51.100.2:999");
    stranger.send_to(b"from a stranger", (link, 53)).expect("sent");
    stranger.send_to(b"to the host", "198.51.100.1:5353").expect("sent");
    on_host.set_nonblocking(false).expect("mode");
    on_host.set_read_timeout(Some(Duration::from_secs(5))).expect("limit");
    assert_eq!(on_host.recv_from(&mut buf).expect("the host itself is open to it").0, 11);
    assert_eq!(heard(&in_own), Vec::<Vec<u8>>::new());

    // A broadcast of one tenant reaches its own guests and not its twin of the other tenant.
    let word = ipv4(a.ip, Ipv4Addr::BROADCAST, 17, &udp(1, 2, b"tenant one"));
    a.send(BROADCAST, IPV4, &word);
    b.until("the broadcast", |f| has(f, b"tenant one"));
    let gateway2 = same.resolve(network(2).gateway);
    same.send(gateway2, IPV4, &ipv4(same.ip, network(2).gateway, 1, &echo_request(b"mark")));
    let seen = same.until("the mark", |f| has(f, b"mark"));
    assert!(!seen.iter().any(|f| has(f, b"tenant one") || has(f, b"back inside")), "{seen:02x?}");

    // Without NAT, nothing leaves.
    drop((a, b, same));
    plane.ensure_network(&NetworkPlan { nat: false, ..network(1) }).await.expect("network");
    assert!(!tool("ip", &["-n", &name(&plane, 1), "link"]).await.contains("up0"));
    plane.sweep(&BTreeMap::from([(Uid(2), vec![])])).await.expect("swept");
    let left = plane.list().await.expect("list");
    assert_eq!(left, BTreeMap::from([(name(&plane, 2), vec![])]));
    plane.sweep(&BTreeMap::new()).await.expect("swept");
    tool("ip", &["link", "del", &outside.0]).await;
    tool("ip", &["netns", "del", &outside.0]).await;
    assert_clean(&plane, &before).await;
}

#[tokio::test]
async fn ensuring_twice_changes_nothing_and_heals_every_crash() {
    let _turn = TURN.lock().await;
    let plane = plane();
    let before = host(&plane).await;
    let ensure = async || {
        plane.ensure_network(&network(1)).await.expect("network");
        plane.ensure_port(&port(10, 1, 5)).await.expect("port");
    };
    ensure().await;
    let ns = name(&plane, 1);
    let whole = snapshot(&ns).await;
    let t = photon_rt::time::now();
    ensure().await;
    println!("ensure of a network and a port that are there: {:?}", t.elapsed());
    assert_eq!(snapshot(&ns).await, whole);

    let tap = plane.tap(Uid(10)).expect("tap");
    let veth = format!("ph{}", &ns[7..].replace('-', ""));
    // Each line is a state that a crash between two steps can leave, or that a stranger's hand can.
    let damages: &[&[&str]] = &[
        &["ip", "-n", &ns, "link", "del", &tap],
        &["ip", "-n", &ns, "link", "set", &tap, "down"],
        &["ip", "-n", &ns, "link", "set", &tap, "nomaster"],
        &["ip", "-n", &ns, "link", "del", "br0"],
        &["ip", "-n", &ns, "addr", "flush", "dev", "br0"],
        &["ip", "-n", &ns, "addr", "flush", "dev", "up0"],
        &["ip", "-n", &ns, "route", "flush", "default"],
        &["ip", "-n", &ns, "link", "set", "up0", "down"],
        &["ip", "link", "set", &veth, "down"],
        &["ip", "link", "del", &veth],
        &["nft", "delete", "table", "inet", "photon"],
        &["ip", "netns", "exec", &ns, "nft", "flush", "ruleset"],
        &["ip", "netns", "exec", &ns, "nft", "flush", "chain", "bridge", "photon", &tap],
        &["umount", &format!("/run/netns/{ns}")],
        &["ip", "netns", "del", &ns],
    ];
    for damage in damages {
        let _ = run(damage[0], &damage[1..], None, LIMIT).await.expect("damage");
        let t = photon_rt::time::now();
        ensure().await;
        let healed = snapshot(&ns).await;
        let addresses = |s: &str| {
            s.lines()
                .filter(|l| !l.contains("link/ether") && !l.contains(": <"))
                .map(|l| l.split(" if").next().unwrap_or(l).trim().to_string())
                .collect::<Vec<_>>()
        };
        assert_eq!(addresses(&healed), addresses(&whole), "after {damage:?}");
        assert!(host(&plane).await.contains(&veth), "after {damage:?}");
        // And it works: a guest reaches the gateway, and its filter stands.
        let mut a = guest(&plane, &port(10, 1, 5));
        a.resolve(network(1).gateway);
        println!("healed {damage:?} in {:?}", t.elapsed());
    }
    plane.remove_network(Uid(1)).await.expect("removed");
    assert_clean(&plane, &before).await;
}

#[tokio::test]
async fn a_link_number_that_is_taken_is_passed_over() {
    let _turn = TURN.lock().await;
    let plane = plane();
    let before = host(&plane).await;
    let first = Uid(1).derive("link0").0 % (1 << 21) + (1 << 24);
    tool("ip", &["link", "add", "stranger0", "index", &first.to_string(), "type", "bridge"]).await;
    for _ in 0..2 {
        plane.ensure_network(&network(1)).await.expect("network");
    }
    let ns = name(&plane, 1);
    let index = tool("ip", &["-o", "link", "show", &format!("ph{}", ns[7..].replace('-', ""))]).await;
    tool("ip", &["link", "del", "stranger0"]).await;
    let second = Uid(1).derive("link1").0 % (1 << 21) + (1 << 24);
    assert!(index.starts_with(&format!("{second}:")), "{index}");
    assert!(plane.ensure_port(&port(10, 2, 5)).await.is_err(), "a port of a network that is not there");
    plane.remove_network(Uid(1)).await.expect("removed");
    assert_clean(&plane, &before).await;
}
