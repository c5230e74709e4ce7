//! The README's tour, executed as it stands there: first `./dev up`, then each command in the order of
//! the page. Two commands wait for a person; the test plays that person.

use photon_lab::{
    cloud::{BOOT, photon_exe, root, target_dir},
    host::{Traces, alone},
};
use std::{
    io::{Read, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

/// The commands between the fences that say `tour`, which are all that name `photon`.
fn tour() -> Vec<String> {
    let readme = std::fs::read_to_string(root().join("README.md")).expect("README.md");
    let blocks: Vec<&str> =
        readme.split("```sh tour\n").skip(1).filter_map(|t| t.split("```").next()).collect();
    let command = |l: &str| l.split("  #").next().unwrap_or(l).trim().to_string();
    let commands: Vec<String> =
        blocks.iter().flat_map(|b| b.lines()).map(command).filter(|l| !l.is_empty()).collect();
    let named = readme.lines().filter(|l| l.starts_with("photon ")).count();
    let run = commands.iter().filter(|c| c.starts_with("photon ")).count();
    assert_eq!((blocks.len(), run), (3, named), "a command of README.md is outside of its tour");
    commands
}

/// A shell that goes from command to command, as a person's does.
struct Shell {
    child: Child,
    input: ChildStdin,
    output: Arc<Mutex<String>>,
    seen: usize,
    count: usize,
    data: PathBuf,
}

impl Shell {
    fn start(data: &Path) -> Shell {
        let mut child = Command::new("sh")
            .current_dir(root())
            .env("PHOTON_DATA_DIR", data)
            .env("CARGO_TARGET_DIR", target_dir().parent().expect("target"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("sh");
        let output = Arc::new(Mutex::new(String::new()));
        for mut pipe in [
            Box::new(child.stdout.take().expect("stdout")) as Box<dyn Read + Send>,
            Box::new(child.stderr.take().expect("stderr")),
        ] {
            let output = output.clone();
            std::thread::spawn(move || {
                let mut buffer = [0u8; 4096];
                while let Ok(n) = pipe.read(&mut buffer) {
                    if n == 0 {
                        return;
                    }
                    output.lock().expect("output").push_str(&String::from_utf8_lossy(&buffer[..n]));
                }
            });
        }
        let input = child.stdin.take().expect("stdin");
        Shell { child, input, output, seen: 0, count: 0, data: data.to_path_buf() }
    }

    /// What was printed since the last command began.
    fn text(&self) -> String {
        self.output.lock().expect("output")[self.seen..].to_string()
    }

    fn wait(&self, what: &str, limit: Duration, f: impl Fn(&str) -> bool) -> String {
        let until = Instant::now() + limit;
        loop {
            let t = self.text();
            if f(&t) {
                return t;
            }
            assert!(Instant::now() < until, "waited {} s for {what}; printed:\n{t}", limit.as_secs());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Runs a command to its end; it must succeed. Returns what it printed.
    fn run(&mut self, command: &str, limit: Duration) -> String {
        self.seen = self.output.lock().expect("output").len();
        self.count += 1;
        let mark = format!("@@{}:", self.count);
        writeln!(self.input, "{command}\necho \"@@{}:$?\"", self.count).expect("the shell lives");
        let text = self.wait(command, limit, |t| t.contains(&mark));
        let (printed, status) = text.split_once(&mark).expect("the mark");
        assert!(status.starts_with('0'), "`{command}` ended with {}:\n{printed}", status.trim());
        printed.to_string()
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        // After a failure the cloud still runs.
        let down = ["down", "--vms"];
        let _ = Command::new(photon_exe()).env("PHOTON_DATA_DIR", &self.data).args(down).output();
    }
}

/// `photon vm console` on a pseudo-terminal, with somebody typing.
fn at_the_console(shell: &mut Shell, command: &str) {
    // A person would ping again until b has booted; b has when its own console shows a login.
    let booted = "until photon vm console b --project demo </dev/null | grep -q 'b login:'; do :; done";
    shell.run(booted, BOOT);
    // `script` gives the console a terminal; the fifo is the keyboard.
    let keyboard = format!("/tmp/photon-tour-{}", std::process::id());
    let screen = format!("{keyboard}.screen");
    shell.run(&format!("rm -f {keyboard} {screen}; mkfifo {keyboard}"), Duration::from_secs(5));
    shell.run(
        &format!("script -qefc '{command}' {screen} < {keyboard} > /dev/null 2>&1 & exec 9> {keyboard}"),
        Duration::from_secs(5),
    );
    let see = |what: &str, text: &str| {
        let until = Instant::now() + BOOT;
        loop {
            let all = std::fs::read(&screen).unwrap_or_default();
            let all = String::from_utf8_lossy(&all).into_owned();
            if all.contains(text) {
                return;
            }
            assert!(Instant::now() < until, "the console never showed {what}:\n{all}");
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    see("a login prompt", "a login:");
    shell.run("printf 'root\\r' >&9", Duration::from_secs(5));
    see("a shell", "root@a:");
    shell.run("printf 'ping -c 2 b.demo.photon.internal\\r' >&9", Duration::from_secs(5));
    see("an answer of b", "2 packets transmitted, 2 packets received");
    shell.run("printf '\\035' >&9; exec 9>&-; wait", Duration::from_secs(20));
    shell.run(&format!("rm -f {keyboard} {screen}"), Duration::from_secs(5));
}

#[test]
fn tour_of_the_readme() {
    assert!(rustix::process::geteuid().is_root(), "the tour needs root: networks of its own");
    let _alone = alone();
    let before = Traces::now();
    let dir = tempfile::Builder::new().prefix("pt").rand_bytes(5).tempdir_in("/tmp").expect("folder");
    let mut shell = Shell::start(dir.path());
    shell.run("rm -rf /tmp/photon-second", Duration::from_secs(5)); // of a run that was cut off
    let commands = tour();
    assert!(commands.len() >= 30, "{commands:?}");
    for c in &commands {
        let long = Duration::from_secs(600);
        if c.starts_with("photon vm console") {
            at_the_console(&mut shell, c);
        } else if c.contains("etcdctl watch") {
            let (put, watch) = c.split_once("&&").expect("put, then watch");
            shell.run(put, long);
            let seen = shell.run(&format!("timeout 5 {} || [ $? = 124 ]", watch.trim()), long);
            assert!(seen.contains("PUT\ngreeting\nhello"), "{seen}");
        } else {
            let printed = shell.run(c, long);
            if c.starts_with("dig") {
                assert!(printed.contains("10.20.0.2"), "{printed}");
            }
            if c.contains("--dry-run") {
                let left = shell.run("photon vm list --project demo -o name", long);
                assert!(
                    printed.contains("tiny") && !left.lines().any(|l| l.ends_with('d')),
                    "{printed}{left}"
                );
            }
            if c.contains("tier=lab") {
                assert!(printed.contains("c ") && !printed.contains("10.20.0."), "{printed}");
            } else if c.starts_with("photon audit") {
                let both = printed.contains("user/admin") && printed.contains("service/plasmavmc-vm");
                assert!(both && printed.contains("service/iam-first-start"), "{printed}");
            } else if c.starts_with("photon vm list") {
                assert!(printed.contains("running") && printed.contains("10.20.0.3"), "{printed}");
            }
            if c.starts_with("photon metrics targets") {
                assert!(printed.contains("chainfire") && !printed.contains("down"), "{printed}");
            } else if c.starts_with("photon metrics query") {
                assert!(printed.contains("{job=\"photon\"}"), "{printed}");
            } else if c.starts_with("photon metrics range") {
                assert!(printed.contains("CHART") && printed.contains("node="), "{printed}");
            } else if c.starts_with("photon flaredb scan") {
                assert!(printed.contains("greeting") && printed.contains("bye"), "{printed}");
            }
            if c.starts_with("photon node list") {
                assert!(printed.contains("second") && printed.contains("leader"), "{printed}");
            }
            if c.contains("/tmp/photon-second project list") {
                assert!(printed.contains("demo"), "{printed}");
            }
            if c.starts_with("photon image list") {
                assert!(printed.contains("tiny") && printed.contains("ready"), "{printed}");
            }
        }
    }
    // The second machine has gone by itself; this only finds it so.
    shell.run(
        "photon --data-dir /tmp/photon-second down && rm -rf /tmp/photon-second",
        Duration::from_secs(60),
    );
    let again = shell.run("./dev up --detach", Duration::from_secs(120));
    assert!(again.contains("running already"), "{again}");
    for c in [
        "photon vm delete b --project demo --wait",
        "photon network delete lan --project demo --wait",
        "photon project delete demo",
        "photon down --vms",
    ] {
        shell.run(c, Duration::from_secs(60));
    }
    let left = Traces::since(&before);
    assert!(left.is_empty(), "the tour left {left:?} on this host");
}
