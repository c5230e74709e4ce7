//! Who shall belong to the cluster, as everybody agreed on in the log. The leader makes the Raft group's
//! members so, step by step (`crate::cluster`): so a member can be added or removed through any other, and
//! a request is done when its wish is durable.

use super::rules::Rules;
use crate::{EtcdError, EtcdResult};
use prost::Message;

/// Most members, learners included. Seven voters are many already; learners are read replicas.
const MAX_MEMBERS: usize = 64;
/// Longest name or URL, and most URLs of a kind.
const MAX_TEXT: usize = 256;
const MAX_URLS: usize = 16;

/// One member.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct MemberRecord {
    /// Its number, in etcd's interface and in Raft; never given to another member.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// Empty until it has started.
    #[prost(string, tag = "2")]
    pub name: String,
    /// Where members reach it.
    #[prost(string, repeated, tag = "3")]
    pub peer_urls: Vec<String>,
    /// Where clients reach it.
    #[prost(string, repeated, tag = "4")]
    pub client_urls: Vec<String>,
    /// It shall not vote. Others vote as soon as they have caught up.
    #[prost(bool, tag = "5")]
    pub learner: bool,
}

/// A change of the members that shall be.
#[derive(Clone, PartialEq, Message)]
pub struct MemberChange {
    /// A [`MemberVerb`].
    #[prost(enumeration = "MemberVerb", tag = "1")]
    pub verb: i32,
    /// About whom.
    #[prost(message, repeated, tag = "2")]
    pub members: Vec<MemberRecord>,
}

/// What a change does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
pub enum MemberVerb {
    /// Writes the first members down, if nobody has.
    Found = 0,
    /// Adds a member.
    Add = 1,
    /// Removes one.
    Remove = 2,
    /// Changes where members reach one.
    Update = 3,
    /// Lets a learner vote.
    Promote = 4,
    /// A member that has started says its name and where clients reach it.
    Publish = 5,
}

fn bounded(m: &MemberRecord) -> bool {
    let urls = |u: &[String]| u.len() <= MAX_URLS && u.iter().all(|u| u.len() <= MAX_TEXT);
    m.id != 0 && m.name.len() <= MAX_TEXT && urls(&m.peer_urls) && urls(&m.client_urls)
}

impl Rules {
    /// The member of this number.
    pub fn member(&self, id: u64) -> Option<&MemberRecord> {
        self.members.iter().find(|m| m.id == id)
    }

    fn member_mut(&mut self, id: u64) -> EtcdResult<&mut MemberRecord> {
        self.members.iter_mut().find(|m| m.id == id).ok_or(EtcdError::MemberNotFound)
    }

    /// Carries a change out. True when anything changed.
    pub fn change_members(&mut self, r: &MemberChange) -> EtcdResult<bool> {
        let unknown = || EtcdError::Unsupported("a change of the members that is not known".into());
        if r.members.iter().any(|m| !bounded(m)) || r.members.len() > MAX_MEMBERS {
            return Err(EtcdError::Unsupported("a member's name or URLs are too long".into()));
        }
        let verb = MemberVerb::try_from(r.verb).map_err(|_| unknown())?;
        if verb == MemberVerb::Found {
            let first = self.members.is_empty() && !r.members.is_empty();
            if first {
                self.members.clone_from(&r.members);
                self.members.sort_by_key(|m| m.id);
                self.members.dedup_by_key(|m| m.id);
            }
            return Ok(first);
        }
        let [m] = &r.members[..] else { return Err(unknown()) };
        if self.members.is_empty() {
            return Err(EtcdError::TooFewMembers); // the founders would be forgotten
        }
        let taken = |other: &&MemberRecord| other.peer_urls.iter().any(|u| m.peer_urls.contains(u));
        match verb {
            MemberVerb::Found => {}
            MemberVerb::Add => {
                if self.members.iter().any(|o| taken(&o)) {
                    return Err(EtcdError::PeerUrlExists);
                }
                if self.member(m.id).is_some() {
                    return Err(EtcdError::MemberIdExists);
                }
                if self.members.len() >= MAX_MEMBERS {
                    return Err(EtcdError::TooManyRequests);
                }
                self.members.push(m.clone());
                self.members.sort_by_key(|m| m.id);
            }
            MemberVerb::Remove => {
                self.member_mut(m.id)?;
                if !self.members.iter().any(|o| o.id != m.id && !o.learner) {
                    return Err(EtcdError::TooFewMembers);
                }
                self.members.retain(|o| o.id != m.id);
                self.alarms.retain(|a| a.member_id != m.id); // nobody would take them back
            }
            MemberVerb::Update => {
                if self.members.iter().any(|o| o.id != m.id && taken(&o)) {
                    return Err(EtcdError::PeerUrlExists);
                }
                self.member_mut(m.id)?.peer_urls.clone_from(&m.peer_urls);
            }
            MemberVerb::Promote => {
                let known = self.member_mut(m.id)?;
                if !known.learner {
                    return Err(EtcdError::MemberNotLearner);
                }
                known.learner = false;
            }
            MemberVerb::Publish => {
                let known = self.member_mut(m.id)?;
                if known.name == m.name && known.client_urls == m.client_urls {
                    return Ok(false);
                }
                known.name.clone_from(&m.name);
                known.client_urls.clone_from(&m.client_urls);
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: u64, learner: bool) -> MemberRecord {
        MemberRecord { id, peer_urls: vec![format!("http://p{id}")], learner, ..Default::default() }
    }

    fn change(verb: MemberVerb, members: Vec<MemberRecord>) -> MemberChange {
        MemberChange { verb: verb as i32, members }
    }

    #[test]
    fn members_come_and_go_as_in_etcd() {
        use MemberVerb::*;
        let mut r = Rules::default();
        let early = r.change_members(&change(Add, vec![member(3, false)]));
        assert_eq!(early, Err(EtcdError::TooFewMembers), "before the founders are known");
        let founders = vec![member(2, false), member(1, false)];
        assert_eq!(r.change_members(&change(Found, founders)), Ok(true));
        assert_eq!(r.change_members(&change(Found, vec![member(9, false)])), Ok(false), "only once");
        assert_eq!(r.members.iter().map(|m| m.id).collect::<Vec<_>>(), [1, 2]);
        let same_url = MemberRecord { id: 3, ..member(1, false) };
        assert_eq!(r.change_members(&change(Add, vec![same_url])), Err(EtcdError::PeerUrlExists));
        assert_eq!(r.change_members(&change(Add, vec![member(3, true)])), Ok(true));
        let again = MemberRecord { peer_urls: vec!["http://other".into()], ..member(3, true) };
        assert_eq!(r.change_members(&change(Add, vec![again])), Err(EtcdError::MemberIdExists));
        let taken = MemberRecord { id: 3, ..member(2, true) };
        assert_eq!(r.change_members(&change(Update, vec![taken])), Err(EtcdError::PeerUrlExists));
        assert_eq!(
            r.change_members(&change(Promote, vec![member(1, false)])),
            Err(EtcdError::MemberNotLearner)
        );
        assert_eq!(
            r.change_members(&change(Promote, vec![member(8, false)])),
            Err(EtcdError::MemberNotFound)
        );
        assert_eq!(r.change_members(&change(Remove, vec![member(1, false)])), Ok(true));
        let last = r.change_members(&change(Remove, vec![member(2, false)]));
        assert_eq!(last, Err(EtcdError::TooFewMembers), "a learner alone is no cluster");
        assert_eq!(r.change_members(&change(Promote, vec![member(3, false)])), Ok(true));
        assert_eq!(r.change_members(&change(Remove, vec![member(2, false)])), Ok(true));
        let named = MemberRecord { name: "c".into(), ..member(3, false) };
        assert_eq!(r.change_members(&change(Publish, vec![named.clone()])), Ok(true));
        assert_eq!(r.change_members(&change(Publish, vec![named])), Ok(false));
        assert_eq!(r.member(3).map(|m| m.name.as_str()), Some("c"));
        let long = MemberRecord { name: "x".repeat(300), ..member(4, false) };
        assert!(matches!(r.change_members(&change(Add, vec![long])), Err(EtcdError::Unsupported(_))));
        assert!(r.change_members(&MemberChange { verb: 77, members: vec![member(5, false)] }).is_err());
        assert!(r.change_members(&change(Add, vec![])).is_err());
    }
}
