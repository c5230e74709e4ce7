//! The generic server end to end, on the model store.

use super::{tests_support::registry, *};
use crate::Store;
use axum::body::Body;
use futures::StreamExt;
use photon_auth::{Decision, Identity, Policy, Proof, Target};
use photon_kv::{Kv, MemKv, ReadAt};
use serde_json::{Value, json};
use tower::ServiceExt;

/// Allows all but writes of a viewer; nothing at all once it is true.
#[derive(Clone, Default)]
struct NoViewerWrites(Arc<std::sync::atomic::AtomicBool>);

#[async_trait]
impl Policy for NoViewerWrites {
    async fn decide(&self, caller: &Caller, action: Action, _: &Target) -> Decision {
        if self.0.load(std::sync::atomic::Ordering::SeqCst) {
            return Decision::Deny { because: "revoked".into() };
        }
        if caller.identity.name.as_str() == "viewer" && !action.verb.reads() {
            return Decision::Deny { because: "a viewer only reads".into() };
        }
        Decision::Allow { because: "test".into() }
    }
}

struct Server {
    app: Router,
    kv: MemKv,
    policy: NoViewerWrites,
}

impl Server {
    fn new() -> Server {
        let kv = MemKv::new();
        Server::on(Arc::new(kv.clone()), kv)
    }

    fn on(store: Arc<dyn photon_kv::Kv>, kv: MemKv) -> Server {
        let policy = NoViewerWrites::default();
        let store = Store::new(store, Arc::new(registry()));
        Server { app: Api::new(store, Gate::new(Arc::new(policy.clone()))).router(), kv, policy }
    }

    /// The events of a watch until `enough` of them, or its end.
    async fn watch(&self, query: &str, enough: usize) -> Vec<Value> {
        let r = self.raw("admin", "GET", &format!("{W}?watch=true{query}"), &[], Body::empty()).await;
        assert_eq!(r.status(), 200);
        events(r, enough).await
    }

    async fn raw(
        &self,
        who: &str,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Body,
    ) -> Response {
        let mut b = http::Request::builder().method(method).uri(path);
        for (k, v) in headers {
            b = b.header(*k, *v);
        }
        let mut r = b.body(body).expect("request");
        if !who.is_empty() {
            let identity = Identity::user(who.parse().expect("name"));
            r.extensions_mut().insert(Caller { identity, proof: Proof::Certificate });
        }
        self.app.clone().oneshot(r).await.expect("infallible")
    }

    async fn call_with(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Value,
    ) -> (u16, Value) {
        let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
        let r = self.raw("admin", method, path, headers, body).await;
        let status = r.status().as_u16();
        let bytes = axum::body::to_bytes(r.into_body(), 1 << 22).await.expect("body");
        (status, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
    }

    async fn call(&self, method: &str, path: &str, body: Value) -> (u16, Value) {
        self.call_with(method, path, &[], body).await
    }

    async fn project(&self) {
        assert_eq!(
            self.call("POST", "/v1/projects", json!({"meta": {"name": "p"}, "spec": {}})).await.0,
            202
        );
    }

    async fn widget(&self, name: &str, spec: Value) -> (u16, Value) {
        self.call("POST", "/v1/projects/p/widgets", json!({"meta": {"name": name}, "spec": spec})).await
    }
}

async fn events(r: Response, enough: usize) -> Vec<Value> {
    let mut stream = r.into_body().into_data_stream();
    let mut text = String::new();
    let found = |text: &str| -> Vec<Value> {
        let data = text.lines().filter_map(|l| l.strip_prefix("data: "));
        data.map(|l| serde_json::from_str(l).expect("json")).collect()
    };
    while found(&text).len() < enough {
        let Some(chunk) = stream.next().await else { break };
        text.push_str(&String::from_utf8_lossy(&chunk.expect("chunk")));
    }
    found(&text)
}

const W: &str = "/v1/projects/p/widgets";

#[tokio::test]
async fn an_object_lives_its_life() {
    let s = Server::new();
    s.project().await;
    let (status, made) = s.widget("a", json!({"size": 1})).await;
    assert_eq!(status, 202, "{made}");
    assert_eq!(made["meta"]["generation"], 1);
    let revision = made["meta"]["revision"].as_u64().expect("revision");
    let (status, got) = s.call("GET", &format!("{W}/a"), Value::Null).await;
    assert_eq!((status, got["meta"]["revision"].as_u64()), (200, Some(revision)));

    let (status, e) = s.widget("a", json!({"size": 1})).await;
    assert_eq!((status, e["code"].as_str()), (409, Some("exists")));

    let (status, changed) = s
        .call("PATCH", &format!("{W}/a"), json!({"spec": {"colour": "red"}, "meta": {"labels": {"x": "y"}}}))
        .await;
    assert_eq!((status, changed["meta"]["generation"].as_u64()), (200, Some(2)), "{changed}");
    assert_eq!((&changed["spec"]["size"], &changed["meta"]["labels"]["x"]), (&json!(1), &json!("y")));

    let stale = [("if-match", format!("\"{revision}\""))];
    let stale: Vec<(&str, &str)> = stale.iter().map(|(k, v)| (*k, v.as_str())).collect();
    let (status, e) = s.call_with("PATCH", &format!("{W}/a"), &stale, json!({"spec": {"size": 2}})).await;
    assert_eq!((status, e["code"].as_str()), (409, Some("conflict")));

    // What was read can be sent back.
    let (_, mut o) = s.call("GET", &format!("{W}/a"), Value::Null).await;
    o["spec"]["size"] = json!(7);
    let (status, put) = s.call("PUT", &format!("{W}/a"), o.clone()).await;
    assert_eq!((status, &put["spec"]["size"]), (200, &json!(7)), "{put}");
    let (status, _) = s.call("PUT", &format!("{W}/a"), o).await;
    assert_eq!(status, 409, "the same body again is stale");

    assert_eq!(s.call("DELETE", &format!("{W}/a"), Value::Null).await.0, 202);
    let (status, e) = s.call("GET", &format!("{W}/a"), Value::Null).await;
    assert_eq!((status, e["number"].as_str()), (404, Some("PH1004")));
}

#[tokio::test]
async fn bad_input_names_the_field_and_changes_nothing() {
    let s = Server::new();
    s.project().await;
    let before = s.kv.dump();
    for (body, field) in [
        (json!({"meta": {"name": "a"}, "spec": {"size": 101}}), "spec.size"),
        (json!({"meta": {"name": "a"}, "spec": {"size": "x"}}), "spec.size"),
        (json!({"meta": {"name": "a"}, "spec": {"size": 1, "weight": 1}}), "spec.weight"),
        (json!({"meta": {"name": "A"}, "spec": {"size": 1}}), "meta.name"),
        (json!({"meta": {"name": "a", "labels": {"": "x"}}, "spec": {"size": 1}}), "meta.labels"),
        (json!({"meta": {"name": "a"}, "spec": {"size": 1}, "extra": 1}), "extra"),
        (json!({"meta": {"name": "a"}, "spec": {"size": 1, "part_of": "nobody"}}), "spec.part_of"),
        (json!({"kind": "vm", "meta": {"name": "a"}, "spec": {"size": 1}}), "kind"),
    ] {
        let (status, e) = s.call("POST", W, body.clone()).await;
        assert!((400..=404).contains(&status), "{body}: {status} {e}");
        let said = e["field"].as_str().unwrap_or_default();
        assert!(
            said.starts_with(field.split('.').next().unwrap_or_default()) && e["title"].is_string(),
            "{body}: {e}"
        );
    }
    let (status, e) = s
        .call("POST", "/v1/projects/none/widgets", json!({"meta": {"name": "a"}, "spec": {"size": 1}}))
        .await;
    assert_eq!((status, e["hint"].as_str()), (404, Some("photon project create none")));
    let r = s.raw("admin", "POST", W, &[], Body::from(vec![b'['; 2 << 20])).await;
    assert_eq!(r.status(), 400);
    let r = s.raw("admin", "POST", W, &[], Body::from("[".repeat(100_000))).await;
    assert_eq!(r.status(), 400);
    assert_eq!(s.raw("", "GET", W, &[], Body::empty()).await.status(), 401);
    assert_eq!(s.raw("viewer", "POST", W, &[], Body::empty()).await.status(), 403);
    assert_eq!(s.raw("viewer", "GET", W, &[], Body::empty()).await.status(), 200);
    assert_eq!(s.kv.dump(), before);
}

#[tokio::test]
async fn what_is_named_stays() {
    let s = Server::new();
    s.project().await;
    s.widget("whole", json!({"size": 1})).await;
    assert_eq!(s.widget("part", json!({"size": 1, "part_of": "whole"})).await.0, 202);
    let (status, e) = s.call("DELETE", &format!("{W}/whole"), Value::Null).await;
    assert_eq!((status, e["code"].as_str()), (409, Some("conflict")), "{e}");
    let (status, e) = s.call("DELETE", "/v1/projects/p", Value::Null).await;
    assert_eq!(status, 409, "{e}");
    // The name given up, the named one may go.
    assert_eq!(s.call("PATCH", &format!("{W}/part"), json!({"spec": {"part_of": null}})).await.0, 200);
    assert_eq!(s.call("DELETE", &format!("{W}/whole"), Value::Null).await.0, 202);
    assert_eq!(s.call("DELETE", &format!("{W}/part"), Value::Null).await.0, 202);
    assert_eq!(s.call("DELETE", "/v1/projects/p", Value::Null).await.0, 202);
    let left: Vec<_> =
        s.kv.dump().into_iter().filter(|v| !v.key.starts_with(b"/photon.internal/audit/")).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn lists_show_one_revision_whatever_happens_meanwhile() {
    let s = Server::new();
    s.project().await;
    for i in 0..25 {
        s.widget(&format!("w{i:02}"), json!({"size": i, "colour": if i % 2 == 0 { "red" } else { "blue" }}))
            .await;
    }
    let mut seen = Vec::new();
    let mut path = format!("{W}?limit=7");
    loop {
        let (status, page) = s.call("GET", &path, Value::Null).await;
        assert_eq!(status, 200, "{page}");
        for o in page["items"].as_array().expect("items") {
            seen.push(o["meta"]["name"].as_str().expect("name").to_string());
        }
        // Between the pages: one goes that was not shown yet, one comes that would sort before.
        s.call("DELETE", &format!("{W}/w24"), Value::Null).await;
        s.widget(&format!("a{}", seen.len()), json!({"size": 0})).await;
        match page["cursor"].as_str() {
            Some(c) => path = format!("{W}?limit=7&cursor={c}"),
            None => break,
        }
    }
    let expected: Vec<String> = (0..25).map(|i| format!("w{i:02}")).collect();
    assert_eq!(seen, expected);
    let (_, red) = s.call("GET", &format!("{W}?fields=spec.colour=red&limit=5"), Value::Null).await;
    assert_eq!(red["items"].as_array().map(Vec::len), Some(5));
    assert!(red["cursor"].is_string());
    let (status, _) = s
        .call(
            "GET",
            &format!("/v1/projects/q/widgets?cursor={}", red["cursor"].as_str().expect("cursor")),
            Value::Null,
        )
        .await;
    assert_eq!(status, 400, "a cursor of another list");
}

#[tokio::test]
async fn a_page_of_large_objects_is_short_and_goes_on() {
    let s = Server::new();
    s.project().await;
    let colour = "x".repeat(900 << 10);
    for i in 0..12 {
        assert_eq!(s.widget(&format!("w{i:02}"), json!({"size": i, "colour": colour})).await.0, 202);
    }
    let (_, first) = s.call("GET", &format!("{W}?limit=1000&fields=spec.size=3"), Value::Null).await;
    assert_eq!(first["items"].as_array().map(Vec::len), Some(1));
    let store = Store::new(Arc::new(s.kv.clone()), Arc::new(registry()));
    let kind = store.registry().kind("widget").expect("kind");
    let mut query = crate::ListQuery { limit: 1000, ..Default::default() };
    let first = store.list(kind, &query).await.expect("page");
    assert!((9..12).contains(&first.items.len()), "{}", first.items.len());
    query.cursor = first.next;
    let rest = store.list(kind, &query).await.expect("page");
    assert_eq!((first.items.len() + rest.items.len(), rest.next.is_none()), (12, true));
}

#[tokio::test]
async fn repeating_a_request_repeats_the_answer() {
    let s = Server::new();
    s.project().await;
    let key = [("idempotency-key", "k-1")];
    let body = json!({"meta": {"name": "a"}, "spec": {"size": 1}});
    let (status, first) = s.call_with("POST", W, &key, body.clone()).await;
    assert_eq!(status, 202);
    let (status, second) = s.call_with("POST", W, &key, body).await;
    assert_eq!((status, &second), (202, &first), "revision and all: whoever waits for it watches from there");
    let (status, _) = s.call_with("POST", W, &key, json!({"meta": {"name": "b"}, "spec": {"size": 1}})).await;
    assert_eq!(status, 409);
}

/// A store whose first commit is lost on the way and arrives just before the second.
struct LateKv {
    inner: MemKv,
    late: tokio::sync::Mutex<Option<(Vec<photon_kv::Check>, Vec<photon_kv::Write>)>>,
    armed: std::sync::atomic::AtomicBool,
}

#[async_trait]
impl photon_kv::Kv for LateKv {
    async fn get(
        &self,
        key: &[u8],
        at: photon_kv::ReadAt,
    ) -> photon_kv::KvResult<Option<photon_kv::Versioned>> {
        self.inner.get(key, at).await
    }
    async fn scan(
        &self,
        range: photon_kv::Range,
        at: photon_kv::ReadAt,
        limit: u32,
        d: photon_kv::Direction,
    ) -> photon_kv::KvResult<photon_kv::Page> {
        self.inner.scan(range, at, limit, d).await
    }
    async fn commit(
        &self,
        checks: Vec<photon_kv::Check>,
        writes: Vec<photon_kv::Write>,
    ) -> photon_kv::KvResult<photon_kv::Committed> {
        if self.armed.swap(false, std::sync::atomic::Ordering::SeqCst) {
            *self.late.lock().await = Some((checks, writes));
            return Err(photon_kv::KvError::Unavailable("no answer".into()));
        }
        if let Some((c, w)) = self.late.lock().await.take() {
            self.inner.commit(c, w).await?;
        }
        self.inner.commit(checks, writes).await
    }
    fn watch(&self, range: photon_kv::Range, from: u64) -> photon_kv::Watch {
        self.inner.watch(range, from)
    }
}

#[tokio::test]
async fn a_request_whose_first_try_arrives_late_gets_that_try_s_answer() {
    let kv = MemKv::new();
    let late = Arc::new(LateKv { inner: kv.clone(), late: Default::default(), armed: false.into() });
    let s = Server::on(late.clone(), kv);
    s.project().await;
    let arm = || late.armed.store(true, std::sync::atomic::Ordering::SeqCst);
    for (method, path, body, expected) in [
        ("POST", W.to_string(), json!({"meta": {"name": "a"}, "spec": {"size": 1}}), 202),
        ("PATCH", format!("{W}/a"), json!({"spec": {"size": 2}}), 200),
        ("DELETE", format!("{W}/a"), Value::Null, 202),
    ] {
        let key = [("idempotency-key", method)];
        arm();
        assert_eq!(s.call_with(method, &path, &key, body.clone()).await.0, 503);
        // HTTP/2 has the door's name in the URI, and the client may have gone on to the next one.
        let (status, o) = s.call_with(method, &format!("https://other:8443{path}"), &key, body).await;
        assert_eq!((status, &o["meta"]["name"]), (expected, &json!("a")), "{method}: {o}");
    }
    assert_eq!(s.call("GET", &format!("{W}/a"), Value::Null).await.0, 404);
}

#[tokio::test]
async fn a_change_of_nothing_tells_the_revision_that_is_there() {
    let s = Server::new();
    s.project().await;
    let (_, made) = s.widget("a", json!({"size": 1})).await;
    let (status, same) = s.call("PATCH", &format!("{W}/a"), json!({"spec": {"size": 1}})).await;
    assert_eq!((status, &same["meta"]["revision"]), (200, &made["meta"]["revision"]));
}

#[tokio::test]
async fn a_change_that_lost_a_race_is_made_again_unless_it_names_a_revision() {
    let kv = MemKv::new();
    let late = Arc::new(LateKv { inner: kv.clone(), late: Default::default(), armed: Default::default() });
    let s = Server::on(late.clone(), kv);
    s.project().await;
    s.widget("a", json!({"size": 1})).await;
    let path = format!("{W}/a");
    // Somebody else's change, which arrives between our next read and our commit.
    let overtake = async |label: &str| {
        late.armed.store(true, std::sync::atomic::Ordering::SeqCst);
        let (status, _) = s.call("PATCH", &path, json!({"meta": {"labels": {"by": label}}})).await;
        assert_eq!(status, 503);
        s.call("GET", &path, Value::Null).await.1["meta"]["revision"].to_string()
    };
    overtake("x").await;
    let (status, o) = s.call("PATCH", &path, json!({"spec": {"size": 2}})).await;
    assert_eq!((status, &o["meta"]["labels"]["by"], &o["spec"]["size"]), (200, &json!("x"), &json!(2)));
    let revision = overtake("y").await;
    let (status, e) =
        s.call_with("PATCH", &path, &[("if-match", &revision)], json!({"spec": {"size": 3}})).await;
    assert_eq!((status, &e["raced"]), (409, &json!(false)), "the same request can never succeed: {e}");
    let lost = axum::body::to_bytes(problem(&Error::raced("it")).into_body(), 1 << 16).await.expect("body");
    let lost: Value = serde_json::from_slice(&lost).expect("json");
    assert_eq!((&lost["raced"], &lost["status"]), (&json!(true), &json!(409)));
}

#[tokio::test]
async fn what_its_kind_does_not_admit_any_more_can_be_mended_and_removed() {
    let kind = registry().kind("widget").expect("kind").kind;
    for (old, mendable) in [
        (json!({"size": 101, "part_of": "b"}), true),
        (json!({"size": "of an older version", "part_of": "b"}), false),
    ] {
        for finalizers in [json!([]), json!(["f"])] {
            let s = Server::new();
            s.project().await;
            s.widget("b", json!({"size": 1})).await;
            s.widget("other", json!({"size": 1, "part_of": "b"})).await;
            s.widget("a", json!({"size": 1, "part_of": "b"})).await;
            let key = crate::Key::new(kind, Some("p".parse().expect("name")), "a".parse().expect("name"));
            let stored = s.kv.get(&key.storage(), ReadAt::Latest).await.expect("get").expect("there");
            let mut object: Value = serde_json::from_slice(&stored.value).expect("json");
            (object["spec"], object["status"]) = (old.clone(), json!("of an older version"));
            object["meta"]["finalizers"] = finalizers.clone();
            let put = photon_kv::Write::Put(key.storage(), object.to_string().into());
            s.kv.commit(Vec::new(), vec![put]).await.expect("commit");

            let patch = json!({"spec": {"size": 2, "part_of": "other"}});
            let mended = s.call("PATCH", &format!("{W}/a?dryRun=true"), patch).await.0;
            assert_eq!(mended == 200, mendable, "{old}");
            let (status, o) = s.call("DELETE", &format!("{W}/a"), Value::Null).await;
            assert_eq!(status, 202, "{o}");
            if finalizers == json!([]) {
                assert_eq!(s.call("GET", &format!("{W}/a"), Value::Null).await.0, 404);
                assert_eq!(s.call("DELETE", &format!("{W}/b"), Value::Null).await.0, 409, "other names it");
                assert_eq!(s.call("DELETE", &format!("{W}/other"), Value::Null).await.0, 202);
                assert_eq!(s.call("DELETE", &format!("{W}/b"), Value::Null).await.0, 202, "nobody names it");
            } else {
                assert!(o["meta"]["deleting"].is_string() || o["meta"]["deleting"].is_number(), "{o}");
            }
        }
    }
}

#[tokio::test]
async fn naming_one_object_twice_is_naming_it() {
    let s = Server::new();
    s.project().await;
    s.widget("whole", json!({"size": 1})).await;
    let both = json!({"size": 1, "part_of": "whole", "beside": "whole"});
    assert_eq!(s.widget("a", both.clone()).await.0, 202);
    s.widget("b", json!({"size": 1})).await;
    let patch =
        async |name: &str, spec: Value| s.call("PATCH", &format!("{W}/{name}"), json!({"spec": spec})).await;
    assert_eq!(patch("b", both).await.0, 200);
    assert_eq!(patch("b", json!({"part_of": null, "beside": null})).await.0, 200);
    assert_eq!(s.call("DELETE", &format!("{W}/whole"), Value::Null).await.0, 409, "a names it still");
    assert_eq!(patch("a", json!({"part_of": null})).await.0, 200);
    assert_eq!(s.call("DELETE", &format!("{W}/whole"), Value::Null).await.0, 409, "and still");
    assert_eq!(s.call("DELETE", &format!("{W}/a"), Value::Null).await.0, 202);
    assert_eq!(s.call("DELETE", &format!("{W}/whole"), Value::Null).await.0, 202);
}

#[tokio::test]
async fn a_watch_ends_with_the_right_to_it() {
    let s = Server::new();
    s.project().await;
    let (_, made) = s.widget("a", json!({"size": 1})).await;
    let seen = made["meta"]["revision"].as_u64().expect("revision");
    let open = format!("{W}?watch=true&revision={seen}");
    let r = s.raw("admin", "GET", &open, &[], Body::empty()).await;
    s.widget("b", json!({"size": 1})).await;
    s.policy.0.store(true, std::sync::atomic::Ordering::SeqCst);
    let all = events(r, 2).await;
    assert_eq!(all.len(), 1, "{all:?}");
    assert_eq!(all[0]["code"], "denied", "{all:?}");
}

#[tokio::test]
async fn a_watch_of_one_name_tells_nothing_of_others_and_starts_with_where_it_is() {
    let s = Server::new();
    s.project().await;
    let (_, made) = s.widget("a", json!({"size": 1})).await;
    s.widget("b", json!({"size": 1})).await;
    s.call("PATCH", &format!("{W}/a"), json!({"spec": {"size": 2}})).await;
    let seen = made["meta"]["revision"].as_u64().expect("revision");
    let all = s.watch(&format!("&fields=meta.name=a&revision={seen}"), 2).await;
    let types: Vec<_> = all.iter().map(|e| e["type"].as_str().unwrap_or_default()).collect();
    assert_eq!(types, ["bookmark", "put"], "{all:?}");
    let first = s.watch("", 1).await;
    assert_eq!((&first[0]["type"], first[0]["revision"].as_u64()), (&json!("bookmark"), Some(seen + 2)));
    for bad in [u64::MAX, i64::MAX as u64] {
        let path = format!("{W}?watch=true&revision={bad}");
        assert_eq!(s.call("GET", &path, Value::Null).await.0, 400, "{bad}");
    }
}

#[tokio::test]
async fn a_dry_run_tells_and_does_nothing() {
    let s = Server::new();
    s.project().await;
    s.widget("a", json!({"size": 1})).await;
    let before = s.kv.dump();
    let (status, d) = s.call("PATCH", &format!("{W}/a?dryRun=true"), json!({"spec": {"size": 2}})).await;
    assert_eq!((status, &d["changes"][0]), (200, &json!({"field": "spec.size", "old": 1, "new": 2})), "{d}");
    let (status, _) = s
        .call("POST", &format!("{W}?dryRun=true"), json!({"meta": {"name": "a"}, "spec": {"size": 2}}))
        .await;
    assert_eq!(status, 409, "a dry run finds the conflict");
    assert_eq!(s.kv.dump(), before);
}

#[tokio::test]
async fn a_watch_resumes_without_gap_or_duplicate() {
    let s = Server::new();
    s.project().await;
    let (_, made) = s.widget("a", json!({"size": 1})).await;
    let seen = made["meta"]["revision"].as_u64().expect("revision");
    s.widget("b", json!({"size": 1})).await;
    s.call("DELETE", &format!("{W}/a"), Value::Null).await;
    let r = s.raw("admin", "GET", &format!("{W}?watch=true&revision={seen}"), &[], Body::empty()).await;
    let mut stream = r.into_body().into_data_stream();
    let mut text = String::new();
    while !text.contains("\"delete\"") {
        text.push_str(&String::from_utf8_lossy(&stream.next().await.expect("more").expect("chunk")));
    }
    let data: Vec<Value> = text
        .lines()
        .filter_map(|l| l.strip_prefix("data: "))
        .map(|l| serde_json::from_str(l).expect("json"))
        .collect();
    assert_eq!(data.len(), 2, "{text}");
    assert_eq!((&data[0]["type"], &data[0]["object"]["meta"]["name"]), (&json!("put"), &json!("b")));
    assert_eq!((&data[1]["type"], &data[1]["name"]), (&json!("delete"), &json!("a")));
}

#[tokio::test]
async fn every_change_leaves_an_audit_record_in_the_same_commit() {
    let s = Server::new();
    s.project().await;
    s.widget("a", json!({"size": 1})).await;
    s.call("PATCH", &format!("{W}/a"), json!({"spec": {"size": 2}})).await;
    s.call("DELETE", &format!("{W}/a"), Value::Null).await;
    let records: Vec<crate::AuditRecord> =
        s.kv.dump()
            .iter()
            .filter(|v| v.key.starts_with(b"/photon.internal/audit/"))
            .map(|v| serde_json::from_slice(&v.value).expect("record"))
            .collect();
    let mut actions: Vec<&str> = records.iter().map(|r| r.action.as_str()).collect();
    actions.sort_unstable();
    assert_eq!(actions, ["project.create", "widget.create", "widget.delete", "widget.update"]);
    assert!(records.iter().all(|r| r.who == "user/admin"));
}
