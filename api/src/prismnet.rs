//! Kinds of PrismNET: tenant networks and the ports on them.

use crate::Condition;
use photon_base::{Error, Name, Result};
use photon_resource::{Column, Reference, Resource, Scope};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{fmt, net::Ipv4Addr, str::FromStr};

/// An IPv4 prefix, as in `10.20.0.0/24`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cidr {
    /// First address; its host bits are zero.
    pub base: Ipv4Addr,
    /// Prefix length, 0–32.
    pub len: u8,
}

impl Cidr {
    /// Number of addresses.
    pub fn size(self) -> u64 {
        1u64 << (32 - u32::from(self.len))
    }

    /// The `n`th address of the prefix.
    pub fn nth(self, n: u64) -> Option<Ipv4Addr> {
        (n < self.size()).then(|| Ipv4Addr::from((u64::from(u32::from(self.base)) + n) as u32))
    }

    /// True when `a` lies inside.
    pub fn contains(self, a: Ipv4Addr) -> bool {
        u64::from(u32::from(a)).wrapping_sub(u64::from(u32::from(self.base))) < self.size()
    }

    /// The gateway: the first address that is not the network's own.
    pub fn gateway(self) -> Ipv4Addr {
        self.nth(1).unwrap_or(self.base)
    }

    /// True when a guest may have `a`: neither the network's, nor the gateway's, nor the broadcast address.
    pub fn is_assignable(self, a: Ipv4Addr) -> bool {
        self.contains(a) && a != self.base && a != self.gateway() && Some(a) != self.nth(self.size() - 1)
    }
}

impl FromStr for Cidr {
    type Err = Error;
    fn from_str(s: &str) -> Result<Self> {
        let bad = |why: &str| {
            let shown: String = s.chars().take(40).collect();
            Error::invalid("", format!("{shown:?} is not an IPv4 prefix")).why(why).hint("write 10.20.0.0/24")
        };
        let (base, len) = s.split_once('/').ok_or_else(|| bad("it has no /length"))?;
        let base: Ipv4Addr = base.parse().map_err(|_| bad("the address is malformed"))?;
        let len: u8 =
            len.parse().ok().filter(|l| *l <= 32).ok_or_else(|| bad("the length is not 0 to 32"))?;
        let c = Cidr { base, len };
        if u64::from(u32::from(base)) % c.size() != 0 {
            let first = Ipv4Addr::from((u64::from(u32::from(base)) / c.size() * c.size()) as u32);
            return Err(
                bad("the address has bits set behind the prefix").hint(format!("write {first}/{len}"))
            );
        }
        Ok(c)
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.len)
    }
}

impl TryFrom<String> for Cidr {
    type Error = Error;
    fn try_from(s: String) -> Result<Self> {
        s.parse()
    }
}

impl From<Cidr> for String {
    fn from(c: Cidr) -> String {
        c.to_string()
    }
}

impl JsonSchema for Cidr {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Cidr".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({"type": "string", "pattern": "^[0-9.]+/[0-9]+$"})
    }
}

fn yes() -> bool {
    true
}

/// A private network of a project.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NetworkSpec {
    /// IPv4 prefix, /8 to /29. The first address is the gateway's. Networks of other projects may have the same.
    pub cidr: Cidr,
    /// Whether guests reach the outside, by address translation.
    #[serde(default = "yes")]
    pub nat: bool,
}

/// State of a network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NetworkStatus {
    /// pending, active or failed.
    #[serde(default)]
    pub phase: String,
    /// Address of the gateway, which answers DHCP and DNS too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<Ipv4Addr>,
    /// Largest packet, in bytes.
    #[serde(default)]
    pub mtu: u32,
    /// Network namespace on the host, none where VMs use user-mode networking.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns: Option<String>,
    /// Generation that this state answers.
    #[serde(default)]
    pub observed_generation: u64,
    /// Aspects.
    #[serde(default)]
    pub conditions: Vec<Condition>,
}

impl Resource for NetworkSpec {
    type Status = NetworkStatus;
    const KIND: &'static str = "network";
    const PLURAL: &'static str = "networks";
    const SCOPE: Scope = Scope::Project;
    const SERVICE: &'static str = "prismnet";
    const COLUMNS: &'static [Column] = &[
        Column { title: "CIDR", pointer: "/spec/cidr" },
        Column { title: "GATEWAY", pointer: "/status/gateway" },
        Column { title: "PHASE", pointer: "/status/phase" },
    ];
    const SETTLED: &'static [&'static str] = &["active"];
    const FAILED: &'static [&'static str] = &["failed"];
    const FINALIZERS: &'static [&'static str] = &["prismnet"];

    fn validate(&self) -> Result<()> {
        if !(8..=29).contains(&self.cidr.len) {
            return Err(Error::invalid("cidr", format!("/{} is not between /8 and /29", self.cidr.len)));
        }
        let b = self.cidr.base;
        if b.is_loopback()
            || b.is_multicast()
            || b.is_link_local()
            || b.octets()[0] == 0
            || b.octets()[0] >= 240
        {
            return Err(Error::invalid("cidr", format!("{} can't be a private network", self.cidr))
                .hint("use 10.0.0.0/8, 172.16.0.0/12 or 192.168.0.0/16"));
        }
        let own = Cidr { base: Ipv4Addr::new(100, 64, 0, 0), len: 10 };
        if own.contains(b) || self.cidr.contains(own.base) {
            return Err(Error::invalid("cidr", format!("{} meets 100.64.0.0/10", self.cidr))
                .why("that prefix links networks to their hosts"));
        }
        Ok(())
    }

    fn validate_update(&self, old: &Self) -> Result<()> {
        if self.cidr != old.cidr {
            return Err(Error::invalid("cidr", "can't be changed").hint("make a new network"));
        }
        Ok(())
    }
}

/// A place on a network for one interface. VMs make theirs themselves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PortSpec {
    /// Network it is on.
    pub network: Name,
    /// Address wished for; any free one otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<Ipv4Addr>,
    /// Name in DNS: `HOSTNAME.PROJECT.photon.internal`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<Name>,
    /// Host on which the interface is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<Name>,
}

/// State of a port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PortStatus {
    /// pending (no address yet), allocated (has one), active (ready on its host) or failed.
    #[serde(default)]
    pub phase: String,
    /// Address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<Ipv4Addr>,
    /// MAC address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// Device on the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Network namespace on the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns: Option<String>,
    /// Generation that this state answers.
    #[serde(default)]
    pub observed_generation: u64,
    /// Aspects.
    #[serde(default)]
    pub conditions: Vec<Condition>,
}

impl Resource for PortSpec {
    type Status = PortStatus;
    const KIND: &'static str = "port";
    const PLURAL: &'static str = "ports";
    const SCOPE: Scope = Scope::Project;
    const SERVICE: &'static str = "prismnet";
    const COLUMNS: &'static [Column] = &[
        Column { title: "NETWORK", pointer: "/spec/network" },
        Column { title: "ADDRESS", pointer: "/status/address" },
        Column { title: "MAC", pointer: "/status/mac" },
        Column { title: "HOST", pointer: "/spec/host" },
        Column { title: "PHASE", pointer: "/status/phase" },
    ];
    const SETTLED: &'static [&'static str] = &["allocated", "active"];
    const FAILED: &'static [&'static str] = &["failed"];
    const FINALIZERS: &'static [&'static str] = &["prismnet-ipam", "prismnet-agent"];

    fn validate_update(&self, old: &Self) -> Result<()> {
        if self.network != old.network {
            return Err(Error::invalid("network", "can't be changed").hint("make a new port"));
        }
        Ok(())
    }

    fn references(&self) -> Vec<Reference> {
        vec![Reference { field: "network".into(), kind: NetworkSpec::KIND, name: self.network.clone() }]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_parse_or_say_why_not() {
        let c: Cidr = "10.20.0.0/24".parse().expect("prefix");
        assert_eq!((c.size(), c.gateway().to_string().as_str()), (256, "10.20.0.1"));
        assert!(c.is_assignable("10.20.0.2".parse().expect("address")));
        for not in ["10.20.0.0", "10.20.0.1", "10.20.0.255", "10.20.1.2", "9.255.255.255"] {
            assert!(!c.is_assignable(not.parse().expect("address")), "{not}");
        }
        for bad in ["", "10.20.0.0", "10.20.0.1/24", "10.20.0.0/33", "x/24", "::/64"] {
            assert!(bad.parse::<Cidr>().is_err(), "{bad}");
        }
        let ok = |s: &str| NetworkSpec { cidr: s.parse().expect("prefix"), nat: true }.validate();
        assert!(ok("192.168.0.0/29").is_ok());
        for bad in ["10.0.0.0/30", "0.0.0.0/0", "127.0.0.0/8", "224.0.0.0/8", "100.64.0.0/16", "100.0.0.0/8"]
        {
            assert!(ok(bad).is_err(), "{bad}");
        }
    }
}
