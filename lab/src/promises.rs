//! What leases, watches and locks promise, checked on what clients saw. Pure; proven by impossible stories
//! below.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt::Debug,
    time::{Duration, Instant},
};

/// A key with a lease of its own, and what became of it.
#[derive(Clone, Debug)]
pub struct Leased {
    pub key: String,
    pub ttl: Duration,
    /// When the attached key was asked to be written.
    pub attached: Instant,
    /// Signs of life: when one was asked for, and whether the lease was said to live.
    pub beats: Vec<(Instant, bool)>,
    /// When its end was asked for.
    pub revoked: Option<Instant>,
    /// When a watch first told that the key is gone.
    pub gone: Option<Instant>,
}

/// A lease lives for its time after each sign of life that was answered, then its key goes and never comes
/// back. All instants are of the clients' clock: whatever was asked began before the store did it, and
/// whatever was seen came after, so that this accuses nobody wrongly. `crooked` is how much faster than ours
/// a member's clock may go, in percent. `patience`: how long after its time a key may still be there, where
/// every leader begins the time anew.
pub fn leases(all: &[Leased], end: Instant, patience: Duration, crooked: u32) -> Result<(), String> {
    for l in all {
        let told = |what: &str| Err(format!("{what}: {l:?}"));
        let ttl = l.ttl * (100 - crooked) / 100;
        let alive = || l.beats.iter().filter(|(_, alive)| *alive).map(|(at, _)| *at);
        match (l.gone, l.revoked) {
            (Some(gone), _) if alive().any(|at| at > gone) => return told("a lease came back to life"),
            (Some(gone), Some(asked)) if asked <= gone => {}
            (Some(gone), _) => {
                let last = alive().fold(l.attached, Instant::max);
                if gone < last + ttl {
                    return told("a lease ended before its time");
                }
            }
            (None, _) => {
                let last = alive().fold(l.attached, Instant::max);
                if l.revoked.unwrap_or(last + l.ttl) + patience < end {
                    return told("a key outlived its lease");
                }
            }
        }
    }
    Ok(())
}

/// What one watch told: changes by revision, and the stretches that it was told to be gone by compaction
/// (first revision missed, first that is there again).
#[derive(Clone, Debug)]
pub struct Watched<C> {
    pub told: Vec<(i64, C)>,
    pub compacted: Vec<(i64, i64)>,
}

impl<C> Default for Watched<C> {
    fn default() -> Self {
        Watched { told: Vec::new(), compacted: Vec::new() }
    }
}

/// Everybody who watches the same sees the same, in order and once, but for stretches that it was told to
/// be gone. Answers all that was seen.
pub fn watches<C: Clone + Debug + PartialEq>(all: &[Watched<C>]) -> Result<Vec<(i64, C)>, String> {
    let mut truth: BTreeMap<i64, C> = BTreeMap::new();
    for (i, w) in all.iter().enumerate() {
        if let Some(p) = w.told.windows(2).find(|p| p[0].0 >= p[1].0) {
            return Err(format!("watch {i}: {:?} is followed by {:?}", p[0], p[1]));
        }
        for (revision, change) in &w.told {
            match truth.get(revision) {
                Some(other) if other != change => {
                    return Err(format!("revision {revision}: {other:?} and {change:?}"));
                }
                _ => drop(truth.insert(*revision, change.clone())),
            }
        }
    }
    for (i, w) in all.iter().enumerate() {
        let has: BTreeSet<i64> = w.told.iter().map(|(r, _)| *r).collect();
        let gone = |r: i64| w.compacted.iter().any(|(from, to)| (*from..*to).contains(&r));
        if let Some(missed) = truth.keys().find(|r| !has.contains(r) && !gone(**r)) {
            return Err(format!("watch {i} does not tell of revision {missed}: {:?}", truth[missed]));
        }
    }
    Ok(truth.into_iter().collect())
}

/// A change below a lock's name, or of what the lock protects, in the order of revisions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A place in line was made; the revision is its token.
    Came { key: String, token: i64 },
    /// It went: released, or its lease ended.
    Went { key: String },
    /// Somebody acted under a token.
    Acted { who: String, token: i64 },
}

/// Nobody acts under a token that was given up, tokens of acts never fall, and each has one holder.
pub fn locks(steps: &[Step]) -> Result<(), String> {
    let mut here: HashMap<&str, i64> = HashMap::new();
    let mut whose: HashMap<i64, &str> = HashMap::new();
    let mut greatest = 0;
    for s in steps {
        match s {
            Step::Came { key, token } => {
                here.insert(key, *token);
            }
            Step::Went { key } => drop(here.remove(key.as_str())),
            Step::Acted { who, token } => {
                if *whose.entry(*token).or_insert(who) != who {
                    return Err(format!("two holders of one token: {s:?}, and {}", whose[token]));
                }
                if *token < greatest {
                    return Err(format!("{s:?} after an act under {greatest}"));
                }
                greatest = *token;
                if !here.values().any(|t| t == token) {
                    return Err(format!("deposed: {s:?}"));
                }
                if here.values().any(|t| t < token) {
                    return Err(format!("out of turn: {s:?} while {here:?} stand in line"));
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn leases_that_can_be_pass_and_others_do_not() {
        let z = Instant::now();
        let l = |beats: &[(u32, bool)], revoked: Option<u32>, gone: Option<u32>| Leased {
            key: "l".into(),
            ttl: S * 5,
            attached: z,
            beats: beats.iter().map(|(s, a)| (z + S * *s, *a)).collect(),
            revoked: revoked.map(|s| z + S * s),
            gone: gone.map(|s| z + S * s),
        };
        let judge = |l: Leased| leases(&[l], z + S * 100, S * 10, 0);
        for good in [
            l(&[], None, Some(5)),
            l(&[(3, true)], None, Some(9)),
            l(&[(3, true), (20, false)], None, Some(8)),
            l(&[(3, true)], Some(4), Some(4)),
            l(&[(98, true)], None, None),
        ] {
            assert_eq!(judge(good), Ok(()));
        }
        for (what, bad) in [
            ("early", l(&[], None, Some(4))),
            ("early after a sign of life", l(&[(3, true)], None, Some(7))),
            ("early, though revoked later", l(&[(3, true)], Some(6), Some(5))),
            ("back to life", l(&[(3, true), (20, true)], None, Some(8))),
            ("back to life after revoke", l(&[(9, true)], Some(4), Some(4))),
            ("never gone", l(&[(3, true)], None, None)),
            ("never gone though revoked", l(&[(3, true)], Some(80), None)),
        ] {
            assert!(judge(bad).is_err(), "{what} was not noticed");
        }
        assert!(
            leases(&[l(&[], None, Some(4))], z + S * 100, S, 20).is_ok(),
            "a fast clock is taken into account"
        );
    }

    #[test]
    fn watches_that_miss_something_are_found() {
        let w = |told: &[i64], compacted: &[(i64, i64)]| Watched {
            told: told.iter().map(|r| (*r, r * 10)).collect(),
            compacted: compacted.to_vec(),
        };
        let all = [w(&[2, 3, 7, 8], &[]), w(&[2, 8], &[(3, 8)]), w(&[7, 8], &[(1, 7)])];
        assert_eq!(watches(&all).map(|t| t.len()), Ok(4));
        for (what, bad) in [
            ("missed", w(&[2, 7, 8], &[])),
            ("missed beyond what was compacted", w(&[2, 8], &[(3, 7)])),
            ("twice", w(&[2, 3, 3, 7, 8], &[])),
            ("out of order", w(&[3, 2, 7, 8], &[])),
            ("missed at the end", w(&[2, 3, 7], &[])),
            ("something else", Watched { told: vec![(2, 20), (3, 31), (7, 70), (8, 80)], compacted: vec![] }),
        ] {
            assert!(watches(&[w(&[2, 3, 7, 8], &[]), bad]).is_err(), "{what} was not noticed");
        }
    }

    #[test]
    fn acts_of_the_deposed_are_found() {
        let came = |key: &str, token| Step::Came { key: key.into(), token };
        let went = |key: &str| Step::Went { key: key.into() };
        let acted = |who: &str, token| Step::Acted { who: who.into(), token };
        let good = [came("a", 2), acted("a", 2), came("b", 4), acted("a", 2), went("a"), acted("b", 4)];
        assert_eq!(locks(&good), Ok(()));
        for (what, bad) in [
            ("deposed", vec![came("a", 2), went("a"), acted("a", 2)]),
            ("one token, two holders", vec![came("a", 2), acted("a", 2), acted("b", 2)]),
            ("falling", vec![came("b", 4), acted("b", 4), came("a", 2), acted("a", 2)]),
            ("out of turn", vec![came("a", 2), came("b", 4), acted("b", 4)]),
        ] {
            assert!(locks(&bad).is_err(), "{what} was not noticed");
        }
    }
}
