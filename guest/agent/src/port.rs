//! The virtio-serial port to the host: waiting for it, reading bounded lines, answering.

use crate::{
    State, boot,
    protocol::{self, After, Facts, LINE_MAX},
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    system::RebootCommand,
};
use std::{
    fs::{File, OpenOptions},
    io::{Read, Write},
    sync::Mutex,
    time::Duration,
};

const PORT: &str = "photon.agent.0";
/// How often a port without a host is looked at again: the port gives no other sign.
const ABSENT: Duration = Duration::from_millis(100);

struct Guest<'a>(&'a Mutex<State>);

impl Facts for Guest<'_> {
    fn ready(&self) -> bool {
        self.0.lock().is_ok_and(|s| s.ready)
    }
    fn file(&self, path: &str) -> String {
        let mut text = String::new();
        let _ = File::open(path).and_then(|f| f.take(256 * 1024).read_to_string(&mut text));
        text
    }
}

/// The port's device, found by the name that the host gave it (no udev here to make a link).
fn open() -> Option<File> {
    for entry in std::fs::read_dir("/sys/class/virtio-ports").ok()?.flatten() {
        let name = std::fs::read_to_string(entry.path().join("name")).unwrap_or_default();
        if name.trim() == PORT {
            let dev = std::path::Path::new("/dev").join(entry.file_name());
            return OpenOptions::new().read(true).write(true).open(dev).ok();
        }
    }
    None
}

fn send(port: &mut File, value: &serde_json::Value) -> std::io::Result<()> {
    let mut line = value.to_string();
    line.truncate(LINE_MAX - 1);
    line.push('\n');
    port.write_all(line.as_bytes())
}

/// Serves the port for ever; waits for it to appear first.
pub fn serve(state: &Mutex<State>) {
    let mut port = loop {
        match open() {
            Some(p) => break p,
            None => std::thread::sleep(ABSENT),
        }
    };
    let facts = Guest(state);
    let mut line: Vec<u8> = Vec::new();
    let mut skip = false; // inside a line that was too long
    let mut announced = false;
    loop {
        let flags = wait(&port, announced);
        if flags.contains(PollFlags::HUP) {
            // Nobody there: forget half a line, and announce again to whoever comes.
            (announced, skip) = (false, false);
            line.clear();
            std::thread::sleep(ABSENT);
            continue;
        }
        if !announced && facts.ready() {
            announced = send(&mut port, &serde_json::json!({"event": "ready"})).is_ok();
        }
        if !flags.contains(PollFlags::IN) {
            continue;
        }
        let mut chunk = [0; 1024];
        let n = port.read(&mut chunk).unwrap_or(0);
        for &b in &chunk[..n] {
            if b != b'\n' {
                skip |= line.len() >= LINE_MAX;
                if !skip {
                    line.push(b);
                }
                continue;
            }
            let (answer, after) = protocol::answer(if skip { b"too long" } else { &line }, &facts);
            (skip, line) = (false, Vec::new());
            let _ = send(&mut port, &answer);
            match after {
                After::Stay => {}
                After::PowerOff => boot::halt(RebootCommand::PowerOff),
                After::Reboot => boot::halt(RebootCommand::Restart),
            }
        }
    }
}

/// Waits for a sign of the port; only briefly before `ready` was announced, so that it is soon after
/// it is true.
fn wait(port: &File, announced: bool) -> PollFlags {
    let mut fds = [PollFd::new(port, PollFlags::IN)];
    let limit = if announced {
        Timespec { tv_sec: 5, tv_nsec: 0 }
    } else {
        Timespec { tv_sec: 0, tv_nsec: 50_000_000 }
    };
    match poll(&mut fds, Some(&limit)) {
        Ok(_) => fds[0].revents(),
        Err(_) => PollFlags::empty(),
    }
}
