//! RangeStream (etcd 3.7, Kubernetes' KEP for `EtcdRangeStream`): a range in pieces. Merged they are what
//! Range answers; only the last has header, count and `more`.

use super::layout::decode;
use super::read::{Reader, within};
use crate::{
    EtcdError, EtcdResult, Scope, Span,
    wire::etcdserverpb::{
        RangeRequest, RangeResponse, ResponseHeader,
        range_request::{SortOrder, SortTarget},
    },
};
use bytes::Bytes;
use photon_kv::Direction;

/// A piece is sent once it has this many bytes.
const PIECE: usize = if cfg!(test) { 16 } else { 1 << 20 };

/// What cannot be answered in the order of the keys is refused, and clients then use Range.
pub fn check(r: &RangeRequest) -> EtcdResult<()> {
    let by_key = r.sort_target == SortTarget::Key as i32;
    let ordered = r.sort_order == SortOrder::None as i32 || r.sort_order == SortOrder::Ascend as i32;
    if by_key && ordered {
        Ok(())
    } else {
        Err(EtcdError::Unimplemented("RangeStream does not support custom sort orders"))
    }
}

impl Reader<'_> {
    /// Hands the pieces of a range to `out` until it says stop; true when all were taken.
    pub fn stream(
        &self,
        scope: Scope,
        r: &RangeRequest,
        mut out: impl FnMut(RangeResponse) -> bool,
    ) -> EtcdResult<bool> {
        let revision = self.resolve(r.revision)?;
        let limit = u64::try_from(r.limit).ok().filter(|l| *l > 0).unwrap_or(u64::MAX);
        let mut piece = RangeResponse::default();
        let (mut bytes, mut count, mut matching) = (0, 0, 0u64);
        if r.count_only {
            count = self.find(scope, Span::of(&r.key, &r.range_end), revision, 0, true)?.count;
        } else {
            for part in scope.visible(Span::of(&r.key, &r.range_end)) {
                for item in self.scan(part, revision, Direction::Forward) {
                    let item = item?;
                    count += 1;
                    if matching > limit {
                        continue; // only counted
                    }
                    let size = item.len();
                    let mut kv = decode(item)?;
                    if !within(r, &kv) {
                        continue;
                    }
                    matching += 1;
                    if matching > limit {
                        continue;
                    }
                    if bytes >= PIECE {
                        if !out(std::mem::take(&mut piece)) {
                            return Ok(false);
                        }
                        bytes = 0;
                    }
                    if r.keys_only {
                        kv.value = Bytes::new();
                    }
                    bytes += size;
                    piece.kvs.push(kv);
                }
            }
        }
        piece.header = Some(ResponseHeader { revision: self.revision, ..Default::default() });
        piece.count = count as i64;
        piece.more = matching > limit;
        Ok(out(piece))
    }
}
