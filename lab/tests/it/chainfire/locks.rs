//! Locks and elections, held by processes that stand still or are cut off beyond their lease, come back, and
//! act again. What they act on is a key whose writes carry a compare on the place in line (the fencing token
//! is its create revision): no act of a deposed holder may take effect, and no token has two holders.

use super::{
    load::{ANSWER_MAX, Told, Watches},
    members::{Members, Product},
};
use chainfire::wire::{
    etcdserverpb::{
        compare::{CompareResult, CompareTarget, TargetUnion},
        kv_client::KvClient,
        lease_client::LeaseClient,
        request_op::Request as Do,
        *,
    },
    v3electionpb::{CampaignRequest, election_client::ElectionClient},
    v3lockpb::{LockRequest, lock_client::LockClient},
};
use photon_lab::promises::{self, Step};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    fs::File,
    path::PathBuf,
    process::Child,
    time::{Duration, Instant},
};
use tonic::transport::{Channel, Endpoint};

/// Seconds; the least that an etcd grants with its usual election timeout.
const TTL: i64 = 2;
/// Names of the lines, and of what each protects.
const LINES: [(&str, &str); 2] = [("lock", "r-lock"), ("mayor", "r-mayor")];

/// A process that stands in line, acts until an act is refused, and stands in line again.
/// What it did is in its log, an act a line.
struct Contender {
    child: Child,
    log: PathBuf,
    host: usize,
    line: usize,
}

impl Contender {
    fn start(members: &Members, host: usize, line: usize, blind: bool) -> Contender {
        let log = members.hosts.folder(host).join(format!("contender-{line}"));
        let child = members
            .hosts
            .command(host, &std::env::current_exe().expect("this test has a path"))
            .args(["--exact", "chainfire::locks::chainfire_locks_under_pauses", "--nocapture"])
            .env("PHOTON_LAB_CONTENDER", format!("{line} {host}-{line} {blind}"))
            .stdout(File::create(&log).expect("log"))
            .spawn()
            .expect("a contender");
        Contender { child, log, host, line }
    }

    fn who(&self) -> String {
        format!("{}-{}", self.host, self.line)
    }

    /// How many acts it has been told about, and how many of them were refused.
    fn acts(&self) -> (usize, usize) {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let count = |what: &str| text.lines().filter(|l| l.ends_with(what)).count();
        (count("acted") + count("refused"), count("refused"))
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("it runs");
    }
}

impl Drop for Contender {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The process of a [`Contender`]; it never ends by itself.
async fn contend(words: &str) {
    let words: Vec<&str> = words.split(' ').collect();
    let [line, who, blind] = words[..] else { panic!("{words:?}") };
    let channel = Endpoint::from_static("http://127.0.0.1:2379").connect_lazy();
    let line = LINES[line.parse::<usize>().expect("a line")];
    loop {
        // Whatever fails or takes too long: its lease ends, and it begins anew.
        let _ = hold(&channel, line, who, blind == "true").await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Once: from standing in line to the first act that is refused.
async fn hold(channel: &Channel, line: (&str, &str), who: &str, blind: bool) -> Result<(), tonic::Status> {
    let late = |_| tonic::Status::deadline_exceeded("no answer");
    let mut leases = LeaseClient::new(channel.clone());
    let grant = LeaseGrantRequest { ttl: TTL, id: 0 };
    let lease =
        tokio::time::timeout(ANSWER_MAX, leases.lease_grant(grant)).await.map_err(late)??.into_inner().id;
    // Kept alive by a task of this process: when that stands still, so does it.
    let (beats, asked) = tokio::sync::mpsc::channel(4);
    let asked = tokio_stream(asked);
    let keep = leases.lease_keep_alive(asked);
    let mut answers = tokio::time::timeout(ANSWER_MAX, async {
        let _ = beats.send(LeaseKeepAliveRequest { id: lease }).await;
        keep.await
    })
    .await
    .map_err(late)??
    .into_inner();
    let pulse = async {
        loop {
            tokio::time::sleep(Duration::from_millis(400)).await;
            let _ = beats.try_send(LeaseKeepAliveRequest { id: lease });
        }
    };
    let listen = async { while let Ok(Some(_)) = answers.message().await {} };
    let work = async {
        let name = line.0.to_string();
        let (key, token) = if line.0 == "lock" {
            let lock = LockRequest { name: name.into(), lease };
            let key = LockClient::new(channel.clone()).lock(lock).await?.into_inner().key;
            let get = RangeRequest { key: key.clone(), ..Default::default() };
            let r = KvClient::new(channel.clone()).range(get).await?.into_inner();
            let token = r.kvs.first().map(|kv| kv.create_revision);
            (key, token.ok_or_else(|| tonic::Status::aborted("the lease is over"))?)
        } else {
            let campaign = CampaignRequest { name: name.into(), lease, value: who.to_string().into() };
            let won = ElectionClient::new(channel.clone()).campaign(campaign).await?.into_inner();
            let leader = won.leader.ok_or_else(|| tonic::Status::unknown("no leader key"))?;
            (leader.key, leader.rev)
        };
        loop {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let acted = act(channel, &key, token, line.1, who, blind).await;
            println!("{token} {}", if acted { "acted" } else { "refused" });
            if !acted {
                return Ok(());
            }
        }
    };
    let done = tokio::select! {
        done = work => done,
        () = pulse => Ok(()),
        () = async { listen.await; std::future::pending().await } => Ok(()),
    };
    let revoke = LeaseRevokeRequest { id: lease };
    let _ = tokio::time::timeout(ANSWER_MAX, LeaseClient::new(channel.clone()).lease_revoke(revoke)).await;
    done
}

fn tokio_stream<T: Send + 'static>(
    rx: tokio::sync::mpsc::Receiver<T>,
) -> impl futures::Stream<Item = T> + Send + 'static {
    futures::stream::unfold(rx, async |mut rx| rx.recv().await.map(|v| (v, rx)))
}

/// Acts until it is told what became of it. `blind`: without a look at the token.
async fn act(channel: &Channel, key: &[u8], token: i64, on: &str, who: &str, blind: bool) -> bool {
    let put = PutRequest {
        key: on.to_string().into(),
        value: format!("{who} {token}").into(),
        ..Default::default()
    };
    let holds = Compare {
        key: key.to_vec().into(),
        target: CompareTarget::Create as i32,
        result: CompareResult::Equal as i32,
        target_union: Some(TargetUnion::CreateRevision(token)),
        ..Default::default()
    };
    let txn = TxnRequest {
        compare: if blind { vec![] } else { vec![holds] },
        success: vec![RequestOp { request: Some(Do::RequestPut(put)) }],
        failure: vec![],
    };
    loop {
        let mut kv = KvClient::new(channel.clone());
        if let Ok(Ok(r)) = tokio::time::timeout(ANSWER_MAX, kv.txn(txn.clone())).await {
            return r.into_inner().succeeded;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The story of one line.
fn steps(log: &[(i64, Told)], line: (&str, &str)) -> Vec<Step> {
    let place = format!("{}/", line.0);
    let step = |(revision, t): &(i64, Told)| {
        let key = t.key.clone();
        match &t.value {
            Some(v) if t.key == line.1 => {
                let (who, token) = v.split_once(' ').expect("written by a contender");
                Some(Step::Acted { who: who.into(), token: token.parse().expect("a token") })
            }
            Some(_) if key.starts_with(&place) && t.created == *revision => {
                Some(Step::Came { key, token: *revision })
            }
            None if key.starts_with(&place) => Some(Step::Went { key }),
            _ => None,
        }
    };
    log.iter().filter_map(step).collect()
}

/// What a run of locks has shown.
pub struct Held {
    pub acts: usize,
    pub refused: usize,
}

/// In each round, whoever holds a line stands still, or its host is cut off, until another holds; then it comes
/// back and acts.
pub async fn play(rounds: usize, blind: bool, bug: Option<&'static str>) -> Result<Held, String> {
    let mut members = Members::start(Product::Photon, 3, 0, &[], bug);
    members.until("an election", async |m| m.leader().await.is_some()).await;
    let watches = Watches::begin(&members);
    let contenders: Vec<Contender> = (0..3)
        .flat_map(|host| [0, 1].map(|line| (host, line)))
        .map(|(host, line)| Contender::start(&members, host, line, blind))
        .collect();
    for round in 0..rounds {
        let line = round % 2;
        let on = LINES[line].1;
        let begun = Instant::now();
        let last = |after: Instant| {
            let (_, t) = watches.newest(on).filter(|(_, t)| t.at >= after)?;
            Some(t.value?.split_once(' ')?.0.to_string())
        };
        let mut holder = None;
        members
            .until("somebody to hold", async |_| {
                holder = last(begun);
                holder.is_some()
            })
            .await;
        let holder = holder.expect("just found");
        let it = contenders.iter().find(|c| c.who() == holder).expect("one of ours");
        let cut = round % 4 >= 2;
        if cut {
            members.hosts.isolate(it.host)
        } else {
            it.signal(Signal::STOP)
        }
        let stopped = Instant::now();
        members.until("another to hold", async |_| last(stopped).is_some_and(|who| who != holder)).await;
        let before = it.acts();
        if cut {
            members.hosts.heal()
        } else {
            it.signal(Signal::CONT)
        }
        // With something planted, it need not be refused.
        let planted = blind || bug.is_some();
        let acts = |now: (usize, usize)| if planted { now.0 > before.0 } else { now.1 > before.1 };
        members.until("the deposed to act", async |_| acts(it.acts())).await;
    }
    let (acts, refused) = contenders.iter().map(Contender::acts).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
    drop(contenders);
    let log = promises::watches(&watches.end(&mut members).await?)?;
    for line in LINES {
        promises::locks(&steps(&log, line)).map_err(|e| format!("{}: {e}", line.0))?;
    }
    Ok(Held { acts, refused })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chainfire_locks_under_pauses() {
    // This same program is also what its contenders run.
    if let Ok(words) = std::env::var("PHOTON_LAB_CONTENDER") {
        contend(&words).await;
    }
    let held = play(6, false, None).await.unwrap_or_else(|e| panic!("{e}"));
    println!("locks: {} acts, {} of them refused", held.acts, held.refused);
    assert!(
        held.refused >= 6,
        "in every round a deposed holder tried to act, but {} were refused",
        held.refused
    );
}
