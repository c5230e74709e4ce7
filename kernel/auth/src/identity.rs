//! Names of those who call.

use photon_base::{Error, Name, Result};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// What sort of caller an identity is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A person or their program; its rights come from role bindings.
    User,
    /// One of PhotonCloud's own services.
    Service,
    /// The node agent of a host.
    Host,
    /// The cluster's operator: sees the cloud's own records. Held on disk by root only.
    Operator,
}

/// A proven name, written `user/alice`, `service/plasmavmc`, `host/node-1`, `operator/root`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Identity {
    /// Sort of caller.
    pub kind: Kind,
    /// Name, unique within its sort.
    pub name: Name,
}

impl Identity {
    /// The user of this name.
    pub fn user(name: Name) -> Self {
        Identity { kind: Kind::User, name }
    }

    /// The service of this name; `name` is a literal of ours.
    pub fn service(name: &'static str) -> Self {
        Identity { kind: Kind::Service, name: name.parse().expect("service names are valid labels") }
    }

    /// The operator.
    pub fn operator() -> Self {
        Identity { kind: Kind::Operator, name: "root".parse().expect("a valid label") }
    }

    /// The URI that a certificate carries as subject alternative name.
    pub fn uri(&self) -> String {
        format!("photon://{self}")
    }

    /// Reads [`Identity::uri`].
    pub fn from_uri(uri: &str) -> Option<Identity> {
        uri.strip_prefix("photon://")?.parse().ok()
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::User => "user",
            Kind::Service => "service",
            Kind::Host => "host",
            Kind::Operator => "operator",
        };
        write!(f, "{kind}/{}", self.name)
    }
}

impl FromStr for Identity {
    type Err = Error;
    fn from_str(s: &str) -> Result<Self> {
        let (kind, name) =
            s.split_once('/').ok_or_else(|| Error::invalid("", "an identity is written KIND/NAME"))?;
        let kind = match kind {
            "user" => Kind::User,
            "service" => Kind::Service,
            "host" => Kind::Host,
            "operator" => Kind::Operator,
            _ => return Err(Error::invalid("", "an identity is user/…, service/…, host/… or operator/…")),
        };
        Ok(Identity { kind, name: name.parse()? })
    }
}

impl TryFrom<String> for Identity {
    type Error = Error;
    fn try_from(s: String) -> Result<Self> {
        s.parse()
    }
}

impl From<Identity> for String {
    fn from(i: Identity) -> String {
        i.to_string()
    }
}

impl schemars::JsonSchema for Identity {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Identity".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({"type": "string", "pattern": "^(user|service|host|operator)/[a-z0-9-]{1,63}$"})
    }
}

/// How an identity was proven.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proof {
    /// A client certificate of our authority.
    Certificate,
    /// A bearer token; carries its id.
    Token(String),
    /// The caller is this process.
    Internal,
}

/// A proven identity with the proof. Made by the listener, never from a request's own words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Who.
    pub identity: Identity,
    /// How we know.
    pub proof: Proof,
}

impl Caller {
    /// A service of this process.
    pub fn internal(service: &'static str) -> Self {
        Caller { identity: Identity::service(service), proof: Proof::Internal }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_what_it_parses() {
        for s in ["user/alice", "service/iam", "host/n-1", "operator/root"] {
            let i: Identity = s.parse().expect("valid");
            assert_eq!(i.to_string(), s);
            assert_eq!(Identity::from_uri(&i.uri()), Some(i));
        }
        for s in ["", "alice", "root/x", "user/", "user/A", "user/a/b"] {
            assert!(s.parse::<Identity>().is_err(), "{s}");
        }
    }
}
