//! The data plane of a Linux host where we are root, by `ip` and `nft`.
//!
//! rtnetlink was weighed: 31 crates and 37 CPU-seconds for what a few batch files do; the real data
//! plane will bring its own encoder.
//!
//! The kernel's own state is the only record: what exists is asked before every step, so that a crash
//! between any two steps is healed by the next call. Names are derived: namespace
//! `photon-<instance>-<8 hex>`, host end of the veth pair `ph<instance><8 hex>`, TAP `t<10 hex>`.

use super::{
    DataPlane, Found, NetworkPlan, PortPlan, rules, tools,
    tools::{Link, drop_link, has, ip, links, nft, set, sysctl},
};
use async_trait::async_trait;
use photon_base::{Error, Result, Uid};
use photon_rt::{process::run, task::blocking};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    path::{Path, PathBuf},
};
use tokio::sync::Mutex;

/// The bridge inside every namespace; DHCP and DNS servers bind to it.
pub const BRIDGE: &str = "br0";
/// The namespace's end of the veth pair.
pub(super) const UPLINK: &str = "up0";
const RUN: &str = "/run/netns";
/// /31 pairs (RFC 3021) in 100.64.0.0/10.
const PAIRS: u32 = 1 << 21;

/// Networks as namespaces, bridges and TAP devices.
#[derive(Debug)]
pub struct LinuxPlane {
    instance: String,
    /// `ip netns` is not safe against itself, and a free link address is looked for and then taken.
    turn: Mutex<()>,
}

impl LinuxPlane {
    /// A data plane whose names carry `instance` (any text that stays the same for one installation,
    /// such as its data folder), so that several clouds on one machine leave each other alone.
    pub fn new(instance: &str) -> LinuxPlane {
        LinuxPlane { instance: Uid(0).derive(instance).short(4), turn: Mutex::default() }
    }

    fn name(&self, network: Uid) -> String {
        format!("{}{}", self.prefix(), network.short(8))
    }

    fn prefix(&self) -> String {
        format!("photon-{}-", self.instance)
    }

    fn veth(&self, network: Uid) -> String {
        format!("ph{}{}", self.instance, network.short(8))
    }

    /// The namespace, made anew when what is there is not one (a crash inside `ip netns add`).
    async fn ensure_netns(&self, name: &str) -> Result<()> {
        let path = Path::new(RUN).join(name);
        if path.exists() {
            let probe = path.clone();
            if blocking(move || photon_rt::net::in_netns(&probe, || Ok(()))).await.is_ok() {
                return Ok(());
            }
            self.drop_netns(name).await?;
        }
        run("ip", &["netns", "add", name], None, tools::LIMIT).await.map(drop)
    }

    async fn drop_netns(&self, name: &str) -> Result<()> {
        let path = Path::new(RUN).join(name);
        if path.exists()
            && run("ip", &["netns", "del", name], None, tools::LIMIT).await.is_err()
            && path.exists()
        {
            photon_rt::fs::remove_file(&path)
                .map_err(|e| Error::internal(format!("cannot remove {}", path.display())).why(e))?;
        }
        Ok(())
    }

    /// The lower address of the network's link: what the device has, else a free one near the derived.
    fn link_address(host: &[Link], veth: &str, network: Uid) -> Result<Ipv4Addr> {
        let base = Ipv4Addr::new(100, 64, 0, 0).to_bits();
        let pair = |a: u32| (a.wrapping_sub(base) < 2 * PAIRS).then(|| (a - base) / 2);
        let mut taken = BTreeSet::new();
        for link in host {
            for a in &link.addr_info {
                let Some(std::net::IpAddr::V4(ip)) = a.local else { continue };
                let Some(index) = pair(ip.to_bits()) else { continue };
                if link.ifname == veth && a.prefixlen == 31 {
                    return Ok(Ipv4Addr::from_bits(base + 2 * index));
                }
                taken.insert(index);
            }
        }
        let start = (network.derive("link").0 % u128::from(PAIRS)) as u32;
        (0..PAIRS)
            .map(|n| (start + n) % PAIRS)
            .find(|i| !taken.contains(i))
            .map(|i| Ipv4Addr::from_bits(base + 2 * i))
            .ok_or_else(|| Error::new(photon_base::Code::Exhausted, "no address is left to link a network"))
    }

    async fn ensure_uplink(&self, plan: &NetworkPlan, name: &str, inside: &[Link]) -> Result<()> {
        let veth = self.veth(plan.id);
        let host = links(None).await?;
        let whole = has(&host, &veth) && has(inside, UPLINK);
        if !plan.nat || !whole {
            drop_link(None, &veth).await?;
        }
        if !plan.nat {
            return Ok(());
        }
        let lower = Self::link_address(&host, &veth, plan.id)?;
        let upper = Ipv4Addr::from_bits(lower.to_bits() + 1);
        if !whole {
            ip(None, &format!("link add {veth} type veth peer name {UPLINK} netns {name}\n")).await?;
        }
        // The filter stands before the link does.
        nft(None, &rules::host()).await?;
        sysctl(
            None,
            vec![
                set("net.ipv4.ip_forward", "1"),
                set(format!("net.ipv6.conf.{veth}.disable_ipv6"), "1"),
                set(format!("net.ipv4.conf.{veth}.forwarding"), "1"),
            ],
        )
        .await?;
        ip(None, &format!("addr replace {lower}/31 dev {veth}\nlink set {veth} up\n")).await?;
        let script = format!(
            "addr replace {upper}/31 dev {UPLINK}\nlink set {UPLINK} up\nroute replace default via {lower}\n"
        );
        ip(Some(name), &script).await
    }

    /// The host's filter goes with the last link, also of another instance's networks.
    async fn drop_host_rules(&self) -> Result<()> {
        if links(None).await?.iter().all(|l| !l.ifname.starts_with("ph")) {
            nft(None, "add table inet photon\ndelete table inet photon\n").await?;
        }
        Ok(())
    }

    async fn drop_network(&self, name: &str) -> Result<()> {
        // The veth pair is named first: devices of a namespace vanish some time after its end.
        let veth = name.replacen("photon-", "ph", 1).replace('-', "");
        drop_link(None, &veth).await?;
        self.drop_netns(name).await?;
        self.drop_host_rules().await
    }

    async fn drop_port(&self, name: &str, tap: &str) -> Result<()> {
        drop_link(Some(name), tap).await?;
        let table = "add table bridge photon\nadd map bridge photon ports { type ifname : verdict; }\n";
        nft(Some(name), &format!("{table}{}", rules::no_port(tap))).await
    }

    fn namespaces(&self) -> Vec<String> {
        let Ok(entries) = photon_rt::fs::read_dir(RUN) else { return Vec::new() };
        let names = entries.flatten().filter_map(|e| e.file_name().into_string().ok());
        names.filter(|n| n.starts_with(&self.prefix())).collect()
    }
}

#[async_trait]
impl DataPlane for LinuxPlane {
    fn missing(&self) -> Vec<String> {
        Vec::new()
    }

    fn netns(&self, network: Uid) -> Option<PathBuf> {
        Some(Path::new(RUN).join(self.name(network)))
    }

    fn tap(&self, port: Uid) -> Option<String> {
        Some(format!("t{}", port.short(10)))
    }

    async fn ensure_network(&self, plan: &NetworkPlan) -> Result<()> {
        plan.check()?;
        let _turn = self.turn.lock().await;
        let name = self.name(plan.id);
        self.ensure_netns(&name).await?;
        sysctl(
            self.netns(plan.id),
            vec![
                set("net.ipv4.ip_forward", "1"),
                set("net.ipv6.conf.all.disable_ipv6", "1"),
                set("net.ipv6.conf.default.disable_ipv6", "1"),
                // Bridged frames are filtered by the bridge's own rules only.
                set("net.bridge.bridge-nf-call-iptables", "0"),
                set("net.bridge.bridge-nf-call-ip6tables", "0"),
                set("net.bridge.bridge-nf-call-arptables", "0"),
            ],
        )
        .await?;
        nft(Some(&name), &rules::network(plan)).await?;
        let inside = links(Some(&name)).await?;
        let mut script = String::from("link set lo up\n");
        if !has(&inside, BRIDGE) {
            script +=
                &format!("link add {BRIDGE} type bridge stp_state 0 forward_delay 0 mcast_snooping 0\n");
        }
        let b = plan.id.derive("gateway").0.to_be_bytes();
        let mac = rules::mac_text([2, b[0], b[1], b[2], b[3], b[4]]);
        script += &format!(
            "link set {BRIDGE} address {mac} mtu {mtu}\naddr replace {gw}/{len} dev {BRIDGE}\nlink set {BRIDGE} up\n",
            mtu = plan.mtu,
            gw = plan.gateway,
            len = plan.prefix
        );
        ip(Some(&name), &script).await?;
        self.ensure_uplink(plan, &name, &inside).await
    }

    async fn ensure_port(&self, plan: &PortPlan) -> Result<()> {
        let _turn = self.turn.lock().await;
        let name = self.name(plan.network);
        let tap = format!("t{}", plan.id.short(10));
        nft(Some(&name), &rules::port(&tap, plan)).await?;
        let mut script = String::new();
        if !has(&links(Some(&name)).await?, &tap) {
            script += &format!("tuntap add {tap} mode tap vnet_hdr\n");
        }
        script += &format!("link set {tap} mtu {} master {BRIDGE}\nlink set {tap} up\n", plan.mtu);
        ip(Some(&name), &script).await
    }

    async fn remove_port(&self, network: Uid, port: Uid) -> Result<()> {
        let _turn = self.turn.lock().await;
        let name = self.name(network);
        if !Path::new(RUN).join(&name).exists() {
            return Ok(());
        }
        self.drop_port(&name, &format!("t{}", port.short(10))).await
    }

    async fn remove_network(&self, network: Uid) -> Result<()> {
        let _turn = self.turn.lock().await;
        self.drop_network(&self.name(network)).await
    }

    async fn list(&self) -> Result<Found> {
        let mut found = Found::new();
        for name in self.namespaces() {
            // Half a namespace has no devices, and is listed to be removed.
            let inside = links(Some(&name)).await.unwrap_or_default();
            let taps = inside.into_iter().map(|l| l.ifname).filter(|n| n.starts_with('t')).collect();
            found.insert(name, taps);
        }
        Ok(found)
    }

    async fn sweep(&self, keep: &BTreeMap<Uid, Vec<Uid>>) -> Result<()> {
        let keep: BTreeMap<String, Vec<String>> = keep
            .iter()
            .map(|(n, ports)| (self.name(*n), ports.iter().filter_map(|p| self.tap(*p)).collect()))
            .collect();
        for (name, taps) in self.list().await? {
            let _turn = self.turn.lock().await;
            match keep.get(&name) {
                None => self.drop_network(&name).await?,
                Some(kept) => {
                    for tap in taps.iter().filter(|t| !kept.contains(t)) {
                        self.drop_port(&name, tap).await?;
                    }
                }
            }
        }
        Ok(())
    }
}
