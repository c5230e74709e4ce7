//! From a password to a token.

use axum::{
    Extension, Json, Router,
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
use photon_serve::listen::Peer;
use serde::{Deserialize, Serialize};
use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::sync::Semaphore;

/// How long a token is good.
const TOKEN_TTL: Duration = Duration::from_secs(15 * 60);
/// Passwords hashed at a time, and callers that may wait for their turn. Each costs 19 MiB and 20 ms.
const HASHING_MAX: usize = 2;
const WAITING_MAX: usize = 64;
/// Failures of a user from one place, and of a place altogether, before answers slow down; the longest
/// pause.
const FREE_FAILURES: u32 = 5;
const FREE_FAILURES_OF_PLACE: u32 = 50;
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// Callers that may sit out a pause, from one place and altogether.
const PAUSING_OF_PLACE_MAX: usize = 16;
const PAUSING_MAX: usize = 1024;
/// Failures are forgotten this long after the last.
const FORGOTTEN: Duration = Duration::from_secs(600);
/// Users and places whose failures are remembered.
const REMEMBERED_MAX: usize = 10_000;

/// Where a caller is: an IPv4 address, or the /64 that somebody gets of IPv6.
type Place = IpAddr;

fn place_of(peer: IpAddr) -> Place {
    match peer.to_canonical() {
        IpAddr::V6(a) => IpAddr::from((u128::from(a) >> 64 << 64).to_be_bytes()),
        v4 => v4,
    }
}

/// What failures are counted by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Whose {
    /// A user, as tried from one place: a stranger elsewhere must not slow the user down.
    User(String, Place),
    /// All users, from one place.
    Place(Place),
}

impl Whose {
    fn free(&self) -> u32 {
        match self {
            Whose::User(..) => FREE_FAILURES,
            Whose::Place(_) => FREE_FAILURES_OF_PLACE,
        }
    }
}

/// Turns passwords into tokens, at a bounded rate.
pub struct Login {
    store: Store,
    keys: Arc<TokenKey>,
    hashing: Semaphore,
    waiting: Semaphore,
    failures: Mutex<HashMap<Whose, (u32, Instant)>>,
    pausing: Mutex<HashMap<Place, usize>>,
}

/// Somebody who sits out a pause.
struct Pausing<'l>(&'l Login, Place);

impl Drop for Pausing<'_> {
    fn drop(&mut self) {
        let mut all = self.0.pausing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(n) = all.get_mut(&self.1) {
            *n -= 1;
            if *n == 0 {
                all.remove(&self.1);
            }
        }
    }
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
pub(crate) async fn password_entry(user: &Name, secret: &str) -> Result<(bytes::Bytes, bytes::Bytes)> {
    let secret = secret.to_string();
    let hash = photon_rt::task::blocking(move || password::hash(&secret)).await?;
    Ok((hash_key(user), hash.into()))
}

fn busy() -> Error {
    Error::new(Code::Exhausted, "too many logins at once").hint("try again in a moment")
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
            pausing: Mutex::default(),
        })
    }

    /// `POST /v1/login {user, password}`.
    pub fn routes(self: Arc<Self>) -> Router {
        let handler =
            async |State(l): State<Arc<Login>>, peer: Option<Extension<Peer>>, body: Bytes| -> Response {
                let from = peer.map_or(IpAddr::from([127, 0, 0, 1]), |Extension(Peer(a))| a);
                match l.handle(&body, from).await {
                    Ok(a) => Json(a).into_response(),
                    Err(e) => problem(&e),
                }
            };
        Router::new()
            .route("/v1/login", post(handler))
            .layer(axum::extract::DefaultBodyLimit::max(4096))
            .with_state(self)
    }

    async fn handle(&self, body: &[u8], from: IpAddr) -> Result<Answer> {
        let r: Request = serde_json::from_slice(body)
            .map_err(|e| Error::invalid("", "the body is not {user, password}").why(e.classify_text()))?;
        let (token, expires) = self.login(&r.user, &r.password, from).await?;
        Ok(Answer { token, expires, user: r.user })
    }

    /// A token for `user`, if the password is right. Slows down after failures from the same place, but
    /// never locks a user out: a stranger elsewhere must not be able to do that, nor keep others waiting.
    pub async fn login(&self, user: &str, secret: &str, from: IpAddr) -> Result<(String, u64)> {
        let Ok(name) = user.parse::<Name>() else { return Err(refused()) };
        let place = place_of(from);
        let whose = [Whose::User(user.to_string(), place), Whose::Place(place)];
        self.sit_out(&whose, place).await?;
        let _turn = self.waiting.try_acquire().map_err(|_| busy())?;
        let _slot = self.hashing.acquire().await.map_err(|_| busy())?;
        let stored = self.password_of(&name).await?;
        let known = stored.is_some();
        let stored = stored.flatten();
        let secret = secret.to_string();
        let right = photon_rt::task::blocking(move || password::verify(&secret, stored.as_deref())).await;
        self.note(whose, right && known);
        if !(right && known) {
            tracing::info!(user, %from, "login refused");
            return Err(refused());
        }
        let (token, claims) = self.keys.sign(&Identity::user(name), wall(), TOKEN_TTL)?;
        tracing::info!(user, %from, token = claims.jti, "login");
        Ok((token, claims.exp))
    }

    /// The password hash of a user that may log in. A password is one user's: whoever gets the name
    /// later does not get it with it.
    async fn password_of(&self, name: &Name) -> Result<Option<Option<String>>> {
        let kv = self.store.kv();
        let hash = kv.get(&hash_key(name), ReadAt::Latest).await?;
        let key = photon_resource::Key::new("user", None, name.clone());
        let Some(record) = kv.get(&key.storage(), ReadAt::Latest).await? else { return Ok(None) };
        let user = self.store.get::<UserSpec>(None, name).await?;
        if !user.is_some_and(|u| u.is_wanted() && !u.spec.disabled) {
            return Ok(None);
        }
        let own = hash.filter(|h| h.modified >= record.created);
        Ok(Some(own.and_then(|v| String::from_utf8(v.value.to_vec()).ok())))
    }

    /// Waits as long as the failures before ask for.
    async fn sit_out(&self, whose: &[Whose], place: Place) -> Result<()> {
        let pause = self.pause(whose);
        if pause.is_zero() {
            return Ok(());
        }
        {
            let mut all = self.pausing.lock().unwrap_or_else(PoisonError::into_inner);
            let total: usize = all.values().sum();
            let here = all.entry(place).or_default();
            if *here >= PAUSING_OF_PLACE_MAX || total >= PAUSING_MAX {
                if *here == 0 {
                    all.remove(&place);
                }
                return Err(busy());
            }
            *here += 1;
        }
        let _counted = Pausing(self, place);
        photon_rt::time::sleep(pause).await;
        Ok(())
    }

    fn pause(&self, whose: &[Whose]) -> Duration {
        let all = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let one = |w: &Whose| match all.get(w) {
            Some((n, at)) if *n > w.free() => {
                let full = Duration::from_millis(250) * 2u32.saturating_pow((n - w.free()).min(8));
                full.min(PAUSE_MAX).saturating_sub(now() - *at)
            }
            _ => Duration::ZERO,
        };
        whose.iter().map(one).max().unwrap_or_default()
    }

    fn note(&self, whose: [Whose; 2], right: bool) {
        let mut all = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        if right {
            // The place keeps its count: one known password must not buy guesses at the others.
            let [user, _] = whose;
            all.remove(&user);
            return;
        }
        if all.len() + 2 > REMEMBERED_MAX {
            let old = now();
            all.retain(|_, (_, at)| old - *at < PAUSE_MAX);
            if all.len() + 2 > REMEMBERED_MAX {
                all.clear();
            }
        }
        for w in whose {
            let e = all.entry(w).or_insert((0, now()));
            // What was long ago does not count: a place is often many people.
            let n = if now() - e.1 > FORGOTTEN { 0 } else { e.0 };
            *e = (n.saturating_add(1), now());
        }
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
        let (key, value) = {
            let _slot = self.hashing.acquire().await.map_err(|_| busy())?;
            password_entry(&name, &r.password).await?
        };
        let mut tx = self.store.begin_for(who);
        let target = photon_resource::Key::new("user", None, name);
        tx.check(photon_kv::Check::Modified(target.storage(), user.meta.revision), Error::raced(&target));
        tx.put(key, value)?;
        tx.note(&target, user.meta.id, "password");
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

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    async fn cloud() -> (Arc<Login>, std::path::PathBuf) {
        let dir = std::env::temp_dir().join(format!("photon-login-{:x}", photon_rt::entropy::u64()));
        photon_rt::fs::private_dir(&dir).expect("dir");
        let store = Store::new(Arc::new(MemKv::new()), Arc::new(photon_api::registry()));
        let keys = Arc::new(TokenKey::open(&dir.join("k"), "c").expect("key"));
        crate::bootstrap::first_admin(&store, "correct horse battery").await.expect("admin");
        (Login::new(store, keys), dir)
    }

    #[tokio::test]
    async fn a_stranger_who_guesses_neither_slows_a_user_elsewhere_nor_takes_all_turns() {
        let (l, dir) = cloud().await;
        let stranger: IpAddr = "192.0.2.1".parse().expect("address");
        for _ in 0..=FREE_FAILURES {
            assert!(l.login("admin", "wrong password", stranger).await.is_err());
        }
        let guesses = (0..2 * WAITING_MAX).map(|_| l.login("admin", "wrong password", stranger));
        let guesses = futures::future::join_all(guesses);
        let mine = async {
            tokio::task::yield_now().await;
            let begun = now();
            let mine = l.login("admin", "correct horse battery", HERE).await;
            (mine, begun.elapsed())
        };
        let (_, (mine, took)) =
            tokio::join!(photon_rt::time::timeout(Duration::from_millis(400), "guesses", guesses), mine);
        mine.expect("not locked out");
        assert!(took < Duration::from_millis(450), "{took:?}");
        assert!(l.pausing.lock().expect("lock").is_empty(), "whoever left is not counted");
        photon_rt::fs::remove_dir_all(&dir).expect("clean");
    }

    #[tokio::test]
    async fn a_new_user_of_an_old_name_does_not_have_the_old_password() {
        let (l, dir) = cloud().await;
        let kind = l.store.kind_of::<UserSpec>().expect("kind").clone();
        let name: Name = "alice".parse().expect("name");
        let make = async || l.store.make("user", "alice", &serde_json::json!({})).await;
        make().await.expect("made");
        let (key, value) = password_entry(&name, "the first alice's").await.expect("hash");
        let mut tx = l.store.begin();
        tx.put(key, value).expect("put");
        tx.commit().await.expect("commit");
        l.login("alice", "the first alice's", HERE).await.expect("hers");
        let user = photon_resource::Key::new("user", None, name.clone());
        let old = l.store.get_raw(&user).await.expect("get").expect("there");
        let mut tx = l.store.begin();
        tx.delete(&kind, &old).await.expect("delete");
        tx.commit().await.expect("commit");
        make().await.expect("made again");
        assert!(l.login("alice", "the first alice's", HERE).await.is_err());
        photon_rt::fs::remove_dir_all(&dir).expect("clean");
    }

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
        let trail = photon_kv::Range::prefix(photon_resource::AUDIT_PREFIX);
        let trail = store.kv().scan(trail, ReadAt::Latest, 10, photon_kv::Direction::Forward).await;
        let mut said: Vec<String> = trail
            .expect("scan")
            .items
            .iter()
            .map(|v| serde_json::from_slice::<photon_resource::AuditRecord>(&v.value).expect("record"))
            .map(|r| format!("{} {} {}", r.who, r.action, r.target))
            .collect();
        said.sort_unstable();
        assert_eq!(
            said,
            [
                "service/iam-first-start cluster-binding.create cluster-binding \"admin\"",
                "service/iam-first-start organization.create organization \"default\"",
                "service/iam-first-start user.create user \"admin\"",
            ]
        );
        let l = Login::new(store.clone(), keys.clone());
        let (token, _) = l.login("admin", "correct horse battery", HERE).await.expect("login");
        assert_eq!(keys.verify(&token, wall()).expect("verify").sub.to_string(), "user/admin");
        for (user, secret) in
            [("admin", "wrong password"), ("nobody", "correct horse battery"), ("NO/NAME", "x")]
        {
            assert_eq!(l.login(user, secret, HERE).await.expect_err("refused").code, Code::Unauthenticated);
        }
        let u =
            store.get::<UserSpec>(None, &"admin".parse().expect("name")).await.expect("get").expect("there");
        let mut tx = store.begin();
        tx.update(&u, |u| u.spec.disabled = true).await.expect("update");
        tx.commit().await.expect("commit");
        assert!(l.login("admin", "correct horse battery", HERE).await.is_err(), "disabled");
        photon_rt::fs::remove_dir_all(&dir).expect("clean");
    }
}
