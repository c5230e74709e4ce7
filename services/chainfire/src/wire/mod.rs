//! Foreign protocols: etcd v3 gRPC, and the HTTP pages beside it.

mod auth;
mod cluster;
mod gateway;
mod grpc;
mod http;
mod json;
mod kv;
mod lease;
mod led;
mod line;
mod maintenance;
mod watch;

pub use photon_etcd::proto::{authpb, etcdserverpb, mvccpb, v3electionpb, v3lockpb};

use crate::{
    Anonymous, ChainFire, EtcdError, Scope,
    command::MAX_REQUEST,
    who::{Login, Who},
};
use etcdserverpb::ResponseHeader;
use photon_auth::CommonName;
use std::sync::atomic::Ordering;
use tonic::{Request, Status};

/// The release of etcd whose interface this is; clients decide by it what they may ask for.
pub const ETCD_VERSION: &str = "3.5.21";

/// Greatest message that is read at all: a request of the greatest size, and its envelope.
pub const MAX_MESSAGE: usize = MAX_REQUEST + (512 << 10);

/// What every answer begins with.
type Header = Option<ResponseHeader>;

/// The gRPC services of one ChainFire.
#[derive(Clone)]
struct Api(ChainFire);

impl Api {
    /// A full header at a revision.
    fn header(&self, revision: i64) -> Option<ResponseHeader> {
        let i = &self.0.inner;
        Some(ResponseHeader {
            cluster_id: self.0.cluster_id(),
            member_id: i.member_id,
            revision,
            raft_term: self.0.raft().term,
        })
    }

    /// Completes a header that has only the revision.
    fn fill(&self, header: &mut Option<ResponseHeader>) {
        *header = self.header(header.as_ref().map_or(0, |h| h.revision));
    }

    /// The revision that reads see now.
    fn revision(&self) -> i64 {
        self.0.published().revision
    }
}

impl Api {
    /// Who asks. The listener has said how far they see; without that nobody asks. Who they are to etcd's
    /// users is in a token.
    fn who<T>(&self, r: &Request<T>) -> Result<Who, Status> {
        let scope = r.extensions().get::<Scope>().copied().ok_or(EtcdError::NoIdentity)?;
        if !self.0.inner.shared.whole.load(Ordering::Acquire) {
            return Err(EtcdError::Stopped.into()); // clients try another member
        }
        let proven = r.extensions().get::<Anonymous>().is_none();
        let state = self.0.published();
        let rules = &state.rules;
        let login = if scope == Scope::Operator && proven {
            Login::Root
        } else if !rules.auth.enabled {
            Login::Nobody
        } else {
            // etcd's gateway takes the token from `Authorization`; with a scheme before it, it is ours.
            let token = |name: &str| r.metadata().get(name).and_then(|v| v.to_str().ok());
            match token("token").or(token("authorization").filter(|t| !t.contains(' '))) {
                // Whose certificate another authority has signed is the user of its common name, as with etcd.
                None => match r.extensions().get::<CommonName>().filter(|_| !proven) {
                    Some(name) => Login::User { name: name.0.to_string(), revision: rules.auth.revision() },
                    None => Login::Nobody,
                },
                Some(t) => {
                    let name = self.0.inner.shared.tokens.user(t).ok_or(EtcdError::InvalidAuthToken)?;
                    Login::User { name, revision: rules.auth.revision() }
                }
            }
        };
        Ok(Who { scope, login })
    }

    /// Who asks, if they may see and do everything.
    fn operator<T>(&self, r: &Request<T>) -> Result<Who, Status> {
        let who = self.who(r)?;
        if who.scope != Scope::Operator {
            return Err(EtcdError::PermissionDenied.into());
        }
        self.0.published().rules.auth.admin(&who.login)?;
        Ok(who)
    }
}

impl ChainFire {
    /// Everything that port 2379 serves: `/health`, `/livez`, `/readyz`, `/version`, `/metrics`, the JSON
    /// gateway below `/v3/`, and gRPC as the fallback of these. The listener puts a [`Scope`] into the extensions of each request whose caller it knows;
    /// gRPC and `/metrics` refuse requests without.
    pub fn router(&self) -> axum::Router {
        let grpc = grpc::Grpc::new(Api(self.clone()));
        let gateway = gateway::Gateway::new(grpc.clone());
        let json = axum::routing::any(move |r| gateway.clone().answer(r));
        http::pages(self).route("/v3/{*path}", json).fallback_service(grpc)
    }
}

impl ChainFire {
    /// The gRPC services of [`ChainFire::router`], as what a listener asks first. `see` says how far a caller
    /// sees, and whether they have proven who they are; requests of others go on to the router.
    pub fn direct(
        &self,
        see: impl Fn(Option<&photon_auth::Caller>) -> Option<(Scope, bool)> + Send + Sync + 'static,
    ) -> photon_serve::listen::Direct {
        let grpc = grpc::Grpc::new(Api(self.clone()));
        std::sync::Arc::new(move |request, caller| {
            let (scope, proven) = if grpc::is_grpc(request) { see(caller)? } else { return None };
            let mut request = std::mem::take(request);
            request.extensions_mut().insert(scope);
            if !proven {
                request.extensions_mut().insert(Anonymous);
            }
            Some(grpc.answer(request))
        })
    }

    /// The pages of [`ChainFire::router`] alone.
    pub fn status_pages(&self) -> axum::Router {
        http::pages(self)
    }
}

/// The gRPC services alone.
pub(crate) fn services(c: &ChainFire) -> grpc::Grpc {
    grpc::Grpc::new(Api(c.clone()))
}
