//! A VM's life on the real hypervisor: power, resets, ends of its own, adoption; networks that never meet.

use photon_lab::{
    cloud::{BOOT, Cloud, alive, wait},
    host::{Traces, alone},
};
use serde_json::Value;
use std::{
    process::Command,
    time::{Duration, Instant},
};

const LONG: Duration = Duration::from_secs(90);

fn vm(cloud: &Cloud, name: &str) -> Value {
    cloud.json(&["vm", "get", name, "--project", "p"])
}

fn pid(cloud: &Cloud, name: &str) -> i32 {
    let i = cloud.json(&["incarnation", "get", name, "--project", "p"]);
    i["status"]["pid"].as_i64().expect("a process") as i32
}

fn booted(cloud: &Cloud, name: &str) {
    let mut last = String::new();
    let until = Instant::now() + BOOT;
    while !last.contains("login:") {
        assert!(Instant::now() < until, "no login; the VM is {}; its console says: {last}", vm(cloud, name));
        let r = cloud.run(&["vm", "console", name, "--project", "p"]);
        last = r.out + &r.err;
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn lifecycle_of_a_vm() {
    let cloud = Cloud::new("user");
    cloud.up();
    cloud.ok(&["project", "create", "p"]);
    cloud.ok(&["vm", "create", "a", "--project", "p", "--image", "tiny", "--memory", "96MiB", "--wait"]);
    let first = pid(&cloud, "a");
    booted(&cloud, "a");

    // Pausing keeps the process, stopping ends it in an orderly way, starting makes a new incarnation.
    cloud.ok(&["vm", "pause", "a", "--project", "p", "--wait"]);
    assert_eq!((vm(&cloud, "a")["status"]["phase"].as_str(), pid(&cloud, "a")), (Some("paused"), first));
    cloud.ok(&["vm", "resume", "a", "--project", "p", "--wait"]);
    cloud.ok(&["vm", "reset", "a", "--project", "p", "--wait"]);
    assert_eq!(pid(&cloud, "a"), first, "a reset is not a new process");
    booted(&cloud, "a");
    cloud.ok(&["vm", "stop", "a", "--project", "p", "--wait"]);
    wait("the process to end", LONG, || !alive(first));
    cloud.ok(&["vm", "edit", "a", "--project", "p", "--memory", "128MiB"]);
    cloud.ok(&["vm", "start", "a", "--project", "p", "--wait"]);
    assert_eq!(vm(&cloud, "a")["status"]["epoch"], 2);
    let e = cloud.run(&["vm", "edit", "a", "--project", "p", "--memory", "256MiB"]);
    assert!(e.code == 2 && e.err.contains("photon vm stop"), "{}", e.err);

    // A process that dies is started again; one that dies while photon is away too.
    let second = pid(&cloud, "a");
    let kill = |pid: i32| Command::new("kill").args(["-9", &pid.to_string()]).status().expect("kill");
    kill(second);
    wait("a new process", LONG, || {
        let v = vm(&cloud, "a");
        v["status"]["epoch"] == 3 && v["status"]["phase"] == "running" && v["status"]["restarts"] == 1
    });
    let third = pid(&cloud, "a");
    cloud.kill();
    kill(third);
    cloud.up();
    wait("another new process", LONG, || {
        let v = vm(&cloud, "a");
        v["status"]["epoch"] == 4 && v["status"]["phase"] == "running"
    });

    // One that lives while photon is away is adopted, console and all.
    booted(&cloud, "a");
    let fourth = pid(&cloud, "a");
    cloud.ok(&["down"]);
    assert!(alive(fourth), "VMs run on");
    cloud.up();
    wait("the adopted process", LONG, || vm(&cloud, "a")["status"]["phase"] == "running");
    assert_eq!(pid(&cloud, "a"), fourth);
    let before = cloud.ok(&["vm", "console", "a", "--project", "p"]);
    assert!(before.contains("login:"), "the console remembers: {before}");

    // Down with VMs; they come back with the cloud.
    cloud.ok(&["down", "--vms"]);
    assert!(cloud.qemus().is_empty());
    cloud.up();
    wait("the VM to be back", LONG, || vm(&cloud, "a")["status"]["phase"] == "running");
    cloud.ok(&["vm", "delete", "a", "--project", "p", "--wait"]);
    assert!(cloud.qemus().is_empty());
    let e = cloud.run(&["vm", "console", "a", "--project", "p"]);
    assert_eq!(e.code, 4, "{}", e.err);
}

/// Runs in the namespace of a network of this cloud.
fn in_network(cloud: &Cloud, project: &str, args: &[&str]) -> String {
    let n = cloud.json(&["network", "get", "lan", "--project", project]);
    let netns = n["status"]["netns"].as_str().expect("a namespace").to_string();
    let out =
        Command::new("ip").args(["netns", "exec", &netns]).args(args).output().expect("ip; run ./dev setup");
    String::from_utf8_lossy(&out.stdout).into_owned()
}

#[test]
fn lifecycle_of_two_tenants_with_equal_networks() {
    let _alone = alone();
    let before = Traces::now();
    let cloud = Cloud::new("host");
    cloud.up();
    for p in ["p", "q"] {
        cloud.ok(&["project", "create", p]);
        cloud.ok(&["network", "create", "lan", "--project", p, "--cidr", "10.30.0.0/24", "--wait"]);
        cloud.ok(&[
            "vm",
            "create",
            "a",
            "--project",
            p,
            "--image",
            "tiny",
            "--network",
            "lan",
            "--memory",
            "96MiB",
            "--wait",
        ]);
        assert_eq!(cloud.json(&["vm", "get", "a", "--project", p])["status"]["addresses"][0], "10.30.0.2");
    }
    // Each network's resolver knows its own names only.
    for (own, other) in [("p", "q"), ("q", "p")] {
        let dig = |name: &str| in_network(&cloud, own, &["dig", "+short", "+time=2", "@10.30.0.1", name]);
        wait("the name", LONG, || dig(&format!("a.{own}.photon.internal")).trim() == "10.30.0.2");
        assert_eq!(dig(&format!("a.{other}.photon.internal")).trim(), "", "{own} sees {other}");
        let reverse = in_network(&cloud, own, &["dig", "+short", "@10.30.0.1", "-x", "10.30.0.2"]);
        assert_eq!(reverse.trim(), format!("a.{own}.photon.internal."));
    }
    // Equal addresses, different machines: the neighbour tables say so.
    booted(&cloud, "a");
    let mac = |p: &str| {
        wait("an answer to ping", BOOT, || {
            in_network(&cloud, p, &["ping", "-c1", "-W1", "10.30.0.2"]).contains(" 0% packet loss")
        });
        in_network(&cloud, p, &["ip", "neigh", "show", "10.30.0.2"])
    };
    let (p, q) = (mac("p"), mac("q"));
    assert_ne!(p, q);
    for project in ["p", "q"] {
        cloud.ok(&["vm", "delete", "a", "--project", project, "--wait"]);
        cloud.ok(&["network", "delete", "lan", "--project", project, "--wait"]);
    }
    assert!(Traces::since(&before).is_empty(), "{:?}", Traces::since(&before));
}
