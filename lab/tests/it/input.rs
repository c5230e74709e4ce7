//! Bad input on every port: nothing panics, memory stays bounded, answers are clear, nothing changes.

use photon_client::{Client, Credentials, Profile};
use photon_lab::cloud::Cloud;
use serde_json::{Value, json};
use std::{
    io::{Read, Write},
    net::{TcpStream, UdpSocket},
    time::Duration,
};

struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
    fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| self.next() as u8).collect()
    }
}

const TLS_PORTS: [u16; 6] = [8443, 2379, 2479, 8080, 9090, 9091];

fn resident_mib(pid: i32) -> u64 {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).expect("photon lives");
    statm.split_whitespace().nth(1).and_then(|p| p.parse::<u64>().ok()).expect("statm") * 4 / 1024
}

fn client(cloud: &Cloud) -> Client {
    let p = Profile::load(&cloud.dir.path().join("creds/admin.json")).expect("profile");
    Client::new(&p.endpoint, &p.ca, Credentials::Password { user: p.user, password: p.password })
        .expect("client")
}

/// Everything but audit and hosts' signs of life.
fn state(cloud: &Cloud) -> Value {
    let mut all = cloud.json(&["get", "all"]);
    let items = all["items"].as_array_mut().expect("items");
    items.retain(|o| o["kind"] != "host");
    all
}

#[test]
fn input_that_is_garbage_on_every_port() {
    let cloud = Cloud::new("user");
    cloud.up();
    cloud.ok(&["project", "create", "p"]);
    let before = state(&cloud);
    let pid = cloud.pid().expect("pid");
    let memory = resident_mib(pid);
    let mut dice = Dice(0x5eed);
    for port in TLS_PORTS {
        let open = || {
            let s = TcpStream::connect(("127.0.0.1", cloud.port(port))).expect("listens");
            s.set_read_timeout(Some(Duration::from_secs(5))).expect("timeout");
            s
        };
        // Random bytes; something that begins like a handshake; plain HTTP; nothing at all, held open.
        let mut held = Vec::new();
        for i in 0..60 {
            let mut s = open();
            let n = dice.below(4000) + 1;
            let mut junk = dice.bytes(n);
            match i % 4 {
                0 => {}
                1 => junk[..1].copy_from_slice(&[0x16]),
                2 => junk = [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".as_slice(), &junk].concat(),
                _ => {
                    held.push(s);
                    continue;
                }
            }
            let _ = s.write_all(&junk); // the server may hang up first
            let mut answer = Vec::new();
            let _ = s.take(4096).read_to_end(&mut answer);
        }
        let mut s = open();
        s.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").expect("write");
        let mut answer = String::new();
        let _ = s.read_to_string(&mut answer);
        assert!(answer.contains("this port speaks TLS"), "port {port}: {answer}");
    }
    let dns = UdpSocket::bind("127.0.0.1:0").expect("socket");
    for _ in 0..500 {
        let n = dice.below(600);
        let _ = dns.send_to(&dice.bytes(n), ("127.0.0.1", cloud.port(53)));
    }
    cloud.ok(&["status"]);
    assert_eq!(cloud.pid(), Some(pid), "photon was started anew: {}", cloud.log_tail());
    let now = resident_mib(pid);
    assert!(now < memory + 100, "memory went from {memory} MiB to {now} MiB");
    assert_eq!(state(&cloud), before);
    assert!(!cloud.log_tail().contains("panicked"), "{}", cloud.log_tail());
}

/// A value that belongs nowhere.
fn junk(dice: &mut Dice) -> Value {
    match dice.below(12) {
        0 => Value::Null,
        1 => json!(-1),
        2 => json!(1u64 << 63),
        3 => json!(1.5),
        4 => json!("X".repeat(dice.below(300))),
        5 => json!("../../etc/passwd"),
        6 => json!({}),
        7 => json!([[[]]]),
        8 => json!(true),
        9 => json!("a\u{0}b"),
        10 => json!("☃"),
        _ => json!([{"network": "nowhere"}]),
    }
}

/// A vm that is wrong in one to three places.
fn wrong_vm(dice: &mut Dice) -> Value {
    let mut vm = json!({"meta": {"name": "f"}, "spec": {"image": "tiny", "cpus": 1, "memory": "64MiB", "networks": []}});
    for _ in 0..=dice.below(2) {
        let v = junk(dice);
        if !vm["spec"].is_object() || !vm["meta"].is_object() {
            return vm;
        }
        match dice.below(9) {
            0 => vm["meta"]["name"] = v,
            1 => vm["spec"]["image"] = v,
            2 => vm["spec"]["cpus"] = json!(0),
            3 => vm["spec"]["memory"] = json!(["1", "-1MiB", "3TiB", "33333B", ""][dice.below(5)]),
            4 => vm["spec"]["networks"] = json!([{"network": "nowhere"}]),
            5 => vm["spec"]["power"] = json!("flying"),
            6 => vm["spec"]["surprise"] = v,
            7 => vm["meta"] = v,
            _ => vm["spec"] = json!("no"),
        }
    }
    vm
}

#[test]
fn input_of_thousands_of_wrong_vms_is_refused_and_leaves_nothing() {
    let cloud = Cloud::new("user");
    cloud.up();
    cloud.ok(&["project", "create", "p"]);
    let before = state(&cloud);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime");
    runtime.block_on(async {
        let c = client(&cloud);
        let mut dice = Dice(0xf00d);
        let mut fields = std::collections::BTreeSet::new();
        for n in 0..3000 {
            let vm = wrong_vm(&mut dice);
            let e =
                c.call(http::Method::POST, "/v1/projects/p/vms", Some(&vm)).await.expect_err(&vm.to_string());
            let code = e.code.http_status();
            assert!((400..500).contains(&code) && code != 401, "{n}: {vm}: {e:?}");
            assert!(!e.what.is_empty() && e.field.is_some(), "{n}: {vm}: {e:?}");
            fields.insert(e.field.unwrap_or_default());
        }
        assert!(fields.len() >= 6, "{fields:?}");
        // Bodies that are no objects at all, and one that is too large.
        for body in [json!(1), json!([]), json!("x"), json!({"meta": 1}), json!({"pad": "x".repeat(2 << 20)})]
        {
            let e = c.call(http::Method::POST, "/v1/projects/p/vms", Some(&body)).await.expect_err("refused");
            assert!((400..500).contains(&e.code.http_status()), "{e:?}");
        }
    });
    assert_eq!(state(&cloud), before);
    assert!(cloud.qemus().is_empty());
}

#[test]
fn input_without_identity_gets_only_health_and_version() {
    let cloud = Cloud::new("user");
    cloud.up();
    let ca = cloud.dir.path().join("creds/ca.crt");
    let get = |port: u16, path: &str, more: &[&str]| {
        let out = std::process::Command::new("curl")
            .args(["-s", "-o", "/dev/null", "-w", "%{http_code}", "--cacert", &ca.to_string_lossy()])
            .args(more)
            .arg(format!("https://127.0.0.1:{}{path}", cloud.port(port)))
            .output()
            .expect("curl; run ./dev setup");
        String::from_utf8_lossy(&out.stdout).into_owned()
    };
    // These have no resources, and so none of their paths.
    let is_store = |port| port == 2379 || port == 2479;
    for port in TLS_PORTS {
        assert_eq!(get(port, "/health", &[]), "200", "port {port}");
        assert_eq!(get(port, "/version", &[]), "200", "port {port}");
        for path in ["/v1", "/v1/vms", "/v1/projects/p/vms/a", "/openapi.json", "/metrics", "/v1/audit"] {
            let code = get(port, path, &[]);
            assert!(code == "401" || (is_store(port) && code == "404"), "port {port} {path}: {code}");
            let code = get(port, path, &["-H", "Authorization: Bearer x.y.z"]);
            assert!(code == "401" || (is_store(port) && code == "404"), "port {port} {path}: {code}");
        }
        let code =
            get(port, "/etcdserverpb.KV/Range", &["-X", "POST", "-H", "content-type: application/grpc"]);
        assert!(code != "200" || port == 2379, "port {port}: {code}"); // gRPC says no in its trailers
    }
    let out = std::process::Command::new("etcdctl")
        .env("ETCDCTL_API", "3")
        .args([
            "--endpoints",
            &format!("https://127.0.0.1:{}", cloud.port(2379)),
            "--cacert",
            &ca.to_string_lossy(),
        ])
        .args(["get", "--prefix", ""])
        .output()
        .expect("etcdctl; run ./dev setup");
    assert!(!out.status.success() && out.stdout.is_empty(), "an anonymous etcd client was answered");
}
