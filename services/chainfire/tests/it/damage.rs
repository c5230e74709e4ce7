//! Flipped bits in the files of members, lost quorums, and what comes after.

use crate::{
    cluster::{Place, leader, three, until},
    harness::{Server, etcdctl, ok},
};
use chainfire::cluster::{Founder, rejoin};
use photon_kv::{
    Direction,
    engine::{Batch, Engine, FjallEngine, FjallOptions, KeyRange, Space},
};
use photon_rt::time::{Duration, timeout};
use std::{
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut out = Vec::new();
    for e in photon_rt::fs::read_dir(dir).expect("list") {
        let path = e.expect("entry").path();
        if path.is_dir() { out.extend(files(&path)) } else { out.push(path) }
    }
    out.sort();
    out
}

/// Flips a bit of every `step` bytes of the used part of each file whose path contains `what`.
fn flip(dir: &Path, what: &str, step: usize) {
    let mut flipped = 0;
    for path in files(dir).into_iter().filter(|p| p.to_string_lossy().contains(what)) {
        let bytes = photon_rt::fs::read(&path).expect("read");
        let used = bytes.chunks(64).rposition(|c| c.iter().any(|b| *b != 0)).map_or(0, |i| i * 64);
        let file = photon_rt::fs::OpenOptions::new().write(true).open(&path).expect("open");
        for at in (used.min(64) / 2..used).step_by(step) {
            file.write_all_at(&[bytes[at] ^ 16], at as u64).expect("flip");
            flipped += 1;
        }
    }
    assert!(flipped > 0, "nothing of {what} was there to flip: {:?}", files(dir));
}

async fn fill(url: &str, keys: std::ops::Range<usize>) {
    for k in keys {
        let mut rng = photon_rt::entropy::Rng::new(k as u64);
        let value: String = (0..200).map(|_| format!("{:010x}", rng.below(1 << 40))).collect();
        ok(url, &["put", &format!("k{k:03}"), &value]).await;
    }
}

/// Everything that a member has, asked of it alone.
async fn own(s: &Server) -> Result<String, String> {
    etcdctl(&s.operator, &["get", "k", "--prefix", "--consistency=s", "-w=json"], None)
        .await
        .map(|text| text.split_once("\"kvs\"").map(|(_, kvs)| kvs.to_string()).unwrap_or_default())
}

/// A founder and two that joined it: their logs begin after the snapshot that they got.
async fn grown() -> (Vec<Place>, Vec<Founder>, Vec<Option<Server>>) {
    let (a, socket) = Place::new("a").await;
    let mut known = vec![a.founder()];
    let first = a.start(&known, false, Some(socket)).await;
    fill(&first.operator, 0..40).await;
    let (mut places, mut servers) = (vec![a], vec![Some(first)]);
    for name in ["b", "c"] {
        let (place, socket) = Place::new(name).await;
        let url = servers[0].as_ref().expect("runs").operator.clone();
        ok(&url, &["member", "add", name, &format!("--peer-urls={}", place.founder().peer_url)]).await;
        known.push(place.founder());
        servers.push(Some(place.start(&known, true, Some(socket)).await));
        places.push(place);
        until("it to vote", async || {
            let list = ok(&url, &["member", "list"]).await;
            list.lines().filter(|l| l.ends_with("false")).count() == known.len() && list.contains(name)
        })
        .await;
    }
    (places, known, servers)
}

async fn stop(servers: Vec<Option<Server>>) {
    for s in servers.into_iter().flatten() {
        s.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_state_is_never_served_and_comes_back_from_the_leader() {
    let (places, known, mut servers) = grown().await;
    let url = |s: &[Option<Server>]| s[0].as_ref().expect("runs").operator.clone();
    // At the start: nothing of the damaged state is served meanwhile, and all of it comes back.
    for what in [".jnl", "/v", "tables"] {
        servers[1].take().expect("runs").stop().await;
        fill(&url(&servers), 40..60).await;
        flip(&places[1].dir.path().join("state"), what, 5_000);
        let back = places[1].start(&known, true, None).await;
        let whole = own(servers[0].as_ref().expect("runs")).await.expect("whole");
        until("the state to be back", async || match own(&back).await {
            Ok(has) => {
                // What is served is a state that was: here, before the last writes or after them.
                assert!(has.len() * 3 > whole.len(), "{what}: a remnant was served: {} bytes", has.len());
                has == whole
            }
            Err(_) => false,
        })
        .await;
        servers[1] = Some(back);
    }
    // While it runs: the reader gets an error, the member ends, and is whole after its next start.
    // So much that it does not stay in memory.
    fill(&url(&servers), 60..160).await;
    let tables = || {
        files(&places[1].dir.path().join("state")).iter().any(|f| f.to_string_lossy().contains("/1/tables/"))
    };
    until("keys to be in tables", async || tables()).await;
    servers[1].take().expect("runs").stop().await;
    let again = places[1].start(&known, true, None).await;
    flip(&places[1].dir.path().join("state"), "tables", 300);
    // What is in memory is right and may be served.
    let right = own(servers[0].as_ref().expect("runs")).await.expect("whole");
    let mut step = 300;
    until("the damage to show", async || {
        // A reader sees memory that has been written to tables since, until the state changes.
        ok(&url(&servers), &["put", "tick", &step.to_string()]).await;
        let read = own(&again).await;
        assert!(read.is_err() || read == Ok(right.clone()), "served although damaged");
        step += 1;
        flip(&places[1].dir.path().join("state"), "tables", step);
        // Or the engine's own worker met it first.
        read.is_err() || timeout(Duration::ZERO, "the end", again.chainfire.ended()).await.is_ok()
    })
    .await;
    let why = timeout(Duration::from_secs(20), "the end", again.chainfire.ended()).await.expect("it ends");
    assert!(why.contains("damaged"), "{why}"); // "is", or "by"
    again.stop().await;
    assert!(places[1].dir.path().join("state.suspect").exists());
    let back = places[1].start(&known, true, None).await;
    let whole = own(servers[0].as_ref().expect("runs")).await.expect("whole");
    until("the state to be back", async || own(&back).await.is_ok_and(|has| has == whole)).await;
    // It serves and votes as before.
    servers[1] = Some(back);
    servers[2].take().expect("runs").stop().await;
    until("a leader", async || leader(&servers).is_some()).await;
    fill(&url(&servers), 160..162).await;
    stop(servers).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_log_stops_the_member_until_it_rejoins_under_a_new_number() {
    let (places, known, mut servers) = three().await;
    until("a leader", async || leader(&servers).is_some()).await;
    let url = servers[0].as_ref().expect("runs").operator.clone();
    fill(&url, 0..20).await;
    let old = servers[1].as_ref().expect("runs").chainfire.member_number();
    servers[1].take().expect("runs").stop().await;
    flip(&places[1].dir.path().join("log"), ".log", 20_000);
    let refused = match places[1].open(&known, false, None).await {
        Ok(_) => panic!("it must not start"),
        Err(e) => e.report().to_string(),
    };
    assert!(refused.contains("log is damaged") && refused.contains("rejoin"), "{refused}");
    let peering = places[1].peering(&known, false);
    let joined = rejoin(places[1].dir.path(), "b", &peering).await.expect("rejoins");
    assert_eq!(joined.before, Some(old));
    assert_ne!(joined.member, old);
    // The same command line as before.
    let back = places[1].start(&known, false, None).await;
    assert_eq!(back.chainfire.member_number(), joined.member);
    until("it to vote", async || {
        let list = ok(&url, &["member", "list"]).await;
        let line = list.lines().find(|l| l.contains(&format!("{:x}", joined.member)));
        line.is_some_and(|l| l.ends_with("false"))
            && list.lines().count() == 3
            && !list.contains(&format!("{old:x}"))
    })
    .await;
    servers[1] = Some(back);
    servers[2].take().expect("runs").stop().await;
    until("a leader", async || leader(&servers).is_some()).await;
    fill(&url, 20..25).await;
    let all = own(servers[0].as_ref().expect("runs")).await;
    until("it to have all", async || own(servers[1].as_ref().expect("runs")).await == all).await;
    stop(servers).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_disk_becomes_a_new_cluster_that_the_old_members_cannot_enter() {
    let (places, known, servers) = three().await;
    until("a leader", async || leader(&servers).is_some()).await;
    let url = servers[0].as_ref().expect("runs").operator.clone();
    fill(&url, 0..10).await;
    let revision = servers[0].as_ref().expect("runs").chainfire.revision();
    let old = servers[0].as_ref().expect("runs").chainfire.cluster_number();
    until("all to have it", async || servers.iter().flatten().all(|s| s.chainfire.revision() == revision))
        .await;
    let dir = places[0].dir.path();
    let peer_url = known[0].peer_url.clone();
    let early = chainfire::recover::recover(dir, "a", &peer_url).expect_err("it runs");
    assert!(early.to_string().contains("runs"), "{early}");
    stop(servers).await;
    let kept = chainfire::recover::recover(dir, "a", &peer_url).expect("recovers");
    assert_eq!((kept.revision, kept.keys, kept.log), (revision, 10, None));
    // With the command line that it had.
    let new = places[0].start(&known, false, None).await;
    until("it to lead", async || new.chainfire.raft_role() == "leader").await;
    assert_eq!(new.chainfire.cluster_number(), kept.cluster);
    assert_ne!(kept.cluster, old);
    assert_eq!(ok(&new.operator, &["member", "list"]).await.lines().count(), 1);
    fill(&new.operator, 10..12).await;
    // The old ones are a quorum of theirs, write on, and never meet it.
    let b = places[1].start(&known, false, None).await;
    let c = places[2].start(&known, false, None).await;
    until("them to lead themselves", async || {
        etcdctl(&b.operator, &["put", "old", "world"], None).await.is_ok()
    })
    .await;
    ok(&new.operator, &["put", "new", "world"]).await;
    assert_eq!(ok(&c.operator, &["get", "new"]).await, "");
    assert_eq!(ok(&new.operator, &["get", "old"]).await, "");
    assert_eq!((new.chainfire.raft_role(), new.chainfire.mates().len()), ("leader", 1));
    // It grows again, under the URL of an old member.
    b.stop().await;
    c.stop().await;
    let (d, socket) = Place::new("d").await;
    ok(&new.operator, &["member", "add", "d", &format!("--peer-urls={}", d.founder().peer_url)]).await;
    let grown = d.start(&[known[0].clone(), d.founder()], true, Some(socket)).await;
    assert_eq!(ok(&grown.operator, &["get", "new", "--print-value-only"]).await, "world\n");
    assert_eq!(grown.chainfire.cluster_number(), kept.cluster);
    stop(vec![Some(new), Some(grown)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_snapshot_is_a_new_cluster_without_the_old_members() {
    let (mut places, known, servers) = three().await;
    until("a leader", async || leader(&servers).is_some()).await;
    let a = servers[0].as_ref().expect("runs");
    fill(&a.operator, 0..3).await;
    until("the founders to be written down", async || {
        ok(&a.operator, &["member", "list"]).await.lines().count() == 3
    })
    .await;
    let old = a.chainfire.cluster_number();
    let file = places[0].dir.path().join("saved");
    ok(&a.operator, &["snapshot", "save", &file.display().to_string()]).await;
    stop(servers).await;
    let fresh = tempfile::tempdir().expect("temp dir");
    chainfire::snapshot::restore(&file, fresh.path()).expect("restores");
    places[0].dir = fresh;
    let alone = vec![known[0].clone()];
    let again = places[0].start(&alone, false, None).await;
    assert_eq!(ok(&again.operator, &["get", "k001", "--keys-only"]).await.trim(), "k001");
    until("itself to be written down", async || {
        ok(&again.operator, &["member", "list"]).await.lines().count() == 1
    })
    .await;
    assert_ne!(again.chainfire.cluster_number(), old);
    let same =
        chainfire::cluster::Peering::new(alone.clone(), std::sync::Arc::new(chainfire::cluster::PlainTcp));
    drop(same);
    again.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_holds_something_else_is_found_out_and_made_right() {
    let (mut places, known, mut servers) = three().await;
    until("a leader", async || leader(&servers).is_some()).await;
    let urls: Vec<String> = servers.iter().flatten().map(|s| s.operator.clone()).collect();
    fill(&urls[0], 0..10).await;
    until("the founders to be written down", async || {
        ok(&urls[0], &["member", "list"]).await.lines().count() == 3
    })
    .await;
    let whole = own(servers[0].as_ref().expect("runs")).await.expect("whole");
    for s in &mut servers {
        s.take().expect("runs").stop().await;
    }
    // Not damage that a checksum shows: another value, well written.
    {
        let spaces = ["latest", "data", "events", "lease", "meta"];
        let state = places[1].dir.path().join("state");
        let e = FjallEngine::open(&state, &spaces, FjallOptions::default()).expect("open");
        let view = e.view();
        let mut batch = Batch::default();
        for space in [Space(0), Space(1)] {
            let (k, v) =
                view.scan(space, KeyRange::all(), Direction::Forward).next().expect("one").expect("read");
            let mut other = v.to_vec();
            *other.last_mut().expect("not empty") ^= 1;
            batch.put(space, k, other);
        }
        e.write(batch).and_then(|()| e.persist()).expect("write");
    }
    for (i, p) in places.iter_mut().enumerate() {
        p.compare = Duration::from_millis(500);
        servers[i] = Some(p.start(&known, false, None).await);
    }
    let why =
        timeout(Duration::from_secs(60), "the end", servers[1].as_ref().expect("runs").chainfire.ended());
    let why = why.await.expect("it ends");
    assert!(why.contains("differs"), "{why}");
    servers[1].take().expect("runs").stop().await;
    let back = places[1].start(&known, false, None).await;
    until("the state to be right", async || own(&back).await.is_ok_and(|has| has == whole)).await;
    servers[1] = Some(back);
    // The others went on.
    ok(&servers[0].as_ref().expect("runs").operator, &["put", "k", "v"]).await;
    assert_eq!(ok(&servers[2].as_ref().expect("runs").operator, &["alarm", "list"]).await, "");
    stop(servers).await;
}
