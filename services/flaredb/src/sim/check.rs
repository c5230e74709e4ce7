//! Looks for isolation anomalies in histories of lists that grow (Kingsbury and Alvaro, "Elle", VLDB 2020):
//! what a list holds tells the order of its writers, whom a reader saw, and whom it did not see.

use std::collections::{BTreeMap, BTreeSet};

/// What a client saw of a transaction.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// When it began, and when its client knew the outcome. Virtual milliseconds.
    pub began: u64,
    pub ended: Option<u64>,
    /// `Some(true)` committed, `Some(false)` surely not, `None` unknown.
    pub committed: Option<bool>,
    /// Lists as it read them, before its own appends.
    pub reads: Vec<(u8, Vec<u32>)>,
    /// What it appended, in its order.
    pub appends: Vec<(u8, u32)>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
enum Edge {
    /// Wrote what the other wrote over.
    Ww,
    /// Wrote what the other read.
    Wr,
    /// Read what the other wrote over.
    Rw,
    /// Ended before the other began.
    Time,
}

/// What is promised about cycles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promise {
    /// None without two adjacent anti-dependencies (Fekete et al.; Cerone and Gotsman).
    Snapshot,
    /// None at all.
    Serializable,
}

/// Finds what the promise forbids. `last` holds the lists as they are in the end.
pub fn check(all: &[Seen], last: &BTreeMap<u8, Vec<u32>>, promise: Promise) -> Result<(), String> {
    let mut writer: BTreeMap<(u8, u32), usize> = BTreeMap::new();
    for (t, s) in all.iter().enumerate() {
        for a in &s.appends {
            writer.insert(*a, t);
        }
    }
    for (key, list) in last {
        let mut seen = BTreeSet::new();
        if let Some(e) = list.iter().find(|e| !seen.insert(**e)) {
            return Err(format!("key {key} holds {e} twice"));
        }
    }
    let empty = Vec::new();
    let list = |key: &u8| last.get(key).unwrap_or(&empty);
    for (t, s) in all.iter().enumerate() {
        for (key, e) in &s.appends {
            let there = list(key).contains(e);
            if s.committed == Some(true) && !there {
                return Err(format!("lost: {e} of committed transaction {t} is not in key {key}"));
            }
            if s.committed == Some(false) && there {
                return Err(format!("aborted transaction {t} left {e} in key {key} (G1a)"));
            }
        }
        let parts = s.appends.iter().filter(|(k, e)| list(k).contains(e)).count();
        if parts != 0 && parts != s.appends.len() {
            return Err(format!("only a part of transaction {t} was committed: {:?}", s.appends));
        }
        for (key, read) in &s.reads {
            if !list(key).starts_with(read) {
                let end = list(key);
                return Err(format!(
                    "transaction {t} read {read:?} of key {key}, which is {end:?} in the end"
                ));
            }
            // An intermediate state: the list goes on with the same transaction (G1b).
            let next = list(key).get(read.len()).and_then(|e| writer.get(&(*key, *e)));
            let newest = read.last().and_then(|e| writer.get(&(*key, *e)));
            if newest.is_some() && newest == next && newest != Some(&t) {
                return Err(format!("transaction {t} read a half-done append of key {key} (G1b): {read:?}"));
            }
        }
    }
    // Unknown ones count if they left something.
    let counts = |s: &Seen| match s.committed {
        Some(c) => c,
        None => s.appends.iter().any(|(k, e)| list(k).contains(e)),
    };
    let mut edges: BTreeSet<(usize, usize, Edge)> = BTreeSet::new();
    for (key, list) in last {
        for pair in list.windows(2) {
            let (a, b) = (writer.get(&(*key, pair[0])), writer.get(&(*key, pair[1])));
            if let (Some(a), Some(b)) = (a, b) {
                edges.insert((*a, *b, Edge::Ww));
            }
        }
    }
    for (t, s) in all.iter().enumerate().filter(|(_, s)| counts(s)) {
        for (key, read) in &s.reads {
            if let Some(w) = read.last().and_then(|e| writer.get(&(*key, *e))) {
                edges.insert((*w, t, Edge::Wr));
            }
            if let Some(w) = list(key).get(read.len()).and_then(|e| writer.get(&(*key, *e))) {
                edges.insert((t, *w, Edge::Rw));
            }
        }
        for (u, o) in all.iter().enumerate().filter(|(_, o)| counts(o)) {
            if s.committed == Some(true) && s.ended.is_some_and(|e| e < o.began) {
                edges.insert((t, u, Edge::Time));
            }
        }
    }
    edges.retain(|(a, b, _)| a != b);
    let mut next: Vec<Vec<(usize, Edge)>> = vec![Vec::new(); all.len()];
    for (a, b, e) in &edges {
        next[*a].push((*b, *e));
    }
    let graph: Vec<Vec<(usize, String)>> = match promise {
        Promise::Serializable => {
            next.iter().map(|n| n.iter().map(|(b, e)| (*b, format!("{e:?}"))).collect()).collect()
        }
        // A cycle without adjacent anti-dependencies is one of steps that are each a dependency, perhaps
        // followed by one anti-dependency.
        Promise::Snapshot => next
            .iter()
            .map(|n| {
                let mut out: BTreeMap<usize, String> = BTreeMap::new();
                for (b, e) in n.iter().filter(|(_, e)| *e != Edge::Rw) {
                    out.entry(*b).or_insert_with(|| format!("{e:?}"));
                    for (c, _) in next[*b].iter().filter(|(_, e)| *e == Edge::Rw) {
                        out.entry(*c).or_insert_with(|| format!("{e:?} {b} Rw"));
                    }
                }
                out.into_iter().collect()
            })
            .collect(),
    };
    match cycle(&graph) {
        None => Ok(()),
        Some(path) => {
            let mut text = String::new();
            for (i, at) in path.iter().enumerate() {
                let to = path[(i + 1) % path.len()];
                let how = graph[*at].iter().find(|(b, _)| *b == to).map_or("", |(_, e)| e);
                text += &format!("{at} -{how}-> ");
            }
            let told: Vec<String> = path.iter().map(|t| format!("  {t}: {:?}", all[*t])).collect();
            Err(format!("cycle: {text}{}\n{}", path[0], told.join("\n")))
        }
    }
}

/// Some cycle of a graph.
fn cycle(graph: &[Vec<(usize, String)>]) -> Option<Vec<usize>> {
    // 0 new, 1 on the path, 2 done
    let mut mark = vec![0u8; graph.len()];
    for root in 0..graph.len() {
        if mark[root] != 0 {
            continue;
        }
        let mut path = vec![(root, 0)];
        mark[root] = 1;
        while let Some((at, i)) = path.last_mut() {
            let Some((to, _)) = graph[*at].get(*i) else {
                mark[*at] = 2;
                path.pop();
                continue;
            };
            *i += 1;
            match mark[*to] {
                0 => {
                    mark[*to] = 1;
                    path.push((*to, 0));
                }
                1 => {
                    let from = path.iter().position(|(n, _)| n == to)?;
                    return Some(path[from..].iter().map(|(n, _)| *n).collect());
                }
                _ => {}
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn txn(began: u64, ended: u64, reads: &[(u8, &[u32])], appends: &[(u8, u32)]) -> Seen {
        let reads = reads.iter().map(|(k, l)| (*k, l.to_vec())).collect();
        Seen { began, ended: Some(ended), committed: Some(true), reads, appends: appends.to_vec() }
    }

    fn verdict(all: &[Seen], last: &[(u8, &[u32])], promise: Promise) -> String {
        let last = last.iter().map(|(k, l)| (*k, l.to_vec())).collect();
        check(all, &last, promise).err().unwrap_or_default()
    }

    #[test]
    fn anomalies_have_names() {
        use Promise::*;
        // Lost update: both read the empty list.
        let lost = [txn(0, 9, &[(1, &[])], &[(1, 1)]), txn(0, 9, &[(1, &[])], &[(1, 2)])];
        assert!(verdict(&lost, &[(1, &[2])], Snapshot).contains("lost"));
        assert!(verdict(&lost, &[(1, &[1, 2])], Snapshot).contains("cycle"));
        // Write skew: allowed by one, not by the other.
        let skew = [txn(0, 9, &[(1, &[]), (2, &[])], &[(1, 1)]), txn(0, 9, &[(1, &[]), (2, &[])], &[(2, 2)])];
        let last: &[(u8, &[u32])] = &[(1, &[1]), (2, &[2])];
        assert_eq!(verdict(&skew, last, Snapshot), "");
        assert!(verdict(&skew, last, Serializable).contains("cycle"));
        // Read skew (G-single).
        let both = txn(0, 9, &[], &[(1, 1), (2, 2)]);
        let half = txn(0, 9, &[(1, &[1]), (2, &[])], &[]);
        assert!(verdict(&[both.clone(), half], last, Snapshot).contains("cycle"));
        // G1c: each reads what the other wrote.
        let a = txn(0, 9, &[(2, &[2])], &[(1, 1)]);
        let b = txn(0, 9, &[(1, &[1])], &[(2, 2)]);
        assert!(verdict(&[a, b], last, Snapshot).contains("cycle"));
        // G0: written in both orders.
        let a = txn(0, 9, &[], &[(1, 1), (2, 3)]);
        let b = txn(0, 9, &[], &[(1, 2), (2, 4)]);
        assert!(verdict(&[a, b], &[(1, &[1, 2]), (2, &[4, 3])], Snapshot).contains("cycle"));
        // G1a, G1b, a torn commit, a stale read.
        let aborted = Seen { committed: Some(false), ..both.clone() };
        assert!(verdict(&[aborted], last, Snapshot).contains("G1a"));
        let two = txn(0, 5, &[], &[(1, 1), (1, 2)]);
        let middle = txn(0, 9, &[(1, &[1])], &[]);
        assert!(verdict(&[two.clone(), middle], &[(1, &[1, 2])], Snapshot).contains("G1b"));
        let torn = Seen { committed: None, ended: None, ..both };
        assert!(verdict(&[torn], &[(1, &[1])], Snapshot).contains("part"));
        let stale = txn(6, 9, &[(1, &[])], &[]);
        assert!(verdict(&[two, stale], &[(1, &[1, 2])], Snapshot).contains("cycle"));
    }
}
