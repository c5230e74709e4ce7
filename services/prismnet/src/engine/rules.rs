//! The packet filter as text for `nft -f -`, which applies each text whole or not at all.

use super::{NetworkPlan, PortPlan};
use crate::engine::linux::{BRIDGE, UPLINK};

/// Prefix that links networks to the host (RFC 6598, shared address space).
pub const LINKS: &str = "100.64.0.0/10";

/// Hardware address as text.
pub fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|b| format!("{b:02x}")).join(":")
}

/// Rules inside a network's namespace. Ports are kept: their chains belong to [`port`].
pub fn network(plan: &NetworkPlan) -> String {
    let net = format!("{}/{}", plan.base(), plan.prefix);
    // What has no rule here has no way: the gateway serves DHCP, DNS and echo, and forwards outwards.
    format!(
        "add table inet photon
delete table inet photon
table inet photon {{
  chain input {{
    type filter hook input priority 0; policy drop;
    iifname \"lo\" accept
    ct state established,related accept
    iifname \"{BRIDGE}\" udp dport {{ 53, 67 }} accept
    iifname \"{BRIDGE}\" tcp dport 53 accept
    iifname \"{BRIDGE}\" icmp type echo-request accept
  }}
  chain forward {{
    type filter hook forward priority 0; policy drop;
    ct state invalid drop
    iifname \"{BRIDGE}\" oifname \"{UPLINK}\" ip saddr {net} accept
    iifname \"{UPLINK}\" oifname \"{BRIDGE}\" ct state established,related accept
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat;
    oifname \"{UPLINK}\" masquerade
  }}
}}
add table bridge photon
add map bridge photon ports {{ type ifname : verdict; }}
add chain bridge photon ingress {{ type filter hook prerouting priority -300; policy accept; }}
flush chain bridge photon ingress
add rule bridge photon ingress iifname vmap @ports
add rule bridge photon ingress iifname != {{ \"{BRIDGE}\" }} drop
"
    )
}

/// Rules of one port: what does not carry its own addresses is dropped before the bridge learns or
/// forwards anything. IPv6, VLAN tags and bridge protocols are not for guests of this data plane.
pub fn port(tap: &str, plan: &PortPlan) -> String {
    let (mac, ip) = (mac_text(plan.mac), plan.address);
    // ARP from 0.0.0.0 is address conflict detection (RFC 5227); DHCP starts from it (RFC 2131).
    format!(
        "add chain bridge photon {tap}
flush chain bridge photon {tap}
add rule bridge photon {tap} ether saddr != {mac} drop
add rule bridge photon {tap} udp sport 67 drop
add rule bridge photon {tap} arp saddr ether != {mac} drop
add rule bridge photon {tap} arp saddr ip {{ {ip}, 0.0.0.0 }} accept
add rule bridge photon {tap} ip saddr {ip} accept
add rule bridge photon {tap} ip saddr 0.0.0.0 ip daddr 255.255.255.255 udp sport 68 udp dport 67 accept
add rule bridge photon {tap} drop
add element bridge photon ports {{ \"{tap}\" : jump {tap} }}
"
    )
}

/// Takes a port's rules away; safe when they are not there.
pub fn no_port(tap: &str) -> String {
    format!(
        "add chain bridge photon {tap}
add element bridge photon ports {{ \"{tap}\" : jump {tap} }}
delete element bridge photon ports {{ \"{tap}\" }}
flush chain bridge photon {tap}
delete chain bridge photon {tap}
"
    )
}

/// Rules on the host. `photon*`-named chains of other tables are left alone; a packet passes only if
/// every table accepts it, so these drops hold whatever else is there.
pub fn host() -> String {
    format!(
        "add table inet photon
delete table inet photon
table inet photon {{
  chain input {{
    type filter hook input priority -10; policy accept;
    iifname \"ph*\" ct state established,related accept
    iifname \"ph*\" drop
  }}
  chain forward {{
    type filter hook forward priority -10; policy accept;
    oifname \"ph*\" ct state established,related accept
    oifname \"ph*\" drop
    iifname \"ph*\" ip saddr != {LINKS} drop
    iifname \"ph*\" meta nfproto ipv6 drop
    iifname \"ph*\" ip daddr {{ 0.0.0.0/8, 127.0.0.0/8, 169.254.0.0/16 }} drop
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat;
    iifname \"ph*\" ip saddr {LINKS} masquerade
  }}
}}
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use photon_base::Uid;
    use std::net::Ipv4Addr;

    #[test]
    fn a_ports_rules_name_its_addresses_and_end_with_a_drop() {
        let text = port(
            "tap",
            &PortPlan {
                id: Uid(1),
                network: Uid(2),
                mac: [2, 0, 0, 0, 0, 0xab],
                address: Ipv4Addr::new(10, 0, 0, 5),
                mtu: 1500,
            },
        );
        assert!(text.contains("ether saddr != 02:00:00:00:00:ab drop\n"));
        assert!(text.contains("ip saddr 10.0.0.5 accept\n"));
        let rules: Vec<&str> = text.lines().filter(|l| l.starts_with("add rule")).collect();
        assert!(rules.last().is_some_and(|r| r.ends_with(" drop")));
    }
}
