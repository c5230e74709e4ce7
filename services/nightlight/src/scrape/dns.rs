//! A question to this machine's name servers, for lists of targets: SRV, A, AAAA, MX and NS.
//!
//! The system's own resolver (`getaddrinfo`) knows no SRV; a resolver crate (hickory) would bring thirty packages for
//! one question and its answer.

use super::config::Record;
use photon_rt::{
    entropy, fs,
    net::{TcpStream, udp},
    time::{Duration, timeout},
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Most records of an answer.
const RECORDS_MAX: usize = 10_000;
/// Largest answer by UDP, bytes.
const UDP_MAX: usize = 4096;
/// Time for one server.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(5);

/// One record: a name or an address, and SRV's port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub host: String,
    pub port: Option<u16>,
}

fn number(record: Record) -> u16 {
    match record {
        Record::A => 1,
        Record::NS => 2,
        Record::MX => 15,
        Record::AAAA => 28,
        Record::SRV => 33,
    }
}

/// Name servers and search list (resolv.conf(5)).
fn system(text: &str) -> (Vec<SocketAddr>, Vec<String>) {
    let (mut servers, mut search) = (Vec::new(), Vec::new());
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => {
                servers.extend(
                    words.next().and_then(|w| w.parse::<IpAddr>().ok()).map(|a| SocketAddr::new(a, 53)),
                );
            }
            Some("search" | "domain") => search = words.take(6).map(str::to_string).collect(),
            _ => {}
        }
    }
    servers.truncate(3);
    (servers, search)
}

/// Records of `name`, asked of the servers of resolv.conf.
pub(super) async fn lookup(name: &str, record: Record) -> Result<Vec<Answer>, String> {
    let text = fs::read_text("/etc/resolv.conf".as_ref(), 64 << 10).map_err(|e| e.to_string())?;
    let (servers, search) = system(&text);
    let mut names = Vec::new();
    if name.ends_with('.') {
        names.push(name.to_string());
    } else {
        names.push(format!("{name}."));
        names.extend(search.iter().map(|s| format!("{name}.{}.", s.trim_end_matches('.'))));
    }
    let mut last = "there is no name server in /etc/resolv.conf".to_string();
    for name in &names {
        for server in &servers {
            match timeout(ANSWER_TIME_MAX, "the name server", ask(*server, name, record)).await {
                Ok(Ok(found)) if found.is_empty() => last = format!("{name} has no such record"),
                Ok(Ok(found)) => return Ok(found),
                Ok(Err(e)) => last = e,
                Err(e) => last = e.to_string(),
            }
        }
    }
    Err(last)
}

/// Asks one server; by TCP if the answer does not fit.
pub(super) async fn ask(server: SocketAddr, name: &str, record: Record) -> Result<Vec<Answer>, String> {
    let id = entropy::u64() as u16;
    let question = question(id, name, number(record))?;
    let failed = |e: std::io::Error| format!("name server {server}: {e}");
    let any: SocketAddr =
        if server.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    let socket = udp(any).await.map_err(|e| e.to_string())?;
    socket.connect(server).await.map_err(failed)?;
    socket.send(&question).await.map_err(failed)?;
    let mut bytes = vec![0; UDP_MAX];
    loop {
        let n = socket.recv(&mut bytes).await.map_err(failed)?;
        // Somebody else's answer is not ours.
        if bytes[..n].starts_with(&id.to_be_bytes()) {
            bytes.truncate(n);
            break;
        }
    }
    if bytes.get(2).is_some_and(|flags| flags & 2 != 0) {
        let mut tcp = TcpStream::connect(server).await.map_err(failed)?;
        let mut framed = (question.len() as u16).to_be_bytes().to_vec();
        framed.extend_from_slice(&question);
        tcp.write_all(&framed).await.map_err(failed)?;
        let n = tcp.read_u16().await.map_err(failed)?;
        bytes = vec![0; usize::from(n)];
        tcp.read_exact(&mut bytes).await.map_err(failed)?;
    }
    answers(&bytes, id, record).ok_or_else(|| format!("name server {server} gave a broken answer"))?
}

/// A question with recursion (RFC 1035, section 4), and room for large answers (RFC 6891).
fn question(id: u16, name: &str, kind: u16) -> Result<Vec<u8>, String> {
    let mut out = Vec::with_capacity(64);
    out.extend_from_slice(&id.to_be_bytes());
    out.extend_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 1]);
    for label in name.trim_end_matches('.').split('.') {
        if label.is_empty() || label.len() > 63 {
            return Err(format!("{name:?} is not a name"));
        }
        out.push(label.len() as u8);
        out.extend_from_slice(label.as_bytes());
    }
    out.push(0);
    if out.len() > 12 + 255 {
        return Err(format!("{name:?} is too long"));
    }
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&[0, 1]);
    out.extend_from_slice(&[0, 0, 41]);
    out.extend_from_slice(&(UDP_MAX as u16).to_be_bytes());
    out.extend_from_slice(&[0, 0, 0, 0, 0, 0]);
    Ok(out)
}

fn short(b: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(b.get(at..at + 2)?.try_into().ok()?))
}

/// A name and where it ends. Pointers go backwards only, so it ends.
fn name(b: &[u8], mut at: usize) -> Option<(String, usize)> {
    let (mut out, mut end, mut before) = (String::new(), None, at);
    loop {
        let n = usize::from(*b.get(at)?);
        match n {
            0 => break,
            n if n & 0xc0 == 0xc0 => {
                let to = usize::from(short(b, at)? & 0x3fff);
                end.get_or_insert(at + 2);
                if to >= before {
                    return None;
                }
                (at, before) = (to, to);
            }
            n if n < 64 => {
                out.push_str(std::str::from_utf8(b.get(at + 1..at + 1 + n)?).ok()?);
                out.push('.');
                at += 1 + n;
            }
            _ => return None,
        }
        if out.len() > 255 {
            return None;
        }
    }
    Some((out, end.unwrap_or(at + 1)))
}

/// The records of an answer; nothing: it can't be read.
fn answers(b: &[u8], id: u16, record: Record) -> Option<Result<Vec<Answer>, String>> {
    if short(b, 0)? != id || b.get(2)? & 0x80 == 0 {
        return None;
    }
    match b.get(3)? & 15 {
        0 => {}
        3 => return Some(Ok(Vec::new())),
        code => return Some(Err(format!("the name server answers with code {code}"))),
    }
    let (questions, count) = (short(b, 4)?, usize::from(short(b, 6)?));
    let mut at = 12;
    for _ in 0..questions {
        at = name(b, at)?.1 + 4;
    }
    let mut out = Vec::new();
    for _ in 0..count.min(RECORDS_MAX) {
        at = name(b, at)?.1;
        let (kind, len) = (short(b, at)?, usize::from(short(b, at + 8)?));
        let data = at + 10;
        let rest = b.get(data..data + len)?;
        at = data + len;
        if kind != number(record) {
            continue; // an alias on the way
        }
        let (host, port) = match record {
            Record::A => (Ipv4Addr::from(<[u8; 4]>::try_from(rest).ok()?).to_string(), None),
            Record::AAAA => (Ipv6Addr::from(<[u8; 16]>::try_from(rest).ok()?).to_string(), None),
            Record::NS => (name(b, data)?.0, None),
            Record::MX => (name(b, data + 2)?.0, None),
            Record::SRV => (name(b, data + 6)?.0, Some(short(b, data + 4)?)),
        };
        out.push(Answer { host, port });
    }
    Some(Ok(out))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// An answer with a name pointed to, an alias before it, and two servers.
    fn srv() -> Vec<u8> {
        let mut b = question(7, "_m._tcp.a.b", 33).expect("question");
        b.truncate(b.len() - 11); // without the room for large answers
        (b[2], b[7], b[11]) = (0x81, 2, 0);
        for (port, host) in [(80u16, "x"), (8080, "y")] {
            b.extend_from_slice(&[0xc0, 12, 0, 33, 0, 1, 0, 0, 0, 9, 0, 10, 0, 1, 0, 2]);
            b.extend_from_slice(&port.to_be_bytes());
            b.extend_from_slice(&[1, host.as_bytes()[0], 0xc0, 20]);
        }
        b
    }

    #[test]
    fn servers_are_read_through_pointers() {
        let found = answers(&srv(), 7, Record::SRV).expect("whole").expect("records");
        let shown: Vec<String> = found.iter().map(|a| format!("{}:{:?}", a.host, a.port)).collect();
        assert_eq!(shown, ["x.a.b.:Some(80)", "y.a.b.:Some(8080)"]);
        assert_eq!(answers(&srv(), 8, Record::SRV), None, "another question's");
        // A pointer to itself ends.
        let mut b = srv();
        let n = b.len();
        b[n - 1] = (n - 2) as u8;
        assert_eq!(answers(&b, 7, Record::SRV), None);
    }

    #[tokio::test]
    async fn a_server_is_asked() {
        let server = udp("127.0.0.1:0".parse().expect("address")).await.expect("port");
        let at = server.local_addr().expect("bound");
        let answer = async {
            let mut asked = [0; 512];
            let (n, from) = server.recv_from(&mut asked).await.expect("a question");
            assert!(asked[..n].windows(5).any(|w| w == b"\x04_tcp"), "{:?}", &asked[..n]);
            let mut b = srv();
            b[..2].copy_from_slice(&asked[..2]);
            server.send_to(&b, from).await.expect("sent");
        };
        let (found, ()) = tokio::join!(ask(at, "_m._tcp.a.b", Record::SRV), answer);
        assert_eq!(found.expect("an answer").len(), 2);
    }

    #[test]
    fn resolv_conf_is_read() {
        let (servers, search) =
            system("# x\nnameserver 10.0.0.1\nnameserver ::1\nsearch a.b c\noptions ndots:5\n");
        assert_eq!(servers, ["10.0.0.1:53".parse().expect("a"), "[::1]:53".parse().expect("b")]);
        assert_eq!(search, ["a.b", "c"]);
    }

    proptest! {
        #[test]
        fn no_answer_is_a_panic(cut in 0usize..80, flips in proptest::collection::vec((0usize..80, any::<u8>()), 0..6)) {
            let mut b = srv();
            for (at, v) in flips {
                if let Some(x) = b.get_mut(at) { *x = v; }
            }
            b.truncate(cut);
            for r in [Record::SRV, Record::A, Record::AAAA, Record::MX, Record::NS] {
                let _ = answers(&b, 7, r);
            }
        }
    }
}
