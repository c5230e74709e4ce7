//! The KV service.

use super::{Api, etcdserverpb::*};
use futures::Stream;
use std::pin::Pin;
use tokio::sync::mpsc;
use tonic::{Request, Response, Status};

/// Pieces of a range (1 MiB each) that wait for a slow client.
const QUEUE: usize = 2;

#[tonic::async_trait]
impl kv_server::Kv for Api {
    async fn range(&self, request: Request<RangeRequest>) -> Result<Response<RangeResponse>, Status> {
        let who = self.who(&request)?;
        let mut r = self.0.range(&who, request.into_inner()).await?;
        self.fill(&mut r.header);
        Ok(Response::new(r))
    }

    type RangeStreamStream = Pin<Box<dyn Stream<Item = Result<RangeStreamResponse, Status>> + Send>>;

    async fn range_stream(
        &self,
        request: Request<RangeRequest>,
    ) -> Result<Response<Self::RangeStreamStream>, Status> {
        let who = self.who(&request)?;
        let r = request.into_inner();
        let state = self.0.range_stream_state(&who, &r).await?;
        let (out, rx) = mpsc::channel(QUEUE);
        let me = self.clone();
        // One snapshot for all pieces: no compaction can come between them.
        self.0.inner.tasks.spawn(
            "chainfire-range-stream",
            photon_rt::task::blocking(move || {
                let done = state.reader().stream(who.scope, &r, |mut piece| {
                    if piece.header.is_some() {
                        me.fill(&mut piece.header);
                    }
                    out.blocking_send(Ok(RangeStreamResponse { range_response: Some(piece) })).is_ok()
                });
                if let Err(e) = done {
                    let _ = out.blocking_send(Err(e.into())); // the client may be gone
                }
            }),
        );
        Ok(Response::new(Box::pin(tokio_stream::wrappers::ReceiverStream::new(rx))))
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        let who = self.who(&request)?;
        let mut r = self.0.put(&who, request.into_inner()).await?;
        self.fill(&mut r.header);
        Ok(Response::new(r))
    }

    async fn delete_range(
        &self,
        request: Request<DeleteRangeRequest>,
    ) -> Result<Response<DeleteRangeResponse>, Status> {
        let who = self.who(&request)?;
        let mut r = self.0.delete_range(&who, request.into_inner()).await?;
        self.fill(&mut r.header);
        Ok(Response::new(r))
    }

    async fn txn(&self, request: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        let who = self.who(&request)?;
        let mut r = self.0.txn(&who, request.into_inner()).await?;
        self.fill(&mut r.header);
        Ok(Response::new(r))
    }

    async fn compact(
        &self,
        request: Request<CompactionRequest>,
    ) -> Result<Response<CompactionResponse>, Status> {
        let who = self.who(&request)?;
        let revision = self.0.compact(&who, request.into_inner()).await?;
        Ok(Response::new(CompactionResponse { header: self.header(revision) }))
    }
}
