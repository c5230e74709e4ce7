//! Passwords of etcd's users: hashed before they go into the log, checked before a token is given out.

use crate::{
    ChainFire, EtcdError, EtcdResult,
    command::{AuthChange, AuthCommand, LoggedIn, Op},
    who::Who,
};
use std::sync::atomic::{AtomicUsize, Ordering};

impl ChainFire {
    /// Changes users and roles; answers the store's revision.
    pub(crate) async fn change_auth(&self, who: &Who, change: AuthChange) -> EtcdResult<i64> {
        self.propose_revision(who, Op::Auth(AuthCommand { change: Some(change) })).await
    }

    /// Checks a password and gives out a token; answers the revision and the token.
    pub(crate) async fn authenticate(
        &self,
        who: &Who,
        name: String,
        password: String,
    ) -> EtcdResult<(i64, String)> {
        // Users and roles may change while the password is checked; then it is checked again.
        for _ in 0..4 {
            let rules = self.linearizable().await?.rules.clone();
            if !rules.auth.enabled {
                return Err(EtcdError::AuthNotEnabled);
            }
            let stored = rules.auth.users.get(&name).filter(|u| !u.no_password).map(|u| u.hash.clone());
            if !password_fits(password.clone(), stored).await? {
                tracing::warn!(user = name.chars().take(64).collect::<String>(), "a login was refused");
                return Err(EtcdError::AuthFailed);
            }
            let token = photon_auth::password::generate();
            let digest = crate::tokens::digest(&token);
            let revision = rules.auth.revision();
            let login = LoggedIn { name: name.clone(), digest, revision };
            match self.change_auth(who, AuthChange::Authenticate(login)).await {
                Err(EtcdError::AuthOldRevision) => {}
                other => return Ok((other?, token)),
            }
        }
        Err(EtcdError::AuthOldRevision)
    }
}

/// Passwords hashed or checked at a time; each takes tens of milliseconds of a core.
static HASHING: tokio::sync::Semaphore = tokio::sync::Semaphore::const_new(2);

/// Requests that wait for that at most.
const HASHING_QUEUE: usize = 64;

/// Runs work on a password when it is its turn.
async fn hashing<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> EtcdResult<T> {
    static WAITING: AtomicUsize = AtomicUsize::new(0);
    struct Place;
    impl Drop for Place {
        fn drop(&mut self) {
            WAITING.fetch_sub(1, Ordering::Relaxed);
        }
    }
    let before = WAITING.fetch_add(1, Ordering::Relaxed);
    let _place = Place;
    if before >= HASHING_QUEUE {
        return Err(EtcdError::TooManyRequests);
    }
    let _turn = HASHING.acquire().await.map_err(|_| EtcdError::Stopped)?;
    Ok(photon_rt::task::blocking(f).await)
}

/// etcd takes passwords of any length, the house's hash of some: it gets a digest of the password.
fn condensed(password: &str) -> String {
    crate::tokens::digest(password).iter().map(|b| format!("{b:02x}")).collect()
}

/// The hash to keep of a password.
pub(crate) async fn hash_password(password: String) -> EtcdResult<String> {
    hashing(move || photon_auth::password::hash(&condensed(&password)))
        .await?
        .map_err(|e| EtcdError::Internal(e.to_string()))
}

async fn password_fits(password: String, stored: Option<String>) -> EtcdResult<bool> {
    hashing(move || photon_auth::password::verify(&condensed(&password), stored.as_deref())).await
}
