//! Images made by the real qemu-img, taken or refused, and a disk that a guest boots from.

use photon_base::{Bytes, Code};
use photon_rt::{fs, process::run, time::Duration};
use plasmavmc::engine::{
    Format,
    image::{Limits, import, root_disk},
};
use std::path::{Path, PathBuf};

struct Dir(PathBuf);

impl Dir {
    fn new() -> Dir {
        let d = std::env::temp_dir().join(format!("photon-images-{:x}", photon_rt::entropy::u64()));
        fs::private_dir(&d).expect("dir");
        Dir(d)
    }
    fn at(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

async fn img(args: &str) {
    let args: Vec<&str> = args.split_whitespace().collect();
    run("qemu-img", &args, None, Duration::from_secs(60)).await.expect("qemu-img");
}

async fn taken(from: &Path, format: Format, dest: &Path) -> photon_base::Result<Bytes> {
    import(from, format, dest, Limits::default()).await
}

#[tokio::test]
async fn what_qemu_img_makes_is_taken_with_its_content() {
    let d = Dir::new();
    // Content with holes: a pattern at 0, in the middle and at the end of 8 MiB.
    let mut content = vec![0u8; 8 << 20];
    for at in [0, 3 << 20, (8 << 20) - 4096] {
        content[at..at + 4096].fill(0x5a);
    }
    for (i, options) in [
        "-o compat=0.10",
        "-o compat=1.1",
        "-c",
        "-c -o compression_type=zstd",
        "-o cluster_size=512",
        "-o cluster_size=2M",
        "-o extended_l2=on,cluster_size=128k",
        "-o lazy_refcounts=on",
    ]
    .iter()
    .enumerate()
    {
        let (raw, up, dest) = (d.at("raw"), d.at(&format!("up{i}")), d.at(&format!("dest{i}")));
        fs::write_atomic(&raw, &content, 0o600).expect("raw");
        img(&format!("convert -f raw -O qcow2 {options} {} {}", raw.display(), up.display())).await;
        assert_eq!(taken(&up, Format::Qcow2, &dest).await, Ok(Bytes::mib(8)), "{options}");
        assert!(fs::read(&dest).expect("content") == content, "{options}");
        assert!(!up.exists());
        assert_eq!(taken(&up, Format::Qcow2, &dest).await, Ok(Bytes::mib(8)), "again after a crash");
        let held = std::os::unix::fs::MetadataExt::blocks(&fs::metadata(&dest).expect("stat")) * 512;
        assert!(held < 1 << 20, "holes stay holes: {held}");
    }
    let (raw, dest) = (d.at("raw"), d.at("raw-dest"));
    assert_eq!(taken(&raw, Format::Raw, &dest).await, Ok(Bytes::mib(8)));
    assert!(fs::read(&dest).expect("content") == content);

    // A disk on top: made once, of the wished size, never smaller than its base.
    let disk = d.at("root.qcow2");
    assert_eq!(root_disk(&dest, &disk, Some(Bytes::mib(4))).await.expect_err("smaller").code, Code::Invalid);
    root_disk(&dest, &disk, Some(Bytes::mib(64))).await.expect("made");
    let before = fs::read(&disk).expect("disk");
    root_disk(&dest, &disk, None).await.expect("there already");
    assert_eq!(fs::read(&disk).expect("disk"), before);
    let args = ["info", "--output=json", disk.to_str().expect("path")];
    let info = run("qemu-img", &args, None, Duration::from_secs(9)).await.expect("info");
    let info: serde_json::Value = serde_json::from_slice(&info).expect("JSON");
    assert_eq!(info["virtual-size"], 64 << 20);
    assert_eq!(info["backing-filename-format"], "raw");
}

#[tokio::test]
async fn what_would_surprise_is_refused_and_changes_nothing() {
    let d = Dir::new();
    fs::write_atomic(&d.at("base"), &[1; 65536], 0o600).expect("base");
    let (base, data) = (d.at("base"), d.at("data"));
    for (name, args) in [
        ("backing file", format!("create -q -f qcow2 -F raw -b {}", base.display())),
        ("encrypted", "create -q -f qcow2 --object secret,id=s,data=abc -o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10".into()),
        ("another file", format!("create -q -f qcow2 -o data_file={}", data.display())),
        ("a VMDK", "create -q -f vmdk".into()),
        ("a VDI", "create -q -f vdi".into()),
        ("a VHDX", "create -q -f vhdx".into()),
        ("a VHD", "create -q -f vpc".into()),
        ("a QED", "create -q -f qed".into()),
    ] {
        let up = d.at(&name.replace(' ', "-"));
        img(&format!("{args} {} 8M", up.display())).await;
        let held = fs::read(&up).expect("upload");
        for format in [Format::Qcow2, Format::Raw] {
            let e = taken(&up, format, &d.at("never")).await.expect_err(name);
            assert_eq!(e.code, Code::Invalid);
            let qcow2 = held.starts_with(b"QFI");
            assert!(e.what.contains(if qcow2 && format == Format::Raw { "qcow2" } else { name }), "{name}: {e}");
        }
        assert!(fs::read(&up).expect("upload") == held && !d.at("never").exists());
    }
    let snap = d.at("snap");
    img(&format!("create -q -f qcow2 {} 8M", snap.display())).await;
    img(&format!("snapshot -c one {}", snap.display())).await;
    assert!(
        taken(&snap, Format::Qcow2, &d.at("never")).await.expect_err("snapshot").what.contains("snapshots")
    );
    let e = taken(&d.at("absent"), Format::Raw, &d.at("never")).await.expect_err("nothing there");
    assert_eq!(e.code, Code::Internal);
}
