//! The Cluster service: who is a member, and who shall be. Changes are wishes that the leader makes so
//! (`crate::cluster`): a call returns when its wish is durable, on whatever member it was made. A new
//! member gets the log first and votes when it has caught up, without a second call.

use super::{Api, etcdserverpb::*};
use crate::{
    cluster::new_id,
    model::members::{MemberRecord, MemberVerb},
    who::Who,
};
use tonic::{Request, Response, Status};

impl Api {
    fn list(&self) -> Vec<Member> {
        let member = |(m, waits): (MemberRecord, bool)| Member {
            id: m.id,
            name: m.name,
            peer_ur_ls: m.peer_urls,
            client_ur_ls: m.client_urls,
            is_learner: waits,
        };
        self.0.members().into_iter().map(member).collect()
    }

    async fn change(&self, who: &Who, verb: MemberVerb, m: MemberRecord) -> Result<Vec<Member>, Status> {
        self.0.change_members(who, verb, m).await?;
        Ok(self.list())
    }
}

/// etcd checks that URLs are URLs: scheme, host and port, and nothing behind.
fn urls(urls: &[String]) -> Result<(), Status> {
    let valid = |u: &String| {
        let rest = u.strip_prefix("http://").or_else(|| u.strip_prefix("https://"));
        rest.and_then(|r| r.rsplit_once(':')).is_some_and(|(h, p)| !h.is_empty() && p.parse::<u16>().is_ok())
    };
    if urls.is_empty() || !urls.iter().all(valid) {
        return Err(Status::invalid_argument("etcdserver: given member URLs are invalid"));
    }
    Ok(())
}

#[tonic::async_trait]
impl cluster_server::Cluster for Api {
    async fn member_add(
        &self,
        request: Request<MemberAddRequest>,
    ) -> Result<Response<MemberAddResponse>, Status> {
        let who = self.operator(&request)?;
        let r = request.into_inner();
        urls(&r.peer_ur_ls)?;
        let id = new_id();
        let m = MemberRecord { id, peer_urls: r.peer_ur_ls, learner: r.is_learner, ..Default::default() };
        let members = self.change(&who, MemberVerb::Add, m).await?;
        let member = members.iter().find(|m| m.id == id).cloned();
        Ok(Response::new(MemberAddResponse { header: self.header(self.revision()), member, members }))
    }

    async fn member_remove(
        &self,
        request: Request<MemberRemoveRequest>,
    ) -> Result<Response<MemberRemoveResponse>, Status> {
        let who = self.operator(&request)?;
        let m = MemberRecord { id: request.into_inner().id, ..Default::default() };
        let members = self.change(&who, MemberVerb::Remove, m).await?;
        Ok(Response::new(MemberRemoveResponse { header: self.header(self.revision()), members }))
    }

    async fn member_update(
        &self,
        request: Request<MemberUpdateRequest>,
    ) -> Result<Response<MemberUpdateResponse>, Status> {
        let who = self.operator(&request)?;
        let r = request.into_inner();
        urls(&r.peer_ur_ls)?;
        let m = MemberRecord { id: r.id, peer_urls: r.peer_ur_ls, ..Default::default() };
        let members = self.change(&who, MemberVerb::Update, m).await?;
        Ok(Response::new(MemberUpdateResponse { header: self.header(self.revision()), members }))
    }

    async fn member_promote(
        &self,
        request: Request<MemberPromoteRequest>,
    ) -> Result<Response<MemberPromoteResponse>, Status> {
        let who = self.operator(&request)?;
        let m = MemberRecord { id: request.into_inner().id, ..Default::default() };
        let members = self.change(&who, MemberVerb::Promote, m).await?;
        Ok(Response::new(MemberPromoteResponse { header: self.header(self.revision()), members }))
    }

    async fn member_list(
        &self,
        request: Request<MemberListRequest>,
    ) -> Result<Response<MemberListResponse>, Status> {
        let who = self.who(&request)?;
        self.0.published().rules.auth.known(&who.login)?;
        if request.into_inner().linearizable {
            self.0.linearizable().await?;
        }
        Ok(Response::new(MemberListResponse { header: self.header(self.revision()), members: self.list() }))
    }
}
