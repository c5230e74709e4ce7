//! Several nodes over one record, from a seed: clocks of different speed that also disagree, slow and lost
//! answers, nodes that do not hear each other, that end and begin anew. What they gave is one row, in real time.

use super::*;
use crate::{bug::PLANTED, sim::exec::Exec};
use std::{pin::Pin, sync::Arc};

/// A node that is asked by another one.
type Door = Arc<dyn Fn(u32) -> Pin<Box<dyn Future<Output = Outcome<Ts>> + Send>> + Send + Sync>;

const NODES: u64 = 3;
const TIME_MS: u64 = 40_000;

#[derive(Default)]
struct Shared {
    record: Option<(Record, u64)>,
    revision: u64,
    /// Who can be asked.
    doors: Vec<Option<Door>>,
    /// Nodes that are not heard until then.
    cut: Vec<u64>,
    /// When asked, when answered, the first, how many.
    given: Vec<(u64, u64, Ts, u32)>,
    /// When a timestamp was said to have been given, and which.
    admitted: Vec<(u64, Ts)>,
    epochs: u64,
}

#[derive(Clone)]
struct Sim {
    exec: Exec,
    shared: Arc<Mutex<Shared>>,
    node: u64,
    /// Speed of its clock in thousandths, and what its wall clock is wrong by.
    speed: u64,
    wrong: u64,
}

impl Sim {
    async fn travel(&self) {
        let ms = if self.exec.percent(5) { self.exec.draw(3_000) } else { self.exec.draw(20) };
        self.exec.sleep(ms).await;
    }

    fn lost(&self) -> Outcome<()> {
        if self.exec.percent(3) { Err(Refusal::Unknown("lost".into())) } else { Ok(()) }
    }

    fn hears(&self, other: u64) -> bool {
        let cut = &lock(&self.shared).cut;
        let now = self.exec.now_ms();
        cut[self.node as usize] < now && cut[other as usize] < now
    }
}

impl Outside for Sim {
    fn now(&self) -> Duration {
        Duration::from_millis(self.exec.now_ms() * self.speed / 1000)
    }

    fn wall_ms(&self) -> u64 {
        self.exec.now_ms() + self.wrong
    }

    async fn read(&self) -> Outcome<Option<(Record, u64)>> {
        self.travel().await;
        let found = lock(&self.shared).record;
        self.travel().await;
        self.lost().map(|()| found)
    }

    async fn swap(&self, swap: &Swap) -> Outcome<u64> {
        self.travel().await;
        self.lost()?;
        let revision = {
            let mut s = lock(&self.shared);
            if s.record.map(|r| r.1) != swap.expected {
                return Err(Refusal::Unknown("somebody was faster".into()));
            }
            s.revision += 1;
            s.epochs = s.epochs.max(swap.record.epoch);
            s.record = Some((swap.record, s.revision));
            s.revision
        };
        self.travel().await;
        self.lost().map(|()| revision)
    }

    async fn ask(&self, holder: u64, n: u32) -> Outcome<Ts> {
        self.travel().await;
        let there = lock(&self.shared).doors[holder as usize].clone();
        let Some(there) = there.filter(|_| self.hears(holder)) else {
            return Err(Refusal::Unreachable("away".into()));
        };
        let answer = there(n).await;
        self.travel().await;
        if !self.hears(holder) {
            return Err(Refusal::Unknown("cut".into()));
        }
        answer
    }

    async fn sleep(&self, d: Duration) {
        let ms = d.as_millis() as u64 * 1000 / self.speed + 1;
        self.exec.sleep(ms).await;
    }
}

fn begin(exec: &Exec, shared: &Arc<Mutex<Shared>>, node: u64) {
    let speed = 910 + exec.draw(181);
    let sim = Sim { exec: exec.clone(), shared: shared.clone(), node, speed, wrong: exec.draw(5_000) };
    let clock = Arc::new(Clock::new(node, sim));
    let asked = clock.clone();
    lock(shared).doors[node as usize] = Some(Arc::new(move |n| {
        let clock = asked.clone();
        Box::pin(async move { clock.for_other(n).await })
    }));
    let renewing = clock.clone();
    exec.spawn(node, async move {
        loop {
            renewing.renew().await;
        }
    });
    for _ in 0..2 {
        let (exec2, shared, clock) = (exec.clone(), shared.clone(), clock.clone());
        exec.spawn(node, async move {
            loop {
                let pause = if exec2.percent(5) { exec2.draw(4_000) } else { exec2.draw(100) };
                exec2.sleep(pause).await;
                let n = 1 + exec2.draw(5) as u32;
                let asked = exec2.now_ms();
                if let Ok(first) = clock.timestamps(n).await {
                    lock(&shared).given.push((asked, exec2.now_ms(), first, n));
                }
                // What was just given is admitted; what lies ahead is given only later, if ever.
                let newest = lock(&shared).given.iter().map(|g| g.2 + 2 * (u64::from(g.3) - 1)).max();
                if let Some(newest) = newest.filter(|_| exec2.percent(10)) {
                    let ahead = newest + 2 * exec2.draw(1_000);
                    if let Ok(Ok(())) = clock.admit(ahead).await {
                        lock(&shared).admitted.push((exec2.now_ms(), ahead));
                    }
                }
            }
        });
    }
}

/// How many were given and how often the holder changed, or what was wrong.
fn run(seed: u64, bug: Option<Bug>) -> Result<(usize, u64), String> {
    PLANTED.set(bug);
    let exec = Exec::new(seed);
    let shared = Arc::new(Mutex::new(Shared::default()));
    {
        let mut s = lock(&shared);
        s.doors.resize(NODES as usize + 1, None);
        s.cut.resize(NODES as usize + 1, 0);
    }
    (1..=NODES).for_each(|n| begin(&exec, &shared, n));
    let (exec2, shared2) = (exec.clone(), shared.clone());
    exec.spawn(0, async move {
        loop {
            exec2.sleep(exec2.draw(3_000)).await;
            let node = 1 + exec2.draw(NODES);
            if exec2.percent(60) {
                lock(&shared2).cut[node as usize] = exec2.now_ms() + exec2.draw(4_000);
            } else {
                exec2.kill(node);
                lock(&shared2).doors[node as usize] = None;
                exec2.sleep(1 + exec2.draw(2_000)).await;
                begin(&exec2, &shared2, node);
            }
        }
    });
    exec.run(1_000_000 + TIME_MS);
    PLANTED.set(None);
    let mut given = std::mem::take(&mut lock(&shared).given);
    let epochs = lock(&shared).epochs;
    // Breaks the circle of clocks and what they know.
    lock(&shared).doors.clear();
    let mut by_answer = given.clone();
    by_answer.sort_unstable_by_key(|g| g.1);
    given.sort_unstable_by_key(|g| g.0);
    let (mut newest, mut answered) = (0, by_answer.iter().peekable());
    for (asked, _, first, _) in &given {
        while let Some((_, _, f, n)) = answered.next_if(|g| g.1 < *asked) {
            newest = newest.max(f + 2 * (u64::from(*n) - 1));
        }
        if *first <= newest {
            return Err(format!("seed {seed}: asked at {asked}, {first} is not behind {newest}"));
        }
    }
    // Whoever is asked later than a timestamp was admitted gives greater ones.
    for (when, ts) in std::mem::take(&mut lock(&shared).admitted) {
        if let Some(g) = given.iter().find(|g| g.0 > when && g.2 <= ts) {
            return Err(format!("seed {seed}: {ts} was admitted at {when}, and {g:?} was given later"));
        }
    }
    given.sort_unstable_by_key(|g| g.2);
    match given.windows(2).find(|w| w[0].2 + 2 * u64::from(w[0].3) > w[1].2) {
        Some(w) => Err(format!("seed {seed}: given twice: {w:?}")),
        None => Ok((given.len(), epochs)),
    }
}

fn seeds() -> u64 {
    std::env::var("SIM_SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(150)
}

#[test]
fn several_nodes_give_one_row_of_timestamps() {
    let (mut given, mut epochs) = (0, 0);
    for seed in 0..seeds() {
        let (g, e) = run(seed, None).unwrap_or_else(|e| panic!("{e}"));
        given += g;
        epochs += e;
    }
    println!("{given} requests answered, {epochs} epochs");
    assert!(given as u64 > 100 * seeds() && epochs > 3 * seeds(), "{given} {epochs}");
}

fn caught(bug: Bug) {
    let found = (0..400).find_map(|seed| run(seed, Some(bug)).err());
    println!("{bug:?}: {}", found.unwrap_or_else(|| panic!("{bug:?} was not noticed")));
}

#[test]
fn catches_a_deposed_oracle_that_gives() {
    caught(Bug::DeposedGives);
}

#[test]
fn catches_a_record_taken_too_early() {
    caught(Bug::TakenTooEarly);
}

#[test]
fn catches_a_window_that_is_forgotten() {
    caught(Bug::WindowForgotten);
}

#[test]
fn catches_a_lease_that_begins_with_the_answer() {
    caught(Bug::LeaseFromAnswer);
}

#[test]
fn records_are_read_as_written_and_nothing_else_is() {
    let r = Record { holder: 3, epoch: 9, end: Ts::MAX };
    assert_eq!(Record::parse(r.to_string().as_bytes()), Ok(r));
    for wrong in
        ["", "1", "1 2", "1 2 3 4", "0 1 2", "1 0 2", "a b c", "1 2 -3", "1  2 3", "1 2 99999999999999999999"]
    {
        assert!(Record::parse(wrong.as_bytes()).is_err(), "{wrong}");
    }
    assert!(Record::parse(&[0xff; 9]).is_err());
}
