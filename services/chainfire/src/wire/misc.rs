//! Cluster, Maintenance and Auth: what a single member can say of itself.

use super::{Api, ETCD_VERSION, etcdserverpb::*, scope};
use crate::{EtcdError, EtcdResult, Scope, machine::Published, model::layout};
use photon_kv::{Direction, engine::KeyRange};
use std::sync::Arc;
use tonic::{Request, Response, Status};

#[tonic::async_trait]
impl cluster_server::Cluster for Api {
    async fn member_list(
        &self,
        request: Request<MemberListRequest>,
    ) -> Result<Response<MemberListResponse>, Status> {
        scope(&request)?;
        let i = &self.0.inner;
        let member = Member {
            id: i.member_id,
            name: i.config.name.clone(),
            peer_ur_ls: i.config.peer_urls.clone(),
            client_ur_ls: i.config.client_urls.clone(),
            is_learner: false,
        };
        Ok(Response::new(MemberListResponse { header: self.header(self.revision()), members: vec![member] }))
    }
}

#[tonic::async_trait]
impl maintenance_server::Maintenance for Api {
    async fn alarm(&self, request: Request<AlarmRequest>) -> Result<Response<AlarmResponse>, Status> {
        scope(&request)?;
        // There is no quota to exceed; corruption stops the member instead of raising a flag.
        Ok(Response::new(AlarmResponse { header: self.header(self.revision()), alarms: Vec::new() }))
    }

    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        scope(&request)?;
        let i = &self.0.inner;
        let state = self.0.published();
        let raft = self.0.raft();
        let size = i64::try_from(i.shared.engine.disk_bytes()).unwrap_or(i64::MAX);
        Ok(Response::new(StatusResponse {
            header: self.header(state.revision),
            version: ETCD_VERSION.into(),
            db_size: size,
            leader: if raft.leader.is_some() { i.member_id } else { 0 },
            raft_index: raft.commit,
            raft_term: raft.term,
            raft_applied_index: raft.applied,
            errors: Vec::new(),
            db_size_in_use: size,
            is_learner: false,
        }))
    }

    /// There is nothing to defragment; room of removed keys is given back in the background.
    async fn defragment(
        &self,
        request: Request<DefragmentRequest>,
    ) -> Result<Response<DefragmentResponse>, Status> {
        if scope(&request)? != Scope::Operator {
            return Err(EtcdError::PermissionDenied.into());
        }
        let engine = self.0.inner.shared.engine.clone();
        self.0.inner.tasks.spawn("chainfire-major-compaction", async move {
            if let Err(e) = photon_rt::task::blocking(move || engine.compact()).await {
                tracing::error!(error = %e, "the engine could not be compacted");
            }
        });
        Ok(Response::new(DefragmentResponse { header: self.header(self.revision()) }))
    }

    async fn hash_kv(&self, request: Request<HashKvRequest>) -> Result<Response<HashKvResponse>, Status> {
        if scope(&request)? != Scope::Operator {
            return Err(EtcdError::PermissionDenied.into());
        }
        let at = request.into_inner().revision;
        let state = self.0.linearizable().await?;
        let (hash, compact_revision) = photon_rt::task::blocking(move || hash(&state, at)).await?;
        Ok(Response::new(HashKvResponse { header: self.header(self.revision()), hash, compact_revision }))
    }
}

/// A digest of all versions up to a revision, equal on members that hold the same. (Not etcd's
/// digest: that one is over its pages.) FNV-1a over keys, stamps and versions.
fn hash(state: &Arc<Published>, at: i64) -> EtcdResult<(u32, i64)> {
    let reader = state.reader();
    let at = reader.resolve(at)?;
    let mut h: u32 = 0x811c_9dc5;
    let mut eat = |b: &[u8]| b.iter().for_each(|x| h = (h ^ u32::from(*x)).wrapping_mul(0x0100_0193));
    for item in reader.view.scan(layout::EVENTS, KeyRange::all(), Direction::Forward) {
        let (k, key) = item?;
        match layout::split_event_key(&k) {
            Some(stamp) if stamp.main > at => break,
            Some(stamp) if stamp.main > reader.compacted => {
                eat(&k);
                eat(&key);
                eat(&reader.view.get(layout::DATA, &layout::data_key(&key, stamp))?.unwrap_or_default());
            }
            _ => {}
        }
    }
    let whole = crate::Span { start: bytes::Bytes::new(), end: None };
    for item in reader.scan(whole, at.max(reader.compacted), Direction::Forward) {
        eat(&item?);
    }
    Ok((h, reader.compacted))
}

#[tonic::async_trait]
impl auth_server::Auth for Api {
    /// Identities are the listener's business, not etcd's users and passwords.
    async fn auth_status(
        &self,
        request: Request<AuthStatusRequest>,
    ) -> Result<Response<AuthStatusResponse>, Status> {
        scope(&request)?;
        Ok(Response::new(AuthStatusResponse {
            header: self.header(self.revision()),
            enabled: false,
            auth_revision: 1,
        }))
    }
}
