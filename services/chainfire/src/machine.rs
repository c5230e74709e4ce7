//! The state machine on its engine: applies commands of the log, publishes states to readers and
//! changes to watchers, and moves whole states as snapshots.

use crate::{
    EtcdError, EtcdResult,
    command::Command,
    hub::Hub,
    lessor::Lessor,
    model::{Answer, Batch, LeaseEffect, Reader, Rules, layout::*},
    plant::{Plant, planted},
    tokens::Tokens,
};
use bytes::{Bytes, BytesMut};
use photon_kv::{
    Direction,
    engine::{
        self, Engine, KeyRange, Overlay, View,
        dump::{CHUNK, Dump, Record, put_record, take_record},
    },
};
use photon_raft::{Machine, MachineError, Position, snapshot::Chunks};
use prost::Message;
use std::sync::{
    Arc, Mutex, PoisonError, RwLock,
    atomic::{AtomicBool, Ordering},
};
use tokio::sync::watch;

/// A state that readers use.
#[derive(Clone)]
pub struct Published {
    /// What is stored.
    pub view: Arc<dyn View>,
    /// Its revision.
    pub revision: i64,
    /// Older revisions are gone.
    pub compacted: i64,
    /// The rules in force.
    pub rules: Arc<Rules>,
}

impl Published {
    /// Reads it.
    pub fn reader(&self) -> Reader<'_> {
        Reader { view: &*self.view, revision: self.revision, compacted: self.compacted }
    }
}

/// What the machine shares with the rest of ChainFire.
pub struct Shared {
    /// The engine; only the machine and the sweeper write to it.
    pub engine: Arc<dyn Engine>,
    state: RwLock<Arc<Published>>,
    /// Changes for watchers.
    pub hub: Hub,
    /// Lease timers.
    pub lessor: Lessor,
    /// Tokens of logged-in users.
    pub tokens: Tokens,
    /// Held while the sweeper removes versions and while a snapshot replaces the state.
    pub sweeping: Mutex<()>,
    /// Why the state does not follow the log any more.
    pub failed: watch::Sender<Option<String>>,
    /// False while the state is only what is left of one: nothing of it may be served.
    pub whole: AtomicBool,
}

impl Shared {
    /// Nothing more is applied here; the first reason counts.
    pub fn fail(&self, why: &impl ToString) {
        self.failed.send_if_modified(|f| f.is_none() && f.replace(why.to_string()).is_none());
    }

    /// The newest applied state.
    pub fn published(&self) -> Arc<Published> {
        self.state.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The machine of the log.
pub struct StateMachine {
    shared: Arc<Shared>,
    state: State,
}

pub(crate) fn fatal(e: impl std::fmt::Display) -> MachineError {
    MachineError(e.to_string())
}

fn load(view: &dyn View) -> EtcdResult<State> {
    match view.get(META, STATE)? {
        Some(b) => State::decode(b).map_err(|e| EtcdError::Internal(format!("the stored state: {e}"))),
        None => Ok(State { revision: 1, compacted: -1, ..Default::default() }),
    }
}

fn publish_of(engine: &dyn Engine, s: &State, rules: Arc<Rules>) -> Arc<Published> {
    Arc::new(Published { view: engine.view(), revision: s.revision, compacted: s.compacted, rules })
}

/// All leases of a state.
fn leases(view: &dyn View) -> EtcdResult<Vec<LeaseEffect>> {
    view.scan(LEASE, KeyRange::prefix(lease_prefix()), Direction::Forward)
        .map(|item| {
            let (k, v) = item?;
            let bad = || EtcdError::Internal("a stored lease cannot be read".into());
            let id = split_lease_key(&k).ok_or_else(bad)?;
            let r = LeaseRecord::decode(v).map_err(|_| bad())?;
            Ok(LeaseEffect::Granted { id, ttl: r.ttl, left: r.left, renewals: r.renewals, system: r.system })
        })
        .collect()
}

impl StateMachine {
    /// Opens the state that `engine` holds. `ring` bounds the changes kept in memory for watchers, in
    /// bytes.
    pub fn open(engine: Arc<dyn Engine>, ring: usize) -> EtcdResult<(StateMachine, Arc<Shared>)> {
        let mut state = load(&*engine.view())?;
        if state.applied_index == 0 && engine.view().get(META, STATE)?.is_none() {
            // What an interrupted restore may have left.
            for i in 0..SPACES.len() {
                engine.clear(engine::Space(i))?;
            }
            state = load(&*engine.view())?;
        }
        let rules = Arc::new(Rules::load(&*engine.view())?);
        let published = publish_of(&*engine, &state, rules);
        let lessor = Lessor::default();
        lessor.apply(&leases(&*published.view)?);
        let shared = Arc::new(Shared {
            hub: Hub::new(state.revision, ring),
            state: RwLock::new(published),
            engine,
            lessor,
            tokens: Tokens::default(),
            sweeping: Mutex::new(()),
            failed: watch::Sender::new(None),
            whole: AtomicBool::new(true),
        });
        Ok((StateMachine { shared: shared.clone(), state }, shared))
    }

    fn publish(&mut self, state: State, rules: Arc<Rules>) {
        let next = publish_of(&*self.shared.engine, &state, rules);
        self.state = state;
        *self.shared.state.write().unwrap_or_else(PoisonError::into_inner) = next;
    }
}

impl StateMachine {
    fn follow(&mut self, commands: &[photon_raft::Command]) -> Result<Vec<EtcdResult<Answer>>, MachineError> {
        let Some(last) = commands.last() else { return Ok(Vec::new()) };
        let now = self.shared.published();
        let mut batch =
            Batch::new(now.view.clone(), self.state.revision, self.state.compacted, now.rules.clone());
        let mut replies = Vec::with_capacity(commands.len());
        for c in commands {
            let command = Command::from_bytes(c.data.clone()).map_err(fatal)?;
            match batch.apply(&command) {
                // The state cannot be read: going on would let this node drift from the log.
                Err(EtcdError::Internal(why)) => return Err(MachineError(why)),
                reply => replies.push(reply),
            }
        }
        let (revision, compacted) = batch.position();
        let state = State {
            revision,
            compacted,
            applied_index: last.position.index,
            applied_term: last.position.term,
        };
        let history = std::mem::take(&mut batch.history);
        let effects = std::mem::take(&mut batch.leases);
        let tokens = std::mem::take(&mut batch.tokens);
        let rules = batch.rules.clone();
        let mut over = batch.into_overlay();
        if planted(Plant::PositionApart) {
            self.shared.engine.write(over.into_batch()).map_err(fatal)?;
            over = Overlay::new(self.shared.engine.view());
        }
        over.put(META, STATE, state.encode_to_vec());
        self.shared.engine.write(over.into_batch()).map_err(fatal)?;
        let grown = revision > self.state.revision;
        let rights = rules.auth.revision() != now.rules.auth.revision();
        self.publish(state, rules);
        self.shared.lessor.apply(&effects);
        self.shared.tokens.apply(&tokens);
        if grown {
            self.shared.hub.append(history, revision);
        }
        if rights {
            self.shared.hub.rouse();
        }
        Ok(replies)
    }
}

impl Machine for StateMachine {
    type Reply = EtcdResult<Answer>;

    fn apply(&mut self, commands: &[photon_raft::Command]) -> Result<Vec<Self::Reply>, MachineError> {
        self.follow(commands).inspect_err(|e| self.shared.fail(e))
    }

    fn applied(&self) -> Position {
        Position { index: self.state.applied_index, term: self.state.applied_term }
    }

    fn checkpoint(&mut self) -> Result<Position, MachineError> {
        let at = self.applied();
        self.shared.engine.persist().map_err(fatal).inspect_err(|e| self.shared.fail(e))?;
        Ok(at)
    }

    fn snapshot(&self) -> Result<(Position, Chunks), MachineError> {
        let view = self.shared.published().view.clone();
        // As long as no command came, the state is nowhere stored.
        let first = match view.get(META, STATE).map_err(fatal)? {
            Some(_) => None,
            None => {
                let mut state = BytesMut::new();
                put_record(&mut state, META, STATE, &self.state.encode_to_vec());
                Some(Ok(state.freeze()))
            }
        };
        Ok((self.applied(), Box::new(first.into_iter().chain(dump(view)))))
    }

    fn restore(
        &mut self,
        at: Position,
        chunks: &mut dyn Iterator<Item = Result<Bytes, MachineError>>,
    ) -> Result<(), MachineError> {
        let shared = self.shared.clone();
        let _alone = shared.sweeping.lock().unwrap_or_else(PoisonError::into_inner);
        let engine = &*shared.engine;
        // Without its position, what is stored counts as nothing, and the next start clears it.
        let mut gone = engine::Batch::default();
        gone.remove(META, STATE);
        engine.write(gone).and_then(|()| engine.persist()).map_err(fatal)?;
        for i in 0..SPACES.len() {
            engine.clear(engine::Space(i)).map_err(fatal)?;
        }
        let state = fill(engine, at, chunks)?;
        let old = self.state.revision;
        let rules = Arc::new(Rules::load(&*engine.view()).map_err(fatal)?);
        self.publish(state, rules);
        let all = leases(&*shared.published().view).map_err(fatal)?;
        shared.lessor.replace(&all);
        if !planted(Plant::RingKept) {
            shared.hub.jump(self.state.revision.max(old));
        }
        shared.hub.rouse();
        shared.whole.store(true, Ordering::Release);
        Ok(())
    }
}

/// Writes the records of a snapshot, the state last.
pub(crate) struct Fill<'a> {
    engine: &'a dyn Engine,
    batch: engine::Batch,
    size: usize,
    state: Option<State>,
}

impl<'a> Fill<'a> {
    /// Into an empty engine.
    pub fn new(engine: &'a dyn Engine) -> Fill<'a> {
        Fill { engine, batch: engine::Batch::default(), size: 0, state: None }
    }

    /// Takes the next record.
    pub fn add(&mut self, (space, key, value): Record) -> Result<(), MachineError> {
        if space == META && key == STATE {
            self.state = Some(State::decode(value).map_err(fatal)?);
            return Ok(());
        }
        self.size += key.len() + value.len();
        self.batch.put(space, key, value);
        if self.size > CHUNK {
            self.engine.write(std::mem::take(&mut self.batch)).map_err(fatal)?;
            self.size = 0;
        }
        Ok(())
    }

    /// There are no more: makes all durable, and the state valid at a place of the log.
    pub fn finish(self, at: Position) -> Result<State, MachineError> {
        let mut state = self.state.ok_or_else(|| fatal("the snapshot ends before its state"))?;
        self.engine.write(self.batch).and_then(|()| self.engine.persist()).map_err(fatal)?;
        state.applied_index = at.index;
        state.applied_term = at.term;
        let mut last = engine::Batch::default();
        last.put(META, STATE, state.encode_to_vec());
        self.engine.write(last).and_then(|()| self.engine.persist()).map_err(fatal)?;
        Ok(state)
    }
}

fn fill(
    engine: &dyn Engine,
    at: Position,
    chunks: &mut dyn Iterator<Item = Result<Bytes, MachineError>>,
) -> Result<State, MachineError> {
    let mut buffer = BytesMut::new();
    let mut fill = Fill::new(engine);
    for chunk in chunks {
        buffer.extend_from_slice(&chunk?);
        while let Some(record) = take_record(&mut buffer, SPACES.len()).map_err(fatal)? {
            fill.add(record)?;
        }
    }
    if !buffer.is_empty() {
        return Err(fatal("the snapshot ends within a record"));
    }
    fill.finish(at)
}

/// All records of a view, cut into chunks.
pub(crate) fn dump(view: Arc<dyn View>) -> impl Iterator<Item = Result<Bytes, MachineError>> + Send {
    let spaces = (0..SPACES.len()).map(engine::Space);
    let carried = spaces.filter(|s| *s != LEASE || !planted(Plant::LeasesNotCarried));
    Dump::new(view, carried.map(|s| (s, KeyRange::all()))).map(|chunk| chunk.map_err(fatal))
}
