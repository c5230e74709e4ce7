//! Foreign protocols: etcd v3 gRPC, and the HTTP pages beside it.

mod cluster;
mod codec;
mod gateway;
mod grpc;
mod http;
mod json;
mod kv;
mod lease;
mod line;
mod maintenance;
mod misc;
mod watch;

/// Code generated from `proto/` (see `tests/it/codegen.rs`). Names and numbers are etcd's.
#[allow(missing_docs, clippy::all, clippy::disallowed_methods, clippy::redundant_clone, clippy::unwrap_used)]
mod generated {
    pub mod mvccpb {
        include!("gen/mvccpb.rs");
    }
    pub mod etcdserverpb {
        include!("gen/etcdserverpb.rs");
    }
    pub mod v3lockpb {
        include!("gen/v3lockpb.rs");
    }
    pub mod v3electionpb {
        include!("gen/v3electionpb.rs");
    }
}

pub use generated::{etcdserverpb, mvccpb, v3electionpb, v3lockpb};

use crate::{ChainFire, EtcdError, Scope, command::MAX_REQUEST};
use etcdserverpb::ResponseHeader;
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

/// Who asks. The listener has put it there; without it nobody asks.
fn scope<T>(r: &Request<T>) -> Result<Scope, Status> {
    r.extensions().get::<Scope>().copied().ok_or_else(|| EtcdError::NoIdentity.into())
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
