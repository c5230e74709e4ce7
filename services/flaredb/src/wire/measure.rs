//! Metrics of the door and of the stages behind it.

use super::proto::ask_request::What;
use crate::{Node, Refusal};
use photon_raft::{GroupStatus, Role};
use photon_rt::time::Duration;
use photon_serve::metrics::{Counter, Gauge, counter, gauge};
use std::collections::BTreeMap;

/// What can be asked for.
const NAMES: [&str; 25] = [
    "replica",
    "timestamps",
    "locate",
    "wait",
    "regions",
    "stores",
    "split",
    "merge",
    "raw",
    "prewrite",
    "commit",
    "rollback",
    "lock",
    "unlock",
    "status",
    "secondaries",
    "resolve",
    "heartbeat",
    "gc",
    "get",
    "scan",
    "unchanged",
    "raw_get",
    "raw_scan",
    "nothing",
];

/// The name of what a region is asked.
pub fn name(what: Option<&What>) -> &'static str {
    match what {
        None => "nothing",
        Some(What::Raw(_)) => "raw",
        Some(What::Prewrite(_)) => "prewrite",
        Some(What::Commit(_)) => "commit",
        Some(What::Rollback(_)) => "rollback",
        Some(What::Lock(_)) => "lock",
        Some(What::Unlock(_)) => "unlock",
        Some(What::Status(_)) => "status",
        Some(What::Secondaries(_)) => "secondaries",
        Some(What::Resolve(_)) => "resolve",
        Some(What::Heartbeat(_)) => "heartbeat",
        Some(What::Gc(_)) => "gc",
        Some(What::Get(_)) => "get",
        Some(What::Scan(_)) => "scan",
        Some(What::Unchanged(_)) => "unchanged",
        Some(What::RawGet(_)) => "raw_get",
        Some(What::RawScan(_)) => "raw_scan",
    }
}

/// True for a region that this node leads.
pub fn leads(s: &GroupStatus) -> bool {
    s.role == Role::Leader
}

struct Stage {
    requests: Counter,
    microseconds: Counter,
}

/// Of one node.
pub struct Measure {
    stages: BTreeMap<&'static str, Stage>,
    refusals: BTreeMap<&'static str, Counter>,
    in_flight: Gauge,
    regions: Gauge,
    leaders: Gauge,
    unsynced: Gauge,
    unapplied: Gauge,
    disk: Gauge,
}

/// Refusals by what is to be done about them: retried, taken for a conflict, shown to somebody.
fn class(r: &Refusal) -> &'static str {
    match r {
        Refusal::Overloaded => "overloaded",
        Refusal::Unknown(_) => "unknown",
        Refusal::Denied(_) => "denied",
        Refusal::Broken(_) => "broken",
        r if r.is_about_routing() => "routing",
        Refusal::CheckFailed { .. }
        | Refusal::Locked(_)
        | Refusal::Conflict { .. }
        | Refusal::AlreadyExists { .. }
        | Refusal::RolledBack(_)
        | Refusal::Committed(_)
        | Refusal::NotLocked(_)
        | Refusal::CommitTooEarly(_)
        | Refusal::Deadlock(_) => "conflict",
        _ => "invalid",
    }
}

impl Measure {
    pub fn new() -> Measure {
        let stage = |name: &'static str| {
            let labels = [("what", name)];
            let requests = counter("flaredb_requests_total", "Requests answered.", &labels);
            let help = "Time from a request to its answer, summed.";
            (
                name,
                Stage {
                    requests,
                    microseconds: counter("flaredb_request_microseconds_total", help, &labels),
                },
            )
        };
        let refused = |name: &'static str| {
            (name, counter("flaredb_refusals_total", "Requests refused.", &[("class", name)]))
        };
        let g = |name, help| gauge(name, help, &[]);
        let classes = ["overloaded", "unknown", "denied", "broken", "routing", "conflict", "invalid"];
        Measure {
            stages: NAMES.into_iter().map(stage).collect(),
            refusals: classes.into_iter().map(refused).collect(),
            in_flight: g("flaredb_requests_in_flight", "Requests under way."),
            regions: g("flaredb_regions", "Regions here."),
            leaders: g("flaredb_regions_led", "Regions that this node leads."),
            unsynced: g("flaredb_log_uncommitted_entries", "Entries of all logs that are not committed yet."),
            unapplied: g("flaredb_log_unapplied_entries", "Committed entries that are not applied yet."),
            disk: g("flaredb_disk_bytes", "Bytes of the engine on disk."),
        }
    }

    /// A request was answered.
    pub fn done(&self, what: &'static str, took: Duration, refused: Option<&Refusal>) {
        if let Some(s) = self.stages.get(what) {
            s.requests.inc();
            s.microseconds.add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
        }
        if let Some(c) = refused.and_then(|r| self.refusals.get(class(r))) {
            c.inc();
        }
    }

    /// Looks at the queues.
    pub fn look(&self, node: &Node, in_flight: usize) {
        let all = node.statuses();
        let sum = |f: fn(&GroupStatus) -> u64| all.iter().filter_map(|(_, s)| s.as_ref().map(f)).sum();
        self.in_flight.set(in_flight as u64);
        self.regions.set(all.len() as u64);
        self.leaders.set(sum(|s| u64::from(leads(s))));
        self.unsynced.set(sum(|s| s.last_index.saturating_sub(s.commit)));
        self.unapplied.set(sum(|s| s.commit.saturating_sub(s.applied)));
        self.disk.set(node.disk_bytes());
    }
}
