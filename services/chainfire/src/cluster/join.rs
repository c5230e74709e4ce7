//! Becoming a member of a cluster that there is, again where need be: what one that is no member yet asks of
//! the others, on their peer URLs.

use super::{
    ask,
    seat::{Peering, keep, kept, same, seat_in},
};
use crate::wire::etcdserverpb::{
    Member, MemberAddRequest, MemberListRequest, MemberRemoveRequest, cluster_client::ClusterClient,
};
use photon_base::{Code, Error, Result};
use photon_kv::engine::{FjallEngine, FjallOptions};
use photon_rt::time::{Duration, now, sleep, timeout};
use std::path::Path;

/// What the others are asked.
#[derive(Clone, Debug)]
pub(super) enum ClusterQuestion {
    List,
    Remove(u64),
    Add(String),
}

/// What they told.
pub(super) struct Told {
    pub cluster: u64,
    pub members: Vec<Member>,
    /// Of one that was added.
    pub added: u64,
}

/// How long the others are asked before it is given up.
const ASK_MAX: Duration = Duration::from_secs(30);

/// Time for one of them to answer.
const ANSWER_MAX: Duration = Duration::from_secs(10);

impl Peering {
    /// Asks one after the other until one answers.
    pub(super) async fn ask_others(&self, name: &str, question: ClusterQuestion) -> Result<Told> {
        let me = self.me(name)?;
        let give_up = now() + ASK_MAX;
        let mut why = "the initial cluster names no other member".to_string();
        loop {
            for other in self.initial.iter().filter(|f| f.name != name && !same(&f.peer_url, &me.peer_url)) {
                let client =
                    ClusterClient::new(ask::channel_to(self.connect.clone(), other.peer_url.clone()));
                match timeout(ANSWER_MAX, "its answer", put(client, &question)).await {
                    Ok(Ok(told)) if told.cluster != 0 => return Ok(told),
                    Ok(Ok(_)) => why = format!("{}: knows no cluster yet", other.peer_url),
                    Ok(Err(e)) => why = format!("{}: {}", other.peer_url, e.message()),
                    Err(e) => why = format!("{}: {e}", other.peer_url),
                }
            }
            if self.initial.len() < 2 || now() > give_up {
                return Err(Error::unavailable("no member of the cluster answers")
                    .why(why)
                    .hint("--initial-cluster must name members that run, by their peer URLs"));
            }
            sleep(Duration::from_millis(200)).await;
        }
    }
}

async fn put(
    mut client: ClusterClient<tonic::transport::Channel>,
    question: &ClusterQuestion,
) -> std::result::Result<Told, tonic::Status> {
    let (header, members, added) = match question {
        ClusterQuestion::List => {
            let r = client.member_list(MemberListRequest { linearizable: true }).await?.into_inner();
            (r.header, r.members, None)
        }
        ClusterQuestion::Remove(id) => {
            let r = client.member_remove(MemberRemoveRequest { id: *id }).await?.into_inner();
            (r.header, r.members, None)
        }
        ClusterQuestion::Add(url) => {
            let add = MemberAddRequest { peer_ur_ls: vec![url.clone()], is_learner: false };
            let r = client.member_add(add).await?.into_inner();
            (r.header, r.members, r.member)
        }
    };
    let cluster = header.map_or(0, |h| h.cluster_id);
    Ok(Told { cluster, members, added: added.map_or(0, |m| m.id) })
}

/// What [`rejoin`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rejoined {
    /// The number that it had, if it was still a member.
    pub before: Option<u64>,
    /// Its number from now on.
    pub member: u64,
    /// The cluster's.
    pub cluster: u64,
}

/// Gives a member whose log is damaged or gone a new place in its cluster, through the others: its old number
/// is removed, what it has on disk is wiped, and it is added under a new number. When it is started then, it
/// learns all from the others and votes when it has caught up. It must not run meanwhile.
///
/// Why not go on with what is left: it voted and acknowledged entries, which the log held; a member that
/// forgot that could help to elect a leader without them (Ongaro's thesis, section 3.8 and 11.7.3).
///
/// Can be repeated when it was interrupted.
pub async fn rejoin(dir: &Path, name: &str, peering: &Peering) -> Result<Rejoined> {
    let url = peering.me(name)?.peer_url.clone();
    let state = dir.join("state");
    let running = photon_rt::task::blocking(move || {
        state.exists()
            && FjallEngine::open(&state, &[], FjallOptions::default()).is_err_and(|e| e.is_locked())
    });
    if running.await {
        return Err(Error::new(Code::Conflict, "this member runs").hint("stop it first"));
    }
    let told = peering.ask_others(name, ClusterQuestion::List).await?;
    let here = told.members.iter().find(|m| m.peer_ur_ls.iter().any(|u| same(u, &url)));
    let old = kept(Some(dir)).unwrap_or_default().map(|s| s.member);
    let used = dir.join("log").exists() || dir.join("state").exists();
    // A number that was given and never used is of a run that was interrupted.
    let fresh = here.filter(|m| m.name.is_empty() && !used && old != Some(m.id)).map(|m| m.id);
    let before = here.filter(|m| Some(m.id) != fresh).map(|m| m.id);
    if let Some(id) = before {
        peering.ask_others(name, ClusterQuestion::Remove(id)).await?;
    }
    wipe(dir)?;
    let (told, member) = match fresh {
        Some(id) => (told, id),
        None => {
            let told = peering.ask_others(name, ClusterQuestion::Add(url)).await?;
            let id = told.added;
            (told, id)
        }
    };
    keep(&seat_in(&told, member), Some(dir))?;
    Ok(Rejoined { before, member, cluster: told.cluster })
}

fn wipe(dir: &Path) -> Result<()> {
    let failed = |e| Error::internal(format!("{} cannot be wiped", dir.display())).why(e);
    for name in ["log", "state"] {
        let path = dir.join(name);
        if path.exists() {
            photon_rt::fs::remove_dir_all(path).map_err(failed)?;
        }
    }
    for name in ["member.json", super::seat::ORIGIN, crate::store::DAMAGED] {
        let path = dir.join(name);
        if path.exists() {
            photon_rt::fs::remove_file(path).map_err(failed)?;
        }
    }
    photon_rt::fs::private_dir(dir)
}
