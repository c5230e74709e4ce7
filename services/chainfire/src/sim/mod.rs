//! ChainFire's state machine in the cluster that `photon_raft::sim` simulates: kills, power losses, partitions,
//! snapshots and crooked clocks, and above them writers and watches. Every reply and every state is compared with
//! a plain model of the store ([`model`]); watches go from member to member and must see each event once, in
//! order, whole ([`watches`]); that reads are linearizable and the members' states the same is checked by the
//! simulator itself.
//!
//! `SIM_SEEDS` and `SIM_SECONDS` (of faults in each) make it longer.

mod engine;
mod model;
mod watches;
mod workload;

use crate::plant::{Plant, with_planted};
use photon_raft::sim::{Report, SimConfig, run};
use workload::{Told, Writes};

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn simulate(seed: u64) -> Result<(Report, Told), String> {
    let mut config = SimConfig::of_seed(seed);
    if let Some(seconds) = setting("SIM_SECONDS") {
        config.faults_ms = seconds * 1_000;
    }
    let writes = Writes::new(seed);
    let world = writes.world();
    let report = run(seed, &config, writes).map_err(|v| v.to_string())?;
    let told = world.lock().map_err(|e| e.to_string())?.told()?;
    Ok((report, told))
}

fn clean(part: u64, of: u64) {
    let (mut sum, mut acknowledged, mut restores) = (Told::default(), 0, 0);
    let seeds: Vec<u64> = (0..setting("SIM_SEEDS").unwrap_or(60)).filter(|s| s % of == part).collect();
    for seed in &seeds {
        let (report, told) = simulate(*seed).unwrap_or_else(|v| panic!("seed {seed}: {v}"));
        acknowledged += report.acknowledged;
        restores += report.restores;
        sum = sum + told;
    }
    println!(
        "{} seeds: {acknowledged} commands acknowledged, {restores} snapshots installed, {sum:?}",
        seeds.len()
    );
    let n = seeds.len() as u64;
    assert!(acknowledged > 25 * n && restores > n / 8, "the runs do something");
    assert!(sum.events > 100 * n && sum.moves > 10 * n && sum.history > n, "so do the watches: {sum:?}");
}

#[test]
fn even_seeds_run_clean() {
    clean(0, 2);
}

#[test]
fn odd_seeds_run_clean() {
    clean(1, 2);
}

fn caught(bug: Plant, within: u64) {
    for seed in 0..within {
        if let Err(what) = with_planted(bug, || simulate(seed)) {
            println!("{bug:?}: seed {seed}: {}", what.lines().next().unwrap_or_default());
            return;
        }
    }
    panic!("{bug:?} was not caught within {within} seeds");
}

#[test]
fn catches_a_watch_that_forgets() {
    caught(Plant::WatchForgets, 20);
}

#[test]
fn catches_a_ring_that_outlives_its_state() {
    caught(Plant::RingKept, 60);
}

#[test]
fn catches_a_position_written_apart_from_its_state() {
    caught(Plant::PositionApart, 60);
}

#[test]
fn catches_a_snapshot_that_loses_leases() {
    caught(Plant::LeasesNotCarried, 40);
}
