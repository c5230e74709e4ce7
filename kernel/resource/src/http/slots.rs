//! A bounded number of something, of which one caller gets only a part.

use photon_auth::Identity;
use photon_base::{Code, Error, Result};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

/// Slots. Cheap to clone; clones share them.
#[derive(Clone)]
pub struct Slots(Arc<Inner>);

struct Inner {
    what: &'static str,
    all: usize,
    each: usize,
    held: Mutex<HashMap<Identity, usize>>,
}

/// One slot, given back when dropped.
pub struct Slot(Slots, Identity);

impl Slots {
    /// `all` slots for `what`, at most `each` for one caller.
    pub fn new(what: &'static str, all: usize, each: usize) -> Slots {
        Slots(Arc::new(Inner { what, all, each, held: Mutex::default() }))
    }

    /// A slot for `who`, or an error that says that there is none.
    pub fn take(&self, who: &Identity) -> Result<Slot> {
        let mut held = self.0.held.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = held.values().sum();
        let own = held.get(who).copied().unwrap_or(0);
        if all >= self.0.all || own >= self.0.each {
            return Err(Error::new(Code::Exhausted, format!("too many {} are open", self.0.what))
                .why(format!("{own} of at most {} are {who}'s", self.0.each))
                .hint("close some, or try again in a moment"));
        }
        held.insert(who.clone(), own + 1);
        Ok(Slot(self.clone(), who.clone()))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut held = self.0.0.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(n) = held.get_mut(&self.1) {
            *n -= 1;
            if *n == 0 {
                held.remove(&self.1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_caller_does_not_take_all() {
        let slots = Slots::new("things", 5, 3);
        let who = |n: &str| Identity::user(n.parse().expect("name"));
        let (a, b, c) = (who("a"), who("b"), who("c"));
        let mut held: Vec<Slot> = (0..3).map(|_| slots.take(&a).expect("free")).collect();
        assert!(slots.take(&a).is_err());
        held.extend((0..2).map(|_| slots.take(&b).expect("free")));
        assert!(slots.take(&c).is_err(), "all are taken");
        held.clear();
        assert!(slots.take(&c).is_ok() && slots.0.held.lock().expect("lock").is_empty());
    }
}
