//! What the rest of a node sees of gossip: peers, what they say of themselves, and whether they answer.

use photon_base::{Error, Name, Result, Timestamp};
use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

/// What a node says of itself: `api` => `https://10.0.0.1:8443`, `version` => ….
pub type Facts = BTreeMap<String, String>;

/// Most facts of a node.
pub const FACTS_MAX: usize = 32;
/// Longest key of a fact. Bytes.
pub const FACT_KEY_MAX: usize = 32;
/// Longest value of a fact. Bytes.
pub const FACT_VALUE_MAX: usize = 255;
/// Largest sum of all keys and values, two bytes added for each fact: a node's record fits one packet
/// with room for the records of others.
pub const FACTS_BYTES_MAX: usize = 900;

/// A node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its name, one of a kind in the cluster.
    pub name: Name,
    /// Where its gossip listens (UDP).
    pub gossip: SocketAddr,
    /// What it says of itself; empty until that has been heard.
    pub facts: Facts,
}

/// Whether a node answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Liveness {
    /// It answers.
    Alive,
    /// It did not answer somebody and has not yet said that it lives. Treat it as alive.
    Suspect,
    /// It does not answer.
    Down,
    /// It said that it goes.
    Left,
}

impl Liveness {
    /// True for a node that should be talked to.
    pub fn is_up(self) -> bool {
        matches!(self, Liveness::Alive | Liveness::Suspect)
    }
}

/// A node as this one sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Who it is, and where.
    pub peer: Arc<Peer>,
    /// Its facts are of the life that it lives now; else they are what it said before it began anew.
    pub current: bool,
    /// Whether it answers.
    pub state: Liveness,
    /// Since when, by this node's wall clock.
    pub since: Timestamp,
}

/// Says whether `facts` may be told to others.
pub fn check_facts(facts: &Facts) -> Result<()> {
    if facts.len() > FACTS_MAX {
        return Err(Error::invalid("facts", format!("{} facts are too many", facts.len()))
            .why(format!("a node tells at most {FACTS_MAX}")));
    }
    for (k, v) in facts {
        if k.is_empty() || k.len() > FACT_KEY_MAX || v.len() > FACT_VALUE_MAX {
            let k: String = k.chars().take(FACT_KEY_MAX).collect();
            return Err(Error::invalid(format!("facts.{k}"), "the fact is too long, or has no name")
                .why(format!("a name has 1 to {FACT_KEY_MAX} bytes, a value at most {FACT_VALUE_MAX}")));
        }
        if k.chars().chain(v.chars()).any(char::is_control) {
            return Err(Error::invalid(format!("facts.{}", k.escape_debug()), "a control character"));
        }
    }
    let bytes: usize = facts.iter().map(|(k, v)| k.len() + v.len() + 2).sum();
    if bytes > FACTS_BYTES_MAX {
        return Err(Error::invalid("facts", format!("{bytes} bytes of facts are too many"))
            .why(format!("all of them, with 2 bytes for each, may have {FACTS_BYTES_MAX}: one packet")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_are_bounded() {
        let one = |k: &str, v: &str| check_facts(&Facts::from([(k.to_string(), v.to_string())]));
        assert!(one("api", "https://10.0.0.1:8443").is_ok());
        assert!(one("", "x").is_err());
        assert!(one("a", &"x".repeat(256)).is_err());
        assert!(one(&"k".repeat(33), "").is_err());
        assert!(one("a\n", "").is_err());
        let many: Facts = (0..33).map(|i| (format!("k{i}"), String::new())).collect();
        assert!(check_facts(&many).is_err());
        let large: Facts = (0..4).map(|i| (format!("k{i}"), "x".repeat(230))).collect();
        assert!(check_facts(&large).is_err());
    }
}
