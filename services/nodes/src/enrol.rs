//! The cloud's side of joining: `POST /v1/join-tokens` by an admin, `POST /v1/join` by the machine.

use crate::{
    Members, admit,
    token::{JoinToken, Record, Used, record_key, tokens},
};
use axum::{
    Extension, Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, State},
    response::{IntoResponse, Response},
    routing::post,
};
use photon_api::{NodeSpec, NodeStatus};
use photon_auth::{Action, Caller, CertPair, Gate, Target, Verb};
use photon_base::{Code, Error, Name, Result, Timestamp, Uid};
use photon_kv::{Check, Direction, Range, ReadAt, Versioned};
use photon_resource::{Draft, Key, Store, Tx, http::problem};
use photon_rt::time::{Duration, wall};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use tokio::sync::Semaphore;

/// How long a token is good if nothing is said, and at most.
const TTL: Duration = Duration::from_secs(3600);
const TTL_MAX: Duration = Duration::from_secs(7 * 86400);
/// Most tokens at a time; those that have expired make room.
const TOKENS_MAX: u32 = 200;
/// Most bytes of a request, and of a text in it.
const REQUEST_MAX: usize = 8192;
const TEXT_MAX: usize = 256;
/// Machines served at a time.
const SERVED_MAX: usize = 8;

/// What every node of a cloud has.
#[derive(Clone, Debug)]
pub struct Keys {
    /// The cloud.
    pub cluster: Uid,
    /// The authority, with its key.
    pub authority: CertPair,
    /// The key that signs tokens, PKCS#8.
    pub tokens: Vec<u8>,
}

/// A machine that wants to be let in.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct JoinRequest {
    /// The token's secret.
    pub secret: String,
    /// Drawn by the machine: who asks again with it is the same machine.
    pub nonce: String,
    /// Its name.
    pub name: Name,
    /// Its front door.
    pub endpoint: String,
    /// Where the other nodes will reach its store.
    pub peer_url: String,
    /// Where it will gossip.
    pub gossip: String,
    /// Its version.
    pub version: String,
}

/// Where a member is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Mate {
    /// Its number.
    pub id: u64,
    /// Its node's name.
    pub name: String,
    /// Where to reach its store.
    pub peer_url: String,
}

/// What the machine needs to be a node. Secret.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Admission {
    /// The cloud.
    pub cluster: Uid,
    /// The number of the cluster that the stores make.
    pub store: u64,
    /// The machine's number in it.
    pub member: u64,
    /// The others.
    pub mates: Vec<Mate>,
    /// Where they gossip.
    pub gossip: Vec<String>,
    /// The authority's certificate and key.
    pub authority: String,
    /// See `authority`.
    pub authority_key: String,
    /// The key that signs tokens, PKCS#8 in base64.
    pub token_key: String,
}

impl std::fmt::Debug for Admission {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Admission").field("member", &self.member).finish_non_exhaustive()
    }
}

/// Lets machines in.
pub struct Enrol {
    store: Store,
    gate: Gate,
    members: Arc<dyn Members>,
    keys: Keys,
    fingerprint: [u8; 32],
    version: &'static str,
    serving: Semaphore,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct TokenRequest {
    #[serde(default)]
    ttl_seconds: Option<u64>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct TokenAnswer {
    token: String,
    expires: Timestamp,
}

fn bad_body(e: impl std::fmt::Display) -> Error {
    Error::invalid("", "the body is not what is asked for").why(e)
}

/// The same for a wrong and for an old token: a stranger learns nothing.
fn refused() -> Error {
    Error::new(Code::Denied, "the join token does not hold")
        .why("it is unknown, has expired, or has let another machine in")
        .hint("make another on a node of the cloud: photon node token")
}

impl Enrol {
    /// Lets machines into the cloud of `store`, whose program is of `version`.
    pub fn new(
        store: Store,
        gate: Gate,
        members: Arc<dyn Members>,
        keys: Keys,
        version: &'static str,
    ) -> Result<Arc<Enrol>> {
        let fingerprint = photon_auth::fingerprint(&keys.authority.cert_pem)?;
        let (store, serving) = (store.acting_as("nodes"), Semaphore::new(SERVED_MAX));
        Ok(Arc::new(Enrol { store, gate, members, keys, fingerprint, version, serving }))
    }

    /// The two calls.
    pub fn routes(self: Arc<Self>) -> Router {
        let token =
            async |State(e): State<Arc<Enrol>>, caller: Option<Extension<Caller>>, body: Bytes| -> Response {
                match e.make_token(caller.map(|Extension(c)| c), &body).await {
                    Ok(a) => Json(a).into_response(),
                    Err(e) => problem(&e),
                }
            };
        let join = async |State(e): State<Arc<Enrol>>, body: Bytes| -> Response {
            match e.join(&body).await {
                Ok(a) => Json(a).into_response(),
                Err(e) => problem(&e),
            }
        };
        Router::new()
            .route("/v1/join-tokens", post(token))
            .route("/v1/join", post(join))
            .layer(DefaultBodyLimit::max(REQUEST_MAX))
            .with_state(self)
    }

    async fn make_token(&self, caller: Option<Caller>, body: &[u8]) -> Result<TokenAnswer> {
        let caller = caller.ok_or_else(|| {
            Error::new(Code::Unauthenticated, "this call needs an identity").hint("photon login")
        })?;
        let action = Action { kind: "node", verb: Verb::Create };
        let who = self.gate.check(&caller, action, Target { project: None, name: None }).await?;
        let body: &[u8] = if body.is_empty() { b"{}" } else { body };
        let r: TokenRequest = serde_json::from_slice(body).map_err(bad_body)?;
        let ttl = r.ttl_seconds.map_or(TTL, Duration::from_secs);
        if ttl.is_zero() || ttl > TTL_MAX {
            return Err(Error::invalid("ttlSeconds", "is not within a week"));
        }
        let mut secret = [0; 16];
        photon_rt::entropy::fill(&mut secret);
        let token = JoinToken::new(self.fingerprint, secret);
        let key = record_key(&token.secret()).ok_or_else(|| Error::internal("a token without a key"))?;
        let expires = wall().plus(ttl);
        let record = Record { expires, by: who.caller().identity.to_string(), used: None };
        let mut tx = self.store.begin_for(&who);
        self.make_room(&mut tx).await?;
        tx.put(key, to_bytes(&record)?)?;
        // The token itself has no name: what is noted is that somebody may now add a node.
        tx.note(&Key::new("node", None, "any".parse()?), Uid(0), "join-token");
        tx.commit().await?;
        Ok(TokenAnswer { token: token.reveal(), expires })
    }

    /// Removes tokens that have expired; an error if too many are left.
    async fn make_room(&self, tx: &mut Tx<'_>) -> Result<()> {
        let all =
            self.store.kv().scan(Range::prefix(tokens()), ReadAt::Latest, TOKENS_MAX, Direction::Forward);
        let (now, mut live) = (wall(), 0);
        for v in all.await?.items {
            match serde_json::from_slice::<Record>(&v.value) {
                Ok(r) if r.expires > now => live += 1,
                _ => tx.remove(v.key)?,
            }
        }
        if live >= TOKENS_MAX {
            return Err(Error::new(Code::Exhausted, "too many join tokens are open")
                .why(format!("at most {TOKENS_MAX}"))
                .hint("use them, or wait until some expire"));
        }
        Ok(())
    }

    async fn join(&self, body: &[u8]) -> Result<Admission> {
        let r: JoinRequest = serde_json::from_slice(body).map_err(bad_body)?;
        let _slot = self
            .serving
            .try_acquire()
            .map_err(|_| Error::new(Code::Exhausted, "too many machines join at once").hint("try again"))?;
        let (record, stored) = self.token(&r.secret).await?;
        check(&r)?;
        let version = |v: &str| v.split('.').take(2).map(String::from).collect::<Vec<_>>();
        if version(&r.version) != version(self.version) {
            return Err(Error::new(Code::Unsupported, format!("the machine runs photon {}", r.version))
                .why(format!("this cloud runs {}", self.version))
                .hint("install the same version there"));
        }
        let node = match &record.used {
            Some(u) if u.node == r.name && u.nonce == r.nonce => {
                self.store.get::<NodeSpec>(None, &r.name).await?
            }
            Some(_) => return Err(refused()),
            None => None,
        };
        let id = match node {
            Some(n) => n.status.number().ok_or_else(|| Error::internal("the node's record has no number"))?,
            None if record.used.is_some() => return Err(refused()), // it was removed since
            None => self.enter(&r, record, &stored).await?,
        };
        admit(&*self.members, id, &r.name, &r.peer_url).await?;
        self.admission(id).await
    }

    async fn token(&self, secret: &str) -> Result<(Record, Versioned)> {
        let key = record_key(secret).ok_or_else(refused)?;
        let stored = self.store.kv().get(&key, ReadAt::Latest).await?.ok_or_else(refused)?;
        let record: Record = serde_json::from_slice(&stored.value)
            .map_err(|e| Error::internal("the token's record is damaged").why(e))?;
        if record.expires <= wall() { Err(refused()) } else { Ok((record, stored)) }
    }

    /// Makes the node's record and uses the token up, in one commit. Returns its number.
    async fn enter(&self, r: &JoinRequest, record: Record, stored: &Versioned) -> Result<u64> {
        let id = photon_rt::entropy::u64().max(2);
        let status = NodeStatus {
            phase: "joining".into(),
            endpoint: r.endpoint.clone(),
            peer_url: r.peer_url.clone(),
            gossip: r.gossip.clone(),
            version: r.version.clone(),
            member: format!("{id:x}"),
            joined: Some(wall()),
            ..NodeStatus::default()
        };
        let mut tx = self.store.begin();
        tx.because(&format!("a join token made by {}", record.by));
        tx.check(Check::Modified(stored.key.clone(), stored.modified), Error::raced("the join token"));
        let draft = Draft::new(r.name.clone(), &NodeSpec::default()).status(&status);
        tx.create(self.store.kind_of::<NodeSpec>()?, draft).await?;
        let used = Some(Used { node: r.name.clone(), nonce: r.nonce.clone() });
        tx.put(stored.key.clone(), to_bytes(&Record { used, ..record })?)?;
        match tx.commit().await {
            Ok(_) => Ok(id),
            Err(e) if e.code == Code::Exists => {
                Err(Error::new(Code::Exists, format!("node {} exists already", r.name)).hint(
                    "give this machine another name: --node NAME; or remove the old one: photon node remove",
                ))
            }
            Err(e) => Err(e),
        }
    }

    async fn admission(&self, member: u64) -> Result<Admission> {
        use base64::{Engine as _, engine::general_purpose::STANDARD};
        let mate = |m: crate::Member| Mate { id: m.id, name: m.name, peer_url: m.peer_url };
        let nodes = self.store.list_all::<NodeSpec>(None).await?;
        Ok(Admission {
            cluster: self.keys.cluster,
            store: self.members.cluster(),
            member,
            mates: self.members.all().into_iter().filter(|m| m.id != member).map(mate).collect(),
            gossip: nodes.into_iter().map(|n| n.status.gossip).filter(|g| !g.is_empty()).collect(),
            authority: self.keys.authority.cert_pem.clone(),
            authority_key: self.keys.authority.key_pem.clone(),
            token_key: STANDARD.encode(&self.keys.tokens),
        })
    }
}

fn to_bytes(record: &Record) -> Result<Bytes> {
    let text = serde_json::to_vec(record).map_err(|e| Error::internal("a token can't be written").why(e))?;
    Ok(text.into())
}

/// Addresses that others will use must be addresses.
fn check(r: &JoinRequest) -> Result<()> {
    let url = |field: &str, text: &str| {
        let addr = text.strip_prefix("https://").filter(|_| text.len() <= TEXT_MAX);
        let addr = addr.and_then(|a| a.parse::<std::net::SocketAddr>().ok());
        match addr {
            Some(a) if !a.ip().is_unspecified() && a.port() != 0 => Ok(()),
            _ => Err(Error::invalid(field, format!("{text:?} is not https://ADDRESS:PORT"))),
        }
    };
    url("endpoint", &r.endpoint)?;
    url("peerUrl", &r.peer_url)?;
    url("gossip", &format!("https://{}", r.gossip))?;
    if r.nonce.len() < 16 || r.nonce.len() > TEXT_MAX || r.version.len() > TEXT_MAX {
        return Err(Error::invalid("nonce", "or version has a wrong length"));
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests;
