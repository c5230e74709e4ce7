//! Three members of ChainFire on three hosts, under faults, while clients write, swap, read and watch. What
//! they saw must be possible.
//!
//! `PHOTON_LAB_SECONDS` says how long faults go on, `PHOTON_LAB_SEED` which.

use chainfire::wire::{
    etcdserverpb::{
        kv_client::KvClient, maintenance_client::MaintenanceClient, request_op::Request as Do,
        response_op::Response as Did, watch_client::WatchClient, watch_request::RequestUnion, *,
    },
    mvccpb::KeyValue,
};
use hyper_util::rt::TokioIo;
use photon_auth::{Authority, Leaf};
use photon_lab::{
    cloud::photon_exe,
    history::{Asked, Changed, Heard, Operation, check},
    hosts::Hosts,
};
use photon_rt::entropy::Rng;
use std::{
    net::IpAddr,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use tonic::transport::{Channel, Endpoint};

const CLIENTS: u64 = 6;
const KEYS: u64 = 4;
const ANSWER_MAX: Duration = Duration::from_secs(4);

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

/// Gives each host a certificate, and the command line of its member.
fn equip(hosts: &Hosts, count: usize) -> Vec<Vec<String>> {
    let ca =
        Authority::open(&hosts.dir.path().join("ca"), "lab", photon_rt::time::wall()).expect("authority");
    let url = |i: usize| format!("n{i}=https://{}:2380", hosts.address(i));
    let all: Vec<String> = (0..count).map(url).collect();
    (0..count)
        .map(|i| {
            let folder = hosts.folder(i);
            std::fs::create_dir_all(&folder).expect("folder");
            let leaf = Leaf {
                identity: format!("host/n{i}").parse().expect("identity"),
                dns: vec![],
                addresses: vec![IpAddr::V4(hosts.address(i))],
                valid: Duration::from_secs(86_400),
            };
            let pair = ca.issue(&leaf, photon_rt::time::wall()).expect("certificate");
            let file = |name: &str, text: &str| {
                let path = folder.join(name);
                std::fs::write(&path, text).expect("write");
                path.display().to_string()
            };
            let (cert, key) = (file("peer.crt", &pair.cert_pem), file("peer.key", &pair.key_pem));
            let authority = file("ca.crt", ca.cert_pem());
            let data = folder.join("data").display().to_string();
            let name = format!("n{i}");
            let peer = format!("https://{}:2380", hosts.address(i));
            [
                ["chainfire", "serve"],
                ["--tls", "off"],
                ["--name", &name],
                ["--data-dir", &data],
                ["--listen-client-urls", "http://127.0.0.1:2379"],
                ["--listen-peer-urls", &peer],
                ["--initial-cluster", &all.join(",")],
                ["--peer-cert-file", &cert],
                ["--peer-key-file", &key],
                ["--peer-trusted-ca-file", &authority],
            ]
            .iter()
            .flatten()
            .map(ToString::to_string)
            .collect()
        })
        .collect()
}

/// A channel to a host's member, through the host's own loopback.
fn channel(netns: PathBuf) -> Channel {
    let connect = tower::service_fn(move |_: http::Uri| {
        let netns = netns.clone();
        async move {
            let connected = photon_rt::task::blocking(move || {
                photon_rt::net::in_netns(&netns, || {
                    let addr = ([127, 0, 0, 1], 2379).into();
                    let stream = std::net::TcpStream::connect_timeout(&addr, Duration::from_secs(1))?;
                    stream.set_nonblocking(true)?;
                    stream.set_nodelay(true)?;
                    Ok(stream)
                })
            });
            let stream = photon_rt::net::TcpStream::from_std(connected.await?)?;
            Ok::<_, std::io::Error>(TokioIo::new(stream))
        }
    });
    Endpoint::from_static("http://127.0.0.1:2379").connect_with_connector_lazy(connect)
}

async fn leader(channels: &[Channel]) -> Option<usize> {
    for (i, c) in channels.iter().enumerate() {
        let mut m = MaintenanceClient::new(c.clone());
        let status =
            tokio::time::timeout(Duration::from_millis(500), m.status(StatusRequest::default())).await;
        if let Ok(Ok(s)) = status {
            let s = s.into_inner();
            if s.leader != 0 && s.header.is_some_and(|h| h.member_id == s.leader) {
                return Some(i);
            }
        }
    }
    None
}

async fn ask(kv: &mut KvClient<Channel>, asked: &Asked) -> Result<Heard, tonic::Status> {
    let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
    let revision = |h: Option<ResponseHeader>| h.map_or(0, |h| h.revision);
    Ok(match asked {
        Asked::Put { key, value } => {
            let put =
                PutRequest { key: key.clone().into(), value: value.clone().into(), ..Default::default() };
            Heard::Written { revision: revision(kv.put(put).await?.into_inner().header) }
        }
        Asked::Get { key } => {
            let get = RangeRequest { key: key.clone().into(), ..Default::default() };
            let r = kv.range(get).await?.into_inner();
            let value = r.kvs.first().map(|kv| (text(&kv.value), kv.mod_revision));
            Heard::Found { revision: revision(r.header), value }
        }
        Asked::Swap { key, last, value } => {
            let compare = Compare {
                key: key.clone().into(),
                target: compare::CompareTarget::Mod as i32,
                result: compare::CompareResult::Equal as i32,
                target_union: Some(compare::TargetUnion::ModRevision(*last)),
                ..Default::default()
            };
            let put =
                PutRequest { key: key.clone().into(), value: value.clone().into(), ..Default::default() };
            let txn = TxnRequest {
                compare: vec![compare],
                success: vec![RequestOp { request: Some(Do::RequestPut(put)) }],
                failure: vec![],
            };
            let r = kv.txn(txn).await?.into_inner();
            assert!(r.responses.iter().all(|r| matches!(r.response, Some(Did::ResponsePut(_)))));
            let revision = revision(r.header);
            if r.succeeded { Heard::Written { revision } } else { Heard::Kept { revision } }
        }
    })
}

/// One client: asks one thing after the other, of any host.
async fn client(id: u64, seed: u64, channels: Vec<Channel>, stop: Arc<AtomicBool>) -> Vec<Operation> {
    let mut rng = Rng::new(seed * 100 + id);
    let mut seen: Vec<i64> = vec![0; KEYS as usize];
    let mut all = Vec::new();
    for n in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let k = rng.below(KEYS) as usize;
        let (key, value) = (format!("k{k}"), format!("{id}-{n}"));
        let asked = match rng.below(3) {
            0 => Asked::Put { key, value },
            1 => Asked::Swap { key, last: seen[k], value },
            _ => Asked::Get { key },
        };
        let mut kv = KvClient::new(channels[rng.below(channels.len() as u64) as usize].clone());
        let begun = Instant::now();
        let heard = match tokio::time::timeout(ANSWER_MAX, ask(&mut kv, &asked)).await {
            Ok(Ok(h)) => h,
            Ok(Err(_)) | Err(_) => Heard::Unknown,
        };
        let ended = Instant::now();
        match &heard {
            Heard::Written { revision } => seen[k] = *revision,
            Heard::Found { value: Some((_, r)), .. } => seen[k] = *r,
            Heard::Unknown => tokio::time::sleep(Duration::from_millis(20)).await,
            _ => {}
        }
        all.push(Operation { asked, heard, begun, ended });
        tokio::time::sleep(Duration::from_millis(rng.below(8))).await;
    }
    all
}

/// Follows all changes through one host, resuming where it was broken off.
async fn watcher(channel: Channel, seen: Arc<Mutex<Vec<Changed>>>) {
    loop {
        let next = seen.lock().expect("not poisoned").last().map_or(1, |c: &Changed| c.revision + 1);
        let _ = follow(channel.clone(), next, &seen).await; // broken off: again from where it was
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn follow(channel: Channel, from: i64, seen: &Mutex<Vec<Changed>>) -> Result<(), tonic::Status> {
    let create = WatchCreateRequest {
        key: "k".into(),
        range_end: "l".into(),
        start_revision: from,
        ..Default::default()
    };
    let ask = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    let once = futures::stream::once(async { ask });
    let asks = futures::StreamExt::chain(once, futures::stream::pending::<WatchRequest>());
    let mut stream = WatchClient::new(channel).watch(asks).await?.into_inner();
    while let Some(r) = stream.message().await? {
        assert!(!r.canceled, "a watch was cancelled: {}", r.cancel_reason);
        let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
        let changed =
            |kv: KeyValue| Changed { revision: kv.mod_revision, key: text(&kv.key), value: text(&kv.value) };
        seen.lock().expect("not poisoned").extend(r.events.into_iter().filter_map(|e| e.kv).map(changed));
    }
    Ok(())
}

/// One fault, and its end.
async fn fault(hosts: &mut Hosts, args: &[Vec<String>], channels: &[Channel], rng: &mut Rng) {
    let exe = photon_exe();
    let count = args.len();
    let leads = leader(channels).await;
    let any = rng.below(count as u64) as usize;
    let host = leads.filter(|_| rng.percent(70)).unwrap_or(any);
    let other = (host + 1 + rng.below(count as u64 - 1) as usize) % count;
    let pause = Duration::from_millis(500 + rng.below(3_500));
    let who = if leads == Some(host) { "the leader" } else { "a follower" };
    match rng.below(7) {
        0 | 1 => {
            println!("kill -9 of {who}, host {host}, for {pause:?}");
            hosts.kill(host);
            tokio::time::sleep(pause).await;
            hosts.start(host, &exe, &args[host]);
        }
        2 => {
            println!("{who}, host {host}, stands still for {pause:?}");
            hosts.pause(host);
            tokio::time::sleep(pause).await;
            hosts.resume(host);
        }
        3 => {
            println!("{who}, host {host}, is cut off for {pause:?}");
            hosts.isolate(host);
            tokio::time::sleep(pause).await;
            hosts.heal();
        }
        4 => {
            println!("nothing of {who}, host {host}, reaches host {other} for {pause:?}");
            hosts.cut(host, other);
            tokio::time::sleep(pause).await;
            hosts.heal();
        }
        5 => {
            println!("hosts {host} and {other} do not reach each other for {pause:?}");
            hosts.cut(host, other);
            hosts.cut(other, host);
            tokio::time::sleep(pause).await;
            hosts.heal();
        }
        _ => {
            println!("kill -9 of all at once");
            (0..count).for_each(|h| hosts.kill(h));
            (0..count).for_each(|h| hosts.start(h, &exe, &args[h]));
        }
    }
}

async fn until(what: &str, hosts: &Hosts, mut f: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !f().await {
        if begun.elapsed() > Duration::from_secs(60) {
            let tails: Vec<String> = (0..3).map(|h| format!("host {h}:\n{}", hosts.tail(h))).collect();
            panic!("{what} does not happen:\n{}", tails.join("\n"));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chainfire_three_hosts_under_faults() {
    let (seconds, seed) = (setting("PHOTON_LAB_SECONDS", 40), setting("PHOTON_LAB_SEED", 1));
    let mut hosts = Hosts::new(3);
    let args = equip(&hosts, 3);
    (0..3).for_each(|h| hosts.start(h, &photon_exe(), &args[h]));
    let channels: Vec<Channel> = (0..3).map(|h| channel(hosts.netns_path(h))).collect();
    until("an election", &hosts, async || leader(&channels).await.is_some()).await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut clients = tokio::task::JoinSet::new();
    for id in 0..CLIENTS {
        clients.spawn(client(id, seed, channels.clone(), stop.clone()));
    }
    let seen: Vec<Arc<Mutex<Vec<Changed>>>> = (0..3).map(|_| Arc::default()).collect();
    let mut watchers = tokio::task::JoinSet::new();
    for (c, s) in channels.iter().zip(&seen) {
        watchers.spawn(watcher(c.clone(), s.clone()));
    }
    let mut rng = Rng::new(seed);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(seconds) {
        fault(&mut hosts, &args, &channels, &mut rng).await;
        tokio::time::sleep(Duration::from_millis(500 + rng.below(2_000))).await;
    }
    // Whole again: every member takes a write.
    for c in &channels {
        let mut kv = KvClient::new(c.clone());
        until("service on every host", &hosts, async || {
            let put = PutRequest { key: "after".into(), ..Default::default() };
            matches!(tokio::time::timeout(ANSWER_MAX, kv.put(put)).await, Ok(Ok(_)))
        })
        .await;
    }
    stop.store(true, Ordering::Relaxed);
    let operations: Vec<Operation> = clients.join_all().await.into_iter().flatten().collect();
    // The truth: what a watch from the beginning tells now. Everybody else's watch must agree with it.
    let truth: Arc<Mutex<Vec<Changed>>> = Arc::default();
    watchers.spawn(watcher(channels[0].clone(), truth.clone()));
    let all = RangeRequest { key: "k".into(), range_end: "l".into(), ..Default::default() };
    let last = KvClient::new(channels[0].clone()).range(all).await.expect("range").into_inner();
    let last = last.kvs.iter().map(|kv| kv.mod_revision).max().expect("something was written");
    let reached =
        |s: &Mutex<Vec<Changed>>| s.lock().expect("not poisoned").last().is_some_and(|c| c.revision >= last);
    until("all watches to tell everything", &hosts, async || {
        reached(&truth) && seen.iter().all(|s| reached(s))
    })
    .await;
    watchers.shutdown().await;
    let log = truth.lock().expect("not poisoned").clone();
    for (host, s) in seen.iter().enumerate() {
        assert!(*s.lock().expect("not poisoned") == log, "the watch through host {host} told something else");
    }
    let told = operations.iter().filter(|o| o.heard != Heard::Unknown).count();
    println!("{} operations, {told} with an answer, {} changes, seed {seed}", operations.len(), log.len());
    check(&operations, &log).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
    assert!(told > 50 * seconds as usize / 10, "the run does something: {told} answers");
}
