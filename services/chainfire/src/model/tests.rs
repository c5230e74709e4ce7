//! The machine under crashes, batching, snapshots and sweeping. (What its answers must be is compared
//! with a real etcd in `tests/it/differential.rs`.)

use super::{layout::*, read::Reader};
use crate::{
    EtcdResult, Scope, Span,
    command::{Checkpoint, Command, Grant, Left, Op, Revoke},
    machine::{Shared, StateMachine},
    model::Answer,
    who::{Login, Who},
    wire::etcdserverpb::{
        CompactionRequest, Compare, DeleteRangeRequest, PutRequest, RangeRequest, RangeResponse, RequestOp,
        TxnRequest, request_op::Request,
    },
};
use bytes::Bytes;
use photon_kv::{
    Direction,
    engine::{Engine, KeyRange, MemEngine, Space, View},
};
use photon_raft::{Machine, Position};
use photon_rt::entropy::Rng;
use prost::Message;
use std::sync::Arc;

fn key(rng: &mut Rng) -> Bytes {
    let keys: [&[u8]; 6] = [b"a", b"b", b"b\0", b"c", b"\xff", b"/photon.internal/x"];
    Bytes::copy_from_slice(keys[rng.below(6) as usize])
}

fn put(rng: &mut Rng) -> PutRequest {
    let lease = if rng.percent(30) { 1 + rng.below(3) as i64 } else { 0 };
    PutRequest {
        key: key(rng),
        value: vec![rng.below(9) as u8].into(),
        lease,
        prev_kv: true,
        ..Default::default()
    }
}

fn delete(rng: &mut Rng) -> DeleteRangeRequest {
    let range_end = if rng.percent(50) { key(rng) } else { Bytes::new() };
    DeleteRangeRequest { key: key(rng), range_end, prev_kv: true }
}

fn txn(rng: &mut Rng, depth: u32) -> TxnRequest {
    let op = |rng: &mut Rng| {
        let request = match rng.below(4) {
            0 => Request::RequestDeleteRange(delete(rng)),
            1 if depth < 2 => Request::RequestTxn(txn(rng, depth + 1)),
            _ => Request::RequestPut(PutRequest { lease: 0, ..put(rng) }),
        };
        RequestOp { request: Some(request) }
    };
    TxnRequest {
        compare: (0..rng.below(2)).map(|_| Compare { key: key(rng), ..Default::default() }).collect(),
        success: (0..rng.below(4)).map(|_| op(rng)).collect(),
        failure: (0..rng.below(3)).map(|_| op(rng)).collect(),
    }
}

/// A log of random commands, many of which are refused.
fn log(seed: u64, n: u64) -> Vec<photon_raft::Command> {
    let mut rng = Rng::new(seed);
    (1..=n)
        .map(|i| {
            let op = match rng.below(20) {
                0..=8 => Op::Put(put(&mut rng)),
                9..=11 => Op::DeleteRange(delete(&mut rng)),
                12..=15 => Op::Txn(txn(&mut rng, 0)),
                16 => Op::Compact(CompactionRequest { revision: rng.below(i) as i64, physical: false }),
                17..=18 => Op::LeaseGrant(Grant { id: 1 + rng.below(3) as i64, ttl: 100 }),
                _ => Op::LeaseRevoke(Revoke { id: 1 + rng.below(3) as i64, unless_renewed: 0 }),
            };
            let scope = if rng.percent(20) { Scope::Tenant } else { Scope::Operator };
            let data = Command::new(&Who { scope, login: Login::Root }, op).to_bytes().expect("small");
            // Positions have gaps, as where the log holds entries that are not commands.
            photon_raft::Command { position: Position { index: i * 2, term: 1 + i / 50 }, data }
        })
        .collect()
}

fn open(engine: &MemEngine) -> (StateMachine, Arc<Shared>) {
    StateMachine::open(Arc::new(engine.clone()), 1 << 20).expect("opens")
}

fn dump(view: &dyn View) -> Vec<(usize, Bytes, Bytes)> {
    (0..SPACES.len())
        .flat_map(|s| {
            let items: Vec<_> =
                view.scan(Space(s), KeyRange::all(), Direction::Forward).map(|i| i.expect("scan")).collect();
            items.into_iter().map(move |(k, v)| (s, k, v))
        })
        .collect()
}

fn engine() -> MemEngine {
    MemEngine::new(SPACES.len())
}

fn run(seed: u64, n: u64) -> (MemEngine, Vec<EtcdResult<Answer>>) {
    let e = engine();
    let (mut m, _) = open(&e);
    let replies =
        log(seed, n).iter().flat_map(|c| m.apply(std::slice::from_ref(c)).expect("applies")).collect();
    (e, replies)
}

#[test]
fn batches_do_not_change_anything() {
    for seed in 1..30 {
        let (one_by_one, want) = run(seed, 150);
        let e = engine();
        let (mut m, _) = open(&e);
        let (log, mut rng, mut got) = (log(seed, 150), Rng::new(seed), Vec::new());
        let mut rest = &log[..];
        while !rest.is_empty() {
            let (batch, more) = rest.split_at((1 + rng.below(20) as usize).min(rest.len()));
            got.extend(m.apply(batch).expect("applies"));
            rest = more;
        }
        assert_eq!(got, want, "seed {seed}");
        assert_eq!(dump(&*e.view()), dump(&*one_by_one.view()), "seed {seed}");
        assert!(got.iter().filter(|r| r.is_ok()).count() > 50, "seed {seed}: the log is too hostile");
    }
}

#[test]
fn a_crash_loses_a_suffix_that_the_log_replays() {
    for seed in 1..30 {
        let (want, _) = run(seed, 150);
        let log = log(seed, 150);
        let mut rng = Rng::new(seed ^ 0xc0ffee);
        let mut disk = engine();
        let mut durable = 0;
        loop {
            let (mut m, _) = open(&disk);
            let at = m.applied().index;
            assert!(at >= durable, "seed {seed}: the checkpoint was lost");
            let rest: Vec<_> = log.iter().filter(|c| c.position.index > at).cloned().collect();
            if rest.is_empty() {
                break;
            }
            let mut taken = &rest[..(1 + rng.below(40) as usize).min(rest.len())];
            while !taken.is_empty() {
                let (batch, more) = taken.split_at((1 + rng.below(6) as usize).min(taken.len()));
                m.apply(batch).expect("applies");
                if rng.percent(20) {
                    durable = m.checkpoint().expect("checkpoint").index;
                }
                taken = more;
            }
            let kept = rng.below(disk.pending() as u64 + 1) as usize;
            disk = disk.crash(kept);
            // At least a little progress, or the test may never end.
            if rng.percent(50) {
                disk.persist().expect("persist");
            }
        }
        assert_eq!(dump(&*disk.view()), dump(&*want.view()), "seed {seed}");
    }
}

#[test]
fn a_snapshot_is_the_whole_state() {
    for seed in 1..10 {
        let (from, _) = run(seed, 200);
        let (m, shared) = open(&from);
        let (at, chunks) = m.snapshot().expect("snapshot");
        let chunks: Vec<Bytes> = chunks.map(|c| c.expect("chunk")).collect();
        // A machine with another past takes it over.
        let (to, _) = run(seed + 100, 50);
        let (mut other, theirs) = open(&to);
        let mut feed = chunks.iter().map(|c| Ok(c.clone()));
        other.restore(at, &mut feed).expect("restore");
        assert_eq!(other.applied(), at);
        assert_eq!(dump(&*to.view()), dump(&*from.view()));
        let mut leases = (shared.lessor.list(Scope::Operator), theirs.lessor.list(Scope::Operator));
        leases.0.sort_unstable();
        leases.1.sort_unstable();
        assert_eq!(leases.0, leases.1);
        // Cut into single bytes it is the same; cut short it is refused, and nothing counts as stored.
        let all = chunks.concat();
        let mut bytes = all.iter().map(|b| Ok(Bytes::copy_from_slice(&[*b])));
        other.restore(at, &mut bytes).expect("restore");
        assert_eq!(dump(&*to.view()), dump(&*from.view()));
        let mut short = std::iter::once(Ok(Bytes::copy_from_slice(&all[..all.len() / 2])));
        assert!(other.restore(at, &mut short).is_err());
        for kept in [0, to.pending() / 2, to.pending()] {
            let (m, shared) = open(&to.crash(kept));
            assert_eq!((m.applied(), shared.published().revision), (Position::default(), 1));
        }
    }
}

/// Every answer that a read or watch at `at` may give.
fn seen(view: &dyn View, revision: i64, compacted: i64, at: i64) -> Vec<Bytes> {
    let r = Reader { view, revision, compacted };
    let all = Span { start: Bytes::new(), end: None };
    let forward: Vec<Bytes> = r.scan(all.clone(), at, Direction::Forward).map(|i| i.expect("scan")).collect();
    let mut backward: Vec<Bytes> = r.scan(all, at, Direction::Backward).map(|i| i.expect("scan")).collect();
    backward.reverse();
    assert_eq!(forward, backward);
    for v in &forward {
        let kv = decode(v.clone()).expect("a version");
        assert_eq!(r.at(&kv.key, at).expect("read"), Some(kv));
    }
    forward
}

#[test]
fn sweeping_removes_only_what_nobody_can_read() {
    let mut removed = 0;
    for seed in 1..20 {
        let (kept, _) = run(seed, 300);
        let swept = engine();
        let (mut m, shared) = open(&swept);
        let mut rng = Rng::new(seed);
        for c in log(seed, 300) {
            m.apply(&[c]).expect("applies");
            if rng.percent(10) {
                crate::sweep::step(&shared).expect("sweeps");
            }
        }
        let mut steps = 0;
        while crate::sweep::step(&shared).expect("sweeps") {
            steps += 1;
            // Half swept, it already (and still) reads the same.
            let p = shared.published();
            let at = p.compacted.max(1);
            let both = [kept.view(), swept.view()].map(|v| seen(&*v, p.revision, p.compacted, at));
            assert_eq!(both[0], both[1], "seed {seed} at {at}");
            assert!(steps < 1_000, "it does the same again and again");
        }
        let before = swept.pending();
        assert!(!crate::sweep::step(&shared).expect("sweeps"));
        assert_eq!(swept.pending(), before, "when all is swept there is nothing to write");
        let (a, b) = (kept.view(), swept.view());
        let p = shared.published();
        for at in p.compacted.max(1)..=p.revision {
            assert_eq!(
                seen(&*a, p.revision, p.compacted, at),
                seen(&*b, p.revision, p.compacted, at),
                "seed {seed} at {at}"
            );
        }
        let events = |v: &dyn View| -> Vec<Bytes> {
            let from = event_key(Stamp { main: p.compacted.max(0), sub: 0 });
            v.scan(EVENTS, KeyRange::from(from), Direction::Forward).map(|i| i.expect("scan").0).collect()
        };
        assert_eq!(events(&*a), events(&*b), "seed {seed}");
        for k in events(&*b) {
            let stamp = split_event_key(&k).expect("event");
            let name = b.get(EVENTS, &k).expect("get").expect("event");
            assert!(
                b.get(DATA, &data_key(&name, stamp)).expect("get").is_some(),
                "a watch finds each event's version"
            );
        }
        // And it removes all of that: what is left below the watermark is one live version per key.
        let old: Vec<Bytes> = b
            .scan(DATA, KeyRange::all(), Direction::Forward)
            .map(|i| i.expect("scan"))
            .filter_map(|(k, _)| split_data_key(&k).filter(|(_, s)| s.main < p.compacted).map(|(k, _)| k))
            .collect();
        let mut once = old.clone();
        once.dedup();
        assert_eq!(old, once, "seed {seed}");
        removed += dump(&*a).len() - dump(&*b).len();
    }
    assert!(removed > 500, "only {removed} records were removed: the test tests nothing");
}

#[test]
fn a_command_of_a_newer_version_stops_the_machine() {
    let (mut m, _) = open(&engine());
    let mut data = Command::new(&Who::cloud(), Op::LeaseRevoke(Revoke { id: 1, unless_renewed: 0 }))
        .to_bytes()
        .expect("small")
        .to_vec();
    assert_eq!(&data[..2], &[0x08, 1], "the version comes first");
    data[1] = 2;
    let c = photon_raft::Command { position: Position { index: 1, term: 1 }, data: data.into() };
    assert!(m.apply(&[c]).is_err());
}

/// Commands are checked before they are proposed, but the machine trusts nobody.
#[test]
fn damaged_commands_are_refused_without_a_panic() {
    let mut rng = Rng::new(5);
    let (mut m, shared) = open(&engine());
    let mut understood = 0;
    for (i, c) in log(5, 3_000).into_iter().enumerate() {
        let mut data = c.data.to_vec();
        for _ in 0..rng.below(3) {
            let at = rng.below(data.len() as u64) as usize;
            data[at] = rng.next_u64() as u8;
        }
        if Command::from_bytes(data.clone().into()).is_err() {
            continue;
        }
        understood += 1;
        let position = Position { index: i as u64 + 1, term: 1 };
        let _ = m.apply(&[photon_raft::Command { position, data: data.into() }]).expect("goes on");
    }
    assert!(understood > 500);
    assert!(shared.published().revision > 100);
}

/// What a lease has left survives a restart; a renewal takes the record back, also one still on its way.
#[test]
fn a_recorded_lease_goes_on_where_it_was() {
    let engine = engine();
    let (mut m, shared) = open(&engine);
    let mut index = 0;
    let mut apply = |m: &mut StateMachine, op: Op| {
        index += 1;
        let data = Command::new(&Who::cloud(), op).to_bytes().expect("small");
        let c = photon_raft::Command { position: Position { index, term: 1 }, data };
        m.apply(&[c]).expect("applies").remove(0).expect("accepted");
    };
    let record = |seconds, renewals| {
        Op::LeaseCheckpoint(Checkpoint { leases: vec![Left { id: 1, seconds, renewals }] })
    };
    let left = |s: &Shared| s.lessor.remaining(Scope::Operator, 1).expect("lease").left;
    apply(&mut m, Op::LeaseGrant(Grant { id: 1, ttl: 3600 }));
    assert_eq!(shared.lessor.renew(Scope::Operator, 1), Ok(Some(3600)));
    apply(&mut m, record(100, 0));
    assert_eq!(shared.lessor.renew(Scope::Operator, 1), Ok(None), "the record comes back first");
    drop(m);
    let (mut m, shared) = open(&engine);
    assert!((98..=100).contains(&left(&shared)));
    apply(&mut m, record(0, 0));
    apply(&mut m, record(50, 0)); // overtaken
    assert_eq!(shared.lessor.renew(Scope::Operator, 1), Ok(Some(3600)));
    assert!(left(&shared) > 3590);
    drop(m);
    let (mut m, shared) = open(&engine);
    assert!(left(&shared) > 3590);
    apply(&mut m, record(50, 1));
    drop(m);
    assert!(left(&open(&engine).1) <= 50);
}

#[test]
fn the_pieces_of_a_stream_are_the_range() {
    let mut rng = Rng::new(7);
    let (mut m, shared) = open(&engine());
    let (mut pieces, mut ranges) = (0, 0);
    for (i, c) in log(7, 1_500).into_iter().enumerate() {
        m.apply(&[c]).expect("applies");
        if i % 3 > 0 {
            continue;
        }
        let state = shared.published();
        let bound = |rng: &mut Rng| if rng.percent(80) { 0 } else { rng.below(state.revision as u64) as i64 };
        let request = RangeRequest {
            key: key(&mut rng),
            range_end: if rng.percent(30) { key(&mut rng) } else { "\0".into() },
            limit: rng.below(4) as i64,
            revision: if rng.percent(50) { 0 } else { bound(&mut rng) },
            keys_only: rng.percent(20),
            count_only: rng.percent(10),
            min_mod_revision: bound(&mut rng),
            max_create_revision: bound(&mut rng),
            ..Default::default()
        };
        let scope = if rng.percent(50) { Scope::Tenant } else { Scope::Operator };
        let mut merged = RangeResponse::default();
        let streamed = state.reader().stream(scope, &request, |piece| {
            assert!(merged.header.is_none(), "nothing follows the last piece");
            pieces += 1;
            merged.merge(&piece.encode_to_vec()[..]).expect("merges");
            true
        });
        match state.reader().range(scope, &request) {
            Ok(whole) => {
                ranges += 1;
                assert_eq!((streamed, merged), (Ok(true), whole), "{request:?}");
            }
            Err(e) => assert_eq!(streamed, Err(e)),
        }
    }
    assert!(ranges > 300 && pieces > ranges + 20, "{ranges} {pieces}");
}
