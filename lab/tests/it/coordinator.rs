//! A cloud whose records are in a real etcd, by TLS with certificates on both sides: the main job, and what happens
//! when the etcd or photon goes away and comes back.

use photon_auth::{Authority, CertPair, Identity, Kind, Leaf};
use photon_lab::{
    cloud::{BOOT, Cloud, Ran, wait},
    host::{Traces, alone},
};
use std::{
    net::{IpAddr, Ipv4Addr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

const LONG: Duration = Duration::from_secs(90);

/// A real etcd that asks for certificates.
pub struct Etcd {
    dir: tempfile::TempDir,
    client: u16,
    peer: u16,
    child: Child,
}

fn issue(ca: &Authority, identity: Identity, addresses: Vec<IpAddr>) -> CertPair {
    let leaf = Leaf { identity, dns: vec![], addresses, valid: Duration::from_secs(3600) };
    ca.issue(&leaf, photon_rt::time::wall()).expect("issue")
}

fn write(dir: &Path, name: &str, pair: &CertPair) {
    std::fs::write(dir.join(format!("{name}.crt")), &pair.cert_pem).expect("write");
    std::fs::write(dir.join(format!("{name}.key")), &pair.key_pem).expect("write");
}

impl Etcd {
    pub fn start() -> Etcd {
        let dir = tempfile::tempdir().expect("temp dir");
        let ca = Authority::open(&dir.path().join("ca"), "etcd", photon_rt::time::wall()).expect("authority");
        std::fs::write(dir.path().join("ca.crt"), ca.cert_pem()).expect("write");
        let host = Identity { kind: Kind::Host, name: "etcd".parse().expect("name") };
        write(dir.path(), "server", &issue(&ca, host, vec![Ipv4Addr::LOCALHOST.into()]));
        write(dir.path(), "client", &issue(&ca, Identity::user("cloud".parse().expect("name")), vec![]));
        // Free ports: bound, noted, released.
        let free = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").expect("loopback"));
        let [client, peer] = free.each_ref().map(|l| l.local_addr().expect("address").port());
        drop(free);
        let child = Etcd::spawn(dir.path(), client, peer);
        Etcd { dir, client, peer, child }
    }

    fn spawn(dir: &Path, client: u16, peer: u16) -> Child {
        let (client, peer) = (format!("https://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
        let file = |name: &str| dir.join(name).display().to_string();
        Command::new("etcd")
            .args(["--data-dir", &file("data"), "--listen-client-urls", &client])
            .args(["--advertise-client-urls", &client, "--listen-peer-urls", &peer])
            .args(["--initial-advertise-peer-urls", &peer, "--log-level", "error"])
            .args(["--initial-cluster", &format!("default={peer}"), "--client-cert-auth"])
            .args(["--cert-file", &file("server.crt"), "--key-file", &file("server.key")])
            .args(["--trusted-ca-file", &file("ca.crt")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("etcd; run ./dev setup")
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.client)
    }

    fn kill(&mut self) {
        self.child.kill().expect("kill");
        self.child.wait().expect("it ends");
    }

    fn again(&mut self) {
        self.child = Etcd::spawn(self.dir.path(), self.client, self.peer);
    }

    fn etcdctl(&self, args: &[&str]) -> Output {
        Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &self.url()])
            .args(["--cacert".into(), self.file("ca.crt"), "--cert".into(), self.file("client.crt")])
            .args(["--key".into(), self.file("client.key")])
            .args(args)
            .output()
            .expect("etcdctl; run ./dev setup")
    }

    pub fn answers(&self) -> bool {
        self.etcdctl(&["endpoint", "health"]).status.success()
    }

    /// etcdctl, with the certificate of the cloud.
    pub fn ctl(&self, args: &[&str]) -> String {
        let out = self.etcdctl(args);
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    /// `photon up --detach` of a cloud on this etcd.
    fn up(&self, cloud: &Cloud) -> Ran {
        cloud
            .command()
            .env("PHOTON_COORDINATOR", self.url())
            .env("PHOTON_COORDINATOR_CA", self.file("ca.crt"))
            .env("PHOTON_COORDINATOR_CERT", self.file("client.crt"))
            .env("PHOTON_COORDINATOR_KEY", self.file("client.key"))
            .args(["up", "--detach"])
            .output()
            .expect("photon runs")
            .into()
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn started(cloud: &Cloud, etcd: &Etcd) {
    let r = etcd.up(cloud);
    assert!(r.code == 0, "{}{}\n{}", r.out, r.err, cloud.log_tail());
}

#[test]
fn coordinator_is_a_real_etcd() {
    let _alone = alone();
    let before = Traces::now();
    let mut etcd = Etcd::start();
    let cloud = Cloud::new("host");
    started(&cloud, &etcd);

    // The main job.
    cloud.ok(&["project", "create", "p"]);
    cloud.ok(&["network", "create", "lan", "--project", "p", "--cidr", "10.40.0.0/24", "--wait"]);
    let lan = ["--network", "lan", "--memory", "96MiB", "--wait"];
    cloud.ok(&[&["vm", "create", "a", "--project", "p", "--image", "tiny"][..], &lan].concat());
    let netns = cloud.json(&["network", "get", "lan", "--project", "p"]);
    let netns = netns["status"]["netns"].as_str().expect("a namespace").to_string();
    wait("an answer to ping", BOOT, || {
        let mut ping = Command::new("ip");
        ping.args(["netns", "exec", &netns, "ping", "-c1", "-W1", "10.40.0.2"]).stdout(Stdio::null());
        ping.status().expect("ip").success()
    });

    // It says where its records are; they are there; no store of its own was made, and no port of one is open.
    let status = cloud.ok(&["status"]);
    assert!(status.contains(&format!("coordinator=\"{}\"", etcd.url())), "{status}");
    let keys = etcd.ctl(&["get", "--prefix", "/photon.internal/r/vm/", "--keys-only"]);
    assert_eq!(keys.trim(), "/photon.internal/r/vm/p/a");
    assert!(!cloud.dir.path().join("chainfire").exists());
    for port in [2379, 2380] {
        assert!(TcpStream::connect(("127.0.0.1", cloud.port(port))).is_err(), "port {port} is open");
    }
    assert!(!cloud.ok(&["env"]).contains("ETCDCTL"));
    let e = cloud.run(&["node", "token"]);
    assert!(e.code != 0 && e.err.contains("one node"), "{}{}", e.out, e.err);

    // Without its etcd the cloud says so, and goes on when it is back.
    etcd.kill();
    wait("the cloud to miss its etcd", LONG, || cloud.run(&["status"]).code == 7);
    etcd.again();
    wait("the cloud to find it again", LONG, || cloud.run(&["status"]).code == 0);
    cloud.ok(&["vm", "stop", "a", "--project", "p", "--wait"]);
    cloud.ok(&["vm", "start", "a", "--project", "p", "--wait"]);

    // A crash of photon.
    cloud.kill();
    started(&cloud, &etcd);
    wait("the VM", LONG, || {
        cloud.json(&["vm", "get", "a", "--project", "p"])["status"]["phase"] == "running"
    });

    // Nobody else's records, and none of its own beside them.
    let other = Cloud::new("user");
    let r = etcd.up(&other);
    assert!(r.code != 0 && format!("{}{}", r.err, other.log_tail()).contains("another cloud"), "{}", r.err);
    cloud.ok(&["down"]);
    let r = cloud.run(&["up", "--detach"]);
    assert!(r.code != 0 && format!("{}{}", r.err, cloud.log_tail()).contains("--coordinator"), "{}", r.err);
    started(&cloud, &etcd);

    cloud.ok(&["vm", "delete", "a", "--project", "p", "--wait"]);
    cloud.ok(&["network", "delete", "lan", "--project", "p", "--wait"]);
    assert_eq!(etcd.ctl(&["get", "--prefix", "/photon.internal/r/vm/", "--keys-only"]).trim(), "");
    cloud.ok(&["down"]);
    assert!(Traces::since(&before).is_empty(), "{:?}", Traces::since(&before));
}
