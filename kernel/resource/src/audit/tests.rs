//! Whatever changes a wish leaves a record in its commit; what reports leaves none.

use super::*;
use crate::{
    Draft, Object, Store, Tx,
    http::tests_support::{WidgetSpec, registry},
};
use futures::future::BoxFuture;
use photon_kv::MemKv;
use serde_json::json;
use std::sync::Arc;

type Step = for<'t> fn(&'t mut Tx<'_>, &'t Object<WidgetSpec>) -> BoxFuture<'t, Result<()>>;

fn records(kv: &MemKv) -> Vec<AuditRecord> {
    let all = kv.dump();
    let trail = all.iter().filter(|v| v.key.starts_with(keys::AUDIT_PREFIX.as_bytes()));
    trail.map(|v| serde_json::from_slice(&v.value).expect("record")).collect()
}

async fn world() -> (MemKv, Store) {
    let kv = MemKv::new();
    let store = Store::new(Arc::new(kv.clone()), Arc::new(registry())).acting_as("tester");
    store.make("project", "p", &json!({})).await.expect("project");
    store.make("widget", "p/a", &json!({"size": 1})).await.expect("widget");
    (kv, store)
}

#[tokio::test]
async fn a_commit_writes_the_records_of_its_changes_and_only_those() {
    let steps: [(&str, Step, &[&str]); 8] = [
        (
            "spec",
            |tx, w| Box::pin(tx.update(w, |w| w.spec.size = 2)),
            &["widget.update spec.size: a part said why"],
        ),
        (
            "labels",
            |tx, w| Box::pin(tx.update(w, |w| _ = w.meta.labels.insert("k".into(), "v".into()))),
            &["widget.update meta.labels.k: a part said why"],
        ),
        ("status", |tx, w| Box::pin(tx.update(w, |w| w.status.note = "so it is".into())), &[]),
        ("finalizers", |tx, w| Box::pin(tx.update(w, |w| w.meta.finalizers.push("f".into()))), &[]),
        (
            "a removal that waits",
            |tx, w| {
                Box::pin(tx.update(w, |w| {
                    w.meta.finalizers.push("f".into());
                    w.meta.deleting = Some(photon_rt::time::wall());
                }))
            },
            &["widget.delete meta.deleting: a part said why"],
        ),
        (
            "a removal",
            |tx, w| Box::pin(tx.update(w, |w| w.meta.deleting = Some(photon_rt::time::wall()))),
            &["widget.delete spec: a part said why"],
        ),
        (
            "a child",
            |tx, w| {
                Box::pin(async {
                    let spec = WidgetSpec { size: 7, ..w.spec.clone() };
                    tx.create_child(w, "b".parse()?, &spec).await.map(|_| ())
                })
            },
            &["widget.create spec: a part said why"],
        ),
        (
            "something beside",
            |tx, w| {
                Box::pin(async {
                    tx.note(
                        &Key::new("widget", w.meta.project.clone(), w.meta.name.clone()),
                        w.meta.id,
                        "paint",
                    );
                    tx.put(format!("{}paint", keys::ROOT).into(), "red".into())
                })
            },
            &["widget.update paint: a part said why"],
        ),
    ];
    for (what, step, expected) in steps {
        let (kv, store) = world().await;
        let before = records(&kv).len();
        let (p, a) = ("p".parse().expect("name"), "a".parse().expect("name"));
        let w = store.get::<WidgetSpec>(Some(&p), &a).await.expect("get").expect("there");
        let attempt = async || {
            let mut tx = store.begin();
            tx.because("a part said why");
            step(&mut tx, &w).await.expect(what);
            tx
        };
        attempt().await.verify().await.expect(what);
        assert_eq!(records(&kv).len(), before, "{what}: a dry run");
        attempt().await.commit().await.expect(what);
        let all = records(&kv);
        assert!(all.iter().all(|r| (r.who.as_str(), r.proof.as_str()) == ("service/tester", "internal")));
        let said = |r: &AuditRecord| {
            let fields: Vec<&str> = r.changes.iter().map(|c| c.field.as_str()).collect();
            format!("{} {}: {}", r.action, fields.join(" "), r.because)
        };
        let new: Vec<String> = all.iter().filter(|r| r.because == "a part said why").map(said).collect();
        assert_eq!((new.len(), all.len() - before), (expected.len(), expected.len()), "{what}: {new:?}");
        assert_eq!(new, expected, "{what}");
        if attempt().await.commit().await.is_err() {
            assert_eq!(records(&kv).len(), all.len(), "{what}: a commit that fails leaves none");
        }
    }
}

#[tokio::test]
async fn the_end_of_what_was_to_go_is_no_new_change_and_objects_have_no_back_door() {
    let (kv, store) = world().await;
    let kind = store.registry().kind("widget").expect("kind");
    let key = Key::new("widget", Some("p".parse().expect("name")), "a".parse().expect("name"));
    let with = async |f: fn(&mut Raw)| {
        let old = store.get_raw(&key).await.expect("get").expect("there");
        let mut new = old.clone();
        f(&mut new);
        let mut tx = store.begin();
        tx.replace(kind, &old, new).await.expect("replace");
        tx.commit().await.expect("commit");
    };
    with(|o| o.meta.finalizers.push("f".into())).await;
    with(|o| o.meta.deleting = Some(photon_rt::time::wall())).await;
    with(|o| o.meta.deleting = Some(photon_rt::time::wall())).await;
    let told = records(&kv).len();
    with(|o| o.meta.finalizers.clear()).await;
    assert!(store.get_raw(&key).await.expect("get").is_none());
    let actions: Vec<String> = records(&kv).into_iter().map(|r| r.action).collect();
    assert_eq!((told, actions.iter().filter(|a| *a == "widget.delete").count()), (actions.len(), 1));

    let mut tx = store.begin();
    assert!(tx.put(key.storage(), Bytes::new()).is_err() && tx.remove(key.storage()).is_err());
}

#[tokio::test]
async fn a_record_stays_small() {
    let (kv, store) = world().await;
    let labels = (0..64).map(|i| (format!("k{i}"), "v".into())).collect();
    let spec = json!({"size": 1, "colour": "x".repeat(10_000)});
    let name = "big".parse().expect("name");
    let draft = Draft::new(name, &spec).project(Some("p".parse().expect("name"))).labels(labels);
    store.create("widget", draft).await.expect("made");
    let trail: Vec<usize> = kv
        .dump()
        .iter()
        .filter(|v| v.key.starts_with(keys::AUDIT_PREFIX.as_bytes()))
        .map(|v| v.value.len())
        .collect();
    assert!(trail.len() == 3 && trail.iter().all(|n| *n < 4096), "{trail:?}");
}
