//! What a view knows, as a snapshot that is never changed, only replaced.

use super::name::Name;
use photon_base::{Error, Result};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::{IpAddr, Ipv4Addr},
};

/// Most addresses of one name; an answer with all of them stays small.
pub const ADDRESSES_MAX: usize = 64;
/// Seconds for which an answer may be kept: names of VMs come and go.
pub const TTL: u32 = 10;
/// Seconds for which "there is none" may be kept (RFC 2308).
pub const NEGATIVE_TTL: u32 = 5;

/// Names and addresses of one view, under one or more apexes of our own.
#[derive(Clone, Debug)]
pub struct Zone {
    serial: u32,
    /// Our own zones. Everything below them is ours to answer, also that it does not exist.
    apexes: Vec<Name>,
    names: HashMap<Name, Vec<IpAddr>>,
    /// Names that exist only because there are names below (empty non-terminals, RFC 4592).
    between: HashSet<Name>,
    reverse: BTreeMap<IpAddr, Vec<Name>>,
    /// IPv4 prefixes whose reverse names are ours.
    prefixes: Vec<(Ipv4Addr, u8)>,
    server: Name,
}

impl Zone {
    /// A zone under `apex` (as `photon.internal`), with `health.local` beside it. `serial` grows with
    /// every snapshot; `addresses` are where this view's server answers.
    pub fn new(apex: &str, serial: u32, addresses: &[IpAddr]) -> Result<Zone> {
        let apex = Name::from_text(apex)?;
        let health = Name::from_text("health.local")?;
        let server = Name::from_text(&format!("ns.{apex}"))?;
        let mut zone = Zone {
            serial,
            apexes: vec![apex, health.clone()],
            names: HashMap::new(),
            between: HashSet::new(),
            reverse: BTreeMap::new(),
            prefixes: Vec::new(),
            server: server.clone(),
        };
        zone.put(health, IpAddr::V4(Ipv4Addr::LOCALHOST))?;
        for a in addresses {
            zone.put(server.clone(), *a)?;
        }
        Ok(zone)
    }

    fn put(&mut self, name: Name, address: IpAddr) -> Result<()> {
        let Some(apex) = self.apexes.iter().find(|a| name.is_within(a)).cloned() else {
            return Err(Error::invalid("name", format!("{name} is not within {}", self.apexes[0])));
        };
        let mut above = name.parent();
        while let Some(n) = above.filter(|n| n.is_within(&apex)) {
            above = n.parent();
            self.between.insert(n);
        }
        let list = self.names.entry(name.clone()).or_default();
        if !list.contains(&address) {
            if list.len() >= ADDRESSES_MAX {
                return Err(Error::invalid("addresses", format!("{name} has more than {ADDRESSES_MAX}")));
            }
            list.push(address);
        }
        Ok(())
    }

    /// Adds an address of `name` (absolute, as `a.demo.photon.internal`) and the reverse name.
    pub fn insert(&mut self, name: &str, address: IpAddr) -> Result<()> {
        let name = Name::from_text(name)?;
        self.put(name.clone(), address)?;
        // On the host's own view tenants with equal prefixes meet: one address may have several names.
        let names = self.reverse.entry(address).or_default();
        if !names.contains(&name) && names.len() < ADDRESSES_MAX {
            names.push(name);
        }
        Ok(())
    }

    /// Makes the reverse names of an IPv4 prefix ours: what has no name there does not exist.
    pub fn own_reverse(&mut self, base: Ipv4Addr, prefix: u8) {
        self.prefixes.push((base, prefix.min(32)));
    }

    /// The apex of ours that `name` belongs to, for a forward name or a reverse one.
    pub(super) fn apex(&self, name: &Name) -> Option<Name> {
        if let Some(apex) = self.apexes.iter().find(|a| name.is_within(a)) {
            return Some(apex.clone());
        }
        let IpAddr::V4(address) = name.reversed()? else {
            let known = name.reversed().is_some_and(|a| self.reverse.contains_key(&a));
            return known.then(|| name.clone());
        };
        let inside = |(base, len): &&(Ipv4Addr, u8)| {
            let mask = u32::MAX.unbounded_shl(32 - u32::from(*len));
            address.to_bits() & mask == base.to_bits() & mask
        };
        match self.prefixes.iter().find(inside) {
            // Reverse zones are cut at whole octets.
            Some((_, len)) => {
                let mut apex = name.clone();
                for _ in 0..(4 - (len / 8).min(3)) {
                    apex = apex.parent()?;
                }
                Some(apex)
            }
            None => self.reverse.contains_key(&IpAddr::V4(address)).then(|| name.clone()),
        }
    }

    pub(super) fn addresses(&self, name: &Name) -> &[IpAddr] {
        self.names.get(name).map_or(&[], Vec::as_slice)
    }

    pub(super) fn pointers(&self, name: &Name) -> &[Name] {
        name.reversed().and_then(|a| self.reverse.get(&a)).map_or(&[], Vec::as_slice)
    }

    pub(super) fn exists(&self, name: &Name) -> bool {
        self.names.contains_key(name)
            || self.between.contains(name)
            || self.apexes.contains(name)
            || !self.pointers(name).is_empty()
    }

    pub(super) fn server(&self) -> &Name {
        &self.server
    }

    /// The data of a SOA record (RFC 1035 section 3.3.13).
    pub(super) fn soa(&self) -> Vec<u8> {
        let mut data = self.server.wire().to_vec();
        data.extend_from_slice(b"\x0ahostmaster");
        data.extend_from_slice(self.apexes[0].wire());
        for n in [self.serial, 3600, 600, 86_400, NEGATIVE_TTL] {
            data.extend_from_slice(&n.to_be_bytes());
        }
        data
    }
}
