//! Who a member is: its number, which follows from its first peer URL as in etcd and stays when that changes
//! (`<data_dir>/member.json`), and the cluster's.

use super::connect::{Admit, Connect, Sighted};
use crate::model::members::MemberRecord;
use photon_base::{Error, Result};
use photon_raft::NodeId;
use serde::{Deserialize, Serialize};
use std::{path::Path, sync::Arc};

/// A member of the first hour.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Founder {
    /// Its name.
    pub name: String,
    /// Where members reach it.
    pub peer_url: String,
    /// Its number, if that does not follow from the URL.
    pub id: Option<u64>,
}

impl Founder {
    /// A founder whose number follows from its URL.
    pub fn new(name: impl Into<String>, peer_url: impl Into<String>) -> Founder {
        Founder { name: name.into(), peer_url: peer_url.into(), id: None }
    }

    pub(crate) fn id(&self) -> u64 {
        self.id.unwrap_or_else(|| member_id(&self.peer_url))
    }
}

/// How a member finds the others.
#[derive(Clone)]
pub struct Peering {
    /// All founders, this member among them; for one that joins, members that it can reach, and itself.
    pub initial: Vec<Founder>,
    /// This member joins a cluster that there is already, in which it was added before.
    pub existing: bool,
    /// Tells clusters apart that are founded with the same URLs.
    pub token: String,
    /// Makes connections.
    pub connect: Arc<dyn Connect>,
    /// Who may connect.
    pub admit: Admit,
    /// Who else knows where members are.
    pub sighted: Option<Sighted>,
    /// This member's own peer URLs follow its configuration, and the others are told; else they change only
    /// by `member update`, as in etcd.
    pub moves: bool,
}

impl Peering {
    /// A cluster founded by `initial`, or joined through them, connected by `connect`.
    pub fn new(initial: Vec<Founder>, connect: Arc<dyn Connect>) -> Peering {
        let token = "etcd-cluster".to_string();
        let admit = Admit::Anybody;
        Peering { initial, existing: false, token, connect, admit, sighted: None, moves: false }
    }
}

impl std::fmt::Debug for Peering {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Peering").field("initial", &self.initial).field("existing", &self.existing).finish()
    }
}

/// Numbers that stay the same whatever happens to URLs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Seat {
    pub member: u64,
    /// 0 until a member of the cluster has told.
    pub cluster: u64,
}

/// An id that stays the same across restarts (FNV-1a; ids need to differ, not to be secret). Never 0 or 1:
/// those are nobody, and the member of a cluster without peers.
pub(crate) fn stable_id(kind: &[u8], name: &[u8]) -> u64 {
    let hash = |h: u64, b: &u8| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3);
    kind.iter().chain(name).fold(0xcbf2_9ce4_8422_2325, hash).max(2)
}

/// The number of the member with this peer URL.
pub(crate) fn member_id(peer_url: &str) -> u64 {
    stable_id(b"member-url", peer_url.trim_end_matches('/').as_bytes())
}

impl Peering {
    /// The member of this name, which must be among those named.
    pub fn me(&self, name: &str) -> Result<&Founder> {
        self.initial.iter().find(|f| f.name == name).ok_or_else(|| {
            Error::invalid("initial-cluster", format!("does not name this member, {name:?}"))
                .hint("--name and --initial-cluster NAME=URL,… must agree")
        })
    }

    /// What the configuration says; what a member once was given stays.
    fn computed(&self, name: &str) -> Result<Seat> {
        let member = self.me(name)?.id();
        let mut all: Vec<String> =
            self.initial.iter().map(|f| format!("{}={}", f.name, f.peer_url)).collect();
        all.sort();
        let founded = stable_id(b"cluster", format!("{} {}", self.token, all.join(",")).as_bytes());
        Ok(Seat { member, cluster: if self.existing { 0 } else { founded } })
    }

    pub(crate) fn seat(&self, name: &str, dir: Option<&Path>) -> Result<Seat> {
        let path = dir.map(|d| d.join("member.json"));
        if let Some(p) = path.as_ref().filter(|p| p.exists()) {
            return photon_rt::fs::read_text(p, 1 << 10).and_then(|t| {
                serde_json::from_str(&t)
                    .map_err(|e| Error::internal(format!("{} is damaged", p.display())).why(e))
            });
        }
        let seat = self.computed(name)?;
        keep(seat, dir)?;
        Ok(seat)
    }

    /// Writes down who the member is whose store lies in `dir` and had no peers so far: it has its own number in
    /// the log. Call before anything is made there.
    pub(crate) fn adopt(&self, name: &str, dir: &Path) -> Result<()> {
        if !self.existing && dir.join("log").exists() && !dir.join("member.json").exists() {
            keep(Seat { member: 1, ..self.computed(name)? }, Some(dir))?;
        }
        Ok(())
    }

    /// The number that this member has, whatever its URL says.
    pub(crate) fn seated(&mut self, name: &str, seat: Seat) {
        self.initial.iter_mut().filter(|f| f.name == name).for_each(|f| f.id = Some(seat.member));
    }

    /// Members of the new group; none for one that joins.
    pub(crate) fn founders(&self) -> Vec<NodeId> {
        if self.existing {
            return Vec::new();
        }
        self.initial.iter().map(|f| NodeId(f.id())).collect()
    }

    pub(super) fn records(&self) -> Vec<MemberRecord> {
        let record = |f: &Founder| MemberRecord {
            id: f.id(),
            name: f.name.clone(),
            peer_urls: vec![f.peer_url.clone()],
            ..Default::default()
        };
        self.initial.iter().map(record).collect()
    }
}

/// Writes down in `dir` who the member that will be started there is, in which cluster.
pub fn assign(dir: &Path, member: u64, cluster: u64) -> Result<()> {
    photon_rt::fs::private_dir(dir)?;
    keep(Seat { member, cluster }, Some(dir))
}

pub(super) fn keep(seat: Seat, dir: Option<&Path>) -> Result<()> {
    let Some(dir) = dir else { return Ok(()) };
    let text = serde_json::to_string(&seat).unwrap_or_default();
    photon_rt::fs::write_atomic(&dir.join("member.json"), text.as_bytes(), 0o600)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::PlainTcp;

    #[test]
    fn numbers_follow_from_urls_and_stay() {
        let dir = std::env::temp_dir().join(format!("photon-seat-{:x}", photon_rt::entropy::u64()));
        photon_rt::fs::private_dir(&dir).expect("folder");
        let f = |n: &str| Founder::new(n, format!("http://{n}:2380"));
        let connect = Arc::new(PlainTcp);
        let founders = Peering { token: "t".into(), ..Peering::new(vec![f("a"), f("b")], connect) };
        let a = founders.seat("a", Some(&dir)).expect("seat");
        assert_ne!(a.member, founders.computed("b").expect("seat").member);
        assert_eq!(a.cluster, founders.computed("b").expect("seat").cluster);
        let other = Peering { token: "u".into(), ..founders.clone() };
        assert_ne!(a.cluster, other.computed("a").expect("seat").cluster);
        assert_eq!(other.seat("a", Some(&dir)).expect("kept"), a);
        assert!(founders.seat("c", None).is_err());
        photon_rt::fs::remove_dir_all(&dir).expect("clean");
    }
}
