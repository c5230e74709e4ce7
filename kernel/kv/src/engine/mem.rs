//! An engine in memory, with crashes on demand.

use super::*;
use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

type Spaces = Vec<Arc<BTreeMap<Bytes, Bytes>>>;

/// Keeps everything in ordered maps. A clone is another handle on the same "disk".
#[derive(Clone)]
pub struct MemEngine {
    state: Arc<Mutex<State>>,
}

struct State {
    now: Spaces,
    durable: Spaces,
    /// Batches since the last persist.
    pending: Vec<Batch>,
}

fn apply(spaces: &mut Spaces, batch: &Batch) {
    for (space, key, value) in &batch.writes {
        let map = Arc::make_mut(&mut spaces[space.0]);
        match value {
            Some(v) => map.insert(key.clone(), v.clone()),
            None => map.remove(key),
        };
    }
}

impl MemEngine {
    /// An empty store with `spaces` keyspaces.
    pub fn new(spaces: usize) -> Self {
        let empty: Spaces = vec![Arc::default(); spaces];
        let state = State { now: empty.clone(), durable: empty, pending: Vec::new() };
        MemEngine { state: Arc::new(Mutex::new(state)) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Batches that a crash could take away now.
    pub fn pending(&self) -> usize {
        self.lock().pending.len()
    }

    /// The disk after a power loss that let `kept` of the batches since the last persist survive.
    pub fn crash(&self, kept: usize) -> MemEngine {
        let s = self.lock();
        let mut now = s.durable.clone();
        s.pending.iter().take(kept).for_each(|b| apply(&mut now, b));
        let state = State { durable: now.clone(), now, pending: Vec::new() };
        MemEngine { state: Arc::new(Mutex::new(state)) }
    }
}

impl Engine for MemEngine {
    fn write(&self, batch: Batch) -> EngineResult<()> {
        if batch.writes.iter().any(|(_, k, _)| k.is_empty() || k.len() > MAX_KEY) {
            return Err(EngineError::Failed("a key that is empty or too long".into()));
        }
        let mut s = self.lock();
        apply(&mut s.now, &batch);
        s.pending.push(batch);
        Ok(())
    }

    fn persist(&self) -> EngineResult<()> {
        let mut s = self.lock();
        s.durable = s.now.clone();
        s.pending.clear();
        Ok(())
    }

    fn view(&self) -> Arc<dyn View> {
        Arc::new(MemView(self.lock().now.clone()))
    }

    fn clear(&self, space: Space) -> EngineResult<()> {
        let all: Vec<Bytes> = self.lock().now[space.0].keys().cloned().collect();
        self.write(Batch { writes: all.into_iter().map(|k| (space, k, None)).collect() })
    }

    fn disk_bytes(&self) -> u64 {
        self.lock().now.iter().flat_map(|m| m.iter()).map(|(k, v)| (k.len() + v.len()) as u64).sum()
    }

    fn compact(&self) -> EngineResult<()> {
        Ok(())
    }
}

struct MemView(Spaces);

impl View for MemView {
    fn get(&self, space: Space, key: &[u8]) -> EngineResult<Option<Bytes>> {
        Ok(self.0[space.0].get(key).cloned())
    }

    fn scan<'a>(&'a self, space: Space, range: KeyRange, direction: Direction) -> Scan<'a> {
        if range.is_empty() {
            return Box::new(std::iter::empty());
        }
        let iter = self.0[space.0].range((range.start, range.end)).map(|(k, v)| Ok((k.clone(), v.clone())));
        match direction {
            Direction::Forward => Box::new(iter),
            Direction::Backward => Box::new(iter.rev()),
        }
    }
}
