//! A guest made of a TAP descriptor: raw Ethernet frames in and out.

#![allow(unsafe_code)]

use std::{
    fs::File,
    io::{Read, Write},
    net::Ipv4Addr,
    os::fd::AsRawFd,
    path::Path,
    time::Duration,
};

pub struct Guest {
    tap: File,
    pub mac: [u8; 6],
    pub ip: Ipv4Addr,
}

pub const ARP: u16 = 0x0806;
pub const IPV4: u16 = 0x0800;
pub const BROADCAST: [u8; 6] = [0xff; 6];

fn sum16(parts: &[&[u8]]) -> u16 {
    let bytes: Vec<u8> = parts.concat();
    let mut s: u32 = bytes.chunks(2).map(|c| u32::from(c[0]) << 8 | u32::from(*c.get(1).unwrap_or(&0))).sum();
    while s > 0xffff {
        s = (s & 0xffff) + (s >> 16);
    }
    !(s as u16)
}

pub fn ipv4(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut h = vec![0x45, 0, 0, 0, 0, 1, 0, 0, 64, protocol, 0, 0];
    h[2..4].copy_from_slice(&(20 + payload.len() as u16).to_be_bytes());
    h.extend_from_slice(&from.octets());
    h.extend_from_slice(&to.octets());
    let sum = sum16(&[&h]);
    h[10..12].copy_from_slice(&sum.to_be_bytes());
    [&h, payload].concat()
}

/// A UDP datagram without checksum (allowed over IPv4).
pub fn udp(from: u16, to: u16, data: &[u8]) -> Vec<u8> {
    let len = 8 + data.len() as u16;
    [&from.to_be_bytes(), &to.to_be_bytes(), &len.to_be_bytes(), &[0, 0], data].concat()
}

pub fn echo_request(data: &[u8]) -> Vec<u8> {
    let mut p = [&[8, 0, 0, 0, 0, 7, 0, 1][..], data].concat();
    let sum = sum16(&[&p]);
    p[2..4].copy_from_slice(&sum.to_be_bytes());
    p
}

pub fn arp(op: u8, mac: [u8; 6], ip: Ipv4Addr, target_mac: [u8; 6], target: Ipv4Addr) -> Vec<u8> {
    [&[0, 1, 8, 0, 6, 4, 0, op][..], &mac, &ip.octets(), &target_mac, &target.octets()].concat()
}

impl Guest {
    pub fn open(netns: &Path, tap: &str, mac: [u8; 6], ip: Ipv4Addr) -> Guest {
        let name = tap.to_string();
        let file = photon_rt::net::in_netns(netns, move || {
            let tun = photon_rt::fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
            // SAFETY: ifreq is plain data; TUNSETIFF reads and writes one that lives until it returns.
            let rc = unsafe {
                let mut request: libc::ifreq = std::mem::zeroed();
                for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
                    *to = from as libc::c_char;
                }
                request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
                libc::ioctl(tun.as_raw_fd(), 0x4004_54ca, &mut request)
            };
            if rc != 0 {
                return Err(std::io::Error::last_os_error());
            }
            rustix::io::ioctl_fionbio(&tun, true)?;
            Ok(tun)
        });
        Guest { tap: file.expect("TAP"), mac, ip }
    }

    pub fn send(&mut self, to: [u8; 6], kind: u16, payload: &[u8]) {
        let from = self.mac;
        self.send_as(from, to, kind, payload);
    }

    pub fn send_as(&mut self, from: [u8; 6], to: [u8; 6], kind: u16, payload: &[u8]) {
        let mut frame = [&to[..], &from, &kind.to_be_bytes(), payload].concat();
        frame.resize(frame.len().max(60), 0);
        self.tap.write_all(&frame).expect("sent");
    }

    /// Reads frames until `wanted` finds one, for at most 5 s; returns those before it too.
    pub fn until(&mut self, what: &str, wanted: impl FnMut(&[u8]) -> bool) -> Vec<Vec<u8>> {
        match self.within(Duration::from_secs(10), wanted) {
            Ok(seen) => seen,
            Err(seen) => panic!("{what} did not come; seen: {seen:02x?}"),
        }
    }

    /// Reads frames until `wanted` finds one; Err when it does not within `limit`. All that was seen.
    fn within(
        &mut self,
        limit: Duration,
        mut wanted: impl FnMut(&[u8]) -> bool,
    ) -> Result<Vec<Vec<u8>>, Vec<Vec<u8>>> {
        let mut seen = Vec::new();
        let deadline = photon_rt::time::now() + limit;
        loop {
            let mut frame = [0; 4096];
            match self.tap.read(&mut frame) {
                Ok(n) => {
                    seen.push(frame[..n].to_vec());
                    if wanted(&frame[..n]) {
                        return Ok(seen);
                    }
                }
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {
                    let left = deadline.saturating_duration_since(photon_rt::time::now());
                    if left.is_zero() {
                        return Err(seen);
                    }
                    let mut fds = [rustix::event::PollFd::new(&self.tap, rustix::event::PollFlags::IN)];
                    let limit = rustix::event::Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
                    rustix::event::poll(&mut fds, Some(&limit)).expect("poll");
                }
                Err(e) => panic!("{e}"),
            }
        }
    }

    /// The hardware address of `target`, by ARP. Asks again as guests do: the bridge forwards only after
    /// the kernel has noticed the carrier that opening the TAP gave, up to a second later.
    pub fn resolve(&mut self, target: Ipv4Addr) -> [u8; 6] {
        let ask = arp(1, self.mac, self.ip, [0; 6], target);
        for _ in 0..100 {
            self.send(BROADCAST, ARP, &ask);
            if let Ok(seen) = self.within(Duration::from_millis(100), |f| is_arp_reply(f, target)) {
                return seen.last().expect("the answer")[22..28].try_into().expect("six bytes");
            }
        }
        panic!("{target} did not answer ARP");
    }
}

pub fn is_arp_reply(frame: &[u8], from: Ipv4Addr) -> bool {
    frame.len() >= 42
        && frame[12..14] == ARP.to_be_bytes()
        && frame[21] == 2
        && frame[28..32] == from.octets()
}

/// True when the frame's payload holds `word`.
pub fn has(frame: &[u8], word: &[u8]) -> bool {
    frame.windows(word.len()).any(|w| w == word)
}
