//! Do all members hold the same? The leader compares digests of keys and history (HashKV) at one revision,
//! every hour by default (etcd's corruption check). Reading everything for it also finds blocks that are
//! damaged and that nobody reads.
//!
//! When more than half of the members agree, whoever holds something else throws its state away (`heal`), by
//! its own comparison with what the majority has. Without such a majority nobody can tell who is right: then
//! the CORRUPT alarm is raised, as in etcd, and the cluster refuses writes until an operator decides.

use super::ChainFire;
use crate::{
    EtcdResult,
    command::Op,
    model::hash::hash_kv,
    store::{DAMAGED, Inner},
    who::Who,
    wire::etcdserverpb::{
        AlarmRequest, AlarmType, HashKvRequest, alarm_request::AlarmAction,
        maintenance_client::MaintenanceClient,
    },
};
use photon_raft::{NodeId, Role};
use photon_rt::time::{Duration, sleep, timeout};
use std::sync::Weak;
use tower::{Service, ServiceExt};

/// Time for a member to read all that it has.
const ANSWER_MAX: Duration = Duration::from_secs(600);

/// Where a member is told that it holds something else than most.
pub(super) const DIFFERS: &str = "/member/differs";

/// What digests say; pure.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// All that were heard hold the same.
    Same,
    /// Most hold this; these do not.
    Wrong(u32, Vec<u64>),
    /// They differ, and none is of most.
    Unknown,
}

fn verdict(members: usize, heard: &[(u64, u32)]) -> Verdict {
    let Some((_, first)) = heard.first() else { return Verdict::Same };
    if heard.iter().all(|(_, h)| h == first) {
        return Verdict::Same;
    }
    let count = |hash: u32| heard.iter().filter(|(_, h)| *h == hash).count();
    let most = heard.iter().map(|(_, h)| *h).find(|h| count(*h) * 2 > members);
    most.map_or(Verdict::Unknown, |m| {
        Verdict::Wrong(m, heard.iter().filter(|(_, h)| *h != m).map(|(id, _)| *id).collect())
    })
}

/// Compares for ever.
pub(crate) async fn watch(inner: Weak<Inner>, every: Duration) {
    while !every.is_zero() {
        sleep(every).await;
        let Some(inner) = inner.upgrade() else { return };
        let me = ChainFire { inner };
        if me.raft().role == Role::Leader
            && let Err(e) = me.compare().await
        {
            tracing::warn!(error = %e, "members were not compared");
        }
    }
}

impl ChainFire {
    async fn compare(&self) -> EtcdResult<()> {
        let Some(asks) = &self.inner.asks else { return Ok(()) };
        let state = self.linearizable().await?;
        let (at, compacted) = (state.revision, state.compacted);
        let (members, me) = (state.rules.members.clone(), self.inner.member_id);
        let own = photon_rt::task::blocking(move || hash_kv(&state.reader(), at)).await?.0;
        let mut heard = vec![(me, own)];
        for m in members.iter().filter(|m| m.id != me) {
            let mut client = MaintenanceClient::new(asks.channel(NodeId(m.id)));
            let asked = client.hash_kv(HashKvRequest { revision: at });
            match timeout(ANSWER_MAX, "a digest", asked).await {
                // At another point of compaction it is another digest.
                Ok(Ok(r)) if r.get_ref().compact_revision == compacted => {
                    heard.push((m.id, r.get_ref().hash));
                }
                Ok(Ok(_)) => {}
                Ok(Err(e)) => tracing::debug!(member = m.id, error = e.message(), "no digest of a member"),
                Err(e) => tracing::debug!(member = m.id, error = %e, "no digest of a member"),
            }
        }
        match verdict(members.len(), &heard) {
            Verdict::Same => tracing::debug!(revision = at, members = heard.len(), "members hold the same"),
            Verdict::Wrong(hash, wrong) => {
                for id in wrong {
                    tracing::error!(
                        member = format!("{id:x}"),
                        revision = at,
                        "a member holds something else than most"
                    );
                    if id == me {
                        self.differs(at, hash).await?;
                    } else {
                        tell(asks.channel(NodeId(id)), at, hash).await;
                    }
                }
            }
            Verdict::Unknown => {
                tracing::error!(
                    revision = at,
                    ?heard,
                    "members hold different things, and none what most do"
                );
                for (id, _) in heard.iter().filter(|(_, h)| *h != own) {
                    let r = AlarmRequest {
                        action: AlarmAction::Activate as i32,
                        member_id: *id,
                        alarm: AlarmType::Corrupt as i32,
                    };
                    self.propose(&Who::cloud(), Op::Alarm(r)).await?;
                }
            }
        }
        Ok(())
    }

    /// Most members hold what has this digest. If this one does not, its state is thrown away at the next start,
    /// which is soon: it ends now.
    pub(super) async fn differs(&self, at: i64, most: u32) -> EtcdResult<()> {
        let state = self.linearizable().await?;
        let own = photon_rt::task::blocking(move || hash_kv(&state.reader(), at)).await?.0;
        if own != most {
            let why = format!("it differs from what most members hold at revision {at}");
            self.mark(DAMAGED, &why).await;
            self.inner.shared.fail(&format!("the state is damaged: {why}"));
        }
        Ok(())
    }
}

/// Lets a member know; when that fails, the next comparison does it.
async fn tell(mut channel: tonic::transport::Channel, at: i64, hash: u32) {
    let request = http::Request::post(format!("{DIFFERS}?revision={at}&hash={hash}"));
    let Ok(request) = request.body(tonic::body::Body::empty()) else { return };
    let told = async { channel.ready().await?.call(request).await };
    if let Ok(Err(e)) = timeout(ANSWER_MAX, "a member", told).await {
        tracing::warn!(error = %e, "the member could not be told");
    }
}

/// Revision and digest of [`DIFFERS`]'s query.
pub(super) fn parse(query: &str) -> Option<(i64, u32)> {
    let (at, hash) = query.strip_prefix("revision=")?.split_once("&hash=")?;
    Some((at.parse().ok()?, hash.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn most_members_are_right_and_a_half_is_not_most() {
        assert_eq!(verdict(3, &[(1, 7), (2, 7), (3, 7)]), Verdict::Same);
        assert_eq!(verdict(3, &[(1, 7)]), Verdict::Same);
        assert_eq!(verdict(3, &[(1, 7), (2, 8), (3, 7)]), Verdict::Wrong(7, vec![2]));
        assert_eq!(verdict(3, &[(1, 8), (2, 7), (3, 7)]), Verdict::Wrong(7, vec![1]), "the leader too");
        assert_eq!(verdict(3, &[(1, 7), (2, 8)]), Verdict::Unknown);
        assert_eq!(verdict(2, &[(1, 7), (2, 8)]), Verdict::Unknown);
        assert_eq!(verdict(5, &[(1, 7), (2, 7), (3, 8)]), Verdict::Unknown, "two of five");
        assert_eq!(parse("revision=5&hash=9"), Some((5, 9)));
        assert_eq!(parse("hash=9"), None);
    }
}
