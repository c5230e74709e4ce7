//! What a kind declares.

use photon_base::{Name, Result};
use schemars::JsonSchema;
use serde::{Serialize, de::DeserializeOwned};

/// Where objects of a kind live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// One set of names in the whole cluster.
    Cluster,
    /// A set of names in each project.
    Project,
}

/// A column of the table that `list` prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    /// Heading.
    pub title: &'static str,
    /// JSON pointer (RFC 6901) into the object.
    pub pointer: &'static str,
}

/// A flag of `create` and `edit` on the command line that is no plain field of the spec (those have
/// flags by their own names).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flag {
    /// Name without dashes.
    pub name: &'static str,
    /// JSON pointer into the spec; `-` appends an element.
    pub pointer: &'static str,
    /// One line of help.
    pub help: &'static str,
}

/// Another object that a spec names. The store checks that it exists, and keeps it while it is named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// Field of the spec, for errors.
    pub field: String,
    /// Kind named.
    pub kind: &'static str,
    /// Name; in the same project if the kind lives in projects.
    pub name: Name,
}

/// A kind of resource. The implementing type is the spec: what the owner wants.
pub trait Resource: Serialize + DeserializeOwned + JsonSchema + Clone + Send + Sync + 'static {
    /// What is so; written by reconcilers and agents.
    type Status: Serialize + DeserializeOwned + JsonSchema + Default + Clone + Send + Sync + 'static;

    /// Singular, as in `vm`: the command line's noun and the first half of actions.
    const KIND: &'static str;
    /// Plural, as in `vms`: the path segment.
    const PLURAL: &'static str;
    /// Where objects live.
    const SCOPE: Scope;
    /// The service that owns the kind.
    const SERVICE: &'static str;
    /// True for kinds that only the cloud itself writes; people may read them.
    const SYSTEM: bool = false;
    /// Columns behind name (and project) in tables.
    const COLUMNS: &'static [Column] = &[];
    /// Flags of the command line beside the spec's own fields.
    const FLAGS: &'static [Flag] = &[];
    /// Values of `status.phase` in which nothing more happens by itself, if all is well.
    const SETTLED: &'static [&'static str] = &[];
    /// Values of `status.phase` that mean failure.
    const FAILED: &'static [&'static str] = &[];
    /// Finalizers that a new object carries.
    const FINALIZERS: &'static [&'static str] = &[];

    /// Checks what types can't say. Errors name the field below `spec`.
    fn validate(&self) -> Result<()> {
        Ok(())
    }

    /// Checks a change; for fields that can't change.
    fn validate_update(&self, _old: &Self) -> Result<()> {
        Ok(())
    }

    /// Objects that this one needs.
    fn references(&self) -> Vec<Reference> {
        Vec::new()
    }
}
