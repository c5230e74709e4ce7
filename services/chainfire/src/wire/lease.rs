//! The Lease service.

use super::{Api, etcdserverpb::*};
use crate::{EtcdError, cluster::FromMember};
use futures::{Stream, StreamExt};
use std::pin::Pin;
use tonic::{Request, Response, Status, Streaming};

/// Signs of life of one stream that are worked on at a time.
const TOGETHER: usize = 64;

#[tonic::async_trait]
impl lease_server::Lease for Api {
    async fn lease_grant(
        &self,
        request: Request<LeaseGrantRequest>,
    ) -> Result<Response<LeaseGrantResponse>, Status> {
        let who = self.who(&request)?;
        let r = request.into_inner();
        let (revision, id, ttl) = self.0.lease_grant(&who, r.id, r.ttl).await?;
        Ok(Response::new(LeaseGrantResponse { header: self.header(revision), id, ttl, error: String::new() }))
    }

    async fn lease_revoke(
        &self,
        request: Request<LeaseRevokeRequest>,
    ) -> Result<Response<LeaseRevokeResponse>, Status> {
        let who = self.who(&request)?;
        let revision = self.0.lease_revoke(&who, request.into_inner().id).await?;
        Ok(Response::new(LeaseRevokeResponse { header: self.header(revision) }))
    }

    type LeaseKeepAliveStream = Pin<Box<dyn Stream<Item = Result<LeaseKeepAliveResponse, Status>> + Send>>;

    /// One answer for each question, in order. A few are worked on at a time: where this member has to ask
    /// the leader, they travel together.
    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let who = self.who(&request)?;
        let relayed = request.extensions().get::<FromMember>().is_some();
        let me = self.clone();
        let answers = request.into_inner().map(move |r| {
            let (me, who) = (me.clone(), who.clone());
            async move {
                let id = r?.id;
                let ttl = match me.0.lease_renew(&who, id, relayed).await {
                    Ok(ttl) => ttl,
                    Err(EtcdError::LeaseNotFound) => 0,
                    Err(e) => return Err(e.into()),
                };
                Ok(LeaseKeepAliveResponse { header: me.header(me.revision()), id, ttl })
            }
        });
        Ok(Response::new(Box::pin(answers.buffered(TOGETHER))))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<LeaseTimeToLiveRequest>,
    ) -> Result<Response<LeaseTimeToLiveResponse>, Status> {
        let who = self.who(&request)?;
        let relayed = request.extensions().get::<FromMember>().is_some();
        let r = request.into_inner();
        let left = self.0.lease_remaining(&who, r.id, relayed).await;
        let header = self.header(self.revision());
        let answer = match left {
            Ok(left) => {
                let keys = if r.keys { self.0.lease_keys(&who, r.id).await? } else { Vec::new() };
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
        let who = self.who(&request)?;
        self.0.linearizable().await?.rules.auth.known(&who.login).map_err(Status::from)?;
        let leases =
            self.0.inner.shared.lessor.list(who.scope).into_iter().map(|id| LeaseStatus { id }).collect();
        Ok(Response::new(LeaseLeasesResponse { header: self.header(self.revision()), leases }))
    }
}
