use super::*;
use crate::enrol::tests::Told;
use photon_api::VmSpec;
use photon_kv::MemKv;
use photon_reconcile::{Feed, View};
use photon_resource::{Draft, Store};
use serde_json::json;
use std::sync::Mutex;

struct World {
    store: Store,
    members: Arc<Told>,
    sight: Arc<Mutex<Sight>>,
    controller: NodeController,
}

fn world(members: &[(u64, &str, bool)]) -> World {
    let store = Store::new(Arc::new(MemKv::new()), Arc::new(photon_api::registry()));
    let (members, sight) = (Arc::new(Told::with(members)), Arc::new(Mutex::new(Sight::Alive)));
    let seen = sight.clone();
    let look: Look = Arc::new(move |_| *seen.lock().expect("lock"));
    let controller = NodeController { members: members.clone(), look };
    World { store, members, sight, controller }
}

impl World {
    async fn node(&self, name: &str, id: u64) {
        let status = NodeStatus {
            phase: "joining".into(),
            member: format!("{id:x}"),
            peer_url: format!("https://10.0.0.{id}:2380"),
            ..NodeStatus::default()
        };
        let draft = Draft::new(name.parse().expect("name"), &NodeSpec::default()).status(&status);
        self.store.create("node", draft).await.expect("node");
    }

    /// One run; the node after it.
    async fn run(&self, name: &str) -> Option<Object<NodeSpec>> {
        let view = View::default();
        let (tx, _rx) = tokio::sync::mpsc::unbounded_channel();
        Feed::new(self.store.clone(), view.clone(), tx).fill().await.expect("fill");
        let cx = Context::new(view, self.store.clone());
        let name: photon_base::Name = name.parse().expect("name");
        self.controller.reconcile(&cx, &Key::new("node", None, name.clone())).await.expect("run");
        self.store.get::<NodeSpec>(None, &name).await.expect("read")
    }

    async fn change(&self, name: &str, change: impl FnOnce(&mut Object<NodeSpec>)) {
        let old = self
            .store
            .get::<NodeSpec>(None, &name.parse().expect("name"))
            .await
            .expect("read")
            .expect("node");
        let mut tx = self.store.begin();
        tx.update(&old, change).await.expect("change");
        tx.commit().await.expect("commit");
    }

    async fn vm_on(&self, host: &str) {
        self.store.make("project", "p", &json!({})).await.expect("project");
        self.store.make("image", "i", &json!({ "format": "raw" })).await.expect("image");
        let vm = self.store.make("vm", "p/v", &json!({ "image": "i" })).await.expect("vm");
        let spec =
            json!({ "vm": vm.meta.id, "host": host, "epoch": 1, "image": "i", "cpus": 1, "memory": "96MiB" });
        self.store.make("incarnation", "p/v", &spec).await.expect("incarnation");
        let _: VmSpec = serde_json::from_value(vm.spec).expect("a vm");
    }
}

#[tokio::test]
async fn members_follow_nodes() {
    let w = world(&[(1, "a", true)]);
    w.node("b", 2).await;
    let b = w.run("b").await.expect("node");
    assert_eq!(w.members.all().len(), 2, "its admission was cut off before it was a member");
    assert_eq!(b.status.role, "");
    let b = w.run("b").await.expect("node");
    assert_eq!((b.status.role.as_str(), b.status.phase.as_str()), ("voter", "ready"));
    *w.sight.lock().expect("lock") = Sight::Down;
    assert_eq!(w.run("b").await.expect("node").status.phase, "down");
    *w.sight.lock().expect("lock") = Sight::Alive;
    w.change("b", |n| n.meta.deleting = Some(wall())).await;
    assert!(w.run("b").await.is_none());
    assert_eq!(w.members.all().len(), 1);
}

#[tokio::test]
async fn a_node_that_is_needed_stays() {
    let w = world(&[(1, "a", true)]);
    w.node("a", 1).await;
    w.change("a", |n| n.meta.deleting = Some(wall())).await;
    let a = w.run("a").await.expect("the last one stays");
    let why = |n: &Object<NodeSpec>| {
        n.status.conditions.iter().find(|c| c.kind == "Leaving").map(|c| c.reason.clone())
    };
    assert_eq!(why(&a).as_deref(), Some("LastVoter"));
    // With another that can vote it may go, but not while VMs run there.
    w.node("b", 2).await;
    w.run("b").await;
    w.vm_on("a").await;
    let a = w.run("a").await.expect("it runs a VM");
    assert_eq!(why(&a).as_deref(), Some("VmsRun"));
    // Unless it is down: then waiting helps nobody.
    *w.sight.lock().expect("lock") = Sight::Down;
    assert!(w.run("a").await.is_none());
    assert_eq!(w.members.all().iter().map(|m| m.id).collect::<Vec<_>>(), [2]);
}

#[tokio::test]
async fn a_learner_takes_the_place_of_a_voter_that_goes() {
    let voters: Vec<(u64, String, bool)> = (1..=6).map(|i| (i, format!("n{i}"), i <= 5)).collect();
    let voters: Vec<(u64, &str, bool)> = voters.iter().map(|(i, n, v)| (*i, n.as_str(), *v)).collect();
    let w = world(&voters);
    w.node("n2", 2).await;
    w.change("n2", |n| n.meta.deleting = Some(wall())).await;
    assert!(w.run("n2").await.is_none());
    assert_eq!(w.members.all().iter().filter(|m| m.votes).count(), 5);
    // And a sixth node that comes is a learner.
    w.node("n7", 7).await;
    w.run("n7").await;
    assert_eq!(w.run("n7").await.expect("node").status.role, "learner");
}

#[tokio::test]
async fn draining_cordons_the_host_and_ends_when_it_is_empty() {
    let w = world(&[(1, "a", true), (2, "b", true)]);
    w.node("b", 2).await;
    w.store.make("host", "b", &json!({})).await.expect("host");
    w.vm_on("b").await;
    w.run("b").await;
    w.change("b", |n| n.spec.drain = true).await;
    let b = w.run("b").await.expect("node");
    assert_eq!(b.status.phase, "draining");
    let host = async || {
        w.store.get::<HostSpec>(None, &"b".parse().expect("name")).await.expect("read").expect("host")
    };
    assert!(host().await.spec.cordoned);
    let name = "v".parse().expect("name");
    let i = w
        .store
        .get::<IncarnationSpec>(Some(&"p".parse().expect("name")), &name)
        .await
        .expect("read")
        .expect("it");
    let mut tx = w.store.begin();
    tx.update(&i, |i| i.status.ended = true).await.expect("change");
    tx.commit().await.expect("commit");
    let b = w.run("b").await.expect("node");
    assert_eq!((b.status.phase.as_str(), b.status.observed_generation), ("drained", b.meta.generation));
    w.change("b", |n| n.spec.drain = false).await;
    let b = w.run("b").await.expect("node");
    assert_eq!(b.status.phase, "ready");
    assert!(!host().await.spec.cordoned);
}
