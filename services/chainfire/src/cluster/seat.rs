//! Who a member is: its number and the cluster's. A founder's follow from the configuration, which all founders
//! share. Later members are numbered when they are added, each anew: one that lost its disk has forgotten
//! what it voted, and must not come back under the old number, whatever its URL.

use super::{
    connect::{Admit, Connect, Sighted},
    join::{ClusterQuestion, Told},
};
use crate::model::members::MemberRecord;
use photon_base::{Code, Error, Result};
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

/// Who this member is: given once, kept in `<data_dir>/member.json` whatever happens to URLs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Seat {
    pub member: u64,
    pub cluster: u64,
    #[serde(default)]
    pub by: By,
    /// For one that joined: members that there were, until its own log tells.
    #[serde(default)]
    pub others: Vec<(u64, String)>,
}

/// How a member came to its cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum By {
    /// With all others, by their configuration.
    #[default]
    Founding,
    /// Added by a member.
    Joining,
    /// Alone, out of what was left of another cluster.
    Recovery,
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

    /// The seat of a founder. `origin` is what its state was restored from, if it was: a cluster that begins
    /// with an old state is a new one, whatever its URLs.
    fn founder(&self, name: &str, origin: &str) -> Result<Seat> {
        let member = self.me(name)?.id();
        let mut all: Vec<String> =
            self.initial.iter().map(|f| format!("{}={}", f.name, f.peer_url)).collect();
        all.sort();
        let founded = format!("{} {}{origin}", self.token, all.join(","));
        let cluster = stable_id(b"cluster", founded.as_bytes());
        Ok(Seat { member, cluster, by: By::Founding, others: Vec::new() })
    }

    /// The seat of this member: as it was kept, else as the configuration says, or as the others do.
    pub(crate) async fn seat(&self, name: &str, dir: Option<&Path>) -> Result<Seat> {
        if let Some(seat) = kept(dir)? {
            return Ok(seat);
        }
        let seat = if self.existing {
            self.ask_for_seat(name).await?
        } else {
            self.founder(name, &dir.map(origin).transpose()?.unwrap_or_default())?
        };
        keep(&seat, dir)?;
        Ok(seat)
    }

    /// Writes down who the member is whose store lies in `dir` and had no peers so far: it has its own number in
    /// the log. Call before anything is made there.
    pub(crate) fn adopt(&self, name: &str, dir: &Path) -> Result<()> {
        if !self.existing && dir.join("log").exists() && !dir.join(FILE).exists() {
            keep(&Seat { member: 1, ..self.founder(name, &origin(dir)?)? }, Some(dir))?;
        }
        Ok(())
    }

    /// The number that this member has, whatever its URL says.
    pub(crate) fn seated(&mut self, name: &str, seat: &Seat) {
        self.initial.iter_mut().filter(|f| f.name == name).for_each(|f| f.id = Some(seat.member));
    }

    /// One that joins was given its number when it was added: the others know it by its URL.
    async fn ask_for_seat(&self, name: &str) -> Result<Seat> {
        let url = &self.me(name)?.peer_url;
        let told = self.ask_others(name, ClusterQuestion::List).await?;
        let here = told.members.iter().find(|m| m.peer_ur_ls.iter().any(|u| same(u, url)));
        let Some(m) = here else {
            return Err(Error::new(Code::Conflict, format!("the cluster has no member at {url}"))
                .why("a member is added before it starts, and gets its number then")
                .hint(format!("etcdctl member add {name} --peer-urls {url}")));
        };
        Ok(seat_in(&told, m.id))
    }

    /// The group's first members; none for one that waits to be made a member.
    pub(crate) fn founders(&self, seat: &Seat) -> Vec<NodeId> {
        match seat.by {
            By::Founding if !self.existing => self.initial.iter().map(|f| NodeId(f.id())).collect(),
            By::Founding | By::Joining => Vec::new(),
            By::Recovery => vec![NodeId(seat.member)],
        }
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
    keep(&Seat { member, cluster, by: By::Joining, others: Vec::new() }, Some(dir))
}

/// The seat of a member in the cluster that told of it.
pub(super) fn seat_in(told: &Told, member: u64) -> Seat {
    let others = told.members.iter().filter(|m| m.id != member);
    let others = others.filter_map(|m| Some((m.id, m.peer_ur_ls.first()?.clone()))).collect();
    Seat { member, cluster: told.cluster, by: By::Joining, others }
}

pub(super) fn same(a: &str, b: &str) -> bool {
    a.trim_end_matches('/') == b.trim_end_matches('/')
}

/// A number that nobody has: for members that are added, and for clusters out of the remains of others.
pub(crate) fn new_id() -> u64 {
    photon_rt::entropy::u64().max(2)
}

const FILE: &str = "member.json";

/// Names what the state was restored from.
pub(crate) const ORIGIN: &str = "origin";

fn origin(dir: &Path) -> Result<String> {
    let path = dir.join(ORIGIN);
    if path.exists() { photon_rt::fs::read_text(&path, 1 << 10) } else { Ok(String::new()) }
}

/// What was kept.
pub(super) fn kept(dir: Option<&Path>) -> Result<Option<Seat>> {
    let Some(path) = dir.map(|d| d.join(FILE)).filter(|p| p.exists()) else { return Ok(None) };
    let text = photon_rt::fs::read_text(&path, 64 << 10)?;
    serde_json::from_str(&text)
        .map(Some)
        .map_err(|e| Error::internal(format!("{} is damaged", path.display())).why(e).hint(super::REJOIN))
}

pub(crate) fn keep(seat: &Seat, dir: Option<&Path>) -> Result<()> {
    let Some(dir) = dir else { return Ok(()) };
    let text = serde_json::to_string(seat).unwrap_or_default();
    photon_rt::fs::write_atomic(&dir.join(FILE), text.as_bytes(), 0o600)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::PlainTcp;

    #[tokio::test]
    async fn numbers_follow_from_urls_and_stay() {
        let dir = std::env::temp_dir().join(format!("photon-seat-{:x}", photon_rt::entropy::u64()));
        photon_rt::fs::private_dir(&dir).expect("folder");
        let f = |n: &str| Founder::new(n, format!("http://{n}:2380"));
        let connect = Arc::new(PlainTcp);
        let founders = Peering { token: "t".into(), ..Peering::new(vec![f("a"), f("b")], connect) };
        let of = |p: &Peering, name: &str| p.founder(name, "").expect("seat");
        let a = founders.seat("a", Some(&dir)).await.expect("seat");
        assert_ne!(a.member, of(&founders, "b").member);
        assert_eq!(a.cluster, of(&founders, "b").cluster);
        let other = Peering { token: "u".into(), ..founders.clone() };
        assert_ne!(a.cluster, of(&other, "a").cluster);
        assert_eq!(other.seat("a", Some(&dir)).await.expect("kept"), a);
        assert!(founders.seat("c", None).await.is_err());
        assert_ne!(founders.founder("a", "restored").expect("seat").cluster, a.cluster);
        // As it was kept before members had ways to come.
        photon_rt::fs::write_atomic(&dir.join(FILE), br#"{"member":7,"cluster":9}"#, 0o600).expect("write");
        let old = founders.seat("a", Some(&dir)).await.expect("kept");
        assert_eq!((old.member, old.cluster, old.by), (7, 9, By::Founding));
        photon_rt::fs::remove_dir_all(&dir).expect("clean");
    }
}
