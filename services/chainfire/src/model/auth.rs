//! etcd's users, roles and permissions (`server/auth/store.go`). Part of the rules: changed by commands
//! only, so equal on every member. Passwords come hashed and tokens as digests: the log has neither.

use crate::{
    EtcdError, EtcdResult, Span,
    command::{AuthChange, Op},
    who::Login,
    wire::{
        authpb::{Permission, permission::Type},
        etcdserverpb::{RangeRequest, RequestOp, TxnRequest, request_op::Request},
    },
};
use bytes::Bytes;
use prost::Message;
use std::collections::BTreeMap;

/// The user and the role that may do all.
pub const ROOT: &str = "root";

/// Most users, and most roles.
const MAX_NAMES: usize = 10_000;

/// Most permissions of a role, and most roles of a user.
const MAX_LIST: usize = 1_000;

/// Longest name, bytes.
const MAX_NAME: usize = 1_024;

/// Users, roles, and whether they count.
#[derive(Clone, PartialEq, Message)]
pub struct Auth {
    #[prost(bool, tag = "1")]
    pub enabled: bool,
    /// Changes since the first; etcd counts from 1.
    #[prost(uint64, tag = "2")]
    changes: u64,
    #[prost(btree_map = "string, message", tag = "3")]
    pub users: BTreeMap<String, User>,
    #[prost(btree_map = "string, message", tag = "4")]
    pub roles: BTreeMap<String, Role>,
}

/// A user.
#[derive(Clone, PartialEq, Message)]
pub struct User {
    /// Hash of the password; none logs in with none.
    #[prost(string, tag = "1")]
    pub hash: String,
    /// Has no password: cannot log in by one.
    #[prost(bool, tag = "2")]
    pub no_password: bool,
    /// Sorted.
    #[prost(string, repeated, tag = "3")]
    pub roles: Vec<String>,
}

/// A role: permissions sorted by key.
#[derive(Clone, PartialEq, Message)]
pub struct Role {
    #[prost(message, repeated, tag = "1")]
    pub permissions: Vec<Permission>,
}

/// What the tokens of this member must learn of.
#[derive(Clone, Debug, PartialEq)]
pub enum TokenEffect {
    /// A token was given out; only its digest is known.
    Given { digest: Bytes, user: String },
    /// All tokens of a user end.
    UserGone(String),
    /// All end.
    AllGone,
}

fn named(map_len: usize, name: &str) -> EtcdResult<()> {
    if name.len() > MAX_NAME || map_len >= MAX_NAMES { Err(EtcdError::TooManyRequests) } else { Ok(()) }
}

impl Auth {
    /// Revision of users and roles.
    pub fn revision(&self) -> u64 {
        self.changes + 1
    }

    /// Carries out a change; tells which tokens are concerned.
    pub fn change(&mut self, c: &AuthChange) -> EtcdResult<Option<TokenEffect>> {
        let before = self.revision();
        let effect = self.carry_out(c)?;
        debug_assert!(self.revision() - before <= 1);
        Ok(effect)
    }

    fn user(&mut self, name: &str) -> EtcdResult<&mut User> {
        self.users.get_mut(name).ok_or(EtcdError::UserNotFound)
    }

    fn carry_out(&mut self, c: &AuthChange) -> EtcdResult<Option<TokenEffect>> {
        let mut effect = None;
        match c {
            AuthChange::Enable(_) => {
                if !self.enabled {
                    let root = self.users.get(ROOT).ok_or(EtcdError::RootUserNotExist)?;
                    if !root.is_root() {
                        return Err(EtcdError::RootRoleNotExist);
                    }
                    self.enabled = true;
                }
                return Ok(None);
            }
            AuthChange::Disable(_) => {
                if !self.enabled {
                    return Ok(None);
                }
                self.enabled = false;
                effect = Some(TokenEffect::AllGone);
            }
            AuthChange::Authenticate(a) => {
                if !self.enabled {
                    return Err(EtcdError::AuthNotEnabled);
                }
                // Users or roles may have changed since the password was checked.
                if a.revision != self.revision() {
                    return Err(EtcdError::AuthOldRevision);
                }
                return match self.users.get(&a.name) {
                    Some(u) if !u.no_password => {
                        Ok(Some(TokenEffect::Given { digest: a.digest.clone(), user: a.name.clone() }))
                    }
                    _ => Err(EtcdError::AuthFailed),
                };
            }
            AuthChange::UserAdd(r) => {
                if r.name.is_empty() {
                    return Err(EtcdError::UserEmpty);
                }
                if self.users.contains_key(&r.name) {
                    return Err(EtcdError::UserAlreadyExist);
                }
                named(self.users.len(), &r.name)?;
                let no_password = r.options.is_some_and(|o| o.no_password);
                let hash = if no_password { String::new() } else { r.hashed_password.clone() };
                self.users.insert(r.name.clone(), User { hash, no_password, roles: Vec::new() });
            }
            AuthChange::UserDelete(r) => {
                if self.enabled && r.name == ROOT {
                    return Err(EtcdError::InvalidAuthMgmt);
                }
                self.users.remove(&r.name).ok_or(EtcdError::UserNotFound)?;
                effect = Some(TokenEffect::UserGone(r.name.clone()));
            }
            AuthChange::UserChangePassword(r) => {
                let user = self.user(&r.name)?;
                user.hash = if user.no_password { String::new() } else { r.hashed_password.clone() };
                effect = Some(TokenEffect::UserGone(r.name.clone()));
            }
            AuthChange::UserGrantRole(r) => {
                let known = r.role == ROOT || self.roles.contains_key(&r.role);
                let user = self.user(&r.user)?;
                if !known {
                    return Err(EtcdError::RoleNotFound);
                }
                match user.roles.binary_search(&r.role) {
                    Ok(_) => return Ok(None),
                    Err(_) if user.roles.len() >= MAX_LIST => return Err(EtcdError::TooManyRequests),
                    Err(i) => user.roles.insert(i, r.role.clone()),
                }
            }
            AuthChange::UserRevokeRole(r) => {
                if self.enabled && r.name == ROOT && r.role == ROOT {
                    return Err(EtcdError::InvalidAuthMgmt);
                }
                let user = self.user(&r.name)?;
                let i = user.roles.binary_search(&r.role).map_err(|_| EtcdError::RoleNotGranted)?;
                user.roles.remove(i);
            }
            AuthChange::RoleAdd(r) => {
                if r.name.is_empty() {
                    return Err(EtcdError::RoleEmpty);
                }
                if self.roles.contains_key(&r.name) {
                    return Err(EtcdError::RoleAlreadyExist);
                }
                named(self.roles.len(), &r.name)?;
                self.roles.insert(r.name.clone(), Role::default());
            }
            AuthChange::RoleDelete(r) => {
                if self.enabled && r.role == ROOT {
                    return Err(EtcdError::InvalidAuthMgmt);
                }
                self.roles.remove(&r.role).ok_or(EtcdError::RoleNotFound)?;
                for user in self.users.values_mut() {
                    user.roles.retain(|name| *name != r.role);
                }
            }
            AuthChange::RoleGrantPermission(r) => {
                let perm = r.perm.as_ref().ok_or(EtcdError::PermissionNotGiven)?;
                let role = self.roles.get_mut(&r.name).ok_or(EtcdError::RoleNotFound)?;
                role.grant(perm)?;
            }
            AuthChange::RoleRevokePermission(r) => {
                let role = self.roles.get_mut(&r.role).ok_or(EtcdError::RoleNotFound)?;
                let before = role.permissions.len();
                role.permissions.retain(|p| p.key != r.key || p.range_end != r.range_end);
                if role.permissions.len() == before {
                    return Err(EtcdError::PermissionNotGranted);
                }
            }
        }
        self.changes += 1;
        Ok(effect)
    }

    /// The user that a login names, or nobody when nothing is asked.
    fn who(&self, login: &Login) -> EtcdResult<Option<&User>> {
        match login {
            _ if !self.enabled => Ok(None),
            Login::Root => Ok(None),
            Login::Nobody => Err(EtcdError::UserEmpty),
            Login::User { revision, .. } if *revision < self.revision() => Err(EtcdError::AuthOldRevision),
            Login::User { name, .. } => {
                self.users.get(name).map_or(Err(EtcdError::PermissionDenied), |u| Ok(Some(u)))
            }
        }
    }

    /// Some user, whoever it is.
    pub fn known(&self, login: &Login) -> EtcdResult<()> {
        self.who(login).map(drop)
    }

    /// A user with the root role.
    pub fn admin(&self, login: &Login) -> EtcdResult<()> {
        match (login, self.enabled) {
            (_, false) | (Login::Root, _) => Ok(()),
            (Login::Nobody, _) => Err(EtcdError::UserEmpty),
            (Login::User { name, .. }, _) => match self.users.get(name) {
                None => Err(EtcdError::UserNotFound),
                Some(u) if u.is_root() => Ok(()),
                Some(_) => Err(EtcdError::PermissionDenied),
            },
        }
    }

    fn allowed(&self, login: &Login, span: &Span, wanted: Type) -> EtcdResult<()> {
        let Some(user) = self.who(login)? else { return Ok(()) };
        if user.is_root() || self.covers(user, span, wanted) {
            Ok(())
        } else {
            Err(EtcdError::PermissionDenied)
        }
    }

    /// True when the permissions of a user's roles together cover a span.
    fn covers(&self, user: &User, span: &Span, wanted: Type) -> bool {
        let mut parts: Vec<Span> = user
            .roles
            .iter()
            .filter_map(|name| self.roles.get(name))
            .flat_map(|role| &role.permissions)
            .filter(|p| p.perm_type == wanted as i32 || p.perm_type == Type::Readwrite as i32)
            .map(|p| Span::of(&p.key, &p.range_end))
            .collect();
        parts.sort_by(|a, b| a.start.cmp(&b.start));
        // How far the span is covered; an empty span is covered where its start is.
        let mut reached = span.start.clone();
        for p in parts {
            if p.start > reached {
                return false;
            }
            match p.end {
                None => return true,
                Some(end) if end > reached => {
                    if span.end.as_ref().is_some_and(|e| *e <= end) {
                        return true;
                    }
                    reached = end;
                }
                Some(_) => {}
            }
        }
        false
    }

    /// May read a range.
    pub fn range(&self, login: &Login, key: &Bytes, range_end: &Bytes) -> EtcdResult<()> {
        self.allowed(login, &Span::of(key, range_end), Type::Read)
    }

    /// May write a range.
    pub fn write(&self, login: &Login, key: &Bytes, range_end: &Bytes) -> EtcdResult<()> {
        self.allowed(login, &Span::of(key, range_end), Type::Write)
    }

    /// May do all that a transaction may do, in whichever branch, nested ones included.
    pub fn txn(&self, login: &Login, r: &TxnRequest, lease: &Leased<'_>) -> EtcdResult<()> {
        if !self.enabled {
            return Ok(());
        }
        self.known(login)?;
        for c in &r.compare {
            self.range(login, &c.key, &c.range_end)?;
        }
        r.success.iter().chain(&r.failure).try_for_each(|op| self.op(login, op, lease))
    }

    fn op(&self, login: &Login, op: &RequestOp, lease: &Leased<'_>) -> EtcdResult<()> {
        match &op.request {
            Some(Request::RequestRange(r)) => self.range_request(login, r),
            Some(Request::RequestPut(r)) => {
                self.write(login, &r.key, &Bytes::new())?;
                if r.prev_kv {
                    self.range(login, &r.key, &Bytes::new())?;
                }
                self.leased(login, r.lease, lease)
            }
            Some(Request::RequestDeleteRange(r)) => {
                self.write(login, &r.key, &r.range_end)?;
                if r.prev_kv { self.range(login, &r.key, &r.range_end) } else { Ok(()) }
            }
            Some(Request::RequestTxn(r)) => self.txn(login, r, lease),
            None => Ok(()),
        }
    }

    /// A range request.
    pub fn range_request(&self, login: &Login, r: &RangeRequest) -> EtcdResult<()> {
        self.range(login, &r.key, &r.range_end)
    }

    /// May write every key of a lease: its end deletes them, and whoever keeps it alive keeps them.
    fn leased(&self, login: &Login, id: i64, keys: &Leased<'_>) -> EtcdResult<()> {
        if id == 0 || !self.enabled {
            return Ok(());
        }
        keys(id)?.iter().try_for_each(|k| self.write(login, k, &Bytes::new()))
    }

    /// May have a command carried out. `lease` tells the keys of a lease.
    pub fn permit(&self, login: &Login, op: &Op, lease: &Leased<'_>) -> EtcdResult<()> {
        if !self.enabled || *login == Login::Root {
            return Ok(());
        }
        let one = |r| self.op(login, &RequestOp { request: Some(r) }, lease);
        match op {
            Op::Put(r) => one(Request::RequestPut(r.clone())),
            Op::DeleteRange(r) => one(Request::RequestDeleteRange(r.clone())),
            Op::Txn(r) => self.txn(login, r, lease),
            Op::LeaseRevoke(r) => {
                self.known(login)?;
                self.leased(login, r.id, lease)
            }
            Op::Compact(_) | Op::LeaseGrant(_) => self.known(login),
            Op::Auth(a) if matches!(a.change, Some(AuthChange::Authenticate(_))) => Ok(()),
            Op::Auth(_) | Op::Alarm(_) | Op::Members(_) | Op::LeaseCheckpoint(_) | Op::Commit(_) => {
                self.admin(login)
            }
        }
    }
}

/// The keys of a lease.
pub type Leased<'a> = dyn Fn(i64) -> EtcdResult<Vec<Bytes>> + 'a;

impl User {
    /// Has the root role.
    pub fn is_root(&self) -> bool {
        self.roles.iter().any(|r| r == ROOT)
    }
}

impl Role {
    /// Adds a permission, or changes the kind of one over the same range.
    fn grant(&mut self, perm: &Permission) -> EtcdResult<()> {
        let span = Span::of(&perm.key, &perm.range_end);
        if perm.key.is_empty() || span.is_empty() {
            return Err(EtcdError::InvalidAuthMgmt);
        }
        if !super::layout::fits(&perm.key) || !super::layout::fits(&perm.range_end) {
            return Err(EtcdError::RequestTooLarge);
        }
        let i = self.permissions.partition_point(|p| p.key < perm.key);
        if let Some(p) = self.permissions.get_mut(i)
            && p.key == perm.key
            && p.range_end == perm.range_end
        {
            p.perm_type = perm.perm_type;
        } else if self.permissions.len() >= MAX_LIST {
            return Err(EtcdError::TooManyRequests);
        } else {
            self.permissions.push(perm.clone());
            self.permissions.sort_by(|a, b| a.key.cmp(&b.key));
        }
        Ok(())
    }
}
