//! FlareDB over the network: the whole client against a server of this process, and what is refused at its door.

use crate::node::{k, number};
use bytes::Bytes;
use flaredb::{
    Node, Refusal,
    client::{Abort, Isolation, Options, Request, Response, Txn, World, gc, raw},
    key::{self, Mode, Span},
    model::{
        Op,
        command::*,
        read::{Query, Snapshot},
    },
    remote::{Config, Remote},
    time,
    wire::{Door, FlareDb, Keyspace, proto as pb, proto::flare_db_client::FlareDbClient},
};
use photon_auth::{
    Action, Authority, Caller, CertPair, Decision, Gate, Leaf, LiveCertificate, Policy, Target,
    client_config, server_config,
};
use photon_kv::Direction;
use photon_rt::{task::Tasks, time::Duration};
use photon_serve::listen::Listener;
use std::{net::SocketAddr, path::Path, sync::Arc};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A server.
struct Served {
    node: Node,
    addr: SocketAddr,
    tasks: Tasks,
}

impl Served {
    async fn start(dir: &Path, door: Door, tls: Option<Arc<rustls::ServerConfig>>) -> Served {
        let tasks = Tasks::new();
        let node = Node::open(&dir.join("db")).await.expect("open");
        let socket = photon_rt::net::listen("127.0.0.1:0".parse().expect("address")).await.expect("listen");
        let addr = socket.local_addr().expect("address");
        let db = FlareDb::new(node.clone(), door, "n1".into(), &tasks);
        let router = db.pages();
        let direct = Some(db.direct());
        Listener { name: "flaredb", socket, tls, tokens: None, router, direct, lenient_authority: false }
            .start(&tasks);
        Served { node, addr, tasks }
    }

    async fn plain(dir: &Path) -> (Served, Remote) {
        let served = Served::start(dir, Door::Open, None).await;
        let remote = Remote::open(Config::plain(&format!("http://{}", served.addr))).await.expect("connect");
        (served, remote)
    }

    async fn end(self) {
        self.tasks.shutdown().await;
        self.node.shutdown().await;
    }
}

fn r(n: u64) -> Bytes {
    key::key(Mode::Raw, format!("k{n:04}").as_bytes()).expect("short")
}

fn border(full: &Bytes) -> Bytes {
    key::border(full).expect("border")
}

#[tokio::test(flavor = "multi_thread")]
async fn raw_keys_over_several_regions() {
    let dir = tempfile::tempdir().expect("temp dir");
    let (served, db) = Served::plain(dir.path()).await;
    assert_eq!(raw::get(&db, &r(1)).await, Ok(None));
    for n in 0..50 {
        raw::put(&db, r(n), Bytes::from(format!("v{n}"))).await.expect("put");
    }
    // The client's map grows old under it.
    db.split(border(&r(20))).await.expect("split");
    served.node.split(border(&r(40))).await.expect("split");
    let (value, version) = raw::get(&db, &r(45)).await.expect("get").expect("there");
    assert_eq!(value, "v45");
    let newer = raw::cas(&db, r(45), Want::Version(version), Some("new".into())).await.expect("cas");
    assert!(newer > version);
    let refused = raw::cas(&db, r(45), Want::Version(version), None).await;
    let how = Refusal::CheckFailed { index: 0, version: newer, value: Some("new".into()) };
    assert_eq!(refused, Err(how));
    let all = Span::between(Mode::Raw, &[], &[]);
    let query = |direction, limit| Query { direction, limit, ..Query::all(all.clone()) };
    let rows = raw::scan(&db, &query(Direction::Forward, 100)).await.expect("scan");
    let keys: Vec<Bytes> = rows.iter().map(|row| row.key.clone()).collect();
    assert_eq!(keys, (0..50).map(r).collect::<Vec<_>>());
    let rows = raw::scan(&db, &query(Direction::Backward, 30)).await.expect("scan");
    let keys: Vec<Bytes> = rows.iter().map(|row| row.key.clone()).collect();
    assert_eq!(keys, (20..50).rev().map(r).collect::<Vec<_>>());
    // Keys of two regions are no one entry.
    let write = |n| RawWrite { key: r(n), value: None };
    assert!(matches!(raw::commit(&db, vec![], vec![write(1), write(45)]).await, Err(Refusal::OutOfRange(_))));
    assert!(matches!(
        (raw::delete(&db, r(45)).await, raw::delete(&db, r(45)).await),
        (Ok(Some(_)), Ok(None))
    ));
    let regions = db.regions().await.expect("regions");
    assert_eq!(regions.len(), 3);
    assert!(regions.iter().all(|r| r.leader == 1));
    let source = regions[1].region.clone().expect("a region").id;
    db.merge(source).await.expect("merge");
    assert_eq!(raw::get(&db, &r(30)).await.expect("get").expect("there").0, "v30");
    let stores = db.stores().await.expect("stores");
    assert_eq!((stores.len(), stores[0].node.as_str(), stores[0].regions), (1, "n1", 2));
    served.end().await;
}

async fn move_money(db: &Remote, from: u64, to: u64, pessimistic: bool) -> Result<u64, Abort> {
    let isolation = Isolation::Serializable;
    let lost = Abort::RolledBack;
    let mut t = Txn::begin(db.clone(), Options { isolation, pessimistic, ..Options::default() })
        .await
        .map_err(lost)?;
    let read = async |t: &mut Txn<Remote>, n| match pessimistic {
        true => t.get_for_update(&k(n)).await,
        false => t.get(&k(n)).await,
    };
    let a = match read(&mut t, from).await {
        Ok(v) => number(v),
        Err(e) => return t.rollback().await.and(Err(lost(e))),
    };
    let b = match read(&mut t, to).await {
        Ok(v) => number(v),
        Err(e) => return t.rollback().await.and(Err(lost(e))),
    };
    let part = a.min(3);
    t.put(k(from), (a - part).to_be_bytes().to_vec()).expect("small");
    t.put(k(to), (b + part).to_be_bytes().to_vec()).expect("small");
    t.commit().await
}

/// Two clients with caches of their own move money between accounts while regions split and merge. Nothing is lost
/// or made, and some of both ways to lock succeed.
#[tokio::test(flavor = "multi_thread")]
async fn money_is_moved_by_remote_clients_while_ranges_change() {
    const ACCOUNTS: u64 = 12;
    let dir = tempfile::tempdir().expect("temp dir");
    let (served, db) = Served::plain(dir.path()).await;
    let mut t = Txn::begin(db.clone(), Options::default()).await.expect("begin");
    for n in 0..ACCOUNTS {
        t.put(k(n), 100u64.to_be_bytes().to_vec()).expect("small");
    }
    t.commit().await.expect("commit");
    let other = Remote::open(Config::plain(&format!("http://{}", served.addr))).await.expect("connect");
    let tasks = Tasks::new();
    let movers: Vec<_> = (0..6u64)
        .map(|w| {
            let db = if w % 2 == 0 { db.clone() } else { other.clone() };
            tasks.spawn("mover", async move {
                let mut done = 0u64;
                for i in 0..25 {
                    let from = (w * 7 + i * 5) % ACCOUNTS;
                    let moved = move_money(&db, from, (from + 1 + i % 5) % ACCOUNTS, w < 2).await;
                    done += u64::from(moved.is_ok());
                }
                done
            })
        })
        .collect();
    for n in [6, 3, 9] {
        db.split(border(&k(n))).await.expect("split");
    }
    let second = db.regions().await.expect("regions")[1].region.clone().expect("a region").id;
    db.merge(second).await.expect("merge");
    let mut done = Vec::new();
    for m in movers {
        done.push(m.await.expect("runs").expect("not cut off"));
    }
    assert!(done.iter().all(|n| *n > 0), "{done:?}");
    let mut t = Txn::begin(other.clone(), Options::default()).await.expect("begin");
    let span = Span::prefix(Mode::Txn, b"k");
    let rows = t.scan(&span, Direction::Backward, 100).await.expect("scan");
    let total: u64 = rows.iter().map(|row| number(Some(row.value.clone()))).sum();
    assert_eq!((rows.len() as u64, total), (ACCOUNTS, ACCOUNTS * 100));
    let safe = t.start();
    gc::collect(&db, safe, 100).await.expect("gc");
    served.end().await;
}

/// A transaction that is left open is ended by whoever needs its keys, once it was silent for too long.
#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_left_open_blocks_nobody_for_good() {
    let dir = tempfile::tempdir().expect("temp dir");
    let (served, db) = Served::plain(dir.path()).await;
    let start = db.timestamp().await.expect("timestamp");
    let mutation =
        Mutation { kind: Kind::Put as i32, key: k(1), value: "lost".into(), ..Mutation::default() };
    let open =
        Prewrite { start, primary: k(1), ttl_ms: 300, mutations: vec![mutation], ..Prewrite::default() };
    let region = db.locate(&k(1)).await.expect("region");
    db.ask(&region, Request::Do(Op::Prewrite(open.clone()))).await.expect("prewrite");
    let mut t = Txn::begin(db.clone(), Options::default()).await.expect("begin");
    t.put(k(1), "won").expect("small");
    t.commit().await.expect("commit");
    let commit =
        Op::Commit(Commit { start, commit: db.timestamp().await.expect("timestamp"), keys: vec![k(1)] });
    let late = db.ask(&region, Request::Do(commit)).await;
    assert_eq!(late, Err(Refusal::RolledBack(start)));
    let again = db.ask(&region, Request::Do(Op::Prewrite(open))).await;
    assert!(matches!(again, Err(Refusal::RolledBack(_) | Refusal::Conflict { .. })), "{again:?}");
    let mut t = Txn::begin(db.clone(), Options::default()).await.expect("begin");
    assert_eq!(t.get(&k(1)).await, Ok(Some("won".into())));
    served.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_is_named_and_changes_nothing() {
    let dir = tempfile::tempdir().expect("temp dir");
    let (served, db) = Served::plain(dir.path()).await;
    raw::put(&db, r(1), "1".into()).await.expect("put");
    let before = served.node.statuses();
    let region = db.locate(&r(1)).await.expect("region");
    let all = Span::between(Mode::Raw, &[], &[]);
    let now = db.timestamp().await.expect("timestamp");
    let put = |key: Bytes, len: usize| {
        let write = RawWrite { key, value: Some(vec![b'x'; len].into()) };
        Request::Do(Op::Raw(RawCommit { checks: vec![], writes: vec![write] }))
    };
    let scan = |span: Span, limit| Request::RawScan(Query { limit, ..Query::all(span) });
    let at = |ts| Request::Get(k(1), Snapshot::at(ts));
    let inverted = Span { start: all.end.clone(), end: all.start.clone() };
    let pass = Request::Get(k(1), Snapshot { at: now, pass: vec![2; 5000] });
    let many = Op::Raw(RawCommit {
        checks: vec![],
        writes: (0..5000).map(|n| RawWrite { key: r(n), value: None }).collect(),
    });
    let long = Bytes::from(vec![b'r'; key::MAX_FULL_KEY + 1]);
    let prewrite = |start| {
        let mutations = vec![Mutation { key: k(1), ..Mutation::default() }];
        Request::Do(Op::Prewrite(Prewrite { start, primary: k(1), mutations, ..Prewrite::default() }))
    };
    type Fits = fn(&Refusal) -> bool;
    let cases: Vec<(&str, Request, Fits)> = vec![
        ("a value", put(r(1), key::MAX_VALUE + 1), |e| matches!(e, Refusal::ValueTooLarge { .. })),
        ("a key", put(long, 1), |e| matches!(e, Refusal::KeyTooLong { .. })),
        ("a foreign key", put(Bytes::from_static(b"\xffx"), 1), |e| matches!(e, Refusal::Malformed(_))),
        ("half a key", put(Bytes::from_static(b"rab\0"), 1), |e| matches!(e, Refusal::Malformed(_))),
        ("a range", scan(inverted, 10), |e| *e == Refusal::InvertedRange),
        ("no rows", scan(all.clone(), 0), |e| matches!(e, Refusal::TooMany { what: "rows", .. })),
        ("rows", scan(all.clone(), 1 << 20), |e| matches!(e, Refusal::TooMany { what: "rows", .. })),
        ("locks to pass", pass, |e| matches!(e, Refusal::TooMany { .. })),
        ("keys", Request::Do(many), |e| matches!(e, Refusal::TooMany { .. })),
        ("the next timestamp", at(now + 2), |e| matches!(e, Refusal::FromTheFuture { .. })),
        ("a later start", prewrite(now + 1000), |e| matches!(e, Refusal::FromTheFuture { .. })),
        ("an odd timestamp", at(now + 1), |e| matches!(e, Refusal::NotATimestamp(_))),
        ("the end of time", at(time::Ts::MAX - 1), |e| matches!(e, Refusal::FromTheFuture { .. })),
    ];
    for (what, request, fits) in cases {
        let answer = db.ask(&region, request).await;
        assert!(answer.as_ref().err().is_some_and(fits), "{what}: {answer:?}");
    }
    for version in [0, region.version + 1, u64::MAX] {
        let stale = flaredb::model::Descriptor { version, ..region.clone() };
        let answer = db.ask(&stale, put(r(1), 1)).await;
        assert!(matches!(answer, Err(Refusal::StaleEpoch(_))), "{answer:?}");
    }
    let nowhere = flaredb::model::Descriptor { id: 77, ..region.clone() };
    assert_eq!(db.ask(&nowhere, Request::RawGet(r(1))).await, Err(Refusal::NoRegion(77)));
    assert!(matches!(db.split(r(1)).await, Err(Refusal::Malformed(_))));
    assert!(matches!(db.split(Bytes::new()).await, Err(Refusal::Malformed(_))));
    assert_eq!(db.merge(77).await, Err(Refusal::NoRegion(77)));
    // What our client can't even say.
    let channel = tonic::transport::Endpoint::from_shared(format!("http://{}", served.addr)).expect("url");
    let mut wire = FlareDbClient::new(channel.connect().await.expect("connect"));
    let empty =
        wire.ask(pb::AskRequest { keyspace: "all".into(), ..Default::default() }).await.expect("answer");
    let Some(pb::ask_response::Answer::Refusal(e)) = empty.into_inner().answer else { panic!("refused") };
    assert_eq!((e.kind(), e.code.as_str()), (pb::refusal::Kind::Malformed, "PH1001"));
    let none =
        wire.timestamps(pb::TimestampsRequest { keyspace: "nobody's".into(), count: 1, here: false }).await;
    assert_eq!(
        none.expect("answer").into_inner().refusal.expect("refused").kind(),
        pb::refusal::Kind::Malformed
    );
    let much = pb::TimestampsRequest { keyspace: "all".into(), count: 1_000_000, here: false };
    let much = wire.timestamps(much).await.expect("answer").into_inner();
    assert_eq!((much.first, much.refusal.expect("refused").kind()), (0, pb::refusal::Kind::TooMany));
    // A message beyond all bounds is not read.
    let write = RawWrite { key: r(1), value: Some(vec![0; 12 << 20].into()) };
    let raw = RawCommit { checks: vec![], writes: vec![write] };
    let what = Some(pb::ask_request::What::Raw(raw));
    let huge = pb::AskRequest { keyspace: "all".into(), region: 1, version: 1, what, here: false };
    let status = wire.ask(huge).await.expect_err("too large");
    assert_eq!(status.code(), tonic::Code::OutOfRange);

    assert_eq!(raw::get(&db, &r(1)).await.expect("get").expect("there").0, "1");
    let after = served.node.statuses();
    let ends = |all: &[(_, Option<photon_raft::GroupStatus>)]| all[0].1.as_ref().map(|s| s.last_index);
    assert_eq!(ends(&before), ends(&after), "nothing of it went into the log");
    served.end().await;
}

/// A frame that says more than it holds, garbage, and connections that end in the middle: the next caller is served.
#[tokio::test(flavor = "multi_thread")]
async fn broken_frames_end_their_connection_only() {
    let dir = tempfile::tempdir().expect("temp dir");
    let (served, db) = Served::plain(dir.path()).await;
    raw::put(&db, r(1), "1".into()).await.expect("put");
    let preface: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    for rest in [&b""[..], &settings[..4], &[0xff; 64], &[0, 0, 100, 1, 4, 0, 0, 0, 1, 0x82, 0x86]] {
        let mut io = photon_rt::net::TcpStream::connect(served.addr).await.expect("connect");
        io.write_all(&[preface, rest].concat()).await.expect("write");
        io.shutdown().await.expect("shutdown");
        let mut all = Vec::new();
        let end = io.read_to_end(&mut all);
        let _ = photon_rt::time::timeout(Duration::from_secs(10), "the end", end).await.expect("it ends");
    }
    // gRPC whose message is cut off: its length says 100 bytes, three follow.
    let mut ask = http::Request::post("/flaredb.v1.FlareDb/Ask")
        .header("content-type", "application/grpc")
        .body(axum::body::Body::from(&b"\0\0\0\0\x64abc"[..]))
        .expect("request");
    let direct = FlareDb::new(served.node.clone(), Door::Open, "n1".into(), &served.tasks).direct();
    let answer = direct(&mut ask, None).expect("its path").await.expect("answer");
    let status = answer.headers().get("grpc-status").map(|s| s.to_str().expect("text").to_string());
    assert!(status.as_deref().is_some_and(|s| s != "0"), "{answer:?}");
    assert_eq!(raw::get(&db, &r(1)).await.expect("get").expect("there").0, "1");
    served.end().await;
}

/// alice may write in demo and bob may read there; nobody else may do anything.
struct Roles;

#[async_trait::async_trait]
impl Policy for Roles {
    async fn decide(&self, caller: &Caller, action: Action, target: &Target) -> Decision {
        let demo = target.project.as_ref().is_some_and(|p| p.to_string() == "demo");
        let because = "a role".to_string();
        match caller.identity.name.as_str() {
            "alice" if demo => Decision::Allow { because },
            "bob" if demo && action.verb.reads() => Decision::Allow { because },
            _ => Decision::Deny { because: "no role".into() },
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn projects_are_apart_and_strangers_outside() {
    let dir = tempfile::tempdir().expect("temp dir");
    let ca = Authority::open(&dir.path().join("ca"), "c", photon_rt::time::wall()).expect("ca");
    let leaf = |identity: &str| -> CertPair {
        let leaf = Leaf {
            identity: identity.parse().expect("identity"),
            dns: vec!["localhost".into()],
            addresses: vec!["127.0.0.1".parse().expect("address")],
            valid: Duration::from_secs(3600),
        };
        ca.issue(&leaf, photon_rt::time::wall()).expect("issue")
    };
    let live = LiveCertificate::new(&leaf("host/n1")).expect("certificate");
    let tls = server_config(live, ca.cert_pem()).expect("tls");
    let served = Served::start(dir.path(), Door::Guarded(Gate::new(Arc::new(Roles))), Some(tls)).await;
    let url = format!("https://{}", served.addr);
    let open = async |who: Option<&str>, space: &str| {
        let pair = who.map(&leaf);
        let config = Config {
            endpoints: vec![url.clone()],
            tls: Some(client_config(ca.cert_pem(), pair.as_ref(), &["h2"]).expect("client")),
            token: None,
            keyspace: space.parse().expect("keyspace"),
            connections: 1,
        };
        Remote::open(config).await
    };
    let mine = |user: &str| key::key(Mode::Raw, format!("p/demo/{user}").as_bytes()).expect("short");
    let alice = open(Some("user/alice"), "project/demo").await.expect("let in");
    raw::put(&alice, mine("a"), "1".into()).await.expect("put");
    let bob = open(Some("user/bob"), "project/demo").await.expect("let in");
    assert_eq!(raw::get(&bob, &mine("a")).await.expect("get").expect("there").0, "1");
    let denied = raw::put(&bob, mine("a"), "2".into()).await;
    assert!(matches!(denied, Err(Refusal::Denied(_))), "{denied:?}");
    // What a viewer may not do by any other way either.
    let now = bob.timestamp().await.expect("timestamp");
    let demo: Keyspace = "project/demo".parse().expect("keyspace");
    let region = bob.locate(&mine("a")).await.expect("region");
    assert_eq!(region.span(), demo.span(Mode::Raw), "what lies outside is not told");
    let rollback = Op::Rollback(Rollback { start: now, keys: vec![k(1)] });
    assert!(matches!(bob.ask(&region, Request::Do(rollback)).await, Err(Refusal::Denied(_))));
    for (who, space) in [
        (None, "project/demo"),
        (Some("user/carol"), "project/demo"),
        (Some("user/alice"), "project/other"),
        (Some("user/alice"), "cluster"),
        (Some("user/alice"), "all"),
        (Some("host/n2"), "all"),
        (Some("user/operator"), "all"),
    ] {
        let refused = open(who, space).await.err().unwrap_or_else(|| panic!("{who:?} got into {space}"));
        assert_eq!(refused.code, photon_base::Code::Denied, "{who:?} {space}: {refused}");
    }
    // Alice may ask, but not for keys of others, whichever way.
    let theirs = key::key(Mode::Raw, b"p/other/a").expect("short");
    assert!(matches!(alice.locate(&theirs).await, Err(Refusal::Denied(_))));
    for request in [
        Request::RawGet(theirs.clone()),
        Request::RawScan(Query::all(Span::between(Mode::Raw, &[], &[]))),
        Request::Get(k(1), Snapshot::at(now)),
        Request::Do(Op::Gc(Gc { safe_point: now, ..Gc::default() })),
    ] {
        let answer = alice.ask(&region, request).await;
        assert!(matches!(answer, Err(Refusal::Denied(_))), "{answer:?}");
    }
    assert!(matches!(alice.regions().await, Err(Refusal::Denied(_))));
    assert!(matches!(alice.stores().await, Err(Refusal::Denied(_))));
    assert!(matches!(alice.split(border(&theirs)).await, Err(Refusal::Denied(_))));
    assert!(matches!(alice.merge(1).await, Err(Refusal::Denied(_))));

    // The operator sees everything, and leaves a lock whose primary Alice can't ask: the server settles it.
    let operator = open(Some("operator/admin"), "all").await.expect("let in");
    assert!(raw::get(&operator, &mine("a")).await.expect("get").is_some());
    let locked = key::key(Mode::Txn, b"p/demo/t").expect("short");
    let primary = key::key(Mode::Txn, b"c/t").expect("short");
    let start = operator.timestamp().await.expect("timestamp");
    let put = |key: &Bytes| Mutation { kind: Kind::Put as i32, key: key.clone(), ..Mutation::default() };
    let open = Prewrite {
        start,
        primary: primary.clone(),
        ttl_ms: 200,
        mutations: vec![put(&locked), put(&primary)],
        ..Prewrite::default()
    };
    let region = operator.locate(&locked).await.expect("region");
    operator.ask(&region, Request::Do(Op::Prewrite(open))).await.expect("prewrite");
    let mut t = Txn::begin(alice.clone(), Options::default()).await.expect("begin");
    t.put(locked.clone(), "mine").expect("small");
    t.commit().await.expect("the lock goes away");
    let Ok(Response::Value(value)) = operator
        .ask(&region, Request::Get(locked, Snapshot::at(operator.timestamp().await.expect("ts"))))
        .await
    else {
        panic!("a value")
    };
    assert_eq!(value.expect("there").0, "mine");
    served.end().await;
}

/// The server goes away and comes back at the same place; a client goes on without a word. Nothing answered is lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_survives_a_restart_of_its_server() {
    let dir = tempfile::tempdir().expect("temp dir");
    let (served, db) = Served::plain(dir.path()).await;
    let addr = served.addr;
    raw::put(&db, r(1), "1".into()).await.expect("put");
    served.end().await;
    let clients = Tasks::new();
    let reader = {
        let db = db.clone();
        clients.spawn("reader", async move { raw::get(&db, &r(1)).await })
    };
    // What could surely not be sent is sent later, a write too.
    let writer = {
        let db = db.clone();
        clients.spawn("writer", async move { raw::put(&db, r(2), "meanwhile".into()).await })
    };
    let tasks = Tasks::new();
    let node = Node::open(&dir.path().join("db")).await.expect("open");
    let socket = photon_rt::net::listen(addr).await.expect("listen");
    let flaredb = FlareDb::new(node.clone(), Door::Open, "n1".into(), &tasks);
    Listener {
        name: "flaredb",
        socket,
        tls: None,
        tokens: None,
        router: flaredb.pages(),
        direct: Some(flaredb.direct()),
        lenient_authority: false,
    }
    .start(&tasks);
    writer.await.expect("runs").expect("not cut off").expect("put");
    let read = reader.await.expect("runs").expect("not cut off");
    assert_eq!(read.expect("get").expect("there").0, "1");
    assert_eq!(raw::get(&db, &r(1)).await.expect("get").expect("there").0, "1");
    raw::put(&db, r(1), "2".into()).await.expect("put");
    tasks.shutdown().await;
    node.shutdown().await;
}
