//! Tasks on a virtual clock, one at a time, in an order that a seed fixes.

use photon_rt::entropy::Rng;
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, Wake, Waker},
};

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Tasks of a group end together: a client with all that it began.
pub type Party = u64;

struct State {
    now_ms: u64,
    rng: Rng,
    next: u64,
    timers: BinaryHeap<Reverse<(u64, u64)>>,
    wakers: BTreeMap<u64, Waker>,
    fresh: Vec<(Party, Task)>,
    woken: Vec<u64>,
    killed: Vec<Party>,
}

/// A handle to it.
#[derive(Clone)]
pub struct Exec(Arc<Mutex<State>>);

struct Wakes(u64, Arc<Mutex<State>>);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.1.lock().expect("one thread").woken.push(self.0);
    }
}

impl Exec {
    pub fn new(seed: u64) -> Exec {
        Exec(Arc::new(Mutex::new(State {
            now_ms: 1_000_000,
            rng: Rng::new(seed),
            next: 1,
            timers: BinaryHeap::new(),
            wakers: BTreeMap::new(),
            fresh: Vec::new(),
            woken: Vec::new(),
            killed: Vec::new(),
        })))
    }

    fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut self.0.lock().expect("one thread"))
    }

    pub fn now_ms(&self) -> u64 {
        self.with(|s| s.now_ms)
    }

    pub fn draw(&self, n: u64) -> u64 {
        self.with(|s| s.rng.below(n))
    }

    pub fn percent(&self, p: u64) -> bool {
        self.draw(100) < p
    }

    pub fn spawn(&self, party: Party, task: impl Future<Output = ()> + Send + 'static) {
        self.with(|s| s.fresh.push((party, Box::pin(task))));
    }

    /// All tasks of a party end where they are.
    pub fn kill(&self, party: Party) {
        self.with(|s| s.killed.push(party));
    }

    pub async fn sleep(&self, ms: u64) {
        let mut timer = None;
        std::future::poll_fn(|cx| {
            self.with(|s| match timer {
                Some((at, id)) if s.now_ms >= at => {
                    s.wakers.remove(&id);
                    Poll::Ready(())
                }
                Some((_, id)) => {
                    s.wakers.insert(id, cx.waker().clone());
                    Poll::Pending
                }
                None => {
                    s.next += 1;
                    let (at, id) = (s.now_ms + ms, s.next);
                    timer = Some((at, id));
                    s.timers.push(Reverse((at, id)));
                    s.wakers.insert(id, cx.waker().clone());
                    Poll::Pending
                }
            })
        })
        .await;
    }

    /// Runs until nothing is left to do, or it is `until_ms`. True when nothing is left.
    pub fn run(&self, until_ms: u64) -> bool {
        let mut tasks: BTreeMap<u64, (Party, Task)> = BTreeMap::new();
        let mut number = 0;
        loop {
            let (mut woken, fresh, killed) = self.with(|s| {
                (std::mem::take(&mut s.woken), std::mem::take(&mut s.fresh), std::mem::take(&mut s.killed))
            });
            for (party, task) in fresh {
                number += 1;
                tasks.insert(number, (party, task));
                woken.push(number);
            }
            // Dropped outside of the lock: what they hold may wake others.
            let dead: Vec<u64> =
                tasks.iter().filter(|(_, t)| killed.contains(&t.0)).map(|(n, _)| *n).collect();
            for n in dead {
                drop(tasks.remove(&n));
            }
            if tasks.is_empty() && self.with(|s| s.fresh.is_empty()) {
                return true;
            }
            if woken.is_empty() {
                // The waker is called outside of the lock, which it takes.
                let due = self.with(|s| {
                    if !s.woken.is_empty() || !s.fresh.is_empty() || !s.killed.is_empty() {
                        return Some(None);
                    }
                    let Reverse((at, id)) = s.timers.pop()?;
                    s.now_ms = s.now_ms.max(at);
                    Some(s.wakers.remove(&id))
                });
                match due {
                    None => return tasks.is_empty(),
                    Some(waker) => waker.into_iter().for_each(Waker::wake),
                }
                if self.now_ms() > until_ms {
                    return false;
                }
                continue;
            }
            woken.sort_unstable();
            woken.dedup();
            for n in woken {
                let Some((_, task)) = tasks.get_mut(&n) else { continue };
                let waker = Waker::from(Arc::new(Wakes(n, self.0.clone())));
                if task.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
                    tasks.remove(&n);
                }
            }
        }
    }
}
