//! Cluster and Auth: what a single member can say of itself.

use super::{Api, etcdserverpb::*, scope};
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
