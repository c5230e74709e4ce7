//! Called as `etcd`, photon is one: what starts an etcd starts ChainFire.

use photon_auth::{Authority, Leaf};
use photon_lab::cloud::photon_exe;
use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// A process that ends with the value.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn ports<const N: usize>() -> [u16; N] {
    let sockets = [(); N].map(|()| TcpListener::bind("127.0.0.1:0").expect("loopback"));
    sockets.map(|s| s.local_addr().expect("address").port())
}

fn etcd(dir: &Path, args: &[String]) -> Running {
    let name: PathBuf = dir.join("etcd");
    if !name.exists() {
        std::os::unix::fs::symlink(photon_exe(), &name).expect("a link");
    }
    let mut command = Command::new(name);
    command.args(args).current_dir(dir).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Running(command.spawn().expect("starts"))
}

fn etcdctl(args: &[&str]) -> Result<String, String> {
    let out = Command::new("etcdctl").args(args).output().expect("etcdctl is missing: run ./dev setup");
    let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
    if out.status.success() { Ok(text(&out.stdout)) } else { Err(text(&out.stderr)) }
}

/// Until it serves.
fn ok(args: &[&str]) -> String {
    let begun = Instant::now();
    loop {
        match etcdctl(args) {
            Ok(out) => return out,
            Err(e) if begun.elapsed() > Duration::from_secs(60) => panic!("etcdctl {args:?}: {e}"),
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// As in "Clustering guide", section "Static", of etcd's documentation.
#[test]
fn three_members_by_the_flags_of_etcds_guide() {
    let dir = tempfile::tempdir().expect("temp dir");
    let [c0, c1, c2, p0, p1, p2] = ports::<6>();
    let all =
        format!("infra0=http://127.0.0.1:{p0},infra1=http://127.0.0.1:{p1},infra2=http://127.0.0.1:{p2}");
    let members: Vec<Running> = [(c0, p0), (c1, p1), (c2, p2)]
        .into_iter()
        .enumerate()
        .map(|(i, (client, peer))| {
            let (client, peer) = (format!("http://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
            let words = [
                ("--name", format!("infra{i}")),
                ("--initial-advertise-peer-urls", peer.clone()),
                ("--listen-peer-urls", peer),
                ("--listen-client-urls", client.clone()),
                ("--advertise-client-urls", client),
                ("--initial-cluster-token", "etcd-cluster-1".into()),
                ("--initial-cluster", all.clone()),
                ("--initial-cluster-state", "new".into()),
            ];
            let args: Vec<String> = words.into_iter().flat_map(|(n, v)| [n.to_string(), v]).collect();
            etcd(dir.path(), &args)
        })
        .collect();
    let (a, c) = (format!("http://127.0.0.1:{c0}"), format!("http://127.0.0.1:{c2}"));
    ok(&["--endpoints", &a, "put", "foo", "bar"]);
    assert_eq!(ok(&["--endpoints", &c, "get", "foo", "--print-value-only"]), "bar\n");
    assert_eq!(ok(&["--endpoints", &c, "member", "list"]).lines().count(), 3);
    assert!(dir.path().join("infra1.etcd").is_dir(), "etcd's own default folder");
    drop(members);
}

/// The manifest that kubeadm 1.31 writes, and its probes.
#[test]
fn one_member_by_the_flags_of_kubeadm() {
    let dir = tempfile::tempdir().expect("temp dir");
    let now = photon_rt::time::wall();
    let ca = Authority::open(&dir.path().join("ca"), "kubernetes", now).expect("authority");
    let leaf = Leaf {
        identity: "host/node".parse().expect("identity"),
        dns: vec!["localhost".into()],
        addresses: vec!["127.0.0.1".parse().expect("address"), "127.0.0.2".parse().expect("address")],
        valid: Duration::from_secs(86_400),
    };
    let pair = ca.issue(&leaf, now).expect("certificate");
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).expect("write");
        path.display().to_string()
    };
    let (cert, key) = (file("server.crt", &pair.cert_pem), file("server.key", &pair.key_pem));
    let authority = file("ca.crt", ca.cert_pem());
    let [client, peer, metrics] = ports::<3>();
    let line = format!(
        "--advertise-client-urls=https://127.0.0.2:{client} --cert-file={cert} --client-cert-auth=true \
         --data-dir={data} --experimental-initial-corrupt-check=true \
         --experimental-watch-progress-notify-interval=5s --initial-advertise-peer-urls=https://127.0.0.2:{peer} \
         --initial-cluster=node=https://127.0.0.2:{peer} --key-file={key} \
         --listen-client-urls=https://127.0.0.1:{client},https://127.0.0.2:{client} \
         --listen-metrics-urls=http://127.0.0.1:{metrics} --listen-peer-urls=https://127.0.0.2:{peer} --name=node \
         --peer-cert-file={cert} --peer-client-cert-auth=true --peer-key-file={key} \
         --peer-trusted-ca-file={authority} --snapshot-count=10000 --trusted-ca-file={authority}",
        data = dir.path().join("data").display(),
    );
    let args: Vec<String> = line.split_whitespace().map(String::from).collect();
    let running = etcd(dir.path(), &args);
    for address in ["127.0.0.1", "127.0.0.2"] {
        let url = format!("https://{address}:{client}");
        let with = ["--endpoints", &url, "--cacert", &authority, "--cert", &cert, "--key", &key];
        ok(&[&with[..], &["put", "registry", address]].concat());
        assert!(
            etcdctl(&[
                "--endpoints",
                &url,
                "--cacert",
                &authority,
                "get",
                "registry",
                "--command-timeout=2s"
            ])
            .is_err(),
            "strangers are let in"
        );
    }
    for page in ["health?serializable=true", "readyz", "metrics"] {
        let out = Command::new("curl")
            .args(["-sSf", &format!("http://127.0.0.1:{metrics}/{page}")])
            .output()
            .expect("curl");
        assert!(out.status.success(), "{page}: {}", String::from_utf8_lossy(&out.stderr));
    }
    drop(running);
    // What is not possible is said, not overlooked.
    let refused = Command::new(dir.path().join("etcd")).arg("--auto-tls").output().expect("runs");
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("auto-tls"));
}

/// What callers with certificates may do where users are on: the same with etcd and here.
#[test]
fn users_are_named_by_certificates() {
    let dir = tempfile::tempdir().expect("temp dir");
    let now = photon_rt::time::wall();
    let ca = Authority::open(&dir.path().join("ca"), "somebody else's", now).expect("authority");
    let files = |identity: &str| {
        let leaf = Leaf {
            identity: identity.parse().expect("identity"),
            dns: vec!["localhost".into()],
            addresses: vec!["127.0.0.1".parse().expect("address")],
            valid: Duration::from_secs(86_400),
        };
        let pair = ca.issue(&leaf, now).expect("certificate");
        [("crt", pair.cert_pem), ("key", pair.key_pem)].map(|(end, text)| {
            let path = dir.path().join(format!("{}.{end}", identity.replace('/', "-")));
            std::fs::write(&path, text).expect("write");
            path.display().to_string()
        })
    };
    let [cert, key] = files("host/node");
    // The common names are `user/alice` and `user/bob`.
    let (alice, bob) = (files("user/alice"), files("user/bob"));
    let authority = dir.path().join("ca.crt").display().to_string();
    std::fs::write(&authority, ca.cert_pem()).expect("write");
    let run = |program: &Path, name: &str| -> Vec<Result<String, String>> {
        let [client, peer] = ports::<2>();
        let (url, peer) = (format!("https://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
        let flags = [
            ("--data-dir", &dir.path().join(format!("{name}.data")).display().to_string()),
            ("--listen-client-urls", &url),
            ("--advertise-client-urls", &url),
            ("--listen-peer-urls", &peer),
            ("--initial-advertise-peer-urls", &peer),
            ("--initial-cluster", &format!("default={peer}")),
            ("--cert-file", &cert),
            ("--key-file", &key),
            ("--trusted-ca-file", &authority),
        ];
        let mut command = Command::new(program);
        command.args(flags.iter().flat_map(|(f, v)| [*f, v.as_str()])).arg("--client-cert-auth");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let running = Running(command.spawn().expect("starts"));
        // What etcdctl says to somebody, or the last line of why not.
        let says = |who: &[String; 2], step: &str| {
            let fixed = ["--endpoints", &url, "--cacert", &authority, "--cert", &who[0], "--key", &who[1]];
            let said = etcdctl(&[&fixed[..], &step.split(' ').collect::<Vec<_>>()].concat());
            said.map_err(|e| format!("{step}: {}", e.trim().lines().last().unwrap_or_default()))
        };
        let begun = Instant::now();
        while let Err(e) = says(&alice, "put z 1") {
            assert!(begun.elapsed() < Duration::from_secs(60), "{e}");
            std::thread::sleep(Duration::from_millis(100));
        }
        let _ = says(&alice, "role add root"); // it may be there
        for step in [
            "user add root:secret",
            "user grant-role root root",
            "user add user/alice --no-password",
            "role add r",
            "role grant-permission r readwrite k",
            "user grant-role user/alice r",
            "auth enable",
        ] {
            says(&alice, step).expect("users, roles");
        }
        let told = [
            (&alice, "put k v"),
            (&alice, "get k --print-value-only"),
            (&alice, "put z 2"),
            (&alice, "get z"),
            (&alice, "user list"),
            (&alice, "put z 3 --user root:secret"),
            (&alice, "get z --print-value-only --user root:secret"),
            (&alice, "get z --user root:wrong"),
            (&bob, "get k"),
            (&bob, "put k w"),
            (&bob, "user list"),
        ]
        .map(|(who, step)| says(who, step));
        drop(running);
        told.to_vec()
    };
    let theirs = run(Path::new("etcd"), "etcd");
    let link = dir.path().join("etcd");
    std::os::unix::fs::symlink(photon_exe(), &link).expect("a link");
    let ours = run(&link, "photon");
    assert_eq!(ours, theirs);
    assert!(ours[0].is_ok() && ours[5].is_ok() && ours[2].is_err() && ours[8].is_err(), "{ours:?}");
}
