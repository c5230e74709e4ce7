//! Parts that several kinds share.

use photon_base::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One aspect of an object's state, with a reason that programs can match and a message for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Condition {
    /// Aspect, as in `Ready`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Whether it holds.
    pub status: bool,
    /// Why, in CamelCase.
    pub reason: String,
    /// Why, for people.
    #[serde(default)]
    pub message: String,
    /// Since when.
    pub since: Timestamp,
}

/// Sets an aspect; `since` moves only when its status does. Returns true when anything changed.
pub fn set_condition(
    all: &mut Vec<Condition>,
    kind: &str,
    status: bool,
    reason: &str,
    message: impl Into<String>,
    now: Timestamp,
) -> bool {
    let message = message.into();
    match all.iter_mut().find(|c| c.kind == kind) {
        Some(c) if c.status == status && c.reason == reason && c.message == message => false,
        Some(c) => {
            let since = if c.status == status { c.since } else { now };
            *c = Condition { kind: kind.into(), status, reason: reason.into(), message, since };
            true
        }
        None => {
            all.push(Condition { kind: kind.into(), status, reason: reason.into(), message, since: now });
            true
        }
    }
}
