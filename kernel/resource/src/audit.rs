//! Who changed what. A commit writes its own records: whatever makes, changes or removes a wish names the
//! one on whose behalf it does, or there is no commit to make it in.

use crate::{FieldChange, Key, Raw, diff, keys};
use bytes::Bytes;
use photon_auth::{Authorized, Identity, Proof};
use photon_base::{Error, Result, Timestamp, Uid};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// Most fields of a record, and most bytes of a value in it.
const FIELDS_MAX: usize = 64;
const VALUE_BYTES_MAX: usize = 1024;

/// On whose behalf a commit is made.
#[derive(Clone, Debug)]
pub struct Actor {
    who: String,
    proof: String,
    because: String,
}

impl Actor {
    /// A part of the cloud itself; `name` is a literal of ours, as in `plasmavmc-vm`.
    pub fn service(name: &'static str) -> Actor {
        let who = Identity::service(name).to_string();
        Actor { who, proof: "internal".into(), because: "the cloud itself".into() }
    }

    pub(crate) fn because(&mut self, why: &str) {
        self.because = why.into();
    }
}

impl From<&Authorized> for Actor {
    fn from(who: &Authorized) -> Actor {
        let proof = match &who.caller().proof {
            Proof::Certificate => "certificate".into(),
            Proof::Token(id) => format!("token:{id}"),
            Proof::Internal => "internal".into(),
        };
        Actor { who: who.caller().identity.to_string(), proof, because: who.because().to_string() }
    }
}

/// One change by one caller.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AuditRecord {
    /// When.
    pub at: Timestamp,
    /// Who, as in `user/alice` or `service/plasmavmc-vm`.
    pub who: String,
    /// How the identity was proven: `certificate`, `token:ID` or `internal`.
    pub proof: String,
    /// What, as in `vm.create`.
    pub action: String,
    /// On what, as in `vm "a" in project demo`.
    pub target: String,
    /// Identity of the object.
    pub object: Uid,
    /// What granted it, or what made the cloud do it.
    pub because: String,
    /// Fields changed (the first 64; values above 1 KiB are left out).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<FieldChange>,
}

/// What a commit is about to do to the wish that an object is.
#[derive(Debug)]
pub(crate) struct Change {
    verb: &'static str,
    target: Key,
    object: Uid,
    pub(crate) fields: Vec<FieldChange>,
}

impl Change {
    /// The change from `before` to `after`; none when only status and finalizers differ. The end of an
    /// object whose removal was asked for before is no new change.
    pub(crate) fn between(target: &Key, before: Option<&Raw>, after: Option<&Raw>) -> Option<Change> {
        let going = |o: &Raw| o.meta.deleting.is_some();
        let verb = match (before, after) {
            (None, Some(_)) => "create",
            (Some(b), None) if going(b) => return None,
            (Some(_), None) => "delete",
            (Some(b), Some(a)) if going(a) && !going(b) => "delete",
            (Some(b), Some(a)) if a.spec == b.spec && a.meta.labels == b.meta.labels => return None,
            (Some(_), Some(_)) => "update",
            (None, None) => return None,
        };
        let object = after.or(before)?.meta.id;
        Some(Change { verb, target: target.clone(), object, fields: fields(before, after) })
    }

    /// A change of something that belongs to an object and is not in it.
    pub(crate) fn beside(target: &Key, object: Uid, part: &str) -> Change {
        let field = FieldChange { field: part.into(), old: None, new: None };
        Change { verb: "update", target: target.clone(), object, fields: vec![field] }
    }

    /// The record and where it goes.
    pub(crate) fn record(self, actor: &Actor, at: Timestamp) -> Result<(Bytes, Bytes)> {
        let mut changes = self.fields;
        changes.truncate(FIELDS_MAX);
        for c in &mut changes {
            for v in [&mut c.old, &mut c.new] {
                if v.as_ref().is_some_and(|v| v.to_string().len() > VALUE_BYTES_MAX) {
                    *v = Some("(too long)".into());
                }
            }
        }
        let record = AuditRecord {
            at,
            who: actor.who.clone(),
            proof: actor.proof.clone(),
            action: format!("{}.{}", self.target.kind, self.verb),
            target: self.target.to_string(),
            object: self.object,
            because: actor.because.clone(),
            changes,
        };
        let bytes = serde_json::to_vec(&record)
            .map_err(|e| Error::internal("an audit record can't be written").why(e))?;
        Ok((keys::audit_key(at, photon_rt::entropy::uid()), bytes.into()))
    }
}

/// Spec first: it must be among those that a record keeps.
fn fields(before: Option<&Raw>, after: Option<&Raw>) -> Vec<FieldChange> {
    let spec = |o: Option<&Raw>| o.map_or(Value::Null, |o| o.spec.clone());
    let none = BTreeMap::new();
    let labels = |o: Option<&Raw>| serde_json::to_value(o.map_or(&none, |o| &o.meta.labels));
    let deleting = |o: Option<&Raw>| serde_json::to_value(o.and_then(|o| o.meta.deleting));
    let mut out = diff("spec", &spec(before), &spec(after));
    let (old, new) = (labels(before).unwrap_or_default(), labels(after).unwrap_or_default());
    out.extend(diff("meta.labels", &old, &new));
    if after.is_some() {
        let (old, new) = (deleting(before).unwrap_or_default(), deleting(after).unwrap_or_default());
        out.extend(diff("meta.deleting", &old, &new));
    }
    out
}

#[cfg(test)]
mod tests;
