//! Every resource kind of every service, and nothing else: so nobody imports a service to name its
//! resources. Types here are plain data with their checks; decisions live in the services.

mod chainfire;
mod common;
mod iam;
mod plasmavmc;
mod prismnet;

pub use chainfire::{NodeSpec, NodeStatus};
pub use common::{Condition, set_condition};
pub use iam::{BindingSpec, ClusterBindingSpec, NoStatus, OrganizationSpec, ProjectSpec, Role, UserSpec};
pub use plasmavmc::{
    HostSpec, HostStatus, ImageFormat, ImageSpec, ImageStatus, IncarnationSpec, IncarnationStatus, NicSpec,
    Phase, Power, Restart, VmSpec, VmStatus,
};
pub use prismnet::{Cidr, NetworkSpec, NetworkStatus, PortSpec, PortStatus};

use photon_resource::Registry;

/// All kinds.
pub fn registry() -> Registry {
    Registry::new()
        .with::<OrganizationSpec>()
        .with::<ProjectSpec>()
        .with::<UserSpec>()
        .with::<BindingSpec>()
        .with::<ClusterBindingSpec>()
        .with::<NetworkSpec>()
        .with::<PortSpec>()
        .with::<ImageSpec>()
        .with::<VmSpec>()
        .with::<IncarnationSpec>()
        .with::<HostSpec>()
        .with::<NodeSpec>()
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_kind_has_a_schema_that_documents_its_fields() {
        for k in super::registry().kinds() {
            let schema = (k.spec_schema)();
            for (name, field) in schema["properties"].as_object().into_iter().flatten() {
                assert!(field.to_string().contains("description"), "{}.{name} has no description", k.kind);
            }
        }
    }
}
