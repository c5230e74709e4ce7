//! FlareDB as people use it: alone on loopback, and in a cloud with its roles.

use photon_lab::cloud::{Cloud, Ran, photon_exe, wait};
use std::{
    net::{SocketAddr, TcpListener},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// A FlareDB of its own process.
struct Alone {
    dir: tempfile::TempDir,
    addr: SocketAddr,
    child: Option<Child>,
}

impl Alone {
    fn new() -> Alone {
        let dir = tempfile::tempdir().expect("folder");
        let addr = TcpListener::bind("127.0.0.1:0").expect("loopback").local_addr().expect("address");
        Alone { dir, addr, child: None }
    }

    fn serve(&self, listen: &str) -> Command {
        let mut c = Command::new(photon_exe());
        c.arg("--data-dir").arg(self.dir.path().join("data"));
        c.args(["flaredb", "serve", "--tls", "off", "--listen", listen]);
        c
    }

    fn start(&mut self) {
        let log = std::fs::File::create(self.dir.path().join("log")).expect("log");
        let child = self.serve(&self.addr.to_string()).stdout(Stdio::null()).stderr(log).spawn();
        self.child = Some(child.expect("starts"));
        wait("FlareDB to answer", Duration::from_secs(60), || self.run(&["stores"]).code == 0);
    }

    fn kill(&mut self) {
        let mut child = self.child.take().expect("it runs");
        child.kill().expect("it runs");
        child.wait().expect("it ended");
    }

    fn run(&self, args: &[&str]) -> Ran {
        run(&format!("http://{}", self.addr), args)
    }

    fn ok(&self, args: &[&str]) -> String {
        let r = self.run(args);
        assert_eq!(r.code, 0, "{}: {}{}", args.join(" "), r.out, r.err);
        r.out
    }
}

fn run(url: &str, args: &[&str]) -> Ran {
    let mut c = Command::new(photon_exe());
    c.arg("flaredb").args(args).env("PHOTON_FLAREDB", url).env_remove("PHOTON_PROJECT");
    c.stdin(Stdio::null()).output().expect("photon runs").into()
}

impl Drop for Alone {
    fn drop(&mut self) {
        if let Some(mut c) = self.child.take() {
            let _ = c.kill();
            let _ = c.wait();
        }
    }
}

#[test]
fn flaredb_alone_does_what_its_help_says() {
    let mut db = Alone::new();
    let refused: Ran = db.serve("0.0.0.0:0").output().expect("runs").into();
    assert!(refused.code == 5 && refused.err.contains("loopback"), "{}", refused.err);
    db.start();
    db.ok(&["put", "a", "hello"]);
    assert_eq!(db.ok(&["get", "a"]), "hello\n");
    for (args, code, said) in [
        (&["get", "nothing"][..], 3, "does not exist"),
        (&["delete", "nothing"], 3, "does not exist"),
        (&["cas", "a", "--expect", "other", "--value", "x"], 4, "it has version 1"),
        (&["cas", "a", "--version", "7", "--value", "x"], 4, "it has version 1"),
        (&["cas", "a", "--absent", "--value", "x"], 4, "it has version 1"),
        (&["cas", "b", "--expect", "x"], 4, "there is none"),
        (&["cas", "a", "--value", "x"], 2, "--expect"),
        (&["put", "", "x"], 2, "must not be empty"),
        (&["scan", "--limit", "0"], 2, "is not 1 to 10000"),
        (&["scan", "a", "--after", "b"], 2, "outside"),
        (&["merge", "77"], 7, "not here"),
        (&["txn", "/nonexistent"], 3, "/nonexistent"),
    ] {
        let r = db.run(args);
        assert!(r.code == code && r.err.contains(said), "{}: {} {}", args.join(" "), r.code, r.err);
    }
    let too_long = "k".repeat(17_000);
    assert_eq!(db.run(&["put", &too_long, "x"]).code, 2);
    db.ok(&["cas", "a", "--expect", "hello", "--value", "bye"]);
    for n in 0..5 {
        db.ok(&["put", &format!("k{n}"), "v"]);
    }
    db.ok(&["split", "k3"]);
    assert_eq!(db.ok(&["scan", "k", "--reverse", "--limit", "3", "-o", "name"]), "k4\nk3\nk2\n");
    assert_eq!(db.ok(&["scan", "k", "--after", "k2", "--keys-only", "-o", "name"]), "k3\nk4\n");
    assert_eq!(db.ok(&["regions", "-o", "name"]).lines().count(), 2);
    db.ok(&["merge", "2"]);
    assert_eq!(db.ok(&["regions", "-o", "name"]), "1\n");
    let file = db.dir.path().join("move");
    let file = file.to_str().expect("UTF-8");
    std::fs::write(file, "absent from\nput from 10\nput to \"nothing yet\"\n").expect("write");
    db.ok(&["txn", file]);
    std::fs::write(file, "expect from 10\nget to\nput from 9\ndelete to\n").expect("write");
    assert!(db.ok(&["txn", file]).contains("nothing yet"));
    assert_eq!(db.run(&["txn", file]).code, 4);
    assert_eq!(db.ok(&["scan", "--txn", "-o", "name"]), "from\n");
    db.kill();
    assert_eq!(db.run(&["get", "a"]).code, 7);
    db.start();
    assert_eq!((db.ok(&["get", "a"]), db.ok(&["get", "from", "--txn"])), ("bye\n".into(), "9\n".into()));
}

/// One writer after another counts up; the process is killed in between, again and again. What was answered is
/// there, and a counter is never more than one step ahead of what was answered.
#[test]
fn flaredb_alone_loses_nothing_when_killed() {
    const WRITERS: usize = 4;
    const KILLS: usize = 5;
    let mut db = Alone::new();
    db.start();
    let url = format!("http://{}", db.addr);
    let over = Arc::new(AtomicBool::new(false));
    let told = Arc::new(Mutex::new([0u64; WRITERS]));
    let writers: Vec<_> = (0..WRITERS)
        .map(|w| {
            let (url, over, told) = (url.clone(), over.clone(), told.clone());
            std::thread::spawn(move || {
                let key = format!("counter-{w}");
                let mut next = 1u64;
                while !over.load(Ordering::Relaxed) {
                    let put = run(&url, &["put", &key, &next.to_string()]);
                    if put.code == 0 {
                        told.lock().expect("told")[w] = next;
                        next += 1;
                    }
                }
            })
        })
        .collect();
    for n in 0..KILLS {
        let before: u64 = told.lock().expect("told").iter().sum();
        wait("writes to go on", Duration::from_secs(60), || {
            told.lock().expect("told").iter().sum::<u64>() > before + 10
        });
        if n == 2 {
            db.ok(&["split", "counter-2"]);
        }
        db.kill();
        db.start();
    }
    over.store(true, Ordering::Relaxed);
    writers.into_iter().for_each(|w| w.join().expect("a writer"));
    for w in 0..WRITERS {
        let is: u64 = db.ok(&["get", &format!("counter-{w}")]).trim().parse().expect("a number");
        let told = told.lock().expect("told")[w];
        assert!(is == told || is == told + 1, "counter-{w} is {is}, and {told} was answered");
    }
}

#[test]
fn flaredb_of_a_cloud_keeps_projects_apart_and_its_data() {
    let cloud = Cloud::new("user");
    cloud.up();
    for p in ["mine", "other"] {
        cloud.ok(&["project", "create", p]);
        cloud.ok(&["flaredb", "put", "greeting", p, "--project", p]);
    }
    cloud.ok(&["flaredb", "put", "greeting", "all"]);
    // The same name in each, and none sees the others'.
    assert_eq!(cloud.ok(&["flaredb", "get", "greeting", "--project", "mine"]), "mine\n");
    assert_eq!(cloud.ok(&["flaredb", "scan", "--project", "other", "-o", "name"]), "greeting\n");
    assert_eq!(cloud.ok(&["flaredb", "get", "greeting"]), "all\n");
    // A user with a role in one of them.
    cloud.ok(&["user", "create", "alice"]);
    let password = |args: &[&str]| {
        let mut c = cloud.command();
        let mut child = c.args(args).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("photon");
        std::io::Write::write_all(&mut child.stdin.take().expect("stdin"), b"correct horse battery\n")
            .expect("write");
        assert!(child.wait().expect("ends").success(), "{}", args.join(" "));
    };
    password(&["user", "set-password", "alice"]);
    let role = ["--project", "mine", "--subject", "user/alice", "--role", "viewer"];
    cloud.ok(&[&["binding", "create", "alice"], &role[..]].concat());
    let profile = cloud.dir.path().join("alice.json");
    let (profile, ca) = (profile.to_str().expect("UTF-8"), cloud.dir.path().join("creds/ca.crt"));
    let door = format!("https://127.0.0.1:{}", cloud.port(8443));
    let login = ["login", "--endpoint", &door, "--user", "alice", "--save", profile, "--ca"];
    password(&[&login[..], &[ca.to_str().expect("UTF-8")]].concat());
    let alice = |args: &[&str]| cloud.run(&[&["--profile", profile, "flaredb"], args].concat());
    wait("the role to count", Duration::from_secs(30), || {
        alice(&["get", "greeting", "--project", "mine"]).out == "mine\n"
    });
    for denied in [
        &["put", "greeting", "x", "--project", "mine"][..],
        &["cas", "greeting", "--expect", "mine", "--project", "mine"],
        &["get", "greeting", "--project", "other"],
        &["scan", "--project", "other"],
        &["get", "greeting"],
        &["put", "greeting", "x"],
        &["regions"],
        &["stores"],
        &["split", "m", "--project", "mine"],
        &["merge", "1"],
    ] {
        let r = alice(denied);
        assert_eq!(r.code, 5, "{}: {}{}", denied.join(" "), r.out, r.err);
    }
    assert_eq!(cloud.ok(&["flaredb", "get", "greeting", "--project", "mine"]), "mine\n");

    let status = cloud.json(&["status"]);
    assert_eq!(status["services"]["flaredb"]["chainfire"], "connected", "{status}");
    assert_eq!(status["services"]["flaredb"]["status"], "healthy");
    cloud.ok(&["flaredb", "split", "m", "--project", "mine"]);
    cloud.kill();
    cloud.up();
    assert_eq!(cloud.ok(&["flaredb", "get", "greeting", "--project", "other"]), "other\n");
    assert_eq!(cloud.ok(&["flaredb", "regions", "-o", "name"]).lines().count(), 2);

    // Data that are gone are not made up: the rest of the cloud works, and this says what is wrong.
    cloud.ok(&["down"]);
    let (data, away) = (cloud.dir.path().join("flaredb"), cloud.dir.path().join("away"));
    std::fs::rename(&data, &away).expect("move");
    cloud.up();
    assert_eq!(cloud.run(&["status"]).code, 7);
    let status = cloud.run(&["status"]);
    assert!(status.out.contains("the store that began on this node is not in"), "{}", status.out);
    assert_ne!(cloud.run(&["flaredb", "get", "greeting"]).code, 0);
    cloud.ok(&["project", "list"]);
    cloud.ok(&["down"]);
    let _ = std::fs::remove_dir_all(&data);
    std::fs::rename(&away, &data).expect("move back");
    cloud.up();
    assert_eq!(cloud.ok(&["flaredb", "get", "greeting"]), "all\n");

    // Nor does damage of one part keep the others from starting.
    cloud.ok(&["down"]);
    let marks = ["flaredb/state/damaged", "nightlight/cloud/deletions"].map(|f| cloud.dir.path().join(f));
    marks.iter().for_each(|f| std::fs::write(f, "by a test").expect("write"));
    cloud.up();
    let status = cloud.run(&["status", "-o", "json"]);
    assert_eq!(status.code, 7, "{}", status.out);
    let services: serde_json::Value = serde_json::from_str(&status.out).expect("JSON");
    for part in ["flaredb", "nightlight"] {
        assert_eq!(services["services"][part]["status"], "unhealthy", "{}", status.out);
    }
    assert_ne!(cloud.run(&["flaredb", "get", "greeting"]).code, 0);
    assert!(cloud.run(&["metrics", "query", "up"]).err.contains("deletions is damaged"));
    cloud.ok(&["project", "list"]);
    cloud.ok(&["down"]);
    marks.iter().for_each(|f| std::fs::remove_file(f).expect("remove"));
    cloud.up();
    assert_eq!(cloud.ok(&["flaredb", "get", "greeting"]), "all\n");
}

/// Three nodes beside a ChainFire, all processes of their own.
struct Three {
    dir: tempfile::TempDir,
    clients: Vec<SocketAddr>,
    cluster: String,
    coordinator: SocketAddr,
    children: Vec<Option<Child>>,
}

fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").expect("loopback").local_addr().expect("address")
}

impl Three {
    fn start() -> Three {
        let dir = tempfile::tempdir().expect("folder");
        let clients: Vec<SocketAddr> = (0..3).map(|_| free()).collect();
        let named = clients.iter().enumerate().map(|(i, c)| format!("{}={}/{c}", i + 1, free()));
        let cluster = named.collect::<Vec<_>>().join(",");
        let mut all = Three { dir, clients, cluster, coordinator: free(), children: Vec::new() };
        let mut kv = Command::new(photon_exe());
        kv.arg("--data-dir").arg(all.dir.path().join("kv")).args(["chainfire", "serve", "--tls", "off"]);
        kv.args(["--listen-client-urls", &format!("http://{}", all.coordinator)]);
        all.children.push(Some(all.spawn(kv, "kv")));
        let coordinator = all.coordinator;
        wait("ChainFire to listen", Duration::from_secs(60), || {
            std::net::TcpStream::connect(coordinator).is_ok()
        });
        for n in 1..=3 {
            let child = all.spawn(all.node(n), &n.to_string());
            all.children.push(Some(child));
        }
        wait("the store to answer", Duration::from_secs(60), || {
            run(&all.urls(), &["put", "first", "1"]).code == 0
        });
        all
    }

    fn node(&self, n: usize) -> Command {
        let mut c = Command::new(photon_exe());
        c.arg("--data-dir").arg(self.dir.path().join(n.to_string()));
        c.args(["flaredb", "serve", "--tls", "off", "--number", &n.to_string(), "--cluster", &self.cluster]);
        c.args(["--coordinator", &format!("http://{}", self.coordinator), "--election-timeout", "500"]);
        c
    }

    fn spawn(&self, mut c: Command, log: &str) -> Child {
        let log = std::fs::File::create(self.dir.path().join(format!("{log}.log"))).expect("log");
        c.stdout(Stdio::null()).stderr(log).spawn().expect("starts")
    }

    fn urls(&self) -> String {
        self.clients.iter().map(|c| format!("http://{c}")).collect::<Vec<_>>().join(",")
    }

    fn kill(&mut self, n: usize) {
        let mut child = self.children[n].take().expect("it runs");
        child.kill().expect("it runs");
        child.wait().expect("it ended");
    }

    fn ok(&self, args: &[&str]) -> String {
        let r = run(&self.urls(), args);
        assert_eq!(r.code, 0, "{}: {}{}", args.join(" "), r.out, r.err);
        r.out
    }

    fn regions(&self) -> Vec<serde_json::Value> {
        let all: serde_json::Value =
            serde_json::from_str(&self.ok(&["regions", "-o", "json"])).expect("JSON");
        all["items"].as_array().expect("items").clone()
    }
}

impl Drop for Three {
    fn drop(&mut self) {
        for c in self.children.iter_mut().flatten() {
            let _ = c.kill();
            let _ = c.wait();
        }
    }
}

/// Writers count up while the process that leads is killed, and another time, and started again. What was answered
/// is there, whoever is asked.
#[test]
fn three_nodes_lose_nothing_when_the_leader_is_killed() {
    const WRITERS: usize = 3;
    let mut db = Three::start();
    db.ok(&["split", "counter-2"]);
    let regions = db.regions();
    assert_eq!(regions.len(), 2, "{regions:?}");
    assert!(regions.iter().all(|r| r["replicas"] == serde_json::json!([1, 2, 3])), "{regions:?}");
    let urls = db.urls();
    let over = Arc::new(AtomicBool::new(false));
    let told = Arc::new(Mutex::new([0u64; WRITERS]));
    let writers: Vec<_> = (0..WRITERS)
        .map(|w| {
            let (urls, over, told) = (urls.clone(), over.clone(), told.clone());
            std::thread::spawn(move || {
                let key = format!("counter-{w}");
                let mut next = 1u64;
                while !over.load(Ordering::Relaxed) {
                    if run(&urls, &["put", &key, &next.to_string()]).code == 0 {
                        told.lock().expect("told")[w] = next;
                        next += 1;
                    }
                }
            })
        })
        .collect();
    let sum = || told.lock().expect("told").iter().sum::<u64>();
    for round in 0..3 {
        let before = sum();
        wait("writes to go on", Duration::from_secs(120), || sum() > before + 10);
        let mut leader = 0;
        wait("a leader", Duration::from_secs(60), || {
            leader = db.regions()[0]["leader"].as_u64().unwrap_or(0);
            leader > 0
        });
        let leader = usize::try_from(leader).expect("small");
        let (killed, all) = (std::time::Instant::now(), *told.lock().expect("told"));
        db.kill(leader);
        wait("every writer to go on", Duration::from_secs(120), || {
            told.lock().expect("told").iter().zip(&all).all(|(now, then)| *now > then + 1)
        });
        println!("round {round}: node {leader} killed, all writers went on after {:?}", killed.elapsed());
        db.ok(&["txn", &{
            let file = db.dir.path().join(format!("txn{round}"));
            std::fs::write(&file, format!("put t{round} 1\nput counted-{round} 2\n")).expect("write");
            file.to_str().expect("UTF-8").to_string()
        }]);
        let child = db.spawn(db.node(leader), &format!("{leader}-{round}"));
        db.children[leader] = Some(child);
        let url = format!("http://{}", db.clients[leader - 1]);
        wait("it to be back", Duration::from_secs(60), || run(&url, &["get", "first"]).code == 0);
    }
    over.store(true, Ordering::Relaxed);
    writers.into_iter().for_each(|w| w.join().expect("a writer"));
    for client in &db.clients {
        for w in 0..WRITERS {
            let r = run(&format!("http://{client}"), &["get", &format!("counter-{w}")]);
            let is: u64 = r.out.trim().parse().unwrap_or_else(|_| panic!("{}{}", r.out, r.err));
            let told = told.lock().expect("told")[w];
            assert!(is == told || is == told + 1, "counter-{w} is {is} at {client}, and {told} was answered");
        }
    }
    assert_eq!(db.ok(&["scan", "--txn", "t", "-o", "name"]), "t0\nt1\nt2\n");
    assert_eq!(db.ok(&["stores", "-o", "name"]), "1\n2\n3\n");
    let merged = db.regions()[1]["id"].to_string();
    db.ok(&["merge", &merged]);
    assert_eq!(db.regions().len(), 1);
    // What would not be safe is refused: a node without its data, another address than loopback.
    let refused = |c: &mut Command| -> Ran { c.output().expect("runs").into() };
    db.kill(1);
    std::fs::rename(db.dir.path().join("1"), db.dir.path().join("away")).expect("move");
    let r = refused(&mut db.node(1));
    assert!(r.code == 2 && r.err.contains("forgotten what it voted"), "{}{}", r.out, r.err);
    let cluster = "1=10.0.0.1:1/127.0.0.1:2";
    let r = refused(Command::new(photon_exe()).args([
        "flaredb",
        "serve",
        "--tls",
        "off",
        "--number",
        "1",
        "--cluster",
        cluster,
        "--coordinator",
        "http://127.0.0.1:1",
    ]));
    assert!(r.code == 5 && r.err.contains("loopback"), "{}", r.err);
}
