//! Called as `etcd`: etcd's command line, so that what starts an etcd starts ChainFire.
//!
//! Flags are written as Go's `flag` package takes them (`-name a`, `--name=a`), defaults are etcd's, and every
//! flag of etcd 3.4 and 3.5 is in one of the tables here: it is meant, has no meaning, or is refused.

use photon_base::{Error, Result};
use photon_rt::time::Duration;
use std::{ffi::OsString, path::Path};

/// What etcd 3.5 calls what is served.
const VERSION: &str = chainfire::wire::ETCD_VERSION;

/// Flags with a value that mean the same to `photon chainfire serve`, under the second name.
const MEANT: [(&str, &str); 23] = [
    ("name", "name"),
    ("data-dir", "data-dir"),
    ("listen-client-urls", "listen-client-urls"),
    ("advertise-client-urls", "advertise-client-urls"),
    ("listen-metrics-urls", "listen-metrics-urls"),
    ("listen-peer-urls", "listen-peer-urls"),
    ("initial-advertise-peer-urls", "initial-advertise-peer-urls"),
    ("initial-cluster", "initial-cluster"),
    ("initial-cluster-state", "initial-cluster-state"),
    ("initial-cluster-token", "initial-cluster-token"),
    ("cert-file", "cert-file"),
    ("key-file", "key-file"),
    ("trusted-ca-file", "trusted-ca-file"),
    ("peer-cert-file", "peer-cert-file"),
    ("peer-key-file", "peer-key-file"),
    ("peer-trusted-ca-file", "peer-trusted-ca-file"),
    ("election-timeout", "election-timeout"),
    ("log-level", "log-level"),
    ("experimental-watch-progress-notify-interval", "watch-progress-notify-interval"),
    ("experimental-corrupt-check-time", "corrupt-check-time"),
    ("corrupt-check-time", "corrupt-check-time"),
    ("auto-compaction-retention", "auto-compaction-retention"),
    ("auto-compaction-mode", "auto-compaction-mode"),
];

/// Switches, and what they are here: nothing to do for, or refused when switched on.
const SWITCHES: [(&str, Switch); 22] = [
    ("client-cert-auth", Switch::Either("whoever connects by TLS shows a certificate, always")),
    ("peer-client-cert-auth", Switch::Either("whoever connects by TLS shows a certificate, always")),
    ("pre-vote", Switch::Either("always on")),
    ("strict-reconfig-check", Switch::Either("members join as learners and vote when they have caught up")),
    ("initial-election-tick-advance", Switch::Either("not needed")),
    ("experimental-initial-corrupt-check", Switch::Either("damage is looked for at every start")),
    ("initial-corrupt-check", Switch::Either("damage is looked for at every start")),
    ("experimental-compact-hash-check-enabled", Switch::Either("see --corrupt-check-time")),
    ("experimental-enable-lease-checkpoint", Switch::Either("always on")),
    ("experimental-enable-lease-checkpoint-persist", Switch::Either("always on")),
    ("experimental-memory-mlock", Switch::Either("the data is not in memory")),
    ("experimental-txn-mode-write-with-shared-buffer", Switch::Either("has no meaning here")),
    ("experimental-stop-grpc-service-on-defrag", Switch::Either("nothing is defragmented")),
    ("unsafe-no-fsync", Switch::Either("what is acknowledged is synced, always")),
    ("debug", Switch::Either("use --log-level debug")),
    ("enable-log-rotation", Switch::Either("logs go to standard error")),
    ("socket-reuse-port", Switch::Off("a port has one owner")),
    ("socket-reuse-address", Switch::Either("always on")),
    ("enable-v2", Switch::Off("only version 3 of the interface is served")),
    ("enable-pprof", Switch::Off("there is no Go runtime to look into")),
    (
        "auto-tls",
        Switch::Off(
            "certificates nobody checks protect nothing; give --cert-file, --key-file, --trusted-ca-file",
        ),
    ),
    ("peer-auto-tls", Switch::Off("give --peer-cert-file, --peer-key-file, --peer-trusted-ca-file")),
];

/// What a switch is here.
#[derive(Clone, Copy)]
enum Switch {
    /// On or off, it is as the note says.
    Either(&'static str),
    /// Only off is possible.
    Off(&'static str),
}

/// Flags with a value that has no meaning here, and why.
const NOTED: [(&str, &str); 33] = [
    ("heartbeat-interval", "a fifth of --election-timeout"),
    ("snapshot-count", "the log is cut by its size"),
    ("max-snapshots", "there is one"),
    ("max-wals", "the log is cut by its size"),
    ("quota-backend-bytes", "there is no limit; --disk-reserve watches the disk"),
    ("backend-batch-interval", "has no meaning here"),
    ("backend-batch-limit", "has no meaning here"),
    ("backend-bbolt-freelist-type", "has no meaning here"),
    ("experimental-backend-bbolt-freelist-type", "has no meaning here"),
    ("experimental-bootstrap-defrag-threshold-megabytes", "nothing is defragmented"),
    ("experimental-compaction-batch-limit", "compaction goes by itself"),
    ("experimental-compaction-sleep-interval", "compaction goes by itself"),
    ("experimental-compact-hash-check-time", "see --corrupt-check-time"),
    ("experimental-downgrade-check-time", "there is no older release"),
    ("experimental-max-learners", "64 members of any kind"),
    ("experimental-warning-apply-duration", "has no meaning here"),
    ("experimental-warning-unary-request-duration", "has no meaning here"),
    ("experimental-snapshot-catchup-entries", "10,000"),
    ("snapshot-catchup-entries", "10,000"),
    ("grpc-keepalive-min-time", "has no meaning here"),
    ("grpc-keepalive-interval", "30 s"),
    ("grpc-keepalive-timeout", "20 s"),
    ("max-concurrent-streams", "1,024 a connection"),
    ("host-whitelist", "only connections with a certificate, or of this machine, are let in"),
    ("bcrypt-cost", "passwords are hashed by Argon2"),
    ("auth-token-ttl", "as in etcd's default, 5 minutes"),
    ("metrics", "basic"),
    ("logger", "logs go to standard error"),
    ("log-output", "logs go to standard error"),
    ("log-outputs", "logs go to standard error"),
    ("log-rotation-config-json", "logs go to standard error"),
    ("log-package-levels", "use --log-level"),
    ("log-format", "text"),
];

/// Flags with a value that must be the one named, or is refused for a reason.
const FIXED: [(&str, &str, &str); 22] = [
    ("auth-token", "simple", "tokens are of the simple kind"),
    ("max-txn-ops", "128", "a transaction has at most 128 operations"),
    ("max-request-bytes", "1572864", "a request has at most 1.5 MiB"),
    ("proxy", "off", "there is no proxy"),
    ("tls-min-version", "TLS1.2", "TLS 1.2 and 1.3 are spoken"),
    ("tls-max-version", "", "TLS 1.2 and 1.3 are spoken"),
    ("cors", "", "browsers are not let in"),
    ("wal-dir", "", "log and state lie in one folder, --data-dir"),
    ("config-file", "", "give flags or ETCD_… variables"),
    ("discovery", "", "members find each other by --initial-cluster"),
    ("discovery-endpoints", "", "members find each other by --initial-cluster"),
    ("discovery-token", "", "members find each other by --initial-cluster"),
    ("discovery-srv", "", "members find each other by --initial-cluster"),
    ("discovery-srv-name", "", "members find each other by --initial-cluster"),
    ("discovery-proxy", "", "members find each other by --initial-cluster"),
    ("discovery-fallback", "exit", "members find each other by --initial-cluster"),
    ("client-crl-file", "", "certificates live short instead of being revoked"),
    ("peer-crl-file", "", "certificates live short instead of being revoked"),
    ("peer-cert-allowed-cn", "", "the authority decides who is a member"),
    ("peer-cert-allowed-hostname", "", "the authority decides who is a member"),
    ("cipher-suites", "", "the suites are those of rustls, all good"),
    ("force-new-cluster", "false", "photon chainfire recover makes a new cluster out of one disk"),
];

/// True when this program was called as `etcd`.
pub fn is_name(words: &[OsString]) -> bool {
    words.first().is_some_and(|w| Path::new(w).file_name().is_some_and(|n| n == "etcd"))
}

/// What to do.
#[derive(Debug)]
pub enum Line {
    /// The same as a command line of `photon`.
    Serve(Vec<OsString>),
    /// Print this.
    Print(String),
}

/// A command line of etcd's.
pub fn translate(words: &[OsString]) -> Result<Line> {
    translate_with(words, &|name| std::env::var(name).ok().filter(|v| !v.is_empty()))
}

fn translate_with(words: &[OsString], env: &dyn Fn(&str) -> Option<String>) -> Result<Line> {
    let mut given: Vec<(&str, String)> = Vec::new();
    let mut rest = words.iter().skip(1);
    while let Some(word) = rest.next() {
        let word = word.to_str().ok_or_else(|| Error::invalid("flag", "is not UTF-8"))?;
        let flag = word.strip_prefix("--").or_else(|| word.strip_prefix('-')).filter(|f| !f.is_empty());
        let flag = flag.ok_or_else(|| Error::invalid("flag", format!("{word:?} is not a valid flag")))?;
        let (name, value) = flag.split_once('=').map_or((flag, None), |(n, v)| (n, Some(v.to_string())));
        if matches!(name, "version" | "h" | "help") {
            return Ok(Line::Print(match name {
                "version" => format!(
                    "etcd Version: {VERSION}\nServed by: PhotonCloud ChainFire {}",
                    env!("CARGO_PKG_VERSION")
                ),
                _ => "etcd, served by PhotonCloud ChainFire: photon chainfire serve --help".into(),
            }));
        }
        if let Some((_, switch)) = SWITCHES.iter().find(|(n, _)| *n == name) {
            note(name, *switch, value.as_deref().unwrap_or("true"))?;
            continue;
        }
        let value = match (value, name) {
            (Some(v), _) => v,
            // A switch although it is refused: it takes no word of its own.
            (None, "force-new-cluster") => "true".to_string(),
            (None, _) => rest
                .next()
                .and_then(|v| v.to_str())
                .map(str::to_string)
                .ok_or_else(|| Error::invalid(name, "needs a value"))?,
        };
        let meant = MEANT.iter().find(|(n, _)| *n == name).map(|(_, ours)| *ours);
        let fixed = FIXED.iter().find(|(n, ..)| *n == name);
        match (meant, fixed, NOTED.iter().find(|(n, _)| *n == name)) {
            (Some(ours), ..) => given.push((ours, value)),
            (_, Some((_, only, why)), _) => fits(name, &value, only, why)?,
            (.., Some((_, why))) => eprintln!("note: --{name} has no effect: {why}"),
            _ => {
                return Err(Error::invalid(name.to_string(), "is no flag of etcd 3.4 or 3.5")
                    .hint("photon chainfire serve --help"));
            }
        }
    }
    let says = |name: &str, variable: &str| {
        given.iter().rev().find(|(n, _)| *n == name).map(|(_, v)| v.clone()).or_else(|| env(variable))
    };
    let name = says("name", "ETCD_NAME").unwrap_or_else(|| "default".into());
    let data = says("data-dir", "ETCD_DATA_DIR").unwrap_or_else(|| format!("{name}.etcd"));
    let client =
        says("listen-client-urls", "ETCD_LISTEN_CLIENT_URLS").unwrap_or("http://localhost:2379".into());
    let peer = says("listen-peer-urls", "ETCD_LISTEN_PEER_URLS").unwrap_or("http://localhost:2380".into());
    let mut line: Vec<String> =
        ["photon", "--data-dir", &data, "chainfire", "serve"].map(String::from).into();
    if says("cert-file", "ETCD_CERT_FILE").is_none() {
        line.extend(["--tls".into(), "off".into()]);
    }
    given.retain(|(n, _)| !matches!(*n, "data-dir" | "name" | "listen-client-urls" | "listen-peer-urls"));
    given.extend([("name", name), ("listen-client-urls", client), ("listen-peer-urls", peer)]);
    // As Go's flags: the last one counts.
    for i in 0..given.len() {
        if given[i + 1..].iter().all(|(n, _)| *n != given[i].0) {
            line.push(format!("--{}={}", given[i].0, given[i].1));
        }
    }
    Ok(Line::Serve(line.into_iter().map(OsString::from).collect()))
}

fn note(name: &str, switch: Switch, value: &str) -> Result<()> {
    let on = match value {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => true,
        "0" | "f" | "F" | "false" | "FALSE" | "False" => false,
        _ => return Err(Error::invalid(name.to_string(), format!("{value:?} is neither true nor false"))),
    };
    match switch {
        Switch::Off(why) if on => Err(Error::invalid(name.to_string(), "is not possible here").why(why)),
        Switch::Either(why) if !on && why.contains("always") => {
            eprintln!("note: --{name}=false has no effect: {why}");
            Ok(())
        }
        _ => Ok(()),
    }
}

/// A value that must be the one that is possible, or a smaller number where it is one.
fn fits(name: &str, value: &str, only: &str, why: &str) -> Result<()> {
    let smaller = value.parse::<u64>().ok().zip(only.parse().ok()).is_some_and(|(v, o)| v <= o);
    match name {
        _ if value == only || smaller || value.is_empty() => Ok(()),
        _ => Err(Error::invalid(name.to_string(), format!("{value:?} is not possible here")).why(why)),
    }
}

/// How much history etcd's two flags keep: a bare number of the periodic mode is hours.
pub fn retention(mode: &str, text: &str) -> Result<Option<chainfire::Retention>> {
    use chainfire::Retention::{Revisions, Time};
    let number = text.parse::<u32>().ok();
    let bad = |why: String| Error::invalid("auto-compaction-retention", why);
    let kept = match (mode, number) {
        ("revision", Some(n)) => Revisions(i64::from(n)),
        ("revision", None) => return Err(bad(format!("{text:?} is not a number of revisions"))),
        (_, Some(n)) => Time(Duration::from_secs(u64::from(n) * 3_600)),
        (_, None) => Time(duration(text).map_err(bad)?),
    };
    Ok(Some(kept).filter(|k| !matches!(k, Revisions(0) | Time(Duration::ZERO))))
}

/// A time as Go writes it: `5s`, `1h30m`, `500ms`; `0`.
pub fn duration(text: &str) -> std::result::Result<Duration, String> {
    let bad = || format!("{text:?} is not a time, as in 5s or 1h30m");
    let (mut total, mut rest) = (Duration::ZERO, text);
    if text == "0" {
        return Ok(total);
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).filter(|n| *n > 0).ok_or_else(bad)?;
        let n: u64 = rest[..digits].parse().map_err(|_| bad())?;
        let unit = &rest[digits..];
        let end = unit.find(|c: char| c.is_ascii_digit()).unwrap_or(unit.len());
        let ms = match &unit[..end] {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return Err(bad()),
        };
        total += Duration::from_millis(n.checked_mul(ms).filter(|m| *m < 1 << 40).ok_or_else(bad)?);
        rest = &unit[end..];
    }
    if text.is_empty() { Err(bad()) } else { Ok(total) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Result<Vec<String>> {
        let words: Vec<OsString> = text.split_whitespace().map(OsString::from).collect();
        assert!(is_name(&words));
        match translate_with(&words, &|n| (n == "ETCD_INITIAL_CLUSTER_TOKEN").then(|| "t".into()))? {
            Line::Serve(l) => Ok(l.into_iter().map(|w| w.to_string_lossy().into_owned()).collect()),
            Line::Print(t) => Ok(vec![t]),
        }
    }

    #[test]
    fn etcds_command_lines_mean_what_they_say() {
        let bare = line("/usr/bin/etcd").expect("valid").join(" ");
        assert_eq!(
            bare,
            "photon --data-dir default.etcd chainfire serve --tls off --name=default \
             --listen-client-urls=http://localhost:2379 --listen-peer-urls=http://localhost:2380"
        );
        let go = line("etcd -name a --data-dir=/d -name b --snapshot-count 5 --pre-vote --enable-v2=false")
            .expect("valid");
        assert_eq!(go[..3], ["photon", "--data-dir", "/d"]);
        assert!(go.contains(&"--name=b".to_string()) && !go.contains(&"--name=a".to_string()));
        let tls = line("etcd --cert-file=c --experimental-watch-progress-notify-interval=5s").expect("valid");
        assert!(!tls.contains(&"--tls".to_string()));
        assert!(tls.contains(&"--watch-progress-notify-interval=5s".to_string()));
        assert!(line("etcd --version").expect("text")[0].starts_with("etcd Version: 3.5."));
        for fine in [
            "--auto-compaction-retention=0",
            "--max-txn-ops 100",
            "--auth-token=simple",
            "--auto-compaction-retention 0h",
        ] {
            line(&format!("etcd {fine}")).unwrap_or_else(|e| panic!("{fine}: {e}"));
        }
        for wrong in [
            "--auto-tls",
            "--force-new-cluster",
            "--enable-v2=true",
            "--max-txn-ops=1000",
            "--discovery x",
            "--name",
            "--auth-token=jwt,pub-key=x",
            "--unheard-of=1",
            "serve",
            "--pre-vote=maybe",
        ] {
            assert!(line(&format!("etcd {wrong}")).is_err(), "{wrong}");
        }
    }

    #[test]
    fn history_is_kept_as_etcd_keeps_it() {
        use chainfire::Retention::{Revisions, Time};
        let kept = |mode, text| retention(mode, text).expect("valid");
        assert_eq!(kept("periodic", "0"), None);
        assert_eq!(kept("periodic", "0h"), None);
        assert_eq!(kept("periodic", "2"), Some(Time(Duration::from_secs(7_200))));
        assert_eq!(kept("periodic", "5m"), Some(Time(Duration::from_secs(300))));
        assert_eq!(kept("revision", "1000"), Some(Revisions(1_000)));
        assert!(retention("revision", "1h").is_err() && retention("periodic", "soon").is_err());
    }

    #[test]
    fn each_flag_is_in_one_table() {
        let mut all: Vec<&str> = MEANT.iter().map(|f| f.0).chain(SWITCHES.iter().map(|f| f.0)).collect();
        all.extend(NOTED.iter().map(|f| f.0).chain(FIXED.iter().map(|f| f.0)));
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
    }

    #[test]
    fn times_are_gos() {
        assert_eq!(duration("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("0"), Ok(Duration::ZERO));
        for wrong in ["", "5", "s", "5x", "99999999999999999h", "-1s"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
