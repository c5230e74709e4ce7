//! What people meet beside the tour: errors and exit codes, no root, two starts, Ctrl-C,
//! an own user with a role.

use photon_lab::cloud::{BOOT, Cloud, guest_dir, photon_exe, wait};
use serde_json::Value;
use std::{
    io::{BufRead, BufReader, Write},
    process::{Command, Stdio},
    time::Duration,
};

#[test]
fn people_make_mistakes_and_are_told() {
    let cloud = Cloud::new("user");
    let e = cloud.run(&["vm", "list"]);
    assert_eq!((e.code, e.err.contains("photon up")), (7, true), "{}", e.err);
    cloud.up();
    cloud.ok(&["project", "create", "demo"]);
    cloud.ok(&["network", "create", "lan", "--project", "demo", "--cidr", "10.1.0.0/29"]);
    for (args, code, says) in [
        (&["vm", "get", "nobody", "--project", "demo"][..], 3, "photon vm list --project demo"),
        (&["vm", "list", "--project", "Demo"], 2, "project"),
        (&["vm", "create", "x", "--project", "none", "--image", "tiny"], 3, "photon project create none"),
        (&["vm", "create", "x", "--project", "demo", "--image", "none"], 3, "image \"none\" does not exist"),
        (&["vm", "create", "x", "--project", "demo", "--image", "tiny", "--memory", "12"], 2, "spec.memory"),
        (&["vm", "create", "x", "--project", "demo", "--image", "tiny", "--cpus", "many"], 2, "whole number"),
        (&["vm", "create", "x"], 2, "--project"),
        (&["network", "create", "lan", "--project", "demo", "--cidr", "10.1.0.0/29"], 4, "exists already"),
        (&["network", "create", "l2", "--project", "demo", "--cidr", "10.1.0.1/24"], 2, "10.1.0.0/24"),
        (&["project", "delete", "demo"], 4, "photon network list --project demo"),
        (&["incarnation", "create", "x"], 2, "unrecognized subcommand"),
        (&["frobnicate"], 2, "unrecognized subcommand"),
        (&["vm", "lst"], 2, "list"),
        (&["explain", "vn"], 3, "vm"),
        (&["up", "--listen", "nowhere"], 2, "--listen"),
    ] {
        let r = cloud.run(args);
        assert_eq!(r.code, code, "photon {}: {}{}", args.join(" "), r.out, r.err);
        assert!(r.err.contains(says), "photon {}: {}", args.join(" "), r.err);
        assert!(r.out.is_empty(), "errors go to standard error: {}", r.out);
    }
    // A pool that is exhausted says so, and heals when there is room again.
    for n in 0..5 {
        let name = format!("v{n}");
        cloud.ok(&["port", "create", &name, "--project", "demo", "--network", "lan", "--wait"]);
    }
    let e = cloud.run(&["port", "create", "v5", "--project", "demo", "--network", "lan", "--wait"]);
    assert!(e.code == 1 && e.err.contains("no free address"), "{}", e.err);
    cloud.ok(&["port", "delete", "v0", "--project", "demo", "--wait"]);
    wait("the waiting port's address", Duration::from_secs(10), || {
        cloud.json(&["port", "get", "v5", "--project", "demo"])["status"]["address"].is_string()
    });
}

#[test]
fn people_use_the_other_commands() {
    let cloud = Cloud::new("user");
    let first = cloud.ok(&["up", "--detach", "-o", "json"]);
    let events: Vec<Value> =
        first.lines().map(|l| serde_json::from_str(l).expect("a JSON event a line")).collect();
    assert_eq!(events.last().expect("events")["event"], "ready", "{first}");
    let again = cloud.ok(&["up", "--detach"]);
    assert!(again.contains("running already"), "{again}");
    cloud.ok(&["project", "create", "demo"]);
    let yaml = cloud.dir.path().join("lab.yaml");
    std::fs::write(
        &yaml,
        "kind: network\nmeta: {name: lan, project: demo}\nspec: {cidr: 10.1.0.0/24}\n---\nkind: vm\nmeta: {name: c, project: demo, labels: {tier: web}}\nspec: {image: tiny, power: stopped, networks: [{network: lan}]}\n",
    )
    .expect("write");
    let file = yaml.to_string_lossy().into_owned();
    let dry = cloud.ok(&["vm", "create", "z", "--project", "demo", "--image", "tiny", "--dry-run"]);
    assert!(dry.contains("spec.image") || dry.contains("spec"), "{dry}");
    assert!(cloud.ok(&["apply", "-f", &file]).contains("vm c created"));
    assert!(cloud.ok(&["apply", "-f", &file]).contains("vm c applied"));
    assert_eq!(
        cloud.ok(&["vm", "list", "--project", "demo", "--labels", "tier=web", "-o", "name"]).trim(),
        "c"
    );
    assert!(
        cloud
            .ok(&["vm", "list", "--project", "demo", "--labels", "tier!=web", "-o", "name"])
            .trim()
            .is_empty()
    );
    // What is read can be applied.
    let read = cloud.ok(&["vm", "get", "c", "--project", "demo", "-o", "yaml"]);
    std::fs::write(&yaml, read).expect("write");
    cloud.ok(&["apply", "-f", &file]);
    assert!(cloud.ok(&["explain", "vm"]).contains("networks"));
    assert!(cloud.ok(&["explain", "vm.networks"]).contains("address"));
    assert!(cloud.ok(&["audit"]).contains("vm.create"));
    assert!(cloud.ok(&["status"]).contains("plasmavmc"));
    assert!(cloud.ok(&["completion", "bash"]).contains("photon"));
    assert_eq!(cloud.run(&["doctor"]).code, 0, "{}", cloud.run(&["doctor"]).out);
    assert!(cloud.ok(&["vm", "create", "--help"]).contains("Example"));
    assert!(cloud.ok(&["env"]).contains("export ETCDCTL_CACERT="));
    cloud.ok(&["down"]);
    assert!(cloud.ok(&["down"]).contains("not running"));
}

#[test]
fn people_work_in_the_foreground_until_ctrl_c() {
    let cloud = Cloud::new("user");
    let mut child =
        cloud.command().args(["up"]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("photon");
    let mut lines = BufReader::new(child.stdout.take().expect("stdout")).lines();
    assert!(lines.any(|l| l.expect("line").contains("is ready")), "it never was ready");
    cloud.ok(&["status"]);
    let _ = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(child.wait().expect("ends").success());
    assert_eq!(cloud.run(&["status"]).code, 7);
}

#[test]
fn people_with_a_role_do_what_it_allows() {
    let cloud = Cloud::new("user");
    cloud.up();
    for p in ["mine", "other"] {
        cloud.ok(&["project", "create", p]);
        cloud.ok(&["network", "create", "lan", "--project", p, "--cidr", "10.1.0.0/24"]);
    }
    cloud.ok(&["user", "create", "alice"]);
    let with_input = |args: &[&str], input: &str| {
        let mut c = cloud.command();
        let mut child = c
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("photon");
        child.stdin.take().expect("stdin").write_all(input.as_bytes()).expect("write");
        let out = child.wait_with_output().expect("ends");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    };
    with_input(&["user", "set-password", "alice"], "correct horse battery\n");
    cloud.ok(&[
        "binding",
        "create",
        "alice",
        "--project",
        "mine",
        "--subject",
        "user/alice",
        "--role",
        "viewer",
    ]);
    let profile = cloud.dir.path().join("alice.json");
    let profile = profile.to_str().expect("UTF-8");
    let ca = cloud.dir.path().join("creds/ca.crt");
    let endpoint = format!("https://127.0.0.1:{}", cloud.port(8443));
    with_input(
        &[
            "login",
            "--endpoint",
            &endpoint,
            "--ca",
            ca.to_str().expect("UTF-8"),
            "--user",
            "alice",
            "--save",
            profile,
        ],
        "correct horse battery\n",
    );
    let alice = |args: &[&str]| cloud.run(&[&["--profile", profile], args].concat());
    assert_eq!(alice(&["network", "list", "--project", "mine"]).code, 0);
    for denied in [
        &["network", "list", "--project", "other"][..],
        &["network", "list"],
        &["network", "create", "n2", "--project", "mine", "--cidr", "10.2.0.0/24"],
        &["network", "delete", "lan", "--project", "mine"],
        &["binding", "create", "more", "--project", "mine", "--subject", "user/alice", "--role", "admin"],
        &["user", "list"],
        &["audit"],
        &["project", "create", "third"],
    ] {
        let r = alice(denied);
        assert_eq!(r.code, 5, "{}: {}{}", denied.join(" "), r.out, r.err);
    }
    // A role counts from the moment it is given, and not from the moment it is taken.
    cloud.ok(&["binding", "edit", "alice", "--project", "mine", "--role", "editor"]);
    wait("the new role to count", Duration::from_secs(5), || {
        alice(&["network", "create", "n2", "--project", "mine", "--cidr", "10.2.0.0/24"]).code == 0
    });
    cloud.ok(&["user", "edit", "alice", "--disabled", "true"]);
    wait("the disabled user to be refused", Duration::from_secs(5), || {
        alice(&["network", "list", "--project", "mine"]).code == 5
    });
}

#[test]
fn people_without_root_get_a_cloud_too() {
    assert!(rustix::process::geteuid().is_root(), "this test gives up root: start it as root");
    let home = tempfile::Builder::new().prefix("pn").rand_bytes(5).tempdir_in("/tmp").expect("folder");
    let run = |script: &str| {
        let out = Command::new("setpriv")
            .args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "sh", "-c", script])
            .current_dir("/tmp")
            .env("HOME", home.path())
            .env_remove("XDG_DATA_HOME")
            .env_remove("PHOTON_DATA_DIR")
            .env("PHOTON_GUEST_DIR", home.path().join("guest"))
            .env("PHOTON_PORT_OFFSET", "19000")
            .env("PATH", format!("{}:{}", home.path().display(), std::env::var("PATH").unwrap_or_default()))
            .output()
            .expect("setpriv; run ./dev setup");
        let text =
            format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        assert!(out.status.success(), "{script}: {text}");
        text
    };
    // The checkout may lie where only root may look.
    std::fs::copy(photon_exe(), home.path().join("photon")).expect("copy");
    std::fs::create_dir(home.path().join("guest")).expect("folder");
    for f in std::fs::read_dir(guest_dir()).expect("guest").flatten() {
        std::fs::copy(f.path(), home.path().join("guest").join(f.file_name())).expect("copy");
    }
    assert!(
        Command::new("chown").args(["-R", "65534:65534"]).arg(home.path()).status().expect("chown").success()
    );
    let said = run("photon up --detach");
    assert!(said.contains("networks need root"), "it says what is missing: {said}");
    run("photon project create demo");
    run("photon network create lan --project demo --cidr 10.20.0.0/24 --wait");
    run("photon vm create a --project demo --image tiny --network lan --memory 128MiB --wait");
    wait("the guest's login", BOOT, || {
        run("photon vm console a --project demo < /dev/null").contains("a login:")
    });
    let stopped = run("photon down --vms");
    assert!(stopped.contains("1 VMs stopped"), "{stopped}");
}
