//! Kinds for tests of this crate.

use crate::{Reference, Registry, Resource, Scope};
use photon_base::{Error, Name, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProjectSpec {}

#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct TestStatus {
    #[serde(default)]
    pub note: String,
}

impl Resource for ProjectSpec {
    type Status = TestStatus;
    const KIND: &'static str = "project";
    const PLURAL: &'static str = "projects";
    const SCOPE: Scope = Scope::Cluster;
    const SERVICE: &'static str = "test";
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WidgetSpec {
    pub size: u32,
    #[serde(default)]
    pub colour: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part_of: Option<Name>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beside: Option<Name>,
}

impl Resource for WidgetSpec {
    type Status = TestStatus;
    const KIND: &'static str = "widget";
    const PLURAL: &'static str = "widgets";
    const SCOPE: Scope = Scope::Project;
    const SERVICE: &'static str = "test";
    fn validate(&self) -> Result<()> {
        if self.size > 100 { Err(Error::invalid("size", "is above 100")) } else { Ok(()) }
    }
    fn references(&self) -> Vec<Reference> {
        let named = [("part_of", &self.part_of), ("beside", &self.beside)];
        named
            .into_iter()
            .filter_map(|(f, n)| Some(Reference { field: f.into(), kind: "widget", name: n.clone()? }))
            .collect()
    }
}

pub fn registry() -> Registry {
    Registry::new().with::<ProjectSpec>().with::<WidgetSpec>()
}
