//! Unchanged etcdctl against ChainFire.

use crate::harness::{Server, etcdctl, ok};
use photon_rt::{process::Command, time::Duration};
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt, BufReader};

async fn server() -> (tempfile::TempDir, Server) {
    let dir = tempfile::tempdir().expect("temp dir");
    let s = Server::start(dir.path()).await;
    (dir, s)
}

#[tokio::test(flavor = "multi_thread")]
async fn put_get_del() {
    let (_dir, s) = server().await;
    let u = &s.operator;
    assert_eq!(ok(u, &["put", "greeting", "hello"]).await, "OK\n");
    assert_eq!(ok(u, &["get", "greeting"]).await, "greeting\nhello\n");
    assert_eq!(ok(u, &["put", "greeting", "hi", "--prev-kv"]).await, "OK\ngreeting\nhello\n");
    assert_eq!(ok(u, &["get", "greeting", "--rev=2", "--print-value-only"]).await, "hello\n");
    for (k, v) in [("a1", "3"), ("a2", "1"), ("a3", "2"), ("b", "x")] {
        ok(u, &["put", k, v]).await;
    }
    assert_eq!(ok(u, &["get", "a", "--prefix", "--keys-only"]).await, "a1\n\na2\n\na3\n\n");
    assert_eq!(ok(u, &["get", "a1", "a3", "--print-value-only"]).await, "3\n1\n");
    let sorted = ["get", "--prefix", "a", "--sort-by=VALUE", "--order=DESCEND", "--print-value-only"];
    assert_eq!(ok(u, &sorted).await, "3\n2\n1\n");
    let sorted =
        ["get", "--prefix", "a", "--sort-by=MODIFY", "--order=ASCEND", "--limit=2", "--print-value-only"];
    assert_eq!(ok(u, &sorted).await, "3\n1\n");
    assert_eq!(ok(u, &["get", "b", "--from-key", "--print-value-only"]).await, "x\nhi\n");
    assert_eq!(ok(u, &["del", "a1", "--prev-kv"]).await, "1\na1\n3\n");
    assert_eq!(ok(u, &["del", "a", "--prefix"]).await, "2\n");
    assert_eq!(ok(u, &["del", "nothing"]).await, "0\n");
    let json: serde_json::Value =
        serde_json::from_str(&ok(u, &["get", "b", "-w", "json"]).await).expect("json");
    assert_eq!(json["header"]["revision"], 9);
    assert_eq!(json["kvs"][0]["create_revision"], 7);
    let e = etcdctl(u, &["get", "b", "--rev=100"], None).await.expect_err("future");
    assert!(e.contains("etcdserver: mvcc: required revision is a future revision"), "{e}");
    s.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn txn_from_stdin() {
    let (_dir, s) = server().await;
    let u = &s.operator;
    ok(u, &["put", "k", "v"]).await;
    let script = "value(\"k\") = \"v\"\nmod(\"k\") > \"1\"\n\nput k w\nget k\nput l 1\n\nget other\n\n";
    assert_eq!(etcdctl(u, &["txn"], Some(script)).await.expect("txn"), "SUCCESS\n\nOK\n\nk\nw\n\nOK\n");
    assert_eq!(etcdctl(u, &["txn"], Some(script)).await.expect("txn"), "FAILURE\n\n");
    let twice = "\nput k 1\nput k 2\n\n\n";
    let e = etcdctl(u, &["txn"], Some(twice)).await.expect_err("duplicate");
    assert!(e.contains("etcdserver: duplicate key given in txn request"), "{e}");
    s.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn watch_from_a_revision_and_compaction() {
    let (_dir, s) = server().await;
    let u = s.operator.clone();
    ok(&u, &["put", "greeting", "one"]).await;
    ok(&u, &["put", "other", "x"]).await;
    ok(&u, &["del", "greeting"]).await;
    let mut child = Command::new("etcdctl")
        .args(["--endpoints", &u, "watch", "--rev=1", "--prev-kv", "greeting"])
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("etcdctl is missing: run ./dev setup");
    let mut lines = BufReader::new(child.stdout.take().expect("stdout")).lines();
    let mut next = async || {
        photon_rt::time::timeout(Duration::from_secs(10), "watch", lines.next_line())
            .await
            .expect("in time")
            .expect("reads")
            .expect("a line")
    };
    for want in ["PUT", "greeting", "one", "DELETE", "greeting", "one", "greeting", ""] {
        assert_eq!(next().await, want);
    }
    ok(&u, &["put", "greeting", "two"]).await;
    for want in ["PUT", "greeting", "two"] {
        assert_eq!(next().await, want);
    }
    drop(child);
    assert_eq!(ok(&u, &["compaction", "4"]).await, "compacted revision 4\n");
    let e = etcdctl(&u, &["compaction", "3"], None).await.expect_err("again");
    assert!(e.contains("etcdserver: mvcc: required revision has been compacted"), "{e}");
    let e = etcdctl(&u, &["get", "greeting", "--rev=3"], None).await.expect_err("compacted");
    assert!(e.contains("etcdserver: mvcc: required revision has been compacted"), "{e}");
    let e = etcdctl(&u, &["watch", "--rev=2", "greeting"], None).await.expect_err("compacted");
    assert!(e.contains("required revision has been compacted"), "{e}");
    ok(&u, &["compaction", "--physical", "5"]).await;
    assert_eq!(ok(&u, &["get", "", "--prefix", "--print-value-only"]).await, "two\nx\n");
    s.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leases() {
    let (_dir, s) = server().await;
    let u = &s.operator;
    let granted = ok(u, &["lease", "grant", "60"]).await;
    let id = granted.split_whitespace().nth(1).expect("lease ID granted").to_string();
    assert_eq!(granted, format!("lease {id} granted with TTL(60s)\n"));
    ok(u, &["put", "leased", "1", &format!("--lease={id}")]).await;
    ok(u, &["put", "also", "2", &format!("--lease={id}")]).await;
    assert_eq!(
        ok(u, &["lease", "keep-alive", "--once", &id]).await,
        format!("lease {id} keepalived with TTL(60)\n")
    );
    let ttl = ok(u, &["lease", "timetolive", "--keys", &id]).await;
    assert!(ttl.starts_with(&format!("lease {id} granted with TTL(60s), remaining(5")), "{ttl}");
    assert!(ttl.ends_with("attached keys([also leased])\n"), "{ttl}");
    assert_eq!(ok(u, &["lease", "list"]).await, format!("found 1 leases\n{id}\n"));
    assert_eq!(ok(u, &["lease", "revoke", &id]).await, format!("lease {id} revoked\n"));
    assert_eq!(ok(u, &["get", "", "--prefix"]).await, "");
    assert_eq!(ok(u, &["lease", "timetolive", &id]).await, format!("lease {id} already expired\n"));
    let e = etcdctl(u, &["lease", "revoke", &id], None).await.expect_err("gone");
    assert!(e.contains("etcdserver: requested lease not found"), "{e}");
    let short = ok(u, &["lease", "grant", "1"]).await;
    let id = short.split_whitespace().nth(1).expect("id").to_string();
    assert!(short.contains("TTL(2s)"), "{short}");
    ok(u, &["put", "fleeting", "1", &format!("--lease={id}")]).await;
    for _ in 0..60 {
        if ok(u, &["get", "fleeting"]).await.is_empty() {
            s.stop().await;
            return;
        }
        photon_rt::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("the lease did not expire");
}

#[tokio::test(flavor = "multi_thread")]
async fn status_members_and_pages() {
    let (_dir, s) = server().await;
    let u = &s.operator;
    let status = ok(u, &["endpoint", "status", "-w", "json"]).await;
    let status: serde_json::Value = serde_json::from_str(&status).expect("json");
    assert_eq!(status[0]["Status"]["leader"], status[0]["Status"]["header"]["member_id"]);
    assert!(
        ok(u, &["member", "list"])
            .await
            .contains("started, default, http://localhost:2380, http://localhost:2379")
    );
    ok(u, &["endpoint", "health"]).await;
    assert_eq!(ok(u, &["alarm", "list"]).await, "");
    ok(u, &["defrag"]).await;
    ok(u, &["endpoint", "hashkv"]).await;
    let page = async |url: &str, path: &str| {
        let out = photon_rt::process::run(
            "curl",
            &["-s", "-w", " %{http_code}", &format!("{url}{path}")],
            None,
            Duration::from_secs(5),
        )
        .await;
        String::from_utf8(out.expect("curl")).expect("text")
    };
    assert_eq!(
        page(&s.nobody, "/health").await,
        r#"{"status":"healthy","raft":"leader","cluster_size":1,"health":"true","reason":""} 200"#
    );
    assert!(page(&s.nobody, "/version").await.starts_with(r#"{"etcdserver":"3."#));
    assert!(page(&s.tenant, "/metrics").await.contains("\netcd_server_has_leader 1\n"));
    assert!(page(&s.nobody, "/metrics").await.ends_with("401"));
    let e = etcdctl(&s.nobody, &["put", "a", "b"], None).await.expect_err("nobody");
    assert!(e.contains("user name is empty"), "{e}");
    s.stop().await;
}
