//! Objects, typed and untyped.

use crate::{Meta, Resource};
use photon_base::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// An object of a known kind.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(bound = "")]
pub struct Object<R: Resource> {
    /// Identity and history.
    pub meta: Meta,
    /// What is wanted.
    pub spec: R,
    /// What is so.
    #[serde(default)]
    pub status: R::Status,
}

/// An object whose kind is known only by name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Raw {
    /// Identity and history.
    pub meta: Meta,
    /// What is wanted.
    pub spec: Value,
    /// What is so.
    #[serde(default)]
    pub status: Value,
}

impl Raw {
    /// The object with its types. Fails only when the stored form is older or newer than the type.
    pub fn typed<R: Resource>(&self) -> Result<Object<R>> {
        let broken = |e: serde_json::Error| {
            Error::internal(format!(
                "{} {:?} is stored in a form that this version can't read",
                R::KIND,
                self.meta.name
            ))
            .why(e)
        };
        let status = match &self.status {
            Value::Null => R::Status::default(),
            s => serde_json::from_value(s.clone()).map_err(broken)?,
        };
        Ok(Object {
            meta: self.meta.clone(),
            spec: serde_json::from_value(self.spec.clone()).map_err(broken)?,
            status,
        })
    }

    /// As people see it: kind first, then the object.
    pub fn to_value(&self, kind: &str) -> Value {
        let mut v = serde_json::Map::new();
        v.insert("kind".into(), kind.into());
        v.insert("meta".into(), serde_json::to_value(&self.meta).unwrap_or_default());
        v.insert("spec".into(), self.spec.clone());
        v.insert("status".into(), self.status.clone());
        Value::Object(v)
    }
}

impl<R: Resource> Object<R> {
    /// The object without its types.
    pub fn raw(&self) -> Result<Raw> {
        let broken = |e: serde_json::Error| Error::internal(format!("{} can't be stored", R::KIND)).why(e);
        Ok(Raw {
            meta: self.meta.clone(),
            spec: serde_json::to_value(&self.spec).map_err(broken)?,
            status: serde_json::to_value(&self.status).map_err(broken)?,
        })
    }

    /// True while the object is wanted.
    pub fn is_wanted(&self) -> bool {
        self.meta.deleting.is_none()
    }

    /// True when `finalizer` still has to run.
    pub fn has_finalizer(&self, finalizer: &str) -> bool {
        self.meta.finalizers.iter().any(|f| f == finalizer)
    }
}
