//! A connection that forgives one fault of etcdctl 3.4 (Debian's).
//!
//! Its calls to a single member (`endpoint status`, `endpoint hashkv`, `defrag`, …) send the whole
//! endpoint, `http://host:port`, as HTTP/2's `:authority`. RFC 9113 has only `host:port` there; Go's
//! server does not look, hyper's refuses the stream. hyper has no setting for it, so the bytes are
//! mended on their way in: in the first HEADERS frame of a connection the `://` of such an authority
//! becomes `C--`, which makes a valid (and unused) host name of the same length in plain and in Huffman
//! coding, so that the frame and both ends' header tables keep their sizes. Everything else passes
//! untouched, and after that frame nothing is looked at any more.

use bytes::{Buf, BytesMut};
use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What a client of HTTP/2 says first.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Longest frame that a client may send before it has seen our settings (RFC 9113, section 4.2).
const MAX_FRAME: usize = 16_384;

/// A connection whose first request is mended.
pub struct Tolerant<T> {
    io: T,
    filter: Filter,
}

impl<T> Tolerant<T> {
    /// Around an accepted connection, inside of TLS.
    pub fn new(io: T) -> Self {
        Tolerant { io, filter: Filter::default() }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Tolerant<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let me = &mut *self;
        while me.filter.passed == 0 && !me.filter.done {
            let mut chunk = [0; 1024];
            let mut buf = ReadBuf::new(&mut chunk);
            std::task::ready!(Pin::new(&mut me.io).poll_read(cx, &mut buf))?;
            me.filter.push(buf.filled());
        }
        if me.filter.held.is_empty() {
            return Pin::new(&mut me.io).poll_read(cx, out);
        }
        let n = me.filter.passed.min(out.remaining());
        out.put_slice(&me.filter.held[..n]);
        me.filter.held.advance(n);
        me.filter.passed -= n;
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Tolerant<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, data)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// Holds bytes back until the frame that they belong to is whole.
#[derive(Default)]
struct Filter {
    held: BytesMut,
    /// So many of the held bytes may go.
    passed: usize,
    /// The preface was seen.
    http2: bool,
    /// Nothing is looked at any more; all held bytes may go.
    done: bool,
}

impl Filter {
    /// Takes what was read; nothing is the end of the input, where all goes out as it is.
    fn push(&mut self, bytes: &[u8]) {
        self.held.extend_from_slice(bytes);
        while !self.done {
            match self.step() {
                Some(n) if n > 0 && !bytes.is_empty() => self.passed += n,
                Some(_) if !bytes.is_empty() => return,
                _ => self.done = true,
            }
        }
        self.passed = self.held.len();
    }

    /// How many more bytes may go (0: not before more has come), or none when it is over.
    fn step(&mut self) -> Option<usize> {
        let rest = &mut self.held[self.passed..];
        if !self.http2 {
            let n = rest.len().min(PREFACE.len());
            if rest[..n] != PREFACE[..n] {
                return None;
            }
            self.http2 = n == PREFACE.len();
            return Some(if self.http2 { n } else { 0 });
        }
        let Some(head) = rest.first_chunk::<9>() else { return Some(0) };
        let (kind, flags) = (head[3], head[4]);
        let len = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        if len > MAX_FRAME {
            return None;
        }
        let Some(payload) = rest.get_mut(9..9 + len) else { return Some(0) };
        const HEADERS: u8 = 1;
        if kind != HEADERS {
            return Some(9 + len);
        }
        mend(payload, flags);
        None
    }
}

/// Mends the authority in the payload of a HEADERS frame, if it has that fault.
fn mend(payload: &mut [u8], flags: u8) -> Option<()> {
    const PADDED: u8 = 0x8;
    const PRIORITY: u8 = 0x20;
    let mut at = usize::from(flags & PADDED != 0) + if flags & PRIORITY != 0 { 5 } else { 0 };
    // Field lines of HPACK (RFC 7541, section 6), until the one that names :authority, index 1.
    loop {
        let first = *payload.get(at)?;
        let (name, literal) = match first {
            0x80.. => (integer(payload, &mut at, 7)?, false),
            0x40.. => (integer(payload, &mut at, 6)?, true),
            0x20.. => (integer(payload, &mut at, 5)?, false),
            _ => (integer(payload, &mut at, 4)?, true),
        };
        if !literal {
            continue;
        }
        if name == 0 {
            string(payload, &mut at)?;
        }
        let (huffman, value) = string(payload, &mut at)?;
        if name == 1 {
            let value = payload.get_mut(value)?;
            return if huffman { mend_huffman(value) } else { mend_plain(value) };
        }
    }
}

/// An integer with a prefix of `bits` (RFC 7541, section 5.1); moves `at` behind it.
fn integer(b: &[u8], at: &mut usize, bits: u32) -> Option<usize> {
    let mask = (1usize << bits) - 1;
    let mut n = usize::from(*b.get(*at)?) & mask;
    *at += 1;
    if n < mask {
        return Some(n);
    }
    for shift in [0, 7, 14] {
        let byte = usize::from(*b.get(*at)?);
        *at += 1;
        n += (byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(n);
        }
    }
    None
}

/// Whether a string is in Huffman coding, and where its bytes are; moves `at` behind it.
fn string(b: &[u8], at: &mut usize) -> Option<(bool, std::ops::Range<usize>)> {
    let huffman = *b.get(*at)? & 0x80 != 0;
    let len = integer(b, at, 7)?;
    let start = *at;
    *at = start.checked_add(len)?;
    Some((huffman, start..*at))
}

fn mend_plain(value: &mut [u8]) -> Option<()> {
    let scheme = [&b"http://"[..], b"https://"].into_iter().find(|s| value.starts_with(s))?;
    value[scheme.len() - 3..scheme.len()].copy_from_slice(b"C--");
    Some(())
}

/// `http://`, 41 bits, and `https://`, 46 bits, at the upper end of a number; below them `httpC--` and
/// `httpsC--` (RFC 7541, appendix B: `h` 100111, `t` 01001, `p` 101011, `s` 01000, `:` 1011100,
/// `/` 011000, `C` 1011110, `-` 010110).
#[allow(clippy::unusual_byte_groupings, reason = "one group for each letter")]
const HUFFMAN: [(u32, u64, u64); 2] = [
    (
        41,
        0b100111_01001_01001_101011_1011100_011000_011000,
        0b100111_01001_01001_101011_1011110_010110_010110,
    ),
    (
        46,
        0b100111_01001_01001_101011_01000_1011100_011000_011000,
        0b100111_01001_01001_101011_01000_1011110_010110_010110,
    ),
];

fn mend_huffman(value: &mut [u8]) -> Option<()> {
    let head = value.first_chunk_mut::<8>()?;
    let number = u64::from_be_bytes(*head);
    let (bits, bad, good) = HUFFMAN.into_iter().find(|(bits, bad, _)| number >> (64 - bits) == *bad)?;
    *head = (number ^ ((bad ^ good) << (64 - bits))).to_be_bytes();
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Codes of the letters that the tests use.
    fn huffman(s: &str) -> Vec<u8> {
        let mut bits = String::new();
        for c in s.chars() {
            bits += match c {
                'h' => "100111",
                't' => "01001",
                'p' => "101011",
                's' => "01000",
                ':' => "1011100",
                '/' => "011000",
                'C' => "1011110",
                '-' => "010110",
                '.' => "010111",
                '1' => "00001",
                '2' => "00010",
                '0' => "00000",
                other => panic!("{other}"),
            };
        }
        while !bits.len().is_multiple_of(8) {
            bits.push('1');
        }
        bits.as_bytes().chunks(8).map(|c| c.iter().fold(0, |n, b| n << 1 | (b - b'0'))).collect()
    }

    fn headers(flags: u8, authority: &[u8], coded: bool) -> Vec<u8> {
        let mut payload = match flags {
            0x28 => vec![0, 0, 0, 0, 0, 16],
            _ => vec![],
        };
        // :method POST, :scheme http, :path literal, a literal with a new name, then :authority.
        payload.extend([0x83, 0x86, 0x44, 0x02, b'/', b'x', 0x40, 0x01, b'n', 0x01, b'v', 0x41]);
        payload.push(authority.len() as u8 | if coded { 0x80 } else { 0 });
        payload.extend(authority);
        payload.push(0x84);
        let mut out = PREFACE.to_vec();
        out.extend([0, 0, 0, 4, 0, 0, 0, 0, 0]); // SETTINGS
        out.extend([0, 0, payload.len() as u8, 1, flags, 0, 0, 0, 1]);
        out.extend(payload);
        out.extend(b"whatever follows http://");
        out
    }

    /// What comes out when `input` comes in pieces of `size`.
    fn through(input: &[u8], size: usize) -> Vec<u8> {
        let mut f = Filter::default();
        let mut out = Vec::new();
        for piece in input.chunks(size) {
            if f.done {
                out.extend(piece);
                continue;
            }
            f.push(piece);
            out.extend_from_slice(&f.held.split_to(f.passed));
            f.passed = 0;
        }
        f.push(&[]);
        out.extend_from_slice(&f.held);
        out
    }

    #[test]
    fn an_endpoint_becomes_a_name_of_the_same_length() {
        for (bad, good) in [("http://10.1.2.0:2", "httpC--10.1.2.0:2"), ("https://10.1:2", "httpsC--10.1:2")]
        {
            assert!(good.parse::<http::uri::Authority>().is_ok());
            for flags in [0, 0x28] {
                for size in [1, 3, 10, 1000] {
                    let (b, g) =
                        (headers(flags, bad.as_bytes(), false), headers(flags, good.as_bytes(), false));
                    assert_eq!(through(&b, size), g);
                    let (b, g) = (headers(flags, &huffman(bad), true), headers(flags, &huffman(good), true));
                    assert_eq!(through(&b, size), g);
                }
            }
        }
    }

    #[test]
    fn settings_pass_before_the_first_request_is_there() {
        let input = headers(0, b"a:1", false);
        let mut f = Filter::default();
        f.push(&input[..PREFACE.len() + 9 + 12]);
        assert_eq!(f.passed, PREFACE.len() + 9, "the server must see them, or both wait forever");
    }

    proptest! {
        #[test]
        fn everything_else_passes_untouched(tail in prop::collection::vec(any::<u8>(), 0..200), cut in 0..100usize, size in 1..50usize) {
            let good = headers(0, b"localhost:2379", false);
            let mut mixed = good[..cut.min(good.len())].to_vec();
            mixed.extend(&tail);
            prop_assert_eq!(through(&mixed, size), mixed);
            prop_assert_eq!(through(&tail, size), tail);
        }
    }
}
