//! Who asks: how far they see in this store ([`Scope`]), and who they are to etcd's own users and roles.

use crate::Scope;

/// Put by a listener beside [`Scope`] when it knows nothing of its callers (the plain-text drop-in). Once
/// etcd's authentication is enabled, such a caller must log in like any other. Without this mark an
/// operator has proven who they are, and stands above etcd's users, as its root does.
#[derive(Clone, Copy, Debug)]
pub struct Anonymous;

/// A caller.
#[derive(Clone, Debug, PartialEq)]
pub struct Who {
    /// How far they see.
    pub scope: Scope,
    /// Who they are to etcd's users and roles; only asked while authentication is enabled.
    pub login: Login,
}

/// A caller in the eyes of etcd's authentication.
#[derive(Clone, Debug, PartialEq)]
pub enum Login {
    /// An operator by certificate, or the cloud itself: may do all.
    Root,
    /// Has not logged in.
    Nobody,
    /// Logged in.
    User {
        /// Name.
        name: String,
        /// Revision of users and roles when the token was looked up.
        revision: u64,
    },
}

impl Who {
    /// The cloud itself.
    pub fn cloud() -> Who {
        Who { scope: Scope::Operator, login: Login::Root }
    }

    /// The same caller at another revision of users and roles: for streams and waits, which outlive
    /// changes of them. Whether the user still exists, and may, is asked anew.
    pub fn at(&self, revision: u64) -> Who {
        match &self.login {
            Login::User { name, .. } => {
                Who { scope: self.scope, login: Login::User { name: name.clone(), revision } }
            }
            _ => self.clone(),
        }
    }
}
