//! The door with foreign clients: Debian's Prometheus as a sender by remote write, promtool and curl's like as readers.

use crate::prometheus::{escape, request};
use nightlight::wire::{Config, NightLight};
use photon_rt::{
    process,
    task::Tasks,
    time::{Duration, sleep, timeout},
};
use photon_serve::listen::Listener;
use std::{path::Path, process::Stdio};

/// A NightLight with its door, in this process.
pub struct Door {
    pub tasks: Tasks,
    pub port: u16,
    pub night: NightLight,
}

/// One request by GET to this machine.
pub async fn get(port: u16, path: &str) -> (u16, String) {
    let path = path.to_string();
    photon_rt::task::blocking(move || request(port, "GET", &path, "", "").unwrap_or_default()).await
}

impl Door {
    pub async fn open(dir: &Path) -> Self {
        Self::open_with(dir, None).await
    }

    pub async fn open_with(dir: &Path, file: Option<std::path::PathBuf>) -> Self {
        let tasks = Tasks::new();
        let about = nightlight::wire::About::new(Vec::new(), file);
        let night = NightLight::open_as(dir, Config::default(), about, &tasks).await.expect("open");
        let socket = photon_rt::net::listen("127.0.0.1:0".parse().expect("address")).await.expect("port");
        let port = socket.local_addr().expect("bound").port();
        let listener = Listener {
            name: "nightlight",
            socket,
            tls: None,
            tokens: None,
            router: night.router(),
            direct: None,
            lenient_authority: false,
        };
        listener.start(&tasks);
        Door { tasks, port, night }
    }

    pub async fn get(&self, path: &str) -> (u16, String) {
        let (port, path) = (self.port, path.to_string());
        photon_rt::task::blocking(move || request(port, "GET", &path, "", "").expect("an answer")).await
    }

    pub async fn query(&self, text: &str) -> serde_json::Value {
        let (status, body) = self.get(&format!("/api/v1/query?query={}", escape(text))).await;
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).expect("json")
    }

    async fn promtool(&self, args: &[&str]) -> String {
        let url = format!("http://127.0.0.1:{}", self.port);
        let mut all = vec!["query", args[0], url.as_str()];
        all.extend_from_slice(&args[1..]);
        let out = process::run("promtool", &all, None, Duration::from_secs(20)).await.expect("promtool");
        String::from_utf8(out).expect("text")
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prometheus_sends_and_promtool_reads() {
    let dir = tempfile::tempdir().expect("folder");
    let mut door = Door::open(&dir.path().join("night")).await;
    let free = photon_rt::net::listen("127.0.0.1:0".parse().expect("address")).await.expect("a port");
    let port = free.local_addr().expect("bound").port();
    drop(free);
    let config = dir.path().join("prometheus.yml");
    let text = format!(
        "global: {{scrape_interval: 200ms}}\nscrape_configs:\n- job_name: self\n  static_configs: [{{targets: ['127.0.0.1:{port}']}}]\n\
         remote_write:\n- url: http://127.0.0.1:{}/api/v1/write\n  queue_config: {{batch_send_deadline: 100ms}}\n",
        door.port
    );
    photon_rt::fs::write_atomic(&config, text.as_bytes(), 0o600).expect("config");
    let mut sender = process::command("prometheus")
        .arg(format!("--config.file={}", config.display()))
        .arg(format!("--storage.tsdb.path={}", dir.path().join("data").display()))
        .arg(format!("--web.listen-address=127.0.0.1:{port}"))
        .arg("--log.level=error")
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .spawn()
        .expect("prometheus is installed by ./dev setup");
    let arrived = async {
        loop {
            let answer = door.query("count_over_time(up{job=\"self\"}[5m])").await;
            let n = answer["data"]["result"][0]["value"][1].as_str().and_then(|n| n.parse::<u32>().ok());
            if n.is_some_and(|n| n >= 5) {
                return;
            }
            sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(Duration::from_secs(90), "samples", arrived).await.expect("samples arrive");
    sender.kill().await.expect("stopped");
    // Its newest samples may have gone with it; what is here is of a moment ago, within the lookback.
    let text = door.promtool(&["instant", "up + 0"]).await;
    assert!(text.contains("job=\"self\"") && text.contains("=> 1 @"), "{text}");
    let series = door.promtool(&["series", "--match=up"]).await;
    assert!(series.contains(&format!("instance=\"127.0.0.1:{port}\"")), "{series}");
    let names = door.promtool(&["labels", "job"]).await;
    assert_eq!(names.trim(), "self");
    let range = door.promtool(&["range", "--step=10s", "sum(up)"]).await;
    assert!(range.contains("1 @["), "{range}");
    // What was acknowledged is there after a restart.
    let all = door.query("count({job=\"self\"})").await["data"]["result"][0]["value"][1].clone();
    assert!(all.as_str().and_then(|n| n.parse::<u32>().ok()).is_some_and(|n| n > 100), "{all}");
    let count = "sum(count_over_time(scrape_duration_seconds[1h]))";
    let before = door.query(count).await["data"]["result"][0]["value"][1].clone();
    assert!(before.as_str().and_then(|n| n.parse::<u32>().ok()).is_some_and(|n| n >= 4), "{before}");
    door.tasks.shutdown().await;
    drop(door);
    door = Door::open(&dir.path().join("night")).await;
    assert_eq!(door.query(count).await["data"]["result"][0]["value"][1], before);
    door.tasks.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_requests_are_told_why() {
    let dir = tempfile::tempdir().expect("folder");
    let door = Door::open(dir.path()).await;
    for (path, status, words) in [
        (
            "/api/v1/query?query=1+%2F",
            400,
            "invalid parameter \\\"query\\\": 1:4: parse error: unexpected end of input",
        ),
        ("/api/v1/query", 400, "1:1: parse error: no expression found in input"),
        ("/api/v1/query?query=x&time=soon", 400, "cannot parse \\\"soon\\\" to a valid timestamp"),
        ("/api/v1/query_range?query=x&start=1&end=2", 400, "invalid parameter \\\"step\\\""),
        ("/api/v1/query_range?query=x&start=1&end=2&step=0", 400, "zero or negative query resolution"),
        (
            "/api/v1/query_range?query=x&start=3&end=2&step=1",
            400,
            "end timestamp must not be before start time",
        ),
        (
            "/api/v1/query_range?query=x&start=1&end=20000&step=1",
            400,
            "exceeded maximum resolution of 11,000 points",
        ),
        (
            "/api/v1/query_range?query=x[5m]&start=1&end=2&step=1",
            422,
            "invalid expression type \\\"range vector\\\"",
        ),
        (
            "/api/v1/query?query=sum_over_time(x[5m]%20anchored)",
            422,
            "anchored modifier can only be used with",
        ),
        ("/api/v1/series", 400, "no match[] parameter provided"),
        ("/api/v1/series?match[]=x%7B", 400, "invalid parameter \\\"match[]\\\""),
        ("/api/v1/labels?limit=many", 400, "limit must be a whole number"),
        ("/api/v1/query?query=%ff", 400, "not URL-encoded UTF-8"),
        ("/api/v1/query?query=1.5e-9", 200, "\"1.5e-09\""),
        ("/api/v1/query?query=vector(1)%3D%3D1&time=1970-01-01T00:00:10Z", 200, "[10,\"1\"]"),
        ("/api/v1/format_query?query=sum(x)by(a)", 200, "\"sum by (a) (x)\""),
        ("/api/v1/labels", 200, "\"data\":[]"),
        ("/api/v1/label/job/values", 200, "\"data\":[]"),
        ("/-/ready", 200, "Ready"),
        ("/-/healthy", 200, "Healthy"),
    ] {
        let (got, body) = door.get(path).await;
        assert!(got == status && body.contains(words), "{path}: {got} {body}");
    }
    let write = |head: &'static str, body: &'static str| {
        let port = door.port;
        photon_rt::task::blocking(move || {
            request(port, "POST", "/api/v1/write", head, body).expect("an answer")
        })
    };
    for (head, body, status, words) in [
        ("Content-Type: text/plain\r\n", "x", 415, "application/x-protobuf"),
        (
            "Content-Type: application/x-protobuf;proto=io.prometheus.write.v3.Request\r\n",
            "x",
            415,
            "expected one of",
        ),
        ("Content-Encoding: gzip\r\n", "x", 415, "snappy"),
        // The first bytes say how long it is unpacked: 400 MB.
        ("", "ÿÿ\x01", 413, "at most"),
        ("", "not snappy", 400, "snappy"),
        ("X-Scope-OrgID: other\r\n", "", 400, "tenants are not supported"),
    ] {
        let (got, text) = write(head, body).await;
        assert!(got == status && text.contains(words), "{head} {body:?}: {got} {text}");
    }
    door.tasks.shutdown().await;
}
