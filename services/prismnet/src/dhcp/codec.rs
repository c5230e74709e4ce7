//! The message format of RFC 2131 and the options of RFC 2132 and 3397 that we use.

use std::net::Ipv4Addr;

/// Message type (RFC 2132 section 9.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Who offers an address?
    Discover = 1,
    /// This one.
    Offer = 2,
    /// I take it, or: may I keep it?
    Request = 3,
    /// It is in use.
    Decline = 4,
    /// Yes.
    Ack = 5,
    /// No: start anew.
    Nak = 6,
    /// I need it no more.
    Release = 7,
    /// I have an address, tell me the rest.
    Inform = 8,
}

impl Kind {
    const ALL: [Kind; 8] = [
        Kind::Discover,
        Kind::Offer,
        Kind::Request,
        Kind::Decline,
        Kind::Ack,
        Kind::Nak,
        Kind::Release,
        Kind::Inform,
    ];
}

/// What a client says, as far as we act upon it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Type.
    pub kind: Kind,
    /// Transaction, copied into the answer.
    pub xid: u32,
    /// The client asks for an answer by broadcast.
    pub broadcast: bool,
    /// The address that the client already uses.
    pub ciaddr: Ipv4Addr,
    /// The relay; ours is a network without.
    pub giaddr: Ipv4Addr,
    /// The client's hardware address.
    pub mac: [u8; 6],
    /// Option 50.
    pub requested: Option<Ipv4Addr>,
    /// Option 54.
    pub server: Option<Ipv4Addr>,
    /// Option 61, which the answer repeats (RFC 6842).
    pub client_id: Option<Vec<u8>>,
}

const COOKIE: [u8; 4] = [99, 130, 83, 99];
const HEAD: usize = 236;
/// What every client takes without having said more (RFC 2131 section 2: 576 bytes with headers).
pub const LEN_MAX: usize = 548;

fn address(b: &[u8]) -> Option<Ipv4Addr> {
    Some(Ipv4Addr::from(<[u8; 4]>::try_from(b).ok()?))
}

impl Message {
    /// Reads a request. None for everything that is not a DHCP request over Ethernet.
    pub fn parse(packet: &[u8]) -> Option<Message> {
        let head = packet.get(..HEAD)?;
        // BOOTREQUEST, Ethernet, six bytes of hardware address.
        if head[..3] != [1, 1, 6] || packet.get(HEAD..HEAD + 4)? != COOKIE {
            return None;
        }
        let mut m = Message {
            kind: Kind::Discover,
            xid: u32::from_be_bytes(head[4..8].try_into().ok()?),
            broadcast: head[10] & 0x80 != 0,
            ciaddr: address(&head[12..16])?,
            giaddr: address(&head[24..28])?,
            mac: head[28..34].try_into().ok()?,
            requested: None,
            server: None,
            client_id: None,
        };
        let mut kind = None;
        let mut rest = &packet[HEAD + 4..];
        while let [code, tail @ ..] = rest {
            match code {
                0 => rest = tail,
                255 => break,
                code => {
                    let (len, tail) = tail.split_first()?;
                    let (value, tail) = tail.split_at_checked(usize::from(*len))?;
                    rest = tail;
                    match code {
                        50 => m.requested = Some(address(value)?),
                        53 => kind = Kind::ALL.into_iter().find(|k| value == [*k as u8]),
                        54 => m.server = Some(address(value)?),
                        61 => m.client_id = Some(value.to_vec()),
                        _ => {}
                    }
                }
            }
        }
        m.kind = kind?;
        Some(m)
    }

    /// Writes an answer of `kind` to this message: `yiaddr` is the client's address to be.
    pub fn reply(&self, kind: Kind, yiaddr: Ipv4Addr, server: Ipv4Addr, options: Options) -> Vec<u8> {
        let mut p = vec![0; HEAD];
        p[..3].copy_from_slice(&[2, 1, 6]);
        p[4..8].copy_from_slice(&self.xid.to_be_bytes());
        p[10] = if self.broadcast { 0x80 } else { 0 };
        if kind == Kind::Ack {
            p[12..16].copy_from_slice(&self.ciaddr.octets());
        }
        p[16..20].copy_from_slice(&yiaddr.octets());
        if kind != Kind::Nak {
            p[20..24].copy_from_slice(&server.octets());
        }
        p[28..34].copy_from_slice(&self.mac);
        p.extend_from_slice(&COOKIE);
        let mut all = Options::default();
        all.put(53, &[kind as u8]).put(54, &server.octets());
        all.put(61, self.client_id.as_deref().unwrap_or_default());
        all.0.extend(options.0);
        for (code, value) in all.0 {
            // What does not fit any more is left out, the rest may.
            if p.len() + 2 + value.len() < LEN_MAX {
                p.extend_from_slice(&[code, value.len() as u8]);
                p.extend_from_slice(&value);
            }
        }
        p.push(255);
        p.resize(p.len().max(300), 0); // old relays and clients expect BOOTP's least length (RFC 1542)
        p
    }
}

/// Options of an answer, in the order of their importance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options(Vec<(u8, Vec<u8>)>);

impl Options {
    /// Adds an option, unless it is empty or too long for one.
    pub fn put(&mut self, code: u8, value: &[u8]) -> &mut Self {
        if (1..=255).contains(&value.len()) {
            self.0.push((code, value.to_vec()));
        }
        self
    }

    /// Adds addresses.
    pub fn addresses(&mut self, code: u8, list: &[Ipv4Addr]) -> &mut Self {
        let bytes: Vec<u8> = list.iter().flat_map(Ipv4Addr::octets).collect();
        self.put(code, &bytes)
    }

    /// Adds the search list as DNS names (RFC 3397, without compression). A name that is not one is
    /// left out.
    pub fn search(&mut self, names: &[String]) -> &mut Self {
        let mut bytes = Vec::new();
        for name in names {
            let labels: Vec<&str> = name.trim_end_matches('.').split('.').collect();
            if name.len() <= 253 && labels.iter().all(|l| (1..=63).contains(&l.len())) {
                for l in labels {
                    bytes.push(l.len() as u8);
                    bytes.extend_from_slice(l.as_bytes());
                }
                bytes.push(0);
            }
        }
        self.put(119, &bytes)
    }
}
