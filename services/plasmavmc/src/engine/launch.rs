//! What one QEMU process shall be: plain values, checked before anything is done with them.

use photon_base::{Bytes, Error, Result, Uid};
use serde::{Deserialize, Serialize};
use std::{
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

/// Most NICs of one VM. Each NIC and each disk takes a root port.
pub const NICS_MAX: usize = 8;
/// Most disks of one VM.
pub const DISKS_MAX: usize = 8;

/// One incarnation of a VM: one run on one host. The VM is what its owner keeps; an incarnation is
/// never changed and, once it has ended, never started again (a new one has a greater epoch).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launch {
    /// The VM, the same in all its incarnations; also the guest's SMBIOS UUID.
    pub vm: Uid,
    /// This incarnation.
    pub id: Uid,
    /// Greater than that of every incarnation before.
    pub epoch: u64,
    /// Shown in process lists; carries no authority.
    pub name: String,
    /// Virtual CPUs, 1–255.
    pub cpus: u16,
    /// Guest memory, whole mebibytes.
    pub memory: Bytes,
    /// Where the guest starts from.
    pub boot: Boot,
    /// Disks, in the order in which the guest sees them. With [`Boot::Disk`] the first is booted.
    pub disks: Vec<Disk>,
    /// Network cards, in the order in which the guest sees them.
    pub nics: Vec<Nic>,
    /// Who executes the guest's instructions.
    pub accel: Accel,
}

/// Where a guest starts from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Boot {
    /// A kernel given by the host; an uncompressed ELF kernel starts through PVH, without firmware.
    Kernel {
        /// Kernel file.
        vmlinux: PathBuf,
        /// Initial file system.
        initrd: PathBuf,
        /// Kernel command line. Visible to every user of the host: no secrets.
        cmdline: String,
    },
    /// SeaBIOS starts the first disk.
    Disk,
}

/// A disk of the guest (virtio-blk).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// Image file on this host.
    pub path: PathBuf,
    /// Its format. Never probed: probing would let a guest choose it (CVE-2004-2154 and kin).
    pub format: Format,
    /// True for a disk that the guest may not write.
    pub read_only: bool,
}

/// Format of a disk's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// The bytes themselves.
    Raw,
    /// QEMU's copy-on-write format, made by us (foreign qcow2 is converted at import).
    Qcow2,
}

/// A network card of the guest (virtio-net) and what it is connected to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nic {
    /// Hardware address.
    pub mac: [u8; 6],
    /// Largest packet, told to the guest when not 1500.
    pub mtu: u16,
    /// The host's side.
    pub backend: NicBackend,
}

/// The host's side of a network card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NicBackend {
    /// A TAP device that PrismNET made in a network namespace. QEMU itself runs in the host's
    /// namespace and gets only the open descriptor.
    Tap {
        /// Device name.
        ifname: String,
        /// Namespace, as `/run/netns/NAME`.
        netns: PathBuf,
    },
    /// QEMU's user-mode network: needs no privileges, every VM is alone in it.
    User {
        /// The guest's address.
        address: Ipv4Addr,
        /// Length of the network's prefix.
        prefix: u8,
        /// The network's gateway (QEMU answers there).
        gateway: Ipv4Addr,
        /// Resolver told to the guest; QEMU forwards it to the host's own.
        dns: Ipv4Addr,
        /// Name told to the guest.
        hostname: String,
        /// Search domain told to the guest.
        domain: String,
        /// True: the guest reaches nothing at all. False: it reaches what the host's user reaches,
        /// **the host's loopback services included** (QEMU has no switch for just these).
        isolated: bool,
    },
}

/// Who executes the guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Accel {
    /// The processor.
    Kvm,
    /// QEMU's translator: everywhere, ten times slower.
    Tcg,
}

fn plain(field: &str, text: &str, max: usize) -> Result<()> {
    if text.len() > max || text.bytes().any(|b| b < b' ' || b == 0x7f) {
        return Err(Error::invalid(
            field,
            format!("not a line of at most {max} bytes without control characters"),
        ));
    }
    Ok(())
}

fn absolute(field: &str, path: &Path) -> Result<()> {
    match path.to_str() {
        Some(text) if path.is_absolute() => plain(field, text, 1024),
        _ => Err(Error::invalid(field, "not an absolute path in UTF-8")),
    }
}

impl Launch {
    /// Refuses what QEMU could not run or what could mean something else on its command line.
    pub fn check(&self) -> Result<()> {
        plain("name", &self.name, 253)?;
        if self.name.is_empty() {
            return Err(Error::invalid("name", "empty"));
        }
        if !(1..=255).contains(&self.cpus) {
            return Err(Error::invalid("cpus", format!("{} is not within 1–255", self.cpus)));
        }
        let mib = self.memory.0 >> 20;
        if self.memory.0 & 0xf_ffff != 0 || !(16..=4 << 20).contains(&mib) {
            return Err(Error::invalid("memory", "not whole mebibytes within 16MiB–4TiB"));
        }
        match &self.boot {
            Boot::Kernel { vmlinux, initrd, cmdline } => {
                absolute("boot.vmlinux", vmlinux)?;
                absolute("boot.initrd", initrd)?;
                plain("boot.cmdline", cmdline, 2000)?;
            }
            Boot::Disk if self.disks.is_empty() => {
                return Err(Error::invalid("disks", "there is none to boot from"));
            }
            Boot::Disk => {}
        }
        if self.disks.len() > DISKS_MAX {
            return Err(Error::invalid("disks", format!("more than {DISKS_MAX}")));
        }
        for (i, d) in self.disks.iter().enumerate() {
            absolute(&format!("disks[{i}].path"), &d.path)?;
        }
        if self.nics.len() > NICS_MAX {
            return Err(Error::invalid("nics", format!("more than {NICS_MAX}")));
        }
        self.nics
            .iter()
            .enumerate()
            .try_for_each(|(i, n)| n.check().map_err(|e| e.within(&format!("nics[{i}]"))))
    }
}

impl Nic {
    fn check(&self) -> Result<()> {
        if self.mac[0] & 1 != 0 || self.mac == [0; 6] {
            return Err(Error::invalid("mac", "not the address of one card"));
        }
        if !(576..=9216).contains(&self.mtu) {
            return Err(Error::invalid("mtu", format!("{} is not within 576–9216", self.mtu)));
        }
        match &self.backend {
            NicBackend::Tap { ifname, netns } => {
                absolute("netns", netns)?;
                // IFNAMSIZ is 16 with the NUL.
                let ok = (1..=15).contains(&ifname.len())
                    && ifname.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
                if ok { Ok(()) } else { Err(Error::invalid("ifname", "not the name of a device")) }
            }
            NicBackend::User { address, prefix, gateway, dns, hostname, domain, .. } => {
                plain("hostname", hostname, 63)?;
                plain("domain", domain, 253)?;
                if !(8..=29).contains(prefix) {
                    return Err(Error::invalid("prefix", format!("{prefix} is not within 8–29")));
                }
                let net = |a: &Ipv4Addr| a.to_bits() >> (32 - prefix);
                if [gateway, dns].into_iter().any(|a| net(a) != net(address) || a == address)
                    || gateway == dns
                {
                    return Err(Error::invalid(
                        "address",
                        "address, gateway and dns are not three addresses of one network",
                    ));
                }
                Ok(())
            }
        }
    }
}
