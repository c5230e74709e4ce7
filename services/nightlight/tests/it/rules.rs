//! Rules beside Debian's Prometheus 2.42: the same files judged by promtool, the same groups evaluated over the same
//! samples, alerts told to a real Alertmanager.

use crate::{
    door::{Door, get},
    prometheus::{escape, free_port},
};
use nightlight::rules::{file, group::Group, unit};
use photon_rt::{
    process::{self, Child},
    time::{Duration, sleep, timeout, wall},
};
use serde_json::Value;
use std::{collections::BTreeMap, path::Path, process::Stdio};

fn write(path: &Path, text: &str) {
    photon_rt::fs::write_atomic(path, text.as_bytes(), 0o600).expect("write");
}

/// Whether promtool is content, and what it says.
async fn promtool(args: &[&str]) -> (bool, String) {
    let out = process::command("promtool").args(args).output().await.expect("promtool");
    let text = [out.stdout, out.stderr].concat();
    (out.status.success(), String::from_utf8_lossy(&text).into_owned())
}

/// Rule files, and whether they are right.
const FILES: [(&str, bool); 17] = [
    ("", true),
    ("groups: []", true),
    (
        "groups: [{name: a, interval: 30s, limit: 3, rules: [{record: 'a:b', expr: up, labels: {x: 1}}]}]",
        true,
    ),
    ("groups: [{name: a, rules: [{alert: a, expr: up == 0, for: 0s, keep_firing_for: 5m}]}]", true),
    ("groups: [{name: a, rules: [{alert: a, expr: up, labels: {s: '{{ $labels.x | title }}'}}]}]", true),
    ("groups: [{name: a}, {name: a}]", false),
    ("groups: [{name: ''}]", false),
    ("groups: [{name: a, rules: [{record: a, alert: b, expr: up}]}]", false),
    ("groups: [{name: a, rules: [{expr: up}]}]", false),
    ("groups: [{name: a, rules: [{record: a, expr: 'sum('}]}]", false),
    ("groups: [{name: a, rules: [{record: a, expr: up, for: 1m}]}]", false),
    ("groups: [{name: a, rules: [{record: 'a{b}', expr: up}]}]", false),
    ("groups: [{name: a, rules: [{alert: a, expr: up, annotations: {t: '{{ nothing }}'}}]}]", false),
    ("groups: [{name: a, rules: [{alert: a, expr: up, annotations: {t: '{{ if }}'}}]}]", false),
    ("groups: [{name: a, rules: [{alert: a, expr: up, labels: {__name__: x}}]}]", false),
    ("groups: [{name: a, rules: [{alert: a, expr: up, fro: 1m}]}]", false),
    ("groups: [{name: a, rules: [{alert: a, expr: up, labels: {a: b, a: c}}]}]", false),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn promtool_finds_the_same_files_right() {
    let dir = tempfile::tempdir().expect("folder");
    for (i, (text, right)) in FILES.iter().enumerate() {
        let path = dir.path().join(format!("{i}.yml"));
        write(&path, text);
        let ours = file::load(&path, file::Defaults { interval_ms: 60_000, query_offset_ms: 0 });
        let theirs = promtool(&["check", "rules", path.to_str().expect("utf-8")]).await;
        assert_eq!((ours.is_ok(), theirs.0), (*right, *right), "{text}: {ours:?} {}", theirs.1);
    }
}

const RULES: &str = r#"
groups:
- name: g
  rules:
  - {record: 'job:x:sum', expr: sum by (job) (x), labels: {from: rules}}
  - {record: 'twice', expr: 2 * job:x:sum}
  - alert: High
    expr: x > 5
    for: 2m
    keep_firing_for: 2m
    labels: {severity: '{{ if gt $value 7.0 }}bad{{ else }}mild{{ end }}', fixed: f}
    annotations:
      value: '{{ $value }} {{ $value | humanize }} {{ printf "%.3f" $value }} {{ printf "%d" $value }}'
      big: '{{ with query "1234567.5 * sum(job:x:sum)" }}{{ . | first | value }} {{ . | first | value | humanize1024 }}{{ end }}'
      text: '{{ $labels.job | toUpper }} {{ .Labels.none }}| {{ $externalLabels.e }} {{ title "a b" }} {{ reReplaceAll "(.)b" "${1}c" "ab" }}'
      time: '{{ humanizeDuration 93784.0 }} {{ humanizeDuration 0.00021 }} {{ humanizePercentage 0.5123 }} {{ humanizeTimestamp 1435065584.128 }}'
      list: '{{ range query "x" | sortByLabel "job" }}{{ .Labels.job }}={{ .Value }};{{ end }}'
      where: '{{ stripPort "h.d:9" }} {{ graphLink "a + b" }} {{ 1 | print }} {{ len "abc" }} {{ print 1 2 "x" 3 }}'
      wrong: '{{ query "none" | first }}'
      bad: '{{ printf "%s %d" "a" }} {{ printf "x" 1 true }}'
  - {alert: Absent, expr: absent(never), labels: {a: b}}
"#;

fn unit_test(rules: &Path, value: &str, high_at: &str, time: &str) -> String {
    format!(
        r#"
rule_files: ['{}']
evaluation_interval: 1m
tests:
- name: t
  interval: 1m
  external_labels: {{e: ext}}
  input_series:
  - {{series: 'x{{job="a"}}', values: '0+1x10 _x2 3'}}
  - {{series: 'x{{job="b"}}', values: '9x3 stale _x2 1'}}
  alert_rule_test:
  - {{eval_time: 7m, alertname: High, exp_alerts: []}}
  - eval_time: {high_at}
    alertname: High
    exp_alerts:
    - exp_labels: {{severity: bad, job: a, fixed: f}}
      exp_annotations:
        value: '10 10 10.000 %!d(float64=10)'
        big: '1.35802425e+07 12.95Mi'
        text: 'A | ext A B ac'
        time: '1d 2h 3m 4s 210us 51.23% 2015-06-23 13:19:44.128 +0000 UTC'
        list: 'a=10;b=1;'
        where: 'h.d /graph?g0.expr=a+%2B+b&g0.tab=0 1 3 1 2x3'
        wrong: 'WRONG'
        bad: 'a %!d(MISSING) x%!(EXTRA int=1, bool=true)'
  - {{eval_time: {time}, alertname: Absent, exp_alerts: [{{exp_labels: {{a: b}}}}]}}
  promql_expr_test:
  - {{expr: twice, eval_time: 4m, exp_samples: [{{labels: 'twice{{job="a", from="rules"}}', value: {value}}}]}}
  - {{expr: 'job:x:sum{{job="b"}}', eval_time: 4m, exp_samples: []}}
"#,
        rules.display()
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn promtool_and_we_judge_rule_tests_alike() {
    let dir = tempfile::tempdir().expect("folder");
    let rules = dir.path().join("rules.yml");
    write(&rules, RULES);
    let path = dir.path().join("test.yml");
    // What an annotation says that goes wrong is taken from our own verdict: Prometheus has to say the same.
    write(&path, &unit_test(&rules, "8", "10m", "1m"));
    let said = unit::run(&path).expect_err("WRONG is no error text").join("\n");
    let wrong =
        said.split("wrong=\"").nth(2).and_then(|t| t.split(">\"").next()).unwrap_or_else(|| panic!("{said}"));
    let wrong = format!("{}>", wrong.replace("\\\"", "\""));
    assert!(wrong.contains("error calling first: first() called on vector with no elements"), "{said}");
    for (value, high_at, time, right) in [
        ("8", "10m", "1m", true),
        ("9", "10m", "1m", false),
        ("8", "6m", "1m", false),
        ("8", "10m", "59s", true),
    ] {
        let text = unit_test(&rules, value, high_at, time)
            .replace("'WRONG'", &format!("'{}'", wrong.replace('\'', "''")));
        write(&path, &text);
        let ours = unit::run(&path);
        let theirs = promtool(&["test", "rules", path.to_str().expect("utf-8")]).await;
        assert_eq!(
            (ours.is_ok(), theirs.0),
            (right, right),
            "{value} {high_at} {time}: {ours:?}\n{}",
            theirs.1
        );
    }
}

const SECOND: i64 = 1000;
/// Between what is evaluated now and the samples that it reads.
const BACK: &str = "10m";

const LIVE: &str = r#"
groups:
- name: live
  interval: 1s
  limit: 50
  rules:
  - {record: 'job:x:sum', expr: sum by (job) (x offset 10m), labels: {from: rules}}
  - {record: 'job:x:rate', expr: 'rate(x[4s600ms] offset 10m)'}
  - {record: seen, expr: 'job:x:sum > 3'}
  - {record: four, expr: '4'}
  - alert: High
    expr: x offset 10m > 5
    for: 2s
    keep_firing_for: 2s
    labels: {severity: '{{ if eq $labels.job "a" }}bad{{ else }}mild{{ end }}'}
    annotations: {text: '{{ $labels.job }} {{ $externalLabels.region }}'}
  - {alert: Never, expr: x offset 10m > 500}
  - {record: wrong, expr: '{job="a"} offset 10m * on () group_left () {job="b"} offset 10m + on () x offset 10m'}
"#;

/// Every series of an answer with its values.
fn series(json: &Value) -> BTreeMap<String, String> {
    let all = json["data"]["result"].as_array().unwrap_or_else(|| panic!("{json}")).iter();
    all.map(|s| (s["metric"].to_string(), s["values"].to_string())).collect()
}

/// Rules without what differs from one evaluation to the next.
fn plain(json: &Value) -> Value {
    let mut groups = json["data"]["groups"].clone();
    for g in groups.as_array_mut().into_iter().flatten() {
        let group = g.as_object_mut().expect("group");
        group.retain(|k, _| k != "evaluationTime" && k != "lastEvaluation");
        for r in group["rules"].as_array_mut().into_iter().flatten() {
            let volatile = ["evaluationTime", "lastEvaluation", "alerts", "state", "lastError"];
            r.as_object_mut().expect("rule").retain(|k, _| !volatile.contains(&k.as_str()));
        }
    }
    groups
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_rules_over_the_same_samples_give_the_same_as_in_prometheus() {
    let dir = tempfile::tempdir().expect("folder");
    let rules = dir.path().join("rules.yml");
    write(&rules, LIVE);
    let config = dir.path().join("prometheus.yml");
    write(
        &config,
        &format!("global: {{external_labels: {{region: here}}}}\nrule_files: ['{}']\n", rules.display()),
    );
    // Samples lie 200 ms after the instants that are evaluated: no window begins or ends at one.
    let groups =
        file::load(&rules, file::Defaults { interval_ms: 60_000, query_offset_ms: 0 }).expect("valid");
    let begun = Group::slot_ns(&groups[0], wall().0 as i64 * 1_000_000) / 1_000_000;
    let first = begun - 600 * SECOND - 40 * SECOND + 200;
    let mut text = "# TYPE x unknown\n".to_string();
    let mut arrivals = Vec::new();
    for (job, shift) in [("a", 0), ("b", 3)] {
        let labels = nightlight::labels::Labels::of(&[("__name__", "x"), ("job", job)]);
        let samples: Vec<(i64, f64)> =
            (0..240).map(|k| (first + k * SECOND, ((k + shift) % 10) as f64)).collect();
        for (t, v) in &samples {
            text += &format!("x{{job=\"{job}\"}} {v} {}.{:03}\n", t / 1000, t % 1000);
        }
        arrivals.push(nightlight::store::Arrival { labels, samples });
    }
    write(&dir.path().join("samples.txt"), &(text + "# EOF\n"));
    let (samples, data) = (dir.path().join("samples.txt"), dir.path().join("data"));
    let (from, to) = (samples.to_str().expect("utf-8"), data.to_str().expect("utf-8"));
    let made = promtool(&["tsdb", "create-blocks-from", "openmetrics", from, to]).await;
    assert!(made.0, "{}", made.1);
    let night = dir.path().join("night");
    let disk = photon_rt::disk::RealDisk::open(&night).expect("folder");
    let store = nightlight::store::Store::open(std::sync::Arc::new(disk), Default::default()).expect("store");
    store.append(arrivals).expect("samples");
    drop(store);
    let port = free_port().await;
    let _theirs = process::command("prometheus")
        .arg(format!("--config.file={}", config.display()))
        .arg(format!("--storage.tsdb.path={}", data.display()))
        .arg(format!("--web.listen-address=127.0.0.1:{port}"))
        .args(["--log.level=error", "--storage.tsdb.retention.time=100y"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("prometheus is installed by ./dev setup");
    let door = Door::open_with(&night, Some(config)).await;
    door.night.reload().await.expect("configuration");
    let both = async |path: &str| -> (Value, Value) {
        let theirs = get(port, path).await.1;
        (
            serde_json::from_str(&theirs).unwrap_or_default(),
            serde_json::from_str(&door.get(path).await.1).expect("json"),
        )
    };
    // A stretch in which neither has missed an instant, long enough for every alert to have begun within it.
    let quiet = async {
        loop {
            let now = wall().0 as i64;
            let end = now - (now - begun).rem_euclid(SECOND) - 2 * SECOND + 500;
            let at = format!("&time={}.{:03}", end / 1000, end % 1000);
            let (theirs, ours) = both(&format!("/api/v1/query?query={}{at}", escape("four[26s]"))).await;
            let full = |v: &Value| v["data"]["result"][0]["values"].as_array().is_some_and(|v| v.len() == 26);
            if full(&theirs) && full(&ours) {
                return end;
            }
            sleep(Duration::from_millis(500)).await;
        }
    };
    let end = timeout(Duration::from_secs(120), "a stretch", quiet).await.expect("both evaluate");
    let at = format!("&time={}.{:03}", end / 1000, end % 1000);
    let all = r#"{__name__=~"job:.*|seen|four|wrong|ALERTS.*"}"#;
    let (theirs, ours) = both(&format!("/api/v1/query?query={}{at}", escape(&format!("{all}[12s]")))).await;
    let (theirs, ours) = (series(&theirs), series(&ours));
    assert_eq!(theirs, ours);
    // One recorded series a job and rule; alerts pending and firing, with since when.
    assert!(ours.len() >= 2 * 3 + 1 + 4, "{ours:#?}");
    assert!(["pending", "firing"].iter().all(|s| ours.keys().any(|k| k.contains(s))), "{ours:#?}");
    // What vanished is not there between two evaluations either.
    let (s, e) = (end - 12 * SECOND, end);
    let range = format!("&start={}.{:03}&end={}.{:03}&step=1", s / 1000, s % 1000, e / 1000, e % 1000);
    let (theirs, ours) = both(&format!("/api/v1/query_range?query={}{range}", escape(all))).await;
    assert_eq!(series(&theirs), series(&ours));
    assert!(series(&ours).iter().any(|(k, v)| k.contains("seen") && v.matches('[').count() < 12), "{BACK}");
    let (theirs, ours) = both("/api/v1/rules").await;
    assert_eq!(plain(&theirs), plain(&ours));
    assert_eq!(ours["data"]["groups"][0]["rules"][6]["health"], "err");
    assert!(door.night.rules().metrics().contains("prometheus_rule_group_rules{rule_group="));
    door.tasks.shutdown().await;
}

/// A real Alertmanager without peers.
async fn alertmanager(dir: &Path) -> (Child, u16) {
    let config = dir.join("alertmanager.yml");
    write(&config, "route: {receiver: nobody}\nreceivers: [{name: nobody}]\n");
    let port = free_port().await;
    let child = process::command("prometheus-alertmanager")
        .arg(format!("--config.file={}", config.display()))
        .arg(format!("--storage.path={}", dir.join("alertmanager").display()))
        .arg(format!("--web.listen-address=127.0.0.1:{port}"))
        .args(["--cluster.listen-address=", "--log.level=error"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("prometheus-alertmanager is installed by ./dev setup");
    let ready = async {
        while get(port, "/-/ready").await.0 != 200 {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(Duration::from_secs(60), "the Alertmanager", ready).await.expect("ready");
    (child, port)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_alertmanager_is_told_of_alerts_and_of_their_end() {
    let dir = tempfile::tempdir().expect("folder");
    let (_manager, port) = alertmanager(dir.path()).await;
    let (rules, config) = (dir.path().join("rules.yml"), dir.path().join("prometheus.yml"));
    let rule = |expr: &str| {
        let labels = "labels: {secret: x, severity: bad}, annotations: {text: 'is {{ $value }}'}";
        write(
            &rules,
            &format!(
                "groups: [{{name: g, interval: 200ms, rules: [{{alert: Now, expr: '{expr}', {labels}}}]}}]"
            ),
        );
    };
    rule("vector(7)");
    let list = dir.path().join("list.json");
    write(&list, &format!("[{{\"targets\": [\"127.0.0.1:{port}\"]}}]"));
    write(
        &config,
        &format!(
            "global: {{external_labels: {{region: here}}}}
rule_files: [rules.*]
alerting:
  alert_relabel_configs: [{{action: labeldrop, regex: secret}}]
  alertmanagers:
  - static_configs: [{{targets: ['127.0.0.1:1']}}]
  - file_sd_configs: [{{files: ['{}']}}]
",
            list.display()
        ),
    );
    let door = Door::open_with(&dir.path().join("night"), Some(config)).await;
    door.night.reload().await.expect("configuration");
    let url = format!("--alertmanager.url=http://127.0.0.1:{port}");
    let known = async || -> Value {
        let out = process::command("amtool")
            .args(["alert", "query", "-o", "json", &url])
            .output()
            .await
            .expect("amtool");
        serde_json::from_slice(&out.stdout).unwrap_or_default()
    };
    // An alert that was lost because the Alertmanager was not up yet is told anew after a minute.
    let told = async {
        loop {
            let all = known().await;
            if all.as_array().is_some_and(|a| !a.is_empty()) {
                return all;
            }
            sleep(Duration::from_millis(200)).await;
        }
    };
    let all = timeout(Duration::from_secs(150), "an alert", told).await.expect("told");
    let labels: BTreeMap<String, String> = serde_json::from_value(all[0]["labels"].clone()).expect("labels");
    let labels: Vec<String> = labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    assert_eq!(labels, ["alertname=Now", "region=here", "severity=bad"]);
    assert_eq!(all[0]["annotations"]["text"], "is 7");
    assert!(
        all[0]["generatorURL"].as_str().is_some_and(|u| u.ends_with("/graph?g0.expr=vector%287%29&g0.tab=1")),
        "{all}"
    );
    let (_, page) = door.get("/api/v1/alertmanagers").await;
    assert!(
        page.contains(&format!("http://127.0.0.1:{port}/api/v2/alerts")) && page.contains("127.0.0.1:1/"),
        "{page}"
    );
    let (_, page) = door.get("/api/v1/alerts").await;
    assert!(page.contains("\"state\":\"firing\"") && page.contains("\"value\":\"7e+00\""), "{page}");
    let metrics = door.night.rules().metrics();
    let sent = format!(
        "prometheus_notifications_sent_total{{alertmanager=\"http://127.0.0.1:{port}/api/v2/alerts\"}} 1"
    );
    assert!(metrics.contains(&sent), "{metrics}");

    // The rule changes and its alert ends.
    rule("vector(7) > 8");
    door.night.reload().await.expect("configuration");
    let ended = async {
        while known().await.as_array().is_none_or(|a| !a.is_empty()) {
            sleep(Duration::from_millis(200)).await;
        }
    };
    timeout(Duration::from_secs(60), "the end", ended).await.expect("told");
    // A file that is wrong changes nothing.
    rule("vector(");
    let e = door.night.reload().await.expect_err("wrong").to_string();
    assert!(e.contains("could not parse expression"), "{e}");
    let (_, page) = door.get("/api/v1/rules?type=alert").await;
    assert!(page.contains("vector(7) \\u003e 8") || page.contains("vector(7) > 8"), "{page}");
    for (path, status, words) in [
        ("/api/v1/rules?type=both", 400, "not supported value"),
        ("/api/v1/rules?group_limit=0", 400, "greater than 0"),
        ("/api/v1/rules?group_next_token=x", 400, "group_limit needs to be set"),
        ("/api/v1/rules?group_limit=1&group_next_token=x", 400, "were rule groups changed?"),
        ("/api/v1/rules?type=record", 200, "\"groups\":[]"),
        ("/api/v1/rules?rule_name[]=Other", 200, "\"groups\":[]"),
        ("/api/v1/rules?match[]=%7Bseverity%3D%22bad%22%7D", 200, "\"name\":\"Now\""),
        ("/api/v1/rules?exclude_alerts=true&rule_group[]=g", 200, "\"alerts\":[]"),
    ] {
        let (got, body) = door.get(path).await;
        assert!(got == status && body.contains(words), "{path}: {got} {body}");
    }
    door.tasks.shutdown().await;
}
