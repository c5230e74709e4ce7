//! What a refusal means: above all, whether the request was done. Clients of etcd tell its errors by code and text;
//! so must we.

use photon_base::{Code as Base, Error};
use tonic::{Code, Status};

/// Why a call gave no result.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Fault {
    /// Nobody took it: it was not done.
    #[error("{0}")]
    Away(String),
    /// It was sent and no answer came: it may have been done.
    #[error("{0}; it may have been done")]
    Unknown(String),
    /// Answered with this.
    #[error("{}", .0.message())]
    Refused(Status),
}

/// What can be known from an error about the request that got it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Not done; another member, or a moment later, may do it.
    NotDone,
    /// Not done, since the token is not known (any more).
    Token,
    /// May have been done.
    Unknown,
    /// Not done, and repeating it would give the same.
    Final,
}

impl Outcome {
    /// Of what a server, or the connection to it, said.
    pub fn of(status: &Status) -> Outcome {
        let text = status.message();
        // etcd gives these before it proposes anything (server/etcdserver: the interceptor, `checkAuth`, and
        // `processInternalRaftRequestOnce` before it calls `Propose`).
        match status.code() {
            Code::Unauthenticated => Outcome::Token,
            Code::InvalidArgument
                if text.contains("revision of auth store is old") || text.contains("user name is empty") =>
            {
                Outcome::Token
            }
            Code::ResourceExhausted if text.contains("too many requests") => Outcome::NotDone,
            Code::Unavailable if text.contains("no leader") || text.contains("not supported for learner") => {
                Outcome::NotDone
            }
            Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::ResourceExhausted
            | Code::FailedPrecondition
            | Code::OutOfRange
            | Code::Unimplemented
            | Code::DataLoss => Outcome::Final,
            _ if never_connected(status).is_some() => Outcome::NotDone,
            Code::Ok | Code::Cancelled | Code::Unknown | Code::DeadlineExceeded | Code::Aborted => {
                Outcome::Unknown
            }
            Code::Internal | Code::Unavailable => Outcome::Unknown,
        }
    }
}

/// Why the channel had no connection and could not make one, if that is so: then nothing was sent.
pub fn never_connected(status: &Status) -> Option<String> {
    let mut source = std::error::Error::source(status);
    let mut dialled = false;
    let mut why = None;
    while let Some(e) = source {
        dialled |= e.is::<tonic::ConnectError>();
        why = Some(e.to_string()); // the innermost says it best
        source = e.source();
    }
    why.filter(|_| dialled)
}

/// An answer too large for us. The codec says it so.
pub(crate) fn too_large(status: &Status) -> bool {
    status.code() == Code::OutOfRange && status.message().contains("message length too large")
}

pub(crate) fn compacted(status: &Status) -> bool {
    status.code() == Code::OutOfRange && status.message().contains("has been compacted")
}

pub(crate) fn future(status: &Status) -> bool {
    status.code() == Code::OutOfRange && status.message().contains("is a future revision")
}

impl From<Fault> for Error {
    fn from(f: Fault) -> Error {
        let Fault::Refused(s) = &f else {
            return Error::unavailable("the etcd cluster does not answer").why(&f);
        };
        let code = match s.code() {
            Code::PermissionDenied => Base::Denied,
            Code::Unauthenticated => Base::Unauthenticated,
            Code::NotFound => Base::NotFound,
            Code::InvalidArgument | Code::OutOfRange if s.message().contains("authentication failed") => {
                Base::Unauthenticated
            }
            Code::InvalidArgument | Code::OutOfRange => Base::Invalid,
            Code::ResourceExhausted => Base::Unavailable,
            Code::Unimplemented => Base::Unsupported,
            _ => Base::Internal,
        };
        Error::new(code, "etcd refused a request").why(&f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_whether_the_request_was_done() {
        let of = |code, text: &str| Outcome::of(&Status::new(code, text));
        assert_eq!(of(Code::Unavailable, "etcdserver: no leader"), Outcome::NotDone);
        assert_eq!(of(Code::ResourceExhausted, "etcdserver: too many requests"), Outcome::NotDone);
        assert_eq!(of(Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded"), Outcome::Final);
        assert_eq!(of(Code::Unauthenticated, "etcdserver: invalid auth token"), Outcome::Token);
        assert_eq!(of(Code::InvalidArgument, "etcdserver: revision of auth store is old"), Outcome::Token);
        for text in [
            "etcdserver: request timed out",
            "etcdserver: request timed out, possibly due to previous leader failure",
            "etcdserver: leader changed",
            "etcdserver: server stopped",
        ] {
            assert_eq!(of(Code::Unavailable, text), Outcome::Unknown, "{text}");
        }
        assert_eq!(of(Code::Internal, "stream error"), Outcome::Unknown);
    }
}
