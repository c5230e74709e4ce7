//! NightLight alone, as Prometheus' users start it; and in a cloud, which it watches.

use photon_lab::cloud::{Cloud, photon_exe, wait};
use serde_json::Value;
use std::{
    io::Write,
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

/// A configuration that has a mistake stops the start; SIGHUP reads it again.
#[test]
fn nightlight_takes_prometheus_flags_and_a_signal() {
    let dir = tempfile::tempdir().expect("folder");
    let file = dir.path().join("prometheus.yml");
    let write = |text: &str| std::fs::write(&file, text).expect("write");
    let free = TcpListener::bind("127.0.0.1:0").expect("loopback").local_addr().expect("address");
    let command = || {
        let mut c = Command::new(photon_exe());
        c.args([
            "nightlight",
            "serve",
            "--tls",
            "off",
            "--web.listen-address",
            &free.to_string(),
            "--config.file",
        ]);
        c.arg(&file).arg("--storage.tsdb.path").arg(dir.path().join("data"));
        c.args(["--storage.tsdb.retention.time", "2d"]);
        c
    };
    write("scrape_configs: [{job_name: a, metrics_pth: /x}]");
    let refused = command().output().expect("runs");
    let why = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && why.contains("metrics_pth"), "{why}");

    // It scrapes itself.
    write(&format!(
        "scrape_configs: [{{job_name: me, scrape_interval: 1s, static_configs: [{{targets: ['{free}']}}]}}]"
    ));
    let mut running = command().stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starts");
    let get = |path: &str| -> Value {
        let out = Command::new("curl").args(["-s", &format!("http://{free}{path}")]).output().expect("curl");
        serde_json::from_slice(&out.stdout).unwrap_or_default()
    };
    let tried = std::panic::catch_unwind(|| {
        wait("its own series", Duration::from_secs(30), || {
            get("/api/v1/query?query=up")["data"]["result"][0]["value"][1] == "1"
        });
        assert_eq!(get("/api/v1/status/flags")["data"]["storage.tsdb.retention.time"], "2d");
        write("scrape_configs: [{job_name: other}]");
        let pid = running.id().to_string();
        assert!(Command::new("kill").args(["-HUP", &pid]).status().expect("kill").success());
        wait("the new configuration", Duration::from_secs(30), || {
            get("/api/v1/scrape_pools")["data"]["scrapePools"][0] == "other"
        });
    });
    running.kill().expect("it runs");
    running.wait().expect("it ended");
    tried.expect("as Prometheus does");
}

/// The cloud's own metrics from the first second; a project's samples are its members' alone.
#[test]
fn nightlight_watches_the_cloud_and_keeps_projects_apart() {
    let cloud = Cloud::new("user");
    cloud.up();
    wait("the first samples of the cloud", Duration::from_secs(60), || {
        let up = cloud.json(&["metrics", "query", "up"]);
        let all = up["result"].as_array().cloned().unwrap_or_default();
        all.len() == 2 && all.iter().all(|s| s["value"][1] == "1")
    });
    let targets = cloud.ok(&["metrics", "targets"]);
    assert!(
        targets.contains("chainfire") && targets.contains("photon") && targets.contains("up"),
        "{targets}"
    );
    let well = cloud.ok(&["metrics", "query", "photon_service_healthy{service=\"nightlight\"}"]);
    assert!(well.trim_end().ends_with('1'), "{well}");
    let chart = cloud.ok(&["metrics", "range", "process_resident_memory_bytes", "--last", "5m"]);
    assert!(chart.contains("CHART") && chart.contains("process_resident_memory_bytes{"), "{chart}");
    assert!(cloud.ok(&["metrics", "series", "up"]).lines().count() == 2);
    assert!(cloud.ok(&["metrics", "top"]).contains("MEMORY"));
    // A cloud has no rules yet, and says so without an error.
    for (what, list) in [("rules", "groups"), ("alerts", "alerts")] {
        let json = cloud.json(&["metrics", what]);
        assert!(json[list].as_array().is_some_and(Vec::is_empty), "{what}: {json}");
        cloud.ok(&["metrics", what]);
    }
    let e = cloud.run(&["metrics", "query", "rate(x["]);
    assert!(e.code == 2 && e.err.contains("parse error"), "{} {}", e.code, e.err);

    for p in ["mine", "other"] {
        cloud.ok(&["project", "create", p]);
    }
    cloud.ok(&["user", "create", "alice"]);
    let mut c = cloud.command();
    let c = c.args(["user", "set-password", "alice"]).stdin(Stdio::piped()).stdout(Stdio::null());
    let mut child = c.spawn().expect("photon");
    child.stdin.take().expect("stdin").write_all(b"correct horse battery\n").expect("write");
    assert!(child.wait().expect("ends").success());
    cloud.ok(&["binding", "create", "a", "--project", "mine", "--subject", "user/alice", "--role", "editor"]);
    let front = format!("https://127.0.0.1:{}", cloud.port(8443));
    let creds = cloud.dir.path().join("creds");
    let curl = |args: &[&str]| -> (String, String) {
        let mut c = Command::new("curl");
        c.args(["-sS", "-w", "\n%{http_code}", "--cacert"]).arg(creds.join("ca.crt")).args(args);
        let out = c.output().expect("curl");
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        let (body, status) = text.rsplit_once('\n').expect("a status");
        assert_ne!(status, "000", "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
        (status.to_string(), body.to_string())
    };
    let json = "content-type: application/json";
    let login = r#"{"user":"alice","password":"correct horse battery"}"#;
    let (_, body) = curl(&["-H", json, "-d", login, &format!("{front}/v1/login")]);
    let token: Value = serde_json::from_str(&body).expect("a token");
    let bearer = format!("authorization: Bearer {}", token["token"].as_str().expect("token"));
    let now =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_nanos();
    let message = format!(
        r#"{{"resourceMetrics":[{{"scopeMetrics":[{{"metrics":[{{"name":"sold","gauge":{{"dataPoints":[{{"timeUnixNano":"{now}","asInt":"3"}}]}}}}]}}]}}]}}"#
    );
    let otlp = format!("https://127.0.0.1:{}/v1/metrics", cloud.port(4318));
    let query = format!("{front}/prometheus/api/v1/query?query=sold");
    for (project, sent, read) in
        [(Some("mine"), "200", "200"), (Some("other"), "403", "403"), (None, "403", "403")]
    {
        let scope = project.map(|p| format!("x-scope-orgid: {p}")).unwrap_or("x: y".into());
        let (status, body) = curl(&["-H", &bearer, "-H", &scope, "-H", json, "-d", &message, &otlp]);
        assert_eq!(status, sent, "{project:?}: {body}");
        let (status, body) = curl(&["-H", &bearer, "-H", &scope, &query]);
        assert_eq!(status, read, "{project:?}: {body}");
        assert_eq!(body.contains("\"3\""), project == Some("mine"), "{project:?}: {body}");
    }
    assert_eq!(curl(&[&query]).0, "401");
    let (status, _) = curl(&["-H", &bearer, "-H", "x-scope-orgid: ../mine", &query]);
    assert_eq!(status, "400");
    // The cloud's admins see it, in the project and not among the cloud's own.
    assert!(cloud.ok(&["metrics", "query", "sold", "--project", "mine"]).trim_end().ends_with('3'));
    assert!(cloud.run(&["metrics", "query", "sold"]).err.contains("no series"));
    assert_eq!(cloud.run(&["metrics", "query", "sold", "--project", "nobody"]).code, 3);
}

/// Tests of rules have promtool's verdict, and its exit code.
#[test]
fn rule_tests_end_as_promtools_do() {
    let dir = tempfile::tempdir().expect("folder");
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).expect("write");
    write("rules.yml", "groups: [{name: g, rules: [{record: r, expr: x * 2}]}]");
    let test = |value: &str| {
        let expected = format!("[{{expr: r, eval_time: 1m, exp_samples: [{{labels: r, value: {value}}}]}}]");
        format!(
            "rule_files: [rules.yml]\ntests: [{{interval: 1m, input_series: [{{series: x, values: '1 3'}}], promql_expr_test: {expected}}}]"
        )
    };
    write("good.yml", &test("6"));
    write("bad.yml", &test("7"));
    for (file, code) in [("good.yml", 0), ("bad.yml", 1)] {
        let path = dir.path().join(file);
        let ours =
            Command::new(photon_exe()).args(["metrics", "test-rules"]).arg(&path).output().expect("runs");
        let theirs = Command::new("promtool").args(["test", "rules"]).arg(&path).output().expect("promtool");
        let codes = (ours.status.code(), theirs.status.code());
        assert_eq!(codes, (Some(code), Some(code)), "{file}: {}", String::from_utf8_lossy(&ours.stderr));
    }
}
