use crate::journal::Journal;
use bytes::Bytes;
use photon_raft::{
    GroupId, NoTransport, NodeId, Position, ProposeError, Role, Store, StoreConfig, StoreError,
};
use photon_rt::disk::{Disk, RealDisk, SimDisk};
use std::sync::Arc;

const ME: NodeId = NodeId(1);

fn open(disk: &Arc<dyn Disk>) -> Store {
    Store::open(StoreConfig::new(ME), disk.clone(), NoTransport).expect("open")
}

#[tokio::test]
async fn one_node_on_a_real_disk_keeps_what_it_acknowledged() {
    let dir = tempfile::tempdir().expect("dir");
    let disk: Arc<dyn Disk> = Arc::new(RealDisk::open(dir.path()).expect("disk"));
    let mut machine = Journal::default();
    let mut expected = 0;
    for round in 0..3 {
        let store = open(&disk);
        let group = store.create_group(GroupId(7), &[ME], machine.clone()).await.expect("group");
        assert_eq!(group.status().role, Role::Leader, "a group of one leads at once");
        group.read_index().await.expect("read");
        assert_eq!(machine.commands().len(), expected, "the log was replayed before the read returned");
        let mut answers = Vec::new();
        for i in 0..50 {
            let group = group.clone();
            let command = Bytes::from(format!("{round}-{i}"));
            answers.push(async move { group.propose(command).await });
        }
        let mut numbers: Vec<usize> =
            futures::future::join_all(answers).await.into_iter().map(|r| r.expect("done")).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, (expected + 1..=expected + 50).collect::<Vec<_>>());
        assert_eq!(group.propose(Bytes::new()).await.expect("an empty command is one"), expected + 51);
        expected += 51;
        group.read_index().await.expect("read");
        match round {
            0 => store.shutdown().await,
            _ => drop(store),
        }
        let error = group.propose(Bytes::from_static(b"late")).await.expect_err("stopped");
        assert!(matches!(error, ProposeError::Stopped(_)), "{error}");
        // The dropped store's threads end by themselves; the crashed machine loses its tail.
        photon_rt::time::sleep(std::time::Duration::from_millis(50)).await;
        machine = machine.after_crash();
    }
}

fn simulated() -> (SimDisk, Arc<dyn Disk>) {
    let disk = SimDisk::new(1);
    (disk.clone(), Arc::new(disk))
}

fn command(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

#[tokio::test]
async fn a_machine_that_fails_stops_its_group_and_no_other() {
    for how in ["panic", "error"] {
        let (_, disk) = simulated();
        let store = open(&disk);
        let bad = store.create_group(GroupId(1), &[ME], Journal::default()).await.expect("group");
        let good = store.create_group(GroupId(2), &[ME], Journal::default()).await.expect("group");
        bad.propose(command("fine")).await.expect("done");
        let error = bad.propose(command(how)).await.expect_err("poison");
        assert!(matches!(&error, ProposeError::Stopped(why) if why.contains("asked for")), "{error}");
        assert!(matches!(bad.propose(command("fine")).await, Err(ProposeError::Stopped(_))), "for good");
        assert!(matches!(bad.read_index().await, Err(ProposeError::Stopped(_))));
        assert_eq!(good.propose(command("fine")).await, Ok(1));
        assert_eq!(store.stopped(), None);
    }
}

#[tokio::test]
async fn a_failed_sync_stops_the_store() {
    let (sim, disk) = simulated();
    let store = open(&disk);
    let group = store.create_group(GroupId(1), &[ME], Journal::default()).await.expect("group");
    group.propose(command("a")).await.expect("done");
    sim.fail_syncs(1);
    let error = group.propose(command("b")).await.expect_err("the sync failed");
    assert!(matches!(&error, ProposeError::Stopped(why) if why.contains("sync")), "{error}");
    let why = store.ended().await;
    assert!(why.contains("simulated sync failed"), "{why}");
    assert!(matches!(group.propose(command("c")).await, Err(ProposeError::Stopped(_))));
    sim.power_loss();
    let machine = Journal::default();
    let store = open(&disk);
    let group = store.create_group(GroupId(1), &[ME], machine.clone()).await.expect("group");
    group.read_index().await.expect("read");
    assert_eq!(machine.commands(), [command("a")]);
}

#[tokio::test]
async fn what_is_too_much_is_refused_at_once() {
    let (_, disk) = simulated();
    let config = StoreConfig { inflight_bytes: 1000, ..StoreConfig::new(ME) };
    let store = Store::open(config, disk, NoTransport).expect("open");
    let group = store.create_group(GroupId(1), &[ME], Journal::default()).await.expect("group");
    assert!(matches!(group.propose(Bytes::from(vec![0; 1000])).await, Err(ProposeError::Overloaded)));
    let huge = Bytes::from(vec![0; (32 << 20) + 1]);
    assert!(matches!(group.propose(huge).await, Err(ProposeError::TooLarge { .. })));
    for _ in 0..20 {
        group.propose(Bytes::from(vec![0; 500])).await.expect("what was answered no longer counts");
    }
}

#[tokio::test]
async fn a_machine_that_is_not_of_this_log_is_refused() {
    let (_, disk) = simulated();
    let machine = Journal::default();
    let store = open(&disk);
    let group = store.create_group(GroupId(1), &[ME], machine.clone()).await.expect("group");
    let again = store.create_group(GroupId(1), &[ME], Journal::default()).await;
    assert!(matches!(again, Err(StoreError::Invalid(_))), "attached twice");
    for members in [&[NodeId(0), ME][..], &[NodeId(2)]] {
        let refused = store.create_group(GroupId(9), members, Journal::default()).await;
        assert!(matches!(refused, Err(StoreError::Invalid(_))), "{members:?}");
    }
    group.propose(command("a")).await.expect("done");
    drop(store);
    store_ended(&group).await;
    machine.set_position(Position { index: 7, term: 1 });
    let ahead = open(&disk).create_group(GroupId(1), &[ME], machine.clone()).await;
    assert!(matches!(&ahead, Err(StoreError::Damaged(_))), "ahead of its log");
    machine.set_position(Position { index: 1, term: 7 });
    let other = open(&disk).create_group(GroupId(1), &[ME], machine).await;
    assert!(matches!(&other, Err(StoreError::Damaged(_))), "of another log");
}

async fn store_ended(group: &photon_raft::Group<Journal>) {
    while !matches!(group.read_index().await, Err(ProposeError::Stopped(_))) {}
}

#[tokio::test]
async fn the_log_is_purged_behind_checkpoints() {
    let (sim, disk) = simulated();
    let mut config = StoreConfig::new(ME);
    config.log.segment_bytes = 16 << 10;
    config.core.checkpoint_bytes = 16 << 10;
    let machine = Journal::default();
    let store = Store::open(config.clone(), disk.clone(), NoTransport).expect("open");
    let group = store.create_group(GroupId(1), &[ME], machine.clone()).await.expect("group");
    let idle = store.create_group(GroupId(2), &[ME], Journal::default()).await.expect("group");
    for i in 0..400 {
        group.propose(Bytes::from(vec![i as u8; 500])).await.expect("done");
    }
    store.shutdown().await;
    assert!(sim.used() < 100 << 10, "{} bytes are kept of 200 KiB", sim.used());
    assert!(matches!(idle.propose(command("late")).await, Err(ProposeError::Stopped(_))));
    // A machine that lost more than its checkpoint promised is noticed.
    let store = Store::open(config, disk, NoTransport).expect("open");
    let empty = store.create_group(GroupId(1), &[ME], Journal::default()).await;
    assert!(matches!(&empty, Err(StoreError::Damaged(_))));
    let group = store.create_group(GroupId(1), &[ME], machine.after_crash()).await.expect("group");
    assert_eq!(group.propose(command("on")).await, Ok(401));
}
