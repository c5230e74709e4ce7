//! The data plane of a host where we may not make networks.

use super::{DataPlane, Found, NetworkPlan, PortPlan};
use async_trait::async_trait;
use photon_base::{Result, Uid};
use std::{collections::BTreeMap, path::PathBuf};

/// Makes nothing: each VM gets QEMU's user-mode network, alone.
#[derive(Clone, Copy, Debug, Default)]
pub struct UserPlane;

#[async_trait]
impl DataPlane for UserPlane {
    fn missing(&self) -> Vec<String> {
        vec![
            "VMs do not reach each other, and nothing reaches them: networks need root (sudo ./dev up)"
                .into(),
            "names in photon.internal are not answered inside VMs, for the same reason".into(),
        ]
    }

    fn netns(&self, _: Uid) -> Option<PathBuf> {
        None
    }

    fn tap(&self, _: Uid) -> Option<String> {
        None
    }

    async fn ensure_network(&self, plan: &NetworkPlan) -> Result<()> {
        plan.check()
    }

    async fn ensure_port(&self, _: &PortPlan) -> Result<()> {
        Ok(())
    }

    async fn remove_port(&self, _: Uid, _: Uid) -> Result<()> {
        Ok(())
    }

    async fn remove_network(&self, _: Uid) -> Result<()> {
        Ok(())
    }

    async fn list(&self) -> Result<Found> {
        Ok(Found::new())
    }

    async fn sweep(&self, _: &BTreeMap<Uid, Vec<Uid>>) -> Result<()> {
        Ok(())
    }
}
