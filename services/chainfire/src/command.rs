//! What is proposed to the log: our own bounded messages around etcd's requests.

use crate::{
    EtcdError, EtcdResult, Scope,
    model::members::MemberChange,
    who::{Login, Who},
    wire::etcdserverpb::*,
};
use bytes::Bytes;
use prost::Message;

/// Greatest request that is accepted (etcd's `--max-request-bytes`).
pub const MAX_REQUEST: usize = 1_572_864;

/// Version of this encoding. A newer one than ours stops the machine instead of being misread.
const VERSION: u32 = 1;

/// One command of the log.
#[derive(Clone, PartialEq, Message)]
pub struct Command {
    #[prost(uint32, tag = "1")]
    version: u32,
    /// Proposed by a tenant.
    #[prost(bool, tag = "2")]
    tenant: bool,
    /// What to do.
    #[prost(oneof = "Op", tags = "3, 4, 5, 6, 7, 8, 9, 10, 11, 15, 20")]
    pub op: Option<Op>,
    /// Proposed by an operator who has proven it, or by the cloud itself.
    #[prost(bool, tag = "12")]
    root: bool,
    /// The user of etcd's authentication that proposed it; nobody is empty.
    #[prost(string, tag = "13")]
    user: String,
    /// Revision of users and roles at which the user was known.
    #[prost(uint64, tag = "14")]
    auth_revision: u64,
}

/// What a command does.
#[derive(Clone, PartialEq, prost::Oneof)]
#[allow(missing_docs, reason = "named like etcd's requests")]
pub enum Op {
    #[prost(message, tag = "3")]
    Put(PutRequest),
    #[prost(message, tag = "4")]
    DeleteRange(DeleteRangeRequest),
    #[prost(message, tag = "5")]
    Txn(TxnRequest),
    #[prost(message, tag = "6")]
    Compact(CompactionRequest),
    #[prost(message, tag = "7")]
    LeaseGrant(Grant),
    #[prost(message, tag = "8")]
    LeaseRevoke(Revoke),
    #[prost(message, tag = "9")]
    Commit(Commit),
    #[prost(message, tag = "10")]
    Alarm(AlarmRequest),
    #[prost(message, tag = "11")]
    LeaseCheckpoint(Checkpoint),
    #[prost(message, tag = "15")]
    Auth(AuthCommand),
    #[prost(message, tag = "20")]
    Members(MemberChange),
}

/// Changes users, roles or what they count for.
#[derive(Clone, PartialEq, Message)]
pub struct AuthCommand {
    /// How.
    #[prost(oneof = "AuthChange", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12")]
    pub change: Option<AuthChange>,
}

/// A change of users and roles.
#[derive(Clone, PartialEq, prost::Oneof)]
#[allow(missing_docs, reason = "named like etcd's requests")]
pub enum AuthChange {
    #[prost(message, tag = "1")]
    Enable(AuthEnableRequest),
    #[prost(message, tag = "2")]
    Disable(AuthDisableRequest),
    #[prost(message, tag = "3")]
    Authenticate(LoggedIn),
    #[prost(message, tag = "4")]
    UserAdd(AuthUserAddRequest),
    #[prost(message, tag = "5")]
    UserDelete(AuthUserDeleteRequest),
    #[prost(message, tag = "6")]
    UserChangePassword(AuthUserChangePasswordRequest),
    #[prost(message, tag = "7")]
    UserGrantRole(AuthUserGrantRoleRequest),
    #[prost(message, tag = "8")]
    UserRevokeRole(AuthUserRevokeRoleRequest),
    #[prost(message, tag = "9")]
    RoleAdd(AuthRoleAddRequest),
    #[prost(message, tag = "10")]
    RoleDelete(AuthRoleDeleteRequest),
    #[prost(message, tag = "11")]
    RoleGrantPermission(AuthRoleGrantPermissionRequest),
    #[prost(message, tag = "12")]
    RoleRevokePermission(AuthRoleRevokePermissionRequest),
}

/// A user whose password was found right.
#[derive(Clone, PartialEq, Message)]
pub struct LoggedIn {
    /// Name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Digest of the token.
    #[prost(bytes = "bytes", tag = "2")]
    pub digest: Bytes,
    /// Revision of users and roles at which the password was checked.
    #[prost(uint64, tag = "3")]
    pub revision: u64,
}

/// Makes a lease.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct Grant {
    /// Its id, chosen before the command was proposed.
    #[prost(int64, tag = "1")]
    pub id: i64,
    /// Time to live, seconds.
    #[prost(int64, tag = "2")]
    pub ttl: i64,
}

/// Ends a lease and deletes its keys.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct Revoke {
    /// Which.
    #[prost(int64, tag = "1")]
    pub id: i64,
    /// Because its time is over: then only if it was not renewed through the log since, that is, if its
    /// record counts one less than this. 0: in any case.
    #[prost(uint64, tag = "2")]
    pub unless_renewed: u64,
}

/// Records how long leases have left, so that a new leader does not begin anew.
#[derive(Clone, PartialEq, Message)]
pub struct Checkpoint {
    /// Of each lease.
    #[prost(message, repeated, tag = "1")]
    pub leases: Vec<Left>,
}

/// What a lease has left.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct Left {
    /// Which.
    #[prost(int64, tag = "1")]
    pub id: i64,
    /// Seconds; 0 takes the record back: its whole time to live.
    #[prost(int64, tag = "2")]
    pub seconds: i64,
    /// The record that this one follows. One that was overtaken by a renewal counts for nothing.
    #[prost(uint64, tag = "3")]
    pub renewals: u64,
}

/// A commit through `photon_kv::Kv`.
#[derive(Clone, PartialEq, Message)]
pub struct Commit {
    #[prost(message, repeated, tag = "1")]
    pub(crate) checks: Vec<Check>,
    #[prost(message, repeated, tag = "2")]
    pub(crate) writes: Vec<Write>,
}

/// A condition: kind 0 is "last modified at", 1 "present", 2 "range absent".
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Check {
    #[prost(uint32, tag = "1")]
    pub kind: u32,
    #[prost(bytes = "bytes", tag = "2")]
    pub key: Bytes,
    #[prost(bytes = "bytes", tag = "3")]
    pub end: Bytes,
    #[prost(uint64, tag = "4")]
    pub revision: u64,
}

/// A write; no value is a deletion.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Write {
    #[prost(bytes = "bytes", tag = "1")]
    pub key: Bytes,
    #[prost(bytes = "bytes", optional, tag = "2")]
    pub value: Option<Bytes>,
}

impl Command {
    /// A command by a caller.
    pub fn new(who: &Who, op: Op) -> Command {
        let (root, user, auth_revision) = match &who.login {
            Login::Root => (true, String::new(), 0),
            Login::Nobody => (false, String::new(), 0),
            Login::User { name, revision } => (false, name.clone(), *revision),
        };
        let tenant = who.scope == Scope::Tenant;
        Command { version: VERSION, tenant, op: Some(op), root, user, auth_revision }
    }

    /// Whose command it is.
    pub fn scope(&self) -> Scope {
        if self.tenant { Scope::Tenant } else { Scope::Operator }
    }

    /// The same for etcd's authentication.
    pub fn login(&self) -> Login {
        match (self.root, self.user.as_str()) {
            (true, _) => Login::Root,
            (false, "") => Login::Nobody,
            (false, name) => Login::User { name: name.into(), revision: self.auth_revision },
        }
    }

    /// Bytes for the log; refused when there are too many.
    pub fn to_bytes(&self) -> EtcdResult<Bytes> {
        if self.encoded_len() > MAX_REQUEST {
            return Err(EtcdError::RequestTooLarge);
        }
        Ok(self.encode_to_vec().into())
    }

    /// Reads what [`Command::to_bytes`] made.
    pub fn from_bytes(b: Bytes) -> Result<Command, String> {
        let c = Command::decode(b).map_err(|e| format!("a command of the log cannot be read: {e}"))?;
        if c.version != VERSION {
            return Err(format!(
                "a command of version {}, made by a newer program; this one knows {VERSION}",
                c.version
            ));
        }
        Ok(c)
    }
}

impl From<&photon_kv::Check> for Check {
    fn from(c: &photon_kv::Check) -> Self {
        use photon_kv::Check as K;
        match c {
            K::Modified(key, revision) => {
                Check { key: key.clone(), revision: *revision, ..Default::default() }
            }
            K::Present(key) => Check { kind: 1, key: key.clone(), ..Default::default() },
            K::Absent(r) => Check { kind: 2, key: r.start.clone(), end: r.end.clone(), ..Default::default() },
        }
    }
}
