//! From a password to a token.

use axum::{
    Json, Router,
    body::Bytes,
    extract::State,
    response::{IntoResponse, Response},
    routing::post,
};
use photon_api::UserSpec;
use photon_auth::{Authorized, Identity, TokenKey, password};
use photon_base::{Code, Error, Name, Result};
use photon_kv::ReadAt;
use photon_resource::{ROOT, Store, http::problem};
use photon_rt::time::{Duration, Instant, now, wall};
use serde::{Deserialize, Serialize};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::sync::Semaphore;

/// How long a token is good.
pub const TOKEN_TTL: Duration = Duration::from_secs(15 * 60);
/// Passwords hashed at a time, and callers that may wait for their turn. Each costs 19 MiB and 20 ms.
const HASHING_MAX: usize = 2;
const WAITING_MAX: usize = 64;
/// Failures of a user before answers slow down, and the longest pause.
const FREE_FAILURES: u32 = 5;
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// Users whose failures are remembered.
const REMEMBERED_MAX: usize = 10_000;

/// Turns passwords into tokens, at a bounded rate.
pub struct Login {
    store: Store,
    keys: Arc<TokenKey>,
    hashing: Semaphore,
    waiting: Semaphore,
    failures: Mutex<HashMap<String, (u32, Instant)>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    user: String,
    password: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewPassword {
    password: String,
}

#[derive(Serialize)]
struct Answer {
    token: String,
    /// Seconds since 1970.
    expires: u64,
    user: String,
}

fn hash_key(user: &Name) -> bytes::Bytes {
    format!("{ROOT}iam/password/{user}").into()
}

/// The entry that sets a user's password.
pub async fn password_entry(user: &Name, secret: &str) -> Result<(bytes::Bytes, bytes::Bytes)> {
    let secret = secret.to_string();
    let hash = photon_rt::task::blocking(move || password::hash(&secret)).await?;
    Ok((hash_key(user), hash.into()))
}

fn refused() -> Error {
    Error::new(Code::Unauthenticated, "login refused").why("the user or the password is wrong")
}

impl Login {
    /// Logs users of `store` in with tokens of `keys`.
    pub fn new(store: Store, keys: Arc<TokenKey>) -> Arc<Login> {
        Arc::new(Login {
            store,
            keys,
            hashing: Semaphore::new(HASHING_MAX),
            waiting: Semaphore::new(WAITING_MAX),
            failures: Mutex::default(),
        })
    }

    /// `POST /v1/login {user, password}`.
    pub fn routes(self: Arc<Self>) -> Router {
        let handler = async |State(l): State<Arc<Login>>, body: Bytes| -> Response {
            match l.handle(&body).await {
                Ok(a) => Json(a).into_response(),
                Err(e) => problem(&e),
            }
        };
        Router::new()
            .route("/v1/login", post(handler))
            .layer(axum::extract::DefaultBodyLimit::max(4096))
            .with_state(self)
    }

    async fn handle(&self, body: &[u8]) -> Result<Answer> {
        let r: Request = serde_json::from_slice(body)
            .map_err(|e| Error::invalid("", "the body is not {user, password}").why(e.classify_text()))?;
        let (token, expires) = self.login(&r.user, &r.password).await?;
        Ok(Answer { token, expires, user: r.user })
    }

    /// A token for `user`, if the password is right. Slows down after failures, but never locks a user
    /// out: a stranger must not be able to do that.
    pub async fn login(&self, user: &str, secret: &str) -> Result<(String, u64)> {
        let Ok(name) = user.parse::<Name>() else { return Err(refused()) };
        let busy = || Error::new(Code::Exhausted, "too many logins at once").hint("try again in a moment");
        let _turn = self.waiting.try_acquire().map_err(|_| busy())?;
        let pause = self.pause(user);
        photon_rt::time::sleep(pause).await;
        let _slot = self.hashing.acquire().await.map_err(|_| busy())?;
        let stored = self.store.kv().get(&hash_key(&name), ReadAt::Latest).await?;
        let stored = stored.and_then(|v| String::from_utf8(v.value.to_vec()).ok());
        let known =
            self.store.get::<UserSpec>(None, &name).await?.is_some_and(|u| u.is_wanted() && !u.spec.disabled);
        let secret = secret.to_string();
        let right = photon_rt::task::blocking(move || password::verify(&secret, stored.as_deref())).await;
        self.note(user, right && known);
        if !(right && known) {
            tracing::info!(user, "login refused");
            return Err(refused());
        }
        let (token, claims) = self.keys.sign(&Identity::user(name), wall(), TOKEN_TTL)?;
        tracing::info!(user, token = claims.jti, "login");
        Ok((token, claims.exp))
    }

    fn pause(&self, user: &str) -> Duration {
        let all = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        match all.get(user) {
            Some((n, at)) if *n > FREE_FAILURES => {
                let full = Duration::from_millis(250) * 2u32.saturating_pow((n - FREE_FAILURES).min(8));
                full.min(PAUSE_MAX).saturating_sub(now() - *at)
            }
            _ => Duration::ZERO,
        }
    }

    fn note(&self, user: &str, right: bool) {
        let mut all = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        if right {
            all.remove(user);
            return;
        }
        if all.len() >= REMEMBERED_MAX {
            let old = now();
            all.retain(|_, (_, at)| old - *at < PAUSE_MAX);
            if all.len() >= REMEMBERED_MAX {
                all.clear();
            }
        }
        let e = all.entry(user.to_string()).or_insert((0, now()));
        *e = (e.0.saturating_add(1), now());
    }

    /// Sets the password of the user that `who` was allowed to update.
    pub async fn set_password(&self, who: &Authorized, body: &[u8]) -> Result<()> {
        let name = who.target().name.clone().ok_or_else(|| Error::internal("a password without a user"))?;
        let r: NewPassword = serde_json::from_slice(body)
            .map_err(|e| Error::invalid("", "the body is not {password}").why(e.classify_text()))?;
        let user = self
            .store
            .get::<UserSpec>(None, &name)
            .await?
            .ok_or_else(|| Error::not_found(format!("user {name}")))?;
        let (key, value) = password_entry(&name, &r.password).await?;
        let mut tx = self.store.begin();
        let target = photon_resource::Key::new("user", None, name);
        let gone = Error::new(Code::Conflict, format!("{target} changed meanwhile")).hint("try again");
        tx.check(photon_kv::Check::Modified(target.storage(), user.meta.revision), gone);
        tx.put(key, value)?;
        tx.audit(&photon_resource::AuditRecord::of(who, &target, user.meta.id, Vec::new()))?;
        tx.commit().await.map(|_| ())
    }
}

/// JSON errors without the text that caused them: it may hold a password.
trait Classify {
    fn classify_text(&self) -> String;
}

impl Classify for serde_json::Error {
    fn classify_text(&self) -> String {
        format!("{:?} error at column {}", self.classify(), self.column())
    }
}

/// `POST /v1/users/{name}/password`.
pub struct PasswordRoute(pub Arc<Login>);

#[async_trait::async_trait]
impl photon_resource::http::Connect for PasswordRoute {
    async fn connect(&self, who: Authorized, request: axum::extract::Request) -> Result<Response> {
        let body = axum::body::to_bytes(request.into_body(), 4096)
            .await
            .map_err(|_| Error::invalid("", "the body is too large"))?;
        self.0.set_password(&who, &body).await?;
        Ok(http::StatusCode::NO_CONTENT.into_response())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use photon_kv::MemKv;

    #[tokio::test]
    async fn only_the_right_password_of_a_wanted_user_gives_a_token() {
        let dir = std::env::temp_dir().join(format!("photon-login-{:x}", photon_rt::entropy::u64()));
        photon_rt::fs::private_dir(&dir).expect("dir");
        let store = Store::new(Arc::new(MemKv::new()), Arc::new(photon_api::registry()));
        let keys = Arc::new(TokenKey::open(&dir.join("k"), "c").expect("key"));
        let admin = crate::bootstrap::first_admin(&store, "correct horse battery").await.expect("admin");
        assert!(admin);
        assert!(
            !crate::bootstrap::first_admin(&store, "another password").await.expect("again"),
            "only once"
        );
        let l = Login::new(store.clone(), keys.clone());
        let (token, _) = l.login("admin", "correct horse battery").await.expect("login");
        assert_eq!(keys.verify(&token, wall()).expect("verify").sub.to_string(), "user/admin");
        for (user, secret) in
            [("admin", "wrong password"), ("nobody", "correct horse battery"), ("NO/NAME", "x")]
        {
            assert_eq!(l.login(user, secret).await.expect_err("refused").code, Code::Unauthenticated);
        }
        let u =
            store.get::<UserSpec>(None, &"admin".parse().expect("name")).await.expect("get").expect("there");
        let mut tx = store.begin();
        tx.update(&u, |u| u.spec.disabled = true).await.expect("update");
        tx.commit().await.expect("commit");
        assert!(l.login("admin", "correct horse battery").await.is_err(), "disabled");
        photon_rt::fs::remove_dir_all(&dir).expect("clean");
    }
}
