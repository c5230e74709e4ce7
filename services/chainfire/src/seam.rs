//! Stand-in for `photon_raft::Group` until it lands: applies in order, without a log.

use crate::{EtcdError, EtcdResult, machine::StateMachine, model::Answer};
use bytes::Bytes;
use photon_raft::{Command, Machine, Position};
use tokio::sync::{mpsc, oneshot};

type Proposal = (Bytes, oneshot::Sender<EtcdResult<Answer>>);

#[derive(Clone)]
pub struct Group {
    tx: mpsc::Sender<Proposal>,
}

impl Group {
    pub fn open(mut machine: StateMachine) -> EtcdResult<Group> {
        let (tx, mut rx) = mpsc::channel::<Proposal>(1024);
        photon_rt::task::thread("chainfire-seam", move || {
            let mut at = machine.applied();
            let mut batch = Vec::new();
            while rx.blocking_recv_many(&mut batch, 256) > 0 {
                let mut commands = Vec::new();
                let mut waiting = Vec::new();
                for (data, reply) in batch.drain(..) {
                    at = Position { index: at.index + 1, term: 1 };
                    commands.push(Command { position: at, data });
                    waiting.push(reply);
                }
                let Ok(replies) = machine.apply(&commands) else { return };
                let Ok(_) = machine.checkpoint() else { return };
                for (w, r) in waiting.into_iter().zip(replies) {
                    let _ = w.send(r);
                }
            }
        })
        .map_err(|e| EtcdError::Internal(e.to_string()))?;
        Ok(Group { tx })
    }

    pub async fn propose(&self, data: Bytes) -> Result<EtcdResult<Answer>, EtcdError> {
        let (tx, rx) = oneshot::channel();
        self.tx.send((data, tx)).await.map_err(|_| EtcdError::Stopped)?;
        rx.await.map_err(|_| EtcdError::Stopped)
    }

    pub async fn read_index(&self) -> EtcdResult<()> {
        Ok(())
    }
}
