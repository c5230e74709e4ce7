//! A ChainFire on loopback, and the foreign programs beside it.

use chainfire::{Anonymous, ChainFire, ChainFireConfig, Scope};
use photon_rt::{
    net::{TcpListener, TcpStream},
    process::{Child, Command},
    task::Tasks,
    time::Duration,
};
use photon_serve::authority::Tolerant;
use std::{net::SocketAddr, path::Path, process::Stdio};
use tonic::transport::{Channel, Endpoint};

/// A running ChainFire with one plain listener for each scope.
pub struct Server {
    pub chainfire: ChainFire,
    pub operator: String,
    pub tenant: String,
    /// As the plain-text drop-in has it: sees all, and is nobody.
    pub open: String,
    /// Its callers are unknown.
    pub nobody: String,
    tasks: Tasks,
}

/// Accepts as the house's listener does, without TLS.
struct Plain(TcpListener);

impl axum::serve::Listener for Plain {
    type Io = Tolerant<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, SocketAddr) {
        let (io, addr) = self.0.accept().await.expect("accepts");
        io.set_nodelay(true).expect("TCP_NODELAY");
        (Tolerant::new(io), addr)
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

async fn listen(tasks: &Tasks, router: axum::Router) -> String {
    let listener = photon_rt::net::listen(SocketAddr::from(([127, 0, 0, 1], 0))).await.expect("loopback");
    let addr = listener.local_addr().expect("address");
    tasks.spawn("listener", async move {
        axum::serve(Plain(listener), router).await.expect("serve");
    });
    format!("http://{addr}")
}

impl Server {
    pub async fn start(dir: &Path) -> Server {
        Self::with(ChainFireConfig {
            progress_interval: Duration::from_millis(300),
            ..ChainFireConfig::new(dir)
        })
        .await
    }

    pub async fn with(config: ChainFireConfig) -> Server {
        Self::open(config).await.expect("ChainFire opens")
    }

    pub async fn open(config: ChainFireConfig) -> photon_base::Result<Server> {
        let chainfire = ChainFire::open(config).await?;
        let tasks = Tasks::new();
        let router = chainfire.router();
        let operator = listen(&tasks, router.clone().layer(axum::Extension(Scope::Operator))).await;
        let tenant = listen(&tasks, router.clone().layer(axum::Extension(Scope::Tenant))).await;
        let open = listen(
            &tasks,
            router.clone().layer(axum::Extension(Scope::Operator)).layer(axum::Extension(Anonymous)),
        )
        .await;
        let nobody = listen(&tasks, router).await;
        Ok(Server { chainfire, operator, tenant, open, nobody, tasks })
    }

    pub async fn stop(self) {
        self.tasks.shutdown().await;
        self.chainfire.shutdown().await;
    }
}

/// A gRPC channel.
pub async fn channel(url: &str) -> Channel {
    Endpoint::from_shared(url.to_string()).expect("url").tcp_nodelay(true).connect().await.expect("connects")
}

/// Runs etcdctl; its output, or what it complained about.
pub async fn etcdctl(url: &str, args: &[&str], stdin: Option<&str>) -> Result<String, String> {
    let mut all = vec!["--endpoints", url];
    all.extend(args);
    match photon_rt::process::run("etcdctl", &all, stdin.map(str::as_bytes), Duration::from_secs(20)).await {
        Ok(out) => Ok(String::from_utf8_lossy(&out).into_owned()),
        Err(e) if e.code == photon_base::Code::Unsupported => {
            panic!("etcdctl is missing: run ./dev setup ({e})")
        }
        Err(e) => Err(e.to_string()),
    }
}

/// etcdctl that must succeed.
pub async fn ok(url: &str, args: &[&str]) -> String {
    etcdctl(url, args, None).await.unwrap_or_else(|e| panic!("etcdctl {args:?}: {e}"))
}

/// A real etcd in a folder of its own.
pub struct Etcd {
    pub url: String,
    peer: String,
    child: Child,
}

/// Free ports: bound, noted, released. The next to bind them is etcd, unless somebody races us.
async fn free_ports() -> [u16; 2] {
    let mut ports = [0; 2];
    let mut held = Vec::new();
    for p in &mut ports {
        let l = photon_rt::net::listen(SocketAddr::from(([127, 0, 0, 1], 0))).await.expect("loopback");
        *p = l.local_addr().expect("address").port();
        held.push(l);
    }
    ports
}

impl Etcd {
    pub async fn start(dir: &Path) -> Etcd {
        let [client, peer] = free_ports().await;
        Etcd::healthy(Etcd::spawn(dir, "http", client, peer, &[])).await
    }

    /// As [`Etcd::start`], with certificates on both sides: etcd's, and the authority of its clients.
    pub async fn start_tls(dir: &Path, [cert, key, ca]: [&Path; 3]) -> Etcd {
        let [client, peer] = free_ports().await;
        let path = |p: &Path| p.display().to_string();
        let (cert, key, ca) = (path(cert), path(key), path(ca));
        let flags =
            ["--cert-file", &cert, "--key-file", &key, "--trusted-ca-file", &ca, "--client-cert-auth"];
        Etcd::spawn(dir, "https", client, peer, &flags)
    }

    /// Kills it, and starts it again on the same ports and folder. It may not answer yet.
    pub async fn restart(mut self, dir: &Path) -> Etcd {
        self.child.kill().await.expect("etcd is killed");
        let port = |url: &str| url.rsplit(':').next().and_then(|p| p.parse().ok()).expect("a port");
        Etcd::spawn(dir, "http", port(&self.url), port(&self.peer), &[])
    }

    /// Three members; each answers, and they have a leader.
    pub async fn three(dir: &Path) -> Vec<Etcd> {
        let mut ports = Vec::new();
        for _ in 0..3 {
            ports.push(free_ports().await);
        }
        let all: Vec<String> =
            ports.iter().map(|[_, peer]| format!("m{peer}=http://127.0.0.1:{peer}")).collect();
        let mut members = Vec::new();
        for [client, peer] in ports {
            let flags = ["--name", &format!("m{peer}"), "--initial-cluster", &all.join(",")];
            members.push(Etcd::spawn(&dir.join(peer.to_string()), "http", client, peer, &flags));
        }
        let mut healthy = Vec::new();
        for m in members {
            healthy.push(Etcd::healthy(m).await);
        }
        healthy
    }

    /// Sends it a signal: STOP, CONT, KILL.
    pub async fn signal(&self, name: &str) {
        let pid = self.child.id().expect("it runs").to_string();
        photon_rt::process::run("kill", &[&format!("-{name}"), &pid], None, Duration::from_secs(5))
            .await
            .expect("kill");
    }

    fn spawn(dir: &Path, scheme: &str, client: u16, peer: u16, more: &[&str]) -> Etcd {
        let (client, peer) = (format!("{scheme}://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
        let alone = format!("default={peer}");
        let cluster: &[&str] =
            if more.contains(&"--initial-cluster") { &[] } else { &["--initial-cluster", &alone] };
        let child = Command::new("etcd")
            .arg("--data-dir")
            .arg(dir)
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--log-level", "error"])
            .args(cluster)
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|e| panic!("etcd is missing: run ./dev setup ({e})"));
        Etcd { url: client, peer, child }
    }

    async fn healthy(mut etcd: Etcd) -> Etcd {
        for _ in 0..100 {
            let asked = etcdctl(
                &etcd.url,
                &["endpoint", "health", "--dial-timeout=200ms", "--command-timeout=500ms"],
                None,
            );
            if asked.await.is_ok() {
                return etcd;
            }
            if let Ok(Some(status)) = etcd.child.try_wait() {
                panic!("etcd ended at once: {status}");
            }
            photon_rt::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("etcd did not become healthy");
    }
}
