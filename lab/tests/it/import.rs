//! `photon chainfire import`: a real etcd moves into a cloud while somebody writes.

use crate::coordinator::Etcd;
use photon_lab::cloud::Cloud;
use serde_json::Value;
use std::{
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Command, Stdio},
};

fn import(cloud: &Cloud, etcd: &Etcd, more: &[&str]) -> Command {
    let mut c = cloud.command();
    let flag = |name: &'static str, file: &str| [PathBuf::from(name), etcd.file(file)];
    c.args(["chainfire", "import", "-o", "json", "--from", &etcd.url()])
        .args(flag("--from-ca", "ca.crt"))
        .args(flag("--from-cert", "client.crt"))
        .args(flag("--from-key", "client.key"))
        .args(more);
    c
}

/// etcdctl on the cloud, as its admin.
fn ours(cloud: &Cloud, args: &[&str]) -> String {
    let env = cloud.json(&["env"]);
    let mut c = Command::new("etcdctl");
    for (k, v) in env.as_object().expect("exports") {
        c.env(k, v.as_str().expect("text"));
    }
    let out = c.args(args).output().expect("etcdctl; run ./dev setup");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

#[test]
fn import_moves_an_etcd_into_a_cloud() {
    let etcd = Etcd::start();
    let cloud = Cloud::new("user");
    cloud.up();
    photon_lab::cloud::wait("etcd", std::time::Duration::from_secs(30), || etcd.answers());
    for i in 0..50 {
        etcd.ctl(&["put", &format!("app/{i:02}"), &format!("value {i}")]);
    }
    let lease = etcd.ctl(&["lease", "grant", "500"]);
    let lease = lease.split_whitespace().nth(1).expect("an id").to_string();
    etcd.ctl(&["put", "--lease", &lease, "app/leased", "x"]);
    etcd.ctl(&["put", "/photon.internal/r/vm/p/evil", "x"]);

    let mut following = import(&cloud, &etcd, &["--follow"]).stdout(Stdio::piped()).spawn().expect("photon");
    let mut lines = BufReader::new(following.stdout.take().expect("its output")).lines();
    let mut event = || -> Value {
        let line = lines.next().expect("it says something").expect("utf-8");
        serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}"))
    };
    while event()["followed"] == 0 {}
    etcd.ctl(&["put", "app/late", "y"]);
    etcd.ctl(&["del", "app/00"]);
    Command::new("kill").args(["-INT", &following.id().to_string()]).status().expect("kill");
    let done = loop {
        let e = event();
        if e["event"] == "done" {
            break e;
        }
    };
    assert!(following.wait().expect("it ends").success());
    assert_eq!(
        (&done["keys"], &done["leftOut"], &done["leases"]),
        (&51.into(), &1.into(), &1.into()),
        "{done}"
    );
    let prefix = ["get", "--prefix", "app/"];
    assert_eq!(ours(&cloud, &prefix), etcd.ctl(&prefix));
    assert!(ours(&cloud, &["lease", "timetolive", &lease, "--keys"]).contains("app/leased"));
    assert_eq!(ours(&cloud, &["get", "app/late", "--print-value-only"]).trim(), "y");

    // Not over what is there, unless that is wanted.
    let r = import(&cloud, &etcd, &[]).output().expect("photon");
    assert_eq!(r.status.code(), Some(4), "{}", String::from_utf8_lossy(&r.stderr));
    let r = import(&cloud, &etcd, &["--merge", "--prefix", "app/1"]).output().expect("photon");
    let text = String::from_utf8_lossy(&r.stdout).into_owned();
    assert!(
        r.status.success() && text.contains("\"keys\":10"),
        "{text}{}",
        String::from_utf8_lossy(&r.stderr)
    );
}
