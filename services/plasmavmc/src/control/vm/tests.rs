//! VMs on the model store, with an agent that does its part at once.

use super::*;
use photon_reconcile::harness::Harness;
use photon_resource::{AUDIT_PREFIX, AuditRecord, Draft, Resource, Store};
use serde_json::{Value, json};

/// What PrismNET and the host's agent would do.
struct Ports;
struct Agent;
struct Disks;

#[async_trait]
impl Reconcile for Ports {
    type Kind = PortSpec;
    fn name(&self) -> &'static str {
        "test-ports"
    }
    async fn reconcile(&self, cx: &Context, key: &Key) -> Result<Next> {
        let Some(p) = cx.get::<PortSpec>(key.project.as_ref(), &key.name)? else { return Ok(Next::Done) };
        let mut tx = cx.begin();
        if !p.is_wanted() {
            tx.update(&p, |p| p.meta.finalizers.clear()).await?;
        } else if p.status.address.is_none() {
            tx.update(&p, |p| {
                p.status.address = Some([10, 0, 0, 2].into());
                p.status.phase = "active".into();
            })
            .await?;
        } else {
            return Ok(Next::Done);
        }
        tx.commit().await.map(|_| Next::Done)
    }
}

#[async_trait]
impl Reconcile for Agent {
    type Kind = IncarnationSpec;
    fn name(&self) -> &'static str {
        "test-agent"
    }
    async fn reconcile(&self, cx: &Context, key: &Key) -> Result<Next> {
        let Some(i) = cx.get::<IncarnationSpec>(key.project.as_ref(), &key.name)? else {
            return Ok(Next::Done);
        };
        let phase = match i.spec.power {
            Power::Running => Phase::Running,
            Power::Paused => Phase::Paused,
            Power::Stopped => Phase::Stopped,
        };
        let mut tx = cx.begin();
        if !i.is_wanted() {
            tx.update(&i, |i| i.meta.finalizers.clear()).await?;
        } else if i.status.observed_generation != i.meta.generation {
            tx.update(&i, |i| {
                i.status.phase = phase;
                i.status.observed_generation = i.meta.generation;
            })
            .await?;
        } else {
            return Ok(Next::Done);
        }
        tx.commit().await.map(|_| Next::Done)
    }
}

#[async_trait]
impl Reconcile for Disks {
    type Kind = VmSpec;
    fn name(&self) -> &'static str {
        "test-disks"
    }
    async fn reconcile(&self, cx: &Context, key: &Key) -> Result<Next> {
        let Some(v) = cx.get::<VmSpec>(key.project.as_ref(), &key.name)? else { return Ok(Next::Done) };
        if v.is_wanted() || !v.has_finalizer(DISK_FINALIZER) || v.has_finalizer(VM_FINALIZER) {
            return Ok(Next::Done);
        }
        let mut tx = cx.begin();
        tx.update(&v, |v| v.meta.finalizers.retain(|f| f != DISK_FINALIZER)).await?;
        tx.commit().await.map(|_| Next::Done)
    }
}

fn harness() -> Harness {
    Harness::new(photon_api::registry()).with(|| VmController).with(|| Ports).with(|| Agent).with(|| Disks)
}

fn name(s: &str) -> Name {
    s.parse().expect("name")
}

async fn image(s: &Store, phase: &str) {
    let draft = Draft::new(name("tiny"), &json!({"format": "kernel"})).status(&json!({"phase": phase}));
    s.create("image", draft).await.expect("image");
}

async fn host(s: &Store, memory: &str) {
    let status = json!({"phase": "ready", "cpus": 2, "memory": memory});
    s.create("host", Draft::new(name("h1"), &json!({})).status(&status)).await.expect("host");
}

async fn world(s: &Store) {
    s.make("project", "p", &json!({})).await.expect("project");
    s.make("network", "p/n", &json!({"cidr": "10.0.0.0/24"})).await.expect("network");
    image(s, "ready").await;
    host(s, "8GiB").await;
}

fn spec() -> Value {
    json!({"image": "tiny", "networks": [{"network": "n"}]})
}

async fn change(s: &Store, f: impl FnOnce(&mut Object<VmSpec>)) {
    let vm = s.get::<VmSpec>(Some(&name("p")), &name("a")).await.expect("get").expect("there");
    let mut tx = s.begin();
    tx.update(&vm, f).await.expect("update");
    tx.commit().await.expect("commit");
}

async fn vm(s: &Store) -> Object<VmSpec> {
    s.get::<VmSpec>(Some(&name("p")), &name("a")).await.expect("get").expect("there")
}

#[tokio::test]
async fn a_vm_comes_to_life() {
    let s = harness()
        .run(&|s| {
            Box::pin(async move {
                world(&s).await;
                s.make("vm", "p/a", &spec()).await.expect("vm");
            })
        })
        .await
        .expect("settles");
    let v = vm(&s).await;
    assert_eq!((v.status.phase, v.status.epoch, v.status.addresses.len()), (Phase::Running, 1, 1));
    assert_eq!(v.status.host, Some(name("h1")));
    assert_eq!(v.status.observed_generation, v.meta.generation);
    let i = s.get::<IncarnationSpec>(Some(&name("p")), &name("a")).await.expect("get").expect("there");
    assert_eq!(i.meta.owner.map(|o| o.id), Some(v.meta.id));
}

#[tokio::test]
async fn what_is_missing_is_said() {
    for (break_it, reason) in [("host", "NoHost"), ("image", "ImageNotReady"), ("memory", "NoHost")] {
        let s = harness()
            .run(&move |s| {
                Box::pin(async move {
                    s.make("project", "p", &json!({})).await.expect("project");
                    image(&s, if break_it == "image" { "pending" } else { "ready" }).await;
                    if break_it != "host" {
                        host(&s, "1GiB").await;
                    }
                    let big = if break_it == "memory" { "4GiB" } else { "64MiB" };
                    s.make("vm", "p/a", &json!({"image": "tiny", "memory": big})).await.expect("vm");
                })
            })
            .await
            .expect("settles");
        let v = vm(&s).await;
        assert_eq!(
            (v.status.phase, v.status.conditions[0].reason.as_str()),
            (Phase::Pending, reason),
            "{break_it}"
        );
        assert!(!v.status.conditions[0].message.is_empty());
    }
}

#[tokio::test]
async fn crashes_during_creation_and_removal_leave_no_trace() {
    let created = harness()
        .crash_everywhere(&|s| {
            Box::pin(async move {
                world(&s).await;
                s.make("vm", "p/a", &spec()).await.expect("vm");
            })
        })
        .await
        .expect("same end state");
    let removed = harness()
        .crash_everywhere(&|s| {
            Box::pin(async move {
                let kv = s.kv().clone();
                let s = Store::new(kv, s.registry().clone());
                world(&s).await;
                s.make("vm", "p/a", &spec()).await.expect("vm");
                let v = vm(&s).await;
                let mut tx = s.begin();
                let port =
                    PortSpec { network: name("n"), address: None, hostname: None, host: Some(name("h1")) };
                tx.create_child(&v, port_name(&name("a"), 0).expect("name"), &port).await.expect("port");
                tx.commit().await.expect("commit");
                change(&s, |v| v.meta.deleting = Some(wall())).await;
            })
        })
        .await
        .expect("same end state");
    assert!(created >= 8 && removed >= 6, "{created} {removed}");
}

async fn trail(s: &Store) -> Vec<AuditRecord> {
    let all = photon_kv::Range::prefix(AUDIT_PREFIX);
    let page = s.kv().scan(all, photon_kv::ReadAt::Latest, 1000, photon_kv::Direction::Forward).await;
    let page = page.expect("scan");
    assert!(!page.more);
    page.items.iter().map(|v| serde_json::from_slice(&v.value).expect("record")).collect()
}

/// Every object and every generation of it has its record.
async fn audited(s: &Store) {
    let trail = trail(s).await;
    let mut seen = 0;
    for kind in s.registry().kinds() {
        for o in s.list(kind, &Default::default()).await.expect("list").items {
            let of = |verb: &str| {
                let action = format!("{}.{verb}", kind.kind);
                trail.iter().filter(|r| r.object == o.meta.id && r.action == action).count() as u64
            };
            // An incarnation made again has the identity of the one before, whose records count too.
            let (lives, changes) = (of("create"), of("update") + of("delete"));
            let once = lives == 1 && changes == o.meta.generation - 1;
            assert!(once || lives > 1 && o.meta.owner.is_some(), "{lives} {changes} {o:?}");
            seen += 1;
        }
    }
    let made = trail.iter().filter(|r| r.action.ends_with(".create")).count();
    let gone = trail.iter().filter(|r| r.action.ends_with(".delete")).count();
    assert_eq!(made - gone, seen, "what is gone was asked to go: {trail:?}");
}

#[tokio::test]
async fn whatever_happens_to_a_vm_every_wish_and_its_change_is_audited() {
    let mut s = running().await;
    audited(&s).await;
    let acts: [(&str, &[&str]); 4] = [
        ("stop", &["incarnation.delete service/plasmavmc-vm", "incarnation.update service/plasmavmc-vm"]),
        ("start", &["incarnation.create service/plasmavmc-vm"]),
        ("shutdown", &["incarnation.delete service/plasmavmc-vm", "vm.update service/plasmavmc-vm"]),
        ("delete", &["port.delete service/plasmavmc-vm"]),
    ];
    for (act, expected) in acts {
        let before = trail(&s).await.len();
        s = then(s, async |s| match act {
            "stop" => change(s, |v| v.spec.power = Power::Stopped).await,
            "start" => change(s, |v| v.spec.power = Power::Running).await,
            "shutdown" => end(s, true).await,
            _ => change(s, |v| v.meta.deleting = Some(wall())).await,
        })
        .await;
        audited(&s).await;
        let new = trail(&s).await.split_off(before);
        let own = new.iter().filter(|r| r.who != "service/photon");
        let mut own: Vec<String> = own.map(|r| format!("{} {}", r.action, r.who)).collect();
        own.sort_unstable();
        assert_eq!(own, expected, "{act}");
    }
    assert!(s.list_all::<VmSpec>(None).await.expect("list").is_empty());
}

/// Runs to rest, changes something, runs to rest again.
async fn then(first: Store, f: impl AsyncFnOnce(&Store)) -> Store {
    f(&first).await;
    let kv = first.kv().clone();
    let store = Store::new(kv, first.registry().clone());
    for _ in 0..40 {
        let view = photon_reconcile::View::default();
        for storage_kind in ["vm", "port", "incarnation"] {
            let (tx, _rx) = tokio::sync::mpsc::unbounded_channel();
            photon_reconcile::Feed::new(store.clone(), view.clone(), tx).fill().await.expect("fill");
            for (storage, _) in view.list(&format!("{}{storage_kind}/", photon_resource::RESOURCE_PREFIX)) {
                let (_, project, n) = photon_resource::parse_key(storage.as_bytes()).expect("key");
                let cx = |by| Context::new(view.clone(), store.acting_as(by));
                let _ = match storage_kind {
                    "vm" => {
                        let _ = Disks
                            .reconcile(&cx("test-disks"), &Key::new(VmSpec::KIND, project.clone(), n.clone()))
                            .await;
                        let by = VmController.name();
                        VmController.reconcile(&cx(by), &Key::new(VmSpec::KIND, project, n)).await
                    }
                    "port" => Ports.reconcile(&cx("test-ports"), &Key::new(PortSpec::KIND, project, n)).await,
                    _ => {
                        Agent.reconcile(&cx("test-agent"), &Key::new(IncarnationSpec::KIND, project, n)).await
                    }
                }; // races are solved by the next round
            }
        }
    }
    store
}

async fn running() -> Store {
    harness()
        .run(&|s| {
            Box::pin(async move {
                world(&s).await;
                s.make("vm", "p/a", &spec()).await.expect("vm");
            })
        })
        .await
        .expect("settles")
}

#[tokio::test]
async fn stop_and_start_make_a_new_incarnation_with_a_greater_epoch() {
    let s = then(running().await, async |s| change(s, |v| v.spec.power = Power::Stopped).await).await;
    let v = vm(&s).await;
    assert_eq!((v.status.phase, v.status.observed_generation), (Phase::Stopped, v.meta.generation));
    assert!(s.get::<IncarnationSpec>(Some(&name("p")), &name("a")).await.expect("get").is_none());
    let s = then(s, async |s| change(s, |v| v.spec.power = Power::Running).await).await;
    let v = vm(&s).await;
    assert_eq!((v.status.phase, v.status.epoch), (Phase::Running, 2));
}

async fn end(s: &Store, guest_shutdown: bool) {
    let i = s.get::<IncarnationSpec>(Some(&name("p")), &name("a")).await.expect("get").expect("there");
    let mut tx = s.begin();
    tx.update(&i, |i| {
        (i.status.ended, i.status.guest_shutdown, i.status.phase) = (true, guest_shutdown, Phase::Stopped);
    })
    .await
    .expect("update");
    tx.commit().await.expect("commit");
}

#[tokio::test]
async fn a_guest_that_shuts_down_stays_off_and_one_that_dies_comes_back() {
    let s = then(running().await, async |s| end(s, true).await).await;
    let v = vm(&s).await;
    assert_eq!((v.status.phase, v.spec.power), (Phase::Stopped, Power::Stopped));
    let stopped = |r: &AuditRecord| r.changes.iter().any(|c| c.field == "spec.power");
    let trail = trail(&s).await;
    let by: Vec<&AuditRecord> = trail.iter().filter(|r| stopped(r)).collect();
    let said: Vec<_> = by.iter().map(|r| (&*r.who, &*r.action, &*r.because, r.object)).collect();
    let why = "the guest shut itself down";
    assert_eq!(said, [("service/plasmavmc-vm", "vm.update", why, v.meta.id)]);
    let s = then(running().await, async |s| end(s, false).await).await;
    let v = vm(&s).await;
    assert_eq!((v.status.restarts, v.spec.power), (1, Power::Running));
    assert!(matches!(v.status.phase, Phase::Pending | Phase::Running), "waits its pause or runs again");
}

#[tokio::test]
async fn deletion_leaves_only_what_was_there_before() {
    let s = then(running().await, async |s| change(s, |v| v.meta.deleting = Some(wall())).await).await;
    assert!(s.get::<VmSpec>(Some(&name("p")), &name("a")).await.expect("get").is_none());
    assert!(s.list_all::<PortSpec>(None).await.expect("list").is_empty());
    assert!(s.list_all::<IncarnationSpec>(None).await.expect("list").is_empty());
}

#[test]
fn child_names_fit_and_differ() {
    let long = |c: char| name(&format!("{}{c}", "x".repeat(62)));
    let (a, b) =
        (child_name(&long('a'), "nic0").expect("name"), child_name(&long('b'), "nic0").expect("name"));
    assert_ne!(a, b);
    assert_eq!(child_name(&name("a"), "nic0").expect("name").as_str(), "a-nic0");
}

/// A VM that ran on a host of which there is no record any more, and nobody who acts for it.
async fn orphan(s: &Store, format: &str, deleting: bool) {
    s.make("project", "p", &json!({})).await.expect("project");
    s.make("network", "p/n", &json!({"cidr": "10.0.0.0/24"})).await.expect("network");
    let draft = Draft::new(name("tiny"), &json!({ "format": format })).status(&json!({"phase": "ready"}));
    s.create("image", draft).await.expect("image");
    let status = json!({"phase": "running", "host": "h1", "epoch": 3});
    let draft = Draft::new(name("a"), &spec()).project(Some(name("p"))).status(&status);
    s.create("vm", draft).await.expect("vm");
    let v = vm(s).await;
    let mut tx = s.begin();
    let port = PortSpec { network: name("n"), address: None, hostname: None, host: Some(name("h1")) };
    tx.create_child(&v, port_name(&name("a"), 0).expect("name"), &port).await.expect("port");
    tx.commit().await.expect("commit");
    let ports = [port_name(&name("a"), 0).expect("name")];
    let incarnation = json!({
        "vm": v.meta.id, "host": "h1", "epoch": 3, "image": "tiny", "cpus": 1, "memory": "64MiB", "ports": ports
    });
    let incarnation: IncarnationSpec = serde_json::from_value(incarnation).expect("spec");
    let mut tx = s.begin();
    tx.create_child(&v, name("a"), &incarnation).await.expect("incarnation");
    tx.commit().await.expect("commit");
    if deleting {
        change(s, |v| v.meta.deleting = Some(wall())).await;
    }
}

#[tokio::test]
async fn a_vm_outlives_its_host_only_without_a_disk_and_can_be_deleted_always() {
    let harness = || Harness::new(photon_api::registry()).with(|| VmController).with(|| Ports);
    for format in ["kernel", "raw"] {
        let left = harness().run(&move |s| Box::pin(async move { orphan(&s, format, false).await })).await;
        let left = left.expect("settles");
        let v = vm(&left).await;
        assert!(
            left.list_all::<IncarnationSpec>(None).await.expect("list").is_empty(),
            "nobody would clean it up"
        );
        match format {
            "kernel" => {
                assert_eq!((v.status.phase, v.status.host, v.status.epoch), (Phase::Pending, None, 3))
            }
            _ => assert_eq!((v.status.phase, v.status.host), (Phase::Failed, Some(name("h1")))),
        }
        let end = harness().run(&move |s| Box::pin(async move { orphan(&s, format, true).await })).await;
        let end = end.expect("settles");
        assert!(end.list_all::<VmSpec>(None).await.expect("list").is_empty(), "{format}");
        assert!(end.list_all::<PortSpec>(None).await.expect("list").is_empty(), "{format}");
    }
}
