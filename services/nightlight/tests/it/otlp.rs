//! OTLP by a foreign client: curl, over HTTP/1.1 and HTTP/2.

use crate::door::Door;
use photon_rt::{process, time::Duration};
use std::{io::Write, path::Path};

const MESSAGE: &str = r#"{"resourceMetrics":[{"resource":{"attributes":[{"key":"service.name","value":{"stringValue":"shop"}}]},
 "scopeMetrics":[{"metrics":[{"name":"orders","sum":{"aggregationTemporality":2,"isMonotonic":true,
 "dataPoints":[{"timeUnixNano":"NOW","asInt":"7"}]}},
 {"name":"delta","sum":{"aggregationTemporality":1,"dataPoints":[{"timeUnixNano":"NOW","asInt":"1"}]}}]}]}]}"#;

/// Status line's number, and all that came, head and trailers too.
async fn curl(args: &[&str], path: &str, port: u16, body: &Path) -> String {
    let (data, url) = (format!("@{}", body.display()), format!("http://127.0.0.1:{port}{path}"));
    let mut all = vec!["-sS", "-i", "--data-binary", data.as_str(), url.as_str()];
    all.extend_from_slice(args);
    let out = process::run("curl", &all, None, Duration::from_secs(20)).await.expect("curl");
    String::from_utf8_lossy(&out).into_owned()
}

/// `field N, length, bytes`
fn field(n: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![n << 3 | 2, u8::try_from(bytes.len()).expect("short")];
    out.extend_from_slice(bytes);
    out
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn curl_sends_otlp_by_http_and_grpc() {
    let dir = tempfile::tempdir().expect("folder");
    let door = Door::open(&dir.path().join("night")).await;
    let put = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        photon_rt::fs::write_atomic(&path, bytes, 0o600).expect("write");
        path
    };
    let now = photon_rt::time::wall().0 * 1_000_000;
    let json = MESSAGE.replace("NOW", &now.to_string());
    let mut e = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    e.write_all(json.as_bytes()).expect("memory");
    let packed = put("packed", &e.finish().expect("memory"));
    let as_json = "content-type: application/json";
    let sent =
        curl(&["-H", as_json, "-H", "content-encoding: gzip"], "/v1/metrics", door.port, &packed).await;
    assert!(
        sent.contains(" 200 OK") && sent.contains("\"rejectedDataPoints\":\"1\"") && sent.contains("delta"),
        "{sent}"
    );
    let value = async |q: &str| door.query(q).await["data"]["result"][0]["value"][1].clone();
    assert_eq!(value("orders_total{job=\"shop\"}").await, "7");

    // gRPC: gauge "depth" = 4, its bytes put together by hand.
    let point = [vec![3 << 3 | 1], now.to_le_bytes().to_vec(), vec![6 << 3 | 1], 4u64.to_le_bytes().to_vec()]
        .concat();
    let metric = [field(1, b"depth"), field(5, &field(1, &point))].concat();
    let message = field(1, &field(2, &field(2, &metric)));
    let framed = [vec![0, 0, 0, 0, u8::try_from(message.len()).expect("short")], message.clone()].concat();
    let call = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export";
    let grpc = ["--http2-prior-knowledge", "-H", "content-type: application/grpc", "-H", "te: trailers"];
    let sent = curl(&grpc, call, door.port, &put("framed", &framed)).await;
    assert!(sent.contains("HTTP/2 200") && sent.contains("grpc-status: 0"), "{sent}");
    assert_eq!(value("depth").await, "4");
    let sent = curl(&grpc, call, door.port, &put("cut", &framed[..framed.len() - 1])).await;
    assert!(sent.contains("grpc-status: 3") && sent.contains("grpc-message: "), "{sent}");

    // What is wrong is told, and a bomb stays small.
    let mut e = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    e.write_all(&vec![b' '; 80 << 20]).expect("memory");
    let bomb = put("bomb", &e.finish().expect("memory"));
    let protobuf = "content-type: application/x-protobuf";
    for (head, more, body, words) in [
        (protobuf, "content-encoding: gzip", &bomb, " 413 "),
        (protobuf, "content-encoding: br", &packed, "is not supported"),
        (protobuf, "x: y", &packed, " 400 "),
        ("content-type: text/plain", "x: y", &packed, " 415 "),
        (as_json, "x: y", &bomb, " 400 "),
    ] {
        let sent = curl(&["-H", head, "-H", more], "/api/v1/otlp/v1/metrics", door.port, body).await;
        assert!(sent.contains(words), "{head} {more}: {sent}");
    }
    door.tasks.shutdown().await;
}
