//! Tokens of logged-in users: etcd's "simple" tokens. They live in the memory of every member that saw
//! the login in the log, and end when they were not used for a while. The token itself is known to its
//! holder only; here and in the log is its digest.

use crate::model::auth::TokenEffect;
use bytes::Bytes;
use photon_rt::time::{Duration, Instant, now};
use sha2::{Digest, Sha256};
use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

/// A token ends when it was not used for so long (etcd's `--auth-token-ttl`).
const TTL: Duration = Duration::from_secs(300);

/// Most tokens. One more ends the one that would end first.
const MAX: usize = 100_000;

/// All tokens.
#[derive(Default)]
pub struct Tokens(Mutex<HashMap<Bytes, (String, Instant)>>);

/// What is kept of a token.
pub fn digest(token: &str) -> Bytes {
    Bytes::copy_from_slice(&Sha256::digest(token.as_bytes()))
}

impl Tokens {
    /// Follows the machine.
    pub fn apply(&self, effects: &[TokenEffect]) {
        if effects.is_empty() {
            return;
        }
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for e in effects {
            match e {
                TokenEffect::Given { digest, user } => {
                    let at = now();
                    if all.len() >= MAX {
                        all.retain(|_, (_, end)| *end > at);
                    }
                    if all.len() >= MAX
                        && let Some(first) =
                            all.iter().min_by_key(|(_, (_, end))| *end).map(|(d, _)| d.clone())
                    {
                        all.remove(&first);
                    }
                    all.insert(digest.clone(), (user.clone(), at + TTL));
                }
                TokenEffect::UserGone(name) => all.retain(|_, (user, _)| user != name),
                TokenEffect::AllGone => all.clear(),
            }
        }
    }

    /// Whose token it is; using it prolongs it.
    pub fn user(&self, token: &str) -> Option<String> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = digest(token);
        let (user, end) = all.get_mut(&key)?;
        let at = now();
        if *end <= at {
            all.remove(&key);
            return None;
        }
        *end = at + TTL;
        Some(user.clone())
    }
}
