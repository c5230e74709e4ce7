//! What every object has.

use photon_base::{Name, Timestamp, Uid};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Another object that this one belongs to; it goes when its owner goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Owner {
    /// Kind of the owner.
    pub kind: String,
    /// Name of the owner, in the same project.
    pub name: Name,
    /// Identity of the owner.
    pub id: Uid,
}

/// Identity and history of an object. Written by the store, except labels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Meta {
    /// Identity; a new object of the same name has another.
    pub id: Uid,
    /// Name, unique among the kind in its project (or in the cluster).
    pub name: Name,
    /// Project, for kinds that live in one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<Name>,
    /// Free labels for selection.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Counts the changes of the wish: spec and deletion.
    pub generation: u64,
    /// Revision of the store that wrote this state; the value for `If-Match`. Not stored, but read
    /// from the store's own mark.
    #[serde(default)]
    pub revision: u64,
    /// When it was made.
    pub created: Timestamp,
    /// When its removal was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deleting: Option<Timestamp>,
    /// Who must still clean up before it goes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub finalizers: Vec<String>,
    /// What it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<Owner>,
}

/// Most labels of an object.
pub const LABELS_MAX: usize = 64;

/// Checks labels: keys of 1–63 of `A-Za-z0-9._/-`, values of at most 63 printable characters.
pub fn check_labels(labels: &BTreeMap<String, String>) -> photon_base::Result<()> {
    use photon_base::Error;
    if labels.len() > LABELS_MAX {
        return Err(Error::invalid("labels", format!("more than {LABELS_MAX}")));
    }
    for (k, v) in labels {
        let key_ok = (1..=63).contains(&k.len())
            && k.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'/'));
        let value_ok = v.len() <= 63 && v.bytes().all(|b| b.is_ascii_graphic() && b != b',' && b != b'=');
        if !key_ok || !value_ok {
            let shown: String = format!("{k}={v}").chars().take(80).collect();
            return Err(Error::invalid("labels", format!("{shown:?} is not a label"))
                .why("keys have 1 to 63 of A-Z a-z 0-9 . _ - /, values at most 63 printable characters without , and ="));
        }
    }
    Ok(())
}
