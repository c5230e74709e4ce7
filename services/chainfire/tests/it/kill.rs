//! `kill -9` of a real process under load: what was acknowledged is there, history goes on.

use crate::harness::channel;
use chainfire::wire::etcdserverpb::{kv_client::KvClient, lease_client::LeaseClient, *};
use photon_rt::{
    process::{Child, Command},
    task::Tasks,
    time::{Duration, now, sleep},
};
use std::{net::SocketAddr, path::Path, process::Stdio};

/// The benchmark's plain server, which cargo builds beside this test.
async fn serve(dir: &Path, port: u16) -> (Child, String) {
    let exe = std::env::current_exe().expect("own path");
    let server = exe.parent().and_then(Path::parent).expect("target folder").join("examples/put_bench");
    let child = Command::new(&server)
        .arg("serve")
        .arg(dir)
        .arg(port.to_string())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .spawn()
        .unwrap_or_else(|e| {
            panic!("{}: {e}; build it: cargo build -p chainfire --examples", server.display())
        });
    let url = format!("http://127.0.0.1:{port}");
    for _ in 0..200 {
        if photon_rt::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
            return (child, url);
        }
        sleep(Duration::from_millis(50)).await;
    }
    panic!("the server does not come up");
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_9_loses_nothing_acknowledged() {
    let dir = tempfile::tempdir().expect("temp dir");
    let listener = photon_rt::net::listen(SocketAddr::from(([127, 0, 0, 1], 0))).await.expect("loopback");
    let port = listener.local_addr().expect("address").port();
    drop(listener);
    let mut acknowledged: Vec<(String, i64)> = Vec::new();
    let mut greatest = 1;
    for round in 0..5u64 {
        let begun = now();
        let (mut child, url) = serve(dir.path(), port).await;
        let c = channel(&url).await;
        let mut kv = KvClient::new(c.clone());
        let mut leases = LeaseClient::new(c.clone());
        if round == 0 {
            leases.lease_grant(LeaseGrantRequest { id: 9, ttl: 60 }).await.expect("grant");
            let leased = PutRequest { key: "leased".into(), lease: 9, ..Default::default() };
            kv.put(leased).await.expect("put");
        }
        let ttl = LeaseTimeToLiveRequest { id: 9, keys: true };
        let left = leases.lease_time_to_live(ttl).await.expect("ttl").into_inner();
        let whole = 59 - begun.elapsed().as_secs() as i64;
        assert!(
            left.granted_ttl == 60 && left.ttl >= whole,
            "a restart gives the whole time again: {left:?}"
        );
        assert_eq!(left.keys, ["leased"]);
        let range = RangeRequest { key: "k/".into(), range_end: "k0".into(), ..Default::default() };
        let all = kv.range(range).await.expect("range").into_inner();
        assert!(all.header.expect("header").revision >= greatest, "round {round}: revisions went back");
        for (key, revision) in &acknowledged {
            let found = all.kvs.iter().find(|kv| kv.key == key.as_bytes());
            let found = found
                .unwrap_or_else(|| panic!("round {round}: {key} was acknowledged at {revision} and is lost"));
            assert_eq!(found.mod_revision, *revision);
        }
        let tasks = Tasks::new();
        let writers: Vec<_> = (0..8u64)
            .map(|w| {
                let mut kv = KvClient::new(c.clone());
                tasks.spawn("writer", async move {
                    let mut done = Vec::new();
                    for i in 0.. {
                        let key = format!("k/{round}/{w}/{i}");
                        let put =
                            PutRequest { key: key.clone().into(), value: "v".into(), ..Default::default() };
                        match kv.put(put).await {
                            Ok(r) => done.push((key, r.into_inner().header.expect("header").revision)),
                            Err(_) => break, // the server was killed
                        }
                    }
                    done
                })
            })
            .collect();
        sleep(Duration::from_millis(150 + 90 * round)).await;
        child.kill().await.expect("SIGKILL");
        for w in writers {
            acknowledged.extend(w.await.expect("no panic").expect("not cancelled"));
        }
        greatest = acknowledged.iter().map(|(_, r)| *r).max().unwrap_or(greatest).max(greatest);
        let mut revisions: Vec<i64> = acknowledged.iter().map(|(_, r)| *r).collect();
        revisions.sort_unstable();
        revisions.dedup();
        assert_eq!(revisions.len(), acknowledged.len(), "two puts got the same revision");
    }
    assert!(acknowledged.len() > 100, "only {} puts: the test tests nothing", acknowledged.len());
}
