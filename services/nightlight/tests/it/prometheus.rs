//! The engine beside Debian's Prometheus 2.42 with the same samples: what both speak has to mean the same.

use crate::{
    random::{BEGIN, Dialect, Random, SECONDS},
    reference::{difference, points, query},
};
use nightlight::{
    engine::{Answer, Cancel, Memory, Value, run},
    labels::{Labels, NAME, Str},
    promql::parse,
};
use photon_rt::{
    entropy::Rng,
    process::{self, Child},
    time::{Duration, sleep, timeout},
};
use std::{
    fmt::Write as _,
    io::{Read, Write},
    net::TcpStream,
    path::Path,
    process::Stdio,
};

/// A real Prometheus on a port of its own, gone with this value.
struct Prometheus {
    _child: Child,
    port: u16,
}

/// A port that nobody has at the moment.
pub async fn free_port() -> u16 {
    let free = photon_rt::net::listen("127.0.0.1:0".parse().expect("address")).await.expect("a port");
    free.local_addr().expect("bound").port()
}

/// Samples as OpenMetrics text, which promtool makes blocks of.
fn open_metrics(data: &Memory) -> String {
    let mut out = String::new();
    let mut family = String::new();
    let mut all: Vec<_> = data.iter().collect();
    all.sort_by(|a, b| a.0.name().cmp(b.0.name()));
    for (labels, s) in all {
        if family != labels.name() {
            family = labels.name().to_string();
            writeln!(out, "# TYPE {family} unknown").expect("text");
        }
        let labels = labels.to_string().replace(", ", ",");
        for (t, v) in s.t.iter().zip(&s.v) {
            let value = nightlight::promql::number(*v);
            writeln!(out, "{labels} {value} {}.{:03}", t / 1000, t % 1000).expect("text");
        }
    }
    out + "# EOF\n"
}

impl Prometheus {
    async fn start(dir: &Path, data: &Memory) -> Self {
        let text = dir.join("samples.txt");
        photon_rt::fs::write_atomic(&text, open_metrics(data).as_bytes(), 0o600).expect("samples");
        let blocks = dir.join("data");
        let (text, blocks) = (text.to_str().expect("utf-8"), blocks.to_str().expect("utf-8"));
        let args = ["tsdb", "create-blocks-from", "openmetrics", text, blocks];
        process::run("promtool", &args, None, Duration::from_secs(120)).await.expect("blocks");
        let config = dir.join("prometheus.yml");
        photon_rt::fs::write_atomic(&config, b"global: {}\n", 0o600).expect("config");
        let free = photon_rt::net::listen("127.0.0.1:0".parse().expect("address")).await.expect("a port");
        let port = free.local_addr().expect("bound").port();
        drop(free);
        let child = process::command("prometheus")
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={blocks}"))
            .arg("--storage.tsdb.retention.time=100y")
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .arg("--log.level=error")
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .kill_on_drop(true)
            .spawn()
            .expect("prometheus is installed by ./dev setup");
        let p = Prometheus { _child: child, port };
        let ready = async {
            while !p.get("/-/ready", "").is_ok_and(|(status, _)| status == 200) {
                sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(Duration::from_secs(60), "prometheus", ready).await.expect("ready");
        p
    }

    /// A form by POST; status and body.
    fn get(&self, path: &str, form: &str) -> std::io::Result<(u16, String)> {
        let head = "Content-Type: application/x-www-form-urlencoded\r\n";
        request(self.port, if form.is_empty() { "GET" } else { "POST" }, path, head, form)
    }

    /// Every point of its answer, or its error.
    fn query(
        &self,
        text: &str,
        (start, end, step): (i64, i64, i64),
    ) -> Result<Vec<(Labels, i64, f64)>, String> {
        let seconds = |ms: i64| format!("{}.{:03}", ms / 1000, ms % 1000);
        let (path, when) = if step == 0 {
            ("/api/v1/query", format!("time={}", seconds(start)))
        } else {
            let (s, e, w) = (seconds(start), seconds(end), seconds(step));
            ("/api/v1/query_range", format!("start={s}&end={e}&step={w}"))
        };
        let (_, body) = self.get(path, &format!("query={}&{when}", escape(text))).expect("an answer");
        let json: serde_json::Value =
            serde_json::from_str(&body).unwrap_or_else(|e| panic!("{text}: {e}: {body}"));
        if json["status"] != "success" {
            return Err(json["error"].as_str().expect("error").to_string());
        }
        let (data, mut out) = (&json["data"], Vec::new());
        if data["resultType"] == "scalar" {
            out.push(point(Labels::default(), &data["result"]));
            return Ok(out);
        }
        for series in data["result"].as_array().expect("result") {
            let metric = series["metric"].as_object().expect("metric").iter();
            let labels = Labels::new(
                metric.map(|(k, v)| (Str::from(k.as_str()), Str::from(v.as_str().expect("text")))),
            );
            match series.get("value") {
                Some(value) => out.push(point(labels, value)),
                None => {
                    let values = series["values"].as_array().expect("values").iter();
                    out.extend(values.map(|v| point(labels.clone(), v)));
                }
            }
        }
        out.sort_by(|a, b| (&a.0, a.1).cmp(&(&b.0, b.1)));
        Ok(out)
    }
}

/// One request to this machine; status and body.
pub fn request(
    port: u16,
    method: &str,
    path: &str,
    head: &str,
    body: &str,
) -> std::io::Result<(u16, String)> {
    let mut s = TcpStream::connect(("127.0.0.1", port))?;
    let len = body.len();
    write!(s, "{method} {path} HTTP/1.0\r\nHost: localhost\r\n{head}Content-Length: {len}\r\n\r\n{body}")?;
    let mut text = String::new();
    s.read_to_string(&mut text)?;
    let status = text.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
    let body = text.split_once("\r\n\r\n").map(|b| b.1.to_string()).unwrap_or_default();
    Ok((status, body))
}

fn point(labels: Labels, v: &serde_json::Value) -> (Labels, i64, f64) {
    let value = v[1].as_str().expect("value").parse().expect("number");
    (labels, (v[0].as_f64().expect("instant") * 1000.0).round() as i64, value)
}

/// URL-encoded.
pub fn escape(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric();
    text.bytes().map(|b| if plain(b) { (b as char).to_string() } else { format!("%{b:02X}") }).collect()
}

fn ours(data: &Memory, text: &str, when: (i64, i64, i64)) -> Result<Answer, String> {
    let e = parse(text).map_err(|e| format!("invalid parameter \"query\": {e}"))?;
    run(data, text, &e, query(when), &Cancel::default()).map_err(|e| e.to_string())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_engine_agrees_with_prometheus() {
    let dir = tempfile::tempdir().expect("folder");
    let mut r = Random::new(242, Dialect::Prometheus242);
    let data = r.samples();
    let theirs = Prometheus::start(dir.path(), &data).await;
    let all = theirs.query("count({job!=\"\"})", (BEGIN + SECONDS * 500 + 500, 0, 0)).expect("an answer");
    assert!(all[0].2 >= 20.0, "prometheus has the samples");
    let (mut answers, mut empty, mut errors) = (0, 0, 0);
    let mut wrong = Vec::new();
    for k in 0..4000 {
        r.rng = Rng::new(1_000_000 + k);
        let (text, when) = (r.vector(3), r.when());
        match (theirs.query(&text, when), ours(&data, &text, when)) {
            (Ok(want), Ok(got)) => {
                if let Some(d) = difference(&points(&got.value), &want) {
                    wrong.push(format!("{k}: {text} at {when:?}: {d}"));
                }
                answers += usize::from(!want.is_empty());
                empty += usize::from(want.is_empty());
            }
            (Err(_), Err(_)) => errors += 1,
            (want, got) => wrong.push(format!(
                "{k}: {text} at {when:?}: ours {:?}, prometheus {:?}",
                got.map(|a| points(&a.value).len()),
                want.map(|w| w.len())
            )),
        }
    }
    println!("{answers} answers, {empty} empty, {errors} errors, {} differences", wrong.len());
    assert!(wrong.is_empty(), "{}:\n{}", wrong.len(), wrong[..wrong.len().min(30)].join("\n"));
    assert!(answers > 2000, "too few queries had an answer: {answers}");
    parse_errors_agree(&theirs, &data);
}

/// Queries that can't be read: the same words at the same place.
fn parse_errors_agree(theirs: &Prometheus, data: &Memory) {
    let when = (BEGIN + 500, BEGIN + 500, 0);
    let mut wrong = Vec::new();
    for text in [
        "1 /",
        "*1",
        "(1))",
        "((1)",
        "a{",
        "a{b}",
        "a{b=c}",
        "a{b=\"c\" d=\"e\"}",
        "a{b!c}",
        "foo(x)",
        "rate(x)",
        "rate()",
        "round(x, 1, 2)",
        "label_join(x)",
        "sum()",
        "topk(x)",
        "topk(x, x)",
        "sum(1)",
        "sum some_metric by (test)",
        "sum by (1) (x)",
        "1 == 1",
        "1 + bool 1",
        "1 or 1",
        "a or on (b) group_left (c) d",
        "a + on (b) group_left (b) d",
        "1 + on (b) a",
        "a[5m] + 1",
        "-a[5m]",
        "{}",
        "{a=~\".*\"}",
        "a{__name__=\"b\"}",
        "a[5m][1m]",
        "a offset 5m[1m]",
        "a offset 5m offset 5m",
        "1[5m:1m]",
        "rate(x[5m],)",
        "a b",
        "a]",
        "\"abc",
        "1\n+ $",
        "x @",
        "sum(x y)",
        "sum(x",
        "sum by (a)",
        "sum(",
        "rate(x[5m] y)",
        "sum(rate(x[5m] y))",
        "avg(x) by",
        "a[5m:",
        "a[5m:1m",
        "a[5m 1m]",
        "a offset",
        "a offset x",
        "a @ x",
        "a + on",
        "a + on (",
        "a + on (b",
        "a[0s]",
        "label_replace(a, b)",
        "-\"a\"",
        "\"a\" + 1",
        "sum by (a) x",
        "a{,}",
        "x{a=\"b\",,}",
        "a[5m] offset",
        "sum without",
        ")",
        "]",
        "}",
        "a}",
        "'\\q'",
        "a == bool",
        "a ! b",
        "a =~ b",
        "a[5m]]",
        "a[1m1h]",
        "a offset 1m1h",
        "count_values(5, x)",
        "quantile(\"a\", x)",
        "sum(a[5m])",
        "a{b=\"\\q\"}",
        "1 and 1",
        "vector(a)",
        "scalar(1)",
        "time(1)",
        "a[5m] == a",
        "a == \"b\"",
        "a or bool b",
        "1 unless a",
        "rate(a[5m:1m)",
        "a{b=~\"x\", c}",
        "sum(a) without (b) c",
        "abs(sum(a b))",
        "{a=\"\"}",
        "sum by a (b)",
        "a b c",
        "1 1",
        "a(b)",
        "sum(b, c)",
        "topk(1, 2, 3)",
        "((",
        "a{b=\"c\"",
        "a offset -",
        "a @ -x",
        "a @ end(",
        "a[5m][5m:1m] @",
        "#",
        "a\n\n]",
        "sum(\n)",
        "rate(\nx)",
    ] {
        let want = theirs.query(text, when).map(|a| format!("{a:?}")).unwrap_or_else(|e| e);
        let got = ours(data, text, when).map(|a| format!("{a:?}")).unwrap_or_else(|e| e);
        if want != got {
            wrong.push(format!("{text}\n  ours  {got}\n  their {want}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A planted defect has to show: the comparison is worth something.
#[test]
fn a_difference_is_seen() {
    let l = Labels::of(&[(NAME, "x")]);
    let v = |v: f64| points(&Value::Vector(vec![(l.clone(), 1, nightlight::engine::Point::Number(v))]));
    assert_eq!(difference(&v(1.0), &v(1.0 + 1e-15)), None);
    assert!(difference(&v(1.0), &v(1.0 + 1e-6)).is_some());
    assert!(difference(&v(1.0), &v(f64::NAN)).is_some());
    assert!(difference(&v(f64::INFINITY), &v(f64::NEG_INFINITY)).is_some());
    assert!(difference(&v(1.0), &[]).is_some());
}
