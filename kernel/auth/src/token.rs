//! Short-lived signed tokens: JWT (RFC 7519) with EdDSA only.

use crate::Identity;
use aws_lc_rs::{
    encoding::AsDer,
    hmac,
    signature::{Ed25519KeyPair, KeyPair},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use photon_base::{Code, Error, Result, Timestamp};
use photon_rt::fs;
use serde::{Deserialize, Serialize};
use std::{path::Path, time::Duration};

/// What a token says. Rights are not in it: they are looked up at each call, so that revoking a role
/// needs no new token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// Whom it names.
    pub sub: Identity,
    /// The cluster it is for.
    pub aud: String,
    /// Issued at, seconds since 1970.
    pub iat: u64,
    /// Expires at, seconds since 1970.
    pub exp: u64,
    /// Identity of the token, for audit.
    pub jti: String,
}

/// The key that signs and verifies tokens of one cluster.
pub struct TokenKey {
    encoding: EncodingKey,
    decoding: DecodingKey,
    audience: String,
    kid: String,
    /// Makes other secrets that all nodes share.
    derive: hmac::Key,
}

/// Longest token looked at, in bytes.
const TOKEN_LEN_MAX: usize = 4096;
/// Clocks of two nodes may differ by this much.
const LEEWAY: u64 = 5;

impl TokenKey {
    /// Loads the signing key at `path` (PKCS#8 DER, mode 0600), or makes it.
    pub fn open(path: &Path, cluster: &str) -> Result<TokenKey> {
        let failed = |e: &dyn std::fmt::Display| Error::internal("the token key cannot be used").why(e);
        if !path.exists() {
            let pair = Ed25519KeyPair::generate().map_err(|e| failed(&e))?;
            let der: aws_lc_rs::encoding::Pkcs8V1Der<'_> = pair.as_der().map_err(|e| failed(&e))?;
            fs::write_atomic(path, der.as_ref(), 0o600)?;
        }
        let der = fs::read(path).map_err(|e| failed(&e))?;
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&der).map_err(|e| failed(&e))?;
        let public = pair.public_key().as_ref();
        Ok(TokenKey {
            encoding: EncodingKey::from_ed_der(&der),
            decoding: DecodingKey::from_ed_der(public),
            audience: cluster.to_string(),
            kid: URL_SAFE_NO_PAD.encode(&public[..8]),
            derive: hmac::Key::new(hmac::HMAC_SHA256, &der),
        })
    }

    /// A secret for `purpose` that every node of the cluster can make and nobody else: HMAC-SHA-256 under
    /// the signing key (RFC 5869 section 2.3, one block).
    pub fn derived(&self, purpose: &str) -> [u8; 32] {
        let info = format!("{purpose}\0{}\x01", self.audience);
        let tag = hmac::sign(&self.derive, info.as_bytes());
        tag.as_ref().try_into().expect("SHA-256 gives 32 bytes")
    }

    /// Puts another node's key to `path`; what is there is replaced.
    pub fn adopt(path: &Path, der: &[u8]) -> Result<()> {
        Ed25519KeyPair::from_pkcs8_maybe_unchecked(der)
            .map_err(|e| Error::new(Code::Invalid, "not a token key").why(e))?;
        fs::write_atomic(path, der, 0o600)
    }

    /// A token for `identity`, good from `now` for `ttl`.
    pub fn sign(&self, identity: &Identity, now: Timestamp, ttl: Duration) -> Result<(String, Claims)> {
        let claims = Claims {
            sub: identity.clone(),
            aud: self.audience.clone(),
            iat: now.seconds(),
            exp: now.plus(ttl).seconds(),
            jti: photon_rt::entropy::uid().to_string(),
        };
        let header = Header { kid: Some(self.kid.clone()), ..Header::new(Algorithm::EdDSA) };
        let token = jsonwebtoken::encode(&header, &claims, &self.encoding)
            .map_err(|e| Error::internal("cannot sign a token").why(e))?;
        Ok((token, claims))
    }

    /// The claims of a token that we signed, for this cluster, and that is valid at `now`.
    pub fn verify(&self, token: &str, now: Timestamp) -> Result<Claims> {
        let refuse = |why: &str| {
            Error::new(Code::Unauthenticated, "the token does not hold").why(why).hint("photon login")
        };
        if token.len() > TOKEN_LEN_MAX {
            return Err(refuse("it is too long"));
        }
        let mut v = Validation::new(Algorithm::EdDSA);
        v.set_audience(&[&self.audience]);
        v.set_required_spec_claims(&["exp", "sub", "aud"]);
        v.validate_exp = false; // checked below against our own clock
        let claims: Claims = jsonwebtoken::decode(token, &self.decoding, &v)
            .map_err(|_| refuse("its signature, audience or form is wrong"))?
            .claims;
        if claims.exp <= now.seconds() {
            return Err(refuse("it has expired"));
        }
        if claims.iat > now.seconds() + LEEWAY {
            return Err(refuse("it is from the future"));
        }
        Ok(claims)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_only_its_own_unexpired_tokens() {
        let dir = std::env::temp_dir().join(format!("photon-token-{:x}", photon_rt::entropy::u64()));
        fs::private_dir(&dir).expect("dir");
        let key = TokenKey::open(&dir.join("a"), "c1").expect("make");
        let same = TokenKey::open(&dir.join("a"), "c1").expect("load");
        let other = TokenKey::open(&dir.join("b"), "c1").expect("make");
        let elsewhere = TokenKey::open(&dir.join("a"), "c2").expect("load");
        let alice: Identity = "user/alice".parse().expect("identity");
        let t0 = Timestamp(1_800_000_000_000);
        let (token, claims) = key.sign(&alice, t0, Duration::from_secs(60)).expect("sign");
        assert_eq!(same.verify(&token, t0).expect("verify"), claims);
        assert_eq!(key.derived("gossip"), same.derived("gossip"));
        for different in [key.derived("other"), other.derived("gossip"), elsewhere.derived("gossip")] {
            assert_ne!(different, key.derived("gossip"));
        }
        assert_eq!(claims.sub, alice);
        let refused = |k: &TokenKey, t: &str, at| k.verify(t, at).expect_err("refused").code;
        assert_eq!(refused(&other, &token, t0), Code::Unauthenticated);
        assert_eq!(refused(&elsewhere, &token, t0), Code::Unauthenticated);
        assert_eq!(refused(&key, &token, t0.plus(Duration::from_secs(60))), Code::Unauthenticated);
        assert_eq!(refused(&key, &token, Timestamp(t0.0 - 60_000)), Code::Unauthenticated);
        // {"alg":"none"} with the same claims.
        let body = token.split('.').nth(1).expect("three parts");
        let none = format!("{}.{body}.", URL_SAFE_NO_PAD.encode(br#"{"typ":"JWT","alg":"none"}"#));
        assert_eq!(refused(&key, &none, t0), Code::Unauthenticated);
        for junk in ["", ".", "a.b.c", &"x".repeat(5000)] {
            assert_eq!(refused(&key, junk, t0), Code::Unauthenticated);
        }
        fs::remove_dir_all(&dir).expect("clean");
    }
}
