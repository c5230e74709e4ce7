//! The form of what is inside a packet, big-endian, and its bounded reader. No input makes it panic; what
//! it reads is within the limits that [`crate::check_facts`] sets.
//!
//! ```text
//! packet  = 0 swim | 1 ask | 2 tell
//! id      = len(1) name, generation(8), 4 addr(4) port(2) | 6 addr(16) port(2)
//! member  = id, incarnation(2), state(1)                        state: 0 alive 1 suspect 2 down 3 left
//! swim    = kind(1) src:id incarnation(2) dst:id [probe(1)] [other:id], count(2) member*, (len(2) news)*
//! news    = len(1) name, stamp(12), facts
//! facts   = count(1) (len(1) key, len(1) value)*
//! ask     = src:id incarnation(2) up(2) round(4) from(8) to(8) count(1) entry*, zeros up to ASK_MIN
//! entry   = key(8) generation(8) incarnation(2) state(1) stamp(12)
//! tell    = src:id incarnation(2) round(4) upto(8) count(1) (member stamp(12) facts)*
//! ```
//! `swim` is what foca makes and reads, by [`SwimCodec`].

use crate::{
    id::Id,
    peer::{FACT_KEY_MAX, Facts, Liveness, check_facts},
    seal::PLAIN_MAX,
};
use bytes::{Buf, BufMut};
use foca::{Header, Member, State};
use photon_base::Name;
use std::net::{IpAddr, SocketAddr};

/// First byte of what foca made.
pub(crate) const SWIM: u8 = 0;
const ASK: u8 = 1;
const TELL: u8 = 2;
/// Smallest question: an answer has at most three times as many bytes (as RFC 9000 §8 has it).
pub(crate) const ASK_MIN: usize = 440;
/// Answers to a question have at most this many times its bytes.
pub(crate) const TELL_TIMES: usize = 3;
/// Kind of foca's message to members that it holds for dead; never on the wire, we tell them our way.
pub(crate) const KIND_TURN_UNDEAD: u8 = 255;

/// Which facts of a node are the newer ones: those of its later life, then those told later in one life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Stamp {
    pub generation: u64,
    pub version: u32,
}

/// A node's record, as one node tells it to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub id: Id,
    pub incarnation: u16,
    pub state: Liveness,
    pub stamp: Stamp,
    pub facts: Facts,
}

/// What somebody knows about a node, without saying it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub key: u64,
    pub generation: u64,
    pub incarnation: u16,
    pub state: Liveness,
    pub stamp: Stamp,
}

/// New facts of a node on their way through the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct News {
    pub name: Name,
    pub stamp: Stamp,
    pub facts: Facts,
}

/// SWIM's message with what rides on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Swim {
    pub header: Header<Id>,
    pub members: Vec<Member<Id>>,
    pub news: Vec<News>,
}

/// "This is what I know of nodes with keys from `from` to `to`: tell me what you know better."
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ask {
    pub src: Id,
    pub incarnation: u16,
    /// How many others the asker sees up.
    pub up: u16,
    pub round: u32,
    pub from: u64,
    pub to: u64,
    pub entries: Vec<Entry>,
}

/// What the asked one knows better, complete up to `upto`. Round 0 answers no question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tell {
    pub src: Id,
    pub incarnation: u16,
    pub round: u32,
    pub upto: u64,
    pub records: Vec<Record>,
}

/// All that a packet can hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Message {
    Swim(Swim),
    Ask(Ask),
    Tell(Tell),
}

/// Bytes that are no message of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a gossip message")]
pub(crate) struct Malformed;

type Result<T> = std::result::Result<T, Malformed>;

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(n).ok_or(Malformed)?;
        self.0 = tail;
        Ok(head)
    }
    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        self.take(N)?.try_into().map_err(|_| Malformed)
    }
    fn u8(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }
    fn u16(&mut self) -> Result<u16> {
        self.array().map(u16::from_be_bytes)
    }
    fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_be_bytes)
    }
    fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_be_bytes)
    }
    fn text(&mut self) -> Result<&'a str> {
        let n = self.u8()?;
        std::str::from_utf8(self.take(n.into())?).map_err(|_| Malformed)
    }
    fn name(&mut self) -> Result<Name> {
        self.text()?.parse().map_err(|_| Malformed)
    }
    fn id(&mut self) -> Result<Id> {
        let name = self.name()?;
        let generation = self.u64()?;
        let ip: IpAddr = match self.u8()? {
            4 => self.array::<4>()?.into(),
            6 => self.array::<16>()?.into(),
            _ => return Err(Malformed),
        };
        let port = self.u16()?;
        if ip.is_unspecified() || ip.is_multicast() || port == 0 {
            return Err(Malformed);
        }
        Ok(Id::new(name, generation, SocketAddr::new(ip, port)))
    }
    fn state(&mut self) -> Result<Liveness> {
        Ok(match self.u8()? {
            0 => Liveness::Alive,
            1 => Liveness::Suspect,
            2 => Liveness::Down,
            3 => Liveness::Left,
            _ => return Err(Malformed),
        })
    }
    fn member(&mut self) -> Result<Member<Id>> {
        let (id, incarnation, state) = (self.id()?, self.u16()?, self.state()?);
        Ok(to_member(id, incarnation, state))
    }
    fn stamp(&mut self) -> Result<Stamp> {
        Ok(Stamp { generation: self.u64()?, version: self.u32()? })
    }
    fn facts(&mut self) -> Result<Facts> {
        let mut facts = Facts::new();
        for _ in 0..self.u8()? {
            let k = self.text()?;
            if k.len() > FACT_KEY_MAX || facts.insert(k.to_string(), self.text()?.to_string()).is_some() {
                return Err(Malformed);
            }
        }
        check_facts(&facts).map(|()| facts).map_err(|_| Malformed)
    }
    fn news(&mut self) -> Result<News> {
        Ok(News { name: self.name()?, stamp: self.stamp()?, facts: self.facts()? })
    }
    fn entry(&mut self) -> Result<Entry> {
        Ok(Entry {
            key: self.u64()?,
            generation: self.u64()?,
            incarnation: self.u16()?,
            state: self.state()?,
            stamp: self.stamp()?,
        })
    }
    fn record(&mut self) -> Result<Record> {
        let (id, incarnation, state) = (self.id()?, self.u16()?, self.state()?);
        Ok(Record { id, incarnation, state, stamp: self.stamp()?, facts: self.facts()? })
    }
    fn header(&mut self) -> Result<Header<Id>> {
        use foca::Message::*;
        let kind = self.u8()?;
        let (src, src_incarnation, dst) = (self.id()?, self.u16()?, self.id()?);
        let message = match kind {
            0 => Ping(self.u8()?),
            1 => Ack(self.u8()?),
            2 => PingReq { probe_number: self.u8()?, target: self.id()? },
            3 => IndirectPing { probe_number: self.u8()?, origin: self.id()? },
            4 => IndirectAck { probe_number: self.u8()?, target: self.id()? },
            5 => ForwardedAck { probe_number: self.u8()?, origin: self.id()? },
            6 => Gossip,
            _ => return Err(Malformed),
        };
        Ok(Header { src, src_incarnation, dst, message })
    }
    fn end(&self) -> Result<()> {
        if self.0.is_empty() { Ok(()) } else { Err(Malformed) }
    }
}

/// Reads the content of a packet.
pub(crate) fn decode(plain: &[u8]) -> Result<Message> {
    let mut r = Reader(plain);
    Ok(match r.u8()? {
        SWIM => {
            let header = r.header()?;
            let mut members = Vec::new();
            for _ in 0..if r.0.is_empty() { 0 } else { r.u16()? } {
                members.push(r.member()?);
            }
            let mut news = Vec::new();
            while !r.0.is_empty() {
                let n = r.u16()?;
                let mut item = Reader(r.take(n.into())?);
                news.push(item.news()?);
                item.end()?;
            }
            Message::Swim(Swim { header, members, news })
        }
        ASK => {
            let (src, incarnation, up) = (r.id()?, r.u16()?, r.u16()?);
            let (round, from, to) = (r.u32()?, r.u64()?, r.u64()?);
            let entries = (0..r.u8()?).map(|_| r.entry()).collect::<Result<_>>()?;
            if plain.len() < ASK_MIN || r.0.iter().any(|b| *b != 0) {
                return Err(Malformed);
            }
            Message::Ask(Ask { src, incarnation, up, round, from, to, entries })
        }
        TELL => {
            let (src, incarnation) = (r.id()?, r.u16()?);
            let (round, upto) = (r.u32()?, r.u64()?);
            let records = (0..r.u8()?).map(|_| r.record()).collect::<Result<_>>()?;
            r.end()?;
            Message::Tell(Tell { src, incarnation, round, upto, records })
        }
        _ => return Err(Malformed),
    })
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    let text = &text.as_bytes()[..text.len().min(255)];
    out.push(text.len() as u8);
    out.extend_from_slice(text);
}

fn put_id(out: &mut Vec<u8>, id: &Id) {
    put_text(out, id.name.as_str());
    out.put_u64(id.generation);
    match id.addr.ip() {
        IpAddr::V4(ip) => {
            out.push(4);
            out.extend_from_slice(&ip.octets());
        }
        IpAddr::V6(ip) => {
            out.push(6);
            out.extend_from_slice(&ip.octets());
        }
    }
    out.put_u16(id.addr.port());
}

fn put_member(out: &mut Vec<u8>, id: &Id, incarnation: u16, state: Liveness) {
    put_id(out, id);
    out.put_u16(incarnation);
    out.push(state as u8);
}

fn put_stamp(out: &mut Vec<u8>, stamp: Stamp) {
    out.put_u64(stamp.generation);
    out.put_u32(stamp.version);
}

fn put_facts(out: &mut Vec<u8>, facts: &Facts) {
    out.push(facts.len() as u8);
    for (k, v) in facts {
        put_text(out, k);
        put_text(out, v);
    }
}

fn put_header(out: &mut Vec<u8>, h: &Header<Id>) -> Result<()> {
    use foca::Message::*;
    let (kind, probe, other) = match &h.message {
        Ping(n) => (0, Some(n), None),
        Ack(n) => (1, Some(n), None),
        PingReq { target, probe_number } => (2, Some(probe_number), Some(target)),
        IndirectPing { origin, probe_number } => (3, Some(probe_number), Some(origin)),
        IndirectAck { target, probe_number } => (4, Some(probe_number), Some(target)),
        ForwardedAck { origin, probe_number } => (5, Some(probe_number), Some(origin)),
        Gossip => (6, None, None),
        TurnUndead => (KIND_TURN_UNDEAD, None, None),
        // Joining and catching up are ask and tell; facts ride on gossip.
        Announce | Feed | Broadcast => return Err(Malformed),
    };
    out.push(kind);
    put_id(out, &h.src);
    out.put_u16(h.src_incarnation);
    put_id(out, &h.dst);
    out.extend(probe);
    if let Some(id) = other {
        put_id(out, id);
    }
    Ok(())
}

impl News {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_text(&mut out, self.name.as_str());
        put_stamp(&mut out, self.stamp);
        put_facts(&mut out, &self.facts);
        out
    }
    pub(crate) fn decode(item: &[u8]) -> Result<News> {
        let mut r = Reader(item);
        let news = r.news()?;
        r.end().map(|()| news)
    }
}

impl Swim {
    /// The message in foca's form, without our first byte.
    pub(crate) fn encode(&self) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        put_header(&mut out, &self.header)?;
        out.put_u16(self.members.len() as u16);
        for m in &self.members {
            let (incarnation, state) = from_member(m);
            put_member(&mut out, m.id(), incarnation, state);
        }
        for n in &self.news {
            let item = n.encode();
            out.put_u16(item.len() as u16);
            out.extend_from_slice(&item);
        }
        Ok(out)
    }
}

impl Ask {
    /// How many entries fit beside `src`.
    pub(crate) fn room(src: &Id) -> usize {
        let mut head = Vec::new();
        put_id(&mut head, src);
        ((PLAIN_MAX - 1 - head.len() - 25) / 31).min(255)
    }
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = vec![ASK];
        put_id(&mut out, &self.src);
        out.put_u16(self.incarnation);
        out.put_u16(self.up);
        out.put_u32(self.round);
        out.put_u64(self.from);
        out.put_u64(self.to);
        out.push(self.entries.len() as u8);
        for e in &self.entries {
            out.put_u64(e.key);
            out.put_u64(e.generation);
            out.put_u16(e.incarnation);
            out.push(e.state as u8);
            put_stamp(&mut out, e.stamp);
        }
        out.resize(out.len().max(ASK_MIN), 0);
        out
    }
}

impl Record {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_member(&mut out, &self.id, self.incarnation, self.state);
        put_stamp(&mut out, self.stamp);
        put_facts(&mut out, &self.facts);
        out
    }
}

/// An answer that is being put together.
pub(crate) struct TellWriter {
    out: Vec<u8>,
    upto_at: usize,
    max: usize,
}

impl TellWriter {
    /// An answer to a question of `asked` bytes.
    pub(crate) fn new(src: &Id, incarnation: u16, round: u32, asked: usize) -> Self {
        let mut out = vec![TELL];
        put_id(&mut out, src);
        out.put_u16(incarnation);
        out.put_u32(round);
        let upto_at = out.len();
        out.put_u64(0);
        out.push(0);
        TellWriter { out, upto_at, max: (asked * TELL_TIMES).min(PLAIN_MAX) }
    }
    /// Adds a record; false when it does not fit.
    pub(crate) fn push(&mut self, record: &Record) -> bool {
        let bytes = record.encode();
        let count = &mut self.out[self.upto_at + 8];
        if *count == u8::MAX {
            return false;
        }
        *count += 1;
        if self.out.len() + bytes.len() > self.max {
            self.out[self.upto_at + 8] -= 1;
            return false;
        }
        self.out.extend_from_slice(&bytes);
        true
    }
    pub(crate) fn finish(mut self, upto: u64) -> Vec<u8> {
        self.out[self.upto_at..self.upto_at + 8].copy_from_slice(&upto.to_be_bytes());
        self.out
    }
}

/// foca knows no "left": it is Down with an incarnation that no suspicion reaches.
pub(crate) fn to_member(id: Id, incarnation: u16, state: Liveness) -> Member<Id> {
    match state {
        Liveness::Alive => Member::new(id, incarnation, State::Alive),
        Liveness::Suspect => Member::new(id, incarnation, State::Suspect),
        Liveness::Down => Member::new(id, incarnation.min(u16::MAX - 1), State::Down),
        Liveness::Left => Member::new(id, u16::MAX, State::Down),
    }
}

pub(crate) fn from_member(m: &Member<Id>) -> (u16, Liveness) {
    let state = match m.state() {
        State::Alive => Liveness::Alive,
        State::Suspect => Liveness::Suspect,
        State::Down if m.incarnation() == u16::MAX => Liveness::Left,
        State::Down => Liveness::Down,
    };
    (m.incarnation(), state)
}

/// foca's way to our form.
pub(crate) struct SwimCodec;

impl SwimCodec {
    fn read<T>(mut buf: impl Buf, f: impl FnOnce(&mut Reader) -> Result<T>) -> Result<T> {
        let mut r = Reader(buf.chunk());
        let before = r.0.len();
        let value = f(&mut r)?;
        let used = before - r.0.len();
        buf.advance(used);
        Ok(value)
    }
    fn write(mut buf: impl BufMut, bytes: &[u8]) -> Result<()> {
        if buf.remaining_mut() < bytes.len() {
            return Err(Malformed);
        }
        buf.put_slice(bytes);
        Ok(())
    }
}

impl foca::Codec<Id> for SwimCodec {
    type Error = Malformed;

    fn encode_header(&mut self, header: &Header<Id>, buf: impl BufMut) -> Result<()> {
        let mut out = Vec::new();
        put_header(&mut out, header)?;
        Self::write(buf, &out)
    }
    fn decode_header(&mut self, buf: impl Buf) -> Result<Header<Id>> {
        Self::read(buf, |r| r.header())
    }
    fn encode_member(&mut self, m: &Member<Id>, buf: impl BufMut) -> Result<()> {
        let (mut out, (incarnation, state)) = (Vec::new(), from_member(m));
        put_member(&mut out, m.id(), incarnation, state);
        Self::write(buf, &out)
    }
    fn decode_member(&mut self, buf: impl Buf) -> Result<Member<Id>> {
        Self::read(buf, |r| r.member())
    }
}
