//! Auth: what can be said without users of its own.

use super::{Api, etcdserverpb::*, scope};
use tonic::{Request, Response, Status};

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
