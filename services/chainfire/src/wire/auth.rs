//! The Auth service: etcd's users and roles. Who may change them is decided where commands are applied
//! (`model::auth`); as long as authentication is off, only operators may set it up.

use super::{Api, authpb::Permission, authpb::permission::Type, etcdserverpb::*};
use crate::{
    EtcdError, EtcdResult, Scope,
    command::{AuthChange, MAX_REQUEST},
    model::auth::{Auth, ROOT},
    who::{Login, Who},
};
use bytes::Bytes;
use tonic::{Request, Response, Status};

impl Api {
    /// Proposes a change; answers the header.
    async fn change_users(&self, who: &Who, c: AuthChange) -> Result<Option<ResponseHeader>, Status> {
        if who.scope != Scope::Operator && !self.0.published().rules.auth.enabled {
            return Err(EtcdError::PermissionDenied.into());
        }
        Ok(self.header(self.0.change_auth(who, c).await?))
    }

    /// Reads users and roles after all that was acknowledged.
    async fn look<T>(
        &self,
        f: impl FnOnce(&Auth) -> EtcdResult<T>,
    ) -> Result<(Option<ResponseHeader>, T), Status> {
        let state = self.0.linearizable().await?;
        Ok((self.header(state.revision), f(&state.rules.auth)?))
    }
}

/// Admins, and operators before there are any.
fn admin(auth: &Auth, who: &Who) -> EtcdResult<()> {
    if !auth.enabled && who.scope != Scope::Operator {
        return Err(EtcdError::PermissionDenied);
    }
    auth.admin(&who.login)
}

/// A password becomes its hash before it goes into the log.
async fn hashed(password: String, hashed_password: String) -> Result<String, Status> {
    if password.len() > MAX_REQUEST {
        return Err(EtcdError::RequestTooLarge.into());
    }
    if password.is_empty() && !hashed_password.is_empty() {
        // etcd's clients never send one, and we could not check what they hashed.
        return Err(EtcdError::Unsupported("hashedPassword is not taken; send password".into()).into());
    }
    Ok(crate::login::hash_password(password).await?)
}

/// `Answer { header }`.
macro_rules! done {
    ($answer:ident, $header:expr) => {
        Ok(Response::new($answer { header: $header }))
    };
}

#[tonic::async_trait]
impl auth_server::Auth for Api {
    async fn auth_enable(
        &self,
        request: Request<AuthEnableRequest>,
    ) -> Result<Response<AuthEnableResponse>, Status> {
        let who = self.who(&request)?;
        done!(AuthEnableResponse, self.change_users(&who, AuthChange::Enable(request.into_inner())).await?)
    }

    async fn auth_disable(
        &self,
        request: Request<AuthDisableRequest>,
    ) -> Result<Response<AuthDisableResponse>, Status> {
        let who = self.who(&request)?;
        done!(AuthDisableResponse, self.change_users(&who, AuthChange::Disable(request.into_inner())).await?)
    }

    /// Tells everybody, as etcd does since 3.7: clients must know whether to log in.
    async fn auth_status(
        &self,
        request: Request<AuthStatusRequest>,
    ) -> Result<Response<AuthStatusResponse>, Status> {
        request.extensions().get::<Scope>().ok_or(EtcdError::NoIdentity)?;
        let (header, (enabled, auth_revision)) = self.look(|a| Ok((a.enabled, a.revision()))).await?;
        Ok(Response::new(AuthStatusResponse { header, enabled, auth_revision }))
    }

    async fn authenticate(
        &self,
        request: Request<AuthenticateRequest>,
    ) -> Result<Response<AuthenticateResponse>, Status> {
        // Not `who`: a token that has ended must not keep its holder from getting another.
        let scope = *request.extensions().get::<Scope>().ok_or(EtcdError::NoIdentity)?;
        let r = request.into_inner();
        let who = Who { scope, login: Login::Nobody };
        let (revision, token) = self.0.authenticate(&who, r.name, r.password).await?;
        Ok(Response::new(AuthenticateResponse { header: self.header(revision), token }))
    }

    async fn user_add(
        &self,
        request: Request<AuthUserAddRequest>,
    ) -> Result<Response<AuthUserAddResponse>, Status> {
        let who = self.who(&request)?;
        admin(&self.0.published().rules.auth, &who)?; // hashing is work
        let mut r = request.into_inner();
        if !r.options.is_some_and(|o| o.no_password) {
            r.hashed_password = hashed(std::mem::take(&mut r.password), r.hashed_password).await?;
        }
        r.password.clear();
        done!(AuthUserAddResponse, self.change_users(&who, AuthChange::UserAdd(r)).await?)
    }

    async fn user_get(
        &self,
        request: Request<AuthUserGetRequest>,
    ) -> Result<Response<AuthUserGetResponse>, Status> {
        let who = self.who(&request)?;
        let wanted = request.into_inner().name;
        let (header, roles) = self
            .look(|a| {
                let me = matches!(&who.login, Login::User { name, .. } if *name == wanted);
                admin(a, &who).or_else(|e| if me { Ok(()) } else { Err(e) })?;
                Ok(a.users.get(&wanted).ok_or(EtcdError::UserNotFound)?.roles.clone())
            })
            .await?;
        Ok(Response::new(AuthUserGetResponse { header, roles }))
    }

    async fn user_list(
        &self,
        request: Request<AuthUserListRequest>,
    ) -> Result<Response<AuthUserListResponse>, Status> {
        let who = self.who(&request)?;
        let (header, users) =
            self.look(|a| admin(a, &who).map(|()| a.users.keys().cloned().collect())).await?;
        Ok(Response::new(AuthUserListResponse { header, users }))
    }

    async fn user_delete(
        &self,
        request: Request<AuthUserDeleteRequest>,
    ) -> Result<Response<AuthUserDeleteResponse>, Status> {
        let who = self.who(&request)?;
        done!(
            AuthUserDeleteResponse,
            self.change_users(&who, AuthChange::UserDelete(request.into_inner())).await?
        )
    }

    async fn user_change_password(
        &self,
        request: Request<AuthUserChangePasswordRequest>,
    ) -> Result<Response<AuthUserChangePasswordResponse>, Status> {
        let who = self.who(&request)?;
        admin(&self.0.published().rules.auth, &who)?; // hashing is work
        let mut r = request.into_inner();
        r.hashed_password = hashed(std::mem::take(&mut r.password), r.hashed_password).await?;
        done!(
            AuthUserChangePasswordResponse,
            self.change_users(&who, AuthChange::UserChangePassword(r)).await?
        )
    }

    async fn user_grant_role(
        &self,
        request: Request<AuthUserGrantRoleRequest>,
    ) -> Result<Response<AuthUserGrantRoleResponse>, Status> {
        let who = self.who(&request)?;
        let c = AuthChange::UserGrantRole(request.into_inner());
        done!(AuthUserGrantRoleResponse, self.change_users(&who, c).await?)
    }

    async fn user_revoke_role(
        &self,
        request: Request<AuthUserRevokeRoleRequest>,
    ) -> Result<Response<AuthUserRevokeRoleResponse>, Status> {
        let who = self.who(&request)?;
        let c = AuthChange::UserRevokeRole(request.into_inner());
        done!(AuthUserRevokeRoleResponse, self.change_users(&who, c).await?)
    }

    async fn role_add(
        &self,
        request: Request<AuthRoleAddRequest>,
    ) -> Result<Response<AuthRoleAddResponse>, Status> {
        let who = self.who(&request)?;
        done!(AuthRoleAddResponse, self.change_users(&who, AuthChange::RoleAdd(request.into_inner())).await?)
    }

    async fn role_get(
        &self,
        request: Request<AuthRoleGetRequest>,
    ) -> Result<Response<AuthRoleGetResponse>, Status> {
        let who = self.who(&request)?;
        let wanted = request.into_inner().role;
        let (header, perm) = self
            .look(|a| {
                let mine = matches!(&who.login, Login::User { name, .. }
                    if a.users.get(name).is_some_and(|u| u.roles.contains(&wanted)));
                admin(a, &who).or_else(|e| if mine { Ok(()) } else { Err(e) })?;
                let role = a.roles.get(&wanted).ok_or(EtcdError::RoleNotFound)?;
                Ok(if wanted == ROOT { vec![everything()] } else { role.permissions.clone() })
            })
            .await?;
        Ok(Response::new(AuthRoleGetResponse { header, perm }))
    }

    async fn role_list(
        &self,
        request: Request<AuthRoleListRequest>,
    ) -> Result<Response<AuthRoleListResponse>, Status> {
        let who = self.who(&request)?;
        let (header, roles) =
            self.look(|a| admin(a, &who).map(|()| a.roles.keys().cloned().collect())).await?;
        Ok(Response::new(AuthRoleListResponse { header, roles }))
    }

    async fn role_delete(
        &self,
        request: Request<AuthRoleDeleteRequest>,
    ) -> Result<Response<AuthRoleDeleteResponse>, Status> {
        let who = self.who(&request)?;
        done!(
            AuthRoleDeleteResponse,
            self.change_users(&who, AuthChange::RoleDelete(request.into_inner())).await?
        )
    }

    async fn role_grant_permission(
        &self,
        request: Request<AuthRoleGrantPermissionRequest>,
    ) -> Result<Response<AuthRoleGrantPermissionResponse>, Status> {
        let who = self.who(&request)?;
        let c = AuthChange::RoleGrantPermission(request.into_inner());
        done!(AuthRoleGrantPermissionResponse, self.change_users(&who, c).await?)
    }

    async fn role_revoke_permission(
        &self,
        request: Request<AuthRoleRevokePermissionRequest>,
    ) -> Result<Response<AuthRoleRevokePermissionResponse>, Status> {
        let who = self.who(&request)?;
        let c = AuthChange::RoleRevokePermission(request.into_inner());
        done!(AuthRoleRevokePermissionResponse, self.change_users(&who, c).await?)
    }
}

/// What the root role may.
fn everything() -> Permission {
    Permission { perm_type: Type::Readwrite as i32, key: Bytes::new(), range_end: Bytes::from_static(&[0]) }
}
