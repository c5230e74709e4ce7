//! Passwords and generated secrets: Argon2id (RFC 9106) at OWASP's parameters.

use argon2::{
    Algorithm, Argon2, Params, PasswordHash, PasswordHasher, PasswordVerifier, Version,
    password_hash::SaltString,
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use photon_base::{Error, Result};

/// Longest password, in bytes: hashing cost must not depend on a stranger's wishes.
pub const LEN_MAX: usize = 256;
/// Shortest password that a person may choose.
pub const LEN_MIN: usize = 12;

fn argon2() -> Argon2<'static> {
    let params = Params::new(19 * 1024, 2, 1, None).expect("OWASP's parameters are in range");
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
}

/// A new secret of 256 random bits, printable.
pub fn generate() -> String {
    let mut b = [0; 32];
    photon_rt::entropy::fill(&mut b);
    URL_SAFE_NO_PAD.encode(b)
}

/// Hash to store (PHC string format). Costs about 20 ms of CPU: call it off the runtime.
pub fn hash(password: &str) -> Result<String> {
    if password.len() < LEN_MIN || password.len() > LEN_MAX {
        return Err(Error::invalid("password", format!("must have {LEN_MIN} to {LEN_MAX} bytes")));
    }
    let mut salt = [0; 16];
    photon_rt::entropy::fill(&mut salt);
    let salt = SaltString::encode_b64(&salt).map_err(|e| Error::internal("cannot hash a password").why(e))?;
    let hash = argon2().hash_password(password.as_bytes(), &salt);
    hash.map(|h| h.to_string()).map_err(|e| Error::internal("cannot hash a password").why(e))
}

/// A valid hash of nothing in particular, so that a stranger cannot tell users from non-users by time.
const NOBODY: &str =
    "$argon2id$v=19$m=19456,t=2,p=1$bm9ib2R5bm9ib2R5$2t0YlRDz2cVYq6WqCbVvCyiq0yTJHWn2CL0JyNZ2b0k";

/// True when `password` is the one hashed. Costs the same for an unknown user (`stored` none).
pub fn verify(password: &str, stored: Option<&str>) -> bool {
    if password.len() > LEN_MAX {
        return false;
    }
    let parsed = PasswordHash::new(stored.unwrap_or(NOBODY));
    let matches = parsed.is_ok_and(|h| argon2().verify_password(password.as_bytes(), &h).is_ok());
    matches && stored.is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verifies_only_the_password_hashed() {
        let secret = generate();
        let h = hash(&secret).expect("hash");
        assert!(verify(&secret, Some(&h)));
        assert!(!verify("something else", Some(&h)));
        assert!(!verify(&secret, None));
        assert!(!verify(&secret, Some("garbage")));
        assert!(hash("short").is_err());
        assert!(!verify(&"x".repeat(1000), Some(&h)));
        let (nobody, own) =
            (PasswordHash::new(NOBODY).expect("valid"), PasswordHash::new(&h).expect("valid"));
        assert_eq!((nobody.params, nobody.version), (own.params.clone(), own.version), "the same work");
    }
}
