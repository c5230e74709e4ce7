# The data plane of a Linux host where we are root: `sh -es VERB ARGUMENTS <linux.sh`, one verb a function.
# Every verb can be repeated, heals what a crash left half done, and fails at the first command that fails.
# All arguments are names, numbers and addresses that linux.rs has formed; none is a tenant's text.

inside() { nsenter --net="/run/netns/$ns" "$@"; }
# Whether there is a device: `there DEVICE`, or `there DEVICE -n NAMESPACE`.
there() { device=$1; shift; ip "$@" link show "$device" >/dev/null 2>&1; }
# One end of a veth pair vanishes by itself some time after the other's namespace, so a failure to delete
# counts only while the device is there.
drop() { ! there "$@" || { device=$1; shift; ip "$@" link del "$device"; } || ! there "$device" "$@"; }
# Writes a value into kernel settings. A kernel without a feature has no setting to forbid it.
write='value=$1; shift; for k; do [ ! -e "/proc/sys/net/$k" ] || echo "$value" >"/proc/sys/net/$k"; done'

# Makes a network: NAMESPACE VETH GATEWAY PREFIX NET MTU MAC NAT NUMBER...
network() {
    ns=$1 veth=$2 gateway=$3 prefix=$4 net=$5 mtu=$6 mac=$7 nat=$8
    shift 8
    # Made anew when what is there is not a namespace (a crash inside `ip netns add`).
    inside true 2>/dev/null || { drop_namespace; ip netns add "$ns"; }
    inside sh -ec "$write" sh 1 ipv4/ip_forward ipv6/conf/all/disable_ipv6 ipv6/conf/default/disable_ipv6
    # Bridged frames are filtered by the bridge's own rules only.
    calls=bridge/bridge-nf-call-
    inside sh -ec "$write" sh 0 "${calls}iptables" "${calls}ip6tables" "${calls}arptables"
    # What has no rule here has no way: the gateway serves DHCP, DNS and echo, and forwards outwards.
    # Ports are kept: their chains belong to `port`.
    inside nft -f - <<EOF
add table inet photon
delete table inet photon
table inet photon {
  chain input {
    type filter hook input priority 0; policy drop;
    iifname "lo" accept
    ct state established,related accept
    iifname "br0" udp dport { 53, 67 } accept
    iifname "br0" tcp dport 53 accept
    iifname "br0" icmp type echo-request accept
  }
  chain forward {
    type filter hook forward priority 0; policy drop;
    ct state invalid drop
    iifname "br0" oifname "up0" ip saddr $net/$prefix accept
    iifname "up0" oifname "br0" ct state established,related accept
  }
  chain postrouting { type nat hook postrouting priority srcnat; oifname "up0" masquerade; }
}
add table bridge photon
add map bridge photon ports { type ifname : verdict; }
add chain bridge photon ingress { type filter hook prerouting priority -300; policy accept; }
flush chain bridge photon ingress
add rule bridge photon ingress iifname vmap @ports
add rule bridge photon ingress iifname != { "br0" } drop
EOF
    there br0 -n "$ns" ||
        ip -n "$ns" link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0
    ip -n "$ns" -batch - <<EOF
link set lo up
link set br0 address $mac mtu $mtu
addr replace $gateway/$prefix dev br0
link set br0 up
EOF
    link=$(link_number)
    [ "$nat:${link:+whole}" = true:whole ] && there up0 -n "$ns" || { link=; drop "$veth"; }
    [ "$nat" = false ] || uplink "$@"
}

# Link n has pair n of the /31 pairs (RFC 3021) in 100.64.0.0/10 (RFC 6598), and its device on the host has
# the index 2^24 + n: the kernel gives no index twice, so no two links of a host have one address.
link_number() {
    index=$(ip -o link show "$veth" 2>/dev/null | cut -d: -f1)
    n=$((${index:-0} - 16777216))
    [ "$n" -lt 0 ] || [ "$n" -ge 2097152 ] || echo "$n"
}

# Links the network to the host, by the first NUMBER that is free.
uplink() {
    while [ -z "$link" ]; do
        ip link add "$veth" index $((16777216 + $1)) type veth peer name up0 netns "$ns" || [ $# -gt 1 ]
        link=$(link_number)
        shift
    done
    pair="100.$((64 + (link >> 15))).$((link >> 7 & 255))" last=$((link << 1 & 255))
    # The filter stands before the link does. A packet passes only if every table accepts it, so these
    # drops hold whatever else there is on the host.
    nft -f - <<EOF
add table inet photon
delete table inet photon
table inet photon {
  chain input {
    type filter hook input priority -10; policy accept;
    iifname "ph*" ct state established,related accept
    iifname "ph*" drop
  }
  chain forward {
    type filter hook forward priority -10; policy accept;
    oifname "ph*" ct state established,related accept
    oifname "ph*" drop
    iifname "ph*" ip saddr != 100.64.0.0/10 drop
    iifname "ph*" meta nfproto ipv6 drop
    iifname "ph*" ip daddr { 0.0.0.0/8, 127.0.0.0/8, 169.254.0.0/16 } drop
  }
  chain postrouting { type nat hook postrouting priority srcnat; iifname "ph*" ip saddr 100.64.0.0/10 masquerade; }
}
EOF
    sh -ec "$write" sh 1 ipv4/ip_forward "ipv6/conf/$veth/disable_ipv6" "ipv4/conf/$veth/forwarding"
    printf '%s\n' "addr replace $pair.$last/31 dev $veth" "link set $veth up" | ip -batch -
    printf '%s\n' "addr replace $pair.$((last + 1))/31 dev up0" "link set up0 up" \
        "route replace default via $pair.$last" | ip -n "$ns" -batch -
}

# Makes a port: NAMESPACE TAP MAC ADDRESS MTU. What does not carry its own addresses is dropped before the
# bridge learns or forwards anything. IPv6, VLAN tags and bridge protocols are not for guests of this data
# plane. ARP from 0.0.0.0 is address conflict detection (RFC 5227); DHCP starts from it (RFC 2131).
port() {
    ns=$1 tap=$2 mac=$3 address=$4 mtu=$5
    inside nft -f - <<EOF
add chain bridge photon $tap
flush chain bridge photon $tap
add rule bridge photon $tap ether saddr != $mac drop
add rule bridge photon $tap udp sport 67 drop
add rule bridge photon $tap arp saddr ether != $mac drop
add rule bridge photon $tap arp saddr ip { $address, 0.0.0.0 } accept
add rule bridge photon $tap ip saddr $address accept
add rule bridge photon $tap ip saddr 0.0.0.0 ip daddr 255.255.255.255 udp sport 68 udp dport 67 accept
add rule bridge photon $tap drop
add element bridge photon ports { "$tap" : jump $tap }
EOF
    there "$tap" -n "$ns" || ip -n "$ns" tuntap add "$tap" mode tap vnet_hdr
    printf '%s\n' "link set $tap mtu $mtu master br0" "link set $tap up" | ip -n "$ns" -batch -
}

# Makes a port not be: NAMESPACE TAP.
no_port() {
    ns=$1 tap=$2
    [ -e "/run/netns/$ns" ] || return 0
    drop "$tap" -n "$ns"
    inside nft -f - <<EOF
add table bridge photon
add map bridge photon ports { type ifname : verdict; }
add chain bridge photon $tap
add element bridge photon ports { "$tap" : jump $tap }
delete element bridge photon ports { "$tap" }
flush chain bridge photon $tap
delete chain bridge photon $tap
EOF
}

drop_namespace() {
    [ ! -e "/run/netns/$ns" ] || ip netns del "$ns" 2>/dev/null || rm -f "/run/netns/$ns"
}

# Makes a network and all its ports not be: NAMESPACE VETH. The veth pair is named first, because devices of
# a namespace vanish some time after its end. The host's filter goes with the last link of any cloud.
no_network() {
    ns=$1
    drop "$2"
    drop_namespace
    ip -o link | grep -q '^[0-9]*: ph' || printf 'add table inet photon\ndelete table inet photon\n' | nft -f -
}

# Prints namespaces that begin with PREFIX, each with its TAP devices. Half a namespace has none.
list() {
    for path in "/run/netns/$1"*; do
        [ ! -e "$path" ] || echo "${path##*/}" \
            "$(ip -n "${path##*/}" -o link 2>/dev/null | sed -n 's/^[0-9]*: \(t[^:@]*\).*/\1/p' | tr '\n' ' ')"
    done
}

"$@"
