//! First start: the organisation and its admin.

use crate::login::password_entry;
use photon_api::{ClusterBindingSpec, OrganizationSpec, Role, UserSpec};
use photon_auth::Identity;
use photon_base::{Code, Name, Result};
use photon_resource::{Draft, Store};

fn name(s: &'static str) -> Name {
    s.parse().expect("a literal label")
}

/// Makes the organisation, the user `admin` with this password and its cluster-wide role, in one commit.
/// Returns false when they were made before, whatever became of them since.
pub async fn first_admin(store: &Store, secret: &str) -> Result<bool> {
    if store.get::<OrganizationSpec>(None, &name("default")).await?.is_some() {
        return Ok(false);
    }
    let (key, hash) = password_entry(&name("admin"), secret).await?;
    let store = store.acting_as("iam-first-start");
    let mut tx = store.begin();
    let organization = OrganizationSpec { display_name: "My organisation".into() };
    tx.create(store.kind_of::<OrganizationSpec>()?, Draft::new(name("default"), &organization)).await?;
    let user = UserSpec { display_name: "Administrator".into(), disabled: false };
    tx.create(store.kind_of::<UserSpec>()?, Draft::new(name("admin"), &user)).await?;
    let binding = ClusterBindingSpec { subject: Identity::user(name("admin")), role: Role::Admin };
    tx.create(store.kind_of::<ClusterBindingSpec>()?, Draft::new(name("admin"), &binding)).await?;
    tx.put(key, hash)?;
    match tx.commit().await {
        Ok(_) => Ok(true),
        // Another node was faster.
        Err(e) if e.code == Code::Exists => Ok(false),
        Err(e) => Err(e),
    }
}
