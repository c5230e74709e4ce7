//! An object to be.

use crate::Owner;
use photon_base::{Name, Uid};
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;

/// An object to be, not yet admitted.
#[derive(Clone, Debug)]
pub struct Draft {
    pub(crate) project: Option<Name>,
    pub(crate) name: Name,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) owner: Option<Owner>,
    pub(crate) id: Option<Uid>,
    pub(crate) spec: Value,
    pub(crate) status: Value,
}

/// What can't be written as JSON becomes `null`, which no kind admits: the refusal comes with the others.
fn json(v: &impl Serialize) -> Value {
    serde_json::to_value(v).unwrap_or_default()
}

impl Draft {
    /// A cluster-wide object without labels, owner and status; its identity is drawn.
    pub fn new(name: Name, spec: &impl Serialize) -> Draft {
        let (project, labels, owner, id) = (None, BTreeMap::new(), None, None);
        Draft { project, name, labels, owner, id, spec: json(spec), status: Value::Null }
    }

    /// Puts it into a project, or into none.
    pub fn project(mut self, project: Option<Name>) -> Draft {
        self.project = project;
        self
    }

    /// Gives it labels.
    pub fn labels(mut self, labels: BTreeMap<String, String>) -> Draft {
        self.labels = labels;
        self
    }

    /// Gives it its first status.
    pub fn status(mut self, status: &impl Serialize) -> Draft {
        self.status = json(status);
        self
    }

    /// Makes it a child, with an identity that follows from its owner's.
    pub fn child_of(mut self, owner: Owner, id: Uid) -> Draft {
        (self.owner, self.id) = (Some(owner), Some(id));
        self
    }
}
