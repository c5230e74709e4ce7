//! Bounded lines from a peer that is not trusted: QEMU's sockets carry what a guest sends.

use photon_base::{Error, Result};
use tokio::io::{AsyncBufRead, AsyncBufReadExt};

/// Reads the next line without its end into `line`. False at the end of the stream. A line above
/// `max` bytes is an error after at most `max` bytes were kept.
pub async fn next_line(
    from: &mut (impl AsyncBufRead + Unpin),
    line: &mut Vec<u8>,
    max: usize,
) -> Result<bool> {
    line.clear();
    loop {
        let chunk = from.fill_buf().await.map_err(|e| Error::unavailable("the connection broke").why(e))?;
        if chunk.is_empty() {
            return Ok(false);
        }
        let end = chunk.iter().position(|b| *b == b'\n');
        let take = end.unwrap_or(chunk.len());
        if line.len() + take > max {
            return Err(
                Error::unavailable("the peer sent a line that is too long").why(format!("above {max} bytes"))
            );
        }
        line.extend_from_slice(&chunk[..take]);
        from.consume(take + usize::from(end.is_some()));
        if end.is_some() {
            if line.last() == Some(&b'\r') {
                line.pop();
            }
            return Ok(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_are_bounded() {
        let mut from = tokio::io::BufReader::with_capacity(4, &b"one\r\n\ntwo\nmuch too long\n"[..]);
        let mut line = Vec::new();
        for want in ["one", "", "two"] {
            assert!(next_line(&mut from, &mut line, 5).await.expect("a line"));
            assert_eq!(line, want.as_bytes());
        }
        assert!(next_line(&mut from, &mut line, 5).await.is_err());
        let mut half = &b"half"[..];
        assert!(!next_line(&mut half, &mut line, 5).await.expect("the end"));
    }
}
