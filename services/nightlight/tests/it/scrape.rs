//! Scraping beside Debian's Prometheus 2.42: the same real target, the same configuration, the same series.

use crate::{door::Door, prometheus::free_port};
use nightlight::scrape::config::Config;
use photon_rt::{
    process::{self, Child},
    time::{Duration, sleep, timeout},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    process::Stdio,
};

/// A real node_exporter.
async fn node_exporter() -> (Child, u16) {
    let port = free_port().await;
    let child = process::command("prometheus-node-exporter")
        .arg(format!("--web.listen-address=127.0.0.1:{port}"))
        .args(["--log.level=error", "--no-collector.systemd", "--no-collector.rapl"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("prometheus-node-exporter is installed by ./dev setup");
    (child, port)
}

fn config(dir: &Path, port: u16) -> String {
    format!(
        "global: {{scrape_interval: 1s, scrape_timeout: 1s, external_labels: {{region: here}}}}
scrape_configs:
- job_name: node
  static_configs: [{{targets: ['127.0.0.1:{port}'], labels: {{rack: r1, device: mine}}}}]
  relabel_configs:
  - {{source_labels: [__address__], regex: '([^:]+):.*', target_label: host, replacement: 'h-$1'}}
  - {{source_labels: [__address__], modulus: 8, target_label: shard, action: hashmod}}
  metric_relabel_configs:
  - {{source_labels: [__name__], regex: 'node_(cpu|disk)_.*', action: drop}}
  - {{regex: 'cpu', action: labeldrop}}
  - {{source_labels: [mountpoint], target_label: mount, action: uppercase}}
- job_name: honest
  honor_labels: true
  file_sd_configs: [{{files: ['{}'], refresh_interval: 1s}}]
- job_name: away
  static_configs: [{{targets: ['127.0.0.1:1']}}]
",
        dir.join("list.json").display()
    )
}

type Set = BTreeSet<BTreeMap<String, String>>;

fn set(json: &serde_json::Value) -> Set {
    let all = json["data"].as_array().expect("series").iter();
    all.map(|s| {
        let labels = s.as_object().expect("labels").iter();
        labels
            .map(|(n, v)| {
                let v = v.as_str().expect("text");
                // Prometheus 3 writes these numbers with a point, as OpenMetrics does; 2.42 did not yet.
                let v = match n.as_str() {
                    "le" | "quantile" => v.strip_suffix(".0").unwrap_or(v),
                    _ => v,
                };
                (n.clone(), v.to_string())
            })
            .collect()
    })
    .collect()
}

/// What this machine or the exporter itself does between two looks.
fn steady(s: &Set) -> Set {
    let kept = |name: &str| !name.starts_with("node_network_") && !name.starts_with("node_netstat_");
    s.iter().filter(|l| kept(&l["__name__"])).cloned().collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_target_gives_the_same_series_as_in_prometheus() {
    let dir = tempfile::tempdir().expect("folder");
    let (_exporter, target) = node_exporter().await;
    let list = format!("[{{\"targets\": [\"127.0.0.1:{target}\"], \"labels\": {{\"from\": \"file\"}}}}]");
    let write = |name: &str, text: &str| {
        photon_rt::fs::write_atomic(&dir.path().join(name), text.as_bytes(), 0o600).expect("write");
    };
    write("list.json", &list);
    let text = config(dir.path(), target);
    write("prometheus.yml", &text);
    let port = free_port().await;
    let _theirs = process::command("prometheus")
        .arg(format!("--config.file={}", dir.path().join("prometheus.yml").display()))
        .arg(format!("--storage.tsdb.path={}", dir.path().join("data").display()))
        .arg(format!("--web.listen-address=127.0.0.1:{port}"))
        .arg("--log.level=error")
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .spawn()
        .expect("prometheus is installed by ./dev setup");
    let door = Door::open(&dir.path().join("night")).await;
    let parsed = Config::parse(&text, dir.path()).expect("Prometheus' own configuration");
    door.night.scraper().apply(parsed);
    let both = async |path: &str| {
        let theirs = crate::door::get(port, path).await;
        (
            serde_json::from_str(&theirs.1).unwrap_or_default(),
            serde_json::from_str(&door.get(path).await.1).expect("json"),
        )
    };
    let path = "/api/v1/series?match[]=%7B__name__%3D~%22.%2B%22%7D";
    let seen = std::sync::Mutex::new(String::new());
    let agree = async {
        loop {
            let (theirs, ours): (serde_json::Value, serde_json::Value) = both(path).await;
            if theirs["status"] == "success" {
                let (theirs, ours) = (steady(&set(&theirs)), steady(&set(&ours)));
                let scraped = |s: &Set| s.iter().filter(|l| l["__name__"] == "node_load1").count() == 2;
                if scraped(&theirs) && scraped(&ours) && theirs == ours {
                    return theirs.len();
                }
                let diff: Vec<_> = theirs.symmetric_difference(&ours).take(5).collect();
                *seen.lock().expect("text") =
                    format!("theirs {}, ours {}: {diff:?}", theirs.len(), ours.len());
            }
            sleep(Duration::from_millis(500)).await;
        }
    };
    let n = timeout(Duration::from_secs(90), "the same series", agree).await;
    let n = n.unwrap_or_else(|e| panic!("{e}: {}", seen.lock().expect("text")));
    assert!(n > 500, "{n} series are too few for a machine");

    // Targets: who is up, who is not, and under which labels.
    let (theirs, ours) = both("/api/v1/targets").await;
    let shown = |json: &serde_json::Value| -> Vec<String> {
        let mut all: Vec<String> = json["data"]["activeTargets"]
            .as_array()
            .expect("targets")
            .iter()
            .map(|t| {
                let keys = ["labels", "scrapePool", "scrapeUrl", "health", "scrapeInterval", "scrapeTimeout"];
                keys.map(|k| t[k].to_string()).join(" ")
            })
            .collect();
        all.sort();
        all
    };
    assert_eq!(shown(&theirs), shown(&ours));

    // The exporter's list loses it: its series go stale, and the others stay.
    write("list.json", "[]");
    let gone = async {
        while door.query("node_load1").await["data"]["result"].as_array().expect("vector").len() != 1 {
            sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(Duration::from_secs(30), "the end of a target", gone).await.expect("stale");
    let up = door.query("up").await;
    let mut up: Vec<String> = up["data"]["result"]
        .as_array()
        .expect("vector")
        .iter()
        .map(|s| format!("{} {}", s["metric"]["job"], s["value"][1]))
        .collect();
    up.sort();
    assert_eq!(up, ["\"away\" \"0\"", "\"node\" \"1\""]);

    // Prometheus takes what we federate, with our external labels on it.
    let (status, page) = door.get("/federate?match[]=node_load1").await;
    assert_eq!(status, 200);
    assert!(
        page.contains("# TYPE node_load1 untyped\nnode_load1{") && page.contains("region=\"here\""),
        "{page}"
    );
    let (_, meta) = door.get("/api/v1/metadata?metric=node_load1").await;
    assert!(meta.contains(r#"{"type":"gauge","help":"1m load average.","unit":""}"#), "{meta}");
    door.tasks.shutdown().await;
}

const OPEN_METRICS: &str = "# TYPE req counter
# HELP req What was asked for.
req_total{a=\"1\"} 5 # {trace_id=\"one\"} 0.5 1600000000.25
req_total{a=\"2\"} 6 # {trace_id=\"two\",span=\"x\"} 1e-9 1600000001
# TYPE lat histogram
lat_bucket{le=\"1.0\"} 3 # {trace_id=\"three\"} 0.7 1600000002.5
lat_bucket{le=\"+Inf\"} 4
lat_count 4
lat_sum 9.5
# EOF
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exemplars_of_a_page_are_answered_as_by_prometheus() {
    let dir = tempfile::tempdir().expect("folder");
    let kind =
        (axum::http::header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8");
    let page =
        axum::Router::new().route("/metrics", axum::routing::get(async move || ([kind], OPEN_METRICS)));
    let (tasks, target) = (photon_rt::task::Tasks::new(), free_port().await);
    let addr = format!("127.0.0.1:{target}").parse().expect("address");
    photon_serve::listen::Listener {
        name: "target",
        socket: photon_rt::net::listen(addr).await.expect("port"),
        tls: None,
        tokens: None,
        router: page,
        direct: None,
        lenient_authority: false,
    }
    .start(&tasks);
    let text = format!(
        "scrape_configs: [{{job_name: j, scrape_interval: 1s, static_configs: [{{targets: ['127.0.0.1:{target}']}}]}}]"
    );
    let file = dir.path().join("prometheus.yml");
    photon_rt::fs::write_atomic(&file, text.as_bytes(), 0o600).expect("write");
    let port = free_port().await;
    let _theirs = process::command("prometheus")
        .arg(format!("--config.file={}", file.display()))
        .arg(format!("--storage.tsdb.path={}", dir.path().join("data").display()))
        .arg(format!("--web.listen-address=127.0.0.1:{port}"))
        .args(["--log.level=error", "--enable-feature=exemplar-storage"])
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .spawn()
        .expect("prometheus is installed by ./dev setup");
    let door = Door::open(&dir.path().join("night")).await;
    door.night.scraper().apply(Config::parse(&text, dir.path()).expect("valid"));
    let json = |body: &str| serde_json::from_str::<serde_json::Value>(body).unwrap_or_default();
    for (query, found) in [
        ("query=req_total&start=1500000000&end=1700000000", 2),
        (
            "query=rate(lat_bucket[5m])%2Bon()group_left()req_total%7Ba%3D%221%22%7D&start=1600000000&end=1600000003",
            2,
        ),
        ("query=req_total&start=1600000000.5&end=1600000001.000", 1),
        ("query=nothing&start=1500000000&end=1700000000", 0),
        ("query=1&start=1500000000&end=1700000000", 0),
        ("query=req_total&start=3&end=2", 0),
        ("query=rate(req_total)&start=1&end=2", 0),
    ] {
        let path = format!("/api/v1/query_exemplars?{query}");
        let agree = async {
            loop {
                let theirs = crate::door::get(port, &path).await;
                let ours = door.get(&path).await;
                let n = |body: &str| json(body)["data"].as_array().map_or(0, Vec::len);
                if n(&theirs.1) == found && n(&ours.1) == found && [200, 204, 400].contains(&theirs.0) {
                    return (theirs, ours);
                }
                sleep(Duration::from_millis(100)).await;
            }
        };
        let (theirs, ours) = timeout(Duration::from_secs(60), "exemplars", agree).await.expect(query);
        let sorted = |body: &str| {
            let mut all = json(body);
            if let Some(list) = all["data"].as_array_mut() {
                list.sort_by_key(ToString::to_string);
            }
            all
        };
        assert_eq!(theirs.0, ours.0, "{query}");
        assert_eq!(sorted(&theirs.1), sorted(&ours.1), "{query}");
    }
    let about = json(&door.get("/api/v1/metadata?metric=req").await.1);
    assert_eq!(about["data"]["req"][0]["help"], "What was asked for.", "{about}");
    door.tasks.shutdown().await;
    tasks.shutdown().await;
}
