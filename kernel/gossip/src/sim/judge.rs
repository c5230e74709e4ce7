//! What each node sees beside what is so.
//!
//! For every pair (a, b) of nodes of which a runs: if b runs, a sees it up, at its address, with its facts; if
//! b is dead, a does not see it up. Whenever a is wrong, it must be right within [`RIGHT_WITHIN`] of the later
//! of the change and the end of what was wrong with a, b or the whole network. A cut in one direction is no
//! excuse: the others go round it. Nobody ever sees a node of the other cluster, and no node sends more than
//! [`SENT_MAX`].

use super::World;

/// 25 probe periods. Ten of them are the worst suspicion with its doubt, the rest finding somebody and
/// spreading the word.
const RIGHT_WITHIN: u64 = 25_000;
/// Bytes that a node sends in a second, over any ten, whatever happens.
const SENT_MAX: u64 = 40_000;
const EVERY: u64 = 250;
const WINDOW: u64 = 10_000;

pub(super) struct Judge {
    pub(super) next: u64,
    /// Since when a is wrong about b, `a * nodes + b`.
    wrong: Vec<Option<u64>>,
    renewed: Vec<u64>,
    /// The longest that a node was wrong without an excuse.
    pub(super) worst: u64,
    /// How often a well node on a well network had to begin a new life, because of others.
    pub(super) slanders: u64,
    window: u64,
    sent: Vec<u64>,
    /// The most that a node sent in a second, over ten.
    pub(super) most_sent: u64,
}

impl Judge {
    pub(super) fn new(nodes: usize) -> Self {
        Judge {
            next: EVERY,
            wrong: vec![None; nodes * nodes],
            renewed: vec![0; nodes],
            worst: 0,
            slanders: 0,
            window: WINDOW,
            sent: vec![0; nodes],
            most_sent: 0,
        }
    }
}

/// What a sees wrongly of b.
pub(super) fn wrong(w: &World, a: usize, b: usize) -> Option<String> {
    let seen = w.hosts[a].process.as_ref()?.view.get(&w.hosts[b].name);
    let up = seen.filter(|s| s.state.is_up());
    match (&w.hosts[b].process, up) {
        (Some(_), None) => Some(format!("lives and is seen as {:?}", seen.map(|s| s.state))),
        (None, Some(s)) => Some(format!("is dead and is seen as {:?}", s.state)),
        (Some(_), Some(s)) if s.peer.gossip != w.hosts[b].addr => {
            Some(format!("is at {} and is seen at {}", w.hosts[b].addr, s.peer.gossip))
        }
        (Some(_), Some(s)) if s.peer.facts != w.hosts[b].facts => {
            Some(format!("says {:?} and is seen to say {:?}", w.hosts[b].facts, s.peer.facts))
        }
        _ => None,
    }
}

pub(super) fn look(w: &mut World) -> Result<(), String> {
    let (now, nodes) = (w.now, w.config.nodes);
    w.judge.next = now + EVERY;
    for a in 0..nodes {
        let Some(process) = &w.hosts[a].process else {
            w.judge.wrong[a * nodes..(a + 1) * nodes].fill(None);
            continue;
        };
        if let Some(stranger) = process.view.keys().find(|n| n.as_str().starts_with("foreign")) {
            return Err(format!("{} sees {stranger} of another cluster", w.hosts[a].name));
        }
        let renewed = process.counters.renewed_total.load(std::sync::atomic::Ordering::Relaxed);
        if renewed > w.judge.renewed[a] && w.whole_since.max(w.hosts[a].well_since) + RIGHT_WITHIN < now {
            w.judge.slanders += 1;
        }
        w.judge.renewed[a] = renewed;
        for b in (0..nodes).filter(|b| *b != a) {
            let at = a * nodes + b;
            let excuse = w.whole_since.max(w.hosts[a].well_since).max(w.hosts[b].well_since);
            let Some(what) = wrong(w, a, b) else {
                w.judge.wrong[at] = None;
                continue;
            };
            let since = *w.judge.wrong[at].get_or_insert(now);
            let long = now.saturating_sub(since.max(excuse));
            w.judge.worst = w.judge.worst.max(long);
            if long > RIGHT_WITHIN {
                return Err(format!(
                    "at {now} ms {} has been wrong for {long} ms: {} {what}",
                    w.hosts[a].name, w.hosts[b].name
                ));
            }
        }
    }
    if now >= w.judge.window {
        w.judge.window = now + WINDOW;
        for a in 0..nodes {
            let rate = (w.hosts[a].sent - w.judge.sent[a]) * 1000 / WINDOW;
            w.judge.sent[a] = w.hosts[a].sent;
            w.judge.most_sent = w.judge.most_sent.max(rate);
            if rate > SENT_MAX {
                return Err(format!("{} sends {rate} bytes a second", w.hosts[a].name));
            }
        }
    }
    Ok(())
}
