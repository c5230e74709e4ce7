//! What a reconciler may read and write, and the record of what it read.

use crate::{View, lease::Held};
use photon_base::{Code, Error, Name, Result};
use photon_resource::{Key, Object, Resource, Store, Tx, kind_range};
use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
};

/// Storage keys and prefixes that one run of a reconciler looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reads {
    /// Single objects, present or not.
    pub keys: BTreeSet<String>,
    /// Lists.
    pub prefixes: BTreeSet<String>,
}

/// One run's window on the world. Reads go to the view and are remembered; writes go to the store.
pub struct Context {
    view: View,
    store: Store,
    reads: Mutex<Reads>,
    held: Option<Held>,
}

impl Context {
    /// A window on `view` and `store`.
    pub fn new(view: View, store: Store) -> Context {
        Context { view, store, reads: Mutex::default(), held: None }
    }

    /// The same, for a run under a lease.
    pub fn under(self, held: Option<Held>) -> Context {
        Context { held, ..self }
    }

    pub(crate) fn view(&self) -> &View {
        &self.view
    }

    fn note(&self, f: impl FnOnce(&mut Reads)) {
        f(&mut self.reads.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// One object.
    pub fn get<R: Resource>(&self, project: Option<&Name>, name: &Name) -> Result<Option<Object<R>>> {
        let key = Key::new(R::KIND, project.cloned(), name.clone());
        let storage = String::from_utf8_lossy(&key.storage()).into_owned();
        let found = self.view.get(&storage);
        self.note(|r| {
            r.keys.insert(storage);
        });
        found.map(|o| o.typed()).transpose()
    }

    /// All objects of a kind, in one project or everywhere.
    pub fn list<R: Resource>(&self, project: Option<&Name>) -> Result<Vec<Object<R>>> {
        let prefix = String::from_utf8_lossy(&kind_range(R::KIND, project, R::SCOPE).start).into_owned();
        let found = self.view.list(&prefix);
        self.note(|r| {
            r.prefixes.insert(prefix);
        });
        found.into_iter().map(|(_, o)| o.typed()).collect()
    }

    /// The revision that the view shows.
    pub fn revision(&self) -> u64 {
        self.view.revision()
    }

    /// An empty commit to fill. It fails if this run is under a lease that somebody else has taken.
    pub fn begin(&self) -> Tx<'_> {
        let mut tx = self.store.begin();
        if let Some(held) = &self.held {
            let lost = Error::new(Code::Conflict, "another node decides this now")
                .why(format!("the lease of epoch {} was taken over", held.epoch));
            tx.check(held.fence(), lost);
        }
        tx
    }

    /// The store, for reads that must be of this very moment.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// What was read so far.
    pub fn reads(&self) -> Reads {
        self.reads.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
