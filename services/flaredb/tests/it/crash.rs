//! The power goes at any write of the log, while transactions run and ranges change. The engine loses a
//! random suffix of what it had not synced. What was acknowledged is there, and nothing is half there.

use crate::node::{k, number};
use flaredb::{
    Node,
    client::{Abort, Options, Txn, World},
    key::{self, Mode, Span},
    model::SPACES,
};
use photon_kv::{Direction, engine::MemEngine};
use photon_rt::{
    disk::SimDisk,
    entropy::Rng,
    task::Tasks,
    time::{Duration, timeout},
};
use std::sync::{Arc, Mutex};

const KEYS: u64 = 12;

/// A counter on each of two keys at once; what is known of each pair.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    /// Acknowledged.
    least: u64,
    /// Perhaps done.
    most: u64,
}

async fn count(node: Node, pair: u64, known: Arc<Mutex<Vec<Known>>>) {
    let options = Options { async_commit: pair.is_multiple_of(2), ttl_ms: 200, ..Options::default() };
    loop {
        let Ok(mut t) = Txn::begin(node.clone(), options).await else { return };
        let (a, b) = (k(pair), k(KEYS - 1 - pair));
        let (Ok(x), Ok(y)) = (t.get(&a).await, t.get(&b).await) else { return };
        let next = number(x) + 1;
        assert_eq!(next, number(y) + 1, "a half of a transaction");
        t.put(a, next.to_be_bytes().to_vec()).expect("small");
        t.put(b, next.to_be_bytes().to_vec()).expect("small");
        let note = |f: fn(&mut Known, u64)| f(&mut known.lock().expect("known")[pair as usize], next);
        note(|k, n| k.most = k.most.max(n));
        match t.commit().await {
            Ok(_) => note(|k, n| k.least = k.least.max(n)),
            Err(Abort::RolledBack(_)) => {}
            Err(Abort::Unknown(_)) => return,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn power_losses_take_nothing_acknowledged() {
    let seed = std::env::var("CRASH_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(1);
    let rounds = std::env::var("CRASH_ROUNDS").ok().and_then(|s| s.parse().ok()).unwrap_or(15);
    let mut rng = Rng::new(seed);
    let disk = SimDisk::new(seed);
    let mut engine = MemEngine::new(SPACES.len());
    let known = Arc::new(Mutex::new(vec![Known::default(); (KEYS / 2) as usize]));
    let mut last = 0;
    for round in 0..rounds {
        let node = Node::start(Arc::new(disk.clone()), Arc::new(engine.clone()))
            .await
            .unwrap_or_else(|e| panic!("round {round}: it does not start: {e}"));
        let now = node.timestamp().await.expect("timestamp");
        assert!(now > last, "round {round}: time went back");
        let mut t = Txn::begin(node.clone(), Options::default()).await.expect("begin");
        let rows = t.scan(&Span::prefix(Mode::Txn, b"k"), Direction::Forward, 100).await;
        let rows =
            rows.unwrap_or_else(|e| panic!("round {round}: {e}: {:?} {:?}", node.regions(), node.stopped()));
        {
            let mut all = known.lock().expect("known");
            for pair in 0..KEYS / 2 {
                let value = |n| number(rows.iter().find(|r| r.key == k(n)).map(|r| r.value.clone()));
                let (x, y) = (value(pair), value(KEYS - 1 - pair));
                let range = all[pair as usize];
                assert_eq!(x, y, "round {round}: pair {pair} is torn");
                assert!(
                    x >= range.least && x <= range.most,
                    "round {round}: pair {pair} is {x}, not {range:?}"
                );
                // From here on this is what was acknowledged.
                all[pair as usize] = Known { least: x, most: x };
            }
        }
        // Every key belongs to one region.
        let mut regions = node.regions();
        regions.sort_by(|a, b| a.start.cmp(&b.start));
        assert!(regions[0].start.is_empty() && regions[regions.len() - 1].end.is_empty());
        assert!(regions.windows(2).all(|w| w[0].end == w[1].start), "round {round}: {regions:?}");

        let tasks = Tasks::new();
        for pair in 0..KEYS / 2 {
            tasks.spawn("counter", count(node.clone(), pair, known.clone()));
        }
        disk.cut_after(10 + rng.below(250));
        let ranges = async {
            loop {
                let regions = node.regions();
                let done = if rng.percent(50) && regions.len() > 1 {
                    node.merge(regions[1 + rng.below(regions.len() as u64 - 1) as usize].id).await.is_ok()
                } else {
                    node.split(key::border(&k(rng.below(KEYS))).expect("border")).await.is_ok()
                };
                if node.stopped().is_some() {
                    return;
                }
                if !done {
                    photon_rt::time::sleep(Duration::from_millis(1)).await;
                }
            }
        };
        let _ = timeout(Duration::from_secs(60), "the power loss", ranges).await;
        assert!(node.stopped().is_some(), "round {round}: the power did not go");
        last = node.timestamp().await.unwrap_or(last);
        tasks.shutdown().await;
        drop(node);
        disk.power_loss();
        let kept = rng.below(engine.pending() as u64 + 1) as usize;
        engine = engine.crash(kept);
    }
    let sum: u64 = known.lock().expect("known").iter().map(|k| k.least).sum();
    assert!(sum > rounds, "hardly anything was done: {sum}");
}
