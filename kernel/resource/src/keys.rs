//! The keyspace. Everything lies below [`ROOT`], which ordinary etcd clients can neither see nor touch.
//!
//! ```text
//! /photon.internal/r/KIND/PROJECT|-/NAME                          an object
//! /photon.internal/ref/KIND/PROJECT|-/NAME/BY-KIND/PROJECT|-/NAME  "is named by", empty value
//! /photon.internal/claim/POOL/ITEM                                a thing that only one may hold; value: holder
//! /photon.internal/audit/MILLISECONDS-UID                         who changed what
//! /photon.internal/lease/NAME/holder|beat                         who decides for the cluster (kernel/reconcile)
//! /photon.internal/cloud                                          on a foreign etcd: whose records these are
//! /photon.internal/idem/IDENTITY/KEY                              the answer to a request that may be repeated
//! ```
//! `-` is no [`Name`], so cluster-wide and project-wide objects never meet.

use bytes::Bytes;
use photon_base::Name;
use photon_kv::Range;

/// Prefix of the cloud's own records.
pub const ROOT: &str = "/photon.internal/";
/// Prefix of all objects.
pub const RESOURCE_PREFIX: &str = "/photon.internal/r/";
/// Prefix of the audit trail; its keys sort by time.
pub const AUDIT_PREFIX: &str = "/photon.internal/audit/";

/// Names one object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Kind.
    pub kind: &'static str,
    /// Project, none for cluster-wide kinds.
    pub project: Option<Name>,
    /// Name.
    pub name: Name,
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {:?}", self.kind, self.name.as_str())?;
        match &self.project {
            Some(p) => write!(f, " in project {p}"),
            None => Ok(()),
        }
    }
}

fn project_part(project: Option<&Name>) -> &str {
    project.map_or("-", Name::as_str)
}

impl Key {
    /// The key of a kind's object.
    pub fn new(kind: &'static str, project: Option<Name>, name: Name) -> Key {
        Key { kind, project, name }
    }

    fn tail(&self) -> String {
        format!("{}/{}/{}", self.kind, project_part(self.project.as_ref()), self.name)
    }

    /// Where the object is stored.
    pub fn storage(&self) -> Bytes {
        format!("{RESOURCE_PREFIX}{}", self.tail()).into()
    }

    /// All "is named by" records of the object.
    pub fn referrers(&self) -> Range {
        Range::prefix(format!("{ROOT}ref/{}/", self.tail()))
    }

    /// True when `record` says that this object names another.
    pub(crate) fn made(&self, record: &[u8]) -> bool {
        record.ends_with(format!("/{}", self.tail()).as_bytes())
    }

    /// The record that `by` names this object.
    pub fn referrer(&self, by: &Key) -> Bytes {
        format!("{ROOT}ref/{}/{}", self.tail(), by.tail()).into()
    }
}

/// All "is named by" records.
pub(crate) fn all_referrers() -> Range {
    Range::prefix(format!("{ROOT}ref/"))
}

/// All objects of a kind, in one project or everywhere.
pub fn kind_range(kind: &str, project: Option<&Name>, scope: crate::Scope) -> Range {
    match (scope, project) {
        (crate::Scope::Project, Some(p)) => Range::prefix(format!("{RESOURCE_PREFIX}{kind}/{p}/")),
        _ => Range::prefix(format!("{RESOURCE_PREFIX}{kind}/")),
    }
}

/// Reads a storage key: kind, project, name.
pub fn parse_key(storage: &[u8]) -> Option<(&str, Option<Name>, Name)> {
    let text = std::str::from_utf8(storage).ok()?.strip_prefix(RESOURCE_PREFIX)?;
    let mut parts = text.split('/');
    let (kind, project, name) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() {
        return None;
    }
    let project = if project == "-" { None } else { Some(project.parse().ok()?) };
    Some((kind, project, name.parse().ok()?))
}

/// The key of an exclusive claim: `item` of `pool`, as in an address of a network.
pub fn claim_key(pool: &str, item: &str) -> Bytes {
    format!("{ROOT}claim/{pool}/{item}").into()
}

pub(crate) fn audit_key(at: photon_base::Timestamp, id: photon_base::Uid) -> Bytes {
    format!("{AUDIT_PREFIX}{:015}-{id}", at.0).into()
}

pub(crate) fn idempotency_key(identity: &photon_auth::Identity, key: &str) -> Bytes {
    format!("{ROOT}idem/{identity}/{key}").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn storage_keys_round_trip() {
        let n = |s: &str| s.parse::<Name>().expect("name");
        for (project, name) in [(Some(n("demo")), n("a")), (None, n("tiny"))] {
            let k = Key::new("vm", project.clone(), name.clone());
            assert_eq!(parse_key(&k.storage()), Some(("vm", project, name)));
        }
        assert_eq!(parse_key(b"/photon.internal/r/vm/demo/a/b"), None);
        assert_eq!(parse_key(b"/elsewhere"), None);
    }
}
