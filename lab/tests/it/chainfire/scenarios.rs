//! The scenarios, as data.

use super::members::Gear::{self, FastClock, SlowDisk, SmallDisk, WallClock};
use Step::*;
use Who::*;

/// A host by its part in the play. Leader and followers are those of the beginning, or of the last [`Look`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    Leader,
    Follower,
    Second,
    All,
    Host(usize),
}

/// What happens next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Milliseconds pass.
    Wait(u64),
    /// Who leads now?
    Look,
    /// This host is made the leader.
    Lead(usize),
    Kill(Who),
    /// Asked to end, and waited for.
    Stop(Who),
    Run(Who),
    Pause(Who),
    Resume(Who),
    Isolate(Who),
    /// Nothing of it reaches the others.
    CutFrom(Who),
    /// Nothing of the others reaches it.
    CutTo(Who),
    /// These two do not reach each other.
    Between(Who, Who),
    Heal,
    /// Leaves that many megabytes of its small disk.
    Fill(Who, u64),
    Free(Who),
    Clock(Who, &'static str),
    /// So much is written, in megabytes.
    Bulk(u64),
    /// A bit in many places of files below its data folder whose path contains this.
    Flip(Who, &'static str),
    /// It ends by itself, with an error.
    Ends(Who),
    /// `photon chainfire rejoin`.
    Rejoin(Who),
    /// A host beyond the founders becomes a member that votes.
    Add(Who),
    Remove(Who),
    /// Every member that runs takes a write.
    Serves,
    /// This member takes no writes, says so, and answers serializable reads.
    Refuses(Who),
    /// Writes are refused with NOSPACE; deletions and reads go on.
    NoSpace,
    /// A snapshot was carried.
    BySnapshot,
    /// It has what the others have.
    CaughtUp(Who),
}

pub struct Scenario {
    pub name: &'static str,
    pub members: usize,
    /// Hosts that may join.
    pub more: usize,
    pub gear: &'static [Gear],
    /// Somebody compacts meanwhile.
    pub compacts: bool,
    /// Part of `./dev test`.
    pub quick: bool,
    /// A real etcd plays it, too.
    pub etcd: bool,
    pub script: &'static [Step],
}

const THREE: Scenario = Scenario {
    name: "",
    members: 3,
    more: 0,
    gear: &[],
    compacts: false,
    quick: false,
    etcd: false,
    script: &[],
};
const FIVE: Scenario = Scenario { members: 5, ..THREE };

/// How long a fault lasts.
const LONG: Step = Wait(6_000);

pub const ALL: &[Scenario] = &[
    Scenario {
        name: "leader-killed",
        quick: true,
        etcd: true,
        script: &[Kill(Leader), LONG, Run(Leader), Serves, Look, Kill(Leader), LONG, Run(Leader), Serves],
        ..THREE
    },
    Scenario {
        name: "follower-killed",
        compacts: true,
        script: &[
            Kill(Follower),
            LONG,
            Run(Follower),
            Serves,
            Wait(1_000),
            Kill(Second),
            LONG,
            Run(Second),
            Serves,
        ],
        ..THREE
    },
    Scenario {
        name: "all-killed",
        quick: true,
        compacts: true,
        script: &[Kill(All), Run(All), Serves, Wait(3_000), Kill(All), Wait(2_000), Run(All), Serves],
        ..THREE
    },
    Scenario {
        name: "leader-paused",
        quick: true,
        etcd: true,
        script: &[
            Pause(Leader),
            LONG,
            Resume(Leader),
            Serves,
            Look,
            Pause(Leader),
            Wait(2_500),
            Resume(Leader),
            Serves,
        ],
        ..THREE
    },
    Scenario {
        name: "follower-paused",
        script: &[
            Pause(Follower),
            LONG,
            Resume(Follower),
            Serves,
            Pause(Second),
            LONG,
            Resume(Second),
            Serves,
        ],
        ..THREE
    },
    Scenario {
        name: "leader-isolated",
        quick: true,
        etcd: true,
        script: &[
            Isolate(Leader),
            LONG,
            Refuses(Leader),
            Heal,
            Serves,
            Look,
            Isolate(Leader),
            LONG,
            Heal,
            Serves,
        ],
        ..THREE
    },
    Scenario {
        name: "follower-isolated",
        script: &[Isolate(Follower), LONG, Refuses(Follower), Heal, Serves],
        ..THREE
    },
    Scenario { name: "nothing-reaches-the-leader", script: &[CutTo(Leader), LONG, Heal, Serves], ..THREE },
    Scenario {
        name: "nothing-of-the-leader-arrives",
        script: &[CutFrom(Leader), LONG, Heal, Serves],
        ..THREE
    },
    Scenario {
        name: "partial",
        script: &[
            Between(Leader, Follower),
            LONG,
            Heal,
            Serves,
            Look,
            Between(Leader, Second),
            LONG,
            Heal,
            Serves,
        ],
        ..THREE
    },
    Scenario {
        name: "ring",
        script: &[
            Between(Leader, Follower),
            Between(Host(0), Host(2)),
            Between(Host(1), Host(3)),
            Between(Host(2), Host(4)),
            LONG,
            Heal,
            Serves,
        ],
        ..FIVE
    },
    Scenario {
        name: "flapping",
        script: &[
            Isolate(Leader),
            Wait(900),
            Heal,
            Wait(900),
            Isolate(Leader),
            Wait(900),
            Heal,
            Wait(900),
            Isolate(Follower),
            Wait(900),
            Heal,
            Wait(900),
            CutTo(Leader),
            Wait(900),
            Heal,
            Wait(900),
            Isolate(Leader),
            Wait(900),
            Heal,
            Wait(900),
            CutFrom(Second),
            Wait(900),
            Heal,
            Serves,
        ],
        ..THREE
    },
    Scenario {
        name: "rolling-restart",
        quick: true,
        script: &[
            Stop(Host(0)),
            Run(Host(0)),
            Serves,
            Stop(Host(1)),
            Run(Host(1)),
            Serves,
            Stop(Host(2)),
            Run(Host(2)),
            Serves,
        ],
        ..THREE
    },
    Scenario {
        name: "quorum-lost",
        quick: true,
        script: &[
            Kill(Leader),
            Kill(Follower),
            Wait(3_000),
            Refuses(Second),
            Wait(2_000),
            Run(Leader),
            Run(Follower),
            Serves,
        ],
        ..THREE
    },
    Scenario {
        name: "disk-full-on-a-follower",
        gear: &[SmallDisk(640)],
        script: &[Lead(1), Fill(Host(0), 60), NoSpace, Wait(3_000), Free(Host(0)), Serves],
        ..THREE
    },
    Scenario {
        name: "disk-full-on-the-leader",
        gear: &[SmallDisk(640)],
        script: &[Lead(0), Fill(Host(0), 60), NoSpace, Wait(3_000), Free(Host(0)), Serves],
        ..THREE
    },
    Scenario {
        name: "slow-disk-of-a-follower",
        gear: &[SlowDisk(150)],
        script: &[Lead(1), Wait(10_000), Serves],
        ..THREE
    },
    Scenario {
        name: "slow-disk-of-the-leader",
        gear: &[SlowDisk(150)],
        script: &[Lead(0), Wait(10_000), Serves],
        ..THREE
    },
    Scenario {
        name: "wall-clocks-jump",
        gear: &[WallClock, WallClock],
        script: &[
            Lead(0),
            Clock(Host(0), "+3600"),
            Wait(3_000),
            Clock(Host(1), "-3600"),
            Wait(3_000),
            Clock(Host(0), "-86400"),
            Wait(3_000),
            Kill(Host(0)),
            Wait(2_000),
            Run(Host(0)),
            Serves,
        ],
        ..THREE
    },
    Scenario {
        name: "fast-clock-of-the-leader",
        gear: &[FastClock(10)],
        script: &[Lead(0), Wait(4_000), Isolate(Host(0)), LONG, Heal, Serves],
        ..THREE
    },
    Scenario {
        name: "long-absence",
        script: &[Kill(Follower), Bulk(80), Run(Follower), CaughtUp(Follower), BySnapshot, Serves],
        ..THREE
    },
    Scenario {
        name: "two-of-five-killed",
        script: &[Kill(Leader), Kill(Follower), LONG, Run(Leader), Run(Follower), Serves],
        ..FIVE
    },
    Scenario {
        name: "flipped-bits-in-a-state",
        quick: true,
        script: &[Stop(Follower), Flip(Follower, "/state/"), Run(Follower), CaughtUp(Follower), Serves],
        ..THREE
    },
    Scenario {
        name: "flipped-bits-in-a-log",
        script: &[
            Kill(Follower),
            Flip(Follower, "/log/"),
            Run(Follower),
            Ends(Follower),
            Rejoin(Follower),
            Run(Follower),
            CaughtUp(Follower),
            Serves,
        ],
        ..THREE
    },
    Scenario {
        name: "members-come-and-go",
        more: 1,
        compacts: true,
        script: &[
            Add(Host(3)),
            Serves,
            Kill(Leader),
            Wait(3_000),
            Run(Leader),
            Serves,
            Look,
            Remove(Leader),
            Wait(3_000),
            Serves,
        ],
        ..THREE
    },
];

/// A bug of ours (`chainfire`'s `plant.rs`), the shortest scenario that shows it, and what is said then.
pub const PLANTED: &[(&str, &str, Scenario)] = &[
    ("StaleRead", "stale", Scenario { script: &[Isolate(Follower), Wait(2_000), Heal, Serves], ..THREE }),
    (
        "WatchGap",
        "does not tell of revision",
        Scenario {
            compacts: true,
            script: &[Kill(Follower), Wait(8_000), Run(Follower), Serves, Wait(3_000)],
            ..THREE
        },
    ),
    (
        "WatchForgets",
        "does not tell of revision",
        Scenario { script: &[Kill(Follower), Wait(1_000), Run(Follower), Serves, Wait(1_000)], ..THREE },
    ),
    ("LeaseResurrected", "a lease came back to life", Scenario { script: &[Wait(9_000)], ..THREE }),
    (
        "LeaseShort",
        "a lease ended before its time",
        Scenario {
            script: &[
                Pause(Leader),
                Wait(4_000),
                Resume(Leader),
                Serves,
                Look,
                Pause(Leader),
                Wait(4_000),
                Resume(Leader),
                Serves,
            ],
            ..THREE
        },
    ),
];
