//! One JSON object a line in both directions. The host asks `{"id":1,"op":"ping"}` and gets
//! `{"id":1,"ok":true,…}` or `{"id":1,"ok":false,"error":"…"}`. The guest announces
//! `{"event":"ready"}` when its network is up, and again at every connection of the host after that,
//! because what is said while nobody is connected is lost.

use serde::Deserialize;
use serde_json::{Value, json};

/// Longest request and answer in bytes, newline included.
pub const LINE_MAX: usize = 16 * 1024;

/// A request of the host.
#[derive(Debug, Deserialize)]
struct Request {
    #[serde(default)]
    id: u64,
    op: String,
}

/// What to do after the answer was sent.
#[derive(Debug, PartialEq, Eq)]
pub enum After {
    /// Nothing.
    Stay,
    /// Power off.
    PowerOff,
    /// Start again.
    Reboot,
}

/// Facts about this guest, read when asked.
pub trait Facts {
    /// True once the network was configured.
    fn ready(&self) -> bool;
    /// Contents of a small file of the kernel, empty when it is not there.
    fn file(&self, path: &str) -> String;
}

/// Answers one line. Anything that is not a request gets an error with id 0.
pub fn answer(line: &[u8], facts: &dyn Facts) -> (Value, After) {
    let request: Request = match serde_json::from_slice(line) {
        Ok(r) => r,
        Err(e) => {
            return (json!({"id": 0, "ok": false, "error": format!("not a request: {e}")}), After::Stay);
        }
    };
    let id = request.id;
    let (body, after) = match request.op.as_str() {
        "ping" => (json!({"id": id, "ok": true, "ready": facts.ready()}), After::Stay),
        "info" => (info(id, facts), After::Stay),
        "shutdown" => (json!({"id": id, "ok": true}), After::PowerOff),
        "reboot" => (json!({"id": id, "ok": true}), After::Reboot),
        other => {
            let shown: String = other.chars().take(40).collect();
            (json!({"id": id, "ok": false, "error": format!("unknown op {shown:?}")}), After::Stay)
        }
    };
    (body, after)
}

fn info(id: u64, facts: &dyn Facts) -> Value {
    let uptime = facts.file("/proc/uptime");
    let uptime = uptime.split_whitespace().next().and_then(|s| s.parse::<f64>().ok()).unwrap_or(0.0);
    json!({
        "id": id,
        "ok": true,
        "ready": facts.ready(),
        "hostname": facts.file("/proc/sys/kernel/hostname").trim(),
        "addresses": addresses(&facts.file("/proc/net/fib_trie"), &facts.file("/proc/net/if_inet6")),
        "uptime_seconds": uptime,
        "kernel": facts.file("/proc/sys/kernel/osrelease").trim(),
    })
}

/// This guest's own addresses except loopback and link-local ones, from the kernel's two tables:
/// in `fib_trie` an address line `|-- A.B.C.D` is followed by `/32 host LOCAL`.
pub fn addresses(fib_trie: &str, if_inet6: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    let mut last = None;
    for line in fib_trie.lines().take(10_000) {
        if let Some(a) = line.trim_start().strip_prefix("|-- ") {
            last = a.trim().parse::<std::net::Ipv4Addr>().ok();
        } else if line.contains("/32 host LOCAL")
            && let Some(a) = last.filter(|a| !a.is_loopback())
        {
            found.push(a.to_string());
        }
    }
    for line in if_inet6.lines().take(1000) {
        let Some(hex) = line.split_whitespace().next() else { continue };
        let Ok(raw) = u128::from_str_radix(hex, 16) else { continue };
        let a = std::net::Ipv6Addr::from(raw);
        if !a.is_loopback() && !a.is_unicast_link_local() {
            found.push(a.to_string());
        }
    }
    found.sort();
    found.dedup(); // local and main table list the same address
    found.truncate(64);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fake;
    impl Facts for Fake {
        fn ready(&self) -> bool {
            true
        }
        fn file(&self, path: &str) -> String {
            match path {
                "/proc/uptime" => "12.50 3.00\n".into(),
                "/proc/sys/kernel/hostname" => "a\n".into(),
                "/proc/sys/kernel/osrelease" => "6.1\n".into(),
                "/proc/net/fib_trie" => "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 10.20.0.5\n        /32 host LOCAL\n     |-- 10.20.0.255\n        /32 link BROADCAST\n     |-- 127.0.0.1\n        /32 host LOCAL\nLocal:\n     |-- 10.20.0.5\n        /32 host LOCAL\n".into(),
                _ => "fe80000000000000505400fffe000001 02 40 20 80 eth0\nfd000000000000000000000000000001 02 40 00 80 eth0\n".into(),
            }
        }
    }

    #[test]
    fn info_tells_name_addresses_and_uptime() {
        let (v, after) = answer(br#"{"id":7,"op":"info"}"#, &Fake);
        assert_eq!(after, After::Stay);
        assert_eq!(v["id"], 7);
        assert_eq!(v["hostname"], "a");
        assert_eq!(v["addresses"], json!(["10.20.0.5", "fd00::1"]));
        assert_eq!(v["uptime_seconds"], 12.5);
    }

    #[test]
    fn shutdown_answers_before_it_acts_and_rubbish_gets_an_error() {
        assert_eq!(answer(br#"{"id":1,"op":"shutdown"}"#, &Fake).1, After::PowerOff);
        assert_eq!(answer(br#"{"id":1,"op":"reboot"}"#, &Fake).1, After::Reboot);
        for bad in [&b""[..], b"{", b"[]", b"\xff\xfe", b"{\"id\":-1,\"op\":\"ping\"}", b"{\"op\":\"rm\"}"] {
            let (v, after) = answer(bad, &Fake);
            assert_eq!((v["ok"].clone(), after), (json!(false), After::Stay));
        }
    }
}
