//! Server-sent events (WHATWG HTML §9.2), as far as our server sends them. Pure.

use photon_base::{Error, Result};

/// One event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SseEvent {
    /// `event:`, empty for plain messages.
    pub name: String,
    /// `data:` lines joined by line feeds.
    pub data: String,
}

/// Cuts a byte stream into events.
#[derive(Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    event: SseEvent,
}

/// Longest line accepted: an object of 1 MiB, escaped.
const LINE_BYTES_MAX: usize = 8 << 20;

impl Decoder {
    /// Takes more bytes and returns the events that are complete.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Vec<SseEvent>> {
        self.buffer.extend_from_slice(bytes);
        let mut out = Vec::new();
        while let Some(end) = self.buffer.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = self.buffer.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            let line = line.trim_end_matches(['\r', '\n']);
            if line.is_empty() {
                let e = std::mem::take(&mut self.event);
                if !e.data.is_empty() {
                    out.push(e);
                }
                continue;
            }
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "data" => {
                    if !self.event.data.is_empty() {
                        self.event.data.push('\n');
                    }
                    self.event.data.push_str(value);
                }
                "event" => self.event.name = value.to_string(),
                _ => {} // id, retry and comments: the data carries the revision
            }
        }
        if self.buffer.len() > LINE_BYTES_MAX {
            return Err(Error::unavailable("the watch sends a line without end"));
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_survive_any_cut() {
        let text = b": hello\n\ndata: {\"a\":1}\nid: 5\n\nevent: error\r\ndata: x\r\ndata: y\r\n\r\n";
        for cut in 0..text.len() {
            let mut d = Decoder::default();
            let mut all = d.push(&text[..cut]).expect("push");
            all.extend(d.push(&text[cut..]).expect("push"));
            assert_eq!(
                all,
                [
                    SseEvent { name: String::new(), data: "{\"a\":1}".into() },
                    SseEvent { name: "error".into(), data: "x\ny".into() }
                ]
            );
        }
    }
}
