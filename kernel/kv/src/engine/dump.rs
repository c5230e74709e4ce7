//! What an engine holds as bytes: how a snapshot carries a state from one engine to another.
//!
//! A record is a byte for the space, the lengths of key and value as 32-bit big-endian numbers, key, value.
//! Records follow each other; chunks cut them anywhere.

use super::{EngineError, EngineResult, KeyRange, MAX_KEY, Space, View};
use crate::Direction;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use std::{collections::VecDeque, ops::Bound, sync::Arc};

/// Most bytes of a chunk.
pub const CHUNK: usize = 1 << 20;

/// Most bytes of a value: what a command may write is far smaller.
const MAX_VALUE: usize = 16 << 20;

/// Bytes before the key.
const HEAD: usize = 9;

/// A space, a key of it and its value.
pub type Record = (Space, Bytes, Bytes);

/// Adds a record.
pub fn put_record(b: &mut BytesMut, space: Space, key: &[u8], value: &[u8]) {
    b.put_u8(space.0 as u8);
    b.put_u32(key.len() as u32);
    b.put_u32(value.len() as u32);
    b.put_slice(key);
    b.put_slice(value);
}

/// Takes a whole record off the front; `None` when there is none yet. `spaces` is how many there are: a record that
/// cannot be is refused.
pub fn take_record(b: &mut BytesMut, spaces: usize) -> EngineResult<Option<Record>> {
    if b.len() < HEAD {
        return Ok(None);
    }
    let space = usize::from(b[0]);
    let key = u32::from_be_bytes([b[1], b[2], b[3], b[4]]) as usize;
    let value = u32::from_be_bytes([b[5], b[6], b[7], b[8]]) as usize;
    if space >= spaces || key == 0 || key > MAX_KEY || value > MAX_VALUE {
        return Err(EngineError::Failed("a snapshot holds a record that cannot be".into()));
    }
    if b.len() < HEAD + key + value {
        return Ok(None);
    }
    b.advance(HEAD);
    Ok(Some((Space(space), b.split_to(key).freeze(), b.split_to(value).freeze())))
}

/// The records of some ranges of a view, cut into chunks.
pub struct Dump {
    view: Arc<dyn View>,
    left: VecDeque<(Space, KeyRange)>,
    buffer: BytesMut,
}

impl Dump {
    /// Of these ranges, one after the other.
    pub fn new(view: Arc<dyn View>, ranges: impl IntoIterator<Item = (Space, KeyRange)>) -> Dump {
        Dump { view, left: ranges.into_iter().collect(), buffer: BytesMut::new() }
    }

    /// With a record before all others.
    pub fn led_by(mut self, space: Space, key: &[u8], value: &[u8]) -> Dump {
        put_record(&mut self.buffer, space, key, value);
        self
    }

    fn fill(&mut self) -> EngineResult<()> {
        while self.buffer.len() < CHUNK
            && let Some((space, range)) = self.left.front_mut()
        {
            for item in self.view.scan(*space, range.clone(), Direction::Forward) {
                let (key, value) = item?;
                put_record(&mut self.buffer, *space, &key, &value);
                if self.buffer.len() >= CHUNK {
                    range.start = Bound::Excluded(key);
                    return Ok(());
                }
            }
            self.left.pop_front();
        }
        Ok(())
    }
}

impl Iterator for Dump {
    type Item = EngineResult<Bytes>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Err(e) = self.fill() {
            return Some(Err(e));
        }
        let n = self.buffer.len().min(CHUNK);
        (n > 0).then(|| Ok(self.buffer.split_to(n).freeze()))
    }
}
