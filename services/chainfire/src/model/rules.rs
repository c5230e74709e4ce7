//! What the store itself follows: raised alarms, who shall be a member, and users with their roles. One
//! record, kept in memory by the machine and with every published state.

use super::{auth::Auth, layout::*};
use crate::{
    EtcdError, EtcdResult,
    command::Op,
    wire::etcdserverpb::{
        AlarmMember, AlarmRequest, AlarmType, TxnRequest, alarm_request::AlarmAction, request_op::Request,
    },
};
use photon_kv::engine::View;
use prost::Message;

/// Most alarms: a member has at most one of each type, and strangers may be named.
const MAX_ALARMS: usize = 1_000;

/// The rules in force.
#[derive(Clone, PartialEq, Message)]
pub struct Rules {
    /// Raised alarms, ordered by type and member.
    #[prost(message, repeated, tag = "1")]
    pub alarms: Vec<AlarmMember>,
    /// Members that shall be, ordered by number; none in a cluster without peers.
    #[prost(message, repeated, tag = "2")]
    pub members: Vec<super::members::MemberRecord>,
    /// Users and roles.
    #[prost(message, required, tag = "3")]
    pub auth: Auth,
}

impl Rules {
    /// What a state holds.
    pub fn load(view: &dyn View) -> EtcdResult<Rules> {
        let bad = |e| EtcdError::Internal(format!("the stored rules: {e}"));
        view.get(META, RULES)?.map_or_else(|| Ok(Rules::default()), |b| Rules::decode(b).map_err(bad))
    }

    fn raised(&self, kind: AlarmType) -> bool {
        self.alarms.iter().any(|a| a.alarm == kind as i32)
    }

    /// Alarms of a kind; none names all.
    pub fn alarms(&self, kind: i32) -> Vec<AlarmMember> {
        let all = kind == AlarmType::None as i32;
        self.alarms.iter().filter(|a| all || a.alarm == kind).copied().collect()
    }

    /// Refuses what an alarm forbids: without space nothing that grows, in a corrupt cluster no change.
    pub fn permit(&self, op: &Op) -> EtcdResult<()> {
        if self.alarms.is_empty() {
            return Ok(());
        }
        if self.raised(AlarmType::Corrupt)
            && !matches!(op, Op::Alarm(_) | Op::Auth(_) | Op::Members(_) | Op::LeaseCheckpoint(_))
        {
            return Err(EtcdError::Corrupt);
        }
        if grows(op) && self.raised(AlarmType::Nospace) { Err(EtcdError::NoSpace) } else { Ok(()) }
    }

    /// Carries out an alarm request; answers the alarms that it is about, and whether anything changed.
    pub fn alarm(&mut self, r: &AlarmRequest) -> EtcdResult<(Vec<AlarmMember>, bool)> {
        let member = AlarmMember { member_id: r.member_id, alarm: r.alarm };
        let at = self.alarms.binary_search_by_key(&(r.alarm, r.member_id), |a| (a.alarm, a.member_id));
        match (AlarmAction::try_from(r.action), at) {
            (Ok(AlarmAction::Get) | Err(_), _) => Ok((self.alarms(r.alarm), false)),
            (Ok(AlarmAction::Activate), Ok(_)) => Ok((vec![member], false)),
            (Ok(AlarmAction::Activate), Err(_)) if self.alarms.len() >= MAX_ALARMS => {
                Err(EtcdError::TooManyRequests)
            }
            (Ok(AlarmAction::Activate), Err(i)) => {
                self.alarms.insert(i, member);
                Ok((vec![member], true))
            }
            (Ok(AlarmAction::Deactivate), Ok(i)) => {
                self.alarms.remove(i);
                Ok((vec![member], true))
            }
            (Ok(AlarmAction::Deactivate), Err(_)) => Ok((Vec::new(), false)),
        }
    }
}

/// True for what needs room: without space it is refused.
pub fn grows(op: &Op) -> bool {
    match op {
        Op::Put(_) | Op::LeaseGrant(_) => true,
        Op::Txn(r) => puts(r),
        Op::Commit(r) => r.writes.iter().any(|w| w.value.is_some()),
        _ => false,
    }
}

/// True when some branch of a transaction puts.
fn puts(r: &TxnRequest) -> bool {
    r.success.iter().chain(&r.failure).any(|op| match &op.request {
        Some(Request::RequestPut(_)) => true,
        Some(Request::RequestTxn(t)) => puts(t),
        _ => false,
    })
}
