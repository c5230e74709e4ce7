//! Runs of the simulator, and the bugs that it must catch.

use super::{SimConfig, World, judge, name};
use crate::{
    bug::{Bug, Bugs},
    peer::Liveness,
};
use photon_base::Name;

fn cluster(nodes: usize) -> SimConfig {
    SimConfig {
        nodes,
        loss: 1,
        fault_every: 0,
        only_pauses: false,
        foreign: 2,
        replays: true,
        bugs: Bugs::default(),
    }
}

/// Fifty nodes, 150 s of all faults, then calm.
fn all_faults(seed: u64, bugs: Bugs) -> Result<World, String> {
    let mut w = World::new(SimConfig { fault_every: 1_500, bugs, ..cluster(50) }, seed);
    w.run(180_000)?;
    w.calm();
    w.run(215_000)?;
    Ok(w)
}

/// Much loss, and nodes that stand still: none of the others is held for dead.
fn pauses(seed: u64, bugs: Bugs) -> Result<World, String> {
    let config = SimConfig { loss: 10, fault_every: 1_000, only_pauses: true, bugs, ..cluster(20) };
    let mut w = World::new(config, seed);
    w.run(200_000)?;
    match w.judge.slanders {
        0 => Ok(w),
        n => Err(format!("well nodes were held for dead {n} times")),
    }
}

/// Ten nodes, all faults: quick, for looking for planted bugs.
fn few(seed: u64, bugs: Bugs) -> Result<World, String> {
    let mut w = World::new(SimConfig { fault_every: 2_500, bugs, ..cluster(10) }, seed);
    w.run(240_000)?;
    w.calm();
    w.run(275_000)?;
    Ok(w)
}

/// Ten nodes and an eleventh that has the name of the third, since later and at another address.
fn rivals(seed: u64, bugs: Bugs) -> Result<World, String> {
    let mut w = World::new(SimConfig { foreign: 0, bugs, ..cluster(11) }, seed);
    w.hosts[10].name = name(2);
    w.hosts[10].restart_at = 20_000;
    w.hosts[10].wall_offset = w.hosts[2].wall_offset;
    w.pairs(false);
    w.run(60_000)?;
    let (old, new) = (w.counter(2, "superseded"), w.counter(10, "superseded"));
    if (old, new) != (1, 0) {
        return Err(format!("superseded: the older {old}, the newer {new}"));
    }
    let renewed = w.counter(2, "renewed_total") + w.counter(10, "renewed_total");
    if renewed > 0 || w.counter(2, "rivals_total") == 0 {
        return Err(format!("{renewed} lives were begun over one name"));
    }
    for i in (0..10).filter(|i| *i != 2) {
        w.sees(i, &name(2), Liveness::Alive, 10)?;
    }
    // The newer one goes: the older takes its name back.
    w.kill(10);
    w.run(90_000)?;
    for i in (0..10).filter(|i| *i != 2) {
        w.sees(i, &name(2), Liveness::Alive, 2)?;
    }
    match w.counter(2, "superseded") {
        0 => Ok(w),
        _ => Err("the older does not take its name back".into()),
    }
}

/// One of twenty nodes is cut off for a minute, then it is back: nobody else begins a new life over that.
fn cut_off(seed: u64, bugs: Bugs) -> Result<World, String> {
    // A replay can tell it meanwhile that it is held for dead; then all of them begin new lives.
    let mut w = World::new(SimConfig { bugs, replays: false, ..cluster(20) }, seed);
    w.run(20_000)?;
    let until = w.now + 60_000;
    (w.split, w.whole_since) = (Some(([7].into(), until)), until);
    w.run(until + 30_000)?;
    match (0..20).filter(|i| *i != 7).map(|i| w.counter(i, "renewed_total")).sum::<u64>() {
        0 => Ok(w),
        n => Err(format!("{n} lives were begun by nodes that nothing happened to")),
    }
}

impl World {
    /// Whether the judge looks at pairs at all.
    fn pairs(&mut self, looks: bool) {
        self.judge.next = if looks { self.now } else { u64::MAX };
    }

    fn counter(&self, i: usize, name: &str) -> u64 {
        let p = self.hosts[i].process.as_ref().expect("it runs");
        p.counters.each().iter().find(|(n, _, _)| n.ends_with(name)).expect("a counter").2
    }

    fn sees(&self, i: usize, whom: &Name, state: Liveness, at: usize) -> Result<(), String> {
        let seen = self.hosts[i].process.as_ref().expect("it runs").view.get(whom);
        match seen {
            Some(s) if s.state == state && s.peer.gossip == self.hosts[at].addr => Ok(()),
            other => Err(format!("{} sees {whom} as {other:?}", self.hosts[i].name)),
        }
    }

    /// The time until `holds`, at most `limit`.
    fn until(&mut self, limit: u64, holds: impl Fn(&World) -> bool) -> u64 {
        let begun = self.now;
        while !holds(self) {
            assert!(self.now < begun + limit, "not within {limit} ms");
            self.run(self.now + 250).expect("no promise is broken");
        }
        self.now - begun
    }

    fn all_right(&self) -> bool {
        let n = self.config.nodes;
        self.now > 2_000 && (0..n).all(|a| (0..n).all(|b| a == b || judge::wrong(self, a, b).is_none()))
    }
}

#[test]
fn fifty_nodes_stand_all_faults() {
    for seed in 1..=2 {
        let w = all_faults(seed, Bugs::default()).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        assert!(w.all_right(), "in the end everybody is right about everybody");
        let j = &w.judge;
        println!(
            "seed {seed}: wrong for {} ms at most, {} B/s at most, {} slanders",
            j.worst, j.most_sent, j.slanders
        );
    }
}

#[test]
fn few_nodes_stand_all_faults() {
    for seed in 1..=10 {
        few(seed, Bugs::default()).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
    }
}

#[test]
fn nodes_that_stand_still_accuse_nobody() {
    for seed in 1..=5 {
        pauses(seed, Bugs::default()).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
    }
}

#[test]
fn who_was_cut_off_disturbs_nobody() {
    for seed in 1..=3 {
        let w = cut_off(seed, Bugs::default()).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        assert!(w.all_right());
    }
}

#[test]
fn a_name_claimed_twice_is_the_later_ones_until_it_goes() {
    for seed in 1..=3 {
        rivals(seed, Bugs::default()).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
    }
}

/// Join, death, split: the times that are promised, and what the calm costs, whatever the size.
#[test]
fn what_it_takes_and_costs() {
    for nodes in [3, 10, 50, 100] {
        let mut w = World::new(SimConfig { loss: 2, ..cluster(nodes) }, 7);
        let joined = w.until(15_000, World::all_right);
        w.run(w.now + 20_000).unwrap();
        let (sent, since) = (w.hosts.iter().map(|h| h.sent).sum::<u64>(), w.now);
        w.run(w.now + 10_000).unwrap();
        let calm = (w.hosts.iter().map(|h| h.sent).sum::<u64>() - sent) * 1000
            / (w.now - since)
            / (nodes as u64 + 2);
        w.kill(1);
        let dead = w.until(15_000, World::all_right);
        println!("{nodes} nodes: joined in {joined} ms, a death seen in {dead} ms, {calm} B/s each in calm");
        assert!(calm < 6_000, "{calm} bytes a second each");
        assert_eq!(w.judge.slanders, 0);
    }
}

#[test]
fn a_split_heals_by_itself() {
    for seed in 1..=3 {
        let mut w = World::new(SimConfig { foreign: 0, loss: 2, ..cluster(30) }, seed);
        w.until(15_000, World::all_right);
        w.split(60_000);
        let (side, until) = w.split.clone().expect("split");
        w.run(until - 1).unwrap();
        for a in 0..30 {
            let view = &w.hosts[a].process.as_ref().expect("it runs").view;
            for b in (0..30).filter(|b| *b != a) {
                let up = view[&name(b)].state.is_up();
                assert_eq!(up, side.contains(&a) == side.contains(&b), "{a} of {b}");
            }
        }
        // The seeds are no help: both sides have one, or a side of ordinary nodes has none.
        let healed = w.until(20_000, World::all_right);
        println!("{} of 30 were split off; healed in {healed} ms", side.len());
    }
}

#[test]
fn who_leaves_is_seen_to_have_left() {
    let mut w = World::new(SimConfig { foreign: 0, ..cluster(20) }, 1);
    w.until(15_000, World::all_right);
    w.pairs(false);
    let now = w.clock(5);
    w.hosts[5].process.as_mut().expect("it runs").core.leave(now);
    w.flush(5);
    w.kill(5);
    let left =
        |w: &World| (0..20).filter(|i| *i != 5).all(|i| w.sees(i, &name(5), Liveness::Left, 5).is_ok());
    let told = w.until(8_000, left);
    println!("a leave is seen by all in {told} ms");
}

#[test]
fn a_seed_is_a_history() {
    let run = |seed| {
        let mut w = World::new(SimConfig { fault_every: 1_000, ..cluster(8) }, seed);
        w.run(60_000).unwrap();
        (w.packets, w.hosts.iter().map(|h| h.sent).collect::<Vec<_>>())
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}

/// The simulator must find `bug` within some seeds.
fn caught(bug: Bug, seeds: u64, run: fn(u64, Bugs) -> Result<World, String>) {
    for seed in 1..=seeds {
        if let Err(e) = run(seed, Bugs { planted: Some(bug) }) {
            println!("{bug:?}: seed {seed}: {e}");
            return;
        }
    }
    panic!("{bug:?} was not caught in {seeds} seeds");
}

#[test]
fn planted_bugs_are_caught() {
    caught(Bug::GenerationKept, 20, few);
    caught(Bug::FormerLifeWins, 20, few);
    caught(Bug::SuspicionNotRefuted, 20, pauses);
    caught(Bug::ForeignAccepted, 1, few);
    caught(Bug::DeafJudges, 20, pauses);
    caught(Bug::StaleRumours, 3, cut_off);
    caught(Bug::DownNotAsked, 20, few);
    caught(Bug::NotCompared, 20, few);
    caught(Bug::RivalsOutbid, 1, rivals);
}
