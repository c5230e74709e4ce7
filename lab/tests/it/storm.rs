//! kill -9 of photon, again and again, while ten VMs are created and deleted: what was acknowledged holds,
//! and nothing is left over.

use photon_lab::{
    cloud::{Cloud, root, wait},
    host::{Traces, alone},
};
use std::{
    process::Command,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

/// What the cloud has said of one name.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Said {
    /// Its creation was acknowledged.
    Present,
    /// Its removal was acknowledged.
    Absent,
    /// The last answer never came: either is right.
    Unknown,
}

const VMS: usize = 10;

fn kills() -> u32 {
    // ./dev lab storm can be longer; the test command does what the promise says.
    std::env::var("PHOTON_STORM_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(200)
}

/// A small generator, so that a run can be repeated from its seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

/// One name, created and deleted without end; each command waits for its answer.
fn worker(cloud: &Cloud, name: &str, seed: u64, stop: &AtomicBool, said: &Mutex<Said>) {
    let mut dice = Dice(seed);
    while !stop.load(Ordering::SeqCst) {
        let now = *said.lock().expect("said");
        let create = match now {
            Said::Absent => true,
            Said::Present => false,
            Said::Unknown => dice.below(2) == 0,
        };
        let r = if create {
            cloud.run(&[
                "vm",
                "create",
                name,
                "--project",
                "p",
                "--image",
                "blank",
                "--network",
                "n",
                "--memory",
                "32MiB",
            ])
        } else {
            cloud.run(&["vm", "delete", name, "--project", "p"])
        };
        let mut said = said.lock().expect("said");
        *said = match (create, r.code) {
            (true, 0) => Said::Present,
            // Deletion is acknowledged; until the object is gone, creation is refused.
            (false, 0) => Said::Absent,
            (true, 4) | (false, 3) if now == Said::Unknown => {
                if create {
                    Said::Unknown
                } else {
                    Said::Absent
                }
            }
            // Still going, or not there yet: the state has not changed.
            (true, 4) => now,
            (false, 3) => panic!("{name} was acknowledged and is gone: {}", r.err),
            (_, 1 | 6 | 7) => Said::Unknown,
            (_, code) => panic!("{name}: exit {code}: {}{}", r.out, r.err),
        };
        drop(said);
        thread::sleep(Duration::from_millis(20 + dice.below(150)));
    }
}

/// Keys below a prefix, as the cluster's operator sees them.
fn keys(cloud: &Cloud, prefix: &str) -> Vec<String> {
    let creds = cloud.dir.path().join("creds");
    let out = Command::new("etcdctl")
        .env("ETCDCTL_API", "3")
        .args(["--endpoints", &format!("https://127.0.0.1:{}", cloud.port(2379))])
        .arg("--cacert")
        .arg(creds.join("ca.crt"))
        .arg("--cert")
        .arg(creds.join("operator.crt"))
        .arg("--key")
        .arg(creds.join("operator.key"))
        .args(["get", "--prefix", "--keys-only", prefix])
        .output()
        .expect("etcdctl; run ./dev setup");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).lines().filter(|l| !l.is_empty()).map(String::from).collect()
}

#[test]
fn storm_of_kills_loses_and_leaves_nothing() {
    assert!(rustix::process::geteuid().is_root(), "the storm needs root: networks of its own");
    let _alone = alone();
    let before = Traces::now();
    let cloud = Cloud::new("host");
    cloud.up();
    cloud.ok(&["project", "create", "p"]);
    cloud.ok(&["network", "create", "n", "--project", "p", "--cidr", "10.77.0.0/24", "--wait"]);
    let blank = cloud.dir.path().join("blank.raw");
    std::fs::write(&blank, vec![0u8; 1 << 20]).expect("blank image");
    cloud.ok(&["image", "import", &blank.to_string_lossy(), "--name", "blank", "--wait"]);

    let stop = AtomicBool::new(false);
    let seed = u64::from(std::process::id()) | 1;
    println!("seed {seed}, {} kills, checkout {}", kills(), root().display());
    let mut dice = Dice(seed);
    let said: Vec<Mutex<Said>> = (0..VMS).map(|_| Mutex::new(Said::Absent)).collect();
    thread::scope(|scope| {
        let workers: Vec<_> = said
            .iter()
            .enumerate()
            .map(|(i, s)| {
                let (cloud, stop) = (&cloud, &stop);
                scope.spawn(move || worker(cloud, &format!("v{i}"), seed + i as u64 * 7919, stop, s))
            })
            .collect();
        for n in 0..kills() {
            thread::sleep(Duration::from_millis(dice.below(400)));
            cloud.kill();
            cloud.up();
            if workers.iter().any(thread::ScopedJoinHandle::is_finished) {
                stop.store(true, Ordering::SeqCst);
                panic!("a worker ended after kill {n}: {}", cloud.log_tail());
            }
        }
        stop.store(true, Ordering::SeqCst);
    });

    // What was acknowledged holds, and comes to rest.
    let listed = |name: &str| {
        let list = cloud.json(&["vm", "list", "--project", "p"]);
        list["items"].as_array().expect("items").iter().find(|v| v["meta"]["name"] == name).cloned()
    };
    for (i, s) in said.iter().enumerate() {
        let name = format!("v{i}");
        match *s.lock().expect("said") {
            Said::Present => {
                assert!(listed(&name).is_some(), "{name} was acknowledged and is not there");
                wait(&format!("{name} to run"), Duration::from_secs(60), || {
                    listed(&name).is_some_and(|v| v["status"]["phase"] == "running")
                });
            }
            Said::Absent => {
                wait(&format!("{name} to be gone"), Duration::from_secs(60), || listed(&name).is_none())
            }
            Said::Unknown => {}
        }
    }
    wait("one process for each incarnation", Duration::from_secs(60), || {
        let all = cloud.json(&["incarnation", "list", "--project", "p"]);
        let mut known: Vec<i64> = all["items"]
            .as_array()
            .expect("items")
            .iter()
            .filter_map(|i| i["status"]["pid"].as_i64())
            .collect();
        let mut real: Vec<i64> = cloud.qemus().into_iter().map(i64::from).collect();
        known.sort_unstable();
        real.sort_unstable();
        known == real
    });

    // Everything deleted, nothing remains: no process, device, namespace, disk, address or record.
    for i in 0..VMS {
        let name = format!("v{i}");
        if listed(&name).is_some() {
            cloud.ok(&["vm", "delete", &name, "--project", "p", "--wait"]);
        }
    }
    cloud.ok(&["network", "delete", "n", "--project", "p", "--wait"]);
    wait("the last process to end", Duration::from_secs(30), || cloud.qemus().is_empty());
    for prefix in ["claim/", "ref/", "r/vm/", "r/port/", "r/incarnation/"] {
        let left = keys(&cloud, &format!("/photon.internal/{prefix}"));
        assert!(left.is_empty(), "records remain: {left:?}");
    }
    let left = Traces::since(&before);
    assert!(left.is_empty(), "on this host remains {left:?}");
    let disks = cloud.dir.path().join("plasmavmc/disks");
    let left: Vec<_> = std::fs::read_dir(&disks).map(|d| d.flatten().collect()).unwrap_or_default();
    assert!(left.is_empty(), "disks remain: {left:?}");
    cloud.ok(&["image", "delete", "blank", "--wait"]);
    cloud.ok(&["project", "delete", "p"]);
}
