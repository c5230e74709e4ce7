//! The data plane of a Linux host where we are root, by the script `linux.sh`: `ip` and `nft`.
//!
//! rtnetlink was weighed: 31 crates and 37 CPU-seconds to save processes of 2–4 ms each; the real data
//! plane will bring its own encoder.
//!
//! The kernel's own state is the only record: what exists is asked before every step, so that a crash
//! between any two steps is healed by the next call. Names are derived: namespace
//! `photon-<instance>-<8 hex>`, host end of the veth pair `ph<instance><8 hex>`, TAP `t<10 hex>`.

use super::{DataPlane, Found, NetworkPlan, PortPlan};
use async_trait::async_trait;
use photon_base::{Result, Uid};
use photon_rt::{process::run, time::Duration};
use std::{collections::BTreeMap, path::PathBuf};
use tokio::sync::Mutex;

/// The bridge inside every namespace; DHCP and DNS servers bind to it.
pub const BRIDGE: &str = "br0";
/// How long one verb of the script may take.
const LIMIT: Duration = Duration::from_secs(20);
/// Links to networks that a host can number.
const LINKS: u128 = 1 << 21;
/// Numbers tried for a link. Beside a thousand links, one number in two thousand is taken.
const TRIES: u32 = 8;

/// Networks as namespaces, bridges and TAP devices.
#[derive(Debug)]
pub struct LinuxPlane {
    instance: String,
    /// `ip netns` is not safe against itself, and what a script has asked must stay so while it runs.
    turn: Mutex<()>,
}

impl LinuxPlane {
    /// A data plane whose names carry `instance` (any text that stays the same for one installation,
    /// such as its data folder), so that several clouds on one machine leave each other alone.
    pub fn new(instance: &str) -> LinuxPlane {
        LinuxPlane { instance: Uid(0).derive(instance).short(4), turn: Mutex::default() }
    }

    fn name(&self, network: Uid) -> String {
        format!("photon-{}-{}", self.instance, network.short(8))
    }

    /// Runs a verb of the script and returns what it says.
    async fn run(&self, verb: &[&str]) -> Result<String> {
        let _turn = self.turn.lock().await;
        let out = run("sh", &[&["-es"], verb].concat(), Some(include_bytes!("linux.sh")), LIMIT).await?;
        Ok(String::from_utf8_lossy(&out).into_owned())
    }

    async fn drop_network(&self, name: &str) -> Result<()> {
        self.run(&["no_network", name, &veth(name)]).await.map(drop)
    }
}

fn veth(name: &str) -> String {
    name.replacen("photon-", "ph", 1).replace('-', "")
}

fn tap(port: Uid) -> String {
    format!("t{}", port.short(10))
}

fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|b| format!("{b:02x}")).join(":")
}

#[async_trait]
impl DataPlane for LinuxPlane {
    fn missing(&self) -> Vec<String> {
        Vec::new()
    }

    fn netns(&self, network: Uid) -> Option<PathBuf> {
        Some(PathBuf::from("/run/netns").join(self.name(network)))
    }

    fn tap(&self, port: Uid) -> Option<String> {
        Some(tap(port))
    }

    async fn ensure_network(&self, plan: &NetworkPlan) -> Result<()> {
        plan.check()?;
        let name = self.name(plan.id);
        let b = plan.id.derive("gateway").0.to_be_bytes();
        let mac = mac_text([2, b[0], b[1], b[2], b[3], b[4]]);
        let prefix = [plan.gateway.to_string(), plan.prefix.to_string(), plan.base().to_string()];
        let rest = [plan.mtu.to_string(), mac, plan.nat.to_string()];
        let numbers = (0..TRIES).map(|n| (plan.id.derive(&format!("link{n}")).0 % LINKS).to_string());
        let args = [veth(&name)].into_iter().chain(prefix).chain(rest).chain(numbers).collect::<Vec<_>>();
        let verb: Vec<&str> = ["network", &name].into_iter().chain(args.iter().map(String::as_str)).collect();
        self.run(&verb).await.map(drop)
    }

    async fn ensure_port(&self, plan: &PortPlan) -> Result<()> {
        let (address, mtu) = (plan.address.to_string(), plan.mtu.to_string());
        let (name, mac) = (self.name(plan.network), mac_text(plan.mac));
        self.run(&["port", &name, &tap(plan.id), &mac, &address, &mtu]).await.map(drop)
    }

    async fn remove_port(&self, network: Uid, port: Uid) -> Result<()> {
        self.run(&["no_port", &self.name(network), &tap(port)]).await.map(drop)
    }

    async fn remove_network(&self, network: Uid) -> Result<()> {
        self.drop_network(&self.name(network)).await
    }

    async fn list(&self) -> Result<Found> {
        let text = self.run(&["list", &format!("photon-{}-", self.instance)]).await?;
        let line = |l: &str| {
            let mut words = l.split_whitespace().map(String::from);
            Some((words.next()?, words.collect()))
        };
        Ok(text.lines().filter_map(line).collect())
    }

    async fn sweep(&self, keep: &BTreeMap<Uid, Vec<Uid>>) -> Result<()> {
        let keep: BTreeMap<String, &Vec<Uid>> = keep.iter().map(|(n, p)| (self.name(*n), p)).collect();
        for (name, taps) in self.list().await? {
            let Some(ports) = keep.get(&name) else {
                self.drop_network(&name).await?;
                continue;
            };
            for gone in taps.iter().filter(|t| ports.iter().all(|p| tap(*p) != **t)) {
                self.run(&["no_port", &name, gone]).await?;
            }
        }
        Ok(())
    }
}
