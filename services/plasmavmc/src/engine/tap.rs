//! Opening a TAP device that lives in a network namespace, for a QEMU that runs in the host's.
//!
//! PrismNET makes the device (persistent, so that its bridge port and filter rules exist before QEMU
//! and outlive it); here it is only attached to. The descriptor moves freely between namespaces. When
//! photon dies, QEMU keeps the descriptor: at re-adoption there is nothing to do.

#![allow(unsafe_code)]

use photon_base::{Code, Error, Result};
use std::{
    fs::File,
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
};

/// Attaches to the existing TAP device `ifname` in the namespace `netns`, with virtio headers.
/// A device that is missing is an error: attaching would silently make one outside any bridge.
pub fn open(netns: &Path, ifname: &str) -> Result<OwnedFd> {
    let name = ifname.to_string();
    let made = photon_rt::net::in_netns(netns, move || {
        // The name is looked up in the namespace that this thread has entered.
        let probe =
            rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?;
        rustix::net::netdevice::name_to_index(&probe, &name)?;
        let tun = photon_rt::fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
        attach(&tun, &name)?;
        Ok(OwnedFd::from(tun))
    });
    made.map_err(|e| {
        let code = if e.kind() == std::io::ErrorKind::NotFound || e.raw_os_error() == Some(libc::ENODEV) {
            Code::NotFound
        } else {
            Code::Unavailable
        };
        Error::new(code, format!("TAP device {ifname} in {} cannot be opened", netns.display())).why(e)
    })
}

/// `_IOW('T', 202, int)` of linux/if_tun.h; libc does not name it.
const TUNSETIFF: libc::Ioctl = 0x4004_54ca;

fn attach(tun: &File, name: &str) -> std::io::Result<()> {
    if name.len() >= libc::IFNAMSIZ {
        return Err(std::io::Error::from(std::io::ErrorKind::InvalidInput));
    }
    // SAFETY: ifreq is plain data; all zeros is a value of it.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which lives until the call returns.
    let rc = unsafe { libc::ioctl(tun.as_raw_fd(), TUNSETIFF, &mut request) };
    if rc == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}
