//! Contenders on a store that answers late, not at all, or after the deed: never two holders, never a
//! write by a deposed one, never a lease that stays free.

use super::*;
use async_trait::async_trait;
use photon_kv::{Committed, KvResult, MemKv, Page, Watch};
use photon_rt::entropy::Rng;
use std::sync::Mutex;

fn name(s: &str) -> Name {
    s.parse().expect("a name")
}

/// The way from one contender to the store.
struct Line {
    kv: MemKv,
    state: Mutex<(Rng, Instant)>,
    /// In 1/100: how often a call is lost, is late, and how often the line then stays down for a while.
    loss: u64,
    late: u64,
    down: u64,
}

impl Line {
    fn new(kv: &MemKv, seed: u64, [loss, late, down]: [u64; 3]) -> Arc<Line> {
        Arc::new(Line { kv: kv.clone(), state: Mutex::new((Rng::new(seed), now())), loss, late, down })
    }

    /// One way.
    async fn hop(&self) -> KvResult<()> {
        let (lost, ms) = {
            let (rng, down_until) = &mut *self.state.lock().expect("not poisoned");
            let mut roll = |percent| rng.next_u64() % 100 < percent;
            let (lost, late, down) = (roll(self.loss), roll(self.late), roll(self.down));
            let ms = if late { rng.next_u64() % 5_000 } else { 1 };
            let lost = lost || now() < *down_until;
            if down && !lost {
                *down_until = now() + Duration::from_millis(rng.next_u64() % 20_000);
            }
            (lost, ms)
        };
        sleep(Duration::from_millis(ms)).await;
        if lost { Err(KvError::Unavailable("lost".into())) } else { Ok(()) }
    }
}

#[async_trait]
impl Kv for Line {
    async fn get(&self, key: &[u8], at: ReadAt) -> KvResult<Option<Versioned>> {
        self.kv.get(key, at).await
    }
    async fn scan(&self, range: Range, at: ReadAt, limit: u32, d: Direction) -> KvResult<Page> {
        self.hop().await?;
        let page = self.kv.scan(range, at, limit, d).await;
        self.hop().await?;
        page
    }
    async fn commit(&self, checks: Vec<Check>, writes: Vec<Write>) -> KvResult<Committed> {
        self.hop().await?;
        let done = self.kv.commit(checks, writes).await;
        self.hop().await?;
        done
    }
    fn watch(&self, range: Range, from: Revision) -> Watch {
        self.kv.watch(range, from)
    }
}

async fn until(what: &str, f: impl Fn() -> bool) {
    let wait = async {
        while !f() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(600), what, wait).await.expect("in time");
}

/// Ten minutes of three contenders on bad lines. What went wrong, if anything did.
async fn ten_minutes(seed: u64, bug: Option<Bug>) -> Result<(), String> {
    let kv = MemKv::new();
    let tasks = Tasks::new();
    let weather = [[0, 0, 0], [10, 10, 5], [5, 40, 10], [30, 20, 2]][seed as usize % 4];
    let leases: Vec<Lease> = (0..3)
        .map(|i| {
            let line = Line::new(&kv, seed * 10 + i, weather);
            Lease::run(line, Contender { bug, ..Contender::new("l", name(&format!("n{i}"))) }, &tasks)
        })
        .collect();
    let mut last = 0;
    for _ in 0..6_000 {
        sleep(Duration::from_millis(100)).await;
        let held: Vec<Held> = leases.iter().filter_map(Lease::held).collect();
        if held.len() > 1 {
            return Err(format!("seed {seed}: two holders: {held:?}"));
        }
        if let Some(h) = held.first() {
            if h.epoch < last {
                return Err(format!("seed {seed}: epoch {} after {last}", h.epoch));
            }
            last = h.epoch;
        }
    }
    tasks.shutdown().await;
    if last > 0 { Ok(()) } else { Err(format!("seed {seed}: nobody ever held it")) }
}

#[tokio::test(start_paused = true)]
async fn never_two_holders_and_always_one_in_the_end() {
    for seed in 0..48 {
        ten_minutes(seed, None).await.expect("one holder");
    }
}

#[tokio::test(start_paused = true)]
async fn the_planted_bugs_are_caught() {
    for bug in [Bug::CountsFromTheAnswer, Bug::MissesTheBeat, Bug::Impatient, Bug::TrustsSilence] {
        let mut caught = false;
        for seed in 0..48 {
            caught |= !caught && ten_minutes(seed, Some(bug)).await.is_err();
        }
        assert!(caught, "{bug:?} was not noticed");
    }
}

#[tokio::test(start_paused = true)]
async fn a_deposed_holder_can_write_nothing() {
    let kv = MemKv::new();
    let (first, second) = (Tasks::new(), Tasks::new());
    let cut = Line::new(&kv, 1, [0, 0, 0]);
    let a = Lease::start(cut.clone(), "l", name("a"), &first);
    until("a to hold", || a.held().is_some()).await;
    let old = a.held().expect("held");
    // As if the process had been killed: nothing is given up.
    kv.commit(vec![old.fence()], vec![Write::Put("x".into(), "1".into())]).await.expect("the holder may");
    let beat = Bytes::from(format!("{ROOT}lease/l/beat"));
    let frozen = kv.get(&beat, ReadAt::Latest).await.expect("get").expect("there").modified;
    let dead = Seen { record: Record { holder: Some(name("a")), epoch: 1 }, taken: old.taken, beat: frozen };
    let mut c = Contender::new("l", name("b"));
    let t = now();
    assert_eq!(c.decide(Some(&dead), t), Step::Wait);
    assert_eq!(c.decide(Some(&dead), t + TTL - Duration::from_millis(1)), Step::Wait);
    assert_eq!(c.decide(Some(&Seen { beat: frozen + 1, ..dead.clone() }), t + TTL), Step::Wait);
    assert_eq!(c.decide(Some(&Seen { beat: frozen + 1, ..dead.clone() }), t + TTL + TTL), Step::Take(2));
    drop(first); // cancels a, which gives up
    let b = Lease::start(cut, "l", name("b"), &second);
    until("b to hold", || b.held().is_some()).await;
    assert_eq!(b.held().expect("held").epoch, 2);
    let late = kv.commit(vec![old.fence()], vec![Write::Put("x".into(), "2".into())]).await;
    assert_eq!(late, Err(KvError::CheckFailed(0)));
    second.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn its_own_successor_and_the_heir_of_a_clean_end_need_not_wait() {
    let kv = MemKv::new();
    let kv: Arc<dyn Kv> = Arc::new(kv);
    let held = watch::Sender::new(None);
    Contender::new("l", name("a")).turn(&*kv, &held).await;
    assert_eq!(held.borrow().as_ref().map(|h| h.epoch), Some(1));
    // Killed and started again.
    let (again, begun) = (Tasks::new(), now());
    let a = Lease::start(kv.clone(), "l", name("a"), &again);
    until("a again", || a.held().is_some()).await;
    assert_eq!(a.held().expect("held").epoch, 2);
    again.shutdown().await;
    let next = Tasks::new();
    let b = Lease::start(kv, "l", name("b"), &next);
    until("b", || b.held().is_some()).await;
    assert_eq!(b.held().expect("held").epoch, 3);
    assert!(now() - begun < BEAT, "{:?}", now() - begun);
    next.shutdown().await;
}
