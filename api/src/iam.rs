//! Kinds of IAM: who exists and who may do what.

use photon_auth::Identity;
use photon_resource::{Column, Resource, Scope};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Kinds without a state of their own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NoStatus {}

/// The organisation that owns the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OrganizationSpec {
    /// Name for people.
    #[serde(default)]
    pub display_name: String,
}

impl Resource for OrganizationSpec {
    type Status = NoStatus;
    const KIND: &'static str = "organization";
    const PLURAL: &'static str = "organizations";
    const SCOPE: Scope = Scope::Cluster;
    const SERVICE: &'static str = "iam";
    const COLUMNS: &'static [Column] = &[Column { title: "DISPLAY NAME", pointer: "/spec/displayName" }];
}

/// A set of objects that belong together: the unit of rights and of names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ProjectSpec {
    /// What it is for.
    #[serde(default)]
    pub description: String,
}

impl Resource for ProjectSpec {
    type Status = NoStatus;
    const KIND: &'static str = "project";
    const PLURAL: &'static str = "projects";
    const SCOPE: Scope = Scope::Cluster;
    const SERVICE: &'static str = "iam";
    const COLUMNS: &'static [Column] = &[Column { title: "DESCRIPTION", pointer: "/spec/description" }];
}

/// A person or a program that logs in. Its password is kept elsewhere and never shown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UserSpec {
    /// Name for people.
    #[serde(default)]
    pub display_name: String,
    /// True keeps the user from doing anything, at once.
    #[serde(default)]
    pub disabled: bool,
}

impl Resource for UserSpec {
    type Status = NoStatus;
    const KIND: &'static str = "user";
    const PLURAL: &'static str = "users";
    const SCOPE: Scope = Scope::Cluster;
    const SERVICE: &'static str = "iam";
    const COLUMNS: &'static [Column] = &[
        Column { title: "DISPLAY NAME", pointer: "/spec/displayName" },
        Column { title: "DISABLED", pointer: "/spec/disabled" },
    ];
}

/// What a subject may do where it is bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Read.
    Viewer,
    /// Read, and change everything but rights.
    Editor,
    /// Everything, rights too.
    Admin,
}

/// Gives a subject a role in one project.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BindingSpec {
    /// Who, as in `user/alice`.
    pub subject: Identity,
    /// Role: viewer, editor or admin.
    pub role: Role,
}

impl Resource for BindingSpec {
    type Status = NoStatus;
    const KIND: &'static str = "binding";
    const PLURAL: &'static str = "bindings";
    const SCOPE: Scope = Scope::Project;
    const SERVICE: &'static str = "iam";
    const COLUMNS: &'static [Column] = &[
        Column { title: "SUBJECT", pointer: "/spec/subject" },
        Column { title: "ROLE", pointer: "/spec/role" },
    ];
}

/// Gives a subject a role in every project and on everything outside projects.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClusterBindingSpec {
    /// Who, as in `user/alice`.
    pub subject: Identity,
    /// Role: viewer, editor or admin.
    pub role: Role,
}

impl Resource for ClusterBindingSpec {
    type Status = NoStatus;
    const KIND: &'static str = "cluster-binding";
    const PLURAL: &'static str = "cluster-bindings";
    const SCOPE: Scope = Scope::Cluster;
    const SERVICE: &'static str = "iam";
    const COLUMNS: &'static [Column] = BindingSpec::COLUMNS;
}
