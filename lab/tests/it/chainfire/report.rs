//! What a run has shown, as figures and as text.

use super::load::Seen;
use photon_lab::{
    cloud::target_dir,
    history::{Heard, Operation},
};
use std::{
    fmt::Write,
    time::{Duration, Instant},
};

/// Figures of one run.
pub struct Run {
    pub operations: usize,
    pub answers: usize,
    pub changes: usize,
    pub leases: usize,
    /// Longest time in which no write was acknowledged.
    pub gap: Duration,
    /// 99 of 100 answers came in this time or less: where nothing was wrong, and while something was.
    pub calm: Duration,
    pub fault: Duration,
    pub notes: Vec<String>,
}

fn p99(mut all: Vec<Duration>) -> Duration {
    all.sort_unstable();
    all.get((all.len() * 99 / 100).min(all.len().saturating_sub(1))).copied().unwrap_or_default()
}

pub fn figures(
    seen: &Seen,
    begun: Instant,
    ended: Instant,
    faults: &[(Instant, Instant)],
    notes: Vec<String>,
) -> Run {
    let mut acks: Vec<Instant> = seen
        .operations
        .iter()
        .filter(|o| matches!(o.heard, Heard::Written { .. }) && o.ended >= begun && o.ended <= ended)
        .map(|o| o.ended)
        .chain([begun, ended])
        .collect();
    acks.sort_unstable();
    let gap = acks.windows(2).map(|w| w[1] - w[0]).max().unwrap_or_default();
    let answered = || seen.operations.iter().filter(|o| o.heard != Heard::Unknown);
    let meets = |o: &&Operation| faults.iter().any(|(from, to)| o.begun <= *to && o.ended >= *from);
    let took = |o: &Operation| o.ended - o.begun;
    Run {
        operations: seen.operations.len(),
        answers: answered().count(),
        changes: seen.log.len(),
        leases: seen.leases.len(),
        gap,
        calm: p99(answered().filter(|o| !meets(o)).map(took).collect()),
        fault: p99(answered().filter(meets).map(took).collect()),
        notes,
    }
}

/// The report of several runs; every line is printed at once, and all of them are a file in the end.
#[derive(Default)]
pub struct Report {
    text: String,
}

impl Report {
    pub fn line(&mut self, line: &str) {
        println!("{line}");
        let _ = writeln!(self.text, "{line}"); // into a String
    }

    pub fn head(&mut self, seed: u64) {
        self.line(&format!(
            "ChainFire in the lab, seed {seed}. gap: longest time without an acknowledged write;"
        ));
        self.line("p99 in milliseconds, outside faults / meanwhile. Times are recorded, no verdict depends on them.");
        self.line(&format!(
            "{:<30} {:>7} {:>7} {:>7} {:>6} {:>8} {:>13}  {}",
            "scenario", "asked", "told", "changes", "leases", "gap ms", "p99 ms", "verdict"
        ));
    }

    pub fn run(&mut self, name: &str, run: &Result<Run, String>) {
        let line = match run {
            Ok(r) => format!(
                "{name:<30} {:>7} {:>7} {:>7} {:>6} {:>8} {:>13}  ok: {}",
                r.operations,
                r.answers,
                r.changes,
                r.leases,
                r.gap.as_millis(),
                format!("{} / {}", r.calm.as_millis(), r.fault.as_millis()),
                r.notes.join(", ")
            ),
            Err(e) => format!("{name:<30} FAILED: {e}"),
        };
        self.line(&line);
    }

    /// Writes it where `./dev lab` says.
    pub fn save(&self) {
        let dir = target_dir().parent().expect("target").join("lab");
        std::fs::create_dir_all(&dir).expect("folder");
        let path = dir.join("chainfire.txt");
        std::fs::write(&path, &self.text).expect("write");
        println!("report: {}", path.display());
    }
}
