//! Three stores with real threads in one process.

use crate::journal::Journal;
use bytes::Bytes;
use photon_raft::{
    Change, Group, GroupId, NodeId, ProposeError, Role, Store, StoreConfig, Transport,
    snapshot::{Next, Outcome, Refusal, Shipment},
};
use photon_rt::{disk::SimDisk, time::Duration};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, Weak},
};

/// Delivers at once, into whoever is up.
type Wires = Arc<Mutex<HashMap<NodeId, Weak<Store>>>>;

struct Wire(NodeId, Wires);

impl Transport for Wire {
    fn send(&mut self, to: NodeId, group: GroupId, message: Bytes) {
        let store = self.1.lock().unwrap().get(&to).and_then(Weak::upgrade);
        if let Some(store) = store {
            store.deliver(self.0, group, message.clone()).expect("our own messages decode");
            let forged = store.deliver(NodeId(self.0.0 + 1), group, message);
            forged.expect_err("nobody speaks for another");
        }
    }

    fn send_snapshot(&mut self, shipment: Shipment) {
        let store = self.1.lock().unwrap().get(&shipment.to).and_then(Weak::upgrade);
        let Some(store) = store else { return };
        let from = self.0;
        photon_rt::task::thread("carry", move || {
            let (group, file) = (shipment.group, shipment.file());
            let carry = || -> Result<(), Refusal> {
                let unannounced = store.deliver(from, group, shipment.message.clone());
                unannounced.expect_err("a snapshot comes with its pieces");
                let Next::From { id, mut at, size } =
                    store.announced(from, group, shipment.message.clone())?
                else {
                    return Ok(());
                };
                while at < size {
                    let bytes = file.read(at, 700)?;
                    at = store.piece(group, id, at, &bytes, crc_fast::crc32_iscsi(&bytes))?;
                }
                store.received(group, id)
            };
            let outcome = if carry().is_ok() { Outcome::Sent } else { Outcome::Broken };
            shipment.ended(outcome);
        })
        .expect("thread");
    }
}

struct Member {
    store: Arc<Store>,
    group: Group<Journal>,
    machine: Journal,
}

async fn start(id: u64, wires: &Wires, disk: &SimDisk, machine: Journal) -> Member {
    start_with(id, &[NodeId(1), NodeId(2), NodeId(3)], wires, disk, machine).await
}

async fn start_with(id: u64, founders: &[NodeId], wires: &Wires, disk: &SimDisk, machine: Journal) -> Member {
    start_slow(id, founders, wires, disk, machine, Duration::from_millis(10)).await
}

async fn start_slow(
    id: u64,
    founders: &[NodeId],
    wires: &Wires,
    disk: &SimDisk,
    machine: Journal,
    tick: Duration,
) -> Member {
    let mut config = StoreConfig::new(NodeId(id));
    config.tick = tick;
    config.log.segment_bytes = 64 << 10;
    config.core.checkpoint_bytes = 32 << 10;
    config.core.retain_entries = 20;
    let store =
        Arc::new(Store::open(config, Arc::new(disk.clone()), Wire(NodeId(id), wires.clone())).expect("open"));
    wires.lock().unwrap().insert(NodeId(id), Arc::downgrade(&store));
    let group = store.create_group(GroupId(1), founders, machine.clone()).await.expect("group");
    Member { store, group, machine }
}

async fn leader(members: &HashMap<u64, Member>) -> u64 {
    for _ in 0..1000 {
        if let Some((id, _)) = members.iter().find(|(_, m)| m.group.status().role == Role::Leader) {
            return *id;
        }
        photon_rt::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("nobody leads");
}

/// Proposes until somebody says that it is done.
async fn put(members: &HashMap<u64, Member>, text: String) {
    for _ in 0..200 {
        let id = leader(members).await;
        match members[&id].group.propose(Bytes::from(text.clone())).await {
            Ok(_) => return,
            Err(ProposeError::NotLeader { .. }) => photon_rt::time::sleep(Duration::from_millis(10)).await,
            Err(e) => panic!("{e}"),
        }
    }
    panic!("{text} was never taken");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_replicate_fail_over_and_catch_up() {
    let wires = Wires::default();
    let disks: Vec<SimDisk> = (0..3).map(SimDisk::new).collect();
    let mut members = HashMap::new();
    for id in 1..=3 {
        members.insert(id, start(id, &wires, &disks[id as usize - 1], Journal::default()).await);
    }
    for i in 0..50 {
        put(&members, format!("first {i}")).await;
    }
    // A follower's read sees everything acknowledged before.
    let first = leader(&members).await;
    for m in members.values() {
        m.group.read_index().await.expect("read");
        assert_eq!(m.machine.commands().len(), 50);
    }
    let follower = members.iter().find(|(id, _)| **id != first).expect("two follow").1;
    // A follower's command travels to the leader and comes back.
    follower.group.propose(Bytes::from_static(b"from a follower")).await.expect("forwarded");
    assert_eq!(follower.machine.commands().last().expect("some"), "from a follower");
    // Many at once, from many threads: none is taken for one that came before.
    let tasks = photon_rt::task::Tasks::new();
    let at_once: Vec<_> = (0..2_000)
        .map(|i| {
            let group = follower.group.clone();
            let text = Bytes::from(format!("at once {i}"));
            tasks.spawn("proposal", async move { group.propose(text).await })
        })
        .collect();
    for done in at_once {
        done.await.expect("no panic").expect("not cancelled").expect("forwarded");
    }
    // The leader dies; the others go on, far enough that it will need a snapshot.
    let dead = members.remove(&first).expect("it led");
    dead.store.shutdown().await;
    let machine = dead.machine.after_crash();
    drop(dead);
    for i in 0..400 {
        put(&members, format!("second {i} {}", "x".repeat(300))).await;
    }
    members.insert(first, start(first, &wires, &disks[first as usize - 1], machine).await);
    put(&members, "last".into()).await;
    for m in members.values() {
        m.group.read_index().await.expect("read");
        assert_eq!(m.machine.commands().len(), 2_452);
        assert_eq!(m.machine.commands().last().expect("some"), "last");
    }
    let start = members[&first].group.status().start.index;
    assert!(start > 50, "it came by a snapshot: its log begins after {start}");
    for m in members.values() {
        m.store.shutdown().await;
    }
}

async fn until(what: &str, f: impl Fn() -> bool) {
    let wait = async {
        while !f() {
            photon_rt::time::sleep(Duration::from_millis(5)).await;
        }
    };
    photon_rt::time::timeout(Duration::from_secs(30), what, wait).await.expect("in time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_node_grows_to_three_and_the_first_one_leaves() {
    let wires = Wires::default();
    let disks: Vec<SimDisk> = (0..3).map(SimDisk::new).collect();
    let mut members = HashMap::new();
    let one = [NodeId(1)];
    members.insert(1, start_with(1, &one, &wires, &disks[0], Journal::default()).await);
    for i in 0..50 {
        put(&members, format!("alone {i}")).await;
    }
    for id in 2..=3 {
        // A newcomer knows nobody; it gets the state and then the log.
        members.insert(id, start_with(id, &[], &wires, &disks[id as usize - 1], Journal::default()).await);
        let first = &members[&1].group;
        first.change(vec![Change::Learner(NodeId(id))]).await.expect("added");
        put(&members, format!("with {id}")).await;
        let end = first.status().commit;
        until("the learner to catch up", || {
            first.members().matched.get(&NodeId(id)).is_some_and(|m| *m >= end)
        })
        .await;
        assert!(first.members().learners.contains(&NodeId(id)));
        first.change(vec![Change::Voter(NodeId(id))]).await.expect("promoted");
        let newcomer = &members[&id];
        until("the newcomer to know it", || newcomer.group.members().voters.len() == id as usize).await;
        newcomer.group.read_index().await.expect("a read anywhere");
        assert_eq!(newcomer.machine.commands().len(), 50 + id as usize - 1);
    }
    let first = &members[&1].group;
    let refused = first.change(vec![Change::Remove(NodeId(1))]).await;
    assert!(matches!(refused, Err(ProposeError::Refused(_))), "{refused:?}");
    let refused = members[&2].group.change(vec![Change::Remove(NodeId(1))]).await;
    assert!(matches!(refused, Err(ProposeError::NotLeader { .. })), "{refused:?}");
    // It can't campaign before it has applied the change that made the third a voter.
    until("the second to know the third", || members[&2].group.members().voters.len() == 3).await;
    first.transfer(NodeId(2));
    until("the second to lead", || members[&2].group.status().role == Role::Leader).await;
    // Two at once, through a joint state that is left by itself.
    let second = &members[&2].group;
    let both = vec![Change::Remove(NodeId(1)), Change::Learner(NodeId(3))];
    until("nothing else to change", || !second.members().is_joint()).await;
    loop {
        // Until the new leader has applied something of its own term.
        match second.change(both.clone()).await {
            Err(ProposeError::Changing) => photon_rt::time::sleep(Duration::from_millis(5)).await,
            done => break done.expect("changed"),
        }
    }
    until("the joint state to be left", || {
        let m = second.members();
        !m.is_joint() && m.voters.len() == 1 && m.learners.len() == 1
    })
    .await;
    members.remove(&1).expect("there").store.shutdown().await;
    put(&members, "without the first".into()).await;
    // A group of one and its learner, after a restart of the one.
    let dead = members.remove(&2).expect("there");
    dead.store.shutdown().await;
    let machine = dead.machine.after_crash();
    drop(dead);
    members.insert(2, start_with(2, &[], &wires, &disks[1], machine).await);
    put(&members, "again".into()).await;
    let third = &members[&3];
    until("the learner to hear of it", || third.machine.commands().last().is_some_and(|c| c == "again"))
        .await;
    for m in members.values() {
        m.store.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_shut_down_hands_over_first() {
    let wires = Wires::default();
    let disks: Vec<SimDisk> = (0..3).map(SimDisk::new).collect();
    let founders = [NodeId(1), NodeId(2), NodeId(3)];
    // An election takes 4 s at least: nobody has to wait for one.
    let tick = Duration::from_millis(400);
    let mut members = HashMap::new();
    for id in 1..=3 {
        let machine = Journal::default();
        members.insert(id, start_slow(id, &founders, &wires, &disks[id as usize - 1], machine, tick).await);
    }
    put(&members, "before".into()).await;
    let first = leader(&members).await;
    let term = members[&first].group.status().term;
    let old = members.remove(&first).expect("it led");
    let begun = photon_rt::time::now();
    old.store.shutdown().await;
    until("somebody to lead", || members.values().any(|m| m.group.status().role == Role::Leader)).await;
    put(&members, "after".into()).await;
    let took = begun.elapsed();
    assert!(took < 5 * tick, "half an election timeout, not {took:?}");
    let second = leader(&members).await;
    assert_eq!(members[&second].group.status().term, term + 1, "one election, which it won");
    assert_eq!(members[&second].machine.commands(), ["before", "after"]);
    for m in members.values() {
        m.store.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_on_a_leader_need_nobody_while_its_lease_lasts() {
    let wires = Wires::default();
    let disks: Vec<SimDisk> = (0..3).map(SimDisk::new).collect();
    let founders = [NodeId(1), NodeId(2), NodeId(3)];
    let tick = Duration::from_millis(200);
    let mut members = HashMap::new();
    for id in 1..=3 {
        let machine = Journal::default();
        members.insert(id, start_slow(id, &founders, &wires, &disks[id as usize - 1], machine, tick).await);
    }
    put(&members, "a".into()).await;
    let first = leader(&members).await;
    let group = members[&first].group.clone();
    group.read_index().await.expect("read");
    // Nothing arrives anywhere any more: one that goes to the others is not answered.
    wires.lock().unwrap().clear();
    let many = async {
        for _ in 0..100 {
            group.read_index().await.expect("read");
        }
    };
    photon_rt::time::timeout(Duration::from_secs(10), "reads by the lease", many).await.expect("in time");
    for (id, m) in &members {
        wires.lock().unwrap().insert(NodeId(*id), Arc::downgrade(&m.store));
    }
    for m in members.values() {
        m.store.shutdown().await;
    }
}
