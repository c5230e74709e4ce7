//! From a [`Launch`] to QEMU's arguments: a pure function with golden tests.
//!
//! Invariants: no secret and no probing of formats; every device that can be hot-plugged sits on a
//! `pcie-root-port` of its own made at start (q35's root bus refuses hot-plug); values are escaped, so
//! that a comma in a path cannot become an option.

use super::launch::{Accel, Boot, Format, Launch, NicBackend};
use std::{net::Ipv4Addr, os::fd::RawFd, path::Path};

/// Root ports made at start: NICs take the first, disks the next. None is spare while nothing is plugged into
/// a running guest: eight cost a guest under TCG a third of a second of its boot. Ports for hot-plug will
/// come behind these, so that no device moves.
fn root_ports(launch: &Launch) -> usize {
    launch.nics.len() + launch.disks.len()
}

/// Files of one incarnation, inside its folder.
pub mod file {
    /// QMP socket.
    pub const QMP: &str = "qmp";
    /// Serial console's socket.
    pub const SERIAL: &str = "serial";
    /// Guest agent's socket.
    pub const AGENT: &str = "agent";
    /// Process id, written and locked by QEMU: two QEMUs of one incarnation cannot both run.
    pub const PID: &str = "pid";
}

/// A value inside an option list: QEMU reads `,,` as one comma.
fn value(text: impl std::fmt::Display) -> String {
    text.to_string().replace(',', ",,")
}

fn hex_mac(mac: [u8; 6]) -> String {
    mac.map(|b| format!("{b:02x}")).join(":")
}

/// A UUID's usual text.
fn uuid(id: photon_base::Uid) -> String {
    let h = id.to_string();
    [&h[..8], &h[8..12], &h[12..16], &h[16..20], &h[20..]].join("-")
}

/// The argument that every QEMU of ours carries right before its pid file, and by which it is found
/// in `/proc` when its records are gone.
pub const MARKER: &str = "-pidfile";

/// The arguments for `launch` with its files in `dir` (absolute) and the descriptors of its TAP
/// devices, in the order of its TAP NICs.
pub fn args(launch: &Launch, dir: &Path, taps: &[RawFd]) -> Vec<String> {
    let mut a: Vec<String> = Vec::with_capacity(96);
    let mut add = |words: &[&str]| a.extend(words.iter().map(|w| (*w).to_string()));
    let path = |name: &str| dir.join(name).display().to_string();
    add(&[MARKER, &path(file::PID)]);
    add(&["-name", &format!("guest={},debug-threads=on", value(&launch.name)), "-uuid", &uuid(launch.vm)]);
    let accel = match launch.accel {
        Accel::Kvm => "kvm",
        Accel::Tcg => "tcg",
    };
    // graphics=off sends the firmware's words to the serial line: of use only where firmware boots.
    let graphics = if launch.boot == Boot::Disk { ",graphics=off" } else { "" };
    add(&["-machine", &format!("q35,accel={accel},usb=off,vmport=off,dump-guest-core=off{graphics}")]);
    if launch.accel == Accel::Kvm {
        // Under TCG the default model boots the fastest (measured); with KVM the guest gets what is there.
        add(&["-cpu", "host"]);
    }
    add(&["-smp", &launch.cpus.to_string(), "-m", &format!("{}M", launch.memory.0 >> 20)]);
    add(&["-nodefaults", "-no-user-config", "-display", "none", "-msg", "timestamp=on", "-rtc", "base=utc"]);
    // Seccomp: no new processes, no change of identity, no change of scheduling.
    add(&["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]);
    // A guest that powers off leaves a paused QEMU, whose state says so however late it is asked: a
    // QEMU that is gone without a record has crashed. A guest that reboots stays the same incarnation.
    add(&["-action", "shutdown=pause,reboot=reset"]);
    // The guest begins when its console is heard (`Vm::session`): its first words are not lost.
    add(&["-S"]);
    add(&["-chardev", &format!("socket,id=qmp,path={},server=on,wait=off", value(path(file::QMP)))]);
    add(&["-mon", "chardev=qmp,mode=control"]);
    add(&["-chardev", &format!("socket,id=serial,path={},server=on,wait=off", value(path(file::SERIAL)))]);
    add(&["-serial", "chardev:serial"]);
    for i in 0..root_ports(launch) {
        // Eight functions a slot; the first of each announces the others.
        let many = if i % 8 == 0 { ",multifunction=on" } else { "" };
        let (slot, function, n) = (2 + i / 8, i % 8, i + 1);
        add(&[
            "-device",
            &format!(
                "pcie-root-port,id=rp{i},bus=pcie.0,chassis={n},slot={n},addr={slot:#x}.{function:#x}{many}"
            ),
        ]);
    }
    add(&["-device", "virtio-serial-pci,id=vserial,bus=pcie.0,addr=0x6,max_ports=4"]);
    add(&["-chardev", &format!("socket,id=agent,path={},server=on,wait=off", value(path(file::AGENT)))]);
    add(&["-device", "virtserialport,bus=vserial.0,chardev=agent,name=photon.agent.0"]);
    if launch.boot == Boot::Disk {
        // Our own kernel images have no driver for it.
        add(&["-device", "virtio-rng-pci,bus=pcie.0,addr=0x7"]);
    }
    boot_args(&launch.boot, &mut add);
    for (i, disk) in launch.disks.iter().enumerate() {
        let format = match disk.format {
            Format::Raw => "raw",
            Format::Qcow2 => "qcow2",
        };
        let read_only = if disk.read_only { "on" } else { "off" };
        let name = value(disk.path.display());
        add(&[
            "-blockdev",
            &format!(
                "driver={format},node-name=disk{i},read-only={read_only},discard=unmap,\
                 file.driver=file,file.filename={name}"
            ),
        ]);
        let boot = match launch.boot {
            Boot::Disk => format!(",bootindex={i}"),
            Boot::Kernel { .. } => String::new(),
        };
        add(&[
            "-device",
            &format!("virtio-blk-pci,id=vd{i},drive=disk{i},bus=rp{}{boot}", launch.nics.len() + i),
        ]);
    }
    let mut fds = taps.iter();
    for (i, nic) in launch.nics.iter().enumerate() {
        match &nic.backend {
            NicBackend::Tap { .. } => {
                let fd = fds.next().copied().unwrap_or(-1);
                add(&["-netdev", &format!("tap,id=net{i},fd={fd}")]);
            }
            NicBackend::User { address, prefix, gateway, dns, hostname, domain, isolated } => {
                let net = Ipv4Addr::from_bits(address.to_bits() & (u32::MAX << (32 - prefix)));
                let restrict = if *isolated { "on" } else { "off" };
                let mut options = format!(
                    "user,id=net{i},ipv6=off,restrict={restrict},net={net}/{prefix},host={gateway},dns={dns},\
                     dhcpstart={address},hostname={}",
                    value(hostname)
                );
                if !domain.is_empty() {
                    options += &format!(",dnssearch={},domainname={}", value(domain), value(domain));
                }
                add(&["-netdev", &options]);
            }
        }
        let mtu = if nic.mtu == 1500 { String::new() } else { format!(",host_mtu={}", nic.mtu) };
        // No option ROM: a guest boots from the network only where that is asked for.
        let mac = hex_mac(nic.mac);
        add(&[
            "-device",
            &format!("virtio-net-pci,id=nic{i},netdev=net{i},mac={mac},bus=rp{i},romfile={mtu}"),
        ]);
    }
    a
}

fn boot_args(boot: &Boot, add: &mut impl FnMut(&[&str])) {
    match boot {
        Boot::Kernel { vmlinux, initrd, cmdline } => {
            add(&["-kernel", &vmlinux.display().to_string(), "-initrd", &initrd.display().to_string()]);
            add(&["-append", cmdline]);
        }
        Boot::Disk => add(&["-boot", "strict=on"]),
    }
}

#[cfg(test)]
mod tests {
    use super::super::launch::{Disk, Nic};
    use super::*;
    use photon_base::{Bytes, Uid};

    fn sample() -> Launch {
        Launch {
            vm: Uid(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef),
            id: Uid(2),
            epoch: 1,
            name: "a.demo".into(),
            cpus: 2,
            memory: Bytes::mib(128),
            boot: Boot::Kernel {
                vmlinux: "/img/vmlinux".into(),
                initrd: "/img/initrd".into(),
                cmdline: "console=ttyS0 quiet".into(),
            },
            disks: vec![],
            nics: vec![Nic {
                mac: [0x52, 0x54, 0, 1, 2, 3],
                mtu: 1400,
                backend: NicBackend::Tap { ifname: "tap0".into(), netns: "/run/netns/x".into() },
            }],
            accel: Accel::Tcg,
        }
    }

    /// The arguments, one option a line; root ports only counted.
    fn golden(launch: &Launch) -> String {
        let mut out = String::new();
        for word in args(launch, Path::new("/run/p,q/2"), &[9]) {
            out += if word.starts_with('-') && !out.is_empty() { "\n" } else { " " };
            out += &word;
        }
        let ports = out.lines().filter(|l| l.contains("pcie-root-port")).count();
        assert_eq!(ports, launch.nics.len() + launch.disks.len());
        out.lines().filter(|l| !l.contains("pcie-root-port")).map(|l| format!("{}\n", l.trim())).collect()
    }

    #[test]
    fn a_kernel_with_a_tap() {
        assert_eq!(
            golden(&sample()),
            "\
-pidfile /run/p,q/2/pid
-name guest=a.demo,debug-threads=on
-uuid 01234567-89ab-cdef-0123-456789abcdef
-machine q35,accel=tcg,usb=off,vmport=off,dump-guest-core=off
-smp 2
-m 128M
-nodefaults
-no-user-config
-display none
-msg timestamp=on
-rtc base=utc
-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny
-action shutdown=pause,reboot=reset
-S
-chardev socket,id=qmp,path=/run/p,,q/2/qmp,server=on,wait=off
-mon chardev=qmp,mode=control
-chardev socket,id=serial,path=/run/p,,q/2/serial,server=on,wait=off
-serial chardev:serial
-device virtio-serial-pci,id=vserial,bus=pcie.0,addr=0x6,max_ports=4
-chardev socket,id=agent,path=/run/p,,q/2/agent,server=on,wait=off
-device virtserialport,bus=vserial.0,chardev=agent,name=photon.agent.0
-kernel /img/vmlinux
-initrd /img/initrd
-append console=ttyS0 quiet
-netdev tap,id=net0,fd=9
-device virtio-net-pci,id=nic0,netdev=net0,mac=52:54:00:01:02:03,bus=rp0,romfile=,host_mtu=1400
"
        );
    }

    #[test]
    fn a_disk_with_user_networking_and_kvm() {
        let mut l = sample();
        l.accel = Accel::Kvm;
        l.boot = Boot::Disk;
        l.disks = vec![Disk { path: "/d/a,b".into(), format: Format::Qcow2, read_only: false }];
        l.nics[0].mtu = 1500;
        l.nics[0].backend = NicBackend::User {
            address: Ipv4Addr::new(10, 20, 0, 5),
            prefix: 24,
            gateway: Ipv4Addr::new(10, 20, 0, 1),
            dns: Ipv4Addr::new(10, 20, 0, 2),
            hostname: "a".into(),
            domain: "demo.photon.internal".into(),
            isolated: true,
        };
        l.check().expect("sound");
        let text = golden(&l);
        let tail: Vec<&str> = text.lines().rev().take(5).collect();
        assert_eq!(
            tail,
            [
                "-device virtio-net-pci,id=nic0,netdev=net0,mac=52:54:00:01:02:03,bus=rp0,romfile=",
                "-netdev user,id=net0,ipv6=off,restrict=on,net=10.20.0.0/24,host=10.20.0.1,dns=10.20.0.2,\
                 dhcpstart=10.20.0.5,hostname=a,dnssearch=demo.photon.internal,domainname=demo.photon.internal",
                "-device virtio-blk-pci,id=vd0,drive=disk0,bus=rp1,bootindex=0",
                "-blockdev driver=qcow2,node-name=disk0,read-only=off,discard=unmap,\
                 file.driver=file,file.filename=/d/a,,b",
                "-boot strict=on",
            ]
        );
        assert!(text.contains("-cpu host\n"));
    }

    #[test]
    fn unsound_launches_name_the_field() {
        let field = |change: &dyn Fn(&mut Launch)| {
            let mut l = sample();
            change(&mut l);
            l.check().expect_err("refused").field.unwrap_or_default()
        };
        assert_eq!(field(&|l| l.cpus = 0), "cpus");
        assert_eq!(field(&|l| l.memory = Bytes(1)), "memory");
        assert_eq!(field(&|l| l.name = "a\nb".into()), "name");
        assert_eq!(field(&|l| l.boot = Boot::Disk), "disks");
        assert_eq!(field(&|l| l.nics[0].mac = [1; 6]), "nics[0].mac");
        assert_eq!(field(&|l| l.nics[0].mtu = 1), "nics[0].mtu");
        assert_eq!(
            field(&|l| {
                l.nics[0].backend = NicBackend::Tap { ifname: "a/b".into(), netns: "/run/netns/x".into() }
            }),
            "nics[0].ifname"
        );
    }
}
