use super::{command::*, layout::*, read::*, region, *};
use crate::{
    key::{self, Mode, Span},
    time,
};
use photon_kv::{
    Direction,
    engine::{Engine, KeyRange, MemEngine, View},
};
use proptest::prelude::*;
use prost::Message;
use std::collections::BTreeMap;

/// A region on an engine in memory, which checks that a refusal changes nothing.
struct Region {
    engine: MemEngine,
    id: u64,
    index: u64,
}

type Dump = Vec<(usize, Bytes, Bytes)>;

fn dump(view: &dyn View, but: Option<Space>) -> Dump {
    let spaces = (0..SPACES.len()).filter(|i| Some(Space(*i)) != but);
    spaces
        .flat_map(|i| {
            let all = view.scan(Space(i), KeyRange::all(), Direction::Forward);
            all.map(move |r| r.map(|(k, v)| (i, k, v)).unwrap()).collect::<Vec<_>>()
        })
        .collect()
}

impl Region {
    fn new() -> Region {
        let engine = MemEngine::new(SPACES.len());
        let mut r = Region { engine, id: 1, index: 0 };
        r.save(&RegionState::first(1, &[]));
        r
    }

    fn save(&mut self, s: &RegionState) {
        let mut over = Overlay::new(self.engine.view());
        over.put(META, meta_key(s.region.id), s.encode_to_vec());
        self.engine.write(over.into_batch()).unwrap();
    }

    fn state(&self) -> RegionState {
        region::state_of(&*self.engine.view(), self.id).unwrap()
    }

    fn run_at(&mut self, epoch: u64, term: u64, floor: Ts, op: Op) -> Outcome<Answer> {
        let mut command = Command::new(epoch, op);
        (command.term, command.floor) = (term, floor);
        let command = Command::decode_entry(command.encode_to_vec().into()).unwrap();
        let (mut state, mut effects) = (self.state(), Vec::new());
        let before = state.clone();
        let mut over = Overlay::new(self.engine.view());
        self.index += 1;
        let answer = region::apply(&mut over, &mut state, 1, &command, &mut effects);
        if answer.is_err() {
            assert_eq!(state, before, "refused, yet the region changed");
            assert!(over.into_batch().writes.is_empty(), "refused, yet something was written");
            return answer;
        }
        over.put(META, meta_key(self.id), state.encode_to_vec());
        self.engine.write(over.into_batch()).unwrap();
        answer
    }

    fn run(&mut self, op: Op) -> Outcome<Answer> {
        let epoch = self.state().region.version;
        self.run_at(epoch, 1, 0, op)
    }
}

fn k(n: u8) -> Bytes {
    key::key(Mode::Txn, &[b'k', n]).unwrap()
}

fn raw(name: &str) -> Bytes {
    key::key(Mode::Raw, name.as_bytes()).unwrap()
}

fn put(n: u8, value: &[u8]) -> Mutation {
    Mutation { kind: Kind::Put as i32, key: k(n), value: value.to_vec().into(), ..Mutation::default() }
}

fn prewrite(start: Ts, mutations: Vec<Mutation>) -> Prewrite {
    let primary = mutations[0].key.clone();
    Prewrite { start, primary, ttl_ms: 1000, mutations, ..Prewrite::default() }
}

fn commit(start: Ts, commit: Ts, keys: &[u8]) -> Op {
    Op::Commit(Commit { start, commit, keys: keys.iter().map(|n| k(*n)).collect() })
}

fn rollback(start: Ts, n: u8) -> Op {
    Op::Rollback(Rollback { start, keys: vec![k(n)] })
}

#[test]
fn compare_and_swap_is_all_or_nothing() {
    let mut r = Region::new();
    let write = |k: &str, v: Option<&str>| RawWrite { key: raw(k), value: v.map(|v| v.to_string().into()) };
    let check = |k: &str, want| RawCheck { key: raw(k), want: Some(want) };
    let op = |checks, writes| Op::Raw(RawCommit { checks, writes });
    let both = vec![write("a", Some("1")), write("b", Some("2"))];
    assert_eq!(r.run(op(vec![check("a", Want::Present(false))], both.clone())), Ok(Answer::Written(1)));
    let refused = Refusal::CheckFailed { index: 0, version: 1, value: Some("1".into()) };
    assert_eq!(r.run(op(vec![check("a", Want::Present(false))], both)), Err(refused));
    let swap = vec![check("a", Want::Value("1".into())), check("b", Want::Version(1))];
    let next = vec![write("a", None), write("b", Some("3"))];
    assert_eq!(r.run(op(swap.clone(), next.clone())), Ok(Answer::Written(2)));
    let refused = Refusal::CheckFailed { index: 0, version: 0, value: None };
    assert_eq!(r.run(op(swap, next)), Err(refused));
    let view = r.engine.view();
    assert_eq!(raw_get(&*view, &raw("a")), Ok(None));
    let page = raw_scan(&*view, &Query::all(Span::prefix(Mode::Raw, b""))).unwrap();
    assert_eq!(page.rows, [Row { key: raw("b"), value: "3".into(), version: 2 }]);
}

#[test]
fn what_cannot_be_right_is_refused_by_name() {
    let mut r = Region::new();
    let long = vec![0; key::MAX_VALUE + 1];
    let too_large = Refusal::ValueTooLarge { len: long.len(), limit: key::MAX_VALUE };
    assert_eq!(r.run(Op::Prewrite(prewrite(4, vec![put(1, &long)]))), Err(too_large));
    assert_eq!(r.run(Op::Prewrite(prewrite(5, vec![put(1, b"x")]))), Err(Refusal::NotATimestamp(5)));
    let twice = r.run(Op::Prewrite(prewrite(4, vec![put(1, b"x"), put(1, b"y")])));
    assert_eq!(twice, Err(Refusal::Malformed("a key appears twice".into())));
    let many = (0..=limits::MAX_KEYS).map(|n| {
        let key = key::key(Mode::Txn, &n.to_be_bytes()).unwrap();
        Mutation { key, ..Mutation::default() }
    });
    let many = r.run(Op::Prewrite(prewrite(4, many.collect())));
    assert!(matches!(many, Err(Refusal::TooMany { what: "keys", .. })), "{many:?}");
    let wrong = Mutation { key: raw("a"), ..Mutation::default() };
    assert!(matches!(r.run(Op::Prewrite(prewrite(4, vec![wrong]))), Err(Refusal::Malformed(_))));
    let stale = r.run_at(7, 1, 0, rollback(4, 1));
    assert_eq!(stale, Err(Refusal::StaleEpoch(Box::new(r.state().region))));
    // A derived timestamp is worth nothing in a term it was not derived for.
    let one = Prewrite { one_phase: true, ..prewrite(4, vec![put(1, b"x")]) };
    assert_eq!(r.run_at(1, 9, 0, Op::Prewrite(one)), Err(Refusal::NotLeader(1)));
    let view = r.engine.view();
    let inverted = Span { start: k(2), end: k(1) };
    assert_eq!(scan(&*view, &Query::all(inverted), &Snapshot::at(8)), Err(Refusal::InvertedRange));
    let state = r.state();
    assert_eq!(region::readable(&state, 1, &Span::all(), Some(3)), Err(Refusal::NotATimestamp(3)));
}

#[test]
fn late_and_doubled_steps_find_their_traces() {
    let mut r = Region::new();
    let p = |start| Op::Prewrite(prewrite(start, vec![put(1, b"v")]));
    assert_eq!(r.run(p(2)), Ok(Answer::Prewritten { min_commit: 3 }));
    assert_eq!(r.run(p(2)), Ok(Answer::Prewritten { min_commit: 3 }));
    assert!(matches!(r.run(p(4)), Err(Refusal::Locked(l)) if l[0].start == 2));
    assert_eq!(r.run(commit(2, 6, &[1])), Ok(Answer::Done));
    assert_eq!(r.run(commit(2, 6, &[1])), Ok(Answer::Done));
    assert_eq!(r.run(p(2)), Ok(Answer::Committed(6)));
    assert_eq!(r.run(rollback(2, 1)), Err(Refusal::Committed(6)));
    assert_eq!(r.run(p(4)), Err(Refusal::Conflict { key: k(1), commit: 6, since: 4 }));
    // A rollback that comes before its prewrite keeps it out.
    assert_eq!(r.run(rollback(8, 1)), Ok(Answer::Done));
    assert_eq!(r.run(p(8)), Err(Refusal::RolledBack(8)));
    assert_eq!(r.run(commit(8, 10, &[1])), Err(Refusal::RolledBack(8)));
    assert_eq!(r.run(commit(12, 14, &[1])), Err(Refusal::NotLocked(12)));
}

#[test]
fn a_reader_moves_a_writer_behind_itself_and_the_dead_are_buried() {
    let mut r = Region::new();
    let start = time::at_ms(1000);
    r.run(Op::Prewrite(prewrite(start, vec![put(1, b"v")]))).unwrap();
    let ask = |reader, now, rollback_missing| {
        let primary = k(1);
        Op::Status(CheckStatus { primary, start, reader, now, rollback_missing, force_sync: false })
    };
    let reader = start + 10;
    let at = &Snapshot::at(reader);
    assert!(matches!(get(&*r.engine.view(), &k(1), at), Err(Refusal::Locked(_))));
    let alive = Answer::Status(Status::Alive { ttl_ms: 1000, min_commit: reader + 1 });
    assert_eq!(r.run(ask(reader, reader, false)), Ok(alive));
    assert_eq!(get(&*r.engine.view(), &k(1), at), Ok(None));
    assert_eq!(r.run(commit(start, reader, &[1])), Err(Refusal::CommitTooEarly(reader + 1)));
    let late = time::at_ms(2001) + 2;
    assert_eq!(r.run(ask(0, late, false)), Ok(Answer::Status(Status::RolledBack)));
    assert_eq!(r.run(commit(start, late, &[1])), Err(Refusal::RolledBack(start)));
    let missing = |rollback_missing| {
        let (primary, reader, force_sync) = (k(2), 0, false);
        Op::Status(CheckStatus { primary, start, reader, now: late, rollback_missing, force_sync })
    };
    assert_eq!(r.run(missing(false)), Ok(Answer::Status(Status::Missing)));
    assert_eq!(r.run(missing(true)), Ok(Answer::Status(Status::RolledBack)));
    let late_prewrite = Op::Prewrite(prewrite(start, vec![put(2, b"v")]));
    assert_eq!(r.run(late_prewrite), Err(Refusal::RolledBack(start)));
}

#[test]
fn splitting_and_merging_move_keys_without_touching_them() {
    let mut r = Region::new();
    for n in 0..10 {
        r.run(Op::Prewrite(prewrite(2, vec![put(n, b"v")]))).unwrap();
        r.run(commit(2, 4, &[n])).unwrap();
    }
    let before = dump(&*r.engine.view(), Some(META));
    assert!(matches!(r.run(Op::Split(Split { at: k(5), id: 2 })), Err(Refusal::Malformed(_))));
    let at = key::border(&k(5)).unwrap();
    let Ok(Answer::Regions(two)) = r.run(Op::Split(Split { at: at.clone(), id: 2 })) else { panic!() };
    assert_eq!((two[0].end.clone(), two[1].start.clone(), two[1].version), (at.clone(), at.clone(), 2));
    assert_eq!(r.run(rollback(8, 5)), Err(Refusal::OutOfRange(1)));
    assert_eq!(r.run_at(1, 1, 0, rollback(8, 4)), Err(Refusal::StaleEpoch(Box::new(two[0].clone()))));
    assert_eq!(r.run(Op::Split(Split { at, id: 3 })), Err(Refusal::OutOfRange(1)));
    r.id = 2;
    assert_eq!(r.run(rollback(8, 5)), Ok(Answer::Done));
    assert!(r.run(Op::PrepareMerge(PrepareMerge { target: 1, begin: true })).is_ok());
    assert_eq!(r.run(rollback(10, 5)), Err(Refusal::Merging(2)));
    r.id = 1;
    let merge = CommitMerge { source: Some(two[1].clone()), index: 0 };
    let Ok(Answer::Regions(one)) = r.run(Op::CommitMerge(merge)) else { panic!() };
    assert_eq!((one[0].span(), one[0].version), (Span::all(), 3));
    r.id = 2;
    assert_eq!(r.run(rollback(12, 5)), Err(Refusal::NoRegion(2)));
    let gone: Vec<_> = dump(&*r.engine.view(), Some(META));
    assert_eq!(gone.len(), before.len() + 1, "one rollback was added");
}

#[test]
fn the_gate_lets_no_derived_commit_slip_behind_a_read() {
    let mut g = Gate::default();
    let one =
        || Command::new(1, Op::Prewrite(Prewrite { one_phase: true, ..prewrite(4, vec![put(1, b"x")]) }));
    assert_eq!(g.admit(1, 3, &mut one()), Err(Refusal::NotLeader(1)));
    g.open(3, 1, 20);
    assert_eq!(g.admit(1, 4, &mut one()), Err(Refusal::NotLeader(1)));
    assert_eq!(g.read(30, &Span::all()), gate::Entry::Now);
    let mut c = one();
    let n = g.admit(1, 3, &mut c).unwrap().unwrap();
    assert_eq!((c.term, c.floor), (3, 30));
    assert_eq!(g.read(40, &Span { start: k(2), end: k(3) }), gate::Entry::Now);
    assert_eq!(g.read(40, &Span::all()), gate::Entry::After(n));
    g.done(n);
    assert_eq!(g.read(40, &Span::all()), gate::Entry::Now);
}

/// How a transaction of the property test ends.
#[derive(Clone, Copy, Debug)]
enum End {
    Commit,
    Rollback,
    OnePhase,
    Leave,
}

#[derive(Clone, Debug)]
enum Step {
    Txn { keys: Vec<(u8, Option<u16>)>, end: End, floor: u8 },
    Read { key: u8, back: u8 },
    Scan { from: u8, to: u8, back: u8, backward: bool, limit: usize, project: u8, filter: bool },
    Gc { back: u8, limit: u32 },
    Settle,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let end = prop_oneof![
        4 => Just(End::Commit), 1 => Just(End::Rollback), 2 => Just(End::OnePhase), 1 => Just(End::Leave)
    ];
    let keys = proptest::collection::btree_map(0u8..8, proptest::option::weighted(0.8, 0u16..3000), 1..4);
    let step = prop_oneof![
        6 => (keys, end, 0u8..6).prop_map(|(k, end, floor)| Step::Txn { keys: k.into_iter().collect(), end, floor }),
        3 => (0u8..8, 0u8..20).prop_map(|(key, back)| Step::Read { key, back }),
        4 => (0u8..8, 0u8..9, 0u8..20, any::<bool>(), 1usize..6, 0u8..4, any::<bool>()).prop_map(
            |(from, to, back, backward, limit, project, filter)| Step::Scan {
                from, to, back, backward, limit, project, filter
            }
        ),
        1 => (0u8..20, 1u32..9).prop_map(|(back, limit)| Step::Gc { back, limit }),
        1 => Just(Step::Settle),
    ];
    proptest::collection::vec(step, 1..60)
}

/// What the region should hold, in the plainest form: all versions of all keys, and open locks.
#[derive(Default)]
struct Model {
    keys: BTreeMap<u8, BTreeMap<Ts, Option<Bytes>>>,
    locks: BTreeMap<u8, (Ts, Option<Bytes>)>,
    safe: Ts,
    now: Ts,
}

impl Model {
    fn at(&self, key: u8, ts: Ts) -> Option<(Bytes, Ts)> {
        let versions = self.keys.get(&key)?;
        let (at, value) = versions.range(..=ts).next_back()?;
        value.clone().map(|v| (v, *at))
    }

    fn write(&mut self, key: u8, at: Ts, value: Option<Bytes>) {
        self.keys.entry(key).or_default().insert(at, value);
    }
}

fn back(m: &Model, n: u8) -> Ts {
    (m.now.saturating_sub(u64::from(n)) & !1).max(2)
}

fn play(steps: Vec<Step>) -> Result<(), TestCaseError> {
    let (mut r, mut m) = (Region::new(), Model { now: 2, ..Model::default() });
    for step in steps {
        m.now += 2;
        let start = m.now;
        match step {
            Step::Txn { keys, end, floor } => {
                let value = |len: u16| Bytes::from(vec![start as u8; usize::from(len)]);
                let mutations = keys.iter().map(|(n, v)| {
                    let kind = if v.is_some() { Kind::Put } else { Kind::Delete };
                    Mutation {
                        kind: kind as i32,
                        key: k(*n),
                        value: v.map(value).unwrap_or_default(),
                        ..Mutation::default()
                    }
                });
                let p = prewrite(start, mutations.collect());
                let p = Prewrite { one_phase: matches!(end, End::OnePhase), ..p };
                let floor = start + 2 * u64::from(floor);
                let got = r.run_at(1, 1, floor, Op::Prewrite(p));
                if keys.iter().any(|(n, _)| m.locks.contains_key(n)) {
                    prop_assert!(matches!(got, Err(Refusal::Locked(_))), "{:?}", got);
                    continue;
                }
                let newest = |n| m.keys.get(n).and_then(|v| v.keys().next_back()).copied().unwrap_or(0);
                if keys.iter().any(|(n, _)| newest(n) > start) {
                    prop_assert!(matches!(got, Err(Refusal::Conflict { .. })), "{:?}", got);
                    continue;
                }
                let names: Vec<u8> = keys.iter().map(|(n, _)| *n).collect();
                m.now += 2;
                let mut at = m.now;
                match end {
                    End::OnePhase => {
                        at = floor + 1;
                        m.now = m.now.max(floor);
                        prop_assert_eq!(got, Ok(Answer::Committed(at)));
                    }
                    End::Commit => {
                        prop_assert_eq!(got, Ok(Answer::Prewritten { min_commit: start + 1 }));
                        prop_assert_eq!(r.run(commit(start, at, &names)), Ok(Answer::Done));
                    }
                    End::Rollback => {
                        for n in names {
                            prop_assert_eq!(r.run(rollback(start, n)), Ok(Answer::Done));
                        }
                        continue;
                    }
                    End::Leave => {
                        for (n, v) in &keys {
                            m.locks.insert(*n, (start, v.map(value)));
                        }
                        continue;
                    }
                }
                for (n, v) in &keys {
                    m.write(*n, at, v.map(value));
                }
            }
            Step::Read { key, back: b } => {
                let at = back(&m, b);
                if at < m.safe {
                    continue;
                }
                let got = get(&*r.engine.view(), &k(key), &Snapshot::at(at));
                if m.locks.get(&key).is_some_and(|(s, _)| *s < at) {
                    prop_assert!(matches!(got, Err(Refusal::Locked(_))), "{:?}", got);
                } else {
                    prop_assert_eq!(got, Ok(m.at(key, at)));
                }
            }
            Step::Scan { from, to, back: b, backward, limit, project, filter } => {
                let at = back(&m, b);
                if at < m.safe || from >= to {
                    continue;
                }
                let direction = if backward { Direction::Backward } else { Direction::Forward };
                let project =
                    [Project::All, Project::Keys, Project::Part(1, 2), Project::Count][usize::from(project)];
                let clause =
                    Clause { key: false, offset: 3, test: Test::Less, operand: "\0".into(), not: true };
                let filter = if filter { vec![clause] } else { vec![] };
                let mut query =
                    Query { span: Span { start: k(from), end: k(to) }, direction, limit, filter, project };
                if m.locks.range(from..to).any(|(_, (s, _))| *s < at) {
                    query.limit = limits::MAX_ROWS;
                    let got = scan(&*r.engine.view(), &query, &Snapshot::at(at));
                    prop_assert!(matches!(got, Err(Refusal::Locked(_))), "{:?}", got);
                    let pass = m.locks.values().map(|(s, _)| *s).collect();
                    let snapshot = Snapshot { at, pass };
                    prop_assert!(scan(&*r.engine.view(), &query, &snapshot).is_ok());
                    continue;
                }
                let (mut rows, mut count) = (Vec::new(), 0);
                loop {
                    let page = scan(&*r.engine.view(), &query, &Snapshot::at(at)).unwrap();
                    prop_assert!(page.rows.len() <= limit);
                    rows.extend(page.rows);
                    count += page.count;
                    let Some(rest) = page.rest else { break };
                    query.span = rest;
                }
                let mut want: Vec<Row> = Vec::new();
                for n in from..to {
                    let Some((v, version)) = m.at(n, at) else { continue };
                    if query.filter.is_empty() || v.len() > 3 {
                        let value = match project {
                            Project::All => v,
                            Project::Part(..) => v.slice(1.min(v.len())..3.min(v.len())),
                            _ => Bytes::new(),
                        };
                        want.push(Row { key: k(n), value, version });
                    }
                }
                if backward {
                    want.reverse();
                }
                prop_assert_eq!(count, want.len() as u64);
                if project != Project::Count {
                    prop_assert_eq!(rows, want);
                }
            }
            Step::Gc { back: b, limit } => {
                let safe_point = back(&m, b);
                let raise = r.run(Op::Gc(Gc { safe_point, ..Gc::default() }));
                if m.locks.values().any(|(s, _)| *s <= safe_point) {
                    prop_assert!(matches!(raise, Err(Refusal::Locked(_))), "{:?}", raise);
                    continue;
                }
                m.safe = m.safe.max(safe_point);
                let mut from = Bytes::new();
                loop {
                    let got = r.run(Op::Gc(Gc { safe_point, from: from.clone(), limit })).unwrap();
                    let Answer::Collected { next } = got else { panic!("{got:?}") };
                    let Some(next) = next else { break };
                    prop_assert!(next > from);
                    from = next;
                }
                for versions in m.keys.values_mut() {
                    let keep = versions.range(..=safe_point).next_back().map(|(t, v)| (*t, v.is_some()));
                    versions.retain(|t, _| *t > safe_point || Some((*t, true)) == keep);
                }
                // Nothing more is stored than the versions that the model has, and what came later.
                let view = r.engine.view();
                let stored = view
                    .scan(WRITE, KeyRange::all(), Direction::Forward)
                    .map(|i| unversioned(&i.unwrap().0).unwrap().1);
                let old = stored.filter(|t| *t <= safe_point).count();
                let want = m.keys.values().flat_map(|v| v.keys()).filter(|t| **t <= safe_point).count();
                prop_assert_eq!(old, want);
                let late = Op::Prewrite(prewrite(safe_point, vec![put(1, b"late")]));
                let late = r.run(late);
                prop_assert!(matches!(late, Err(Refusal::BeforeSafePoint { .. })), "{:?}", late);
            }
            Step::Settle => {
                let starts: std::collections::BTreeSet<Ts> = m.locks.values().map(|(s, _)| *s).collect();
                for start in starts {
                    m.now += 2;
                    let at = m.now;
                    let done = start % 4 == 0;
                    let names: Vec<u8> =
                        m.locks.iter().filter(|(_, l)| l.0 == start).map(|(n, _)| *n).collect();
                    let keys = names.iter().map(|n| k(*n)).collect();
                    let resolve = Resolve { start, commit: if done { at } else { 0 }, keys };
                    prop_assert_eq!(r.run(Op::Resolve(resolve)), Ok(Answer::Done));
                    for n in names {
                        let (_, v) = m.locks.remove(&n).unwrap();
                        if done {
                            m.write(n, at, v);
                        }
                    }
                }
            }
        }
    }
    // No long value without a record that points to it.
    let view = r.engine.view();
    for item in view.scan(DATA, KeyRange::all(), Direction::Forward) {
        let (key, start) = unversioned(&item.unwrap().0).unwrap();
        let lock = Lock::load(&*view, &key).unwrap().is_some_and(|l| l.start == start);
        let written = records(&*view, &key, Ts::MAX, 0).any(|w| w.unwrap().start == start);
        prop_assert!(lock || written);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn versions_are_what_the_plainest_model_has(steps in steps()) {
        play(steps)?;
    }

    #[test]
    fn foreign_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(c) = Command::decode_entry(bytes.into()) {
            let _ = c.check();
        }
    }
}
