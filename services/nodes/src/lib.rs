//! The machines of a cloud: how one joins, is emptied, goes; what the others see of it.
//!
//! Rooms: [`token`] (what lets a machine in), [`enrol`] (the cloud's side of joining), [`join`] (the machine's
//! side), [`control`] (makes the store's members follow the nodes; once per cluster), [`agent`] (each node's record
//! of itself), [`neighbours`] (gossip: who answers, and where).
//!
//! A node is a record. Joining makes it, in the commit that uses the token up; the controller then adds the member
//! that the record names, and removes it when the record is deleted. So whoever dies in between, the next one goes on
//! from the record.
//!
//! Every node is trusted with the cloud: it holds all records, and the keys that sign certificates and tokens. What
//! tells nodes apart from everybody else is the join token and, afterwards, a certificate for `host/NAME`.

pub mod agent;
pub mod control;
pub mod enrol;
pub mod join;
pub mod neighbours;
pub mod token;

use async_trait::async_trait;
use photon_base::{Name, Result};
use std::sync::Arc;

/// A member of the store, as one of them sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its number.
    pub id: u64,
    /// Its node's name.
    pub name: String,
    /// Where the others reach it.
    pub peer_url: String,
    /// It votes.
    pub votes: bool,
    /// It leads.
    pub leads: bool,
    /// Entries that it lacks; known to the leader alone.
    pub behind: Option<u64>,
}

/// The members of this node's store.
#[async_trait]
pub trait Members: Send + Sync + 'static {
    /// All of them, as far as is known here.
    fn all(&self) -> Vec<Member>;
    /// The number of the cluster that they make.
    fn cluster(&self) -> u64;
    /// This node's.
    fn me(&self) -> u64;
    /// Adds one, which votes once it has caught up if `votes`. Adding it again changes nothing.
    async fn admit(&self, id: u64, name: &Name, peer_url: &str, votes: bool) -> Result<()>;
    /// Lets one vote that did not.
    async fn enfranchise(&self, id: u64) -> Result<()>;
    /// Removes one; true when it is gone.
    async fn dismiss(&self, id: u64) -> Result<bool>;
    /// Gives leadership away if it is here.
    fn hand_over(&self) -> bool;
}

/// What is heard of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sight {
    /// It answers and serves.
    Alive,
    /// It answers and does not serve yet.
    Starting,
    /// It has not answered for a moment.
    Suspect,
    /// It does not answer.
    Down,
    /// Nothing was ever heard of it here.
    Unknown,
}

/// Looks for a node.
pub type Look = Arc<dyn Fn(&Name) -> Sight + Send + Sync>;

/// Members beyond this many are learners: they have everything, and do not vote. More voters make every write
/// wait for more disks and protect from nothing that five do not.
pub const VOTERS_MAX: usize = 5;

/// Makes a node's store a member, with a vote while there is room for one more.
pub(crate) async fn admit(members: &dyn Members, id: u64, name: &Name, peer_url: &str) -> Result<()> {
    let voters = members.all().iter().filter(|m| m.votes).count();
    members.admit(id, name, peer_url, voters < VOTERS_MAX).await
}
