//! etcd's errors. Code and text are API: clients compare both.

use photon_kv::engine::EngineError;

/// Why a request was refused. The text is etcd's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the text says it")]
pub enum EtcdError {
    #[error("etcdserver: key is not provided")]
    EmptyKey,
    #[error("etcdserver: key not found")]
    KeyNotFound,
    #[error("etcdserver: value is provided")]
    ValueProvided,
    #[error("etcdserver: lease is provided")]
    LeaseProvided,
    #[error("etcdserver: too many operations in txn request")]
    TooManyOps,
    #[error("etcdserver: duplicate key given in txn request")]
    DuplicateKey,
    #[error("etcdserver: mvcc: required revision has been compacted")]
    Compacted,
    #[error("etcdserver: mvcc: required revision is a future revision")]
    FutureRevision,
    #[error("etcdserver: requested lease not found")]
    LeaseNotFound,
    #[error("etcdserver: lease already exists")]
    LeaseExists,
    #[error("etcdserver: too large lease TTL")]
    LeaseTtlTooLarge,
    #[error("etcdserver: request is too large")]
    RequestTooLarge,
    #[error("etcdserver: too many requests")]
    TooManyRequests,
    #[error("etcdserver: mvcc: database space exceeded")]
    NoSpace,
    #[error("etcdserver: corrupt cluster")]
    Corrupt,
    #[error("etcdserver: bad leader transferee")]
    BadLeaderTransferee,
    #[error("etcdserver: not leader")]
    NotLeader,
    #[error("etcdserver: member not found")]
    MemberNotFound,
    #[error("etcdserver: member ID already exist")]
    MemberIdExists,
    #[error("etcdserver: Peer URLs already exists")]
    PeerUrlExists,
    #[error("etcdserver: can only promote a learner member")]
    MemberNotLearner,
    #[error("etcdserver: re-configuration failed due to not enough started members")]
    TooFewMembers,
    #[error("etcdserver: invalid sort option")]
    InvalidSortOption,
    #[error("etcdserver: permission denied")]
    PermissionDenied,
    #[error("etcdserver: user name is empty")]
    NoIdentity,
    #[error("etcdserver: user name is empty")]
    UserEmpty,
    #[error("etcdserver: root user does not exist")]
    RootUserNotExist,
    #[error("etcdserver: root user does not have root role")]
    RootRoleNotExist,
    #[error("etcdserver: user name already exists")]
    UserAlreadyExist,
    #[error("etcdserver: user name not found")]
    UserNotFound,
    #[error("etcdserver: role name already exists")]
    RoleAlreadyExist,
    #[error("etcdserver: role name not found")]
    RoleNotFound,
    #[error("etcdserver: role name is empty")]
    RoleEmpty,
    #[error("etcdserver: authentication failed, invalid user ID or password")]
    AuthFailed,
    #[error("etcdserver: permission not given")]
    PermissionNotGiven,
    #[error("etcdserver: role is not granted to the user")]
    RoleNotGranted,
    #[error("etcdserver: permission is not granted to the role")]
    PermissionNotGranted,
    #[error("etcdserver: authentication is not enabled")]
    AuthNotEnabled,
    #[error("etcdserver: invalid auth token")]
    InvalidAuthToken,
    #[error("etcdserver: invalid auth management")]
    InvalidAuthMgmt,
    #[error("etcdserver: revision of auth store is old")]
    AuthOldRevision,
    #[error("etcdserver: request timed out")]
    Timeout,
    #[error("etcdserver: no leader")]
    NoLeader,
    #[error("etcdserver: server stopped")]
    Stopped,
    /// A condition of a commit through `photon_kv` did not hold. Never leaves by gRPC.
    #[error("etcdserver: condition {0} did not hold")]
    CheckFailed(usize),
    /// What clients are told to do in another way.
    #[error("etcdserver: {0}")]
    Unimplemented(&'static str),
    /// Not one of etcd's: a request that this store cannot carry.
    #[error("chainfire: {0}")]
    Unsupported(String),
    /// The disk or a defect of ours.
    #[error("chainfire: {0}")]
    Internal(String),
}

impl EtcdError {
    /// The gRPC code that etcd gives this error.
    pub fn code(&self) -> tonic::Code {
        use tonic::Code;
        match self {
            EtcdError::EmptyKey
            | EtcdError::KeyNotFound
            | EtcdError::ValueProvided
            | EtcdError::LeaseProvided
            | EtcdError::TooManyOps
            | EtcdError::DuplicateKey
            | EtcdError::RequestTooLarge
            | EtcdError::InvalidSortOption
            | EtcdError::UserEmpty
            | EtcdError::RoleEmpty
            | EtcdError::AuthFailed
            | EtcdError::PermissionNotGiven
            | EtcdError::InvalidAuthMgmt
            | EtcdError::AuthOldRevision
            | EtcdError::Unsupported(_) => Code::InvalidArgument,
            EtcdError::Compacted | EtcdError::FutureRevision | EtcdError::LeaseTtlTooLarge => {
                Code::OutOfRange
            }
            EtcdError::LeaseNotFound | EtcdError::MemberNotFound => Code::NotFound,
            EtcdError::LeaseExists
            | EtcdError::RootUserNotExist
            | EtcdError::RootRoleNotExist
            | EtcdError::UserAlreadyExist
            | EtcdError::UserNotFound
            | EtcdError::RoleAlreadyExist
            | EtcdError::RoleNotFound
            | EtcdError::RoleNotGranted
            | EtcdError::PermissionNotGranted
            | EtcdError::AuthNotEnabled
            | EtcdError::CheckFailed(_)
            | EtcdError::MemberIdExists
            | EtcdError::PeerUrlExists
            | EtcdError::MemberNotLearner
            | EtcdError::TooFewMembers
            | EtcdError::BadLeaderTransferee
            | EtcdError::NotLeader => Code::FailedPrecondition,
            EtcdError::TooManyRequests | EtcdError::NoSpace => Code::ResourceExhausted,
            EtcdError::Corrupt => Code::DataLoss,
            EtcdError::PermissionDenied => Code::PermissionDenied,
            EtcdError::NoIdentity | EtcdError::InvalidAuthToken => Code::Unauthenticated,
            EtcdError::Timeout | EtcdError::NoLeader | EtcdError::Stopped => Code::Unavailable,
            EtcdError::Unimplemented(_) => Code::Unimplemented,
            EtcdError::Internal(_) => Code::Internal,
        }
    }
}

impl From<EtcdError> for tonic::Status {
    fn from(e: EtcdError) -> Self {
        tonic::Status::new(e.code(), e.to_string())
    }
}

impl From<EngineError> for EtcdError {
    fn from(e: EngineError) -> Self {
        EtcdError::Internal(e.to_string())
    }
}

/// Result with etcd's errors.
pub type EtcdResult<T> = Result<T, EtcdError>;
