//! Plays a scenario: a load, the script's steps, the checks.

use super::{
    load::{ANSWER_MAX, Load},
    members::{Members, Product},
    report::{Run, figures},
    scenarios::{Scenario, Step, Who},
};
use chainfire::wire::etcdserverpb::{
    cluster_client::ClusterClient, kv_client::KvClient, maintenance_client::MaintenanceClient, *,
};
use photon_lab::{cloud::photon_exe, history::Heard};
use std::{
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use tonic::{Status, transport::Channel};

/// Who plays which part, and what was noted.
struct Play {
    members: Members,
    leader: usize,
    followers: Vec<usize>,
    notes: Vec<String>,
    /// When a fault began and nothing said yet that it is over, and the times of those that are over.
    fault: Option<Instant>,
    faults: Vec<(Instant, Instant)>,
}

async fn put(channel: &Channel, key: &str) -> Option<Result<(), Status>> {
    let put = PutRequest { key: key.to_string().into(), value: vec![b'x'; 100].into(), ..Default::default() };
    let mut kv = KvClient::new(channel.clone());
    Some(tokio::time::timeout(Duration::from_secs(15), kv.put(put)).await.ok()?.map(drop))
}

pub async fn takes_writes(channel: &Channel) -> bool {
    matches!(put(channel, "x").await, Some(Ok(())))
}

/// The revision of what one member has.
async fn own_revision(channel: &Channel) -> Option<i64> {
    let get = RangeRequest { key: "k0".into(), serializable: true, ..Default::default() };
    let mut kv = KvClient::new(channel.clone());
    let r = tokio::time::timeout(ANSWER_MAX, kv.range(get)).await.ok()?.ok()?;
    Some(r.into_inner().header?.revision)
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut out = Vec::new();
    for e in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if e.path().is_dir() { out.extend(files(&e.path())) } else { out.push(e.path()) }
    }
    out
}

/// Flips a bit of every `step` bytes of what is used of each file.
fn flip(dir: &Path, what: &str) {
    let mut flipped = 0;
    for path in files(dir).into_iter().filter(|p| p.to_string_lossy().contains(what)) {
        let bytes = std::fs::read(&path).expect("read");
        let used = bytes.chunks(64).rposition(|c| c.iter().any(|b| *b != 0)).map_or(0, |i| i * 64);
        let file = std::fs::File::options().write(true).open(&path).expect("open");
        for at in (used.min(64) / 2..used).step_by(4_000) {
            file.write_all_at(&[bytes[at] ^ 16], at as u64).expect("flip");
            flipped += 1;
        }
    }
    assert!(flipped > 0, "nothing of {what} is there");
}

impl Play {
    fn hosts(&self, who: Who) -> Vec<usize> {
        match who {
            Who::Leader => vec![self.leader],
            Who::Follower => vec![self.followers[0]],
            Who::Second => vec![self.followers[1]],
            Who::All => (0..self.members.channels.len()).filter(|h| self.is_member(*h)).collect(),
            Who::Host(h) => vec![h],
        }
    }

    fn is_member(&self, host: usize) -> bool {
        host == self.leader || self.followers.contains(&host)
    }

    async fn look(&mut self) {
        let mut leader = None;
        self.members
            .until("an election", async |m| {
                leader = m.leader().await;
                leader.is_some()
            })
            .await;
        let leader = leader.expect("just found");
        let mut all: Vec<usize> = self.followers.iter().copied().chain([self.leader]).collect();
        all.sort_unstable();
        all.dedup();
        all.retain(|h| *h != leader);
        (self.leader, self.followers) = (leader, all);
    }

    fn running(&self) -> Vec<usize> {
        (0..self.members.channels.len()).filter(|h| self.members.hosts.runs(*h)).collect()
    }

    /// A client of the leader's cluster: asked of each running member until one does it.
    async fn of_cluster(
        &mut self,
        what: &str,
        mut f: impl AsyncFnMut(ClusterClient<Channel>) -> Result<(), Status>,
    ) {
        let hosts = self.running();
        self.members
            .until(what, async |m| {
                for h in &hosts {
                    let client = ClusterClient::new(m.channels[*h].clone());
                    if matches!(tokio::time::timeout(ANSWER_MAX, f(client)).await, Ok(Ok(()))) {
                        return true;
                    }
                }
                false
            })
            .await;
    }

    async fn listed(&self) -> Vec<Member> {
        for h in self.running() {
            let mut c = ClusterClient::new(self.members.channels[h].clone());
            let list = c.member_list(MemberListRequest::default());
            if let Ok(Ok(r)) = tokio::time::timeout(ANSWER_MAX, list).await {
                return r.into_inner().members;
            }
        }
        Vec::new()
    }

    fn note(&mut self, what: &str, since: Instant) {
        self.notes.push(format!("{what} {:.1} s", since.elapsed().as_secs_f64()));
    }

    async fn step(&mut self, step: Step) {
        let harmless = matches!(
            step,
            Step::Wait(_)
                | Step::Look
                | Step::Serves
                | Step::Refuses(_)
                | Step::BySnapshot
                | Step::CaughtUp(_)
        );
        if !harmless {
            self.fault.get_or_insert_with(Instant::now);
        }
        let begun = Instant::now();
        match step {
            Step::Wait(ms) => tokio::time::sleep(Duration::from_millis(ms)).await,
            Step::Look => self.look().await,
            Step::Kill(w) => self.hosts(w).into_iter().for_each(|h| self.members.hosts.kill(h)),
            Step::Stop(w) => self.hosts(w).into_iter().for_each(|h| self.members.hosts.stop(h)),
            Step::Run(w) => self.hosts(w).into_iter().for_each(|h| self.members.run(h)),
            Step::Pause(w) => self.hosts(w).into_iter().for_each(|h| self.members.hosts.pause(h)),
            Step::Resume(w) => self.hosts(w).into_iter().for_each(|h| self.members.hosts.resume(h)),
            Step::Isolate(w) => self.hosts(w).into_iter().for_each(|h| self.members.hosts.isolate(h)),
            Step::CutFrom(w) | Step::CutTo(w) => {
                for h in self.hosts(w) {
                    for o in (0..self.members.channels.len()).filter(|o| *o != h) {
                        let (from, to) = if matches!(step, Step::CutFrom(_)) { (h, o) } else { (o, h) };
                        self.members.hosts.cut(from, to);
                    }
                }
            }
            Step::Between(a, b) => {
                let (a, b) = (self.hosts(a)[0], self.hosts(b)[0]);
                self.members.hosts.cut(a, b);
                self.members.hosts.cut(b, a);
            }
            Step::Heal => self.members.hosts.heal(),
            Step::Lead(host) => self.lead(host).await,
            Step::Fill(w, left) => self.hosts(w).into_iter().for_each(|h| {
                let path = self.members.data(h);
                let free = rustix::fs::statvfs(&path).expect("its disk");
                let fill = (free.f_bavail * free.f_frsize).saturating_sub(left << 20);
                let ballast = std::fs::File::create(path.join("ballast")).expect("ballast");
                let flags = rustix::fs::FallocateFlags::empty();
                rustix::fs::fallocate(&ballast, flags, 0, fill).expect("there is that much");
            }),
            Step::Free(w) => self.hosts(w).into_iter().for_each(|h| {
                std::fs::remove_file(self.members.data(h).join("ballast")).expect("it is there")
            }),
            Step::Clock(w, offset) => {
                self.hosts(w).into_iter().for_each(|h| self.members.set_clock(h, offset))
            }
            Step::Bulk(megabytes) => self.bulk(megabytes).await,
            Step::Flip(w, what) => self.hosts(w).into_iter().for_each(|h| flip(&self.members.data(h), what)),
            Step::Ends(w) => {
                for h in self.hosts(w) {
                    let mut code = None;
                    self.members
                        .until("the damaged member to end", async |m| {
                            code = m.hosts.ended(h);
                            code.is_some()
                        })
                        .await;
                    assert_ne!(code, Some(0), "it ends with an error: {}", self.members.hosts.tail(h));
                }
            }
            Step::Rejoin(w) => self.hosts(w).into_iter().for_each(|h| self.rejoin(h)),
            Step::Add(w) => self.add(self.hosts(w)[0]).await,
            Step::Remove(w) => self.remove(self.hosts(w)[0]).await,
            Step::Serves => {
                for h in self.running() {
                    self.members
                        .until("service on every host", async |m| takes_writes(&m.channels[h]).await)
                        .await;
                }
                self.note("all serve after", begun);
                if let Some(since) = self.fault.take() {
                    self.faults.push((since, Instant::now()));
                }
            }
            Step::Refuses(w) => self.refuses(self.hosts(w)[0]).await,
            Step::NoSpace => {
                for h in self.running() {
                    let no_space = |s: Status| {
                        s.message().contains("no space") || s.message().contains("space exceeded")
                    };
                    self.members
                        .until("NOSPACE", async |m| match put(&m.channels[h], "x").await {
                            Some(Err(s)) => no_space(s),
                            _ => false,
                        })
                        .await;
                    let mut kv = KvClient::new(self.members.channels[h].clone());
                    let delete = DeleteRangeRequest { key: "x".into(), ..Default::default() };
                    kv.delete_range(delete).await.expect("deletions go on");
                    let get = RangeRequest { key: "x".into(), ..Default::default() };
                    kv.range(get).await.expect("reads go on");
                }
                self.note("NOSPACE after", begun);
            }
            Step::BySnapshot => {
                let carried = |h: &usize| {
                    let log = std::fs::read_to_string(self.members.hosts.folder(*h).join("log"));
                    log.is_ok_and(|l| l.contains("snapshot carried"))
                };
                assert!(self.running().iter().any(carried), "the log still had everything");
            }
            Step::CaughtUp(w) => {
                let (h, other) =
                    (self.hosts(w)[0], self.running().into_iter().find(|o| !self.hosts(w).contains(o)));
                let other = other.expect("another runs");
                let target = own_revision(&self.members.channels[other]).await.expect("it answers");
                self.members
                    .until("it to catch up", async |m| {
                        own_revision(&m.channels[h]).await.is_some_and(|r| r >= target)
                    })
                    .await;
                self.note("caught up after", begun);
            }
        }
    }

    async fn lead(&mut self, host: usize) {
        self.members
            .until("this host to lead", async |m| {
                let Some(leads) = m.leader().await else { return false };
                if leads == host {
                    return true;
                }
                if let Some((_, target_id)) = m.status(&m.channels[host]).await {
                    let mut c = MaintenanceClient::new(m.channels[leads].clone());
                    // Asked again if it is refused.
                    let _ = tokio::time::timeout(ANSWER_MAX, c.move_leader(MoveLeaderRequest { target_id }))
                        .await;
                }
                false
            })
            .await;
        self.look().await;
    }

    /// Values of 4 KiB, each to a key of its own, 64 at a time: many entries, as the log keeps the last ones
    /// however small they are.
    async fn bulk(&mut self, megabytes: u64) {
        let channel = self.members.channels[self.leader].clone();
        let mut rng = photon_rt::entropy::Rng::new(megabytes);
        let value: Vec<u8> = (0..512).flat_map(|_| rng.below(u64::MAX).to_le_bytes()).collect();
        let mut all = tokio::task::JoinSet::new();
        for writer in 0..64 {
            let (value, mut kv) = (value.clone(), KvClient::new(channel.clone()));
            all.spawn(async move {
                for n in 0..megabytes * 4 {
                    let key = format!("b{writer}-{n}");
                    let put =
                        PutRequest { key: key.into(), value: value.clone().into(), ..Default::default() };
                    while !matches!(tokio::time::timeout(ANSWER_MAX, kv.put(put.clone())).await, Ok(Ok(_))) {
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                }
            });
        }
        all.join_all().await;
    }

    fn rejoin(&mut self, host: usize) {
        // The flags of `serve`; whoever rejoins finds the cluster there already.
        let words = self.members.args(host).iter().map(|w| if w == "serve" { "rejoin" } else { w });
        let out = self.members.hosts.command(host, &photon_exe()).args(words).output().expect("photon");
        assert!(out.status.success(), "rejoin: {}", String::from_utf8_lossy(&out.stderr));
    }

    async fn add(&mut self, host: usize) {
        let url = format!("https://{}:2380", self.members.hosts.address(host));
        self.of_cluster("a member to be added", async |mut c| {
            let add = MemberAddRequest { peer_ur_ls: vec![url.clone()], is_learner: false };
            match c.member_add(add).await {
                Ok(_) => Ok(()),
                // Asked before, and the answer was lost.
                Err(s) if s.message().contains("exists") => Ok(()),
                Err(s) => Err(s),
            }
        })
        .await;
        self.members.run(host);
        let begun = Instant::now();
        while self.listed().await.iter().filter(|m| !m.is_learner && m.peer_ur_ls == [url.clone()]).count()
            == 0
        {
            assert!(
                begun.elapsed() < Duration::from_secs(60),
                "it never votes: {}",
                self.members.hosts.tail(host)
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        self.followers.push(host);
        self.note("votes after", begun);
    }

    async fn remove(&mut self, host: usize) {
        let url = format!("https://{}:2380", self.members.hosts.address(host));
        let id =
            self.listed().await.into_iter().find(|m| m.peer_ur_ls == [url.clone()]).expect("a member").id;
        self.of_cluster("a member to be removed", async |mut c| {
            match c.member_remove(MemberRemoveRequest { id }).await {
                Ok(_) => Ok(()),
                Err(s) if s.message().contains("not found") => Ok(()),
                Err(s) => Err(s),
            }
        })
        .await;
        // It may end by itself; whether or not, it is no member any more.
        self.members.hosts.stop(host);
        self.followers.retain(|h| *h != host);
        if self.leader == host {
            self.leader = self.followers.remove(0);
        }
        self.look().await;
    }

    /// Whether a write on this host is refused, in words, and what it has can be read.
    async fn refuses(&mut self, host: usize) {
        let begun = Instant::now();
        let mut said = String::new();
        self.members
            .until("a refusal", async |m| match put(&m.channels[host], "x").await {
                Some(Err(s)) => {
                    said = s.message().to_string();
                    !said.is_empty()
                }
                _ => false,
            })
            .await;
        self.note(&format!("refused ({said}) after"), begun);
        let read = own_revision(&self.members.channels[host]).await;
        assert!(read.is_some(), "serializable reads go on");
    }
}

/// Plays it. The error names what should not be.
pub async fn play(
    s: &Scenario,
    product: Product,
    seed: u64,
    bug: Option<&'static str>,
) -> Result<Run, String> {
    let members = Members::start(product, s.members, s.more, s.gear, bug);
    let followers = (1..s.members).collect();
    let mut play = Play { members, leader: 0, followers, notes: vec![], fault: None, faults: vec![] };
    play.look().await;
    for h in play.running() {
        play.members.until("service on every host", async |m| takes_writes(&m.channels[h]).await).await;
    }
    let load = Load::begin(&play.members, seed, s.compacts);
    let begun = Instant::now();
    tokio::time::sleep(Duration::from_secs(3)).await;
    for step in s.script {
        play.step(*step).await;
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let ended = Instant::now();
    let crooked = if s.gear.iter().any(|g| matches!(g, super::members::Gear::FastClock(_))) { 15 } else { 0 };
    let seen = load.end(&mut play.members, crooked).await?;
    let told = seen.operations.iter().filter(|o| o.heard != Heard::Unknown).count();
    if told < 200 {
        return Err(format!("nothing happened: {told} answers"));
    }
    Ok(figures(&seen, begun, ended, &play.faults, play.notes))
}
