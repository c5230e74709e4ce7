//! The machines of the cloud.

use crate::Condition;
use photon_base::Timestamp;
use photon_resource::{Column, Resource, Scope};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A machine of the cloud. It makes its own record when it starts or joins.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NodeSpec {
    /// True gives its leadership away and keeps new VMs from it.
    #[serde(default)]
    pub drain: bool,
}

/// State of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeStatus {
    /// joining, ready, draining, drained, suspect, down or leaving.
    #[serde(default)]
    pub phase: String,
    /// leader, voter or learner.
    #[serde(default)]
    pub role: String,
    /// Entries of the log that a learner lacks, in thousands rounded down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub behind: Option<u64>,
    /// Its front door.
    #[serde(default)]
    pub endpoint: String,
    /// Where the other nodes reach its store.
    #[serde(default)]
    pub peer_url: String,
    /// Where it gossips.
    #[serde(default)]
    pub gossip: String,
    /// Version of its program.
    #[serde(default)]
    pub version: String,
    /// Its number among the members of the store, in hexadecimal as etcdctl prints it.
    #[serde(default)]
    pub member: String,
    /// When it came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub joined: Option<Timestamp>,
    /// What people should know.
    #[serde(default)]
    pub conditions: Vec<Condition>,
    /// Generation that this state answers.
    #[serde(default)]
    pub observed_generation: u64,
}

impl NodeStatus {
    /// [`NodeStatus::member`] as a number.
    pub fn number(&self) -> Option<u64> {
        u64::from_str_radix(&self.member, 16).ok()
    }
}

impl Resource for NodeSpec {
    type Status = NodeStatus;
    const KIND: &'static str = "node";
    const PLURAL: &'static str = "nodes";
    const SCOPE: Scope = Scope::Cluster;
    const SERVICE: &'static str = "chainfire";
    const COLUMNS: &'static [Column] = &[
        Column { title: "PHASE", pointer: "/status/phase" },
        Column { title: "ROLE", pointer: "/status/role" },
        Column { title: "BEHIND", pointer: "/status/behind" },
        Column { title: "ENDPOINT", pointer: "/status/endpoint" },
        Column { title: "VERSION", pointer: "/status/version" },
    ];
    const SETTLED: &'static [&'static str] = &["ready", "drained"];
    const FINALIZERS: &'static [&'static str] = &["nodes-member"];
}
