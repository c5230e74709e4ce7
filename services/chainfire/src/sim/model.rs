//! What a store does, as plainly as it can be said: one map, all changes by revision, nothing forgotten. It
//! knows the commands that the simulation proposes, no more.

use crate::{
    EtcdError, EtcdResult,
    command::{Command, Op},
    model::Answer,
    wire::etcdserverpb::{
        DeleteRangeRequest, PutRequest, TxnRequest, compare::TargetUnion, request_op::Request,
    },
};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Item {
    pub create: i64,
    pub modified: i64,
    pub version: i64,
    pub value: Bytes,
    pub lease: i64,
}

/// A change: key, and the value or that it was deleted.
pub type Event = (Bytes, Option<Bytes>);

pub struct Model {
    pub revision: i64,
    pub compacted: i64,
    pub keys: BTreeMap<Bytes, Item>,
    pub leases: BTreeSet<i64>,
    /// By revision, in order of keys.
    pub events: BTreeMap<i64, Vec<Event>>,
}

/// What can be compared of an answer.
pub fn brief(r: &EtcdResult<Answer>) -> String {
    let revision =
        |h: &Option<crate::wire::etcdserverpb::ResponseHeader>| h.as_ref().map_or(0, |h| h.revision);
    match r {
        Ok(Answer::Put(a)) => format!("put at {}", revision(&a.header)),
        Ok(Answer::DeleteRange(a)) => format!("deleted {} at {}", a.deleted, revision(&a.header)),
        Ok(Answer::Txn(a)) => format!("txn {}", a.succeeded),
        Ok(Answer::Revision(r)) => format!("at {r}"),
        Ok(Answer::LeaseGrant { revision, .. }) => format!("lease at {revision}"),
        Ok(Answer::Alarms(_)) => "alarms".into(),
        Err(e) => format!("{e:?}"),
    }
}

impl Model {
    pub fn new() -> Model {
        let (keys, leases, events) = (BTreeMap::new(), BTreeSet::new(), BTreeMap::new());
        Model { revision: 1, compacted: -1, keys, leases, events }
    }

    /// Applies a command of the log; what is to be answered, briefly.
    pub fn apply(&mut self, data: Bytes) -> String {
        let command = Command::from_bytes(data).expect("ours");
        self.step(command.op.expect("something")).unwrap_or_else(|e| format!("{e:?}"))
    }

    fn step(&mut self, op: Op) -> EtcdResult<String> {
        let at = self.revision + 1;
        Ok(match op {
            Op::Put(p) => {
                self.put(at, &p)?;
                self.revision = at;
                format!("put at {at}")
            }
            Op::DeleteRange(d) => {
                let gone = self.delete(at, &d);
                self.revision += i64::from(gone > 0);
                format!("deleted {gone} at {}", self.revision)
            }
            Op::Txn(t) => format!("txn {}", self.txn(at, t)),
            Op::LeaseGrant(g) if self.leases.contains(&g.id) => return Err(EtcdError::LeaseExists),
            Op::LeaseGrant(g) => {
                self.leases.insert(g.id);
                format!("lease at {}", self.revision)
            }
            Op::LeaseRevoke(r) if !self.leases.remove(&r.id) => return Err(EtcdError::LeaseNotFound),
            Op::LeaseRevoke(r) => {
                let held: Vec<Bytes> =
                    self.keys.iter().filter(|(_, i)| i.lease == r.id).map(|(k, _)| k.clone()).collect();
                self.revision += i64::from(!held.is_empty());
                held.into_iter().for_each(|k| self.remove(at, k));
                format!("at {}", self.revision)
            }
            Op::Compact(c) if c.revision <= self.compacted => return Err(EtcdError::Compacted),
            Op::Compact(c) if c.revision > self.revision => return Err(EtcdError::FutureRevision),
            Op::Compact(c) => {
                self.compacted = c.revision;
                format!("at {}", self.revision)
            }
            op => panic!("the simulation does not propose {op:?}"),
        })
    }

    fn txn(&mut self, at: i64, t: TxnRequest) -> bool {
        let holds = t.compare.iter().all(|c| {
            let Some(TargetUnion::ModRevision(wanted)) = c.target_union else { panic!("only these") };
            self.keys.get(&c.key).map_or(0, |i| i.modified) == wanted
        });
        let mut wrote = false;
        for op in if holds { t.success } else { t.failure } {
            wrote |= match op.request {
                Some(Request::RequestPut(p)) => self.put(at, &p).is_ok(),
                Some(Request::RequestDeleteRange(d)) => self.delete(at, &d) > 0,
                other => panic!("only puts and deletions: {other:?}"),
            };
        }
        self.revision += i64::from(wrote);
        holds
    }

    fn put(&mut self, at: i64, p: &PutRequest) -> EtcdResult<()> {
        if p.lease != 0 && !self.leases.contains(&p.lease) {
            return Err(EtcdError::LeaseNotFound);
        }
        let i = self.keys.entry(p.key.clone()).or_default();
        if i.version == 0 {
            i.create = at;
        }
        (i.modified, i.version, i.value, i.lease) = (at, i.version + 1, p.value.clone(), p.lease);
        self.happened(at, p.key.clone(), Some(p.value.clone()));
        Ok(())
    }

    fn delete(&mut self, at: i64, d: &DeleteRangeRequest) -> usize {
        let span = crate::Span::of(&d.key, &d.range_end);
        let gone: Vec<Bytes> = self.keys.keys().filter(|k| span.contains(k)).cloned().collect();
        gone.iter().for_each(|k| self.remove(at, k.clone()));
        gone.len()
    }

    fn remove(&mut self, at: i64, key: Bytes) {
        self.keys.remove(&key);
        self.happened(at, key, None);
    }

    fn happened(&mut self, at: i64, key: Bytes, value: Option<Bytes>) {
        let list = self.events.entry(at).or_default();
        list.push((key, value));
        list.sort();
    }
}
