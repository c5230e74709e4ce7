//! The Maintenance service.

use super::{Api, ETCD_VERSION, etcdserverpb::*};
use crate::{
    EtcdError, EtcdResult,
    machine::Published,
    model::{
        hash::{Crc, hash_kv},
        layout,
    },
    snapshot,
};
use futures::Stream;
use photon_kv::{Direction, engine::KeyRange};
use photon_raft::MachineError;
use prost::Message;
use std::{pin::Pin, sync::Arc};
use tokio::sync::mpsc;
use tonic::{Request, Response, Status};

/// Pieces of a snapshot (1 MiB each) that wait for a slow client.
const QUEUE: usize = 2;

#[tonic::async_trait]
impl maintenance_server::Maintenance for Api {
    async fn alarm(&self, request: Request<AlarmRequest>) -> Result<Response<AlarmResponse>, Status> {
        let who = self.who(&request)?;
        let alarms = self.0.alarm(&who, request.into_inner()).await?;
        Ok(Response::new(AlarmResponse { header: self.header(self.revision()), alarms }))
    }

    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let who = self.who(&request)?;
        let i = &self.0.inner;
        let state = self.0.published();
        state.rules.auth.admin(&who.login)?;
        let raft = self.0.raft();
        let size = i64::try_from(i.shared.engine.disk_bytes()).unwrap_or(i64::MAX);
        let mut errors = Vec::new();
        if raft.leader.is_none() {
            errors.push(EtcdError::NoLeader.to_string());
        }
        errors.extend(state.rules.alarms.iter().map(words));
        Ok(Response::new(StatusResponse {
            header: self.header(state.revision),
            version: ETCD_VERSION.into(),
            db_size: size,
            leader: raft.leader.map_or(0, |l| self.0.etcd_id(l)),
            raft_index: raft.commit,
            raft_term: raft.term,
            raft_applied_index: raft.applied,
            errors,
            db_size_in_use: size,
            is_learner: false,
        }))
    }

    /// There is nothing to defragment; room of removed keys is given back in the background.
    async fn defragment(
        &self,
        request: Request<DefragmentRequest>,
    ) -> Result<Response<DefragmentResponse>, Status> {
        self.operator(&request)?;
        let engine = self.0.inner.shared.engine.clone();
        self.0.inner.tasks.spawn("chainfire-major-compaction", async move {
            if let Err(e) = photon_rt::task::blocking(move || engine.compact()).await {
                tracing::error!(error = %e, "the engine could not be compacted");
            }
        });
        Ok(Response::new(DefragmentResponse { header: None }))
    }

    /// Digest of everything, equal on members that hold the same. Not etcd's, which is over the pages of
    /// its file; etcd's own comment says "for testing only", and to use HashKV instead.
    async fn hash(&self, request: Request<HashRequest>) -> Result<Response<HashResponse>, Status> {
        self.operator(&request)?;
        let state = self.0.published();
        let revision = state.revision;
        let hash = photon_rt::task::blocking(move || everything(&state)).await?;
        Ok(Response::new(HashResponse { header: self.header(revision), hash }))
    }

    async fn hash_kv(&self, request: Request<HashKvRequest>) -> Result<Response<HashKvResponse>, Status> {
        self.operator(&request)?;
        let at = request.into_inner().revision;
        let state = self.0.linearizable().await?;
        let (revision, compact_revision) = (state.revision, state.compacted);
        let (hash, hash_revision) = photon_rt::task::blocking(move || hash_kv(&state.reader(), at)).await?;
        Ok(Response::new(HashKvResponse {
            header: self.header(revision),
            hash,
            compact_revision,
            hash_revision,
        }))
    }

    type SnapshotStream = Pin<Box<dyn Stream<Item = Result<SnapshotResponse, Status>> + Send>>;

    async fn snapshot(
        &self,
        request: Request<SnapshotRequest>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        self.operator(&request)?;
        let (out, rx) = mpsc::channel(QUEUE);
        let view = self.0.published().view.clone();
        self.0.inner.tasks.spawn(
            "chainfire-snapshot",
            photon_rt::task::blocking(move || {
                let mut left = match snapshot::size(view.clone()) {
                    Ok(n) => n,
                    Err(e) => {
                        let _ = out.blocking_send(Err(unread(e))); // the client may be gone
                        return;
                    }
                };
                for piece in snapshot::pieces(view) {
                    let answer = piece.map_err(unread).map(|blob| {
                        left = left.saturating_sub(blob.len() as u64);
                        SnapshotResponse { header: None, remaining_bytes: left, blob }
                    });
                    let last = answer.is_err();
                    if out.blocking_send(answer).is_err() || last {
                        return;
                    }
                }
            }),
        );
        Ok(Response::new(Box::pin(tokio_stream::wrappers::ReceiverStream::new(rx))))
    }

    /// A single member leads, and can hand the lead to itself only.
    async fn move_leader(
        &self,
        request: Request<MoveLeaderRequest>,
    ) -> Result<Response<MoveLeaderResponse>, Status> {
        self.operator(&request)?;
        if self.0.raft_role() != "leader" {
            return Err(EtcdError::NotLeader.into());
        }
        self.0.move_leader(request.into_inner().target_id).await?;
        Ok(Response::new(MoveLeaderResponse { header: None }))
    }
}

/// etcd's DowngradeRequest: 0 validates, 1 enables, 2 cancels.
#[derive(Clone, PartialEq, Message)]
struct DowngradeRequest {
    #[prost(int32, tag = "1")]
    action: i32,
    #[prost(string, tag = "2")]
    version: String,
}

impl Api {
    /// etcd 3.5's call that prepares an older release. There is none that reads these files, so every
    /// answer is one of etcd's refusals. Not in the generated code, which is of an older etcd.
    pub(super) async fn downgrade(&self, request: http::Request<axum::body::Body>) -> Status {
        let (parts, body) = request.into_parts();
        let metadata = tonic::metadata::MetadataMap::from_headers(parts.headers);
        let who = self.operator(&Request::from_parts(metadata, parts.extensions, ()));
        let r = axum::body::to_bytes(body, 1 << 10).await;
        // Five bytes say that what follows is not compressed, and how long it is.
        let r = r.ok().and_then(|b| DowngradeRequest::decode(b.get(5..)?).ok());
        match (who, r) {
            (Err(e), _) => e,
            (_, None) => Status::invalid_argument("etcdserver: wrong downgrade target version format"),
            (_, Some(r)) if r.action == 2 => {
                Status::failed_precondition("etcdserver: no inflight downgrade job")
            }
            (_, Some(r)) if r.action > 2 || r.action < 0 => {
                Status::unimplemented("etcdserver: unknown downgrade action")
            }
            (_, Some(r)) => match version(&r.version) {
                true => Status::invalid_argument("etcdserver: invalid downgrade target version"),
                false => Status::invalid_argument("etcdserver: wrong downgrade target version format"),
            },
        }
    }
}

/// `3.4` or `3.4.0`.
fn version(text: &str) -> bool {
    let parts: Vec<&str> = text.trim_start_matches('v').split('.').collect();
    (2..=3).contains(&parts.len()) && parts.iter().all(|p| p.parse::<u16>().is_ok())
}

fn unread(e: MachineError) -> Status {
    Status::internal(e.to_string())
}

/// An alarm as etcd prints it.
fn words(a: &AlarmMember) -> String {
    let mut s = String::new();
    if a.member_id != 0 {
        s += &format!("memberID:{} ", a.member_id);
    }
    match AlarmType::try_from(a.alarm) {
        Ok(AlarmType::None) => {}
        Ok(kind) => s += &format!("alarm:{} ", kind.as_str_name()),
        Err(_) => s += &format!("alarm:{} ", a.alarm),
    }
    s
}

/// HashKV at the present, and leases and rules beside it.
fn everything(state: &Arc<Published>) -> EtcdResult<u32> {
    let reader = state.reader();
    let mut crc = Crc::new();
    crc.eat(&hash_kv(&reader, 0)?.0.to_be_bytes());
    for item in state.view.scan(layout::LEASE, KeyRange::all(), Direction::Forward) {
        let (k, v) = item?;
        crc.eat(&k);
        crc.eat(&v);
    }
    crc.eat(&state.rules.encode_to_vec());
    Ok(crc.sum())
}
