//! Hosts as network namespaces on a bridge, with real processes and real faults: kill -9, stop and go on,
//! cut connections in one or both directions. All of it goes when [`Hosts`] is dropped.

use std::{
    fs::File,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU16, Ordering},
};

static NEXT: AtomicU16 = AtomicU16::new(0);

/// Namespaces `ph-lab-…`, joined by a bridge in a namespace of its own.
pub struct Hosts {
    tag: String,
    net: [u8; 2],
    hosts: Vec<Option<Child>>,
    mounts: Vec<String>,
    pub dir: tempfile::TempDir,
}

fn run(program: &str, args: &[&str]) {
    let out = Command::new(program).args(args).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    let err = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{program} {args:?}: {err} (the lab needs root and ./dev setup)");
}

impl Hosts {
    /// `count` hosts that reach each other.
    pub fn new(count: usize) -> Hosts {
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let tag = format!("{:x}-{id}", std::process::id());
        let hosts = (0..count).map(|_| None).collect();
        let dir = tempfile::Builder::new().prefix("phlab").tempdir().expect("temp dir");
        let h = Hosts { tag, net: [97, id as u8], hosts, mounts: Vec::new(), dir };
        let hub = h.hub();
        run("ip", &["netns", "add", &hub]);
        run(
            "ip",
            &["-n", &hub, "link", "add", "br0", "type", "bridge", "stp_state", "0", "forward_delay", "0"],
        );
        run("ip", &["-n", &hub, "link", "set", "br0", "up"]);
        for i in 0..count {
            let (ns, port, address) = (h.netns(i), format!("p{i}"), format!("{}/24", h.address(i)));
            run("ip", &["netns", "add", &ns]);
            run("ip", &["-n", &ns, "link", "set", "lo", "up"]);
            run(
                "ip",
                &["-n", &ns, "link", "add", "eth0", "type", "veth", "peer", "name", &port, "netns", &hub],
            );
            run("ip", &["-n", &hub, "link", "set", &port, "master", "br0", "up"]);
            run("ip", &["-n", &ns, "addr", "add", &address, "dev", "eth0"]);
            run("ip", &["-n", &ns, "link", "set", "eth0", "up"]);
        }
        h
    }

    fn hub(&self) -> String {
        format!("ph-lab-{}", self.tag)
    }

    fn netns(&self, host: usize) -> String {
        format!("ph-lab-{}-{host}", self.tag)
    }

    /// Where sockets of a host are made.
    pub fn netns_path(&self, host: usize) -> PathBuf {
        Path::new("/run/netns").join(self.netns(host))
    }

    /// A host's address on the bridge.
    pub fn address(&self, host: usize) -> Ipv4Addr {
        Ipv4Addr::new(10, self.net[0], self.net[1], host as u8 + 1)
    }

    /// A host's folder.
    pub fn folder(&self, host: usize) -> PathBuf {
        self.dir.path().join(host.to_string())
    }

    /// Gives a host a small disk of `megabytes` (in memory) as its folder `data`.
    pub fn small_disk(&mut self, host: usize, megabytes: u64) {
        let data = self.folder(host).join("data");
        std::fs::create_dir_all(&data).expect("folder");
        let path = data.display().to_string();
        run("mount", &["-t", "tmpfs", "-o", &format!("size={megabytes}m,mode=700"), "lab", &path]);
        self.mounts.push(path);
    }

    /// Runs a program on a host; its output goes to `log` in the host's folder.
    pub fn start(&mut self, host: usize, program: &Path, args: &[String]) {
        assert!(self.hosts[host].is_none(), "host {host} runs something already");
        std::fs::create_dir_all(self.folder(host)).expect("folder");
        let log = File::options().create(true).append(true).open(self.folder(host).join("log")).expect("log");
        let child = self
            .command(host, program)
            .args(args)
            .stdout(log.try_clone().expect("log"))
            .stderr(log)
            .spawn()
            .expect("ip netns exec becomes the program");
        self.hosts[host] = Some(child);
    }

    /// A command that will run on a host.
    pub fn command(&self, host: usize, program: &Path) -> Command {
        let mut c = Command::new("ip");
        c.args(["netns", "exec", &self.netns(host)]).arg(program).stdin(Stdio::null());
        c
    }

    /// How a host's program ended, if it has by itself.
    pub fn ended(&mut self, host: usize) -> Option<i32> {
        let status = self.hosts[host].as_mut()?.try_wait().expect("a child")?;
        self.hosts[host] = None;
        Some(status.code().unwrap_or(-1))
    }

    /// Asks the program to end, and waits.
    pub fn stop(&mut self, host: usize) {
        self.signal(host, rustix::process::Signal::TERM);
        if let Some(mut child) = self.hosts[host].take() {
            child.wait().expect("it ends");
        }
    }

    /// True while a host's program is there.
    pub fn runs(&self, host: usize) -> bool {
        self.hosts[host].is_some()
    }

    fn signal(&self, host: usize, signal: rustix::process::Signal) {
        let Some(child) = &self.hosts[host] else { return };
        let pid = rustix::process::Pid::from_child(child);
        rustix::process::kill_process(pid, signal).expect("it runs");
    }

    /// kill -9.
    pub fn kill(&mut self, host: usize) {
        if let Some(mut child) = self.hosts[host].take() {
            let _ = child.kill(); // it may have ended
            let _ = child.wait();
        }
    }

    /// The program stands still; time goes on.
    pub fn pause(&self, host: usize) {
        self.signal(host, rustix::process::Signal::STOP);
    }

    pub fn resume(&self, host: usize) {
        self.signal(host, rustix::process::Signal::CONT);
    }

    /// Nothing of `from` arrives at `to` any more.
    pub fn cut(&self, from: usize, to: usize) {
        let rule = format!(
            "add table inet cut\nadd chain inet cut input {{ type filter hook input priority 0; }}\n\
             add rule inet cut input ip saddr {} drop\n",
            self.address(from)
        );
        let mut nft = Command::new("ip")
            .args(["netns", "exec", &self.netns(to), "nft", "-f", "-"])
            .stdin(Stdio::piped())
            .spawn()
            .expect("nft");
        use std::io::Write;
        nft.stdin.take().expect("piped").write_all(rule.as_bytes()).expect("nft reads");
        assert!(nft.wait().expect("nft").success(), "nft refuses {rule}");
    }

    /// Cuts one host off from all others, both ways.
    pub fn isolate(&self, host: usize) {
        for other in (0..self.hosts.len()).filter(|o| *o != host) {
            self.cut(host, other);
            self.cut(other, host);
        }
    }

    /// Everybody reaches everybody.
    pub fn heal(&self) {
        for host in 0..self.hosts.len() {
            let nft = "add table inet cut; delete table inet cut";
            run("ip", &["netns", "exec", &self.netns(host), "nft", nft]);
        }
    }

    /// The last lines that a host's program said, for a failing test.
    pub fn tail(&self, host: usize) -> String {
        let text = std::fs::read_to_string(self.folder(host).join("log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for host in 0..self.hosts.len() {
            self.resume(host);
            self.kill(host);
            let _ = Command::new("ip").args(["netns", "del", &self.netns(host)]).status();
        }
        let _ = Command::new("ip").args(["netns", "del", &self.hub()]).status();
        for path in &self.mounts {
            let _ = Command::new("umount").args(["-l", path]).status();
        }
    }
}
