//! `photon_etcd`, the kernel's client of any etcd, against a real etcd and against ChainFire over the network, with
//! connections that break in the middle of what is said.

use crate::harness::{Etcd as RealEtcd, Server, ok};
use bytes::Bytes;
use futures::StreamExt;
use photon_base::Code;
use photon_etcd::{Config, Etcd, Login, RangeQuery};
use photon_kv::{Change, Check, Direction, Events, Kv, KvError, MemKv, Range, ReadAt, Write, conformance};
use photon_lab::proxy::Proxy;
use photon_rt::{
    entropy::Rng,
    task::Tasks,
    time::{Duration, now, sleep, timeout},
};
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};

async fn client(urls: &str) -> Etcd {
    Etcd::open(Config::new(urls).expect("urls")).await.expect("connects")
}

#[tokio::test(flavor = "multi_thread")]
async fn client_of_etcd_conforms() {
    let dir = tempfile::tempdir().expect("temp dir");
    let etcd = RealEtcd::start(dir.path()).await;
    let c = client(&etcd.url).await;
    conformance::all(Arc::new(c.clone())).await;
    compaction(&c).await;
    c.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn client_of_etcd_equals_the_model() {
    for seed in 11..=13 {
        let dir = tempfile::tempdir().expect("temp dir");
        let etcd = RealEtcd::start(dir.path()).await;
        conformance::equal(&client(&etcd.url).await, &MemKv::new(), seed, 300).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn client_of_chainfire_conforms_and_equals_the_model() {
    let dir = tempfile::tempdir().expect("temp dir");
    let s = Server::start(dir.path()).await;
    conformance::all(Arc::new(client(&s.operator).await)).await;
    compaction(&client(&s.operator).await).await;
    s.stop().await;
    let dir = tempfile::tempdir().expect("temp dir");
    let s = Server::start(dir.path()).await;
    conformance::equal(&client(&s.operator).await, &MemKv::new(), 21, 300).await;
    s.stop().await;
}

async fn compaction(c: &Etcd) {
    let kv: &dyn Kv = c;
    let mut last = 0;
    for i in 0..10u8 {
        let put = vec![Write::Put("k".into(), vec![i].into())];
        last = kv.commit(vec![], put).await.expect("commit").revision;
    }
    let at = last - 2;
    c.compact(at as i64).await.expect("compact");
    c.compact(at as i64).await.expect("once more is fine");
    assert_eq!(kv.get(b"k", ReadAt::Revision(at - 1)).await, Err(KvError::Compacted(at)));
    assert_eq!(kv.get(b"k", ReadAt::Revision(0)).await, Err(KvError::Compacted(at)));
    assert!(kv.get(b"k", ReadAt::Revision(at)).await.expect("kept").is_some());
    let mut w = kv.watch(Range::key("k"), at - 1);
    assert_eq!(w.next().await, Some(Err(KvError::Compacted(at))));
    assert_eq!(w.next().await, None);
    let mut w = kv.watch(Range::key("k"), at);
    assert_eq!(w.next().await.expect("event").expect("kept").revision, at);
}

/// Values too large for one answer come in more pages; a commit too large for etcd is refused in words.
#[tokio::test(flavor = "multi_thread")]
async fn client_reads_what_is_large_in_pieces() {
    let dir = tempfile::tempdir().expect("temp dir");
    let etcd = RealEtcd::start(dir.path()).await;
    let c = client(&etcd.url).await;
    for i in 0..70 {
        let value = vec![i as u8; 1 << 20];
        c.commit(vec![], vec![Write::Put(format!("big/{i:02}").into(), value.into())]).await.expect("commit");
    }
    let (mut range, mut found) = (Range::prefix("big/"), 0);
    loop {
        let page = c.scan(range.clone(), ReadAt::Latest, 1000, Direction::Forward).await.expect("scan");
        found += page.items.len();
        match page.items.last() {
            Some(last) if page.more => range = range.behind(&last.key),
            _ => break,
        }
    }
    assert_eq!(found, 70);
    for size in [2 << 20, 8 << 20] {
        let huge = c.commit(vec![], vec![Write::Put("huge".into(), vec![0; size].into())]).await;
        assert!(matches!(huge, Err(KvError::Invalid(_))), "{huge:?}");
    }
    // Watches that are behind by more than an answer holds, and whose reader sleeps meanwhile.
    let mut w = c.watch(Range::prefix("big/"), 1);
    sleep(Duration::from_millis(1500)).await;
    for i in 0..70 {
        let e = timeout(Duration::from_secs(20), "an event", w.next()).await.expect("in time");
        assert_eq!(e.expect("goes on").expect("works").revision, i + 2);
    }
}

/// One attempt of a writer, and what it was told.
#[derive(Debug, PartialEq)]
enum Told {
    Done(u64),
    Refused,
    Unknown,
}

/// Commits of one writer while `more` says so; each puts a tag of its own. A third demands nothing, a third that the tag is new, a third
/// is a step of a counter that only this writer moves.
async fn writer(kv: Arc<dyn Kv>, name: usize, more: impl Fn(usize) -> bool) -> Vec<(String, Told)> {
    let counter = Bytes::from(format!("t/counter/{name}"));
    let mut told = Vec::new();
    for i in (0..).take_while(|i| more(*i)) {
        let tag = format!("t/tag/{name}/{i:04}");
        let mut writes = vec![Write::Put(tag.clone().into(), "x".into())];
        let checks = match i % 3 {
            0 => vec![],
            1 => vec![Check::absent(tag.clone())],
            _ => {
                let now = loop {
                    if let Ok(v) = kv.get(&counter, ReadAt::Latest).await {
                        break v;
                    }
                };
                let value = now.as_ref().map_or(0, |v| v.value.len());
                writes.push(Write::Put(counter.clone(), vec![b'x'; value + 1].into()));
                match now {
                    Some(v) => vec![Check::Modified(counter.clone(), v.modified)],
                    None => vec![Check::absent(counter.clone())],
                }
            }
        };
        let outcome = match kv.commit(checks, writes).await {
            Ok(c) => Told::Done(c.revision),
            Err(KvError::CheckFailed(_)) => Told::Refused,
            Err(KvError::Unavailable(_)) => Told::Unknown,
            Err(e) => panic!("{tag}: {e}"),
        };
        told.push((tag, outcome));
    }
    told
}

/// A watcher, until the key `t/end` is written.
async fn watcher(kv: Arc<dyn Kv>, from: u64) -> Vec<Events> {
    let mut w = kv.watch(Range::prefix("t/"), from);
    let mut all = Vec::new();
    let follow = async {
        while let Some(e) = w.next().await {
            let e = e.expect("the watch goes on");
            let end = e.changes.iter().any(|c| c.key() == "t/end");
            if !e.changes.is_empty() {
                all.push(e);
            }
            if end {
                return;
            }
        }
    };
    timeout(Duration::from_secs(60), "the watch", follow).await.expect("in time");
    all
}

/// Commits and watches over connections that break all the time.
async fn torment(url: &str, seed: u64) {
    const CUTS: u64 = 40;
    let proxies = Arc::new([Proxy::before(url, seed).await, Proxy::before(url, seed + 1).await]);
    let urls = format!("{},{}", proxies[0].url, proxies[1].url);
    let (clean, tormented) = (client(url).await, client(&urls).await);
    proxies.iter().for_each(|p| p.lose(30));
    let cuts = {
        let proxies = proxies.clone();
        move || proxies.iter().map(Proxy::cuts).sum::<u64>()
    };
    let busy = {
        let cuts = cuts.clone();
        move |i| i < 5_000 && cuts() < CUTS
    };
    let (done, unknown) = workload(&clean, tormented, busy, || proxies.iter().for_each(|p| p.lose(0))).await;
    assert!(cuts() >= CUTS, "the connections were cut only {} times", cuts());
    assert!(unknown > 0, "no answer was lost");
    assert!(done > unknown, "{done} commits were acknowledged, {unknown} not");
}

/// Writers, while `busy` says so, and watchers, all by the client `tormented`. No acknowledged commit is lost, none is
/// done twice, a refused one is not done, and watches see exactly what happened. How many commits were acknowledged,
/// and of how many nothing is known.
async fn workload(
    clean: &Etcd,
    tormented: Etcd,
    busy: impl Fn(usize) -> bool + Clone + Send + Sync + 'static,
    peace: impl FnOnce(),
) -> (usize, usize) {
    const WRITERS: usize = 4;
    let from = clean.now().await.expect("revision") as u64 + 1;
    let tasks = Tasks::new();
    let kv: Arc<dyn Kv> = Arc::new(tormented);
    let watchers: Vec<_> = (0..3).map(|_| tasks.spawn("watcher", watcher(kv.clone(), from))).collect();
    let writers: Vec<_> =
        (0..WRITERS).map(|w| tasks.spawn("writer", writer(kv.clone(), w, busy.clone()))).collect();
    let mut told = Vec::new();
    for w in writers {
        told.extend(w.await.expect("no panic").expect("not cancelled"));
    }
    peace();
    clean.commit(vec![], vec![Write::Put("t/end".into(), "".into())]).await.expect("commit");
    let truth = watcher(Arc::new(clean.clone()), from).await;
    for w in watchers {
        let seen = w.await.expect("no panic").expect("not cancelled");
        assert_eq!(seen.len(), truth.len(), "a gap or a duplicate");
        assert!(seen == truth, "another history");
    }
    // How often, and when, each key was put.
    let mut puts: BTreeMap<Bytes, Vec<u64>> = BTreeMap::new();
    for e in &truth {
        for c in &e.changes {
            let Change::Put(v) = c else { panic!("nobody deletes: {c:?}") };
            puts.entry(v.key.clone()).or_default().push(e.revision);
        }
    }
    let (mut done, mut unknown) = (0, 0);
    for (tag, told) in told {
        let at = puts.get(tag.as_bytes()).map(Vec::as_slice).unwrap_or_default();
        match told {
            Told::Done(r) => {
                assert_eq!(at, [r], "{tag} was acknowledged");
                done += 1;
            }
            Told::Refused => panic!("{tag}: nobody else writes what it checks, done {at:?}"),
            Told::Unknown => {
                assert!(at.len() <= 1, "{tag} was done twice: {at:?}");
                unknown += 1;
            }
        }
    }
    for w in 0..WRITERS {
        let counter = clean.get(format!("t/counter/{w}").as_bytes(), ReadAt::Latest).await.expect("get");
        let steps = puts[format!("t/counter/{w}").as_bytes()].len();
        assert_eq!(counter.map(|v| v.value.len()), Some(steps), "writer {w}: a step was taken twice or lost");
    }
    (done, unknown)
}

/// Three members, of which one is killed and another stopped for a while, and the third is the last that the client
/// knows of.
#[tokio::test(flavor = "multi_thread")]
async fn client_survives_members_of_etcd_that_fail() {
    let dir = tempfile::tempdir().expect("temp dir");
    let members = RealEtcd::three(dir.path()).await;
    let urls: Vec<&str> = members.iter().map(|m| m.url.as_str()).collect();
    let config = Config::new(&urls.join(",")).expect("urls").with_patience(Duration::from_secs(30));
    let tormented = Etcd::open(config.clone()).await.expect("connects");
    let clean = Etcd::open(config).await.expect("connects");
    let calm = Arc::new(AtomicBool::new(false));
    let busy = {
        let calm = calm.clone();
        move |i| i < 100_000 && !calm.load(SeqCst)
    };
    // Until something is written after the last fault, too.
    let grown = async |by: i64| {
        let goal = clean.now().await.expect("revision") + by;
        while clean.now().await.expect("revision") < goal {
            sleep(Duration::from_millis(20)).await;
        }
    };
    let faults = async {
        grown(100).await;
        members[0].signal("STOP").await;
        grown(100).await;
        members[0].signal("CONT").await;
        grown(100).await;
        members[1].signal("KILL").await;
        grown(200).await;
        calm.store(true, SeqCst);
    };
    let work = Box::pin(workload(&clean, tormented.clone(), busy, || {}));
    let ((done, _), ()) =
        timeout(Duration::from_secs(300), "the faults", Box::pin(async { tokio::join!(work, faults) }))
            .await
            .expect("in time");
    assert!(done > 300, "only {done} commits were acknowledged");
}

/// Nothing happens to what is watched, and what happens elsewhere is compacted away: a watch that breaks then goes on
/// all the same, since it was told how far it is.
#[tokio::test(flavor = "multi_thread")]
async fn client_resumes_quiet_watches_behind_a_compaction() {
    let dir = tempfile::tempdir().expect("temp dir");
    let s = Server::start(dir.path()).await; // which tells progress every 300 ms
    let (clean, proxy) = (client(&s.operator).await, Proxy::before(&s.operator, 1).await);
    let c = client(&proxy.url).await;
    let mut w = c.watch(Range::prefix("quiet/"), 0);
    let mut last = 0;
    for i in 0..50u8 {
        let put = vec![Write::Put("noise".into(), vec![i].into())];
        last = clean.commit(vec![], put).await.expect("commit").revision;
    }
    let told = async {
        loop {
            let e = w.next().await.expect("goes on").expect("works");
            assert!(e.changes.is_empty());
            if e.revision >= last {
                return;
            }
        }
    };
    timeout(Duration::from_secs(20), "progress", told).await.expect("in time");
    clean.compact(last as i64).await.expect("compact");
    proxy.lose(1000);
    let broken = async { while c.get(b"noise", ReadAt::Latest).await.is_ok() {} };
    timeout(Duration::from_secs(60), "the cut", broken).await.expect("in time");
    proxy.lose(0);
    let put = vec![Write::Put("quiet/a".into(), "x".into())];
    let at = clean.commit(vec![], put).await.expect("commit").revision;
    let seen = async {
        loop {
            let e = w.next().await.expect("goes on").expect("was not lost");
            if !e.changes.is_empty() {
                return e.revision;
            }
        }
    };
    assert_eq!(timeout(Duration::from_secs(60), "the event", seen).await.expect("in time"), at);
    s.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn client_survives_cut_connections_to_etcd() {
    let dir = tempfile::tempdir().expect("temp dir");
    let etcd = RealEtcd::start(dir.path()).await;
    torment(&etcd.url, 100).await;
    torment_again(&etcd.url).await;
}

async fn torment_again(url: &str) {
    // A second time among what the first has left, in other keys' places: its tags exist already.
    let c = client(url).await;
    let all = c.scan(Range::prefix("t/"), ReadAt::Latest, 10_000, Direction::Forward).await.expect("scan");
    for chunk in all.items.chunks(100) {
        let gone = chunk.iter().map(|v| Write::Delete(v.key.clone())).collect();
        c.commit(vec![], gone).await.expect("commit");
    }
    torment(url, 200).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn client_survives_cut_connections_to_chainfire() {
    let dir = tempfile::tempdir().expect("temp dir");
    let s = Server::start(dir.path()).await;
    torment(&s.operator, 300).await;
    torment_again(&s.operator).await;
    s.stop().await;
}

/// A dead endpoint costs a moment; with all of them dead calls end, and say of writes what is known.
#[tokio::test(flavor = "multi_thread")]
async fn client_goes_to_the_next_endpoint_and_gives_up_in_time() {
    let dir = tempfile::tempdir().expect("temp dir");
    let etcd = RealEtcd::start(dir.path()).await;
    let (a, b) = (Proxy::before(&etcd.url, 1).await, Proxy::before(&etcd.url, 2).await);
    let config = Config::new(&format!("http://127.0.0.1:1,{},{}", a.url, b.url)).expect("urls");
    let c = Etcd::open(config.with_patience(Duration::from_secs(2))).await.expect("one answers");
    let put = |k: &str| vec![Write::Put(k.to_string().into(), "x".into())];
    c.commit(vec![], put("a")).await.expect("commit");
    a.lose(1000);
    assert!(c.get(b"a", ReadAt::Latest).await.expect("the next endpoint answers").is_some());
    c.commit(vec![], put("b")).await.expect("commit");
    b.lose(1000);
    let begun = now();
    assert!(matches!(c.get(b"a", ReadAt::Latest).await, Err(KvError::Unavailable(_))));
    let lost = c.commit(vec![], put("c")).await;
    assert!(matches!(lost, Err(KvError::Unavailable(_))), "{lost:?}");
    assert!(now() - begun < Duration::from_secs(30));
    // However many wait.
    let (many, begun) = ((0..50).map(|_| c.get(b"a", ReadAt::Latest)), now());
    assert!(futures::future::join_all(many).await.iter().all(Result::is_err));
    assert!(now() - begun < Duration::from_secs(30));
    b.lose(0);
    // A read first: the connection at hand may be one of those that were cut, and then nobody could say what
    // became of a commit.
    assert!(c.get(b"a", ReadAt::Latest).await.expect("back again").is_some());
    c.commit(vec![], put("d")).await.expect("commit");
    // Two clusters are not one.
    let other_dir = tempfile::tempdir().expect("temp dir");
    let other = Server::start(other_dir.path()).await;
    let mixed = client(&format!("{},{}", a.url, other.operator)).await;
    a.lose(0);
    let mut refused = false;
    for _ in 0..10 {
        refused |= mixed.get(b"a", ReadAt::Latest).await.is_err();
        a.lose(if refused { 0 } else { 1000 });
    }
    assert_eq!(mixed.get(b"a", ReadAt::Latest).await.is_err(), refused, "it says so each time");
    other.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn client_keeps_leases_and_sees_them_end() {
    let dir = tempfile::tempdir().expect("temp dir");
    let etcd = RealEtcd::start(dir.path()).await;
    let proxy = Proxy::before(&etcd.url, 3).await;
    let c = client(&proxy.url).await;
    let id = c.grant(77, 2).await.expect("grant");
    assert_eq!(id, 77);
    let mut kept = c.keep_alive(id, 2);
    proxy.lose(20);
    sleep(Duration::from_secs(5)).await;
    proxy.lose(0);
    let left = c.time_to_live(id, true).await.expect("asked");
    assert!(left.ttl > 0 && left.granted_ttl == 2, "{left:?}");
    assert_eq!(c.leases().await.expect("asked"), [77]);
    c.revoke(id).await.expect("revoke");
    c.revoke(id).await.expect("once more is fine");
    timeout(Duration::from_secs(10), "the end of the lease", kept.lost()).await.expect("told");
    assert_eq!(c.time_to_live(id, false).await.expect("asked").ttl, -1);
}

/// A user with a password; etcd forgets its tokens when it restarts, and the client gets another.
#[tokio::test(flavor = "multi_thread")]
async fn client_logs_in_and_again() {
    let dir = tempfile::tempdir().expect("temp dir");
    let etcd = RealEtcd::start(dir.path()).await;
    for args in [
        &["user", "add", "root:r"][..],
        &["role", "add", "root"],
        &["user", "grant-role", "root", "root"],
        &["user", "add", "cloud:geheim"],
        &["role", "add", "cloud"],
        &["role", "grant-permission", "cloud", "readwrite", "--prefix=true", "/photon.internal/"],
        &["user", "grant-role", "cloud", "cloud"],
        &["auth", "enable"],
    ] {
        ok(&etcd.url, args).await;
    }
    let login = |password: &str| Login { user: "cloud".into(), password: password.into() };
    let config = Config::new(&etcd.url).expect("url");
    let e =
        Etcd::open(config.clone().with_login(login("wrong"))).await.map(|_| ()).expect_err("wrong password");
    assert_eq!(e.code, Code::Unauthenticated, "{e}");
    assert!(Etcd::open(config.clone()).await.is_err(), "nobody");
    let c = Etcd::open(config.with_login(login("geheim"))).await.expect("logs in");
    let put = |v: &'static str| vec![Write::Put("/photon.internal/k".into(), v.into())];
    c.commit(vec![], put("1")).await.expect("allowed");
    let mut w = c.watch(Range::prefix("/photon.internal/"), c.seen() as u64 + 1);
    let denied = c.commit(vec![], vec![Write::Put("/other".into(), "x".into())]).await;
    assert!(matches!(denied, Err(KvError::Invalid(_))), "{denied:?}");
    let mut elsewhere = c.watch(Range::prefix("/other"), 1);
    assert!(matches!(elsewhere.next().await, Some(Err(KvError::Invalid(_)))));
    let etcd = etcd.restart(dir.path()).await;
    let second = c.commit(vec![], put("2")).await.expect("a new token");
    let e = timeout(Duration::from_secs(20), "the event", w.next()).await.expect("in time");
    assert_eq!(e.expect("goes on").expect("works").revision, second.revision);
    drop(etcd);
}

/// Certificates on both sides.
#[tokio::test(flavor = "multi_thread")]
async fn client_shows_its_certificate_and_checks_the_servers() {
    use photon_auth::{Authority, Identity, Kind, Leaf};
    let dir = tempfile::tempdir().expect("temp dir");
    let wall = photon_rt::time::wall();
    let ca = Authority::open(&dir.path().join("ca"), "c", wall).expect("authority");
    let other = Authority::open(&dir.path().join("other"), "o", wall).expect("authority");
    let valid = Duration::from_secs(3600);
    let host = Identity { kind: Kind::Host, name: "h".parse().expect("name") };
    let addresses = vec![std::net::IpAddr::from([127, 0, 0, 1])];
    let server = ca.issue(&Leaf { identity: host, dns: vec![], addresses, valid }, wall).expect("issue");
    let user = Leaf { identity: Identity::operator(), dns: vec![], addresses: vec![], valid };
    let user = ca.issue(&user, wall).expect("issue");
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        photon_rt::fs::write_atomic(&path, text.as_bytes(), 0o600).expect("write");
        path
    };
    let (cert, key) = (file("s.crt", &server.cert_pem), file("s.key", &server.key_pem));
    let ca_file = file("ca.crt", ca.cert_pem());
    let etcd = RealEtcd::start_tls(&dir.path().join("etcd"), [&cert, &key, &ca_file]).await;
    let config = Config::new(&etcd.url).expect("url");
    let trusted = config.clone().with_tls(ca.cert_pem(), Some(&user)).expect("tls");
    let c = Etcd::open(trusted.with_patience(Duration::from_secs(60))).await.expect("connects");
    c.commit(vec![], vec![Write::Put("a".into(), "b".into())]).await.expect("commit");
    let short = config.with_patience(Duration::from_millis(500));
    for wrong in [
        short.clone().with_tls(ca.cert_pem(), None).expect("tls"),
        short.clone().with_tls(other.cert_pem(), Some(&user)).expect("tls"),
    ] {
        assert!(Etcd::open(wrong).await.is_err());
    }
    assert!(Etcd::open(short).await.is_err(), "no authority");
}

/// Random ranges through both ways of reading agree.
#[tokio::test(flavor = "multi_thread")]
async fn client_reads_raw_ranges_as_the_kv_does() {
    let dir = tempfile::tempdir().expect("temp dir");
    let s = Server::start(dir.path()).await;
    let c = client(&s.operator).await;
    let writes = (0..100).map(|i| Write::Put(format!("{i:02}").into(), "x".into())).collect();
    c.commit(vec![], writes).await.expect("commit");
    let mut dice = Rng::new(5);
    for _ in 0..50 {
        let mut key = || match dice.below(5) {
            0 => Bytes::new(),
            _ => Bytes::from(format!("{:02}", dice.below(100))),
        };
        let (start, end) = (key(), key());
        let range = Range { start: start.clone(), end: end.clone() };
        let page = c.scan(range, ReadAt::Latest, 1000, Direction::Forward).await.expect("scan");
        let inverted = !end.is_empty() && end <= start;
        let q = RangeQuery { start, end, keys_only: true, ..Default::default() };
        let raw = if inverted { Vec::new() } else { c.range(q, true).await.expect("range").kvs };
        assert_eq!(
            page.items.iter().map(|v| &v.key).collect::<Vec<_>>(),
            raw.iter().map(|v| &v.key).collect::<Vec<_>>()
        );
    }
    s.stop().await;
}
