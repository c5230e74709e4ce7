//! What nodes tell each other beside Raft: whether one is a member still. Nobody sends anything to a node that
//! was removed, so it has to ask.

use super::{CodecError, Reader, put_u64};
use crate::NodeId;
use bytes::Bytes;

const VERSION: u8 = 1;
/// Numbers beyond those of Raft's messages.
const ASK: u8 = 32;
const REMOVED: u8 = 33;

/// A question or its answer. No answer means: a member, or not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// Am I a member? I know what is committed up to here, and was one as of that.
    Ask {
        /// The index.
        commit: u64,
    },
    /// You are none as of this index, which you do not know yet.
    Removed {
        /// The index.
        as_of: u64,
    },
}

/// True for an encoded notice.
pub fn is_notice(encoded: &[u8]) -> bool {
    matches!(encoded.get(1), Some(&(ASK | REMOVED)))
}

/// Bytes of a notice from one node to another.
pub fn encode_notice(from: NodeId, to: NodeId, notice: Notice) -> Bytes {
    let (kind, index) = match notice {
        Notice::Ask { commit } => (ASK, commit),
        Notice::Removed { as_of } => (REMOVED, as_of),
    };
    let mut out = vec![VERSION, kind];
    for v in [to.0, from.0, index] {
        put_u64(&mut out, v);
    }
    out.into()
}

/// Sender, receiver and notice in `input`, which they must fill.
pub fn decode_notice(input: Bytes) -> Result<(NodeId, NodeId, Notice), CodecError> {
    let mut r = Reader::new(input);
    if r.u8()? != VERSION {
        return Err(CodecError::Invalid("version"));
    }
    let kind = r.u8()?;
    let (to, from, index) = (NodeId(r.u64()?), NodeId(r.u64()?), r.u64()?);
    r.end()?;
    let notice = match kind {
        ASK => Notice::Ask { commit: index },
        REMOVED => Notice::Removed { as_of: index },
        _ => return Err(CodecError::Invalid("notice")),
    };
    Ok((from, to, notice))
}
