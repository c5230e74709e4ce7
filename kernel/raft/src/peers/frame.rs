//! Bytes on a connection between nodes.
//!
//! The sender greets with `magic, version u32, cluster u64, from u64, to u64`, the receiver answers with one
//! byte (0: welcome, else why not). After the magic `PHPR` follow frames of `length u32, group u64, message`, and
//! the receiver says nothing but notices (`codec::Notice`), in frames too; after `PHPS` a snapshot follows (`super::snapshots`). All little-endian. The length is
//! that of the message.

use crate::{GroupId, NodeId, codec::MAX_ENTRY_BYTES};
use bytes::{Bytes, BytesMut};
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

const VERSION: u32 = 2;
/// Longest message: one entry of the greatest size, with what is said about it.
pub(super) const MESSAGE_MAX: usize = MAX_ENTRY_BYTES + (2 << 20);
/// Memory is taken as the bytes arrive, this much at a time.
const STEP: usize = 1 << 20;

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    /// Everything small.
    Quick,
    /// One snapshot.
    Snapshots,
}

impl Lane {
    fn magic(self) -> &'static [u8; 4] {
        match self {
            Lane::Quick => b"PHPR",
            Lane::Snapshots => b"PHPS",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hello {
    pub(super) lane: Lane,
    pub(super) cluster: u64,
    pub(super) from: NodeId,
    pub(super) to: NodeId,
}

/// Why a greeting is not answered with a welcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    Cluster = 1,
    Node = 2,
    Identity = 3,
}

impl Refusal {
    pub(super) fn text(self) -> &'static str {
        match self {
            Refusal::Cluster => "it is of another cluster",
            Refusal::Node => "another node has this address",
            Refusal::Identity => "the sender may not speak for the node that it names",
        }
    }
}

fn invalid(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

impl Hello {
    pub(super) fn encode(self) -> [u8; 32] {
        let mut out = [0; 32];
        out[..4].copy_from_slice(self.lane.magic());
        out[4..8].copy_from_slice(&VERSION.to_le_bytes());
        for (at, v) in [(8, self.cluster), (16, self.from.0), (24, self.to.0)] {
            out[at..at + 8].copy_from_slice(&v.to_le_bytes());
        }
        out
    }

    pub(super) async fn read(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Hello> {
        let mut b = [0; 32];
        from.read_exact(&mut b).await?;
        let lane = [Lane::Quick, Lane::Snapshots].into_iter().find(|l| b[..4] == *l.magic());
        let Some(lane) = lane.filter(|_| b[4..8] == VERSION.to_le_bytes()) else {
            return Err(invalid("not the greeting of a peer of this version"));
        };
        let at = |i: usize| u64::from_le_bytes(b[i..i + 8].try_into().expect("eight bytes"));
        Ok(Hello { lane, cluster: at(8), from: NodeId(at(16)), to: NodeId(at(24)) })
    }

    pub(super) async fn answer(
        to: &mut (impl AsyncWrite + Unpin),
        refusal: Option<Refusal>,
    ) -> io::Result<()> {
        to.write_all(&[refusal.map_or(0, |r| r as u8)]).await?;
        to.flush().await
    }

    /// Greets, and waits for the welcome.
    pub(super) async fn greet(self, io: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> io::Result<()> {
        io.write_all(&self.encode()).await?;
        io.flush().await?;
        let why = match io.read_u8().await? {
            0 => return Ok(()),
            1 => Refusal::Cluster.text(),
            2 => Refusal::Node.text(),
            3 => Refusal::Identity.text(),
            _ => "for a reason that this version does not know",
        };
        Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("refused: {why}")))
    }
}

/// What stands before a message.
pub(super) fn head(group: GroupId, message: &[u8]) -> [u8; 12] {
    let mut out = [0; 12];
    out[..4].copy_from_slice(&(message.len() as u32).to_le_bytes());
    out[4..].copy_from_slice(&group.0.to_le_bytes());
    out
}

/// Length and group out of a [`head`].
pub(super) fn parse(head: &[u8; 12]) -> (usize, GroupId) {
    let len = u32::from_le_bytes(head[..4].try_into().expect("four bytes"));
    (len as usize, GroupId(u64::from_le_bytes(head[4..].try_into().expect("eight bytes"))))
}

pub(super) struct Reader<R> {
    io: R,
    buffer: BytesMut,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    pub(super) fn new(io: R) -> Self {
        Reader { io, buffer: BytesMut::new() }
    }

    /// The next message; none at the end of the connection between two of them. May be given up and called
    /// again: nothing is taken before all is there.
    pub(super) async fn next(&mut self) -> io::Result<Option<(GroupId, Bytes)>> {
        if !self.fill(12).await? {
            return if self.buffer.is_empty() { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
        }
        let (len, group) = parse(self.buffer[..12].try_into().expect("twelve bytes"));
        if len > MESSAGE_MAX {
            return Err(invalid(format!("a message of {len} bytes is too long")));
        }
        if !self.fill(12 + len).await? {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let _ = self.buffer.split_to(12);
        Ok(Some((group, self.buffer.split_to(len).freeze())))
    }

    /// Reads until `len` bytes are there; false at the end of the stream.
    async fn fill(&mut self, len: usize) -> io::Result<bool> {
        while self.buffer.len() < len {
            self.buffer.reserve((len - self.buffer.len()).clamp(4 << 10, STEP));
            if self.io.read_buf(&mut self.buffer).await? == 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
