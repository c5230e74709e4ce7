//! Root disks: a copy-on-write layer over the image, kept as long as the VM exists.

use super::HostAgent;
use crate::{
    control::{DISK_FINALIZER, VM_FINALIZER},
    engine::image,
};
use async_trait::async_trait;
use photon_api::VmSpec;
use photon_base::{Bytes, Error, Result, Uid};
use photon_reconcile::{Context, Next, Reconcile};
use photon_resource::Key;
use std::path::{Path, PathBuf};

fn folder(dir: &Path, vm: Uid) -> PathBuf {
    dir.join("disks").join(vm.to_string())
}

/// The root disk of `vm`, made if it is not there.
pub async fn ensure_root(dir: &Path, vm: Uid, content: &Path, size: Option<Bytes>) -> Result<PathBuf> {
    let folder = folder(dir, vm);
    photon_rt::fs::private_dir(&folder)?;
    let path = folder.join("root.qcow2");
    if !path.exists() {
        image::root_disk(&content.join("disk.raw"), &path, size).await?;
    }
    Ok(path)
}

/// Removes the disks of VMs that go.
pub struct Disks {
    /// This host's agent.
    pub agent: HostAgent,
}

#[async_trait]
impl Reconcile for Disks {
    type Kind = VmSpec;

    fn name(&self) -> &'static str {
        "plasmavmc-disks"
    }

    async fn reconcile(&self, cx: &Context, key: &Key) -> Result<Next> {
        let Some(vm) = cx.get::<VmSpec>(key.project.as_ref(), &key.name)? else { return Ok(Next::Done) };
        let here = vm.status.host.as_ref().is_none_or(|h| h == self.agent.host());
        if vm.is_wanted() || !here || vm.has_finalizer(VM_FINALIZER) || !vm.has_finalizer(DISK_FINALIZER) {
            return Ok(Next::Done);
        }
        remove(folder(self.agent.dir(), vm.meta.id)).await?;
        self.agent.hypervisor().forget(vm.meta.id).await?;
        let mut tx = cx.begin();
        tx.update(&vm, |v| v.meta.finalizers.retain(|f| f != DISK_FINALIZER)).await?;
        tx.commit().await?;
        Ok(Next::Done)
    }
}

/// Removes a folder with all that is in it; nothing to do when it is not there.
pub async fn remove(folder: PathBuf) -> Result<()> {
    photon_rt::task::blocking(move || match photon_rt::fs::remove_dir_all(&folder) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::internal(format!("cannot remove {}", folder.display())).why(e))
        }
        _ => Ok(()),
    })
    .await
}
