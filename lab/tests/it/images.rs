//! Foreign images: a good one boots, bad ones are refused with a reason.

use photon_lab::cloud::{BOOT, Cloud, wait};
use std::{path::Path, process::Command};

/// A boot sector that writes a line to the first serial port and halts.
fn boot_sector(line: &str) -> Vec<u8> {
    // xor ax,ax; mov ds,ax; mov si,0x7c15; l: lodsb; or al,al; jz h; mov dx,0x3f8; out dx,al; jmp l; h: hlt; jmp h
    let code = [
        0x31, 0xc0, 0x8e, 0xd8, 0xbe, 0x15, 0x7c, 0xac, 0x08, 0xc0, 0x74, 0x06, 0xba, 0xf8, 0x03, 0xee, 0xeb,
        0xf5, 0xf4, 0xeb, 0xfd,
    ];
    let mut sector = code.to_vec();
    sector.extend_from_slice(line.as_bytes());
    sector.push(0);
    sector.resize(510, 0);
    sector.extend_from_slice(&[0x55, 0xaa]);
    sector
}

fn qemu_img(args: &[&str]) {
    let out = Command::new("qemu-img").args(args).output().expect("qemu-img; run ./dev setup");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

fn text(p: &Path) -> &str {
    p.to_str().expect("UTF-8")
}

#[test]
fn images_that_are_good_boot_and_others_say_why_not() {
    let cloud = Cloud::new("user");
    cloud.up();
    cloud.ok(&["project", "create", "p"]);
    let dir = cloud.dir.path();
    let (raw, qcow2) = (dir.join("boot.raw"), dir.join("boot.qcow2"));
    let mut disk = boot_sector("hello from the boot sector\r\n");
    disk.resize(4 << 20, 0);
    std::fs::write(&raw, &disk).expect("write");
    qemu_img(&["convert", "-f", "raw", "-O", "qcow2", text(&raw), text(&qcow2)]);
    for (name, file) in [("from-raw", &raw), ("from-qcow2", &qcow2)] {
        cloud.ok(&["image", "import", text(file), "--name", name, "--wait"]);
        cloud.ok(&[
            "vm",
            "create",
            name,
            "--project",
            "p",
            "--image",
            name,
            "--memory",
            "32MiB",
            "--disk",
            "8MiB",
            "--wait",
        ]);
        wait("the boot sector's line", BOOT, || {
            cloud.ok(&["vm", "console", name, "--project", "p"]).contains("hello from the boot sector")
        });
    }
    let e = cloud.run(&["image", "delete", "from-raw"]);
    assert_eq!(e.code, 4, "an image in use was deleted: {}{}", e.out, e.err);
    for name in ["from-raw", "from-qcow2"] {
        cloud.ok(&["vm", "delete", name, "--project", "p", "--wait"]);
        cloud.ok(&["image", "delete", name, "--wait"]);
    }

    let (backed, cut, other) = (dir.join("backed.qcow2"), dir.join("cut.qcow2"), dir.join("other.vmdk"));
    qemu_img(&["create", "-q", "-f", "qcow2", "-b", "/etc/passwd", "-F", "raw", text(&backed), "1M"]);
    std::fs::write(&cut, &std::fs::read(&qcow2).expect("read")[..100]).expect("write");
    qemu_img(&["create", "-q", "-f", "vmdk", text(&other), "1M"]);
    for (name, file, format) in [
        ("backed", &backed, "qcow2"),
        ("cut", &cut, "qcow2"),
        ("vmdk", &other, "raw"),
        ("lie", &raw, "qcow2"),
    ] {
        let r = cloud.run(&["image", "import", text(file), "--name", name, "--format", format]);
        assert_eq!(r.code, 2, "{name}: {}{}", r.out, r.err);
        assert!(r.err.contains("error[PH1001]"), "{name}: {}", r.err);
        let o = cloud.json(&["image", "get", name]);
        assert_eq!(o["status"]["phase"], "failed", "{name}");
        cloud.ok(&["image", "delete", name, "--wait"]);
    }
    let left: Vec<_> = std::fs::read_dir(dir.join("plasmavmc/images"))
        .expect("images")
        .flatten()
        .filter(|e| e.path().is_dir())
        .collect();
    assert_eq!(left.len(), 1, "only the built-in image remains: {left:?}");
}
