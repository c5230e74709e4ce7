//! Join tokens: what lets a machine in.
//!
//! A token holds the fingerprint of the cloud's authority, so that the machine knows whom it talks to before it
//! says anything, and a secret, of which the cloud keeps only the SHA-256. It is good for a time, and for one node:
//! the first that shows it binds it to a name and a number of its own, so that a lost answer can be asked for again.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use photon_base::{Error, Name, Result, Timestamp};
use photon_resource::ROOT;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use zeroize::Zeroize;

const PREFIX: &str = "photon1-";

/// A token. It is a secret: printing it is left to [`JoinToken::reveal`].
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// SHA-256 of the certificate of the cloud's authority.
    pub authority: [u8; 32],
    secret: [u8; 16],
}

impl Drop for JoinToken {
    fn drop(&mut self) {
        self.secret.zeroize();
    }
}

impl std::fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JoinToken(…)")
    }
}

impl JoinToken {
    /// A token of the cloud with this authority.
    pub fn new(authority: [u8; 32], secret: [u8; 16]) -> JoinToken {
        JoinToken { authority, secret }
    }

    /// Reads what [`JoinToken::reveal`] wrote.
    pub fn parse(text: &str) -> Result<JoinToken> {
        let bad = || {
            Error::invalid("token", "is not a join token")
                .hint("make one on a node of the cloud: photon node token")
        };
        let body = text.trim().strip_prefix(PREFIX).ok_or_else(bad)?;
        let mut bytes = URL_SAFE_NO_PAD.decode(body).map_err(|_| bad())?;
        let parts = bytes.split_first_chunk::<32>();
        let (authority, rest) = parts.ok_or_else(bad)?;
        let token = JoinToken { authority: *authority, secret: rest.try_into().map_err(|_| bad())? };
        bytes.zeroize();
        Ok(token)
    }

    /// The token's text.
    pub fn reveal(&self) -> String {
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode([&self.authority[..], &self.secret[..]].concat()))
    }

    /// The secret alone, for the one who knows the rest.
    pub(crate) fn secret(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.secret)
    }
}

/// Where the record of the token with this secret is: it is found by the secret's hash, so there is nothing to
/// compare, and nothing to learn from how long it takes.
pub(crate) fn record_key(secret: &str) -> Option<Bytes> {
    let secret: [u8; 16] = URL_SAFE_NO_PAD.decode(secret).ok()?.try_into().ok()?;
    let hash = Sha256::digest(secret);
    Some(format!("{}{}", tokens(), URL_SAFE_NO_PAD.encode(hash)).into())
}

/// Prefix of the records.
pub(crate) fn tokens() -> String {
    format!("{ROOT}join/")
}

/// What the cloud keeps of a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub expires: Timestamp,
    /// Who made it, for the audit trail.
    pub by: String,
    /// Who used it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used: Option<Used>,
}

/// The machine that a token let in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Used {
    pub node: Name,
    /// Drawn by the machine, and known to it alone.
    pub nonce: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes_and_nothing_else() {
        let t = JoinToken::new([7; 32], [9; 16]);
        assert_eq!(JoinToken::parse(&format!(" {}\n", t.reveal())).expect("a token"), t);
        assert!(!format!("{t:?}").contains(&t.secret()));
        let whole = t.reveal();
        for bad in
            ["", "photon1-", "photon1-AAAA", &whole[..whole.len() - 2], &format!("{whole}AA"), &whole[8..]]
        {
            assert!(JoinToken::parse(bad).is_err(), "{bad}");
        }
        let key = record_key(&t.secret()).expect("a key");
        assert!(!String::from_utf8_lossy(&key).contains(&t.secret()));
        assert!(record_key("x").is_none() && record_key(&"A".repeat(9000)).is_none());
    }
}
