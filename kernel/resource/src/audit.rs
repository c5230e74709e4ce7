//! Who changed what. The record is part of the commit that makes the change.

use crate::{FieldChange, keys};
use bytes::Bytes;
use photon_auth::Authorized;
use photon_base::{Timestamp, Uid};
use serde::{Deserialize, Serialize};

/// One change by one caller.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AuditRecord {
    /// When.
    pub at: Timestamp,
    /// Who, as in `user/alice`.
    pub who: String,
    /// How the identity was proven: `certificate`, `token:ID` or `internal`.
    pub proof: String,
    /// What, as in `vm.create`.
    pub action: String,
    /// On what, as in `vm "a" in project demo`.
    pub target: String,
    /// Identity of the object.
    pub object: Uid,
    /// What granted it.
    pub because: String,
    /// Fields changed (the first 64; values above 1 KiB are left out).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<FieldChange>,
}

impl AuditRecord {
    /// A record of what `who` does to `target` now.
    pub fn of(who: &Authorized, target: &crate::Key, object: Uid, changes: Vec<FieldChange>) -> Self {
        Self::new(who, target, object, photon_rt::time::wall(), changes)
    }

    pub(crate) fn new(
        who: &Authorized,
        target: &crate::Key,
        object: Uid,
        at: Timestamp,
        mut changes: Vec<FieldChange>,
    ) -> Self {
        changes.truncate(64);
        for c in &mut changes {
            for v in [&mut c.old, &mut c.new] {
                if v.as_ref().is_some_and(|v| v.to_string().len() > 1024) {
                    *v = Some("(too long)".into());
                }
            }
        }
        let proof = match &who.caller().proof {
            photon_auth::Proof::Certificate => "certificate".into(),
            photon_auth::Proof::Token(id) => format!("token:{id}"),
            photon_auth::Proof::Internal => "internal".into(),
        };
        AuditRecord {
            at,
            who: who.caller().identity.to_string(),
            proof,
            action: who.action().to_string(),
            target: target.to_string(),
            object,
            because: who.because().to_string(),
            changes,
        }
    }

    pub(crate) fn entry(&self) -> (Bytes, Bytes) {
        let key = keys::audit_key(self.at, photon_rt::entropy::uid());
        (key, serde_json::to_vec(self).unwrap_or_default().into())
    }
}
