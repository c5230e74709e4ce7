//! Queries in, answers out (RFC 1035 section 4, EDNS RFC 6891).

use super::name::Name;

/// Record types.
pub mod rtype {
    /// IPv4 address.
    pub const A: u16 = 1;
    /// Name server.
    pub const NS: u16 = 2;
    /// Start of authority.
    pub const SOA: u16 = 6;
    /// Name of an address.
    pub const PTR: u16 = 12;
    /// Host information; here the minimal answer to ANY (RFC 8482).
    pub const HINFO: u16 = 13;
    /// IPv6 address.
    pub const AAAA: u16 = 28;
    /// EDNS' pseudo record.
    pub const OPT: u16 = 41;
    /// Incremental zone transfer; from here to [`ANY`] are questions that are no types.
    pub const IXFR: u16 = 251;
    /// Whole zone transfer.
    pub const AXFR: u16 = 252;
    /// Everything.
    pub const ANY: u16 = 255;
}

/// The class Internet.
pub const CLASS_IN: u16 = 1;
/// Largest UDP message that we send and announce (DNS flag day 2020).
pub const EDNS_SIZE: u16 = 1232;
/// Largest UDP message to a client without EDNS.
pub const PLAIN_SIZE: usize = 512;
const HEADER: usize = 12;

/// How an answer went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Rcode {
    /// All well, perhaps without data.
    NoError = 0,
    /// Not understood.
    FormErr = 1,
    /// Could not be found out now.
    ServFail = 2,
    /// There is no such name.
    NxDomain = 3,
    /// This server does not do that.
    NotImp = 4,
    /// This server does not want to.
    Refused = 5,
    /// Unknown EDNS version (extended: 16).
    BadVers = 16,
}

/// The EDNS part of a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edns {
    /// Largest UDP message that the client takes.
    pub size: u16,
    /// The client wants DNSSEC records.
    pub dnssec: bool,
    /// Version; there is only 0.
    pub version: u8,
}

/// A query with one question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// Transaction.
    pub id: u16,
    /// Recursion desired.
    pub recursion: bool,
    /// Checking disabled.
    pub checking_disabled: bool,
    /// The name asked for.
    pub name: Name,
    /// The question as it came, in the client's own case, which the answer repeats.
    pub question: Vec<u8>,
    /// Type asked for.
    pub qtype: u16,
    /// Class asked for.
    pub class: u16,
    /// EDNS, if the client speaks it.
    pub edns: Option<Edns>,
}

/// Why something is not a query that can be answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Not worth a word: too short, or itself an answer (two servers would talk for ever).
    Silence,
    /// Answered with nothing but a code.
    Code(u16, bool, Rcode),
}

fn u16_at(b: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(b.get(at..at + 2)?.try_into().ok()?))
}

impl Query {
    /// Reads a query.
    pub fn parse(packet: &[u8]) -> Result<Query, Refusal> {
        let header = packet.get(..HEADER).ok_or(Refusal::Silence)?;
        let id = u16::from_be_bytes([header[0], header[1]]);
        let (flags, counts) = ([header[2], header[3]], &header[4..]);
        if flags[0] & 0x80 != 0 {
            return Err(Refusal::Silence);
        }
        let recursion = flags[0] & 1 != 0;
        let refuse = |code| Refusal::Code(id, recursion, code);
        if flags[0] >> 3 & 0xf != 0 {
            return Err(refuse(Rcode::NotImp));
        }
        Self::body(packet, counts, id, flags).ok_or(refuse(Rcode::FormErr))
    }

    fn body(packet: &[u8], counts: &[u8], id: u16, flags: [u8; 2]) -> Option<Query> {
        let count = |i: usize| u16_at(counts, 2 * i);
        if count(0)? != 1 {
            return None;
        }
        let (name, at) = Name::parse(packet, HEADER)?;
        let (qtype, class) = (u16_at(packet, at)?, u16_at(packet, at + 2)?);
        // A question that is compressed cannot be repeated as it is.
        let question = packet.get(HEADER..at + 4)?;
        if question.len() != name.wire().len() + 4 {
            return None;
        }
        let records = usize::from(count(1)?) + usize::from(count(2)?) + usize::from(count(3)?);
        let (mut pos, mut edns) = (at + 4, None);
        for _ in 0..records {
            // Each record takes at least 11 bytes, so the packet bounds the loop.
            let (owner, at) = Name::parse(packet, pos)?;
            let fixed = packet.get(at..at + 10)?;
            let len = usize::from(u16_at(fixed, 8)?);
            pos = at + 10 + len;
            packet.get(at + 10..pos)?;
            if u16_at(fixed, 0)? == rtype::OPT {
                if owner.wire().len() != 1 || edns.is_some() {
                    return None;
                }
                edns =
                    Some(Edns { size: u16_at(fixed, 2)?, version: fixed[5], dnssec: fixed[6] & 0x80 != 0 });
            }
        }
        Some(Query {
            id,
            recursion: flags[0] & 1 != 0,
            checking_disabled: flags[1] & 0x10 != 0,
            name,
            question: question.to_vec(),
            qtype,
            class,
            edns,
        })
    }

    /// The largest UDP answer to this query.
    pub fn udp_size(&self) -> usize {
        self.edns.map_or(PLAIN_SIZE, |e| usize::from(e.size.clamp(PLAIN_SIZE as u16, EDNS_SIZE)))
    }

    /// The same question for another server, under another id.
    pub fn forwarded(&self, id: u16) -> Vec<u8> {
        let mut p = id.to_be_bytes().to_vec();
        p.extend_from_slice(&[1, if self.checking_disabled { 0x10 } else { 0 }]);
        let extra = u8::from(self.edns.is_some());
        p.extend_from_slice(&[0, 1, 0, 0, 0, 0, 0, extra]);
        p.extend_from_slice(&self.question);
        if let Some(e) = self.edns {
            p.extend_from_slice(&opt(EDNS_SIZE, 0, e.dnssec));
        }
        p
    }

    /// True when `packet` is an answer to [`Query::forwarded`] with `id`: the question comes back byte
    /// by byte, in the case in which it was sent.
    pub fn is_answered_by(&self, packet: &[u8], id: u16) -> bool {
        packet.len() >= HEADER + self.question.len()
            && packet[..2] == id.to_be_bytes()
            && packet[2] & 0xf8 == 0x80
            && packet[4..6] == [0, 1]
            && packet[HEADER..HEADER + self.question.len()] == self.question
    }
}

fn opt(size: u16, extended: u8, dnssec: bool) -> [u8; 11] {
    let s = size.to_be_bytes();
    [0, 0, rtype::OPT as u8, s[0], s[1], extended, 0, if dnssec { 0x80 } else { 0 }, 0, 0, 0]
}

/// A header and nothing else, for what cannot be answered otherwise.
pub fn bare(id: u16, recursion: bool, code: Rcode) -> Vec<u8> {
    let mut p = id.to_be_bytes().to_vec();
    p.extend_from_slice(&[0x80 | u8::from(recursion), code as u8 & 0xf, 0, 0, 0, 0, 0, 0, 0, 0]);
    p
}

/// An answer under construction.
#[derive(Debug)]
pub struct Reply<'a> {
    query: &'a Query,
    records: Vec<u8>,
    answers: u16,
    authorities: u16,
    code: Rcode,
    authoritative: bool,
    recursive: bool,
}

impl<'a> Reply<'a> {
    /// An answer to `query` from a server that (if `recursive`) would look further.
    pub fn new(query: &'a Query, code: Rcode, authoritative: bool, recursive: bool) -> Self {
        Reply { query, records: Vec::new(), answers: 0, authorities: 0, code, authoritative, recursive }
    }

    fn record(&mut self, owner: &Name, rtype: u16, ttl: u32, data: &[u8]) {
        // An owner that is the name asked for, or a parent of it, is a pointer into the question.
        if self.query.name.is_within(owner) && owner.wire().len() > 1 {
            let at = HEADER + self.query.name.wire().len() - owner.wire().len();
            self.records.extend_from_slice(&(0xc000 | at as u16).to_be_bytes());
        } else {
            self.records.extend_from_slice(owner.wire());
        }
        self.records.extend_from_slice(&rtype.to_be_bytes());
        self.records.extend_from_slice(&CLASS_IN.to_be_bytes());
        self.records.extend_from_slice(&ttl.to_be_bytes());
        self.records.extend_from_slice(&(data.len() as u16).to_be_bytes());
        self.records.extend_from_slice(data);
    }

    /// Adds a record that answers. Answers come before authorities.
    pub fn answer(mut self, owner: &Name, rtype: u16, ttl: u32, data: &[u8]) -> Self {
        self.record(owner, rtype, ttl, data);
        self.answers += 1;
        self
    }

    /// Adds a record that says who knows.
    pub fn authority(mut self, owner: &Name, rtype: u16, ttl: u32, data: &[u8]) -> Self {
        self.record(owner, rtype, ttl, data);
        self.authorities += 1;
        self
    }

    /// The message, of at most `max` bytes: what does not fit is left out whole and marked (RFC 2181
    /// section 9), so that the client asks again over TCP.
    pub fn finish(self, max: usize) -> Vec<u8> {
        let q = self.query;
        let extra = q.edns.map(|e| opt(EDNS_SIZE, (self.code as u8) >> 4, e.dnssec));
        let fixed = HEADER + q.question.len() + extra.map_or(0, |e| e.len());
        let truncated = fixed + self.records.len() > max;
        let mut p = q.id.to_be_bytes().to_vec();
        p.push(0x80 | u8::from(self.authoritative) << 2 | u8::from(truncated) << 1 | u8::from(q.recursion));
        p.push(u8::from(self.recursive) << 7 | u8::from(q.checking_disabled) << 4 | (self.code as u8 & 0xf));
        let (answers, authorities) = if truncated { (0, 0) } else { (self.answers, self.authorities) };
        for n in [1, answers, authorities, u16::from(extra.is_some())] {
            p.extend_from_slice(&n.to_be_bytes());
        }
        p.extend_from_slice(&q.question);
        if !truncated {
            p.extend_from_slice(&self.records);
        }
        if let Some(e) = extra {
            p.extend_from_slice(&e);
        }
        p
    }
}
