//! The KV service.

use super::{Api, etcdserverpb::*, scope};
use tonic::{Request, Response, Status};

#[tonic::async_trait]
impl kv_server::Kv for Api {
    async fn range(&self, request: Request<RangeRequest>) -> Result<Response<RangeResponse>, Status> {
        let scope = scope(&request)?;
        let mut r = self.0.range(scope, request.into_inner()).await?;
        self.fill(&mut r.header);
        Ok(Response::new(r))
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        let scope = scope(&request)?;
        let mut r = self.0.put(scope, request.into_inner()).await?;
        self.fill(&mut r.header);
        Ok(Response::new(r))
    }

    async fn delete_range(
        &self,
        request: Request<DeleteRangeRequest>,
    ) -> Result<Response<DeleteRangeResponse>, Status> {
        let scope = scope(&request)?;
        let mut r = self.0.delete_range(scope, request.into_inner()).await?;
        self.fill(&mut r.header);
        Ok(Response::new(r))
    }

    async fn txn(&self, request: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        let scope = scope(&request)?;
        let mut r = self.0.txn(scope, request.into_inner()).await?;
        self.fill(&mut r.header);
        Ok(Response::new(r))
    }

    async fn compact(
        &self,
        request: Request<CompactionRequest>,
    ) -> Result<Response<CompactionResponse>, Status> {
        let scope = scope(&request)?;
        let revision = self.0.compact(scope, request.into_inner()).await?;
        Ok(Response::new(CompactionResponse { header: self.header(revision) }))
    }
}
