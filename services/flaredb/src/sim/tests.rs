use super::run;
use crate::bug::{Bug, PLANTED};

/// A run with a bug planted, a panic being a finding, too.
fn seed(n: u64, bug: Option<Bug>) -> Result<super::Report, String> {
    PLANTED.set(bug);
    let done = std::panic::catch_unwind(|| run(n));
    PLANTED.set(None);
    done.unwrap_or_else(|p| Err(p.downcast_ref::<String>().cloned().unwrap_or_else(|| "panic".into())))
}

fn env(name: &str, or: u64) -> u64 {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(or)
}

#[test]
fn histories_are_what_was_promised() {
    let (first, n) = (env("SIM_SEED", 0), env("SIM_SEEDS", 60));
    let mut sum = (0, 0, 0);
    let mut counts = std::collections::BTreeMap::new();
    for s in first..first + n {
        let r = seed(s, None).unwrap_or_else(|e| panic!("SIM_SEED={s} SIM_SEEDS=1: {e}"));
        sum = (sum.0 + r.committed, sum.1 + r.aborted, sum.2 + r.unknown);
        for (k, v) in r.counts {
            *counts.entry(k).or_insert(0) += v;
        }
    }
    println!("committed {} aborted {} unknown {}; {counts:?}", sum.0, sum.1, sum.2);
    assert!(sum.0 as u64 > n * 20, "hardly anything was done: {sum:?}");
    for k in ["splits", "merges", "leaders", "crashes", "deadlocks", "claims", "audits", "collections"] {
        assert!(n < 20 || counts.contains_key(k), "no {k} in {n} seeds: {counts:?}");
    }
}

#[test]
fn a_seed_fixes_the_run() {
    let text = |s| format!("{:?}", seed(s, None));
    assert_eq!(text(3), text(3));
    assert_ne!(text(3), text(5));
}

/// Finds `bug` in one of a number of seeds.
fn caught(bug: Bug) {
    let first = env("SIM_SEED", 0);
    for s in first..first + env("SIM_SEEDS", 400) {
        if let Err(e) = seed(s, Some(bug)) {
            println!("{bug:?}: seed {s}: {}", e.lines().next().unwrap_or_default());
            return;
        }
    }
    panic!("{bug:?} was not noticed");
}

macro_rules! catches {
    ($($test:ident $bug:ident),* $(,)?) => {$(
        #[test]
        fn $test() {
            caught(Bug::$bug);
        }
    )*};
}

catches! {
    catches_an_epoch_that_nobody_checks EpochUnchecked,
    catches_a_conflict_that_nobody_checks ConflictUnchecked,
    catches_reads_that_ignore_locks LocksIgnored,
    catches_a_push_that_is_ignored PushIgnored,
    catches_a_rollback_without_a_trace NoTrace,
    catches_a_derived_timestamp_too_low FloorLost,
    catches_reads_that_overtake_commits PendingIgnored,
    catches_a_new_leader_that_derives_at_once GateOpenAtOnce,
    catches_a_gate_kept_in_a_merge GateKeptInMerge,
    catches_a_timestamp_of_another_term TermUnchecked,
    catches_a_lock_resolved_too_early ResolvedTooEarly,
    catches_a_commit_by_the_primary_alone AsyncByPrimaryAlone,
    catches_success_told_too_early ToldTooEarly,
    catches_write_skew ReadsUnchecked,
    catches_phantoms PhantomsUnchecked,
    catches_history_collected_too_far CollectsTooMuch,
}
