//! Whether KVM can be used, found out by using it.
//!
//! A `/dev/kvm` that opens, tells API version 12 and makes a VM proves little: under nested or
//! paravirtual KVM all of that succeeds and an ordinary guest then never runs. So the probe starts the
//! real QEMU with a guest of a few instructions through PVH, as our VMs start, and expects its word.

use super::launch::Accel;
use photon_base::Result;
use std::{path::Path, time::Duration};

/// How long the probe's guest may take. With working KVM it takes about 0.2 s.
const LIMIT: Duration = Duration::from_secs(3);
/// QEMU's exit status when the guest wrote 0x2a to the debug-exit port: `(value << 1) | 1`.
const WORD: i32 = (0x2a << 1) | 1;

/// The probe's kernel: a 32-bit ELF file with a PVH entry (Xen note 18, PHYS32_ENTRY) whose code
/// writes 0x2a to port 0xf4 and halts.
fn kernel() -> Vec<u8> {
    const LOAD: u32 = 0x10_0000;
    const HEADERS: u32 = 52 + 2 * 32;
    // mov $0x2a,%al; mov $0xf4,%edx; out %al,(%dx); 1: hlt; jmp 1b
    let code = [0xb0, 0x2a, 0xba, 0xf4, 0, 0, 0, 0xee, 0xf4, 0xeb, 0xfd, 0x90];
    let note_at = HEADERS + code.len() as u32;
    let mut note: Vec<u8> = [4u32, 4, 18].iter().flat_map(|v| v.to_le_bytes()).collect();
    note.extend_from_slice(b"Xen\0");
    note.extend_from_slice(&(LOAD + HEADERS).to_le_bytes());
    let total = note_at + note.len() as u32;
    let mut f = vec![0x7f, b'E', b'L', b'F', 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    for v in [2u16, 3] {
        f.extend_from_slice(&v.to_le_bytes()); // executable, i386
    }
    for v in [1, LOAD + HEADERS, 52, 0, 0] {
        f.extend_from_slice(&v.to_le_bytes()); // version, entry, program headers, no sections, flags
    }
    for v in [52u16, 32, 2, 0, 0, 0] {
        f.extend_from_slice(&v.to_le_bytes());
    }
    for v in [1, 0, LOAD, LOAD, total, total, 7, 0x1000] {
        f.extend_from_slice(&v.to_le_bytes()); // PT_LOAD: the whole file
    }
    let len = note.len() as u32;
    for v in [4, note_at, LOAD + note_at, LOAD + note_at, len, len, 4, 4] {
        f.extend_from_slice(&v.to_le_bytes()); // PT_NOTE
    }
    f.extend_from_slice(&code);
    f.extend_from_slice(&note);
    f
}

/// True when the probe's guest says its word under `accel` within [`LIMIT`]. `scratch` is a folder for
/// the probe's kernel.
pub async fn works(qemu: &str, accel: Accel, scratch: &Path) -> Result<bool> {
    let file = scratch.join("probe-kernel");
    photon_rt::fs::write_atomic(&file, &kernel(), 0o600)?;
    let name = match accel {
        Accel::Kvm => "q35,accel=kvm",
        Accel::Tcg => "q35,accel=tcg",
    };
    let file = file.display().to_string();
    let args = [
        "-machine",
        name,
        "-m",
        "16M",
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-no-reboot",
        "-device",
        "isa-debug-exit,iobase=0xf4,iosize=1",
        "-kernel",
        &file,
    ];
    // A success of QEMU would be status 0; the guest's word arrives as a failure with its own status.
    Ok(match photon_rt::process::run(qemu, &args, None, LIMIT).await {
        Ok(_) => false,
        Err(e) => e.why.starts_with(&format!("exit status: {WORD}:")),
    })
}

/// The accelerator to use on this host.
pub async fn choose(qemu: &str, scratch: &Path) -> Accel {
    let open = photon_rt::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm");
    // Without hardware virtualisation (Intel vmx, AMD svm) a KVM device is a paravirtual one, which
    // only runs kernels made for it; asking first saves the probe's time limit.
    let cpu = photon_rt::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let hardware = cpu
        .lines()
        .find(|l| l.starts_with("flags"))
        .is_some_and(|l| l.split_whitespace().any(|flag| flag == "vmx" || flag == "svm"));
    if open.is_err() || !hardware {
        tracing::info!(kvm_device = open.is_ok(), hardware, "VMs run under TCG");
        return Accel::Tcg;
    }
    match works(qemu, Accel::Kvm, scratch).await {
        Ok(true) => Accel::Kvm,
        Ok(false) => {
            tracing::warn!("KVM is there and does not run a guest: VMs run under TCG");
            Accel::Tcg
        }
        Err(error) => {
            tracing::warn!(%error, "KVM could not be probed: VMs run under TCG");
            Accel::Tcg
        }
    }
}
