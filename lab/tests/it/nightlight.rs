//! `photon nightlight serve`, alone: a foreign client asks it, and the network does not.

use photon_lab::cloud::{photon_exe, wait};
use std::{
    net::TcpListener,
    process::{Command, Stdio},
    time::Duration,
};

#[test]
fn nightlight_serves_promtool_and_loopback_only() {
    let dir = tempfile::tempdir().expect("folder");
    let serve = |listen: &str| {
        let mut c = Command::new(photon_exe());
        c.arg("--data-dir").arg(dir.path().join("data"));
        c.args(["nightlight", "serve", "--tls", "off", "--listen", listen]);
        c
    };
    let refused = serve("0.0.0.0:0").output().expect("runs");
    let why = String::from_utf8_lossy(&refused.stderr);
    assert_eq!((refused.status.code(), why.contains("loopback")), (Some(5), true), "{why}");

    let free = TcpListener::bind("127.0.0.1:0").expect("loopback").local_addr().expect("address");
    let mut running =
        serve(&free.to_string()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starts");
    let ask = || {
        let url = format!("http://{free}");
        let out = Command::new("promtool").args(["query", "instant", &url, "vector(6) * 7"]).output();
        out.expect("promtool is missing: run ./dev setup")
    };
    let answered = std::panic::catch_unwind(|| {
        wait("an answer to promtool", Duration::from_secs(30), || ask().status.success());
        String::from_utf8_lossy(&ask().stdout).into_owned()
    });
    running.kill().expect("it runs");
    running.wait().expect("it ended");
    let text = answered.expect("answered");
    assert!(text.contains("=> 42 @"), "{text}");
}
