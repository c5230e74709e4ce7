//! Snapshots on their way to another node: a connection for each, on which both sides speak.
//!
//! After the greeting the sender announces (`length u32, group u64, message`), and the receiver answers (`what
//! u8, number u64`): go on from an offset, or nothing is wanted. Then come pieces (`offset u64, length u32,
//! CRC-32C u32, bytes`), and after the last the receiver's verdict; while it verifies it says that it is busy.
//! All little-endian. A connection that breaks is not mended: Raft asks again, and the next announcement is
//! answered with where to go on.

use super::{GREETING_MAX, PeerError, Peers, Stream, frame, frame::Lane, within};
use crate::{
    GroupId, NodeId,
    snapshot::{Made, Next, Outcome, PIECE_MAX, Refusal, Shipment, piece_sum},
};
use bytes::Bytes;
use photon_rt::{
    task::blocking,
    time::{Duration, sleep},
};
use std::{io, sync::Arc};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::mpsc,
};

/// Most shipments that wait for one node: one for each group that has one.
const QUEUE: usize = 1024;
/// Longest announcement.
const ANNOUNCEMENT_MAX: usize = 64 << 10;
/// Whoever waits for the other side gives up after this long.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// While it verifies, the receiver says so this often.
const BUSY_EVERY: Duration = Duration::from_secs(5);
/// After a shipment that did not arrive.
const PAUSE: Duration = Duration::from_millis(100);

const GO_ON: u8 = 0;
const DONE: u8 = 1;
const BUSY: u8 = 2;
const DAMAGED: u8 = 3;
const REFUSED: u8 = 4;

/// Dropping it ends the connection.
pub(super) struct Carrier(mpsc::Sender<Shipment>);

impl Carrier {
    /// Starts the task.
    pub(super) fn start(peers: &Peers, to: NodeId) -> Carrier {
        let (queue, rx) = mpsc::channel(QUEUE);
        // Called on the log's thread, which is outside the runtime.
        let _inside = peers.inner.runtime.enter();
        peers.inner.tasks.spawn("raft-snapshots", run(peers.clone(), to, rx));
        Carrier(queue)
    }

    /// Without room, the shipment is dropped, which is told.
    pub(super) fn push(&self, shipment: Shipment) {
        let _ = self.0.try_send(shipment);
    }
}

async fn run(peers: Peers, to: NodeId, mut rx: mpsc::Receiver<Shipment>) {
    while let Some(shipment) = rx.recv().await {
        let (group, bytes) = (shipment.group, shipment.size());
        match carry(&peers, to, &shipment).await {
            Ok(outcome) => {
                tracing::info!(group = group.0, to = to.0, bytes, ?outcome, "snapshot carried");
                shipment.ended(outcome);
            }
            Err(e) => {
                tracing::debug!(group = group.0, to = to.0, error = %e, "a snapshot did not arrive");
                shipment.ended(Outcome::Broken);
                sleep(PAUSE).await;
            }
        }
    }
}

async fn carry(peers: &Peers, to: NodeId, shipment: &Shipment) -> io::Result<Outcome> {
    let mut io = peers.connect(to, Lane::Snapshots).await?;
    let file = shipment.file();
    let head = frame::head(shipment.group, &shipment.message);
    write(&mut io, &head).await?;
    write(&mut io, &shipment.message).await?;
    let mut at = match answer(&mut io).await? {
        (GO_ON, from) => from,
        (DONE, _) => return Ok(Outcome::Sent),
        (_, _) => return Err(refused()),
    };
    while at < shipment.size() {
        let Some(store) = peers.store() else { return Err(io::ErrorKind::NotConnected.into()) };
        let len = store.sending().piece();
        let bytes = read(&file, at, len).await?;
        sleep(store.sending().take(photon_rt::time::now(), bytes.len())).await;
        drop(store);
        let mut head = [0; 16];
        head[..8].copy_from_slice(&at.to_le_bytes());
        head[8..12].copy_from_slice(&(bytes.len() as u32).to_le_bytes());
        head[12..].copy_from_slice(&piece_sum(&bytes).to_le_bytes());
        write(&mut io, &head).await?;
        write(&mut io, &bytes).await?;
        at += bytes.len() as u64;
    }
    loop {
        match answer(&mut io).await? {
            (BUSY, _) => {}
            (DONE, _) => return Ok(Outcome::Sent),
            (DAMAGED, _) => return Ok(Outcome::Damaged),
            (_, _) => return Err(refused()),
        }
    }
}

fn refused() -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, "refused")
}

async fn read(file: &Arc<Made>, at: u64, len: usize) -> io::Result<Bytes> {
    let file = file.clone();
    blocking(move || file.read(at, len)).await
}

async fn write(io: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> io::Result<()> {
    within(SILENCE_MAX, "writing to a peer", io.write_all(bytes)).await
}

async fn answer(io: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> io::Result<(u8, u64)> {
    let mut b = [0; 9];
    within(SILENCE_MAX, "a peer's answer", async {
        io.flush().await?;
        io.read_exact(&mut b).await
    })
    .await?;
    Ok((b[0], u64::from_le_bytes(b[1..].try_into().expect("eight bytes"))))
}

async fn say(io: &mut (impl AsyncWrite + Unpin), what: u8, number: u64) -> io::Result<()> {
    let mut b = [what; 9];
    b[1..].copy_from_slice(&number.to_le_bytes());
    within(SILENCE_MAX, "answering a peer", async {
        io.write_all(&b).await?;
        io.flush().await
    })
    .await
}

/// Takes one snapshot of `from`.
pub(super) async fn serve(peers: &Peers, from: NodeId, mut io: impl Stream) -> Result<(), PeerError> {
    let served = take(peers, from, &mut io).await;
    if let Err(PeerError::Snapshot(r)) = &served {
        let what = if matches!(r, Refusal::Damaged(_)) { DAMAGED } else { REFUSED };
        say(&mut io, what, 0).await?;
    }
    served
}

async fn take(peers: &Peers, from: NodeId, io: &mut impl Stream) -> Result<(), PeerError> {
    let (group, message) = within(GREETING_MAX, "a peer's announcement", async {
        let mut head = [0; 12];
        io.read_exact(&mut head).await?;
        let (len, group) = frame::parse(&head);
        if len > ANNOUNCEMENT_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "an announcement is too long"));
        }
        let mut message = vec![0; len];
        io.read_exact(&mut message).await?;
        Ok((group, Bytes::from(message)))
    })
    .await?;
    let Some(store) = peers.store() else { return Ok(()) };
    let next = blocking(move || store.announced(from, group, message)).await?;
    let Next::From { id, mut at, size } = next else {
        return Ok(say(io, DONE, 0).await?);
    };
    say(io, GO_ON, at).await?;
    while at < size {
        at = piece(peers, io, group, id).await?;
    }
    let Some(store) = peers.store() else { return Ok(()) };
    let verdict = blocking(move || store.received(group, id));
    tokio::pin!(verdict);
    loop {
        tokio::select! {
            done = &mut verdict => {
                done?;
                return Ok(say(io, DONE, 0).await?);
            }
            () = sleep(BUSY_EVERY) => say(io, BUSY, 0).await?,
        }
    }
}

async fn piece(peers: &Peers, io: &mut impl Stream, group: GroupId, id: u64) -> Result<u64, PeerError> {
    let (at, bytes, sum) = within(SILENCE_MAX, "a piece of a snapshot", async {
        let mut head = [0; 16];
        io.read_exact(&mut head).await?;
        let at = u64::from_le_bytes(head[..8].try_into().expect("eight bytes"));
        let word = |i: usize| u32::from_le_bytes(head[i..i + 4].try_into().expect("four bytes"));
        let len = word(8) as usize;
        if len > PIECE_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a piece is too long"));
        }
        let mut bytes = vec![0; len];
        io.read_exact(&mut bytes).await?;
        Ok((at, bytes, word(12)))
    })
    .await?;
    let Some(store) = peers.store() else { return Err(io::Error::from(io::ErrorKind::NotConnected).into()) };
    Ok(blocking(move || store.piece(group, id, at, &bytes, sum)).await?)
}
