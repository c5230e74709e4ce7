//! The Lock and Election services. What they are, and how to fence with them: `queue`.

use super::{
    Api, Header,
    etcdserverpb::{DeleteRangeRequest, RangeRequest},
    mvccpb::KeyValue,
    v3electionpb as e, v3lockpb as l,
};
use crate::{
    EtcdError, EtcdResult,
    queue::{Line, Place},
    who::Who,
};
use futures::Stream;
use std::pin::Pin;
use tokio::sync::mpsc;
use tonic::{Request, Response, Status};

/// Leaders that wait for a slow observer.
const QUEUE: usize = 4;

/// These services of etcd are clients of its own: what that client was refused comes without a code.
fn told(e: EtcdError) -> Status {
    Status::unknown(e.to_string())
}

fn refused(why: &str) -> Status {
    Status::unknown(why)
}

#[tonic::async_trait]
impl l::lock_server::Lock for Api {
    async fn lock(&self, request: Request<l::LockRequest>) -> Result<Response<l::LockResponse>, Status> {
        let who = self.who(&request)?;
        let r = request.into_inner();
        let line = Line::new(&self.0, &who, &r.name);
        let lease = line.lease(r.lease).await.map_err(told)?;
        let stood = line.stand(lease, Default::default()).await.map_err(told)?;
        let key = stood.place.key.clone();
        if stood.holder.is_none_or(|h| h.create_revision == stood.place.revision) {
            return Ok(Response::new(l::LockResponse { header: self.header(stood.revision), key }));
        }
        line.wait(&stood.place).await.map_err(told)?;
        // The lease may have ended while this waited, and the place with it.
        let mine = self.0.range(&who, RangeRequest { key: key.clone(), ..Default::default() });
        let mine = mine.await.map_err(told)?;
        if mine.kvs.is_empty() {
            return Err(refused("mutex: session is expired"));
        }
        let revision = mine.header.map_or(0, |h| h.revision);
        Ok(Response::new(l::LockResponse { header: self.header(revision), key }))
    }

    async fn unlock(
        &self,
        request: Request<l::UnlockRequest>,
    ) -> Result<Response<l::UnlockResponse>, Status> {
        let who = self.who(&request)?;
        let delete = DeleteRangeRequest { key: request.into_inner().key, ..Default::default() };
        let mut r = self.0.delete_range(&who, delete).await.map_err(told)?;
        self.fill(&mut r.header);
        Ok(Response::new(l::UnlockResponse { header: r.header }))
    }
}

/// The line and the place that a leader key names.
fn resume(api: &Api, who: &Who, leader: Option<e::LeaderKey>) -> Result<(Line, Place), Status> {
    let k = leader.ok_or_else(|| refused("\"leader\" field must be provided"))?;
    let line = Line::new(&api.0, who, &k.name);
    Ok((line, Place { key: k.key, revision: k.rev, lease: k.lease }))
}

#[tonic::async_trait]
impl e::election_server::Election for Api {
    async fn campaign(
        &self,
        request: Request<e::CampaignRequest>,
    ) -> Result<Response<e::CampaignResponse>, Status> {
        let who = self.who(&request)?;
        let r = request.into_inner();
        let line = Line::new(&self.0, &who, &r.name);
        let lease = line.lease(r.lease).await.map_err(told)?;
        let stood = line.stand(lease, r.value.clone()).await.map_err(told)?;
        let place = stood.place;
        if stood.before.is_some_and(|kv| kv.value != r.value)
            && !line.proclaim(&place, r.value).await.map_err(told)?.0
        {
            return Err(refused("election: not leader"));
        }
        line.wait(&place).await.map_err(told)?;
        let leader = e::LeaderKey { name: r.name, key: place.key, rev: place.revision, lease };
        Ok(Response::new(e::CampaignResponse { header: self.header(stood.revision), leader: Some(leader) }))
    }

    async fn proclaim(
        &self,
        request: Request<e::ProclaimRequest>,
    ) -> Result<Response<e::ProclaimResponse>, Status> {
        let who = self.who(&request)?;
        let r = request.into_inner();
        let (line, mut place) = resume(self, &who, r.leader)?;
        place.lease = line.lease(place.lease).await.map_err(told)?;
        match line.proclaim(&place, r.value).await.map_err(told)? {
            (true, revision) => Ok(Response::new(e::ProclaimResponse { header: self.header(revision) })),
            (false, _) => Err(refused("election: not leader")),
        }
    }

    async fn leader(
        &self,
        request: Request<e::LeaderRequest>,
    ) -> Result<Response<e::LeaderResponse>, Status> {
        let who = self.who(&request)?;
        match Line::new(&self.0, &who, &request.into_inner().name).holder().await.map_err(told)? {
            (None, _) => Err(refused("election: no leader")),
            (kv, revision) => Ok(Response::new(e::LeaderResponse { header: self.header(revision), kv })),
        }
    }

    type ObserveStream = Pin<Box<dyn Stream<Item = Result<e::LeaderResponse, Status>> + Send>>;

    async fn observe(
        &self,
        request: Request<e::LeaderRequest>,
    ) -> Result<Response<Self::ObserveStream>, Status> {
        let who = self.who(&request)?;
        let line = Line::new(&self.0, &who, &request.into_inner().name);
        line.holder().await.map_err(told)?;
        let (out, rx) = mpsc::channel(QUEUE);
        let me = self.clone();
        self.0.inner.tasks.spawn("chainfire-observe", async move {
            let gone = out.clone();
            tokio::select! {
                () = gone.closed() => {}
                end = observe(&me, &line, &out) => if let Err(e) = end {
                    let _ = out.send(Err(told(e))).await; // the client may be gone
                }
            }
        });
        Ok(Response::new(Box::pin(tokio_stream::wrappers::ReceiverStream::new(rx))))
    }

    async fn resign(
        &self,
        request: Request<e::ResignRequest>,
    ) -> Result<Response<e::ResignResponse>, Status> {
        let who = self.who(&request)?;
        let (line, place) = resume(self, &who, request.into_inner().leader)?;
        let revision = line.leave(&place).await.map_err(told)?;
        Ok(Response::new(e::ResignResponse { header: self.header(revision) }))
    }
}

/// Tells every leader, and what each proclaims, until the client or the store's history is gone.
async fn observe(
    api: &Api,
    line: &Line,
    out: &mpsc::Sender<Result<e::LeaderResponse, Status>>,
) -> EtcdResult<()> {
    loop {
        let (mut holder, mut revision) = line.holder().await?;
        if holder.is_none() {
            let mut events = line.events(line.span(), revision, false);
            while holder.is_none() {
                let Some(found) = events.next().await? else { return Ok(()) };
                holder = found.into_iter().flat_map(|c| c.changes).find(|c| c.put).map(|c| c.kv);
            }
            revision = holder.as_ref().map_or(0, |kv| kv.mod_revision);
        }
        let Some(kv) = holder else { return Ok(()) };
        let key = kv.key.clone();
        if tell(out, api.header(revision), kv).await.is_err() {
            return Ok(());
        }
        let mut events = line.events(crate::Span::of(&key, &Default::default()), revision + 1, false);
        'holds: loop {
            let Some(found) = events.next().await? else { return Ok(()) };
            for c in found.into_iter().flat_map(|c| c.changes) {
                if !c.put {
                    break 'holds;
                }
                if tell(out, api.header(c.kv.mod_revision), c.kv).await.is_err() {
                    return Ok(());
                }
            }
        }
    }
}

async fn tell(
    out: &mpsc::Sender<Result<e::LeaderResponse, Status>>,
    header: Header,
    kv: KeyValue,
) -> Result<(), ()> {
    out.send(Ok(e::LeaderResponse { header, kv: Some(kv) })).await.map_err(drop)
}
