//! What clients of a store with revisions saw, and whether that can be.
//!
//! Such a store tells with each answer at which revision it was given, so that linearizability need not be
//! searched for: the order of the revisions must be an order in which everything makes sense, and must not
//! contradict real time. The log of all changes (a watch from the first revision) is the truth that all
//! answers are compared with; that it loses nothing acknowledged is checked, too.

use std::{
    collections::{BTreeMap, HashMap},
    time::Instant,
};

/// What a client asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// Set a key to a value that nobody else writes.
    Put { key: String, value: String },
    /// Set it if it was last written at this revision (0: if it does not exist).
    Swap { key: String, last: i64, value: String },
    /// Read it, linearizably.
    Get { key: String },
}

/// What it heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// Written, at this revision.
    Written { revision: i64 },
    /// Not swapped: the condition did not hold, as of this revision.
    Kept { revision: i64 },
    /// Read: as of a revision, the value and when it was written; none if there is none.
    Found { revision: i64, value: Option<(String, i64)> },
    /// Nothing, or that the outcome is not known.
    Unknown,
    /// That it was not done.
    Refused,
}

/// One question and its answer.
#[derive(Clone, Debug)]
pub struct Operation {
    pub asked: Asked,
    pub heard: Heard,
    pub begun: Instant,
    pub ended: Instant,
}

/// One change, as a watch tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed {
    pub revision: i64,
    pub key: String,
    pub value: String,
}

/// Finds the first thing that cannot be.
pub fn check(operations: &[Operation], log: &[Changed]) -> Result<(), String> {
    if let Some(w) = log.windows(2).find(|w| w[0].revision >= w[1].revision) {
        return Err(format!("watch: {:?} is followed by {:?}", w[0], w[1]));
    }
    let by_value: HashMap<&str, &Changed> = log.iter().map(|c| (c.value.as_str(), c)).collect();
    if by_value.len() < log.len() {
        return Err("watch: a value was written twice".into());
    }
    let mut keys: HashMap<&str, BTreeMap<i64, &str>> = HashMap::new();
    for c in log {
        keys.entry(&c.key).or_default().insert(c.revision, &c.value);
    }
    let at = |key: &str, revision: i64| {
        let versions = keys.get(key)?;
        versions.range(..=revision).next_back().map(|(r, v)| ((*v).to_string(), *r))
    };
    for op in operations {
        let wrong = |what: &str| Err(format!("{what}: {op:?}"));
        match (&op.asked, &op.heard) {
            (Asked::Put { key, value } | Asked::Swap { key, value, .. }, Heard::Written { revision }) => {
                match by_value.get(value.as_str()) {
                    None => return wrong("an acknowledged write is lost"),
                    Some(c) if c.revision != *revision || c.key != *key => {
                        return wrong("a write is not where it was acknowledged");
                    }
                    Some(_) => {}
                }
                if let Asked::Swap { last, .. } = &op.asked {
                    let before = at(key, revision - 1).map_or(0, |(_, r)| r);
                    if before != *last {
                        return wrong(&format!("a swap went through over revision {before}"));
                    }
                }
            }
            (Asked::Swap { key, last, value }, Heard::Kept { revision }) => {
                if by_value.contains_key(value.as_str()) {
                    return wrong("a swap that was not done is done");
                }
                if at(key, *revision).map_or(0, |(_, r)| r) == *last {
                    return wrong("a swap was refused although its condition held");
                }
            }
            (Asked::Get { key }, Heard::Found { revision, value }) => {
                if at(key, *revision) != *value {
                    return wrong(&format!("a read does not fit its revision, {:?}", at(key, *revision)));
                }
            }
            (Asked::Put { value, .. } | Asked::Swap { value, .. }, Heard::Refused)
                if by_value.contains_key(value.as_str()) =>
            {
                return wrong("what was refused is done");
            }
            (_, Heard::Unknown | Heard::Refused) => {}
            _ => return wrong("an answer to another question"),
        }
    }
    real_time(operations)
}

/// Whatever began after another had its answer shows a revision that is not older.
fn real_time(operations: &[Operation]) -> Result<(), String> {
    let mut told: Vec<(Instant, Instant, i64, &Operation)> = Vec::new();
    for op in operations {
        if let Heard::Written { revision } | Heard::Kept { revision } | Heard::Found { revision, .. } =
            &op.heard
        {
            told.push((op.begun, op.ended, *revision, op));
        }
    }
    let mut by_end = told.clone();
    by_end.sort_by_key(|(_, end, ..)| *end);
    told.sort_by_key(|(begun, ..)| *begun);
    let mut ended = by_end.into_iter().peekable();
    let mut newest: Option<(i64, &Operation)> = None;
    for (begun, _, revision, op) in told {
        while let Some((_, _, r, before)) = ended.next_if(|(_, end, ..)| *end < begun) {
            if newest.is_none_or(|(n, _)| r > n) {
                newest = Some((r, before));
            }
        }
        if let Some((n, before)) = newest.filter(|(n, _)| revision < *n) {
            return Err(format!("stale: {op:?} shows revision {revision} after {n} was shown by {before:?}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn op(asked: Asked, heard: Heard, from: u64, to: u64, zero: Instant) -> Operation {
        let at = |ms| zero + Duration::from_millis(ms);
        Operation { asked, heard, begun: at(from), ended: at(to) }
    }

    fn put(v: &str) -> Asked {
        Asked::Put { key: "k".into(), value: v.into() }
    }

    fn get() -> Asked {
        Asked::Get { key: "k".into() }
    }

    fn changed(revision: i64, value: &str) -> Changed {
        Changed { revision, key: "k".into(), value: value.into() }
    }

    fn found(revision: i64, value: &str, written: i64) -> Heard {
        Heard::Found { revision, value: Some((value.into(), written)) }
    }

    fn swap(last: i64, v: &str) -> Asked {
        Asked::Swap { key: "k".into(), last, value: v.into() }
    }

    #[test]
    fn what_can_be_passes() {
        let z = Instant::now();
        let ops = [
            op(get(), Heard::Found { revision: 1, value: None }, 0, 1, z),
            op(put("a"), Heard::Written { revision: 2 }, 2, 3, z),
            op(swap(2, "b"), Heard::Written { revision: 3 }, 4, 6, z),
            // At the same time as the swap: before or after it.
            op(get(), found(2, "a", 2), 5, 9, z),
            op(swap(2, "c"), Heard::Kept { revision: 3 }, 7, 8, z),
            op(put("lost"), Heard::Unknown, 7, 8, z),
            op(put("late"), Heard::Unknown, 7, 8, z),
            op(put("no"), Heard::Refused, 7, 8, z),
        ];
        assert_eq!(check(&ops, &[changed(2, "a"), changed(3, "b"), changed(9, "late")]), Ok(()));
    }

    #[test]
    fn what_cannot_be_is_found() {
        let z = Instant::now();
        let log = vec![changed(2, "a"), changed(3, "b")];
        let done = op(swap(2, "b"), Heard::Written { revision: 3 }, 4, 5, z);
        for (what, ops, log) in [
            ("lost write", vec![op(put("c"), Heard::Written { revision: 4 }, 0, 1, z)], log.clone()),
            ("moved write", vec![op(put("b"), Heard::Written { revision: 2 }, 0, 1, z)], log.clone()),
            ("done though refused", vec![op(put("b"), Heard::Refused, 0, 1, z)], log.clone()),
            ("stale read", vec![done, op(get(), found(2, "a", 2), 6, 7, z)], log.clone()),
            ("stale by revision", vec![op(get(), found(3, "a", 2), 6, 7, z)], log.clone()),
            ("value of nobody", vec![op(get(), found(3, "x", 3), 6, 7, z)], log.clone()),
            ("blind swap", vec![op(swap(1, "b"), Heard::Written { revision: 3 }, 0, 1, z)], log.clone()),
            (
                "swap kept for nothing",
                vec![op(swap(3, "z"), Heard::Kept { revision: 3 }, 0, 1, z)],
                log.clone(),
            ),
            ("kept and done", vec![op(swap(1, "b"), Heard::Kept { revision: 3 }, 0, 1, z)], log),
            ("watch out of order", vec![], vec![changed(3, "b"), changed(2, "a")]),
            ("watch says it twice", vec![], vec![changed(2, "a"), changed(3, "a")]),
        ] {
            assert!(check(&ops, &log).is_err(), "{what} was not noticed");
        }
    }
}
