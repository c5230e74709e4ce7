//! A cloud of three machines: joined by command, one of them killed, one drained and removed, quorum lost and back.

use photon_lab::{
    cloud::{BOOT, Ran, guest_dir, photon_exe, processes, wait},
    hosts::Hosts,
};
use serde_json::Value;
use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

const SOON: Duration = Duration::from_secs(60);

/// Machines with a photon each, named n0, n1, …
struct Machines(Hosts);

impl Machines {
    fn data(&self, host: usize) -> String {
        self.0.folder(host).join("data").display().to_string()
    }

    fn start(&mut self, host: usize, words: &[&str]) {
        let (data, guest) = (self.data(host), guest_dir().display().to_string());
        let name = format!("n{host}");
        let common = ["--data-dir", &data, "--node", &name, "--networking", "user", "--guest-dir", &guest];
        let args: Vec<String> = words.iter().chain(&common).map(ToString::to_string).collect();
        self.0.start(host, &photon_exe(), &args);
    }

    /// `photon ARGS` on a machine.
    fn run(&self, host: usize, args: &[&str]) -> Ran {
        let mut c = self.0.command(host, &photon_exe());
        c.args(["--data-dir", &self.data(host)]).args(args).output().expect("photon runs").into()
    }

    fn ok(&self, host: usize, args: &[&str]) -> String {
        let r = self.run(host, args);
        assert!(r.code == 0, "n{host}: photon {}: exit {}\n{}{}", args.join(" "), r.code, r.out, r.err);
        r.out
    }

    fn json(&self, host: usize, args: &[&str]) -> Value {
        serde_json::from_str(&self.ok(host, &[args, &["-o", "json"]].concat())).expect("JSON")
    }

    /// What a machine says of a node: phase and role.
    fn node(&self, host: usize, name: &str) -> (String, String) {
        let r = self.run(host, &["node", "get", name, "-o", "json"]);
        let v: Value = serde_json::from_str(&r.out).unwrap_or_default();
        let text = |p: &str| v.pointer(p).and_then(Value::as_str).unwrap_or_default().to_string();
        (text("/status/phase"), text("/status/role"))
    }

    fn until(&self, host: usize, name: &str, phase: &str, role: &str) {
        let begun = Instant::now();
        while begun.elapsed() < SOON {
            let (p, r) = self.node(host, name);
            if p == phase && (role == r || role == "any") {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("{name} is not {phase} {role} but {:?}\n{}", self.node(host, name), self.tails());
    }

    fn tails(&self) -> String {
        (0..3).map(|i| format!("n{i}:\n{}\n", self.0.tail(i))).collect()
    }

    fn join(&mut self, host: usize, through: usize) {
        let token = self.ok(through, &["node", "token", "-o", "name"]);
        // As a file: arguments can be read by everybody on the machine.
        std::fs::create_dir_all(self.0.folder(host)).expect("folder");
        let file = self.0.folder(host).join("token");
        std::fs::write(&file, token).expect("write");
        let address = self.0.address(through).to_string();
        let file = file.display().to_string();
        self.start(host, &["join", &address, "--token-file", &file]);
        let name = format!("n{host}");
        self.until(through, &name, "ready", "voter");
    }

    /// Time until a write through `host` is acknowledged.
    fn written(&self, host: usize, name: &str) -> Duration {
        let begun = Instant::now();
        let r = self.run(host, &["project", "create", name]);
        assert!(r.code == 0, "{}\n{}", r.err, self.tails());
        begun.elapsed()
    }
}

impl Drop for Machines {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.tails());
        }
        let folder = self.0.dir.path().display().to_string();
        for pid in processes(|c| c.contains("qemu-system") && c.contains(&folder)) {
            let _ = Command::new("kill").args(["-9", &pid.to_string()]).status();
        }
    }
}

#[test]
fn three_machines_are_one_cloud() {
    let mut m = Machines(Hosts::new(3));
    let first = m.0.address(0).to_string();
    m.start(0, &["up", "--listen", &first]);
    m.until(0, "n0", "ready", "leader");
    // A token of another cloud, or none, lets nobody in and changes nothing.
    let e = m.run(1, &["join", &first, "--token", "photon1-AAAA"]);
    assert_eq!((e.code, e.err.contains("photon node token")), (2, true), "{}", e.err);
    let forged = format!("photon1-{}", "A".repeat(64));
    let e = m.run(1, &["join", &first, "--token", &forged]);
    assert_eq!((e.code, e.err.contains("not the cloud of this token")), (5, true), "{}", e.err);
    assert!(!Path::new(&m.data(1)).join("cluster.json").exists());

    m.join(1, 0);
    m.join(2, 1); // through a node that does not lead
    assert_eq!(m.json(2, &["node", "list"])["items"].as_array().map(Vec::len), Some(3));

    // One cloud: what is made on one is seen on the others at once, and so are consoles.
    m.written(2, "demo");
    m.ok(1, &["node", "drain", "n0", "--wait"]);
    m.ok(0, &["vm", "create", "a", "--project", "demo", "--image", "tiny", "--wait"]);
    let vm = m.json(1, &["vm", "get", "a", "--project", "demo"]);
    let home = vm["status"]["host"].as_str().expect("a host").to_string();
    assert_ne!(home, "n0", "it is drained");
    for host in 0..3 {
        wait(&format!("the console on n{host}"), BOOT, || {
            m.run(host, &["vm", "console", "a", "--project", "demo"]).out.contains("login:")
        });
    }

    // The leader's machine dies: the others go on.
    m.ok(1, &["node", "undrain", "n0", "--wait"]);
    let leads = (0..3).find(|i| m.node(*i, &format!("n{i}")).1 == "leader").expect("somebody leads");
    let other = (leads + 1) % 3;
    m.0.kill(leads);
    let took = m.written(other, "after-kill");
    println!("a write after the leader's death took {} ms", took.as_millis());
    let name = format!("n{leads}");
    m.until(other, &name, "down", "any");
    m.start(leads, &["up"]);
    m.until(other, &name, "ready", "any");
    m.ok(leads, &["project", "get", "after-kill"]);

    // Without a quorum nothing is promised, and that is said; with it, all goes on.
    let alone = home[1..].parse::<usize>().expect("a number");
    let gone: Vec<usize> = (0..3).filter(|i| *i != alone).collect();
    gone.iter().for_each(|i| m.0.kill(*i));
    let begun = Instant::now();
    let e = m.run(alone, &["project", "create", "lost"]);
    let said = begun.elapsed();
    println!("without a quorum a write is refused after {} ms: {}", said.as_millis(), e.err.trim());
    assert!(e.code == 6 || e.code == 7, "exit {}: {}", e.code, e.err);
    assert!(said < Duration::from_secs(60), "that took {said:?}");
    let folder = m.0.dir.path().display().to_string();
    let guests = processes(|c| c.contains("qemu-system") && c.contains(&folder));
    assert_eq!(guests.len(), 1, "the VM runs on");
    gone.iter().for_each(|i| m.start(*i, &["up"]));
    for i in 0..3 {
        m.until(alone, &format!("n{i}"), "ready", "any");
    }
    m.written(alone, "back");

    // A machine goes for good. It runs nothing, so it may.
    let leaves = gone[0];
    let name = format!("n{leaves}");
    m.ok(alone, &["node", "drain", &name, "--wait"]);
    m.ok(alone, &["node", "remove", &name, "--wait"]);
    wait("the removed machine's photon to end", SOON, || m.0.ended(leaves).is_some());
    assert!(m.0.tail(leaves).contains("removed"), "{}", m.tails());
    let list = m.json(alone, &["node", "list"]);
    assert_eq!(list["items"].as_array().map(Vec::len), Some(2));
    m.written(alone, "two-left");
    // It can't come back as what it was, and can as a new node.
    m.start(leaves, &["up"]);
    wait("the removed machine to be refused", SOON, || m.0.ended(leaves).is_some_and(|code| code != 0));
    std::fs::remove_dir_all(m.data(leaves)).expect("its folder goes");
    m.join(leaves, alone);
    // The one that runs a VM stays until that is gone.
    wait("the removal to be refused", SOON, || {
        let e = m.run(leaves, &["node", "remove", &home, "--wait", "--timeout", "3"]);
        assert_eq!(e.code, 6, "{}", e.err);
        e.err.contains("VMs run there")
    });
}
