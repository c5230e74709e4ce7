//! The Lease service.

use super::{Api, etcdserverpb::*, scope};
use crate::EtcdError;
use futures::{Stream, StreamExt};
use std::pin::Pin;
use tonic::{Request, Response, Status, Streaming};

#[tonic::async_trait]
impl lease_server::Lease for Api {
    async fn lease_grant(
        &self,
        request: Request<LeaseGrantRequest>,
    ) -> Result<Response<LeaseGrantResponse>, Status> {
        let scope = scope(&request)?;
        let r = request.into_inner();
        let (revision, id, ttl) = self.0.lease_grant(scope, r.id, r.ttl).await?;
        Ok(Response::new(LeaseGrantResponse { header: self.header(revision), id, ttl, error: String::new() }))
    }

    async fn lease_revoke(
        &self,
        request: Request<LeaseRevokeRequest>,
    ) -> Result<Response<LeaseRevokeResponse>, Status> {
        let scope = scope(&request)?;
        let revision = self.0.lease_revoke(scope, request.into_inner().id).await?;
        Ok(Response::new(LeaseRevokeResponse { header: self.header(revision) }))
    }

    type LeaseKeepAliveStream = Pin<Box<dyn Stream<Item = Result<LeaseKeepAliveResponse, Status>> + Send>>;

    /// One answer for each question, in order: nothing is read ahead of what the client takes.
    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let scope = scope(&request)?;
        let me = self.clone();
        let answers = request.into_inner().then(move |r| {
            let me = me.clone();
            async move {
                let id = r?.id;
                let ttl = match me.0.lease_renew(scope, id).await {
                    Ok(ttl) => ttl,
                    Err(EtcdError::LeaseNotFound) => 0,
                    Err(e) => return Err(e.into()),
                };
                Ok(LeaseKeepAliveResponse { header: me.header(me.revision()), id, ttl })
            }
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<LeaseTimeToLiveRequest>,
    ) -> Result<Response<LeaseTimeToLiveResponse>, Status> {
        let scope = scope(&request)?;
        let r = request.into_inner();
        self.0.linearizable().await?;
        if self.0.raft_role() != "leader" {
            return Err(EtcdError::NotLeader.into()); // only its timers count
        }
        let header = self.header(self.revision());
        let answer = match self.0.inner.shared.lessor.remaining(scope, r.id) {
            Ok(left) => {
                let keys = if r.keys { self.0.lease_keys(scope, r.id).await? } else { Vec::new() };
                LeaseTimeToLiveResponse { header, id: r.id, ttl: left.left, granted_ttl: left.granted, keys }
            }
            Err(EtcdError::LeaseNotFound) => {
                LeaseTimeToLiveResponse { header, id: r.id, ttl: -1, ..Default::default() }
            }
            Err(e) => return Err(e.into()),
        };
        Ok(Response::new(answer))
    }

    async fn lease_leases(
        &self,
        request: Request<LeaseLeasesRequest>,
    ) -> Result<Response<LeaseLeasesResponse>, Status> {
        let scope = scope(&request)?;
        self.0.linearizable().await?;
        let leases =
            self.0.inner.shared.lessor.list(scope).into_iter().map(|id| LeaseStatus { id }).collect();
        Ok(Response::new(LeaseLeasesResponse { header: self.header(self.revision()), leases }))
    }
}
