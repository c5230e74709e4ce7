//! What the tests share: the guest image, a hypervisor in a folder of its own, waiting for conditions.

use photon_base::{Bytes, Uid};
use photon_rt::{
    task::Tasks,
    time::{Duration, sleep, timeout},
};
use plasmavmc::engine::{Accel, Boot, Console, Hypervisor, Launch, Nic, NicBackend, Observed, Running};
use std::{
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

/// The limit of one wait; a boot takes 3–4 s alone and more beside others.
pub const LONG: Duration = Duration::from_secs(90);

/// The guest image; its absence is a failure, never a skipped test.
pub fn guest() -> PathBuf {
    let dir = std::env::var("PHOTON_GUEST_DIR")
        .map_or_else(|_| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/guest"), PathBuf::from);
    let dir = dir.canonicalize().unwrap_or(dir);
    assert!(dir.join("manifest.json").exists(), "no guest image in {}: run ./dev guest {0}", dir.display());
    dir
}

/// A launch of the tiny guest with user networking.
pub fn tiny(vm: Uid, epoch: u64) -> Launch {
    let dir = guest();
    let manifest: serde_json::Value = serde_json::from_str(
        &photon_rt::fs::read_text(&dir.join("manifest.json"), 1 << 16).expect("manifest"),
    )
    .expect("manifest");
    Launch {
        vm,
        id: vm.derive(&format!("incarnation-{epoch}")),
        epoch,
        name: "a.demo".into(),
        cpus: 1,
        memory: Bytes::mib(96),
        boot: Boot::Kernel {
            vmlinux: dir.join("vmlinux"),
            initrd: dir.join("initrd"),
            cmdline: manifest["cmdline"].as_str().expect("cmdline").into(),
        },
        disks: vec![],
        nics: vec![Nic {
            mac: [0x52, 0x54, 0, 0, 0, 1],
            mtu: 1500,
            backend: NicBackend::User {
                address: Ipv4Addr::new(10, 20, 0, 5),
                prefix: 24,
                gateway: Ipv4Addr::new(10, 20, 0, 1),
                dns: Ipv4Addr::new(10, 20, 0, 2),
                hostname: "a".into(),
                domain: "demo.photon.internal".into(),
                isolated: true,
            },
        }],
        accel: Accel::Tcg,
    }
}

/// A folder that goes away, with every QEMU in it.
pub struct Host {
    pub dir: PathBuf,
    pub tasks: Tasks,
    pub hv: Option<Hypervisor>,
}

impl Host {
    pub async fn new() -> Host {
        let dir = std::env::temp_dir().join(format!("phvm-{:x}", photon_rt::entropy::u64()));
        let mut host = Host { dir, tasks: Tasks::new(), hv: None };
        host.open().await;
        host
    }

    async fn open(&mut self) {
        self.tasks = Tasks::new();
        self.hv = Some(Hypervisor::new(&self.dir, self.tasks.clone()).await.expect("hypervisor"));
    }

    pub fn hv(&self) -> Hypervisor {
        self.hv.clone().expect("open")
    }

    /// As if photon had been killed and started again: nothing is told to the QEMUs.
    pub async fn restart(&mut self) {
        self.close().await;
        self.open().await;
    }

    pub async fn close(&mut self) {
        self.hv = None;
        self.tasks.shutdown().await;
    }

    pub async fn finish(mut self) {
        for one in self.hv().list().await.expect("list") {
            self.hv().remove(one.id).await.expect("remove");
        }
        assert!(self.hv().list().await.expect("list").is_empty());
        self.close().await;
        photon_rt::fs::remove_dir_all(&self.dir).expect("clean");
    }
}

impl Drop for Host {
    /// A failed test leaves no QEMU behind.
    fn drop(&mut self) {
        let marker = self.dir.display().to_string();
        for entry in photon_rt::fs::read_dir("/proc").expect("proc").flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<i32>().ok()) else { continue };
            let line = photon_rt::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            if String::from_utf8_lossy(&line).contains(&marker) {
                let pid = rustix::process::Pid::from_raw(pid).expect("a pid");
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
    }
}

pub fn running(o: &Observed) -> Running {
    match o {
        Observed::Running(r) => r.clone(),
        other => panic!("not running: {other:?}"),
    }
}

/// Reads the console until `text` was seen `times` times.
pub async fn see(console: &Console, text: &str, times: usize) -> String {
    let mut viewer = console.view(usize::MAX);
    let mut seen = String::new();
    let look = async {
        while seen.matches(text).count() < times {
            let piece = viewer.next().await.expect("the console goes on");
            seen += &String::from_utf8_lossy(&piece.data);
        }
    };
    let done = timeout(LONG, text, look).await;
    assert!(done.is_ok(), "{text:?} was not seen {times} times in: {seen}");
    seen
}

/// Waits until the incarnation is as wished.
pub async fn until(hv: &Hypervisor, id: Uid, what: &str, wish: impl Fn(&Observed) -> bool) -> Observed {
    let wait = async {
        loop {
            let o = hv.observe(id);
            if wish(&o) {
                return o;
            }
            sleep(Duration::from_millis(5)).await;
        }
    };
    match timeout(LONG, what, wait).await {
        Ok(o) => o,
        Err(e) => panic!("{e}: {:?}", hv.observe(id)),
    }
}
