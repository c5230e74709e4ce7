//! Cursors of paged lists.

use crate::{Error, Result};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

/// Where a paged list goes on: the revision that the first page was read at, so that all pages
/// show one state, and the key after which the next page starts. Opaque to callers. It carries no
/// authority: the server checks again that the key lies inside the list asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// Revision of the first page.
    pub revision: u64,
    /// Last key of the page before.
    pub after: Vec<u8>,
}

const VERSION: u8 = 1;
const KEY_LEN_MAX: usize = 4096;

impl Cursor {
    /// The text that callers hand back.
    pub fn encode(&self) -> String {
        let mut raw = vec![VERSION];
        raw.extend_from_slice(&self.revision.to_be_bytes());
        raw.extend_from_slice(&self.after);
        URL_SAFE_NO_PAD.encode(raw)
    }

    /// Reads what [`Cursor::encode`] wrote.
    pub fn decode(text: &str) -> Result<Cursor> {
        let bad =
            || Error::invalid("cursor", "not a cursor of this list").hint("start again without a cursor");
        if text.len() > KEY_LEN_MAX * 2 {
            return Err(bad());
        }
        let raw = URL_SAFE_NO_PAD.decode(text).map_err(|_| bad())?;
        let (head, after) = raw.split_at_checked(9).ok_or_else(bad)?;
        if head[0] != VERSION || after.len() > KEY_LEN_MAX {
            return Err(bad());
        }
        let revision = u64::from_be_bytes(head[1..9].try_into().map_err(|_| bad())?);
        Ok(Cursor { revision, after: after.to_vec() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decodes_what_it_encodes_and_nothing_else() {
        let c = Cursor { revision: 7, after: b"vm/demo/a".to_vec() };
        assert_eq!(Cursor::decode(&c.encode()), Ok(c));
        for bad in ["", "AA", "!!", &"A".repeat(9000)] {
            assert!(Cursor::decode(bad).is_err(), "{bad}");
        }
    }
}
