//! What targets do to a scraper: ask for credentials, send elsewhere, pack, take long, say too much, break off.

use crate::door::Door;
use axum::{
    Router,
    extract::Request,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use nightlight::scrape::config::Config;
use photon_rt::{
    task::Tasks,
    time::{Duration, sleep, timeout},
};
use photon_serve::listen::Listener;
use std::{io::Write, path::Path};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const TEXT: (header::HeaderName, &str) = (header::CONTENT_TYPE, "text/plain; version=0.0.4");

/// Answers who has the password. By hand: our own listeners take no passwords, and say so themselves.
async fn keeper(tasks: &Tasks) -> u16 {
    let socket = photon_rt::net::listen("127.0.0.1:0".parse().expect("address")).await.expect("port");
    let port = socket.local_addr().expect("bound").port();
    tasks.spawn("keeper", async move {
        while let Ok((mut io, _)) = socket.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                match io.read_u8().await {
                    Ok(b) => head.push(b),
                    Err(_) => break,
                }
            }
            let head = String::from_utf8_lossy(&head).to_lowercase();
            let status =
                if head.contains("authorization: basic dtpw\r\n") { "200 OK" } else { "401 Unauthorized" };
            let body = "secret 1\n";
            let answer =
                format!("HTTP/1.1 {status}\r\ncontent-type: text/plain\r\ncontent-length: 9\r\n\r\n{body}");
            let _ = io.write_all(answer.as_bytes()).await; // the connection ends here: the next scrape makes another
        }
    });
    port
}

async fn packed(request: Request) -> impl IntoResponse {
    let asked = request.headers().get(header::ACCEPT_ENCODING).is_some_and(|v| v == "gzip");
    let mut e = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    e.write_all(
        format!("packed{{query=\"{}\"}} {}\n", request.uri().query().unwrap_or_default(), u8::from(asked))
            .as_bytes(),
    )
    .expect("memory");
    ([TEXT, (header::CONTENT_ENCODING, "gzip")], e.finish().expect("memory"))
}

/// A list that names its own server.
async fn list(request: Request) -> impl IntoResponse {
    let host = request.headers().get(header::HOST).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let json = format!(
        "[{{\"targets\": [\"{host}\"], \"labels\": {{\"__metrics_path__\": \"/packed\", \"l\": \"v\"}}}}]"
    );
    ([(header::CONTENT_TYPE, "application/json")], json)
}

async fn slow() -> impl IntoResponse {
    sleep(Duration::from_secs(30)).await;
    ([TEXT], "slow 1\n")
}

async fn targets(tasks: &Tasks) -> u16 {
    let router = Router::new()
        .route("/packed", get(packed))
        .route("/slow", get(slow))
        .route("/list", get(list))
        .route("/elsewhere", get(|| async { (StatusCode::FOUND, [(header::LOCATION, "/packed")], "") }))
        .route("/round", get(|| async { (StatusCode::FOUND, [(header::LOCATION, "/round")], "") }))
        .route("/large", get(|| async { ([TEXT], format!("# {}\nlarge 1\n", "x".repeat(5000))) }))
        .route("/nothing", get(|| async { ([(header::CONTENT_TYPE, "text/html")], "nothing 1\n") }))
        .route("/broken", get(|| async { ([TEXT], "fine 1\nbroken{ 2\n") }))
        .route("/error", get(|| async { (StatusCode::INTERNAL_SERVER_ERROR, "") }));
    let socket = photon_rt::net::listen("127.0.0.1:0".parse().expect("address")).await.expect("port");
    let port = socket.local_addr().expect("bound").port();
    Listener {
        name: "targets",
        socket,
        tls: None,
        tokens: None,
        router,
        direct: None,
        lenient_authority: false,
    }
    .start(tasks);
    port
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_target_is_told_by_its_own_words() {
    let dir = tempfile::tempdir().expect("folder");
    let tasks = Tasks::new();
    let (port, kept) = (targets(&tasks).await, keeper(&tasks).await);
    let job = |name: &str, more: &str| {
        let port = if name == "secret" { kept } else { port };
        // Only who is to be too slow has little time: the others answer in time on a busy machine too.
        let (interval, limit) = if name == "slow" { ("500ms", "400ms") } else { ("3s", "3s") };
        format!(
            "- {{job_name: {name}, metrics_path: /{name}, scrape_interval: {interval}, scrape_timeout: {limit}, \
             static_configs: [{{targets: ['127.0.0.1:{port}']}}], {more}}}\n"
        )
    };
    let jobs = [
        job("secret", "basic_auth: {username: u, password_file: pass}"),
        job("packed", "params: {a: [b c]}"),
        job("slow", ""),
        job("elsewhere", ""),
        job("round", ""),
        job("large", "body_size_limit: 4KB"),
        job("nothing", ""),
        job("broken", ""),
        job("error", ""),
        format!(
            "- {{job_name: listed, scrape_interval: 3s, http_sd_configs: [{{url: 'http://127.0.0.1:{port}/list'}}]}}\n"
        ),
    ];
    photon_rt::fs::write_atomic(&dir.path().join("pass"), b"p\n", 0o600).expect("write");
    let text = format!("scrape_configs:\n{}", jobs.concat());
    let door = Door::open(&dir.path().join("night")).await;
    door.night.scraper().apply(Config::parse(&text, dir.path()).expect("valid"));
    let state = async || {
        let body = door.get("/api/v1/targets").await.1;
        let json: serde_json::Value = serde_json::from_str(&body).expect("json");
        let all = json["data"]["activeTargets"].as_array().expect("targets").clone();
        let mut all: Vec<[String; 3]> = all
            .iter()
            .map(|t| ["scrapePool", "health", "lastError"].map(|k| t[k].as_str().expect("text").into()))
            .collect();
        all.sort();
        all
    };
    let asked = async {
        while state().await.len() < jobs.len() || state().await.iter().any(|t| t[1] == "unknown") {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(Duration::from_secs(30), "answers", asked).await.expect("all were asked");
    let want = [
        ("broken", "down", "expected label name or left brace, got \"2\" (\"INVALID\")"),
        ("elsewhere", "up", ""),
        ("error", "down", "server returned HTTP status 500"),
        ("large", "down", "body size limit exceeded"),
        ("listed", "up", ""),
        ("nothing", "down", "received unsupported Content-Type"),
        ("packed", "up", ""),
        ("round", "down", "stopped after 10 redirects"),
        ("secret", "up", ""),
        ("slow", "down", "context deadline exceeded"),
    ];
    for (got, (name, health, words)) in state().await.iter().zip(want) {
        assert_eq!((got[0].as_str(), got[1].as_str()), (name, health), "{got:?}");
        assert!(got[2].contains(words) && got[2].is_empty() == words.is_empty(), "{got:?}");
    }
    let value = async |q: &str| door.query(q).await["data"]["result"][0]["value"][1].clone();
    assert_eq!(value("packed{query=\"a=b+c\"}").await, "1", "gzip was asked for");
    assert_eq!(value("count(up == 0)").await, "6");
    assert_eq!(value("packed{job=\"listed\",l=\"v\"}").await, "1");
    assert_eq!(
        value("count({job=\"broken\",__name__=\"fine\"})").await,
        serde_json::Value::Null,
        "half a page is none"
    );

    // A job goes: its targets' series end. One that stays is not disturbed.
    let asked = async || {
        let n = value("count_over_time(up{job=\"packed\"}[1h])").await;
        n.as_str().and_then(|n| n.parse::<u64>().ok()).expect("it was asked")
    };
    let before = asked().await;
    let text = format!("scrape_configs:\n{}", job("packed", "params: {a: [b c]}"));
    door.night.scraper().apply(Config::parse(&text, Path::new("/")).expect("valid"));
    let gone = async {
        // Twice more: one may have been under way.
        while value("count(up)").await != "1" || asked().await < before + 2 {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(Duration::from_secs(60), "the end of jobs", gone).await.expect("stale");
    let new = value("sum(sum_over_time(scrape_series_added{job=\"packed\"}[1h]))").await;
    assert_eq!(new, "1", "the one that stays was new once");
    door.tasks.shutdown().await;
    tasks.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_configuration_is_read_again_and_a_wrong_one_changes_nothing() {
    let dir = tempfile::tempdir().expect("folder");
    let file = dir.path().join("prometheus.yml");
    let write = |text: &str| photon_rt::fs::write_atomic(&file, text.as_bytes(), 0o600).expect("write");
    write("scrape_configs: [{job_name: one, basic_auth: {username: u, password: s3cret}}]");
    let door = Door::open_with(&dir.path().join("night"), Some(file.clone())).await;
    let pools = async || door.get("/api/v1/scrape_pools").await.1;
    let reload = async || {
        let port = door.port;
        let ask = move || crate::prometheus::request(port, "POST", "/-/reload", "", "").expect("an answer");
        photon_rt::task::blocking(ask).await
    };
    assert_eq!(reload().await.0, 200);
    assert!(pools().await.contains("[\"one\"]"));
    write("scrape_configs: [{job_name: two, scrape_intervall: 1s}]");
    let (status, words) = reload().await;
    assert!(status == 500 && words.contains("scrape_intervall"), "{status} {words}");
    assert!(pools().await.contains("[\"one\"]"));
    let (_, config) = door.get("/api/v1/status/config").await;
    assert!(config.contains("<secret>") && !config.contains("s3cret"), "{config}");
    let (_, info) = door.get("/api/v1/status/runtimeinfo").await;
    assert!(info.contains("\"reloadConfigSuccess\":false"), "{info}");
    let (_, tree) = door.get("/api/v1/parse_query?query=sum(x)").await;
    assert!(tree.contains("\"type\":\"aggregation\""), "{tree}");
    door.tasks.shutdown().await;
}
