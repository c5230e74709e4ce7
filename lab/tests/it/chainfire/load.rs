//! What clients do meanwhile, and what they saw: closed-loop clients that write, swap and read on any host,
//! an open-loop writer on each host (its pace tells how long there was no write), keys with leases, watches
//! through every host, a compactor.

use super::members::Members;
use chainfire::wire::{
    etcdserverpb::{
        kv_client::KvClient, lease_client::LeaseClient, request_op::Request as Do,
        response_op::Response as Did, watch_client::WatchClient, watch_request::RequestUnion, *,
    },
    mvccpb::event::EventType,
};
use photon_lab::{
    history::{self, Asked, Changed, Heard, Operation},
    promises::{self, Leased, Watched},
};
use photon_rt::entropy::Rng;
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::task::JoinSet;
use tonic::transport::Channel;

const CLIENTS: u64 = 4;
const KEYS: u64 = 4;
pub const ANSWER_MAX: Duration = Duration::from_secs(4);
/// Between two writes of an open-loop writer, and how many of them may wait for an answer.
const PACE: Duration = Duration::from_millis(50);
const WAITING: usize = 64;
const TTL: i64 = 3;
/// Longest wait for watches to tell the last change.
const LAST_MAX: Duration = Duration::from_secs(60);

/// One change as a watch told it, and when it did.
#[derive(Clone, Debug)]
pub struct Told {
    pub key: String,
    /// Nothing: deleted.
    pub value: Option<String>,
    pub created: i64,
    pub at: Instant,
}

impl PartialEq for Told {
    fn eq(&self, other: &Told) -> bool {
        (&self.key, &self.value, self.created) == (&other.key, &other.value, other.created)
    }
}

type Watch = Arc<Mutex<Watched<Told>>>;

/// A watch of everything through each host, and what they told.
pub struct Watches {
    tasks: JoinSet<()>,
    told: Vec<Watch>,
}

impl Watches {
    pub fn begin(members: &Members) -> Watches {
        let mut w = Watches { tasks: JoinSet::new(), told: Vec::new() };
        members.channels.iter().for_each(|c| w.also(c));
        w
    }

    /// One more, from the first revision.
    fn also(&mut self, channel: &Channel) {
        let told = Watch::default();
        self.tasks.spawn(watcher(channel.clone(), told.clone()));
        self.told.push(told);
    }

    /// The newest version of a key that any of them told.
    pub fn newest(&self, key: &str) -> Option<(i64, Told)> {
        let newest = |w: &Watch| {
            let w = w.lock().expect("not poisoned");
            w.told.iter().rev().find(|(_, t)| t.key == key).cloned()
        };
        self.told.iter().filter_map(newest).max_by_key(|(revision, _)| *revision)
    }

    /// Waits until each, and one that begins now, has told everything. Those of members that don't run are
    /// left out.
    pub async fn end(mut self, members: &mut Members) -> Result<Vec<Watched<Told>>, String> {
        let runs = |h: &usize| members.hosts.runs(*h);
        let running: Vec<usize> = (0..members.channels.len()).filter(runs).collect();
        let channel = members.channels[running[0]].clone();
        let mut all: Vec<Watch> = running.iter().map(|h| self.told[*h].clone()).collect();
        self.also(&channel);
        all.extend(self.told.last().cloned());
        // A last change that all of them must tell. One that had to be tried again is told as often.
        let put = PutRequest { key: LAST.into(), ..Default::default() };
        let mut last = 0;
        members
            .until("a last write", async |_| {
                let told = KvClient::new(channel.clone()).put(put.clone()).await.ok();
                last = told.and_then(|r| r.into_inner().header).map_or(0, |h| h.revision);
                last > 0
            })
            .await;
        // Something may follow it: leases of those who have ended.
        let ends = |w: &Watch| w.lock().expect("not poisoned").told.iter().any(|(r, _)| *r >= last);
        let begun = Instant::now();
        while let Some(silent) = all.iter().position(|w| !ends(w)) {
            if begun.elapsed() > LAST_MAX {
                return Err(format!("watch {silent} does not tell of revision {last}, the last change"));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        self.tasks.shutdown().await;
        let mut all: Vec<Watched<Told>> =
            all.iter().map(|w| w.lock().expect("not poisoned").clone()).collect();
        all.iter_mut().for_each(|w| w.told.retain(|(r, t)| *r < last && t.key != LAST));
        Ok(all)
    }
}

const LAST: &str = "last";

/// A load that goes on until it is ended.
pub struct Load {
    stop: Arc<AtomicBool>,
    clients: JoinSet<Vec<Operation>>,
    leases: JoinSet<Vec<Leased>>,
    compactor: JoinSet<()>,
    watches: Watches,
    compacts: bool,
}

/// What it saw.
pub struct Seen {
    pub operations: Vec<Operation>,
    pub log: Vec<(i64, Told)>,
    pub leases: Vec<Leased>,
}

impl Load {
    pub fn begin(members: &Members, seed: u64, compacts: bool) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let (mut clients, mut leases, mut compactor_task) = (JoinSet::new(), JoinSet::new(), JoinSet::new());
        let all = &members.channels;
        for id in 0..CLIENTS {
            clients.spawn(client(id, seed, all.clone(), stop.clone()));
        }
        for (host, c) in all.iter().enumerate() {
            clients.spawn(writer(host, c.clone(), stop.clone()));
        }
        for id in 0..3 {
            leases.spawn(lessee(id, seed, all.clone(), stop.clone()));
        }
        if compacts {
            compactor_task.spawn(compactor(all.clone()));
        }
        Load { stop, clients, leases, compactor: compactor_task, watches: Watches::begin(members), compacts }
    }

    /// Ends it, waits until all watches told everything, and checks what was seen. `crooked`: see
    /// [`promises::leases`].
    pub async fn end(mut self, members: &mut Members, crooked: u32) -> Result<Seen, String> {
        self.stop.store(true, Ordering::Relaxed);
        let operations: Vec<Operation> = self.clients.join_all().await.into_iter().flatten().collect();
        let mut leases: Vec<Leased> = self.leases.join_all().await.into_iter().flatten().collect();
        // Leases that nobody keeps alive end, wherever it was that they were granted.
        let serves = (0..members.channels.len()).find(|h| members.hosts.runs(*h)).expect("one runs");
        let channel = members.channels[serves].clone();
        members
            .until("the end of all leases", async |_| {
                let all = RangeRequest { key: "l".into(), range_end: "m".into(), ..Default::default() };
                match KvClient::new(channel.clone()).range(all).await {
                    Ok(r) => r.get_ref().kvs.is_empty(),
                    Err(_) => false,
                }
            })
            .await;
        self.compactor.shutdown().await;
        let all = self.watches.end(members).await?;
        if !self.compacts && all.iter().any(|w| !w.compacted.is_empty()) {
            return Err("a watch was told of a compaction that nobody asked for".into());
        }
        let log = promises::watches(&all)?;
        let mut gone: HashMap<&str, Instant> = HashMap::new();
        for (_, t) in all.iter().flat_map(|w| &w.told).filter(|(_, t)| t.value.is_none()) {
            gone.entry(&t.key).and_modify(|at| *at = t.at.min(*at)).or_insert(t.at);
        }
        for l in &mut leases {
            l.gone = gone.get(l.key.as_str()).copied();
        }
        promises::leases(&leases, Instant::now(), Duration::from_secs(60), crooked)?;
        let changes: Vec<Changed> = log
            .iter()
            .filter(|(_, t)| t.key.starts_with('k'))
            .filter_map(|(revision, t)| {
                Some(Changed { revision: *revision, key: t.key.clone(), value: t.value.clone()? })
            })
            .collect();
        history::check(&operations, &changes)?;
        Ok(Seen { operations, log, leases })
    }
}

pub async fn ask(kv: &mut KvClient<Channel>, asked: &Asked) -> Result<Heard, tonic::Status> {
    let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
    let revision = |h: Option<ResponseHeader>| h.map_or(0, |h| h.revision);
    Ok(match asked {
        Asked::Put { key, value } => {
            let put =
                PutRequest { key: key.clone().into(), value: value.clone().into(), ..Default::default() };
            Heard::Written { revision: revision(kv.put(put).await?.into_inner().header) }
        }
        Asked::Get { key } => {
            let get = RangeRequest { key: key.clone().into(), ..Default::default() };
            let r = kv.range(get).await?.into_inner();
            let value = r.kvs.first().map(|kv| (text(&kv.value), kv.mod_revision));
            Heard::Found { revision: revision(r.header), value }
        }
        Asked::Swap { key, last, value } => {
            let compare = Compare {
                key: key.clone().into(),
                target: compare::CompareTarget::Mod as i32,
                result: compare::CompareResult::Equal as i32,
                target_union: Some(compare::TargetUnion::ModRevision(*last)),
                ..Default::default()
            };
            let put =
                PutRequest { key: key.clone().into(), value: value.clone().into(), ..Default::default() };
            let txn = TxnRequest {
                compare: vec![compare],
                success: vec![RequestOp { request: Some(Do::RequestPut(put)) }],
                failure: vec![],
            };
            let r = kv.txn(txn).await?.into_inner();
            assert!(r.responses.iter().all(|r| matches!(r.response, Some(Did::ResponsePut(_)))));
            let revision = revision(r.header);
            if r.succeeded { Heard::Written { revision } } else { Heard::Kept { revision } }
        }
    })
}

async fn operate(channel: Channel, asked: Asked) -> Operation {
    let begun = Instant::now();
    let heard = match tokio::time::timeout(ANSWER_MAX, ask(&mut KvClient::new(channel), &asked)).await {
        Ok(Ok(h)) => h,
        Ok(Err(_)) | Err(_) => Heard::Unknown,
    };
    Operation { asked, heard, begun, ended: Instant::now() }
}

/// One client: asks one thing after the other, of any host.
async fn client(id: u64, seed: u64, channels: Vec<Channel>, stop: Arc<AtomicBool>) -> Vec<Operation> {
    let mut rng = Rng::new(seed * 100 + id);
    let mut seen: Vec<i64> = vec![0; KEYS as usize];
    let mut all = Vec::new();
    for n in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let k = rng.below(KEYS) as usize;
        let (key, value) = (format!("k{k}"), format!("{id}-{n}"));
        let asked = match rng.below(3) {
            0 => Asked::Put { key, value },
            1 => Asked::Swap { key, last: seen[k], value },
            _ => Asked::Get { key },
        };
        let done = operate(channels[rng.below(channels.len() as u64) as usize].clone(), asked).await;
        match &done.heard {
            Heard::Written { revision } => seen[k] = *revision,
            Heard::Found { value: Some((_, r)), .. } => seen[k] = *r,
            Heard::Unknown => tokio::time::sleep(Duration::from_millis(20)).await,
            _ => {}
        }
        all.push(done);
        tokio::time::sleep(Duration::from_millis(rng.below(20))).await;
    }
    all
}

/// Writes at its pace, whatever becomes of what it wrote before.
async fn writer(host: usize, channel: Channel, stop: Arc<AtomicBool>) -> Vec<Operation> {
    let (mut all, mut waiting) = (Vec::new(), JoinSet::new());
    for n in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        if waiting.len() < WAITING {
            let asked = Asked::Put { key: format!("k-w{host}"), value: format!("w{host}-{n}") };
            waiting.spawn(operate(channel.clone(), asked));
        }
        while let Some(done) = waiting.try_join_next() {
            all.push(done.expect("it does not panic"));
        }
        tokio::time::sleep(PACE).await;
    }
    all.extend(waiting.join_all().await);
    all
}

/// Makes keys with leases, keeps some alive for a while, revokes some, lets others end.
async fn lessee(id: u64, seed: u64, channels: Vec<Channel>, stop: Arc<AtomicBool>) -> Vec<Leased> {
    let mut rng = Rng::new(seed * 100 + 50 + id);
    let mut all = Vec::new();
    for n in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        let any = |rng: &mut Rng| channels[rng.below(channels.len() as u64) as usize].clone();
        let grant = LeaseGrantRequest { ttl: TTL, id: 0 };
        let mut client = LeaseClient::new(any(&mut rng));
        let granted = Instant::now();
        let Ok(Ok(r)) = tokio::time::timeout(ANSWER_MAX, client.lease_grant(grant)).await else { continue };
        let lease = r.into_inner();
        let key = format!("l{id}-{n}");
        let put = PutRequest { key: key.clone().into(), lease: lease.id, ..Default::default() };
        let mut kv = KvClient::new(any(&mut rng));
        if !matches!(tokio::time::timeout(ANSWER_MAX, kv.put(put)).await, Ok(Ok(_))) {
            continue; // perhaps it is there: then it has to go all the same, as the end of all leases says
        }
        let ttl = Duration::from_secs(lease.ttl.unsigned_abs());
        let mut l = Leased { key, ttl, attached: granted, beats: Vec::new(), revoked: None, gone: None };
        for _ in 0..rng.below(6) {
            tokio::time::sleep(Duration::from_millis(200 + rng.below(1_500))).await;
            let at = Instant::now();
            // What has no answer is not known.
            if let Ok(Ok(alive)) = tokio::time::timeout(ANSWER_MAX, beat(any(&mut rng), lease.id)).await {
                l.beats.push((at, alive));
            }
        }
        if rng.percent(30) {
            l.revoked = Some(Instant::now());
            let revoke = LeaseRevokeRequest { id: lease.id };
            let _ =
                tokio::time::timeout(ANSWER_MAX, LeaseClient::new(any(&mut rng)).lease_revoke(revoke)).await;
            tokio::time::sleep(Duration::from_millis(500)).await;
        } else {
            tokio::time::sleep(ttl + Duration::from_millis(rng.below(2_000))).await;
        }
        // After its time; it must not come back.
        let at = Instant::now();
        if let Ok(Ok(alive)) = tokio::time::timeout(ANSWER_MAX, beat(any(&mut rng), lease.id)).await {
            l.beats.push((at, alive));
        }
        all.push(l);
    }
    all
}

async fn beat(channel: Channel, id: i64) -> Result<bool, tonic::Status> {
    let once = futures::stream::once(async move { LeaseKeepAliveRequest { id } });
    let asks = futures::StreamExt::chain(once, futures::stream::pending());
    let mut answers = LeaseClient::new(channel).lease_keep_alive(asks).await?.into_inner();
    let answer = answers.message().await?.ok_or_else(|| tonic::Status::unknown("the stream ended"))?;
    Ok(answer.ttl > 0)
}

/// Follows all changes through one host, resuming where it was broken off.
async fn watcher(channel: Channel, seen: Watch) {
    let mut next = 1;
    loop {
        let _ = follow(channel.clone(), &mut next, &seen).await; // broken off: again from where it was
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn follow(channel: Channel, next: &mut i64, seen: &Watch) -> Result<(), tonic::Status> {
    let create = WatchCreateRequest {
        key: "k".into(),
        range_end: "s".into(),
        start_revision: *next,
        ..Default::default()
    };
    let ask = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    let once = futures::stream::once(async { ask });
    let asks = futures::StreamExt::chain(once, futures::stream::pending::<WatchRequest>());
    let mut stream = WatchClient::new(channel).watch(asks).await?.into_inner();
    while let Some(r) = stream.message().await? {
        let mut w = seen.lock().expect("not poisoned");
        if r.compact_revision > 0 {
            w.compacted.push((*next, r.compact_revision));
            *next = r.compact_revision;
            return Ok(());
        }
        assert!(!r.canceled, "a watch was cancelled: {}", r.cancel_reason);
        let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
        let at = Instant::now();
        for e in r.events {
            let deleted = e.r#type == EventType::Delete as i32;
            let Some(kv) = e.kv else { continue };
            *next = (*next).max(kv.mod_revision + 1);
            let value = (!deleted).then(|| text(&kv.value));
            w.told
                .push((kv.mod_revision, Told { key: text(&kv.key), value, created: kv.create_revision, at }));
        }
    }
    Ok(())
}

/// Compacts all but the last few hundred revisions, now and then.
async fn compactor(channels: Vec<Channel>) {
    loop {
        for c in &channels {
            tokio::time::sleep(Duration::from_millis(700)).await;
            let mut kv = KvClient::new(c.clone());
            let get = RangeRequest { key: "k0".into(), ..Default::default() };
            let Ok(Ok(r)) = tokio::time::timeout(ANSWER_MAX, kv.range(get)).await else { continue };
            let now = r.into_inner().header.map_or(0, |h| h.revision);
            let compact = CompactionRequest { revision: (now - 150).max(1), physical: false };
            // Refused where another compacted as far already.
            let _ = tokio::time::timeout(ANSWER_MAX, kv.compact(compact)).await;
        }
    }
}
