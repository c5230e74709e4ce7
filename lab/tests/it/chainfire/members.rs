//! Members of a store on their hosts: of ours, or of a real etcd with the same flags, certificates between
//! members and the same election timeout. Each runs in the gear that a scenario gives it.

use chainfire::wire::etcdserverpb::{StatusRequest, maintenance_client::MaintenanceClient};
use hyper_util::rt::TokioIo;
use photon_auth::{Authority, Leaf};
use photon_base::Timestamp;
use photon_lab::{cloud::photon_exe, hosts::Hosts};
use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use tonic::transport::{Channel, Endpoint};

/// Whose program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Product {
    Photon,
    Etcd,
}

/// What a member's host is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gear {
    Plain,
    /// Every fsync and fdatasync takes that many milliseconds longer (strace's fault injection).
    SlowDisk(u32),
    /// A data folder on a disk of that many megabytes.
    SmallDisk(u64),
    /// A wall clock that the scenario sets (libfaketime); monotonic clocks go on.
    WallClock,
    /// All clocks go that many percent faster, the monotonic one too (libfaketime).
    FastClock(u32),
}

const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";

/// Hosts with a member on each.
pub struct Members {
    pub hosts: Hosts,
    pub channels: Vec<Channel>,
    product: Product,
    /// The command line of each.
    args: Vec<Vec<String>>,
    gear: Vec<Gear>,
    bug: Option<&'static str>,
}

impl Members {
    /// `founders` members that run, and hosts for `more`; all with a planted bug (`chainfire`'s `plant.rs`).
    pub fn start(
        product: Product,
        founders: usize,
        more: usize,
        gear: &[Gear],
        bug: Option<&'static str>,
    ) -> Members {
        let count = founders + more;
        let mut hosts = Hosts::new(count);
        let args = equip(&hosts, product, founders, count);
        let gear: Vec<Gear> = (0..count).map(|h| gear.get(h).copied().unwrap_or(Gear::Plain)).collect();
        for (h, g) in gear.iter().enumerate() {
            match g {
                Gear::SmallDisk(mb) => hosts.small_disk(h, *mb),
                Gear::WallClock => std::fs::write(hosts.folder(h).join("clock"), "+0").expect("write"),
                _ => {}
            }
        }
        let channels = (0..count).map(|h| channel(hosts.netns_path(h))).collect();
        let mut m = Members { hosts, channels, product, args, gear, bug };
        (0..founders).for_each(|h| m.run(h));
        m
    }

    /// Starts a member.
    pub fn run(&mut self, host: usize) {
        let mut words: Vec<String> = self.bug.map(|b| format!("PHOTON_PLANT={b}")).into_iter().collect();
        match self.gear[host] {
            Gear::Plain | Gear::SmallDisk(_) => {}
            Gear::WallClock => {
                let file = self.hosts.folder(host).join("clock").display().to_string();
                words.push(format!("LD_PRELOAD={FAKETIME}"));
                words.push(format!("FAKETIME_TIMESTAMP_FILE={file}"));
                words.extend(["FAKETIME_NO_CACHE=1", "DONT_FAKE_MONOTONIC=1"].map(String::from));
            }
            Gear::FastClock(percent) => {
                words.push(format!("LD_PRELOAD={FAKETIME}"));
                words.push(format!("FAKETIME=+0 x1.{percent:02}"));
            }
            Gear::SlowDisk(ms) => {
                let calls = "fsync,fdatasync";
                words.extend(
                    ["strace", "-D", "-qq", "--seccomp-bpf", "-f", "-o", "/dev/null"].map(String::from),
                );
                words.extend(["-e".into(), format!("trace={calls}")]);
                words.extend(["-e".into(), format!("inject={calls}:delay_enter={ms}ms")]);
            }
        }
        words.push(match self.product {
            Product::Photon => photon_exe().display().to_string(),
            Product::Etcd => "etcd".into(),
        });
        words.extend(self.args[host].iter().cloned());
        self.hosts.start(host, Path::new("env"), &words);
    }

    /// The command line of a member.
    pub fn args(&self, host: usize) -> &[String] {
        &self.args[host]
    }

    /// Where it keeps what it has.
    pub fn data(&self, host: usize) -> PathBuf {
        self.hosts.folder(host).join("data")
    }

    /// Sets the wall clock of a host in [`Gear::WallClock`].
    pub fn set_clock(&self, host: usize, offset: &str) {
        assert_eq!(self.gear[host], Gear::WallClock);
        std::fs::write(self.hosts.folder(host).join("clock"), offset).expect("write");
    }

    /// The host of the leader, as some member says.
    pub async fn leader(&self) -> Option<usize> {
        for (i, c) in self.channels.iter().enumerate() {
            if self.status(c).await.is_some_and(|s| s.0 != 0 && s.0 == s.1) {
                return Some(i);
            }
        }
        None
    }

    /// The leader that a member knows, and its own id.
    pub async fn status(&self, channel: &Channel) -> Option<(u64, u64)> {
        let mut m = MaintenanceClient::new(channel.clone());
        let status = m.status(StatusRequest::default());
        let s = tokio::time::timeout(Duration::from_millis(500), status).await.ok()?.ok()?.into_inner();
        Some((s.leader, s.header?.member_id))
    }

    /// Waits for a condition; what the hosts said is shown when it does not come.
    pub async fn until(&mut self, what: &str, mut f: impl AsyncFnMut(&mut Members) -> bool) {
        let begun = Instant::now();
        while !f(self).await {
            if begun.elapsed() > Duration::from_secs(90) {
                let tails: Vec<String> =
                    (0..self.channels.len()).map(|h| format!("host {h}:\n{}", self.hosts.tail(h))).collect();
                panic!("{what} does not happen:\n{}", tails.join("\n"));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Gives each host a certificate (valid since long ago, as clocks will be set back), and the command line of
/// its member. Hosts beyond the founders join.
fn equip(hosts: &Hosts, product: Product, founders: usize, count: usize) -> Vec<Vec<String>> {
    let then = Timestamp(photon_rt::time::wall().0 - 3 * 86_400_000);
    let ca = Authority::open(&hosts.dir.path().join("ca"), "lab", then).expect("authority");
    let url = |i: usize| format!("n{i}=https://{}:2380", hosts.address(i));
    (0..count)
        .map(|i| {
            let folder = hosts.folder(i);
            std::fs::create_dir_all(&folder).expect("folder");
            let leaf = Leaf {
                identity: format!("host/n{i}").parse().expect("identity"),
                dns: vec![],
                addresses: vec![IpAddr::V4(hosts.address(i))],
                valid: Duration::from_secs(30 * 86_400),
            };
            let pair = ca.issue(&leaf, then).expect("certificate");
            let file = |name: &str, text: &str| {
                let path = folder.join(name);
                std::fs::write(&path, text).expect("write");
                path.display().to_string()
            };
            let (cert, key) = (file("peer.crt", &pair.cert_pem), file("peer.key", &pair.key_pem));
            let authority = file("ca.crt", ca.cert_pem());
            let data = folder.join("data").display().to_string();
            let name = format!("n{i}");
            let peer = format!("https://{}:2380", hosts.address(i));
            let all: Vec<String> =
                (0..founders.max(i + 1)).filter(|m| *m < founders || *m == i).map(url).collect();
            let all = all.join(",");
            let state = if i < founders { "new" } else { "existing" };
            let client = "http://127.0.0.1:2379";
            let mut words: Vec<&str> = Vec::new();
            match product {
                Product::Photon => words.extend(["chainfire", "serve", "--tls", "off"]),
                Product::Etcd => words.extend([
                    "--advertise-client-urls",
                    client,
                    "--initial-advertise-peer-urls",
                    &peer,
                    "--peer-client-cert-auth",
                    "--logger",
                    "zap",
                ]),
            }
            words.extend(["--name", &name, "--data-dir", &data, "--listen-client-urls", client]);
            words.extend(["--listen-peer-urls", &peer, "--initial-cluster", &all]);
            words.extend(["--initial-cluster-state", state, "--peer-cert-file", &cert]);
            words.extend(["--peer-key-file", &key, "--peer-trusted-ca-file", &authority]);
            words.into_iter().map(String::from).collect()
        })
        .collect()
}

/// A channel to a host's member, through the host's own loopback.
pub fn channel(netns: PathBuf) -> Channel {
    let connect = tower::service_fn(move |_: http::Uri| {
        let netns = netns.clone();
        async move {
            let connected = photon_rt::task::blocking(move || {
                photon_rt::net::in_netns(&netns, || {
                    let addr = ([127, 0, 0, 1], 2379).into();
                    let stream = std::net::TcpStream::connect_timeout(&addr, Duration::from_secs(1))?;
                    stream.set_nonblocking(true)?;
                    stream.set_nodelay(true)?;
                    Ok(stream)
                })
            });
            let stream = photon_rt::net::TcpStream::from_std(connected.await?)?;
            Ok::<_, std::io::Error>(TokioIo::new(stream))
        }
    });
    Endpoint::from_static("http://127.0.0.1:2379").connect_with_connector_lazy(connect)
}
