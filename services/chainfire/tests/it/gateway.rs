//! The JSON gateway beside a real etcd's: the same bodies, the same answers.

use crate::harness::{Etcd, Server};
use chainfire::RESERVED_PREFIX;
use serde_json::Value;

/// What curl prints: body and status. Streams are cut off after two seconds.
async fn curl(url: &str, args: &[&str]) -> (String, String) {
    let mut all = vec!["-s", "-m", "2", "-w", "\n%{http_code} %{content_type}", url];
    all.extend(args);
    let out = photon_rt::process::Command::new("curl").args(&all).output().await.expect("curl");
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let (body, status) = text.rsplit_once('\n').expect("a status");
    (body.to_string(), status.to_string())
}

/// Without what differs from store to store.
fn clean(body: &str) -> Vec<String> {
    body.lines()
        .map(|l| match serde_json::from_str::<Value>(l) {
            Ok(mut v) => {
                for at in ["", "/result"] {
                    if let Some(h) = v.pointer_mut(&format!("{at}/header")).and_then(Value::as_object_mut) {
                        for id in ["cluster_id", "member_id", "raft_term"] {
                            assert!(h.remove(id).is_some_and(|v| v.is_string()), "{l}");
                        }
                    }
                }
                v.to_string()
            }
            Err(_) => l.to_string(),
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_get_etcds_answers() {
    let dir = tempfile::tempdir().expect("temp dir");
    let server = Server::start(&dir.path().join("ours")).await;
    let etcd = Etcd::start(&dir.path().join("theirs")).await;
    let mut script = vec![
        ("kv/put", r#"{"key":"Zm9v","value":"YmFy"}"#),
        ("kv/put", r#"{"key":"Zm9v","value":"YmF6","prev_kv":true}"#),
        ("kv/put", r#"{"key":"Zm9w","value":"","prevKv":false,"lease":null}"#),
        (
            "kv/range",
            r#"{"key":"AA==","rangeEnd":"AA==","limit":"1","sort_order":"DESCEND","sort_target":2}"#,
        ),
        ("kv/range", r#"{"key":"Zm9v","limit":5,"sort_target":"VALUE","unknown":[1,{}]}"#),
        ("kv/range", r#"{"key":"Zm9v","revision":99}"#),
        ("kv/range", r#"{"key":"Zm9v","count_only":true}"#),
        ("kv/range", "{}"),
        ("kv/range", ""),
        ("kv/nope", "{}"),
        (
            "kv/txn",
            r#"{"compare":[{"result":"EQUAL","target":"CREATE","key":"Zm9v","create_revision":"0"}],
               "success":[{"request_put":{"key":"Zm9v","value":"YmFy"}}],
               "failure":[{"requestRange":{"key":"Zm9v"}},{"request_delete_range":{"key":"Zm9w"}},
               {"request_txn":{"success":[{"request_put":{"key":"bmV3","value":"eA=="}}]}}]}"#,
        ),
        ("kv/deleterange", r#"{"key":"bmV3","prev_kv":true}"#),
        ("watch", r#"{"create_request":{"key":"Zm9v","start_revision":"1","prev_kv":true}}"#),
        ("watch", r#"{"create_request":{"key":"Zm9v","range_end":"Yg=="}}"#),
        ("lease/grant", r#"{"TTL":"1000","ID":"7"}"#),
        ("lease/grant", r#"{"TTL":"1000","ID":7}"#),
        ("lease/keepalive", r#"{"ID":7}"#),
        ("kv/lease/leases", ""),
        ("kv/lease/timetolive", r#"{"ID":8,"keys":true}"#),
        ("kv/lease/revoke", r#"{"ID":"8"}"#),
        ("lock/lock", r#"{"name":"bA==","lease":"7"}"#),
        ("election/campaign", r#"{"name":"ZQ==","lease":"7","value":"dg=="}"#),
        ("election/observe", r#"{"name":"ZQ=="}"#),
        ("election/leader", r#"{"name":"eA=="}"#),
        ("lock/unlock", r#"{"key":"bC83"}"#),
        ("kv/compaction", r#"{"revision":"4","physical":true}"#),
        ("kv/compaction", r#"{"revision":"4"}"#),
        ("watch", r#"{"create_request":{"key":"Zm9v","start_revision":"2"}}"#),
        ("maintenance/defragment", r#"{}"#),
        ("maintenance/alarm", r#"{"action":"ACTIVATE","memberID":"5","alarm":"NOSPACE"}"#),
        ("maintenance/alarm", r#"{"action":"GET"}"#),
        ("kv/put", r#"{"key":"Zm9v","value":"YmFy"}"#),
        ("maintenance/alarm", r#"{"action":"DEACTIVATE","memberID":"5","alarm":"NOSPACE"}"#),
    ];
    script.push(("kv/range", r#"{"key":"AA==","range_end":"AA=="}"#));
    for (path, body) in script {
        let ask = async |url: &str| curl(&format!("{url}/v3/{path}"), &["-d", body]).await;
        let (a, b) = tokio::join!(ask(&server.operator), ask(&etcd.url));
        let strip = |s: &str| -> Vec<String> {
            // Since 3.6, and 3.4 sends alarms without a header.
            clean(s)
                .into_iter()
                .map(|l| match serde_json::from_str::<Value>(&l) {
                    Ok(mut v) => {
                        if let Some(o) = v.as_object_mut() {
                            o.remove("hash_revision");
                            if path == "maintenance/alarm" {
                                o.remove("header");
                            }
                        }
                        v.to_string()
                    }
                    Err(_) => l,
                })
                .collect()
        };
        assert_eq!((strip(&a.0), &a.1), (strip(&b.0), &b.1), "{path} {body}");
    }
    // Bodies that are not understood: the words are Go's, the codes are not.
    for body in [
        r#"{"key":5}"#,
        "{bad",
        r#"{"key":"!!"}"#,
        r#"{"key":"Zm9v","limit":1.5}"#,
        r#"{"key":"Zm9v","keys_only":"true"}"#,
        r#"{"key":"Zm9v","sort_order":"SIDEWAYS"}"#,
        "[]",
        "7",
    ] {
        let ask = async |url: &str| {
            let (body, status) = curl(&format!("{url}/v3/kv/range"), &["-d", body]).await;
            let v: Value = serde_json::from_str(&body).expect("json");
            assert_eq!(v["error"], v["message"]);
            (v["code"].clone(), status)
        };
        let (a, b) = tokio::join!(ask(&server.operator), ask(&etcd.url));
        assert_eq!(a, b, "{body}");
    }
    let get = async |url: &str| curl(&format!("{url}/v3/kv/range"), &[]).await;
    assert_eq!(get(&server.operator).await, get(&etcd.url).await);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gateway_knows_its_callers() {
    let dir = tempfile::tempdir().expect("temp dir");
    let server = Server::start(dir.path()).await;
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let secret = STANDARD.encode([RESERVED_PREFIX, b"x"].concat());
    let put = format!(r#"{{"key":"{secret}","value":"eA=="}}"#);
    let post =
        async |url: &str, path: &str, body: &str| curl(&format!("{url}/v3/{path}"), &["-d", body]).await;
    assert!(post(&server.operator, "kv/put", &put).await.1.starts_with("200"));
    let (body, status) = post(&server.tenant, "kv/put", &put).await;
    assert!(body.contains("permission denied") && status.starts_with("403"), "{body}");
    let (body, _) = post(&server.tenant, "kv/range", r#"{"key":"AA==","range_end":"AA=="}"#).await;
    assert!(!body.contains(&secret) && !body.contains("kvs"), "{body}");
    assert!(post(&server.nobody, "kv/range", r#"{"key":"AA=="}"#).await.1.starts_with("401"));
    let (body, status) = post(&server.tenant, "maintenance/snapshot", "{}").await;
    assert!(status.starts_with("403") && body.contains(r#""grpc_code":7"#), "{body}");
    let page = ["-d", "{}", "-H", "Origin: http://example.org"];
    assert!(curl(&format!("{}/v3/kv/range", server.operator), &page).await.1.starts_with("403"));
    let large = format!(r#"{{"key":"{}"}}"#, "A".repeat(4 << 20));
    let file = dir.path().join("large");
    photon_rt::fs::write_atomic(&file, large.as_bytes(), 0o600).expect("write");
    let body = format!("@{}", file.display());
    assert!(post(&server.operator, "kv/range", &body).await.1.starts_with("429"));
    for (path, want) in [
        ("livez", "ok"),
        ("readyz", "ok"),
        (
            "readyz?verbose",
            "[+]data_corruption ok\n[+]serializable_read ok\n[+]linearizable_read ok\nreadyz check passed",
        ),
    ] {
        let (body, status) = curl(&format!("{}/{path}", server.nobody), &[]).await;
        assert_eq!((body.trim_end(), &status[..3]), (want, "200"));
    }
    let alarm = r#"{"action":"ACTIVATE","memberID":"5","alarm":"NOSPACE"}"#;
    post(&server.operator, "maintenance/alarm", alarm).await;
    let (body, status) = curl(&format!("{}/health", server.nobody), &[]).await;
    assert!(
        body.contains(r#""health":"false","reason":"ALARM NOSPACE""#) && status.starts_with("503"),
        "{body}"
    );
    assert!(curl(&format!("{}/health?exclude=NOSPACE", server.nobody), &[]).await.1.starts_with("200"));
    server.stop().await;
}
