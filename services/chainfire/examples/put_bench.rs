//! Puts against any etcd v3 endpoint, and a plain ChainFire to put into.
//!
//! `put_bench run URL [CLIENTS] [SECONDS] [VALUE_BYTES] [CONNECTIONS]` prints one line of JSON.
//! `put_bench serve DIR PORT` serves ChainFire on loopback until it is killed.

use chainfire::{
    ChainFire, ChainFireConfig, Scope,
    wire::etcdserverpb::{PutRequest, kv_client::KvClient},
};
use photon_rt::{
    task::Tasks,
    time::{Duration, now},
};
use prost::bytes::Bytes;
use std::{net::SocketAddr, path::PathBuf};
use tonic::transport::Endpoint;

fn number(args: &[String], i: usize, default: u64) -> u64 {
    args.get(i).map_or(default, |s| s.parse().expect("a number"))
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    match args.first().map(String::as_str) {
        Some("serve") => runtime.block_on(serve(PathBuf::from(&args[1]), number(&args, 2, 2379) as u16)),
        Some("run") => {
            let clients = number(&args, 2, 1);
            runtime.block_on(run(
                &args[1],
                clients,
                number(&args, 3, 5),
                number(&args, 4, 256) as usize,
                number(&args, 5, clients.min(8)),
            ));
        }
        _ => panic!("put_bench run URL [CLIENTS] [SECONDS] [VALUE_BYTES] [CONNECTIONS] | serve DIR PORT"),
    }
}

async fn serve(dir: PathBuf, port: u16) {
    let url = format!("http://127.0.0.1:{port}");
    let config = ChainFireConfig { client_urls: vec![url], ..ChainFireConfig::new(dir) };
    let chainfire = ChainFire::open(config).await.expect("opens");
    let listener = photon_rt::net::listen(SocketAddr::from(([127, 0, 0, 1], port))).await.expect("port");
    use axum::serve::ListenerExt;
    let listener = listener.tap_io(|io| io.set_nodelay(true).expect("TCP_NODELAY"));
    axum::serve(listener, chainfire.router().layer(axum::Extension(Scope::Operator))).await.expect("serves");
}

async fn run(url: &str, clients: u64, seconds: u64, size: usize, connections: u64) {
    let mut channels = Vec::new();
    for _ in 0..connections {
        let endpoint = Endpoint::from_shared(url.to_string()).expect("url").tcp_nodelay(true);
        channels.push(endpoint.connect().await.expect("connects"));
    }
    let tasks = Tasks::new();
    let value = Bytes::from(vec![b'v'; size]);
    let begin = now();
    let end = begin + Duration::from_secs(seconds);
    let workers: Vec<_> = (0..clients)
        .map(|c| {
            let mut kv = KvClient::new(channels[(c % connections) as usize].clone());
            let value = value.clone();
            tasks.spawn("client", async move {
                let mut times = Vec::new();
                let mut i = 0u64;
                while now() < end {
                    // Spread over a space of keys, most of them written more than once.
                    let key = format!("bench/{:08}", (c * 1_000_003 + i * 7_919) % 100_000);
                    i += 1;
                    let started = now();
                    let put = PutRequest { key: key.into(), value: value.clone(), ..Default::default() };
                    kv.put(put).await.expect("put");
                    times.push(now().saturating_duration_since(started).as_micros() as u64);
                }
                times
            })
        })
        .collect();
    let mut times = Vec::new();
    for w in workers {
        times.extend(w.await.expect("no panic").expect("not cancelled"));
    }
    let elapsed = now().saturating_duration_since(begin).as_secs_f64();
    times.sort_unstable();
    let at = |p: usize| times.get(times.len() * p / 100).copied().unwrap_or(0);
    println!(
        "{{\"clients\":{clients},\"connections\":{connections},\"puts\":{},\"per_second\":{:.0},\"p50_us\":{},\"p99_us\":{},\"client_cpu_ms\":{}}}",
        times.len(),
        times.len() as f64 / elapsed,
        at(50),
        at(99),
        photon_rt::time::cpu_used().as_millis(),
    );
}
