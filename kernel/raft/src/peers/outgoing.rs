//! One connection to another node: a bounded queue and a task that keeps it connected while there is
//! something to send.

use super::{Peers, Stream, frame, frame::Lane, within};
use crate::{GroupId, NodeId, codec};
use bytes::Bytes;
use photon_rt::time::{Duration, sleep};
use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};
use tokio::{
    io::{AsyncWrite, AsyncWriteExt},
    sync::mpsc,
};

/// Most messages that wait for one node.
const QUEUE_MESSAGES: usize = 4096;
/// Most bytes of them.
const QUEUE_BYTES: usize = 64 << 20;
/// Pause after a connection that could not be made, doubled up to the last.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// A write that does not get on for so long breaks the connection.
const WRITE_MAX: Duration = Duration::from_secs(10);

/// Dropping it ends the connection.
pub(super) struct Outgoing {
    queue: mpsc::Sender<(GroupId, Bytes)>,
    bytes: Arc<AtomicUsize>,
}

impl Outgoing {
    /// Starts the task.
    pub(super) fn start(peers: &Peers, to: NodeId) -> Outgoing {
        let (queue, rx) = mpsc::channel(QUEUE_MESSAGES);
        let bytes = Arc::new(AtomicUsize::new(0));
        let line = Line { peers: peers.clone(), to, rx, bytes: bytes.clone() };
        // Called on the log's thread, which is outside the runtime.
        let _inside = peers.inner.runtime.enter();
        peers.inner.tasks.spawn("raft-peer", line.run());
        Outgoing { queue, bytes }
    }

    /// False when there is no room.
    pub(super) fn push(&self, group: GroupId, message: Bytes) -> bool {
        let len = message.len();
        let waiting = self.bytes.fetch_add(len, Ordering::Relaxed);
        let fits = waiting == 0 || waiting + len <= QUEUE_BYTES;
        if fits && self.queue.try_send((group, message)).is_ok() {
            return true;
        }
        self.bytes.fetch_sub(len, Ordering::Relaxed);
        false
    }
}

struct Line {
    peers: Peers,
    to: NodeId,
    rx: mpsc::Receiver<(GroupId, Bytes)>,
    bytes: Arc<AtomicUsize>,
}

impl Line {
    async fn run(mut self) {
        let mut pause = PAUSE_MIN;
        // A connection is made when there is something to say.
        while let Some(first) = self.rx.recv().await {
            let connected = match self.peers.connect(self.to, Lane::Quick).await {
                Ok(stream) => {
                    pause = PAUSE_MIN;
                    tracing::debug!(to = self.to.0, "connected to a peer");
                    self.send(stream, first).await
                }
                Err(e) => {
                    self.lost(&first);
                    Err(e)
                }
            };
            let Err(e) = connected else { return };
            tracing::debug!(to = self.to.0, error = %e, "no connection to a peer");
            // What waited is old by now, and its loss is told at once.
            while let Ok(m) = self.rx.try_recv() {
                self.lost(&m);
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    fn lost(&self, (group, message): &(GroupId, Bytes)) {
        self.bytes.fetch_sub(message.len(), Ordering::Relaxed);
        if let Some(store) = self.peers.store() {
            store.unreachable(self.to, *group);
        }
    }

    /// A notice came back.
    fn answered(&self, frame: Option<(GroupId, Bytes)>) -> io::Result<()> {
        let wrong = || io::Error::new(io::ErrorKind::InvalidData, "a receiver speaks");
        let (group, message) = frame.ok_or(io::ErrorKind::UnexpectedEof)?;
        if !codec::is_notice(&message) {
            return Err(wrong());
        }
        let Some(store) = self.peers.store() else { return Ok(()) };
        store.deliver(self.to, group, message).map_err(|_| wrong())
    }

    /// Sends until the queue is dropped; an error when the connection broke.
    async fn send(&mut self, io: Box<dyn Stream>, first: (GroupId, Bytes)) -> io::Result<()> {
        let (answers, mut io) = tokio::io::split(io);
        let mut answers = frame::Reader::new(answers);
        let mut next = Some(first);
        loop {
            let (group, message) = match next.take() {
                Some(m) => m,
                None => match self.rx.try_recv() {
                    Ok(m) => m,
                    Err(_) => {
                        within(WRITE_MAX, "writing to a peer", io.flush()).await?;
                        tokio::select! {
                            m = self.rx.recv() => match m {
                                Some(m) => m,
                                None => return Ok(()),
                            },
                            // The other side hardly ever speaks; this is also how its end is noticed.
                            a = answers.next() => {
                                self.answered(a?)?;
                                continue;
                            }
                        }
                    }
                },
            };
            let head = frame::head(group, &message);
            let done = write(&mut io, &head, &message).await;
            if done.is_err() {
                self.lost(&(group, message));
            } else {
                self.bytes.fetch_sub(message.len(), Ordering::Relaxed);
            }
            done?;
        }
    }
}

async fn write(io: &mut (impl AsyncWrite + Unpin), head: &[u8], message: &[u8]) -> io::Result<()> {
    within(WRITE_MAX, "writing to a peer", io.write_all(head)).await?;
    within(WRITE_MAX, "writing to a peer", io.write_all(message)).await
}
