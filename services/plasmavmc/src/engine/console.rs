//! The serial console of one VM: one reader of QEMU's socket, the last 64 KiB in memory and on disk,
//! any number of viewers, input.
//!
//! Invariants: a viewer has no queue, only a position in the ring: a slow one is told how much it
//! missed, and costs nothing. What a guest writes is read at [`RATE`] at most; beyond that it waits
//! for us, so that a flood costs it and not its neighbours. On disk are at most two files of
//! [`FILE_MAX`] bytes. What the guest says while photon is down is lost: QEMU drops it.

use bytes::Bytes;
use photon_base::{Error, Result};
use photon_rt::{
    net::UnixStream,
    task::blocking,
    time::{Duration, sleep, timeout},
};
use std::{
    collections::VecDeque,
    fs::File,
    io::{Read, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::{mpsc, watch},
};

/// Bytes kept for those who come later.
pub const BACKLOG: usize = 64 << 10;
/// Size at which a file on disk is left for the other one.
pub const FILE_MAX: u64 = 128 << 10;
/// Bytes a second that are read from a guest.
pub const RATE: usize = 1 << 20;
/// Largest piece handed to a viewer.
const PIECE: usize = 16 << 10;
/// Most input pieces that wait for the guest.
const INPUT_MAX: usize = 64;
const MAGIC: &[u8; 8] = b"PHCONS1\n";

struct Ring {
    bytes: VecDeque<u8>,
    end: u64,
}

/// Where the stream is; what viewers wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mark {
    end: u64,
    over: bool,
}

struct Hub {
    ring: Mutex<Ring>,
    mark: watch::Sender<Mark>,
    connected: watch::Sender<bool>,
    input: mpsc::Sender<Bytes>,
    inbox: tokio::sync::Mutex<mpsc::Receiver<Bytes>>,
    store: Arc<Mutex<Store>>,
}

/// A VM's console. Clones are the same console.
#[derive(Clone)]
pub struct Console(Arc<Hub>);

impl std::fmt::Debug for Console {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Console({:?})", *self.0.mark.borrow())
    }
}

/// A piece of what the guest wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Bytes between the piece before and this one that the viewer was too slow for.
    pub missed: u64,
    /// What the guest wrote.
    pub data: Bytes,
}

/// One who looks at a console.
pub struct Viewer {
    hub: Arc<Hub>,
    mark: watch::Receiver<Mark>,
    at: u64,
}

fn lock<T>(m: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner) // plain bytes: no invariant can be half done
}

impl Console {
    /// The console with what `dir` remembers of it.
    pub fn open(dir: &Path) -> Console {
        let (store, end, bytes) = Store::open(dir);
        let (input, inbox) = mpsc::channel(INPUT_MAX);
        Console(Arc::new(Hub {
            ring: Mutex::new(Ring { bytes: bytes.into(), end }),
            mark: watch::Sender::new(Mark { end, over: false }),
            connected: watch::Sender::new(false),
            input,
            inbox: tokio::sync::Mutex::new(inbox),
            store: Arc::new(Mutex::new(store)),
        }))
    }

    /// Starts to look, with up to `backlog` bytes of what was said before.
    pub fn view(&self, backlog: usize) -> Viewer {
        let ring = lock(&self.0.ring);
        let at = ring.end - ring.bytes.len().min(backlog) as u64;
        Viewer { hub: self.0.clone(), mark: self.0.mark.subscribe(), at }
    }

    /// Types `data` into the guest. Waits while the guest does not read; an error when there is no
    /// guest.
    pub async fn write(&self, data: Bytes) -> Result<()> {
        if !*self.0.connected.borrow() {
            return Err(Error::unavailable("the console is not connected").why("the VM is not running"));
        }
        let mut rest = data;
        while !rest.is_empty() {
            let piece = rest.split_to(rest.len().min(PIECE));
            self.0.input.send(piece).await.map_err(|_| Error::unavailable("the console is gone"))?;
        }
        Ok(())
    }

    /// Resolves when the guest is listened to, or after `limit`.
    pub(super) async fn heard(&self, limit: Duration) {
        let mut connected = self.0.connected.subscribe();
        let _ = timeout(limit, "the console", connected.wait_for(|c| *c)).await; // late is late: the guest begins
    }

    /// Serves QEMU's `socket` until `over` becomes true and nothing is left to read.
    pub(super) async fn serve(&self, socket: &Path, mut over: watch::Receiver<bool>) {
        let mut inbox = self.0.inbox.lock().await;
        loop {
            if let Ok(stream) = UnixStream::connect(socket).await {
                let _ = self.0.connected.send_replace(true);
                self.pump(stream, &mut inbox).await;
                let _ = self.0.connected.send_replace(false);
                while inbox.try_recv().is_ok() {} // typed for a guest that is gone
            }
            if *over.borrow() {
                break;
            }
            tokio::select! {
                _ = over.wait_for(|o| *o) => {}
                () = sleep(Duration::from_millis(20)) => {}
            }
        }
        self.0.mark.send_modify(|m| m.over = true);
    }

    async fn pump(&self, stream: UnixStream, inbox: &mut mpsc::Receiver<Bytes>) {
        let (mut from, mut to) = stream.into_split();
        let read = async {
            let mut buf = vec![0; PIECE];
            while let Ok(n) = from.read(&mut buf).await {
                if n == 0 {
                    break;
                }
                self.append(&buf[..n]).await;
                sleep(Duration::from_micros((n * 1_000_000 / RATE) as u64)).await;
            }
        };
        let write = async {
            while let Some(piece) = inbox.recv().await {
                if to.write_all(&piece).await.is_err() {
                    break;
                }
            }
            std::future::pending::<()>().await // the reader knows when the connection is over
        };
        tokio::select! { () = read => {}, () = write => {} }
    }

    async fn append(&self, data: &[u8]) {
        let end = {
            let mut ring = lock(&self.0.ring);
            ring.bytes.extend(data);
            let excess = ring.bytes.len().saturating_sub(BACKLOG);
            ring.bytes.drain(..excess);
            ring.end += data.len() as u64;
            ring.end
        };
        self.0.mark.send_modify(|m| m.end = end);
        let (store, data) = (self.0.store.clone(), data.to_vec());
        blocking(move || lock(&store).append(&data)).await;
    }
}

impl Viewer {
    /// The next piece. None when the VM has ended and all was seen. Safe to cancel.
    pub async fn next(&mut self) -> Option<Piece> {
        let at = self.at;
        let mark = *self.mark.wait_for(|m| m.end > at || m.over).await.ok()?;
        let ring = lock(&self.hub.ring);
        let start = ring.end - ring.bytes.len() as u64;
        if mark.over && ring.end <= self.at {
            return None;
        }
        let from = self.at.max(start);
        let missed = from - self.at;
        let skip = (from - start) as usize;
        let data: Vec<u8> = ring.bytes.iter().skip(skip).take(PIECE).copied().collect();
        self.at = from + data.len() as u64;
        Some(Piece { missed, data: data.into() })
    }
}

/// Two files in turns. Each starts with a magic and the position of its first byte in the stream.
struct Store {
    dir: PathBuf,
    file: Option<File>,
    turn: u8,
    size: u64,
    end: u64,
}

impl Store {
    fn path(dir: &Path, turn: u8) -> PathBuf {
        dir.join(format!("console.{turn}"))
    }

    /// One file's first position and bytes; None when it is not there or not ours.
    fn load(dir: &Path, turn: u8) -> Option<(u64, Vec<u8>)> {
        let file = photon_rt::fs::OpenOptions::new().read(true).open(Self::path(dir, turn)).ok()?;
        let mut bytes = Vec::new();
        file.take(2 * FILE_MAX).read_to_end(&mut bytes).ok()?;
        let head = bytes.get(..16)?;
        if &head[..8] != MAGIC {
            return None;
        }
        let start = u64::from_be_bytes(head[8..16].try_into().ok()?);
        bytes.drain(..16);
        start.checked_add(bytes.len() as u64)?;
        Some((start, bytes))
    }

    /// What is on disk: the store (which goes on in a fresh file), the end of the stream, its last bytes.
    fn open(dir: &Path) -> (Store, u64, Vec<u8>) {
        let both = (Self::load(dir, 0), Self::load(dir, 1));
        let newest = match &both {
            (Some(a), Some(b)) if a.0 > b.0 => 0,
            (_, Some(_)) => 1,
            _ => 0,
        };
        let (old, new) = if newest == 0 { (both.1, both.0) } else { both };
        let (start, mut bytes) = new.unwrap_or_default();
        let end = start + bytes.len() as u64;
        if let Some((at, mut older)) = old.filter(|(at, b)| at + b.len() as u64 == start) {
            let _ = at;
            older.append(&mut bytes);
            bytes = older;
        }
        bytes.drain(..bytes.len().saturating_sub(BACKLOG));
        let store = Store { dir: dir.to_path_buf(), file: None, turn: newest, size: FILE_MAX, end };
        (store, end, bytes)
    }

    /// Appends; trouble with the disk costs the memory of the console and nothing else.
    fn append(&mut self, data: &[u8]) {
        if self.size >= FILE_MAX {
            self.turn ^= 1;
            self.size = 0;
            let mut head = MAGIC.to_vec();
            head.extend_from_slice(&self.end.to_be_bytes());
            let fresh = photon_rt::fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .open(Self::path(&self.dir, self.turn))
                .and_then(|mut f| f.write_all(&head).map(|()| f));
            self.file = fresh.ok();
        }
        if let Some(f) = &mut self.file
            && f.write_all(data).is_err()
        {
            self.file = None; // tried again with the next turn
        }
        self.size += data.len() as u64;
        self.end += data.len() as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dir() -> PathBuf {
        let d = std::env::temp_dir().join(format!("photon-con-{:x}", photon_rt::entropy::u64()));
        photon_rt::fs::private_dir(&d).expect("dir");
        d
    }

    #[tokio::test]
    async fn viewers_get_backlog_then_live_and_learn_what_they_missed() {
        let d = dir();
        let c = Console::open(&d);
        c.append(b"early ").await;
        let mut v = c.view(4);
        assert_eq!(v.next().await, Some(Piece { missed: 0, data: "rly ".into() }));
        c.append(b"live").await;
        assert_eq!(v.next().await, Some(Piece { missed: 0, data: "live".into() }));
        c.append(&vec![b'x'; BACKLOG + 10]).await;
        assert_eq!(v.next().await.expect("piece").missed, 10);
        assert!(c.write("typed".into()).await.is_err(), "nobody is there");
        photon_rt::fs::remove_dir_all(&d).expect("clean");
    }

    #[tokio::test]
    async fn a_restart_remembers_and_a_flood_stays_bounded() {
        let d = dir();
        let c = Console::open(&d);
        for i in 0..200 {
            c.append(format!("{i:05}{}", "-".repeat(4091)).as_bytes()).await; // 800 KiB
        }
        let again = Console::open(&d);
        let all = |c: &Console| lock(&c.0.ring).bytes.iter().copied().collect::<Vec<u8>>();
        assert_eq!(all(&again), all(&c));
        assert_eq!(lock(&again.0.ring).end, 200 * 4096);
        again.append(b"more").await;
        let third = Console::open(&d);
        assert!(all(&third).ends_with(b"more"));
        let size: u64 =
            [0, 1].map(|t| photon_rt::fs::metadata(Store::path(&d, t)).map_or(0, |m| m.len())).iter().sum();
        assert!(size <= 2 * (FILE_MAX + 4096 + 16), "{size}");
        photon_rt::fs::write_atomic(&Store::path(&d, 0), b"rubbish", 0o600).expect("write");
        photon_rt::fs::write_atomic(&Store::path(&d, 1), &[MAGIC, &[0xff; 9][..]].concat(), 0o600)
            .expect("write");
        assert_eq!(all(&Console::open(&d)), b"");
        photon_rt::fs::remove_dir_all(&d).expect("clean");
    }
}
