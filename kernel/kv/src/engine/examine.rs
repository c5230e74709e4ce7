//! Looking through fjall's files before fjall opens them, for damage that fjall 3.1 does not see.
//!
//! *Journals.* fjall takes a journal up to the first entry that it cannot read, and cuts off the rest: right
//! for the torn end of the newest one, wrong for damage anywhere else, which would leave a state with a hole.
//! Nor does a checksum cover the head of a batch. So damage is looked for here, by what fjall promises:
//! journals that are not the newest were synced whole, a batch is durable in the journal before a table holds
//! it, and sequence numbers rise. (The checksum of a batch that
//! cannot even be unpacked fjall does not get to.)
//!
//! *Manifests.* Which tables there are is in a file whose checksum is kept beside it, and not compared.
//!
//! Blocks of tables have checksums that fjall verifies on every read. Not seen: damage that makes the number
//! of the very first batch of the oldest journal smaller.

use std::{
    io::{self, BufRead, BufReader, Read},
    path::{Path, PathBuf},
};
use xxhash_rust::xxh3::Xxh3;

/// What was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Journals {
    /// Number of the last whole batch.
    pub last: Option<u64>,
    /// The newest journal ends in something else than a whole batch; no batch in a table may have this number
    /// or a greater one, as it was never synced.
    pub torn: Option<u64>,
}

/// Looks through a folder of fjall's; the error says what is damaged.
pub(super) fn examine(dir: &Path) -> Result<Journals, String> {
    manifests(&dir.join("keyspaces"))?;
    journals(dir)
}

/// `current`: number of the manifest, its XXH3-128, and which checksum that is (0).
fn manifests(keyspaces: &Path) -> Result<(), String> {
    let Ok(all) = photon_rt::fs::read_dir(keyspaces) else { return Ok(()) };
    for folder in all {
        let folder = folder.map_err(|e| e.to_string())?.path();
        // Without it, the keyspace was never whole; fjall begins it anew.
        let Ok(current) = photon_rt::fs::read(folder.join("current")) else { continue };
        let damaged = |what: &str| format!("{}: {what}", folder.display());
        let (Some(id), Some(sum), Some(0)) = (current.get(..8), current.get(8..24), current.get(24)) else {
            return Err(damaged("`current` is damaged"));
        };
        let id = u64::from_le_bytes(id.try_into().expect("eight bytes"));
        let manifest = photon_rt::fs::read(folder.join(format!("v{id}")));
        let manifest = manifest.map_err(|e| damaged(&format!("the manifest: {e}")))?;
        if xxhash_rust::xxh3::xxh3_128(&manifest).to_le_bytes()[..] != *sum {
            return Err(damaged("the manifest's checksum is wrong"));
        }
    }
    Ok(())
}

fn journals(dir: &Path) -> Result<Journals, String> {
    let mut found: Vec<(u64, PathBuf)> = Vec::new();
    for entry in photon_rt::fs::read_dir(dir).map_err(|e| e.to_string())? {
        let path = entry.map_err(|e| e.to_string())?.path();
        if path.extension().is_some_and(|e| e == "jnl") {
            let id = path.file_stem().and_then(|s| s.to_str()).and_then(|s| s.parse().ok());
            found.push((id.ok_or_else(|| format!("{} is no journal's name", path.display()))?, path));
        }
    }
    found.sort();
    let mut all = Journals::default();
    for (i, (_, path)) in found.iter().enumerate() {
        let newest = i + 1 == found.len();
        let file = photon_rt::fs::open(path).map_err(|e| format!("{}: {e}", path.display()))?;
        let mut at = Reader { from: BufReader::with_capacity(256 << 10, file), offset: 0, sum: Xxh3::new() };
        loop {
            let begin = at.offset;
            let damaged = |what: &str| format!("{} is damaged at {begin}: {what}", path.display());
            match at.batch() {
                Ok(Some(number)) => {
                    if all.last.is_some_and(|l| number <= l) {
                        return Err(damaged("batches out of order"));
                    }
                    all.last = Some(number);
                }
                Ok(None) => break,
                Err(Broken::Io(e)) => return Err(format!("{}: {e}", path.display())),
                Err(Broken::Torn(number)) => {
                    if !newest {
                        return Err(damaged("a synced batch is not whole"));
                    }
                    let after = all.last.map(|l| l + 1);
                    // Without any number to go by, nothing at all could have been synced.
                    all.torn = Some(number.into_iter().chain(after).min().unwrap_or(0));
                    break;
                }
            }
        }
    }
    Ok(all)
}

enum Broken {
    Io(io::Error),
    /// With the batch's number, where that can be read.
    Torn(Option<u64>),
}

struct Reader<R> {
    from: BufReader<R>,
    offset: u64,
    /// Over what a batch holds.
    sum: Xxh3,
}

impl<R: Read> Reader<R> {
    /// The number of the next batch, if it is whole; none when only zeros follow.
    fn batch(&mut self) -> Result<Option<u64>, Broken> {
        let Some(tag) = self.byte()? else { return Ok(None) };
        if tag == 0 {
            return if self.zeros()? { Ok(None) } else { Err(Broken::Torn(None)) };
        }
        if tag != 1 {
            return Err(Broken::Torn(None));
        }
        let items = self.number::<4>(None)?;
        let number = self.number::<8>(None)?;
        let torn = Some(number);
        self.sum.reset();
        for _ in 0..items {
            match self.number::<1>(torn)? {
                2 => {
                    self.skip(2 + 8, torn)?; // kind, compression, keyspace
                    let key = self.number::<2>(torn)?;
                    let _value = self.number::<4>(torn)?;
                    let stored = self.number::<4>(torn)?;
                    self.skip(key + stored, torn)?;
                }
                4 => self.skip(8, torn)?,
                _ => return Err(Broken::Torn(torn)),
            }
        }
        let sum = self.sum.digest();
        let end = [self.number::<1>(torn)?, self.number::<8>(torn)?, self.number::<4>(torn)?];
        if end != [3, sum, u64::from(u32::from_le_bytes([b'F', b'J', b'L', 3]))] {
            return Err(Broken::Torn(torn));
        }
        Ok(Some(number))
    }

    fn byte(&mut self) -> Result<Option<u8>, Broken> {
        let mut b = [0];
        let n = self.from.read(&mut b).map_err(Broken::Io)?;
        self.offset += n as u64;
        Ok((n == 1).then_some(b[0]))
    }

    fn number<const N: usize>(&mut self, torn: Option<u64>) -> Result<u64, Broken> {
        let mut b = [0; 8];
        match self.from.read_exact(&mut b[..N]) {
            Ok(()) => {
                self.offset += N as u64;
                self.sum.update(&b[..N]);
                Ok(u64::from_le_bytes(b))
            }
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Err(Broken::Torn(torn)),
            Err(e) => Err(Broken::Io(e)),
        }
    }

    fn skip(&mut self, n: u64, torn: Option<u64>) -> Result<(), Broken> {
        let mut left = n;
        while left > 0 {
            let there = self.from.fill_buf().map_err(Broken::Io)?;
            let take = there.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            if take == 0 {
                return Err(Broken::Torn(torn));
            }
            self.sum.update(&there[..take]);
            self.from.consume(take);
            left -= take as u64;
        }
        self.offset += n;
        Ok(())
    }

    fn zeros(&mut self) -> Result<bool, Broken> {
        const ZEROS: [u8; 8 << 10] = [0; 8 << 10];
        let mut b = ZEROS;
        loop {
            match self.from.read(&mut b).map_err(Broken::Io)? {
                0 => return Ok(true),
                n if b[..n] != ZEROS[..n] => return Ok(false),
                _ => {}
            }
        }
    }
}
